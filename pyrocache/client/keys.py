"""Any key to canonical bytes, and back.

It owns what "the same key" means: two keys are one iff ``==`` says so as dict keys do, and then they have the
same bytes in every process, whatever PYTHONHASHSEED, insertion order or interning. The bytes decode to an equal
key, though not always of the same type: 1.0 may come back as 1, a named tuple as a tuple.

A key on the wire is its namespace (varint length, UTF-8), then a tag byte and an open-ended payload, so that
the bytes of "user:" are a prefix of those of "user:1", and the bytes of ("a", 1) of those of ("a", 1, "x").
Inside a payload, a nested key is tag byte, varint payload length, payload. Varints are LEB128, ints are
minimal big-endian two's complement, floats big-endian binary64, texts UTF-8 with lone surrogates passed::

    tag  kind                                      payload
    N    None                                      nothing
    i    every number with an integral value       int
    f    other numbers that a float holds exactly  8 bytes
    r    other rational numbers                    nested numerator, denominator
    c    complex numbers with an imaginary part    nested real part, imaginary part
    s    str                                       text
    b    bytes, bytearray, memoryview              the bytes
    t    tuple, named tuple                        nested items
    l    list                                      nested items
    q    deque (without its maxlen)                nested items
    A    array.array (without its type code)       nested items
    S    set, frozenset                            nested items, sorted
    d    dict                                      nested key and value of each item, sorted
    R    range                                     nested length, start if length > 0, step if length > 1
    y    date                                      int: proleptic ordinal
    n    datetime, naive                           int: microseconds since year 1
    a    datetime, aware                           int: microseconds since year 1, UTC
    h    time, naive                               int: microseconds since midnight
    H    time, aware                               int: the same, less the whole seconds of the UTC offset
    T    timedelta                                 int: microseconds
    z    timezone (without its name)               int: microseconds
    M    numpy.datetime64                          int: attoseconds since 1970
    m    numpy.timedelta64                         int: attoseconds
    o    numpy.timedelta64 of months or years      int: months
    X    numpy.ndarray                             nested dtype, shape, bytes in C order and little-endian
    u    UUID                                      16 bytes
    p    path, POSIX flavour                       text
    w    path, Windows flavour                     text, lower case
    e    Enum member                               nested module, qualified name, member name
    F    Flag member                               nested module, qualified name, value
    D    dataclass instance                        nested module, qualified name, then name and value of
                                                   each field that its == compares, sorted by name
    P    any other object                          pickle, its parts of the kinds above as persistent ids

A subclass that inherits its builtin's ``==`` (IntEnum, named tuple), and any object that equals a builtin and
hashes like it (OrderedDict, ChainMap, numpy.str_), has that builtin's bytes. An object of kind P is pickled,
unpickled and pickled again to see that it is stable; without an ``==`` of its own, or with one that gives no bool,
it is keyed by class and state. So is an array, by its dtype, shape and bytes.

It refuses, as `InvalidKey` or `KeyTooLarge`, what has no canonical bytes: NaN and NaT, what does not pickle or
does not come back equal, what contains itself, classes that cannot be imported by name. It cannot see into an
``==`` that ignores part of what the object pickles: make such a class a dataclass with ``compare=False`` fields.
Where ``==`` itself is not transitive, kinds stay apart: a numpy.datetime64 is not the datetime that some of its
units equal; a Counter is its plain dict, zero counts included.

Decoding imports the classes that the bytes name, and unpickles: whoever cannot trust the bytes checks them first.

Threading: functions of their arguments alone, safe from any thread; the two caches here only save work. Encoding
runs the key's own ``==``, ``hash`` and pickling code.
"""

from __future__ import annotations

import collections
import copy
import importlib
import numbers
import operator
import os
import struct
import sys
import typing
from array import array, typecodes
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, Field, fields
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import NoneType, UnionType
from typing import Any
from uuid import UUID

from pyrocache.client.codec import canonical_pickle, canonical_unpickle, type_name
from pyrocache.errors import InvalidKey, KeyTooLarge

__all__ = ["MAX_KEY_BYTES", "decode_key", "encode_key", "namespace_prefix", "split_namespace"]

MAX_KEY_BYTES = 64 * 1024

