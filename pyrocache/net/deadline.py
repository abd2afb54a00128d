"""`Deadline`: the time by which all steps of one call must end. It passes while the machine sleeps, too.

No I/O and no threads; the clock is an argument.

Thread safety: used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from pyrocache.runtime.clock import now


class Deadline:
    """The end of one call, counted from now.

    Args:
        seconds: how long the call may take.
        clock: seconds.

    Attributes:
        at: when the call ends, in the clock's seconds.
        seconds: as given.
        seen_at: when the clock was last read; used where reading it again would cost too much.
    """

    __slots__ = ("_clock", "at", "seconds", "seen_at")

    def __init__(self, seconds: float, clock: Callable[[], float] = now) -> None:
        self.seconds = seconds
        self._clock = clock
        self.seen_at = begun_at = clock()
        self.at = begun_at + seconds

    def remaining(self) -> float:
        """Return the seconds left, 0 once the deadline has passed."""
        self.seen_at = self._clock()
        return max(0.0, self.at - self.seen_at)

    def check(self) -> float:
        """Return the seconds left. Raises `TimeoutError` if there are none."""
        remaining = self.remaining()
        if remaining <= 0:
            raise TimeoutError
        return remaining
