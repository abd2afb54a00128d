"""Keys that hold no other keys: None, numbers, strings, bytes, dates, times, UUIDs, paths.

Encodes and decodes these kinds, in three tables for `encoding`: encoders by exact type, decoders of payloads by type
byte, and builders of keys from nested keys by type byte. Equal numbers have the same kind, whatever their types.
Nothing here is recursive.

Encoders raise `InvalidKey` for NaN, and `KeyTooLarge` for an obviously too large key before they copy it. They must
work for subclasses too. Decoders and builders may raise anything, and may accept more than encoders make; `encoding`
checks the result. Pure: no I/O, no threads, no clock.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from types import NoneType
from typing import TYPE_CHECKING, Any

from pyrocache.client.keys.format import int_bytes, nest, read_int, read_text, too_large, utf8
from pyrocache.errors import InvalidKey
from pyrocache.late_imports import at_first_use
from pyrocache.protocol.limits import MAX_KEY_BYTES

if TYPE_CHECKING:
    from decimal import Decimal
    from fractions import Fraction
    from pathlib import PurePath
    from uuid import UUID

_MAX_DIGITS = 160_000  # more of them, before or behind the point, are more bits than MAX_KEY_BYTES
_DOUBLE = struct.Struct(">d")


# Numbers.


def encode_int(key: int) -> bytes:
    """Encode an int: type byte and minimal two's complement."""
    return b"i" + int_bytes(key)


def encode_float(key: float) -> bytes:
    """Encode a float; an integral value as an int. Raises `InvalidKey` for NaN."""
    if key.is_integer():
        return encode_int(int(key))
    if key != key:
        raise InvalidKey("NaN cannot be a key or in a key: it does not equal itself")
    return b"f" + _DOUBLE.pack(key)


def _encode_rational(numerator: int, denominator: int) -> bytes:
    """Encode a fraction in lowest terms with a positive denominator."""
    if denominator == 1:
        return encode_int(numerator)
    try:
        nearest = numerator / denominator
    except OverflowError:
        nearest = 0.0  # has another ratio
    # A float of the same value is equal, so it must have the same bytes.
    if nearest.as_integer_ratio() == (numerator, denominator):
        return b"f" + _DOUBLE.pack(nearest)
    return b"r" + nest(encode_int(numerator)) + nest(encode_int(denominator))


def encode_decimal(key: Decimal) -> bytes:
    """Encode a Decimal as the number that it is. Raises `InvalidKey` for NaN, and `KeyTooLarge`."""
    from decimal import Decimal  # the module of the key

    if not key.is_finite():
        return encode_float(float("nan") if key.is_nan() else float(key))
    if not key:
        return encode_int(0)
    sign, digits, exponent = key.as_tuple()
    zeros = next(count for count, digit in enumerate(reversed(digits)) if digit)
    # `Decimal.normalize` would round to the precision of the context.
    significant = digits[: len(digits) - zeros]
    # Checked first, because 1E+1000000000 would need its memory as an int before it could be too large.
    if abs(key.adjusted()) > _MAX_DIGITS or len(significant) > _MAX_DIGITS:
        raise too_large(key)
    return _encode_rational(*Decimal((sign, significant, int(exponent) + zeros)).as_integer_ratio())


def encode_complex(key: complex) -> bytes:
    """Encode a complex number; one without imaginary part as a float. Raises `InvalidKey` for NaN."""
    if key.imag == 0:
        return encode_float(key.real)
    return b"c" + nest(encode_float(key.real)) + nest(encode_float(key.imag))


# None, strings, bytes, paths.


def encode_str(key: str) -> bytes:
    """Encode a str. Raises `KeyTooLarge`."""
    if len(key) > MAX_KEY_BYTES:
        raise too_large(key)
    return b"s" + key.encode("utf-8", "surrogatepass")


def encode_bytes(key: bytes | bytearray) -> bytes:
    """Encode bytes. Raises `KeyTooLarge`."""
    if len(key) > MAX_KEY_BYTES:
        raise too_large(key)
    return b"b" + key


# Dates and times.


def _microseconds(delta: timedelta) -> int:
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _delta(payload: bytes) -> timedelta:
    return timedelta(microseconds=read_int(payload))


def encode_datetime(key: datetime) -> bytes | None:
    """Encode a datetime; None in a gap or fold of its zone, where it equals no datetime of another zone (PEP 495)."""
    first = key.replace(fold=0)
    wall = _microseconds(first.replace(tzinfo=None) - datetime.min)
    offset = first.utcoffset()
    if offset is None:
        return b"n" + int_bytes(wall)
    if offset != key.replace(fold=1).utcoffset():
        return None
    return b"a" + int_bytes(wall - _microseconds(offset))


