"""Commands that are printed to be copied."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

import pyrocache
from pyrocache.cli.output import (
    client_to_copy,
    for_other_hosts,
    remember_secret_file,
    remember_tls,
    to_copy,
    with_given_options,
)
from pyrocache.config import DEFAULT_NAMESERVER, TLS
from pyrocache.runtime.secret import Secret
from pyrocache.settings import NAMESERVER_VARIABLE
from tests.support.secrets import SECRET


@pytest.fixture(autouse=True)
def no_option(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(NAMESERVER_VARIABLE, raising=False)
    _forget()
    yield
    _forget()


def _forget() -> None:
    remember_secret_file(None)
    remember_tls(None)


def test_defaults_are_left_out() -> None:
    assert to_copy("status", DEFAULT_NAMESERVER) == "pyrocache status"


def test_another_name_server_and_another_secret_are_named() -> None:
    remember_secret_file("a file")
    words = ["pyrocache", "nodes", "--nameserver", "10.0.0.1:9", "--secret-file", os.path.abspath("a file")]
    assert shlex.split(to_copy("nodes", "10.0.0.1:9")) == words


def test_the_name_server_of_the_environment_is_named_as_the_next_shell_may_not_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(NAMESERVER_VARIABLE, DEFAULT_NAMESERVER)
    assert to_copy("status", DEFAULT_NAMESERVER) == f"pyrocache status --nameserver {DEFAULT_NAMESERVER}"


FILES = {"ca": "/t/ca.pem", "cert": "/t/cert.pem", "key": "/t/key.pem"}
CERT_AND_KEY = "--tls-cert /t/cert.pem --tls-key /t/key.pem"


@pytest.mark.parametrize(
    ("tls", "of_nodes", "of_clients", "in_python"),
    [
        (None, "", "", ""),
        (False, " --no-tls", " --no-tls", ", tls=False"),
        (
            TLS(**FILES),
            f" {CERT_AND_KEY} --tls-ca /t/ca.pem",
            " --tls-ca /t/ca.pem",
            ", tls=pyrocache.TLS(ca='/t/ca.pem')",
        ),
        (
            TLS(**FILES, require_client_cert=True),
            f" {CERT_AND_KEY} --tls-ca /t/ca.pem --tls-require-client-cert",
            f" {CERT_AND_KEY} --tls-ca /t/ca.pem",
            ", tls=pyrocache.TLS(cert='/t/cert.pem', key='/t/key.pem', ca='/t/ca.pem')",
        ),
        (
            TLS(cert="/t/cert.pem", key="/t/key.pem"),
            f" {CERT_AND_KEY}",
            f" {CERT_AND_KEY}",
            ", tls=pyrocache.TLS(cert='/t/cert.pem', key='/t/key.pem')",
        ),
    ],
    ids=["loopback", "none", "an authority", "client certificates", "authorities of the system"],
)
def test_what_is_copied_has_the_options_of_tls(
    tls: Any, of_nodes: str, of_clients: str, in_python: str
) -> None:
    remember_tls(tls)
    assert to_copy("nodes", "a:9") == f"pyrocache nodes --nameserver a:9{of_nodes}"
    assert to_copy("status", "a:9") == f"pyrocache status --nameserver a:9{of_clients}"
    python = client_to_copy("a:9")
    assert python == f"pyrocache.PyroCacheClient('a:9'{in_python})"
    with eval(python, {"pyrocache": pyrocache}) as client:
        assert isinstance(client._context.config.tls, TLS) is isinstance(tls, TLS)


def test_other_hosts_need_the_secret_file_and_this_one_does_not() -> None:
    at_home = Secret("/home/me/secret", SECRET.keys)
    assert for_other_hosts("127.0.0.1:9", at_home) == for_other_hosts("[::1]:9", at_home) == ""
    assert "the secret file /home/me/secret," in for_other_hosts("a.example:9", at_home)
    assert "--secret-file" in for_other_hosts("10.0.0.1:9", SECRET), "it is in memory"


def test_commands_that_errors_end_with_get_the_options_of_the_present_command() -> None:
    start = "start some with: pyrocache nodes --nameserver 10.0.0.1:9"
    assert with_given_options(start) == start
    remember_tls(False)
    remember_secret_file("/secret file")
    assert with_given_options(start) == f"{start} --no-tls --secret-file '/secret file'"
    for complete in ("The pyrocache nodes are away.", f"{start} --no-tls", "See: pyrocache get --help"):
        assert with_given_options(complete) == complete
    remember_tls(TLS(ca="/ca.pem", cert="/cert.pem", key="/key.pem"))
    remember_secret_file(None)
    assert with_given_options("with: pyrocache status") == "with: pyrocache status --tls-ca /ca.pem"
    assert "--tls-key /key.pem" in with_given_options("with: pyrocache nameserver --host a --port 9")
