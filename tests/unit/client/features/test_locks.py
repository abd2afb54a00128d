"""What becomes of a lock whose grant is late, whose renewal is refused, or that is released while it is renewed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest

from pyrocache.client import backend as backends
from pyrocache.client.context import ClientContext
from pyrocache.client.features import locks
from pyrocache.client.routing.router import Router
from pyrocache.cluster.routing import Member
from pyrocache.config import ClientConfig
from pyrocache.errors import LockLost
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import Listing
from pyrocache.runtime import clock
from tests.support.scripted_peer import Line, ScriptedPeer, refusal_message, soon
from tests.support.waiting import PATIENCE_SECONDS, wait_until

Script: TypeAlias = Callable[[Line], None]
Scripted: TypeAlias = Callable[[Script], tuple[backends.Backend, ScriptedPeer]]


class Pinned:
    """A pinned connection on which the node has granted the token 1."""

    answer = 1
    closed = False

    def drop(self) -> None:
        self.closed = True

    release = drop


class Backend:
    """Grants every lock. ``during_release`` is called before the node knows of a release."""

    def __init__(self) -> None:
        self.pinned = Pinned()
        self.during_release: Any = lambda: None
        self.held = True

    def acquire(self, *_: Any) -> Any:
        return self.pinned

    def release(self, name: bytes, token: int, deadline: Any, pinned: Any = None) -> bool:
        self.during_release()
        if pinned is not None:
            pinned.release()
        elif self.pinned.closed:  # the node frees what was granted on a connection that is closed
            self.held = False
        return self.held


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def lock(backend: Any, monkeypatch: pytest.MonkeyPatch) -> locks.Lock:
    monkeypatch.setattr(locks._renewer, "watch", lambda grant: None)
    lock = locks.Lock(ClientContext(ClientConfig(), backend), "name", 1, 30, None)
    lock.acquire()
    return lock


def grant_of(lock: locks.Lock) -> locks.Grant:
    (grant,) = lock._owner.grants
    return grant


def grant_by(backend: Any, ttl_seconds: float, waited: float = 0.0) -> locks.Grant:
    pinned: Any = Pinned()
    return locks.Grant(backend, b"name", 1, ttl_seconds, pinned, clock.now() - waited)


def test_a_lock_whose_grant_may_have_been_long_under_way_is_renewed_at_once() -> None:
    """The process may have been suspended while the reply was under way, and the node have granted it to another."""
    assert grant_by(Backend(), 30.0, waited=9.0).renew_at > clock.now()
    late = grant_by(Backend(), 30.0, waited=11.0)
    assert late.renew_at < clock.now()
    assert late.held, "as far as this process knows"


def test_a_grant_that_was_under_way_for_its_whole_time_is_not_taken(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was suspended: the node may have granted the lock to another one by then."""
    given: list[Pinned] = []

    def acquire(*_: Any) -> Pinned:
        given.append(Pinned())
        until = clock.now() + 0.1
        while len(given) == 1 and clock.now() < until:
            pass
        return given[-1]

    monkeypatch.setattr(backend, "acquire", acquire)
    monkeypatch.setattr(locks._renewer, "watch", lambda grant: None)
    lock = locks.Lock(ClientContext(ClientConfig(), backend), "name", 1, 0.1, None)
    asked_at = clock.now()
    lock.acquire()
    assert len(given) > 1
    assert given[0].closed, "so that the node frees it"
    assert asked_at + 0.2 <= grant_of(lock).good_until <= clock.now() + 0.1


def test_a_release_gives_up_the_connection(backend: Backend, lock: locks.Lock) -> None:
    lock.release()
    assert backend.pinned.closed
    assert not lock.held


@pytest.mark.parametrize("answered_during_the_release", [True, False])
def test_a_lock_that_is_released_while_it_is_renewed_is_not_lost(
    backend: Backend, lock: locks.Lock, answered_during_the_release: bool
) -> None:
    grant = grant_of(lock)
    pinned = grant.take()
    assert pinned is not None
    if answered_during_the_release:
        backend.during_release = lambda: grant.put_back(pinned, lost=False)
    lock.release()
    if not answered_during_the_release:
        grant.put_back(pinned, lost=False)
        assert backend.pinned.closed


def test_a_renewal_that_fails_loses_the_lock(backend: Backend, lock: locks.Lock) -> None:
    grant = grant_of(lock)
    pinned = grant.take()
    assert pinned is not None
    grant.put_back(pinned, lost=True)
    assert backend.pinned.closed
    assert not lock.held
    assert lock.token is None
    with pytest.raises(LockLost):
        lock.release()


@pytest.mark.full
def test_an_unexpected_exception_does_not_end_the_thread_that_renews_locks() -> None:
    """Neither for the locks that are held, nor for those to come."""
    failures = [MemoryError(), ValueError()]
    renewed = threading.Event()

    class Flaky(Backend):
        def begin_renew(self, *_: Any) -> bool:
            if failures:
                raise failures.pop()
            renewed.set()
            return False

    renewer = locks._Renewer()
    grants = [grant_by(Flaky(), 0.3) for _ in range(3)]
    for grant in grants:
        renewer.watch(grant)
    assert renewed.wait(PATIENCE_SECONDS)
    assert failures == []
    for grant in grants:
        grant.over = True
    assert wait_until(lambda: not renewer.running)
    renewer.reset()


