"""The asyncio client: `AsyncPyroCacheClient`, and what it is made of.

It shares keys, codec, routing and the retry policy with the blocking client in `pyrocache.client`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrocache.aio.client import AsyncPyroCacheClient
    from pyrocache.aio.locks import AsyncLock

__all__ = ["AsyncLock", "AsyncPyroCacheClient"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # On first use: a module of this package can be imported without the others.
    from pyrocache.aio.client import AsyncPyroCacheClient
    from pyrocache.aio.locks import AsyncLock

    globals().update(AsyncLock=AsyncLock, AsyncPyroCacheClient=AsyncPyroCacheClient)
    return globals()[name]
