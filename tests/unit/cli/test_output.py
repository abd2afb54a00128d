"""Commands that are printed to be copied."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from pyrocache.cli.output import remember_secret_file, to_copy
from pyrocache.config import DEFAULT_NAMESERVER
from pyrocache.settings import NAMESERVER_VARIABLE


@pytest.fixture(autouse=True)
def no_option(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(NAMESERVER_VARIABLE, raising=False)
    yield
    remember_secret_file(None)


def test_defaults_are_left_out() -> None:
    assert to_copy("status", DEFAULT_NAMESERVER) == "pyrocache status"


def test_another_name_server_and_another_secret_are_named() -> None:
    remember_secret_file("a file")
    words = ["pyrocache", "nodes", "--nameserver", "10.0.0.1:9", "--secret-file", "a file"]
    assert shlex.split(to_copy("nodes", "10.0.0.1:9")) == words


def test_the_name_server_of_the_environment_is_named_as_the_next_shell_may_not_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(NAMESERVER_VARIABLE, DEFAULT_NAMESERVER)
    assert to_copy("status", DEFAULT_NAMESERVER) == f"pyrocache status --nameserver {DEFAULT_NAMESERVER}"
