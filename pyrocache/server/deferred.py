"""Replies that are made later: `Deferred`, and the `Session` that waits for one.

A call that waits for another caller, for a lease or a lock say, returns a `Deferred` instead of a result. No thread
waits with it: whoever has the result *gives* it, on whatever thread. A `Deferred` has exactly one outcome: what it was
given, what it was refused with, what it gives by itself at its deadline, or that its peer is gone. Which of them came
first is decided under its lock, so whoever gives is told reliably whether that was the outcome.

What was given may still never arrive: the connection may die before the reply is sent, or on the way. So whoever gives
something that others have to do without takes it back when the peer closes:

    if later.give(token):  # False: it waits no longer, so the next in line can have it
        later.peer.on_close(free)  # runs at once if the peer closed in between

Every method may be called on any thread. No lock of ours is held while a callback runs. `Deferred.give` and
`Deferred.refuse` may be called under a lock of the caller's: what they call takes none. `Session.on_close` may not be
called under a lock that its callback takes, as that may run at once.
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
    """Whoever is at the other end of one connection, for as long as that lasts.

    Attributes:
        closed: whether it is over; never False again.
        holds: of how many kinds of things, leases and locks, it has any; it is not closed for being idle then.
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

    def forget(self, callback: Callable[[], object]) -> None:
        """Do not call ``callback`` (one that equals it) any more. It may be running just now."""
        with self._lock:
            self._callbacks.pop(callback, None)

    def close(self) -> None:
        """The connection is closed: call everybody who wants to know. A second time does nothing."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks, {}
            self.closed = True
        for callback in callbacks:
            _call_safely(callback)


class Deferred:
    """The result of a call that is not there yet.

    Args:
        peer: who waits for it.
        deadline: when it gives ``at_deadline`` by itself (monotonic seconds).
        at_deadline: the result then.
        on_lapse: called once if it came to nothing: its deadline passed or its peer is gone. Never from within
            `give` or `refuse`, so it may take a lock that those are called under.

    Attributes:
        peer, deadline: as given.
    """

    __slots__ = (
        "_at_deadline",
        "_callback",
        "_lock",
        "_on_lapse",
        "_result",
        "_state",
        "deadline",
        "session",
    )

    def __init__(
        self,
        session: Session,
        deadline: float,
        at_deadline: Any = None,
        on_lapse: Callable[[], object] | None = None,
    ) -> None:
        self.session = session
        self.deadline = deadline
        self._at_deadline = at_deadline
        self._on_lapse = on_lapse
        self._lock = threading.Lock()  # guards: _state, _result, _callback, _on_lapse
        self._state = _WAITING
        self._result: Any = None
        self._callback: Callable[[], object] | None = None

    @property
    def waiting(self) -> bool:
        """Whether it has no outcome yet."""
        return self._state == _WAITING

    def give(self, result: Any) -> bool:
        """Make ``result`` the outcome; False, and nothing happens, if there is one already."""
        return self._settle(_GIVEN, result)

    def refuse(self, error: Exception) -> bool:
        """Make it the outcome that ``error`` is raised; False if there is one already."""
        return self._settle(_REFUSED, error)

    def expire(self, now: float) -> bool:
        """Give what it gives at its deadline, if ``now`` is not before that; False if it waits on or does no more."""
        return now >= self.deadline and self._settle(_GIVEN, self._at_deadline, lapsed=True)

    def cancel(self) -> bool:
        """Nobody waits for it any more; False if there is an outcome already."""
        return self._settle(_REFUSED, PyroError("Nobody waits for this call any more."), lapsed=True)

    def take(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once there is an outcome: on the thread that brings it, or now. There is one taker."""
        with self._lock:
            if self._state == _WAITING:
                self._callback = callback
                return
        _call_safely(callback)

    def outcome(self) -> Any:
        """What was given.

        Raises:
            PyroError: it was refused with this, or cancelled.
        """
        with self._lock:
            state, result = self._state, self._result
        if state == _GIVEN:
            return result
        raise result if state == _REFUSED else PyroError("This call has no outcome yet.")

    def wait(self, clock: Callable[[], float] = time.monotonic) -> Any:
        """Block until there is an outcome, which is at the deadline at the latest; returns or raises as `outcome`."""
        settled = threading.Event()
        self.take(settled.set)
        while not settled.wait(min(max(0.0, self.deadline - clock()), _LONGEST_WAIT_SECONDS)):
            if self.expire(clock()):
                break
        return self.outcome()

    def _settle(self, state: int, result: Any, *, lapsed: bool = False) -> bool:
        with self._lock:
            if self._state != _WAITING:
                return False
            self._state, self._result = state, result
            callback, on_lapse = self._callback, self._on_lapse
            self._callback = self._on_lapse = None  # they refer to this, and a cycle would stay for long
        if callback is not None:
            _call_safely(callback)
        if lapsed and on_lapse is not None:
            _call_safely(on_lapse)
        return True


class Deadlines:
    """The deadlines of many `Deferred`. For one thread.

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
        """Watch over ``deferred``."""
        self._added += 1
        self._open += 1
        heapq.heappush(self._heap, (deferred.deadline, self._added, deferred))
        self.first = self._heap[0][0]

    def discard(self, deferred: Deferred) -> None:
        """Watch over ``deferred`` no more: it has its outcome, or is about to be cancelled. Once for each added."""
        self._open -= 1
        if len(self._heap) > 2 * self._open + _FEW:  # most have their outcome long before: do not keep those
            self._heap = [entry for entry in self._heap if entry[2].waiting and entry[2] is not deferred]
            heapq.heapify(self._heap)

    def expire(self, now: float) -> None:
        """Have each whose deadline has come give what it gives then."""
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2].expire(now)
        self.first = self._heap[0][0] if self._heap else math.inf


def _call_safely(callback: Callable[[], object]) -> None:
    """Whatever a callback raises, the others are called too, and whoever gave goes on."""
    try:
        callback()
    except Exception as error:
        log.error("What was to happen after a wait failed with %s.", type(error).__name__)
