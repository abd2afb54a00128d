"""`NodeMetrics`: the statistics of one node, as `CacheNode.stats` reports them.

`collect` reads the counters of all namespaces. There may be many, so it does not hold the node's lock, and lets the I/O
thread run between slices. It copies the list of namespaces in one call into C, which needs no lock. A counter that
changes meanwhile is reported as before or after the change. Clients read the result in `pyrocache.client.stats`;
`pyrocache.cli.tables` prints it.

Thread safety: thread-safe; both methods run on a worker thread.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pyrocache.node.service.coordination import Coordination
from pyrocache.node.store.store import Store

MAX_NAMESPACES = 500
"""Number of namespaces that are reported at most: those with the most reads."""

_SLICE = 1000


class NodeMetrics:
    """Collects the statistics of one node.

    Args:
        store, coordination: the parts of the node that are reported.
        gauges: returns further statistics by name.
        on_reset: called by `reset`.
        clock: seconds (`runtime.clock`).
    """

    def __init__(
        self,
        store: Store,
        coordination: Coordination,
        gauges: Callable[[], dict[str, Any]],
        on_reset: Callable[[], object],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._coordination = coordination
        self._gauges = gauges
        self._on_reset = on_reset
        self._clock = clock
        self._started = self._counted_since = clock()

    def collect(self) -> dict[str, Any]:
        """Return the statistics of this node by name.

        Counters count from the start of the node or the last `reset`, except ``loads``, which is never reset.
        """
        store, leases, locks = self._store, self._coordination.leases, self._coordination.locks
        entries, hits, misses, namespaces = self._namespaces()
        now = self._clock()
        return {
            "entries": entries,
            "hits": hits,
            "misses": misses,
            **asdict(store.counters),
            "bytes": store.used_bytes,
            "max_bytes": store.max_bytes,
            "policy": store.policy.name,
            "namespaces": namespaces,
            "leases": len(leases.by_key),
            "loads": leases.granted,
            "locks": locks.held,
            "waiting": leases.waiting + locks.waiting,
            "uptime_seconds": now - self._started,
            "counted_seconds": now - self._counted_since,
            "pid": os.getpid(),
            **self._gauges(),
        }

    def reset(self) -> bool:
        """Reset all counters but ``loads`` to 0. Return True."""
        namespaces = self._store.namespaces
        prefixes = [space.prefix for space in list(namespaces)]
        for start in range(0, len(prefixes), _SLICE):
            with self._coordination.lock:
                for space in filter(None, map(namespaces.get, prefixes[start : start + _SLICE])):
                    space.hits = space.misses = 0
            time.sleep(0)  # let a waiting I/O thread have the interpreter
        with self._coordination.lock:  # last: counters of namespaces that are forgotten go into the totals
            self._store.reset_counters()
            self._counted_since = self._clock()
        self._on_reset()
        return True

    def _namespaces(self) -> tuple[int, int, int, list[list[Any]]]:
        """Return all entries, hits and misses, and ``[prefix, hits, misses, entries]`` of the namespaces read most."""
        spaces = list(self._store.namespaces)  # one call into C
        hits, misses = self._store.namespaces.hits, self._store.namespaces.misses
        entries = sum(space.count for space, _ in list(self._store.contents.reclaimer.cleared))
        top: list[list[Any]] = []
        for start in range(0, len(spaces), _SLICE):
            part = spaces[start : start + _SLICE]
            entries += sum(s.count for s in part)
            hits += sum(s.hits for s in part)
            misses += sum(s.misses for s in part)
            top += [[s.prefix, s.hits, s.misses, s.count] for s in part if s.count or s.hits or s.misses]
            if len(top) > MAX_NAMESPACES:
                top = heapq.nlargest(MAX_NAMESPACES, top, key=lambda row: row[1] + row[2])
            time.sleep(0)  # let a waiting I/O thread have the interpreter
        return entries, hits, misses, top
