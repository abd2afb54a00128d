"""The store against a model, and its promises one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyrocache.errors import ValueTooLarge
from pyrocache.node.eviction import LRU
from pyrocache.node.store import ENTRY_OVERHEAD, Store, entry_cost
from pyrocache.testing import FakeClock

KEYS = st.sampled_from([b"a", b"b", b"c", b"dd", b"eeee", b"ffffffff"])
VALUES = st.binary(max_size=300)
TTLS = st.none() | st.sampled_from([0.5, 1.0, 1.5, 10.0])
ROOM = 4 * ENTRY_OVERHEAD + 400


class StoreAgainstModel(RuleBasedStateMachine):
    """The model is a dict in order of use, oldest first, of values and deadlines."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(1000.0)
        self.store = Store(ROOM, clock=self.clock, tick_seconds=0.25)  # which divides all TTLs here
        self.model: dict[bytes, tuple[bytes, float | None]] = {}
        self.versions: list[int] = []

    def expire(self) -> None:
        for key in [k for k, (_, at) in self.model.items() if at is not None and at <= self.clock.now]:
            del self.model[key]

    def held(self) -> int:
        return sum(entry_cost(key, value) for key, (value, _) in self.model.items())

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def set(self, key: bytes, value: bytes, ttl: float | None) -> None:
        self.expire()  # when room is needed, expired entries go first
        self.versions.append(self.store.set(key, value, ttl))
        self.model.pop(key, None)
        self.model[key] = (value, None if ttl is None else self.clock.now + ttl)
        while self.held() > ROOM:
            del self.model[next(iter(self.model))]

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        self.expire()
        expected = self.model.get(key)
        assert self.store.get(key) == (expected[0] if expected else None)
        if expected:
            self.model[key] = self.model.pop(key)

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
        assert self.store.delete(key) == (self.model.pop(key, None) is not None)

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
        entries = self.store._entries
        assert self.store.bytes == sum(entry_cost(key, entry.value) for key, entry in entries.items())
        assert self.store.bytes <= ROOM
        planned = [key for keys in self.store._wheel.values() for key in keys]
        assert sorted(planned) == sorted(k for k, entry in entries.items() if entry.expires_at is not None)
        assert sorted(self.store._ticks) == sorted(self.store._wheel)

    @invariant()
    def versions_only_grow(self) -> None:
        assert self.versions == sorted(set(self.versions))

    @invariant()
    def what_the_model_holds_the_store_holds(self) -> None:
        self.expire()
        live = set(filter(self.live, self.store.keys()))
        assert live == set(self.model)

    def live(self, key: bytes) -> bool:
        at = self.store._entries[key].expires_at
        return at is None or self.clock.now < at


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
    store = Store(3 * entry_cost(b"k", b"v"), clock=clock)
    for key in (b"1", b"2", b"3"):
        store.set(key, b"v")
    store.get(b"1")
    store.contains(b"2")  # looking does not count as use
    store.set(b"4", b"v")
    assert sorted(store.keys()) == [b"1", b"3", b"4"]
    assert store.counters.evictions == 1


def test_expired_entries_go_before_live_ones(clock: FakeClock) -> None:
    store = Store(3 * entry_cost(b"k", b"v"), clock=clock)
    store.set(b"o", b"v")
    store.set(b"x", b"v", 1.0)
    store.set(b"y", b"v")
    clock.tick(2)
    store.set(b"z", b"v")
    assert sorted(store.keys()) == [b"o", b"y", b"z"]
    assert store.counters.evictions == 0


def test_a_value_that_does_not_fit_changes_nothing(clock: FakeClock) -> None:
    store = Store(1000, clock=clock)
    store.set(b"k", b"old")
    before = store.bytes
    with pytest.raises(ValueTooLarge):
        store.set(b"k", bytes(1000))
    assert store.get(b"k") == b"old"
    assert store.bytes == before


def test_a_value_that_grows_evicts_others_and_not_itself(clock: FakeClock) -> None:
    store = Store(3 * entry_cost(b"k", b"v"), clock=clock)
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
