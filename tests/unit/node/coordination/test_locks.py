"""Who holds a lock, in which order the others get it, and when it is taken from its holder."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyrocache.node.coordination.claims import KEY_OVERHEAD, QuotaExceeded
from pyrocache.node.coordination.locks import Locks
from pyrocache.node.coordination.tokens import Tokens
from pyrocache.server.deferred import Deferred, Session
from pyrocache.testing import FakeClock

NAME = b"\0name"


class Node:
    """Locks, and those who want them."""

    def __init__(self, **bounds: int) -> None:
        self.clock = FakeClock(1000.0)
        self.tokens = Tokens(5)
        self.locks = Locks(self.tokens, self.clock, **bounds)

    def acquire(
        self,
        session: Session | None = None,
        name: bytes = NAME,
        *,
        limit: int = 1,
        ttl: float = 30.0,
        wait: float = 10.0,
    ) -> Any:
        return self.locks.acquire(name, session or Session(), limit, ttl, wait)

    def hold(self, session: Session | None = None, name: bytes = NAME, **options: Any) -> int:
        """Acquire at once."""
        token = self.acquire(session, name, **options)
        assert type(token) is int
        return token

    def wait(self, session: Session | None = None, **options: Any) -> Deferred:
        """Acquire, and have to wait."""
        deferred = self.acquire(session, **options)
        assert isinstance(deferred, Deferred)
        assert deferred.waiting
        return deferred


@pytest.fixture
def node() -> Node:
    return Node()


def nothing_is_left(node: Node) -> bool:
    locks = node.locks
    return not locks.by_key and not locks._keys and not locks._uses and not locks._bytes


def test_waiters_that_are_refused_lose_their_place_and_what_is_held_stays_so(node: Node) -> None:
    first, second = Session(), Session()
    token, kept = node.hold(first), node.wait(second, wait=5.0)
    kept.expire(node.clock() + 5.0)  # it may call again, and has its place until then
    refused = [node.wait(first, name=b"\0other"), node.wait()] if node.hold(name=b"\0other") else []
    node.locks.refuse_waiters(PermissionError("no"))
    for waiter in refused:
        with pytest.raises(PermissionError):
            waiter.outcome()
    assert (node.locks.held, node.locks.waiting) == (2, 0)
    assert node.locks.renew(NAME, token, 30.0)
    late, again = node.wait(), node.wait(second)
    first.close()
    node.locks.free(first)
    assert late.waiting
    assert again.outcome() > token, "it kept its place"


def test_what_is_given_up_after_a_refusal_passes_to_nobody(node: Node) -> None:
    holder, waiting = Session(), Session()
    token, waiter = node.hold(holder), node.wait(waiting)
    node.locks.refuse_waiters(PermissionError("no"))
    node.locks.free(holder)
    assert nothing_is_left(node)
    node.locks.free(waiting)
    with pytest.raises(PermissionError):
        waiter.outcome()
    assert node.hold() > token


def test_one_holds_it_and_the_others_have_it_in_the_order_in_which_they_came(node: Node) -> None:
    token = node.hold()
    waiters = [node.wait() for _ in range(3)]
    assert (node.locks.held, node.locks.waiting) == (1, 3)
    tokens = [token]
    for waiter in waiters:
        assert waiter.waiting
        assert node.locks.release(NAME, tokens[-1])
        tokens.append(waiter.outcome())
    assert tokens == sorted(set(tokens))
    assert node.locks.release(NAME, tokens[-1])
    assert nothing_is_left(node)


def test_only_its_holder_releases_it_and_only_once(node: Node) -> None:
    token = node.hold()
    assert not node.locks.release(NAME, token + 1)
    assert not node.locks.release(b"\0other", token)
    assert node.acquire(wait=0) is None
    assert node.locks.release(NAME, token)
    assert not node.locks.release(NAME, token)


def test_who_does_not_want_to_wait_is_told_at_once_and_leaves_nothing_behind(node: Node) -> None:
    node.locks.release(NAME, node.hold())
    token = node.hold()
    assert node.acquire(wait=0) is None
    assert node.locks.waiting == 0
    node.locks.release(NAME, token)
    assert nothing_is_left(node)


def test_a_semaphore_has_so_many_holders(node: Node) -> None:
    tokens = [node.hold(limit=3) for _ in range(3)]
    waiter = node.wait(limit=3)
    node.locks.release(NAME, tokens[1])
    assert waiter.outcome() > tokens[2]
    assert node.locks.held == 3


def test_a_closed_connection_releases_what_it_holds(node: Node) -> None:
    session = Session()
    node.hold(session)
    node.hold(session, name=b"\0other")
    waiter = node.wait()
    session.close()
    node.locks.free(session)
    assert type(waiter.outcome()) is int
    assert list(node.locks.by_key) == [NAME]


def test_a_closed_connection_waits_no_more(node: Node) -> None:
    token, session = node.hold(), Session()
    node.wait(session).cancel()
    node.locks.free(session)
    node.locks.release(NAME, token)
    assert nothing_is_left(node)


def test_one_that_is_not_renewed_goes_to_whoever_wants_it_once_its_time_is_over(node: Node) -> None:
    token = node.hold(ttl=3.0)
    waiter = node.wait()
    assert waiter.deadline == 1003.0, "it is told when the time is over, and asks again"
    node.clock.tick(2.9)
    assert node.acquire(wait=0) is None
    node.clock.tick(0.1)
    assert waiter.expire(node.clock())
    assert node.hold(waiter.session) > token
    assert not node.locks.renew(NAME, token, 3.0)
    assert not node.locks.release(NAME, token)


def test_one_that_is_renewed_stays(node: Node) -> None:
    token = node.hold(ttl=3.0)
    for _ in range(10):
        node.clock.tick(2.0)
        assert node.locks.renew(NAME, token, 3.0)
        assert node.acquire(wait=0) is None


def test_one_whose_time_is_over_is_still_its_holders_as_long_as_nobody_wants_it(node: Node) -> None:
    token = node.hold(ttl=3.0)
    node.clock.tick(100.0)
    assert node.locks.renew(NAME, token, 3.0)
    assert node.acquire(wait=0) is None


def test_who_waits_has_it_before_one_that_comes_later_and_does_not_want_to_wait(node: Node) -> None:
    node.hold(ttl=3.0)
    waiter = node.wait()
    node.clock.tick(3.0)
    assert node.acquire(wait=0) is None
    assert type(waiter.outcome()) is int


def test_who_asks_again_over_the_same_connection_keeps_its_place(node: Node) -> None:
    token, session = node.hold(), Session()
    early, late = node.wait(session, wait=1.0), node.wait()
    node.clock.tick(1.0)
    assert early.expire(node.clock())
    early = node.wait(session)
    node.locks.release(NAME, token)
    assert type(early.outcome()) is int
    assert late.waiting


def test_tokens_grow_within_a_view_and_with_each_view(node: Node) -> None:
    tokens = []
    for number in (
        5,
        5,
        6,
        100,
        50,
        101,
    ):  # that a view before comes again cannot happen, and would do no harm
        node.tokens.begin(number)
        token = node.hold()
        tokens.append(token)
        node.locks.release(NAME, token)
    first = [5 << 32, 5 << 32, 6 << 32, 100 << 32, 100 << 32, 101 << 32]
    assert tokens == [start + count for start, count in zip(first, (1, 2, 1, 1, 2, 1), strict=True)]


def test_names_that_belong_to_another_node_are_forgotten_and_who_waits_is_told(node: Node) -> None:
    token, waiter = node.hold(), node.wait()
    kept = node.hold(name=b"\0ours")
    node.locks.forget(lambda name: name == NAME, RuntimeError("another view"))
    assert not node.locks.renew(NAME, token, 3.0)
    assert node.locks.renew(b"\0ours", kept, 3.0)
    with pytest.raises(RuntimeError, match="another view"):
        waiter.outcome()
    node.locks.release(b"\0ours", kept)
    assert nothing_is_left(node)


def test_there_are_only_so_many_of_one_connection_and_in_all() -> None:
    node, session = Node(max_bytes=8 * (KEY_OVERHEAD + 2), max_per_session=2), Session()
    node.hold(session, name=b"\x000")
    node.hold(session, name=b"\x001")
    with pytest.raises(QuotaExceeded):
        node.hold(session, name=b"\x002")
    for name in (b"\x002", b"\x003", b"\x004"):
        node.hold(name=name)
    with pytest.raises(QuotaExceeded):
        node.hold(name=b"\x005")
    assert node.acquire(name=b"\x000", wait=0) is None


class Machine(RuleBasedStateMachine):
    """Some connections that acquire, release, renew, wait, hang up and let time pass, as they like."""

    LIMIT = 2

    def __init__(self) -> None:
        super().__init__()
        self.node = Node()
        self.sessions = [Session() for _ in range(4)]
        self.held: dict[int, tuple[Session, float]] = {}  # token -> holder, held at least until
        self.waiting: dict[Session, Deferred] = {}
        self.last_token = 0

    def has(self, session: Session, token: int, ttl: float) -> None:
        assert token > self.last_token
        self.last_token = token
        self.held[token] = (session, self.node.clock() + ttl)

    def collect(self) -> None:
        """Look at what those who waited have got."""
        for session, deferred in list(self.waiting.items()):
            if not deferred.waiting:
                del self.waiting[session]
                if deferred.outcome() is not None:
                    self.has(session, deferred.outcome(), 5.0)

    @rule(index=st.integers(0, 3), wait=st.sampled_from([0.0, 1.0, 20.0]))
    def acquire(self, index: int, wait: float) -> None:
        session = self.sessions[index]
        if session in self.waiting:
            return
        result = self.node.acquire(session, limit=self.LIMIT, ttl=5.0, wait=wait)
        self.collect()
        if isinstance(result, Deferred):
            self.waiting[session] = result
        elif result is not None:
            self.has(session, result, 5.0)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.held:
            token = data.draw(st.sampled_from(sorted(self.held)))
            _, until = self.held.pop(token)
            assert self.node.locks.release(NAME, token) or self.node.clock() >= until
            self.collect()

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        if self.held:
            token = data.draw(st.sampled_from(sorted(self.held)))
            session, until = self.held[token]
            if self.node.locks.renew(NAME, token, 5.0):
                self.held[token] = (session, self.node.clock() + 5.0)
            else:
                assert self.node.clock() >= until
                del self.held[token]

    @rule(index=st.integers(0, 3))
    def hang_up(self, index: int) -> None:
        session = self.sessions[index]
        deferred = self.waiting.pop(session, None)
        if deferred is not None:
            deferred.cancel()
        self.held = {token: holder for token, holder in self.held.items() if holder[0] is not session}
        session.close()
        self.node.locks.free(session)
        self.sessions[index] = Session()
        self.collect()

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0]))
    def tick(self, seconds: float) -> None:
        self.node.clock.tick(seconds)
        for deferred in self.waiting.values():
            deferred.expire(self.node.clock())
        self.collect()

    @invariant()
    def never_more_than_the_limit_are_sure_to_hold_it(self) -> None:
        now = self.node.clock()
        assert sum(now < until for _, until in self.held.values()) <= self.LIMIT

    @invariant()
    def nobody_waits_for_what_is_free(self) -> None:
        if self.waiting:
            assert self.node.locks.held >= self.LIMIT

    @invariant()
    def nothing_is_kept_without_need(self) -> None:
        if not self.node.locks.by_key:
            assert nothing_is_left(self.node)


TestMachine = Machine.TestCase
TestMachine.settings = settings(stateful_step_count=40, deadline=None)


def test_the_holders_are_those_who_would_keep_it(node: Node) -> None:
    assert node.locks.holders(NAME) == 0
    token = node.hold(limit=2)
    node.hold(limit=2, ttl=60.0)
    node.wait(limit=2)
    assert node.locks.holders(NAME) == 2
    node.clock.tick(30.0)
    assert node.locks.holders(NAME) == 1
    assert node.locks.renew(NAME, token, 30.0)
    assert node.locks.holders(NAME) == 2
