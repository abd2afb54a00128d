"""Leases and locks as methods of a node: what they are asked with, views, entries that change, peers that leave."""

from __future__ import annotations

import math
from typing import Any

import pytest
from Pyro5.errors import PyroError

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import view_to_wire
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.server.deferred import Deferred, Session
from pyrocache.testing import FakeClock

NAME = "cache.node.1"
NO_VIEW = 0
KEY = b"\0key"
INT = b"w\1"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


@pytest.fixture
def node(clock: FakeClock) -> CacheNode:
    return CacheNode(Store(2**20, clock=clock), RequestGuard(NAME), clock=clock)


def ask(
    node: CacheNode, session: Session | None = None, *, wait: float = 10.0, refresh: int = 0, **view: int
) -> Any:
    return node.begin_lease(session or Session(), view.get("view", NO_VIEW), KEY, 60.0, wait, refresh)


def load(node: CacheNode, session: Session | None = None) -> int:
    """Become the loader; the lease's token."""
    kind, token, _ = ask(node, session)
    assert kind == "load"
    return token


def refusal(method: Any, *arguments: Any) -> str:
    """The code with which a call is refused."""
    with pytest.raises(PyroError) as caught:
        method(*arguments)
    return str(caught.value.code)  # type: ignore[attr-defined]


def view(number: int, *names: str) -> ClusterView:
    return ClusterView([Member(name, "127.0.0.1", 1, 1.0, "incarnation") for name in names], number, "c")


# Loading -----------------------------------------------------------------------------------------------------


def test_a_value_that_was_filled_in_is_kept_as_it_was_to_be(node: CacheNode, clock: FakeClock) -> None:
    token, waiter = load(node), ask(node)
    assert node.fill(NO_VIEW, KEY, token, b"value", 10.0, 5.0, 0.25, [b"\0tag"]) is True
    assert waiter.outcome() == ["value", b"value", 10.0, 0.25]
    assert node.get(NO_VIEW, KEY) == b"value"
    assert node.get_with_times(NO_VIEW, KEY) == [b"value", 10.0, 0.25]
    clock.tick(10.0)
    assert node.get(NO_VIEW, KEY) is None
    assert node.get_with_times(NO_VIEW, KEY) is None
    kind, token, stale = ask(node)
    assert (kind, stale) == ("load", b"value")
    assert ask(node) == ["stale", b"value"]
    assert node.abandon(NO_VIEW, KEY, token) is True
    clock.tick(5.0)
    assert ask(node)[::2] == ["load", None]
    node.invalidate_tag(NO_VIEW, b"\0tag")


def test_a_value_that_was_set_has_no_times(node: CacheNode) -> None:
    node.set(NO_VIEW, KEY, b"value")
    assert node.get_with_times(NO_VIEW, KEY) == [b"value", None, None]
    assert ask(node) == ["value", b"value", None, None]


def miss_a_view(node: CacheNode) -> None:
    """Let the node own everything under two views, but not know the one in between."""
    node.ownership.adopt(view(6, NAME))
    node.ownership.adopt(view(9, NAME), view(8, NAME))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda node: node.set(NO_VIEW, KEY, b"newer"), b"newer"),
        (lambda node: node.set(NO_VIEW, KEY, b"newer", 7.0), b"newer"),
        (lambda node: node.put(NO_VIEW, KEY, b"newer", None, "absent"), b"newer"),
        (lambda node: node.put(NO_VIEW, KEY, b"newer", None, None, [b"\0tag"]), b"newer"),
        (lambda node: node.setdefault(NO_VIEW, KEY, b"newer"), b"newer"),
        (lambda node: node.set_many(NO_VIEW, [KEY, b"\0other"], [b"newer", b"x"]), b"newer"),
        (lambda node: node.set_many(NO_VIEW, [KEY], [b"newer"], None, [b"\0tag"]), b"newer"),
        (lambda node: node.incr(NO_VIEW, KEY, INT, INT), b"w\2"),
        (lambda node: node.delete(NO_VIEW, KEY), None),
        (lambda node: node.pop(NO_VIEW, KEY), None),
        (lambda node: node.delete_many(NO_VIEW, [b"\0other", KEY]), None),
        (lambda node: node.clear(NO_VIEW, b"\0"), None),
        (lambda node: miss_a_view(node), "refused"),
    ],
)
def test_whatever_changes_the_entry_voids_the_lease(node: CacheNode, change: Any, told: Any) -> None:
    token, waiter = load(node), ask(node)
    change(node)
    assert node.fill(NO_VIEW, KEY, token, b"outdated") is False
    assert node.get(NO_VIEW, KEY) == (None if told == "refused" else told)
    if told == "refused":
        assert refusal(waiter.outcome) == "stale-view"
    elif told is None:
        assert waiter.outcome()[0] == "load"
    else:
        assert waiter.outcome()[:2] == ["value", told]


