"""The entries of one node: bytes to bytes, with expiry, a memory bound and exact accounting.

Pure: no locks, no I/O, the clock and the eviction policy are injected. Not thread-safe; whoever owns a
store serialises the calls. An entry is expired the instant ``now >= expires_at``: no read returns it from then
on. `sweep` frees it in time proportional to what has expired, through a timing wheel (Varghese and Lauck, "Hashed and
Hierarchical Timing Wheels", SOSP 1987): the keys that expire within the same tick are in one set, and the ticks, which
are the wider the longer the TTL, in a heap. A key leaves its set when it is overwritten or removed, so nothing outdated
piles up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from heapq import heappop, heappush

from pyrocache.errors import ValueTooLarge
from pyrocache.node.eviction import LRU, EvictionPolicy

ENTRY_OVERHEAD = 400
"""Bytes that an entry takes beyond its key and value: objects, table slots, the policy's node, malloc's slack."""

_FAR_SECONDS = 1e12
"""Beyond this an expiry is never planned exactly; it is thirty thousand years."""


class Entry:
    """One value with its expiry (monotonic seconds, or None) and its version, which only grows."""

    __slots__ = ("expires_at", "tick", "value", "version")

    def __init__(self, value: bytes, expires_at: float | None, version: int) -> None:
        self.value = value
        self.expires_at = expires_at
        self.tick = 0  # where the wheel has its key, if it expires
        self.version = version


@dataclass(slots=True)
class Counters:
    """What has happened in a store since it was made."""

    hits: int = 0
    misses: int = 0
    sets: int = 0
    deletes: int = 0
    evictions: int = 0
    expirations: int = 0

    def as_dict(self) -> dict[str, int]:
        """The counters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Store:
    """A bounded mapping of bytes to bytes whose entries expire.

    Args:
        max_bytes: how much the entries may take, `ENTRY_OVERHEAD` each included.
        policy: which entry goes when that is reached; entries that are expired go first.
        clock: monotonic seconds.
        first_version: below every version that this store gives out.
        tick_seconds: how long an expired entry may wait before `sweep` and eviction know of it; for a TTL of more than
            64 ticks, up to a thirtieth of the TTL.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        policy: EvictionPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        first_version: int = 0,
        tick_seconds: float = 0.5,
    ) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.counters = Counters()
        self._entries: dict[bytes, Entry] = {}
        self._policy: EvictionPolicy = LRU() if policy is None else policy
        self._clock = clock
        self._version = first_version
        self._tick_seconds = tick_seconds
        self._wheel: dict[
            int, set[bytes]
        ] = {}  # the keys that expire until the end of a tick and after its begin
        self._ticks: list[int] = []  # a heap of the wheel's keys, and of some whose set has become empty

    def __len__(self) -> int:
        """Entries held, those included that are expired and not yet swept."""
        return len(self._entries)

    def get(self, key: bytes) -> bytes | None:
        """The value, or None when there is none (any more). Counts a hit or a miss."""
        entry = self._live(key)
        if entry is None:
            self.counters.misses += 1
            return None
        self.counters.hits += 1
        self._policy.used(key)
        return entry.value

    def contains(self, key: bytes) -> bool:
        """Whether there is a value; neither counts nor makes the entry more recent."""
        return self._live(key) is not None

    def remaining(self, key: bytes) -> float | None:
        """Seconds until the entry expires, infinite when it never does, None when there is none."""
        entry = self._live(key)
        if entry is None:
            return None
        return float("inf") if entry.expires_at is None else entry.expires_at - self._clock()

    def set(self, key: bytes, value: bytes, ttl_seconds: float | None = None) -> int:
        """Store ``value`` and return its version; what the bound demands is evicted.

        Raises:
            ValueTooLarge: it does not fit at all. Nothing has changed.
        """
        cost = entry_cost(key, value)
        if cost > self.max_bytes:
            raise ValueTooLarge(f"The value does not fit into the node's {self.max_bytes} bytes of memory.")
        expires_at = None if ttl_seconds is None else self._clock() + ttl_seconds
        self.counters.sets += 1
        self._version = version = self._version + 1
        entry = self._entries.get(key)
        if entry is None:
            self._make_room(cost)
            entry = self._entries[key] = Entry(value, expires_at, version)
            self._policy.inserted(key)
            self.bytes += cost
        else:
            self._overwrite(key, entry, value, expires_at, version)
        if ttl_seconds is not None:
            self._plan(key, entry, ttl_seconds)
        return version

    def delete(self, key: bytes) -> bool:
        """Remove the entry; whether there was one."""
        entry = self._live(key)
        if entry is None:
            return False
        self._remove(key, entry)
        self.counters.deletes += 1
        return True

    def discard(self, key: bytes) -> None:
        """Remove the entry, if any, without counting: it belongs to another node now."""
        entry = self._entries.get(key)
        if entry is not None:
            self._remove(key, entry)

    def sweep(self, limit: int = 1000) -> bool:
        """Free up to ``limit`` expired entries; whether there may be more."""
        return all(self._expire_one() for _ in range(limit))

    def keys(self) -> list[bytes]:
        """All keys at this moment, expired ones included."""
        return list(self._entries)

    def _live(self, key: bytes) -> Entry | None:
        entry = self._entries.get(key)
        if entry is None or entry.expires_at is None or self._clock() < entry.expires_at:
            return entry
        self._remove(key, entry)
        self.counters.expirations += 1
        return None

    def _overwrite(
        self, key: bytes, entry: Entry, value: bytes, expires_at: float | None, version: int
    ) -> None:
        self._unplan(key, entry)
        self._policy.used(key)
        growth = len(value) - len(entry.value)
        # Changed before room is made: it is then neither expired nor, being the latest used, the next to be evicted.
        entry.value, entry.expires_at, entry.version = value, expires_at, version
        self.bytes += growth
        self._make_room(0)

    def _remove(self, key: bytes, entry: Entry) -> None:
        del self._entries[key]
        self._policy.removed(key)
        self._unplan(key, entry)
        self.bytes -= entry_cost(key, entry.value)

    def _make_room(self, cost: int) -> None:
        while self.bytes + cost > self.max_bytes:
            if not self._expire_one():
                victim = self._policy.victim()
                self._remove(victim, self._entries[victim])
                self.counters.evictions += 1

    def _plan(self, key: bytes, entry: Entry, ttl_seconds: float) -> None:
        assert entry.expires_at is not None
        # The longer the TTL, the wider its ticks: at most 128 are in use for each doubling, however TTLs vary.
        width = 1 << int(min(ttl_seconds, _FAR_SECONDS) / self._tick_seconds / 64).bit_length()
        ends = math.ceil(min(entry.expires_at, _FAR_SECONDS) / self._tick_seconds)
        tick = entry.tick = -(-ends // width) * width
        keys = self._wheel.get(tick)
        if keys is None:
            self._wheel[tick] = {key}
            heappush(self._ticks, tick)
        else:
            keys.add(key)

    def _unplan(self, key: bytes, entry: Entry) -> None:
        if entry.expires_at is not None:
            # An emptied set stays until its tick, or the heap would fill with the same tick again and again.
            self._wheel[entry.tick].discard(key)

    def _expire_one(self) -> bool:
        """Free an entry whose tick is over, or look through one such tick that is empty; False if there is none."""
        if not self._ticks or self._ticks[0] * self._tick_seconds > self._clock():
            return False
        keys = self._wheel[self._ticks[0]]
        if keys:
            key = keys.pop()
            self._remove(key, self._entries[key])
            self.counters.expirations += 1
        else:
            del self._wheel[heappop(self._ticks)]
        return True


def entry_cost(key: bytes, value: bytes) -> int:
    """The bytes that an entry is accounted for."""
    return len(key) + len(value) + ENTRY_OVERHEAD
