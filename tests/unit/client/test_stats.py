"""Figures of nodes, summed and shown."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.client.keys.format import namespace_prefix
from pyrocache.client.stats import ClientStats, LatencyHistogram, NamespaceStats, NodeStats, Stats, Totals

ANSWER: dict[str, Any] = {
    "hits": 75,
    "misses": 25,
    "sets": 10,
    "deletes": 1,
    "evictions": 2,
    "expirations": 3,
    "entries": 4,
    "bytes": 5000,
    "max_bytes": 2**20,
    "connections": 6,
    "rss_bytes": 2**25,
    "uptime_seconds": 1.5,
    "pid": 77,
    "policy": "lru",
    "namespaces": [[namespace_prefix(), 70, 25, 3], [namespace_prefix("shop", "eu"), 5, 0, 1]],
    "latencies": [["get", [0, 10, 80, 9, 0, 1]], ["scan", [0, 0, 0, 0, 0, 0, 0, 2]]],
    "of a later version": 1,
}


def stats(*answers: dict[str, Any], away: list[str] | None = None) -> Stats:
    nodes = {f"cache.node.{number}": NodeStats.from_wire(answer) for number, answer in enumerate(answers, 1)}
    return Stats.of(nodes, ClientStats(misses_on_error=3), away or [])


def test_a_node_answers_with_figures_that_have_names_and_types() -> None:
    node = NodeStats.from_wire(ANSWER)
    assert (node.hits, node.misses, node.hit_ratio) == (75, 25, 0.75)
    assert (node.uptime_seconds, node.pid, node.policy) == (1.5, 77, "lru")
    assert node.namespaces == {(): NamespaceStats(70, 25, 3), ("shop", "eu"): NamespaceStats(5, 0, 1)}
    assert node.namespaces["shop", "eu"].hit_ratio == 1.0
    assert node.latencies["get"].count == 100


def test_what_is_missing_or_strange_does_no_harm() -> None:
    assert NodeStats.from_wire({}) == NodeStats()
    node = NodeStats.from_wire({"namespaces": [[b"\5ab", 1, 2, 3], [b"", 1, 2, 3], [b"\0", 1, 2, 3]]})
    assert node.namespaces == {(): NamespaceStats(1, 2, 3)}


def test_figures_of_all_nodes_are_summed() -> None:
    second = {**ANSWER, "latencies": [["get", [1] * 8], ["set", [5]]], "namespaces": [[b"\0", 1, 1, 1]]}
    total = stats(ANSWER, second).total
    assert type(total) is Totals
    assert (total.hits, total.entries, total.bytes, total.max_bytes) == (150, 8, 10_000, 2**21)
    assert total.namespaces == {(): NamespaceStats(71, 26, 4), ("shop", "eu"): NamespaceStats(5, 0, 1)}
    assert total.latencies["get"].counts == (1, 11, 81, 10, 1, 2, 1, 1)
    assert total.latencies.keys() == {"get", "scan", "set"}
    assert stats().total == Totals()
    assert math.isnan(stats().total.hit_ratio)


def test_they_are_good_for_json_and_pickle() -> None:
    found = stats(ANSWER, ANSWER, away=["cache.node.3"])
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["nodes"]["cache.node.1"]["policy"] == "lru"
    assert plain["total"]["namespaces"][1] == {"path": ["shop", "eu"], "hits": 10, "misses": 0, "entries": 2}
    assert plain["total"]["latencies"]["get"]["count"] == 200
    assert plain["client"]["misses_on_error"] == 3
    assert plain["away"] == ["cache.node.3"]
    assert pickle.loads(pickle.dumps(found)) == found
    json.dumps(LatencyHistogram().as_dict(), allow_nan=False)


def test_they_are_readable() -> None:
    text = repr(stats(ANSWER, ANSWER, away=["cache.node.3"]))
    lines = text.splitlines()
    assert "2 nodes" in lines[0]
    assert "75.0% hits of 200 reads" in lines[0]
    assert "cache.node.3: away" in text
    assert "namespace the root: 6 entries" in text
    assert "namespace ('shop', 'eu'): 2 entries; 100.0% hits of 10 reads" in text
    assert "method get: 200 measured, p50 3 µs" in text
    assert "misses_on_error 3" in lines[-1]
    assert max(map(len, lines)) < 200
    assert "no reads" in repr(stats())
    many = {**ANSWER, "namespaces": [[namespace_prefix(str(number)), 1, 1, 1] for number in range(500)]}
    assert len(repr(stats(many)).splitlines()) < 20
    assert "and 490 more" in repr(stats(many))
    assert repr(LatencyHistogram()) == "<LatencyHistogram: no calls>"


@pytest.mark.parametrize(
    ("counts", "percent", "microseconds"),
    [
        ((10,), 50, 0.5),
        ((10,), 100, 1),
        ((0, 0, 0, 10), 100, 8),
        ((0, 0, 0, 10), 0, 4),
        ((0, 0, 0, 10), 50, 6),
        ((5, 5), 50, 1),
        ((5, 5), 75, 1.5),
        ((0, 99, 0, 0, 1), 99, 2),
        ((0, 99, 0, 0, 1), 99.5, 12),
    ],
)
def test_a_percentile_lies_within_its_power_of_two(
    counts: tuple[int, ...], percent: float, microseconds: float
) -> None:
    assert LatencyHistogram(counts).percentile(percent) == pytest.approx(microseconds / 1e6)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=200), st.floats(0, 100), st.floats(0, 100))
def test_percentiles_are_near_the_true_ones_and_grow(durations: list[int], one: float, other: float) -> None:
    counts = [0] * 32
    for duration in durations:
        counts[duration.bit_length()] += 1
    histogram = LatencyHistogram(tuple(counts))
    low, high = sorted((one, other))
    assert histogram.percentile(low) <= histogram.percentile(high)
    index = max(0, math.ceil(len(durations) * high / 100) - 1)
    true = sorted(durations)[index]
    bound = 2 ** true.bit_length()
    assert bound / 2 <= histogram.percentile(high) * 1e6 * 1.0001 + (true == 0)
    assert histogram.percentile(high) * 1e6 <= bound * 1.0001


@pytest.mark.parametrize("percent", [-1, 100.5, math.nan])
def test_a_percentile_is_of_a_hundred(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        LatencyHistogram((1,)).percentile(percent)
    assert math.isnan(LatencyHistogram().percentile(50))