_MAX_DIGITS = 160_000  # more of them, before or behind the point, are more bits than MAX_KEY_BYTES
_MAX_MONTHS = 3 * 10**17  # 2**63 days, roughly
_DOUBLE = struct.Struct(">d")
_ARRAY_TYPES = "?bBhHiIlLqQefdFDSUmM"  # numpy's characters for types without pointers or padding
_CHARACTER = "w" if "w" in typecodes else "u"  # array's type code; u goes as w comes
_ONE_BYTE = [bytes((number,)) for number in range(0x80)]

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

# An encoder's second argument: the object lies inside one that is being pickled, and will be verified with it.
Encoder = Callable[[Any, bool], bytes]
Decoder = Callable[[bytes], object]


def encode_key(key: object, prefix: bytes = b"\0") -> bytes:
    """The canonical bytes of a key behind a prefix from `namespace_prefix` (by default, that of no namespace).

    Raises `KeyTooLarge` if they are more than `MAX_KEY_BYTES`, `InvalidKey` if the key has none.
    """
    data = prefix + (_encode_str(key, False) if type(key) is str else _encode_guarded(key))
    if len(data) > MAX_KEY_BYTES:
        raise _too_large(key)
    return data


def decode_key(data: bytes) -> object:
    """The key in bytes that `encode_key` made, whatever its namespace. Raises `InvalidKey` for any others."""
    if len(data) > MAX_KEY_BYTES:
        raise InvalidKey(f"{len(data)} bytes are more than a key has")
    _, encoded = split_namespace(data)
    try:
        return _decode(encoded)
    except InvalidKey:
        raise
    except RecursionError:
        raise InvalidKey("an encoded key is nested too deeply to be decoded") from None
    except (ImportError, AttributeError) as error:
        raise InvalidKey(f"an encoded key's class cannot be imported here ({type_name(error)})") from error
    except Exception as error:  # unpickling and a class's own code may raise anything
        raise InvalidKey(f"these bytes are no encoded key ({type_name(error)})") from error


def namespace_prefix(namespace: str) -> bytes:
    """What stands before the bytes of every key of a namespace; for the empty one, a zero byte."""
    name = _utf8(namespace)
    return _varint(len(name)) + name


def split_namespace(data: bytes) -> tuple[str, bytes]:
    """The namespace of an encoded key, and the rest of its bytes. Raises `InvalidKey` if there is none."""
    size, start = _read_varint(data, 0)
    if start + size > len(data):
        raise InvalidKey("an encoded key ends within its namespace")
    try:
        return _text(data[start : start + size]), data[start + size :]
    except UnicodeDecodeError:
        raise InvalidKey("an encoded key's namespace is not UTF-8") from None


# Dispatch: the exact type's encoder, else what the object is by inheritance or likeness, else pickle.


def _encode_guarded(key: object) -> bytes:
    try:
        return _encode(key, False)
    except KeyTooLarge:
        raise _too_large(key) from None  # found in some part of it
    except InvalidKey:
        raise
    except RecursionError:
        raise InvalidKey(f"a key of type {type_name(key)} is nested too deeply, or contains itself") from None
    except Exception as error:
        raise _own_code_failed(key, error) from error


def _encode(key: Any, inside: bool) -> bytes:
    encoded = _encode_known(key, inside)
    return _encode_other(key, inside) if encoded is None else encoded


def _encode_known(key: Any, inside: bool) -> bytes | None:
    """The bytes of a key of any kind but P; None for those."""
    encoder = _ENCODERS.get(type(key))
    return _encode_unusual(key, inside) if encoder is None else encoder(key, inside)


def _encode_unusual(key: Any, inside: bool) -> bytes | None:
    cls: Any = type(key)
    if issubclass(cls, type):
        return None
    if (compared := _compared_fields(cls)) is not None:
        return _encode_dataclass(key, compared, inside)
    if cls.__module__ == "numpy" and (encoder := _learn_numpy_type(cls)) is not None:
        return encoder(key, inside)
    if issubclass(cls, Enum):
        return _encode_enum(key, inside)
    if (plain := _plain(key)) is not _NO_PLAIN:
        return _encode(plain, inside)
    if issubclass(cls, (dict, set, frozenset)):  # their pickles keep an order that == need not
        name = type_name(key)
        raise InvalidKey(f"a key of type {name} has an == of its own, so its order cannot be settled")
    settled = _settled(key)
    return None if settled is key else _encode_other(settled, inside)