@pytest.mark.parametrize(
    "leave_alone",
    [
        lambda node: node.put(NO_VIEW, KEY, b"x", None, "present"),
        lambda node: node.touch(NO_VIEW, KEY, 5.0),
        lambda node: node.get(NO_VIEW, KEY, 5.0),
        lambda node: node.set(NO_VIEW, b"\0other", b"x"),
        lambda node: node.clear(NO_VIEW, b"\2\1a"),
        lambda node: node.invalidate_tag(NO_VIEW, b"\0other"),
        lambda node: node.sweep(),
    ],
)
def test_what_changes_nothing_does_not(node: CacheNode, leave_alone: Any) -> None:
    token = load(node)
    leave_alone(node)
    assert node.fill(NO_VIEW, KEY, token, b"value", None, 0.0, 0.0, [b"\0tag"]) is True


def test_a_look_counts_and_the_lease_after_it_does_not(node: CacheNode) -> None:
    assert node.get(NO_VIEW, KEY) is None
    token = load(node)
    node.fill(NO_VIEW, KEY, token, b"value")
    ask(node)
    node.get_with_times(NO_VIEW, KEY)
    figures = node.stats()
    assert (figures["hits"], figures["misses"]) == (1, 1)


def test_a_value_that_does_not_fit_leaves_the_lease_to_be_given_up(node: CacheNode) -> None:
    token, waiter = load(node), ask(node)
    assert refusal(node.fill, NO_VIEW, KEY, token, b"x" * 2**20) == "value-too-large"
    assert waiter.waiting
    node.abandon(NO_VIEW, KEY, token)
    assert waiter.outcome()[0] == "load"


# Peers and views ---------------------------------------------------------------------------------------------


def test_a_peer_that_leaves_holds_nothing_any_more(node: CacheNode) -> None:
    session = Session()
    token = load(node, session)
    lock = node.begin_acquire(session, NO_VIEW, b"\0name", 1, 30.0, 0.0)
    assert isinstance(lock, int)
    loader, holder = ask(node), node.begin_acquire(Session(), NO_VIEW, b"\0name", 1, 30.0, 10.0)
    assert node.stats()["waiting"] == 2
    session.close()
    assert node.fill(NO_VIEW, KEY, token, b"value") is False
    assert loader.outcome()[0] == "load"
    assert isinstance(holder, Deferred)
    assert holder.outcome() > lock
    assert (node.stats()["leases"], node.stats()["locks"], node.stats()["waiting"]) == (1, 1, 0)


def test_it_is_known_of_a_peer_whether_it_holds_something(node: CacheNode) -> None:
    session = Session()
    token = load(node, session)
    lock = node.begin_acquire(session, NO_VIEW, b"\0name", 1, 30.0, 0.0)
    assert session.holds
    node.fill(NO_VIEW, KEY, token, b"value")
    assert session.holds
    node.release(NO_VIEW, b"\0name", lock)  # type: ignore[arg-type]
    assert not session.holds


def test_a_peer_that_has_left_already_gets_nothing(node: CacheNode) -> None:
    session = Session()
    session.close()
    assert ask(node, session) is None
    assert node.begin_acquire(session, NO_VIEW, b"\0name", 1, 30.0, 10.0) is None
    assert (node.stats()["leases"], node.stats()["locks"]) == (0, 0)


