"""Which factories of this process run and wait for other loads, and whether a wait could never end.

A *mark* stands for a factory that is running. The marks of the calling context (`loading`) are those of the factories
that are blocked until the caller returns. A caller that has marks and waits for another load is registered as an edge
of the wait-for graph. `Waiting.check` searches the graph: if every active load of the wanted key waits, directly or
not, for a mark of this caller, the wait is a deadlock. The last wait to be registered completes the cycle; registering
and searching hold one lock.

A worker thread that a factory started has no marks of its own. `thread_waits.waits_for_me` says whether the factory's
thread waits for it; its marks then count. That may begin after the worker's wait, so this is checked at each poll.

Limits: a load in another process is unknown here, and so is a coroutine's factory that waits for a thread without the
coroutine's context (``run_in_executor``). Such a wait ends with ``lease_seconds``. A task or thread that a factory
started with a copy of its context counts as part of the factory, even if the factory does not wait for it.

Thread safety: thread-safe; after a fork, the child has no marks except those of its context.
"""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Self, TypeAlias

from pyrocache.client.features.thread_waits import waits_for_me
from pyrocache.errors import LoadDeadlock
from pyrocache.runtime import at_fork, clock

_FIRST_POLL_SECONDS, _POLL_SECONDS = 0.125, 1.0

LoadId: TypeAlias = tuple[str, bytes]
"""The name server's address and the key of a value; the key contains the namespace."""


class Mark:
    """A factory that runs.

    Attributes:
        value: what it loads.
        leased: whether other callers wait for it.
        ends_at: when its lease is over, by `runtime.clock`.
        thread: the id of the thread that runs nothing else meanwhile; None for a coroutine.
    """

    __slots__ = ("ends_at", "leased", "thread", "value")

    def __init__(self, value: LoadId, leased: bool, ends_at: float, thread: int | None) -> None:
        self.value, self.leased, self.ends_at, self.thread = value, leased, ends_at, thread


loading: ContextVar[frozenset[Mark]] = ContextVar("pyrocache_loading", default=frozenset())
"""The marks of the factories that run in this context."""

_lock = threading.Lock()  # guards: _running, _waiting
_running: dict[LoadId, set[Mark]] = {}
_waiting: set[Waiting] = set()


def is_loading(value: LoadId) -> bool:
    """Return whether a factory that runs in this context loads ``value``."""
    return any(mark.value == value for mark in loading.get())


def loads_here(value: LoadId) -> bool:
    """Return whether any factory of this process loads ``value``."""
    return value in _running


Started: TypeAlias = tuple[Mark, Token[frozenset[Mark]]]
"""What `begin` returns for `end`."""


def begin(mark: Mark) -> Started:
    """Put a mark into this context, before its factory runs."""
    with _lock:
        _running.setdefault(mark.value, set()).add(mark)
    return mark, loading.set(loading.get() | {mark})


def end(started: Started) -> None:
    """Remove the mark of a factory that has ended."""
    mark, token = started
    with _lock:
        marks = _running.get(mark.value, set())
        marks.discard(mark)
        if not marks:
            _running.pop(mark.value, None)
    with suppress(ValueError):  # a coroutine that is closed in another context, which does not have the mark
        loading.reset(token)


class Waiting:
    """A caller that waits for another one to load ``value``. Registered from its first `check` to the end of its block.

    Attributes:
        value: what it waits for.
        marks: those of the factories that cannot go on before the wait ends.
    """

    __slots__ = ("_inherited", "_poll_seconds", "marks", "value")

    def __init__(self, value: LoadId) -> None:
        self.value = value
        self._inherited = loading.get()
        self._poll_seconds = 0.0
        self.marks = self._inherited

    def poll_seconds(self) -> float:
        """Return how long to wait at most until the next `check`; 0 if it is to come before any wait."""
        if not self._suspicious():
            return math.inf
        seconds = self._poll_seconds
        self._poll_seconds = min(seconds * 2 or _FIRST_POLL_SECONDS, _POLL_SECONDS)
        return seconds

    def check(self) -> None:
        """Raise `LoadDeadlock` if the wait cannot end. To be called after a node's answer that another caller loads."""
        if not self._suspicious():
            return
        with _lock:
            factories = [mark for marks in _running.values() for mark in marks if mark.thread is not None]
        threads = {mark.thread for mark in factories}
        behind_me = {thread for thread in threads if thread is not None and waits_for_me(thread)}
        with _lock:
            self.marks = self._inherited.union(mark for mark in factories if mark.thread in behind_me)
            _waiting.add(self)
            if self.marks and _leads_to(self.value, self.marks, set()):
                raise LoadDeadlock(
                    "A factory asked for a value whose load waits for this factory, directly or through other loads or "
                    "threads. Let factories ask for each other's values in one direction only."
                )

    def _suspicious(self) -> bool:
        """Return whether the wait may be part of a deadlock."""
        return bool(self._inherited) or loads_here(self.value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            _waiting.discard(self)


def _leads_to(value: LoadId, marks: frozenset[Mark], seen: set[LoadId]) -> bool:
    """Return whether no load of ``value`` can end before those of ``marks``; False if one may be in another process."""
    if value in seen:
        return False
    seen.add(value)
    now = clock.now()
    leased = [mark for mark in _running.get(value, ()) if mark.leased and now < mark.ends_at]
    return bool(leased) and all(mark in marks or _waits_in_vain(mark, marks, seen) for mark in leased)


def _waits_in_vain(mark: Mark, marks: frozenset[Mark], seen: set[LoadId]) -> bool:
    return any(_leads_to(other.value, marks, seen) for other in list(_waiting) if mark in other.marks)


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    _running.clear()
    _waiting.clear()


at_fork.in_child(_reset_after_fork)
