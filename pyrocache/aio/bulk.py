"""Bulk calls of the asyncio client; ``client/features/bulk.py`` describes them and makes the results.

Thread safety: thread-safe; a call has no shared state.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

from pyrocache.aio.backend import AsyncBackend, AsyncReplies
from pyrocache.client.context import ClientContext
from pyrocache.client.features.bulk import Change, GetEntries, GetMany
from pyrocache.client.features.entries import Entry
from pyrocache.client.features.progress import NO_PROGRESS, Progress, progress_of
from pyrocache.errors import CacheUnavailable, PyroCacheError


async def get_many(
    context: ClientContext[AsyncBackend], keys: Iterable[object], progress: bool | None = None
) -> dict[Any, Any]:
    """Return what `AsyncPyroCacheClient.get_many` returns."""
    call = GetMany(context, keys)
    bar = progress_of("get_many", progress, len(call.encoded))
    await _take_all(context, call, context.backend.get_many(call.encoded, context.deadline()), bar)
    return call.result()


async def get_entries(context: ClientContext[AsyncBackend], keys: Iterable[object]) -> dict[Any, Entry]:
    """Return what `AsyncPyroCacheClient.get_entries` returns."""
    call = GetEntries(context, keys)
    await _take_all(context, call, context.backend.get_entries(call.encoded, context.deadline()))
    return call.result()


async def make(context: ClientContext[AsyncBackend], change: Change, progress: bool | None = False) -> int:
    """Return what `set_many`, `delete_many` and `touch_many` of `AsyncPyroCacheClient` return."""
    bar = progress_of(change.name, progress, len(change.encoded))
    backend, deadline = context.backend, context.deadline()
    if change.removes:
        replies = backend.delete_many(change.encoded, deadline)
    elif change.frames is not None:
        replies = backend.set_many(change.encoded, change.frames, change.seconds, change.tags, deadline)
    else:
        replies = backend.touch_many(change.encoded, change.seconds, deadline)
    await _take_all(context, change, replies, bar)
    return change.result()


async def _take_all(
    context: ClientContext[AsyncBackend],
    call: GetMany | GetEntries | Change,
    replies: AsyncReplies[Any],
    progress: Progress = NO_PROGRESS,
) -> None:
    """Give a call its answers. If no node is known, apply ``on_error``: raise the error, or give nothing."""
    try:
        with progress:
            async with aclosing(replies):
                async for indices, reply in replies:
                    call.take(indices, reply)
                    if not isinstance(reply, PyroCacheError):
                        progress.add(len(indices))
    except CacheUnavailable as error:
        context.missed(error, None)
