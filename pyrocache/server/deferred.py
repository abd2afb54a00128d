"""Deferred replies: `Deferred`, the promise of a result, and the `Session` of the connection that waits for it.

A call that has to wait for another caller, for a lease or a lock say, returns a `Deferred` instead of a result. No
thread waits with it: whoever has the result gives it, on whatever thread. A `Deferred` has exactly one outcome: what it
was given, what it was refused with, its default at its deadline, or a cancellation because its connection closed. Which
of them came first is decided under its lock, so that `give` tells reliably whether it was the outcome.

A result that was given may still never arrive: the connection may die before or while the reply is sent. Whoever gives
something that others have to do without takes it back when the session closes:

    if deferred.give(token):  # False: it waits no longer, so the next in line can have the token
        deferred.session.on_close(free)  # runs at once if the session closed in between

Every method may be called on any thread. No lock of this module is held while a callback runs. `Deferred.give` and
`Deferred.refuse` may be called under a lock of the caller's, as their callback takes none. `Session.on_close` may not
be called under a lock that its callback takes, as that may run at once.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from Pyro5.errors import PyroError

log = logging.getLogger("pyrocache.node")

_LONGEST_WAIT_SECONDS = 3600.0  # at a time, as a system's wait has a limit
_FEW = 64

_WAITING, _GIVEN, _REFUSED = range(3)


class Session:
    """One connection, as the calls that come over it know it.

    Attributes:
        closed: whether the connection is closed; never False again.
        holds: how many kinds of things, leases and locks, it has. While there are any it may be idle for longer.
    """

    __slots__ = ("_callbacks", "_lock", "closed", "holds")

    def __init__(self) -> None:
        self.closed = False
        self.holds = 0
        self._lock = threading.Lock()  # guards: closed, _callbacks
        self._callbacks: dict[Callable[[], object], None] = {}  # in order, each once

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once, when the connection closes, on any thread; at once if it is closed already."""
        with self._lock:
            if not self.closed:
                self._callbacks[callback] = None
                return
        _call_safely(callback)

    def close(self) -> None:
        """Call everybody who wants to know that the connection is closed. A second time does nothing."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks, {}
            self.closed = True
        for callback in callbacks:
            _call_safely(callback)


class Deferred:
    """The promise of a result.

    Args:
        session: whose call waits for it.
        deadline: when it gets its default by itself (monotonic seconds).
        default: the result then.

    Attributes:
        session, deadline: as given.
    """

    __slots__ = ("_callback", "_default", "_lock", "_result", "_state", "deadline", "session")

    def __init__(self, session: Session, deadline: float, default: Any = None) -> None:
        self.session = session
        self.deadline = deadline
        self._default = default
        self._lock = threading.Lock()  # guards: _state, _result, _callback
        self._state = _WAITING
        self._result: Any = None
        self._callback: Callable[[], object] | None = None

    @property
    def waiting(self) -> bool:
        """Whether it has no outcome yet."""
        return self._state == _WAITING

    def give(self, result: Any) -> bool:
        """Make ``result`` the outcome. Return False, and do nothing, if there is one already."""
        return self._settle(_GIVEN, result)

    def refuse(self, error: Exception) -> bool:
        """Make it the outcome that ``error`` is raised. Return False if there is one already."""
        return self._settle(_REFUSED, error)

    def expire(self, now: float) -> bool:
        """Make the default the outcome if ``now`` is not before the deadline. Return whether that was done."""
        return now >= self.deadline and self._settle(_GIVEN, self._default)

    def cancel(self) -> bool:
        """Make it the outcome that nobody waits any more. Return False if there is one already."""
        return self._settle(_REFUSED, PyroError("Nobody waits for this call any more."))

    def take(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once there is an outcome: on the thread that brings it, or now. There is one taker."""
        with self._lock:
            if self._state == _WAITING:
                self._callback = callback
                return
        _call_safely(callback)

    def outcome(self) -> Any:
        """Return what was given.

        Raises:
            Exception: what it was refused with, or PyroError: it was cancelled, or waits.
        """
        with self._lock:
            state, result = self._state, self._result
        if state == _GIVEN:
            return result
        raise result if state == _REFUSED else PyroError("This call has no outcome yet.")

    def wait(self, clock: Callable[[], float] = time.monotonic) -> Any:
        """Block until there is an outcome, at the deadline at the latest, and return or raise it as `outcome` does."""
        settled = threading.Event()
        self.take(settled.set)
        while not settled.wait(min(max(0.0, self.deadline - clock()), _LONGEST_WAIT_SECONDS)):
            if self.expire(clock()):
                break
        return self.outcome()

    def _settle(self, state: int, result: Any) -> bool:
        with self._lock:
            if self._state != _WAITING:
                return False
            self._state, self._result = state, result
            # The callback refers to this, and a cycle would stay for long.
            callback, self._callback = self._callback, None
        if callback is not None:
            _call_safely(callback)
        return True


class Deadlines:
    """The deadlines of many `Deferred`, for one thread.

    Attributes:
        first: when `expire` is to be called next, at the latest (monotonic seconds), or infinity.
    """

    __slots__ = ("_added", "_heap", "_open", "first")

    def __init__(self) -> None:
        self.first = math.inf
        self._heap: list[tuple[float, int, Deferred]] = []
        self._added = 0  # so that equal deadlines never compare what they are of
        self._open = 0  # added and not discarded

    def add(self, deferred: Deferred) -> None:
        """Expire ``deferred`` in time."""
        self._added += 1
        self._open += 1
        heapq.heappush(self._heap, (deferred.deadline, self._added, deferred))
        self.first = self._heap[0][0]

    def discard(self, deferred: Deferred) -> None:
        """Forget ``deferred``: it has its outcome, or is about to be cancelled. Call this once for each added."""
        self._open -= 1
        if len(self._heap) > 2 * self._open + _FEW:  # most have their outcome long before: do not keep those
            self._heap = [entry for entry in self._heap if entry[2].waiting and entry[2] is not deferred]
            heapq.heapify(self._heap)

    def expire(self, now: float) -> None:
        """Expire each whose deadline has come."""
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2].expire(now)
        self.first = self._heap[0][0] if self._heap else math.inf


def _call_safely(callback: Callable[[], object]) -> None:
    """Call ``callback``; if it raises, the others are called all the same, and whoever gave a result goes on."""
    try:
        callback()
    except Exception as error:
        log.error("A callback of a deferred call failed with %s.", type(error).__name__)
