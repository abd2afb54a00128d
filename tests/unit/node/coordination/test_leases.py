"""Who becomes the loader, who waits, and what makes a lease void."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest

from pyrocache.node.coordination.claims import KEY_OVERHEAD, QuotaExceeded
from pyrocache.node.coordination.leases import IF_MISSING, IF_NOT_LOADING, IN_ANY_CASE, UNREADABLE, Leases
from pyrocache.node.coordination.tokens import Tokens
from pyrocache.node.store.store import Found
from pyrocache.server.deferred import Deferred, Session
from pyrocache.testing import FakeClock

KEY = b"\0key"
NOTHING = Found(None)
LIVE = Found(b"live", remaining=7.0, load_seconds=0.5)
OLD = Found(b"old", stale=True)


class Node:
    """Leases, and the callers of them."""

    def __init__(self, **bounds: int) -> None:
        self.clock = FakeClock(1000.0)
        self.leases = Leases(Tokens(5), self.clock, **bounds)

    def ask(
        self,
        session: Session | None = None,
        found: Found = NOTHING,
        key: bytes = KEY,
        *,
        seconds: float = 60.0,
        wait: float = 10.0,
        refresh: int = IF_MISSING,
    ) -> Any:
        return self.leases.request(key, session or Session(), found, seconds, wait, refresh)

    def load(self, session: Session | None = None, key: bytes = KEY, **options: Any) -> int:
        """Ask, and become the loader."""
        answer = self.ask(session, key=key, **options)
        assert answer[0] == "load"
        return answer[1]

    def wait(self, session: Session | None = None, **options: Any) -> Deferred:
        """Ask, and have to wait."""
        deferred = self.ask(session, **options)
        assert isinstance(deferred, Deferred)
        assert deferred.waiting
        return deferred


@pytest.fixture
def node() -> Node:
    return Node()


def nothing_is_left(node: Node) -> bool:
    leases = node.leases
    return not leases.by_key and not leases._keys and not leases._uses and not leases._bytes


def test_what_is_given_up_after_the_waiters_were_refused_passes_to_nobody(node: Node) -> None:
    loader = Session()
    token, waiter = node.load(loader), node.wait()
    node.leases.refuse_waiters(PermissionError("no"))
    assert node.leases.by_key, "it is held"
    with pytest.raises(PermissionError):
        waiter.outcome()
    node.leases.free(loader)
    assert nothing_is_left(node)
    assert node.load() > token


# Who loads ---------------------------------------------------------------------------------------------------


def test_the_first_who_asks_for_what_is_missing_loads_it_and_the_others_wait_for_the_value(
    node: Node,
) -> None:
    token = node.load()
    others = [node.wait() for _ in range(5)]
    assert node.leases.waiting == 5
    assert node.leases.accepts(KEY, token, ())
    node.leases.settle(KEY, Found(b"new", remaining=30.0, load_seconds=0.25))
    assert [deferred.outcome() for deferred in others] == [["value", b"new", 30.0, 0.25]] * 5
    assert nothing_is_left(node)


def test_a_value_that_is_there_is_told_at_once_whether_or_not_another_refreshes_it(node: Node) -> None:
    assert node.ask(found=LIVE) == ["value", b"live", 7.0, 0.5]
    token = node.load(found=LIVE, refresh=IF_NOT_LOADING)
    assert node.ask(found=LIVE) == ["value", b"live", 7.0, 0.5]
    assert node.ask(found=LIVE, refresh=IF_NOT_LOADING) == ["value", b"live", 7.0, 0.5]
    assert node.leases.accepts(KEY, token, ())


def test_a_value_that_never_expires_has_no_seconds_left(node: Node) -> None:
    assert node.ask(found=Found(b"live", remaining=math.inf)) == ["value", b"live", None, None]


def test_an_expired_value_that_is_kept_goes_to_the_loader_and_to_those_who_come_while_it_loads(
    node: Node,
) -> None:
    assert node.ask(found=OLD)[::2] == ["load", b"old"]
    assert node.ask(found=OLD) == ["stale", b"old"]


def test_who_does_not_want_to_wait_is_told_that_another_loads(node: Node) -> None:
    node.load()
    assert node.ask(wait=0) is None
    assert node.leases.waiting == 0


def test_another_key_is_another_matter(node: Node) -> None:
    node.load(key=b"\0one")
    node.load(key=b"\0two")
    assert sorted(node.leases.by_key) == [b"\0one", b"\0two"]


def test_tokens_only_grow(node: Node) -> None:
    tokens = []
    for _ in range(3):
        token = node.load()
        tokens.append(token)
        node.leases.abandon(KEY, token)
    assert tokens == sorted(set(tokens))
    assert tokens[0] == (5 << 32) + 1


def test_who_refreshes_in_any_case_takes_the_lease_from_its_holder_and_the_others_wait_on(node: Node) -> None:
    former = Session()
    token, waiter = node.load(former), node.wait()
    kind, successor, frame = node.ask(found=LIVE, refresh=IN_ANY_CASE)
    assert (kind, frame) == ("load", b"live")
    assert not node.leases.accepts(KEY, token, ())
    assert node.leases.accepts(KEY, successor, ())
    node.leases.free(former)
    assert waiter.waiting
    node.leases.settle(KEY, Found(b"new"))
    assert waiter.outcome()[:2] == ["value", b"new"]
    assert nothing_is_left(node)


@pytest.mark.parametrize("found", [LIVE, OLD])
def test_for_who_cannot_read_it_a_value_is_missing(node: Node, found: Found) -> None:
    assert node.ask(found=found, refresh=UNREADABLE)[::2] == ["load", found.value]
    assert node.ask(found=found, refresh=UNREADABLE, wait=0) is None
    waiter = node.ask(found=found, refresh=UNREADABLE)
    assert node.ask(found=found)[1] == found.value, "who can read it is not kept waiting"
    node.leases.settle(KEY, Found(b"new"))
    assert waiter.outcome()[:2] == ["value", b"new"]


# A loader that does not end well -----------------------------------------------------------------------------


def test_when_the_loader_gives_up_the_next_in_line_loads_and_the_others_wait_on(node: Node) -> None:
    token = node.load()
    first, second = node.wait(), node.wait()
    assert node.leases.abandon(KEY, token)
    kind, successor, frame = first.outcome()
    assert (kind, frame) == ("load", None)
    assert successor > token
    assert second.waiting
    assert not node.leases.accepts(KEY, token, ())
    assert node.leases.accepts(KEY, successor, ())


def test_a_loader_gives_up_only_its_own_lease(node: Node) -> None:
    token = node.load()
    assert not node.leases.abandon(KEY, token + 1)
    assert not node.leases.abandon(b"\0other", token)
    assert node.leases.abandon(KEY, token)
    assert not node.leases.abandon(KEY, token)
    assert nothing_is_left(node)


def test_a_closed_connection_frees_what_it_was_loading(node: Node) -> None:
    session = Session()
    node.load(session)
    node.load(session, key=b"\0other")
    waiter = node.wait()
    session.close()
    node.leases.free(session)
    assert waiter.outcome()[0] == "load"
    assert list(node.leases.by_key) == [KEY]


def test_who_hung_up_or_waited_long_enough_is_passed_over(node: Node) -> None:
    token = node.load()
    gone, closed, expired, last = (node.wait(wait=wait) for wait in (10.0, 10.0, 1.0, 10.0))
    gone.cancel()
    closed.session.closed = True
    node.clock.tick(1.0)
    assert expired.expire(node.clock())
    assert expired.outcome() is None
    node.leases.abandon(KEY, token)
    assert last.outcome()[0] == "load"


def test_a_closed_connection_waits_no_more(node: Node) -> None:
    token, session = node.load(), Session()
    deferred = node.wait(session)
    deferred.cancel()
    node.leases.free(session)
    node.leases.abandon(KEY, token)
    assert nothing_is_left(node)


def test_a_lease_whose_time_is_over_goes_to_whoever_asks(node: Node) -> None:
    token = node.load(seconds=3.0)
    waiter = node.wait(wait=10.0)
    assert waiter.deadline == 1003.0, "it is told when the time is over, and asks again"
    node.clock.tick(3.0)
    assert waiter.expire(node.clock())
    successor = node.load(waiter.session)
    assert not node.leases.accepts(KEY, token, ())
    assert node.leases.accepts(KEY, successor, ())


def test_who_waits_has_a_lease_whose_time_is_over_before_one_that_comes_later(node: Node) -> None:
    node.load(seconds=3.0)
    first = node.wait()
    node.clock.tick(3.0)
    second = node.wait()
    assert first.outcome()[0] == "load"
    assert second.waiting


def test_who_asks_again_over_the_same_connection_keeps_its_place(node: Node) -> None:
    token, session = node.load(), Session()
    early, late = node.wait(session, wait=1.0), node.wait()
    node.clock.tick(1.0)
    assert early.expire(node.clock())
    early = node.wait(session)
    node.leases.abandon(KEY, token)
    assert early.outcome()[0] == "load"
    assert late.waiting


def test_a_slow_loader_may_store_as_long_as_nobody_else_wanted_to_load(node: Node) -> None:
    token = node.load(seconds=3.0)
    node.clock.tick(100.0)
    assert node.leases.accepts(KEY, token, ())


# What makes a lease void -------------------------------------------------------------------------------------


def test_a_value_that_is_set_meanwhile_voids_the_lease_and_goes_to_those_who_wait(node: Node) -> None:
    token, waiter = node.load(), node.wait()
    node.leases.settle(KEY, Found(b"set"))
    assert waiter.outcome() == ["value", b"set", None, None]
    assert not node.leases.accepts(KEY, token, ())
    assert not node.leases.abandon(KEY, token)


def test_what_is_deleted_meanwhile_is_loaded_anew_by_the_next(node: Node) -> None:
    token, first, second = node.load(), node.wait(), node.wait()
    node.leases.settle(KEY, NOTHING)
    assert not node.leases.accepts(KEY, token, ())
    assert first.outcome()[0] == "load"
    node.leases.settle(KEY, NOTHING)
    assert second.outcome()[0] == "load"
    node.leases.settle(KEY, NOTHING)
    assert nothing_is_left(node)


def test_clearing_a_namespace_voids_its_leases_only(node: Node) -> None:
    inside, outside = node.load(key=b"\x02a1"), node.load(key=b"\x02b1")
    node.leases.void_all(b"\x02a")
    assert not node.leases.accepts(b"\x02a1", inside, ())
    assert node.leases.accepts(b"\x02b1", outside, ())


def test_a_tag_that_was_invalidated_since_the_lease_was_granted_voids_it(node: Node) -> None:
    before = node.load(key=b"\0before")
    node.leases.invalidate(b"tag")
    after = node.load(key=b"\0after")
    assert node.leases.accepts(b"\0before", before, [b"other"])
    assert not node.leases.accepts(b"\0before", before, [b"other", b"tag"])
    assert node.leases.accepts(b"\0after", after, [b"other", b"tag"])


def test_who_waits_for_a_value_with_an_invalid_tag_loads_it_anew(node: Node) -> None:
    token, waiter = node.load(), node.wait()
    node.leases.invalidate(b"tag")
    assert not node.leases.accepts(KEY, token, [b"tag"])
    successor = waiter.outcome()[1]
    assert node.leases.accepts(KEY, successor, [b"tag"])


def test_when_there_were_more_invalidations_than_are_kept_any_tag_may_have_been_among_them(
    node: Node,
) -> None:
    token = node.load()
    for number in range(5000):
        node.leases.invalidate(b"%d" % number)
    assert len(node.leases._invalidated) < 5000
    assert node.leases.accepts(KEY, token, ())
    assert not node.leases.accepts(KEY, token, [b"another"])


def test_invalidations_while_nothing_is_being_loaded_are_not_kept(node: Node) -> None:
    node.leases.invalidate(b"tag")
    token = node.load()
    assert not node.leases._invalidated
    assert node.leases.accepts(KEY, token, [b"tag"])


def test_keys_that_belong_to_another_node_are_forgotten_and_who_waits_is_told(node: Node) -> None:
    ours, theirs = node.load(key=b"\0ours"), node.load(key=b"\0theirs")
    waiters = {key: node.wait(key=key) for key in (b"\0ours", b"\0theirs")}
    node.leases.forget(lambda key: key == b"\0theirs", RuntimeError("another view"))
    assert node.leases.accepts(b"\0ours", ours, ())
    assert not node.leases.accepts(b"\0theirs", theirs, ())
    assert waiters[b"\0ours"].waiting
    with pytest.raises(RuntimeError, match="another view"):
        waiters[b"\0theirs"].outcome()


# Bounds ------------------------------------------------------------------------------------------------------


def test_one_connection_holds_only_so_many(node: Node) -> None:
    node, session = Node(max_per_session=3), Session()
    for number in range(3):
        node.load(session, key=b"\0%d" % number)
    with pytest.raises(QuotaExceeded):
        node.load(session, key=b"\0more")
    node.load(key=b"\0more")
    with pytest.raises(QuotaExceeded):
        node.wait(session, key=b"\0more")


def test_there_are_only_so_many_in_all_and_those_whose_time_is_over_make_room(node: Node) -> None:
    node = Node(
        max_bytes=6 * (KEY_OVERHEAD + 2), max_per_session=64
    )  # a client may use a third of what is free
    for number in range(3):
        node.load(key=b"\0%d" % number, seconds=2.0)
    with pytest.raises(QuotaExceeded):
        node.load(key=b"\x003")
    assert sorted(node.leases.by_key) == [b"\x000", b"\x001", b"\x002"]
    node.clock.tick(2.0)
    node.load(key=b"\x000")
    node.load(key=b"\x003")
    assert sorted(node.leases.by_key) == [b"\x000", b"\x003"]


def test_a_client_may_use_a_quarter_and_many_greedy_ones_leave_some_for_the_next() -> None:
    node = Node(max_bytes=400 * (KEY_OVERHEAD + 4), max_per_session=8)

    def take_all(owner: str) -> int:
        taken = 0
        with suppress(QuotaExceeded):
            while True:
                session = Session()  # of which a client may have many
                session.client = owner
                for _ in range(8):
                    node.load(session, key=b"\0%3d" % len(node.leases.by_key))
                    taken += 1
        return taken

    assert take_all("first") == 100
    assert take_all("second") == 75
    assert [take_all(f"client {number}") for number in range(4)] == [56, 42, 31, 24]
    assert take_all("last") == 18

    session = Session()
    session.client = "first"
    with pytest.raises(QuotaExceeded, match="Too many keys"):
        node.load(session, key=b"\0new")
    assert node.ask(session, key=b"\0  0", wait=0) is None, "it may wait for what it has already"
    node.leases.settle(b"\0  0", LIVE)
    with pytest.raises(QuotaExceeded):
        node.load(session, key=b"\0new")


def test_nothing_is_kept_of_callers_that_are_done(node: Node) -> None:
    sessions = [Session() for _ in range(50)]
    for number in range(20):
        key = b"\0%d" % number
        token = node.load(sessions[0], key=key)
        for session in sessions[1:]:
            node.wait(session, key=key)
        if number % 3 == 0:
            node.leases.settle(key, LIVE)
        elif number % 3 == 1:
            for session in sessions:
                node.leases.free(session)
        else:
            node.leases.abandon(key, token)
            node.leases.forget(lambda _: True, RuntimeError("gone"))
    assert nothing_is_left(node)
