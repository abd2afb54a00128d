"""The entries of one node: bytes to bytes, with expiry, a memory bound and exact accounting.

Pure: no locks, no I/O, the clock and the eviction policy are injected. Not thread-safe; whoever owns a
store serialises the calls. An entry is expired the instant ``now >= expires_at``: no read returns it from then
on, and `sweep` frees it in time proportional to what has expired, through a heap of deadlines whose
outdated items (the key was overwritten or deleted) are recognised by their version.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from heapq import heapify, heappop, heappush

from pyrocache.errors import ValueTooLarge
from pyrocache.node.eviction import LRU, EvictionPolicy

ENTRY_OVERHEAD = 400
"""Bytes that an entry takes beyond its key and value: objects, table slots, the policy's node, malloc's slack."""

_EXPIRY_SLACK = 1024
"""How many outdated deadlines are kept at least before the heap is built anew."""


class Entry:
    """One value with its expiry (monotonic seconds, or None) and its version, which only grows."""

    __slots__ = ("expires_at", "value", "version")

    def __init__(self, value: bytes, expires_at: float | None, version: int) -> None:
        self.value = value
        self.expires_at = expires_at
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
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        policy: EvictionPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        first_version: int = 0,
    ) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.counters = Counters()
        self._entries: dict[bytes, Entry] = {}
        self._policy: EvictionPolicy = LRU() if policy is None else policy
        self._clock = clock
        self._version = first_version
        self._deadlines: list[tuple[float, int, bytes]] = []
        self._expiring = 0  # entries that have a deadline

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

    def entry(self, key: bytes) -> Entry | None:
        """The live entry itself, to look at; neither counts nor makes it more recent."""
        return self._live(key)

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
            self._entries[key] = Entry(value, expires_at, version)
            self._policy.inserted(key)
            self.bytes += cost
        else:
            self._policy.used(key)
            self._overwrite(key, entry, value, expires_at, version)
        if expires_at is not None:
            self._expiring += 1
            heappush(self._deadlines, (expires_at, version, key))
        self._drop_outdated_deadlines()
        return version

    def delete(self, key: bytes) -> bool:
        """Remove the entry; whether there was one."""
        entry = self._live(key)
        if entry is None:
            return False
        self._remove(key, entry)
        self._drop_outdated_deadlines()
        self.counters.deletes += 1
        return True

    def discard(self, key: bytes) -> None:
        """Remove the entry, if any, without counting: it belongs to another node now."""
        entry = self._entries.get(key)
        if entry is not None:
            self._remove(key, entry)
            self._drop_outdated_deadlines()

    def sweep(self, limit: int = 1000) -> bool:
        """Free up to ``limit`` expired entries; whether there may be more."""
        now = self._clock()
        deadlines = self._deadlines
        for _ in range(limit):
            if not deadlines or deadlines[0][0] > now:
                return False
            self._expire_first()
        return True

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
        growth = len(value) - len(entry.value)
        if entry.expires_at is not None:
            self._expiring -= 1
        # Changed before room is made: the entry is then neither expired nor, being the latest used, evicted.
        entry.value, entry.expires_at, entry.version = value, expires_at, version
        self.bytes += growth
        self._make_room(0, spare=key)

    def _remove(self, key: bytes, entry: Entry) -> None:
        del self._entries[key]
        self._policy.removed(key)
        self.bytes -= entry_cost(key, entry.value)
        if entry.expires_at is not None:
            self._expiring -= 1

    def _make_room(self, cost: int, spare: bytes | None = None) -> None:
        if self.bytes + cost <= self.max_bytes:
            return
        now = self._clock()
        while self.bytes + cost > self.max_bytes:
            if self._deadlines and self._deadlines[0][0] <= now:
                self._expire_first()
                continue
            victim = self._policy.victim()
            if victim == spare:  # a policy that does not spare the latest used: count it as used once more
                self._policy.used(victim)
                continue
            self._remove(victim, self._entries[victim])
            self.counters.evictions += 1

    def _expire_first(self) -> None:
        _, version, key = heappop(self._deadlines)
        entry = self._entries.get(key)
        if entry is not None and entry.version == version:
            self._remove(key, entry)
            self.counters.expirations += 1

    def _drop_outdated_deadlines(self) -> None:
        if len(self._deadlines) <= 2 * self._expiring + _EXPIRY_SLACK:
            return
        self._deadlines = [
            (entry.expires_at, entry.version, key)
            for key, entry in self._entries.items()
            if entry.expires_at is not None
        ]
        heapify(self._deadlines)


def entry_cost(key: bytes, value: bytes) -> int:
    """The bytes that an entry is accounted for."""
    return len(key) + len(value) + ENTRY_OVERHEAD
