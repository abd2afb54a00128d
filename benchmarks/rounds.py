"""Turns and comparisons: the contenders take turns in each round, and another one starts each time.

Machines are noisy, and what is noisy for seconds is noisy for all contenders of a round alike. So the figure to look
at is the *ratio* within each round; of those, the median and the quartiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from benchmarks.crew import Slice

_T = TypeVar("_T")


def rotated(items: Sequence[_T], number: int) -> list[_T]:
    """``items``, beginning with another one for each ``number``."""
    start = number % len(items)
    return [*items[start:], *items[:start]]


def figures(slices: Sequence[Slice]) -> dict[str, float]:
    """Figures of one contender: latency over all calls, calls per second of the median round, CPU per call."""
    latencies = np.concatenate([one.latencies_ns for one in slices]) / 1e3
    median, p99 = np.percentile(latencies, [50, 99])
    return {
        "calls": float(len(latencies)),
        "median_us": float(median),
        "p99_us": float(p99),
        "calls_per_second": float(np.median([one.calls_per_second for one in slices])),
        "server_us": sum(one.server_cpu_ns for one in slices) / 1e3 / len(latencies),
        "client_us": sum(one.client_cpu_ns for one in slices) / 1e3 / len(latencies),
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Ours over theirs, round by round: the median and the quartiles; and the ratio of the two medians."""
    low, median, high = np.percentile(np.asarray(ours) / np.asarray(theirs), [25, 50, 75])
    return {
        "ratio": float(median),
        "ratio_low": float(low),
        "ratio_high": float(high),
        "ratio_of_medians": float(np.median(ours) / np.median(theirs)),
    }


def comparison(ours: str, slices: Mapping[str, Sequence[Slice]]) -> dict[str, dict[str, float]]:
    """`figures` of each contender by its name; those of the others with the ratios of ``ours`` to them."""
    result = {name: figures(of_it) for name, of_it in slices.items()}
    own = result[ours]
    for name, of_it in slices.items():
        if name == ours:
            continue
        theirs = result[name]
        theirs |= ratios(
            [one.calls_per_second for one in slices[ours]], [one.calls_per_second for one in of_it]
        )
        theirs["p99_ratio"] = own["p99_us"] / theirs["p99_us"]
        if theirs["server_us"]:
            theirs["server_cpu_ratio"] = own["server_us"] / theirs["server_us"]
    return result
