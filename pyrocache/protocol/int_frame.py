"""The value frame of an int: the only kind of value that a node reads, because `incr` adds on the node.

A frame is its kind, ``w``, and the number in big-endian two's complement of one byte or more. Pure: no I/O, no threads,
no clock.
"""

from __future__ import annotations

INT_KIND = b"w"

MAX_INT_BYTES = 64 * 1024
"""The longest frame of an int that `incr` adds to, or adds: it converts ints, which takes time proportional to this."""

INT_TOO_LARGE = f"incr and decr take ints of up to {MAX_INT_BYTES} bytes; compute changes a larger one."


def pack_int(number: int) -> bytes:
    """Return the frame of an int."""
    magnitude = number if number >= 0 else ~number
    return INT_KIND + number.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True)


def unpack_int(frame: bytes | memoryview) -> int | None:
    """Return the int in a frame; None if the frame does not hold one."""
    if len(frame) < 2 or frame[0] != INT_KIND[0]:
        return None
    return int.from_bytes(frame[1:], "big", signed=True)