def test_a_renewing_thread_that_ends_for_any_reason_is_replaced_by_the_next_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(*_: Any) -> bool:
        raise SystemExit

    renewer = locks._Renewer()
    monkeypatch.setattr(renewer, "_renew", end)
    grant = grant_by(Backend(), 0.3)
    renewer.watch(grant)
    assert wait_until(lambda: not renewer.running)
    started = threading.Event()
    monkeypatch.setattr(renewer, "_renew", lambda *_: started.set() or True)
    renewer.watch(grant)
    assert started.wait(PATIENCE_SECONDS)
    assert wait_until(lambda: not renewer.running)
    renewer.reset()


def test_a_child_that_was_forked_need_not_release_what_its_parent_acquired(
    backend: Backend, lock: locks.Lock
) -> None:
    grant_of(lock)._process -= 1
    assert not lock.held
    lock._owner.grants.append(grant_by(backend, 30))
    assert lock.held
    lock.release()
    with pytest.raises(RuntimeError):
        lock.release()


@pytest.mark.parametrize("error", [KeyboardInterrupt, IndexError])
def test_an_interrupted_release_frees_the_lock(
    backend: Backend, lock: locks.Lock, error: type[BaseException]
) -> None:
    def interrupt() -> None:
        raise error

    backend.during_release = interrupt
    with pytest.raises(error):
        lock.release()
    assert backend.pinned.closed
    assert not lock.held


# A node without a lease --------------------------------------------------------------------------------------

TOKEN = 7 << 32


def answer(line: Line, *answers: Any) -> None:
    """Answer one request after the other: with a result, or with the refusal of that code."""
    for result in answers:
        line.request()
        line.send(refusal_message(line.sequence, result) if isinstance(result, str) else line.reply(result))


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A backend, and the only node that it knows."""
    with ExitStack() as stack:

        def start(script: Script) -> tuple[backends.Backend, ScriptedPeer]:
            peer = ScriptedPeer(script)
            backend = backends.Backend(Router(Directory(peer.member)))
            stack.callback(peer.close)
            stack.callback(backend.close)
            return backend, peer

        yield start


class Directory:
    """A name server that lists one node, in no view."""

    def __init__(self, member: Member) -> None:
        self._listing = Listing(members=(member,))

    def listing(self, timeout: float = 5.0) -> Listing:
        return self._listing


def granted(backend: backends.Backend, ttl_seconds: float) -> locks.Grant:
    asked_at = clock.now()
    pinned = backend.acquire(b"name", 1, ttl_seconds, 0.0, soon(), None)
    assert pinned is not None
    assert pinned.answer == TOKEN
    return locks.Grant(backend, b"name", TOKEN, ttl_seconds, pinned, asked_at)


def renew(grant: locks.Grant) -> None:
    """Do one round of renewals, as the renewing thread does, with its pipe."""
    renewer = locks._Renewer()
    renewer._grants.add(grant)
    grant.renew_at = clock.now()
    renewals: dict[int, Any] = {}
    renewer._begin_those_due(renewals)
    receiver, sender = os.pipe()
    try:
        while renewals:
            locks._receive(receiver, renewals, clock.now() + 1.0)
    finally:
        os.close(receiver)
        os.close(sender)


def test_a_renewal_that_a_node_without_a_lease_refuses_is_sent_again(scripted: Scripted) -> None:
    backend, peer = scripted(lambda line: answer(line, TOKEN, "not-serving", "not-serving", True))
    grant = granted(backend, 30.0)
    good_until = grant.good_until
    for _ in range(2):
        renew(grant)
        assert grant.held
        assert grant.good_until == good_until, "nothing was promised"
        assert grant.renew_at < clock.now() + 1.0
    renew(grant)
    assert grant.held
    assert grant.good_until > good_until
    assert peer.opened == 1
    grant.end()


def test_a_lock_whose_renewals_are_refused_is_lost_when_its_time_is_over(scripted: Scripted) -> None:
    closed = threading.Event()

    def script(line: Line) -> None:
        answer(line, TOKEN, "not-serving")
        line.wait_until_closed()
        closed.set()

    backend, _ = scripted(script)
    grant = granted(backend, 30.0)
    grant.good_until = clock.now()
    renew(grant)
    assert grant.over
    assert closed.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize("result", ["stale-view", "bad-request", "try-again", False])
def test_a_renewal_that_is_refused_for_another_reason_is_a_loss(scripted: Scripted, result: Any) -> None:
    backend, _ = scripted(lambda line: answer(line, TOKEN, result))
    grant = granted(backend, 30.0)
    renew(grant)
    assert grant.over
    assert not grant.held


def test_a_release_waits_until_the_node_can_tell_whether_the_lock_was_held(scripted: Scripted) -> None:
    """The connection stays open meanwhile: it has the grant."""
    left = ["not-serving", "not-serving", True]
    over = threading.Event()

    def script(line: Line) -> None:
        if line.number == 1:
            answer(line, TOKEN, left.pop(0))
            line.wait_until_closed()
            over.set()
        else:
            while left:
                assert not over.is_set()
                answer(line, left.pop(0))

    backend, _ = scripted(script)
    grant = granted(backend, 30.0)
    assert backend.release(b"name", TOKEN, soon(), grant.take()) is True
    assert left == []
    assert over.wait(PATIENCE_SECONDS)


def test_a_release_of_which_a_node_cannot_tell_for_long_is_not_known_to_be_good(scripted: Scripted) -> None:
    backend, _ = scripted(
        lambda line: answer(line, *([TOKEN] if line.number == 1 else []), *["not-serving"] * 99)
    )
    grant = granted(backend, 30.0)
    pinned = grant.take()
    assert pinned is not None
    assert backend.release(b"name", TOKEN, Deadline(0.2), pinned) is False
    assert pinned.closed
