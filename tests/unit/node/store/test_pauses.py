"""No call on a store takes long, however many entries there are.

What could: a dict that grows (all its keys are moved), a table of the eviction policy that grows, many entries that are
freed at once, a loop over all entries, and Python's garbage collector, when it examines all objects. So the tests count
what a call does: the steps that it executes, the memory that it takes and frees, and the collections.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import pytest

from pyrocache.node.store.eviction import POLICIES
from pyrocache.node.store.mutation import Clear
from pyrocache.node.store.store import Store
from pyrocache.node.store.table import SHARD_KEYS

MOST_STEPS = 100_000
"""Of one call: lines, calls and returns. A thousand take 50 µs."""

MOST_BYTES = 4_000_000
"""That one call takes, and that it frees. A table for a million keys takes ten times as many."""


@contextmanager
def collecting_as_in_a_node() -> Iterator[list[int]]:
    """The thresholds that a node process sets; the generations that are collected meanwhile."""
    collected: list[int] = []
    before = gc.get_threshold()

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            collected.append(info["generation"])

    gc.collect()
    gc.set_threshold(700, 10, 10_000)
    gc.callbacks.append(note)
    try:
        yield collected
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*before)


class Work(NamedTuple):
    """The most that one of some calls has done: steps of `sys.settrace`, bytes taken at a time, bytes freed."""

    steps: int
    taken: int
    freed: int

    @property
    def little(self) -> bool:
        return self.steps <= MOST_STEPS and max(self.taken, self.freed) <= MOST_BYTES


def most_work(call: Callable[[int], object], count: int) -> Work:
    """Call with each number, and return the most that one call does. `tracemalloc` must be running."""
    steps = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += 1
        return trace

    most = [0, 0, 0]
    for number in range(count):
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        steps = 0
        sys.settrace(trace)
        try:
            call(number)
        finally:
            sys.settrace(None)
        after, peak = tracemalloc.get_traced_memory()
        most = [max(pair) for pair in zip(most, (steps, peak - before, before - after), strict=True)]
    return Work(*most)


@contextmanager
def measured_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.full
def test_no_write_or_read_does_much_and_no_dict_becomes_large(policy: str) -> None:
    store = Store(10**9, policy=POLICIES[policy]())

    def write_and_read(number: int) -> None:
        store.set(b"\0%d" % number, b"v", 60.0 if number % 2 else None)
        store.get(b"\0%d" % (number // 2))

    with measured_memory():
        work = most_work(write_and_read, 40_000)
    assert work.little, work
    assert max(map(len, store.namespaces.root.shards)) <= SHARD_KEYS


@pytest.mark.full
@pytest.mark.parametrize("ttl", [None, 3600.0], ids=["no expiry", "a TTL each"])
def test_a_million_writes_need_no_full_collection_and_no_large_dict(ttl: float | None) -> None:
    store = Store(10**10)
    with collecting_as_in_a_node() as collected:
        for number in range(1_000_000):
            store.set(b"\0%d" % number, b"value", ttl)
    assert 2 not in collected, "it examines every entry"
    assert len(store) == 1_000_000
    assert max(map(len, store.namespaces.root.shards)) <= SHARD_KEYS


@pytest.mark.full
def test_no_other_call_on_many_entries_does_much() -> None:
    store = Store(100_000_000)  # some 600,000 of them
    calls: dict[str, Callable[[int], object]] = {
        "get": lambda number: store.get(b"\0%d" % (number * 7)),
        "set, evicting": lambda number: store.set(b"\0new %d" % number, b"value"),
        "delete": lambda number: store.delete(b"\0%d" % (number * 7)),
        "page": lambda number: store.page(b"\0", b"\0", number << 49, 500, 10**6),
        "partition": lambda number: list(store.partition_keys(number % 16384)),
        "count": lambda number: store.count(b"\0"),
        "clear": lambda number: store.apply(Clear(b"\0")),
        "reclaim": lambda number: store.reclaim(500),
    }
    with measured_memory():
        for start in range(0, 1_000_000, 1000):
            keys = [b"\0%d" % number for number in range(start, start + 1000)]
            store.set_many(keys, [b"value"] * 1000)
        assert store.counters.evictions > 100_000
        for name, call in calls.items():
            work = most_work(call, 100)
            assert work.little, (name, work)


@pytest.mark.full
def test_no_page_of_tagged_entries_takes_much_work() -> None:
    store = Store(10**10)

    def page(number: int) -> None:
        keys, _ = store.page(b"\0", b"\0", number << 58, 500, 10**6, tag=tag, described=True)
        for key in keys:
            store.describe(key)

    with measured_memory():
        for number in range(400_000):
            tags = [b"many", b"few"] if number % 320 == 0 else [b"many"]
            store.put(b"\0%d" % number, b"value", 3600.0, tags=tags)
        for tag in (b"many", b"few"):
            work = most_work(page, 60)
            assert work.little, (tag, work)
