"""`Codec`: values to value frames and back. ``pickling.py`` and ``unpickling.py`` make and load the pickles in them.

A *value frame* is the form in which a value is stored; it is not a message of the protocol, which carries value frames.
The first byte of a value frame is its kind, and the rest is the content::

    0x80                         a pickle, protocol 5, which includes this byte
    n None, m False, y True      nothing
    w int                        big-endian two's complement, one byte or more
    f float                      8 bytes, IEEE 754 binary64, big-endian
    z bytes                      the bytes, unchanged
    x str                        UTF-8, lone surrogates passed
    v                            a pickle with out-of-band buffers (of large arrays, for example):
                                 7 bytes 0, u32 number of buffers, u32 bytes of the pickle, u64 bytes of each buffer
                                 (all little-endian), then the pickle, then the buffers, each at the next
                                 multiple of 64
    k                            msgpack
    j                            JSON, UTF-8
    u                            by a user's codec: u8 number of bytes of its name, the name in UTF-8, then its bytes
    d                            a compressed frame (``compression.py``)
    S                            a signed frame (``signing.py``)

No pickle begins with one of these letters: a pickle of protocol 5 begins with the byte 0x80.

A kind stands for the exact type. Subclasses (members of an IntEnum, numpy.float64) are pickled, so that decoding
returns their own type. Values of the simple kinds are not pickled. Large buffers are not copied when a value is
encoded. Decoding returns views into the received message if its buffer is writable, and copies otherwise.

A client writes the simple kinds, and with one serializer (``serializers.py``) all other values; a user's codec gets all
values but ints, on which nodes compute. A client refuses the frames of other serializers. In particular, only a client
with ``serializer="pickle"`` unpickles, and with ``allowed_classes`` it unpickles these classes only. Every client reads
compressed frames. A frame that is signed is read by a client with the signing key only.

Raises `SerializationError` for values that do not pickle (the error names the type and never the content), and for
frames of another serializer. Raises `CorruptValue` for bytes that are not a value frame. The codec does not check who
wrote a value frame. Unpickling runs code that the writer chose: if the writer is not trusted, check a signature first,
or use another serializer.

Thread safety: thread-safe, because a Codec does not change. Pickling runs the value's own code.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter
from types import NoneType
from typing import Any, TypeAlias

from pyrocache.client.compression import COMPRESSED_KIND, compress, decompress
from pyrocache.client.pickling import LARGE, OUT_OF_BAND_KIND, PICKLE_FIRST, dump, dump_many
from pyrocache.client.serializers import (
    JSON_HEAD,
    JSON_TITLE,
    MSGPACK,
    Serializer,
    Unsupported,
    UserCodec,
    json_serializer,
    user_serializer,
)
from pyrocache.client.unpicklable import type_name
from pyrocache.client.unpickling import (
    ALWAYS_ALLOWED,
    load_checked,
    load_out_of_band,
    loads,
    missing_class,
    not_allowed,
    unpicklable,
)
from pyrocache.errors import CorruptValue, SerializationError
from pyrocache.protocol.int_frame import INT_KIND, pack_int, unpack_int
from pyrocache.protocol.messages import Pieces
from pyrocache.tracebacks import cause_of

__all__ = ["SIGNED_KIND", "Codec"]

_DOUBLE = struct.Struct(">d")

_NONE, _FALSE, _TRUE = b"n", b"m", b"y"
_FLOAT, _BYTES, _STR = b"f", b"z", b"x"
_first_byte = itemgetter(0)  # in C, for `map`
_NO_FAST_PATH = -1  # no frame begins with it
_BYTES_LIKE = (bytes, bytearray, memoryview)
_USER = b"u"
SIGNED_KIND = b"S"

_Encoders: TypeAlias = dict[type, Callable[[Any], bytes | Pieces]]


class Codec:
    """Encodes values as value frames and decodes them.

    Every method takes the canonical bytes of the key that the value is stored under. This codec ignores the key; a
    codec that signs value frames needs it, to bind a value to its key. Such a codec wraps this one.

    Args:
        serializer: ``"pickle"``, ``"msgpack"`` or ``"json"``.
        user: a user's codec, which replaces the serializer.
        allowed_classes: the names of the classes and functions that a pickle or a key may refer to, besides builtin
            containers and scalars. None for all if the serializer is pickle, and for none otherwise.
        compress_above: the size in bytes of the frames above which they are compressed; None for never.
    """

    __slots__ = ("_allowed", "_decoders", "_encoders", "_other", "_pickle_first", "_title", "reads_pickles")

    def __init__(
        self,
        serializer: str = "pickle",
        user: UserCodec | None = None,
        allowed_classes: Iterable[str] | None = None,
        compress_above: int | None = None,
    ) -> None:
        chosen = user_serializer(user) if user is not None else _serializer(serializer)
        self.reads_pickles = chosen is None
        self._title = 'serializer="pickle"' if chosen is None else chosen.title
        if allowed_classes is None:
            self._allowed = None if chosen is None else ALWAYS_ALLOWED
        else:
            self._allowed = ALWAYS_ALLOWED.union(allowed_classes)
        # The path of most values: the encoder or decoder of their type or kind, found in a dict.
        self._encoders: _Encoders = dict(_ENCODERS) if user is None else {int: pack_int}
        self._other: Callable[[Any], bytes | Pieces] = (
            dump if chosen is None else partial(_encode_with, chosen)
        )
        if compress_above is not None:
            for cls in self._encoders.keys() & {bytes, str}:
                self._encoders[cls] = partial(_encode_compressed, self._encoders[cls], compress_above)
            self._other = partial(_encode_compressed, self._other, compress_above)
        self._pickle_first = PICKLE_FIRST if chosen is None and self._allowed is None else _NO_FAST_PATH
        self._decoders = self._decoders_of(chosen, simple=user is None)

    def _decoders_of(self, serializer: Serializer | None, simple: bool) -> dict[int, Callable[[Any], object]]:
        """Return the decoder of each kind that this client reads; those of the other kinds raise."""
        decoders: dict[int, Callable[[Any], object]] = dict.fromkeys(
            [PICKLE_FIRST, *_DECODERS, *b"kju"], self._refuse
        )
        decoders |= _DECODERS if simple else {INT_KIND[0]: _decode_int}
        decoders[COMPRESSED_KIND[0]] = self._decode_compressed
        decoders[SIGNED_KIND[0]] = _refuse_signed
        if serializer is not None:
            decoders[OUT_OF_BAND_KIND[0]] = self._refuse
            decoders[serializer.head[0]] = partial(self._decode_with, serializer)
        elif self._allowed is not None:
            decoders[PICKLE_FIRST] = self._load_allowed
            decoders[OUT_OF_BAND_KIND[0]] = partial(load_out_of_band, load=self._load_allowed)
        return decoders

    def encode(self, key: bytes, value: object) -> bytes | Pieces:
        """Return the value frame of a value; a large frame in pieces.

        Raises:
            SerializationError: the value cannot be serialized by this client's serializer or codec.
        """
        return self._encoders.get(type(value), self._other)(value)

    def decode(self, key: bytes, frame: bytes | memoryview) -> object:
        """Return the value in a value frame.

        Raises:
            CorruptValue: the bytes are not a value frame.
            SerializationError: the content does not unpickle here, for instance because its class cannot be imported
                or is not allowed, or it was written by another serializer.
        """
        if not isinstance(frame, _BYTES_LIKE) or not frame:
            raise CorruptValue("a stored value is empty, or not bytes")
        if frame[0] == self._pickle_first:
            try:
                return loads(frame)
            except Exception as error:
                raise unpicklable(error, lambda: missing_class(frame, None)) from cause_of(error)
        decoder = self._decoders.get(frame[0])
        if decoder is None:
            raise CorruptValue(f"a stored value is of kind {frame[0]}, which is not known here")
        return decoder(frame)

    def encode_many(self, keys: Sequence[bytes], values: Iterable[object]) -> list[bytes | Pieces]:
        """Return the value frame of each key and value. Faster than calling `encode` for each."""
        values = list(values)
        if self._other is dump and _ENCODERS.keys().isdisjoint(map(type, values)):
            frames = dump_many(values)
            if frames is not None:
                return frames
        encoders, other = self._encoders, self._other
        return [encoders.get(type(value), other)(value) for value in values]

    def decode_many(self, keys: Sequence[bytes], frames: Sequence[Any], missing: Any) -> list[Any]:
        """Return the value in each frame, and ``missing`` for None. Faster than calling `decode` for each."""
        # If all are pickles, the most frequent case, both passes run in C.
        try:
            pickles = set(map(_first_byte, frames)) == {self._pickle_first}
        except (TypeError, IndexError):  # None, or not a frame
            pickles = False
        if not pickles:
            decode = self.decode
            return [missing if frame is None else decode(b"", frame) for frame in frames]
        try:
            return list(map(loads, frames))
        except Exception as error:
            cause = cause_of(error)
            for frame in frames:
                self.decode(b"", frame)  # raises the error of the first bad one
            raise unpicklable(error) from cause

    def check_class(self, module: str, name: str) -> None:
        """Raise `SerializationError` unless pickles and keys may refer to a class or function."""
        # A worker that multiprocessing spawned knows its parent's __main__ by another name.
        full = f"{'__main__' if module == '__mp_main__' else module}.{name}"
        if self._allowed is not None and full not in self._allowed:
            raise not_allowed(module, full)

    def opened_part(self, payload: bytes) -> bytes:
        """Raise `SerializationError` for a signed part of a key."""
        raise SerializationError(f"a key is signed, and this client has no signing key. {_GIVE_KEY}")

    def _load_allowed(self, frame: Any, buffers: Iterable[Any] | None = None) -> object:
        """Load a pickle that refers to allowed classes only."""
        return load_checked(frame, self.check_class, buffers)

    def _decode_compressed(self, frame: bytes | memoryview) -> object:
        inner = decompress(frame)
        if inner[:1] == COMPRESSED_KIND:
            raise CorruptValue("a stored value is compressed twice")
        return self.decode(b"", inner)

    def _decode_with(self, serializer: Serializer, frame: bytes | memoryview) -> object:
        start = len(serializer.head)
        if frame[:start] != serializer.head:
            self._refuse(frame)
        data = bytes(frame[start:])
        try:
            return serializer.loads(data)
        except Exception as error:  # a user's codec may raise anything
            raise SerializationError(
                f"a stored value could not be loaded by {serializer.title} ({type_name(error)})"
            ) from cause_of(error)

    def _refuse(self, frame: bytes | memoryview) -> object:
        raise SerializationError(
            f"a stored value was written {_writer_of(frame)}, and this client reads {self._title}. Give all clients "
            "of these entries the same serializer, or use another namespace."
        )


_GIVE_KEY = "Give it the signing_key_file of the clients that store these entries, or use another namespace."


def _refuse_signed(frame: bytes | memoryview) -> object:
    raise SerializationError(f"a stored value is signed, and this client has no signing key. {_GIVE_KEY}")


def _encode_bytes(value: bytes) -> bytes | Pieces:
    return _BYTES + value if len(value) < LARGE else Pieces((_BYTES, value))


def _encode_str(value: str) -> bytes | Pieces:
    frame = _STR + value.encode("utf-8", "surrogatepass")
    return frame if len(frame) < LARGE else Pieces((frame,))


def _writer_of(frame: bytes | memoryview) -> str:
    """Return which serializer wrote a frame, for the error of a client that has another one."""
    if frame[0] == _USER[0]:
        name = bytes(frame[2 : 2 + frame[1]] if len(frame) > 1 else b"")
        return f"with the codec {name.decode('utf-8', 'replace')!r}"
    return f"with {_WRITERS[frame[0]]}" if frame[0] in _WRITERS else "without a codec"


def _encode_with(serializer: Serializer, value: object) -> bytes | Pieces:
    try:
        data = serializer.dumps(value)
        if not isinstance(data, bytes):
            raise Unsupported(f"this: its dumps returned {type_name(data)} instead of bytes")
    except Unsupported as error:
        reason, whole = str(error), f"a value of type {type_name(value)}"
        place = "" if reason in (whole, f"a value of type {type(value).__qualname__}") else f", in {whole}"
        raise SerializationError(f"{serializer.title} does not support {reason}{place}") from None
    except Exception as error:  # a user's codec may raise anything
        raise SerializationError(
            f"{serializer.title} failed for a value of type {type_name(value)} ({type_name(error)})"
        ) from cause_of(error)
    frame = serializer.head + data
    return frame if len(frame) < LARGE else Pieces((frame,))


def _encode_compressed(encode: Callable[[Any], bytes | Pieces], above: int, value: object) -> bytes | Pieces:
    frame = encode(value)
    return compress(frame) if len(frame) > above else frame


_ENCODERS: _Encoders = {
    NoneType: lambda value: _NONE,
    bool: lambda value: _TRUE if value else _FALSE,
    int: pack_int,
    float: lambda value: _FLOAT + _DOUBLE.pack(value),
    bytes: _encode_bytes,
    str: _encode_str,
}


def _decode_constant(value: object) -> Callable[[bytes | memoryview], object]:
    def decode(frame: bytes | memoryview) -> object:
        if len(frame) != 1:
            raise CorruptValue(f"a stored {value} has {len(frame) - 1} bytes too many")
        return value

    return decode


def _decode_int(frame: bytes | memoryview) -> int:
    number = unpack_int(frame)
    if number is None:
        raise CorruptValue("a stored int has no bytes")
    return number


def _decode_float(frame: bytes | memoryview) -> object:
    if len(frame) != 1 + _DOUBLE.size:
        raise CorruptValue(f"a stored float has {len(frame) - 1} bytes instead of {_DOUBLE.size}")
    return _DOUBLE.unpack_from(frame, 1)[0]


def _decode_str(frame: bytes | memoryview) -> str:
    try:
        return str(frame[1:], "utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise CorruptValue("a stored str is not UTF-8") from None  # the cause holds the content


_DECODERS: dict[int, Callable[[Any], object]] = {
    _NONE[0]: _decode_constant(None),
    _FALSE[0]: _decode_constant(False),
    _TRUE[0]: _decode_constant(True),
    INT_KIND[0]: _decode_int,
    _FLOAT[0]: _decode_float,
    _BYTES[0]: lambda frame: bytes(frame[1:]),
    _STR[0]: _decode_str,
    OUT_OF_BAND_KIND[0]: load_out_of_band,
}


def _serializer(name: str) -> Serializer | None:
    """Return a serializer by its name; None for pickle."""
    makers: dict[str, Callable[[], Serializer | None]] = {
        "pickle": lambda: None,
        "msgpack": lambda: MSGPACK,
        "json": json_serializer,
    }
    return makers[name]()


_WRITERS = {
    **dict.fromkeys((PICKLE_FIRST, OUT_OF_BAND_KIND[0]), 'serializer="pickle"'),
    MSGPACK.head[0]: MSGPACK.title,
    JSON_HEAD[0]: JSON_TITLE,
}
"""By kind: the serializer that writes it."""
