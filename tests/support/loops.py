"""Run coroutines in an event loop that must not report anything: no lost exception, no destroyed task, no warning."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pyrocache import AsyncPyroCacheClient
from pyrocache.aio.connection import PipelinedConnection
from tests.support.waiting import PATIENCE_SECONDS

_T = TypeVar("_T")


def run_cleanly(main: Callable[[], Awaitable[_T]], *, debug: bool = False) -> _T:
    """Return the result of ``main()``. Fails if the event loop or the interpreter reports a problem meanwhile."""
    problems: list[dict[str, Any]] = []

    async def watched() -> _T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        before = asyncio.all_tasks()
        try:
            return await main()
        finally:
            gc.collect()  # what was lost is reported when it is collected
            await asyncio.sleep(0)
            left = asyncio.all_tasks() - before
            assert not left, f"tasks were left: {left}"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()  # what earlier tests have left is not this one's
        warnings.simplefilter("error")
        result = asyncio.run(watched(), debug=debug)
        gc.collect()
    assert not problems, problems
    return result


def connections_of(client: AsyncPyroCacheClient) -> list[PipelinedConnection]:
    """Return the open connections of a client in the running event loop."""
    here = client._context.backend._router._here[asyncio.get_running_loop()]
    nodes = here.nodes._nodes.values()
    return [one for node in nodes for lane in (node.calls, node.waits) for one in lane._connections]


def under_way(client: AsyncPyroCacheClient) -> int:
    """Return the number of calls and waiters that the client has in the running event loop."""
    return sum(len(one.calls) + len(one.waiters) for one in connections_of(client))


async def eventually(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait until a condition holds. Fails if it does not for long."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        assert time.monotonic() < give_up_at, "it did not come to be in time"
        await asyncio.sleep(0.01)
