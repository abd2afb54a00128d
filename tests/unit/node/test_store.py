"""The store against a model, under every eviction policy, and its promises one by one."""

from __future__ import annotations

import math
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

from pyrocache.cluster.wire import KEEP_TTL
from pyrocache.errors import ValueTooLarge
from pyrocache.node.entries import (
    DETAILS_OVERHEAD,
    ENTRY_OVERHEAD,
    EXPIRY_OVERHEAD,
    TAG_OVERHEAD,
    Detailed,
    Expiring,
    Held,
    Value,
    entry_cost,
    value_of,
)
from pyrocache.node.eviction import POLICIES, EvictionPolicy
from pyrocache.node.namespaces import NAMESPACE_OVERHEAD, ROOT, Namespace
from pyrocache.node.store import TAG_BYTES, Counters, Store
from pyrocache.node.table import SHARD_KEYS
from pyrocache.testing import FakeClock

LONG = b"\xc8\x01" + 200 * b"n"  # a namespace whose length takes two bytes
KEYS = [b"\0a", b"\0b", b"\0c", b"\0dddd", b"\x01na", b"\x01nb", LONG + b"k", b"neither", b"\0"]
NAMESPACES = [ROOT, b"\x01n", LONG, b"", b"\x01x"]
TAGS = [b"\0t", b"\0u", b"\x01nt"]

keys = st.sampled_from(KEYS)
values = st.binary(max_size=300) | st.binary(max_size=300).map(memoryview)
ttls = st.none() | st.sampled_from([0.5, 1.0, 1.5, 10.0])
tag_lists = st.none() | st.lists(st.sampled_from(TAGS), max_size=3)

