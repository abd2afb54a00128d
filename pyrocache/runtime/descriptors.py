"""File descriptors: how many a process may have, and a few that it keeps back for what it cannot do without.

Clients can use up the descriptors of a node. It must then still be able to open a connection to the name server or to
another node, or it would lose its lease. `DescriptorReserve` holds duplicates of ``/dev/null``, and
gives them up one by one.

Thread safety: thread-safe; ``list`` appends and pops are atomic. What is given up is free for every thread, so open at
once what it is for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable
from typing import TypeVar

_Opened = TypeVar("_Opened")


def allow_most() -> None:
    """Let this process have as many descriptors as the system allows: each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class DescriptorReserve:
    """Some descriptors. It is empty until the first `refill`.

    Args:
        size: how many it holds at most.
    """

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._held: list[int] = []

    def __len__(self) -> int:
        return len(self._held)

    def refill(self) -> None:
        """Take as many descriptors as are missing and free."""
        with contextlib.suppress(OSError):
            while len(self._held) < self._size:
                self._held.append(os.open(os.devnull, os.O_RDONLY))

    def give_up(self) -> bool:
        """Close one descriptor. Return False if there is none."""
        try:
            os.close(self._held.pop())
        except IndexError:
            return False
        return True

    def opening(self, opens: Callable[..., _Opened], *arguments: object) -> _Opened:
        """Return what ``opens(*arguments)`` returns. If it lacks a descriptor, give one up and call it again."""
        while True:
            try:
                return opens(*arguments)
            except OSError as error:
                if error.errno != errno.EMFILE or not self.give_up():
                    raise

    def close(self) -> None:
        """Close all."""
        while self.give_up():
            pass