def _settled(key: Any) -> Any:
    """The key without the part of its state that its == does not see, where that is known; else the key."""
    if isinstance(key, datetime) and key.tzinfo is not None:  # a pandas.Timestamp with nanoseconds
        return key if key.tzinfo is UTC else key.astimezone(UTC)
    if hasattr(type(key), "__pydantic_fields_set__") and key.__pydantic_fields_set__:
        key = copy.copy(key)
        object.__setattr__(key, "__pydantic_fields_set__", set())
    return key


def _nested(key: Any, inside: bool) -> bytes:
    encoder = _ENCODERS.get(type(key), _encode)
    encoded = encoder(key, inside)
    size = len(encoded) - 1
    if size < 0x80:
        return encoded[:1] + _ONE_BYTE[size] + encoded[1:]
    return encoded[:1] + _varint(size) + encoded[1:]


def _nested_all(keys: Iterable[Any], inside: bool) -> list[bytes]:
    """Each key nested. Stops as soon as they are too many, so that shared parts cannot blow up."""
    room = MAX_KEY_BYTES
    parts = []
    for key in keys:
        part = _nested(key, inside)
        room -= len(part)
        if room < 0:
            raise _too_large(keys)
        parts.append(part)
    return parts


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _ONE_BYTE[number]
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _too_large(key: object) -> KeyTooLarge:
    name = type_name(key)
    return KeyTooLarge(
        f"a key takes at most {MAX_KEY_BYTES} bytes once encoded; this one, a {name}, takes more"
    )


def _own_code_failed(key: object, error: Exception) -> InvalidKey:
    name = type_name(key)
    return InvalidKey(f"a key of type {name} cannot be made canonical: encoding it raised {type_name(error)}")


# Numbers: int, float, Decimal, Fraction, complex and numpy's are one kind where their values are.


