"""`PyroCacheClient.memoize`: a function whose results are kept in the cache, each loaded once wherever it is needed.

A result's key is made of the function's identity and its arguments, as its signature binds them: so neither the order
of keywords nor leaving out a default makes another key. A function is identified by its module and qualified name; in
``__main__``, where names are used again (a notebook's cells, scripts with functions of the same name), by its source
too.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeAlias, TypeVar, overload

from pyrocache.client.context import ClientContext
from pyrocache.client.features import load_once as loading
from pyrocache.client.features import load_once_async as coroutines
from pyrocache.client.features.load_once import IF_MISSING, IN_ANY_CASE, Terms
from pyrocache.client.keys.encoding import encode_key
from pyrocache.errors import InvalidKey, NodeUnavailable

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_R = TypeVar("_R")
_S = TypeVar("_S")

_MARK = "pyrocache.memoize"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Tags: TypeAlias = Iterable[str] | Callable[..., Iterable[str]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `memoize` was called with.

    Attributes:
        core: of the client.
        terms: how results are loaded and kept.
        key: makes what stands for the arguments, of the arguments.
        ignore: names of arguments that do not matter.
        cache_if: whether a result is to be kept.
        typed: whether arguments that are equal but of different types make different keys.
        tags: of the results, or what makes them of the arguments.
    """

    core: ClientContext
    terms: Terms
    key: Callable[..., object] | None = None
    ignore: frozenset[str] = frozenset()
    cache_if: Callable[[Any], object] | None = None
    typed: bool = False
    tags: Tags = None

    def __post_init__(self) -> None:
        for name, function in (("key", self.key), ("cache_if", self.cache_if)):
            if function is not None and not callable(function):
                raise TypeError(f"memoize's {name} is a function, not {type(function).__name__}.")
        if self.key is not None and self.ignore:
            raise ValueError("memoize takes a key or names to ignore, not both: key says what matters.")
        if not callable(self.tags):
            self.core.encode_tags(self.tags)  # raises now what every call would


