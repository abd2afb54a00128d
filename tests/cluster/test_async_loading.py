"""`get_or_set` of the asyncio client: one task loads, the others wait, and whoever is cancelled holds nothing."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyrocache import (
    AsyncPyroCacheClient,
    LoadDeadlock,
    LocalCluster,
    NodeUnavailable,
    PyroCacheClient,
    WaitTimeout,
)
from pyrocache.aio import load_once
from tests.support.nodes import private_cluster
from tests.support.waiting import eventually

SOON = 5.0  # far longer than it takes, and far shorter than any lease


@pytest.fixture
def aio(shared_cluster: LocalCluster) -> Iterator[AsyncPyroCacheClient]:
    client = shared_cluster.async_client()
    yield client
    client._context.close()


def nothing_held(cache: PyroCacheClient) -> bool:
    """Return whether there is neither a lease, nor a lock, nor a call that waits."""
    total = cache.stats().total
    return not (total.leases or total.locks or total.waiting)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, in a running loop."""
    async with asyncio.timeout(SOON):
        while not condition():  # nothing announces it
            await asyncio.sleep(0.005)


class Slow:
    """A coroutine function that loads until it is told to end."""

    def __init__(self, value: object = "loaded") -> None:
        self.value = value
        self.calls = 0
        self.began, self.end = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> Any:
        self.calls += 1
        self.began.set()
        await self.end.wait()
        return self.value


