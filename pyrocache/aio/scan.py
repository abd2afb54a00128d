"""Iterate over the entries of a namespace, for coroutines; ``client/features/scan.py`` says what to ask.

Thread safety: not thread-safe; each iterator is used by one task. A client may have any number of iterators.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from pyrocache.aio.backend import AsyncBackend
from pyrocache.client.context import MISSING, ClientContext
from pyrocache.client.features.entries import EntryInfo, entry_info
from pyrocache.client.features.progress import NO_PROGRESS, Progress, progress_of
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

_T = TypeVar("_T")
_R = TypeVar("_R")

_Context = ClientContext[AsyncBackend]


class AsyncScan(AsyncIterator[_T]):
    """The iterator that `scan`, `items`, `values` and `keys` of an asyncio client return.

    A loop may leave it at any time: it holds nothing between two entries. So it is not an asynchronous generator, which
    the event loop would close in a task of its own, and that task is destroyed if the loop ends first.

    Args:
        fetch: returns the entries of the next page, None at the end.
        progress: is closed at the end. An iterator that a loop has left closes it when it is garbage-collected, because
            tqdm does.
    """

    def __init__(
        self, fetch: Callable[[], Awaitable[Iterable[_T] | None]], progress: Progress = NO_PROGRESS
    ) -> None:
        self._fetch: Callable[[], Awaitable[Iterable[_T] | None]] | None = fetch
        self._page: Iterator[_T] = iter(())
        self._fetching = False
        self._progress = progress

    async def __anext__(self) -> _T:
        if self._fetching:
            raise RuntimeError("Another task is waiting for the next entry of this iterator.")
        try:
            while True:
                for entry in self._page:
                    return entry
                await self._turn()
        except BaseException:
            await self.aclose()  # after an error there are no more entries, as in a generator
            raise

    async def _turn(self) -> None:
        """Fetch the next page. Raises `StopAsyncIteration` at the end."""
        if self._fetch is None:
            raise StopAsyncIteration
        self._fetching = True
        try:
            self._progress.add(0)  # shows the bar if it was asked for
            page = await self._fetch()
        finally:
            self._fetching = False
        if page is None:
            raise StopAsyncIteration
        self._page = iter(page)

    async def aclose(self) -> None:
        """End the iteration: there are no more entries. For `contextlib.aclosing`; it is not necessary."""
        self._fetch, self._page = None, iter(())
        self._progress.close()


def scan(
    context: _Context,
    prefix: Prefix = None,
    batch: int = MAX_BATCH,
    tag: bytes | None = None,
    progress: bool | None = False,
) -> AsyncScan[Any]:
    """Return the keys of a namespace, as `AsyncPyroCacheClient.scan` does."""
    pages = _Pages(context, beginning(context, prefix, batch), batch, tag)
    bar = progress_of("scan", progress)

    async def fetch() -> Iterable[Any] | None:
        page = await pages.following()
        if page is None:
            return None
        bar.add(len(page))
        return keys_of(context, page)

    return AsyncScan(fetch, bar)


def details(
    context: _Context,
    prefix: Prefix,
    batch: int,
    tag: bytes | None = None,
    progress: bool | None = False,
) -> AsyncScan[EntryInfo]:
    """Return a description of each entry, as `AsyncPyroCacheClient.scan` does with ``details``."""
    pages = _Pages(context, beginning(context, prefix, batch), batch, tag, details=True)
    bar = progress_of("scan", progress)

    async def fetch() -> Iterable[EntryInfo] | None:
        page = await pages.following()
        if page is None:
            return None
        bar.add(len(page))
        found = (entry_info(context, sent) for sent in page)
        return (info for info in found if info.key is not MISSING)

    return AsyncScan(fetch, bar)


def items(context: _Context, progress: bool | None = False) -> AsyncScan[tuple[Any, Any]]:
    """Return the keys and values of a namespace."""
    bar = progress_of("items", progress)
    return AsyncScan(_Entries(context, bar).following, bar)


def values(context: _Context, progress: bool | None = False) -> AsyncScan[Any]:
    """Return the values of a namespace."""
    bar = progress_of("values", progress)
    entries = _Entries(context, bar)

    async def fetch() -> Iterable[Any] | None:
        found = await entries.following()
        return None if found is None else (value for _, value in found)

    return AsyncScan(fetch, bar)


async def delete_prefix(context: _Context, prefix: Prefix, progress: bool | None = None) -> int:
    """Remove the entries whose keys begin with ``prefix`` from every node. Return how many there were."""
    encoded = encoded_prefix("delete_prefix", context, prefix)
    bar = progress_of("delete_prefix", progress)

    def ask(member: Member, cursor: int) -> Awaitable[tuple[int, int]]:
        return context.backend.delete_prefix(member, context.prefix, encoded, cursor, context.deadline())

    answers = _Answers(context, ask, to_the_end=True)
    total = 0
    with bar:
        while (answer := await answers.following()) is not None:
            total += answer[2]
            bar.add(answer[2])
    return total


async def pop_any(context: _Context) -> tuple[Any, Any]:
    """Remove an arbitrary entry and return its key and value. Raises `KeyError` if there is no entry."""
    pages = _Pages(context, context.prefix, 16)  # small: the first key usually still exists
    while (page := await pages.following()) is not None:
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


class _Entries:
    """The entries of a namespace, some at a time, so that memory is bounded."""

    def __init__(self, context: _Context, progress: Progress) -> None:
        self._context = context
        self._progress = progress
        self._pages = _Pages(context, context.prefix, MAX_BATCH)
        self._waiting: list[bytes] = []  # the keys of a page whose values are still to be requested

    async def following(self) -> Iterator[tuple[Any, Any]] | None:
        """Return the next entries, None at the end."""
        while not self._waiting:
            keys = await self._pages.following()
            if keys is None:
                return None
            self._waiting = keys
        context, page = self._context, Page(self._context, self._waiting)
        async with aclosing(
            context.backend.get_many(self._waiting, context.deadline(), one_reply=True)
        ) as replies:
            async for indices, frames in replies:
                page.take(indices, frames)
        asked = len(self._waiting)
        found, self._waiting = page.result()
        self._progress.add(asked - len(self._waiting))
        return decoded(context, found)


class _Pages:
    """Pages of encoded keys, or of details that begin with the encoded key."""

    def __init__(
        self, context: _Context, prefix: bytes, batch: int, tag: bytes | None = None, *, details: bool = False
    ) -> None:
        def ask(member: Member, cursor: int) -> Awaitable[tuple[int, Any]]:
            deadline = context.deadline()
            return context.backend.scan(
                member, context.prefix, prefix, cursor, batch, deadline, tag=tag, details=details
            )

        self._answers: _Answers[Any] = _Answers(context, ask)
        self._details = details

    async def following(self) -> list[Any] | None:
        """Return the next page, None at the end."""
        answer = await self._answers.following()
        return None if answer is None else owned(*answer, details=self._details)


class _Answers(Generic[_R]):
    """What each node answers, page by page. Arguments as of `_of_each_node` in ``client/features/scan.py``."""

    def __init__(
        self,
        context: _Context,
        ask: Callable[[Member, int], Awaitable[tuple[int, _R]]],
        *,
        to_the_end: bool = False,
    ) -> None:
        self._context = context
        self._ask = ask
        self._to_the_end = to_the_end
        self._walked: tuple[ClusterView, Walk] | None = None

    async def following(self) -> tuple[ClusterView, Member, _R] | None:
        """Return the view, the next node and its page; None at the end. Raises errors as ``on_error`` says."""
        if self._walked is None:
            try:
                view, unreachable = await self._context.backend.agreed_view(self._context.deadline())
            except CacheUnavailable as error:
                return self._context.missed(error, None)
            walk = Walk(self._context, view, unreachable, to_the_end=self._to_the_end)
            self._walked = view, walk
        view, walk = self._walked
        while (following := walk.following()) is not None:
            member, cursor = following
            try:
                cursor, page = await self._ask(member, cursor)
            except CacheUnavailable as error:
                walk.failed(error)
                continue
            walk.answered(cursor, page)
            return view, member, page
        return None