def _int_bytes(number: int) -> bytes:
    magnitude = number if number >= 0 else ~number
    return number.to_bytes(magnitude.bit_length() // 8 + 1, "big", signed=True)


def _encode_int(key: int, inside: bool) -> bytes:
    return b"i" + _int_bytes(key)


def _encode_float(key: float, inside: bool) -> bytes:
    if key.is_integer():
        return _encode_int(int(key), inside)
    if key != key:
        raise InvalidKey("NaN cannot be a key: it does not equal itself")
    return b"f" + _DOUBLE.pack(key)


def _encode_rational(numerator: int, denominator: int, inside: bool) -> bytes:
    """Of a fraction in lowest terms with a positive denominator."""
    if denominator == 1:
        return _encode_int(numerator, inside)
    try:
        nearest = numerator / denominator
    except OverflowError:
        nearest = 0.0
    if nearest.as_integer_ratio() == (numerator, denominator):
        return b"f" + _DOUBLE.pack(nearest)
    return b"r" + _nested(numerator, inside) + _nested(denominator, inside)


def _encode_fraction(key: Fraction, inside: bool) -> bytes:
    return _encode_rational(int(key.numerator), int(key.denominator), inside)


def _encode_decimal(key: Decimal, inside: bool) -> bytes:
    if not key.is_finite():
        return _encode_float(float("nan") if key.is_nan() else float(key), inside)
    if not key:
        return _encode_int(0, inside)
    sign, digits, exponent = key.as_tuple()
    zeros = next(count for count, digit in enumerate(reversed(digits)) if digit)
    significant = digits[: len(digits) - zeros]
    # Checked first, because 1E+1000000000 would need its memory as an int before it could be too large.
    if abs(key.adjusted()) > _MAX_DIGITS or len(significant) > _MAX_DIGITS:
        raise _too_large(key)
    return _encode_rational(*Decimal((sign, significant, int(exponent) + zeros)).as_integer_ratio(), inside)


def _encode_complex(key: complex, inside: bool) -> bytes:
    if key.imag == 0:
        return _encode_float(key.real, inside)
    return b"c" + _nested(key.real, inside) + _nested(key.imag, inside)


# Texts and containers.


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _encode_str(key: str, inside: bool) -> bytes:
    if len(key) > MAX_KEY_BYTES:
        raise _too_large(key)
    try:
        return b"s" + key.encode()
    except UnicodeEncodeError:
        return b"s" + _utf8(key)


def _encode_bytes(key: bytes | bytearray, inside: bool) -> bytes:
    if len(key) > MAX_KEY_BYTES:
        raise _too_large(key)
    return b"b" + key


def _encode_memoryview(key: memoryview, inside: bool) -> bytes:
    if key.nbytes > MAX_KEY_BYTES:
        raise _too_large(key)
    plain = key.tobytes()
    if key != plain:  # a view of items other than bytes
        raise InvalidKey("a memoryview can be a key only if it equals its bytes")
    return b"b" + plain


def _encode_items(tag: bytes) -> Encoder:
    def encode(key: Iterable[Any], inside: bool) -> bytes:
        return tag + b"".join(_nested_all(key, inside))

    return encode


def _encode_set(key: AbstractSet[Any], inside: bool) -> bytes:
    parts = sorted(_nested_all(key, inside))
    _check_distinct(parts, key)
    return b"S" + b"".join(parts)


def _encode_dict(key: dict[Any, Any], inside: bool) -> bytes:
    parts = _nested_all(chain.from_iterable(key.items()), inside)
    _check_distinct(parts[::2], key)
    return b"d" + b"".join(sorted(map(operator.add, parts[::2], parts[1::2])))


def _check_distinct(parts: list[bytes], key: object) -> None:
    if len(set(parts)) != len(parts):  # objects without an == of their own, in the same state
        raise InvalidKey(f"a key of type {type_name(key)} has two members with the same canonical bytes")


def _encode_range(key: range, inside: bool) -> bytes:
    if not key:
        return b"R" + _nested(0, inside)
    length = (key[-1] - key.start) // key.step + 1  # len() fails beyond sys.maxsize
    parts = (length, key.start, key.step) if length > 1 else (length, key.start)
    return b"R" + b"".join(_nested_all(parts, inside))


# Dates and times.


def _microseconds(delta: timedelta) -> int:
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _encode_date(key: date, inside: bool) -> bytes:
    return b"y" + _int_bytes(key.toordinal())


def _encode_datetime(key: datetime, inside: bool) -> bytes:
    first = key.replace(fold=0)
    wall = _microseconds(first.replace(tzinfo=None) - datetime.min)
    offset = first.utcoffset()
    if offset is None:
        return b"n" + _int_bytes(wall)
    if offset != key.replace(fold=1).utcoffset():
        # In a gap or a fold of its zone, a datetime equals none of another zone (PEP 495).
        return _encode_other(first, inside)
    return b"a" + _int_bytes(wall - _microseconds(offset))


def _encode_time(key: time, inside: bool) -> bytes:
    offset = key.utcoffset()
    wall = ((key.hour * 60 + key.minute) * 60 + key.second) * 1_000_000 + key.microsecond
    if offset is None:
        return b"h" + _int_bytes(wall)
    # Python, too, leaves the offset's microseconds out of a comparison.
    return b"H" + _int_bytes(wall - (offset.days * 86_400 + offset.seconds) * 1_000_000)


def _encode_timedelta(key: timedelta, inside: bool) -> bytes:
    return b"T" + _int_bytes(_microseconds(key))


def _encode_timezone(key: timezone, inside: bool) -> bytes:
    return b"z" + _int_bytes(_microseconds(key.utcoffset(None)))


# Numpy's scalars. Numpy is never imported to encode: a key of its types can only be there if numpy is.


def _learn_numpy_type(cls: type) -> Encoder | None:
    np: Any = sys.modules["numpy"]
    kinds: list[tuple[type, Encoder]] = [
        (np.datetime64, _encode_datetime64),
        (np.timedelta64, _encode_timedelta64),  # before integer, which it inherits from
        (np.bool_, lambda key, inside: _encode_int(int(key), inside)),
        (np.integer, lambda key, inside: _encode_int(int(key), inside)),
        (np.floating, lambda key, inside: _encode_float(_exact(float, key), inside)),
        (np.complexfloating, lambda key, inside: _encode_complex(_exact(complex, key), inside)),
    ]
    if cls is np.ndarray:
        kinds = [(cls, _encode_ndarray)]
    encoder = next((encoder for kind, encoder in kinds if issubclass(cls, kind)), None)
    if encoder is not None:
        _ENCODERS[cls] = encoder
    return encoder


def _exact(convert: Callable[[Any], Any], key: Any) -> Any:
    converted = convert(key)
    if converted != key and key == key:
        raise InvalidKey(f"a key of type {type_name(key)} has more digits than a float holds")
    return converted


def _encode_ndarray(key: Any, inside: bool) -> bytes:
    if key.nbytes > MAX_KEY_BYTES:
        raise _too_large(key)
    if key.dtype.char not in _ARRAY_TYPES:
        raise InvalidKey(
            f"a numpy.ndarray of {type_name(key.dtype)} cannot be a key: its bytes are not its value"
        )
    plain = key.astype(key.dtype.newbyteorder("<"))
    return b"X" + b"".join(_nested_all((plain.dtype.str, key.shape, plain.tobytes()), inside))


def _encode_datetime64(key: Any, inside: bool) -> bytes:
    unit, count = _numpy_unit(key)
    if unit in "YM":
        months = int(key.astype("int64")) * count * (12 if unit == "Y" else 1)
        if abs(months) > _MAX_MONTHS:
            raise InvalidKey("a numpy.datetime64 key is too far away to be counted in days")
        key, unit, count = key.astype("datetime64[D]"), "D", 1
    return b"M" + _int_bytes(int(key.astype("int64")) * count * _ATTOSECONDS[unit])


def _encode_timedelta64(key: Any, inside: bool) -> bytes:
    unit, count = _numpy_unit(key)
    number = int(key.astype("int64")) * count
    if unit in "YM":
        return b"o" + _int_bytes(number * 12 if unit == "Y" else number)
    return b"m" + _int_bytes(number * _ATTOSECONDS[unit])


def _numpy_unit(key: Any) -> tuple[str, int]:
    if key != key:
        raise InvalidKey("NaT cannot be a key: it does not equal itself")
    unit, count = sys.modules["numpy"].datetime_data(key.dtype)
    if unit == "generic":
        raise InvalidKey("a numpy.timedelta64 without a unit cannot be a key: it equals one of every unit")
    return unit, count


# Classes that are kept by name.


def _encode_enum(key: Any, inside: bool) -> bytes:
    cls = type(key)
    base = _builtin_base(cls)
    if base is not None and cls.__eq__ is base.__eq__:  # IntEnum, StrEnum, (str, Enum)
        return _encode(_PLAIN[base](key), inside)
    if issubclass(cls, Flag):
        return b"F" + _class_reference(cls) + _nested(int(key.value), inside)
    return b"e" + _class_reference(cls) + _nested(key._name_, inside)


def _encode_dataclass(key: Any, compared: tuple[str, ...], inside: bool) -> bytes:
    parts = _nested_all(chain.from_iterable((name, getattr(key, name)) for name in compared), inside)
    return b"D" + _class_reference(type(key)) + b"".join(parts)


@lru_cache(maxsize=1024)
def _compared_fields(cls: type) -> tuple[str, ...] | None:
    """The sorted names of the fields that a dataclass's generated == compares; None if it has another ==."""
    owner = next(base for base in cls.__mro__ if "__eq__" in vars(base))
    code = getattr(vars(owner)["__eq__"], "__code__", None)
    # Generated code comes from no file; an == that was written comes from one.
    if "__dataclass_fields__" not in vars(owner) or code is None or code.co_filename != "<string>":
        return None
    return tuple(sorted(field.name for field in fields(owner) if field.compare))


def _class_reference(cls: type) -> bytes:
    # A worker that multiprocessing spawned knows its parent's __main__ by another name.
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    if _named(sys.modules.get(module), cls.__qualname__) is not cls:
        raise InvalidKey(
            f"{cls.__module__}.{cls.__qualname__}, a key's class, cannot be imported by its name"
        )
    return _nested(module, True) + _nested(cls.__qualname__, True)


def _named(module: object, qualname: str) -> object:
    found = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


# Subclasses and lookalikes of builtins.

_NO_PLAIN = object()

# Each is built past what a subclass may have overridden, as the builtin's == would see it.
_PLAIN: dict[type, Callable[[Any], object]] = {
    int: int.__int__,
    float: float.__float__,
    complex: complex.__complex__,
    str: str.__str__,
    bytes: lambda key: b"".join((key,)),
    bytearray: lambda key: b"".join((key,)),
    tuple: lambda key: tuple(tuple.__iter__(key)),
    list: lambda key: list(list.__iter__(key)),
    set: lambda key: frozenset(set.__iter__(key)),
    frozenset: lambda key: frozenset(frozenset.__iter__(key)),
    dict: lambda key: dict(dict.items(key)),
    collections.deque: collections.deque,
    array: lambda key: array(key.typecode, array.__iter__(key)),
    Decimal: Decimal,
    Fraction: lambda key: Fraction(key.numerator, key.denominator),
    datetime: lambda key: datetime.combine(datetime.date(key), datetime.timetz(key)),
    date: lambda key: date(key.year, key.month, key.day),
    time: lambda key: time(key.hour, key.minute, key.second, key.microsecond, key.tzinfo, fold=key.fold),
    timedelta: lambda key: timedelta(key.days, key.seconds, key.microseconds),
    UUID: lambda key: UUID(int=key.int),
    PurePosixPath: lambda key: PurePosixPath(str(key)),
    PureWindowsPath: lambda key: PureWindowsPath(str(key)),
}

_LOOKALIKES: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (Mapping, dict),
    (AbstractSet, frozenset),
    (collections.UserList, list),
    (collections.UserString, str),
    (numbers.Integral, int),
    (numbers.Rational, lambda key: Fraction(int(key.numerator), int(key.denominator))),
    (numbers.Real, float),
    (numbers.Complex, complex),
)


