"""Numpy scalars as keys: each is encoded as the Python object of the same value.

Numpy is never imported: a key of a numpy type exists only in a process that has loaded numpy already. Times and arrays
are pickled, as any other object. Raises `InvalidKey` for NaN, for NaT, and for a longdouble with more digits than a
float holds.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from pyrocache.client.keys.scalars import encode_bytes, encode_complex, encode_float, encode_int, encode_str
from pyrocache.client.unpicklable import type_name
from pyrocache.errors import InvalidKey


def encoder_of(cls: type, encode_pickled: Callable[[Any], bytes]) -> Callable[[Any], bytes] | None:
    """Return the encoder for keys of a numpy class; None if it is not a supported scalar type."""
    np: Any = sys.modules["numpy"]
    kinds: list[tuple[Any, Callable[[Any], bytes]]] = [
        # timedelta64 comes first because it inherits from integer
        ((np.datetime64, np.timedelta64), lambda key: encode_pickled(_not_nat(key))),
        ((np.bool_, np.integer), lambda key: encode_int(int(key))),
        (np.floating, lambda key: encode_float(_exact(float, key))),
        (np.complexfloating, lambda key: encode_complex(_exact(complex, key))),
        (np.str_, encode_str),
        (np.bytes_, encode_bytes),
    ]
    return next((encoder for kind, encoder in kinds if issubclass(cls, kind)), None)


def _not_nat(key: Any) -> Any:
    if key != key:
        raise InvalidKey("NaT cannot be a key or in a key: it does not equal itself")
    return key


def _exact(convert: Callable[[Any], Any], key: Any) -> Any:
    converted = convert(key)
    if converted != key and key == key:
        raise InvalidKey(f"a key of type {type_name(key)} has more digits than a float holds")
    return converted