class _Plan:
    """How the calls of one function become keys."""

    def __init__(self, function: Callable[..., Any], settings: Settings) -> None:
        self.function = function
        self.settings = settings
        self.identity = identity(function)
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        unknown = sorted(settings.ignore - parameters.keys())
        if unknown and not takes_any:
            raise ValueError(f"memoize is to ignore {unknown[0]!r}, which is no argument of {self.name}.")
        plain = all(parameter.kind in _POSITIONAL for parameter in parameters.values())
        self._simple = plain and not settings.ignore and not settings.typed
        self._defaults = tuple(parameter.default for parameter in parameters.values())
        self._required = self._defaults.count(inspect.Parameter.empty)

    @property
    def name(self) -> str:
        """What the function is called."""
        return self.function.__qualname__

    def key(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """The key of a call, for `PyroCacheClient.get` and the others."""
        if self.settings.key is not None:
            arguments, named = self._in_full(arguments, named)
            return (_MARK, self.identity, (self.settings.key(*arguments, **named),))
        if self._simple and not named and self._required <= len(arguments) <= len(self._defaults):
            values = (*arguments, *self._defaults[len(arguments) :])  # what binding comes to, but faster
            return (_MARK, self.identity, values)
        return self._bound_key(arguments, named)

    def encoded(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> bytes:
        """The canonical bytes of the key of a call.

        Raises:
            InvalidKey: an argument has none.
        """
        key = self.key(arguments, named)
        try:
            return self.settings.core.encode_key(key)
        except InvalidKey as error:
            raise self._explained(error, key, arguments, named) from error

    def tags(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[bytes] | None:
        """The tags of a call's result."""
        tags = self.settings.tags
        if callable(tags):
            arguments, named = self._in_full(arguments, named)
            tags = tags(*arguments, **named)
        return self.settings.core.encode_tags(tags)

    def _in_full(
        self, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with defaults, by position where that can be: the same for the same call however written."""
        bound = self._signature.bind(*arguments, **named)
        bound.apply_defaults()
        return bound.args, bound.kwargs

    def _bound_key(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        values = self._bind(arguments, named)
        key = (_MARK, self.identity, tuple(values.values()))
        return (*key, tuple(map(_types, values.values()))) if self.settings.typed else key

    def _bind(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        """The arguments that matter, by name and in the signature's order."""
        bound = self._signature.bind(*arguments, **named)
        bound.apply_defaults()
        ignore = self.settings.ignore
        values = {name: value for name, value in bound.arguments.items() if name not in ignore}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD and name in values:
                values[name] = {key: value for key, value in values[name].items() if key not in ignore}
        return values

    def _explained(
        self, error: InvalidKey, key: tuple[Any, ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> InvalidKey:
        if self.settings.key is not None:
            return type(error)(f"What the key of {self.name} returns is no key: {error}")
        for name, value in self._bind(arguments, named).items():
            try:
                encode_key(value, b"")
            except InvalidKey as cause:
                return type(cause)(
                    f"The argument {name!r} of {self.name} is no key: {cause}. "
                    f"Leave it out with ignore=({name!r},), or say with key=... what identifies a call."
                )
        return error


class _Wrapper(Generic[_P]):
    """What looks like the function: its name, signature and documentation."""

    def __init__(self, plan: _Plan, binds: str) -> None:
        functools.update_wrapper(self, plan.function)  # type: ignore[arg-type]  # is no function
        self._plan = plan
        self._before: tuple[Any, ...] = ()  # what a method is bound to
        self._binds = binds  # what an attribute access binds it to: "instance", "class" or "nothing"

    def key(self, *args: _P.args, **kwargs: _P.kwargs) -> tuple[Any, ...]:
        """The key of the result for these arguments, as `PyroCacheClient.get` takes it."""
        return self._plan.key((*self._before, *args), kwargs)

    def bound(self, thing: Any) -> Self:
        """The same as a method of ``thing``."""
        method = type(self).__new__(type(self))
        method.__dict__.update(
            self.__dict__, _before=(thing,), __wrapped__=MethodType(self._plan.function, thing)
        )
        return method

    def _method(self, instance: Any, owner: type | None) -> Self:
        """What attribute access on a class or an object gives: a method, bound as a function would be."""
        if self._before or self._binds == "nothing":
            return self
        if self._binds == "class":
            return self.bound(type(instance) if owner is None else owner)
        return self if instance is None else self.bound(instance)

    def _invalidate(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        core, encoded = self._plan.settings.core, self._plan.encoded(arguments, named)
        try:
            return core.backend.delete(encoded, core.deadline())
        except NodeUnavailable as error:
            return core.missed(error, False)

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self._before:
            return getattr, (self._before[0], self._plan.function.__name__)
        return self._plan.name  # by name, like any function

    def __repr__(self) -> str:
        return f"<memoized {self._plan.name}>"


class Memoized(_Wrapper[_P], Generic[_P, _R]):
    """A function whose results are kept in the cache."""

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return self._call((*self._before, *args), kwargs, IF_MISSING)

    def refresh(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call the function, whatever there is, and keep its result; what another caller is loading is not stored."""
        return self._call((*self._before, *args), kwargs, IN_ANY_CASE)

    def invalidate(self, *args: _P.args, **kwargs: _P.kwargs) -> bool:
        """Remove the result for these arguments, and have what is being loaded not stored; whether there was one."""
        return self._invalidate((*self._before, *args), kwargs)

    @property
    def original(self) -> Callable[_P, _R]:
        """The function itself, which asks no cache."""
        return self.__wrapped__  # type: ignore[attr-defined, no-any-return]

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: Memoized[Concatenate[_S, _Q], _R], instance: _S, owner: type | None = None
    ) -> Memoized[_Q, _R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self._method(instance, owner)

    def _call(self, arguments: tuple[Any, ...], named: dict[str, Any], refresh: int) -> _R:
        plan, settings = self._plan, self._plan.settings
        result: _R = loading.get_or_set(
            settings.core,
            plan.encoded(arguments, named),
            lambda: plan.function(*arguments, **named),
            settings.terms,
            lambda: plan.tags(arguments, named),
            keep=settings.cache_if,
            refresh=refresh,
        )
        return result


class AsyncMemoized(_Wrapper[_P], Generic[_P, _R]):
    """An ``async def`` function whose results are kept in the cache; it is awaited in its caller's event loop."""

    def __init__(self, plan: _Plan, binds: str) -> None:
        super().__init__(plan, binds)
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)
        else:  # as asyncio.iscoroutinefunction looks for it
            self._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]

    async def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return await self._call((*self._before, *args), kwargs, IF_MISSING)

    async def refresh(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """As `Memoized.refresh`."""
        return await self._call((*self._before, *args), kwargs, IN_ANY_CASE)

    async def invalidate(self, *args: _P.args, **kwargs: _P.kwargs) -> bool:
        """As `Memoized.invalidate`."""
        return await coroutines.in_thread(lambda: self._invalidate((*self._before, *args), kwargs))

    @property
    def original(self) -> Callable[_P, Coroutine[Any, Any, _R]]:
        """As `Memoized.original`."""
        return self.__wrapped__  # type: ignore[attr-defined, no-any-return]

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: AsyncMemoized[Concatenate[_S, _Q], _R], instance: _S, owner: type | None = None
    ) -> AsyncMemoized[_Q, _R]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self._method(instance, owner)

    async def _call(self, arguments: tuple[Any, ...], named: dict[str, Any], refresh: int) -> _R:
        plan, settings = self._plan, self._plan.settings
        result: _R = await coroutines.get_or_set(
            settings.core,
            plan.encoded(arguments, named),
            lambda: plan.function(*arguments, **named),
            settings.terms,
            lambda: plan.tags(arguments, named),
            keep=settings.cache_if,
            refresh=refresh,
        )
        return result


class Memoizer:
    """What ``@cache.memoize(...)`` decorates with."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @overload
    def __call__(  # type: ignore[overload-overlap]  # what returns a coroutine also returns something
        self, function: classmethod[Any, _P, Coroutine[Any, Any, _R]]
    ) -> AsyncMemoized[_P, _R]: ...
    @overload
    def __call__(self, function: classmethod[Any, _P, _R]) -> Memoized[_P, _R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[_P, Coroutine[Any, Any, _R]]
    ) -> AsyncMemoized[_P, _R]: ...
    @overload
    def __call__(self, function: Callable[_P, _R]) -> Memoized[_P, _R]: ...
    def __call__(self, function: Any) -> Any:
        binds, instance = "instance", None
        if isinstance(function, MethodType):
            instance, function = function.__self__, function.__func__
        if isinstance(function, staticmethod | classmethod):
            binds = "nothing" if isinstance(function, staticmethod) else "class"
            function = function.__func__
        if not callable(function) or not hasattr(function, "__qualname__") or inspect.isclass(function):
            raise TypeError(f"memoize is for functions and methods, not for {type(function).__name__}.")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("memoize is not for generators: what they yield is gone once it was read.")
        kind = AsyncMemoized if inspect.iscoroutinefunction(function) else Memoized
        memoized: _Wrapper[Any] = kind(_Plan(function, self._settings), binds)
        return memoized if instance is None else memoized.bound(instance)


def identity(function: Callable[..., Any]) -> str:
    """What tells a function from all others, in every process."""
    module = function.__module__
    if module in ("__main__", "__mp_main__"):  # the latter: a child of multiprocessing runs the same script
        return f"__main__.{function.__qualname__}:{_digest(function)}"
    name = f"{module}.{function.__qualname__}"
    return f"{name}:{_digest(function)}" if "<lambda>" in name else name


def _digest(function: Callable[..., Any]) -> str:
    """Of what it was compiled to, as two lambdas can share a line; and of its source, where that is to be had."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    text = _text_of(code) if isinstance(code, CodeType) else ""
    with suppress(OSError, TypeError):
        text += inspect.getsource(function)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _text_of(constant: Any) -> str:
    """The same in every process, unlike ``repr``."""
    if isinstance(constant, CodeType):
        parts = [constant.co_code.hex(), *constant.co_names, *constant.co_varnames, *constant.co_freevars]
        return f"code({','.join(parts)};{','.join(map(_text_of, constant.co_consts))})"
    if isinstance(constant, frozenset):
        return f"frozenset({','.join(sorted(map(_text_of, constant)))})"
    if isinstance(constant, tuple):
        return f"({','.join(map(_text_of, constant))})"
    return f"{type(constant).__name__}:{constant!r}"


def _types(value: Any) -> Any:
    """The types of an argument, as deep as those that a call itself packs: ``*args`` and ``**kwargs``."""
    if type(value) is tuple:
        return ("tuple", *map(_types, value))
    if type(value) is dict:
        return {key: _types(held) for key, held in value.items()}
    return f"{type(value).__module__}.{type(value).__qualname__}"
