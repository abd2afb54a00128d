"""`Codec`: values to value frames and back. This is the only module that imports pickle.

A *value frame* is the form in which a value is stored; it is not a message of the protocol, which carries value frames.
`canonical_pickle` and `canonical_unpickle` are the two pickle calls that `pyrocache.client.keys` needs. The first byte
of a value frame is its kind, and the rest is the content::

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

No pickle begins with one of these letters: a pickle of protocol 5 begins with the byte 0x80.

A kind stands for the exact type. Subclasses (members of an IntEnum, numpy.float64) are pickled, so that decoding
returns their own type. Values of the simple kinds are not pickled. Large buffers are not copied when a value is
encoded. Decoding returns views into the received message if its buffer is writable, and copies otherwise.

A client writes the simple kinds, and with one serializer (``serializers.py``) all other values; a user's codec gets all
values but ints, on which nodes compute. A client refuses the frames of other serializers. In particular, only a client
with ``serializer="pickle"`` unpickles, and with ``allowed_classes`` it unpickles these classes only. Every client reads
compressed frames.

Raises `SerializationError` for values that do not pickle (the error names the type and never the content), and for
frames of another serializer. Raises `CorruptValue` for bytes that are not a value frame. The codec does not check who
wrote a value frame. Unpickling runs code that the writer chose: if the writer is not trusted, check a signature first,
or use another serializer.

Thread safety: thread-safe, because a Codec does not change. Pickling runs the value's own code.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import partial
from operator import itemgetter
from pickle import dumps, loads
from types import BuiltinFunctionType, FunctionType, ModuleType, NoneType, SimpleNamespace
from typing import Any, ClassVar, TypeAlias

from pyrocache.client.compression import COMPRESSED_KIND, compress, decompress
from pyrocache.client.serializers import JSON, MSGPACK, Serializer, Unsupported, UserCodec, user_serializer
from pyrocache.client.unpicklable import type_name, why
from pyrocache.errors import CorruptValue, SerializationError
from pyrocache.protocol.int_frame import INT_KIND, pack_int, unpack_int
from pyrocache.protocol.messages import Pieces
from pyrocache.tracebacks import came_from_outside, cause_of

__all__ = ["Codec", "canonical_pickle", "canonical_unpickle", "missing_name", "raw_buffer", "type_name"]

_ANYTHING = frozenset(
    [f"builtins.{name}" for name in ("__import__", "compile", "eval", "exec", "getattr", "open", "setattr")]
    + ["code", "ctypes", "importlib", "nt", "os", "posix", "pty", "runpy", "shutil", "subprocess", "sys"]
)
"""Functions, and modules with such, by which a pickle could do anything."""

_PICKLE_PROTOCOL = 5
_DOUBLE = struct.Struct(">d")

_NONE, _FALSE, _TRUE = b"n", b"m", b"y"
_FLOAT, _BYTES, _STR, _OUT_OF_BAND = b"f", b"z", b"x", b"v"
_PICKLE_FIRST = pickle.PROTO[0]
_first_byte = itemgetter(0)  # in C, for `map`
_NO_FAST_PATH = -1  # no frame begins with it
_BYTES_LIKE = (bytes, bytearray, memoryview)
_USER = b"u"

_ALWAYS_ALLOWED = frozenset(
    f"builtins.{name}" for name in ("complex", "range", "slice", "Ellipsis", "NotImplemented")
)
"""What pickles of builtin containers and scalars refer to. Nothing else that allocates or runs as its arguments say."""

_NO_ATTRIBUTE = re.compile(
    r"Can't get attribute '(?P<name>[\w.]+)' on <module '(?P<module>[\w.]+)'"
    r"|module '(?P<module_2>[\w.]+)' has no attribute '(?P<name_2>[\w.]+)'"
)

_LARGE = 64 * 1024  # bytes from which a buffer is stored out-of-band
_ALIGNMENT = 64
_OUT_OF_BAND_HEAD = struct.Struct("<c7xII")

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
        chosen = {"pickle": None, "msgpack": MSGPACK, "json": JSON}[serializer]
        if user is not None:
            chosen = user_serializer(user)
        self.reads_pickles = chosen is None
        self._title = 'serializer="pickle"' if chosen is None else chosen.title
        if allowed_classes is None:
            self._allowed = None if chosen is None else _ALWAYS_ALLOWED
        else:
            self._allowed = _ALWAYS_ALLOWED.union(allowed_classes)
        # The path of most values: the encoder or decoder of their type or kind, found in a dict.
        self._encoders: _Encoders = dict(_ENCODERS) if user is None else {int: pack_int}
        self._other: Callable[[Any], bytes | Pieces] = (
            _encode_pickle if chosen is None else partial(_encode_with, chosen)
        )
        if compress_above is not None:
            for cls in self._encoders.keys() & {bytes, str}:
                self._encoders[cls] = partial(_encode_compressed, self._encoders[cls], compress_above)
            self._other = partial(_encode_compressed, self._other, compress_above)
        self._pickle_first = _PICKLE_FIRST if chosen is None and self._allowed is None else _NO_FAST_PATH
        self._decoders = self._decoders_of(chosen, simple=user is None)

    def _decoders_of(self, serializer: Serializer | None, simple: bool) -> dict[int, Callable[[Any], object]]:
        """Return the decoder of each kind that this client reads; those of the other kinds raise."""
        decoders: dict[int, Callable[[Any], object]] = dict.fromkeys(
            [_PICKLE_FIRST, *_DECODERS, *b"kju"], self._refuse
        )
        decoders |= _DECODERS if simple else {INT_KIND[0]: _decode_int}
        decoders[COMPRESSED_KIND[0]] = self._decode_compressed
        if serializer is not None:
            decoders[_OUT_OF_BAND[0]] = self._refuse
            decoders[serializer.head[0]] = partial(self._decode_with, serializer)
        elif self._allowed is not None:
            decoders[_PICKLE_FIRST] = self._load_allowed
            decoders[_OUT_OF_BAND[0]] = partial(_decode_out_of_band, load=self._load_allowed)
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
                raise _unpicklable(error, lambda: _missing_class(frame, None)) from cause_of(error)
        decoder = self._decoders.get(frame[0])
        if decoder is None:
            raise CorruptValue(f"a stored value is of kind {frame[0]}, which is not known here")
        return decoder(frame)

    def encode_many(self, keys: Sequence[bytes], values: Iterable[object]) -> list[bytes | Pieces]:
        """Return the value frame of each key and value. Faster than calling `encode` for each."""
        values = list(values)
        if self._other is _encode_pickle and _ENCODERS.keys().isdisjoint(map(type, values)):
            frames: list[bytes | Pieces] = []
            sink: Any = SimpleNamespace(write=frames.append)
            pickler = pickle.Pickler(sink, _PICKLE_PROTOCOL, buffer_callback=_in_band)
            dump, forget = pickler.dump, pickler.clear_memo
            value: object = None
            try:
                for value in values:
                    dump(value)
                    forget()  # or a later pickle would refer to objects of an earlier one
            except _LargeBuffer:
                frames.clear()
            except Exception as error:  # the value's own code may raise anything
                cause = cause_of(error)
                raise _unpickled(value, error) from cause
            # The pickler writes a large value in several parts, or in one part that must become Pieces.
            if len(frames) == len(values) and max(map(len, frames), default=0) < _LARGE:
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
            raise _unpicklable(error) from cause

    def check_class(self, module: str, name: str) -> None:
        """Raise `SerializationError` unless pickles and keys may refer to a class or function."""
        # A worker that multiprocessing spawned knows its parent's __main__ by another name.
        full = f"{'__main__' if module == '__mp_main__' else module}.{name}"
        if self._allowed is not None and full not in self._allowed:
            dangerous = full in _ANYTHING or module.partition(".")[0] in _ANYTHING
            advice = "It can run any code: never add it" if dangerous else "Add it if you trust it"
            raise SerializationError(
                f"{full} was not loaded: it is not in this client's allowed_classes. {advice}."
            )

    def _load_allowed(self, frame: Any, buffers: Iterable[Any] | None = None) -> object:
        """Load a pickle that refers to allowed classes only."""
        unpickler = _CheckedUnpickler(io.BytesIO(frame), self.check_class, buffers)
        try:
            return unpickler.load()
        except SerializationError:
            raise
        except Exception as error:
            raise _unpicklable(error, lambda: unpickler.asked) from cause_of(error)

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


def canonical_pickle(
    obj: object, persistent_id: Callable[[object], object | None], file: io.BytesIO, shared: bool = False
) -> None:
    """Write a pickle of ``obj`` to ``file`` that does not depend on which of its equal parts are the same object.

    ``persistent_id`` is called with every object that is reached, including ``obj``. Its result is written in place of
    that object; None lets pickle descend into the object. With ``shared``, an object that is reached again is written
    as a reference, so ``obj`` may contain itself. Raises whatever pickling raises.
    """
    _CanonicalPickler(file, persistent_id, shared).dump(obj)


def canonical_unpickle(
    data: bytes,
    persistent_load: Callable[[Any], object],
    check_class: Callable[[str, str], object] = lambda module, name: None,
) -> object:
    """Load a pickle of `canonical_pickle`. Raises whatever unpickling raises, also for trailing bytes.

    ``check_class`` is called with the module and the name of each class before it is imported, and may raise.
    """
    file = io.BytesIO(data)
    loaded: object = _CanonicalUnpickler(file, persistent_load, check_class).load()
    if file.read(1):
        raise pickle.UnpicklingError("bytes left over after a pickle")
    return loaded


# The hooks must be methods of a class: Python 3.13 ignores those that are set on a pickler.
class _CanonicalPickler(pickle.Pickler):
    def __init__(
        self, file: io.BytesIO, persistent_id: Callable[[object], object | None], shared: bool
    ) -> None:
        super().__init__(file, _PICKLE_PROTOCOL)
        # Without its memo, pickle writes equal strings identically, whether they are the same object or not.
        self.fast = not shared
        self._persistent_id = persistent_id

    def persistent_id(self, obj: Any) -> Any:
        return self._persistent_id(obj)


_SHARED = type, FunctionType, BuiltinFunctionType, ModuleType, Enum
"""The types of what the whole process shares under a name."""


class _CheckedUnpickler(pickle._Unpickler):
    """Loads pickles that refer to checked classes and functions only, and change none of these.

    It is the unpickler in Python: that in C would let a pickle set attributes of a class, by the instruction that sets
    the attributes of an object.
    """

    def __init__(
        self, file: io.BytesIO, check: Callable[[str, str], object], buffers: Iterable[Any] | None = None
    ) -> None:
        super().__init__(file, buffers=buffers)
        self.asked = ""  # the name that was looked up last
        self._check = check

    def find_class(self, module: str, name: str) -> Any:
        self.asked = f"{module}.{name}"
        self._check(module, name)
        return super().find_class(module, name)

    def _load_build(self: Any) -> None:
        target = self.stack[-2] if len(self.stack) > 1 else None
        if isinstance(target, _SHARED):
            raise pickle.UnpicklingError("a pickle sets attributes of a class")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {  # by instruction
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _load_build,
    }


class _CanonicalUnpickler(_CheckedUnpickler):
    def __init__(
        self, file: io.BytesIO, persistent_load: Callable[[Any], object], check: Callable[[str, str], object]
    ) -> None:
        super().__init__(file, check)
        self._persistent_load = persistent_load

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent_load(pid)


def _missing_class(frame: Any, buffers: Iterable[Any] | None) -> str:
    """Return the name that a pickle, which has just failed to load without restriction, looked up last."""
    unpickler = _CheckedUnpickler(io.BytesIO(frame), lambda module, name: None, buffers)
    try:
        unpickler.load()
    except Exception as error:
        if came_from_outside(error):
            raise
    return unpickler.asked


def raw_buffer(value: object) -> memoryview | None:
    """Return the bytes of a buffer that an object's pickling code hands out; None if it is not such a buffer."""
    if type(value) is not pickle.PickleBuffer:
        return None
    with memoryview(value) as view:
        return value.raw() if view.contiguous else memoryview(view.tobytes())


