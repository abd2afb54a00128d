"""Locks of the asyncio client: who owns them, how they are renewed, and holders that are cancelled or forgotten."""

from __future__ import annotations

import asyncio
import gc
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyrocache import AsyncPyroCacheClient, LocalCluster, LockLost, LockTimeout, PyroCacheClient
from pyrocache.aio.locks import AsyncGrant, AsyncLock
from pyrocache.runtime import clock
from tests.support.nodes import private_cluster
from tests.support.waiting import eventually

SOON = 5.0  # far longer than it takes, and far shorter than any lock lives that is not renewed


@pytest.fixture
def aio(shared_cluster: LocalCluster) -> Iterator[AsyncPyroCacheClient]:
    client = shared_cluster.async_client()
    yield client
    client._context.close()


def nothing_held(cache: PyroCacheClient) -> bool:
    """Return whether there is neither a lock nor a call that waits."""
    total = cache.stats().total
    return not (total.locks or total.waiting)


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, in a running loop."""
    async with asyncio.timeout(SOON):
        while not condition():  # nothing announces it
            await asyncio.sleep(0.005)


def grants_of(lock: AsyncLock) -> list[AsyncGrant]:
    return list(lock._owner.grants())


def test_one_task_holds_it_at_a_time_and_tokens_grow(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    holders, tokens = 0, []
    lock = aio.lock("name", 3600)

    async def work() -> None:
        nonlocal holders
        async with lock as held:
            assert held is lock
            holders += 1
            assert holders == 1
            assert lock.held
            tokens.append(lock.token or 0)
            await asyncio.sleep(0.001)
            holders -= 1
        assert not lock.held

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(20)))
        await until(lambda: nothing_held(cache))

    asyncio.run(main())
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 20


def test_it_excludes_the_locks_of_the_blocking_client(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    async def main() -> None:
        lock = aio.lock("name")
        async with lock:
            assert await lock.locked()
            assert not await asyncio.to_thread(cache.lock("name").acquire, False)
        assert not await lock.locked()
        assert await asyncio.to_thread(cache.lock("name").acquire, False)

    asyncio.run(main())


def test_how_long_it_waits(aio: AsyncPyroCacheClient) -> None:
    async def main() -> None:
        other, lock = aio.lock("name"), aio.lock("name", wait_seconds=0.05)
        async with other:
            assert not await lock.acquire()
            assert not await lock.acquire(False)
            assert not await lock.acquire(timeout=0.01)
            with pytest.raises(LockTimeout, match=r"within 0.05 s"):
                await lock.__aenter__()
            with pytest.raises(ValueError, match="takes no timeout"):
                await lock.acquire(False, 1)
            waiting = asyncio.create_task(lock.acquire(timeout=-1))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        assert await waiting

    asyncio.run(main())


def test_each_task_owns_what_it_acquires_or_the_object_does(aio: AsyncPyroCacheClient) -> None:
    async def main() -> None:
        lock, shared = aio.lock("of each"), aio.semaphore("of the object", 2, thread_local=False)
        assert await lock.acquire()
        with pytest.raises(RuntimeError, match="This task holds the lock already"):
            await lock.acquire()
        assert not await lock.acquire(False)

        async def other() -> None:
            assert not lock.held
            with pytest.raises(RuntimeError, match="This task does not hold the lock"):
                await lock.release()
            assert await shared.acquire()
            assert await shared.acquire()

        await asyncio.create_task(other())
        assert lock.held
        assert shared.held
        assert await shared.locked()
        await shared.release()
        await shared.release()
        with pytest.raises(RuntimeError, match="This object does not hold the lock"):
            await shared.release()
        assert "held with token" in repr(lock)
        await lock.release()
        assert repr(lock) == "<pyrocache lock 'of each'>"
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(lock)

    asyncio.run(main())


def test_an_object_that_owns_it_can_be_released_in_another_loop(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    lock = aio.lock("name", thread_local=False)

    async def main() -> None:
        await lock.acquire()
        await asyncio.to_thread(asyncio.run, lock.release())
        async with asyncio.timeout(SOON):
            async with lock:
                pass
        await until(lambda: nothing_held(cache))

    asyncio.run(main())


# Renewing ----------------------------------------------------------------------------------------------------


def test_it_is_renewed_and_the_timer_ends_with_it(aio: AsyncPyroCacheClient) -> None:
    async def main() -> None:
        lock, other = aio.lock("name", 0.3), aio.lock("name", 0.3)
        async with lock:
            (grant,) = grants_of(lock)
            await asyncio.sleep(0.6)
            assert lock.held
            assert not await other.acquire(False)
        assert grant._timer is not None
        assert grant._timer.cancelled()
        await until(lambda: len(asyncio.all_tasks()) == 1)  # a renewal may be under way

    asyncio.run(main())


def test_a_program_that_cancels_all_tasks_does_not_end_the_renewals(aio: AsyncPyroCacheClient) -> None:
    async def main() -> None:
        lock, other = aio.lock("name", 0.3), aio.lock("name", 0.3)
        async with lock:
            (grant,) = grants_of(lock)
            for turns in (0, 1, 2):
                assert grant._timer is not None
                grant._timer.cancel()
                grant.renew_at = clock.now()
                grant.wake()
                for _ in range(turns):
                    await asyncio.sleep(0)
                others = asyncio.all_tasks() - {asyncio.current_task()}
                assert others
                for task in others:
                    task.cancel()
                await asyncio.wait(others)
            await asyncio.sleep(0.6)
            assert lock.held
            assert not await other.acquire(False)

    asyncio.run(main())


def test_a_lock_that_was_lost_is_not_held_and_its_release_tells(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    async def lose_and_fail(lock: AsyncLock) -> None:
        async with lock:
            await aio._context.backend.release(grants_of(lock)[0]._name, lock.token, aio._context.deadline())
            raise LookupError

    async def main() -> None:
        lock = aio.lock("name", 0.3)
        await lock.acquire()
        (grant,) = grants_of(lock)
        await aio._context.backend.release(grant._name, grant.token, aio._context.deadline())
        await until(lambda: not lock.held)
        with pytest.raises(LockLost):
            await lock.release()
        await lock.acquire()  # again
        await lock.release()
        with pytest.raises(LookupError):  # not LockLost
            await lose_and_fail(lock)

    asyncio.run(main())


def test_a_lock_whose_name_moved_to_another_node_is_lost_at_its_next_renewal() -> None:
    with private_cluster(nodes=1) as cluster:
        aio = cluster.async_client()

        async def main() -> None:
            locks = [aio.lock(number, 3600) for number in range(20)]
            for lock in locks:
                await lock.acquire()
            await asyncio.to_thread(cluster.add_node)
            async with asyncio.timeout(2 * SOON):
                while len(await aio.nodes()) != 2:
                    await asyncio.sleep(0.01)
            moved = []
            for number, lock in enumerate(locks):
                (grant,) = grants_of(lock)
                grant.renew_at = clock.now()
                grant.wake()
                if (await aio.node_for(("lock", number))).name.endswith(".2"):
                    moved.append(lock)
            assert moved
            await until(lambda: not any(lock.held for lock in moved))
            for lock in locks:
                assert lock.held == (lock not in moved)

        asyncio.run(main())


def test_a_node_that_is_suspended_for_less_than_the_time_to_live_loses_no_lock() -> None:
    with private_cluster(nodes=1) as cluster:
        aio = cluster.async_client(timeout=0.3)

        async def main() -> None:
            lock = aio.lock("name", 6)
            async with lock:
                (grant,) = grants_of(lock)
                cluster.pause(0)
                for number in range(3):  # the node is suspected by then
                    with pytest.raises(ConnectionError):
                        await aio.get_or_set(number, lambda: 1)
                grant.renew_at = clock.now()
                grant.wake()
                await asyncio.sleep(0.2)
                assert lock.held
                cluster.resume(0)
                await until(lambda: grant.renew_at > clock.now() + 1)
                assert lock.held

        asyncio.run(main())


# Cancelled, forgotten ----------------------------------------------------------------------------------------


def test_tasks_that_are_cancelled_at_any_moment_hold_nothing(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    dice = random.Random(7)

    async def work(thread_local: bool) -> None:
        async with aio.lock("name", 3600, thread_local=thread_local):
            await asyncio.sleep(dice.choice((0, 0.0005, 0.002)))

    async def cancelled(number: int) -> None:
        task = asyncio.create_task(work(number % 2 == 0))
        if dice.random() < 0.5:
            await asyncio.sleep(dice.random() * 0.006)
        else:
            for _ in range(dice.randrange(12)):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    async def main() -> None:
        for _ in range(20):
            await asyncio.gather(*(cancelled(number) for number in range(10)))
            lock = aio.lock("name", 3600)
            assert await lock.acquire(timeout=SOON)
            await lock.release()
        await until(lambda: nothing_held(cache))

    gc.disable()  # nothing may depend on it
    try:
        asyncio.run(main())
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["the task ends", "the lock is forgotten", "the object is forgotten"])
def test_a_lock_that_nobody_releases_is_free(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient, how: str
) -> None:
    async def work() -> AsyncLock | None:
        lock = aio.lock("name", 3600, thread_local=how != "the object is forgotten")
        await lock.acquire()
        return lock if how == "the task ends" else None

    async def main() -> None:
        if how == "the lock is forgotten":
            await work()  # in this task, which goes on
        else:
            kept = asyncio.create_task(work())
            await kept
        other = aio.lock("name")
        assert await other.acquire(timeout=SOON)
        await other.release()
        await until(lambda: nothing_held(cache))

    asyncio.run(main())


def test_a_task_that_acquires_many_locks_remembers_none_of_them(aio: AsyncPyroCacheClient) -> None:
    async def main() -> None:
        task: Any = asyncio.current_task()
        for number in range(20):
            async with aio.lock(number):
                pass
        callbacks = [callback for callback in task._callbacks or () if "_task_ended" in repr(callback)]
        assert not callbacks

    asyncio.run(main())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("renewing", [False, True])
def test_a_loop_that_is_closed_while_a_lock_is_held(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient, caplog: pytest.LogCaptureFixture, renewing: bool
) -> None:
    lock = aio.lock("name", 3600, thread_local=False)

    async def hold() -> None:
        await lock.acquire()
        if renewing:
            (grant,) = grants_of(lock)
            grant.renew_at = clock.now()
            grant.wake()
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(hold())
    loop.close()
    assert not caplog.records
    other = aio.lock("name")
    assert asyncio.run(other.acquire(timeout=SOON))  # the next loop closes the connections of the one before
    with pytest.raises(LockLost):
        asyncio.run(lock.release())
    gc.collect()
    eventually(lambda: nothing_held(cache))
    assert not caplog.records


def test_a_lock_that_is_collected_in_another_thread_is_free(
    aio: AsyncPyroCacheClient, cache: PyroCacheClient
) -> None:
    async def main() -> None:
        held = [aio.lock("name", 3600, thread_local=False)]
        await held[0].acquire()
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        await until(lambda: nothing_held(cache))

    asyncio.run(main())
