"""`waits_for_me`: whether another thread waits, without a time limit, for what the calling thread is running.

Read from the frames of both threads. A thread waits for a future in `Future.result`, `Future.exception`,
`concurrent.futures.wait` or `as_completed`, for a thread in `Thread.join` (as `ThreadPoolExecutor.shutdown` does), and
for a job of a ``multiprocessing.pool`` in `ApplyResult.wait` or `IMapIterator.next`. Other ways to wait are not
recognized: then the answer is no.

Thread safety: thread-safe. The frames are those of running threads, which may go on meanwhile.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import CodeType, FrameType
from typing import Any, TypeAlias

_Find: TypeAlias = Callable[[dict[str, Any]], Iterable[Hashable]]
"""Returns, from the local variables of a function, what it runs or waits for: futures, ids of threads, jobs."""

_Function: TypeAlias = tuple[str, str, _Find]


def waits_for_me(thread: int) -> bool:
    """Return whether the thread of that id waits for what the calling thread runs, perhaps through other threads."""
    frames = _frames()
    me = threading.get_ident()
    if thread == me or me not in frames:
        return False
    running, awaiting = _by_code(_RUNNING), _by_code(_AWAITING)
    mine = {me, *_found(frames.pop(me), running)}
    waiting = {thread} & frames.keys()
    while waiting:
        awaited = {thing for ident in waiting for thing in _found(frames.pop(ident), awaiting)}
        if not mine.isdisjoint(awaited):
            return True
        between = (ident for ident, frame in frames.items() if awaited & {ident, *_found(frame, running)})
        waiting = set(between) if awaited else set()
    return False


_collections = threading.Lock()  # guards: whether garbage is collected, while `_frames` runs


def _frames() -> dict[int, FrameType]:
    """Return the frame of each thread, by its id. No garbage is collected meanwhile.

    Until Python 3.12.1, `sys._current_frames` creates objects while it holds a lock that every new thread needs. If
    that starts a collection that runs Python code (a finalizer, or a function in `gc.callbacks`), another thread may
    get the GIL and wait for this lock for ever, with the GIL.
    """
    with _collections:
        collects = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if collects:
                gc.enable()


def _found(frame: FrameType | None, known: dict[CodeType, _Find]) -> set[Hashable]:
    things: set[Hashable] = set()
    while frame is not None:
        find = known.get(frame.f_code)
        if find is not None:
            things.update(find(frame.f_locals))
        frame = frame.f_back
    return things


def _unlimited(find: _Find) -> _Find:
    """Return ``find`` for waits without a timeout only: others end by themselves."""
    return lambda found: find(found) if found.get("timeout") is None else ()


def _future(found: dict[str, Any]) -> list[Hashable]:
    return [found.get("self")]


def _all_futures(found: dict[str, Any]) -> Iterable[Hashable]:
    awaited = found.get("fs")
    # Before its first line, the function may have an iterator, which must not be used up here.
    return awaited if isinstance(awaited, set) and found.get("return_when") == "ALL_COMPLETED" else ()


def _last_future(found: dict[str, Any]) -> Iterable[Hashable]:
    pending = found.get("pending") or ()
    return pending if len(pending) == 1 else ()  # it goes on after each one


def _job(found: dict[str, Any]) -> list[Hashable]:
    return [("job", getattr(found.get("self"), "_job", None))]


# Modules, names of functions in them, and what these run or wait for. They are looked up among the imported modules:
# what a program has not imported runs nothing in it, and importing it here would make it slower to start.
_FUTURES, _POOL = "concurrent.futures._base", "multiprocessing.pool"
_RUNNING: Sequence[_Function] = (
    (
        "concurrent.futures.thread",
        "_WorkItem.run",
        lambda found: [getattr(found.get("self"), "future", None)],
    ),
    (_POOL, "worker", lambda found: [("job", found.get("job"))]),
)
_AWAITING: Sequence[_Function] = (
    (_FUTURES, "Future.result", _unlimited(_future)),
    (_FUTURES, "Future.exception", _unlimited(_future)),
    (_FUTURES, "wait", _unlimited(_all_futures)),
    (_FUTURES, "as_completed", _unlimited(_last_future)),
    ("threading", "Thread.join", _unlimited(lambda found: [getattr(found.get("self"), "ident", None)])),
    (_POOL, "ApplyResult.wait", _unlimited(_job)),
    (_POOL, "IMapIterator.next", _unlimited(_job)),
)


def _by_code(functions: Iterable[_Function]) -> dict[CodeType, _Find]:
    """Return what the imported ones of these functions run or wait for, by their code."""
    return {code: find for module, name, find in functions if (code := _code_of(module, name)) is not None}


def _code_of(module: str, name: str) -> CodeType | None:
    found: Any = sys.modules.get(module)  # another thread may be importing it: then it is not complete
    for part in (*name.split("."), "__code__"):
        found = getattr(found, part, None)
    return found if isinstance(found, CodeType) else None
