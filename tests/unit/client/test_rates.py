"""`Rates`: what happened per second, from counters that nodes set back, lose and begin again."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.client.rates import ClusterRates, Rate, Rates
from pyrocache.client.stats import ClientStats, LatencyHistogram, NodeStats, Stats

FIRST = NodeStats(pid=1, uptime_seconds=100.0, hits=1000, misses=500, sets=200, deletes=10, evictions=5)


def stats(**nodes: NodeStats) -> Stats:
    return Stats.of(nodes, ClientStats(), [])


def later(before: NodeStats, seconds: float, **added: int) -> NodeStats:
    """The statistics of a node after some seconds, in which these were added to its counters."""
    counters = {name: getattr(before, name) + count for name, count in added.items()}
    return replace(before, uptime_seconds=before.uptime_seconds + seconds, **counters)


def fed(*readings: tuple[float, Stats], window: float = 5.0) -> ClusterRates:
    rates = Rates(window)
    for now, read in readings:
        given = rates.take(read, now)
    return given


def test_the_first_reading_has_no_rates() -> None:
    given = fed((7.0, stats(a=FIRST)))
    assert given.nodes == {"a": Rate()}
    assert given.total == Rate()
    assert math.isnan(given.total.hit_ratio)
    assert math.isnan(given.total.p99_seconds)


def test_rates_are_differences_per_second() -> None:
    second = later(FIRST, 2.0, hits=30, misses=10, sets=8, deletes=2, evictions=4)
    rate = fed((7.0, stats(a=FIRST)), (9.0, stats(a=second))).nodes["a"]
    assert (rate.gets, rate.sets, rate.deletes, rate.evictions) == (20.0, 4.0, 1.0, 2.0)
    assert (rate.operations, rate.hit_ratio, rate.seconds) == (25.0, 0.75, 2.0)


def test_the_total_is_the_sum_and_its_hit_ratio_is_weighted() -> None:
    busy, idle = later(FIRST, 1.0, hits=90, misses=10, sets=5), later(FIRST, 1.0, hits=0, misses=100)
    total = fed((0.0, stats(a=FIRST, b=FIRST)), (1.0, stats(a=busy, b=idle))).total
    assert (total.gets, total.sets, total.operations, total.hit_ratio) == (200.0, 5.0, 205.0, 0.45)


def test_rates_are_averaged_over_the_window_and_then_forgotten() -> None:
    node, rates, seen = FIRST, Rates(3.0), []
    rates.take(stats(a=node), 0.0)
    for second in range(1, 8):
        node = later(node, 1.0, sets=30 if second == 1 else 0)
        seen.append(rates.take(stats(a=node), float(second)).total.sets)
    assert seen == [30.0, 15.0, 10.0, 0.0, 0.0, 0.0, 0.0]


def test_without_a_window_only_the_last_interval_counts() -> None:
    second = later(FIRST, 10.0, sets=100)
    third = later(second, 10.0, sets=10)
    readings = (0.0, stats(a=FIRST)), (10.0, stats(a=second)), (20.0, stats(a=third))
    assert fed(*readings, window=0.0).total.sets == 1.0
    assert fed(*readings, window=5.0).total.sets == 1.0  # one long interval covers the window
    assert fed(*readings, window=11.0).total.sets == 5.5


@pytest.mark.parametrize(
    "restarted",
    [
        replace(FIRST, pid=2, uptime_seconds=0.5, hits=0, misses=0, sets=0),
        replace(FIRST, pid=2, hits=5000),  # it runs longer than the interval, and has counted more
        replace(FIRST, uptime_seconds=0.5, hits=5000),  # the same pid, in another container
    ],
)
def test_a_node_that_was_restarted_begins_anew(restarted: NodeStats) -> None:
    after = later(restarted, 1.0, hits=7)
    readings = [(0.0, stats(a=FIRST)), (1.0, stats(a=restarted)), (2.0, stats(a=after))]
    assert fed(*readings[:2]).nodes["a"] == Rate()
    assert fed(*readings).nodes["a"].hits == 7.0


def test_a_node_that_joins_or_comes_back_begins_anew_and_one_that_is_away_has_no_rate() -> None:
    alone = stats(a=FIRST)
    both = stats(a=later(FIRST, 1.0, sets=1), b=FIRST)
    joined = fed((0.0, alone), (1.0, both))
    assert (joined.nodes["b"], joined.total.sets) == (Rate(), 1.0)
    away = fed((0.0, both), (1.0, alone))
    assert away.nodes.keys() == {"a"}
    back = fed((0.0, both), (1.0, alone), (2.0, stats(a=FIRST, b=later(FIRST, 2.0, sets=1000))))
    assert back.nodes["b"] == Rate()


def test_counters_that_were_reset_count_as_unchanged() -> None:
    reset = replace(FIRST, uptime_seconds=101.0, hits=3, misses=2, sets=0)  # the deletes not yet
    given = fed(
        (0.0, stats(a=FIRST)), (1.0, stats(a=reset)), (2.0, stats(a=later(reset, 1.0, hits=4, sets=6)))
    )
    rate = given.nodes["a"]
    assert (rate.hits, rate.misses, rate.sets, rate.deletes) == (2.0, 0.0, 3.0, 0.0)


def test_the_percentile_is_of_the_calls_in_the_window() -> None:
    slow, fast = (0,) * 20 + (1000,), (0, 0, 0, 100)
    before = replace(FIRST, latencies={"get": LatencyHistogram(slow)})
    both = tuple(map(sum, zip(slow, fast + (0,) * 17, strict=True)))
    after = replace(later(FIRST, 1.0), latencies={"get": LatencyHistogram(both)})
    rate = fed((0.0, stats(a=before)), (1.0, stats(a=after))).total
    assert rate.latencies.count == 100
    assert rate.p99_seconds < 8.1e-6
    reset = replace(later(FIRST, 2.0), latencies={"get": LatencyHistogram(fast)})
    assert fed((0.0, stats(a=before)), (1.0, stats(a=reset))).total.latencies.count == 0
    begun = fed((0.0, stats(a=FIRST)), (1.0, stats(a=reset))).total  # no call of the method before
    assert begun.latencies.count == 100


def test_a_reading_that_is_not_later_is_left_out() -> None:
    second = later(FIRST, 1.0, sets=10)
    readings = (5.0, stats(a=FIRST)), (5.0, stats(a=second)), (6.0, stats(a=second))
    assert fed(*readings[:2]).total == Rate()
    assert fed(*readings).total.sets == 10.0


@pytest.mark.parametrize("window", [-1.0, math.nan])
def test_a_window_that_makes_no_sense_is_refused(window: float) -> None:
    with pytest.raises(ValueError, match="window_seconds"):
        Rates(window)


COUNTS = st.builds(
    NodeStats,
    pid=st.integers(1, 2),
    uptime_seconds=st.floats(0, 100),
    hits=st.integers(0, 50),
    misses=st.integers(0, 50),
    sets=st.integers(0, 50),
    latencies=st.dictionaries(
        st.just("get"), st.builds(LatencyHistogram, st.lists(st.integers(0, 9), max_size=4).map(tuple))
    ),
)


@given(st.lists(st.tuples(st.floats(0, 3), st.dictionaries(st.sampled_from("ab"), COUNTS)), max_size=10))
def test_nothing_is_ever_negative(readings: list[tuple[float, dict[str, NodeStats]]]) -> None:
    rates, now = Rates(2.0), 0.0
    for seconds, nodes in readings:
        now += seconds
        given = rates.take(stats(**nodes), now)
        assert given.nodes.keys() == nodes.keys()
        for rate in (*given.nodes.values(), given.total):
            assert min(rate.hits, rate.misses, rate.sets, rate.seconds, rate.operations) >= 0.0
            assert all(count >= 0 for count in rate.latencies.counts)
            assert math.isnan(rate.hit_ratio) or 0.0 <= rate.hit_ratio <= 1.0
