"""`encode_key` and `decode_key`: any key to canonical bytes, and back; with containers and the choice of a kind.

Keys compare as dict keys do. Equal keys have the same bytes in every process, independent of PYTHONHASHSEED, insertion
order and interning, except objects of kind P (see below). The bytes decode to an equal key, not always of the same
type: 1.0 may come back as 1, a named tuple as a tuple.

An encoded key consists of the prefix of its namespace, a type byte, and a payload without a length. Hence the bytes of
"user:" are a prefix of those of "user:1", and the bytes of ("a", 1) are a prefix of those of ("a", 1, "x"). A namespace
is a path of names. Its prefix is the varint length of what follows, then the varint length and the UTF-8 text of each
name. The root's prefix is a zero byte, and no path's prefix begins with that of another path.

Inside a payload, a nested key is type byte, varint payload length, payload. Varints are LEB128, ints are minimal
big-endian two's complement, floats big-endian binary64, strings UTF-8, which may contain lone surrogates::

    byte kind                                      payload
    N    None                                      nothing
    i    every number with an integral value       int
    f    other numbers that a float holds exactly  8 bytes
    r    other rational numbers                    nested numerator, denominator
    c    complex numbers with an imaginary part    nested real part, imaginary part
    s    str                                       text
    b    bytes, bytearray                          the bytes
    t    tuple, named tuple                        nested items
    l    list                                      nested items
    S    set, frozenset                            nested items, sorted
    d    dict, also OrderedDict and Counter        nested key and value of each item, sorted
    y    date                                      int: proleptic ordinal
    n    datetime, naive                           int: microseconds since year 1
    a    datetime, aware                           int: microseconds since year 1, UTC
    h    time, naive                               int: microseconds since midnight
    H    time, aware                               int: microseconds since midnight, minus the UTC
                                                   offset in whole seconds
    T    timedelta                                 int: microseconds
    u    UUID                                      16 bytes
    p    path, POSIX flavour                       text
    w    path, Windows flavour                     text, lower case
    e    Enum member                               nested module, qualified name, member name
    F    Flag member                               nested module, qualified name, value
    D    dataclass instance                        nested module, qualified name, then name and value of
                                                   each compared field, sorted by name
    P    any other object                          pickle; objects of other kinds that it refers to are
                                                   persistent ids: their encoded bytes

A numpy scalar has the kind of its value. A subclass that inherits the ``==`` of its builtin (IntEnum, a named tuple) is
encoded as that builtin. Any other object (kind P) is encoded as its class and its pickled state: if its class defines
``==``, or if its pickle is not reproducible, two equal objects may have different bytes.

Raises `InvalidKey` for NaN and NaT, for objects that do not pickle or that contain themselves, for classes that cannot
be imported by name, and for sets and dicts with two members that are unequal but have the same bytes, as objects of
kind P may have. Raises `KeyTooLarge` for keys that take more than `MAX_KEY_BYTES` of ``protocol/limits.py``.

Decoding imports the classes that the bytes name, and unpickles kind P: check untrusted bytes before decoding them.
Encoding runs the key's own pickling code.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any

from pyrocache.client.codec import canonical_unpickle, type_name
from pyrocache.client.keys import numpy_scalars, objects, scalars
from pyrocache.client.keys.format import nest, own_code_failed, split, split_namespace, too_large
from pyrocache.errors import InvalidKey, KeyTooLarge
from pyrocache.protocol.limits import MAX_KEY_BYTES
from pyrocache.tracebacks import cause_of

__all__ = ["decode_key", "encode_key", "encode_keys"]

_SURELY_SHORT = MAX_KEY_BYTES // 4 - 256  # characters that fit in UTF-8, whatever they are, behind any prefix


def encode_key(key: object, prefix: bytes = b"\0") -> bytes:
    """Return the canonical bytes of a key behind a prefix from `format.namespace_prefix`.

    Raises:
        KeyTooLarge: they are more than `MAX_KEY_BYTES`.
        InvalidKey: the key has no canonical bytes.
    """
    if type(key) is str and len(key) <= _SURELY_SHORT:  # nearly always
        try:
            return prefix + b"s" + key.encode()
        except UnicodeEncodeError:
            pass
    try:
        data = prefix + _encode(key)
    except KeyTooLarge:
        raise too_large(key) from None  # found in some part of the key
    except InvalidKey:
        raise
    except RecursionError:
        raise InvalidKey(f"a key of type {type_name(key)} is nested too deeply, or contains itself") from None
    except Exception as error:  # the key's own code may raise anything
        raise own_code_failed(key, error) from cause_of(error)
    if len(data) > MAX_KEY_BYTES:
        raise too_large(key)
    return data


def encode_keys(keys: Sequence[object], prefix: bytes = b"\0") -> list[bytes]:
    """Return the canonical bytes of each key. Faster than `encode_key` for each if all are str. Raises as it does."""
    if set(map(type, keys)) <= {str}:
        texts: Any = keys
        try:
            encoded = list(map((prefix + b"s").__add__, map(str.encode, texts)))
            # The sum is cheaper than the maximum, and nearly always small enough.
            if sum(map(len, encoded)) <= MAX_KEY_BYTES or len(max(encoded, key=len)) <= MAX_KEY_BYTES:
                return encoded
        except UnicodeEncodeError:
            pass
    return [encode_key(key, prefix) for key in keys]  # raises the error of a key that is too large


def decode_key(data: bytes) -> object:
    """Return the key in bytes from `encode_key`, whatever its namespace.

    Raises:
        InvalidKey: the bytes are not canonical, or a class of the key cannot be imported here.
    """
    if len(data) > MAX_KEY_BYTES:
        raise InvalidKey(f"{len(data)} bytes are more than a key has")
    _, encoded = split_namespace(data)
    try:
        return _decode(encoded)
    except InvalidKey:
        raise
    except RecursionError:
        raise InvalidKey("an encoded key is nested too deeply to be decoded") from None
    except Exception as error:  # unpickling and a class's own code may raise anything
        cause = cause_of(error)
        if isinstance(error, (ImportError, AttributeError)):
            raise InvalidKey(
                f"an encoded key's class cannot be imported here ({type_name(error)})"
            ) from cause
        raise InvalidKey(f"these bytes are not a valid encoded key ({type_name(error)})") from cause


# Encoding: by the exact type, else by what the class inherits, else by pickle. A kind depends on the class alone.


def _encode(key: Any) -> bytes:
    cls: Any = type(key)
    return (_ENCODERS.get(cls) or _encoder_of(cls))(key)


@lru_cache(maxsize=1024)
def _encoder_of(cls: Any) -> Callable[[Any], bytes]:
    """Return the encoder for keys of a class that is not in the table."""
    # Before the base classes: numpy.float64 inherits from float, and numpy.str_ from str.
    if cls.__module__ == "numpy" and (encoder := numpy_scalars.encoder_of(cls, _encode_pickled)) is not None:
        return encoder
    base = next((base for base in cls.__mro__ if base in _ENCODERS), None)
    if base is not None and cls.__eq__ is base.__eq__:
        return _ENCODERS[base]
    if issubclass(cls, Enum):
        return objects.encode_enum
    if (names := objects.compared_fields(cls)) is not None:
        return lambda key: objects.encode_dataclass(key, names, _nest_all)
    return _encode_pickled


def _encode_pickled(key: Any) -> bytes:
    return objects.encode_pickled(key, _encode_part)


def _encode_part(part: Any) -> bytes | None:
    """Return the canonical bytes of a part of a pickled key; None if the part is to be pickled, too."""
    cls: Any = type(part)
    encoder = _ENCODERS.get(cls) or _encoder_of(cls)
    return None if encoder is _encode_pickled else encoder(part)


def _nest_all(keys: Iterable[Any]) -> list[bytes]:
    """Return each key in its nested form. Raise `KeyTooLarge` as soon as they are too large.

    A small key can have huge canonical bytes, because an object that it contains many times is encoded each time.
    """
    room = MAX_KEY_BYTES
    parts = []
    for key in keys:
        cls: Any = type(key)
        part = nest((_ENCODERS.get(cls) or _encoder_of(cls))(key))  # `_encode`, inlined for speed
        room -= len(part)
        if room < 0:
            raise too_large(keys)
        parts.append(part)
    return parts


# Containers are iterated as their builtin's == would, past what a subclass may override.


def _encode_set(key: Any) -> bytes:
    parts = sorted(_nest_all((set if isinstance(key, set) else frozenset).__iter__(key)))
    _check_distinct(parts, key)
    return b"S" + b"".join(parts)


def _encode_dict(key: dict[Any, Any]) -> bytes:
    parts = _nest_all(chain.from_iterable(dict.items(key)))
    _check_distinct(parts[::2], key)
    return b"d" + b"".join(sorted(map(operator.add, parts[::2], parts[1::2])))


def _check_distinct(parts: list[bytes], key: object) -> None:
    if len(set(parts)) != len(parts):  # objects without an == of their own, in the same state
        raise InvalidKey(f"a key of type {type_name(key)} has two members with the same canonical bytes")


def _encode_datetime(key: datetime) -> bytes:
    # A pickle includes the fold, which `==` ignores within one zone.
    return scalars.encode_datetime(key) or _encode_pickled(
        datetime.combine(key.date(), key.timetz().replace(fold=0))
    )


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    **scalars.ENCODERS,
    tuple: lambda key: b"t" + b"".join(_nest_all(tuple.__iter__(key))),
    list: lambda key: b"l" + b"".join(_nest_all(list.__iter__(key))),
    set: _encode_set,
    frozenset: _encode_set,
    dict: _encode_dict,
    OrderedDict: _encode_dict,
    Counter: _encode_dict,
    datetime: _encode_datetime,
}


# Decoding. Each decoder may raise anything; decode_key makes an InvalidKey of it.


def _decode(encoded: bytes) -> object:
    type_byte = encoded[:1]
    decoder = _DECODERS.get(type_byte)
    if decoder is None:
        raise InvalidKey("an encoded key is of an unknown kind")
    key = decoder(encoded[1:])
    if type_byte in _CHECKED and _encode(key) != encoded:
        raise InvalidKey("an encoded key is not in its canonical form")
    return key


def _of_items(build: Callable[..., object]) -> Callable[[bytes], object]:
    """Return a decoder that passes the decoded keys of a payload to ``build``."""
    return lambda payload: build(*map(_decode, split(payload)))


def _decode_set(payload: bytes) -> frozenset[Any]:
    members = split(payload)
    _check_sorted(members)
    return frozenset(map(_decode, members))


def _decode_dict(payload: bytes) -> dict[Any, Any]:
    parts = split(payload)
    _check_sorted(parts[::2])
    return dict(zip(map(_decode, parts[::2]), map(_decode, parts[1::2]), strict=True))


def _check_sorted(members: list[bytes]) -> None:
    if not all(one < other for one, other in pairwise(map(nest, members))):
        raise InvalidKey("an encoded key's members are not in their canonical order")


_DECODERS: dict[bytes, Callable[[bytes], object]] = {
    **scalars.DECODERS,
    **{kind: _of_items(build) for kind, build in (scalars.BUILDERS | objects.BUILDERS).items()},
    b"t": lambda payload: tuple(map(_decode, split(payload))),
    b"l": lambda payload: list(map(_decode, split(payload))),
    b"S": _decode_set,
    b"d": _decode_dict,
    b"P": lambda payload: canonical_unpickle(payload, _decode),
}

# Kinds whose decoders accept more than their encoders make. Not P: its pickle need not be reproducible.
_CHECKED = frozenset(bytes((kind,)) for kind in b"NifrcahHnyTpweF")
