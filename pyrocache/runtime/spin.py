"""Waiting awake, for what is only microseconds away.

Falling asleep and being woken takes longer than a small request does, for the one who sleeps and for the one who wakes
it. So both ends of a connection look a few times more before they sleep, and give way to any other process in between.
That is worth it only if what is waited for comes soon, and if others give the processor back soon. One that computes
keeps it for milliseconds, which costs more than a hundred short waits gain; so a wait that was in vain lets four times
as many go by before the next is tried, and it takes several good ones to make up for that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

_LOOKS = 64  # together they take about as long as sleeping and being woken
_WORTH_SECONDS = 0.001  # longer than others take to do their part, shorter than a turn of one that computes
_MOST_SLEEPS = 1023

_give_way: Callable[[], Any] = getattr(os, "sched_yield", partial(time.sleep, 0))


class SpinWait:
    """Waits awake while that is worth it. For one thread at a time.

    Args:
        clock: monotonic seconds.
        give_way: lets another process that waits for this processor have it.
    """

    __slots__ = ("_clock", "_give_way", "_sleeps", "_sleeps_left")

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, give_way: Callable[[], Any] = _give_way
    ) -> None:
        self._clock = clock
        self._give_way = give_way
        self._sleeps = 0  # how many waits go by since it was in vain
        self._sleeps_left = 0

    def wait(self, look: Callable[[int], list[Any]]) -> list[Any]:
        """What ``look(0)`` finds; nothing when it is time to sleep."""
        if self._sleeps_left:
            self._sleeps_left -= 1
            return []
        since = self._clock()
        for _ in range(_LOOKS):
            found = look(0)
            if found:
                break
            self._give_way()
        if found and self._clock() - since < _WORTH_SECONDS:
            self._sleeps //= 2
        else:
            self._sleeps = min(4 * self._sleeps + 3, _MOST_SLEEPS)
        self._sleeps_left = self._sleeps
        return found
