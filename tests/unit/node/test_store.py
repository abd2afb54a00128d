"""The store against a model, and its promises one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyrocache.errors import ValueTooLarge
from pyrocache.node.eviction import LRUTable as LRU
from pyrocache.node.store import ENTRY_OVERHEAD, EXPIRY_OVERHEAD, Expiring, Store, Value, entry_cost
from pyrocache.testing import FakeClock

KEYS = st.sampled_from([b"a", b"b", b"c", b"dd", b"eeee", b"ffffffff"])
VALUES = st.binary(max_size=300) | st.binary(max_size=300).map(memoryview)
TTLS = st.none() | st.sampled_from([0.5, 1.0, 1.5, 10.0])
ROOM = 4 * ENTRY_OVERHEAD + 400


class StoreAgainstModel(RuleBasedStateMachine):
    """The model is a dict in order of use, oldest first, of values and deadlines."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(1000.0)
        self.store = Store(ROOM, clock=self.clock, tick_seconds=0.25)  # which divides all TTLs here
        self.model: dict[bytes, tuple[Value, float | None]] = {}
        self.hits = self.misses = self.deletes = 0

    def expire(self) -> None:
        for key in [k for k, (_, at) in self.model.items() if at is not None and at <= self.clock.now]:
            del self.model[key]

    def held(self) -> int:
        return sum(entry_cost(key, value, expires=at is not None) for key, (value, at) in self.model.items())

    def put(self, key: bytes, value: Value, ttl: float | None) -> None:
        self.model.pop(key, None)
        self.model[key] = (value, None if ttl is None else self.clock.now + ttl)

    def look_up(self, key: bytes) -> Value | None:
        """What a get finds, and what it changes."""
        expected = self.model.get(key)
        if expected is None:
            self.misses += 1
            return None
        self.hits += 1
        self.model[key] = self.model.pop(key)
        return expected[0]

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def set(self, key: bytes, value: Value, ttl: float | None) -> None:
        self.expire()  # when room is needed, expired entries go first
        self.store.set(key, value, ttl)
        self.put(key, value, ttl)
        while self.held() > ROOM:
            del self.model[next(iter(self.model))]

    @rule(entries=st.lists(st.tuples(KEYS, VALUES), max_size=6), ttl=TTLS)
    def set_many(self, entries: list[tuple[bytes, Value]], ttl: float | None) -> None:
        self.expire()
        self.store.set_many([key for key, _ in entries], [value for _, value in entries], ttl)
        for key, value in entries:
            self.put(key, value, ttl)
        others = [key for key in self.model if key not in dict(entries)]
        while self.held() > ROOM and others:
            del self.model[others.pop(0)]
        # Which of the batch itself goes first, if it does not fit, is not the model's to say; no more than need be.
        order = list(filter(dict(entries).__contains__, self.store.keys()))
        if self.held() <= ROOM:
            assert set(order) == dict(entries).keys()
        else:
            gone = [key for key in self.model if key not in order]
            costs = [entry_cost(key, self.model[key][0], expires=ttl is not None) for key in gone]
            assert self.held() - sum(costs) <= ROOM < self.held() - sum(costs) + max(costs)
            for key in gone:
                del self.model[key]
        for key in order:
            self.model[key] = self.model.pop(key)

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        self.expire()
        assert self.store.get(key) == self.look_up(key)

    @rule(keys=st.lists(KEYS, max_size=8), room=st.sampled_from([0, 1, 100, 300, 10**9]))
    def get_many(self, keys: list[bytes], room: int) -> None:
        self.expire()
        expected: list[Value | None] = []
        for key in keys:
            expected.append(self.look_up(key))
            if sum(len(value) for value in expected if value is not None) > room:
                break
        assert self.store.get_many(keys, room) == expected

    @rule(key=KEYS)
    def look(self, key: bytes) -> None:
        self.expire()
        assert self.store.contains(key) == (key in self.model)
        remaining = self.store.remaining(key)
        if key not in self.model:
            assert remaining is None
        else:
            at = self.model[key][1]
            assert remaining == (float("inf") if at is None else at - self.clock.now)

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        self.expire()
        there = self.model.pop(key, None) is not None
        assert self.store.delete(key) == there
        self.deletes += there

    @rule(key=KEYS)
    def discard(self, key: bytes) -> None:
        self.store.discard(key)
        self.model.pop(key, None)
        assert key not in set(self.store.keys())

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 20.0]))
    def tick(self, seconds: float) -> None:
        self.clock.tick(seconds)

    @rule(limit=st.integers(1, 3))
    def sweep(self, limit: int) -> None:
        self.expire()
        while self.store.sweep(limit):
            pass
        assert sorted(self.store.keys()) == sorted(self.model)

    @invariant()
    def bytes_are_exact_and_bounded(self) -> None:
        recount = 0
        for key, held in self.store._entries.items():
            recount += len(key) + ENTRY_OVERHEAD
            recount += EXPIRY_OVERHEAD + len(held.value) if isinstance(held, Expiring) else len(held)
        assert self.store.bytes == recount
        assert self.store.bytes <= ROOM
        assert len(self.store) == len(self.store.keys())

    @invariant()
    def the_wheel_has_what_expires_and_nothing_else(self) -> None:
        expiring = {key: held for key, held in self.store._entries.items() if isinstance(held, Expiring)}
        planned = [key for keys in self.store._wheel.values() for key in keys]
        assert sorted(planned) == sorted(expiring)
        assert sorted(self.store._ticks) == sorted(self.store._wheel)
        for tick, keys in self.store._wheel.items():
            for key in keys:
                assert expiring[key].peers is keys
                assert 0 <= tick * 0.25 - expiring[key].expires_at <= 0.25

    @invariant()
    def what_the_model_holds_the_store_holds(self) -> None:
        self.expire()
        live = list(filter(self.live, self.store.keys()))
        assert live == list(self.model), "in order of use"
        for key, (value, at) in self.model.items():
            held = self.store._entries[key]
            assert isinstance(held, Expiring) == (at is not None)
            assert (held.value if isinstance(held, Expiring) else held) == value

    @invariant()
    def what_happened_is_counted(self) -> None:
        counters = self.store.counters
        assert (counters.hits, counters.misses) == (self.hits, self.misses)
        assert counters.deletes == self.deletes

    def live(self, key: bytes) -> bool:
        held = self.store._entries[key]
        return not isinstance(held, Expiring) or self.clock.now < held.expires_at


