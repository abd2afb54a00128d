"""The store against a model, under every eviction policy, and its promises one by one."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pyrocache.errors import ValueTooLarge
from pyrocache.node.store.contents import Counters
from pyrocache.node.store.entry import (
    DETAILS_OVERHEAD,
    ENTRY_OVERHEAD,
    EXPIRY_OVERHEAD,
    SHORT_KEY,
    TAG_OVERHEAD,
    Stored,
    Value,
    entry_cost,
    value_of,
)
from pyrocache.node.store.entry import Entry as StoredEntry
from pyrocache.node.store.eviction import POLICIES, EvictionPolicy
from pyrocache.node.store.mutation import Clear, Discard, InvalidateTag, Mutation
from pyrocache.node.store.namespaces import NAMESPACE_OVERHEAD, ROOT, Namespace
from pyrocache.node.store.store import Store
from pyrocache.node.store.table import SHARD_KEYS
from pyrocache.node.store.tags import TAG_BYTES
from pyrocache.protocol.limits import KEEP_TTL
from pyrocache.protocol.partition import PARTITIONS, partition_of
from pyrocache.testing import FakeClock

LONG = b"\xc8\x01" + 200 * b"n"  # a namespace whose length takes two bytes
KEYS = [b"\0a", b"\0b", b"\0c", b"\0dddd", b"\x01na", b"\x01nb", LONG + b"k", b"neither", b"\0"]
NAMESPACES = [ROOT, b"\x01n", LONG, b"", b"\x01x"]
TAGS = [b"\0t", b"\0u", b"\x01nt"]

keys = st.sampled_from(KEYS)
values: st.SearchStrategy[Value] = st.binary(max_size=300) | st.binary(max_size=300).map(
    lambda data: memoryview(data)
)
ttls = st.none() | st.sampled_from([0.5, 1.0, 1.5, 10.0])
tag_lists = st.none() | st.lists(st.sampled_from(TAGS), max_size=3)

MOST_COST = (  # of one entry, with all tags there are
    *(3 * len(LONG), 1, 300, ENTRY_OVERHEAD, EXPIRY_OVERHEAD, DETAILS_OVERHEAD, NAMESPACE_OVERHEAD),
    *(len(tag) + TAG_BYTES + TAG_OVERHEAD for tag in TAGS),
)


class LRU:
    """Least recently used first, so plain that a test can say who that is."""

    name = "plain lru"

    def __init__(self) -> None:
        self.order: OrderedDict[bytes, None] = OrderedDict()

    def added(self, key: bytes, /) -> None:
        self.order[key] = None

    def added_many(self, keys: Sequence[bytes], /) -> None:
        self.order.update(dict.fromkeys(keys))

    def used(self, key: bytes, /) -> None:
        self.order.move_to_end(key)

    def used_many(self, keys: Iterable[bytes], /) -> None:
        for key in keys:
            self.used(key)

    def removed(self, key: bytes, /) -> None:
        del self.order[key]

    def victim(self) -> bytes:
        if not self.order:
            raise LookupError
        return self.order.popitem(last=False)[0]


def reset(store: Store) -> None:
    for space in store.namespaces:
        space.hits = space.misses = 0
    store.reset_counters()


def reads_of(store: Store) -> tuple[int, int]:
    """Hits and misses in all namespaces, those included that are forgotten."""
    spaces = [store.namespaces, *store.namespaces]
    return sum(space.hits for space in spaces), sum(space.misses for space in spaces)


class Audited:
    """An eviction policy that is told what has been promised to it, and whose victims are noted."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self.name = policy.name
        self.held: set[bytes] = set()
        self.victims: deque[bytes] = deque()

    def added(self, key: bytes, /) -> None:
        assert key not in self.held
        self.held.add(key)
        self.policy.added(key)

    def added_many(self, keys: Sequence[bytes], /) -> None:
        assert len(set(keys)) == len(keys)
        assert self.held.isdisjoint(keys)
        self.held.update(keys)
        self.policy.added_many(keys)

    def used(self, key: bytes, /) -> None:
        assert key in self.held
        self.policy.used(key)

    def used_many(self, keys: Iterable[bytes], /) -> None:
        used = list(keys)
        assert self.held.issuperset(used)
        self.policy.used_many(used)

    def removed(self, key: bytes, /) -> None:
        self.held.remove(key)
        self.policy.removed(key)

    def victim(self) -> bytes:
        key = self.policy.victim()
        self.held.remove(key)
        self.victims.append(key)
        return key


class Entry:
    """What the model knows of an entry."""

    def __init__(
        self,
        value: Value,
        expires_at: float = math.inf,
        *,
        stale_seconds: float = 0.0,
        tags: Iterable[bytes] = (),
        load_seconds: float | None = None,
    ) -> None:
        self.value = value
        self.expires_at = expires_at
        self.stale_seconds = stale_seconds if expires_at < math.inf else 0.0
        self.tags = frozenset(tags)
        self.load_seconds = load_seconds
        self.version = 0
        self.detailed = bool(self.tags or self.stale_seconds or load_seconds is not None)

    @property
    def leaves_at(self) -> float:
        return self.expires_at + self.stale_seconds

    def cost(self, key: bytes) -> int:
        return entry_cost(
            key,
            self.value,
            expires=self.expires_at < math.inf,
            tags=self.tags if self.detailed else None,
        )


