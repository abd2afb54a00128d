"""Pyro5 messages (protocol 502) as bytes: the 40-byte header and `FrameDecoder`. Pure.

A header is checked before any of its body is kept. A `FrameDecoder` belongs to one connection and is used by one
thread at a time. The format is described in ``docs/wire-format.md``; Pyro5's is in its ``protocol.py``.
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
"""The serializer that carries bytes as they are, and the only one spoken here."""

HEADER_BYTES = 40

_HEADER = struct.Struct("!4sHBBHHII16sHH")
_VERSION = 502
_MAGIC = 0x4DC5
_NO_CORRELATION = bytes(16)


Buffer: TypeAlias = bytes | bytearray | memoryview


class Header(NamedTuple):
    """What the first 40 bytes of a message say."""

    type: int
    serializer: int
    flags: int
    sequence: int
    body_bytes: int
    annotation_bytes: int

    @property
    def frame_bytes(self) -> int:
        """Length of the whole message."""
        return HEADER_BYTES + self.annotation_bytes + self.body_bytes


class Frame(NamedTuple):
    """One whole message; annotations are skipped."""

    header: Header
    body: bytes | memoryview


def parse_header(data: bytes | bytearray | memoryview) -> Header:
    """The header in the first 40 bytes of ``data``.

    Raises:
        ProtocolError: they are no header of protocol 502.
    """
    tag, version, kind, serializer, flags, sequence, body, annotations, _, _, magic = _HEADER.unpack_from(
        data
    )
    if tag != b"PYRO" or version != _VERSION or magic != _MAGIC:
        raise ProtocolError("These bytes are no Pyro5 message of protocol 502.")
    return Header(kind, serializer, flags, sequence, body, annotations)


def pack_message(
    kind: int, sequence: int, body: bytes, *, flags: int = 0, serializer: int = MSGPACK
) -> bytes:
    """A whole message without annotations."""
    length = len(body)
    return (
        _HEADER.pack(
            b"PYRO", _VERSION, kind, serializer, flags, sequence, length, 0, _NO_CORRELATION, 0, _MAGIC
        )
        + body
    )


class FrameDecoder:
    """Bytes in as they come, whole frames out.

    A short frame is collected from what is fed. Once a long one is under way, `space` is where the rest of it
    belongs, so that it is received to where it stays.

    Args:
        admit: judges each header before any of its body is kept; raises to refuse it. May be set anew.
        room: gives memory for a frame of so many bytes, of which none has come, or None to have it collected.
    """

    __slots__ = ("_buffer", "_filled", "_header", "_large", "_room", "_skip", "admit")

    def __init__(self, admit: Callable[[Header], None], room: Callable[[int], memoryview | None]) -> None:
        self.admit = admit
        self._room = room
        self._buffer = bytearray()
        self._header: Header | None = None
        self._large: memoryview | None = None
        self._filled = 0
        self._skip = 0

    @property
    def buffered(self) -> int:
        """Bytes held."""
        return len(self._buffer) + self._filled

    @property
    def between_frames(self) -> bool:
        """Whether nothing is held and the next byte begins a frame."""
        return not self._buffer and self._header is None and not self._skip

    def feed(self, data: bytes) -> None:
        """Take what the connection has brought."""
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
        """Where the rest of a long frame is to be received to; say how much came by `filled`. None: `feed`."""
        return None if self._large is None else self._large[self._filled :]

    def filled(self, count: int) -> None:
        """``count`` bytes have been put at the beginning of `space`."""
        self._filled += count

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more has come.

        Raises:
            ProtocolError: the bytes are no message, or whatever ``admit`` raises; drop the connection then.
        """
        buffer = self._buffer
        header = self._header
        new = False
        if header is None:
            if len(buffer) < HEADER_BYTES:
                if buffer and not b"PYRO".startswith(buffer[:4]):
                    raise ProtocolError("These bytes are no Pyro5 message of protocol 502.")
                return None
            header = parse_header(buffer)
            self.admit(header)
            self._header = header
            new = True
        start, total = HEADER_BYTES + header.annotation_bytes, header.frame_bytes
        if self._large is not None:
            if self._filled < total:
                return None
            body = self._large[start:]
            self._large, self._filled, self._header = None, 0, None
            return Frame(header, body)
        if len(buffer) >= total:
            self._header = None
            if len(buffer) == total > LARGE_BYTES:  # handed over, not copied
                self._buffer = bytearray()
                return Frame(header, memoryview(buffer)[start:])
            with memoryview(buffer) as view:
                content = bytes(view[start:total])
            del buffer[:total]
            return Frame(header, content)
        if new and (room := self._room(total)) is not None:
            self._large = room
            self._filled = len(buffer)
            self._large[: self._filled] = buffer
            self._buffer = bytearray()
        return None

    def discard(self) -> Header | None:
        """Throw away the frame under way, what is still to come of it too, and return its header if that has come."""
        header = self._header
        if header is not None:
            missing = header.frame_bytes - self.buffered
            self._skip = max(missing, 0)
            self._buffer = self._buffer[missing:] if missing < 0 else bytearray()
            self._header, self._large, self._filled = None, None, 0
        return header
