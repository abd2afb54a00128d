"""Which keys leave when: a timing wheel. Pure.

Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", SOSP 1987: the keys that leave within the same tick are
in one set, and the ticks, which are the wider the longer the TTL, in a heap. A key leaves its set when it is
overwritten or removed, so nothing outdated piles up, and finding those that are due takes time proportional to
their number.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

from pyrocache.node.store.entry import Peers

_FAR_SECONDS = 1e12
"""Beyond this an expiry is never planned exactly; it is thirty thousand years."""


class TimingWheel:
    """Keys by the tick in which they leave.

    Args:
        tick_seconds: how long a key that is due may wait before it is found; for a TTL of more than 64 ticks, up to a
            thirtieth of the TTL.

    Attributes:
        ticks: a heap of the ends of those that are in use. To be looked at from outside, not changed.
    """

    __slots__ = ("_last", "_last_asked", "_tick_seconds", "_wheel", "ticks")

    def __init__(self, tick_seconds: float) -> None:
        self._tick_seconds = tick_seconds
        self._last_asked: tuple[int, float] | None = (
            None  # the last answer: of many entries it is that of the next
        )
        self._last: Peers = set()
        self._wheel: dict[int, Peers] = {}  # by the end of their tick
        self.ticks: list[int] = []  # the wheel's keys, also those whose set has become empty

    def peers(self, leaves_at: float, ttl_seconds: float) -> Peers:
        """The keys that leave in the same tick as one that does at ``leaves_at``, ``ttl_seconds`` from now."""
        ends = math.ceil(min(leaves_at, _FAR_SECONDS) / self._tick_seconds)
        if (ends, ttl_seconds) == self._last_asked:
            return self._last  # of a tick to come: it is in use
        # The longer the TTL, the wider its ticks: at most 128 are in use for each doubling, however TTLs vary.
        width = 1 << int(min(ttl_seconds, _FAR_SECONDS) / self._tick_seconds / 64).bit_length()
        tick = -(-ends // width) * width
        peers = self._wheel.get(tick)
        if peers is None:
            peers = self._wheel[tick] = set()
            heappush(self.ticks, tick)
        self._last_asked, self._last = (ends, ttl_seconds), peers
        return peers

    def due(self, now: float) -> Peers | None:
        """The keys of a tick that is over, some at least; None when there are none."""
        while self.ticks and self.ticks[0] * self._tick_seconds <= now:
            peers = self._wheel[self.ticks[0]]
            if peers:
                return peers
            # Emptied sets stay until their tick, or the heap would fill with the same tick again and again.
            del self._wheel[heappop(self.ticks)]
        return None
