"""`memoize` of coroutine functions, for the asyncio client and for the blocking one.

Keys, pickling and the decorated functions are in ``client/features/memoize.py``. A function that the blocking client
has memoized uses an asyncio backend for the same settings, which belongs to that client: its connections are closed
with it, and its statistics are that client's.

Starts no thread.

Thread safety: thread-safe; a memoized function is immutable and works in any event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from pyrocache.aio import load_once
from pyrocache.aio.backend import AsyncBackend
from pyrocache.client.features.memoize import AsyncMemoized, Memoized, Memoizer
from pyrocache.errors import CacheUnavailable
from pyrocache.tracebacks import brief

if TYPE_CHECKING:
    from pyrocache.client.context import ClientContext
    from pyrocache.client.features.load_once import Load

_P = ParamSpec("_P")
_R = TypeVar("_R")


async def get_or_set(load: Load[Any]) -> Any:
    """Return the result of a call, and load it if there is none. ``load`` may be of either client."""
    __tracebackhide__ = True
    return await load_once.get_or_set(load._replace(context=_asynchronous(load.context)))


async def invalidate(context: ClientContext[Any], key: bytes) -> bool:
    """Remove the result of a call. Return whether there was one."""
    context = _asynchronous(context)
    try:
        return await context.backend.delete(key, context.deadline())
    except CacheUnavailable as error:
        return context.missed(error, False)


def _asynchronous(context: ClientContext[Any]) -> ClientContext[AsyncBackend]:
    """Return the context itself if it is the asyncio client's, otherwise that of the blocking client's other half."""
    if isinstance(context.backend, AsyncBackend):
        return context
    return context.with_backend(AsyncBackend.of)


class AsyncMemoizer(Memoizer):
    """The decorator that ``@cache.memoize(...)`` of the asyncio client returns: a `Memoizer` for ``async def`` only."""

    __slots__ = ()

    def __call__(  # type: ignore[override]
        self, function: classmethod[Any, _P, Coroutine[Any, Any, _R]] | Callable[_P, Coroutine[Any, Any, _R]]
    ) -> Memoized[_P, Coroutine[Any, Any, _R], Coroutine[Any, Any, bool]]:
        """Return the memoized function. Raises `TypeError` if it is not a coroutine function, or as `Memoizer`."""
        memoized = super().__call__(function)
        if not isinstance(memoized, AsyncMemoized):
            raise brief(
                TypeError(
                    "AsyncPyroCacheClient.memoize is for async def functions; for plain functions there is "
                    "PyroCacheClient.memoize, which blocks."
                )
            )
        return cast(Any, memoized)  # type: ignore[no-any-return]