MOST_COST = (  # of one entry, with all tags there are
    *(len(LONG), 1, 300, ENTRY_OVERHEAD, EXPIRY_OVERHEAD, DETAILS_OVERHEAD, NAMESPACE_OVERHEAD),
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

    def clear(self) -> None:
        self.order.clear()


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

    def clear(self) -> None:
        self.held.clear()
        self.policy.clear()


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
        cost = len(key) + len(self.value) + ENTRY_OVERHEAD
        cost += EXPIRY_OVERHEAD * (self.expires_at < math.inf)
        return cost + self.detailed * (DETAILS_OVERHEAD + TAG_OVERHEAD * len(self.tags))


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
        self.store = Store(self.ROOM, policy=self.policy, clock=self.clock, tick_seconds=0.25)
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
        if self.policy.victims:
            assert set(self.policy.victims) <= set(keep), "no more go than have to"
            self.policy.victims.clear()

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
        assert self.store.get(key) == (entry and entry.value)

    @rule(asked=st.lists(keys, max_size=8), room=st.sampled_from([0, 1, 100, 300, 10**9]))
    def get_many(self, asked: list[bytes], room: int) -> None:
        expected: list[Value | None] = []
        for key in asked:
            entry = self.looked_up(key)
            expected.append(entry and entry.value)
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
            assert found.value == (stale and stale.value)
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
        assert self.store.setdefault(key, value, ttl) == (entry and entry.value)
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
        assert self.store.pop(key) == (entry and entry.value)
        self.gone(key)
        self.counters.deletes += entry is not None

    @rule(key=keys)
    def discard(self, key: bytes) -> None:
        self.store.discard(key)
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
        beside = entry_cost(key, b"", expires=ttl is not None, details=bool(names), tags=len(names))
        beside += sum(len(name) + TAG_BYTES for name in names)
        beside += NAMESPACE_OVERHEAD * (namespace_of(key) != ROOT)
        bytes_before = self.store.bytes
        too_large = bytes(self.ROOM - beside + 1)
        store = partial(self.store.put, tags=tags) if put else self.store.set
        with pytest.raises(ValueTooLarge):
            store(key, too_large, ttl)
        if gone:
            assert self.store.bytes <= bytes_before
        else:
            assert self.store.bytes == bytes_before

    # All of them -----------------------------------------------------------------------------------------

    @rule(namespace=st.sampled_from(NAMESPACES))
    def clear(self, namespace: bytes) -> None:
        self.leave()
        known = self.store.namespaces.get(namespace)
        held = sum(map(len, known.parts())) if known is not None else 0
        ours = [key for key in self.model if namespace_of(key) == namespace]
        assert len(ours) <= self.store.clear(namespace) == held
        for key in ours:
            self.gone(key)

    @rule(tag=st.sampled_from(TAGS))
    def invalidate(self, tag: bytes) -> None:
        self.leave()
        ours = [key for key, entry in self.model.items() if tag in entry.tags]
        assert len(ours) <= self.store.invalidate(tag)
        for key in ours:
            self.gone(key)
        assert self.store.invalidate(tag) == 0

    @rule(limit=st.integers(1, 3))
    def sweep(self, limit: int) -> None:
        self.store.sweep(limit)

    @rule(limit=st.integers(1, 3))
    def sweep_all(self, limit: int) -> None:
        self.leave()
        while self.store.sweep(limit):
            pass
        assert len(self.store) == len(self.model)
        assert self.store.bytes == self.held()
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
        self.store.reset_counters()
        self.counters = Counters()
        self.hits.clear()
        self.misses.clear()

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 20.0]))
    def tick(self, seconds: float) -> None:
        self.clock.tick(seconds)

    # What is true at all times ---------------------------------------------------------------------------

    def spaces(self) -> list[Namespace]:
        return [*self.store.namespaces, *chain.from_iterable(self.store.namespaces.cleared.values())]

    def everything(self) -> list[tuple[Namespace, bytes, Held]]:
        return [
            (space, key, held)
            for space in self.spaces()
            for shard in space.parts()
            for key, held in shard.items()
        ]

    @invariant()
    def bytes_are_exact_and_bounded(self) -> None:
        recount = sum(recounted(key, held) for _, key, held in self.everything())
        tags = [*self.store._tags.values(), *self.store._invalid]
        recount += sum(len(tag.name) + TAG_BYTES for tag in tags)
        recount += sum(NAMESPACE_OVERHEAD for space in self.spaces() if space.count and space.prefix != ROOT)
        assert self.store.bytes == recount
        assert self.store.bytes <= self.ROOM
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
            assert space.unsure == sum(isinstance(held, Expiring) for _, held in there)
        waiting = [space for space, _ in self.store._cleared]
        assert sorted(map(id, waiting)) == sorted(
            id(space) for space in chain.from_iterable(self.store.namespaces.cleared.values())
        )

    @invariant()
    def the_wheel_has_what_leaves_and_nothing_else(self) -> None:
        wheel = self.store._wheel
        leaving = {
            key: held
            for _, key, held in self.everything()
            if isinstance(held, Expiring) and held.peers is not None
        }
        assert sorted(key for keys in wheel._wheel.values() for key in keys) == sorted(leaving)
        assert sorted(wheel._ticks) == sorted(wheel._wheel)
        for tick, peers in wheel._wheel.items():
            for key in peers:
                held = leaving[key]
                leaves_at = held.expires_at
                if isinstance(held, Detailed):
                    leaves_at = max(leaves_at, held.stale_until)
                assert held.peers is peers
                assert 0 <= tick * 0.25 - leaves_at <= 0.25

    @invariant()
    def tags_have_the_keys_that_have_them_and_nothing_else(self) -> None:
        tagged: dict[int, Any] = {}
        for _, key, held in self.everything():
            for tag in held.tags if isinstance(held, Detailed) else ():
                tagged.setdefault(id(tag), set()).add(key)
        valid, invalid = list(self.store._tags.values()), list(self.store._invalid)
        assert all(tag.keys == tagged.pop(id(tag), set()) for tag in valid + invalid)
        assert not tagged
        assert all(tag.keys and not tag.invalid for tag in valid)
        assert all(tag.invalid for tag in invalid)
        assert all(self.store._tags[tag.name] is tag for tag in valid)

    @invariant()
    def what_the_model_holds_the_store_holds(self) -> None:
        self.leave()
        assert not self.policy.victims, "nothing was evicted that need not be"
        for key, entry in self.model.items():
            held = self.store.namespaces.of(key).get(key)
            assert held is not None
            assert value_of(held) == entry.value
            assert isinstance(held, Detailed) == entry.detailed
            assert isinstance(held, Expiring) == (entry.detailed or entry.expires_at < math.inf)

    @invariant()
    def what_happened_is_counted(self) -> None:
        counters = self.store.counters
        counted = Counters(counters.sets, counters.deletes, counters.evictions)
        assert counted == self.counters
        assert self.store.hits == self.hits.total()
        assert self.store.misses == self.misses.total()
        for space in self.store.namespaces:
            assert (space.hits, space.misses) == (self.hits[space.prefix], self.misses[space.prefix])


def namespace_of(key: bytes) -> bytes:
    """What `prefix_of` should say."""
    return next((prefix for prefix in (ROOT, b"\x01n", LONG) if key.startswith(prefix)), b"")


def recounted(key: bytes, held: Held) -> int:
    """What an entry is accounted for, from what is held."""
    cost = len(key) + len(value_of(held)) + ENTRY_OVERHEAD
    if isinstance(held, Expiring) and held.expires_at < math.inf:
        cost += EXPIRY_OVERHEAD
    if isinstance(held, Detailed):
        cost += DETAILS_OVERHEAD + TAG_OVERHEAD * len(held.tags)
    return cost


EXAMPLES = settings(max_examples=150, stateful_step_count=50, deadline=None)


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

    run_state_machine_as_test(Machine, settings=EXAMPLES)
