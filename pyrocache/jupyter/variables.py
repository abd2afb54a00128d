"""The variables of a cell: which ones a run has assigned, how they are stored, and how they are restored.

All of them are stored as one value, so that objects which they share stay shared. Modules are stored by name.
Definitions (see `cell.py`) are not stored: `CellCodec` executes them before it decodes the variables, which may be
instances of the classes that they define.

Thread safety: not thread-safe; for the thread that runs the cell.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any, TypedDict

from pyrocache.client.client import PyroCacheClient
from pyrocache.client.context import ClientContext
from pyrocache.client.pickling import names_in_main
from pyrocache.errors import SerializationError
from pyrocache.jupyter.cell import Cell
from pyrocache.protocol.messages import Pieces
from pyrocache.tracebacks import came_from_outside

_VERSION = 1  # of `Stored`
_HIDDEN = re.compile(r"_+|_i+|_i?\d+|_[ido]h|In|Out|_exit_code|__\w+__")  # IPython's own
_ABSENT = object()


class Stored(TypedDict):
    """What is stored of a cell, of builtin types only, apart from the variables' own.

    Attributes:
        version: of this form.
        variables: by name.
        modules: the names of modules, by the names of the variables.
        deleted: the names of variables that the cell has deleted.
        outputs: what it has displayed, see `outputs.py`.
        cut: whether there was more output.
        seconds: how long it ran.
        at: when it was stored, in seconds since the epoch.
    """

    version: int
    variables: dict[str, Any]
    modules: dict[str, str]
    deleted: list[str]
    outputs: list[dict[str, Any]]
    cut: bool
    seconds: float
    at: float


class Variables:
    """The variables of a notebook, before and after a run of a cell.

    Args:
        shell: IPython's.
        cell: what runs after this object is made.
    """

    def __init__(self, shell: Any, cell: Cell) -> None:
        self._names = shell.user_ns
        self._hidden_ns = shell.user_ns_hidden
        self._cell = cell
        known = {*cell.bound, *cell.defined}
        # Those that the cell replaces are not kept alive by this.
        self._before = {name: None if name in known else value for name, value in self._names.items()}
        self.unnoticed = [name for name in cell.read if self._is_data(name)]
        """The variables that the cell reads: data, and functions and classes of the notebook."""

    def stored(self) -> Stored:
        """Return what the cell has assigned since this object was made, with no output."""
        cell, names = self._cell, self._names
        found: dict[str, Any] = {name: names[name] for name in cell.bound if name in names}
        for name in cell.changed:
            if not isinstance(names.get(name), (ModuleType, PyroCacheClient)) and name in names:
                found[name] = names[name]
        for name in cell.managed:  # a file that is closed by now, for example
            found.pop(name, None)
        stars = [sys.modules.get(module) for module in cell.stars]
        for name, value in list(names.items()):
            if (
                name not in cell.defined
                and name not in cell.managed
                and (name not in self._before or self._before[name] is not value)
                and name not in found
                and not any(getattr(module, name, _ABSENT) is value for module in stars)
            ):
                found[name] = value
        found = {name: value for name, value in found.items() if not self._hidden(name)}
        gone = dict.fromkeys([*cell.deleted, *self._before])
        return {
            "version": _VERSION,
            "variables": {name: value for name, value in found.items() if not _by_name(value)},
            "modules": {name: value.__name__ for name, value in found.items() if _by_name(value)},
            "deleted": [name for name in gone if name not in names and not self._hidden(name)],
            "outputs": [],
            "cut": False,
            "seconds": 0.0,
            "at": 0.0,
        }

    def _hidden(self, name: str) -> bool:
        if _HIDDEN.fullmatch(name):
            return True
        return name in self._hidden_ns and self._hidden_ns[name] is self._names.get(name)

    def _is_data(self, name: str) -> bool:
        value = self._names.get(name, _ABSENT)
        if value is _ABSENT or self._hidden(name) or isinstance(value, (ModuleType, PyroCacheClient)):
            return False
        if callable(value) and hasattr(value, "__name__"):
            return getattr(value, "__module__", None) == "__main__"  # it can be edited in the notebook
        return True


def _by_name(value: object) -> bool:
    return isinstance(value, ModuleType) and sys.modules.get(value.__name__) is value


def restore(shell: Any, stored: Stored) -> None:
    """Set and delete the variables of the notebook as the cell did."""
    modules = {
        name: sys.modules[module] for name, module in stored["modules"].items()
    }  # `CellCodec` imported them
    shell.user_ns.update({**modules, **stored["variables"]})  # in one call, which no interrupt divides
    for name in stored["deleted"]:
        shell.user_ns.pop(name, None)


class CellCodec:
    """The codec of a client, for the values of one cell.

    Refuses to encode variables that another notebook could not decode. Decodes them after the cell's definitions were
    executed.

    Args:
        context: the client's.
        shell: IPython's.
        cell: the cell.
    """

    def __init__(self, context: ClientContext, shell: Any, cell: Cell) -> None:
        self._codec: Any = context.codec
        self._compresses = context.config.compress_above is not None  # which hides the names in a pickle
        self._shell = shell
        self._cell = cell

    def encode(self, key: bytes, value: Stored) -> bytes | Pieces:
        """Return the value frame of a cell. Raises `SerializationError`, which names the variable."""
        try:
            frame: bytes | Pieces = self._codec.encode(key, value)
        except SerializationError as error:
            for name, variable in value["variables"].items():
                try:
                    self._codec.encode(key, variable)
                except SerializationError as cause:
                    reason = str(cause).rstrip(".")
                    raise SerializationError(
                        f"{name} cannot be stored: {reason}. If it is not needed later, end the cell with: del {name}"
                    ) from None
            raise error
        if self._codec.reads_pickles and (self._compresses or _mentions_main(frame)):
            self._check_names(value["variables"])
        return frame

    def _check_names(self, variables: dict[str, Any]) -> None:
        for name, value in variables.items():
            missing = sorted(names_in_main(value) - self._cell.defined)
            if missing:
                of = "is" if missing == [name] else f"needs {missing[0]}, which is"
                raise SerializationError(
                    f"{name} {of} defined in this notebook only. Define {missing[0]} in a module, or at the top level "
                    "of this cell and without using its variables"
                )

    def decode(self, key: bytes, frame: Any) -> Stored:
        """Return what is stored of a cell. Raises `SerializationError` if it cannot be restored in this notebook."""
        try:
            exec(self._cell.definitions, self._shell.user_global_ns, self._shell.user_ns)
        except Exception as error:
            if came_from_outside(error):
                raise
            raise _not_restored("its imports and definitions", error) from None
        value: Any = self._codec.decode(key, frame)
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            raise SerializationError("it was stored by another version of pyrocache")
        for module in value["modules"].values():
            try:
                importlib.import_module(module)
            except Exception as error:
                if came_from_outside(error):
                    raise
                raise _not_restored(f"the import of {module}", error) from None
        return value  # type: ignore[return-value]


def _not_restored(what: str, error: Exception) -> SerializationError:
    # Its text is shown to the user who has written this code.
    return SerializationError(f"{what} failed here with {type(error).__name__}: {error}")


def _mentions_main(frame: bytes | Pieces) -> bool:
    buffers: Iterable[Any] = (frame,) if isinstance(frame, bytes) else frame.buffers
    return any(re.search(b"__(mp_)?main__", buffer) for buffer in buffers)