def test_what_other_nodes_look_after_from_now_on_is_forgotten_here(node: CacheNode) -> None:
    both, alone = view(8, NAME, "cache.node.2"), view(7, NAME)
    node.ownership.adopt(alone)
    keys = [b"\0%d" % number for number in range(50)]
    ours = {key for key in keys if both.owner(key).name == NAME}
    assert 0 < len(ours) < 50
    loads = {key: node.begin_lease(Session(), 7, key, 60.0, 0.0) for key in keys}
    locks = {key: node.begin_acquire(Session(), 7, key, 1, 30.0, 0.0) for key in keys}
    waiters = {key: node.begin_lease(Session(), 7, key, 60.0, 10.0) for key in keys}
    node.ownership.adopt(both, alone)
    for key in keys:
        waiter = waiters[key]
        assert isinstance(waiter, Deferred)
        assert waiter.waiting == (key in ours)
        if key not in ours:
            assert refusal(waiter.outcome) == "stale-view"
    node.ownership.adopt(view(9, NAME), both)  # so that this node answers for all
    for key in keys:
        assert node.renew(9, key, locks[key], 30.0) == (key in ours)  # type: ignore[arg-type]
        assert node.fill(9, key, loads[key][1], b"value") == (key in ours)  # type: ignore[index]


def test_a_node_that_leaves_sends_everybody_away(node: CacheNode) -> None:
    alone, others = view(7, NAME), view(8, "cache.node.2")
    node.ownership.adopt(alone)
    load(node)
    waiter = ask(node)
    node.ownership.adopt(others, alone)
    with pytest.raises(PyroError) as caught:
        waiter.outcome()
    assert caught.value.detail == view_to_wire(others)  # type: ignore[attr-defined]
    assert node.stats()["leases"] == 0


def test_grants_are_kept_without_a_lease_and_not_given(node: CacheNode) -> None:
    node.ownership.adopt(view(7, NAME))
    token, lock = load(node), node.acquire(7, b"\0name", 1, 30.0, 0.0)
    assert lock is not None
    node.ownership.lapse(True)
    for method, arguments in [
        (node.lease, (KEY, 60.0, 0.0)),
        (node.fill, (KEY, token, b"value")),
        (node.acquire, (b"\0name", 1, 30.0, 0.0)),
        (node.renew, (b"\0name", lock, 30.0)),
        (node.release, (b"\0name", lock)),
    ]:
        for number in (7, NO_VIEW):
            assert refusal(method, number, *arguments) == "not-serving"
    node.ownership.lapse(False)
    assert node.renew(7, b"\0name", lock, 30.0)
    assert node.fill(7, KEY, token, b"value")


@pytest.mark.parametrize("end", ["hang up", "adopt", "release afterwards"])
def test_without_a_lease_nothing_passes_to_those_who_wait(
    node: CacheNode, clock: FakeClock, end: str
) -> None:
    """Another node may be the owner by then, and have granted it to somebody else."""
    alone, others = view(7, NAME), view(8, "cache.node.2")
    node.ownership.adopt(alone)
    holder = Session()
    load(node, holder)
    token = node.begin_acquire(holder, 7, b"\0name", 1, 30.0, 0.0)
    assert type(token) is int
    waiters = [ask(node), node.begin_acquire(Session(), 7, b"\0name", 1, 30.0, 10.0)]
    node.ownership.renew(1002.0, 1000.0)
    node.ownership.expire(1002.0)
    for waiter in waiters:
        assert isinstance(waiter, Deferred)
        assert refusal(waiter.outcome) == "not-serving"
    assert refusal(node.begin_acquire, Session(), 7, b"\0name", 1, 30.0, 10.0) == "not-serving"
    if end == "hang up":
        holder.close()
        assert (node.stats()["leases"], node.stats()["locks"]) == (0, 0)
        node.ownership.renew(1005.0, 1003.0)
        assert load(node)
        assert node.acquire(7, b"\0name", 1, 30.0, 0.0) > token  # type: ignore[operator]
    elif end == "adopt":
        node.ownership.adopt(others, alone)
        assert (node.stats()["leases"], node.stats()["locks"]) == (0, 0)
        node.ownership.renew(1005.0, 1003.0)
        assert refusal(node.renew, NO_VIEW, b"\0name", token, 30.0) == "stale-view"
        assert refusal(node.release, NO_VIEW, b"\0name", token) == "stale-view"
    else:
        node.ownership.renew(1005.0, 1003.0)
        assert node.acquire(7, b"\0name", 1, 30.0, 0.0) is None, "it was held all the time"
        assert node.release(7, b"\0name", token) is True


