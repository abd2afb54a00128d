"""A bounded number of places that an interrupted thread cannot lose.

An exception that a signal handler raises (Ctrl-C, a worker's time limit) can strike between any two steps of Python
code, so also between taking a semaphore and the ``try`` that would give it back, or within the semaphore itself, whose
lock then stays held for ever. A `Place` is handed out by one call into C and comes back when nobody refers to it any
more. Who must wait looks again every few milliseconds: there is no lock to wait at, and waiting is the exception.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable

_FIRST_PAUSE_SECONDS = 0.0005
_LONGEST_PAUSE_SECONDS = 0.01


class Place:
    """One place, taken for as long as this object lives."""

    __slots__ = ("_free",)

    def __init__(self, free: weakref.ref[deque[Place]]) -> None:
        self._free = free

    def __del__(self) -> None:
        free = self._free()
        if free is not None:
            free.append(Place(self._free))


class Places:
    """Hands out ``count`` places at most. Thread-safe.

    Args:
        clock, sleep: monotonic seconds, and what waits.
    """

    __slots__ = ("_clock", "_free", "_sleep")

    def __init__(
        self,
        count: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._free: deque[Place] = deque()
        for _ in range(count):
            self._free.append(Place(weakref.ref(self._free)))

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free)

    def take(self, timeout: float) -> Place | None:
        """A place, or None when none has become free within ``timeout`` seconds."""
        give_up_at: float | None = None
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._free.pop()
            except IndexError:
                pass
            now = self._clock()
            give_up_at = now + timeout if give_up_at is None else give_up_at
            if now >= give_up_at:
                return None
            self._sleep(min(pause, give_up_at - now))
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
