"""`Rates`: operations per second and hit ratios, from the differences of statistics that are read again and again.

The statistics of nodes are counters. `Rates.take` is given each `Stats` with the time of its reading, and returns what
happened per second, averaged over the last seconds. Does not ask nodes, and does not wait. Pure: no I/O, no threads,
no clock.

Rates are never negative and have no spikes at the events of a cluster:

- A node that is new, was restarted (another pid, or a shorter uptime) or was away begins anew: its counters are those
  of another time. It has rates from its second reading on.
- A counter that became smaller counts as unchanged for this interval. `reset_stats` sets counters to 0, one after the
  other, and a namespace that is forgotten meanwhile may be counted twice in one reading.

Thread safety: not thread-safe; one `Rates` is used by one thread at a time. What it returns does not change.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest

from pyrocache.client.stats import LatencyHistogram, NodeStats, Stats

WINDOW_SECONDS = 5.0
"""The seconds that rates are averaged over, unless `Rates` is given others."""

_COUNTERS = ("hits", "misses", "sets", "deletes", "evictions", "expirations")
_GET = "get"


@dataclass(frozen=True, slots=True)
class Rate:
    """What happened per second, at one node or at several.

    Attributes:
        seconds: for how long this was measured; 0 if not yet. Then all rates are 0.
        hits, misses, sets, deletes, evictions, expirations: per second, of the counters in `NodeStats`.
        latencies: the durations of `get` calls within ``seconds``. Of the calls that a node answers immediately, only a
            constant share is measured.
    """

    seconds: float = 0.0
    hits: float = 0.0
    misses: float = 0.0
    sets: float = 0.0
    deletes: float = 0.0
    evictions: float = 0.0
    expirations: float = 0.0
    latencies: LatencyHistogram = field(default_factory=LatencyHistogram)

    @property
    def gets(self) -> float:
        """Reads per second."""
        return self.hits + self.misses

    @property
    def operations(self) -> float:
        """Reads, entries stored and entries removed by clients, per second."""
        return self.gets + self.sets + self.deletes

    @property
    def hit_ratio(self) -> float:
        """Share of the reads that were hits, 0 to 1; NaN if there were no reads."""
        return self.hits / self.gets if self.gets else math.nan

    @property
    def p99_seconds(self) -> float:
        """The seconds within which 99 % of the `get` calls finished at the node; NaN if none was measured."""
        return self.latencies.percentile(99)


@dataclass(frozen=True, slots=True)
class ClusterRates:
    """The rates of each node that answered, by its name, and their sums.

    Attributes:
        nodes: the rates of each node.
        total: their sums; ``seconds`` is the longest of theirs.
    """

    nodes: dict[str, Rate]
    total: Rate


class Rates:
    """Makes rates of statistics.

    Args:
        window_seconds: how long ago what is averaged may have happened. With 0, only the last interval counts.

    Raises:
        ValueError: ``window_seconds`` is negative or NaN.
    """

    def __init__(self, window_seconds: float = WINDOW_SECONDS) -> None:
        if not window_seconds >= 0.0:
            raise ValueError(f"window_seconds is 0 or more seconds, not {window_seconds!r}.")
        self._window = window_seconds
        self._nodes: dict[str, _Node] = {}

    def take(self, stats: Stats, now: float) -> ClusterRates:
        """Return the rates after one more reading.

        Args:
            stats: from `PyroCacheClient.stats`.
            now: when they were read, in seconds of a monotonic clock. If it is not later than before, the reading is
                left out.
        """
        known, self._nodes = self._nodes, {}  # a node that is away is forgotten
        for name, figures in stats.nodes.items():
            node = known.get(name)
            if node is None or node.restarted(figures):
                node = _Node(figures, now)
            else:
                node.take(figures, now, self._window)
            self._nodes[name] = node
        rates = {name: node.rate() for name, node in self._nodes.items()}
        return ClusterRates(rates, _sum(rates.values()))


class _Interval:
    """What happened at a node between two readings."""

    __slots__ = ("counts", "latencies", "seconds")

    def __init__(self, before: NodeStats, after: NodeStats, seconds: float) -> None:
        self.seconds = seconds
        self.counts = {name: max(getattr(after, name) - getattr(before, name), 0) for name in _COUNTERS}
        old, new = (figures.latencies.get(_GET, LatencyHistogram()) for figures in (before, after))
        self.latencies = _grown(old, new)


class _Node:
    """The last reading of a node, and the intervals within the window."""

    def __init__(self, figures: NodeStats, now: float) -> None:
        self._last, self._at = figures, now
        self._intervals: deque[_Interval] = deque()

    def restarted(self, figures: NodeStats) -> bool:
        """Return whether these are the statistics of another process."""
        # In containers, both may have pid 1.
        return figures.pid != self._last.pid or figures.uptime_seconds < self._last.uptime_seconds

    def take(self, figures: NodeStats, now: float, window: float) -> None:
        if now <= self._at:
            return
        self._intervals.append(_Interval(self._last, figures, now - self._at))
        self._last, self._at = figures, now
        # The others must cover the window: with long intervals, one is kept.
        while sum(one.seconds for one in self._intervals) - self._intervals[0].seconds >= window:
            if len(self._intervals) == 1:
                break
            self._intervals.popleft()

    def rate(self) -> Rate:
        seconds = sum(one.seconds for one in self._intervals)
        if not seconds:
            return Rate()
        rates = {name: sum(one.counts[name] for one in self._intervals) / seconds for name in _COUNTERS}
        latencies = LatencyHistogram()
        for one in self._intervals:
            latencies += one.latencies
        return Rate(seconds=seconds, latencies=latencies, **rates)


def _grown(before: LatencyHistogram, after: LatencyHistogram) -> LatencyHistogram:
    """Return the calls that were added; none if the histogram was reset."""
    added = [new - old for old, new in zip_longest(before.counts, after.counts, fillvalue=0)]
    return LatencyHistogram(tuple(added) if min(added, default=0) >= 0 else ())


def _sum(rates: Iterable[Rate]) -> Rate:
    total = Rate()
    for rate in rates:
        sums = {name: getattr(total, name) + getattr(rate, name) for name in _COUNTERS}
        latencies = total.latencies + rate.latencies
        total = Rate(seconds=max(total.seconds, rate.seconds), latencies=latencies, **sums)
    return total
