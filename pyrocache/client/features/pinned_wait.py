"""`PinnedWait`: wait at a node for something that it grants later, a lease or a lock.

The node answers such a request when it grants it, or with None when the poll interval is over. The caller then sends
the request again over the same connection, which keeps its place in the queue. A grant ends with its connection.

A caller never waits for another caller's connection. When too many calls of this client wait for a node, the backend
sends a request that does not wait; if no connection is left, it sends none. In both cases the caller pauses and then
tries again. ``net/pinned.py`` is the connection.

`WaitTimes` is the part without I/O, for the asyncio client, too.

Thread safety: not thread-safe; each `PinnedWait` is used by one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Self, TypeAlias, TypeVar

from pyrocache.client.context import ClientContext, Duration
from pyrocache.config import to_seconds
from pyrocache.net.backoff import Backoff
from pyrocache.net.deadline import Deadline
from pyrocache.net.pinned import PinnedConnection

_T = TypeVar("_T")

POLL_SECONDS = 10.0
"""The poll interval: seconds that one request waits at the node, at most, and not longer than the client's timeout. It
bounds the time until an unreachable node is noticed."""

_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.05

Ask: TypeAlias = Callable[[float, Deadline, PinnedConnection | None], PinnedConnection | None]
"""Sends one request; takes the seconds to wait, the deadline and the connection of the previous request."""


def wait_to_seconds(wait_seconds: Duration | None) -> float | None:
    """Return a wait in seconds, None for no limit. Raises `TypeError` or `ValueError` if it is not valid."""
    return None if wait_seconds is None else to_seconds(wait_seconds, "wait_seconds")


class WaitTimes:
    """When one caller asks, how long a request may wait at the node, and the pauses between requests.

    Args:
        wait_seconds: how long to wait; None for no limit.
    """

    __slots__ = ("_asked_at", "_backoff", "_give_up_at", "_seconds")

    def __init__(self, wait_seconds: float | None) -> None:
        self._asked_at = self._seconds = 0.0
        self._give_up_at = math.inf if wait_seconds is None else time.monotonic() + wait_seconds
        self._backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)

    def ask(self, most_seconds: float) -> float:
        """Return how long the request that is sent now may wait, which is ``most_seconds`` at the longest."""
        self._asked_at = now = time.monotonic()
        self._seconds = max(0.0, min(POLL_SECONDS, most_seconds, self._give_up_at - now))
        return self._seconds

    def is_over(self) -> bool:
        """Return whether the time to wait is over."""
        return time.monotonic() >= self._give_up_at

    def pause(self, crowded: bool) -> float:
        """Return the seconds to pause before the next request; 0 if the last one has waited at the node.

        Args:
            crowded: the last request did not wait, or was not sent.
        """
        now = time.monotonic()
        # Also after an immediate answer, so that the node is not polled in a tight loop.
        if crowded or now - self._asked_at < min(_FIRST_PAUSE_SECONDS, self._seconds):
            return max(0.0, min(self._backoff.next_pause(), self._give_up_at - now))
        return 0.0


class PinnedWait:
    """The wait of one caller. Leaving its context releases the connection, or closes it after an exception.

    Args:
        context: the client's.
        ask: sends a request, as `Backend.lease` and `Backend.acquire` do.
        wait_seconds: how long to wait; None for no limit.

    Attributes:
        pinned: the connection of the last request; None if it was not sent.
    """

    __slots__ = ("_ask", "_context", "_times", "pinned")

    def __init__(self, context: ClientContext, ask: Ask, wait_seconds: float | None) -> None:
        self.pinned: PinnedConnection | None = None
        self._context = context
        self._ask = ask
        self._times = WaitTimes(wait_seconds)

    def ask(self, most_seconds: float = POLL_SECONDS) -> Any:
        """Send a request and return the node's answer; None if the node grants nothing within the poll interval.

        Args:
            most_seconds: bounds the poll interval of this request.
        """
        timeout = self._context.timeout
        seconds = self._times.ask(min(most_seconds, timeout))
        # The time that the node delays its answer does not count towards the timeout.
        deadline = self._context.deadline(timeout + seconds)
        # A connection that is back in its pool must not be used again.
        self.pinned = self._ask(seconds, deadline, None if self.crowded else self.pinned)
        return None if self.pinned is None else self.pinned.answer

    @property
    def crowded(self) -> bool:
        """Whether the last request did not wait or was not sent, because too many calls of this client wait."""
        return self.pinned is None or self.pinned.closed

    def is_over(self) -> bool:
        """Return whether the time to wait is over."""
        return self._times.is_over()

    def pause(self) -> None:
        """Pause before the next request, unless the last one has waited at the node."""
        if seconds := self._times.pause(self.crowded):
            time.sleep(seconds)

    def give(self, owner: _T) -> _T:
        """Return ``owner``, which has the connection of the grant and is responsible for it from now on.

        Until then this object is, also if a signal handler raises an exception while ``owner`` is made.
        """
        self.pinned = None
        return owner

    def release(self) -> None:
        """Return the connection, on which nothing is granted, to its pool."""
        if self.pinned is not None:
            self.pinned.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.release()
        elif self.pinned is not None:
            self.pinned.drop()
