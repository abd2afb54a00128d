"""Iterate over the entries of a namespace, for coroutines; ``client/features/scan.py`` says what to ask.

Thread safety: not thread-safe; each iterator is used by one task. A client may have any number of iterators.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from pyrocache.aio.backend import AsyncBackend
from pyrocache.client.context import MISSING, ClientContext
from pyrocache.client.features.entries import EntryInfo, entry_info
from pyrocache.client.features.scan import (
    Page,
    Prefix,
    Walk,
    beginning,
    decoded,
    encoded_prefix,
    keys_of,
    no_entry,
    owned,
)
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import CacheUnavailable
from pyrocache.protocol.limits import MAX_BATCH

_R = TypeVar("_R")

_Context = ClientContext[AsyncBackend]


def scan(
    context: _Context, prefix: Prefix = None, batch: int = MAX_BATCH, tag: bytes | None = None
) -> AsyncIterator[Any]:
    """Return the keys of a namespace, as `AsyncPyroCacheClient.scan` does."""
    return _keys(context, _pages(context, beginning(context, prefix, batch), batch, tag))


def details(
    context: _Context, prefix: Prefix, batch: int, tag: bytes | None = None
) -> AsyncIterator[EntryInfo]:
    """Return a description of each entry, as `AsyncPyroCacheClient.scan` does with ``details``."""
    begins = beginning(context, prefix, batch)
    return _details(context, _pages(context, begins, batch, tag, details=True))


async def delete_prefix(context: _Context, prefix: Prefix) -> int:
    """Remove the entries whose keys begin with ``prefix`` from every node. Return how many there were."""
    encoded = encoded_prefix("delete_prefix", context, prefix)

    def ask(member: Member, cursor: int) -> Awaitable[tuple[int, int]]:
        return context.backend.delete_prefix(member, context.prefix, encoded, cursor, context.deadline())

    total = 0
    async for _, _, count in _of_each_node(context, ask, to_the_end=True):
        total += count
    return total


async def items(context: _Context) -> AsyncGenerator[tuple[Any, Any], None]:
    """Yield the keys and values of a namespace."""
    async with aclosing(_pages(context, context.prefix, MAX_BATCH)) as pages:
        async for waiting in pages:
            while waiting:
                page = Page(context, waiting)
                replies = context.backend.get_many(waiting, context.deadline(), one_reply=True)
                async with aclosing(replies):
                    async for indices, frames in replies:
                        page.take(indices, frames)
                found, waiting = page.result()
                for entry in decoded(context, found):
                    yield entry


async def values(context: _Context) -> AsyncGenerator[Any, None]:
    """Yield the values of a namespace."""
    async with aclosing(items(context)) as entries:
        async for _, value in entries:
            yield value


async def pop_any(context: _Context) -> tuple[Any, Any]:
    """Remove an arbitrary entry and return its key and value. Raises `KeyError` if there is no entry."""
    async with aclosing(
        _pages(context, context.prefix, 16)
    ) as pages:  # small: the first key usually still exists
        async for page in pages:
            for encoded in page:
                key = context.read_key(encoded, MISSING)
                value = MISSING if key is MISSING else await _pop(context, encoded)
                if value is not MISSING:
                    return key, value
    raise no_entry()


async def _pop(context: _Context, encoded: bytes) -> Any:
    """Remove an entry and return its value; `MISSING` if there is none, or it does not decode here."""
    # Read first, so that an entry which does not decode here is not lost.
    try:
        found = await context.backend.get_with_version(encoded, context.deadline())
        value = MISSING if found is None else context.read(encoded, found[0], MISSING)
        if found is None or value is MISSING:
            return MISSING
        return value if await context.backend.delete(encoded, context.deadline(), found[1]) else MISSING
    except CacheUnavailable as error:
        return context.missed(error, MISSING)


async def _keys(context: _Context, pages: AsyncGenerator[list[Any], None]) -> AsyncIterator[Any]:
    async with aclosing(pages):
        async for page in pages:
            for key in keys_of(context, page):
                yield key


async def _details(context: _Context, pages: AsyncGenerator[list[Any], None]) -> AsyncIterator[EntryInfo]:
    async with aclosing(pages):
        async for page in pages:
            for sent in page:
                info = entry_info(context, sent)
                if info.key is not MISSING:
                    yield info


async def _pages(
    context: _Context, prefix: bytes, batch: int, tag: bytes | None = None, *, details: bool = False
) -> AsyncGenerator[list[Any], None]:
    """Yield pages of encoded keys, or of details that begin with the encoded key."""

    def ask(member: Member, cursor: int) -> Awaitable[tuple[int, Any]]:
        deadline = context.deadline()
        return context.backend.scan(
            member, context.prefix, prefix, cursor, batch, deadline, tag=tag, details=details
        )

    async with aclosing(_of_each_node(context, ask)) as answers:
        async for view, member, page in answers:
            yield owned(view, member, page, details=details)


async def _of_each_node(
    context: _Context,
    ask: Callable[[Member, int], Awaitable[tuple[int, _R]]],
    *,
    to_the_end: bool = False,
) -> AsyncGenerator[tuple[ClusterView, Member, _R], None]:
    """Yield what each node answers, page by page. Arguments as in ``client/features/scan.py``."""
    try:
        view, unreachable = await context.backend.agreed_view(context.deadline())
    except CacheUnavailable as error:
        context.missed(error, None)
        return
    walk = Walk(context, view, unreachable, to_the_end=to_the_end)
    while (following := walk.following()) is not None:
        member, cursor = following
        try:
            cursor, page = await ask(member, cursor)
        except CacheUnavailable as error:
            walk.failed(error)
            continue
        walk.answered(cursor, page)
        yield view, member, page
