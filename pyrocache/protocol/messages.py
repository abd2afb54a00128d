"""Bodies of Pyro5 messages: calls and results as plain msgpack.

Unpacking returns plain types only; no hook builds objects. Small messages, which are nearly all, are packed and
unpacked in a few calls into C. Of their headers, only the fields that vary are examined. Large binary values are not
copied: they are `Pieces` when packed, and a `memoryview` when unpacked. Pure: no I/O, no threads, no clock.

Thread safety: a `CallPacker` belongs to one connection and is used by one thread at a time. The rest is stateless.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable
from typing import Any, Generic, NoReturn, TypeVar

import msgpack

from pyrocache.config import REQUEST_OVERHEAD_BYTES
from pyrocache.errors import ProtocolError
from pyrocache.protocol.framing import HEADER_BYTES, INVOKE, RESULT, Buffer, pack_message
from pyrocache.protocol.limits import BATCH_BYTES, LARGE_BYTES, MAX_BATCH, MAX_KEY_BYTES
from pyrocache.protocol.request_id import REPEAT, SESSION_BYTES
from pyrocache.tracebacks import came_from_outside

_Method = TypeVar("_Method")

_VARYING = struct.Struct("!10sHI24s")  # a reply's header: constant, sequence, length of the body, constant
_SHORT_REPLY = struct.Struct("!10sHI24sBB")  # such a header, and the type and the length of a short value
_SHORT_AT = _SHORT_REPLY.size
_CONSTANT_REPLY = struct.Struct("!10sHI25s")  # such a header, and a body of one byte
_pack_short_reply, _unpack_short_reply = _SHORT_REPLY.pack, _SHORT_REPLY.unpack_from
_pack_constant_reply, _unpack_constant_reply = _CONSTANT_REPLY.pack, _CONSTANT_REPLY.unpack_from
# A request's, but for a constant at its end: constant, sequence, length, no annotations, and the three of a RequestId.
_REQUEST = struct.Struct("!10sHI4s8sII")
_BIN32 = struct.Struct("!BI")
_BIN8_TYPE, _BIN32_TYPE = 0xC4, 0xC6
_ARRAY_OF_ONE = 0x91

VALUE_OFFSET = HEADER_BYTES + _BIN32.size
"""Offset of a large value in a message that holds nothing else."""

_MAX_ITEMS = MAX_BATCH + 24  # of an array or a map
_MAX_CONTAINERS = 2 * _MAX_ITEMS


LONGEST_SMALL_BYTES = BATCH_BYTES + REQUEST_OVERHEAD_BYTES
"""The most bytes of a request beside one large value. They are unpacked at once, which copies them."""


class TooLong(ProtocolError):
    """A request has more than `LONGEST_SMALL_BYTES` beside one large value."""


class Pieces:
    """A large binary value in several buffers, which are sent one after the other.

    Attributes:
        buffers: the buffers, in order.
    """

    __slots__ = ("_length", "buffers")

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self.buffers = tuple(buffers)
        self._length = sum(map(len, self.buffers))

    def __len__(self) -> int:
        """Return the total number of bytes."""
        return self._length

    def __bytes__(self) -> bytes:
        return b"".join(self.buffers)


def pack_plain(value: Any) -> bytes:
    """Return a value of plain types as msgpack. A set becomes an array, as in Pyro5."""
    return msgpack.packb(value, use_bin_type=True, default=_set_as_list)  # type: ignore[no-any-return]


def _set_as_list(value: Any) -> list[Any]:
    if isinstance(value, (set, frozenset)):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not plain")


_PLAIN_CALL, _PLAIN_RESULT = pack_message(INVOKE, 0, b""), pack_message(RESULT, 0, b"")
_CALL_START, _RESULT_START, _END = _PLAIN_CALL[:10], _PLAIN_RESULT[:10], _PLAIN_CALL[16:]
_NO_ANNOTATIONS, _CALL_END = _PLAIN_CALL[16:20], _PLAIN_CALL[36:40]
_NO_OPTIONS = b"\x80"
_CONSTANT_ENDS = {value: _END + pack_plain(value) for value in (None, False, True)}
_CONSTANT_OF = {end: value for value, end in _CONSTANT_ENDS.items()}


class CallPacker:
    """Packs calls of one remote object.

    Args:
        object_id: the object's name on the node.
    """

    __slots__ = ("_begin", "_pack", "_session", "_starts")

    def __init__(self, object_id: str) -> None:
        self._session = _NO_ANNOTATIONS + bytes(SESSION_BYTES)
        self._begin = _CALL_END + b"\x94" + pack_plain(object_id)
        self._starts: dict[
            str, tuple[Callable[..., bytes], bytes, bytes, int]
        ] = {}  # as `_start` returns them
        self._pack = msgpack.Packer(use_bin_type=True).pack

    def identify(self, session: bytes) -> None:
        """Put ``session`` into the identity of each request from now on. Without this, requests have no identity."""
        self._session = _NO_ANNOTATIONS + session
        self._starts.clear()

    def pack(
        self, method: str, arguments: tuple[Any, ...], sequence: int, number: int = 0, deadline: int = 0
    ) -> bytes | list[Buffer]:
        """Return the message that calls ``method``, in several buffers if one of its arguments is a large value.

        ``number`` and ``deadline`` are the last two fields of a `RequestId`.
        """
        start = self._starts.get(method)
        if start is None:
            start = self._starts[method] = self._start(method)
        pack_start, session, name, beside = start
        try:
            body: bytes = self._pack(arguments)
        except TypeError:  # msgpack does not know Pieces
            buffers = list(_pack_with_pieces(arguments))
            length = beside + sum(map(len, buffers))
            header = pack_start(_CALL_START, sequence, length, session, number, deadline, name)
            return [header, *buffers, _NO_OPTIONS]
        if len(body) > LARGE_BYTES:  # a packer never frees its buffer
            self._pack = msgpack.Packer(use_bin_type=True).pack
        length = beside + len(body)
        return pack_start(_CALL_START, sequence, length, session, number, deadline, name) + body + _NO_OPTIONS

    def _start(self, method: str) -> tuple[Callable[..., bytes], bytes, bytes, int]:
        """Return the formatting of the start of a call, its two constants, and the bytes of its body but arguments."""
        name = self._begin + pack_plain(method)
        form = struct.Struct(f"!10sHI{len(self._session)}sII{len(name)}s")
        return form.pack, self._session, name, len(name) - len(_CALL_END) + len(_NO_OPTIONS)


def _pack_with_pieces(value: Any) -> Iterable[Buffer]:
    """Yield a value as msgpack, with the buffers of each `Pieces` in it."""
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
    """Return the reply with a call's result, in several buffers if the result is a large value."""
    # Nearly all replies are one of these two kinds: one formatting call instead of msgpack.
    if type(result) is bytes and len(result) < 256:
        length = len(result)
        return _pack_short_reply(_RESULT_START, sequence, length + 2, _END, _BIN8_TYPE, length) + result
    if result is None or type(result) is bool:
        return _pack_constant_reply(_RESULT_START, sequence, 1, _CONSTANT_ENDS[result])
    if type(result) is memoryview or (type(result) is bytes and len(result) >= LARGE_BYTES):
        length = len(result)
        header = _VARYING.pack(_RESULT_START, sequence, _BIN32.size + length, _END)
        return [header + _BIN32.pack(_BIN32_TYPE, length), result]
    body = pack_plain(result)
    return _VARYING.pack(_RESULT_START, sequence, len(body), _END) + body


