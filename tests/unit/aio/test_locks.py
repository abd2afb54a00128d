"""What becomes of a grant of the asyncio client: its renewals, its release, and in which thread it is dropped."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pyrocache.aio.locks import AsyncGrant, AsyncLock
from pyrocache.client.context import ClientContext
from pyrocache.config import ClientConfig
from pyrocache.errors import LockLost
from pyrocache.runtime import clock


class Waiter:
    """A waiter, which remembers the thread in which it was dropped."""

    def __init__(self, answer: Any = 1) -> None:
        self.answer = answer
        self.dropped_in: threading.Thread | None = None

    @property
    def closed(self) -> bool:
        return self.dropped_in is not None

    def drop(self) -> None:
        self.dropped_in = self.dropped_in or threading.current_thread()


NEVER = object()


class ScriptedBackend:
    """A backend that grants each lock, and answers renewals and releases as it is told."""

    def __init__(self) -> None:
        self.waiters: list[Waiter] = []
        self.renewals: list[Any] = []
        self.deadlines: list[float] = []
        self.releases: list[Any] = []
        self.during_acquire: Callable[[], object] = lambda: None

    async def acquire(self, *_: Any) -> Waiter:
        self.waiters.append(Waiter())
        self.during_acquire()
        return self.waiters[-1]

    async def renew(self, name: bytes, token: int, ttl: float, waiter: Waiter, deadline: Any) -> Any:
        self.deadlines.append(deadline.seconds)
        answer = self.renewals.pop(0)
        if answer is NEVER:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def release(self, name: bytes, token: int, deadline: Any, waiter: Waiter | None = None) -> bool:
        self.releases.append(waiter)
        return True


def lock_of(backend: Any, ttl_seconds: float = 30, thread_local: bool = False) -> AsyncLock:
    context: Any = ClientContext(ClientConfig(), backend)
    return AsyncLock(context, "name", 1, ttl_seconds, None, thread_local)


def grant_of(lock: AsyncLock) -> AsyncGrant:
    (grant,) = lock._owner.grants()
    return grant


async def renew(grant: AsyncGrant) -> None:
    """Renew now."""
    grant.renew_at = clock.now()
    grant.wake()
    assert grant._renewing is not None
    await asyncio.wait([grant._renewing])
    await asyncio.sleep(0)


def test_after_each_answer_to_a_renewal() -> None:
    async def main() -> None:
        backend = ScriptedBackend()
        lock = lock_of(backend)
        await lock.acquire()
        grant, now = grant_of(lock), clock.now()
        backend.renewals = [True, None, MemoryError(), False]
        await renew(grant)
        assert now + 10 <= grant.renew_at <= clock.now() + 10
        for _ in range(2):  # the node cannot tell, or something failed here: soon again
            await renew(grant)
            assert lock.held
            assert clock.now() < grant.renew_at < clock.now() + 1
        await renew(grant)
        assert not lock.held
        assert backend.waiters[0].closed
        with pytest.raises(LockLost):
            await lock.release()

    asyncio.run(main())


def test_a_lock_is_lost_when_its_time_is_over_and_a_renewal_always_has_time() -> None:
    """A call with a deadline that no node can keep would make the node one that seems to hang."""

    async def main() -> None:
        backend = ScriptedBackend()
        lock = lock_of(backend)
        await lock.acquire()
        grant = grant_of(lock)
        backend.renewals = [None]
        grant.good_until = clock.now() + 0.1
        await renew(grant)
        assert backend.deadlines == [30.0]
        assert grant.renew_at == grant.good_until
        grant.good_until = grant.renew_at = clock.now()
        grant.wake()
        assert grant._renewing is None
        assert grant.over
        assert backend.waiters[0].closed

    asyncio.run(main())


def test_a_grant_whose_time_is_over_is_not_renewed() -> None:
    async def main() -> None:
        backend = ScriptedBackend()
        lock = lock_of(backend)
        await lock.acquire()
        grant = grant_of(lock)
        grant.renew_at = grant.good_until = clock.now()
        grant.wake()
        assert grant.over
        assert grant._renewing is None
        assert backend.waiters[0].closed

    asyncio.run(main())


def test_a_grant_that_was_under_way_for_its_whole_time_is_not_taken() -> None:
    async def main() -> None:
        backend = ScriptedBackend()

        def late() -> None:
            until = clock.now() + 0.05
            while len(backend.waiters) == 1 and clock.now() < until:
                pass

        backend.during_acquire = late
        lock = lock_of(backend, 0.05)
        await lock.acquire()
        first, second = backend.waiters
        assert first.closed, "so that the node frees it"
        assert not second.closed

    asyncio.run(main())


def test_a_waiter_is_used_in_its_own_loop_only() -> None:
    """The object owns the lock, and another thread releases it, or the garbage collector runs there."""

    async def main() -> None:
        backend = ScriptedBackend()
        lock = lock_of(backend)
        await lock.acquire()
        await asyncio.to_thread(asyncio.run, lock.release())
        assert backend.releases == [None], "over a connection of the other loop"
        await asyncio.sleep(0)
        locks = [lock_of(backend)]
        await locks[0].acquire()
        await asyncio.to_thread(locks.clear)
        await asyncio.to_thread(gc.collect)
        await asyncio.sleep(0)
        assert [waiter.dropped_in for waiter in backend.waiters] == [threading.current_thread()] * 2

    asyncio.run(main())


def test_only_a_task_can_own_a_lock_for_itself() -> None:
    loop = asyncio.new_event_loop()
    try:
        lock = lock_of(ScriptedBackend(), thread_local=True)
        problems: list[BaseException] = []

        def without_a_task() -> None:
            try:
                lock.acquire().send(None)
            except RuntimeError as error:
                problems.append(error)
            loop.stop()

        loop.call_soon(without_a_task)
        loop.run_forever()
    finally:
        loop.close()
    assert "thread_local=False" in str(problems[0])
