"""The entries of one node: bytes to bytes, with expiry, tags, a memory bound and exact accounting.

Pure: no locks, no I/O, the clock and the eviction policy are injected. Not thread-safe; whoever owns a store
serialises the calls. An entry is expired the instant ``now >= expires_at``, and one with an invalid tag is gone at
once: no read returns it from then on. What is gone but still here, whole namespaces that were cleared included, is
swept a little at a time (`Store.sweep`), and leaves before anything that is not gone is evicted.

Where an entry is (`table`, `namespaces`), when it leaves (`expiry`) and which one is evicted (`eviction`) are rooms of
their own; here is what holds them together. Each key is in one table at most, also after its namespace was cleared.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeAlias

from pyrocache.errors import ValueTooLarge
from pyrocache.node.store.entry import (
    ENTRY_OVERHEAD,
    EXPIRY_OVERHEAD,
    Detailed,
    Expiring,
    Held,
    Tag,
    Value,
    cost_of,
    entry_cost,
    value_of,
)
from pyrocache.node.store.eviction import DEFAULT_POLICY, POLICIES, EvictionPolicy
from pyrocache.node.store.expiry import TimingWheel
from pyrocache.node.store.namespaces import Namespace, Namespaces, prefix_of
from pyrocache.node.store.table import SHARD_KEYS
from pyrocache.protocol.limits import KEEP_TTL

Condition: TypeAlias = Literal["absent", "present"] | int | None
"""What must be true of an entry for it to be stored: nothing, or that there is none, or one, or one of that version."""

_PLAIN = frozenset({bytes})
_PLAIN_OR_NONE = frozenset({bytes, NoneType})
"""The types of what is held, or not, where no entry is more than its value."""

_LONG_KEY = 64  # of an entry that is overwritten, shorter ones may be kept twice: that is accounted for

TAG_BYTES = 512
"""What a tag is accounted for beside its name and its entries."""


class Found(NamedTuple):
    """An entry as `Store.lookup` finds it.

    Attributes:
        value: the bytes; None when there is none, not even a stale one.
        stale: it has expired, and is only there for those who take such.
        remaining: seconds until it expires, infinite when it never does.
        load_seconds: how long it took to make, None when nobody said.
    """

    value: Value | None
    stale: bool = False
    remaining: float = math.inf
    load_seconds: float | None = None


_NOT_FOUND = Found(None)


@dataclass(slots=True)
class Counters:
    """What has happened in a store since it was made, or reset."""

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
        max_bytes: how much the entries may take, overhead included.
        policy: knows which entry goes when that is reached.
        clock: monotonic seconds.
        tick_seconds: see `TimingWheel`.
        versions: the first version that is given; another store of the same keys begins at another.
    """

    SWEPT_BY_CLEAR = 100
    """So many entries of a namespace that is cleared are swept at once."""

    def __init__(
        self,
        max_bytes: int,
        *,
        policy: EvictionPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        tick_seconds: float = 0.5,
        versions: int = 1,
    ) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.counters = Counters()
        self.policy = POLICIES[DEFAULT_POLICY]() if policy is None else policy
        self.namespaces = Namespaces()
        self._used = self.policy.used
        self._clock = clock
        self._wheel = TimingWheel(tick_seconds)
        self._tags: dict[bytes, Tag] = {}
        self._invalid: deque[Tag] = deque()  # whose entries are to be swept
        self._cleared: deque[tuple[Namespace, Iterator[bytes]]] = deque()  # with the keys to sweep
        self._next_version = versions

    def __len__(self) -> int:
        """Entries held, those included that are gone and not yet swept."""
        cleared = (space for space, _ in self._cleared)
        return sum(space.count for space in chain(self.namespaces, cleared))

    @property
    def hits(self) -> int:
        """Of reads, in all namespaces."""
        return self.namespaces.hits + sum(space.hits for space in self.namespaces)

    @property
    def misses(self) -> int:
        """Of reads, in all namespaces."""
        return self.namespaces.misses + sum(space.misses for space in self.namespaces)

    # Reading ---------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> Value | None:
        """The value, or None when there is none (any more). Counts a hit or a miss."""
        spaces = self.namespaces
        space = spaces.of(key) if key[0] else spaces.root
        held = space.shards[hash(key) >> space.shift].get(key)
        if type(held) is not bytes:
            held = self._live(space, key, held)
            if held is None:
                space.misses += 1
                return None
            if isinstance(held, Expiring):
                held = held.value
        space.hits += 1
        self._used(key)
        return held

    def get_many(self, keys: Sequence[bytes], room: int) -> list[Value | None]:
        """What `get` returns for each of ``keys``, or for the first of them that have over ``room`` bytes."""
        if not keys:
            return []
        space = self.namespaces.of(keys[0])
        there = space.get_many(keys)
        found: list[Any] | None = (
            there if _PLAIN_OR_NONE.issuperset(map(type, there)) else self._values(there)
        )
        if found is None:
            return _first_within(map(self.get, keys), room)
        hits, values = keys, found
        if None in found:
            hits, values = _found(keys, found)
            # Only what is found here is known to belong here.
            if self._common(_missed(keys, found)) is not space:
                return _first_within(map(self.get, keys), room)
        if sum(map(len, values)) > room:
            return _first_within(map(self.get, keys), room)
        space.hits += len(hits)
        space.misses += len(found) - len(hits)
        self.policy.used_many(hits)
        return found

    def contains(self, key: bytes) -> bool:
        """Whether there is a value; neither counts nor makes the entry more recent."""
        space = self.namespaces.of(key)
        return self._live(space, key, space.get(key)) is not None

    def remaining(self, key: bytes) -> float | None:
        """Seconds until the entry expires, infinite when it never does, None when there is none."""
        space = self.namespaces.of(key)
        held = self._live(space, key, space.get(key))
        if held is None:
            return None
        return held.expires_at - self._clock() if isinstance(held, Expiring) else math.inf

    def lookup(self, key: bytes, *, count: bool = True) -> Found:
        """The entry, a stale one too. If it is to ``count``, that is a hit or, for a stale one also, a miss."""
        space = self.namespaces.of(key)
        held = self._live(space, key, space.get(key))
        if held is None:
            space.misses += count
            stale = space.get(key)  # only a stale one is still there
            return _NOT_FOUND if stale is None else Found(value_of(stale), stale=True)
        space.hits += count
        self._used(key)
        if not isinstance(held, Expiring):
            return Found(held)
        seconds = held.load_seconds if isinstance(held, Detailed) else None
        return Found(held.value, False, held.expires_at - self._clock(), seconds)

    def get_with_version(self, key: bytes) -> tuple[Value, int] | None:
        """As `get`, with what tells this state of the entry from all others that the key ever has."""
        value = self.get(key)
        if value is None:
            return None
        space = self.namespaces.of(key)
        detailed = self._detailed(space, key)
        if not detailed.version:
            detailed.version = self._next_version
            self._next_version += 1
        return value, detailed.version

    # Writing ---------------------------------------------------------------------------------------------

    def set(self, key: bytes, value: Value, ttl_seconds: float | None = None) -> None:
        """Store ``value``; what the bound demands is evicted.

        Raises:
            ValueTooLarge: it does not fit at all. Nothing has changed.
        """
        cost = len(key) + len(value) + ENTRY_OVERHEAD
        if ttl_seconds is not None:
            cost += EXPIRY_OVERHEAD
        spaces = self.namespaces
        space = spaces.of(key) if key[0] else spaces.root
        if cost + space.overhead > self.max_bytes:
            raise _too_large(self.max_bytes)
        self.counters.sets += 1
        shard = space.shards[hash(key) >> space.shift]
        before = shard.get(key)
        if type(before) is bytes:
            self.bytes -= len(key) + len(before) + ENTRY_OVERHEAD
        elif before is not None:
            self._release(space, key, before)
        elif self._cleared or not space.count or self.bytes + cost + space.overhead > self.max_bytes:
            self._welcome(space, key, cost)
            shard = space.shards[hash(key) >> space.shift]  # which shrank perhaps
        held: Held = value
        if ttl_seconds is not None:
            expires_at = self._clock() + ttl_seconds
            peers = self._wheel.peers(expires_at, ttl_seconds)
            peers.add(key if len(key) <= _LONG_KEY else space.same(key))
            space.expiring += 1
            held = Expiring(value, expires_at, peers)
        shard[key] = held
        self.bytes += cost
        if before is None:
            space.count += 1
            self.policy.added(key)
            if len(shard) > SHARD_KEYS:
                space.split(key)
        else:
            self._used(key)
            self._make_room(keep=key)

    def put(
        self,
        key: bytes,
        value: Value,
        ttl_seconds: float | None = None,
        *,
        condition: Condition = None,
        tags: Collection[bytes] | None = None,
        stale_seconds: float = 0.0,
        load_seconds: float | None = None,
    ) -> bool:
        """Store ``value`` if the ``condition`` holds; whether it did.

        Args:
            ttl_seconds: as in `set`, or `KEEP_TTL`: the TTL that the entry has, and its tags unless others are given.
            tags: names by which it can be invalidated.
            stale_seconds: how long it is kept, once it has expired, for those who take a stale value; with `KEEP_TTL`,
                as long as the entry that there is.
            load_seconds: how long it took to make.

        Raises:
            ValueTooLarge: it does not fit at all. Nothing has changed.
        """
        space = self.namespaces.of(key)
        live = self._live(space, key, space.get(key))
        if not _holds(condition, live):
            return False
        if ttl_seconds == KEEP_TTL:
            self._replace(space, key, live, value, tags, load_seconds)
            return True
        detailed = Detailed(value, load_seconds=load_seconds)
        if ttl_seconds is not None:
            detailed.expires_at = self._clock() + ttl_seconds
        if stale_seconds > 0 and detailed.expires_at < math.inf:
            detailed.stale_until = detailed.expires_at + stale_seconds
        self._put(space, key, detailed, dict.fromkeys(tags or ()))
        return True

    def setdefault(self, key: bytes, value: Value, ttl_seconds: float | None = None) -> Value | None:
        """The value that is there; None when there was none, and ``value`` was stored."""
        there = self.get(key)
        if there is None:
            self.set(key, value, ttl_seconds)
        return there

    def set_many(
        self, keys: Sequence[bytes], values: Sequence[Value], ttl_seconds: float | None = None
    ) -> None:
        """The same as `set` for each key and value, all of which fit."""
        if not keys or not self._set_at_once(keys, values, ttl_seconds):
            for key, value in zip(keys, values, strict=True):
                self.set(key, value, ttl_seconds)

    def _set_at_once(self, keys: Sequence[bytes], values: Sequence[Value], ttl_seconds: float | None) -> bool:
        """`set_many` of distinct keys of one namespace, by a look at each column in C; False if they are no such."""
        space = self.namespaces.of(keys[0])
        batch = set(keys)
        cost = sum(map(len, keys)) + sum(map(len, values)) + ENTRY_OVERHEAD * len(keys)
        if ttl_seconds is not None:
            cost += EXPIRY_OVERHEAD * len(keys)
        if len(batch) < len(keys) or cost + space.overhead > self.max_bytes:
            return False
        if self.bytes + cost + space.overhead > self.max_bytes:
            self._sweep_for(cost + space.overhead)
        places = space.places(keys)
        there: list[Any] = list(map(dict.get, places, keys))
        known, before, new = keys, there, list[bytes]()
        if None in there:
            known, before = _found(keys, there)
            new = _missed(keys, there)
        if new and (space.prefix in self.namespaces.cleared or self._common(new) is not space):
            return False
        plain = _PLAIN.issuperset(map(type, before))
        if plain:
            freed = sum(map(len, known)) + sum(map(len, before)) + ENTRY_OVERHEAD * len(known)
        else:
            freed = sum(map(cost_of, known, before))
        if self.bytes + cost - freed + space.overhead > self.max_bytes:
            self._evict_for(cost - freed + space.overhead, keep=batch)
            places = space.places(keys)
        if not space.count:
            self.bytes += space.overhead

        self.counters.sets += len(keys)
        self.bytes += cost - freed
        if not plain:
            for key, held in zip(known, before, strict=True):
                if isinstance(held, Expiring):
                    self._forget(space, key, held)
        kept: Sequence[Held] = values
        if ttl_seconds is not None:
            expires_at = self._clock() + ttl_seconds
            peers = self._wheel.peers(expires_at, ttl_seconds)
            peers.update(map(space.same, keys) if max(map(len, keys)) > _LONG_KEY else keys)
            space.expiring += len(keys)
            kept = [Expiring(value, expires_at, peers) for value in values]
        space.put_many(places, keys, kept, new)
        self.policy.used_many(known)
        if new:
            self.policy.added_many(new)
        return True

    def change(self, key: bytes, make: Callable[[Value], Value]) -> Value | None:
        """Replace the value by what ``make`` makes of it, with the TTL and the tags that it has; the new one.

        Returns:
            None when there is none. Nothing changes when ``make`` raises.
        """
        space = self.namespaces.of(key)
        live = self._live(space, key, space.get(key))
        if live is None:
            return None
        value = make(value_of(live))
        if isinstance(live, Expiring):
            self._replace(space, key, live, value)
        else:
            self.set(key, value)
        return value

    def touch(self, key: bytes, ttl_seconds: float | None) -> bool:
        """Have the entry expire that much later than now, or never; whether there is one."""
        space = self.namespaces.of(key)
        live = self._live(space, key, space.get(key))
        if live is None:
            return False
        self._used(key)
        self._release(space, key, live, tags=False)
        held: Held
        stale_seconds = 0.0
        if isinstance(live, Detailed):
            stale_seconds = max(live.stale_until - live.expires_at, 0.0)
            live.peers, live.expires_at, live.stale_until = None, math.inf, 0.0
            held = live
        else:
            held = value_of(live)
        if ttl_seconds is not None:
            held = held if isinstance(held, Detailed) else Expiring(held, math.inf, None)
            held.expires_at = self._clock() + ttl_seconds
            if isinstance(held, Detailed) and stale_seconds > 0:
                held.stale_until = held.expires_at + stale_seconds
            self._planned(space, key, held, ttl_seconds + stale_seconds)
        space.shards[hash(key) >> space.shift][key] = held
        self.bytes += cost_of(key, held)
        self._make_room(keep=key)
        return True

    def delete(self, key: bytes) -> bool:
        """Remove the entry; whether there was one."""
        space = self.namespaces.of(key)
        held = self._live(space, key, space.get(key))
        if held is None:
            self.discard(key)  # a stale one
            return False
        self._remove(space, key, held)
        self.counters.deletes += 1
        return True

    def pop(self, key: bytes) -> Value | None:
        """As `get`, and remove the entry."""
        value = self.get(key)
        self.discard(key)
        self.counters.deletes += value is not None
        return value

    def discard(self, key: bytes) -> None:
        """Remove what is held, a stale entry too, without counting."""
        space = self.namespaces.of(key)
        held = space.get(key)
        if held is not None:
            self._remove(space, key, held)

    # All of them -----------------------------------------------------------------------------------------

    def clear(self, prefix: bytes) -> int:
        """Remove all entries of a namespace at once; how many there were, those that had expired unnoticed included.

        A few are swept at once, so that those who clear little do so often; the others later.
        """
        space = self.namespaces.get(prefix)
        if space is None or not space.count:
            return 0
        self.namespaces.clear(space)
        self._cleared.append((space, space.remaining()))
        count = space.count
        for _ in range(self.SWEPT_BY_CLEAR):
            if self._cleared:
                self._sweep_cleared()
        return count

    def invalidate(self, tag: bytes) -> int:
        """Remove all entries with the tag at once, to be swept later; how many are to be swept.

        Those are included that had expired, or whose namespace was cleared, and had not been swept yet.
        """
        found = self._tags.pop(tag, None)
        if found is None:
            return 0
        found.invalid = True
        self._invalid.append(found)
        return len(found.keys)

    def page(
        self, namespace: bytes, prefix: bytes, position: int, limit: int, room: int, *, stale: bool = False
    ) -> tuple[list[bytes], int]:
        """Some keys of a namespace that begin with ``prefix``, by `Table.page`; also of ``stale`` entries if wanted."""
        space = self.namespaces.get(namespace)
        if space is None:
            return [], 0
        keys, position = space.page(position, limit, room)
        if prefix != namespace:
            keys = [key for key in keys if key.startswith(prefix)]
        if (space.expiring or self._invalid) and not stale:
            keys = [key for key in keys if self._live(space, key, space.get(key)) is not None]
        return keys, position

    def count(self, namespace: bytes, position: int = 0) -> tuple[int, int]:
        """How many entries a part of a namespace has, from a position on, and the position of the next part.

        0 is the first position, and what comes after the last part. Where nothing may be gone, that is one part.
        """
        space = self.namespaces.get(namespace)
        if space is None:
            return 0, 0
        if not position and not space.expiring and not self._invalid:
            return space.count, 0
        part, position = space.part(position)
        now, invalid = self._clock(), bool(self._invalid)
        gone = 0
        for held in part:
            if isinstance(held, Expiring):
                gone += now >= held.expires_at or (invalid and _is_invalid(held))
        return len(part) - gone, position

    def reset_counters(self) -> None:
        """Count everything from 0 on again."""
        self.counters = Counters()
        spaces = self.namespaces
        spaces.hits = spaces.misses = 0
        for space in spaces:
            space.hits = space.misses = 0

    def sweep(self, limit: int = 1000) -> bool:
        """Free up to ``limit`` entries that are gone; whether there may be more."""
        return all(self._sweep_one() for _ in range(limit))

    # Inside: what is live --------------------------------------------------------------------------------

    def _live(self, space: Namespace, key: bytes, held: Held | None) -> Held | None:
        """``held``, if it is not gone by now; what is gone and of no use to anybody is removed."""
        if not isinstance(held, Expiring):
            return held
        if self._invalid and _is_invalid(held):
            self._remove(space, key, held)
            return None
        if (now := self._clock()) < held.expires_at:
            return held
        if not isinstance(held, Detailed) or now >= held.stale_until:
            self._remove(space, key, held)
            self.counters.expirations += 1
        return None

    def _values(self, there: Iterable[Held | None]) -> list[Value | None] | None:
        """The values alone, if nothing is among them that is gone, or of which it is not told easily."""
        now = self._clock()
        values: list[Value | None] = []
        for held in there:
            if not isinstance(held, Expiring):
                values.append(held)
            elif now >= held.expires_at or isinstance(held, Detailed):
                return None
            else:
                values.append(held.value)
        return values

    def _detailed(self, space: Namespace, key: bytes) -> Detailed:
        """The entry, which is live, as one of which more can be known."""
        held = space.get(key)
        if isinstance(held, Detailed):
            return held
        assert held is not None
        self.bytes -= cost_of(key, held)
        detailed = Detailed(value_of(held))
        if isinstance(held, Expiring):
            detailed.expires_at, detailed.peers = held.expires_at, held.peers
        space.put(key, detailed)
        self.bytes += cost_of(key, detailed)
        self._make_room(keep=key)
        return detailed

    def _common(self, keys: Sequence[bytes]) -> Namespace | None:
        """The one namespace of all of ``keys``; None if there are several."""
        low, high = min(keys), max(keys)
        space = self.namespaces.of(low)
        prefix = space.prefix
        # What lies between two that begin with it begins with it as well.
        return space if prefix and low != prefix and high.startswith(prefix) else None

    # Inside: in and out ----------------------------------------------------------------------------------

    def _replace(
        self,
        space: Namespace,
        key: bytes,
        live: Held | None,
        value: Value,
        tags: Collection[bytes] | None = None,
        load_seconds: float | None = None,
    ) -> None:
        """Store ``value`` in place of what is live, for the rest of its time, and with its tags if none are given."""
        detailed = Detailed(value, load_seconds=load_seconds)
        if isinstance(live, Expiring):
            detailed.expires_at = live.expires_at
        if isinstance(live, Detailed):
            detailed.stale_until = live.stale_until
            tags = [tag.name for tag in live.tags] if tags is None else tags
        self._put(space, key, detailed, dict.fromkeys(tags or ()))

    def _put(self, space: Namespace, key: bytes, held: Detailed, tags: Iterable[bytes]) -> None:
        names = list(tags)
        expires = held.expires_at < math.inf
        simple = not names and not held.stale_until and held.load_seconds is None
        cost = entry_cost(key, held.value, expires=expires, details=not simple, tags=len(names))
        if cost + space.overhead + sum(map(len, names)) + TAG_BYTES * len(names) > self.max_bytes:
            raise _too_large(self.max_bytes)
        self.counters.sets += 1
        before = space.get(key)
        if before is None:
            self._welcome(space, key, cost)
        else:
            self._release(space, key, before)
            if len(key) > _LONG_KEY:
                key = space.same(key)
        kept: Held = held
        if simple:
            kept = Expiring(held.value, held.expires_at, None) if expires else held.value
        else:
            held.tags = tuple(self._tag(name, key) for name in names)
        if isinstance(kept, Expiring) and expires:
            leaves_in = max(kept.expires_at, held.stale_until) - self._clock()
            self._planned(space, key, kept, leaves_in)
        space.put(key, kept)
        self.bytes += cost
        if before is None:
            self.policy.added(key)
        else:
            self._used(key)
        self._make_room(keep=key)

    def _tag(self, name: bytes, key: bytes) -> Tag:
        tag = self._tags.get(name)
        if tag is None:
            tag = self._tags[name] = Tag(name)
            self.bytes += len(name) + TAG_BYTES
        tag.keys.add(key)
        return tag

    def _planned(self, space: Namespace, key: bytes, held: Expiring, leaves_in: float) -> Expiring:
        """``held``, with its departure in that many seconds planned."""
        peers = held.peers = self._wheel.peers(self._clock() + leaves_in, leaves_in)
        peers.add(key if len(key) <= _LONG_KEY else space.same(key))
        space.expiring += 1
        return held

    def _welcome(self, space: Namespace, key: bytes, cost: int) -> None:
        """Prepare for a new key: its bytes, its namespace, and no other of its name that is still to be swept."""
        if self._cleared:
            for old in self.namespaces.cleared.get(space.prefix, ()):
                held = old.get(key)
                if held is not None:
                    self._remove(old, key, held)
        cost += space.overhead
        if self.bytes + cost > self.max_bytes:
            self._sweep_for(cost)
            self._evict_for(cost)
        if not space.count:
            self.bytes += space.overhead

    def _release(self, space: Namespace, key: bytes, held: Held, *, tags: bool = True) -> None:
        """Take what is held out of all books but its table and the policy."""
        if type(held) is bytes:
            self.bytes -= len(key) + len(held) + ENTRY_OVERHEAD
            return
        self.bytes -= cost_of(key, held)
        if isinstance(held, Expiring):
            self._forget(space, key, held, tags=tags)

    def _forget(self, space: Namespace, key: bytes, held: Expiring, *, tags: bool = True) -> None:
        """Plan its departure no more, and find it by its tags no more."""
        if held.peers is not None:
            space.expiring -= 1
            held.peers.discard(key)
        if tags and isinstance(held, Detailed):
            for tag in held.tags:
                tag.keys.discard(key)
                if not tag.keys and not tag.invalid:
                    del self._tags[tag.name]
                    self.bytes -= len(tag.name) + TAG_BYTES

    def _remove(self, space: Namespace, key: bytes, held: Held) -> None:
        self._release(space, key, held)
        space.remove(key)
        space.shrink(key)
        self.policy.removed(key)
        if not space.count:
            self.bytes -= space.overhead

    # Inside: making room ---------------------------------------------------------------------------------

    def _make_room(self, keep: bytes) -> None:
        """Free what has become too much: first what is gone, then others, though not ``keep``."""
        if self.bytes > self.max_bytes:
            self._sweep_for(0)
            self._evict_for(0, keep=(keep,))

    def _sweep_for(self, cost: int) -> None:
        """Free what is gone, until ``cost`` more bytes fit."""
        while self.bytes + cost > self.max_bytes:
            if not (self._cleared or self._invalid or self._wheel.ticks) or not self._sweep_one():
                return

    def _evict_for(self, cost: int, *, keep: Collection[bytes] = ()) -> None:
        """Evict, though none of ``keep``, until ``cost`` more bytes fit. Nothing is left that is to be swept."""
        kept = []
        spaces, next_victim = self.namespaces, self.policy.victim
        while self.bytes + cost > self.max_bytes:
            try:
                victim = next_victim()
            except LookupError:
                break  # only what is kept is left, and it has just become a little larger than all there may be
            if victim in keep:
                kept.append(victim)
                continue
            space = spaces.of(victim) if victim[0] else spaces.root  # not cleared: that is swept by now
            held = space.remove(victim)
            assert held is not None
            space.shrink(victim)
            if type(held) is bytes:
                self.bytes -= len(victim) + len(held) + ENTRY_OVERHEAD
            else:
                self._release(space, victim, held)
            if not space.count:
                self.bytes -= space.overhead
            self.counters.evictions += 1
        for key in kept:
            self.policy.added(key)

    def _place_of(self, key: bytes) -> tuple[Namespace, Held]:
        """Where a key is that is known to be somewhere, and what is held there."""
        prefix = prefix_of(key)
        space = self.namespaces.get(prefix)
        if space is not None and (held := space.get(key)) is not None:
            return space, held
        cleared = self.namespaces.cleared[prefix]
        return next((space, held) for space in cleared if (held := space.get(key)) is not None)

    def _sweep_one(self) -> bool:
        """Free one entry that is gone, or find out that there is none left of some kind; False if there is none."""
        if self._cleared:
            self._sweep_cleared()
        elif self._invalid:
            self._sweep_invalid()
        else:
            return self._sweep_expired()
        return True

    def _sweep_cleared(self) -> None:
        space, keys = self._cleared[0]
        key = next(keys, None)
        if key is not None and (held := space.get(key)) is not None:
            self._remove(space, key, held)
        else:
            self._cleared.popleft()
            self.namespaces.swept(space)

    def _sweep_invalid(self) -> None:
        tag = self._invalid[0]
        if tag.keys:
            key = tag.keys.pop()
            space, held = self._place_of(key)
            self._remove(space, key, held)
        else:
            self._invalid.popleft()
            self.bytes -= len(tag.name) + TAG_BYTES

    def _sweep_expired(self) -> bool:
        due = self._wheel.due(self._clock())
        if due is None:
            return False
        key = due.pop()
        space, held = self._place_of(key)
        self._remove(space, key, held)
        self.counters.expirations += 1
        return True


