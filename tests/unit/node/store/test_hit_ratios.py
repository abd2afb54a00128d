"""How many hits the eviction policies have, on accesses that were recorded and on some that are made."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache
from statistics import fmean
from typing import Any

import pytest

from benchmarks.lab.simulation import Workload
from benchmarks.lab.traces import read_trace
from pyrocache.node.store.eviction import DEFAULT_POLICY, POLICIES
from tests.conftest import DATA

MIB = 2**20

OLTP = "OLTP.lis.zst"
SPRITE = "sprite.trace.gz"
ADAPT_SIZE = "adapt_size.trace.xz"


@lru_cache
def workload(name: str) -> Workload:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not in ../shared/data")
    return Workload(read_trace(DATA / name))


@lru_cache
def with_hashes(name: str, seed: int) -> Workload:
    """The trace with numbers as keys, which hash to themselves; the hashes of bytes differ from run to run."""
    trace = copy(workload(name))
    rng = random.Random(seed)
    numbers = {key: rng.getrandbits(60) for key in dict.fromkeys(trace.keys)}
    trace.keys = [numbers[key] for key in trace.keys]
    return trace


def hit_ratio(name: str, capacity: int, policy: str = DEFAULT_POLICY, seeds: Sequence[int] = (1, 2)) -> float:
    """The mean over ``seeds`` of the keys' hashes."""
    hits = [with_hashes(name, seed).hits(POLICIES[policy](), capacity) for seed in seeds]
    return fmean(hits) / len(workload(name))


def hit_ratio_of_exact_lru(name: str, capacity: int) -> float:
    trace = workload(name)
    costs = trace.costs or [1] * len(trace)
    held: OrderedDict[bytes, int] = OrderedDict()
    hits = size = 0
    for key, cost in zip(trace.keys, costs, strict=True):
        if key in held:
            held.move_to_end(key)
            hits += 1
        elif cost <= capacity:
            while size + cost > capacity:
                size -= held.popitem(last=False)[1]
            held[key] = cost
            size += cost
    return hits / len(trace)


def _some(*values: int | None) -> list[Any]:
    """The last value by default, all of them with ``--full``."""
    return [*(pytest.param(value, marks=pytest.mark.full) for value in values[:-1]), values[-1]]


@pytest.mark.full
@pytest.mark.parametrize(("capacity", "wanted"), [(1000, 0.40), (5000, 0.555), (20_000, 0.68)])
def test_hit_ratios_on_references_to_a_databases_pages(capacity: int, wanted: float) -> None:
    assert hit_ratio(OLTP, capacity, seeds=[1, 2, 3]) >= wanted


# Where recency is best, S3-FIFO costs some hits.
BEHIND = 0.01


@pytest.mark.parametrize("capacity", _some(100, 200, 400, 800, 1000, 2000))
def test_on_a_file_servers_requests_no_fewer_hits_than_by_recency(capacity: int) -> None:
    assert hit_ratio(SPRITE, capacity) >= hit_ratio_of_exact_lru(SPRITE, capacity) - BEHIND


@pytest.mark.parametrize("capacity", _some(1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB, 128 * MIB))
def test_on_requests_for_objects_of_all_sizes_no_fewer_hits_than_by_recency(capacity: int) -> None:
    assert hit_ratio(ADAPT_SIZE, capacity) >= hit_ratio_of_exact_lru(ADAPT_SIZE, capacity) - BEHIND


@pytest.mark.parametrize("capacity", _some(100, 1000))
def test_by_recency_there_are_as_many_hits_as_if_it_was_exact(capacity: int) -> None:
    exact = hit_ratio_of_exact_lru(SPRITE, capacity)
    assert hit_ratio(SPRITE, capacity, "lru", seeds=[1]) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("gap", _some(None, 3, 1))
@pytest.mark.parametrize("skew", [0.0, 0.99])
@pytest.mark.parametrize("capacity", [1000, pytest.param(3000, marks=pytest.mark.full)])
def test_a_scan_costs_the_working_set_few_hits(capacity: int, skew: float, gap: int | None) -> None:
    # Ten times the capacity, in a burst or between so many accesses to a working set of half the capacity.
    rng = random.Random(1)
    keys = [b"w%d" % number for number in range(capacity // 2)]
    weights = [1 / (rank + 1) ** skew for rank in range(len(keys))]
    access = cache(capacity)

    def used(times: int) -> int:
        return sum(map(access, rng.choices(keys, weights, k=times)))

    used(20 * capacity)
    before = used(5 * capacity) / (5 * capacity)
    hits = accesses = 0
    for number in range(10 * capacity):
        access(b"s%d" % number)
        if gap is not None:
            hits += used(gap)
            accesses += gap
    if gap is None:
        accesses = len(keys)
        hits = used(accesses)
    assert hits / accesses >= 0.9 * before


def cache(capacity: int) -> Callable[[bytes], bool]:
    """Access to a cache of the default policy; whether it was a hit."""
    policy = POLICIES[DEFAULT_POLICY]()
    held: set[bytes] = set()

    def access(key: bytes) -> bool:
        if key in held:
            policy.used(key)
            return True
        if len(held) >= capacity:
            held.remove(policy.victim())
        held.add(key)
        policy.added(key)
        return False

    return access
