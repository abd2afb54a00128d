"""The most used keys, for coroutines; ``client/features/hot_keys.py`` makes them of what the nodes answer.

Thread safety: thread-safe; a call has no shared state.
"""

from __future__ import annotations

import asyncio

from pyrocache.aio.backend import AsyncBackend
from pyrocache.client.context import ClientContext
from pyrocache.client.features.hot_keys import HotKey, checked_count, counted, lacking
from pyrocache.errors import CacheUnavailable


async def hot_keys(context: ClientContext[AsyncBackend], count: int, seconds: float) -> list[HotKey]:
    """Return what `AsyncPyroCacheClient.hot_keys` returns."""
    limit = checked_count(count)
    try:
        answers = await context.backend.hot_keys(context.prefix, limit, context.deadline())
        if (pause := lacking(answers, seconds)) > 0:
            await asyncio.sleep(pause)
            answers = await context.backend.hot_keys(context.prefix, limit, context.deadline())
        return counted(context, answers, limit)
    except CacheUnavailable as error:
        return context.missed(error, [])
