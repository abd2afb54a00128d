"""`Tokens`: growing numbers, used as the tokens of leases and as the fencing tokens of locks.

No I/O, no threads, no clock.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

COUNTER_BITS = 32


class Tokens:
    """A source of numbers below 2**63 that only grow.

    A token is the number of the node's view times 2**32, plus a counter. A key has one owner under one view, and the
    owner under a later view has a larger number: so tokens of one key also grow from node to node and over restarts,
    independent of any clock.

    Args:
        number: that of the first view.
    """

    __slots__ = ("_last",)

    def __init__(self, number: int = 1) -> None:
        self._last = number << COUNTER_BITS

    def begin(self, number: int) -> None:
        """Continue under the view with that number."""
        self._last = max(self._last, number << COUNTER_BITS)

    @property
    def used(self) -> int:
        """How far the counter is. At 2**32, tokens would reach those of the next view."""
        return self._last & (1 << COUNTER_BITS) - 1

    def next(self) -> int:
        """Return a token larger than all before."""
        self._last += 1
        return self._last
