"""Objects as keys: enums and dataclasses by the names of their classes, all others pickled.

It owns the kinds e, F, D and P on both ways: when a dataclass is compared by its fields, how a class is named, what
of an object its ``==`` does not see, and the check that a pickled key is stable. The parts of an object are
encoded and decoded by what the caller hands in; nothing here recurses.

Encoders refuse, as `InvalidKey`, classes that cannot be imported by name, objects whose own code raises, and those that
do not come back as they were; as `KeyTooLarge`, objects with too many parts. Builders and `decode_pickled` import
classes, run their code, and may raise anything.

Threading: functions of their arguments alone, safe from any thread; one cache here only saves work. They run the key's
own ``==`` and pickling code.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields
from datetime import UTC, datetime
from enum import Enum, Flag
from functools import lru_cache
from itertools import chain
from typing import Any

from pyrocache.client.codec import canonical_pickle, canonical_unpickle, type_name
from pyrocache.client.keys.equality import truth
from pyrocache.client.keys.format import nest, own_code_failed, too_large
from pyrocache.client.keys.scalars import encode_int, encode_str
from pyrocache.errors import InvalidKey
from pyrocache.protocol.limits import MAX_KEY_BYTES

__all__ = [
    "BUILDERS",
    "class_reference",
    "compared_fields",
    "decode_pickled",
    "encode_enum",
    "encode_pickled",
    "field_items",
    "settled",
]


# Classes that are kept by name.


def class_reference(cls: type) -> bytes:
    """The module and the qualified name of a class, nested."""
    # A worker that multiprocessing spawned knows its parent's __main__ by another name.
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    if _named(sys.modules.get(module), cls.__qualname__) is not cls:
        raise InvalidKey(
            f"{cls.__module__}.{cls.__qualname__}, a key's class, cannot be imported by its name"
        )
    return nest(encode_str(module)) + nest(encode_str(cls.__qualname__))


def _import_class(module: str, qualname: str, base: type) -> Any:
    found = _named(importlib.import_module(module), qualname)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ImportError("no such class")
    return found


def _named(module: object, qualname: str) -> object:
    found = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def encode_enum(key: Any) -> bytes:
    """A member of an Enum or Flag that is no builtin, see `pyrocache.client.keys.equality`."""
    if isinstance(key, Flag):
        return b"F" + class_reference(type(key)) + nest(encode_int(int(key.value)))
    return b"e" + class_reference(type(key)) + nest(encode_str(key._name_))


def _build_enum(items: Iterator[Any]) -> object:
    module, qualname, name = items
    return _import_class(module, qualname, Enum)[name]


def _build_flag(items: Iterator[Any]) -> object:
    module, qualname, value = items
    return _import_class(module, qualname, Flag)(value)


@lru_cache(maxsize=1024)
def compared_fields(cls: type) -> tuple[str, ...] | None:
    """The sorted names of the fields that a dataclass's generated == compares; None if it has another ==."""
    owner = next(base for base in cls.__mro__ if "__eq__" in vars(base))
    code = getattr(vars(owner)["__eq__"], "__code__", None)
    # Generated code comes from no file; an == that was written comes from one.
    if "__dataclass_fields__" not in vars(owner) or code is None or code.co_filename != "<string>":
        return None
    return tuple(sorted(field.name for field in fields(owner) if field.compare))


def field_items(key: Any, names: tuple[str, ...]) -> Iterator[Any]:
    """The name and the value of each of these fields, in turn."""
    return chain.from_iterable((name, getattr(key, name)) for name in names)


def _build_dataclass(items: Iterator[Any]) -> object:
    module, qualname, *rest = items
    cls = _import_class(module, qualname, object)
    if tuple(rest[::2]) != compared_fields(cls):
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


# Everything else: pickle, with every part of a known kind in its canonical form.


def settled(key: Any) -> Any:
    """The key without the part of its state that its == does not see, where that is known; else the key."""
    if isinstance(key, datetime) and key.tzinfo is not None:  # a pandas.Timestamp with nanoseconds
        return key if key.tzinfo is UTC else key.astimezone(UTC)
    if hasattr(type(key), "__pydantic_fields_set__") and key.__pydantic_fields_set__:
        key = copy.copy(key)
        object.__setattr__(key, "__pydantic_fields_set__", set())
    return key


def encode_pickled(
    key: Any, encode_part: Callable[[Any, bool], bytes | None], decode: Callable[[bytes], object] | None
) -> bytes:
    """The key pickled, its parts replaced by what `encode_part` makes of them.

    Args:
        key: the object.
        encode_part: called with each part and True; None lets pickle go on into the part.
        decode: the way back, for checking that it leads to an equal key; None to leave that to the caller.
    """
    room = MAX_KEY_BYTES

    def persistent_id(part: Any) -> bytes | None:
        nonlocal room
        if part is key:
            return None
        if type(part) is str and part == "__mp_main__":  # as in class_reference
            part = "__main__"
        encoded = encode_part(part, True)
        room -= len(encoded or b"")
        if room < 0:  # every object's pickle has such parts, so shared objects cannot blow up either
            raise too_large(key)
        return encoded

    try:
        encoded = b"P" + canonical_pickle(key, persistent_id)
        if decode is not None:
            _verify(key, encoded, decode)
    except (InvalidKey, RecursionError):
        raise
    except Exception as error:
        raise own_code_failed(key, error) from error
    return encoded


def _verify(key: Any, encoded: bytes, decode: Callable[[bytes], object]) -> None:
    cls: Any = type(key)
    try:
        twin: Any = decode(encoded)
    except InvalidKey as error:
        raise InvalidKey(f"a key of type {type_name(key)} does not pickle the same way twice") from error
    if cls.__eq__ is not object.__eq__ and truth(twin == key) is False:
        raise InvalidKey(f"a key of type {type_name(key)} does not equal its own copy")


def decode_pickled(payload: bytes, decode: Callable[[bytes], object]) -> object:
    """The way back from `encode_pickled`, with `decode` for the parts."""

    def persistent_load(encoded: object) -> object:
        if not isinstance(encoded, bytes):
            raise InvalidKey("an encoded key's part is not of bytes")
        return decode(encoded)

    return canonical_unpickle(payload, persistent_load)


BUILDERS: dict[bytes, Callable[[Iterator[Any]], object]] = {
    b"e": _build_enum,
    b"F": _build_flag,
    b"D": _build_dataclass,
}
"""By tag: the key made of a payload's nested ones."""
