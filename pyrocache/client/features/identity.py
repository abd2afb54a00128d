"""The identity of a memoized function: a string that is the same in every process until the code changes.

It consists of the module, the qualified name, and a digest of what the function does: its bytecode with all constants
and names, nested functions and classes included, the names and defaults of its parameters, and the variables of
enclosing functions that it refers to (closure cells). File, lines and docstring are left out, sources are not read.
Another version of Python has other bytecode.

`code_identity` and `content_identity` do the same for the code of a notebook's cell, and for the variables that it
depends on.

A function in a closure cell is identified in the same way, a `functools.partial` by its function and arguments, a bound
method by its function and object, a module by its name, and any other value by its type and its content, as an argument
is. The cell ``__class__`` is the name of the class, or what the class is made of if its module does not have it under
this name. A function or class that was met before is a reference to it, so they may refer to each other. What a name of
the module refers to is not looked at.

Reading cells runs the pickling code of their values.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from types import (
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

from pyrocache.client.keys import objects
from pyrocache.client.keys.content import ContentEncoding
from pyrocache.client.keys.digests import digest
from pyrocache.client.unpicklable import type_name
from pyrocache.errors import InvalidKey

_OF_ANY_CLASS = frozenset(
    {
        "__annotate__",
        "__annotate_func__",
        "__annotations__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__qualname__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)
"""Attributes that do not say what a class does."""

_KINDS = 0x2AC  # the bits of co_flags for *args, **kwargs, generators and coroutines


def name_of(function: Callable[..., Any]) -> str:
    """Return the qualified name of a function, or of the function of a `functools.partial`."""
    return innermost(function).__qualname__  # type: ignore[no-any-return]


def module_of(function: Callable[..., Any]) -> str:
    """Return the name of the module of a function, or of the function of a `functools.partial`."""
    return str(getattr(innermost(function), "__module__", None) or "builtins")  # such as str.upper


def innermost(function: Any) -> Any:
    """Return the function of a `functools.partial`, or of one of those; any other object itself."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def identity(function: Callable[..., Any], cells: bool = True) -> str:
    """Return the identity of a function.

    Args:
        cells: whether to refuse cells that cannot be part of a key. Otherwise they are left out.

    Raises:
        InvalidKey: a cell cannot be part of a key.
    """
    try:
        with _Identities(cells) as identities:
            found = identities.encode(function)
    except _BadCell as error:
        raise InvalidKey(str(error)) from None
    except RecursionError:
        raise InvalidKey(
            f"The variables around {name_of(function)} are nested too deeply. {_ADVICE}"
        ) from None
    return f"{_module(module_of(function))}.{name_of(function)}:{digest((found,)).hex()}"


_ADVICE = "Say with key=... what identifies a call, or give the function a name of its own with name=...."


def code_identity(codes: Iterable[CodeType]) -> str:
    """Return a digest of what pieces of code do, one after the other: the same in every process of this Python."""
    with ContentEncoding() as encoding:
        return digest((encoding.encode_whole((sys.version_info[:2], *map(_code, codes))),)).hex()


def content_identity(value: object) -> str:
    """Return a digest of an object: of a function or class by what it does, of any other object by its content.

    A class is identified by what it does if it is of ``__main__``, otherwise by its name. Equal numbers of different
    types have different digests, also in lists, tuples, sets and dicts, and so have equal dicts in another order.

    Raises:
        InvalidKey: the object cannot be part of a key.
    """
    with _Identities(cells=True, outermost=False) as identities:
        try:
            if isinstance(value, type) and objects.in_main(value):
                return digest((identities.members_of(value),)).hex()
            return digest((identities.encode_whole(value), *_kinds(value))).hex()
        except _BadCell as error:
            raise InvalidKey(error.reason) from None
        except RecursionError:
            raise InvalidKey(f"an object of type {type_name(value)} is nested too deeply") from None


def _kinds(value: Any) -> Iterator[bytes]:
    """Yield the types of an object and of what builtin containers in it contain, in their order."""
    pending, met = [value], set()
    while pending:
        one = pending.pop()
        kind, name = type(one), type_name(one)
        if kind in (float, complex) and not one:
            name += repr(one)  # 0.0 and -0.0 are equal
        yield name.encode()
        if kind not in (list, tuple, dict, set, frozenset) or id(one) in met:
            continue
        met.add(id(one))  # it may contain itself, or be there many times
        yield str(len(one)).encode()
        if kind is dict:
            yield from (
                repr(key).encode("utf-8", "replace") for key in one if type(key) in _SCALARS
            )  # their order
            pending += [part for item in one.items() for part in item]
        elif kind in (list, tuple):
            pending += one
        else:
            yield from sorted(type_name(each).encode() for each in one)


_SCALARS = (str, bytes, int, float, bool, type(None))


class _BadCell(InvalidKey):
    """A part of a function or class cannot be part of a key.

    Attributes:
        reason: which part, and why.
    """

    def __init__(self, part: str, cause: str) -> None:
        self.reason = f"{part} cannot be part of a key: {cause}"
        super().__init__(
            f"{part}, which is part of the identity of a memoized function, cannot be part of a key: {cause}. {_ADVICE}"
        )


