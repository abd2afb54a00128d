"""Any key to canonical bytes, and back.

It owns what "the same key" means: two keys are one iff ``==`` says so as dict keys do, and then they have the
same bytes in every process, whatever PYTHONHASHSEED, insertion order or interning. The bytes decode to an equal
key, though not always of the same type: 1.0 may come back as 1, a named tuple as a tuple.

A key on the wire is its namespace, then a tag byte and an open-ended payload, so that the bytes of "user:" are a
prefix of those of "user:1", and the bytes of ("a", 1) of those of ("a", 1, "x"). A namespace is a path of names: the
varint length of what follows, then of each name its varint length and itself in UTF-8. So no path's bytes begin with
those of another, and the bytes of the empty path, the root, are a zero byte.
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

Here are the way in and out, containers, and the choice of a kind. The kinds themselves are in `key_scalars`,
`key_numpy` and `key_objects`, which never call back but through what they are handed; `key_format` is below them all.

Threading: functions of their arguments alone, safe from any thread; the table of encoders grows by numpy's types as
they are met, which only saves work. Encoding runs the key's own ``==``, ``hash`` and pickling code.
"""

from __future__ import annotations

import operator
import typing
from array import array, typecodes
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from enum import Enum
from functools import partial
from itertools import chain, pairwise
from types import UnionType
from typing import Any

from pyrocache.client.codec import type_name
from pyrocache.client.keys import numpy_scalars as key_numpy
from pyrocache.client.keys import objects as key_objects
from pyrocache.client.keys import scalars as key_scalars
from pyrocache.client.keys.equality import plain_form
from pyrocache.client.keys.format import (
    nest,
    own_code_failed,
    read_text,
    read_varint,
    split,
    too_large,
    utf8,
    varint,
)
from pyrocache.client.keys.scalars import encode_str
from pyrocache.errors import InvalidKey, KeyTooLarge
from pyrocache.protocol.limits import MAX_KEY_BYTES

__all__ = [
    "MAX_KEY_BYTES",
    "decode_key",
    "encode_key",
    "encode_keys",
    "namespace_path",
    "namespace_prefix",
    "split_namespace",
]

_SURELY_SHORT = MAX_KEY_BYTES // 4 - 256  # characters that fit in UTF-8, whatever they are, behind any prefix
_CHARACTER = "w" if "w" in typecodes else "u"  # array's type code; u goes as w comes


def encode_key(key: object, prefix: bytes = b"\0") -> bytes:
    """The canonical bytes of a key behind a prefix from `namespace_prefix` (by default, that of no namespace).

    Raises `KeyTooLarge` if they are more than `MAX_KEY_BYTES`, `InvalidKey` if the key has none.
    """
    if type(key) is str and len(key) <= _SURELY_SHORT:  # nearly always
        try:
            return prefix + b"s" + key.encode()
        except UnicodeEncodeError:
            pass
    data = prefix + (encode_str(key) if type(key) is str else _encode_guarded(key))
    if len(data) > MAX_KEY_BYTES:
        raise too_large(key)
    return data


def encode_keys(keys: Sequence[object], prefix: bytes = b"\0") -> list[bytes]:
    """What `encode_key` makes of each of ``keys``; the same, faster for many."""
    if not set(map(type, keys)) <= {str}:
        return [encode_key(key, prefix) for key in keys]
    texts: Any = keys
    try:
        encoded = list(map((prefix + b"s").__add__, map(str.encode, texts)))
    except UnicodeEncodeError:
        return [encode_key(key, prefix) for key in keys]
    if sum(map(len, encoded)) > MAX_KEY_BYTES and len(max(encoded, key=len)) > MAX_KEY_BYTES:
        return [encode_key(key, prefix) for key in keys]  # which says which one
    return encoded


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


def namespace_prefix(*path: str) -> bytes:
    """What stands before the bytes of every key of the namespace with this path; for the root, a zero byte."""
    names = [utf8(name) for name in path]
    body = b"".join(varint(len(name)) + name for name in names)
    return varint(len(body)) + body


