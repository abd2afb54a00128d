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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from heapq import heappop, heappush
from typing import Any, TypeAlias

from pyrocache.errors import ValueTooLarge
from pyrocache.node.eviction import LRUTable as LRU
from pyrocache.node.eviction import TablePolicy as EvictionPolicy

ENTRY_OVERHEAD = 224
"""Bytes that an entry takes beyond its key and value: objects, table slots, their order, malloc's slack."""

EXPIRY_OVERHEAD = 144
"""Bytes that it takes besides when it expires."""

_FAR_SECONDS = 1e12
"""Beyond this an expiry is never planned exactly; it is thirty thousand years."""

Value: TypeAlias = bytes | memoryview
"""A large value is the part of the message that brought it."""


Peers: TypeAlias = set[bytes]
"""The keys that expire in one tick."""


class Expiring:
    """A value that expires, and the keys of the same tick. Others are held as they are, which is less to keep."""

    __slots__ = ("expires_at", "peers", "value")

    def __init__(self, value: Value, expires_at: float, peers: Peers) -> None:
        self.value = value
        self.expires_at = expires_at
        self.peers = peers


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
        policy: holds the entries, and knows which goes when that is reached; those that are expired go first.
        clock: monotonic seconds.
        tick_seconds: how long an expired entry may wait before `sweep` and eviction know of it; for a TTL of more than
            64 ticks, up to a thirtieth of the TTL.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        policy: EvictionPolicy[Value | Expiring] | None = None,
        clock: Callable[[], float] = time.monotonic,
        tick_seconds: float = 0.5,
    ) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.counters = Counters()
        self._entries: EvictionPolicy[Value | Expiring] = LRU() if policy is None else policy
        self._used = self._entries.used
        self._clock = clock
        self._tick_seconds = tick_seconds
        self._wheel: dict[int, Peers] = {}  # by the end of their tick
        self._ticks: list[int] = []  # a heap of the wheel's keys, and of some whose set has become empty

    def __len__(self) -> int:
        """Entries held, those included that are expired and not yet swept."""
        return len(self._entries)

    def get(self, key: bytes) -> Value | None:
        """The value, or None when there is none (any more). Counts a hit or a miss."""
        held = self._entries.get(key)
        if type(held) is Expiring:
            if self._clock() < held.expires_at:
                held = held.value
            else:
                self._expire(key)
                held = None
        if held is None:
            self.counters.misses += 1
            return None
        self.counters.hits += 1
        self._used(key)
        return held  # type: ignore[return-value]  # no Expiring any more

    def contains(self, key: bytes) -> bool:
        """Whether there is a value; neither counts nor makes the entry more recent."""
        return self._live(key) is not None

    def remaining(self, key: bytes) -> float | None:
        """Seconds until the entry expires, infinite when it never does, None when there is none."""
        held = self._live(key)
        if held is None:
            return None
        return held.expires_at - self._clock() if isinstance(held, Expiring) else math.inf

    def set(self, key: bytes, value: Value, ttl_seconds: float | None = None) -> None:
        """Store ``value``; what the bound demands is evicted.

        Raises:
            ValueTooLarge: it does not fit at all. Nothing has changed.
        """
        cost = len(key) + len(value) + ENTRY_OVERHEAD
        if ttl_seconds is not None:
            cost += EXPIRY_OVERHEAD
        if cost > self.max_bytes:
            raise ValueTooLarge(f"The value does not fit into the node's {self.max_bytes} bytes of memory.")
        self.counters.sets += 1
        before = self._entries.get(key)
        if before is not None:
            cost -= self._cost(key, before)
            self._unplan(key, before)
            self._used(key)
        if ttl_seconds is None:
            self._entries[key] = value
        else:
            expires_at = self._clock() + ttl_seconds
            peers = self._peers(expires_at, ttl_seconds)
            peers.add(key)
            self._entries[key] = Expiring(value, expires_at, peers)
        self.bytes += cost
        if self.bytes > self.max_bytes:
            self._make_room()

    def get_many(self, keys: Sequence[bytes], room: int) -> list[Value | None]:
        """What `get` returns for each of ``keys``, or for the first of them that have over ``room`` bytes."""
        found: list[Any] = list(map(self._entries.get, keys))
        if Expiring in set(map(type, found)):
            found = [held.value if isinstance(held, Expiring) else held for held in map(self._live, keys)]
        if sum(map(len, filter(None, found))) > room:
            found = _first_within(found, room)
        hits = [key for key, value in zip(keys, found, strict=False) if value is not None]
        self.counters.hits += len(hits)
        self.counters.misses += len(found) - len(hits)
        used = self._used
        for key in hits:
            used(key)
        return found

    def set_many(
        self, keys: Sequence[bytes], values: Sequence[Value], ttl_seconds: float | None = None
    ) -> None:
        """The same as `set` for each key and value, all of which fit."""
        self.counters.sets += len(keys)
        if len(set(keys)) != len(keys):
            keys, values = _without_outdated(keys, values)
        overhead = _overhead(expires=ttl_seconds is not None)
        self.bytes += sum(map(len, keys)) + sum(map(len, values)) + overhead * len(keys)
        before = list(map(self._entries.get, keys))
        known = [key for key, held in zip(keys, before, strict=True) if held is not None]
        if Expiring in set(map(type, before)):
            for key in known:
                held = self._entries[key]
                self.bytes -= self._cost(key, held)
                self._unplan(key, held)
        else:
            plain: Any = filter(None, before)
            self.bytes -= sum(map(len, known)) + sum(map(len, plain)) + ENTRY_OVERHEAD * len(known)
        fresh: Iterable[Value | Expiring] = values
        if ttl_seconds is not None:
            expires_at = self._clock() + ttl_seconds
            peers = self._peers(expires_at, ttl_seconds)
            peers.update(keys)
            fresh = (Expiring(value, expires_at, peers) for value in values)
        entries, used = self._entries, self._used
        for key, new in zip(keys, fresh, strict=True):
            entries[key] = new
            used(key)
        self._make_room()

    def delete(self, key: bytes) -> bool:
        """Remove the entry; whether there was one."""
        held = self._live(key)
        if held is None:
            return False
        self._remove(key, held)
        self.counters.deletes += 1
        return True

    def discard(self, key: bytes) -> None:
        """Remove the entry, if any, without counting: it belongs to another node now."""
        held = self._entries.get(key)
        if held is not None:
            self._remove(key, held)

    def sweep(self, limit: int = 1000) -> bool:
        """Free up to ``limit`` expired entries; whether there may be more."""
        return all(self._expire_one() for _ in range(limit))

    def keys(self) -> list[bytes]:
        """All keys at this moment, expired ones included."""
        return list(self._entries)

    def _live(self, key: bytes) -> Value | Expiring | None:
        held = self._entries.get(key)
        if isinstance(held, Expiring) and self._clock() >= held.expires_at:
            self._expire(key)
            return None
        return held

    def _expire(self, key: bytes) -> None:
        self._remove(key, self._entries[key])
        self.counters.expirations += 1

    def _remove(self, key: bytes, held: Value | Expiring) -> None:
        del self._entries[key]
        self._unplan(key, held)
        self.bytes -= self._cost(key, held)

    def _cost(self, key: bytes, held: Value | Expiring) -> int:
        if isinstance(held, Expiring):
            return len(key) + len(held.value) + ENTRY_OVERHEAD + EXPIRY_OVERHEAD
        return len(key) + len(held) + ENTRY_OVERHEAD

    def _make_room(self) -> None:
        # An entry just stored is neither expired nor, being the latest, the next victim.
        while self.bytes > self.max_bytes:
            if not self._expire_one():
                victim = self._entries.victim()
                self._remove(victim, self._entries[victim])
                self.counters.evictions += 1

    def _peers(self, expires_at: float, ttl_seconds: float) -> Peers:
        """The keys that expire in the same tick."""
        # The longer the TTL, the wider its ticks: at most 128 are in use for each doubling, however TTLs vary.
        width = 1 << int(min(ttl_seconds, _FAR_SECONDS) / self._tick_seconds / 64).bit_length()
        ends = math.ceil(min(expires_at, _FAR_SECONDS) / self._tick_seconds)
        tick = -(-ends // width) * width
        peers = self._wheel.get(tick)
        if peers is None:
            peers = self._wheel[tick] = set()
            heappush(self._ticks, tick)
        return peers

    def _unplan(self, key: bytes, held: Value | Expiring) -> None:
        if isinstance(held, Expiring):
            # An emptied set stays until its tick, or the heap would fill with the same tick again and again.
            held.peers.discard(key)

    def _expire_one(self) -> bool:
        """Free an entry whose tick is over, or look through one such tick that is empty; False if there is none."""
        if not self._ticks or self._ticks[0] * self._tick_seconds > self._clock():
            return False
        keys = self._wheel[self._ticks[0]]
        if keys:
            self._expire(keys.pop())
        else:
            del self._wheel[heappop(self._ticks)]
        return True


def entry_cost(key: bytes, value: Value, *, expires: bool) -> int:
    """The bytes that an entry is accounted for."""
    return len(key) + len(value) + _overhead(expires=expires)


def _overhead(*, expires: bool) -> int:
    return ENTRY_OVERHEAD + EXPIRY_OVERHEAD if expires else ENTRY_OVERHEAD


def _without_outdated(keys: Sequence[bytes], values: Sequence[Value]) -> tuple[list[bytes], list[Value]]:
    """Each key once, where it comes last, with its last value."""
    latest: dict[bytes, Value] = {}
    for key, value in zip(keys, values, strict=True):
        latest.pop(key, None)
        latest[key] = value
    return list(latest), list(latest.values())


def _first_within(values: list[Value | None], room: int) -> list[Value | None]:
    """The first of ``values``, up to the one, included, that takes them over ``room`` bytes."""
    for count, value in enumerate(values, 1):
        room -= len(value) if value is not None else 0
        if room < 0:
            return values[:count]
    return values
