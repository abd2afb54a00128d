"""A bounded number of places that an interrupted thread cannot lose.

An exception that a signal handler raises (Ctrl-C, a worker's time limit) can strike between any two steps of Python
code, so also between taking a semaphore and the ``try`` that would give it back, or within the semaphore itself, whose
lock then stays held for ever. A `Place` is handed out by one call into C and comes back when nobody refers to it any
more.
"""

from __future__ import annotations

import weakref
from queue import Empty, SimpleQueue


class Place:
    """One place, taken for as long as this object lives."""

    __slots__ = ("_free",)

    def __init__(self, free: weakref.ref[SimpleQueue[Place]]) -> None:
        self._free = free

    def __del__(self) -> None:
        free = self._free()
        if free is not None:
            free.put(Place(self._free))


class Places:
    """Hands out ``count`` places at most. Thread-safe."""

    __slots__ = ("_free",)

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[Place] = SimpleQueue()
        for _ in range(count):
            self._free.put(Place(weakref.ref(self._free)))

    def take(self, timeout: float) -> Place | None:
        """A place, or None when none has become free within ``timeout`` seconds."""
        try:
            return self._free.get(timeout=max(0.0, timeout))
        except Empty:
            return None
