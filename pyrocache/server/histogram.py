"""How long calls take on a node: a histogram for each method, in powers of two of a microsecond. Pure, thread-safe."""

from __future__ import annotations

import threading

BUCKETS = 32
"""Counts in a histogram. The first is of durations below 1 µs, the one at ``i`` of those from 2**(i - 1) to below
2**i µs, the last also of all that are longer."""


class Latencies:
    """Durations of calls, by method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards: _counts
        self._counts: dict[str, list[int]] = {}

    def add(self, method: str, seconds: float) -> None:
        """Count one call of ``method``."""
        bucket = min(int(seconds * 1e6).bit_length(), BUCKETS - 1)
        with self._lock:
            counts = self._counts.get(method)
            if counts is None:
                counts = self._counts[method] = [0] * BUCKETS
            counts[bucket] += 1

    def as_lists(self) -> list[list[object]]:
        """``[method, counts]`` for each that was called since the last `reset`."""
        with self._lock:
            return [[method, counts.copy()] for method, counts in self._counts.items()]

    def reset(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._counts.clear()
