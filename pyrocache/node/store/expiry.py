"""`ExpiryBuckets`: keys grouped by the time at which they expire.

The keys that expire within the same tick share a bucket. A tick with many keys has several buckets, because a set of a
million keys blocks the node for 25 ms when it grows. The end times of the ticks are in a heap. A key with a longer TTL
is in a longer tick. A key leaves its bucket when it is overwritten or removed, so no outdated keys pile up, and finding
the keys that are due takes time proportional to their number. (Like a timing wheel, but with a heap: Varghese and
Lauck, "Hashed and Hierarchical Timing Wheels", SOSP 1987.) Pure: no I/O, no threads; the caller passes the time.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

from pyrocache.node.store.entry import Bucket

_FAR_SECONDS = 1e12
"""No expiry is planned beyond this: thirty thousand years."""

_BUCKET_KEYS = 3900
"""No key is added to a bucket that has this many keys. Even with one more batch (1,000 keys), the set stays below the
size at which it is resized. It takes 27 to 33 bytes per key before that, and 105 after it."""


class ExpiryBuckets:
    """Keys by the tick in which they expire.

    Args:
        tick_seconds: how long a key that is due may wait before it is found; with a TTL of more than 64 ticks, up to a
            thirtieth of the TTL.

    Attributes:
        ticks: a heap of the ends of the ticks in use. Read it; do not change it.
    """

    __slots__ = ("_after", "_buckets", "_last", "_longest", "_shortest", "_tick_seconds", "_until", "ticks")

    def __init__(self, tick_seconds: float) -> None:
        self._tick_seconds = tick_seconds
        self._buckets: dict[int, list[Bucket]] = {}  # by the end of their tick; the last one is in use
        # The last answer, which is often the next one too, and the times and TTLs that it is right for.
        self._last: Bucket = set()
        self._after = self._until = self._shortest = self._longest = 0.0
        self.ticks: list[int] = []  # the keys of `_buckets`, also of those that have become empty

    def bucket(self, expires_at: float, ttl_seconds: float) -> Bucket:
        """Return a bucket for a key that expires at ``expires_at``, ``ttl_seconds`` from now."""
        if (
            self._after < expires_at <= self._until
            and self._shortest <= ttl_seconds < self._longest
            and len(self._last) < _BUCKET_KEYS
        ):
            return self._last
        seconds = self._tick_seconds
        # The longer the TTL, the wider its ticks: at most 128 are in use for each doubling, however TTLs vary.
        width = 1 << int(min(ttl_seconds, _FAR_SECONDS) / seconds / 64).bit_length()
        tick = -(-math.ceil(min(expires_at, _FAR_SECONDS) / seconds) // width) * width
        buckets = self._buckets.get(tick)
        if buckets is None:
            buckets = self._buckets[tick] = [set()]
            heappush(self.ticks, tick)
        if len(buckets[-1]) >= _BUCKET_KEYS:
            # Overwriting empties older buckets: use the emptiest one again before making another.
            emptiest = min(range(len(buckets)), key=lambda index: len(buckets[index]))
            if len(buckets[emptiest]) > _BUCKET_KEYS // 2:
                buckets.append(set())
            else:
                buckets[emptiest], buckets[-1] = buckets[-1], buckets[emptiest]
        self._last = buckets[-1]
        self._after, self._until = (tick - width) * seconds, tick * seconds
        self._shortest, self._longest = width // 2 * 64 * seconds, width * 64 * seconds
        return self._last

    def due(self, now: float) -> Bucket | None:
        """Return the keys, at least one, of a tick that is over, or None."""
        while self.ticks and self.ticks[0] * self._tick_seconds <= now:
            buckets = self._buckets[self.ticks[0]]  # empty ones are dropped until one has a key
            while buckets:
                if buckets[-1]:
                    return buckets[-1]
                buckets.pop()
                self._until = self._after  # it may be the last answer
            # An emptied tick stays until it is over, or the heap would fill with the same tick again and again.
            del self._buckets[heappop(self.ticks)]
        return None