TestStoreAgainstModel: Any = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(50.0)


@pytest.fixture
def store(clock: FakeClock) -> Store:
    return Store(10**9, clock=clock)


def test_an_entry_is_expired_in_the_very_instant(store: Store, clock: FakeClock) -> None:
    store.set(b"k", b"v", 2.0)
    clock.tick(1.999)
    assert store.get(b"k") == b"v"
    clock.now = 52.0
    assert store.get(b"k") is None
    assert store.counters.expirations == 1


def test_overwriting_replaces_the_ttl(store: Store, clock: FakeClock) -> None:
    store.set(b"k", b"v", 1.0)
    store.set(b"k", b"w")
    clock.tick(100)
    assert not store.sweep()
    assert store.get(b"k") == b"w"


def test_the_least_recently_used_goes_first(clock: FakeClock) -> None:
    store = Store(3 * entry_cost(b"k", b"v", expires=False), clock=clock)
    for key in (b"1", b"2", b"3"):
        store.set(key, b"v")
    store.get(b"1")
    store.contains(b"2")  # looking does not count as use
    store.set(b"4", b"v")
    assert sorted(store.keys()) == [b"1", b"3", b"4"]
    assert store.counters.evictions == 1


def test_expired_entries_go_before_live_ones(clock: FakeClock) -> None:
    room = entry_cost(b"k", b"v", expires=False) + 3 * entry_cost(b"k", b"v", expires=True)
    store = Store(room, clock=clock)
    store.set(b"o", b"v")
    store.set(b"x", b"v", 1.0)
    store.set(b"y", bytes(EXPIRY_OVERHEAD + 1))
    clock.tick(2)
    store.set(b"z", bytes(EXPIRY_OVERHEAD + 1))
    assert store.counters.evictions == 0
    assert store.counters.expirations == 0, "there was room enough"
    store.set(b"w", b"v")
    assert sorted(store.keys()) == [b"o", b"w", b"y", b"z"]
    assert store.counters.evictions == 0
    assert store.counters.expirations == 1