class _Identities(ContentEncoding):
    """Encodes functions by what they do, and other objects by their content.

    Args:
        cells: whether to refuse parts of functions that cannot be part of a key. Otherwise they are left out.
        outermost: whether the defaults of the first function that is met may be left out.
    """

    def __init__(self, cells: bool, outermost: bool = True) -> None:
        super().__init__()
        self._cells = cells
        self._outermost = outermost
        self._met: dict[int, int] = {}  # the functions that were met, by id: their numbers

    def encode_other(self, key: Any) -> bytes:
        if isinstance(key, FunctionType):
            return self._function(key)
        if hasattr(type(key), "__pyrocache_identity__"):  # a memoized function
            return self.compose("memoized", *key.__pyrocache_identity__())
        if isinstance(key, functools.partial):
            return self.compose("partial", key.func, key.args, key.keywords)
        if isinstance(key, MethodType):
            return self.compose("method", key.__func__, key.__self__)
        if isinstance(key, ModuleType):
            return self.compose("module", _module(key.__name__))
        if isinstance(key, functools._lru_cache_wrapper):
            return self.compose("lru_cache", key.__wrapped__)
        return super().encode_other(key)

    def _function(self, function: FunctionType) -> bytes:
        met = self._met.get(id(function))
        if met is not None:
            return self.compose("again", met)
        number = self._met[id(function)] = len(self._met)
        outermost = self._outermost and not number
        defaults = self._value(function.__defaults__, "the defaults", function, outermost=outermost)
        named = self._value(function.__kwdefaults__, "the defaults", function, outermost=outermost)
        names = function.__code__.co_freevars
        cells = tuple(map(self._cell, names, function.__closure__ or (), [function] * len(names)))
        name = _module(function.__module__), function.__qualname__
        return self.compose("function", number, *name, _code(function.__code__), defaults, named, cells)

    def _cell(self, name: str, cell: Any, function: FunctionType) -> bytes:
        try:
            value = cell.cell_contents
        except ValueError:
            return b"unfilled"
        if name == "__class__" and isinstance(value, type):
            return self._class(value, function)
        # With its type: 1, 1.0 and True are equal, and so are 0.0 and -0.0.
        kind = type_name(value), repr(value) if type(value) in (float, complex) else ""
        return self.compose(*kind, self._value(value, f"the variable {name!r}", function))

    def _class(self, cls: type, function: FunctionType | type) -> bytes:
        """Return the bytes of a class: its name, or what it is made of if no module has it under its name."""
        name = _module(cls.__module__), cls.__qualname__
        if objects.named(sys.modules.get(cls.__module__), cls.__qualname__) is cls:
            return self.encode(name)
        return self.members_of(cls, function)

    def members_of(self, cls: type, function: FunctionType | type | None = None) -> bytes:
        """Return the bytes of what a class is made of. ``function``: what refers to it, for errors."""
        met = self._met.get(id(cls))
        if met is not None:
            return self.compose("again", met)
        number = self._met[id(cls)] = len(self._met)
        name, function = (_module(cls.__module__), cls.__qualname__), function or cls
        bases = tuple([self._class(base, function) for base in cls.__bases__])
        members = tuple(
            [
                (member, self._member(member, value, function))
                for member, value in sorted(vars(cls).items())
                if member not in _OF_ANY_CLASS
            ]
        )
        return self.compose("class", number, *name, bases, members)

    def _member(self, name: str, value: Any, function: FunctionType | type) -> bytes:
        if isinstance(value, (MemberDescriptorType, GetSetDescriptorType)):
            return b"slot"
        if isinstance(value, property):
            value = value.fget, value.fset, value.fdel
        elif isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        elif isinstance(value, functools.cached_property):
            value = value.func
        return self._value(value, f"the attribute {name!r} of the class", function)

    def _value(
        self, value: object, what: str, function: FunctionType | type, outermost: bool = False
    ) -> bytes:
        try:
            try:
                return self.encode(value)
            except RecursionError:
                return self.encode_shared(value)
        except _BadCell:
            raise
        except InvalidKey as error:
            # The defaults of the memoized function itself are arguments.
            if outermost or not self._cells:
                return b"left out"
            cause = str(error).rstrip(".")
            raise _BadCell(f"{what[0].upper()}{what[1:]} of {function.__qualname__}", cause) from None


def _module(name: str | None) -> str:
    # A child of multiprocessing knows the script of its parent as __mp_main__.
    return "__main__" if name == "__mp_main__" else str(name)


def _code(code: CodeType) -> tuple[object, ...]:
    """Return what a code object does, as an object that is the same in every process."""
    arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    instructions = [
        (instruction.opname, _operand(instruction))
        for instruction in dis.get_instructions(code)
        if instruction.opname != "EXTENDED_ARG"
    ]
    variables = code.co_varnames, code.co_cellvars, code.co_freevars
    flags = code.co_flags & _KINDS
    return code.co_name, arguments, flags, *variables, instructions, code.co_exceptiontable


def _operand(instruction: dis.Instruction) -> object:
    value = instruction.argval
    if instruction.opcode in dis.hasconst:  # not by its index, which depends on the docstring
        return _constant(value)
    named = (
        all(isinstance(name, str) for name in value)
        if isinstance(value, tuple)
        else isinstance(value, (str, int))
    )
    return value if named else instruction.arg


def _constant(value: Any) -> object:
    """Return a constant with its type: 1, 1.0 and True are equal."""
    if isinstance(value, CodeType):
        return "code", _code(value)
    if isinstance(value, tuple):
        return "tuple", tuple(map(_constant, value))
    if isinstance(value, frozenset):
        return "frozenset", frozenset(map(_constant, value))
    return type_name(value), repr(value)  # 0.0 and -0.0 are equal, too
