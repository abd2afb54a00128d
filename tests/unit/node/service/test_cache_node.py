"""What `CacheNode` exposes, how many calls a read takes, and that figures of many namespaces block nobody."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest
from Pyro5.errors import PyroError

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.protocol.commands import COMMANDS, Runs

NAME = "cache.node.1"
NO_VIEW = 0


def test_the_exposed_methods_are_those_of_the_table_of_commands() -> None:
    members = {name: getattr(CacheNode, name) for name in dir(CacheNode)}
    assert {name for name, member in members.items() if getattr(member, "_pyroExposed", False)} == set(
        COMMANDS
    )


def test_a_method_that_may_wait_has_a_twin_that_does_not_block() -> None:
    for name, command in COMMANDS.items():
        assert hasattr(CacheNode, f"begin_{name}") == (command.runs is Runs.DEFERRED)


def test_a_warm_read_takes_three_calls() -> None:
    node = CacheNode(Store(2**20), RequestGuard(NAME))
    view = ClusterView([Member(NAME, "127.0.0.1", 1)], 7)
    node.ownership.adopt(view)
    node.set(view.number, b"\0key", b"value")
    called: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    for _ in range(2):  # the second is warm
        called.clear()
        sys.setprofile(note)
        try:
            node.get(view.number, b"\0key")
        finally:
            sys.setprofile(None)
    assert called == ["get", "get", "used"]


class Interrupted(Store):
    """A store during whose walk over the entries the node loses its lease."""

    guard: RequestGuard
    pages = 0

    def page(self, *arguments: Any, **options: Any) -> Any:
        self.pages += 1
        if self.pages == 3:
            self.guard.lapse(True)
        return super().page(*arguments, **options)


def test_a_removal_that_the_end_of_the_lease_interrupts_tells_what_it_has_removed() -> None:
    store = Interrupted(2**24)
    store.guard = RequestGuard(NAME)
    node = CacheNode(store, store.guard)
    for number in range(5000):
        node.set(NO_VIEW, b"\0%d" % number, b"")
    cursor, removed = node.delete_prefix(NO_VIEW, b"\0", b"\0")
    assert cursor > 0
    assert 0 < removed == 5000 - node.stats()["entries"] < 5000
    with pytest.raises(PyroError, match="cannot be sure"):
        node.delete_prefix(NO_VIEW, b"\0", b"\0", cursor)
    store.guard.lapse(False)
    rest = 0
    while cursor:
        cursor, count = node.delete_prefix(NO_VIEW, b"\0", b"\0", cursor)
        rest += count
    assert removed + rest == 5000


class TimedLock:
    """A lock that notes how long it was held at most."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._lock = threading.Lock()
        self._since = 0.0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._since = time.thread_time()

    def __exit__(self, *error: object) -> None:
        self.longest = max(self.longest, time.thread_time() - self._since)
        self._lock.release()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.full
def test_the_figures_of_200_000_namespaces_hold_the_lock_for_a_moment() -> None:
    guard = RequestGuard(NAME)
    guard.lock = lock = TimedLock()  # type: ignore[assignment]
    node = CacheNode(Store(2**30), guard)
    for number in range(200_000):
        space = b"%06d" % number
        node.set(NO_VIEW, bytes([len(space)]) + space + b"key", b"")
    for _ in range(3):
        node.get(NO_VIEW, b"\x06000007key")
    lock.longest = 0.0
    stats = node.stats()
    assert lock.longest < 0.001
    assert (stats["entries"], stats["hits"]) == (200_000, 3)
    assert stats["namespaces"][0] == [b"\x06000007", 3, 0, 1]
    assert len(stats["namespaces"]) == 500


def test_counters_are_reset_in_slices_and_those_of_forgotten_namespaces_too() -> None:
    store = Store(2**24)
    node = CacheNode(store)
    for number in range(3000):
        node.get(NO_VIEW, b"\x04%04dkey" % number)
    node.set(NO_VIEW, b"\x01nkey", b"")
    node.get(NO_VIEW, b"\x01nkey")
    assert (node.stats()["hits"], node.stats()["misses"]) == (1, 3000)
    assert store.namespaces.misses > 0, "some were forgotten"
    assert node.reset_stats() is True
    assert (node.stats()["hits"], node.stats()["misses"]) == (0, 0)
    node.get(NO_VIEW, b"\x01nkey")
    assert (node.stats()["hits"], node.stats()["misses"]) == (1, 0)


def test_outdated_entries_are_dropped_in_slices_and_before_the_next_view() -> None:
    """Between the slices the node renews its lease; nothing is left that could come back under a later view."""
    node = CacheNode(Store(2**22), RequestGuard(NAME))
    alone, others = view_of(7, NAME), view_of(8, "cache.node.2")
    node.ownership.adopt(alone)
    for number in range(2000):
        node.set(7, b"\0%d" % number, b"value")
    node.ownership.adopt(others, alone)
    assert not node.ownership.drop_outdated(0.0)
    assert 0 < node.stats()["entries"] < 2000
    node.ownership.adopt(view_of(9, NAME), others)
    assert node.stats()["entries"] == 0
    assert node.ownership.drop_outdated()


def test_what_is_stored_after_a_change_of_the_view_is_not_dropped() -> None:
    """The key has moved here: what this node has of it is new."""
    node = CacheNode(Store(2**22), RequestGuard(NAME))
    both = view_of(7, NAME, "cache.node.2")
    node.ownership.adopt(both)
    node.ownership.adopt(view_of(8, NAME), both)
    keys = [b"\0%d" % number for number in range(100)]
    for key in keys:
        node.set(8, key, b"value")
    assert node.ownership.drop_outdated()
    assert [node.get(8, key) for key in keys] == [b"value"] * 100


def test_what_another_node_owned_in_between_is_not_read_again() -> None:
    """At once: the node owns the key now, so the guard does not refuse it."""
    node = CacheNode(Store(2**22), RequestGuard(NAME))
    alone = view_of(7, NAME)
    node.ownership.adopt(alone)
    node.set(7, b"\0key", b"old")
    node.ownership.adopt(view_of(9, NAME), view_of(8, "cache.node.2"))
    assert node.get(9, b"\0key") is None


def view_of(number: int, *names: str) -> ClusterView:
    return ClusterView([Member(name, "127.0.0.1", 7000) for name in names], number, "c1")
