"""`AsyncLock`: locks and semaphores of the asyncio client.

What a lock promises, and how its time to live is counted, is said in ``client/features/locks.py``.

A grant belongs to the task that acquired the lock; without ``thread_local``, it belongs to the `AsyncLock`. When a task
ends without releasing, its grants end. Those of a lock that nobody refers to are garbage-collected, which frees it.
Therefore nothing refers to a grant for long: the timer of its renewal has a weak reference, and the renewal a strong
one, only while it waits for the node's answer.

Thread safety: thread-safe, for event loops in any number of threads. What a grant holds at its node is dropped in the
thread of the loop that acquired it.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from pyrocache.aio.grant_wait import GrantWait
from pyrocache.client.context import ClientContext, Duration, Ttl
from pyrocache.client.features.locks import (
    PAUSE_SECONDS,
    RENEWALS,
    LockOptions,
    Tenure,
    held_already,
    lost,
    not_held,
    timed_out,
)
from pyrocache.errors import LockTimeout, PyroCacheError
from pyrocache.net.deadline import Deadline
from pyrocache.runtime import clock

if TYPE_CHECKING:
    from pyrocache.aio.backend import AsyncBackend
    from pyrocache.aio.waiter import Waiter

log = logging.getLogger("pyrocache.client")

# The longest time that a timer sleeps: the clock of the event loop stands still while the machine sleeps.
_LONGEST_SLEEP_SECONDS = 2.0
_RENEWAL_SECONDS = 1.0  # the shortest time in which a renewal is to be answered


class AsyncGrant(Tenure):
    """One grant of a lock to a task or an `AsyncLock`, held or over. Made in the loop that acquired the lock.

    Attributes:
        loop: the event loop.
    """

    def __init__(
        self, backend: AsyncBackend, name: bytes, ttl_seconds: float, waiter: Waiter, asked_at: float
    ) -> None:
        super().__init__(waiter.answer, ttl_seconds, asked_at)
        self.loop = asyncio.get_running_loop()
        self._backend = backend  # an exception of a closed context's would end the renewals
        self._name = name
        self._waiter = waiter
        self._timer: asyncio.TimerHandle | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._finalizer = weakref.finalize(self, _drop_soon, self.loop, waiter)
        self._finalizer.atexit = False  # the connection closes then
        self._watch()

    @property
    def held(self) -> bool:
        """Whether this grant is still valid, as far as this process knows."""
        return self.valid and not self._waiter.closed

    async def release(self, backend: AsyncBackend, deadline: Deadline) -> bool:
        """Release the lock by ``backend``. Return whether it was held until then; False if the node does not answer."""
        try:
            if self.over or self.inherited:
                return False
            here = asyncio.get_running_loop() is self.loop
            return await backend.release(self._name, self.token, deadline, self._waiter if here else None)
        finally:
            self.end()

    def end(self) -> None:
        """Free the lock, if it is held, without waiting for the node."""
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._finalizer.detach() is None:
            return
        if _running_loop() is self.loop:
            self._waiter.drop()
        else:
            _drop_soon(self.loop, self._waiter)

    def _watch(self) -> None:
        """Renew the lock when it is time."""
        seconds = min(max(0.0, self.renew_at - clock.now()), _LONGEST_SLEEP_SECONDS)
        self._timer = self.loop.call_later(seconds, _wake, weakref.ref(self))

    def wake(self) -> None:
        """Begin a renewal if it is time."""
        if self.over or self._waiter.closed:
            return
        now = clock.now()
        if now >= self.good_until:
            self.end()
            return
        if now < self.renew_at:
            self._watch()
            return
        self._renewing = task = self.loop.create_task(self._renew())
        task.add_done_callback(self._renewal_ended)
        # As `asyncio.gather` does: the user, who knows nothing of this task, cannot end it before closing the loop.
        task._log_destroy_pending = False  # type: ignore[attr-defined]

    async def _renew(self) -> None:
        sent_at = clock.now()
        # Not the time that is left of the lock, which may be short: the node would be suspected of being silent.
        deadline = Deadline(max(self.ttl_seconds, _RENEWAL_SECONDS))
        held = await self._backend.renew(self._name, self.token, self.ttl_seconds, self._waiter, deadline)
        now = clock.now()
        if held is False or now >= self.good_until:
            self.end()
        elif held:
            self.renewed(sent_at)  # counted from the sending: the node may have received it at once
        else:
            self.renew_at = min(now + PAUSE_SECONDS, self.good_until)

    def _renewal_ended(self, task: asyncio.Task[None]) -> None:
        self._renewing = None  # which refers to this object
        if task.cancelled():  # by a program that cancels all tasks, and perhaps goes on
            self.renew_at = clock.now() + PAUSE_SECONDS
        elif (error := task.exception()) is not None:  # no memory, for example
            log.error("The renewal of a lock failed with %s; trying again.", type(error).__name__)
            self.renew_at = clock.now() + PAUSE_SECONDS
        if not self.over:
            self._watch()


def _wake(reference: weakref.ref[AsyncGrant]) -> None:
    if (grant := reference()) is not None:
        grant.wake()


def _drop_soon(loop: asyncio.AbstractEventLoop, waiter: Waiter) -> None:
    """Drop a waiter in the next turn of its loop: the garbage collector may run in any thread, and in any code."""
    with suppress(RuntimeError):  # the loop is closed, and the connection with it
        loop.call_soon_threadsafe(waiter.drop)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_Task: TypeAlias = "asyncio.Task[Any]"


class _OfTasks:
    """The grants of each task for one `AsyncLock`."""

    def __init__(self) -> None:
        self._grants: weakref.WeakKeyDictionary[_Task, list[AsyncGrant]] = weakref.WeakKeyDictionary()
        # A weak reference: a task must not keep a lock that nobody refers to.
        self._ended = partial(_task_ended, weakref.ref(self))

    def grants(self) -> list[AsyncGrant]:
        """Return the grants of the current task, oldest first. Change them with `add` and `remove`."""
        task = _current_task()
        return [] if task is None else self._grants.get(task, [])

    def add(self, grant: AsyncGrant) -> None:
        """Add a grant of the current task. It ends with the task."""
        task = _current_task()
        assert task is not None, "see `AsyncLock._acquire`"
        if task not in self._grants:
            self._grants[task] = []
            task.add_done_callback(self._ended)
        self._grants[task].append(grant)

    def pop(self) -> AsyncGrant | None:
        """Remove the oldest grant of the current task and return it; None if there is none."""
        task, grants = _current_task(), self.grants()
        grant = grants.pop(0) if grants else None
        if task is not None and not grants and self._grants.pop(task, None) is not None:
            task.remove_done_callback(self._ended)
        return grant

    def end(self, task: _Task) -> None:
        """End the grants of a task that has ended."""
        for grant in self._grants.pop(task, ()):
            grant.end()


def _task_ended(reference: weakref.ref[_OfTasks], task: _Task) -> None:
    if (owner := reference()) is not None:
        owner.end(task)


def _current_task() -> _Task | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop is running
        return None


class _OfObject:
    """The grants of an `AsyncLock`, with the methods of `_OfTasks`."""

    def __init__(self) -> None:
        self._grants: list[AsyncGrant] = []  # appending and popping are atomic
        self.add = self._grants.append

    def grants(self) -> list[AsyncGrant]:
        return self._grants

    def pop(self) -> AsyncGrant | None:
        try:
            return self._grants.pop(0)
        except IndexError:
            return None


class AsyncLock:
    """A lock or a semaphore: ``async with cache.lock("report"): ...``. It has the methods of `asyncio.Lock`.

    Creating one sends nothing. Any number of tasks may use one object. With ``thread_local``, each task acquires and
    releases for itself. Without it, the object is the owner: what one task acquired, another one may release.

    A call that is cancelled holds nothing afterwards.

    Args: as of `LockOptions`.
    """

    def __init__(
        self,
        context: ClientContext[AsyncBackend],
        name: object,
        limit: int,
        ttl_seconds: Duration,
        wait_seconds: Ttl,
        thread_local: bool = True,
    ) -> None:
        self._context = context
        self._options = LockOptions(context, name, limit, ttl_seconds, wait_seconds, thread_local)
        self._owner = _OfTasks() if thread_local else _OfObject()

    @property
    def token(self) -> int | None:
        """The fencing token of the last grant to this task, or to this object without ``thread_local``; None if none.

        As `Lock.token`.
        """
        if self._context.closed:
            return None
        return max((grant.token for grant in tuple(self._owner.grants()) if grant.held), default=None)

    @property
    def held(self) -> bool:
        """Whether this task holds it, or this object without ``thread_local``, as far as this process knows."""
        return self.token is not None

    async def locked(self) -> bool:
        """Ask the node whether `acquire` would have to wait: whether all permits are taken, by anybody.

        Raises:
            NodeUnavailable: the lock's node is unreachable, independent of ``on_error``.
        """
        backend: AsyncBackend = self._context.backend
        return await backend.holders(self._options.key, self._context.deadline()) >= self._options.limit

    async def acquire(self, blocking: bool = True, timeout: Duration | None = None) -> bool:
        """Acquire the lock, waiting if another holder has it. Return whether it was acquired.

        Args:
            blocking: whether to wait.
            timeout: how long to wait, in seconds or as a timedelta; -1 for no limit, None for the lock's own
                ``wait_seconds``.

        Returns:
            False if other callers held it all the time, or if too many calls of this client wait for its node. An
            ``async with`` statement raises `LockTimeout` instead.

        Raises:
            NodeUnavailable: the lock's node is unreachable, independent of ``on_error``.
            RuntimeError: this task holds it already, and would wait for itself (with ``thread_local``).
            ValueError: ``timeout`` is negative and not -1, or is not -1 with ``blocking=False``.
        """
        try:
            await self._acquire(self._options.seconds(blocking, timeout), blocking)
        except LockTimeout:
            return False
        return True

    async def _acquire(self, seconds: float | None, blocking: bool = True) -> None:
        """Acquire it within ``seconds``. Raises `LockTimeout`, and otherwise as `acquire`."""
        options, owner = self._options, self._owner
        if options.thread_local and _current_task() is None:
            raise RuntimeError("Only a task can acquire this lock: make it with thread_local=False.")
        if options.thread_local and owner.grants():
            if self.held:
                if blocking:
                    raise held_already("task")
                raise timed_out(0.0)
            while (old := owner.pop()) is not None:  # lost, and only this task could release them
                old.end()
        backend: AsyncBackend = self._context.backend
        with GrantWait(self._context, self._ask, seconds) as wait:
            waiter, asked_at = await self._wait_for(wait, seconds)
            # Nothing is awaited from here on, so no cancellation can come in between.
            owner.add(AsyncGrant(backend, options.key, options.ttl_seconds, waiter, asked_at))
            wait.give(None)

    async def _ask(self, poll: float, deadline: Deadline, waiter: Waiter | None) -> Waiter | None:
        # The backend of the moment, which raises once the context is closed.
        backend: AsyncBackend = self._context.backend
        options = self._options
        return await backend.acquire(options.key, options.limit, options.ttl_seconds, poll, deadline, waiter)

    async def _wait_for(self, wait: GrantWait, seconds: float | None) -> tuple[Waiter, float]:
        """Return the waiter that has the lock, and when the node was asked."""
        ttl_seconds = self._options.ttl_seconds
        while True:
            asked_at = clock.now()
            # Not longer, so that little of the time to live is over when the grant arrives, however late it was made.
            token = await wait.ask(ttl_seconds / RENEWALS)
            waiter = wait.waiter
            if token is not None and waiter is not None:
                if clock.now() < asked_at + ttl_seconds:
                    return waiter, asked_at
                waiter.drop()  # the grant was under way for so long that it may be over
            if wait.is_over():
                raise timed_out(seconds, at_limit=waiter is None)
            await wait.pause()

    async def release(self) -> None:
        """Release the lock that this task holds, or this object without ``thread_local``.

        Raises:
            LockLost: the lock was lost before, or its node did not answer. Another caller may have held it meanwhile.
            RuntimeError: it is not held: it was not acquired, or released already.
        """
        grant = self._owner.pop()
        while grant is not None and grant.inherited and self._owner.grants():
            grant = self._owner.pop()  # a forked child need not release what its parent acquired
        if grant is None:
            raise not_held("task" if self._options.thread_local else "object")
        # The backend of the moment, which raises once the context is closed.
        if not await grant.release(self._context.backend, self._context.deadline()):
            raise lost()

    async def __aenter__(self) -> Self:
        await self._acquire(self._options.wait_seconds)
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        try:
            await self.release()
        except PyroCacheError:
            if kind is None:  # the exception of the body is more informative
                raise

    def __repr__(self) -> str:
        return self._options.repr(self.token)

    def __reduce__(self) -> Any:
        raise TypeError(
            "An AsyncLock is not pickled: have cache.lock make one of the same name in the other process."
        )
