"""What tasks that load, wait and are cancelled send, and which of them shares an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pyrocache.aio import load_once
from pyrocache.client.codec import Codec
from pyrocache.client.context import ClientContext
from pyrocache.client.features.load_once import Load, LoadOptions
from pyrocache.config import ClientConfig
from pyrocache.errors import NodeUnavailable, RemoteError, WaitTimeout

LEASE = ["load", 7, None]


class Waiter:
    """A waiter, with what the node answered it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.ended = ""

    @property
    def closed(self) -> bool:
        return bool(self.ended)

    def release(self) -> None:
        self.ended = self.ended or "released"

    def drop(self) -> None:
        self.ended = self.ended or "dropped"


class ScriptedBackend:
    """A backend whose node has no value, and that answers each `lease` when the test does; it remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.open: list[asyncio.Future[Any]] = []
        self.waiters: list[Waiter] = []
        self.stored: Any = True

    async def get(self, key: bytes, deadline: Any) -> None:
        self.calls.append("get")

    async def lease(self, *arguments: Any) -> Waiter:
        self.calls.append("lease")
        self.open.append(asyncio.get_running_loop().create_future())
        waiter = Waiter(await self.open[-1])
        self.waiters.append(waiter)
        return waiter

    async def fill(self, key: bytes, token: int, *rest: Any) -> bool:
        self.calls.append(f"fill {token}")
        if isinstance(self.stored, BaseException):
            raise self.stored
        return bool(await self.stored if asyncio.isfuture(self.stored) else self.stored)

    async def abandon(self, key: bytes, token: int, waiter: Waiter) -> None:
        self.calls.append(f"abandon {token}")
        waiter.drop()


async def turns(count: int = 5) -> None:
    """Let the other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


def start(backend: Any, factory: Callable[[], Any] = lambda: "loaded", **options: Any) -> asyncio.Task[Any]:
    context: Any = ClientContext(ClientConfig(), backend)
    load: Load[Any] = Load(context, b"key", factory, LoadOptions(**options), lambda: None)
    return asyncio.create_task(load_once.get_or_set(load))


def value(text: str) -> list[Any]:
    """Return a node's answer with a value."""
    return ["value", Codec().encode(b"key", text), None, None]


def test_an_answer_is_for_the_tasks_that_waited_when_its_request_was_sent() -> None:
    """A later one may have deleted the value meanwhile."""

    async def main() -> None:
        backend = ScriptedBackend()
        first = start(backend)
        await turns()
        later = [start(backend) for _ in range(3)]
        await turns()
        assert backend.calls.count("lease") == 1
        backend.open[0].set_result(value("old"))
        await turns()
        assert await first == "old"
        assert backend.calls.count("lease") == 2, "one of them asks for all"
        assert not any(task.done() for task in later)
        backend.open[1].set_result(value("new"))
        assert await asyncio.gather(*later) == ["new"] * 3
        assert [waiter.ended for waiter in backend.waiters] == ["released"] * 2

    asyncio.run(main())


def test_a_node_that_does_not_answer_is_asked_once_for_all_and_each_has_an_error_of_its_own() -> None:
    async def main() -> None:
        backend = ScriptedBackend()
        first = start(backend)
        await turns()
        others = [start(backend) for _ in range(4)]
        await turns()
        backend.open[0].set_result(value("old"))  # the first of the others asks now, for all of them
        await turns()
        backend.open[1].set_exception(NodeUnavailable("it hangs"))
        errors = await asyncio.gather(*others, return_exceptions=True)
        assert await first == "old"
        assert [str(error) for error in errors] == ["it hangs"] * 4
        assert len(set(map(id, errors))) == 4
        assert backend.calls.count("lease") == 2

    asyncio.run(main())


def test_another_error_is_for_the_task_that_asked() -> None:
    async def main() -> None:
        backend = ScriptedBackend()
        tasks = [start(backend) for _ in range(2)]
        await turns()
        backend.open[0].set_exception(RemoteError("refused"))
        with pytest.raises(RemoteError):
            await tasks[0]
        await turns()
        backend.open[1].set_result(LEASE)
        assert await tasks[1] == "loaded"

    asyncio.run(main())


def test_a_task_that_is_cancelled_while_it_stores_drops_the_lease() -> None:
    async def main() -> None:
        backend = ScriptedBackend()
        backend.stored = asyncio.get_running_loop().create_future()
        task = start(backend)
        await turns()
        backend.open[0].set_result(LEASE)
        await turns()
        assert backend.calls[-1] == "fill 7"
        task.cancel()
        await asyncio.wait([task])
        assert backend.waiters[0].ended == "dropped"

    asyncio.run(main())


def test_a_wait_that_is_over_leaves_the_queue_of_the_node() -> None:
    async def main() -> None:
        backend = ScriptedBackend()
        task = start(backend, wait_seconds=0.0)
        await turns()
        backend.open[0].set_result(None)
        with pytest.raises(WaitTimeout):
            await task
        assert backend.waiters[0].ended == "dropped"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("stored", "ended", "last"),
    [
        (True, "released", "fill 7"),
        (False, "dropped", "fill 7"),
        (NodeUnavailable("away"), "dropped", "fill 7"),
        (RemoteError("refused"), "dropped", "abandon 7"),
    ],
)
def test_what_becomes_of_the_lease_of_a_loaded_value(stored: Any, ended: str, last: str) -> None:
    async def main() -> None:
        backend = ScriptedBackend()
        backend.stored = stored
        task = start(backend)
        await turns()
        backend.open[0].set_result(LEASE)
        assert await task == "loaded"
        assert backend.waiters[0].ended == ended
        assert backend.calls[-1] == last

    asyncio.run(main())


def test_a_task_in_a_factory_asks_for_itself() -> None:
    """Its wait may be part of a deadlock, which is looked for after each answer of the node."""

    async def main() -> None:
        backend = ScriptedBackend()
        outer = start(backend, lambda: start(other))
        other = ScriptedBackend()
        waiting = start(other)
        await turns()
        backend.open[0].set_result(LEASE)
        await turns()
        assert other.calls.count("lease") == 2
        other.open[0].set_result(value("inner"))
        other.open[1].set_result(value("inner"))
        assert await outer == await waiting == "inner"

    asyncio.run(main())
