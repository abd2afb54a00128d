"""`waits_for_me`: whether another thread waits, without a time limit, for what the calling thread is running.

Read from the frames of both threads. A thread waits for a future in `Future.result`, `Future.exception`,
`concurrent.futures.wait` or `as_completed`, for a thread in `Thread.join` (as `ThreadPoolExecutor.shutdown` does), and
for a job of a ``multiprocessing.pool`` in `ApplyResult.wait` or `IMapIterator.next`. Other ways to wait are not
recognized: then the answer is no.

Thread safety: thread-safe. The frames are those of running threads, which may go on meanwhile.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent import futures
from concurrent.futures.thread import _WorkItem
from types import CodeType, FrameType
from typing import Any, TypeAlias

_Find: TypeAlias = Callable[[dict[str, Any]], Iterable[Hashable]]
"""Returns, from the local variables of a function, what it runs or waits for: futures, ids of threads, jobs."""


def waits_for_me(thread: int) -> bool:
    """Return whether the thread of that id waits for what the calling thread runs, perhaps through other threads."""
    frames = sys._current_frames()
    me = threading.get_ident()
    if thread == me or me not in frames:
        return False
    running = _running()
    mine = {me, *_found(frames.pop(me), running)}
    waiting = {thread} & frames.keys()
    while waiting:
        awaited = {thing for ident in waiting for thing in _found(frames.pop(ident), _awaiting())}
        if not mine.isdisjoint(awaited):
            return True
        between = (ident for ident, frame in frames.items() if awaited & {ident, *_found(frame, running)})
        waiting = set(between) if awaited else set()
    return False


def _found(frame: FrameType | None, known: dict[CodeType, _Find]) -> set[Hashable]:
    things: set[Hashable] = set()
    while frame is not None:
        find = known.get(frame.f_code)
        if find is not None:
            things.update(find(frame.f_locals))
        frame = frame.f_back
    return things


def _running() -> dict[CodeType, _Find]:
    """Return the functions that run something that another thread can wait for."""
    pool = sys.modules.get("multiprocessing.pool")  # imported only if the program uses it
    return (
        _RUNNING
        if pool is None
        else {**_RUNNING, pool.worker.__code__: lambda found: [("job", found.get("job"))]}
    )


def _awaiting() -> dict[CodeType, _Find]:
    """Return the functions that wait for something that another thread runs."""
    pool = sys.modules.get("multiprocessing.pool")
    if pool is None:
        return _AWAITING
    waits = (pool.ApplyResult.wait, pool.IMapIterator.next)
    return {**_AWAITING, **{wait.__code__: _unlimited(_job) for wait in waits}}


def _unlimited(find: _Find) -> _Find:
    """Return ``find`` for waits without a timeout only: others end by themselves."""
    return lambda found: find(found) if found.get("timeout") is None else ()


def _future(found: dict[str, Any]) -> list[Hashable]:
    return [found.get("self")]


def _all_futures(found: dict[str, Any]) -> Iterable[Hashable]:
    awaited = found.get("fs")
    # Before its first line, the function may have an iterator, which must not be used up here.
    return awaited if isinstance(awaited, set) and found.get("return_when") == futures.ALL_COMPLETED else ()


def _last_future(found: dict[str, Any]) -> Iterable[Hashable]:
    pending = found.get("pending") or ()
    return pending if len(pending) == 1 else ()  # it goes on after each one


_RUNNING: dict[CodeType, _Find] = {
    _WorkItem.run.__code__: lambda found: [getattr(found.get("self"), "future", None)]
}
_AWAITING: dict[CodeType, _Find] = {
    futures.Future.result.__code__: _unlimited(_future),
    futures.Future.exception.__code__: _unlimited(_future),
    futures.wait.__code__: _unlimited(_all_futures),
    futures.as_completed.__code__: _unlimited(_last_future),
    threading.Thread.join.__code__: _unlimited(lambda found: [getattr(found.get("self"), "ident", None)]),
}


def _job(found: dict[str, Any]) -> list[Hashable]:
    return [("job", getattr(found.get("self"), "_job", None))]
