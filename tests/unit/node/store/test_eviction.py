"""What is promised of each eviction policy, and how each of them differs from the others."""

from __future__ import annotations

import random
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.config import DEFAULT_EVICTION, EVICTION_POLICIES
from pyrocache.node.store.eviction import DEFAULT_POLICY, LRU, POLICIES, S3FIFO, EvictionPolicy

all_policies = pytest.mark.parametrize("policy", POLICIES)


class ExactLRU:
    """The order of use and nothing else: what the others are measured by."""

    def __init__(self) -> None:
        self._order: OrderedDict[bytes, None] = OrderedDict()

    def added(self, key: bytes) -> None:
        self._order[key] = None

    def used(self, key: bytes) -> None:
        self._order.move_to_end(key)

    def victim(self) -> bytes:
        return self._order.popitem(last=False)[0]


class Cache:
    """A cache of keys without values under one policy."""

    def __init__(self, policy: EvictionPolicy | ExactLRU, capacity: int) -> None:
        self.policy = policy
        self.capacity = capacity
        self.held: set[bytes] = set()

    def access(self, key: bytes) -> bool:
        """Whether it is a hit; a miss stores the key."""
        if key in self.held:
            self.policy.used(key)
            return True
        while len(self.held) >= self.capacity:
            self.held.remove(self.policy.victim())
        self.held.add(key)
        self.policy.added(key)
        return False

    def hits(self, keys: Iterable[bytes]) -> int:
        """How many of the accesses are hits."""
        return sum(map(self.access, keys))


def drain(policy: EvictionPolicy) -> list[bytes]:
    """All keys, in the order in which they are evicted."""
    victims = []
    while True:
        try:
            victims.append(policy.victim())
        except LookupError:
            return victims


def numbered(letter: str, start: int, stop: int) -> list[bytes]:
    return [f"{letter}{number}".encode() for number in range(start, stop)]


def popular(count: int, accesses: int, seed: int = 1) -> list[bytes]:
    """Accesses by Zipf's law: frequency is what counts."""
    weights = [1 / (rank + 1) ** 0.9 for rank in range(count)]
    return random.Random(seed).choices(numbered("z", 0, count), weights, k=accesses)


def passing(count: int, within: float, seed: int = 1) -> list[bytes]:
    """Keys that come twice, the second time ``within`` so many new ones, and never again: recency counts."""
    draw = random.Random(seed)
    places = [(number + part * draw.random() * within, number) for number in range(count) for part in (0, 1)]
    return [b"p%d" % number for _, number in sorted(places)]


# What is promised of all -----------------------------------------------------------------------------------


def test_their_names() -> None:
    assert {name: make().name for name, make in POLICIES.items()} == {name: name for name in POLICIES}
    assert set(POLICIES) == set(EVICTION_POLICIES)
    assert DEFAULT_POLICY == DEFAULT_EVICTION


numbers = st.integers(0, 30)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["add", "use", "remove"]), st.lists(numbers, max_size=12, unique=True)),
        st.tuples(st.just("evict"), st.just([])),
    ),
    max_size=100,
)


@all_policies
@given(steps=steps, together=st.booleans())
def test_victims_are_the_keys_that_are_held_each_once(
    policy: str, steps: list[tuple[str, list[int]]], together: bool
) -> None:
    order = POLICIES[policy]()
    held: set[bytes] = set()
    for verb, which in steps:
        keys = [b"%d" % number for number in which]
        new, here = [key for key in keys if key not in held], [key for key in keys if key in held]
        if verb == "add":
            if together:
                order.added_many(new)
            else:
                for key in new:
                    order.added(key)
            held.update(new)
        elif verb == "use":
            if together:
                order.used_many(here)
            else:
                for key in here:
                    order.used(key)
        elif verb == "remove":
            for key in here:
                order.removed(key)
            held.difference_update(here)
        elif held:
            held.remove(order.victim())
        else:
            with pytest.raises(LookupError):
                order.victim()
    victims = drain(order)
    assert len(victims) == len(held)
    assert set(victims) == held