def test_a_lease_that_was_renewed_meanwhile_does_not_expire(node: CacheNode) -> None:
    """The I/O thread finds that the lease is over, and then the main thread renews it."""
    node.ownership.adopt(view(7, NAME))
    node.ownership.renew(1002.0, 1000.0)
    node.ownership.expire(1001.9)
    assert node.get(7, KEY) is None
    node.ownership.expire(1002.0)
    assert refusal(node.get, 7, KEY) == "not-serving"
    node.ownership.renew(1004.0, 1002.1)
    node.ownership.expire(1002.0)
    assert node.get(7, KEY) is None
    node.ownership.renew(1004.0, 1004.0)
    assert refusal(node.get, 7, KEY) == "not-serving"


def test_tokens_grow_from_owner_to_owner(node: CacheNode, clock: FakeClock) -> None:
    node.ownership.adopt(view(7, NAME))
    first = [node.acquire(7, b"\0%d" % number, 1, 30.0, 0.0) for number in range(3)]
    assert first == [(7 << 32) + 1, (7 << 32) + 2, (7 << 32) + 3]
    other = CacheNode(Store(2**20, clock=clock), RequestGuard("cache.node.2"), clock=clock)
    other.ownership.adopt(view(8, "cache.node.2"), view(7, NAME))
    assert other.acquire(8, b"\x000", 1, 30.0, 0.0) == (8 << 32) + 1


def test_every_method_checks_the_view(node: CacheNode) -> None:
    node.ownership.adopt(view(7, NAME))
    other = 6
    session = Session()
    for method, arguments in [
        (node.get_with_times, (KEY,)),
        (node.lease, (KEY, 60.0, 0.0)),
        (node.fill, (KEY, 1, b"value")),
        (node.abandon, (KEY, 1)),
        (node.acquire, (b"\0name", 1, 30.0, 0.0)),
        (node.holders, (b"\0name",)),
        (node.renew, (b"\0name", 1, 30.0)),
        (node.release, (b"\0name", 1)),
    ]:
        assert refusal(method, other, *arguments) == "stale-view"
        assert refusal(method, "no view", *arguments) == "bad-request"
    assert refusal(node.begin_lease, session, other, KEY, 60.0, 10.0) == "stale-view"
    assert refusal(node.begin_acquire, session, other, b"\0name", 1, 30.0, 10.0) == "stale-view"


# Waiters: grants and waits within one connection that are ended by themselves -------------------------------


def acquire(node: CacheNode, session: Session, waiter: int, *, wait: float = 10.0) -> Any:
    return node.begin_acquire(session, NO_VIEW, b"\0name", 1, 30.0, wait, waiter)


def lease(node: CacheNode, session: Session, waiter: int, *, key: bytes = KEY, wait: float = 10.0) -> Any:
    return node.begin_lease(session, NO_VIEW, key, 60.0, wait, 0, waiter)


def test_withdrawing_a_waiter_passes_on_what_it_holds(node: CacheNode) -> None:
    connection = Session()
    token = acquire(node, connection, 1)
    load_token = lease(node, connection, 1)[1]
    lock, loading = acquire(node, connection, 2), lease(node, connection, 2)
    assert node.begin_withdraw(connection, 3) is False
    assert node.begin_withdraw(connection, 1) is True
    assert lock.outcome() > token
    assert loading.outcome()[0] == "load"
    assert node.release(NO_VIEW, b"\0name", token) is False
    assert node.fill(NO_VIEW, KEY, load_token, b"late") is False
    assert node.begin_withdraw(connection, 1) is False


def test_withdrawing_a_waiter_ends_its_calls(node: CacheNode) -> None:
    connection = Session()
    token = acquire(node, connection, 1)
    load_token = lease(node, connection, 1)[1]
    waiting = [acquire(node, connection, 2), lease(node, connection, 2)]
    behind = acquire(node, connection, 3)
    assert node.begin_withdraw(connection, 2) is True
    assert [call.outcome() for call in waiting] == [None, None]
    assert node.release(NO_VIEW, b"\0name", token) is True
    assert behind.outcome() > token
    assert node.abandon(NO_VIEW, KEY, load_token) is True
    assert node._coordination.leases.by_key == {}


