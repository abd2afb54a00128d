"""Which builtin object is the same dict key as an object of another class.

It owns the rule that a subclass which inherits its builtin's ``==`` (IntEnum, named tuple), and any object that equals
a builtin and hashes like it (OrderedDict, numpy.str_), is that builtin as a key.

It refuses, as `InvalidKey`, what equals a builtin but hashes differently, since it would be two keys at once, and
what raises when it is compared.

Threading: a function of its argument alone, safe from any thread. It runs the key's own ``==`` and ``hash``.
"""

from __future__ import annotations

import collections
import numbers
from array import array
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

from pyrocache.client.codec import type_name
from pyrocache.client.keys.format import own_code_failed
from pyrocache.errors import InvalidKey

__all__ = ["plain_form", "truth"]

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


def plain_form(key: Any) -> object:
    """The builtin object that is the same dict key as `key`, whose class is no builtin; `key` if there is none."""
    cls: Any = type(key)
    base: Any = next((base for base in cls.__mro__ if base in _PLAIN), None)
    if base is not None and cls.__eq__ is base.__eq__:
        return _PLAIN[base](key)
    if issubclass(cls, Enum):
        return key
    build = _PLAIN.get(base) or next((build for kind, build in _LOOKALIKES if issubclass(cls, kind)), None)
    if build is None:
        return key
    try:
        plain = build(key)
    except RecursionError:
        raise
    except Exception:
        return key
    return plain if _same_dict_key(key, plain) else key


def _same_dict_key(key: Any, plain: Any) -> bool:
    try:
        if truth(key == plain) is not True:
            return False
    except Exception as error:
        raise own_code_failed(key, error) from error
    try:
        hashes = hash(key), hash(plain)
    except TypeError:  # unhashable
        return True
    if hashes[0] != hashes[1]:  # a str that ignores case equals one str, but also others
        raise InvalidKey(f"a key of type {type_name(key)} equals a {type_name(plain)} but hashes differently")
    return True


def truth(compared: object) -> bool | None:
    """What an == gave, if it is a bool, Python's or numpy's."""
    return bool(compared) if type(compared).__name__ in ("bool", "bool_") else None
