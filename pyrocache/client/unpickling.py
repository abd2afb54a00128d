"""Pickles to values: without restriction, with checked classes only, with out-of-band buffers; and pickles of keys.

This is the only module that unpickles. Unpickling runs code that the writer of the pickle chose, so callers decide
first whether to trust it: by a signature (``signing.py``), or by the classes that `load_checked` lets it refer to.

Raises `SerializationError` for pickles that do not load here, and `CorruptValue` for frames that are no such frames.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections.abc import Callable, Iterable
from enum import Enum
from pickle import loads
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, ClassVar

from pyrocache.client.pickling import ALIGNMENT, OUT_OF_BAND_HEAD
from pyrocache.client.unpicklable import type_name
from pyrocache.errors import CorruptValue, SerializationError
from pyrocache.tracebacks import came_from_outside, cause_of

__all__ = [
    "ALWAYS_ALLOWED",
    "canonical_unpickle",
    "load_checked",
    "load_out_of_band",
    "loads",
    "missing_class",
    "missing_name",
    "not_allowed",
    "unpicklable",
]

_ANYTHING = frozenset(
    [f"builtins.{name}" for name in ("__import__", "compile", "eval", "exec", "getattr", "open", "setattr")]
    + ["code", "ctypes", "importlib", "nt", "os", "posix", "pty", "runpy", "shutil", "subprocess", "sys"]
)
"""Functions, and modules with such, by which a pickle could do anything."""

ALWAYS_ALLOWED = frozenset(
    f"builtins.{name}" for name in ("complex", "range", "slice", "Ellipsis", "NotImplemented")
)
"""What pickles of builtin containers and scalars refer to. Nothing else that allocates or runs as its arguments say."""

_NO_ATTRIBUTE = (  # compiled at first use
    r"Can't get attribute '(?P<name>[\w.]+)' on <module '(?P<module>[\w.]+)'"
    r"|module '(?P<module_2>[\w.]+)' has no attribute '(?P<name_2>[\w.]+)'"
)


def not_allowed(module: str, full: str) -> SerializationError:
    """Return the error for a pickle that refers to a class or function, ``full``, which is not allowed."""
    dangerous = full in _ANYTHING or module.partition(".")[0] in _ANYTHING
    advice = "It can run any code: never add it" if dangerous else "Add it if you trust it"
    return SerializationError(f"{full} was not loaded: it is not in this client's allowed_classes. {advice}.")


def load_checked(
    frame: Any, check: Callable[[str, str], object], buffers: Iterable[Any] | None = None
) -> object:
    """Load a pickle. ``check`` is called with the module and the name of each class first, and may raise."""
    unpickler = _CheckedUnpickler(io.BytesIO(frame), check, buffers)
    try:
        return unpickler.load()
    except SerializationError:
        raise
    except Exception as error:
        raise unpicklable(error, lambda: unpickler.asked) from cause_of(error)


def load_out_of_band(frame: bytes | memoryview, load: Callable[..., object] | None = None) -> object:
    """Return the value in a frame with out-of-band buffers. ``load`` loads its pickle; None: without restriction."""
    view = memoryview(frame)
    try:
        _, count, length = OUT_OF_BAND_HEAD.unpack_from(view)
        sizes = struct.unpack_from(f"<{count}Q", view, OUT_OF_BAND_HEAD.size)
    except struct.error:
        raise CorruptValue("a stored value with buffers has no whole head") from None
    start = OUT_OF_BAND_HEAD.size + 8 * count
    end = start + length
    data = view[start:end]
    buffers: list[memoryview | bytearray] = []
    for size in sizes:
        start = end + -end % ALIGNMENT
        end = start + size
        # The stored array was writable, so the decoded one must be.
        buffers.append(bytearray(view[start:end]) if view.readonly else view[start:end])
    if end != len(view):
        raise CorruptValue("a stored value with buffers is not as long as it says")
    if load is not None:
        return load(data, buffers)
    try:
        return loads(data, buffers=buffers)
    except Exception as error:
        raise unpicklable(error, lambda: missing_class(data, buffers)) from cause_of(error)


def canonical_unpickle(
    data: bytes,
    persistent_load: Callable[[Any], object],
    check_class: Callable[[str, str], object] = lambda module, name: None,
) -> object:
    """Load a pickle of `canonical_pickle`. Raises whatever unpickling raises, also for trailing bytes.

    ``check_class`` is called with the module and the name of each class before it is imported, and may raise.
    """
    file = io.BytesIO(data)
    loaded: object = _CanonicalUnpickler(file, persistent_load, check_class).load()
    if file.read(1):
        raise pickle.UnpicklingError("bytes left over after a pickle")
    return loaded


_SHARED = type, FunctionType, BuiltinFunctionType, ModuleType, Enum
"""The types of what the whole process shares under a name."""


class _CheckedUnpickler(pickle._Unpickler):
    """Loads pickles that refer to checked classes and functions only, and change none of these.

    It is the unpickler in Python: that in C would let a pickle set attributes of a class, by the instruction that sets
    the attributes of an object.
    """

    def __init__(
        self, file: io.BytesIO, check: Callable[[str, str], object], buffers: Iterable[Any] | None = None
    ) -> None:
        super().__init__(file, buffers=buffers)
        self.asked = ""  # the name that was looked up last
        self._check = check

    def find_class(self, module: str, name: str) -> Any:
        self.asked = f"{module}.{name}"
        self._check(module, name)
        return super().find_class(module, name)

    def _load_build(self: Any) -> None:
        target = self.stack[-2] if len(self.stack) > 1 else None
        if isinstance(target, _SHARED):
            raise pickle.UnpicklingError("a pickle sets attributes of a class")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    def _load_bytearray(self: Any) -> None:
        # Python's own takes the memory that a pickle claims to need before it looks for so many bytes.
        size = int.from_bytes(self.read(8), "little")
        data = self.read(size)
        if len(data) != size:
            raise pickle.UnpicklingError("a pickle ends within a bytearray")
        self.append(bytearray(data))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {  # by instruction
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.BUILD[0]: _load_build,
    }


class _CanonicalUnpickler(_CheckedUnpickler):
    def __init__(
        self, file: io.BytesIO, persistent_load: Callable[[Any], object], check: Callable[[str, str], object]
    ) -> None:
        super().__init__(file, check)
        self._persistent_load = persistent_load

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent_load(pid)


def missing_class(frame: Any, buffers: Iterable[Any] | None) -> str:
    """Return the name that a pickle, which has just failed to load without restriction, looked up last."""
    unpickler = _CheckedUnpickler(io.BytesIO(frame), lambda module, name: None, buffers)
    try:
        unpickler.load()
    except Exception as error:
        if came_from_outside(error):
            raise
    return unpickler.asked


def missing_name(error: ImportError | AttributeError) -> str:
    """Return which module or class an unpickler did not find; the type of the error if that is not known."""
    # Other texts are those of the value's own code, and may have its content in them.
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"there is no module {error.name}"
    found = re.match(_NO_ATTRIBUTE, str(error))
    if found is None:
        return type_name(error)
    module, name = found["module"] or found["module_2"], found["name"] or found["name_2"]
    # Started with ``-m``, the main module has a longer name.
    in_main = module.rpartition(".")[2] == "__main__"
    hint = "; define it in a module that each process can import" if in_main else ""
    return f"there is no class {module}.{name}{hint}"


def unpicklable(error: Exception, asked: Callable[[], str] = str) -> SerializationError:
    """Return the error to raise. ``asked`` returns the name that the pickle looked up last."""
    if isinstance(error, (ImportError, AttributeError)):
        name = asked()
        what = f"a stored value's class {name}" if name else "a stored value's class"
        return SerializationError(
            f"{what} cannot be imported here ({missing_name(error)}). Store the value again, or read it where there is "
            "such a class"
        )
    # Broken pickles and the value's own code may raise anything.
    return SerializationError(f"a stored value does not unpickle ({type_name(error)})")