def _builtin_base(cls: type) -> type | None:
    return next((base for base in cls.__mro__ if base in _PLAIN), None)


def _plain(key: Any) -> object:
    """The builtin object that is the same dict key as `key`, or _NO_PLAIN."""
    cls: Any = type(key)
    base: Any = _builtin_base(cls)
    build = _PLAIN.get(base) or next((build for kind, build in _LOOKALIKES if issubclass(cls, kind)), None)
    if build is None:
        return _NO_PLAIN
    if base is not None and cls.__eq__ is base.__eq__:
        return build(key)
    try:
        plain = build(key)
    except RecursionError:
        raise
    except Exception:
        return _NO_PLAIN
    return plain if _same_dict_key(key, plain) else _NO_PLAIN


def _same_dict_key(key: Any, plain: Any) -> bool:
    try:
        if _truth(key == plain) is not True:
            return False
    except Exception as error:
        raise _own_code_failed(key, error) from error
    try:
        hashes = hash(key), hash(plain)
    except TypeError:  # unhashable
        return True
    if hashes[0] != hashes[1]:  # a str that ignores case equals one str, but also others
        raise InvalidKey(f"a key of type {type_name(key)} equals a {type_name(plain)} but hashes differently")
    return True


def _truth(compared: object) -> bool | None:
    """What an == gave, if it is a bool, Python's or numpy's."""
    return bool(compared) if type(compared).__name__ in ("bool", "bool_") else None


