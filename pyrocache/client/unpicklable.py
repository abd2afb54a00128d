"""Why a value does not pickle: which part of it, where that is, and the reason, without its content.

Used after a failure only. Looks at the parts of containers, and at the attributes of objects. Names
attributes, and of the keys of a dict ints and short identifiers.

Thread safety: thread-safe; the functions depend on their arguments only. They read the attributes of the value.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from types import BuiltinMethodType, MethodType, ModuleType
from typing import Any

from pyrocache.tracebacks import came_from_outside

_MOST_PARTS, _MOST_OF_ONE = 50_000, 10_000  # that are looked at, in all and of one object
_LONGEST_PATH = 8  # steps that are named
_LONGEST_NAME = 32
_CLASS = ".__class__"
_PLAIN = r"cannot pickle '?[\w.]+'? object"  # pickle's own words, with the name of a type


def type_name(value: object) -> str:
    """Return the qualified name of a value's type. Errors never show more of a value than this."""
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def why(value: object, part: object, error: Exception) -> str:
    """Return a sentence that says why a value does not pickle.

    Args:
        part: the object in it at which pickling ended.
        error: what pickling raised.
    """
    text = f"a value of type {type_name(value)} does not pickle: "
    if part is not value and part is not type(value):
        place = path_to(value, part)
        if place is None:
            text += f"a part of type {type_name(part)}: "
        elif place.endswith(_CLASS):
            text += f"its {place.removesuffix(_CLASS)}: "
        else:
            text += f"its {place} is of type {type_name(part)}: "
    return text + _reason(part, error)


def _reason(part: Any, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if error.__traceback__ is not None and re.fullmatch(_PLAIN, str(error)):
        return str(error)
    name = getattr(part, "__qualname__", None) if callable(part) else None
    if type(name) is str and type(error).__name__ in ("PicklingError", "AttributeError"):
        if _found(part.__module__, name) not in (None, part):
            return f"{part.__module__}.{name} was defined again: create the object anew"
        return f"{part.__module__}.{name} cannot be imported by its name"
    return f"pickling it raised {type_name(error)}"


def _found(module: str, qualname: str) -> Any:
    """Return what a class or function is pickled as, by its name; None if there is nothing."""
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def path_to(value: object, part: object) -> str | None:
    """Return where a part of a value is, like ``['rows'][3].lock``; None if it is not found."""
    waiting: deque[tuple[object, tuple[str, ...]]] = deque([(value, ())])
    seen = {id(value)}
    kept: list[object] = []  # an attribute may be made anew; its id must not be used again
    while waiting and len(seen) < _MOST_PARTS:
        found, path = waiting.popleft()
        try:
            for step, inner in islice(_parts(found), _MOST_OF_ONE):
                if inner is part:
                    return _text((*path, step))
                if id(inner) not in seen:
                    seen.add(id(inner))
                    kept.append(inner)
                    waiting.append((inner, (*path, step)))
        except Exception as error:  # the object's own code may raise anything
            if came_from_outside(error):
                raise
    return None


def _text(path: tuple[str, ...]) -> str:
    return "".join(path if len(path) <= _LONGEST_PATH else (*path[: _LONGEST_PATH - 1], "...", path[-1]))


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    """Yield the objects that a value refers to and pickle descends into, and the steps to them."""
    if not isinstance(value, (str, bytes, bytearray, int, float, complex, type, ModuleType)):
        yield from _items(value)
        yield from _attributes(value)
        yield _CLASS, type(value)


def _items(value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield _index(key), inner
        for key in value:
            yield ".keys()", key
    elif isinstance(value, (list, tuple, deque)):
        for index, inner in enumerate(value):
            yield f"[{index}]", inner
    elif isinstance(value, (set, frozenset)):
        for inner in value:
            yield "[...]", inner
    elif isinstance(value, (MethodType, BuiltinMethodType)):
        yield ".__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))


def _attributes(value: Any) -> Iterator[tuple[str, object]]:
    for name, inner in vars(value).items() if hasattr(value, "__dict__") else ():
        yield f".{name}", inner
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _index(key: object) -> str:
    if type(key) is int or (type(key) is str and key.isidentifier() and len(key) <= _LONGEST_NAME):
        return f"[{key!r}]"
    return "[...]"
