"""`Suspicion`: a circuit breaker for one peer that hangs, so that it costs one timeout and not one for each call.

::

    trusted    --timed_out-->  doubted     a call timed out: every caller pings before its request
    doubted    --silent----->  suspected   a ping was not answered in time: calls fail at once
    suspected  --1 to 2 s--->  half-open   one caller pings, the others still fail at once
    half-open  --silent----->  suspected
    any        --answered--->  trusted

A slow request does not cut a healthy peer off, because a ping is answered meanwhile. A ping that was not answered may
have had too little time for a long way: the next one has twice as much, up to `LONGEST_PING_SECONDS`. No I/O and no
threads: callers do the pings and report their outcome. The right to ping expires by time, so an interrupted caller
leaves no flag set.

Thread safety: thread-safe. ``doubted`` is read without the lock: it is the only thing that a call to a trusted peer
looks at.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable
from enum import Enum, auto

from pyrocache.cluster.routing import Member
from pyrocache.net.deadline import Deadline

PING_SECONDS = 0.25
"""Time in which a near peer that does not hang answers a ping: connecting is one such step, the ping another."""

LONGEST_PING_SECONDS = 2.0
"""The most time for such a step. Connecting takes up to five round trips, and a lost packet some tenths of a second."""

_SHORTEST_SECONDS = 1.0
_JITTER_SECONDS = 1.0


class Verdict(Enum):
    """What a caller does that wants to send a request to a peer in doubt."""

    SEND = auto()
    """Send the request."""
    PING = auto()
    """Ping first, each step for up to `Suspicion.patience`, and report the outcome."""
    FAIL = auto()
    """Fail at once."""


class Suspicion:
    """What one client knows about one peer.

    Args:
        clock: monotonic seconds.
        jitter: returns a random number from 0 to 1.

    Attributes:
        doubted: whether it is in any state but trusted; then `ask` before each request.
    """

    __slots__ = (
        *("_answered_at", "_clock", "_grown_at", "_jitter", "_lock", "_patience", "_silent_since"),
        "_until",
        "doubted",
    )

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self.doubted = False
        self._clock = clock
        self._jitter = jitter
        self._lock = threading.Lock()  # guards: all that follows
        self._answered_at = self._silent_since = self._grown_at = -math.inf
        self._until: float | None = None  # when the peer may be pinged again; None: it is not suspected
        self._patience = PING_SECONDS

    def timed_out(self, seconds: float) -> None:
        """Note that a request was not answered for ``seconds``."""
        with self._lock:
            if not self.doubted:
                self._silent_since = self._clock() - seconds
                self._until = None
                self.doubted = True

    def answered(self, since: float | None = None) -> None:
        """Note that the peer has answered, or refused the connection: it does not hang.

        Args:
            since: when a ping began that it has answered. Later ones have twice as long as that.
        """
        with self._lock:
            self._answered_at = at = self._clock()
            if since is not None:
                self._patience = min(max(PING_SECONDS, 2 * (at - since)), LONGEST_PING_SECONDS)
            self._until = None
            self.doubted = False

    def silent(self, since: float) -> bool:
        """Note that a ping, begun at ``since``, was not answered. Return whether the peer is suspected.

        It is not if it has answered another caller meanwhile.
        """
        with self._lock:
            if self._answered_at > since:
                return False
            if not self.doubted:
                self._silent_since = since
            now = self._clock()
            self._until = now + _SHORTEST_SECONDS + _JITTER_SECONDS * self._jitter()
            if since >= self._grown_at:  # once for the pings of several callers at a time
                self._patience = min(2 * self._patience, LONGEST_PING_SECONDS)
                self._grown_at = now
            self.doubted = True
            return True

    def ask(self, deadline: Deadline) -> Verdict:
        """Return what a caller with this deadline does. Where only one caller may ping, that is this one if it says so.

        A caller that has too little time left for a ping does not ping.
        """
        seconds = self.patience(deadline)
        enough = deadline.remaining() >= seconds
        with self._lock:
            if not self.doubted:
                return Verdict.SEND
            if self._until is None:
                return Verdict.PING if enough else Verdict.SEND
            now = self._clock()
            if now < self._until or not enough:
                return Verdict.FAIL
            self._until = now + 2 * seconds  # two steps; the others fail meanwhile
            return Verdict.PING

    def patience(self, deadline: Deadline) -> float:
        """Return the seconds to wait for each step of a ping, by the time that the whole call has."""
        return min(self._patience, deadline.seconds / 2)

    @property
    def suspected(self) -> bool:
        """Whether calls fail at once, save for one that pings from time to time."""
        return self._until is not None

    def describe(self) -> str:
        """Return the middle of a sentence: for how long the peer is silent, and calls to it fail."""
        with self._lock:
            now = self._clock()
            text = f"has not answered for {now - self._silent_since:.1f} s"
            if self._until is None:
                return text
            return f"{text}; calls that need it fail at once for another {max(0.0, self._until - now):.1f} s"


class Suspicions:
    """The `Suspicion` of each node of one client. A node that restarted is another member, and trusted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards: _of
        self._of: dict[str, tuple[Member, Suspicion]] = {}

    def of(self, member: Member) -> Suspicion:
        """Return what is known about ``member``."""
        with self._lock:
            known = self._of.get(member.name)
            if known is None or known[0] != member:
                known = self._of[member.name] = member, Suspicion()
            return known[1]
