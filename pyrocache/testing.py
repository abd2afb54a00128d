"""`FakeClock`: a helper for tests of code that uses the cache."""

from __future__ import annotations


class FakeClock:
    """A clock that advances only by `tick`. Pass it where a function such as ``time.monotonic`` is expected.

    Args:
        now: the time in seconds that the clock begins with.

    Example:
        >>> clock = FakeClock(100.0)
        >>> clock.tick(1.5)
        >>> clock()
        101.5
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now

    def tick(self, seconds: float) -> None:
        """Advance the clock by ``seconds``."""
        self.now += seconds
