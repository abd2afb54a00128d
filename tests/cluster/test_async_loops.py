"""One asyncio client in many event loops: one after the other, in several threads, ended in the middle of calls."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pyrocache import AsyncPyroCacheClient, LocalCluster, errors
from tests.support.loops import connections_of, eventually, run_cleanly
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2) as cluster:
        yield cluster


@pytest.fixture
def cache(cluster: LocalCluster) -> AsyncPyroCacheClient:
    return cluster.async_client()


def open_sockets() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            pass
    return found


@pytest.mark.full
def test_one_client_serves_one_event_loop_after_the_other(cache: AsyncPyroCacheClient) -> None:
    async def main(n: int) -> Any:
        await cache.set("turn", n)
        return await cache.get("turn")

    before = open_sockets()
    for n in range(10):
        assert run_cleanly(lambda n=n: main(n)) == n  # type: ignore[misc]
    # The connections of a loop that has ended are closed when the next one begins.
    assert open_sockets() <= before + 8
    run_cleanly(cache.close)
    assert wait_until(lambda: open_sockets() <= before)


def test_loops_in_several_threads_use_one_client_at_once(cache: AsyncPyroCacheClient) -> None:
    async def main(thread: int) -> list[Any]:
        for n in range(50):
            await asyncio.gather(*(cache.set((thread, n, i), i) for i in range(10)))
        values = await asyncio.gather(*(cache.get((thread, n, i)) for n in range(50) for i in range(10)))
        async with cache.lock("one at a time"):
            return values

    with ThreadPoolExecutor(4) as threads:
        for values in threads.map(lambda thread: asyncio.run(main(thread)), range(4)):
            assert values == list(range(10)) * 50
    run_cleanly(cache.close)


def test_closing_a_client_ends_the_calls_in_the_loop_of_another_thread(cache: AsyncPyroCacheClient) -> None:
    waiting = threading.Event()
    outcome: list[BaseException] = []

    async def wait() -> None:
        async with cache.lock("taken"):
            waiting.set()
            try:
                await cache.lock("taken", thread_local=False).acquire()
            except errors.ClientClosed as error:
                outcome.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(_ignoring_lost_locks(wait)))
    thread.start()
    assert waiting.wait(10)
    asyncio.run(cache.close())
    thread.join(10)
    assert not thread.is_alive()
    assert len(outcome) == 1


async def _ignoring_lost_locks(main: Any) -> None:
    try:
        await main()
    except (errors.LockLost, errors.ClientClosed):
        pass


@pytest.mark.parametrize("held", [pytest.param(False, marks=pytest.mark.full), True])
def test_a_loop_that_is_closed_with_calls_under_way_leaves_nothing(
    cluster: LocalCluster, cache: AsyncPyroCacheClient, held: bool
) -> None:
    before = open_sockets()
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        await cache.set("key", "value")
        if held:
            await cache.lock("held by an ended loop", ttl_seconds=60).acquire()
        tasks = [asyncio.ensure_future(cache.get("key")) for _ in range(5)]
        tasks += [asyncio.ensure_future(cache.lock("held by an ended loop").acquire()) for _ in range(5)]
        iterator = cache.scan()
        await anext(iterator)
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.run_until_complete(begin())
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        del loop
        gc.collect()

        async def again() -> Any:
            lock = cache.lock("held by an ended loop")
            assert await lock.acquire(timeout=10)  # its connection is closed, so the node has freed it
            await lock.release()
            return await cache.get("key")

        assert run_cleanly(again) == "value"
        run_cleanly(cache.close)
    assert wait_until(lambda: open_sockets() <= before)


def test_a_client_that_is_never_closed_is_collected_without_a_warning(cluster: LocalCluster) -> None:
    before = open_sockets()

    async def main() -> None:
        client = cluster.async_client()
        await client.set("key", 1)
        await client.lock("never released").acquire()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
        gc.collect()
    assert wait_until(lambda: (gc.collect(), open_sockets() <= before)[1])


def test_a_closed_client_refuses_calls_and_can_be_closed_again(cache: AsyncPyroCacheClient) -> None:
    async def main() -> None:
        async with cache:
            await cache.set("key", 1)
            inner = cache.namespace("inner")
        for call in (cache.get("key"), inner.get("key"), cache.size(), cache.lock("x").acquire()):
            with pytest.raises(errors.ClientClosed):
                await call
        await cache.close()

    run_cleanly(main)


def test_disconnect_lets_calls_end_and_the_next_call_connect(cache: AsyncPyroCacheClient) -> None:
    async def main() -> None:
        async with cache:
            await cache.set("key", 1)
            calls = [asyncio.ensure_future(cache.get("key")) for _ in range(20)]
            await asyncio.sleep(0)
            async with cache.lock("held meanwhile") as lock:
                await cache.disconnect()
                assert await asyncio.gather(*calls) == [1] * 20
                assert await cache.get("key") == 1
                assert lock.held

            async def few() -> bool:
                return len(connections_of(cache)) <= 2

            await eventually(few)

    run_cleanly(main)


def test_a_pickled_client_is_one_of_the_same_cluster(cache: AsyncPyroCacheClient) -> None:
    async def main() -> Any:
        async with cache, pickle.loads(pickle.dumps(cache.namespace("a"))) as copy:
            await cache.namespace("a").set("key", "value")
            return await copy.get("key")

    assert run_cleanly(main) == "value"


def test_a_forked_child_has_connections_of_its_own(
    cluster: LocalCluster, cache: AsyncPyroCacheClient
) -> None:
    async def use(name: str) -> bool:
        await cache.set(name, name)
        return bool(await cache.get(name) == name)

    assert asyncio.run(use("parent"))
    pid = os.fork()
    if pid == 0:
        ok = False
        try:
            ok = asyncio.run(use("child"))
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert asyncio.run(use("parent again"))


def _run(tmp_path: Path, cluster: LocalCluster, script: str, *command: str) -> None:
    """Run a script with warnings as errors, against a cluster."""
    path = tmp_path / "test_script.py"
    path.write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYROCACHE_NAMESERVER": cluster.nameserver}
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *command, str(path)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "Warning" not in output, output
    assert "never" not in output, output
    assert "Traceback" not in output, output


def test_nothing_is_reported_at_the_end_of_a_program(tmp_path: Path, cluster: LocalCluster) -> None:
    script = """
        import asyncio
        from pyrocache import AsyncPyroCacheClient

        cache = AsyncPyroCacheClient()

        @cache.memoize()
        async def square(n):
            return n * n

        async def main():
            assert await square(4) == 16
            lock = cache.lock("held to the end")
            await lock.acquire()
            asyncio.ensure_future(cache.lock("held to the end").acquire())
            await asyncio.sleep(0.01)

        asyncio.run(main())
    """
    _run(tmp_path, cluster, script)


def test_uvloop(tmp_path: Path, cluster: LocalCluster) -> None:
    pytest.importorskip("uvloop")
    script = """
        import asyncio
        import uvloop
        from pyrocache import AsyncPyroCacheClient

        cache = AsyncPyroCacheClient()

        async def main():
            async with cache:
                await asyncio.gather(*(cache.set(("uvloop", n), n) for n in range(500)))
                assert await asyncio.gather(*(cache.get(("uvloop", n)) for n in range(500))) == list(range(500))
                big = bytes(3_000_000)
                await cache.set("big", big)
                assert await cache.get("big") == big
                async with cache.lock("x"):
                    task = asyncio.ensure_future(cache.lock("x").acquire())
                    await asyncio.sleep(0.01)
                    task.cancel()
                assert await cache.get_or_set("loaded", lambda: asyncio.sleep(0, 7)) == 7

        uvloop.run(main())
    """
    _run(tmp_path, cluster, script)


def test_pytest_asyncio(tmp_path: Path, cluster: LocalCluster) -> None:
    pytest.importorskip("pytest_asyncio")
    script = """
        import pytest
        from pyrocache import AsyncPyroCacheClient

        shared = AsyncPyroCacheClient()

        @shared.memoize(name="twice")
        async def twice(n):
            return 2 * n

        @pytest.mark.asyncio
        @pytest.mark.parametrize("n", range(3))
        async def test_a_client_of_the_module(n):
            assert await shared.set("key", n)
            assert await shared.get("key") == n
            assert await twice(n) == 2 * n

        @pytest.mark.asyncio
        async def test_a_client_of_the_test():
            async with AsyncPyroCacheClient() as cache:
                async with cache.lock("x"):
                    assert await cache.ping() == 2
    """
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-q", "-W", "error"]
    options += ["-o", "asyncio_default_fixture_loop_scope=function"]
    _run(tmp_path, cluster, script, "-m", "pytest", *options)


@pytest.mark.full
def test_calls_one_after_the_other_let_other_tasks_run(cache: AsyncPyroCacheClient) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def main() -> int:
        async with cache:
            await cache.set("key", 1)
            counting = asyncio.ensure_future(count())
            await asyncio.sleep(0)
            before = turns
            for _ in range(200):
                await cache.get("key")
                await cache.set("key", 1)
            counting.cancel()
            return turns - before

    assert run_cleanly(main) >= 400