# Everything else: pickle, with every part of a known kind in its canonical form.


def _encode_other(key: Any, inside: bool) -> bytes:
    room = MAX_KEY_BYTES

    def persistent_id(part: Any) -> bytes | None:
        nonlocal room
        if part is key:
            return None
        if type(part) is str and part == "__mp_main__":  # as in _class_reference
            part = "__main__"
        encoded = _encode_known(part, True)
        room -= len(encoded or b"")
        if room < 0:  # every object's pickle has such parts, so shared objects cannot blow up either
            raise _too_large(key)
        return encoded

    try:
        encoded = b"P" + canonical_pickle(key, persistent_id)
        if not inside:
            _verify(key, encoded)
    except (InvalidKey, RecursionError):
        raise
    except Exception as error:
        raise _own_code_failed(key, error) from error
    return encoded


def _verify(key: Any, encoded: bytes) -> None:
    cls: Any = type(key)
    try:
        twin: Any = _decode(encoded)
    except InvalidKey as error:
        raise InvalidKey(f"a key of type {type_name(key)} does not pickle the same way twice") from error
    if cls.__eq__ is not object.__eq__ and _truth(twin == key) is False:
        raise InvalidKey(f"a key of type {type_name(key)} does not equal its own copy")


def _encode_typing(form: Any) -> Encoder:
    """For Union and Literal, whose == ignores the order of their arguments."""

    def encode(key: Any, inside: bool) -> bytes:
        arguments = sorted(typing.get_args(key), key=lambda argument: _encode(argument, True))
        return _encode_other(operator.getitem(form, tuple(arguments)), inside)

    return encode


