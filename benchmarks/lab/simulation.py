"""What a trace would come to in caches of several sizes: hits of the eviction policies, and the most there can be.

Everything happens in this process, without nodes or sockets: a cache is the set of its keys, and is used as one that
stands beside a database. An access to a key that it has is a hit; any other is a miss, upon which the key is stored,
and others are evicted until it fits. Capacity counts entries where the trace does not tell of sizes, and otherwise the
bytes that a node accounts for, with key and overhead. What would not fit at all is not stored.

Pure but for its memory: 8 bytes an access, 16 with sizes, and about 150 bytes for each key.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import accumulate, islice
from typing import TypeVar

from benchmarks.lab.traces import Access
from pyrocache.client.keys.encoding import encode_key
from pyrocache.node.store.entry import ENTRY_OVERHEAD
from pyrocache.node.store.eviction import EvictionPolicy

_T = TypeVar("_T")

_STEP = 1 << 14
"""Accesses from one sign of progress to the next."""

Progress = Callable[[int], object]
"""Told how many accesses more are done."""


class Workload:
    """A trace in memory.

    Attributes:
        keys: the key of each access, as a node would see it.
        costs: bytes of the entry of each access; None when the trace does not tell.
        footprint: capacity at which nothing is ever evicted, in entries or bytes.
        distinct: how many keys there are.
    """

    def __init__(self, accesses: Iterable[Access], progress: Progress | None = None) -> None:
        self.keys: list[bytes] = []
        costs = array("Q")
        largest: dict[int | str, int] = {}
        known: dict[int | str, bytes] = {}
        for key, size in _in_steps(accesses, progress):
            encoded = known.get(key)
            if encoded is None:
                encoded = known[key] = encode_key(key)
            self.keys.append(encoded)
            if size is not None:
                cost = len(encoded) + size + ENTRY_OVERHEAD
                costs.append(cost)
                largest[key] = max(largest.get(key, 0), cost)
        self.distinct = len(known)
        self.costs = costs if costs else None
        self.footprint = sum(largest.values()) if costs else len(known)

    def __len__(self) -> int:
        """How many accesses there are."""
        return len(self.keys)

    def hits(self, policy: EvictionPolicy, capacity: int, progress: Progress | None = None) -> int:
        """How many accesses are hits in a cache of ``capacity`` that starts empty, under a fresh ``policy``."""
        if self.costs is None:
            return self._hits_by_count(policy, capacity, progress)
        hits = 0
        room = capacity
        held: dict[bytes, int] = {}
        for key, cost in _in_steps(zip(self.keys, self.costs, strict=True), progress):
            if key in held:
                hits += 1
                policy.used(key)
            elif cost <= capacity:
                while cost > room:
                    room += held.pop(policy.victim())
                held[key] = cost
                room -= cost
                policy.added(key)
        return hits

    def _hits_by_count(self, policy: EvictionPolicy, capacity: int, progress: Progress | None) -> int:
        hits = 0
        held: set[bytes] = set()
        for key in _in_steps(self.keys, progress):
            if key in held:
                hits += 1
                policy.used(key)
            else:
                if len(held) >= capacity:
                    held.remove(policy.victim())
                held.add(key)
                policy.added(key)
        return hits

    def best_by_count(self, capacity: int, progress: Progress | None = None) -> int:
        """The most hits that there can be with ``capacity`` entries, exactly, knowing all accesses to come.

        Kept is what is used again soonest (Belady, "A study of replacement algorithms for a virtual-storage computer",
        IBM Systems Journal 1966); a key that would be the last of all is not even stored.
        """
        hits = 0
        held: set[int] = set()  # where the keys that are held come next
        latest: list[int] = []  # the same as a heap, the farthest first, and some places that are passed
        for here, there in _in_steps(enumerate(self._next_places()), progress):
            if here in held:
                held.remove(here)
                hits += 1
            if there:
                held.add(there)
                heappush(latest, -there)
                if len(held) > capacity:
                    held.remove(-heappop(latest))
        return hits

    def at_most_by_bytes(self, capacities: Iterable[int]) -> list[int]:
        """More hits than these there cannot be in caches of these many bytes; the most there can be may be fewer.

        An entry takes its bytes from one access to the next if that is to be a hit, and all together have no more than
        the capacity at all times. The bound leaves it at that: so many hits as have room, the cheapest ones first
        (PFOO-U in Berger, Beckmann, Harchol-Balter, "Practical Bounds on Optimal Caching with Variable Object Sizes",
        SIGMETRICS 2018).
        """
        assert self.costs is not None
        least: dict[bytes, int] = {}
        for key, cost in zip(self.keys, self.costs, strict=True):
            least[key] = min(cost, least.get(key, cost))
        places = enumerate(zip(self.keys, self._next_places(), strict=True))
        taken = sorted(least[key] * (there - here) for here, (key, there) in places if there)
        sums = list(accumulate(taken))
        return [bisect_right(sums, capacity * len(self)) for capacity in capacities]

    def _next_places(self) -> array[int]:
        """For each access the place of the next one to the same key; 0 when there is none."""
        places = array("Q", bytes(8 * len(self)))
        last: dict[bytes, int] = {}
        for place, key in enumerate(self.keys):
            before = last.get(key)
            if before is not None:
                places[before] = place
            last[key] = place
        return places


def spread(workload: Workload, count: int = 8) -> list[int]:
    """Up to ``count`` round capacities that lie well apart, the largest a little below the footprint."""
    if workload.costs is None:
        steps = [digit * 10**power for power in range(19) for digit in (1, 2, 5)]
    else:
        steps = [1 << power for power in range(10, 64)]
    chosen = [step for step in steps if step < workload.footprint][-count:]
    return chosen or [workload.footprint]


def _in_steps(items: Iterable[_T], progress: Progress | None) -> Iterator[_T]:
    """``items``, while ``progress`` is told of them."""
    if progress is None:
        yield from items
        return
    source = iter(items)
    while step := list(islice(source, _STEP)):
        yield from step
        progress(len(step))
