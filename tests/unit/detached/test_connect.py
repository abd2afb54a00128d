"""What `pyrocache.connect` refuses, and what it says."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import pyrocache
from pyrocache.detached import connect as module
from pyrocache.detached.connect import _duration, _of_running, _of_started, _tell, _Wanted, stop
from pyrocache.detached.place import Record
from pyrocache.errors import ConfigurationError, OutOfResources
from pyrocache.runtime import private_directory
from pyrocache.runtime.interpreter import CHILD_VARIABLE

RECORD = Record(
    address="127.0.0.1:4000",
    nodes=3,
    max_memory=2**30,
    idle_timeout=3600.0,
    pid=1,
    started_at=0.0,
    clients="/nowhere",
)
WANTED = _Wanted.of(3, "1GiB", 3600.0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"nodes": 0}, "nodes must be a number of nodes from 1 to 256, not 0"),
        ({"nodes": True}, "nodes must be a number of nodes from 1 to 256, not True"),
        ({"max_memory": "much"}, "'much' is not a valid size"),
        ({"max_memory": 1000}, "A node needs at least 64KiB of memory"),
        ({"idle_timeout": 0}, "idle_timeout must be finite and above 0"),
        ({"nameserver": "127.0.0.1:9090"}, r"for one that you name, use PyroCacheClient\(nameserver\)"),
    ],
)
def test_arguments_that_are_not_valid(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        pyrocache.connect(**arguments)


def test_a_process_of_a_cluster_does_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHILD_VARIABLE, "1")
    with pytest.raises(ConfigurationError, match="This process was started to be a node"):
        pyrocache.connect()


def test_without_a_place_for_files_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()  # so that not even root can make a directory there
    monkeypatch.setattr(private_directory, "path", lambda: str(tmp_path / "file" / "private"))
    monkeypatch.setattr(module, "_usual", lambda options: None)
    said = (
        "There can be no detached cluster here: Not a directory. Set TMPDIR to a directory that you can write to, or "
        "start nodes with: pyrocache nodes --with-nameserver"
    )
    for call in (pyrocache.connect, stop):
        with pytest.raises(OutOfResources) as refused:
            call()
        assert str(refused.value) == said


def test_a_timeout_is_seconds_or_a_timedelta_or_none() -> None:
    assert _Wanted.of(1, 2**20, timedelta(minutes=5)) == _Wanted(1, 2**20, 300.0)
    assert _Wanted.of(1, "1MiB", None) == _Wanted(1, 2**20, None)


def test_the_line_about_a_cluster_that_was_started() -> None:
    assert _of_started(RECORD) == (
        "Started a cluster of 3 nodes at 127.0.0.1:4000 (in a terminal: pyrocache status --nameserver 127.0.0.1:4000). "
        "It ends after 1 h without clients, or with: pyrocache stop"
    )
    assert _of_started(replace(RECORD, idle_timeout=None)).endswith("It ends with: pyrocache stop")


def test_the_line_about_a_cluster_that_was_running() -> None:
    line = (
        "Connected to your cluster at 127.0.0.1:4000 (3 nodes, started 12 min ago; in a terminal: "
        "pyrocache status --nameserver 127.0.0.1:4000)."
    )
    assert _of_running(RECORD, WANTED, 745.0) == line
    assert _of_running(RECORD, _Wanted.of(5, "1GiB", 7.0), 745.0) == (
        f"{line} It is used as it is, with 3 nodes of 1.0 GiB, not 5 of 1.0 GiB: to change that, run pyrocache stop, "
        "and connect again."
    )
    assert "started 1 s ago" in _of_running(RECORD, WANTED, -5.0)  # the clock was set back


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "0.5 s"),
        (1.0, "1 s"),
        (90.0, "90 s"),
        (120.0, "2 min"),
        (745.0, "12 min"),
        (3600.0, "1 h"),
        (5400.0, "1.5 h"),
        (90_000.0, "25 h"),
        (200_000.0, "2 days"),
    ],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_the_line_is_printed_for_a_person_and_logged_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="pyrocache.connect")
    monkeypatch.delattr(sys, "ps1", raising=False)
    _tell("a line")
    assert capsys.readouterr().out == ""
    assert caplog.messages == ["a line"]
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    _tell("another line")
    assert capsys.readouterr().out == "another line\n"
    assert caplog.messages == ["a line"]
