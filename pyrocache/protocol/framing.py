"""Frames of Pyro5 messages (protocol 502): the 40-byte header, and `FrameDecoder`.

Responsible for the header's format and for collecting frames from received bytes; `pyrocache.protocol.messages`
handles their bodies. A header is checked before any of its body is buffered. ``docs/wire-format.md`` describes the
format; Pyro5 defines it in its ``protocol.py``. Pure: no I/O, no threads, no clock.

Thread safety: a `FrameDecoder` belongs to one connection and is used by one thread at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from pyrocache.errors import ProtocolError
from pyrocache.protocol.limits import LARGE_BYTES

CONNECT, CONNECT_OK, CONNECT_FAIL, INVOKE, RESULT, PING = range(1, 7)

FLAG_EXCEPTION = 1 << 0
FLAG_COMPRESSED = 1 << 1
FLAG_ONEWAY = 1 << 2
FLAG_BATCH = 1 << 3
FLAG_CORRELATION_ID = 1 << 6

MSGPACK = 4
"""The serializer that carries bytes unchanged, and the only one supported here."""

HEADER_BYTES = 40

JUDGED_BYTES = 256
"""How many bytes of a long body suffice to judge it, see `FrameDecoder`."""

_HEADER = struct.Struct("!4sHBBHHII16sHH")
_VERSION = 502
_MAGIC = 0x4DC5
_NO_CORRELATION = bytes(16)
_NO_MESSAGE = "These bytes are not a valid Pyro5 message of protocol 502."

Buffer: TypeAlias = bytes | bytearray | memoryview


class Header(NamedTuple):
    """The fields of a message's first 40 bytes."""

    type: int
    serializer: int
    flags: int
    sequence: int
    body_bytes: int
    annotation_bytes: int
    correlation: bytes = _NO_CORRELATION

    @property
    def frame_bytes(self) -> int:
        """Return the length of the whole message."""
        return HEADER_BYTES + self.annotation_bytes + self.body_bytes


class Frame(NamedTuple):
    """One complete message, without its annotations."""

    header: Header
    body: bytes | memoryview


def parse_header(data: Buffer) -> Header:
    """Return the header in the first 40 bytes of ``data``.

    Raises:
        ProtocolError: they are not a header of protocol 502.
    """
    tag, version, *fields, _, magic = _HEADER.unpack_from(data)
    if tag != b"PYRO" or version != _VERSION or magic != _MAGIC:
        raise ProtocolError(_NO_MESSAGE)
    return Header(*fields)


def frame_end(data: bytes, start: int) -> int:
    """Return where the message without annotations ends that begins at ``start``; -1 if its header is not complete."""
    if len(data) - start < HEADER_BYTES:
        return -1
    return start + HEADER_BYTES + int.from_bytes(data[start + 12 : start + 16], "big")


def pack_message(kind: int, sequence: int, body: bytes, flags: int = 0, serializer: int = MSGPACK) -> bytes:
    """Return a complete message without annotations."""
    size = len(body)
    fields = (kind, serializer, flags, sequence, size, 0, _NO_CORRELATION, 0, _MAGIC)
    return _HEADER.pack(b"PYRO", _VERSION, *fields) + body


