"""Turns and comparisons: who begins, percentiles, ratios round by round."""

from __future__ import annotations

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("benchmarks")

from benchmarks.crew import Slice  # noqa: E402
from benchmarks.rounds import comparison, figures, ratios, rotated  # noqa: E402


def a_slice(latencies_us: list[float], rate: float, client_us: float = 0, server_us: float = 0) -> Slice:
    latencies = np.array([int(one * 1000) for one in latencies_us], dtype=np.int64)
    return Slice(latencies, rate, int(client_us * 1000), int(server_us * 1000))


def test_each_round_begins_with_another_contender() -> None:
    assert [rotated("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_latencies_are_of_all_rounds_and_rates_of_the_median_round() -> None:
    slices = [a_slice(list(range(1, 51)), 10.0), a_slice(list(range(51, 102)), 1000.0), a_slice([], 20.0)]
    found = figures(slices)
    assert found["calls"] == 101
    assert found["median_us"] == 51
    assert found["p99_us"] == 100
    assert found["calls_per_second"] == 20


def test_cpu_time_is_per_call() -> None:
    found = figures([a_slice([1, 1, 1], 1, client_us=30, server_us=12), a_slice([1], 1, client_us=10)])
    assert found["client_us"] == 10
    assert found["server_us"] == 3


def test_ratios_are_taken_within_rounds() -> None:
    # Twice as fast in each round, in rounds of which one was ten times slower for both.
    found = ratios([20.0, 2.0, 22.0], [10.0, 1.0, 11.0])
    assert found == {"ratio": 2.0, "ratio_low": 2.0, "ratio_high": 2.0, "ratio_of_medians": 2.0}
    assert ratios([1.0, 2.0, 30.0], [1.0, 1.0, 1.0])["ratio"] == 2.0


def test_others_are_compared_with_ours() -> None:
    compared = comparison(
        "ours",
        {
            "ours": [a_slice([10, 10], 300.0, server_us=20)],
            "theirs": [a_slice([20, 20], 100.0, server_us=10)],
        },
    )
    assert "ratio" not in compared["ours"]
    assert compared["theirs"]["ratio"] == 3
    assert compared["theirs"]["p99_ratio"] == 0.5
    assert compared["theirs"]["server_cpu_ratio"] == 2
