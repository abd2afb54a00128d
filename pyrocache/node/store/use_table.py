"""Fixed-size notes about keys, indexed by their hash, that keep no key in memory.

`UseTable` says how often and how recently a key was used, `GhostTable` which keys were evicted lately. Both forget: of
two keys whose hashes meet in one slot, the later one overwrites the other. For S3-FIFO on the OLTP trace that costs at
most 0.002 of hit ratio; a dict by key takes 27 to 54 bytes more and needs the key objects of the store, or copies.

Does no I/O. Not thread-safe.
"""

from __future__ import annotations

SEGMENT_BITS = 18
SEGMENT_MASK = (1 << SEGMENT_BITS) - 1
STATES = 1 << 16
"""A state is below this."""

TAG_SHIFT = 24
TAG_MASK = 0xFFFF0000

_SLOTS_PER_KEY = 4


class UseTable:
    """A state of 16 bits for each key: the caller says what it means; 0 is the initial one.

    A slot of 32 bits has the state and above it a tag: sixteen further bits of the hash, which tell whose state it is.
    Slots lie in segments of 1 MiB, which the system backs with memory as they are written to. To grow, the table doubles its list of segments, so that two indices share each
    segment; `step` then gives the second index a copy, one segment at a time. So no call moves much memory.

    Attributes:
        segments: the slot of hash ``h`` is ``segments[h >> SEGMENT_BITS & mask][h & SEGMENT_MASK]``, its tag
            ``h >> TAG_SHIFT & TAG_MASK``.
        mask: the number of segments, a power of two, less one.
    """

    __slots__ = ("_shared", "mask", "segments")

    def __init__(self) -> None:
        self.segments = [_segment()]
        self.mask = 0
        self._shared = 1  # the first index whose segment may still be that of another index

    def get(self, key: bytes) -> int:
        """Return the state of ``key``."""
        number = hash(key)
        slot = self.segments[number >> SEGMENT_BITS & self.mask][number & SEGMENT_MASK]
        state = slot ^ number >> TAG_SHIFT & TAG_MASK
        return state if state < STATES else 0

    def put(self, key: bytes, state: int) -> None:
        """Set the state of ``key``; its slot may have been that of another key."""
        number = hash(key)
        segment = self.segments[number >> SEGMENT_BITS & self.mask]
        segment[number & SEGMENT_MASK] = number >> TAG_SHIFT & TAG_MASK | state

    def forget(self, key: bytes) -> None:
        """Set the state of ``key`` to 0, unless its slot is that of another key."""
        number = hash(key)
        segment = self.segments[number >> SEGMENT_BITS & self.mask]
        if segment[number & SEGMENT_MASK] ^ number >> TAG_SHIFT & TAG_MASK < STATES:
            segment[number & SEGMENT_MASK] = 0

    def step(self, keys: int) -> None:
        """Adapt the size to that many keys, in a small step."""
        segments = self.segments
        if self._shared < len(segments):
            shared = segments[self._shared]
            # Do not copy zeros: an empty segment takes no memory.
            segments[self._shared] = _segment() if shared.obj == _EMPTY else _segment(shared)
            self._shared += 1
        elif keys * _SLOTS_PER_KEY > len(segments) << SEGMENT_BITS:
            segments += segments
        elif self.mask and keys * 8 * _SLOTS_PER_KEY < len(segments) << SEGMENT_BITS:
            del segments[len(segments) // 2 :]  # what was noted there is lost
            self._shared = len(segments)
        self.mask = len(segments) - 1


class GhostTable:
    """Keys that were evicted lately, by 16 bits of their hash; new ones overwrite old ones.

    One key in 65,536 is mistaken for another one, which does no harm.
    """

    __slots__ = ("_mask", "_table")

    def __init__(self, keys: int) -> None:
        slots = 1 << max(keys, 15).bit_length()
        self._mask = slots - 1
        # The system backs this with memory as it is written to: a large one takes no time to make.
        self._table = memoryview(bytearray(2 * slots)).cast("H")

    def fits(self, keys: int) -> bool:
        """Return whether the table has the right size to remember that many keys."""
        return keys <= self._mask < max(32, 16 * keys)

    def add(self, key: bytes) -> None:
        """Remember ``key``."""
        number = hash(key)
        self._table[number >> 16 & self._mask] = number >> 47 & 0xFFFF or 1

    def take(self, key: bytes) -> bool:
        """Forget ``key``. Return whether it was remembered."""
        number = hash(key)
        slot = number >> 16 & self._mask  # other bits than a `UseTable` of the same size takes
        if self._table[slot] != (number >> 47 & 0xFFFF or 1):
            return False
        self._table[slot] = 0
        return True


def _segment(content: memoryview | None = None) -> memoryview:
    return memoryview(bytearray(_SEGMENT_BYTES if content is None else content)).cast("B").cast("I")


_SEGMENT_BYTES = 4 << SEGMENT_BITS
_EMPTY = bytearray(_SEGMENT_BYTES)