@all_policies
@pytest.mark.full
def test_it_takes_few_bytes_though_all_keys_were_used(policy: str) -> None:
    count = 85_000  # a dict is as large as with 170,000: the worst case
    keys, more = numbered("k", 0, count), numbered("n", 0, count // 2)
    tracemalloc.start()
    try:
        order = POLICIES[policy]()
        for start in range(0, count, 1000):
            order.added_many(keys[start : start + 1000])
        order.used_many(keys)
        for key in more:
            order.victim()
            order.added(key)
        order.used_many(more)
        assert tracemalloc.get_traced_memory()[0] <= 90 * count
    finally:
        tracemalloc.stop()


@all_policies
@pytest.mark.full
def test_no_call_moves_much_memory_however_many_keys_there_are(policy: str) -> None:
    """As the growth of one large table would, which takes the longer the more keys there are."""
    order = POLICIES[policy]()
    most = 0

    def measured(call: Callable[[], object]) -> None:
        nonlocal most
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        most = max(most, tracemalloc.get_traced_memory()[1] - before)

    keys = numbered("k", 0, 30_000)
    tracemalloc.start()
    try:
        for key in keys:
            measured(partial(order.added, key))
        for key in keys:
            measured(partial(order.used, key))
        for key in numbered("n", 0, 30_000):
            measured(order.victim)
            measured(partial(order.added, key))
            measured(partial(order.used, key))
    finally:
        tracemalloc.stop()
    assert most <= 600_000


@contextmanager
def calls_counted() -> Iterator[list[int]]:
    """Counts calls of functions: work, by a measure that does not depend on the machine."""
    counts = [0]

    def count(_frame: object, event: str, _argument: object) -> None:
        counts[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield counts
    finally:
        sys.setprofile(None)


@all_policies
@pytest.mark.parametrize("uses", [1, 3])
def test_no_eviction_has_much_to_do_though_all_keys_were_used(policy: str, uses: int) -> None:
    order = POLICIES[policy]()
    keys = numbered("k", 0, 20_000)
    for start in range(0, 20_000, 1000):
        order.added_many(keys[start : start + 1000])
    for _ in range(uses):
        order.used_many(keys)
    most = 0
    for key in numbered("n", 0, 200):
        with calls_counted() as counts:
            order.victim()
            order.added(key)
        most = max(most, counts[0])
    assert most < 3000


def test_a_key_that_was_removed_and_comes_again_is_one_that_was_used() -> None:
    order = LRU()
    keys = numbered("k", 0, 1000)
    order.added_many(keys)
    for key in keys[:10]:
        order.removed(key)
    order.added(keys[5])
    victims = drain(order)
    assert len(victims) == 991
    assert victims.index(keys[5]) > 900


# Each of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [50, 500, 2000])
def test_lru_has_as_many_hits_as_if_it_was_exact(capacity: int) -> None:
    for keys in (popular(5000, 40_000), passing(10_000, capacity / 2)):
        exact = Cache(ExactLRU(), capacity).hits(keys)
        assert Cache(LRU(), capacity).hits(keys) == pytest.approx(exact, rel=0.01)


def test_lru_evicts_in_the_order_of_use_to_the_precision_of_an_epoch() -> None:
    order = LRU()
    keys = numbered("k", 0, 3200)
    order.added(b"first")
    order.added_many(keys)
    assert order.victim() == b"first"  # before that, nobody asks for the order
    random.Random(1).shuffle(keys)
    for key in keys:
        order.used(key)
    place = {key: number for number, key in enumerate(keys)}
    off = sorted(abs(place[key] - number) for number, key in enumerate(drain(order)))
    # Two epochs, and what one eviction leaves to the next ones; of some keys the use is forgotten.
    assert off[len(off) * 8 // 10] <= 200 + 128


def test_s3fifo_lets_pass_what_is_used_once() -> None:
    cache = Cache(S3FIFO(), 320)
    good = numbered("g", 0, 120)  # as many as one eviction may move
    for number in range(10):
        cache.hits(good)
        cache.hits(numbered("x", 10 * number, 10 * number + 10))
    assert len(cache.held.intersection(good)) >= 112, "two keys may share a slot of the use table"
    cache.hits(numbered("s", 0, 5000))
    assert len(cache.held.intersection(good)) >= 112


def test_s3fifo_knows_who_comes_again() -> None:
    cache = Cache(S3FIFO(), 400)
    cache.hits(numbered("s", 0, 700))
    again = numbered("s", 250, 300)  # evicted by now
    assert cache.held.isdisjoint(again)
    cache.hits(again)
    cache.hits(numbered("t", 0, 5000))
    assert len(cache.held.intersection(again)) >= 40  # two keys may have shared a place
