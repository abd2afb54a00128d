"""Pyro5 messages (protocol 502) to bytes and back, without I/O. Pure.

Owns the 40-byte header, the payload's plain msgpack, and the form in which a refusal crosses the wire. Refuses
everything that Pyro5's own decoder would turn into objects: no hooks run, only plain types come out, and the
header is judged before any of the body is kept. A `FrameDecoder` belongs to one connection and one thread.

The format is described in ``docs/wire-format.md``; Pyro5's is in its ``protocol.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import msgpack

from pyrocache.errors import ProtocolError

CONNECT, CONNECT_OK, CONNECT_FAIL, INVOKE, RESULT, PING = range(1, 7)

FLAG_EXCEPTION = 1 << 0
FLAG_COMPRESSED = 1 << 1
FLAG_ONEWAY = 1 << 2
FLAG_BATCH = 1 << 3
FLAG_CORRELATION_ID = 1 << 6

MSGPACK = 4
"""The serializer that carries bytes as they are, and the only one spoken here."""

HEADER_BYTES = 40
MAX_KEY_BYTES = 64 * 1024
"""Length of the longest encoded key, its namespace included."""

MAX_BATCH = 1000
"""Keys or entries in one message; more go into further messages."""

BATCH_BYTES = 4 * 2**20
"""Bytes of entries after which a batch is continued in a further message."""

_HEADER = struct.Struct("!4sHBBHHII16sHH")
_VERSION = 502
_MAGIC = 0x4DC5
_NO_CORRELATION = bytes(16)

_SMALL_BODY = 64 * 1024
_MAX_ARRAY = MAX_BATCH + 24
_MAX_MAP = 512
_MAX_CONTAINERS = 2 * _MAX_ARRAY


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


def pack_plain(value: Any) -> bytes:
    """``value``, of plain types only, as msgpack; a set becomes an array, as Pyro5 does it."""
    return msgpack.packb(value, use_bin_type=True, default=_set_as_list)  # type: ignore[no-any-return]


def _set_as_list(value: Any) -> list[Any]:
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not plain")


def pack_call(object_id: str, method: str, arguments: tuple[Any, ...], sequence: int) -> bytes:
    """The message that calls ``method`` of the remote object."""
    return pack_message(INVOKE, sequence, pack_plain((object_id, method, arguments, {})))


def unpack_plain(body: bytes | memoryview) -> Any:
    """The plain value (None, bool, int, float, bytes, str, list, dict) that ``body`` holds.

    No hook builds objects, and memory stays within a small multiple of the body's length: the arrays' lengths are
    bounded, and in a large body, where a byte can stand for an object of 50, their number too.

    Raises:
        ProtocolError: it holds anything else.
    """
    try:
        if len(body) <= _SMALL_BODY:
            return msgpack.unpackb(
                body, raw=False, ext_hook=_refuse_ext, max_array_len=_MAX_ARRAY, max_map_len=_MAX_MAP
            )
        budget = _Budget(_MAX_CONTAINERS)
        return msgpack.unpackb(
            body,
            raw=False,
            ext_hook=_refuse_ext,
            list_hook=budget.spend,
            object_hook=budget.spend,
            max_array_len=_MAX_ARRAY,
            max_map_len=_MAX_MAP,
        )
    except Exception as error:
        raise ProtocolError(f"A message's body is not plain msgpack ({type(error).__name__}).") from None


class _Budget:
    """Counts the containers of one body."""

    __slots__ = ("left",)

    def __init__(self, containers: int) -> None:
        self.left = containers

    def spend(self, container: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("too many containers")
        return container


def _refuse_ext(code: int, data: bytes) -> NoReturn:
    raise ValueError("extension types are not plain")


# Refusals -------------------------------------------------------------------------------------------------
# A method that refuses raises Pyro5's PyroError, which every Pyro5 peer knows, with two attributes: a code for
# programs and a detail. On the wire it is the map that Pyro5 makes of any exception.


class Refusal(NamedTuple):
    """What a peer said instead of a result.

    Attributes:
        code: one of the codes of ``docs/wire-format.md``, ``""`` when the peer gave none.
        message: one sentence.
        detail: what the code says it is, or None.
    """

    code: str
    message: str
    detail: Any = None


STALE_VIEW = "stale-view"
KEY_TOO_LARGE = "key-too-large"
VALUE_TOO_LARGE = "value-too-large"
OVERLOADED = "overloaded"
BAD_REQUEST = "bad-request"
SCAN_EXPIRED = "scan-expired"
INTERNAL = "internal"


def pack_refusal(refusal: Refusal) -> bytes:
    """The body of an exception reply."""
    return pack_plain(
        {
            "__class__": "Pyro5.errors.PyroError",
            "__exception__": True,
            "args": [refusal.message],
            "attributes": {"code": refusal.code, "detail": refusal.detail},
        }
    )


def unpack_refusal(body: bytes | memoryview) -> Refusal:
    """The refusal in the body of an exception reply, whoever sent it."""
    data = unpack_plain(body)
    if not isinstance(data, dict):
        raise ProtocolError("An exception reply holds no exception.")
    attributes, arguments = data.get("attributes"), data.get("args")
    if not isinstance(attributes, dict):
        attributes = {}
    code = attributes.get("code")
    message = arguments[0] if isinstance(arguments, list) and arguments else data.get("__class__")
    return Refusal(
        code if isinstance(code, str) else "",
        message if isinstance(message, str) else "no reason was given",
        attributes.get("detail"),
    )


class FrameDecoder:
    """Bytes in as they come, whole frames out.

    Args:
        admit: judges each header before any of its body is kept; raises to refuse it. May be set anew.
    """

    __slots__ = ("_buffer", "_header", "admit")

    def __init__(self, admit: Callable[[Header], None]) -> None:
        self.admit = admit
        self._buffer = bytearray()
        self._header: Header | None = None

    @property
    def buffered(self) -> int:
        """Bytes held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take what the connection has brought."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more has come.

        Raises:
            ProtocolError: the bytes are no message, or whatever ``admit`` raises; drop the connection then.
        """
        buffer = self._buffer
        header = self._header
        if header is None:
            if len(buffer) < HEADER_BYTES:
                if buffer and not b"PYRO".startswith(buffer[:4]):
                    raise ProtocolError("These bytes are no Pyro5 message of protocol 502.")
                return None
            header = parse_header(buffer)
            self.admit(header)
            self._header = header
        total = header.frame_bytes
        if len(buffer) < total:
            return None
        start = HEADER_BYTES + header.annotation_bytes
        self._header = None
        if len(buffer) == total:  # nearly always: the body is handed over, not copied
            self._buffer = bytearray()
            return Frame(header, memoryview(buffer)[start:])
        with memoryview(buffer) as view:
            body = bytes(view[start:total])
        del buffer[:total]
        return Frame(header, body)
