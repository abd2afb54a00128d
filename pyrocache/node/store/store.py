"""`Store`: the entries of one node: bytes to bytes, with expiry, tags, a memory bound and exact accounting.

The rest of the node uses `Store` only: reads, and commands that decide on a `Mutation` and apply it. The parts:
`mutation` (the kinds of changes), `contents` (executes them, keeps the accounts, evicts), `batches` (many keys at
once), `namespaces` and `table` (where an entry is), `expiry` and `reclaim` (which entries are dead), `tags`,
`eviction`.

An entry is *live* until its TTL ends (``now >= expires_at``), then *stale* for its stale period, if it has one, and
then *dead*. It is dead at once if its namespace was cleared or one of its tags was invalidated. No read returns a dead
entry, and only `Store.lookup` returns a stale one. Dead entries that are still in memory are reclaimed in small steps,
and before any entry is evicted. An expired entry can be reclaimed only when its tick has ended (see `expiry`); until
then, it may be evicted like a live one.

No I/O and no threads; clock and eviction policy are injected.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from typing import Any, Literal, NamedTuple, TypeAlias

from xxhash import xxh3_64_intdigest

from pyrocache.node.store import batches
from pyrocache.node.store.contents import Contents, Counters
from pyrocache.node.store.entry import Details, Entry, Stored, Value, cost_of, value_of
from pyrocache.node.store.eviction import DEFAULT_POLICY, POLICIES, EvictionPolicy
from pyrocache.node.store.mutation import (
    Delete,
    Discard,
    Extras,
    Mutation,
    Set,
    SetMany,
    Touch,
)
from pyrocache.node.store.namespaces import Namespace
from pyrocache.node.store.table import SHARD_KEYS, page_of
from pyrocache.protocol.partition import PARTITION_MASK
from pyrocache.runtime.clock import now

Condition: TypeAlias = Literal["absent", "present"] | int | None
"""What an entry must be for a value to be stored: anything, missing, present, or of that version."""


class Found(NamedTuple):
    """An entry as `Store.lookup` finds it.

    Attributes:
        value: the bytes; None when there is no entry, not even a stale one.
        stale: it has expired, and is kept for callers that take a stale value.
        remaining: seconds until it expires, infinite if it never does.
        load_seconds: how long it took to make; None if that is unknown.
    """

    value: Value | None
    stale: bool = False
    remaining: float = math.inf
    load_seconds: float | None = None


_NOT_FOUND = Found(None)


class Description(NamedTuple):
    """What a store knows about an entry.

    Attributes:
        remaining: seconds until it expires, infinite if it never does.
        tags: its encoded tags.
        age: seconds since its value was stored, exact to half a second. None if it was stored as bytes alone.
        idle: seconds since it was read, written or touched last. None as for ``age``, until it is read as an `Entry`.
        cost: the bytes that it is accounted for.
    """

    remaining: float
    tags: list[bytes]
    age: float | None
    idle: float | None
    cost: int


class Store:
    """A bounded mapping of bytes to bytes whose entries expire.

    Reads: `get`, `get_many`, `get_with_version`, `lookup`, `contains`, `remaining`, `inspect`, `describe`, `page`,
    `count`, ``len()``.
    Changes: `apply`, and what decides on mutations: `set`, `set_many`, `put`, `setdefault`, `change`, `touch`,
    `delete`, `pop`. By partition: `partition_keys`, `mutations_of`. Maintenance: `reclaim`,
    `reset_counters`.

    Args:
        max_bytes: how much the entries may take, overhead included.
        policy: decides which entry is evicted when that is reached.
        clock: seconds (`runtime.clock`).
        tick_seconds: see `ExpiryBuckets`.
        versions: the first version number to assign. It must be greater than every number that an earlier store of the
            same node assigned.
        reclaimed_by_clear: how many dead entries `clear` removes at once.

    Attributes:
        namespaces: the tables of entries, one for each namespace.
        policy: as given.
        contents: the entries and their accounts; for the modules of this package.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        policy: EvictionPolicy | None = None,
        clock: Callable[[], float] = now,
        tick_seconds: float = 0.5,
        versions: int = 1,
        reclaimed_by_clear: int = 100,
    ) -> None:
        self.max_bytes = max_bytes
        self.policy = POLICIES[DEFAULT_POLICY]() if policy is None else policy
        self.contents = Contents(max_bytes, self.policy, clock, tick_seconds, reclaimed_by_clear)
        self.contents.executors[SetMany] = self._set_many
        self.namespaces = self.contents.namespaces
        self._used, self._executors = self.policy.used, self.contents.executors
        self._clock = clock
        self._next_version = versions

    def begin_versions(self, first: int) -> None:
        """Assign no version below ``first`` from now on."""
        self._next_version = max(self._next_version, first)

    def __len__(self) -> int:
        """Return the number of entries in memory, dead ones included."""
        cleared = (space for space, _ in self.contents.reclaimer.cleared)
        return sum(space.count for space in chain(self.namespaces, cleared))

    @property
    def used_bytes(self) -> int:
        """How much the entries take, overhead included."""
        return self.contents.bytes

    @property
    def counters(self) -> Counters:
        """What has happened since the store was made, or `reset_counters`."""
        return self.contents.counters

    # Reading ----------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> Value | None:
        """Return the value, or None. Counts a hit or a miss."""
        spaces = self.namespaces
        space = spaces.of(key) if key[0] else spaces.root
        shards = space.shards
        if len(shards) == 1:
            stored = shards[0].get(key)
        else:
            stored = shards[(xxh3_64_intdigest(key) & PARTITION_MASK) >> space.shift].get(key)
        if type(stored) is not bytes:
            stored = self.contents.live(space, key, stored)
            if stored is None:
                space.misses += 1
                return None
            if isinstance(stored, Entry):
                stored.used_at = self.contents.moment
                stored = stored.value
        space.hits += 1
        self._used(key)
        return stored

    def get_many(self, keys: Sequence[bytes], room: int) -> list[Value | None]:
        """Return the values of ``keys``, with None for a miss.

        Stop after the value with which the total exceeds ``room`` bytes; the list is then shorter than ``keys``.
        """
        values = batches.get_many(self.contents, keys, room, self.contents.now()) if keys else []
        if values is None:
            values = []
            for value in map(self.get, keys):
                values.append(value)
                room -= len(value or b"")
                if room < 0:
                    break
        return values

    def contains(self, key: bytes) -> bool:
        """Return whether there is an entry. Does not count, nor make the entry more recent."""
        return self._live(key) is not None

    def remaining(self, key: bytes) -> float | None:
        """Return the seconds until the entry expires, infinite if it never does; None when there is none."""
        stored = self._live(key)
        if stored is None:
            return None
        return stored.expires_at - self._clock() if isinstance(stored, Entry) else math.inf

    def lookup(self, key: bytes, *, count: bool = True) -> Found:
        """Return the entry, a stale one too. With ``count``, count a hit, or a miss if it is stale."""
        space = self.namespaces.of(key)
        stored = self._live(key)
        if stored is None:
            space.misses += count
            stale = space.get(key)  # only a stale one is still there
            return _NOT_FOUND if stale is None else Found(value_of(stale), stale=True)
        space.hits += count
        self._used(key)
        if not isinstance(stored, Entry):
            return Found(stored)
        stored.used_at = self.contents.moment
        seconds = stored.details.load_seconds if stored.details is not None else None
        return Found(stored.value, False, stored.expires_at - self._clock(), seconds)

    def get_with_version(self, key: bytes) -> tuple[Value, int] | None:
        """Return the value and its version; None if there is no entry.

        Every write of a value gives the entry a new version, never reused for this key; `touch` keeps the version.
        """
        value = self.get(key)
        return None if value is None else (value, self._version(key, value))

    def inspect(self, key: bytes) -> tuple[Value, int, Description] | None:
        """Return the value, its version and the description of an entry, or None. Does not count as a use."""
        live = self._live(key)
        if live is None:
            return None
        value = value_of(live)
        version = self._version(key, value)  # before the entry is described, because it makes it larger
        description = self.describe(key)
        return None if description is None else (value, version, description)

    def describe(self, key: bytes) -> Description | None:
        """Return the description of an entry, or None if there is none. Does not count as a use."""
        live = self._live(key)
        if live is None:
            return None
        if not isinstance(live, Entry):
            return Description(math.inf, [], None, None, cost_of(key, live))
        now = self._clock()
        used_at = live.written_at if live.used_at is None else live.used_at
        return Description(
            live.expires_at - now,
            [tag.name for tag in live.details.tags] if live.details is not None else [],
            None if live.written_at is None else now - live.written_at,
            None if used_at is None else now - used_at,
            cost_of(key, live),
        )

    def page(
        self,
        namespace: bytes,
        prefix: bytes,
        position: int,
        limit: int,
        room: int,
        *,
        stale: bool = False,
        tag: bytes | None = None,
        described: bool = False,
    ) -> tuple[list[bytes], int]:
        """Return some keys of a namespace that begin with ``prefix``, and the next position; see `Table.page`.

        Args:
            stale: whether to return also the keys of stale entries.
            tag: return only keys of entries with this tag.
            described: whether the tags of the entries count towards ``room``.
        """
        space = self.namespaces.get(namespace)
        tagged = None if tag is None else self.contents.tags.keys(tag)
        if space is None or tagged == frozenset():
            return [], 0
        size = partial(_described_bytes, space) if described else len
        keys, position = _page(space, tagged, position, limit, room, size)
        if prefix != namespace:
            keys = [key for key in keys if key.startswith(prefix)]
        if tagged is not None or ((space.expiring or self.contents.tags.invalid) and not stale):
            keys = [key for key in keys if self.contents.live(space, key, space.get(key)) is not None]
        return keys, position

    def count(self, namespace: bytes, position: int = 0) -> tuple[int, int]:
        """Return how many entries a part of a namespace has, and the position of the next part, 0 at the end.

        Where no entry can be dead, the namespace is one part, and counting takes constant time.
        """
        space = self.namespaces.get(namespace)
        if space is None:
            return 0, 0
        if not position and not space.expiring and not self.contents.tags.invalid:
            return space.count, 0
        keys, position = space.page(position)
        now = self._clock()
        stored = space.get_many(keys)
        dead = sum(isinstance(one, Entry) and (now >= one.expires_at or one.invalid) for one in stored)
        return len(keys) - dead, position

    # Changing ---------------------------------------------------------------------------------------------

    def apply(self, mutation: Mutation) -> Any:
        """Execute a mutation and return its result, see `mutation`. Clients change entries in this way only.

        Version numbers, expiry, eviction and reclaiming are not mutations.

        Raises:
            ValueTooLarge: a value does not fit at all. Nothing has changed.
        """
        return self._executors[type(mutation)](mutation)

    def set(self, key: bytes, value: Value, ttl_seconds: float | None = None) -> None:
        """Store ``value`` for ``ttl_seconds``, or forever."""
        # `_expiry` written out: this runs for every write.
        self.apply(Set(key, value, math.inf if ttl_seconds is None else self._clock() + ttl_seconds))

    def set_many(
        self,
        keys: Sequence[bytes],
        values: Sequence[Value],
        ttl_seconds: float | Sequence[float] | None = None,
    ) -> None:
        """Do the same for each key and value, all of which fit. ``ttl_seconds`` may be a sequence, one for each key."""
        if isinstance(ttl_seconds, Sequence):
            now = self._clock()
            self.apply(SetMany(keys, values, [now + each for each in ttl_seconds]))
        else:
            self.apply(SetMany(keys, values, self._expiry(ttl_seconds)))

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
        """Store ``value`` if the ``condition`` holds. Return whether it did.

        Args:
            ttl_seconds: as in `set`. A negative one keeps the TTL that the entry has, and its tags unless others are
                given; a new entry lives for that time without its sign, forever for `KEEP_TTL`.
            tags: names by which it can be invalidated.
            stale_seconds: how long it is kept, once it has expired, for callers that take a stale value; ignored with a
                negative TTL, which keeps this period too.
            load_seconds: how long it took to make.
        """
        live = self._live(key)
        if not _holds(condition, live):
            return False
        names = tuple(dict.fromkeys(tags or ()))
        if ttl_seconds is not None and ttl_seconds < 0:
            expires_at = self._expiry(-ttl_seconds)  # of a new entry
            kept = names if tags is not None else None
            self._put_in_place(key, live, value, kept, load_seconds, expires_at)
            return True
        expires_at = self._expiry(ttl_seconds)
        lasts = stale_seconds > 0 and expires_at < math.inf
        stale_until = expires_at + stale_seconds if lasts else 0.0
        self.apply(Set(key, value, expires_at, _extras(stale_until, load_seconds, names)))
        return True

    def setdefault(self, key: bytes, value: Value, ttl_seconds: float | None = None) -> Value | None:
        """Return the value that is there, or store ``value`` and return None."""
        there = self.get(key)
        if there is None:
            self.set(key, value, ttl_seconds)
        return there

    def change(self, key: bytes, make: Callable[[Value], Value]) -> Value | None:
        """Replace the value by what ``make`` returns for it; TTL and tags stay.

        Returns:
            The new value; None when there is no entry. Nothing changes when ``make`` raises.
        """
        live = self._live(key)
        if live is None:
            return None
        value = make(value_of(live))  # may raise, so nothing has changed yet
        self._put_in_place(key, live, value)
        return value

    def touch(self, key: bytes, ttl_seconds: float | None) -> bool:
        """Set the time to live, counted from now (None: no expiry). Return whether there is an entry."""
        touched: bool = self.apply(Touch(key, self._expiry(ttl_seconds)))
        return touched

    def delete(self, key: bytes, version: int | None = None) -> bool:
        """Remove the entry, if it has this ``version`` unless that is None. Return whether it was removed."""
        live = self._live(key)
        if not _holds(version, live):
            return False
        # A stale entry is removed as well, but does not count as deleted.
        self.apply(Discard(key) if live is None else Delete(key))
        return live is not None

    def pop(self, key: bytes) -> Value | None:
        """Return what `get` returns, and remove the entry."""
        value = self.get(key)
        self.apply(Discard(key) if value is None else Delete(key))
        return value

    # Partitions -------------------------------------------------------------------------------------------

    def partition_keys(self, partition: int) -> Iterator[bytes]:
        """Yield the keys of a partition in all namespaces, stale entries included. Looks at one dict of each."""
        for space in list(self.namespaces):
            if space.count:
                yield from space.partition(partition)

    def mutations_of(self, partition: int) -> int:
        """Return the number of mutations of a partition so far. `Discard`, eviction and expiry are not counted."""
        return self.contents.mutations[partition] + self.contents.mutations_of_all

    # Maintenance ------------------------------------------------------------------------------------------

    def reclaim(self, limit: int = 1000) -> bool:
        """Free up to ``limit`` dead entries. Return whether there may be more."""
        return self.contents.reclaim(limit)

    def reset_counters(self) -> None:
        """Count everything from 0 on again, except the hits and misses of the namespaces that exist."""
        self.contents.counters = Counters()
        self.namespaces.hits = self.namespaces.misses = 0

    # Inside -----------------------------------------------------------------------------------------------

    def _live(self, key: bytes) -> Stored | None:
        """Return the entry, unless it is dead or stale."""
        space: Namespace = self.namespaces.of(key)
        return self.contents.live(space, key, space.get(key))

    def _expiry(self, ttl_seconds: float | None) -> float:
        return math.inf if ttl_seconds is None else self._clock() + ttl_seconds

    def _set_many(self, change: SetMany) -> None:
        if change.keys and batches.set_many(self.contents, change, self.contents.now()):
            return
        each = change.expires_at if isinstance(change.expires_at, list) else repeat(change.expires_at)
        for key, value, expires_at in zip(change.keys, change.values, each, strict=False):
            self.apply(Set(key, value, expires_at))

    def _version(self, key: bytes, value: Value) -> int:
        """Return the version of a live entry; assign one if it has none."""
        space = self.namespaces.of(key)
        stored = space.get(key)
        assert stored is not None
        details = stored.details if isinstance(stored, Entry) else None
        if details is None:  # give it a place for the version; entries whose version is never read need none
            details = Details()
            expires_at = stored.expires_at if isinstance(stored, Entry) else math.inf
            self.contents.replace(space, key, stored, Entry(value, expires_at, None, details))
        if not details.version:
            details.version = self._next_version
            self._next_version += 1
        return details.version

    def _put_in_place(
        self,
        key: bytes,
        live: Stored | None,
        value: Value,
        tags: tuple[bytes, ...] | None = None,
        load_seconds: float | None = None,
        expires_at: float = math.inf,
    ) -> None:
        """Replace what is live by ``value``, for the rest of its time, and with its tags if ``tags`` is None.

        If nothing is live, the new entry expires at ``expires_at``.
        """
        stale_until = 0.0
        if live is not None:
            expires_at = math.inf
        if isinstance(live, Entry):
            expires_at = live.expires_at
            if live.details is not None:
                stale_until = live.details.stale_until
                if tags is None:
                    tags = tuple(tag.name for tag in live.details.tags)
        self.apply(Set(key, value, expires_at, _extras(stale_until, load_seconds, tags or ())))


