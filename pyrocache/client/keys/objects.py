"""Objects as keys: enums and dataclasses by the names of their classes, all others by their pickles.

Encodes and decodes the kinds e, F and D, and encodes kind P. The parts of an object are encoded by functions that the
caller passes in, so nothing here is recursive.

A dataclass made with ``eq=True`` is always keyed by its compared fields, even if its class body also defines
``__eq__``: there is no reliable way to tell a generated ``__eq__`` from a written one.

Encoders raise `InvalidKey` for classes that cannot be imported by name and for objects whose own code raises. They run
the key's own pickling code. Builders import classes, run their code, and may raise anything.

Thread safety: thread-safe; the functions depend on their arguments only, and the one cache only saves work.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from enum import Enum, Flag
from functools import lru_cache
from itertools import chain
from types import FunctionType
from typing import Any

from pyrocache.client.keys.format import nest, own_code_failed, too_large
from pyrocache.client.keys.scalars import encode_int, encode_str
from pyrocache.client.pickling import canonical_pickle
from pyrocache.errors import InvalidKey
from pyrocache.protocol.limits import MAX_KEY_BYTES
from pyrocache.tracebacks import cause_of


def _class_reference(cls: type) -> bytes:
    """Return the module and the qualified name of a class, nested."""
    # A worker that multiprocessing spawned knows its parent's __main__ by another name.
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    if not in_main(cls) and named(sys.modules.get(module), cls.__qualname__) is not cls:
        name = f"{cls.__module__}.{cls.__qualname__}"
        raise InvalidKey(f"{name}, a key's class, cannot be imported by its name")
    return nest(encode_str(module)) + nest(encode_str(cls.__qualname__))


def in_main(thing: Any) -> bool:
    """Return whether a class or function is that of its name in ``__main__``, here or where it was pickled by value.

    In a worker of joblib, ``__main__`` has no classes of the notebook that the worker's objects are of.
    """
    if thing.__module__ not in ("__main__", "__mp_main__") or "<" in thing.__qualname__:
        return False
    main = sys.modules["__main__"]
    found = named(main, thing.__qualname__)
    return found is thing or (found is None and _came_by_value(thing, vars(main)))


def _came_by_value(thing: Any, names: dict[str, Any]) -> bool:
    """Return whether a class or function of ``__main__`` was not made by the ``__main__`` of this process."""
    process = sys.modules.get("multiprocessing.process")  # imported only if the program uses it
    if process is not None and process.current_process().name != "MainProcess":
        return True
    made_of = (thing, *vars(thing).values())
    code = [
        part for part in made_of if isinstance(part, FunctionType) and part.__module__ == thing.__module__
    ]
    return bool(code) and all(part.__globals__ is not names for part in code)


def _import_class(module: str, qualname: str, base: type) -> Any:
    found = named(importlib.import_module(module), qualname)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise AttributeError(f"module {module!r} has no attribute {qualname!r}")
    return found


def named(module: object, qualname: str) -> object:
    """Return what a module has under a qualified name; None if there is nothing."""
    found = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def encode_enum(key: Any) -> bytes:
    """Encode a member of an Enum or Flag that does not inherit from a builtin type, as IntEnum does."""
    if isinstance(key, Flag):
        return b"F" + _class_reference(type(key)) + nest(encode_int(key.value))
    # `_name_`, because a class may define an attribute `name` of its own.
    return b"e" + _class_reference(type(key)) + nest(encode_str(key._name_))


@lru_cache(maxsize=1024)
def compared_fields(cls: type) -> tuple[str, ...] | None:
    """Return the sorted names of the fields that a dataclass's ``==`` compares; None if it has another ``==``."""
    owner = next(base for base in cls.__mro__ if "__eq__" in vars(base))
    params = vars(owner).get("__dataclass_params__")
    if params is None or not params.eq:
        return None
    return tuple(sorted(field.name for field in fields(owner) if field.compare))


def encode_dataclass(key: Any, names: Iterable[str], nest_all: Callable[..., list[bytes]]) -> bytes:
    """Encode an instance of a dataclass; ``names`` are its `compared_fields`."""
    parts = nest_all(chain.from_iterable((name, getattr(key, name)) for name in names))
    return b"D" + _class_reference(type(key)) + b"".join(parts)


def _build_dataclass(module: str, qualname: str, *rest: Any) -> object:
    cls = _import_class(module, qualname, object)
    if tuple(rest[::2]) != compared_fields(cls):
        raise InvalidKey("an encoded key's dataclass has other fields here")
    values = dict(zip(rest[::2], rest[1::2], strict=True))
    # `__init__` may have other parameters, and a frozen dataclass refuses `setattr`.
    key = cls.__new__(cls)
    for field in fields(cls):
        if field.name in values:
            value = values[field.name]
        elif field.default_factory is not MISSING:
            value = field.default_factory()
        else:
            value = None if field.default is MISSING else field.default
        object.__setattr__(key, field.name, value)
    return key


def encode_pickled(
    key: Any, encode_part: Callable[[Any], bytes | None], limit: float = MAX_KEY_BYTES, shared: bool = False
) -> bytes:
    """Pickle a key, each part replaced by the result of ``encode_part``; where that is None, the part is pickled.

    Raises `KeyTooLarge` for more than ``limit`` bytes. With ``shared``, the bytes depend on which parts are the same
    object, and the key may contain itself.
    """

    def persistent_id(part: Any) -> bytes | None:
        if part is key:
            return None
        return encode_part("__main__" if type(part) is str and part == "__mp_main__" else part)

    file = _Bounded(limit)
    try:
        canonical_pickle(key, persistent_id, file, shared)
    except (InvalidKey, RecursionError):
        raise
    except Exception as error:
        raise own_code_failed(key, error) from cause_of(error)
    return file.getvalue()


class _Bounded(io.BytesIO):
    """A buffer that raises `KeyTooLarge` early: shared objects or one large array can make any number of bytes."""

    def __init__(self, limit: float) -> None:
        super().__init__(b"P")
        self.seek(1)  # behind the type byte
        self._limit = limit

    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > self._limit:
            raise too_large(data)
        return super().write(data)


BUILDERS: dict[bytes, Callable[..., object]] = {
    b"e": lambda module, qualname, name: _import_class(module, qualname, Enum)[name],
    b"F": lambda module, qualname, value: _import_class(module, qualname, Flag)(value),
    b"D": _build_dataclass,
}
"""By type byte: the function that makes a key from the decoded keys of a payload."""
