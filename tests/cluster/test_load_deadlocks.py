"""Loads of one process that wait for each other are an error at once; others end as they did."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pyrocache import LoadDeadlock, LocalCluster, PyroCacheClient

AT_ONCE = 10.0  # far longer than it takes, and far shorter than a lease


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(16)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)


def caught(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except LoadDeadlock as error:
        return error


@pytest.mark.parametrize("names", ["ab", "abcde"])
def test_factories_that_need_each_other_in_a_circle(
    shared_cluster: LocalCluster, cache: PyroCacheClient, threads: ThreadPoolExecutor, names: str
) -> None:
    together = threading.Barrier(len(names))

    def load(name: str) -> Any:
        client = shared_cluster.client()  # one each: they are one circle all the same
        following = names[(names.index(name) + 1) % len(names)]

        def factory() -> str:
            together.wait(AT_ONCE)
            return name + client.get_or_set(following, lambda: "!")

        return caught(lambda: client.get_or_set(name, factory))

    results = list(threads.map(load, names, timeout=AT_ONCE))
    errors = [result for result in results if isinstance(result, LoadDeadlock)]
    assert len(errors) == 1
    assert "each other" in str(errors[0])
    assert sorted(map(len, set(results) - set(errors)))[0] == 2  # the one behind the error loaded by itself
    assert cache.stats().total.leases == cache.stats().total.waiting == 0


def test_a_worker_of_a_factory_that_asks_for_the_value_being_loaded(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    def by_pool() -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(cache.get_or_set, "pool", by_pool).result()

    def by_thread() -> Any:
        results: list[Any] = []
        thread = threading.Thread(
            target=lambda: results.append(caught(lambda: cache.get_or_set("thread", by_thread)))
        )
        thread.start()
        thread.join()
        return str(results[0])

    assert isinstance(
        threads.submit(caught, lambda: cache.get_or_set("pool", by_pool)).result(AT_ONCE), LoadDeadlock
    )
    assert "each other" in threads.submit(cache.get_or_set, "thread", by_thread).result(AT_ONCE)


def test_a_worker_that_asks_for_a_value_whose_load_needs_the_factory(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    loading = threading.Event()

    def other() -> Any:
        loading.set()
        return cache.get_or_set("first", lambda: "first by other")

    def first() -> Any:
        second = threads.submit(cache.get_or_set, "other", other)
        assert loading.wait(AT_ONCE)
        worker = threads.submit(cache.get_or_set, "other", lambda: "other by worker")
        return [caught(worker.result), second]

    found, second = threads.submit(cache.get_or_set, "first", first).result(AT_ONCE)
    outcomes = [found, caught(lambda: second.result(AT_ONCE))]
    assert len([outcome for outcome in outcomes if isinstance(outcome, LoadDeadlock)]) >= 1


def test_coroutines_that_need_each_other(cache: PyroCacheClient) -> None:
    began = {name: asyncio.Event() for name in "ab"}

    @cache.memoize()
    async def load(name: str, depth: int = 0) -> str:
        other = "b" if name == "a" else "a"
        began[name].set()
        await asyncio.wait_for(began[other].wait(), AT_ONCE)
        try:
            return name + await load(other)
        except LoadDeadlock:
            return "deadlock"

    async def both() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(load("a"), load("b")), AT_ONCE)  # type: ignore[arg-type]

    assert "deadlock" in "".join(asyncio.run(both()))


def test_what_only_looks_like_one_ends_well(cache: PyroCacheClient, threads: ThreadPoolExecutor) -> None:
    """A factory that waits for another load, which takes its time, and workers that ask for other values."""

    def slow() -> str:
        time.sleep(0.5)
        return "slow"

    def outer(number: int) -> Any:
        return [
            *threads.map(lambda _: cache.get_or_set("slow", slow), range(2)),
            cache.get_or_set("slow", slow),
        ]

    pool = ThreadPoolExecutor(4)
    results = [pool.submit(cache.get_or_set, f"outer {n % 2}", lambda n=n: outer(n)) for n in range(4)]
    assert [result.result(AT_ONCE) for result in results] == [["slow"] * 3] * 4


def test_a_thread_that_asks_for_its_own_value_loads_it_as_before(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    other = shared_cluster.client()
    assert cache.get_or_set("own", lambda: other.get_or_set("own", lambda: "inner") + "!") == "inner!"
    assert cache["own"] == "inner!"


def test_a_worker_with_the_context_of_its_factory_loads_as_the_factory_would(cache: PyroCacheClient) -> None:
    @cache.memoize()
    async def load(depth: int) -> Any:
        return await asyncio.to_thread(cache.get_or_set, load.key(depth), lambda: "inner")

    assert asyncio.run(load(1)) == "inner"  # type: ignore[arg-type]