def missing_name(error: ImportError | AttributeError) -> str:
    """Return which module or class an unpickler did not find; the type of the error if that is not known."""
    # Other texts are those of the value's own code, and may have its content in them.
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"there is no module {error.name}"
    found = _NO_ATTRIBUTE.match(str(error))
    if found is None:
        return type_name(error)
    module, name = found["module"] or found["module_2"], found["name"] or found["name_2"]
    # Started with ``-m``, the main module has a longer name.
    in_main = module.rpartition(".")[2] == "__main__"
    hint = "; define it in a module that each process can import" if in_main else ""
    return f"there is no class {module}.{name}{hint}"


def _encode_bytes(value: bytes) -> bytes | Pieces:
    return _BYTES + value if len(value) < _LARGE else Pieces((_BYTES, value))


def _encode_str(value: str) -> bytes | Pieces:
    frame = _STR + value.encode("utf-8", "surrogatepass")
    return frame if len(frame) < _LARGE else Pieces((frame,))


def _encode_pickle(value: object) -> bytes | Pieces:
    try:
        try:
            # Few values have a large buffer; only these are pickled a second time.
            frame = dumps(value, _PICKLE_PROTOCOL, buffer_callback=_in_band)
            return frame if len(frame) < _LARGE else Pieces((frame,))
        except _LargeBuffer:
            buffers: list[memoryview] = []
            data = dumps(value, _PICKLE_PROTOCOL, buffer_callback=lambda found: _keep_large(found, buffers))
            return _join_out_of_band(data, buffers)
    except Exception as error:  # the value's own __reduce__ or __getstate__ may raise anything
        cause = cause_of(error)
        raise _unpickled(value, error) from cause


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
    return frame if len(frame) < _LARGE else Pieces((frame,))


