"""Helpers for tests of code that uses the cache: `ClockedCluster`, whose time tests can move, and `FakeClock`.

Thread safety: not thread-safe.
"""

from __future__ import annotations

import os
import weakref
from datetime import timedelta
from typing import Any

from pyrocache.config import to_seconds
from pyrocache.local import LocalCluster
from pyrocache.runtime.shared_clock import SharedClock, shared_file


class ClockedCluster(LocalCluster):
    """A `LocalCluster` whose clock tests can move: entries, leases and locks expire without a sleep.

    Args:
        nodes: the number of nodes to start.
        options: those of `LocalCluster`.

    Example:
        >>> cluster = ClockedCluster()
        >>> cache = cluster.client()
        >>> cache.set("key", "value", ttl_seconds=60)
        True
        >>> cluster.advance(60)
        >>> cache.get("key", "expired")
        'expired'
        >>> cluster.stop()
    """

    def __init__(self, nodes: int = 1, **options: Any) -> None:
        self._clock = shared_file()
        weakref.finalize(self, os.close, self._clock).atexit = False
        self._moved = SharedClock(self._clock, movable=True)
        super().__init__(nodes, **options)

    def advance(self, seconds: float | timedelta) -> None:
        """Move the clock of all nodes forward, also of those that are paused or started later.

        What has expired then is gone when this returns; callers that wait for a lock or for a load notice within a
        quarter of a second. A held lock whose TTL has passed is lost only if another caller requests it before its next
        renewal. The clocks of this process, such as timeouts of calls, do not move.

        Raises:
            TypeError, ValueError: ``seconds`` is not a duration, or is negative.
        """
        self._moved.advance(to_seconds(seconds, "seconds"))


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