class CallUnpacker(Generic[_Method]):
    """Unpacks small calls of one remote object, if they have the form in which a `CallPacker` packs them.

    Args:
        object_id: the object's name.
        methods: for each method that may be called, by name, the object that `unpack` returns.
    """

    __slots__ = ("_methods", "_name_at")

    def __init__(self, object_id: str, methods: dict[str, _Method]) -> None:
        begin = _CALL_END + b"\x94" + pack_plain(object_id)
        self._name_at = _REQUEST.size + len(begin)
        self._methods = {begin + pack_plain(name): method for name, method in methods.items()}

    def unpack(self, data: bytes) -> tuple[int, _Method, list[Any], bytes, int, int] | None:
        """Return sequence number, method, arguments and the fields of the `RequestId`.

        Returns:
            None if ``data`` is not exactly one usual call. A repeat is not usual.
        """
        if not self._name_at < len(data) <= LARGE_BYTES:
            return None
        start, sequence, length, annotations, session, number, deadline = _REQUEST.unpack_from(data)
        # The name of a known method is a short string: one byte with its length, then the text.
        arguments_at = self._name_at + 1 + (data[self._name_at] & 0x1F)
        method = self._methods.get(data[_REQUEST.size : arguments_at])
        if (
            method is None
            or start != _CALL_START
            or length != len(data) - HEADER_BYTES
            or annotations != _NO_ANNOTATIONS
            or number >= REPEAT
            or data[-1] != _NO_OPTIONS[0]
        ):
            return None
        try:
            arguments = _unpack_small(data[arguments_at:-1])
        except Exception:  # the last byte was not an empty map of options
            return None
        if type(arguments) is not list:
            return None
        return sequence, method, arguments, session, number, deadline


