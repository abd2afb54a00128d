"""Exponential back-off with jitter: the pauses between attempts, for every kind of retry.

Thread safety: not thread-safe; each caller makes its own `Backoff`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable


class Backoff:
    """Pauses that double from one to the next, each shortened at random by up to a half.

    Args:
        first: upper bound of the first pause, in seconds.
        longest: upper bound of every pause, in seconds.
        sleep: waits; None for `time.sleep`, looked up when it is called, as gevent replaces it.
        jitter: returns a number from 0 to 1.

    Attributes:
        longest_next: upper bound of the next pause, in seconds.
    """

    __slots__ = ("_jitter", "_longest", "_sleep", "longest_next")

    def __init__(
        self,
        first: float,
        longest: float,
        *,
        sleep: Callable[[float], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.longest_next = min(first, longest)
        self._longest = longest
        self._sleep = sleep
        self._jitter = jitter

    def next_pause(self) -> float:
        """Return the seconds of the next pause; the one after it may be twice as long."""
        # Half of a pause is random, so that callers that failed together do not retry together.
        seconds = self.longest_next * (0.5 + self._jitter() / 2)
        self.longest_next = min(2 * self.longest_next, self._longest)
        return seconds

    def pause(self, at_most: float = math.inf) -> None:
        """Wait for the next pause, but not longer than ``at_most`` seconds."""
        (self._sleep or time.sleep)(max(0.0, min(self.next_pause(), at_most)))
