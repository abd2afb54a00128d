"""What becomes of a lock that is released while it is being renewed."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pyrocache.client.context import ClientContext
from pyrocache.client.features import locks
from pyrocache.config import ClientConfig
from pyrocache.errors import LockLost
from pyrocache.runtime import clock
from tests.support.waiting import PATIENCE_SECONDS, wait_until


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
