"""The iterator of the asyncio client's scans: it can be left at any time, and holds nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any

import pytest

from pyrocache import NodeUnavailable, RemoteError
from pyrocache.aio import scan as scans
from pyrocache.aio.scan import AsyncScan
from pyrocache.client.context import ClientContext
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import ClientConfig


def pages_of(*pages: Any) -> Callable[[], Awaitable[Iterable[int] | None]]:
    """Return what fetches these pages, or raises those that are errors."""
    left = list(pages)

    async def fetch() -> Iterable[int] | None:
        await asyncio.sleep(0)
        page = left.pop(0) if left else None
        if isinstance(page, BaseException):
            raise page
        return page

    return fetch


async def collected(scan: AsyncScan[Any]) -> list[Any]:
    return [entry async for entry in scan]


def test_entries_come_page_by_page_and_empty_pages_do_not_end_it() -> None:
    assert asyncio.run(collected(AsyncScan(pages_of([1, 2], [], [3])))) == [1, 2, 3]


def test_after_an_error_or_aclose_there_are_no_more_entries() -> None:
    async def after_error() -> list[int]:
        scan = AsyncScan(pages_of([1], RemoteError("broken"), [2]))
        assert await anext(scan) == 1
        with pytest.raises(RemoteError):
            await anext(scan)
        return await collected(scan)

    async def after_aclose() -> list[int]:
        async with aclosing(AsyncScan(pages_of([1, 2], [3]))) as scan:
            assert await anext(scan) == 1
        return await collected(scan)

    assert asyncio.run(after_error()) == []
    assert asyncio.run(after_aclose()) == []


def test_a_scan_that_is_cancelled_has_ended() -> None:
    async def cancelled() -> list[int]:
        async def never() -> Iterable[int] | None:
            await asyncio.Event().wait()
            return [1]

        scan = AsyncScan(never)
        task = asyncio.ensure_future(collected(scan))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            return await collected(scan)

    assert asyncio.run(cancelled()) == []


def test_a_second_task_is_refused_and_the_first_goes_on() -> None:
    async def two() -> list[int]:
        scan = AsyncScan(pages_of([1], [2]))
        task = asyncio.ensure_future(collected(scan))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="Another task"):
            await anext(scan)
        return await task

    assert asyncio.run(two()) == [1, 2]


# The walk over the nodes -----------------------------------------------------------------------------------------

VIEW = ClusterView([Member(f"cache.node.{number}", "127.0.0.1", number) for number in (1, 2)])


class PagedBackend:
    """Nodes with pages of keys to give, and a value for each key."""

    retries: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, pages: dict[str, list[Any]]) -> None:
        self.pages = pages
        self.asked: list[tuple[str, int]] = []

    async def agreed_view(self, deadline: object) -> tuple[ClusterView, dict[Member, NodeUnavailable]]:
        return VIEW, {}

    async def scan(
        self, member: Member, namespace: bytes, prefix: bytes, cursor: int, *rest: Any, **options: Any
    ) -> tuple[int, Any]:
        await asyncio.sleep(0)
        self.asked.append((member.name, cursor))
        page = self.pages[member.name].pop(0)
        if isinstance(page, Exception):
            raise page
        return cursor + 1 if self.pages[member.name] else 0, page


def owned(name: str, count: int) -> list[bytes]:
    """Encoded keys that belong to the node of that name."""
    keys = (b"\0s%d" % number for number in range(10**6))
    mine = (key for key in keys if VIEW.owner(key).name == name)
    return [next(mine) for _ in range(count)]


def context_of(pages: dict[str, list[Any]], **settings: Any) -> ClientContext[Any]:
    backend: Any = PagedBackend(pages)
    return ClientContext(ClientConfig(**settings), backend)


def test_a_scan_asks_node_after_node_page_after_page_when_it_must() -> None:
    one, two = owned("cache.node.1", 4), owned("cache.node.2", 3)
    context = context_of({"cache.node.1": [one[:2], [], one[2:]], "cache.node.2": [two + one]})

    async def walk() -> list[str]:
        scan = scans.scan(context)
        assert context.backend.asked == []
        first = await anext(scan)
        assert context.backend.asked == [("cache.node.1", 0)]
        return [first, *await collected(scan)]

    assert asyncio.run(walk()) == [key[2:].decode() for key in one + two], "each key only at its owner"
    assert context.backend.asked == [("cache.node.1", number) for number in range(3)] + [("cache.node.2", 0)]


def test_a_node_that_is_away_is_an_error_or_a_miss() -> None:
    def pages() -> dict[str, list[Any]]:
        return {"cache.node.1": [NodeUnavailable("gone")], "cache.node.2": [owned("cache.node.2", 1)]}

    with pytest.raises(NodeUnavailable):
        asyncio.run(collected(scans.scan(context_of(pages()))))
    lenient = context_of(pages(), on_error="miss")
    assert len(asyncio.run(collected(scans.scan(lenient)))) == 1
    assert lenient.figures.misses_on_error == 1


def test_arguments_are_checked_before_the_iteration() -> None:
    context = context_of({})
    with pytest.raises(ValueError, match="batch"):
        scans.scan(context, batch=0)
    with pytest.raises(TypeError, match="prefix"):
        scans.details(context, 5, 10)  # type: ignore[arg-type]


def left_early(details: bool) -> Any:
    """Return a scan of two nodes."""
    pages: list[list[Any]] = [owned("cache.node.1", 2), owned("cache.node.1", 1)]
    if details:
        pages = [[[key, 1.0, [], None, None, 9] for key in page] for page in pages]
        return scans.details(context_of({"cache.node.1": pages}), None, 10)
    return scans.scan(context_of({"cache.node.1": pages}))


@pytest.mark.parametrize("details", [False, True])
def test_a_scan_that_is_left_leaves_nothing_to_a_loop_that_ends(
    details: bool, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    found = []

    async def garbage_at_the_end() -> None:
        async for entry in left_early(details):
            found.append(entry)
            break

    async def kept() -> Any:
        scan = left_early(details)
        found.append(await anext(scan))
        return scan

    loop = asyncio.new_event_loop()
    scan = loop.run_until_complete(kept())
    loop.run_until_complete(garbage_at_the_end())
    tasks = asyncio.all_tasks(loop)
    loop.close()
    del scan
    gc.collect()  # where "Task was destroyed" would be logged
    assert len(found) == 2
    assert [tasks, caplog.records, list(recwarn)] == [set(), [], []]
