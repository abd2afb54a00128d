"""The simulation of caches: against exact ones, and bounds against whatever can be done at all."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lab.simulation import Workload, spread
from pyrocache.client.keys.encoding import encode_key
from pyrocache.node.store.entry import ENTRY_OVERHEAD
from pyrocache.node.store.eviction import LRU, POLICIES

few_keys = st.lists(st.integers(0, 5), min_size=1, max_size=12)
sizes = st.lists(st.integers(0, 4), min_size=6, max_size=6)
policies = pytest.mark.parametrize("policy", POLICIES)


def of(keys: Sequence[int], sizes: Sequence[int] | None = None) -> Workload:
    return Workload((key, None if sizes is None else sizes[key]) for key in keys)


def skewed(count: int, keys: int, seed: int = 7) -> list[int]:
    weights = [1 / (rank + 10) for rank in range(keys)]
    return random.Random(seed).choices(range(keys), weights, k=count)


def lru_hits(accesses: Sequence[int], capacity: int) -> int:
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in accesses:
        hits += key in held
        held[key] = None
        held.move_to_end(key)
        if len(held) > capacity:
            held.popitem(last=False)
    return hits


def most_hits(keys: Sequence[int], costs: Sequence[int], capacity: int) -> int:
    """By trying whatever a cache might keep after each access."""

    @cache
    def best(place: int, held: frozenset[int]) -> int:
        if place == len(keys):
            return 0
        there = held | {keys[place]}
        kept = (frozenset(some) for size in range(len(there) + 1) for some in combinations(there, size))
        rest = max(best(place + 1, some) for some in kept if sum(costs[key] for key in some) <= capacity)
        return (keys[place] in held) + rest

    return best(0, frozenset())


# The workload ----------------------------------------------------------------------------------------------


def test_entries() -> None:
    workload = of([1, 2, 1, 3])
    assert (len(workload), workload.distinct, workload.footprint) == (4, 3, 3)
    assert workload.keys[0] is workload.keys[2]
    assert workload.costs is None


def test_bytes_are_those_that_a_node_accounts_for() -> None:
    workload = Workload([("a", 10), ("b", 20), ("a", 30)])
    overhead = ENTRY_OVERHEAD + len(encode_key("a"))
    assert workload.costs is not None
    assert list(workload.costs) == [overhead + 10, overhead + 20, overhead + 30]
    assert workload.footprint == 2 * overhead + 50


def test_progress_is_told_of_each_access() -> None:
    told: list[int] = []
    workload = Workload(((key % 100, None) for key in range(40_000)), told.append)
    assert sum(told) == 40_000
    for simulate in (
        lambda: workload.hits(LRU(), 10, told.append),
        lambda: workload.best_by_count(10, told.append),
    ):
        told.clear()
        simulate()
        assert sum(told) == 40_000
        assert len(told) > 1


@pytest.mark.parametrize("distinct", [1, 2, 3, 10, 187_000])
def test_default_capacities_lie_below_the_footprint(distinct: int) -> None:
    capacities = spread(of(range(distinct)))
    assert capacities == sorted(set(capacities))
    assert 1 <= len(capacities) <= 8
    assert distinct / 4 <= capacities[-1] <= distinct


def test_default_capacities_in_bytes() -> None:
    workload = Workload((key, 1000) for key in range(1000))
    capacities = spread(workload)
    assert workload.footprint / 2 <= capacities[-1] < workload.footprint
    assert spread(Workload([(1, 1)])) == [Workload([(1, 1)]).footprint]


# Policies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [100, 500, 2000])
def test_lru_is_close_to_an_exact_one(capacity: int) -> None:
    accesses = skewed(30_000, 5000)
    found = of(accesses).hits(LRU(), capacity)
    assert found / len(accesses) == pytest.approx(lru_hits(accesses, capacity) / len(accesses), abs=0.01)


@policies
def test_room_for_all(policy: str) -> None:
    accesses = skewed(2000, 100)
    workload = of(accesses)
    assert workload.hits(POLICIES[policy](), workload.footprint) == 2000 - workload.distinct
    sized = Workload((key, key) for key in accesses)
    assert sized.hits(POLICIES[policy](), sized.footprint) == 2000 - sized.distinct
    assert sized.at_most_by_bytes([sized.footprint]) == [2000 - sized.distinct]


@policies
def test_equal_sizes_are_like_none(policy: str) -> None:
    accesses = [1000 + key for key in skewed(5000, 500)]
    sized = Workload((key, 50) for key in accesses)
    assert sized.costs is not None
    cost = sized.costs[0]
    assert set(sized.costs) == {cost}
    by_bytes = sized.hits(POLICIES[policy](), 100 * cost + cost - 1)
    assert by_bytes == of(accesses).hits(POLICIES[policy](), 100)


@policies
def test_what_fits_nowhere_is_not_stored_and_pushes_nothing_out(policy: str) -> None:
    workload = Workload([("a", 10), ("huge", 10**9), ("a", 10), ("huge", 10**9)])
    assert workload.hits(POLICIES[policy](), 1000) == 1


@policies
def test_as_many_victims_as_it_takes(policy: str) -> None:
    small = [(name, 10) for name in "abcdefgh"]
    cost = Workload(small[:1]).footprint
    big = ("z", 7 * cost - ENTRY_OVERHEAD - len(encode_key("z")))
    workload = Workload([*small, big, big, *reversed(small)])
    assert workload.hits(POLICIES[policy](), 8 * cost) in (1, 2)  # the big one, and what is still beside it


# Bounds ----------------------------------------------------------------------------------------------------


@given(few_keys, st.integers(1, 4))
def test_the_best_possible_is_the_best_of_all_ways(keys: list[int], capacity: int) -> None:
    assert of(keys).best_by_count(capacity) == most_hits(keys, [1] * 6, capacity)


@policies
@given(keys=st.lists(st.integers(0, 30), min_size=1, max_size=300), capacity=st.integers(1, 20))
def test_no_policy_is_above_the_best_possible(policy: str, keys: list[int], capacity: int) -> None:
    workload = of(keys)
    assert workload.hits(POLICIES[policy](), capacity) <= workload.best_by_count(capacity)


@given(few_keys, sizes, st.integers(1, 8))
def test_the_bound_by_bytes_is_one(keys: list[int], sizes: list[int], room: int) -> None:
    sizes = [200 * size for size in sizes]
    costs = [size + ENTRY_OVERHEAD + len(encode_key(key)) for key, size in enumerate(sizes)]
    capacity = 300 * room
    [bound] = of(keys, sizes).at_most_by_bytes([capacity])
    assert most_hits(keys, costs, capacity) <= bound <= len(keys) - len(set(keys))


@policies
@given(
    accesses=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 500)), min_size=1, max_size=200),
    capacity=st.integers(1, 3000),
)
def test_no_policy_is_above_the_bound_by_bytes(
    policy: str, accesses: list[tuple[int, int]], capacity: int
) -> None:
    workload = Workload(accesses)
    [bound] = workload.at_most_by_bytes([capacity])
    assert workload.hits(POLICIES[policy](), capacity) <= bound


def test_what_is_known_of_one_sequence() -> None:
    workload = of([1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5])  # Belady's own example has 7 faults with 3 frames
    assert workload.best_by_count(3) == 5
    assert workload.best_by_count(5) == 7
