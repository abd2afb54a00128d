"""Adaptive spin-wait before blocking in `poll()`: look a few times more, and yield the processor in between.

Blocking and being woken takes longer than a small request does, for the one that blocks and for the one that wakes it.
What spinning buys, measured in interleaved rounds on a quiet machine with two cores, in gets a second with it /
without: one client over TCP 71,000 / 16,000, over a Unix socket 91,000 / 20,000; eight clients 98,000 / 73,000 and
134,000 / 87,000.

It pays only if what is waited for comes soon and if others give the processor back soon. A process that computes keeps
it for a time slice, about a millisecond, and a thread that yields waits for its end, where one that blocks would be
woken at once. So there are two kinds of failure, and the waits after them block without spinning, several times as
many after each further failure. *In vain*: nothing came. *Contended*: one yield took longer than all clients of a busy
node do together. As few contended waits as one in a hundred are the p99 latency (with eight clients beside one process
that computes 760 µs against 400 without spinning), so that one of them is followed by hundreds of waits that block.
Beside such a process spinning gains nothing anyway (one client: 44,000 against 48,000 gets a second).

A `SpinWait` is used by one thread at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

_LOOKS = 64  # together they take about as long as blocking and being woken
_WORTH_SECONDS = 0.001  # a wait that takes longer might as well have blocked
_CONTENDED_SECONDS = 0.00025  # a yield that takes longer went to a process that computes
_MIN_SKIPPED_WHEN_CONTENDED = 255
_MAX_SKIPPED = 1023

_yield_processor: Callable[[], Any] = getattr(os, "sched_yield", partial(time.sleep, 0))


class SpinWait:
    """Spins while that is worth it.

    Args:
        clock: monotonic seconds.
        yield_processor: lets another process that waits for this processor have it.
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
        self._left = 0  # of them

    def wait(self, look: Callable[[int], list[Any]]) -> list[Any]:
        """Return what ``look(0)`` finds, or nothing when it is time to block."""
        if self._left:
            self._left -= 1
            return []
        since = before = self._clock()
        contended = False
        for _ in range(_LOOKS):
            found = look(0)
            if found or contended:
                break
            self._yield()
            now = self._clock()
            contended = now - before > _CONTENDED_SECONDS
            before = now
        if found and not contended and before - since < _WORTH_SECONDS:
            self._skipped //= 2
        else:
            self._skipped = min(4 * self._skipped + 3, _MAX_SKIPPED)
            if contended:
                self._skipped = max(self._skipped, _MIN_SKIPPED_WHEN_CONTENDED)
        self._left = self._skipped
        return found