def test_a_value_that_does_not_fit_changes_nothing(clock: FakeClock) -> None:
    store = Store(1000, clock=clock)
    store.set(b"k", b"old")
    before = store.bytes
    with pytest.raises(ValueTooLarge):
        store.set(b"k", bytes(1000))
    assert store.get(b"k") == b"old"
    assert store.bytes == before


def test_a_value_that_grows_evicts_others_and_not_itself(clock: FakeClock) -> None:
    store = Store(3 * entry_cost(b"k", b"v", expires=False), clock=clock)
    for key in (b"1", b"2", b"3"):
        store.set(key, b"v")
    store.set(b"1", bytes(ENTRY_OVERHEAD))
    assert store.get(b"1") == bytes(ENTRY_OVERHEAD)
    assert store.bytes <= store.max_bytes


def test_sweeping_costs_what_has_expired_and_not_what_is_there(clock: FakeClock) -> None:
    store = Store(10**9, clock=clock)
    for number in range(1000):
        store.set(b"live%d" % number, b"v", 1e6)
    for number in range(25):
        store.set(b"dead%d" % number, b"v", 1.0)
    clock.tick(2)
    assert store.sweep(10) is True
    assert len(store) == 1015
    while store.sweep(10):
        pass
    assert len(store) == 1000


def test_overwriting_with_a_ttl_does_not_pile_up_anything(store: Store, clock: FakeClock) -> None:
    for number in range(5000):
        store.set(b"session", b"v", 3600.0)
        clock.tick(0.001)
        store.set(b"%d" % number, b"v", 3600.0)
        store.delete(b"%d" % number)
    assert len(store._ticks) == len(store._wheel) < 20
    assert sum(map(len, store._wheel.values())) == 1


def test_a_ttl_of_centuries_is_fine(store: Store, clock: FakeClock) -> None:
    store.set(b"k", b"v", 1e300)
    clock.tick(1e9)
    assert store.sweep() is False
    assert store.get(b"k") == b"v"


def test_lru_has_no_victim_when_empty() -> None:
    with pytest.raises(LookupError):
        LRU().victim()


def test_an_entry_that_expires_costs_more(store: Store) -> None:
    store.set(b"key", b"value")
    assert store.bytes == entry_cost(b"key", b"value", expires=False) == 8 + ENTRY_OVERHEAD
    store.set(b"key", b"value", 1.0)
    assert store.bytes == entry_cost(b"key", b"value", expires=True) == 8 + ENTRY_OVERHEAD + EXPIRY_OVERHEAD
    store.set_many([b"key", b"k"], [b"", b"v"])
    assert store.bytes == 5 + 2 * ENTRY_OVERHEAD
    store.set_many([b"key", b"k"], [b"", b"v"], 1.0)
    assert store.bytes == 5 + 2 * (ENTRY_OVERHEAD + EXPIRY_OVERHEAD)


def test_a_value_that_fits_for_good_may_not_fit_with_a_ttl(clock: FakeClock) -> None:
    store = Store(entry_cost(b"k", b"value", expires=False), clock=clock)
    store.set(b"k", b"value")
    with pytest.raises(ValueTooLarge):
        store.set(b"k", b"value", 1.0)
    assert store.get(b"k") == b"value"
    assert store.remaining(b"k") == float("inf")


def test_what_is_cheap_is_held_as_it_is(store: Store) -> None:
    value = b"some value"
    store.set(b"one", value)
    store.set_many([b"two"], [value])
    assert store.get(b"one") is store.get(b"two") is store.get_many([b"one"], 10)[0] is value


ENTRIES = st.lists(st.tuples(KEYS, VALUES), max_size=8)


def set_both_ways(
    before: list[tuple[bytes, Value]], entries: list[tuple[bytes, Value]], ttl: float | None
) -> tuple[Store, Store]:
    """Two stores with the same entries, after the same sets: one by one, and at once."""
    one_by_one, at_once = Store(10**9, clock=FakeClock()), Store(10**9, clock=FakeClock())
    for store in (one_by_one, at_once):
        for number, (key, value) in enumerate(before):
            store.set(key, value, 2.0 if number % 2 else None)
    for key, value in entries:
        one_by_one.set(key, value, ttl)
    at_once.set_many([key for key, _ in entries], [value for _, value in entries], ttl)
    return one_by_one, at_once


