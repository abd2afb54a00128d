"""`Tokens`: growing numbers, used as the tokens of leases and as the fencing tokens of locks.

No I/O and no threads; the clock is injected.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Tokens:
    """A source of numbers that only grow.

    They also grow over restarts of the process and from node to node, as far as the wall clocks agree. A token is the
    wall-clock time in microseconds, or the last token plus one if that is larger, as in a hybrid logical clock
    (Kulkarni et al., "Logical Physical Clocks", OPODIS 2014).

    Args:
        wall_clock: seconds since the epoch.
    """

    __slots__ = ("_last", "_wall_clock")

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._last = 0

    def next(self) -> int:
        """Return a token larger than all before."""
        self._last = max(self._last + 1, int(self._wall_clock() * 1_000_000))
        return self._last
