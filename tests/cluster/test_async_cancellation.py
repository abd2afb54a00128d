"""Cancellation of calls of the asyncio client, at any point: no reply is lost or confused, and nothing is left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from pyrocache import AsyncPyroCacheClient, LocalCluster
from tests.support.loops import eventually, run_cleanly, under_way

KEYS = 100


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3) as cluster:
        yield cluster


async def _get(cache: AsyncPyroCacheClient, n: int) -> None:
    assert await cache.get(("value", n)) == n


async def _get_many(cache: AsyncPyroCacheClient, n: int) -> None:
    keys = [("value", (n + i) % KEYS) for i in range(5)]
    assert await cache.get_many(keys) == {key: key[1] for key in keys}


async def _versioned(cache: AsyncPyroCacheClient, n: int) -> None:
    found = await cache.get_with_version(("value", n))
    assert found is not None
    assert found[0] == n


async def _set(cache: AsyncPyroCacheClient, n: int) -> None:
    assert await cache.set(("value", n), n) is True


async def _incr(cache: AsyncPyroCacheClient, n: int) -> None:
    assert await cache.incr(("count", n)) > 0


async def _contains(cache: AsyncPyroCacheClient, n: int) -> None:
    assert await cache.contains(("nothing", n)) is False


async def _load(cache: AsyncPyroCacheClient, n: int) -> None:
    async def factory() -> int:
        await asyncio.sleep(0.001)
        return n

    assert await cache.get_or_set(("loaded", n), factory) == n


async def _lock(cache: AsyncPyroCacheClient, n: int) -> None:
    async with cache.lock(("lock", n % 10)):
        await asyncio.sleep(0)


async def _scan(cache: AsyncPyroCacheClient, n: int) -> None:
    found = {key async for key in cache.scan(("value",), batch=40)}
    assert len(found) == KEYS


VERBS: list[Callable[[AsyncPyroCacheClient, int], Awaitable[None]]] = [
    *(_get, _get_many, _versioned, _set, _incr, _contains, _load, _lock, _scan),
]


async def _fill(cache: AsyncPyroCacheClient) -> None:
    await cache.clear()
    await cache.set_many({("value", n): n for n in range(KEYS)})


async def _nothing_is_left(cache: AsyncPyroCacheClient) -> None:
    """Check that no call, waiter, lock or lease is left, here or at the nodes."""

    async def done() -> bool:
        return under_way(cache) == 0

    await eventually(done)

    async def free() -> bool:
        nodes = (await cache.stats()).nodes.values()
        return not any(node.leases or node.locks or node.waiting for node in nodes)

    await eventually(free)


@pytest.mark.parametrize("debug", [False, pytest.param(True, marks=pytest.mark.full)])
def test_ten_thousand_calls_of_a_thousand_tasks_with_random_cancellation(
    cluster: LocalCluster, debug: bool
) -> None:
    dice = random.Random(15)
    calls = 1000 if debug else 10_000

    async def main() -> tuple[int, int]:
        done = cancelled = 0
        async with cluster.async_client(timeout=30) as cache:
            await _fill(cache)
            for _ in range(calls // 1000):
                light = [verb for verb in VERBS if verb is not _scan]
                tasks = [asyncio.create_task(dice.choice(light)(cache, n % KEYS)) for n in range(1000)]
                await asyncio.sleep(dice.random() * 0.02)
                for task in tasks:
                    if dice.random() < 0.4:
                        task.cancel()
                for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(outcome, asyncio.CancelledError):
                        cancelled += 1
                    elif outcome is not None:
                        raise outcome
                    else:
                        done += 1
            await _nothing_is_left(cache)
        return done, cancelled

    done, cancelled = run_cleanly(main, debug=debug)
    assert done + cancelled == calls
    assert done > calls // 10
    assert cancelled > calls // 100


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_that_is_cancelled_after_any_number_of_turns_leaves_nothing(
    cluster: LocalCluster, verb: Callable[[AsyncPyroCacheClient, int], Awaitable[None]]
) -> None:
    async def main() -> int:
        async with cluster.async_client() as cache:
            await _fill(cache)
            turns = 0
            while True:
                await cache.delete(("loaded", 5))
                task = asyncio.ensure_future(verb(cache, 5))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if task.done():
                    await task
                    break
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                # The connections are as usable as before.
                assert await cache.get(("value", 7)) == 7
                turns += 1 if turns < 20 else turns // 4
            await _nothing_is_left(cache)
            return turns

    assert run_cleanly(main) > 1


def test_a_timeout_of_asyncio_ends_a_call(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with cluster.async_client() as cache, cache.lock("busy"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await cache.lock("busy", thread_local=False).acquire()
            await asyncio.sleep(0)

            async def done() -> bool:
                return under_way(cache) == 1  # the lock that is held

            await eventually(done)

    run_cleanly(main)


def test_a_failure_in_a_task_group_cancels_the_calls_of_the_others(cluster: LocalCluster) -> None:
    async def fail() -> None:
        await asyncio.sleep(0.02)
        raise ZeroDivisionError

    async def wait(cache: AsyncPyroCacheClient) -> None:
        await cache.lock("taken").acquire()

    async def many(cache: AsyncPyroCacheClient) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(wait(cache))
            group.create_task(fail())

    async def main() -> None:
        async with cluster.async_client() as cache:
            lock = cache.lock("taken")
            await lock.acquire()
            with pytest.raises(ExceptionGroup):
                await many(cache)
            await lock.release()
            await _nothing_is_left(cache)
            again = cache.lock("taken")
            assert await again.acquire(blocking=False)
            await again.release()

    run_cleanly(main)


def test_a_thousand_tasks_wait_for_a_hundred_values_that_are_loaded_once_each(cluster: LocalCluster) -> None:
    loads: list[int] = []

    async def main() -> list[Any]:
        async with cluster.async_client(timeout=30) as cache:
            await cache.clear()

            async def load(n: int) -> int:
                loads.append(n)
                await asyncio.sleep(0.05)
                return n

            async def get(n: int) -> int:
                return await cache.get_or_set(("hundred", n), lambda: load(n))

            values = await asyncio.gather(*(get(n % 100) for n in range(1000)))
            await _nothing_is_left(cache)
            return values

    assert run_cleanly(main) == [n % 100 for n in range(1000)]
    assert sorted(loads) == list(range(100))
