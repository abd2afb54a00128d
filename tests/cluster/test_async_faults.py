"""The asyncio client while nodes, the name server or connections fail: each call ends, the others do not notice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from pyrocache import (
    AsyncPyroCacheClient,
    ClientClosed,
    LocalCluster,
    MayHaveBeenDone,
    NodeUnavailable,
    PyroCacheError,
)
from pyrocache.aio.backend import AsyncBackend
from pyrocache.aio.router import AsyncRouter
from pyrocache.client.context import ClientContext
from pyrocache.cluster.routing import ClusterView
from pyrocache.config import ClientConfig, parse_address
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import Listing
from pyrocache.protocol.handshake import format_peer
from pyrocache.runtime.secret import find_secret
from tests.support.certificates import Certificates
from tests.support.cutting_proxy import CuttingProxy
from tests.support.loops import eventually, run_cleanly
from tests.support.secrets import directory_of
from tests.support.tls_cluster import tls_cluster
from tests.support.waiting import PATIENCE_SECONDS

TIMEOUT_SECONDS = 1.0
KEYS = 60
MIB = 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2) as cluster:
        yield cluster


async def keys_of(cache: AsyncPyroCacheClient, name: str, count: int = KEYS) -> list[Any]:
    """Return keys that belong to one node."""
    return [key for key in range(20 * count) if (await cache.node_for(key)).name == name][:count]


class Others:
    """What other tasks do meanwhile.

    Attributes:
        calls: how many calls they have made.
        longest: the seconds that the longest one took.
    """

    calls = 0
    longest = 0.0


@asynccontextmanager
async def calling(call: Callable[[], Awaitable[Any]], tasks: int = 4) -> AsyncIterator[Others]:
    """Make these calls again and again, all of which must succeed."""
    others, over = Others(), False

    async def go_on() -> None:
        while not over:
            began = time.monotonic()
            await call()
            others.longest = max(others.longest, time.monotonic() - began)
            others.calls += 1
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(go_on())
        yield others
        over = True


async def seconds_of(call: Awaitable[Any]) -> float:
    """Return how long a call took that fails as its node does not answer."""
    began = time.monotonic()
    with pytest.raises(NodeUnavailable):
        await call
    return time.monotonic() - began


async def answers(call: Callable[[], Awaitable[Any]]) -> bool:
    """Return whether a call succeeds."""
    try:
        await call()
    except PyroCacheError:
        return False
    return True


def test_a_paused_node_costs_its_own_calls_their_deadline_and_the_others_nothing(
    cluster: LocalCluster,
) -> None:
    paused, running = cluster.nodes

    async def main() -> None:
        async with cluster.async_client(timeout=TIMEOUT_SECONDS) as cache:
            await cache.clear()
            silent, served = await keys_of(cache, paused.name), await keys_of(cache, running.name)
            await cache.set_many(dict.fromkeys(silent + served, "value"))
            cluster.pause(0)
            try:
                async with calling(lambda: cache.get(served[0])) as others:
                    times = await asyncio.gather(*(seconds_of(cache.get(key)) for key in silent))
                    assert min(times) > 0.8 * TIMEOUT_SECONDS
                    # The node is in doubt now. The next call pings it, in vain; from then on, calls fail at once.
                    await seconds_of(cache.get(silent[0]))
                    assert sorted([await seconds_of(cache.get(key)) for key in silent])[KEYS // 2] < 0.05
                    assert await cache.get_many(served) == dict.fromkeys(served, "value")
                assert others.calls > 100
                assert others.longest < TIMEOUT_SECONDS  # one that waited for the node would take longer
            finally:
                cluster.resume(0)
            async with cluster.async_client() as other:
                assert await other.get_many(silent) == dict.fromkeys(silent, "value")

    run_cleanly(main)


@pytest.mark.full
def test_a_node_that_goes_on_is_trusted_again(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with cluster.async_client(timeout=TIMEOUT_SECONDS) as cache:
            silent = await keys_of(cache, cluster.nodes[0].name)
            await cache.set_many(dict.fromkeys(silent, "value"))
            cluster.pause(0)
            try:
                for key in silent:
                    await seconds_of(cache.get(key))
            finally:
                cluster.resume(0)
            await eventually(lambda: answers(lambda: cache.get(silent[0])))
            assert await asyncio.gather(*map(cache.get, silent)) == ["value"] * KEYS

    run_cleanly(main)


@pytest.mark.full
def test_a_node_that_was_killed_serves_again_after_its_restart(cluster: LocalCluster) -> None:
    killed, running = cluster.nodes

    async def main() -> None:
        async with cluster.async_client(timeout=5) as cache:
            await cache.clear()
            lost, served = await keys_of(cache, killed.name), await keys_of(cache, running.name)
            await cache.set_many(dict.fromkeys(lost + served, "value"))
            async with calling(lambda: cache.get(served[0])) as others:
                under_way = [asyncio.create_task(cache.set(key, "new")) for key in lost]
                await asyncio.sleep(0)
                cluster.kill(0)
                for outcome in await asyncio.gather(*under_way, return_exceptions=True):
                    assert outcome is True or isinstance(outcome, NodeUnavailable)
                assert not await answers(lambda: cache.get(lost[0]))
                await asyncio.to_thread(cluster.restart, 0)
                await eventually(lambda: answers(lambda: cache.get(lost[0])))
                await asyncio.gather(*(cache.set(key, "again") for key in lost))
                assert await cache.get_many(lost) == dict.fromkeys(lost, "again")
            assert others.calls > 10

    run_cleanly(main)


@pytest.mark.full
def test_the_name_server_is_not_needed_by_a_client_that_knows_the_nodes(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with cluster.async_client(timeout=5) as cache:
            await cache.set_many({key: key for key in range(KEYS)})
            cluster.kill_nameserver()
            try:
                found = await asyncio.gather(*(cache.get(key) for key in range(KEYS)))
                assert found == list(range(KEYS))
            finally:
                await asyncio.to_thread(cluster.restart_nameserver)
            async with cluster.async_client(timeout=5) as new:
                assert await new.get_many(range(KEYS)) == {key: key for key in range(KEYS)}

    run_cleanly(main)


@pytest.mark.full
def test_no_call_fails_and_no_increment_is_doubled_while_a_node_joins_and_leaves(
    cluster: LocalCluster,
) -> None:
    async def main() -> None:
        async with cluster.async_client(timeout=10) as cache:
            await cache.clear()
            turn = 0

            async def call() -> None:
                nonlocal turn
                turn += 1
                await asyncio.gather(*(cache.incr(("n", (turn + i) % KEYS)) for i in range(10)))
                await cache.get(("n", turn % KEYS))  # None, if the node joins or leaves now

            async with calling(call) as others:
                await asyncio.sleep(0.2)
                await asyncio.to_thread(cluster.add_node)
                await asyncio.sleep(0.5)
                await asyncio.to_thread(cluster.remove_node, 2)
                await asyncio.sleep(0.2)
            found = await cache.get_many([("n", i) for i in range(KEYS)])
            # A cache may lose entries when nodes join or leave. It never counts twice.
            assert sum(found.values()) <= 10 * others.calls
            assert others.calls > 50

    run_cleanly(main)


class Proxied:
    """A name server's entries, with the address of a proxy instead of the node's."""

    def __init__(self, nameserver: str, port: int) -> None:
        self._directory = directory_of(nameserver)
        self._port = port

    def listing(self, timeout: float = 5.0) -> Listing:
        listed = self._directory.listing(timeout)
        members = [replace(member, port=self._port, socket_path="") for member in listed.view.members]
        return listed._replace(views=(ClusterView(members, listed.view.number, listed.cluster),))


@pytest.fixture(scope="module")
def one_node() -> Iterator[LocalCluster]:
    with LocalCluster(1) as cluster:
        yield cluster


@pytest.fixture
def proxy(one_node: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    """A proxy before the node, whose clients say that they have dialled the node."""
    node = parse_address(one_node.nodes[0].address)
    with CuttingProxy(node) as proxy:
        monkeypatch.setattr(
            "pyrocache.net.connection.format_peer",
            lambda peer: format_peer(node) if peer[1] == proxy.port else format_peer(peer),
        )
        yield proxy


def proxied_client(one_node: LocalCluster, proxy: CuttingProxy, timeout: float) -> AsyncPyroCacheClient:
    directory: Any = Proxied(one_node.nameserver, proxy.port)
    config = ClientConfig(nameserver=one_node.nameserver, timeout=timeout)
    router = AsyncRouter(
        directory,
        connections=1,
        transport="tcp",
        nameserver=one_node.nameserver,
        caller=knowing(find_secret()),
    )
    return AsyncPyroCacheClient._of(ClientContext(config, AsyncBackend(router)))


@pytest.mark.parametrize("rest", [False, True], ids=["one reply is lost", "all later replies are lost"])
def test_pipelined_changes_whose_replies_were_lost_are_done_once(
    one_node: LocalCluster, proxy: CuttingProxy, rest: bool
) -> None:
    rounds, calls = 5, 100

    async def main() -> int:
        proxy.rest = rest
        async with proxied_client(one_node, proxy, 10) as cache:
            await cache.set("sum", 0)
            for number in range(rounds):
                proxy.cut, proxy.after = "reply", 7 * number
                sums = await asyncio.gather(*(cache.incr("sum") for _ in range(calls)))
                # Each reply is that of its own call, also those that were asked for again.
                assert sorted(sums) == list(range(number * calls + 1, (number + 1) * calls + 1))
            assert await cache.get("sum") == rounds * calls
            return (await cache.stats()).client.repeats

    repeats = run_cleanly(main)
    assert proxy.cuts == rounds
    assert repeats >= rounds * (50 if rest else 1)


def test_changes_that_cannot_be_settled_are_reported_as_perhaps_done(
    one_node: LocalCluster, proxy: CuttingProxy
) -> None:
    calls = 50

    async def main() -> None:
        async with (
            proxied_client(one_node, proxy, TIMEOUT_SECONDS) as cache,
            one_node.async_client() as other,
        ):
            await other.set("sum", 0)
            assert await cache.get("sum") == 0
            # The node does not answer again before the deadline.
            proxy.cut, proxy.after, proxy.rest = "reply", 20, True
            proxy.meanwhile = lambda: one_node.pause(0)
            try:
                outcomes = await asyncio.gather(
                    *(cache.incr("sum") for _ in range(calls)), return_exceptions=True
                )
            finally:
                one_node.resume(0)
            done = [outcome for outcome in outcomes if isinstance(outcome, int)]
            perhaps = [outcome for outcome in outcomes if isinstance(outcome, MayHaveBeenDone)]
            assert len(done) + len(perhaps) == calls, outcomes
            assert done == list(range(1, 21))
            await eventually(lambda: answers(lambda: other.get("sum")))
            assert await other.get("sum") == calls  # all were executed, before the cut

    run_cleanly(main)


@pytest.mark.parametrize("verb", ["set", "get"])
def test_a_large_value_under_way_does_not_hold_up_small_calls(cluster: LocalCluster, verb: str) -> None:
    large = "x" * (16 * MIB)

    async def main() -> None:
        async with cluster.async_client(timeout=20, transport="tcp") as cache:
            name = (await cache.node_for("large")).name
            small = (await keys_of(cache, name, 1))[0]
            await cache.set("large", large)
            await cache.set(small, "small")

            async def move() -> object:
                return await (cache.set("large", large) if verb == "set" else cache.get("large"))

            overtaken = 0
            for turn in range(100):  # a busy machine may let none pass in one turn
                moving = asyncio.create_task(move())
                await asyncio.sleep(0.001)  # reads of the same turn would travel as one
                while not moving.done():
                    assert await cache.get(small) == "small"
                    overtaken += turn > 1 and not moving.done()  # both connections are open by then
                assert await moving == (True if verb == "set" else large)
                if overtaken >= 4:
                    break
            assert overtaken >= 4

    run_cleanly(main)


@pytest.mark.full
def test_small_and_large_values_travel_over_tls(certificates: Certificates) -> None:
    async def main() -> None:
        values = {("value", size): "x" * size for size in (0, 1, 1000, 70_000, MIB, 5 * MIB)}
        async with AsyncPyroCacheClient(
            running.nameserver, transport="tcp", tls=running.client_tls, timeout=20
        ) as cache:
            await asyncio.gather(*(cache.set(key, value) for key, value in values.items()))
            for _ in range(3):
                found = await asyncio.gather(*(cache.get(key) for key in [*values, *values]))
                assert found == [*values.values(), *values.values()]
            assert await cache.get_many(values) == values
            sums = await asyncio.gather(*(cache.incr("sum") for _ in range(200)))
            assert sorted(sums) == list(range(1, 201))
            async with cache.lock("lock"):
                assert await cache.get_or_set("loaded", lambda: 5) == 5

    with tls_cluster(certificates) as running:
        run_cleanly(main)


@pytest.mark.full
def test_a_lock_is_acquired_at_whatever_moment_the_client_disconnects(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with cluster.async_client() as cache:
            loop = asyncio.get_running_loop()

            def disconnect(turns: int) -> None:
                if turns:
                    loop.call_soon(disconnect, turns - 1)
                else:
                    cache._context.disconnect()  # nothing, if the client is closed by now

            for turns in range(8):
                async with cache.lock("lock"):
                    pass  # the connection is open
                lock = cache.lock("lock")
                loop.call_soon(disconnect, turns)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    assert await lock.acquire()
                await lock.release()

    run_cleanly(main)


@pytest.mark.full
def test_a_call_that_pings_a_silent_node_ends_with_the_client(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with cluster.async_client(timeout=TIMEOUT_SECONDS) as cache:
            silent = (await keys_of(cache, cluster.nodes[0].name, 1))[0]
            cluster.pause(0)
            try:
                await seconds_of(cache.get(silent))
                pinging = asyncio.create_task(cache.get(silent))
                await asyncio.sleep(0.05)
                assert not pinging.done()
                await cache.close()
                with pytest.raises(ClientClosed):
                    await pinging
            finally:
                cluster.resume(0)

    run_cleanly(main)