class FrameDecoder:
    """Collects received bytes and returns complete frames.

    A short frame is collected from the bytes given to `feed`. A long frame is received directly into its own buffer,
    which `space` returns, so that it is not copied.

    Args:
        admit: called with each header before any of its body is buffered; raises to refuse it. May be replaced.
        room: called with a frame's length; returns a buffer for the whole frame, or None to collect it by `feed`.
        admit_head: called with the header of a frame that is not complete and the beginning of its body, before
            ``room``. Returns False to be called again with more of the body; raises to refuse it.
    """

    __slots__ = ("_admit_head", "_buffer", "_filled", "_header", "_large", "_room", "_skip", "admit")

    def __init__(
        self,
        admit: Callable[[Header], None],
        room: Callable[[int], memoryview | None],
        admit_head: Callable[[Header, bytes], bool] = lambda header, head: True,
    ) -> None:
        self.admit = admit
        self._room = room
        self._admit_head = admit_head
        self._buffer = bytearray()
        self._header: Header | None = None
        self._large: memoryview | None = None
        self._filled = 0
        self._skip = 0

    @property
    def buffered(self) -> int:
        """Return the number of bytes buffered."""
        return len(self._buffer) + self._filled

    @property
    def missing(self) -> int:
        """Return how many bytes of a long frame are still to come; 0 if no long frame is being received."""
        return 0 if self._large is None else len(self._large) - self._filled

    @property
    def between_frames(self) -> bool:
        """Return whether nothing is buffered and the next byte begins a frame."""
        return not self._buffer and self._header is None and not self._skip

    def feed(self, data: bytes) -> None:
        """Add bytes that were received."""
        if self._skip:
            skipped = min(len(data), self._skip)
            self._skip -= skipped
            data = data[skipped:]
        if self._large is None:
            self._buffer += data
            return
        taken = min(len(data), len(self._large) - self._filled)
        self._large[self._filled : self._filled + taken] = data[:taken]
        self._filled += taken
        self._buffer += data[taken:]

    def space(self) -> memoryview | None:
        """Return the memory to receive the rest of a long frame into; then call `filled`. None: call `feed`."""
        return None if self._large is None else self._large[self._filled :]

    def filled(self, count: int) -> None:
        """Note that ``count`` bytes were received into the beginning of `space`."""
        self._filled += count

    def take_back(self, most: int) -> bytes | None:
        """Return the bytes buffered of an incomplete frame, and forget them.

        Returns:
            None, and nothing is forgotten, if there are more than ``most``, or if the next bytes do not continue them.
        """
        if self._large is not None or self._skip or len(self._buffer) > most:
            return None
        data = bytes(self._buffer)
        self._buffer.clear()
        self._header = None
        return data

    def next_frame(self) -> Frame | None:
        """Return the next complete frame, or None if more bytes are needed.

        Raises:
            ProtocolError: the bytes are not a valid message. Close the connection.
            Exception: whatever ``admit`` raises. Close the connection.
        """
        buffer = self._buffer
        header = self._header
        if header is None:
            if len(buffer) < HEADER_BYTES:
                # Do not wait for 40 bytes from a peer of another protocol.
                if buffer and not b"PYRO".startswith(buffer[:4]):
                    raise ProtocolError(_NO_MESSAGE)
                return None
            header = parse_header(buffer)
            self.admit(header)
            self._header = header
        start, total = HEADER_BYTES + header.annotation_bytes, header.frame_bytes
        if self._large is not None:
            if self._filled < total:
                return None
            body = self._large[start:]
            self._large, self._filled, self._header = None, 0, None
            return Frame(header, body)
        if len(buffer) >= total:
            self._header = None
            if len(buffer) == total > LARGE_BYTES:  # hand over the buffer instead of copying it
                self._buffer = bytearray()
                return Frame(header, memoryview(buffer)[start:])
            with memoryview(buffer) as view:
                content = bytes(view[start:total])
            del buffer[:total]
            return Frame(header, content)
        if not self._admit_head(header, bytes(buffer[start : start + JUDGED_BYTES])):
            return None
        if (room := self._room(total)) is not None:
            self._large = room
            self._filled = len(buffer)
            self._large[: self._filled] = buffer
            self._buffer = bytearray()
        return None

    def discard(self) -> Header | None:
        """Discard the current frame, and its rest when that arrives. Return its header; None if that is incomplete."""
        header = self._header
        if header is not None:
            missing = header.frame_bytes - self.buffered
            self._skip = max(missing, 0)
            self._buffer = self._buffer[missing:] if missing < 0 else bytearray()
            self._header, self._large, self._filled = None, None, 0
        return header