def _holds(condition: Condition, live: Held | None) -> bool:
    if condition is None:
        return True
    if condition == "absent":
        return live is None
    if condition == "present":
        return live is not None
    return isinstance(live, Detailed) and live.version == condition


def _is_invalid(held: Expiring) -> bool:
    return isinstance(held, Detailed) and any(tag.invalid for tag in held.tags)


def _too_large(max_bytes: int) -> ValueTooLarge:
    return ValueTooLarge(f"The value does not fit into the node's {max_bytes} bytes of memory.")


def _found(keys: Sequence[bytes], there: Sequence[Any]) -> tuple[list[bytes], list[Any]]:
    """Those of ``keys`` for which something is there, and that."""
    found = [key for key, held in zip(keys, there, strict=True) if held is not None]
    return found, [held for held in there if held is not None]


def _missed(keys: Sequence[bytes], there: Sequence[Any]) -> list[bytes]:
    """Those of ``keys`` for which nothing is there."""
    return [key for key, held in zip(keys, there, strict=True) if held is None]


def _first_within(values: Iterable[Value | None], room: int) -> list[Value | None]:
    """The first of ``values``, up to the one, included, that takes them over ``room`` bytes."""
    within: list[Value | None] = []
    for value in values:
        within.append(value)
        room -= len(value) if value is not None else 0
        if room < 0:
            break
    return within
