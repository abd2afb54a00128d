"""The parts of a replay that need no cluster."""

from __future__ import annotations

import pytest

from benchmarks.lab.replay import Latencies, _LookAside, value_of
from pyrocache import NodeUnavailable


class Liar(dict[object, object]):
    """A cache whose every answer is a part of the value."""

    def set(self, key: object, value: bytes) -> None:
        self[key] = value

    def get(self, key: object, default: object = None) -> object:
        value = super().get(key, default)
        return value[:-1] if isinstance(value, bytes) else value


def test_a_wrong_value_is_a_mismatch() -> None:
    user = _LookAside(Liar(), 100)  # type: ignore[arg-type]
    figures = user.replay([(1, None), (2, 50), (1, None), (2, 50)])
    assert (figures.hits, figures.mismatches, figures.bytes_read) == (2, 2, 0)


class Away(Liar):
    """A cache that only answers when the key is a multiple of ``step``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def get(self, key: object, default: object = None) -> object:
        assert isinstance(key, int)
        if key % self.step:
            raise NodeUnavailable("cache.node.1 is away.")
        return None


def test_some_errors_are_counted_and_nothing_but_errors_is_the_end() -> None:
    block = [(key, None) for key in range(200)]
    figures = _LookAside(Away(40), 100).replay(block)  # type: ignore[arg-type]
    assert (figures.accesses, figures.errors, figures.misses) == (200, 195, 5)
    assert figures.last_error == "cache.node.1 is away."
    with pytest.raises(NodeUnavailable):
        _LookAside(Away(60), 100).replay(block)  # type: ignore[arg-type]


def test_values_tell_key_and_length() -> None:
    values = [value_of(key, size) for key in (1, 11, "1x") for size in (20, 21, 1000)]
    assert [len(value) for value in values] == [20, 21, 1000] * 3
    assert len({value[:20] for value in values}) == 9
    assert value_of("x", 0) == b""


def test_percentiles() -> None:
    latencies = Latencies()
    for microseconds in range(1, 1001):
        latencies.add(microseconds * 1000)
    expected = {"p50": 500, "p90": 900, "p99": 990, "p99_9": 999}
    assert latencies.percentiles() == pytest.approx(expected, rel=0.002)
    assert set(Latencies().percentiles().values()) == {None}
