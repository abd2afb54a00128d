"""What tests of code that uses the cache need."""

from __future__ import annotations


class FakeClock:
    """A clock that stands still until told otherwise.

    Example:
        >>> clock = FakeClock(100.0)
        >>> clock.tick(1.5)
        >>> clock()
        101.5
    """

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds."""
        return self.now

    def tick(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self.now += seconds
