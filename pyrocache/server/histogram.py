"""`Latencies`: a latency histogram for each method, with buckets in powers of two of a microsecond.

No I/O, no threads and no clock of its own.

Thread safety: thread-safe.
"""

from __future__ import annotations

import threading

BUCKETS = 32
"""Number of buckets in a histogram. Bucket 0 counts durations below 1 µs, bucket ``i`` those from 2**(i - 1) to below
2**i µs; the last bucket also counts all longer ones."""


class Latencies:
    """A latency histogram for each method."""

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
        """Remove all counts."""
        with self._lock:
            self._counts.clear()
