"""`get_or_set` for coroutines: as in ``load_once.py``, but the factory is awaited in the caller's event loop.

The event loop never blocks: calls to nodes run in threads. Short calls run in a pool of `_THREADS` for each node, so
that calls to one node do not queue behind calls to another; nodes beyond `_MOST_POOLS` share a pool. Each call that
waits for another loader runs in a thread of its own, of which there are up to `_WAITING_THREADS`; further callers poll.
A call that stores a loaded value, and so ends the wait of other callers, is a short call. It never queues behind a call
that waits.

A coroutine that is cancelled or closed while it loads or waits releases its lease at once.

Thread safety: thread-safe, for event loops in any number of threads; the pools are shared by the whole process and
replaced in a child process after a fork.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, TypeVar

from pyrocache.client.context import ClientContext
from pyrocache.client.features.load_deadlock import Waiting
from pyrocache.client.features.load_once import Found, Load, LoadTask, find, still_loading
from pyrocache.errors import NodeUnavailable, OutOfResources, WaitTimeout
from pyrocache.net.backoff import Backoff
from pyrocache.runtime import at_fork
from pyrocache.runtime.shortage import explained
from pyrocache.tracebacks import users_frames

_T = TypeVar("_T")

_THREADS = 8
_MOST_POOLS = 32  # the nodes beyond share one
_WAITING_THREADS = 64
_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.1


async def get_or_set(load: Load[Awaitable[_T]]) -> _T:
    """Return the value, and load it if there is none; see `load_once.get_or_set`."""
    __tracebackhide__ = True
    node = owner(load.context, load.key)
    value, task = await _find(load, node)
    if task is not None:
        task.asynchronous = True
        with task:
            task.loaded(load.tags(), await load.factory())
        try:
            value = await _settle(task, node)
        except Exception as error:
            # Not the frames of the pool.
            error.__traceback__ = users_frames(error.__traceback__) or error.__traceback__
            raise
    return value  # type: ignore[no-any-return]


async def _settle(task: LoadTask, node: Hashable) -> Any:
    try:
        future = _submit(task.settle, node)
    except RuntimeError as error:  # no thread can be started
        return task.give_up(error)
    return await _result_of(future)


def owner(context: ClientContext, key: bytes) -> Hashable:
    """Return the `in_thread` argument for calls about a key: its node, as far as that is known without a request."""
    return context.config.nameserver, context.backend.known_owner(key)


async def in_thread(function: Callable[[], _T], node: Hashable = None) -> _T:
    """Run a short function in a thread and return its result. Calls to different nodes do not delay each other."""
    return await _result_of(_submit(function, node))


def _submit(function: Callable[[], _T], node: Hashable) -> Future[_T]:
    """Run a function in a thread of a pool. Raises `OutOfResources` if no thread can be started."""
    # The context has the marks of the factories that are running, by which a recursive load is recognized.
    job = _Job(partial(copy_context().run, function))
    try:
        with explained("The call was not made"):
            _threads.pool(node).submit(job)
    except BaseException:
        # The pool has queued it all the same. A thread that is started later must not run it: nobody takes the lease.
        if job.future.cancel():
            raise
    return job.future


class _Job(Generic[_T]):
    """A call with a future of its own, which can be cancelled until a thread begins it."""

    def __init__(self, function: Callable[[], _T]) -> None:
        self.future: Future[_T] = Future()
        self._function = function

    def __call__(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._function()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


async def _find(load: Load[Any], node: Hashable) -> Found:
    """Return the result of `load_once.find` without blocking the event loop. Raises as `load_once.find`."""
    try:
        return await _find_in_threads(load, node)
    except OutOfResources as error:
        load.context.missed(NodeUnavailable(f"A value was not looked up: {error}"), None)
        return Found(None, LoadTask(load))


async def _find_in_threads(load: Load[Any], node: Hashable) -> Found:
    wait_seconds = load.options.wait_seconds
    give_up_at = math.inf if wait_seconds is None else time.monotonic() + wait_seconds
    backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
    with Waiting(load.value) as waiting:
        while True:
            try:
                # A call that does not wait comes first. It usually finds the value, or gets the lease.
                return await in_thread(partial(find, load, 0.0), node)
            except WaitTimeout:
                left = give_up_at - time.monotonic()
                if left <= 0:
                    raise still_loading(wait_seconds) from None
            if _threads.permits.acquire(blocking=False):
                break
            # All permits for waiting threads are taken, so poll.
            waiting.check()
            await asyncio.sleep(min(backoff.next_pause(), left))
    cancelled = threading.Event()
    rest = None if wait_seconds is None else left
    try:
        return await _result_of(_threads.start_waiting(partial(find, load, rest, cancelled)))
    except (asyncio.CancelledError, GeneratorExit):
        cancelled.set()  # the thread ends after its current request
        raise


async def _result_of(future: Future[_T]) -> _T:
    try:
        return await asyncio.wrap_future(future)
    except (asyncio.CancelledError, GeneratorExit):
        future.add_done_callback(_drop_lease)
        raise
    finally:
        del future  # its exception refers to this frame


def _drop_lease(future: Future[Any]) -> None:
    """End the lease that was granted to a cancelled caller."""
    if not future.cancelled() and future.exception() is None:
        result = future.result()
        if isinstance(result, Found) and result.task is not None:
            result.task.drop()


class _Threads:
    """The threads of this process, which are started when they are first needed."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Create new pools and permits; in a forked child, none of the parent's threads exist."""
        self._lock = threading.Lock()  # guards: _pools
        self._pools: dict[Hashable, ThreadPoolExecutor] = {}
        self.permits = threading.Semaphore(_WAITING_THREADS)  # one for each thread that waits for a loader

    def pool(self, node: Hashable) -> ThreadPoolExecutor:
        """Return the pool for short calls to a node. Its threads start when they are needed."""
        with self._lock:
            if node not in self._pools and len(self._pools) >= _MOST_POOLS:
                node = None
            if node not in self._pools:
                self._pools[node] = ThreadPoolExecutor(_THREADS, thread_name_prefix="pyrocache-call")
            return self._pools[node]

    def start_waiting(self, function: Callable[[], _T]) -> Future[_T]:
        """Run a function in a thread of its own. The permit that the caller took is released when it ends.

        Raises:
            OutOfResources: no thread can be started; the permit is released.
        """
        job, permits = _Job(partial(copy_context().run, function)), self.permits
        job.future.add_done_callback(lambda _: permits.release())
        try:
            with explained("The call was not made"):
                # A daemon: a wait for another loader must not delay the end of the process.
                threading.Thread(target=job, name="pyrocache-wait", daemon=True).start()
        except BaseException:
            job.future.cancel()
            raise
        return job.future


_threads = _Threads()
at_fork.in_child(_threads.reset)