class StoreAgainstModel(RuleBasedStateMachine):
    """The model is a dict of entries in order of use, oldest first, stale ones included."""

    POLICY: Callable[[], EvictionPolicy] = LRU
    ROOM = 2 * sum(MOST_COST)
    PREDICTABLE = True  # whether the model's order is the policy's

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(1000.0)
        self.policy = Audited(type(self).POLICY())
        # The tick divides all times here, so that what has expired is known to have expired.
        self.store = Store(
            self.ROOM, policy=self.policy, clock=self.clock, tick_seconds=0.25, reclaimed_by_clear=0
        )
        self.model: dict[bytes, Entry] = {}
        self.counters = Counters()
        self.hits: Counter[bytes] = Counter()
        self.misses: Counter[bytes] = Counter()
        self.versions: set[int] = set()
        self.cursor = -1  # of a scan; there is none
        self.to_come: set[bytes] = set()
        self.have_come: list[bytes] = []

    # The model -------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """What is due goes."""
        for key in [key for key, entry in self.model.items() if entry.leaves_at <= self.clock.now]:
            del self.model[key]
        self.to_come &= {key for key, entry in self.model.items() if entry.expires_at > self.clock.now}

    def live(self, key: bytes) -> Entry | None:
        self.leave()
        entry = self.model.get(key)
        return entry if entry is not None and self.clock.now < entry.expires_at else None

    def live_keys(self, namespace: bytes) -> list[bytes]:
        return [key for key in self.model if self.live(key) and namespace_of(key) == namespace]

    def looked_up(self, key: bytes) -> Entry | None:
        """What a get finds, and what it changes."""
        entry = self.live(key)
        (self.hits if entry else self.misses)[namespace_of(key)] += 1
        if entry is not None:
            self.used(key)
        return entry

    def used(self, key: bytes) -> None:
        self.model[key] = self.model.pop(key)

    def held(self) -> int:
        tags = set(chain.from_iterable(entry.tags for entry in self.model.values()))
        named = {namespace_of(key) for key in self.model} - {ROOT}
        return (
            sum(entry.cost(key) for key, entry in self.model.items())
            + sum(len(tag) + TAG_BYTES for tag in tags)
            + NAMESPACE_OVERHEAD * len(named)
        )

    def evict(self, room_for: int = 0, *, keep: Collection[bytes] = ()) -> None:
        """As many go as have to, but none of ``keep``; which ones, the policy says."""
        order = list(self.model)
        while self.held() + room_for > self.ROOM and self.model.keys() - set(keep):
            victim = self.policy.victims.popleft()
            if self.PREDICTABLE:
                assert victim == order.pop(0), "the least recently used goes first"
            if victim not in keep:
                self.gone(victim)
                self.counters.evictions += 1
            else:
                self.used(victim)

    def stored(self, key: bytes, entry: Entry) -> None:
        """What a set changes."""
        self.counters.sets += 1
        if key not in self.model:
            self.evict(entry.cost(key) + NAMESPACE_OVERHEAD * (namespace_of(key) != ROOT))
        self.model.pop(key, None)
        self.model[key] = entry
        self.evict(keep=(key,))

    # Reading ---------------------------------------------------------------------------------------------

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        entry = self.looked_up(key)
        assert self.store.get(key) == (value_in(entry))

    @rule(asked=st.lists(keys, max_size=8), room=st.sampled_from([0, 1, 100, 300, 10**9]))
    def get_many(self, asked: list[bytes], room: int) -> None:
        expected: list[Value | None] = []
        for key in asked:
            entry = self.looked_up(key)
            expected.append(value_in(entry))
            if sum(len(value) for value in expected if value is not None) > room:
                break
        assert self.store.get_many(asked, room) == expected

    @rule(key=keys)
    def look(self, key: bytes) -> None:
        entry = self.live(key)
        assert self.store.contains(key) == (entry is not None)
        assert self.store.remaining(key) == (entry and entry.expires_at - self.clock.now)

    @rule(key=keys, count=st.booleans())
    def lookup(self, key: bytes, count: bool) -> None:
        before = self.hits.copy(), self.misses.copy()
        entry = self.looked_up(key)
        if not count:
            self.hits, self.misses = before
        found = self.store.lookup(key, count=count)
        if entry is None:
            stale = self.model.get(key)
            assert found.value == (value_in(stale))
            assert found.stale == (stale is not None)
        else:
            assert (found.value, found.stale) == (entry.value, False)
            assert found.remaining == entry.expires_at - self.clock.now
            assert found.load_seconds == entry.load_seconds

    @rule(key=keys)
    def get_with_version(self, key: bytes) -> None:
        entry = self.looked_up(key)
        found = self.store.get_with_version(key)
        if entry is None:
            assert found is None
            return
        assert found is not None
        value, version = found
        assert value == entry.value
        if entry.version:
            assert version == entry.version
        else:
            assert version not in self.versions
            assert version > 0
        entry.version, entry.detailed = version, True
        self.versions.add(version)
        self.evict(keep=(key,))

    # Writing ---------------------------------------------------------------------------------------------

    def expiry(self, ttl: float | None) -> float:
        return math.inf if ttl is None else self.clock.now + ttl

    @rule(key=keys, value=values, ttl=ttls)
    def set(self, key: bytes, value: Value, ttl: float | None) -> None:
        self.leave()
        self.store.set(key, value, ttl)
        self.stored(key, Entry(value, self.expiry(ttl)))

    @rule(
        key=keys,
        value=values,
        ttl=ttls,
        condition=st.sampled_from([None, "absent", "present", "version", "outdated"]),
        tags=tag_lists,
        stale_seconds=st.sampled_from([0.0, 0.0, 0.5, 5.0]),
        load_seconds=st.none() | st.floats(0, 10),
    )
    def put(
        self,
        key: bytes,
        value: Value,
        ttl: float | None,
        condition: Any,
        tags: list[bytes] | None,
        stale_seconds: float,
        load_seconds: float | None,
    ) -> None:
        live = self.live(key)
        allowed = self.allowed(condition, live)
        stored = self.store.put(
            key,
            value,
            ttl,
            condition=self.version(condition, live),
            tags=tags,
            stale_seconds=stale_seconds,
            load_seconds=load_seconds,
        )
        assert stored == allowed
        if stored:
            entry = Entry(
                value,
                self.expiry(ttl),
                stale_seconds=stale_seconds,
                tags=tags or (),
                load_seconds=load_seconds,
            )
            self.stored(key, entry)

    @rule(
        key=keys,
        value=values,
        condition=st.sampled_from([None, "absent", "present", "version", "outdated"]),
        tags=tag_lists,
    )
    def put_with_the_ttl_that_is_there(
        self, key: bytes, value: Value, condition: Any, tags: list[bytes] | None
    ) -> None:
        live = self.live(key)
        allowed = self.allowed(condition, live)
        wanted = self.version(condition, live)
        assert self.store.put(key, value, KEEP_TTL, condition=wanted, tags=tags) == allowed
        if allowed:
            self.stored(key, self.successor(live, value, tags))

    def successor(self, live: Entry | None, value: Value, tags: list[bytes] | None = None) -> Entry:
        if live is None:
            return Entry(value, tags=tags or ())
        kept = live.tags if tags is None else tags
        return Entry(value, live.expires_at, stale_seconds=live.stale_seconds, tags=kept)

    def allowed(self, condition: Any, live: Entry | None) -> bool:
        return {
            None: True,
            "absent": live is None,
            "present": live is not None,
            "version": live is not None and live.version > 0,
            "outdated": False,
        }[condition]

    def version(self, condition: Any, live: Entry | None) -> Any:
        if condition == "version":
            return live.version if live is not None and live.version else 10**9
        if condition == "outdated":
            return max(self.versions - {live.version if live is not None else 0}, default=10**9)
        return condition

    @rule(key=keys, value=values, ttl=ttls)
    def setdefault(self, key: bytes, value: Value, ttl: float | None) -> None:
        entry = self.looked_up(key)
        assert self.store.setdefault(key, value, ttl) == (value_in(entry))
        if entry is None:
            self.stored(key, Entry(value, self.expiry(ttl)))

    @rule(entries=st.lists(st.tuples(keys, values), max_size=6), ttl=ttls)
    def set_many(self, entries: list[tuple[bytes, Value]], ttl: float | None) -> None:
        self.leave()
        batch = {key: Entry(value, self.expiry(ttl)) for key, value in entries}
        at_once = self.is_stored_at_once(entries, batch)
        self.store.set_many([key for key, _ in entries], [value for _, value in entries], ttl)
        if at_once:
            self.stored_at_once(batch)
        else:
            for key, value in entries:
                self.stored(key, Entry(value, self.expiry(ttl)))
        if self.PREDICTABLE:
            # Which of the batch is the most recent is not promised, only that all others are less so.
            there = batch.keys() & self.model.keys()
            assert isinstance(self.policy.policy, LRU)
            order = list(self.policy.policy.order)
            recent = order[len(order) - len(there) :]
            assert set(recent) == there
            for key in recent:
                self.used(key)

    def is_stored_at_once(self, entries: list[Any], batch: dict[bytes, Entry]) -> bool:
        """Whether a batch is stored in one step, so that none of it makes another one of it go."""
        namespaces = set(map(namespace_of, batch))
        return (
            len(batch) == len(entries)
            and len(namespaces) == 1
            and not namespaces & {b"", *self.store.namespaces.cleared}
            and self.cost_of(batch) <= self.ROOM
        )

    def cost_of(self, batch: dict[bytes, Entry]) -> int:
        named = namespace_of(next(iter(batch))) != ROOT
        return sum(entry.cost(key) for key, entry in batch.items()) + NAMESPACE_OVERHEAD * named

    def stored_at_once(self, batch: dict[bytes, Entry]) -> None:
        freed = sum(self.model[key].cost(key) for key in batch if key in self.model)
        self.counters.sets += len(batch)
        self.evict(self.cost_of(batch) - freed, keep=batch)
        for key, entry in batch.items():
            self.model.pop(key, None)
            self.model[key] = entry

    @rule(key=keys, more=values, fails=st.booleans())
    def change(self, key: bytes, more: Value, fails: bool) -> None:
        live = self.live(key)

        def make(value: Value) -> Value:
            if fails:
                raise ArithmeticError
            assert live is not None
            assert value == live.value
            return more

        if live is not None and fails:
            with pytest.raises(ArithmeticError):
                self.store.change(key, make)
            return
        assert self.store.change(key, make) == (live and more)
        if live is not None:
            self.stored(key, self.successor(live, more))

    @rule(key=keys, ttl=ttls)
    def touch(self, key: bytes, ttl: float | None) -> None:
        live = self.live(key)
        assert self.store.touch(key, ttl) == (live is not None)
        if live is not None:
            self.used(key)
            live.expires_at = self.expiry(ttl)
            if ttl is None:
                live.stale_seconds = 0.0
            self.evict(keep=(key,))

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        there = self.live(key) is not None
        assert self.store.delete(key) == there
        self.gone(key)
        self.counters.deletes += there

    @rule(key=keys)
    def pop(self, key: bytes) -> None:
        entry = self.looked_up(key)
        assert self.store.pop(key) == (value_in(entry))
        self.gone(key)
        self.counters.deletes += entry is not None

    @rule(key=keys)
    def discard(self, key: bytes) -> None:
        self.store.apply(Discard(key))
        self.gone(key)
        assert self.store.namespaces.of(key).get(key) is None

    def gone(self, key: bytes) -> None:
        self.model.pop(key, None)
        self.to_come.discard(key)

    @rule(key=keys, ttl=ttls, tags=tag_lists, put=st.booleans())
    def a_value_that_does_not_fit(
        self, key: bytes, ttl: float | None, tags: list[bytes] | None, put: bool
    ) -> None:
        gone = self.live(key) is None  # and may be removed now
        names = set(tags or ()) if put else set()
        beside = entry_cost(key, b"", expires=ttl is not None, tags=names or None)
        beside += sum(len(name) + TAG_BYTES for name in names)
        beside += NAMESPACE_OVERHEAD * (namespace_of(key) != ROOT)
        bytes_before = self.store.used_bytes
        too_large = bytes(self.ROOM - beside + 1)
        store = partial(self.store.put, tags=tags) if put else self.store.set
        with pytest.raises(ValueTooLarge):
            store(key, too_large, ttl)
        if gone:
            assert self.store.used_bytes <= bytes_before
        else:
            assert self.store.used_bytes == bytes_before

    # All of them -----------------------------------------------------------------------------------------

    @rule(namespace=st.sampled_from(NAMESPACES))
    def clear(self, namespace: bytes) -> None:
        self.leave()
        known = self.store.namespaces.get(namespace)
        held = (
            sum(map(len, {id(shard): shard for shard in known.shards}.values())) if known is not None else 0
        )
        ours = [key for key in self.model if namespace_of(key) == namespace]
        assert len(ours) <= self.store.apply(Clear(namespace)) == held
        for key in ours:
            self.gone(key)

    @rule(tag=st.sampled_from(TAGS))
    def invalidate(self, tag: bytes) -> None:
        self.leave()
        ours = [key for key, entry in self.model.items() if tag in entry.tags]
        assert len(ours) <= self.store.apply(InvalidateTag(tag))
        for key in ours:
            self.gone(key)
        assert self.store.apply(InvalidateTag(tag)) == 0

    @rule(limit=st.integers(1, 3))
    def reclaim(self, limit: int) -> None:
        self.store.reclaim(limit)

    @rule(limit=st.integers(1, 3))
    def reclaim_all(self, limit: int) -> None:
        self.leave()
        while self.store.reclaim(limit):
            pass
        assert len(self.store) == len(self.model)
        assert self.store.used_bytes == self.held()
        assert not self.store.namespaces.cleared

    @rule(namespace=st.sampled_from(NAMESPACES), limit=st.integers(1, 4), letter=st.sampled_from(["", "a"]))
    def whole_scan(self, namespace: bytes, limit: int, letter: str) -> None:
        prefix = namespace + letter.encode()
        expected = sorted(key for key in self.live_keys(namespace) if key.startswith(prefix))
        found: list[bytes] = []
        position = 0
        while True:
            page, position = self.store.page(namespace, prefix, position, limit, 10**9)
            assert len(page) <= limit
            found += page
            if not position:
                break
        assert sorted(found) == expected

    @precondition(lambda self: self.cursor == -1)
    @rule()
    def begin_a_scan(self) -> None:
        self.cursor = 0
        self.to_come = set(self.live_keys(ROOT))
        self.have_come = []

    @precondition(lambda self: self.cursor != -1)
    @rule(limit=st.integers(1, 3))
    def next_page(self, limit: int) -> None:
        self.leave()
        page, self.cursor = self.store.page(ROOT, ROOT, self.cursor, limit, 10**9)
        assert set(page) <= set(self.live_keys(ROOT))
        self.have_come += page
        assert len(set(self.have_come)) == len(self.have_come), "no key comes twice"
        if not self.cursor:
            assert self.to_come <= set(self.have_come), "what is there throughout comes"
            self.cursor = -1
            self.to_come = set()

    @rule()
    def reset_counters(self) -> None:
        reset(self.store)
        self.counters = Counters()
        self.hits.clear()
        self.misses.clear()

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 20.0]))
    def tick(self, seconds: float) -> None:
        self.clock.tick(seconds)

    # What is true at all times ---------------------------------------------------------------------------

    def spaces(self) -> list[Namespace]:
        return [*self.store.namespaces, *chain.from_iterable(self.store.namespaces.cleared.values())]

    def everything(self) -> list[tuple[Namespace, bytes, Stored]]:
        return [
            (space, key, held)
            for space in self.spaces()
            for shard in {id(shard): shard for shard in space.shards}.values()
            for key, held in shard.items()
        ]

    @invariant()
    def bytes_are_exact_and_bounded(self) -> None:
        recount = sum(recounted(key, held) for _, key, held in self.everything())
        found = self.store.contents.tags
        tags = [*found._by_name.values(), *(tag for tag in found.invalid if tag.keys)]
        recount += sum(len(tag.name) + TAG_BYTES for tag in tags)
        recount += sum(NAMESPACE_OVERHEAD for space in self.spaces() if space.count and space.prefix != ROOT)
        assert self.store.used_bytes == recount
        assert self.store.used_bytes <= self.ROOM
        assert len(self.store) == len(self.everything())

    @invariant()
    def every_key_is_in_one_place_only_and_the_policy_knows_it(self) -> None:
        held = [key for _, key, _ in self.everything()]
        assert len(set(held)) == len(held)
        assert self.policy.held == set(held)

    @invariant()
    def namespaces_know_what_they_hold(self) -> None:
        for space in self.spaces():
            there = [(key, held) for owner, key, held in self.everything() if owner is space]
            assert all(namespace_of(key) == space.prefix for key, _ in there)
            assert space.count == len(there)
            assert space.expiring == sum(
                isinstance(held, StoredEntry) and held.bucket is not None for _, held in there
            )
        waiting = [space for space, _ in self.store.contents.reclaimer.cleared]
        assert sorted(map(id, waiting)) == sorted(
            id(space) for space in chain.from_iterable(self.store.namespaces.cleared.values())
        )

    @invariant()
    def the_buckets_have_what_leaves_and_nothing_else(self) -> None:
        buckets = self.store.contents.expiry
        leaving = {
            key: held
            for _, key, held in self.everything()
            if isinstance(held, StoredEntry) and held.bucket is not None
        }
        assert sorted(key for row in buckets._buckets.values() for keys in row for key in keys) == sorted(
            leaving
        )
        assert sorted(buckets.ticks) == sorted(buckets._buckets)
        for tick, bucket in ((tick, bucket) for tick, row in buckets._buckets.items() for bucket in row):
            for key in bucket:
                held = leaving[key]
                assert held.bucket is bucket
                assert 0 <= tick * 0.25 - held.leaves_at <= 0.25

    @invariant()
    def tags_have_the_keys_that_have_them_and_nothing_else(self) -> None:
        tagged: dict[int, Any] = {}
        for _, key, held in self.everything():
            details = held.details if isinstance(held, StoredEntry) else None
            for tag in details.tags if details is not None else ():
                tagged.setdefault(id(tag), set()).add(key)
        valid, invalid = (
            list(self.store.contents.tags._by_name.values()),
            list(self.store.contents.tags.invalid),
        )
        assert all(tag.keys == tagged.pop(id(tag), set()) for tag in valid + invalid)
        assert not tagged
        assert all(tag.keys and not tag.invalid for tag in valid)
        assert all(tag.invalid for tag in invalid)
        assert all(self.store.contents.tags._by_name[tag.name] is tag for tag in valid)

    @invariant()
    def what_the_model_holds_the_store_holds(self) -> None:
        self.leave()
        assert not self.policy.victims, "no more go than have to"
        for key, entry in self.model.items():
            held = self.store.namespaces.of(key).get(key)
            assert held is not None
            assert value_of(held) == entry.value
            assert (isinstance(held, StoredEntry) and held.details is not None) == entry.detailed
            assert isinstance(held, StoredEntry) == (entry.detailed or entry.expires_at < math.inf)

    @invariant()
    def what_happened_is_counted(self) -> None:
        counters = self.store.counters
        counted = Counters(counters.sets, counters.deletes, counters.evictions)
        assert counted == self.counters
        assert reads_of(self.store) == (self.hits.total(), self.misses.total())
        for space in self.store.namespaces:
            assert (space.hits, space.misses) == (self.hits[space.prefix], self.misses[space.prefix])


