"""`UseTable`: a table of fixed-size notes about keys, indexed by their hash, that keeps no key in memory.

It records how often and how recently a key was used, or that the key was evicted recently. The table is lossy: if the
hashes of two keys select the same slot, the later note overwrites the earlier one. This costs S3-FIFO at most 0.002 of
hit ratio (on the OLTP trace of ``docs/eviction.md``). A dict by key would take 27 to 54 bytes more for each key, and
would need the key objects of the store, or copies of them. Pure: no I/O, no threads, no clock.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

SEGMENT_BITS = 18
SEGMENT_MASK = (1 << SEGMENT_BITS) - 1
STATES = 1 << 16
"""A state is less than this."""

FINGERPRINT_SHIFT = 24
FINGERPRINT_MASK = 0xFFFF0000

_SLOTS_PER_KEY = 4


class UseTable:
    """A state of 16 bits for each key, 0 at first. The lowest two count uses; the caller says what the others mean.

    A slot of 32 bits has the state and above it a fingerprint: sixteen further bits of the hash, which tell whose state
    it is. Slots lie in segments of 1 MiB. To grow, the table doubles its list of segments, so that two indices share
    each segment; `step` then gives the second index a copy, one segment at a time. So no call moves much memory.

    Attributes:
        segments: the slot of hash ``h`` is ``segments[h >> SEGMENT_BITS & mask][h & SEGMENT_MASK]``, its
            fingerprint ``h >> FINGERPRINT_SHIFT & FINGERPRINT_MASK``.
        mask: the number of segments, a power of two, less one.
    """

    __slots__ = ("_shared", "mask", "segments")

    def __init__(self) -> None:
        self.segments = [_zeros(_SEGMENT_BYTES).cast("I")]
        self.mask = 0
        self._shared = 1  # the first index whose segment may still be that of another index

    def get(self, key: bytes) -> int:
        """Return the state of ``key``."""
        number = hash(key)
        slot = self.segments[number >> SEGMENT_BITS & self.mask][number & SEGMENT_MASK]
        state = slot ^ number >> FINGERPRINT_SHIFT & FINGERPRINT_MASK
        return state if state < STATES else 0

    def put(self, key: bytes, state: int) -> None:
        """Set the state of ``key``; its slot may have been that of another key."""
        number = hash(key)
        segment = self.segments[number >> SEGMENT_BITS & self.mask]
        segment[number & SEGMENT_MASK] = number >> FINGERPRINT_SHIFT & FINGERPRINT_MASK | state

    def forget(self, key: bytes, state: int = 0) -> None:
        """Set the state of ``key`` to ``state``, which has no uses.

        Do nothing if the slot holds the uses of another key.
        """
        number = hash(key)
        segment = self.segments[number >> SEGMENT_BITS & self.mask]
        fingerprint = number >> FINGERPRINT_SHIFT & FINGERPRINT_MASK
        slot = segment[number & SEGMENT_MASK]
        if not slot & 3 or slot ^ fingerprint < STATES:  # a note without uses, or this key's own
            segment[number & SEGMENT_MASK] = fingerprint | state

    def step(self, keys: int) -> None:
        """Adapt the size to that many keys, in a small step."""
        segments = self.segments
        if self._shared < len(segments):
            content = segments[self._shared].tobytes()
            copy = _zeros(_SEGMENT_BYTES)
            if content != _EMPTY:  # zeros need not be copied, and take no memory then
                copy[:] = content
            segments[self._shared] = copy.cast("I")
            self._shared += 1
        elif keys * _SLOTS_PER_KEY > len(segments) << SEGMENT_BITS:
            segments += segments
        elif self.mask and keys * 8 * _SLOTS_PER_KEY < len(segments) << SEGMENT_BITS:
            del segments[len(segments) // 2 :]  # what was noted there is lost
            self._shared = len(segments)
        self.mask = len(segments) - 1


def _zeros(size: int) -> memoryview:
    """Return zeroed memory that the system provides page by page, as it is written to (a `bytearray` writes zeros)."""
    return memoryview(mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS))


_SEGMENT_BYTES = 4 << SEGMENT_BITS
_EMPTY = bytes(_SEGMENT_BYTES)
