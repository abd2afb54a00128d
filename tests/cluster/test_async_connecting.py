"""How connections of the asyncio client open, and what happens to a call whose coroutine ends while it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from pyrocache import LocalCluster
from pyrocache.aio.connection import PipelinedConnection
from pyrocache.cluster.routing import Member
from pyrocache.net.call_protocol import ANONYMOUS
from pyrocache.net.channel import resolve
from pyrocache.runtime import clock
from tests.support.loops import run_cleanly
from tests.support.waiting import PATIENCE_SECONDS


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1) as cluster:
        yield cluster


@contextlib.contextmanager
def full_listener() -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """Yield a listener that accepts no further connection for now, and the connections that fill its queue."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        filling = []
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(0.05)
            filling.append(sock)
            try:
                sock.connect(listener.getsockname())
            except TimeoutError:
                break
        else:
            pytest.skip("this system's queues are never full")
        yield listener, filling


def test_a_connection_that_the_system_makes_later_is_greeted_then() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with full_listener() as (listener, filling):
            host, port = listener.getsockname()
            member = Member("cache.node.1", host, port)
            connection = PipelinedConnection(
                loop, member, "tcp", ANONYMOUS, resolve(host, port), lambda changed: None
            )
            connection.opens_until(clock.now() + PATIENCE_SECONDS)
            await asyncio.sleep(0.05)
            assert not connection.closed
            filling.pop().close()
            listener.setblocking(False)
            for _ in filling:
                (await loop.sock_accept(listener))[0].close()
            async with asyncio.timeout(PATIENCE_SECONDS):
                accepted, _ = await loop.sock_accept(listener)
                with accepted:
                    accepted.setblocking(False)
                    assert (await loop.sock_recv(accepted, 4)) == b"PYRO"
            connection.close(ConnectionResetError())

    run_cleanly(main)


def test_the_second_address_of_a_node_is_tried(cluster: LocalCluster) -> None:
    host, _, port = cluster.nodes[0].address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        member = Member(cluster.nodes[0].name, host, int(port))
        addresses = [(socket.AF_INET, nobody), *resolve(host, int(port))]
        connection = PipelinedConnection(loop, member, "tcp", ANONYMOUS, addresses, lambda changed: None)
        connection.opens_until(clock.now() + PATIENCE_SECONDS)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (connection.opened or connection.closed):
                await asyncio.sleep(0.01)
        # This caller has no secret: the node answers, and refuses it.
        assert connection.closed
        assert "secret" in str(connection.failure)

    run_cleanly(main)


def test_a_value_that_changes_after_its_call_was_cancelled_is_stored_whole_or_not(
    cluster: LocalCluster,
) -> None:
    async def main() -> None:
        async with cluster.async_client(timeout=20) as cache:
            for _ in range(5):
                await cache.set("array", np.zeros(1))
                array = np.zeros(4_000_000)
                task = asyncio.create_task(cache.set("array", array))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                array[:] = 1
                await cache.set("other", 1)
                stored = await cache.get("array")
                assert not stored.any()

    run_cleanly(main)


def test_an_idle_loop_whose_client_was_disconnected_connects_again(cluster: LocalCluster) -> None:
    cache = cluster.async_client(timeout=5)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(cache.set("key", 1))
        second.run(cache.disconnect())
        assert first.run(cache.get("key")) == 1
        first.run(cache.close())


def test_a_call_at_the_limit_of_recursion_does_not_stop_later_ones(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with cluster.async_client(timeout=5) as cache:
            await cache.set("key", 1)

            async def deep(levels: int) -> None:
                if levels:
                    await deep(levels - 1)
                    return
                await cache.get("key")
                await cache.get_or_set(("loaded", levels), lambda: 1)

            for levels in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit(), 2):
                with contextlib.suppress(RecursionError):
                    await deep(levels)
            assert await cache.get("key") == 1
            async with cache.lock("lock"):
                assert await cache.get_or_set("after", lambda: 2) == 2

    asyncio.run(asyncio.wait_for(main(), 30))
