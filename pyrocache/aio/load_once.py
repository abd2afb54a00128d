"""`get_or_set` of the asyncio client: load a missing value once, as ``client/features/load_once.py`` describes.

The factory may be a coroutine function, or any function whose result is awaited if it can be. A task that is cancelled
or closed while it loads or waits gives its lease back at once.

Tasks of one event loop that want the same value, while another caller loads it, wait as a `_Group`: one of them waits
at the node, for all. An answer is for the tasks that waited when its request was sent; later ones ask again, as a
change of their own may have come after it. A task that is granted the lease, or gives up, passes its turn on to the
next one. So a task never waits for the load of another task without asking the node, which alone knows whether that
load still counts. A task that runs in a factory waits for itself, because its wait may be part of a deadlock.

Starts no thread.

Thread safety: thread-safe, for event loops in any number of threads; each group belongs to one loop.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pyrocache.aio.grant_wait import GrantWait
from pyrocache.client.features import load_deadlock
from pyrocache.client.features.load_deadlock import Waiting
from pyrocache.client.features.load_once import (
    IF_MISSING,
    UNLESS_LOADING,
    UNREADABLE,
    Found,
    Load,
    LoadTask,
    refresh_is_due,
    still_loading,
)
from pyrocache.errors import CacheUnavailable, PyroCacheError, SerializationError
from pyrocache.net.deadline import Deadline

if TYPE_CHECKING:
    from pyrocache.aio.backend import AsyncBackend
    from pyrocache.aio.waiter import Waiter

_T = TypeVar("_T")


async def get_or_set(load: Load[Awaitable[_T]] | Load[_T]) -> _T:
    """Return the value, and load it if there is none; see `AsyncPyroCacheClient.get_or_set`."""
    __tracebackhide__ = True
    value, task = await _find(load, load.options.wait_seconds)
    if task is None:
        return value  # type: ignore[no-any-return]
    try:
        with task:
            tags, made = load.tags(), load.factory()
            task.loaded(tags, await made if inspect.isawaitable(made) else made)
        await (_store(task) if task.to_store else _abandon(task))
    except BaseException:  # cancelled, or the coroutine is closed
        task.drop()
        raise
    return task.result()  # type: ignore[no-any-return]


async def _store(task: LoadTask) -> None:
    """As `LoadTask.settle` for a value that is to be stored."""
    try:
        filling = task.filling()
        if filling is None:
            return
        stored = await task.load.context.backend.fill(*filling)
    except (PyroCacheError, MemoryError) as error:
        # End the lease, or other callers would wait until it expires.
        if isinstance(error, CacheUnavailable):
            task.drop()
        else:
            await _abandon(task)
        task.not_stored(error)
    else:
        task.filled(stored)


async def _abandon(task: LoadTask) -> None:
    """End the lease without storing a value, so that the next caller loads immediately."""
    if task.leased:
        await task.backend.abandon(task.load.key, task.token, task.pinned)


async def _find(load: Load[Any], wait_seconds: float | None) -> Found:
    """Return the value, or the task of loading it. Arguments and errors as of `load_once.find`."""
    begun = time.monotonic()
    try:
        try:
            if not load.refresh:
                found = await (_find_or_refresh_early(load) if load.options.early else _read(load))
                if found is not None:
                    return found
            return await _wait_or_load(load, wait_seconds)
        except SerializationError as error:
            load.context.count("undecodable")
            load.warn("A stored value does not decode here and is loaded anew", error)
        if wait_seconds is not None:
            wait_seconds = max(0.0, wait_seconds - (time.monotonic() - begun))
        return await _wait_or_load(load._replace(refresh=UNREADABLE), wait_seconds)
    except CacheUnavailable as error:
        # Either raises, or the value is loaded without a lease.
        load.context.missed(error, None)
    except SerializationError:
        pass  # two processes that know different classes would replace each other's values forever
    return Found(None, _task(load))


def _task(load: Load[Any], waiter: Waiter | None = None, token: int = 0) -> LoadTask:
    return LoadTask(load, waiter, token, asynchronous=True)


async def _read(load: Load[Any]) -> Found | None:
    """Return the value; None if there is none."""
    context = load.context
    frame = await context.backend.get(load.key, context.deadline())
    return None if frame is None else Found(context.decode(load.key, frame))


async def _readable(load: Load[Any]) -> Found | None:
    """Return the value; None if there is none or it does not decode."""
    with suppress(SerializationError):
        return await _read(load)
    return None


async def _find_or_refresh_early(load: Load[Any]) -> Found | None:
    """Return the value, or the task of an early refresh if one is due and no other caller loads; None if no value."""
    context = load.context
    answer = await context.backend.get_with_times(load.key, context.deadline())
    if answer is None:
        return None
    frame, remaining, load_seconds = answer
    found = Found(context.decode(load.key, frame))
    if refresh_is_due(load.options.early, remaining, load_seconds):
        # The value exists, so a failure to get the lease is not an error of this call.
        with suppress(PyroCacheError):
            task = (await _ask(load._replace(refresh=UNLESS_LOADING), 0.0)).task
            if task is not None:
                task.live = found.value
                return Found(None, task)
    return found


_LOOK: dict[int, Callable[[Load[Any]], Awaitable[Found | None]]] = {IF_MISSING: _read, UNREADABLE: _readable}


async def _wait_or_load(load: Load[Any], wait_seconds: float | None) -> Found:
    """Request the lease until the node grants it or has a value, perhaps through another task. Raises as `_find`."""
    if load.refresh not in _LOOK or wait_seconds == 0 or load_deadlock.loading.get():
        return await _ask(load, wait_seconds)
    groups = _groups_here()
    name = load.context.backend, load.key, load.refresh
    group = groups.get(name)
    if group is None:
        group = groups[name] = _Group(lambda: groups.pop(name, None))
    else:
        begun = time.monotonic()
        answer = await group.turn(wait_seconds)
        if isinstance(answer, CacheUnavailable):
            raise answer
        if answer is _TIMED_OUT:
            raise still_loading(wait_seconds)
        if answer is not _YOUR_TURN:
            return Found(load.context.decode(load.key, answer))
        if wait_seconds is not None:
            wait_seconds = max(0.0, wait_seconds - (time.monotonic() - begun))
    try:
        return await _ask(load, wait_seconds, group)
    except CacheUnavailable as error:
        group.share(error)
        raise
    finally:
        group.pass_on()


async def _ask(load: Load[Any], wait_seconds: float | None, group: _Group | None = None) -> Found:
    """Request the lease until the node grants it or has a value; ``group`` waits for the answer, too."""
    context, key, refresh = load.context, load.key, load.refresh
    recursive = load_deadlock.is_loading(load.value)

    async def ask(seconds: float, deadline: Deadline, waiter: Waiter | None) -> Waiter | None:
        if group is not None:
            group.begin()
        backend: AsyncBackend = (
            context.backend
        )  # the one of the moment, which raises once the context is closed
        return await backend.lease(key, load.options.lease_seconds, seconds, refresh, deadline, waiter)

    with GrantWait(context, ask, 0.0 if recursive else wait_seconds) as wait, Waiting(load.value) as waiting:
        while True:
            match await wait.ask(waiting.poll_seconds()):
                case None:
                    pass
                case ["load", token, frame]:
                    return await _granted(load, wait.give(_task(load, wait.waiter, token)), frame)
                case ["value", frame, _, _] | ["stale", frame]:
                    if group is not None:
                        group.share(frame)
                    return Found(context.decode(key, frame))
            # Load without a lease. Otherwise, there could be a deadlock: a factory would wait for its own lease, or
            # could not ask because of calls that wait for this factory.
            if recursive or (wait.crowded and load_deadlock.loading.get()):
                return Found(None, _task(load))
            # No request was sent, so look whether another caller has loaded the value meanwhile.
            if wait.waiter is None and refresh in _LOOK and (found := await _LOOK[refresh](load)) is not None:
                return found
            if wait.is_over():
                raise still_loading(wait_seconds)
            waiting.check()
            await wait.pause()


async def _granted(load: Load[Any], task: LoadTask, frame: Any) -> Found:
    """Return the task of a lease that the node has granted, or the value if there is one by now that decodes."""
    if load.refresh != UNREADABLE:
        return Found(None, task)
    try:
        # Another caller may have replaced the value between the read and the request.
        found = await _readable(load) if frame is None else _decoded(load, frame)
        if found is not None:
            await _abandon(task)
    except BaseException:
        task.drop()
        raise
    return found or Found(None, task)


def _decoded(load: Load[Any], frame: Any) -> Found | None:
    with suppress(SerializationError):
        return Found(load.context.decode(load.key, frame))
    return None


# Tasks that wait together ------------------------------------------------------------------------------------

_YOUR_TURN, _TIMED_OUT = object(), object()


class _Group:
    """The tasks of one event loop that want one value. One of them, which has the turn, asks the node.

    Args:
        forget: called when no task is left; the next task makes another group.
    """

    __slots__ = ("_asked", "_forget", "_later")

    def __init__(self, forget: Callable[[], object]) -> None:
        self._forget = forget
        # In the order in which they came: those that waited when the last request was sent, and those after it.
        self._asked: dict[asyncio.Future[Any], None] = {}
        self._later: dict[asyncio.Future[Any], None] = {}

    async def turn(self, seconds: float | None) -> Any:
        """Wait for the answer to another task's request, or for this task's turn.

        Returns:
            The frame of the value, a `CacheUnavailable`, `_YOUR_TURN`, or `_TIMED_OUT` after so many seconds.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._later[future] = None
        timer = None if seconds is None else loop.call_later(seconds, _give, future, _TIMED_OUT)
        try:
            return await future
        except BaseException:
            if future.done() and not future.cancelled() and future.result() is _YOUR_TURN:
                self.pass_on()  # cancelled when its turn had come
            raise
        finally:
            self._asked.pop(future, None)
            self._later.pop(future, None)
            if timer is not None:
                timer.cancel()

    def begin(self) -> None:
        """Note that a request is sent now: its answer is for all tasks that wait by now."""
        self._asked.update(self._later)
        self._later.clear()

    def share(self, answer: Any) -> None:
        """Give the answer to the tasks that waited when its request was sent: a frame, or an error."""
        if isinstance(answer, memoryview) and self._asked:
            answer = bytes(answer)  # a value may keep the memory of its frame, and change it
        for future in self._asked:
            _give(future, answer if isinstance(answer, bytes) else copy.copy(answer))
        self._asked.clear()

    def pass_on(self) -> None:
        """Give the turn to the task that has waited longest."""
        for waiting in (self._asked, self._later):
            for future in list(waiting):
                del waiting[future]
                if _give(future, _YOUR_TURN):
                    return
        self._forget()


def _give(future: asyncio.Future[Any], answer: Any) -> bool:
    """Answer a task that waits. Return False if it was cancelled, or has an answer."""
    if future.done() or future.get_loop().is_closed():
        return False
    future.set_result(answer)
    return True


_Groups: TypeAlias = dict[tuple[Any, bytes, int], _Group]

_groups: dict[asyncio.AbstractEventLoop, _Groups] = {}


def _groups_here() -> _Groups:
    """Return the groups of the running event loop, by backend, key and `Load.refresh`."""
    loop = asyncio.get_running_loop()
    groups = _groups.get(loop)
    if groups is None:
        for other in [other for other in list(_groups) if other.is_closed()]:
            _groups.pop(other, None)
        groups = _groups.setdefault(loop, {})
    return groups
