"""Adaptive spin-wait: poll a few times more, yielding the processor in between, before blocking in `poll()`.

Blocking and waking cost more than a small request, for both ends. Gets per second with / without the spin-wait of both
ends, in interleaved rounds on two cores, clients of one node that only send and receive:

    clients                          TCP                Unix socket
    1                                56,000 / 12,500    95,000 / 24,000
    1, next to a CPU-bound process   40,000 / 45,500    47,000 / 53,500
    8                                58,000 / 58,500    75,000 / 71,500
    8, next to a CPU-bound process   44,500 / 46,000    51,500 / 54,500

Spinning helps only if the event arrives soon and other processes yield the processor quickly. A CPU-bound process keeps
it for its time slice, about a millisecond. So a wait that was in vain, or that took so long, is followed by waits that
block at once; their number grows with each further failure. With this rule, the p99 latency of eight clients next to a
CPU-bound process is 412 / 415 µs over TCP and 368 / 322 µs over Unix sockets. To block already after waits of 0.1 ms
makes it lower, but 16 threads of one client then lose 14 to 23 % of their calls.

Thread safety: a `SpinWait` is used by one thread at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

_LOOKS = 64  # together they take about as long as blocking and being woken
_WORTH_SECONDS = 0.001  # a wait that takes longer might as well have blocked
_MAX_SKIPPED = 1023

_yield_processor: Callable[[], Any] = getattr(os, "sched_yield", partial(time.sleep, 0))


class SpinWait:
    """Polls for input without blocking, as long as recent waits have shown that it pays.

    Args:
        clock: monotonic seconds.
        yield_processor: gives the processor to another process that waits for it.
    """

    __slots__ = ("_clock", "_left", "_skipped", "_yield")

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        yield_processor: Callable[[], Any] = _yield_processor,
    ) -> None:
        self._clock = clock
        self._yield = yield_processor
        self._skipped = 0  # waits that do not spin after each one that does
        self._left = 0  # of those, before the next wait that spins

    def wait(self, look: Callable[[int], list[Any]]) -> list[Any]:
        """Return the result of ``look(0)``; empty if the caller should block."""
        if self._left:
            self._left -= 1
            return []
        since = self._clock()
        for _ in range(_LOOKS):
            found = look(0)
            if found:
                break
            self._yield()
        if found and self._clock() - since < _WORTH_SECONDS:
            self._skipped //= 2
        else:
            self._skipped = min(4 * self._skipped + 3, _MAX_SKIPPED)
        self._left = self._skipped
        return found
