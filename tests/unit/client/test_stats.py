"""Figures of nodes, summed and shown."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import sys
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
    assert lines[0] == "Statistics of 2 nodes: 1 away"
    assert re.search(r"entries +8 in 2 namespaces\n", text)
    assert re.search(r"hit ratio +\S+ 75.0% of 200 reads\n", text)
    assert re.search(r"cache.node.1 +up +4 .*4.9 KiB / 1.0 MiB +75.0% +6 +1 s", text)
    assert re.search(r"cache.node.3 +away +-", text)
    assert re.search(r"the root +6 +73.7% +190\n", text)
    assert re.search(r"\('shop', 'eu'\) +2 +100.0% +10\n", text)
    assert re.search(r"get +200 +3 µs", text)
    assert "misses_on_error 3" in text
    assert lines[-1] == "  cache.node.3 does not answer, so its figures are missing here."
    assert max(map(len, lines)) <= 100
    assert "Statistics of 0 nodes" in repr(stats())
    many = {**ANSWER, "namespaces": [[namespace_prefix(str(number)), 1, 1, 1] for number in range(500)]}
    assert len(repr(stats(many)).splitlines()) < 40
    assert "and 490 more" in repr(stats(many))
    assert "at least 500 namespaces" in repr(stats(many))


def test_figures_within_others_take_one_line() -> None:
    assert repr(LatencyHistogram()) == "<LatencyHistogram: no calls>"
    assert repr(LatencyHistogram((0, 10))) == "<LatencyHistogram: 10 measured, p50 1.5 µs, p99 1.99 µs>"
    node = NodeStats.from_wire(ANSWER)
    assert repr(node).startswith(
        "<NodeStats: 4 entries in 4.9 KiB of 1.0 MiB; 75.0% hits of 100 reads; 10 sets"
    )
    assert "\n" not in repr({"cache.node.1": node, "total": Totals()})
    assert "no reads" in repr(Totals())


def test_a_frame_has_a_row_for_each_node_and_a_column_for_each_number() -> None:
    pytest.importorskip("pandas")
    frame = stats(ANSWER, {"max_bytes": 0}, away=["cache.node.3"]).to_frame()
    assert (list(frame.index), frame.index.name) == ([f"cache.node.{number}" for number in (1, 2, 3)], "node")
    assert set(frame.dtypes.map(lambda dtype: dtype.kind)) == {"f"}
    first, second, third = (frame.loc[name] for name in frame.index)
    assert (first["hits"], first["hit_ratio"], first["memory_share"]) == (75, 0.75, 5000 / 2**20)
    assert second["hits"] == 0
    assert second[["hit_ratio", "memory_share"]].isna().all()
    assert third.isna().all()
    numbers = {one.name for one in dataclasses.fields(NodeStats)} - {
        *("namespaces", "latencies", "policy", "version", "silent")
    }
    assert set(frame.columns) == {*numbers, "hit_ratio", "memory_share"}
    assert stats(ANSWER).to_frame()["entries"].dtype.kind == "i"
    for few in (stats(), stats(away=["cache.node.1"])):
        assert set(few.to_frame().dtypes.map(lambda dtype: dtype.kind)) == {"f"}


def test_a_plot_has_four_axes_and_is_not_known_to_pyplot() -> None:
    pytest.importorskip("matplotlib")
    figure = stats(ANSWER, {**ANSWER, "hits": 0, "misses": 0}, away=["$a$\n\x1b[1m"]).plot()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["Hit ratio", "Memory", "Balance of entries", "Duration of calls at the nodes"]
    ratio, memory, balance, latency = figure.axes
    assert [bar.get_height() for bar in ratio.patches] == [0.75, 0.0, 0.0]
    assert [bar.get_height() for bar in memory.patches] == [2**20, 2**20, 0, 5000, 5000, 0]
    assert [bar.get_height() for bar in balance.patches] == [4, 4, 0]
    assert balance.get_lines()[0].get_ydata()[0] == 4
    assert latency.get_xscale() == "log"
    assert [text.get_text() for text in latency.get_legend().get_texts()] == ["get", "scan"]
    assert figure._repr_png_().startswith(b"\x89PNG")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.full
@pytest.mark.parametrize(
    "few", [stats(), stats(away=["a"]), stats({}), stats(*[ANSWER] * 30)], ids=["none", "away", "new", "many"]
)
def test_a_plot_can_always_be_drawn(few: Stats) -> None:
    pytest.importorskip("matplotlib")
    assert few.plot()._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(("method", "package"), [("to_frame", "pandas"), ("plot", "matplotlib")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, method: str, package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "pyrocache.client.plots", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Refusing(package), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match=rf"{package}.*pip install 'pyrocache\[jupyter\]'$"):
        getattr(stats(ANSWER), method)()


class _Refusing:
    """Finds no module of a package, as if it were not installed."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


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