@given(ENTRIES, ENTRIES, TTLS)
def test_many_sets_at_once_store_the_same_as_one_by_one(
    before: list[tuple[bytes, Value]], entries: list[tuple[bytes, Value]], ttl: float | None
) -> None:
    one_by_one, at_once = set_both_ways(before, entries, ttl)
    keys = sorted(one_by_one.keys())
    assert sorted(at_once.keys()) == keys
    assert at_once.bytes == one_by_one.bytes
    assert list(map(at_once.remaining, keys)) == list(map(one_by_one.remaining, keys))
    assert at_once.get_many(keys, 10**9) == list(map(one_by_one.get, keys))


@given(ENTRIES, ENTRIES, TTLS)
def test_many_sets_at_once_are_as_recent_as_one_by_one(
    before: list[tuple[bytes, Value]], entries: list[tuple[bytes, Value]], ttl: float | None
) -> None:
    one_by_one, at_once = set_both_ways(before, entries, ttl)
    assert at_once.keys() == one_by_one.keys()


@given(ENTRIES, ENTRIES, TTLS)
def test_many_sets_at_once_count_like_one_by_one(
    before: list[tuple[bytes, Value]], entries: list[tuple[bytes, Value]], ttl: float | None
) -> None:
    one_by_one, at_once = set_both_ways(before, entries, ttl)
    assert at_once.counters == one_by_one.counters


def test_a_batch_that_does_not_fit_leaves_its_latest(clock: FakeClock) -> None:
    store = Store(3 * entry_cost(b"k", b"v", expires=False), clock=clock)
    store.set_many([b"1", b"2"], [b"v", b"v"])
    store.set_many([b"3", b"1", b"4", b"5"], [b"w"] * 4)
    assert sorted(store.keys()) == [b"1", b"4", b"5"]
    assert store.counters.evictions == 2


def test_a_batch_has_expired_entries_go_before_live_ones(clock: FakeClock) -> None:
    store = Store(4 * entry_cost(b"k", b"v", expires=True), clock=clock)
    store.set_many([b"old"], [b"v"])
    store.set_many([b"1", b"2"], [b"v", b"v"], 1.0)
    clock.tick(2)
    store.set_many([b"2", b"3"], [bytes(600), b"v"])
    assert sorted(store.keys()) == [b"2", b"3", b"old"]
    assert store.counters.evictions == 0


def test_overwriting_batches_with_a_ttl_does_not_pile_up_anything(store: Store, clock: FakeClock) -> None:
    for _ in range(3000):
        store.set_many([b"one", b"two", b"one"], [b"v", b"w", b"x"], 3600.0)
        clock.tick(0.001)
    assert len(store._ticks) == len(store._wheel) < 20
    assert sum(map(len, store._wheel.values())) == 2


def test_another_policy_decides_who_goes(clock: FakeClock) -> None:
    class FirstIn(dict[bytes, Any]):
        def used(self, key: bytes, /) -> None:
            assert key in self

        def victim(self) -> bytes:
            return next(iter(self))

    store = Store(3 * entry_cost(b"k", b"v", expires=False), policy=FirstIn(), clock=clock)
    store.set_many([b"1", b"2", b"3"], [b"v"] * 3)
    store.get(b"1")
    store.get_many([b"1", b"no"], 100)
    store.set(b"1", b"w")
    store.set(b"4", b"v")
    assert store.keys() == [b"2", b"3", b"4"]


def test_lru_knows_what_was_used() -> None:
    lru: LRU[int] = LRU()
    lru[b"1"], lru[b"2"], lru[b"3"] = 1, 2, 3
    assert lru.victim() == b"1"
    assert lru.victim() == b"1", "it stays until it is deleted"
    assert lru.get(b"1") == 1
    assert lru.victim() == b"1", "looking is no use"
    lru.used(b"1")
    assert lru.victim() == b"2"
    del lru[b"2"]
    assert (lru.victim(), len(lru), list(lru)) == (b"3", 2, [b"3", b"1"])
