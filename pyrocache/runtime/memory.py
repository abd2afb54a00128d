"""Memory for a long message, taken from the system only as the message arrives.

A header states the length of its message, and any peer can send a header. Therefore the length only reserves addresses;
the system provides a page when bytes are first written to it.

Thread safety: thread-safe.
"""

from __future__ import annotations

import mmap

_HUGE_PAGE_BYTES = 2 * 2**20


def reserve(size: int, offset: int = 0) -> memoryview:
    """Return ``size`` bytes of memory, which begin ``offset`` bytes after the beginning of a page.

    Raises:
        OSError: the system has no addresses left.
    """
    # Not a bytearray, which would be filled with zeros at once.
    memory = mmap.mmap(-1, offset + size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size > 2 * _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        # Not for the first pages: a header without data must not cost a huge page.
        memory.madvise(mmap.MADV_HUGEPAGE, _HUGE_PAGE_BYTES, offset + size - _HUGE_PAGE_BYTES)
    return memoryview(memory)[offset:]
