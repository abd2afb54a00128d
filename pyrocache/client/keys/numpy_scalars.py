"""Numpy's scalars and arrays as keys.

It owns the kinds M, m, o and X on both ways, and which number kind each of numpy's scalar types is. Numpy is never
imported to encode: a key of its types can only be there if numpy is.

Encoders refuse, as `InvalidKey`, NaT, a timedelta64 without a unit, a number with more digits than a float holds, and
arrays whose bytes are not their value; as `KeyTooLarge`, arrays that are plainly too large, before copying them.

Threading: functions of their arguments alone, safe from any thread.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pyrocache.client.codec import type_name
from pyrocache.client.keys.format import int_bytes, nest, read_int, too_large
from pyrocache.client.keys.scalars import encode_bytes, encode_complex, encode_float, encode_int, encode_str
from pyrocache.errors import InvalidKey
from pyrocache.protocol.limits import MAX_KEY_BYTES

__all__ = ["BUILDERS", "DECODERS", "encoder_of"]

_MAX_MONTHS = 3 * 10**17  # 2**63 days, roughly
_ARRAY_TYPES = "?bBhHiIlLqQefdFDSUmM"  # numpy's characters for types without pointers or padding

# Days first, so that a decoded value has a plain unit; weeks last, for what overflows every other.
_ATTOSECONDS = {
    "D": 86_400 * 10**18,
    "h": 3_600 * 10**18,
    "m": 60 * 10**18,
    "s": 10**18,
    "ms": 10**15,
    "us": 10**12,
    "ns": 10**9,
    "ps": 10**6,
    "fs": 10**3,
    "as": 1,
    "W": 7 * 86_400 * 10**18,
}


def encoder_of(cls: type) -> Callable[[Any], bytes] | None:
    """The encoder for keys of a class of numpy's; None if it is neither an array nor a known scalar."""
    np: Any = sys.modules["numpy"]
    if cls is np.ndarray:
        return _encode_ndarray
    kinds: list[tuple[type, Callable[[Any], bytes]]] = [
        (np.datetime64, _encode_datetime64),
        (np.timedelta64, _encode_timedelta64),  # before integer, which it inherits from
        (np.bool_, lambda key: encode_int(int(key))),
        (np.integer, lambda key: encode_int(int(key))),
        (np.floating, lambda key: encode_float(_exact(float, key))),
        (np.complexfloating, lambda key: encode_complex(_exact(complex, key))),
    ]
    return next((encoder for kind, encoder in kinds if issubclass(cls, kind)), None)


def _exact(convert: Callable[[Any], Any], key: Any) -> Any:
    converted = convert(key)
    if converted != key and key == key:
        raise InvalidKey(f"a key of type {type_name(key)} has more digits than a float holds")
    return converted


def _encode_ndarray(key: Any) -> bytes:
    if key.nbytes > MAX_KEY_BYTES:
        raise too_large(key)
    if key.dtype.char not in _ARRAY_TYPES:
        raise InvalidKey(
            f"a numpy.ndarray of {type_name(key.dtype)} cannot be a key: its bytes are not its value"
        )
    plain = key.astype(key.dtype.newbyteorder("<"))
    shape = b"t" + b"".join(nest(encode_int(size)) for size in key.shape)
    return b"X" + nest(encode_str(plain.dtype.str)) + nest(shape) + nest(encode_bytes(plain.tobytes()))


def _build_ndarray(items: Iterator[Any]) -> object:
    dtype, shape, data = items
    return importlib.import_module("numpy").frombuffer(data, dtype).reshape(shape)


def _encode_datetime64(key: Any) -> bytes:
    unit, count = _unit(key)
    if unit in "YM":
        months = int(key.astype("int64")) * count * (12 if unit == "Y" else 1)
        if abs(months) > _MAX_MONTHS:
            raise InvalidKey("a numpy.datetime64 key is too far away to be counted in days")
        key, unit, count = key.astype("datetime64[D]"), "D", 1
    return b"M" + int_bytes(int(key.astype("int64")) * count * _ATTOSECONDS[unit])


def _encode_timedelta64(key: Any) -> bytes:
    unit, count = _unit(key)
    number = int(key.astype("int64")) * count
    if unit in "YM":
        return b"o" + int_bytes(number * 12 if unit == "Y" else number)
    return b"m" + int_bytes(number * _ATTOSECONDS[unit])


def _unit(key: Any) -> tuple[str, int]:
    if key != key:
        raise InvalidKey("NaT cannot be a key: it does not equal itself")
    unit, count = sys.modules["numpy"].datetime_data(key.dtype)
    if unit == "generic":
        raise InvalidKey("a numpy.timedelta64 without a unit cannot be a key: it equals one of every unit")
    return unit, count


def _decode_attoseconds(kind: str) -> Callable[[bytes], object]:
    def decode(payload: bytes) -> object:
        attoseconds = read_int(payload)
        for unit, size in _ATTOSECONDS.items():
            count, rest = divmod(attoseconds, size)
            if not rest and abs(count) < 2**63:
                return getattr(importlib.import_module("numpy"), kind)(count, unit)
        raise InvalidKey(f"an encoded numpy.{kind} is out of range")

    return decode


def _decode_months(payload: bytes) -> object:
    return importlib.import_module("numpy").timedelta64(read_int(payload), "M")


DECODERS: dict[bytes, Callable[[bytes], object]] = {
    b"M": _decode_attoseconds("datetime64"),
    b"m": _decode_attoseconds("timedelta64"),
    b"o": _decode_months,
}
"""By tag: the key in a payload. They may raise anything, and take more than encoders make."""

BUILDERS: dict[bytes, Callable[[Iterator[Any]], object]] = {b"X": _build_ndarray}
"""By tag: the key made of a payload's nested ones; as above."""
