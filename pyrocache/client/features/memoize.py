"""`PyroCacheClient.memoize`: functions whose results are cached; each result is loaded once by all processes.

The key of a result consists of the function's identity (``identity.py``) and its arguments (``arguments.py``) as the
signature binds them, so that neither the order of keywords nor an omitted default makes a different key. Results are
loaded by ``load_once.py``, and those of coroutine functions by the asyncio client (``aio/memoize.py``).

A memoized function pickles by its name where it can be imported, and otherwise by the function, with its identity, and
the settings of its client.

Thread safety: thread-safe; a memoized function is immutable.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeAlias, TypeVar, overload

from pyrocache.client.context import ClientContext
from pyrocache.client.features import load_once
from pyrocache.client.features.arguments import NOT_PLAIN, UNSIGNED, Arguments
from pyrocache.client.features.identity import identity, innermost, module_of, name_of
from pyrocache.client.features.load_once import ALWAYS, IF_MISSING, Load, LoadOptions
from pyrocache.client.keys.content import content_of
from pyrocache.client.keys.format import nest, too_large
from pyrocache.client.keys.scalars import encode_str
from pyrocache.errors import CacheUnavailable, InvalidKey
from pyrocache.protocol.limits import MAX_KEY_BYTES
from pyrocache.tracebacks import brief

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_R = TypeVar("_R")
_S = TypeVar("_S")
_B = TypeVar("_B")

_MARK = "pyrocache.memoize"
_POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}

Tags: TypeAlias = Iterable[str] | Callable[..., Iterable[str]] | None


class _Plan:
    """The keys of one function's calls, and the loads and removals of their results."""

    def __init__(self, function: Callable[..., Any], settings: Memoizer, known: str | None = None) -> None:
        self.function = function
        self.name = name_of(function)
        self.module = module_of(function)
        self.settings = settings
        self._identity = settings.name or known
        sign = settings.context.sign_part
        self._arguments = UNSIGNED if sign is None else Arguments(sign)
        self._head = b""
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        unknown = sorted(settings.ignore - parameters.keys())
        if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise brief(
                ValueError(f"memoize is to ignore {unknown[0]!r}, which is no argument of {self.name}.")
            )
        self._simple = kinds <= _POSITIONAL and not settings.ignore and not settings.typed
        self._defaults = tuple(parameter.default for parameter in parameters.values())
        # By identity: a default such as an array may have an ``==`` that returns no bool.
        self._required = sum(default is inspect.Parameter.empty for default in self._defaults)

    @property
    def identity(self) -> str:
        """The identity of the function, which is found once: at the first call. Raises `InvalidKey`."""
        if self._identity is None:
            found = identity(self.function, self.settings.key is None)
            self._identity = self.__dict__.setdefault("_first", found)  # of two threads, the first one's
        return self._identity

    def key(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """Return the key of a call, as the methods of `PyroCacheClient` take it. Raises `InvalidKey`."""
        identity, parts = self.identity, self._parts(arguments, named)
        if not self._arguments.is_plain(parts):
            parts, _ = self._by_content(parts, arguments, named)
        return (_MARK, identity, *parts)

    def encoded(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> bytes:
        """Return the canonical bytes of the key of a call. Raises `InvalidKey` if an argument has none."""
        head = self._head or self._make_head()
        parts = self._parts(arguments, named)
        try:
            return head + self._arguments.encode_plain(parts)
        except NOT_PLAIN:
            pass
        _, encoded = self._by_content(parts, arguments, named)
        return head + encoded

    def _make_head(self) -> bytes:
        """Return the bytes that begin every key of the function."""
        head = self.settings.context.prefix + b"t" + nest(encode_str(_MARK)) + nest(encode_str(self.identity))
        if len(head) > MAX_KEY_BYTES // 2:
            raise too_large(self.identity)
        self._head = head
        return head

    def _parts(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], ...]:
        """Return what distinguishes a call from others: the arguments, and their types if those matter."""
        key = self.settings.key
        if key is not None:
            bound = self._bind(arguments, named)
            return ((key(*bound.args, **bound.kwargs),),)
        if self._simple and not named and self._required <= len(arguments) <= len(self._defaults):
            return ((*arguments, *self._defaults[len(arguments) :]),)  # the same as binding, but faster
        values = tuple(self._what_matters(arguments, named).values())
        return (values, tuple(map(_types, values))) if self.settings.typed else (values,)

    def _by_content(
        self, parts: tuple[tuple[Any, ...], ...], arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], bytes]:
        """Return what stands for the parts in a key, and its bytes. Raises `InvalidKey`, which names the argument."""
        try:
            return self._arguments.by_content(parts)
        except InvalidKey as error:
            if self.settings.key is not None:
                text = f"The result of the key function of {self.name} cannot be a key: {error}"
                raise InvalidKey(text) from error.__cause__
            for name, value in self._what_matters(arguments, named).items():
                try:
                    content_of(value)
                except InvalidKey as cause:
                    raise InvalidKey(
                        f"The argument {name!r} of {self.name} cannot be a key: {cause}. "
                        f"Leave it out with ignore=({name!r},), or say with key=... what identifies a call."
                    ) from cause.__cause__
            raise

    def load(self, arguments: tuple[Any, ...], named: dict[str, Any], refresh: int) -> Load[Any]:
        """Return the `Load` of a call's result, for `get_or_set`."""
        settings = self.settings

        def tags() -> list[bytes] | None:
            if not callable(settings.tags):
                return settings.context.encode_tags(settings.tags)
            bound = self._bind(arguments, named)
            return settings.context.encode_tags(settings.tags(*bound.args, **bound.kwargs))

        key = self.encoded(arguments, named)
        factory = functools.partial(self.function, *arguments, **named)
        return Load(settings.context, key, factory, settings.options, tags, settings.cache_if, refresh)

    def invalidate(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Remove the result of a call. Return whether there was one."""
        context: ClientContext = self.settings.context
        key = self.encoded(arguments, named)
        try:
            return context.backend.delete(key, context.deadline())
        except CacheUnavailable as error:
            return context.missed(error, False)

    def _bind(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> inspect.BoundArguments:
        """Return the arguments with defaults, independent of how they are passed. Raises `TypeError` as a call does."""
        try:
            bound = self._signature.bind(*arguments, **named)
        except TypeError as error:
            raise brief(TypeError(f"{self.name}: {error}")) from None
        bound.apply_defaults()
        return bound

    def __reduce__(self) -> tuple[Any, ...]:
        with suppress(InvalidKey):  # the first call raises it
            _ = self.identity
        return _Plan, (self.function, self.settings, self._identity)

    def _what_matters(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that are not ignored, by name and in the signature's order."""
        bound, ignore = self._bind(arguments, named), self.settings.ignore
        values = {name: value for name, value in bound.arguments.items() if name not in ignore}
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD and name in values:
                values[name] = {key: value for key, value in values[name].items() if key not in ignore}
        return values


class Memoized(Generic[_P, _R, _B]):
    """A function whose results are cached. It has the function's name, signature and documentation.

    Calling it returns ``_R``. `invalidate` returns ``_B``: a bool, or a coroutine that returns one.
    """

    def __init__(self, plan: _Plan, binds: str) -> None:
        functools.update_wrapper(self, plan.function)
        self._plan = plan
        self._before: tuple[Any, ...] = ()  # the object or class that a method is bound to
        self._binds = binds  # what an attribute access binds: "instance", "class" or "nothing"

    def __call__(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        __tracebackhide__ = True
        return self._call((*self._before, *args), kwargs, IF_MISSING)  # type: ignore[no-any-return]

    def refresh(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call the function even if its result is cached, and cache the new one. Discards a load in progress."""
        __tracebackhide__ = True
        return self._call((*self._before, *args), kwargs, ALWAYS)  # type: ignore[no-any-return]

    def key(self, /, *args: _P.args, **kwargs: _P.kwargs) -> tuple[Any, ...]:
        """Return the key of the result for these arguments, as the methods of `PyroCacheClient` take it."""
        return self._plan.key((*self._before, *args), kwargs)

    def invalidate(self, /, *args: _P.args, **kwargs: _P.kwargs) -> _B:
        """Remove the result for these arguments. Return whether there was one. Discards a load in progress."""
        return self._invalidate((*self._before, *args), kwargs)  # type: ignore[no-any-return]

    @property
    def original(self) -> Callable[_P, _R]:
        """The function itself, without the cache."""
        return self.__wrapped__  # type: ignore[attr-defined, no-any-return]

    def bound(self, thing: Any) -> Self:
        """Return a copy that is bound to ``thing``, an object or a class."""
        method = type(self).__new__(type(self))  # `__init__` is slow for each attribute access
        original = MethodType(self._plan.function, thing)
        method.__dict__.update(self.__dict__, _before=(thing,), __wrapped__=original)
        return method

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(
        self: Memoized[Concatenate[_S, _Q], _R, _B], instance: _S, owner: type | None = None
    ) -> Memoized[_Q, _R, _B]: ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind to the object or class whose attribute is accessed, as a function does (descriptor protocol)."""
        if self._before or self._binds == "nothing":
            return self
        if self._binds == "class":
            return self.bound(type(instance) if owner is None else owner)
        return self if instance is None else self.bound(instance)

    def _call(self, arguments: tuple[Any, ...], named: dict[str, Any], refresh: int) -> Any:
        __tracebackhide__ = True
        return load_once.get_or_set(self._plan.load(arguments, named, refresh))

    def _invalidate(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return self._plan.invalidate(arguments, named)

    def __pyrocache_identity__(self) -> tuple[object, ...]:
        """Return what this function is in the identity of another one, which refers to it."""
        return (self._plan.settings.name or self._plan.function, *self._before)

    @functools.cached_property
    def _state(self) -> Callable[[], tuple[_Plan, str]]:
        """A function that returns what this object is made of, and is found by the name of this object.

        pickle takes a function by its name, hence in a child process this is the function of the child's own object.
        cloudpickle takes a function of ``__main__`` with all that it refers to.
        """
        plan, binds = self._plan, self._binds

        def state() -> tuple[_Plan, str]:
            return plan, binds

        state.__module__, state.__qualname__ = "__main__", f"{plan.name}._state"
        return state

    def __reduce__(self) -> str | tuple[Any, ...]:
        plan, module = self._plan, self._plan.module
        if self._before:
            # As a bound method pickles, if it is the attribute of its object.
            name = getattr(plan.function, "__name__", "")
            if getattr(getattr(self._before[0], name, None), "_plan", None) is plan:
                return getattr, (self._before[0], name)
            return _bound, (type(self)(plan, self._binds), self._before[0])
        if _found(module, plan.name) is not self:
            return _new, (type(self),), (plan, self._binds)
        if module in ("__main__", "__mp_main__"):
            return _new, (type(self),), self._state
        return plan.name  # like any function

    def __setstate__(self, state: tuple[_Plan, str] | Callable[[], tuple[_Plan, str]]) -> None:
        # Not an argument of `_new`: the function may refer to this object, which must exist by then.
        Memoized.__init__(self, *(state() if callable(state) else state))

    def __repr__(self) -> str:
        return f"<memoized {self._plan.name}>"


_Sync: TypeAlias = Memoized[_P, _R, bool]
_Async: TypeAlias = Memoized[_P, Coroutine[Any, Any, _R], Coroutine[Any, Any, bool]]


class AsyncMemoized(_Async[..., Any]):
    """An ``async def`` function whose results are cached. It is awaited in the caller's event loop."""

    def __init__(self, plan: _Plan, binds: str) -> None:
        super().__init__(plan, binds)
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(self)
        else:  # where asyncio.iscoroutinefunction looks
            import asyncio  # the function that is memoized needs it, most other users do not

            self._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]

    async def _call(self, arguments: tuple[Any, ...], named: dict[str, Any], refresh: int) -> Any:
        __tracebackhide__ = True
        # The key is made here, when the coroutine is awaited, as nothing of a coroutine runs before.
        return await _for_asyncio().get_or_set(self._plan.load(arguments, named, refresh))

    async def _invalidate(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        plan = self._plan
        return await _for_asyncio().invalidate(plan.settings.context, plan.encoded(arguments, named))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Memoizer:
    """The decorator that ``@cache.memoize(...)`` returns.

    Attributes:
        context: the client's.
        options: settings for loading and keeping results.
        key: called with the arguments; its result replaces them in the key.
        ignore: names of arguments that are not part of the key.
        cache_if: a function that is called with a result and returns whether to store it.
        typed: whether equal arguments of different types make different keys.
        tags: the tags of the results, or a function of the arguments that returns them.
        name: the identity of the function; None to derive it from the code.

    Raises:
        TypeError, ValueError: an attribute is not valid.
    """

    context: ClientContext[Any]
    options: LoadOptions
    key: Callable[..., object] | None = None
    ignore: frozenset[str] = frozenset()
    cache_if: Callable[[Any], object] | None = None
    typed: bool = False
    tags: Tags = None
    name: str | None = None

    def __post_init__(self) -> None:
        for name, function in (("key", self.key), ("cache_if", self.cache_if)):
            if function is not None and not callable(function):
                raise brief(TypeError(f"memoize's {name} is a function, not {type(function).__name__}."))
        if self.key is not None and self.ignore:
            raise brief(
                ValueError("memoize takes a key or names to ignore, not both: key says what matters.")
            )
        if self.name is not None and not isinstance(self.name, str):
            raise brief(TypeError(f"memoize's name is a str, not {type(self.name).__name__}."))
        if self.name == "":
            raise brief(ValueError("memoize's name is empty."))
        if not callable(self.tags):
            self.context.encode_tags(self.tags)  # raises now what every call would

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a function that returns a coroutine matches both
        self, function: classmethod[Any, _P, Coroutine[Any, Any, _R]] | Callable[_P, Coroutine[Any, Any, _R]]
    ) -> _Async[_P, _R]: ...
    @overload
    def __call__(self, function: classmethod[Any, _P, _R] | Callable[_P, _R]) -> _Sync[_P, _R]: ...
    def __call__(self, function: Any) -> Any:
        binds, instance = "instance", None
        if callable(function) and not hasattr(innermost(function), "__qualname__"):
            # An object with code of its own is part of the key, as the object of a method is.
            function = function.__call__ if isinstance(function.__call__, MethodType) else function
        if isinstance(function, MethodType):
            instance, function = function.__self__, function.__func__
        if isinstance(function, staticmethod | classmethod):
            binds = "nothing" if isinstance(function, staticmethod) else "class"
            function = function.__func__
        if isinstance(function, functools.partial):
            binds = "nothing"
        inner = innermost(function)
        if not callable(inner) or not hasattr(inner, "__qualname__") or inspect.isclass(inner):
            raise brief(
                TypeError(f"memoize is for functions and methods, not for {type(function).__name__}.")
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise brief(TypeError("memoize is not for generators: what they yield can be read only once."))
        kind = AsyncMemoized if inspect.iscoroutinefunction(function) else Memoized
        memoized: Memoized[Any, Any, Any] = kind(_Plan(function, self), binds)
        return memoized if instance is None else memoized.bound(instance)


def _for_asyncio() -> Any:
    """Return ``aio/memoize.py``, whose layer is above this one. The package imports it when it is first needed."""
    return sys.modules["pyrocache"].memoize_for_asyncio()


def _found(module: str, name: str) -> object:
    """Return what has a qualified name; None if there is nothing."""
    try:
        return attrgetter(name)(sys.modules[module])
    except (KeyError, AttributeError):
        return None


def _new(cls: type[Memoized[Any, Any, Any]]) -> Memoized[Any, Any, Any]:
    return cls.__new__(cls)


def _bound(memoized: Memoized[Any, Any, Any], thing: object) -> Memoized[Any, Any, Any]:
    return memoized.bound(thing)


def _types(value: Any) -> Any:
    """Return the type of an argument, and the types inside the tuple and the dict of ``*args`` and ``**kwargs``."""
    if type(value) is tuple:
        return ("tuple", *map(_types, value))
    if type(value) is dict:
        return {key: _types(item) for key, item in value.items()}
    return f"{type(value).__module__}.{type(value).__qualname__}"