def namespace_path(prefix: bytes) -> tuple[str, ...]:
    """The path of a namespace's prefix. Raises `InvalidKey` if it is none."""
    path, rest = split_namespace(prefix)
    if rest:
        raise InvalidKey("a namespace's prefix has bytes left over")
    return path


def split_namespace(data: bytes) -> tuple[tuple[str, ...], bytes]:
    """The path of an encoded key's namespace, and the rest of its bytes. Raises `InvalidKey` if there is none."""
    size, at = read_varint(data, 0)
    end = at + size
    path = []
    while at < end:
        size, start = read_varint(data, at)
        at = start + size
        try:
            path.append(read_text(data[start:at]))
        except UnicodeDecodeError:
            raise InvalidKey("an encoded key's namespace is not UTF-8") from None
    if at != end or end > len(data):
        raise InvalidKey("an encoded key ends within its namespace")
    return tuple(path), data[end:]


# Dispatch: the exact type's encoder, else what the object is by inheritance or likeness, else pickle.
# An argument `inside` says that the key lies inside one that is being pickled, and will be verified with it.


def _encode_guarded(key: object) -> bytes:
    try:
        return _encode(key, False)
    except KeyTooLarge:
        raise too_large(key) from None  # found in some part of it
    except InvalidKey:
        raise
    except RecursionError:
        raise InvalidKey(f"a key of type {type_name(key)} is nested too deeply, or contains itself") from None
    except Exception as error:
        raise own_code_failed(key, error) from error


def _encode(key: Any, inside: bool) -> bytes:
    encoded = _encode_known(key, inside)
    return _encode_pickled(key, inside) if encoded is None else encoded


def _encode_known(key: Any, inside: bool) -> bytes | None:
    """The bytes of a key of any kind but P; None for those."""
    cls = type(key)
    if (leaf := _LEAVES.get(cls)) is not None:
        return leaf(key)
    if (branch := _BRANCHES.get(cls)) is not None:
        return branch(key, inside)
    return _encode_unusual(key, inside)


def _encode_unusual(key: Any, inside: bool) -> bytes | None:
    cls: Any = type(key)
    if issubclass(cls, type):
        return None
    if (names := key_objects.compared_fields(cls)) is not None:
        parts = _nest_all(key_objects.field_items(key, names), inside)
        return b"D" + key_objects.class_reference(cls) + b"".join(parts)
    if cls.__module__ == "numpy" and (leaf := key_numpy.encoder_of(cls)) is not None:
        _LEAVES[cls] = leaf
        return leaf(key)
    if (plain := plain_form(key)) is not key:
        return _encode(plain, inside)
    if issubclass(cls, Enum):
        return key_objects.encode_enum(key)
    if issubclass(cls, (dict, set, frozenset)):  # their pickles keep an order that == need not
        name = type_name(key)
        raise InvalidKey(f"a key of type {name} has an == of its own, so its order cannot be settled")
    settled = key_objects.settled(key)
    return None if settled is key else _encode_pickled(settled, inside)


def _encode_pickled(key: Any, inside: bool) -> bytes:
    return key_objects.encode_pickled(key, _encode_known, None if inside else _decode)


def _nest_all(keys: Iterable[Any], inside: bool) -> list[bytes]:
    """Each key nested. Stops as soon as they are too many, so that shared parts cannot blow up."""
    room = MAX_KEY_BYTES
    parts = []
    for key in keys:
        cls = type(key)
        leaf = _LEAVES.get(cls)
        part = nest(_BRANCHES.get(cls, _encode)(key, inside) if leaf is None else leaf(key))
        room -= len(part)
        if room < 0:
            raise too_large(keys)
        parts.append(part)
    return parts


def _encode_items(tag: bytes) -> Callable[[Iterable[Any], bool], bytes]:
    def encode(key: Iterable[Any], inside: bool) -> bytes:
        return tag + b"".join(_nest_all(key, inside))

    return encode


