"""`Deadline`: the point in monotonic time by which all steps of one call must end.

No I/O and no threads; the clock is an argument.

Thread safety: used by one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Deadline:
    """The end of one call, counted from now.

    Args:
        seconds: how long the call may take.
        clock: monotonic seconds.

    Attributes:
        at: when the call ends, in the clock's seconds.
        seconds: as given.
        seen_at: when the clock was last read; used where reading it again would cost too much.
    """

    __slots__ = ("_clock", "at", "seconds", "seen_at")

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self.seen_at = now = clock()
        self.at = now + seconds

    def remaining(self) -> float:
        """Return the seconds left, 0 once the deadline has passed."""
        self.seen_at = now = self._clock()
        return max(0.0, self.at - now)

    def check(self) -> float:
        """Return the seconds left. Raises `TimeoutError` if there are none."""
        remaining = self.remaining()
        if remaining <= 0:
            raise TimeoutError
        return remaining