def test_waiters_of_one_connection_have_places_of_their_own(node: CacheNode, clock: FakeClock) -> None:
    connection = Session()
    token = acquire(node, connection, 1)
    first, second = acquire(node, connection, 2, wait=5.0), acquire(node, connection, 3, wait=20.0)
    clock.tick(5.0)
    assert first.expire(clock())
    assert second.waiting
    again = acquire(node, connection, 2)
    assert node.release(NO_VIEW, b"\0name", token) is True
    assert again.outcome() > token
    assert second.waiting


def test_a_waiter_that_calls_twice_waits_once(node: CacheNode) -> None:
    connection = Session()
    acquire(node, connection, 1)
    first, second = acquire(node, connection, 2), acquire(node, connection, 2)
    assert (first.outcome(), second.waiting) == (None, True)


def test_all_waiters_end_with_their_connection(node: CacheNode) -> None:
    connection, other = Session(), Session()
    acquire(node, connection, 1)
    lease(node, connection, 1)
    calls = [acquire(node, connection, 2), lease(node, connection, 2)]
    behind = [acquire(node, other, 0), lease(node, other, 7)]
    assert connection.holds == 4
    for call in calls:  # as the event loop does before it closes the session
        call.cancel()
    connection.close()
    assert not any(call.waiting for call in behind)
    assert connection.holds == 0
    other.close()
    assert not node._coordination.leases.by_key
    assert not node._coordination.locks.by_key
    assert not node._coordination.locks._uses


def test_waiters_are_not_kept_beyond_what_they_hold(node: CacheNode) -> None:
    connection = Session()
    node.set(NO_VIEW, KEY, b"value")
    assert lease(node, connection, 1)[0] == "value"
    assert refusal(node.begin_lease, connection, "no view", KEY, 60.0, 0.0, 0, 1) == "bad-request"
    assert not connection._waiters
    for number in range(1, 1000):
        token = lease(node, connection, number, key=b"\0other")[1]
        assert connection.holds == 1
        assert node.fill(NO_VIEW, b"\0other", token, b"value") is True
        node.delete(NO_VIEW, b"\0other")
    assert connection.holds == 0
    assert len(connection._waiters) <= 64
    connection.close()
    assert not connection._waiters