def sequence_of(message: bytes | list[Buffer]) -> int:
    """Return the sequence number of a message that this module packed."""
    head = message if isinstance(message, bytes) else message[0]
    return int.from_bytes(head[10:12], "big")


def with_sequence(message: bytes, sequence: int) -> bytes:
    """Return a message with another sequence number."""
    return message[:10] + sequence.to_bytes(2, "big") + message[12:]


UNUSUAL: Any = object()
"""Returned by `unpack_result` for a reply that needs a `FrameDecoder`."""


def unpack_result(data: bytes, sequence: int) -> Any:
    """Return the result, or `UNUSUAL` if ``data`` is not exactly one small and usual reply to that request.

    Raises:
        ProtocolError: the body is not plain msgpack.
    """
    size = len(data)
    if _SHORT_AT <= size <= LARGE_BYTES:
        start, answered, length, end, kind, short = _unpack_short_reply(data)
        if start == _RESULT_START and answered == sequence and end == _END and length == size - HEADER_BYTES:
            return (
                data[_SHORT_AT:]
                if kind == _BIN8_TYPE and short == length - 2
                else unpack_plain(data[HEADER_BYTES:])
            )
    elif size == _SHORT_AT - 1:
        start, answered, length, end = _unpack_constant_reply(data)
        if start == _RESULT_START and answered == sequence and length == 1 and end.startswith(_END):
            return _CONSTANT_OF[end] if end in _CONSTANT_OF else unpack_plain(end[-1:])
    return UNUSUAL


def unpack_results(data: bytes, results: list[tuple[int, Any]]) -> int:
    """Append the small and usual replies at the beginning of ``data``: sequence number and result.

    Return where the first one begins that needs a `FrameDecoder`.

    Raises:
        ProtocolError: a body is not plain msgpack.
    """
    at, size = 0, len(data)
    while size - at >= HEADER_BYTES:
        start, sequence, length, end = _VARYING.unpack_from(data, at)
        body_at = at + HEADER_BYTES
        following = body_at + length
        if following > size or length > LARGE_BYTES or start != _RESULT_START or end != _END:
            break
        if length == 1:
            ending = end + data[body_at:following]
            result = _CONSTANT_OF[ending] if ending in _CONSTANT_OF else unpack_plain(data[body_at:following])
        elif length > 1 and data[body_at] == _BIN8_TYPE and data[body_at + 1] == length - 2:
            result = data[body_at + 2 : following]
        else:
            result = unpack_plain(data[body_at:following])
        results.append((sequence, result))
        at = following
    return at


def unpack_plain(body: bytes | memoryview) -> Any:
    """Return the plain value (None, bool, int, float, bytes, str, list, dict) in a body.

    Memory stays within a small multiple of the body's length: the lengths of arrays and maps are bounded. In a large
    body, their number is bounded too, because one byte can stand for an object of 50 bytes.

    Raises:
        ProtocolError: the body holds anything else.
    """
    try:
        if body[0] == _BIN32_TYPE and len(body) == _BIN32.size + _BIN32.unpack_from(body)[1]:
            return body[_BIN32.size :]
        if len(body) <= LARGE_BYTES:
            return _unpack_small(body)
        containers = itertools.count(1)

        def count(container: Any) -> Any:
            if next(containers) > _MAX_CONTAINERS:
                raise ValueError("too many containers")
            return container

        return msgpack.unpackb(body, list_hook=count, object_hook=count, **_STRICTLY)
    except Exception as error:
        if came_from_outside(error):
            raise
        raise ProtocolError(f"A message's body is not plain msgpack ({type(error).__name__}).") from None