def value_in(entry: Entry | None) -> Value | None:
    """Its value, if there is one."""
    return None if entry is None else entry.value


def namespace_of(key: bytes) -> bytes:
    """What `prefix_of` should say."""
    return next((prefix for prefix in (ROOT, b"\x01n", LONG) if key.startswith(prefix)), b"")


def recounted(key: bytes, held: Stored) -> int:
    """What an entry is accounted for, from what is held."""
    cost = len(key) + len(value_of(held)) + ENTRY_OVERHEAD
    again = len(key) if len(key) > SHORT_KEY else 0
    if isinstance(held, StoredEntry) and held.expires_at < math.inf:
        cost += EXPIRY_OVERHEAD + again
    if isinstance(held, StoredEntry) and held.details is not None:
        cost += DETAILS_OVERHEAD + TAG_OVERHEAD * len(held.details.tags)
        cost += again if held.details.tags else 0
    return cost


EXAMPLES = settings(stateful_step_count=50, deadline=None)


class RoomyStore(StoreAgainstModel):
    """Nothing is ever evicted."""

    ROOM = 10**6


TestStore: Any = StoreAgainstModel.TestCase
TestStore.settings = EXAMPLES
TestRoomyStore: Any = RoomyStore.TestCase
TestRoomyStore.settings = EXAMPLES


