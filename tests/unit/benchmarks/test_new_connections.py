"""The parts of the benchmarks that are about secrets and signatures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("benchmarks")

from benchmarks.cases.signing import with_extra
from benchmarks.clients import NewConnections
from benchmarks.field import OURS, SIGNED
from benchmarks.results import Row
from benchmarks.servers import own_secret
from pyrocache.runtime.secret import FILE_VARIABLE, find_secret


class _Client:
    """A client with one entry, which notes what is done."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def get(self, key: str) -> str:
        self.done.append("get")
        return key.upper()

    def set(self, key: str, value: object) -> None:
        self.done.append("set")

    def delete(self, key: str) -> None:
        self.done.append("delete")

    def disconnect(self) -> None:
        self.done.append("disconnect")


def test_each_get_has_a_connection_of_its_own() -> None:
    client = _Client()
    wrapped = NewConnections(client, client.disconnect)
    wrapped.set("a", 1)
    assert [wrapped.get("a"), wrapped.get("b")] == ["A", "B"]
    assert client.done == ["set", "get", "disconnect", "get", "disconnect"]


@pytest.mark.parametrize("before", [None, "/some/secret"])
def test_a_run_makes_no_secret_in_the_home(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(FILE_VARIABLE, before)
    with own_secret():
        path = find_secret().path
        assert path == os.environ[FILE_VARIABLE]
    assert not os.path.exists(str(path))
    assert os.environ.get(FILE_VARIABLE) == before
    assert list(tmp_path.iterdir()) == []


def test_signed_calls_are_compared_with_unsigned_ones_of_the_same_table() -> None:
    def row(table: str, contender: str, median_us: float) -> Row:
        return Row("signing", table, "get", contender, {"median_us": median_us})

    rows = with_extra(
        [row("TCP", OURS, 20.0), row("TCP", SIGNED, 23.0), row("Unix", OURS, 15.0), row("Unix", SIGNED, 17.0)]
    )
    assert [one.figures.get("extra_us") for one in rows] == [None, 3.0, None, 2.0]
