"""Hit ratios of the eviction policies on traces of real systems, and the effect of a scan. No server takes part.

The cache is empty at first. Each key of a trace is looked up, and is stored on a miss. Capacity is a number of entries,
or, for the trace that contains sizes, the bytes that a node accounts for. *exact LRU* is that of cachetools. theine is
W-TinyLFU and limits entries only. *best possible* is the optimum with knowledge of all future accesses; for a capacity
in bytes, it is an upper bound.

The scan: a working set of half the capacity is in use, with a popularity by Zipf's law or with uniform popularity. Then
ten times as many keys as the cache holds are accessed once each, in one burst or between the accesses to the working
set. The table shows the part of the working set's hits that is left; for a burst, in as many accesses after it as the
working set has keys.

Policies hash keys, so the last digit differs from run to run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lab.simulation import Workload
from benchmarks.lab.traces import read_trace
from benchmarks.results import Row
from benchmarks.session import Session
from pyrocache.node.store.eviction import POLICIES, EvictionPolicy

TITLE = "Eviction"

EXACT_LRU = "exact LRU"
THEINE = "theine"
BEST = "best possible"

SCAN = "A scan of ten times the capacity"

_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

TRACES = {
    "OLTP": ("OLTP.lis.zst", (1000, 2000, 5000, 10_000, 20_000)),
    "sprite": ("sprite.trace.gz", (100, 200, 400, 600, 800, 1000, 2000)),
    "adapt_size": ("adapt_size.trace.xz", tuple(mib << 20 for mib in (1, 4, 16, 64, 128))),
}
"""The file and the capacities for each trace."""

_SCANNED = 1000


def measure(session: Session) -> list[Row]:
    """Run the case."""
    rows = []
    for trace, (file, capacities) in TRACES.items():
        if not (_DATA / file).is_file():
            session.note(f"eviction is without {trace}: {file} is not in ../shared/data.")
            continue
        session.progress(f"eviction: reading {trace}")
        workload = Workload(read_trace(_DATA / file))
        for capacity in session.choose(capacities, capacities[:2]):
            session.progress(f"eviction: {trace}, {capacity:,}")
            rows += _of_trace(session, trace, workload, capacity)
    session.progress("eviction: scan")
    return rows + [
        Row("eviction", SCAN, operation, name, {"hits_left": scanned(POLICIES[name](), popular, gap)})
        for operation, popular, gap in (
            ("zipfian, a burst", True, None),
            ("zipfian, in between", True, 1),
            ("uniform, a burst", False, None),
            ("uniform, in between", False, 1),
        )
        for name in POLICIES
    ]


def _of_trace(session: Session, trace: str, workload: Workload, capacity: int) -> list[Row]:
    hits: dict[str, int | None] = {
        name: workload.hits(policy(), capacity) for name, policy in POLICIES.items()
    }
    hits[EXACT_LRU] = _exact_lru(session, workload, capacity)
    if workload.costs is None:
        hits[THEINE] = _theine(session, workload, capacity)
        hits[BEST] = workload.best_by_count(capacity)
        table, operation = f"{trace}, by entries", f"{capacity:,}"
    else:
        (hits[BEST],) = workload.at_most_by_bytes([capacity])
        table, operation = f"{trace}, by bytes", f"{capacity >> 20} MiB"
    return [
        Row("eviction", table, operation, name, {"hit_ratio": count / len(workload)})
        for name, count in hits.items()
        if count is not None
    ]


def _exact_lru(session: Session, workload: Workload, capacity: int) -> int | None:
    try:
        from cachetools import LRUCache
    except ImportError:
        session.note("cachetools is not installed, and is left out.")
        return None
    hits = 0
    costs = workload.costs or [1] * len(workload)
    cache: Any = LRUCache(capacity, getsizeof=lambda cost: cost)
    for key, cost in zip(workload.keys, costs, strict=True):
        if cache.get(key) is not None:
            hits += 1
        elif cost <= capacity:
            cache[key] = cost
    return hits


def _theine(session: Session, workload: Workload, capacity: int) -> int | None:
    try:
        from theine import Cache
    except ImportError:
        session.note("theine is not installed, and is left out.")
        return None
    hits = 0
    cache = Cache(capacity)
    try:
        for key in workload.keys:
            if cache.get(key)[1]:
                hits += 1
            else:
                cache.set(key, True)
    finally:
        cache.close()
    return hits


def scanned(policy: EvictionPolicy, popular: bool, gap: int | None, capacity: int = _SCANNED) -> float:
    """Which part of a working set's hits a scan leaves.

    Args:
        popular: its keys are not all used alike.
        gap: accesses to the working set from one scanned key to the next; None for a burst.
    """
    keys = [b"w%d" % number for number in range(capacity // 2)]
    weights = [1 / (rank + 1) ** 0.99 if popular else 1.0 for rank in range(len(keys))]
    rng = random.Random(1)
    access = _cache(policy, capacity)

    def used(times: int) -> int:
        return sum(map(access, rng.choices(keys, weights, k=times)))

    used(20 * capacity)
    before = used(5 * capacity) / (5 * capacity)
    hits = 0
    for number in range(10 * capacity):
        access(b"s%d" % number)
        hits += used(gap or 0)
    if gap is None:
        return used(len(keys)) / len(keys) / before
    return hits / (10 * capacity * gap) / before


def _cache(policy: EvictionPolicy, capacity: int) -> Callable[[bytes], bool]:
    """Access to a cache of ``capacity`` entries: whether there was one."""
    held: set[bytes] = set()

    def access(key: bytes) -> bool:
        if key in held:
            policy.used(key)
            return True
        if len(held) >= capacity:
            held.remove(policy.victim())
        held.add(key)
        policy.added(key)
        return False

    return access