# By exact type. Numpy's scalar types are added when the first of each is met.
_ENCODERS: dict[type, Encoder] = {
    NoneType: lambda key, inside: b"N",
    bool: lambda key, inside: _encode_int(int(key), inside),
    int: _encode_int,
    float: _encode_float,
    Decimal: _encode_decimal,
    Fraction: _encode_fraction,
    complex: _encode_complex,
    str: _encode_str,
    bytes: _encode_bytes,
    bytearray: _encode_bytes,
    memoryview: _encode_memoryview,
    tuple: _encode_items(b"t"),
    list: _encode_items(b"l"),
    collections.deque: _encode_items(b"q"),
    array: _encode_items(b"A"),
    set: _encode_set,
    frozenset: _encode_set,
    dict: _encode_dict,
    range: _encode_range,
    date: _encode_date,
    datetime: _encode_datetime,
    time: _encode_time,
    timedelta: _encode_timedelta,
    timezone: _encode_timezone,
    UUID: lambda key, inside: b"u" + key.bytes,
    PosixPath: lambda key, inside: b"p" + _utf8(str(key)),
    PurePosixPath: lambda key, inside: b"p" + _utf8(str(key)),
    WindowsPath: lambda key, inside: b"w" + _utf8(str(key).lower()),
    PureWindowsPath: lambda key, inside: b"w" + _utf8(str(key).lower()),
    UnionType: _encode_typing(typing.Union),
    type(operator.getitem(typing.Union, (int, str))): _encode_typing(typing.Union),
    type(typing.Literal[1]): _encode_typing(typing.Literal),
}


# The way back. Each decoder may raise anything; decode_key makes InvalidKey of it.