def _encode_compressed(encode: Callable[[Any], bytes | Pieces], above: int, value: object) -> bytes | Pieces:
    frame = encode(value)
    return compress(frame) if len(frame) > above else frame


def _unpickled(value: object, error: Exception) -> SerializationError:
    part = value if isinstance(error, (RecursionError, MemoryError)) else _last_reached(value)
    return SerializationError(why(value, part, error))


def _last_reached(value: object) -> object:
    """Return the object in a value at which pickling it fails; the value itself if it does not fail again."""
    reached: Any = value
    file: Any = SimpleNamespace(write=len)

    class Tracer(pickle.Pickler):
        def persistent_id(self, part: object) -> None:
            nonlocal reached
            reached = part

    try:
        Tracer(file, _PICKLE_PROTOCOL, buffer_callback=lambda found: False).dump(value)
    except Exception as error:
        if came_from_outside(error):
            raise
        return reached
    return value


class _LargeBuffer(Exception):
    """A value has a buffer that must be stored out-of-band."""


def _in_band(found: pickle.PickleBuffer) -> bool:
    with memoryview(found) as view:
        if view.nbytes >= _LARGE and view.contiguous:
            raise _LargeBuffer
    return True


def _keep_large(found: pickle.PickleBuffer, buffers: list[memoryview]) -> bool:
    """Return whether ``found`` stays in the pickle; if not, append it to ``buffers``."""
    with memoryview(found) as view:
        if view.nbytes < _LARGE or not view.contiguous:
            return True
    buffers.append(found.raw())
    return False


