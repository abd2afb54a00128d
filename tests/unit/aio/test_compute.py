"""`compute` of the asyncio client: functions and coroutine functions, conflicts, and the time they take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pyrocache import Conflict
from pyrocache.aio.compute import compute
from pyrocache.client.context import MISSING, ClientContext
from pyrocache.config import ClientConfig
from pyrocache.net.deadline import Deadline


class OneEntry:
    """A backend with one entry, which another caller changes before some of the writes."""

    retries: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, frame: bytes | None, conflicts: int) -> None:
        self.frame = frame
        self.version = 1
        self.conflicts = conflicts
        self.conditions: list[str | int] = []

    async def get_with_version(self, key: bytes, deadline: Deadline) -> tuple[bytes, int] | None:
        return None if self.frame is None else (self.frame, self.version)

    async def put(
        self, key: bytes, frame: Any, ttl: Any, condition: Any, tags: Any, deadline: Deadline
    ) -> bool:
        self.conditions.append(condition)
        if self.conflicts:
            self.conflicts -= 1
            self.version += 1
            return False
        self.frame = bytes(frame)
        return True


def context_of(value: Any, conflicts: int = 0, timeout: float = 5.0) -> ClientContext[Any]:
    backend: Any = OneEntry(None, conflicts)
    context: ClientContext[Any] = ClientContext(ClientConfig(timeout=timeout), backend)
    backend.frame = None if value is MISSING else bytes(context.codec.encode(b"", value))
    return context


async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


@pytest.mark.parametrize("function", [later, lambda value: value + 1])
def test_functions_and_coroutine_functions_change_the_entry(function: Callable[[Any], Any]) -> None:
    context = context_of(5, conflicts=2)
    assert asyncio.run(compute(context, "key", function, MISSING, ...)) == 6
    assert context.codec.decode(b"", context.backend.frame) == 6
    assert context.backend.conditions == [1, 2, 3]
    assert context.figures.conflicts == 2


def test_without_an_entry_there_must_be_a_default() -> None:
    assert asyncio.run(compute(context_of(MISSING), "key", later, 1, ...)) == 2
    with pytest.raises(KeyError, match="key"):
        asyncio.run(compute(context_of(MISSING), "key", later, MISSING, ...))


def test_conflicts_that_never_end_are_an_error_and_other_tasks_run_meanwhile() -> None:
    async def both() -> int:
        turns = 0
        task = asyncio.ensure_future(
            compute(context_of(1, conflicts=10**9, timeout=0.05), "key", later, MISSING, ...)
        )
        while not task.done():
            turns += 1
            await asyncio.sleep(0.001)
        with pytest.raises(Conflict):
            await task
        return turns

    assert asyncio.run(both()) > 3
