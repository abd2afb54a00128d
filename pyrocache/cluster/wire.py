"""Pyro5 messages (protocol 502) to bytes and back, without I/O. Pure.

Owns the 40-byte header, the payload's plain msgpack, and the form in which a refusal crosses the wire. Refuses
everything that Pyro5's own decoder would turn into objects: no hooks run, only plain types come out, and the
header is judged before any of the body is kept. A `FrameDecoder` and a `CallPacker` belong to one connection and are
used by one thread at a time.

Small messages, which are nearly all, are made and read in a few calls into C: of a header only what varies is looked
at. Large binary values are neither joined to the rest of their message nor copied out of it: `Pieces` on the way
out, `memoryview` on the way in.

The format is described in ``docs/wire-format.md``; Pyro5's is in its ``protocol.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeAlias

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

MAX_TAGS = 64
"""Tags of one entry."""

MAX_TAG_BYTES = 2048
"""Length of the longest tag, its namespace included."""

KEEP_TTL = -1
"""As a TTL: the one that the entry has."""

_HEADER = struct.Struct("!4sHBBHHII16sHH")
_VERSION = 502
_MAGIC = 0x4DC5
_NO_CORRELATION = bytes(16)

_VARYING = struct.Struct("!10sHI24s")  # the header as a constant, sequence, bytes of the body, a constant
_BIN32 = struct.Struct("!BI")
_BIN8_TYPE, _BIN32_TYPE = 0xC4, 0xC6

LARGE_BYTES = 64 * 1024
"""Length from which a message or a binary value in it is kept apart, instead of joined and copied."""

VALUE_OFFSET = HEADER_BYTES + _BIN32.size
"""Where a large value begins in a message that holds nothing else."""

_SMALL_BODY = 64 * 1024
_MAX_ARRAY = MAX_BATCH + 24
_MAX_MAP = 512
_MAX_CONTAINERS = 2 * _MAX_ARRAY


Buffer: TypeAlias = bytes | bytearray | memoryview


class Pieces:
    """A large binary value that lies in several buffers, which are sent one after the other.

    Attributes:
        buffers: in their order.
    """

    __slots__ = ("_length", "buffers")

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self.buffers = tuple(buffers)
        self._length = sum(map(len, self.buffers))

    def __len__(self) -> int:
        """Bytes, all together."""
        return self._length

    def __bytes__(self) -> bytes:
        return b"".join(self.buffers)


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


_PLAIN_CALL = _HEADER.pack(b"PYRO", _VERSION, INVOKE, MSGPACK, 0, 0, 0, 0, _NO_CORRELATION, 0, _MAGIC)
_PLAIN_RESULT = _HEADER.pack(b"PYRO", _VERSION, RESULT, MSGPACK, 0, 0, 0, 0, _NO_CORRELATION, 0, _MAGIC)
_CALL_START, _RESULT_START, _END = _PLAIN_CALL[:10], _PLAIN_RESULT[:10], _PLAIN_CALL[16:]
_NO_OPTIONS = b"\x80"


class CallPacker:
    """Packs calls of one remote object.

    Args:
        object_id: its name on the node.
    """

    __slots__ = ("_begin", "_heads", "_pack")

    def __init__(self, object_id: str) -> None:
        self._begin = b"\x94" + pack_plain(object_id)
        self._heads: dict[str, bytes] = {}
        self._pack = msgpack.Packer(use_bin_type=True).pack

    def pack(self, method: str, arguments: tuple[Any, ...], sequence: int) -> bytes | list[Buffer]:
        """The message that calls ``method``, in several buffers if a value among its arguments is large."""
        head = self._heads.get(method)
        if head is None:
            head = self._heads[method] = self._begin + pack_plain(method)
        try:
            body: bytes = self._pack(arguments)
        except TypeError:  # it knows no Pieces
            buffers = [head, *_pack_with_pieces(arguments), _NO_OPTIONS]
            length = sum(map(len, buffers))
            return [_VARYING.pack(_CALL_START, sequence, length, _END), *buffers]
        if len(body) > LARGE_BYTES:  # a packer never gives its memory back
            self._pack = msgpack.Packer(use_bin_type=True).pack
        length = len(head) + len(body) + 1
        return _VARYING.pack(_CALL_START, sequence, length, _END) + head + body + _NO_OPTIONS


def _pack_with_pieces(value: Any) -> Iterable[Buffer]:
    """``value`` as msgpack, `Pieces` within it as what they are made of."""
    if type(value) is Pieces:
        yield _BIN32.pack(_BIN32_TYPE, len(value))
        yield from value.buffers
    elif type(value) in (tuple, list):
        yield msgpack.Packer().pack_array_header(len(value))
        for item in value:
            yield from _pack_with_pieces(item)
    else:
        yield pack_plain(value)


def pack_result(sequence: int, result: Any) -> bytes | list[Buffer]:
    """The reply that a call returned ``result``, in several buffers if that is a large value."""
    if type(result) is bytes and len(result) < 256:
        length = len(result)
        return b"%b%c%c%b" % (
            _VARYING.pack(_RESULT_START, sequence, length + 2, _END),
            _BIN8_TYPE,
            length,
            result,
        )
    if type(result) is memoryview or (type(result) is bytes and len(result) >= LARGE_BYTES):
        length = len(result)
        header = _VARYING.pack(_RESULT_START, sequence, _BIN32.size + length, _END)
        return [header + _BIN32.pack(_BIN32_TYPE, length), result]
    body = pack_plain(result)
    return _VARYING.pack(_RESULT_START, sequence, len(body), _END) + body


class CallUnpacker:
    """Reads the calls of one remote object that are as a `CallPacker` packs them and small.

    Args:
        object_id: its name.
        methods: what may be called, by name.
    """

    __slots__ = ("_methods", "_name_at")

    def __init__(self, object_id: str, methods: dict[str, Callable[..., Any]]) -> None:
        begin = b"\x94" + pack_plain(object_id)
        self._name_at = HEADER_BYTES + len(begin)
        self._methods = {begin + pack_plain(name): method for name, method in methods.items()}

    def unpack(self, data: bytes) -> tuple[int, Callable[..., Any], list[Any]] | None:
        """Sequence, method and arguments, if ``data`` is one whole call without anything special; else None."""
        if not self._name_at < len(data) <= LARGE_BYTES:
            return None
        start, sequence, length, end = _VARYING.unpack_from(data)
        arguments_at = (
            self._name_at + 1 + (data[self._name_at] & 0x1F)
        )  # the name is a short string, if it is known
        method = self._methods.get(data[HEADER_BYTES:arguments_at])
        if (
            method is None
            or start != _CALL_START
            or end != _END
            or length != len(data) - HEADER_BYTES
            or data[-1] != _NO_OPTIONS[0]
        ):
            return None
        try:
            arguments = _unpack_small(data[arguments_at:-1])
        except Exception:  # no options were no options
            return None
        return (sequence, method, arguments) if type(arguments) is list else None


def sequence_of(message: bytes | list[Buffer]) -> int:
    """The sequence number of a message that was packed here."""
    head = message if isinstance(message, bytes) else message[0]
    return int.from_bytes(head[10:12], "big")


UNUSUAL: Any = object()
"""What `unpack_result` returns for all that needs a `FrameDecoder`."""


def unpack_result(data: bytes, sequence: int) -> Any:
    """The result, if ``data`` is one whole and small reply to that request without anything special; else `UNUSUAL`.

    Raises:
        ProtocolError: the body is not plain msgpack.
    """
    size = len(data)
    if HEADER_BYTES < size <= LARGE_BYTES:
        start, answered, length, end = _VARYING.unpack_from(data)
        if start == _RESULT_START and answered == sequence and end == _END and length == size - HEADER_BYTES:
            if length > 1 and data[HEADER_BYTES] == _BIN8_TYPE and data[HEADER_BYTES + 1] == length - 2:
                return data[HEADER_BYTES + 2 :]
            return unpack_plain(data[HEADER_BYTES:])
    return UNUSUAL


def unpack_plain(body: bytes | memoryview) -> Any:
    """The plain value (None, bool, int, float, bytes, str, list, dict) that ``body`` holds.

    No hook builds objects, and memory stays within a small multiple of the body's length: the arrays' lengths are
    bounded, and in a large body, where a byte can stand for an object of 50, their number too.

    Raises:
        ProtocolError: it holds anything else.
    """
    try:
        if body[0] == _BIN32_TYPE and len(body) == _BIN32.size + _BIN32.unpack_from(body)[1]:
            return body[_BIN32.size :]
        if len(body) <= _SMALL_BODY:
            return _unpack_small(body)
        budget = _Budget(_MAX_CONTAINERS)
        return msgpack.unpackb(body, list_hook=budget.spend, object_hook=budget.spend, **_STRICTLY)
    except Exception as error:
        raise ProtocolError(f"A message's body is not plain msgpack ({type(error).__name__}).") from None


def unpack_call(body: bytes | memoryview) -> tuple[str, str, list[Any], dict[str, Any]]:
    """Object id, method, arguments and options of a call; a large value among the arguments stays in ``body``.

    Raises:
        ProtocolError: it is no call.
    """
    call: Any = None
    if len(body) > LARGE_BYTES:
        view = memoryview(body)
        call = _unpack_with_large_value(view, _USUAL_HEAD)
        if call is None:
            call = _unpack_with_large_value(view, _LONGEST_HEAD)
    if not call:
        call = unpack_plain(body)
    if isinstance(call, list | tuple) and len(call) == 4:
        object_id, name, arguments, options = call
        if type(object_id) is str and type(name) is str and type(arguments) is list and type(options) is dict:
            return object_id, name, arguments, options
    raise ProtocolError("A call is an object, a method, arguments and options.")


_BEFORE_VALUE = 2  # arguments: the view and the key
_USUAL_HEAD, _LONGEST_HEAD = 512, MAX_KEY_BYTES + 1024  # bytes before a large value


def _unpack_with_large_value(body: memoryview, head_bytes: int) -> tuple[Any, ...] | None:
    """The call in ``body`` with its first large argument left in place.

    Empty if there is no such argument, None if that cannot be seen from so many bytes.
    """
    head = msgpack.Unpacker(**_STRICTLY)
    head.feed(body[:head_bytes])
    try:
        if head.read_array_header() != 4:
            return ()
        object_id, name = head.unpack(), head.unpack()
        arguments: list[Any] = []
        for left in range(head.read_array_header(), 0, -1):
            at = head.tell()
            kind, length = _BIN32.unpack_from(body, at)
            if _is_container(kind):
                return ()
            if kind == _BIN32_TYPE and length >= LARGE_BYTES and len(arguments) >= _BEFORE_VALUE:
                start = at + _BIN32.size
                value = body[start : start + length]
                # The other arguments and the options follow: as many objects as were left with the value.
                rest = unpack_plain(msgpack.Packer().pack_array_header(left) + body[start + length :])
                return object_id, name, [*arguments, value, *rest[:-1]], rest[-1]
            arguments.append(head.unpack())
    except msgpack.exceptions.OutOfData:
        return None
    except (ValueError, struct.error):
        pass
    return ()


def _is_container(first_byte: int) -> bool:
    return 0x80 <= first_byte <= 0x9F or 0xDC <= first_byte <= 0xDF


def _refuse_ext(code: int, data: bytes) -> NoReturn:
    raise ValueError("extension types are not plain")


_STRICTLY: dict[str, Any] = {
    "raw": False,
    "ext_hook": _refuse_ext,
    "timestamp": 1,  # the one extension that no hook sees becomes a float
    "max_array_len": _MAX_ARRAY,
    "max_map_len": _MAX_MAP,
}
_unpack_small = partial(msgpack.unpackb, **_STRICTLY)


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
NOT_AN_INT = "not-an-int"
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