def _extras(stale_until: float, load_seconds: float | None, tags: tuple[bytes, ...]) -> Extras | None:
    known = stale_until or load_seconds is not None or tags
    return Extras(stale_until, load_seconds, tags) if known else None


def _page(
    space: Namespace,
    tagged: Collection[bytes] | None,
    position: int,
    limit: int,
    room: int,
    size: Callable[[bytes], int],
) -> tuple[list[bytes], int]:
    """Return a page of the keys of a namespace, or of those that are in ``tagged``, and the next position."""
    if tagged is not None and len(tagged) <= SHARD_KEYS:
        return page_of(
            tagged, position, limit, room, size
        )  # so few can be sorted at once; the order is the same
    keys, position = space.page(position, limit, room, size)
    return keys if tagged is None else [key for key in keys if key in tagged], position


def _described_bytes(space: Namespace, key: bytes) -> int:
    """Return how much of a message the description of an entry may take."""
    stored = space.get(key)
    details = stored.details if isinstance(stored, Entry) else None
    return len(key) + (sum(len(tag.name) for tag in details.tags) if details is not None else 0)


def _holds(condition: Condition, live: Stored | None) -> bool:
    if condition is None:
        return True
    if condition == "absent":
        return live is None
    if condition == "present":
        return live is not None
    return isinstance(live, Entry) and live.details is not None and live.details.version == condition