def _decode(encoded: bytes) -> object:
    tag = encoded[:1]
    decoder = _DECODERS.get(tag)
    if decoder is None:
        raise InvalidKey("an encoded key is of no kind known here")
    key = decoder(encoded[1:])
    if tag in _CHECKED and _encode(key, True) != encoded:
        raise InvalidKey("an encoded key is not in its canonical form")
    return key


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at an index, and the index behind it."""
    number = 0
    for shift in range(0, 21, 7):  # enough for every length up to MAX_KEY_BYTES
        if at >= len(data):
            raise InvalidKey("an encoded key ends within a length")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if not byte and shift:
                break
            return number, at
    raise InvalidKey("an encoded key has a length that is not in its canonical form")


def _split(payload: bytes) -> tuple[list[bytes], list[bytes]]:
    """The nested keys of a payload: as they stand there, and each as it would be on its own."""
    nested, alone = [], []
    at = 0
    while at < len(payload):
        size, start = _read_varint(payload, at + 1)
        end = start + size
        if end > len(payload):
            raise InvalidKey("an encoded key ends within a nested one")
        nested.append(payload[at:end])
        alone.append(payload[at : at + 1] + payload[start:end])
        at = end
    return nested, alone


def _items(payload: bytes) -> list[Any]:
    return list(map(_decode, _split(payload)[1]))


def _check_sorted(parts: list[bytes]) -> None:
    if not all(one < other for one, other in pairwise(parts)):
        raise InvalidKey("an encoded key's members are not in their canonical order")


def _text(payload: bytes) -> str:
    return payload.decode("utf-8", "surrogatepass")


def _number(payload: bytes) -> int:
    return int.from_bytes(payload, "big", signed=True)


def _decode_none(payload: bytes) -> None:
    if payload:
        raise InvalidKey("an encoded None has a payload")


def _decode_float(payload: bytes) -> object:
    return _DOUBLE.unpack(payload)[0]


def _decode_rational(payload: bytes) -> Fraction:
    numerator, denominator = _items(payload)
    return Fraction(numerator, denominator)


def _decode_complex(payload: bytes) -> complex:
    real, imaginary = _items(payload)
    return complex(float(real), float(imaginary))


def _decode_array(payload: bytes) -> object:
    items = _items(payload)
    for code in "qQd" + _CHARACTER:
        try:
            decoded = array(code, items)
        except (TypeError, ValueError, OverflowError):
            continue
        if decoded.tolist() == items:
            return decoded
    raise InvalidKey("an encoded array holds what no array does")


def _decode_set(payload: bytes) -> frozenset[Any]:
    nested, alone = _split(payload)
    _check_sorted(nested)
    return frozenset(map(_decode, alone))


def _decode_dict(payload: bytes) -> dict[Any, Any]:
    nested, alone = _split(payload)
    _check_sorted(nested[::2])
    return dict(zip(map(_decode, alone[::2]), map(_decode, alone[1::2]), strict=True))


def _decode_range(payload: bytes) -> range:
    items = _items(payload)
    length, start, step = items + [0, 0, 1][len(items) :]
    return range(start, start + length * step, step)


def _decode_datetime(payload: bytes) -> datetime:
    return datetime.min + timedelta(microseconds=_number(payload))


def _decode_aware_datetime(payload: bytes) -> datetime:
    """In UTC; or, if that is before year 1 or after 9999, in a zone where it is the first or last instant."""
    moment = _number(payload)
    nearest = min(max(moment, 0), _microseconds(datetime.max - datetime.min))
    zone = timezone(timedelta(microseconds=nearest - moment))
    return (datetime.min + timedelta(microseconds=nearest)).replace(tzinfo=zone)


def _decode_time(payload: bytes) -> time:
    return (datetime.min + timedelta(microseconds=_number(payload))).time()


def _decode_aware_time(payload: bytes) -> time:
    seconds, microsecond = divmod(_number(payload), 1_000_000)
    nearest = min(max(seconds, 0), 86_399)
    zone = timezone(timedelta(seconds=nearest - seconds))
    return (datetime.min + timedelta(seconds=nearest, microseconds=microsecond)).time().replace(tzinfo=zone)


def _decode_attoseconds(kind: str) -> Decoder:
    def decode(payload: bytes) -> object:
        number = _number(payload)
        for unit, size in _ATTOSECONDS.items():
            count, rest = divmod(number, size)
            if not rest and abs(count) < 2**63:
                return getattr(importlib.import_module("numpy"), kind)(count, unit)
        raise InvalidKey(f"an encoded numpy.{kind} is out of range")

    return decode


def _decode_months(payload: bytes) -> object:
    return importlib.import_module("numpy").timedelta64(_number(payload), "M")


def _decode_ndarray(payload: bytes) -> object:
    dtype, shape, data = _items(payload)
    return importlib.import_module("numpy").frombuffer(data, dtype).reshape(shape)


def _decode_posix_path(payload: bytes) -> PurePosixPath:
    return (PosixPath if os.name == "posix" else PurePosixPath)(_text(payload))


def _decode_windows_path(payload: bytes) -> PureWindowsPath:
    return (WindowsPath if os.name == "nt" else PureWindowsPath)(_text(payload))


def _decode_enum(payload: bytes) -> object:
    module, qualname, name = _items(payload)
    return _import_class(module, qualname, Enum)[name]


def _decode_flag(payload: bytes) -> object:
    module, qualname, value = _items(payload)
    return _import_class(module, qualname, Flag)(value)


def _decode_dataclass(payload: bytes) -> object:
    module, qualname, *rest = _items(payload)
    cls = _import_class(module, qualname, object)
    if tuple(rest[::2]) != _compared_fields(cls):
        raise InvalidKey("an encoded key's dataclass has other fields here")
    values = dict(zip(rest[::2], rest[1::2], strict=True))
    key = cls.__new__(cls)
    for field in fields(cls):
        value = values[field.name] if field.name in values else _default(field)
        object.__setattr__(key, field.name, value)
    return key


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _import_class(module: str, qualname: str, base: type) -> Any:
    found = _named(importlib.import_module(module), qualname)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ImportError("no such class")
    return found


def _decode_other(payload: bytes) -> object:
    return canonical_unpickle(payload, _persistent_load)


def _persistent_load(encoded: object) -> object:
    if not isinstance(encoded, bytes):
        raise InvalidKey("an encoded key's part is not of bytes")
    return _decode(encoded)


_DECODERS: dict[bytes, Decoder] = {
    b"N": _decode_none,
    b"i": _number,
    b"f": _decode_float,
    b"r": _decode_rational,
    b"c": _decode_complex,
    b"s": _text,
    b"b": bytes,
    b"t": lambda payload: tuple(_items(payload)),
    b"l": _items,
    b"q": lambda payload: collections.deque(_items(payload)),
    b"A": _decode_array,
    b"S": _decode_set,
    b"d": _decode_dict,
    b"R": _decode_range,
    b"y": lambda payload: date.fromordinal(_number(payload)),
    b"n": _decode_datetime,
    b"a": _decode_aware_datetime,
    b"h": _decode_time,
    b"H": _decode_aware_time,
    b"T": lambda payload: timedelta(microseconds=_number(payload)),
    b"z": lambda payload: timezone(timedelta(microseconds=_number(payload))),
    b"M": _decode_attoseconds("datetime64"),
    b"m": _decode_attoseconds("timedelta64"),
    b"o": _decode_months,
    b"X": _decode_ndarray,
    b"u": lambda payload: UUID(bytes=payload),
    b"p": _decode_posix_path,
    b"w": _decode_windows_path,
    b"e": _decode_enum,
    b"F": _decode_flag,
    b"D": _decode_dataclass,
    b"P": _decode_other,
}

# Kinds whose decoders take more than their encoders make.
_CHECKED = frozenset(bytes((tag,)) for tag in b"ifrcARhHnayTzMmoXpweFP")