def _decode_aware_datetime(payload: bytes) -> datetime:
    """Return the datetime in UTC; outside years 1 to 9999, in a zone where it is the first or last datetime."""
    moment = read_int(payload)
    nearest = min(max(moment, 0), _microseconds(datetime.max - datetime.min))
    zone = timezone(timedelta(microseconds=nearest - moment))
    return (datetime.min + timedelta(microseconds=nearest)).replace(tzinfo=zone)


def _encode_time(key: time) -> bytes:
    offset = key.utcoffset()
    wall = ((key.hour * 60 + key.minute) * 60 + key.second) * 1_000_000 + key.microsecond
    if offset is None:
        return b"h" + int_bytes(wall)
    # Python leaves the offset's microseconds out of a comparison too.
    return b"H" + int_bytes(wall - (offset.days * 86_400 + offset.seconds) * 1_000_000)


def _decode_aware_time(payload: bytes) -> time:
    seconds, microsecond = divmod(read_int(payload), 1_000_000)
    nearest = min(max(seconds, 0), 86_399)
    zone = timezone(timedelta(seconds=nearest - seconds))
    return (datetime.min + timedelta(seconds=nearest, microseconds=microsecond)).time().replace(tzinfo=zone)


ENCODERS: dict[type, Callable[[Any], bytes]] = {
    NoneType: lambda key: b"N",
    bool: lambda key: encode_int(int(key)),
    int: encode_int,
    float: encode_float,
    complex: encode_complex,
    str: encode_str,
    bytes: encode_bytes,
    bytearray: encode_bytes,
    date: lambda key: b"y" + int_bytes(key.toordinal()),
    time: _encode_time,
    timedelta: lambda key: b"T" + int_bytes(_microseconds(key)),
}
"""By exact type. Datetimes are not among them, because some of them are pickled. See `rare_encoders` for the others."""

_RARE_ENCODERS: dict[tuple[str, str], Callable[[Any], bytes]] = {
    ("decimal", "Decimal"): encode_decimal,
    ("fractions", "Fraction"): lambda key: _encode_rational(int(key.numerator), int(key.denominator)),
    ("uuid", "UUID"): lambda key: b"u" + key.bytes,
    ("pathlib", "PurePosixPath"): lambda key: b"p" + utf8(str(key)),
    ("pathlib", "PureWindowsPath"): lambda key: b"w" + utf8(str(key).lower()),
}
"""By module and name of the exact type."""


def rare_encoders() -> dict[type, Callable[[Any], bytes]]:
    """Return the encoders of types whose modules take 5 ms to import, as far as the program has imported these.

    Without its module, no key is of such a type.
    """
    return {
        cls: encode
        for (module, name), encode in _RARE_ENCODERS.items()
        if (cls := getattr(sys.modules.get(module), name, None)) is not None
    }


# These import what a program that reads such keys may not have imported yet.


def _fraction(numerator: int, denominator: int) -> Fraction:
    with at_first_use:
        from fractions import Fraction
    return Fraction(numerator, denominator)


def _uuid(payload: bytes) -> UUID:
    with at_first_use:
        from uuid import UUID
    return UUID(bytes=payload)


def _posix_path(payload: bytes) -> PurePath:
    with at_first_use:
        from pathlib import PosixPath, PurePosixPath
    return (PosixPath if os.name == "posix" else PurePosixPath)(read_text(payload))


def _windows_path(payload: bytes) -> PurePath:
    with at_first_use:
        from pathlib import PureWindowsPath, WindowsPath
    return (WindowsPath if os.name == "nt" else PureWindowsPath)(read_text(payload))


DECODERS: dict[bytes, Callable[[bytes], object]] = {
    b"N": lambda payload: None,
    b"i": read_int,
    b"f": lambda payload: _DOUBLE.unpack(payload)[0],
    b"s": read_text,
    b"b": bytes,
    b"y": lambda payload: date.fromordinal(read_int(payload)),
    b"n": lambda payload: datetime.min + _delta(payload),
    b"a": _decode_aware_datetime,
    b"h": lambda payload: (datetime.min + _delta(payload)).time(),
    b"H": _decode_aware_time,
    b"T": _delta,
    b"u": _uuid,
    b"p": _posix_path,
    b"w": _windows_path,
}
"""By type byte: the function that makes a key from a payload."""

BUILDERS: dict[bytes, Callable[..., object]] = {
    b"r": _fraction,
    b"c": lambda real, imaginary: complex(float(real), float(imaginary)),
}
"""By type byte: the function that makes a key from the decoded keys of a payload."""
