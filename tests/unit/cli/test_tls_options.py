"""What the options of TLS mean together."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pyrocache.cli.output import remember_tls, to_copy
from pyrocache.cli.tls_options import encryption
from pyrocache.config import TLS
from pyrocache.errors import ConfigurationError
from tests.support.commands import call

NOWHERE = "127.0.0.1:1"


def test_without_options_nothing_is_encrypted_and_nothing_leaves_the_host() -> None:
    assert encryption() is None
    assert encryption(no_tls=True) is False


def test_files_are_absolute_and_remembered() -> None:
    tls = encryption(ca="ca.pem", cert="cert.pem", key="key.pem")
    assert tls == TLS(ca="ca.pem", cert="cert.pem", key="key.pem")
    try:
        assert f"--tls-ca {os.path.abspath('ca.pem')}" in to_copy("get", "a:9")
    finally:
        remember_tls(None)


@pytest.mark.parametrize(
    "options", [{"ca": "f"}, {"cert": "f", "key": "f"}, {"key": "f"}, {"require_client_cert": True}]
)
def test_options_that_contradict_each_other(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="--no-tls contradicts"):
        encryption(no_tls=True, **options)


@pytest.mark.parametrize(
    "command",
    [
        *("get key", "set key value", "delete key", "scan", "status", "stats", "ping"),
        *("nodes remove cache.node.1", "nodes", "nameserver"),
    ],
)
def test_every_command_has_the_options(command: str) -> None:
    variables = {"PYROCACHE_NAMESERVER": NOWHERE}
    for options, about in (
        ("--no-tls --tls-ca ca.pem", "--no-tls contradicts"),
        ("--tls-cert cert.pem", "both --tls-cert and --tls-key"),
    ):
        outcome = call("pyrocache", *command.split(), *options.split(), **variables)
        assert outcome.status == 1
        assert about in outcome.sentence
    more = "--tls-require-client-cert" in call("pyrocache", *command.split(), "--help").out
    assert more is (command in ("nodes", "nameserver"))