def test_waiters_are_bounded(node: CacheNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrocache.server.deferred.MAX_WAITERS", 100)
    connection, other = Session(), Session()
    for number in range(1, 101):
        assert lease(node, connection, number, key=b"\0%d" % number)
    for method, arguments in [
        (node.begin_lease, (b"\0more", 60.0, 0.0, 0)),
        (node.begin_acquire, (b"\0more", 1, 30.0, 0.0)),
    ]:
        assert refusal(method, connection, NO_VIEW, *arguments, 101) == "overloaded"
    assert lease(node, connection, 0, key=b"\0more")
    assert lease(node, other, 101, key=b"\0more, too")
    assert node.begin_withdraw(connection, 5) is True
    assert lease(node, connection, 101, key=b"\0more, three")


@pytest.mark.parametrize("client", [b"client..", None])
def test_waiters_count_for_their_client(node: CacheNode, client: bytes | None) -> None:
    connection = Session()
    connection.client = client
    locks = node._coordination.locks
    locks._max_bytes = 100 * 520
    owner = client or connection
    for number in range(1, 26):
        assert node.begin_acquire(connection, NO_VIEW, b"\0%7d" % number, 1, 30.0, 0.0, number)
    assert locks._uses == {owner: 25 * 520}
    more = (NO_VIEW, b"\0%7d" % 26, 1, 30.0, 0.0)
    assert refusal(node.begin_acquire, connection, *more, 26) == "overloaded"
    assert node.begin_acquire(Session(), *more, 1)


# Arguments ---------------------------------------------------------------------------------------------------

NO_KEYS = [b"", "text", None, 5, bytearray(b"x")]
NO_SPANS = [-1, math.nan, math.inf, "1", None, True]


@pytest.mark.parametrize("key", NO_KEYS)
def test_what_is_no_key_is_refused(node: CacheNode, key: Any) -> None:
    for method, arguments in [
        (node.get_with_times, ()),
        (node.lease, (60.0, 0.0)),
        (node.fill, (1, b"value")),
        (node.abandon, (1,)),
        (node.acquire, (1, 30.0, 0.0)),
        (node.holders, ()),
        (node.renew, (1, 30.0)),
        (node.release, (1,)),
    ]:
        assert refusal(method, NO_VIEW, key, *arguments) == "bad-request"


@pytest.mark.parametrize("seconds", NO_SPANS)
def test_what_is_no_time_is_refused(node: CacheNode, seconds: Any) -> None:
    token = load(node)
    assert refusal(node.lease, NO_VIEW, b"\0other", seconds, 0.0) == "bad-request"
    assert refusal(node.lease, NO_VIEW, b"\0other", 60.0, seconds) == "bad-request"
    assert refusal(node.fill, NO_VIEW, KEY, token, b"value", None, seconds) == "bad-request"
    assert refusal(node.fill, NO_VIEW, KEY, token, b"value", None, 0.0, seconds) == "bad-request"
    assert refusal(node.acquire, NO_VIEW, b"\0name", 1, seconds, 0.0) == "bad-request"
    assert refusal(node.acquire, NO_VIEW, b"\0name", 1, 30.0, seconds) == "bad-request"
    assert refusal(node.renew, NO_VIEW, b"\0name", 1, seconds) == "bad-request"
    assert node.fill(NO_VIEW, KEY, token, b"value") is True


def test_a_lease_or_a_lock_of_no_time_is_refused(node: CacheNode) -> None:
    assert refusal(node.lease, NO_VIEW, KEY, 0, 0.0) == "bad-request"
    assert refusal(node.acquire, NO_VIEW, b"\0name", 1, 0, 0.0) == "bad-request"
    assert refusal(node.renew, NO_VIEW, b"\0name", 1, 0.0) == "bad-request"


@pytest.mark.parametrize("limit", [0, -1, 1.0, True, None, 2**40])
def test_what_is_no_limit_is_refused(node: CacheNode, limit: Any) -> None:
    assert refusal(node.acquire, NO_VIEW, b"\0name", limit, 30.0, 0.0) == "bad-request"


@pytest.mark.parametrize("refresh", [4, -1, "1", None, 0.5])
def test_what_is_no_way_to_refresh_is_refused(node: CacheNode, refresh: Any) -> None:
    assert refusal(node.lease, NO_VIEW, KEY, 60.0, 0.0, refresh) == "bad-request"


@pytest.mark.parametrize("waiter", ["1", None, 1.5, True, -1, 2**64, []])
def test_what_is_no_waiter_is_refused(node: CacheNode, waiter: Any) -> None:
    assert refusal(lease, node, Session(), waiter) == "bad-request"
    assert refusal(acquire, node, Session(), waiter) == "bad-request"
    assert refusal(node.withdraw, waiter) == "bad-request"


@pytest.mark.parametrize("token", ["1", None, 1.5, True, b"1", [], {}])
def test_what_is_no_token_is_refused(node: CacheNode, token: Any) -> None:
    load(node)
    node.acquire(NO_VIEW, b"\0name", 1, 30.0, 0.0)
    assert refusal(node.fill, NO_VIEW, KEY, token, b"value") == "bad-request"
    assert refusal(node.abandon, NO_VIEW, KEY, token) == "bad-request"
    assert refusal(node.renew, NO_VIEW, b"\0name", token, 30.0) == "bad-request"
    assert refusal(node.release, NO_VIEW, b"\0name", token) == "bad-request"


def test_more_than_there_is_room_for_is_refused(node: CacheNode) -> None:
    session = Session()
    for number in range(64):
        assert node.begin_lease(session, NO_VIEW, b"\0%d" % number, 60.0, 0.0)
        assert node.begin_acquire(session, NO_VIEW, b"\0%d" % number, 1, 30.0, 0.0)
    assert refusal(node.begin_lease, session, NO_VIEW, b"\0more", 60.0, 0.0) == "overloaded"
    assert refusal(node.begin_acquire, session, NO_VIEW, b"\0more", 1, 30.0, 0.0) == "overloaded"
