"""`SharedClock`: a clock that one process can move forward for others, for tests.

The seconds by which it is ahead of the system's clock are eight bytes of a file that the processes share: they inherit
its descriptor. So a process that is suspended, or that starts later, has the same time as the others, and no process
can be asked over its port to move its clock.

Thread safety: thread-safe for reading; one thread at a time may move it.
"""

from __future__ import annotations

import mmap
import os
import tempfile

from pyrocache.runtime.clock import now

_BYTES = 8


class SharedClock:
    """A function that returns seconds, as `runtime.clock.now` does.

    Args:
        descriptor: of the file; it is not used after this.
        movable: whether `advance` may be called.
    """

    def __init__(self, descriptor: int, *, movable: bool = False) -> None:
        access = mmap.ACCESS_WRITE if movable else mmap.ACCESS_READ
        self._ahead = memoryview(mmap.mmap(descriptor, _BYTES, access=access)).cast("d")

    def __call__(self) -> float:
        """Return the time in seconds."""
        return now() + self._ahead[0]

    def ahead(self) -> float:
        """Return the seconds by which it is ahead of the system's clock."""
        return self._ahead[0]

    def advance(self, seconds: float) -> None:
        """Move it forward, at once for every process."""
        self._ahead[0] += seconds


def shared_file() -> int:
    """Return the descriptor of a new file for a `SharedClock`. The caller closes it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pyrocache-clock")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, _BYTES)
    return descriptor
