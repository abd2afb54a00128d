"""Deferred replies: `Deferred`, the promise of a result, and `Session`, the connection that waits for it.

A call that has to wait for another caller, such as for a lease or a lock, returns a `Deferred` instead of a result. No
thread is blocked meanwhile: any thread that has the result passes it to `give`. A `Deferred` has exactly one outcome:
the given result, a refusal, its default at its deadline, or a cancellation because its connection closed. The first one
is decided under the lock of the `Deferred`, so that `give` reports reliably whether its result became the outcome.

A given result may still be lost: the connection may close before or while the reply is sent. A caller that gives
something exclusive, such as a lock, must take it back when the session closes:

    if deferred.give(grant):  # False: it no longer waits, so grant it to the next in line
        deferred.session.on_close(free)  # runs at once if the session closed in between

A connection may have *waiters*: sessions of their own, which tasks of one client share a connection with. A waiter
ends when the client withdraws it, or with the connection.

No lock of this module is held while a callback runs. `Deferred.give` and `Deferred.refuse` may be called while the
caller holds a lock: the callback that they run, which the event loop has registered, acquires no lock.
`Session.on_close` may run its callback at once, so it must not be called while the caller holds a lock that the
callback acquires.

Thread safety: `Session` and `Deferred` are thread-safe; a `Deadlines` is used by one thread.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from Pyro5.errors import PyroError

from pyrocache.protocol.limits import MAX_WAITERS
from pyrocache.runtime.clock import now

log = logging.getLogger("pyrocache.node")

_LONGEST_WAIT_SECONDS = 3600.0  # per wait, as the operating system limits a wait's timeout
_FEW = 64  # a heap of fewer entries is not rebuilt, and fewer waiters are not looked through

_WAITING, _GIVEN, _REFUSED = range(3)


class Session:
    """The part of a connection that the calls which arrive on it may use; or one of its waiters.

    Args:
        parent: the session of the connection that this is a waiter of; None for a connection.

    Attributes:
        parent: as given.
        closed: whether the connection is closed. Once True, it stays True.
        holds: the number of kinds of grants (leases, locks) that it has, those of its waiters included. With any, the
            connection may be idle longer.
        client: the session of the client that its requests are identified by, equal for all its connections, also for
            quotas; None if they are not.
        last: the number and the reply of the last change, or None. `Outcomes` describes it.
        recent: of a caller that pipelines, the numbers and the replies of the last changes; else None.
    """

    __slots__ = (
        *("_callbacks", "_enough_waiters", "_lock", "_waiters"),
        *("client", "closed", "holds", "last", "parent", "recent"),
    )

    def __init__(self, parent: Session | None = None) -> None:
        self.parent = parent
        self.closed = False
        self.holds = 0
        self.client: bytes | None = None if parent is None else parent.client
        self.last: tuple[int, bytes] | None = None
        self.recent: deque[tuple[int, bytes]] | None = None
        self._lock = threading.Lock()  # guards: closed, _callbacks, _waiters
        self._callbacks: dict[tuple[Callable[..., object], Any], None] = {}  # an ordered set
        self._waiters: dict[int, Session] = {}
        self._enough_waiters = _FEW

    @property
    def owner(self) -> Hashable:
        """Return whose quotas count: the client's, if it is known, or the connection's."""
        return self.client or self.parent or self

    def hold(self, kinds: int) -> None:
        """Add to `holds`. The callers agree on a lock."""
        self.holds += kinds
        if self.parent is not None:
            self.parent.holds += kinds

    def waiter(self, number: int) -> Session | None:
        """Return the waiter with that number, which is made on first use; None if there are too many.

        Waiters that hold nothing any more are ended now and then. Call this on the I/O thread, as `end_waiter`.
        """
        waiter = self._waiters.get(number)
        if waiter is None:
            if len(self._waiters) >= self._enough_waiters:
                for idle in [each for each, other in self._waiters.items() if not other.holds]:
                    self.end_waiter(idle)
                self._enough_waiters = min(MAX_WAITERS, max(_FEW, 2 * len(self._waiters)))
                if len(self._waiters) >= MAX_WAITERS:
                    return None
            waiter = Session(self)
            with self._lock:
                if not self.closed:
                    self._waiters[number] = waiter
                    return waiter
            waiter.close()
        return waiter

    def end_waiter(self, number: int) -> bool:
        """Close the waiter with that number. Return False if there is none."""
        with self._lock:
            waiter = self._waiters.pop(number, None)
        if waiter is not None:
            waiter.close()
        return waiter is not None

    def on_close(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Call ``callback`` when the connection closes, on any thread; at once if it is closed already.

        A callback that is registered several times with equal arguments is called once.
        """
        with self._lock:
            if not self.closed:
                self._callbacks[callback, arguments] = None
                return
        _call_safely(callback, *arguments)

    def close(self) -> None:
        """Run the callbacks of `on_close`, and close the waiters. A second call does nothing."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks, {}
            waiters, self._waiters = self._waiters, {}
            self.closed = True
        for waiter in waiters.values():
            waiter.close()
        for callback, arguments in callbacks:
            _call_safely(callback, *arguments)


class Deferred:
    """The promise of a result.

    Args:
        session: the connection whose call waits for it.
        deadline: time at which the default becomes the outcome (seconds of `runtime.clock`).
        default: the result at the deadline.

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
        """Return whether it has no outcome yet."""
        # Without the lock: an outcome is final, and a caller that needs certainty uses the result of `give`.
        return self._state == _WAITING

    def give(self, result: Any) -> bool:
        """Make ``result`` the outcome. Return False, and do nothing, if there is one already."""
        return self._settle(_GIVEN, result)

    def refuse(self, error: Exception) -> bool:
        """Make a refusal the outcome: `outcome` raises ``error``. Return False if there is one already."""
        return self._settle(_REFUSED, error)

    def expire(self, now: float) -> bool:
        """Make the default the outcome if ``now`` is not before the deadline. Return whether that was done."""
        return now >= self.deadline and self._settle(_GIVEN, self._default)

    def cancel(self) -> bool:
        """Make a cancellation the outcome. Return False if there is an outcome already."""
        return self._settle(_REFUSED, PyroError("Nobody waits for this call any more."))

    def take(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when there is an outcome, on the thread that settles it, or now. Call this only once."""
        with self._lock:
            if self._state == _WAITING:
                self._callback = callback
                return
        _call_safely(callback)

    def outcome(self) -> Any:
        """Return the result that was given.

        Raises:
            Exception: the error of `refuse`.
            PyroError: it was cancelled, or has no outcome yet.
        """
        with self._lock:
            state, result = self._state, self._result
        if state == _GIVEN:
            return result
        raise result if state == _REFUSED else PyroError("This call has no outcome yet.")

    def wait(self, clock: Callable[[], float] = now) -> Any:
        """Block until there is an outcome, until the deadline at most. Return or raise it as `outcome` does."""
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
            # The callback refers to this object: a cycle would live until the next garbage collection.
            callback, self._callback = self._callback, None
        if callback is not None:
            _call_safely(callback)
        return True


class Deadlines:
    """A heap of the deadlines of many `Deferred`. Used by one thread.

    Attributes:
        first: the time (of `runtime.clock`) of the earliest deadline, at which `expire` must be called, or infinity.
    """

    __slots__ = ("_added", "_ahead", "_heap", "_open", "first")

    def __init__(self) -> None:
        self.first = math.inf
        self._heap: list[tuple[float, int, Deferred]] = []
        self._added = 0  # a tie-breaker: `Deferred` objects cannot be compared
        self._open = 0  # added and not discarded
        self._ahead = 0.0

    def add(self, deferred: Deferred) -> None:
        """Add ``deferred``: `expire` handles it at its deadline."""
        self._added += 1
        self._open += 1
        heapq.heappush(self._heap, (deferred.deadline, self._added, deferred))
        self.first = self._heap[0][0] - self._ahead

    def set_ahead(self, seconds: float) -> None:
        """Take the deadlines for times of a clock that is so many seconds ahead of `runtime.clock`."""
        if seconds != self._ahead:
            self._ahead = seconds
            self.first = self._heap[0][0] - seconds if self._heap else math.inf

    def discard(self, deferred: Deferred) -> None:
        """Forget ``deferred``, which has its outcome or is about to be cancelled. Call this once for each one added."""
        self._open -= 1
        if len(self._heap) > 2 * self._open + _FEW:  # most settle long before their deadline
            self._heap = [entry for entry in self._heap if entry[2].waiting and entry[2] is not deferred]
            heapq.heapify(self._heap)

    def expire(self, now: float) -> None:
        """Expire each `Deferred` whose deadline has passed."""
        now += self._ahead
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2].expire(now)
        self.first = self._heap[0][0] - self._ahead if self._heap else math.inf


def _call_safely(callback: Callable[..., object], *arguments: Any) -> None:
    """Call ``callback``. Log an exception, so that further callbacks run and the calling thread continues."""
    try:
        callback(*arguments)
    except Exception as error:
        log.error("A callback of a deferred call failed with %s.", type(error).__name__)