def unpack_call(body: bytes | memoryview) -> tuple[str, str, list[Any], dict[str, Any]]:
    """Return object id, method, arguments and options of a call. A large argument is a view into ``body``.

    Raises:
        TooLong: there is more than one large argument.
        ProtocolError: the body is not a call.
    """
    call = None
    for head_bytes in (_USUAL_HEAD, _LONGEST_HEAD) if len(body) > LARGE_BYTES else ():
        if call is None:
            call = _unpack_with_large_value(memoryview(body), head_bytes)
    if not call and len(body) > LONGEST_SMALL_BYTES:
        raise TooLong("A request holds more than a batch and one large value.")
    return as_call(call or unpack_plain(body))


def called(head: bytes) -> tuple[str, str, bool] | None:
    """Return object id and method of the call whose body begins with ``head``, and whether it is about several keys.

    None if that is not in these bytes.
    """
    unpacker = msgpack.Unpacker(**_STRICTLY)
    unpacker.feed(head)
    try:
        length, object_id, name = unpacker.read_array_header(), unpacker.unpack(), unpacker.unpack()
        unpacker.read_array_header()
        unpacker.skip()  # the view
        keys = head[unpacker.tell()]
    except Exception as error:  # cut, or not msgpack
        if came_from_outside(error):
            raise
        return None
    valid = length == 4 and type(object_id) is str and type(name) is str
    return (object_id, name, _is_container(keys) and keys != _ARRAY_OF_ONE) if valid else None


def _is_container(kind: int) -> bool:
    """Return whether an object of this first byte is an array or a map."""
    return 0x80 <= kind <= 0x9F or 0xDC <= kind <= 0xDF


def as_call(call: Any) -> tuple[str, str, list[Any], dict[str, Any]]:
    """Return ``call`` if it is object id, method, arguments and options.

    Raises:
        ProtocolError: it is not.
    """
    if isinstance(call, (list, tuple)) and len(call) == 4:
        object_id, name, arguments, options = call
        if type(object_id) is str and type(name) is str and type(arguments) is list and type(options) is dict:
            return object_id, name, arguments, options
    raise ProtocolError("A call must be an array of object, method, arguments and options.")


_BEFORE_VALUE = 2  # arguments before a large value: the view and the key
_USUAL_HEAD, _LONGEST_HEAD = 512, MAX_KEY_BYTES + 1024  # bytes before a large value


def _unpack_with_large_value(body: memoryview, head_bytes: int) -> tuple[Any, ...] | None:
    """Return the call in ``body``, with its first large argument as a view into it.

    Returns:
        An empty tuple if there is no such argument; None if the first ``head_bytes`` do not suffice to decide.
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
            nested = body[at] == _ARRAY_OF_ONE  # a column of a batch with one entry
            kind, length = _BIN32.unpack_from(body, at + nested)
            if not nested and _is_container(kind):
                return ()
            if kind == _BIN32_TYPE and length >= LARGE_BYTES and len(arguments) >= _BEFORE_VALUE:
                start = at + nested + _BIN32.size
                value: Any = body[start : start + length]
                if len(body) - length > LONGEST_SMALL_BYTES:
                    raise TooLong("A request holds more than a batch and one large value.")
                # The other arguments and the options follow: as many objects as were left with the value.
                rest = unpack_plain(msgpack.Packer().pack_array_header(left) + body[start + length :])
                return object_id, name, [*arguments, [value] if nested else value, *rest[:-1]], rest[-1]
            arguments.append(head.unpack())
    except msgpack.exceptions.OutOfData:
        return None
    except (ValueError, struct.error) as error:
        if came_from_outside(error):
            raise
    return ()


def _refuse_ext(code: int, data: bytes) -> NoReturn:
    raise ValueError("extension types are not plain")


_TIMESTAMP_AS_FLOAT = 1  # the one extension that never reaches ext_hook
_STRICTLY: dict[str, Any] = {
    "raw": False,
    "ext_hook": _refuse_ext,
    "timestamp": _TIMESTAMP_AS_FLOAT,
    "max_array_len": _MAX_ITEMS,
    "max_map_len": _MAX_ITEMS,
}


def _unpack_small(body: bytes | memoryview) -> Any:
    # Keywords that are written out cost half as much as a `partial` or ``**``.
    return msgpack.unpackb(
        body,
        raw=False,
        ext_hook=_refuse_ext,
        timestamp=_TIMESTAMP_AS_FLOAT,
        max_array_len=_MAX_ITEMS,
        max_map_len=_MAX_ITEMS,
    )
