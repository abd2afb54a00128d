"""How long calls take: a histogram for each method, in powers of two of a microsecond. Pure.

Any thread may call.
"""

from __future__ import annotations

import threading

BUCKETS = 32
"""Counts in a histogram. The first one counts durations below 1 µs, the one at ``i`` those from 2**(i - 1) to below
2**i µs, the last one also all longer ones."""


class Latencies:
    """Durations of calls, by method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards: _counts
        self._counts: dict[str, list[int]] = {}

    def add(self, method: str, seconds: float) -> None:
        """Count one call of ``method``."""
        bucket = min(int(seconds * 1e6).bit_length(), BUCKETS - 1)
        with self._lock:
            self._counts.setdefault(method, [0] * BUCKETS)[bucket] += 1

    def as_lists(self) -> list[list[object]]:
        """Return ``[method, counts]`` for each method that was called since the last `reset`."""
        with self._lock:
            return [[method, counts.copy()] for method, counts in self._counts.items()]

    def reset(self) -> None:
        """Count from 0 on again."""
        with self._lock:
            self._counts.clear()