def _join_out_of_band(data: bytes, buffers: list[memoryview]) -> Pieces:
    head = _OUT_OF_BAND_HEAD.pack(_OUT_OF_BAND, len(buffers), len(data))
    sizes = struct.pack(f"<{len(buffers)}Q", *map(len, buffers))
    pieces: list[bytes | memoryview] = [head + sizes + data]
    length = len(pieces[0])
    for buffer in buffers:
        padding = -length % _ALIGNMENT
        pieces += (bytes(padding), buffer)
        length += padding + len(buffer)
    return Pieces(pieces)


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


def _unpicklable(error: Exception, asked: Callable[[], str] = str) -> SerializationError:
    """Return the error to raise. ``asked`` returns the name that the pickle looked up last."""
    if isinstance(error, (ImportError, AttributeError)):
        name = asked()
        what = f"a stored value's class {name}" if name else "a stored value's class"
        return SerializationError(
            f"{what} cannot be imported here ({missing_name(error)}). Store the value again, or read it where there is "
            "such a class"
        )
    # Broken pickles and the value's own code may raise anything.
    return SerializationError(f"a stored value does not unpickle ({type_name(error)})")


def _decode_out_of_band(frame: bytes | memoryview, load: Callable[..., object] | None = None) -> object:
    view = memoryview(frame)
    try:
        _, count, length = _OUT_OF_BAND_HEAD.unpack_from(view)
        sizes = struct.unpack_from(f"<{count}Q", view, _OUT_OF_BAND_HEAD.size)
    except struct.error:
        raise CorruptValue("a stored value with buffers has no whole head") from None
    start = _OUT_OF_BAND_HEAD.size + 8 * count
    end = start + length
    data = view[start:end]
    buffers: list[memoryview | bytearray] = []
    for size in sizes:
        start = end + -end % _ALIGNMENT
        end = start + size
        # The stored array was writable, so the decoded one must be.
        buffers.append(bytearray(view[start:end]) if view.readonly else view[start:end])
    if end != len(view):
        raise CorruptValue("a stored value with buffers is not as long as it says")
    if load is not None:
        return load(data, buffers)
    try:
        return loads(data, buffers=buffers)
    except Exception as error:
        raise _unpicklable(error, lambda: _missing_class(data, buffers)) from cause_of(error)


_DECODERS: dict[int, Callable[[Any], object]] = {
    _NONE[0]: _decode_constant(None),
    _FALSE[0]: _decode_constant(False),
    _TRUE[0]: _decode_constant(True),
    INT_KIND[0]: _decode_int,
    _FLOAT[0]: _decode_float,
    _BYTES[0]: lambda frame: bytes(frame[1:]),
    _STR[0]: _decode_str,
    _OUT_OF_BAND[0]: _decode_out_of_band,
}

_WRITERS = {_PICKLE_FIRST: 'serializer="pickle"', _OUT_OF_BAND[0]: 'serializer="pickle"'} | {
    serializer.head[0]: serializer.title for serializer in (MSGPACK, JSON)
}
"""By kind: the serializer that writes it."""
