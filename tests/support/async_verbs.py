"""The asyncio client with nodes that know nothing of pipelining: everything works that works with others."""

from __future__ import annotations

import asyncio

from pyrocache import AsyncPyroCacheClient, LockTimeout


async def use_all(cache: AsyncPyroCacheClient) -> None:
    """Make calls of each kind, many at once."""
    values = {f"key {number}": [number, "text", None, 1.5] for number in range(100)}
    assert await asyncio.gather(*(cache.set(*item, 60.0) for item in values.items())) == [True] * 100
    assert await asyncio.gather(*map(cache.get, values)) == list(values.values())
    assert await cache.get_many([*values, "no such key"]) == values
    sums = await asyncio.gather(*(cache.incr("sum") for _ in range(100)))
    assert sorted(sums) == list(range(1, 101))
    await _load(cache)
    await _lock(cache)
    assert await cache.delete("key 0") is True
    assert {key async for key in cache.scan()} == {*values, "sum", "loaded"} - {"key 0"}
    assert await cache.clear() == 101


async def _load(cache: AsyncPyroCacheClient) -> None:
    loads = 0

    async def load() -> str:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.1)
        return "loaded"

    assert await asyncio.gather(*(cache.get_or_set("loaded", load) for _ in range(20))) == ["loaded"] * 20
    assert loads == 1


async def _lock(cache: AsyncPyroCacheClient) -> None:
    holders = most = 0

    async def hold() -> None:
        nonlocal holders, most
        async with cache.lock("lock", ttl_seconds=10):
            holders += 1
            most = max(most, holders)
            await asyncio.sleep(0.02)
            holders -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(hold())
    assert most == 1
    async with cache.lock("lock"):
        try:
            async with cache.lock("lock", wait_seconds=0, thread_local=False):
                raise AssertionError("two hold it")
        except LockTimeout:
            pass