def _encode_set(key: AbstractSet[Any], inside: bool) -> bytes:
    parts = sorted(_nest_all(key, inside))
    _check_distinct(parts, key)
    return b"S" + b"".join(parts)


def _encode_dict(key: dict[Any, Any], inside: bool) -> bytes:
    parts = _nest_all(chain.from_iterable(key.items()), inside)
    _check_distinct(parts[::2], key)
    return b"d" + b"".join(sorted(map(operator.add, parts[::2], parts[1::2])))


def _check_distinct(parts: list[bytes], key: object) -> None:
    if len(set(parts)) != len(parts):  # objects without an == of their own, in the same state
        raise InvalidKey(f"a key of type {type_name(key)} has two members with the same canonical bytes")


def _encode_datetime(key: datetime, inside: bool) -> bytes:
    return key_scalars.encode_datetime(key) or _encode_pickled(key.replace(fold=0), inside)


def _encode_typing(form: Any) -> Callable[[Any, bool], bytes]:
    """For Union and Literal, whose == ignores the order of their arguments."""

    def encode(key: Any, inside: bool) -> bytes:
        arguments = sorted(typing.get_args(key), key=lambda argument: _encode(argument, True))
        return _encode_pickled(operator.getitem(form, tuple(arguments)), inside)

    return encode


# By exact type: keys without keys inside, and the others. Numpy's types are added when the first of each is met.
_LEAVES: dict[type, Callable[[Any], bytes]] = dict(key_scalars.ENCODERS)
_BRANCHES: dict[type, Callable[[Any, bool], bytes]] = {
    tuple: _encode_items(b"t"),
    list: _encode_items(b"l"),
    deque: _encode_items(b"q"),
    array: _encode_items(b"A"),
    set: _encode_set,
    frozenset: _encode_set,
    dict: _encode_dict,
    datetime: _encode_datetime,
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


def _of_items(build: Callable[[Iterator[Any]], object]) -> Callable[[bytes], object]:
    """The decoder of a payload whose nested keys, decoded, are what `build` makes a key of."""

    def decode(payload: bytes) -> object:
        return build(map(_decode, split(payload)[1]))

    return decode


def _build_array(items: Iterator[Any]) -> object:
    members = list(items)
    for code in "qQd" + _CHARACTER:
        try:
            built = array(code, members)
        except (TypeError, ValueError, OverflowError):
            continue
        if built.tolist() == members:
            return built
    raise InvalidKey("an encoded array holds what no array does")


def _decode_set(payload: bytes) -> frozenset[Any]:
    nested, alone = split(payload)
    _check_sorted(nested)
    return frozenset(map(_decode, alone))


def _decode_dict(payload: bytes) -> dict[Any, Any]:
    nested, alone = split(payload)
    _check_sorted(nested[::2])
    return dict(zip(map(_decode, alone[::2]), map(_decode, alone[1::2]), strict=True))


def _check_sorted(parts: list[bytes]) -> None:
    if not all(one < other for one, other in pairwise(parts)):
        raise InvalidKey("an encoded key's members are not in their canonical order")


_BUILDERS: dict[bytes, Callable[[Iterator[Any]], object]] = {
    **key_scalars.BUILDERS,
    **key_numpy.BUILDERS,
    **key_objects.BUILDERS,
    b"t": tuple,
    b"l": list,
    b"q": deque,
    b"A": _build_array,
}

_DECODERS: dict[bytes, Callable[[bytes], object]] = {
    **key_scalars.DECODERS,
    **key_numpy.DECODERS,
    **{tag: _of_items(build) for tag, build in _BUILDERS.items()},
    b"S": _decode_set,
    b"d": _decode_dict,
    b"P": partial(key_objects.decode_pickled, decode=_decode),
}

# Kinds whose decoders take more than their encoders make.
_CHECKED = frozenset(bytes((tag,)) for tag in b"ifrcARhHnayTzMmoXpweFP")
