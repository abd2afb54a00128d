"""Values to frames and back; the only module that imports pickle.

It owns the frame in which a value is stored, and the two pickle calls that `pyrocache.client.key_objects` needs.
A frame is a version byte, a kind byte and a payload::

    version   1
    kind      N None, F False, T True      no payload
              i int                        big-endian two's complement, one byte or more
              f float                      8 bytes, IEEE 754 binary64, big-endian
              b bytes                      as they are
              s str                        UTF-8, lone surrogates passed
              p everything else            pickle, protocol 5

A kind stands for the exact type. Subclasses (an IntEnum's members, numpy.float64) are pickled, so that they
come back as what they were; values of the simple kinds never meet pickle at all.

It refuses values that do not pickle (`SerializationError`, naming the type and never the content) and bytes
that are no frame (`CorruptValue`). It does not ask who wrote a frame: unpickling runs code of the writer's
choice, so whoever cannot trust the writer checks a signature first.

Threading: functions of their arguments alone, safe from any thread. Pickling runs the value's own code.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable
from types import NoneType
from typing import Any

from pyrocache.errors import CorruptValue, SerializationError

__all__ = ["canonical_pickle", "canonical_unpickle", "decode_value", "encode_value", "type_name"]

_VERSION = 1
_PICKLE_PROTOCOL = 5
_DOUBLE = struct.Struct(">d")

_NONE, _FALSE, _TRUE = b"\x01N", b"\x01F", b"\x01T"
_INT, _FLOAT, _BYTES, _STR, _PICKLE = b"\x01i", b"\x01f", b"\x01b", b"\x01s", b"\x01p"


def encode_value(value: object) -> bytes:
    """The frame of a value. Raises `SerializationError` if the value does not pickle."""
    return _ENCODERS.get(type(value), _encode_pickle)(value)


def decode_value(frame: bytes | memoryview) -> object:
    """The value in a frame.

    Raises `CorruptValue` if the bytes are no frame, and `SerializationError` if what they hold does not
    unpickle here, for instance because its class cannot be imported.
    """
    if len(frame) < 2:
        raise CorruptValue(f"a stored value of {len(frame)} bytes is too short for a frame")
    if frame[0] != _VERSION:
        raise CorruptValue(f"a stored value has format version {frame[0]}; only {_VERSION} is known here")
    decoder = _DECODERS.get(frame[1])
    if decoder is None:
        raise CorruptValue(f"a stored value is of kind {frame[1]}, which is not known here")
    return decoder(memoryview(frame)[2:])


def canonical_pickle(obj: object, persistent_id: Callable[[object], object | None]) -> bytes:
    """A pickle that depends on what `obj` holds and not on which of its parts are the same object.

    `persistent_id` is called with every object on the way, `obj` included. What it returns is written in that
    object's place; None lets pickle go on into the object. Raises whatever pickling raises.
    """
    file = io.BytesIO()
    _CanonicalPickler(file, persistent_id).dump(obj)
    return file.getvalue()


def canonical_unpickle(data: bytes, persistent_load: Callable[[object], object]) -> object:
    """The way back from `canonical_pickle`. Raises whatever unpickling raises, also for bytes left over."""
    file = io.BytesIO(data)
    loaded: object = _CanonicalUnpickler(file, persistent_load).load()
    if file.read(1):
        raise pickle.UnpicklingError("bytes left over after a pickle")
    return loaded


def type_name(value: object) -> str:
    """The qualified name of a value's type, the most that an error shows of a value."""
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


class _CanonicalPickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, persistent_id: Callable[[object], object | None]) -> None:
        super().__init__(file, _PICKLE_PROTOCOL)
        # Without its memo, pickle writes two equal strings alike, be they one object, interned, or two.
        self.fast = True
        self._persistent_id = persistent_id

    def persistent_id(self, obj: Any) -> Any:
        return self._persistent_id(obj)


class _CanonicalUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, persistent_load: Callable[[object], object]) -> None:
        super().__init__(file)
        self._persistent_load = persistent_load

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent_load(pid)


def _encode_int(value: int) -> bytes:
    magnitude = value if value >= 0 else ~value
    return _INT + value.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True)


def _encode_pickle(value: object) -> bytes:
    try:
        return _PICKLE + pickle.dumps(value, protocol=_PICKLE_PROTOCOL)
    except Exception as error:  # the value's own __reduce__ or __getstate__ may raise anything
        name = type_name(value)
        raise SerializationError(f"a value of type {name} does not pickle ({type_name(error)})") from error


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    NoneType: lambda value: _NONE,
    bool: lambda value: _TRUE if value else _FALSE,
    int: _encode_int,
    float: lambda value: _FLOAT + _DOUBLE.pack(value),
    bytes: lambda value: _BYTES + value,
    str: lambda value: _STR + value.encode("utf-8", "surrogatepass"),
}


def _decode_constant(value: object) -> Callable[[memoryview], object]:
    def decode(payload: memoryview) -> object:
        if payload:
            raise CorruptValue(f"a stored {value} has {len(payload)} bytes too many")
        return value

    return decode


def _decode_int(payload: memoryview) -> int:
    if not payload:
        raise CorruptValue("a stored int has no bytes")
    return int.from_bytes(payload, "big", signed=True)


def _decode_float(payload: memoryview) -> object:
    if len(payload) != _DOUBLE.size:
        raise CorruptValue(f"a stored float has {len(payload)} bytes instead of {_DOUBLE.size}")
    return _DOUBLE.unpack(payload)[0]


def _decode_str(payload: memoryview) -> str:
    try:
        return str(payload, "utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise CorruptValue("a stored str is not UTF-8") from None  # the cause holds the content


def _decode_pickle(payload: memoryview) -> object:
    try:
        return pickle.loads(payload)
    except (ImportError, AttributeError) as error:
        name = type_name(error)
        raise SerializationError(f"a stored value's class cannot be imported here ({name})") from error
    except Exception as error:  # broken pickles and the value's own code may raise anything
        raise SerializationError(f"a stored value does not unpickle ({type_name(error)})") from error


_DECODERS: dict[int, Callable[[memoryview], object]] = {
    ord("N"): _decode_constant(None),
    ord("F"): _decode_constant(False),
    ord("T"): _decode_constant(True),
    ord("i"): _decode_int,
    ord("f"): _decode_float,
    ord("b"): bytes,
    ord("s"): _decode_str,
    ord("p"): _decode_pickle,
}
