"""Compression of value frames: a frame that holds another frame, compressed with zlib.

A compressed frame is the kind, the size of the frame in it as a little-endian u64, and a zlib stream. The size is
checked before anything is decompressed, and decompression stops at it, so a frame takes at most 1 GiB; its
zlib stream may be a thousandth of that.

Raises `CorruptValue`. Pure: no I/O, no threads.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import struct
import zlib

from pyrocache.errors import CorruptValue
from pyrocache.protocol.limits import LARGE_BYTES
from pyrocache.protocol.messages import Pieces

COMPRESSED_KIND = b"d"

MAX_DECOMPRESSED_BYTES = 2**30
"""The largest frame that is compressed, and that is decompressed."""

_HEAD = struct.Struct("<cQ")
_LEVEL = 1  # the fastest
_BEST_RATIO = 1032  # zlib's; a frame that claims more is not valid


def compress(frame: bytes | Pieces) -> bytes | Pieces:
    """Return the compressed form of a frame, or the frame itself if that is not larger."""
    size = len(frame)
    if size > MAX_DECOMPRESSED_BYTES:
        return frame
    compressor = zlib.compressobj(_LEVEL)
    parts = [_HEAD.pack(COMPRESSED_KIND, size)]
    for buffer in frame.buffers if isinstance(frame, Pieces) else (frame,):
        parts.append(compressor.compress(buffer))
    parts.append(compressor.flush())
    compressed = Pieces(parts)
    if len(compressed) >= size:
        return frame
    return bytes(compressed) if len(compressed) < LARGE_BYTES else compressed


def decompress(frame: bytes | memoryview) -> memoryview:
    """Return the frame in a compressed frame. It is in memory that no other object uses. Raises `CorruptValue`."""
    if len(frame) < _HEAD.size:
        raise CorruptValue("a stored compressed value has no whole head")
    _, size = _HEAD.unpack_from(frame)
    if size > min(MAX_DECOMPRESSED_BYTES, len(frame) * _BEST_RATIO):
        raise CorruptValue(f"a stored compressed value claims to have {size} bytes, which is too many")
    stream = zlib.decompressobj()
    try:
        # One byte more, so that the end of the stream is reached.
        data = stream.decompress(memoryview(frame)[_HEAD.size :], size + 1)
    except zlib.error:
        raise CorruptValue("a stored compressed value does not decompress") from None
    except MemoryError:
        raise CorruptValue(f"there is no memory for the {size} bytes of a stored compressed value") from None
    if len(data) != size or not stream.eof or stream.unused_data:
        raise CorruptValue("a stored compressed value is not as long as it says")
    return memoryview(data)