@pytest.mark.parametrize("policy", POLICIES)
def test_under_every_policy_as_many_go_as_have_to(policy: str) -> None:
    class Machine(StoreAgainstModel):
        POLICY = POLICIES[policy]
        PREDICTABLE = False

    run_state_machine_as_test(Machine, settings=settings(EXAMPLES, max_examples=EXAMPLES.max_examples // 2))


@pytest.mark.parametrize("policy", POLICIES)
def test_none_is_lost_where_many_come_and_go(policy: str) -> None:
    store = Store(6_000 * entry_cost(b"\0k00000", b"vvvvv", expires=False), policy=POLICIES[policy]())
    for number in range(60_000):
        store.set(b"\0k%05d" % number, b"v%04d" % (number % 10_000))
        if number % 3 == 0:
            store.set(b"\0k%05d" % (number // 2), b"again")
        if number % 7 == 0:
            store.delete(b"\0k%05d" % (number - 5))
    assert len(store) == len(keys_of(store)) == len(set(keys_of(store)))
    assert 5_990 <= len(store) <= 6_000
    assert store.used_bytes == sum(entry_cost(key, b"vvvvv", expires=False) for key in keys_of(store))
    assert all(store.get(key) is not None for key in keys_of(store))


# Promises one by one --------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(50.0)


@pytest.fixture
def store(clock: FakeClock) -> Store:
    return Store(10**9, clock=clock)


def small(entries: int, clock: FakeClock, *, expires: bool = False) -> Store:
    """One with room for so many of ``b"\\0k": b"v"``, of which the least recently used goes first."""
    return Store(entries * entry_cost(b"\0k", b"v", expires=expires), policy=LRU(), clock=clock)


def keys_of(store: Store, namespace: bytes = ROOT) -> list[bytes]:
    found: list[bytes] = []
    position = 0
    while True:
        page, position = store.page(namespace, namespace, position, 1000, 10**9)
        found += page
        if not position:
            return sorted(found)


def reclaim(store: Store) -> None:
    while store.reclaim():
        pass


class TestExpiry:
    def test_an_entry_is_expired_in_the_very_instant(self, store: Store, clock: FakeClock) -> None:
        store.set(b"\0k", b"v", 2.0)
        clock.tick(1.999)
        assert store.get(b"\0k") == b"v"
        clock.now = 52.0
        assert store.get(b"\0k") is None
        assert store.counters.expirations == 1

    def test_overwriting_replaces_the_ttl(self, store: Store, clock: FakeClock) -> None:
        store.set(b"\0k", b"v", 1.0)
        store.set(b"\0k", b"w")
        clock.tick(100)
        assert not store.reclaim()
        assert store.get(b"\0k") == b"w"

    def test_expired_entries_go_before_live_ones(self, clock: FakeClock) -> None:
        room = entry_cost(b"\0k", b"v", expires=False) + 3 * entry_cost(b"\0k", b"v", expires=True)
        store = Store(room, clock=clock)
        store.set(b"\0o", b"v")
        store.set(b"\0x", b"v", 1.0)
        store.set(b"\0y", bytes(EXPIRY_OVERHEAD + 1))
        clock.tick(2)
        store.set(b"\0z", bytes(EXPIRY_OVERHEAD + 1))
        assert store.counters.evictions == 0
        assert store.counters.expirations == 0, "there was room enough"
        store.set(b"\0w", b"v")
        assert keys_of(store) == [b"\0o", b"\0w", b"\0y", b"\0z"]
        assert store.counters.evictions == 0
        assert store.counters.expirations == 1

    def test_reclaiming_costs_what_has_expired_and_not_what_is_there(
        self, store: Store, clock: FakeClock
    ) -> None:
        for number in range(1000):
            store.set(b"\0live%d" % number, b"v", 1e6)
        for number in range(25):
            store.set(b"\0dead%d" % number, b"v", 1.0)
        clock.tick(2)
        assert store.reclaim(10) is True
        assert len(store) == 1015
        while store.reclaim(10):
            pass
        assert len(store) == 1000

    def test_overwriting_with_a_ttl_does_not_pile_up_anything(self, store: Store, clock: FakeClock) -> None:
        for number in range(5000):
            store.set(b"\0session", b"v", 3600.0)
            clock.tick(0.001)
            store.set(b"\0%d" % number, b"v", 3600.0)
            store.delete(b"\0%d" % number)
        assert len(store.contents.expiry.ticks) == len(store.contents.expiry._buckets) < 20
        assert sum(len(bucket) for row in store.contents.expiry._buckets.values() for bucket in row) == 1

    def test_overwriting_batches_with_a_ttl_does_not_pile_up_anything(
        self, store: Store, clock: FakeClock
    ) -> None:
        for _ in range(3000):
            store.set_many([b"\0one", b"\0two"], [b"v", b"w"], 3600.0)
            clock.tick(0.001)
        assert len(store.contents.expiry.ticks) == len(store.contents.expiry._buckets) < 20
        assert sum(len(bucket) for row in store.contents.expiry._buckets.values() for bucket in row) == 2

    def test_a_ttl_of_centuries_is_fine(self, store: Store, clock: FakeClock) -> None:
        store.set(b"\0k", b"v", 1e300)
        store.put(b"\0tagged", b"v", 1e308, tags=[b"t"], stale_seconds=1e308)
        store.touch(b"\0tagged", 1.7e308)
        clock.tick(1e9)
        assert store.reclaim() is False
        assert store.get(b"\0k") == store.get(b"\0tagged") == b"v"

    def test_what_expires_while_it_is_changed_does_not_become_one_that_never_does(self) -> None:
        clock = FakeClock()
        store = Store(10**9, clock=clock)
        store.set(b"\0counter", b"1", 1.0)

        def slowly(value: Value) -> Value:
            clock.tick(2)
            return b"2"

        store.change(b"\0counter", slowly)
        assert store.get(b"\0counter") is None

    def test_what_is_popped_in_its_last_instant_is_deleted(self) -> None:
        times = iter([0.0, 0.0, 0.9, 5.0, 5.0])
        store = Store(10**9, clock=lambda: next(times))
        store.set(b"\0k", b"v", 1.0)
        assert store.pop(b"\0k") == b"v"
        assert (store.counters.deletes, store.counters.expirations) == (1, 0)

    def test_what_expires_while_room_is_made_for_it_is_known_to_the_policy_no_more(self) -> None:
        clock = FakeClock()

        class Slow(LRU):
            def victim(self) -> bytes:
                clock.tick(1)
                return super().victim()

        policy = Audited(Slow())
        room = 3 * entry_cost(b"\0k", b"v", expires=True)
        store = Store(room, policy=policy, clock=clock)
        for number in range(3):
            store.set(b"\0%d" % number, b"v")
        store.set(b"\0two", b"v")
        store.set(b"\0two", bytes(600), 0.5)
        reclaim(store)
        assert policy.held == set(keys_of(store))


class TestTouch:
    @pytest.mark.parametrize("tags", [None, [b"t"]])
    @pytest.mark.parametrize("stale_seconds", [0.0, 3.0])
    def test_it_leaves_when_it_is_to_and_no_earlier(
        self, store: Store, clock: FakeClock, tags: list[bytes] | None, stale_seconds: float
    ) -> None:
        store.put(b"\0k", b"v", 5.0, tags=tags, stale_seconds=stale_seconds)
        clock.tick(4)
        assert store.touch(b"\0k", 5.0)
        clock.tick(4.9)
        reclaim(store)
        assert store.get(b"\0k") == b"v"
        clock.tick(0.1)
        assert store.get(b"\0k") is None
        assert store.lookup(b"\0k").stale == (stale_seconds > 0)
        clock.tick(stale_seconds)
        assert store.lookup(b"\0k").value is None
        assert (len(store), store.used_bytes) == (0, 0)

    def test_for_good_it_does_not_leave(self, store: Store, clock: FakeClock) -> None:
        store.put(b"\0k", b"v", 5.0, tags=[b"t"], stale_seconds=3.0)
        store.set(b"\0plain", b"v", 5.0)
        assert store.touch(b"\0k", None)
        assert store.touch(b"\0plain", None)
        clock.tick(1e6)
        reclaim(store)
        assert store.remaining(b"\0k") == store.remaining(b"\0plain") == math.inf
        assert store.apply(InvalidateTag(b"t")) == 1

    def test_what_has_expired_is_not_touched(self, store: Store, clock: FakeClock) -> None:
        store.put(b"\0k", b"v", 1.0, stale_seconds=10.0)
        clock.tick(1)
        assert not store.touch(b"\0k", 5.0)
        assert store.get(b"\0k") is None
        assert store.lookup(b"\0k").value == b"v"

    def test_the_version_stays(self, store: Store) -> None:
        store.set(b"\0k", b"v")
        found = store.get_with_version(b"\0k")
        assert found is not None
        store.touch(b"\0k", 9.0)
        assert store.get_with_version(b"\0k") == found

    def test_an_entry_as_large_as_the_memory_may_become_a_little_larger(self, clock: FakeClock) -> None:
        store = small(2, clock)
        store.set(b"\0k", b"v")
        store.set(b"\0big", bytes(store.max_bytes - ENTRY_OVERHEAD - 4))
        assert store.used_bytes == store.max_bytes
        assert store.touch(b"\0big", 9.0)
        assert store.get_with_version(b"\0big") is not None
        assert store.used_bytes == store.max_bytes + EXPIRY_OVERHEAD + DETAILS_OVERHEAD
        store.set(b"\0k", b"v")
        assert keys_of(store) == [b"\0k"]
        assert store.used_bytes == entry_cost(b"\0k", b"v", expires=False)


class TestEviction:
    def test_the_least_recently_used_goes_first(self, clock: FakeClock) -> None:
        store = small(3, clock)
        for key in (b"\x001", b"\x002", b"\x003"):
            store.set(key, b"v")
        store.get(b"\x001")
        store.contains(b"\x002")  # looking does not count as use
        store.set(b"\x004", b"v")
        assert keys_of(store) == [b"\x001", b"\x003", b"\x004"]
        assert store.counters.evictions == 1

    def test_a_value_that_does_not_fit_changes_nothing(self, clock: FakeClock) -> None:
        store = Store(1000, clock=clock)
        store.set(b"\0k", b"old")
        before = store.used_bytes
        with pytest.raises(ValueTooLarge):
            store.set(b"\0k", bytes(1000))
        assert store.get(b"\0k") == b"old"
        assert store.used_bytes == before

    def test_a_value_that_fits_for_good_may_not_fit_with_a_ttl(self, clock: FakeClock) -> None:
        store = Store(entry_cost(b"\0k", b"value", expires=False), clock=clock)
        store.set(b"\0k", b"value")
        with pytest.raises(ValueTooLarge):
            store.set(b"\0k", b"value", 1.0)
        assert store.get(b"\0k") == b"value"
        assert store.remaining(b"\0k") == math.inf

    def test_a_value_that_fits_into_the_root_may_not_fit_into_a_namespace(self, clock: FakeClock) -> None:
        store = Store(2000, clock=clock)
        store.set(b"\0kk", bytes(1000))
        for write in (store.set, store.put):
            with pytest.raises(ValueTooLarge):
                write(b"\1nk", bytes(1000))
        assert keys_of(store) == [b"\0kk"]

    @pytest.mark.parametrize("tags", [None, [b"t"]])
    def test_a_value_that_grows_evicts_others_and_not_itself(
        self, clock: FakeClock, tags: list[bytes] | None
    ) -> None:
        store = small(8, clock)
        for number in range(8):
            store.set(b"\0%d" % number, b"v")
        store.put(b"\x000", bytes(ENTRY_OVERHEAD), tags=tags)
        assert store.get(b"\x000") == bytes(ENTRY_OVERHEAD)
        assert store.used_bytes <= store.max_bytes
        store.change(b"\x000", lambda value: bytes(2 * ENTRY_OVERHEAD))
        assert store.get(b"\x000") == bytes(2 * ENTRY_OVERHEAD)
        assert store.used_bytes <= store.max_bytes

    def test_a_batch_larger_than_the_memory_leaves_its_latest(self, clock: FakeClock) -> None:
        store = small(3, clock)
        store.set_many([b"\x001", b"\x002"], [b"v", b"v"])
        store.set_many([b"\x003", b"\x001", b"\x004", b"\x005"], [b"w"] * 4)
        assert keys_of(store) == [b"\x001", b"\x004", b"\x005"]
        assert store.counters.evictions == 2

    def test_a_batch_has_others_go_and_none_of_itself(self, clock: FakeClock) -> None:
        store = small(4, clock)
        store.set_many([b"\x001", b"\x002", b"\x003", b"\x004"], [b"v"] * 4)
        store.set_many([b"\x001", b"\x005", b"\x002"], [b"w"] * 3)
        assert keys_of(store) == [b"\x001", b"\x002", b"\x004", b"\x005"]
        assert store.counters.evictions == 1

    def test_a_batch_has_expired_entries_go_before_live_ones(self, clock: FakeClock) -> None:
        store = small(4, clock, expires=True)
        store.set_many([b"\0old"], [b"v"])
        store.set_many([b"\x001", b"\x002"], [b"v", b"v"], 1.0)
        clock.tick(2)
        store.set_many([b"\x002", b"\x003"], [bytes(600), b"v"])
        assert keys_of(store) == [b"\x002", b"\x003", b"\0old"]
        assert store.counters.evictions == 0

    def test_overwriting_a_batch_in_a_full_store_evicts_nothing(self, clock: FakeClock) -> None:
        store = small(100, clock)
        keys = [b"\0%c" % number for number in range(100)]
        store.set_many(keys, [b"v"] * 100)
        for _ in range(3):
            store.set_many(keys[20:80], [b"w"] * 60)
        assert store.counters.evictions == 0
        assert store.used_bytes == store.max_bytes

    def test_what_is_gone_goes_before_what_is_not(self, clock: FakeClock) -> None:
        store = small(600, clock)
        keys = [b"\0%d" % number for number in range(400)]
        store.set(b"\1nold", b"v")
        store.set_many(keys, [b"v"] * 400)
        store.apply(Clear(ROOT))
        store.put(b"\1nnew", bytes(50_000), tags=[b"t"])
        store.apply(InvalidateTag(b"t"))
        store.set(b"\1nnewer", bytes(130_000))
        assert keys_of(store, b"\1n") == [b"\1nnewer", b"\1nold"]
        assert store.counters.evictions == 0


class TestAccounting:
    def test_an_entry_that_expires_costs_more(self, store: Store) -> None:
        store.set(b"\0ke", b"value")
        assert store.used_bytes == entry_cost(b"\0ke", b"value", expires=False) == 8 + ENTRY_OVERHEAD
        store.set(b"\0ke", b"value", 1.0)
        assert store.used_bytes == 8 + ENTRY_OVERHEAD + EXPIRY_OVERHEAD
        store.set_many([b"\0ke", b"\0"], [b"", b"v"])
        assert store.used_bytes == 5 + 2 * ENTRY_OVERHEAD
        store.set_many([b"\0ke", b"\0"], [b"", b"v"], 1.0)
        assert store.used_bytes == 5 + 2 * (ENTRY_OVERHEAD + EXPIRY_OVERHEAD)

    @pytest.mark.parametrize(
        "empty",
        [
            lambda store: store.delete(b"\1nk"),
            lambda store: store.pop(b"\1nk"),
            lambda store: store.apply(Discard(b"\1nk")),
            lambda store: store.apply(Clear(b"\1n")),
            lambda store: [store.apply(InvalidateTag(b"t")), store.reclaim()],
            lambda store: [store.apply(InvalidateTag(b"t")), store.get(b"\1nk"), store.reclaim()],
        ],
    )
    def test_a_namespace_and_a_tag_cost_something_while_they_have_entries(
        self, store: Store, empty: Callable[[Store], object]
    ) -> None:
        for _ in range(3):
            store.put(b"\1nk", b"value", tags=[b"t"])
            entry = entry_cost(b"\1nk", b"value", expires=False, tags=[b"t"])
            assert store.used_bytes == entry + NAMESPACE_OVERHEAD + TAG_BYTES + 1
            empty(store)
            assert store.used_bytes == 0
            assert not store.contents.tags._by_name

    def test_evicting_the_last_entry_of_a_namespace_frees_it(self, clock: FakeClock) -> None:
        store = Store(3000, policy=LRU(), clock=clock)
        for number in range(50):
            store.put(b"\1%cn" % number, bytes(500), tags=[b"t%d" % number])
        assert store.used_bytes <= 3000
        assert sum(space.count for space in store.namespaces) == 1
        assert len(store.contents.tags._by_name) == 1

    def test_what_is_cheap_is_held_as_it_is(self, store: Store) -> None:
        value = b"some value"
        store.set(b"\0one", value)
        store.set_many([b"\0two"], [value])
        store.put(b"\0three", value, condition="absent")
        assert all(held is value for held in store.get_many([b"\0one", b"\0two", b"\0three"], 100))
        assert all(store.namespaces.root.get(key) is value for key in (b"\0one", b"\0two", b"\0three")), (
            "without an object of ours"
        )


class TestKeys:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_what_is_kept_of_long_ones_that_come_again_and_again_is_accounted_for(
        self, clock: FakeClock, policy: str
    ) -> None:
        store = Store(10**9, policy=POLICIES[policy](), clock=clock)

        def again(number: int) -> bytes:
            """An equal key in memory of its own, as each request brings it."""
            return b"\0%05d" % number + bytes(10_000)

        tracemalloc.start()
        try:
            for _ in range(3):
                for number in range(100):
                    store.put(again(number), b"v")
                    store.get(again(number))
                    store.set(again(number), b"v", 99.0)
                    store.put(again(number), b"v", 9.0, tags=[b"t"])
                    store.touch(again(number), 99.0)
                    store.get_with_version(again(number))
                store.get_many([again(number) for number in range(100)], 10**6)
                store.set_many([again(number) for number in range(100)], [b"v"] * 100, 99.0)
            assert tracemalloc.get_traced_memory()[0] < store.used_bytes + 200_000
            store.set_many([again(number) for number in range(100)], [b"v"] * 100)
            assert tracemalloc.get_traced_memory()[0] < store.used_bytes + 200_000
        finally:
            tracemalloc.stop()


class TestBatches:
    def test_an_empty_one_is_fine(self, store: Store) -> None:
        store.set_many([], [])
        assert store.get_many([], 0) == []
        assert store.counters.sets == 0

    @pytest.mark.parametrize("ttl", [None, 2.0])
    @pytest.mark.parametrize("first", [b"\0", b"\1n", LONG], ids=["root", "short", "long"])
    def test_many_sets_at_once_store_the_same_as_one_by_one(self, ttl: float | None, first: bytes) -> None:
        one_by_one, at_once = Store(10**9, clock=FakeClock()), Store(10**9, clock=FakeClock())
        for start in range(0, 5000, 250):  # half of which are there already
            keys = [first + b"%d" % number for number in range(start, start + 500)]
            values = [b"%d" % (start + number) for number in range(500)]
            for key, value in zip(keys, values, strict=True):
                one_by_one.set(key, value, ttl)
            at_once.set_many(keys, values, ttl)
        assert at_once.used_bytes == one_by_one.used_bytes
        assert at_once.counters == one_by_one.counters
        keys = keys_of(one_by_one, first)
        assert keys_of(at_once, first) == keys
        assert len(keys) == len(at_once) == 5250
        assert list(map(at_once.remaining, keys)) == list(map(one_by_one.remaining, keys))
        assert at_once.get_many(keys, 10**9) == list(map(one_by_one.get, keys))

    def test_all_shards_stay_small(self, store: Store) -> None:
        for start in range(0, 30_000, 1000):
            keys = [b"\0%d" % number for number in range(start, start + 1000)]
            store.set_many(keys, [b""] * 1000)
        for number in range(10_000):
            store.set(b"\1n%d" % number, b"")
        for space in store.namespaces:
            assert max(map(len, {id(shard): shard for shard in space.shards}.values())) <= SHARD_KEYS

    def test_keys_of_several_namespaces_may_be_in_one(self, store: Store) -> None:
        keys = [b"\0a", b"\1na", b"\0b", b"\1oa"]
        store.set_many(keys, [b"1", b"2", b"3", b"4"])
        assert store.get_many(keys, 100) == [b"1", b"2", b"3", b"4"]
        assert [space.count for space in store.namespaces] == [2, 1, 1]
        assert [space.hits for space in store.namespaces] == [2, 1, 1]


class TestNamespaces:
    def test_clearing_one_leaves_the_others(self, store: Store) -> None:
        store.set_many([b"\0a", b"\1na", b"\1nb", b"\1oa"], [b"v"] * 4)
        assert store.apply(Clear(b"\1n")) == 2
        assert store.apply(Clear(b"\1n")) == store.apply(Clear(b"\1unknown")) == 0
        assert store.get_many([b"\0a", b"\1na", b"\1nb", b"\1oa"], 100) == [b"v", None, None, b"v"]

    def test_what_is_cleared_is_gone_at_once_and_reclaimed_later(self, store: Store) -> None:
        keys = [b"\0%d" % number for number in range(5000)]
        store.set_many(keys, [b"v"] * 5000)
        store.put(b"\0tagged", b"v", 100.0, tags=[b"t"], stale_seconds=5)
        assert store.apply(Clear(ROOT)) == 5001
        assert len(store) > 4500, "most of it is yet to be reclaimed"
        assert store.get_many(keys, 100) == [None] * 5000
        assert keys_of(store) == []
        assert store.lookup(b"\0tagged").value is None
        assert not store.touch(b"\0tagged", 1.0)
        assert not store.delete(b"\0tagged")
        assert store.put(b"\x001", b"new", condition="present") is False
        reclaim(store)
        assert (len(store), store.used_bytes) == (0, 0)
        assert not store.namespaces.cleared

    @pytest.mark.parametrize("method", ["put", "set", "set_many"])
    def test_a_key_that_is_set_again_before_it_is_reclaimed_stays(
        self, clock: FakeClock, method: str
    ) -> None:
        store = Store(10**9, policy=Audited(LRU()), clock=clock)
        keys = [b"\1n%d" % number for number in range(500)]
        for generation in range(4):
            for key in keys:
                store.put(key, b"old", 10.0 if generation % 2 else None, tags=[b"t"])
            store.apply(Clear(b"\1n"))
        if method == "set_many":
            store.set_many(keys, [b"new"] * 500)
        elif method == "set":
            for key in keys:
                store.set(key, b"new")
        else:
            for key in keys:
                store.put(key, b"new", condition="absent", tags=[b"t"])
        clock.tick(20)
        reclaim(store)
        assert store.get_many(keys, 10**6) == [b"new"] * 500
        assert store.apply(InvalidateTag(b"t")) == (500 if method == "put" else 0)

    def test_clearing_a_few_again_and_again_piles_nothing_up(self, store: Store) -> None:
        for number in range(1000):
            store.set_many([b"\1na", b"\1nb%d" % number], [b"v"] * 2)
            assert store.apply(Clear(b"\1n")) == 2
            assert len(store) == 0
            assert not store.namespaces.cleared

    def test_figures_outlive_a_clear(self, store: Store) -> None:
        store.set(b"\0k", b"v")
        store.get(b"\0k")
        store.apply(Clear(ROOT))
        store.get(b"\0k")
        assert reads_of(store) == (1, 1)

    def test_a_batch_of_a_malformed_key_evicts_nothing_for_a_namespace_that_is_there(self) -> None:
        costs = [entry_cost(key, b"v", expires=False) for key in (b"\0k", b"neither")]
        store = Store(NAMESPACE_OVERHEAD + sum(costs))
        for key in (b"\0k", b"neither"):
            store.set(key, b"v")
        store.set_many([b"neither"], [b"w"])
        assert (store.get(b"\0k"), store.get(b"neither")) == (b"v", b"w")

    def test_namespaces_that_are_empty_are_forgotten_but_not_their_figures(self, store: Store) -> None:
        store.set(b"\1nk", b"v")
        for number in range(5000):
            assert store.get(b"\4%04dk" % number) is None
        assert len(list(store.namespaces)) < 1100
        assert reads_of(store) == (0, 5000)
        assert store.get(b"\1nk") == b"v"
        reset(store)
        assert reads_of(store) == (0, 0)

    @pytest.mark.parametrize("method", ["set", "put", "set_many", "setdefault"])
    def test_one_that_is_new_is_not_forgotten_while_its_first_entry_is_stored(
        self, clock: FakeClock, method: str
    ) -> None:
        store = Store(5_000_000, policy=LRU(), clock=clock)
        for number in range(5000):
            key = b"\4%04dk" % number
            if method == "set_many":
                store.set_many([key, key + b"!"], [b"v"] * 2)
            else:
                getattr(store, method)(key, b"v")
            assert store.get(key) == b"v"
        for number in range(5000):
            key = b"\4%04dk" % number
            assert (store.namespaces.get(key[:5]) is None) <= (store.get(key) is None)
        assert store.used_bytes <= store.max_bytes

    def test_a_key_of_64_kib_is_a_key_and_may_be_mostly_namespace(self, store: Store) -> None:
        for size in (127, 128, 16_383, 16_384, 40_000, 65_000):
            length = [size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]
            if size < 2**14:
                length[1:] = [size >> 7]
            if size < 2**7:
                length = [size]
            namespace = bytes(length) + bytes(size)
            store.put(namespace + b"k", b"v", 9.0, tags=[b"t"])
            store.set_many([namespace + b"l", namespace + b"m"], [b"v", b"v"])
            assert store.page(namespace, namespace + b"k", 0, 10, 10**9) == ([namespace + b"k"], 0)
            assert store.apply(Clear(namespace)) == 3
        assert store.used_bytes == 0


class TestTags:
    def test_all_entries_with_it_are_gone_at_once_and_reclaimed_later(self, store: Store) -> None:
        for number in range(1000):
            tags = [b"even"] if number % 2 == 0 else [b"odd", b"prime"] if number in (3, 5, 7) else None
            store.put(b"\0%d" % number, b"v", tags=tags)
        assert store.apply(InvalidateTag(b"even")) == 500
        assert len(store) == 1000
        assert store.get(b"\x00100") is None
        assert store.get(b"\x00101") == b"v"
        assert keys_of(store) == sorted(b"\0%d" % number for number in range(1, 1000, 2))
        assert store.apply(InvalidateTag(b"even")) == 0
        assert store.apply(InvalidateTag(b"prime")) == 3
        reclaim(store)
        assert len(store) == 497
        assert not store.contents.tags._by_name

    def test_one_that_is_used_again_has_only_its_new_entries(self, store: Store) -> None:
        store.put(b"\0old", b"v", tags=[b"t"])
        store.put(b"\0both", b"v", tags=[b"t"])
        store.apply(InvalidateTag(b"t"))
        store.put(b"\0both", b"w", tags=[b"t"])
        store.put(b"\0new", b"w", tags=[b"t"])
        reclaim(store)
        assert keys_of(store) == [b"\0both", b"\0new"]
        assert store.apply(InvalidateTag(b"t")) == 2

    def test_an_entry_that_is_overwritten_has_it_no_more(self, store: Store) -> None:
        for number in range(4):
            store.put(b"\0%d" % number, b"v", tags=[b"t"])
        store.set(b"\x000", b"w")
        store.set_many([b"\x001"], [b"w"])
        store.put(b"\x002", b"w", KEEP_TTL, tags=[])
        store.put(b"\x003", b"w", KEEP_TTL)
        assert store.apply(InvalidateTag(b"t")) == 1
        assert store.get_many([b"\0%d" % number for number in range(4)], 100) == [b"w", b"w", b"w", None]

    def test_an_entry_is_overwritten_that_is_gone_by_its_tag(self, store: Store) -> None:
        for number in range(4):
            store.put(b"\0%d" % number, b"v", 9.0, tags=[b"t"])
        store.apply(InvalidateTag(b"t"))
        assert store.setdefault(b"\x000", b"w") is None
        store.set_many([b"\x001"], [b"w"])
        assert store.put(b"\x002", b"w", KEEP_TTL, condition="absent")
        assert store.change(b"\x003", lambda value: b"w") is None
        reclaim(store)
        assert keys_of(store) == [b"\x000", b"\x001", b"\x002"]
        assert store.remaining(b"\x002") == math.inf
        assert store.used_bytes == 3 * (3 + ENTRY_OVERHEAD)


class TestVersions:
    def test_every_state_has_its_own(self, store: Store) -> None:
        seen = []

        def note() -> None:
            found = store.get_with_version(b"\0k")
            assert found is not None
            assert store.get_with_version(b"\0k") == found
            seen.append(found[1])

        store.set(b"\0k", b"v")
        note()
        store.set(b"\0k", b"v")
        note()
        store.put(b"\0k", b"v", 9.0, tags=[b"t"])
        note()
        store.put(b"\0k", b"v", KEEP_TTL)
        note()
        store.change(b"\0k", lambda value: value)
        note()
        store.set_many([b"\0k"], [b"v"])
        note()
        store.delete(b"\0k")
        store.set(b"\0k", b"v")
        note()
        store.apply(Clear(ROOT))
        store.set(b"\0k", b"v")
        note()
        assert len(set(seen)) == len(seen) == 8
        assert all(not store.put(b"\0k", b"w", condition=version) for version in seen[:-1])
        assert store.put(b"\0k", b"w", condition=seen[-1])
        assert not store.put(b"\0k", b"x", condition=seen[-1]), "it is another state by now"

    def test_those_of_another_store_begin_elsewhere(self) -> None:
        store = Store(10**9, versions=10**15)
        store.set(b"\0k", b"v")
        assert store.get_with_version(b"\0k") == (b"v", 10**15)

    def test_asking_keeps_the_ttl_and_the_tags(self, store: Store, clock: FakeClock) -> None:
        store.set(b"\0plain", b"v")
        store.set(b"\0brief", b"v", 5.0)
        store.put(b"\0tagged", b"v", tags=[b"t"])
        for key in (b"\0plain", b"\0brief", b"\0tagged"):
            store.get_with_version(key)
        clock.tick(5)
        assert store.get_many([b"\0plain", b"\0brief"], 100) == [b"v", None]
        assert store.apply(InvalidateTag(b"t")) == 1


class TestStaleEntries:
    def test_an_expired_one_is_there_for_those_who_take_it(self, store: Store, clock: FakeClock) -> None:
        store.put(b"\0k", b"v", 5.0, stale_seconds=10.0, load_seconds=0.25)
        found = store.lookup(b"\0k")
        assert (found.value, found.stale, found.remaining, found.load_seconds) == (b"v", False, 5.0, 0.25)
        clock.tick(5)
        reclaim(store)
        found = store.lookup(b"\0k")
        assert (found.value, found.stale) == (b"v", True)
        assert store.get(b"\0k") is None
        assert not store.contains(b"\0k")
        assert keys_of(store) == []
        assert store.page(ROOT, ROOT, 0, 10, 100, stale=True) == ([b"\0k"], 0)
        clock.tick(10)
        assert store.lookup(b"\0k").value is None

    @pytest.mark.parametrize(
        "write",
        [
            lambda store: store.set(b"\0k", b"w"),
            lambda store: store.set_many([b"\0k"], [b"w"]),
            lambda store: store.setdefault(b"\0k", b"w"),
            lambda store: store.put(b"\0k", b"w", condition="absent"),
            lambda store: store.put(b"\0k", b"w", KEEP_TTL),
        ],
    )
    def test_it_is_overwritten_by_a_live_one(
        self, store: Store, clock: FakeClock, write: Callable[[Store], object]
    ) -> None:
        store.put(b"\0k", b"v", 5.0, stale_seconds=10.0, tags=[b"t"])
        clock.tick(5)
        write(store)
        clock.tick(20)
        reclaim(store)
        assert store.get(b"\0k") == b"w"
        assert store.remaining(b"\0k") == math.inf
        assert store.used_bytes == 3 + ENTRY_OVERHEAD

    @pytest.mark.parametrize("method", ["delete", "pop"])
    def test_it_is_deleted_like_a_live_one(self, store: Store, clock: FakeClock, method: str) -> None:
        store.put(b"\0k", b"v", 5.0, stale_seconds=10.0)
        clock.tick(5)
        assert not getattr(store, method)(b"\0k")
        assert store.lookup(b"\0k").value is None
        assert store.counters.deletes == 0

    def test_an_invalid_one_is_gone(self, store: Store, clock: FakeClock) -> None:
        store.put(b"\0k", b"v", 5.0, stale_seconds=10.0, tags=[b"t"])
        clock.tick(5)
        store.apply(InvalidateTag(b"t"))
        assert store.lookup(b"\0k").value is None

    def test_what_never_expires_is_never_stale(self, store: Store) -> None:
        store.put(b"\0k", b"v", stale_seconds=10.0)
        assert store.used_bytes == 3 + ENTRY_OVERHEAD


class TestPartitions:
    def test_the_keys_of_one_are_found_in_all_namespaces(self, store: Store) -> None:
        keys = [prefix + b"%d" % number for number in range(3000) for prefix in (b"\0", b"\1n", b"\1o")]
        for start in range(0, len(keys), 1000):
            store.set_many(keys[start : start + 1000], [b"v"] * 1000)
        for partition in {partition_of(key) for key in keys[:20]}:
            expected = [key for key in keys if partition_of(key) == partition]
            assert sorted(store.partition_keys(partition)) == sorted(expected)

    def test_each_counts_its_mutations(self, store: Store, clock: FakeClock) -> None:
        key, partition = b"\0key", partition_of(b"\0key")

        def counted(change: Callable[[], object]) -> int:
            before = store.mutations_of(partition)
            change()
            return store.mutations_of(partition) - before

        assert counted(lambda: store.set(key, b"v")) == 1
        assert counted(lambda: store.set_many([key, b"\0other"], [b"v", b"v"])) == 1
        assert counted(lambda: store.put(key, b"v", 5.0, tags=[b"t"])) == 1
        assert counted(lambda: store.put(key, b"v", condition="absent")) == 0
        assert counted(lambda: store.change(key, lambda value: value)) == 1
        assert counted(lambda: store.touch(key, 5.0)) == 1
        assert counted(lambda: store.touch(b"\0missing", 5.0)) == 0
        assert counted(lambda: store.get(key)) == 0
        assert counted(lambda: [clock.tick(9), store.get(key)]) == 0, "expiry is no mutation"
        assert counted(lambda: store.delete(key)) == 0, "there was none"
        assert counted(lambda: [store.set(key, b"v"), store.delete(key)]) == 2
        assert counted(lambda: store.apply(Discard(b"\0other"))) == 0
        assert counted(lambda: store.set(b"\0key that is in another partition", b"v")) == 0

    def test_a_mutation_of_all_is_counted_by_each(self, store: Store) -> None:
        store.put(b"\0k", b"v", tags=[b"t"])
        before = [store.mutations_of(partition) for partition in range(PARTITIONS)]
        store.apply(InvalidateTag(b"t"))
        store.set(b"\1nk", b"v")
        store.apply(Clear(b"\1n"))
        after = [store.mutations_of(partition) for partition in range(PARTITIONS)]
        changed = partition_of(b"\1nk")
        assert all(
            new - old == 2 + (number == changed)
            for number, (old, new) in enumerate(zip(before, after, strict=True))
        )


class TestMutations:
    def test_applied_in_order_they_make_an_equal_store(self, clock: FakeClock) -> None:
        """What a store was asked for is noted as mutations, and these are applied to another one."""
        store, copy = Store(10**6, clock=clock), Store(10**6, clock=clock)
        noted: list[Mutation] = []
        executors = store.contents.executors
        for kind, execute in list(executors.items()):

            def note(mutation: Any, execute: Callable[[Any], Any] = execute) -> Any:
                noted.append(mutation)
                return execute(mutation)

            executors[kind] = note
        store.set(b"\0a", b"1")
        store.set(b"\0b", b"2", 5.0)
        store.set_many([b"\0c", b"\0cc"], [b"3", b"4"])
        store.set(b"\1nc", b"4")
        store.put(b"\0d", b"5", 5.0, tags=[b"t"], stale_seconds=3.0, load_seconds=1.0)
        store.put(b"\0a", b"6", condition="absent")
        store.change(b"\0b", lambda value: b"7")
        store.touch(b"\0d", 8.0)
        store.setdefault(b"\0e", b"8", 1.0)
        store.put(b"\0f", b"9", tags=[b"u"])
        store.apply(InvalidateTag(b"u"))
        store.apply(Clear(b"\1n"))
        store.delete(b"\0a")
        store.pop(b"\0c")
        for mutation in noted:
            copy.apply(mutation)
        for each in (store, copy):
            reclaim(each)
        assert keys_of(copy) == keys_of(store) == [b"\0b", b"\0cc", b"\0d", b"\0e"]
        for key in keys_of(store):
            assert copy.lookup(key) == store.lookup(key)
        assert copy.used_bytes == store.used_bytes
        assert [copy.mutations_of(number) for number in range(PARTITIONS)] == [
            store.mutations_of(number) for number in range(PARTITIONS)
        ]