def test_a_factory_may_be_a_function_or_a_coroutine_function(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    async def two() -> int:
        return 2

    async def main() -> list[Any]:
        loads = aio.get_or_set(1, lambda: 1), aio.get_or_set(2, two), aio.get_or_set(3, lambda: two())
        return [await load for load in loads]

    assert asyncio.run(main()) == [1, 2, 2]
    assert [cache.get(key) for key in (1, 2, 3)] == [1, 2, 2]
    assert nothing_held(cache)


def test_a_thousand_tasks_load_each_of_a_hundred_keys_once(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    asked = 0
    ask = aio._context.backend.lease

    async def lease(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        return await ask(*arguments)

    monkeypatch.setattr(aio._context.backend, "lease", lease)

    async def load(number: int) -> list[int]:
        calls.append(number)
        await asyncio.sleep(0.05)
        return [number]

    async def main() -> list[list[int]]:
        return await asyncio.gather(
            *(aio.get_or_set(number % 100, lambda n=number: load(n % 100)) for number in range(1000))
        )

    results = asyncio.run(main())
    assert results == [[number % 100] for number in range(1000)]
    assert len({id(result) for result in results}) == 1000, "each caller has an object of its own"
    assert sorted(calls) == list(range(100))
    assert asked <= 500, "one task waits for the others of its key"
    assert nothing_held(cache)
    assert not any(load_once._groups.values())


def test_a_waiter_gets_what_another_caller_sets_and_the_loaded_value_is_not_stored(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    async def main() -> list[Any]:
        slow = Slow()
        tasks = [asyncio.create_task(aio.get_or_set("key", slow)) for _ in range(5)]
        await until(lambda: cache.stats().total.waiting)
        await asyncio.to_thread(cache.set, "key", "set")
        async with asyncio.timeout(SOON):
            while sum(task.done() for task in tasks) < 4:
                await asyncio.sleep(0.001)
        loading = next(task for task in tasks if not task.done())  # any of them may have been the first
        slow.end.set()
        assert slow.calls == 1
        return [await loading, *[await task for task in tasks if task is not loading]]

    assert asyncio.run(main()) == ["loaded", *["set"] * 4]
    assert cache.get("key") == "set"


def test_a_task_that_deleted_the_value_does_not_get_the_deleted_one(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    """The answer that another task waits for may be on its way."""

    async def main() -> None:
        for number in range(200):
            slow = Slow(f"old {number}")
            loader = asyncio.create_task(aio.get_or_set("key", slow))
            await slow.began.wait()
            waiter = asyncio.create_task(aio.get_or_set("key", lambda n=number: f"waiter {n}"))
            await asyncio.sleep(0)
            slow.end.set()
            for _ in range(number % 8):
                await asyncio.sleep(0)
            if await aio.delete("key"):
                mine = await aio.get_or_set("key", lambda n=number: f"new {n}")
                assert not mine.startswith("old")
            await asyncio.gather(loader, waiter)
            await aio.delete("key")

    asyncio.run(main())


def test_an_exception_reaches_the_caller_of_the_factory_and_the_next_one_loads(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    problems = [LookupError("first"), LookupError("second")]
    left = list(problems)

    async def flaky() -> str:
        await asyncio.sleep(0.02)
        if left:
            raise left.pop(0)
        return "loaded"

    async def main() -> list[Any]:
        return await asyncio.gather(
            *(aio.get_or_set("key", flaky) for _ in range(10)), return_exceptions=True
        )

    results = asyncio.run(main())
    assert results.count("loaded") == 8
    assert [result for result in results if result != "loaded"] == problems
    assert nothing_held(cache)


def test_a_value_that_is_not_stored_is_loaded_by_each_caller_in_turn(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(aio.get_or_set("key", threading.Lock) for _ in range(5)))

    assert len(set(map(id, asyncio.run(main())))) == 5
    assert aio._context.figures.loads_not_stored == 5
    assert nothing_held(cache)


def test_a_stale_value_is_returned_at_once_while_one_task_loads(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    options = {"ttl_seconds": 0.05, "stale_seconds": 60}

    async def main() -> None:
        assert await aio.get_or_set("key", lambda: "old", **options) == "old"
        await asyncio.sleep(0.1)
        slow = Slow("new")
        loader = asyncio.create_task(aio.get_or_set("key", slow, **options))
        await slow.began.wait()
        async with asyncio.timeout(SOON):
            others = [aio.get_or_set("key", lambda: pytest.fail("called"), **options) for _ in range(20)]
            assert await asyncio.gather(*others) == ["old"] * 20
        slow.end.set()
        assert await loader == "new"

    asyncio.run(main())


def test_each_task_waits_as_long_as_it_says(aio: AsyncPyroCacheClient, cache: PyroCacheClient) -> None:
    async def main() -> list[Any]:
        slow = Slow()
        loader = asyncio.create_task(aio.get_or_set("key", slow))
        await slow.began.wait()
        waits = (0, 0.1, 0.2, None, 0.1, 30)
        tasks = [asyncio.create_task(aio.get_or_set("key", slow, wait_seconds=wait)) for wait in waits]
        await asyncio.sleep(0.4)
        done = [task.done() for task in tasks]
        slow.end.set()
        await loader
        return [done, *await asyncio.gather(*tasks, return_exceptions=True)]

    done, *results = asyncio.run(main())
    assert done == [True, True, True, False, True, False]
    assert [type(result) for result in results if result != "loaded"] == [WaitTimeout] * 4
    assert results.count("loaded") == 2
    assert nothing_held(cache)


def test_a_loader_that_takes_longer_than_its_lease_is_overtaken(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    async def main() -> list[Any]:
        slow = Slow("late")
        loader = asyncio.create_task(aio.get_or_set("key", slow, lease_seconds=0.1))
        await slow.began.wait()
        async with asyncio.timeout(SOON):
            others = await asyncio.gather(*(aio.get_or_set("key", lambda: "other") for _ in range(5)))
        slow.end.set()
        return [await loader, *others]

    assert asyncio.run(main()) == ["late", *["other"] * 5]
    assert cache.get("key") == "other"


def test_loads_that_wait_for_each_other_are_a_deadlock_and_a_load_of_itself_is_not(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    began = {name: asyncio.Event() for name in "ab"}

    async def load(mine: str, other: str) -> str:
        began[mine].set()
        await began[other].wait()
        await until(lambda: cache.stats().total.waiting == 2)  # other tasks, for both
        try:
            return f"{mine} of {await aio.get_or_set(other, lambda: pytest.fail('it waits'))}"
        except LoadDeadlock:
            return f"{mine} alone"

    async def outer() -> str:
        return await aio.get_or_set("own", lambda: "inner") + " outer"

    async def main() -> list[Any]:
        async with asyncio.timeout(SOON):
            assert await aio.get_or_set("own", outer) == "inner outer"
            loads = [
                asyncio.create_task(aio.get_or_set("a", lambda: load("a", "b"))),
                asyncio.create_task(aio.get_or_set("b", lambda: load("b", "a"))),
            ]
            await asyncio.gather(*(event.wait() for event in began.values()))
            others = [aio.get_or_set(name, lambda: pytest.fail("called")) for name in "ab"]
            return await asyncio.gather(*loads, *others)

    results = asyncio.run(main())
    assert "alone" in "".join(results)
    assert results[:2] == results[2:]
    assert nothing_held(cache)


def test_loops_in_several_threads_load_once(aio: AsyncPyroCacheClient, cache: PyroCacheClient) -> None:
    calls = []

    async def load() -> str:
        calls.append(1)
        await asyncio.sleep(0.05)
        return "loaded"

    async def main() -> list[Any]:
        return await asyncio.gather(*(aio.get_or_set("key", load) for _ in range(20)))

    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.extend(asyncio.run(main()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["loaded"] * 80
    assert len(calls) == 1


# Cancellation ------------------------------------------------------------------------------------------------


def test_tasks_that_are_cancelled_at_any_moment_hold_nothing(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    """Loaders and waiters, before and after their requests, and just when an answer arrives."""
    dice = random.Random(7)

    async def load(number: int) -> int:
        await asyncio.sleep(dice.choice((0, 0.0005, 0.002)))
        return number

    async def cancelled(number: int, round_: int) -> None:
        key = (round_, number % 3)
        task = asyncio.create_task(aio.get_or_set(key, lambda: load(number), lease_seconds=3600))  # type: ignore[arg-type]
        if dice.random() < 0.5:
            await asyncio.sleep(dice.random() * 0.004)
        else:
            for _ in range(dice.randrange(12)):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    async def main() -> None:
        for round_ in range(20):
            await asyncio.gather(*(cancelled(number, round_) for number in range(10)))
            async with asyncio.timeout(SOON):
                for number in range(3):
                    assert await aio.get_or_set((round_, number), lambda: 99) in {*range(10), 99}
            assert not any(load_once._groups.values())
        await until(lambda: nothing_held(cache))

    asyncio.run(main())


@pytest.mark.parametrize("steps", range(8))
def test_a_waiter_that_is_cancelled_when_the_lease_arrives_passes_it_on(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient, steps: int
) -> None:
    async def main() -> None:
        slow = Slow()
        loader = asyncio.create_task(aio.get_or_set("key", slow, lease_seconds=3600))  # type: ignore[arg-type]
        await slow.began.wait()
        never = Slow()
        waiter = asyncio.create_task(aio.get_or_set("key", never, lease_seconds=3600))  # type: ignore[arg-type]
        await until(lambda: cache.stats().total.waiting)
        loader.cancel()
        for _ in range(steps):
            await asyncio.sleep(0.0001)
        waiter.cancel()
        await asyncio.wait([loader, waiter])
        async with asyncio.timeout(SOON):
            assert await aio.get_or_set("key", lambda: "next") == "next"

    asyncio.run(main())
    eventually(lambda: nothing_held(cache))


@pytest.mark.filterwarnings("error")
def test_a_loop_that_is_closed_with_loads_under_way_leaves_nothing(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    async def begin() -> list[asyncio.Task[Any]]:
        slow = Slow()
        tasks = [
            asyncio.create_task(aio.get_or_set("key", slow, lease_seconds=3600))  # type: ignore[arg-type]
            for _ in range(5)
        ]
        await until(lambda: cache.stats().total.waiting)
        return tasks

    asyncio.run(begin())  # which cancels them
    eventually(lambda: nothing_held(cache))
    loop = asyncio.new_event_loop()
    tasks = loop.run_until_complete(begin())
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # the user's own
    del tasks, task
    gc.collect()
    assert asyncio.run(asyncio.wait_for(aio.get_or_set("key", lambda: "next"), SOON)) == "next"  # type: ignore[arg-type]
    eventually(lambda: nothing_held(cache))


# Unreachable nodes -------------------------------------------------------------------------------------------


def test_tasks_of_a_node_that_hangs_end_together_each_as_its_client_says() -> None:
    with private_cluster(nodes=1) as cluster:
        strict, lenient = (
            cluster.async_client(timeout=0.5, on_error=on_error) for on_error in ("raise", "miss")
        )

        async def main() -> list[Any]:
            for client in (strict, lenient):
                await client.get_or_set("there", lambda: 1)
            cluster.pause(0)
            begun = asyncio.get_running_loop().time()
            tasks = [
                client.get_or_set("key", lambda: "own") for client in (strict, lenient) for _ in range(50)
            ]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert asyncio.get_running_loop().time() - begun < SOON
            cluster.resume(0)
            return results

        results = asyncio.run(main())
        assert {type(result) for result in results[:50]} == {NodeUnavailable}
        assert set(results[50:]) == {"own"}
        assert lenient._context.figures.misses_on_error == 50
