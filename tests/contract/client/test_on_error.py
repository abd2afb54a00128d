"""With ``on_error="miss"`` a program runs without name server and without nodes; only some calls say so."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyrocache import (
    CacheUnavailable,
    InvalidKey,
    LocalCluster,
    NameServerUnavailable,
    NodeUnavailable,
    NoNodes,
    PyroCacheClient,
)
from pyrocache.client.context import ClientContext
from pyrocache.runtime.throttle import Throttle
from tests.support.nodes import private_cluster, running_nameserver
from tests.support.processes import free_address
from tests.support.waiting import eventually

Call = Callable[[PyroCacheClient], Any]

MISSES: list[tuple[Call, Any]] = [
    (lambda c: c.get("key", "default"), "default"),
    (lambda c: c.get("key", "default", touch_seconds=5), "default"),
    (lambda c: c.get_with_version("key"), None),
    (lambda c: c.set("key", 1), False),
    (lambda c: c.set("key", 1, 60, tags=["a"]), False),
    (lambda c: c.add("key", 1), False),
    (lambda c: c.replace("key", 1), False),
    (lambda c: c.setdefault("key", 1), 1),
    (lambda c: c.touch("key", 60), False),
    (lambda c: c.ttl("key"), None),
    (lambda c: c.delete("key"), False),
    (lambda c: c.contains("key"), False),
    (lambda c: "key" in c, False),
    (lambda c: c.pop("key", "default"), "default"),
    (lambda c: c.get_many(["key", "other"]), {}),
    (lambda c: c.set_many({"key": 1, "other": 2}), 0),
    (lambda c: c.delete_many(["key"]), 0),
    (lambda c: c.touch_many(["key"], 5), 0),
    (lambda c: c.update(key=1), None),
    (lambda c: c.invalidate_tag("a"), 0),
    (lambda c: c.clear(), 0),
    (lambda c: len(c), 0),
    (lambda c: bool(c), False),
    (lambda c: list(c), []),
    (lambda c: list(c.scan("k")), []),
    (lambda c: list(c.items()), []),
    (lambda c: list(c.values()), []),
    (lambda c: c == {}, True),
    (lambda c: c.get_or_set("key", lambda: "made"), "made"),
    (lambda c: c.get_or_set("key", lambda: "made", early=1.0), "made"),
    (lambda c: c.memoize()(lambda: "made")(), "made"),
    (lambda c: c.memoize()(lambda: "made").refresh(), "made"),
    (lambda c: c.memoize()(lambda: "made").invalidate(), False),
    (lambda c: c.namespace("inner").get("key"), None),
]

RAISES: list[Call] = [
    lambda c: c.set("key", 1, if_version=1),
    lambda c: c.compare_and_set("key", 1, 1),
    lambda c: c.compute("key", lambda value: value, default=1),
    lambda c: c.incr("key"),
    lambda c: c.decr("key"),
    lambda c: c.lock("name").acquire(),
    lambda c: c.semaphore("name", 2).acquire(),
    lambda c: c.ping(),
    lambda c: c.nodes(),
    lambda c: c.node_for("key"),
    lambda c: c.stats(),
]


@pytest.fixture(scope="module", params=["no name server", "no nodes"])
def away(request: pytest.FixtureRequest) -> Iterator[tuple[str, type[CacheUnavailable]]]:
    """The address of a cluster that is not there, and how that is said."""
    if request.param == "no name server":
        yield free_address(), NameServerUnavailable
    else:
        with running_nameserver() as address:
            yield address, NoNodes


@pytest.mark.parametrize("number", range(len(MISSES)))
def test_every_first_call_is_a_miss_or_the_error(
    client_class: type[PyroCacheClient], away: tuple[str, type[Exception]], number: int
) -> None:
    (address, error), (call, expected) = away, MISSES[number]
    with client_class(address, on_error="miss") as lenient, client_class(address) as strict:
        assert call(lenient) == expected
        with pytest.raises(error):
            call(strict)


@pytest.mark.parametrize("number", range(len(RAISES)))
def test_what_cannot_be_made_up_is_an_error(
    client_class: type[PyroCacheClient], away: tuple[str, type[Exception]], number: int
) -> None:
    with client_class(away[0], on_error="miss") as lenient, pytest.raises(away[1]):
        RAISES[number](lenient)


def test_a_missing_entry_is_missing_and_a_wrong_argument_is_wrong(
    client_class: type[PyroCacheClient], away: tuple[str, Any]
) -> None:
    with client_class(away[0], on_error="miss") as lenient:
        for call in (lambda: lenient["key"], lambda: lenient.pop("key"), lenient.popitem):
            with pytest.raises(KeyError):
                call()
        with pytest.raises(ValueError, match="ttl_seconds"):
            lenient.set("key", 1, ttl_seconds=0)
        with pytest.raises(InvalidKey):
            lenient.get(float("nan"))
        with pytest.raises(TypeError):
            lenient.get_many("key")
        assert lenient._context.figures.misses_on_error == 3  # and none of the last three calls


def test_async_functions_compute_too(client_class: type[PyroCacheClient], away: tuple[str, Any]) -> None:
    with client_class(away[0], on_error="miss") as lenient:

        @lenient.memoize()
        async def f(x: int) -> int:
            return x + 1

        async def both() -> list[int]:
            return await asyncio.gather(f(1), f(1))

        assert asyncio.run(both()) == [2, 2]
        assert asyncio.run(f.invalidate(1)) is False  # type: ignore[arg-type]


@pytest.mark.asyncio_full
def test_conditional_calls_to_a_node_that_is_away_are_errors(cluster: LocalCluster) -> None:
    lenient = cluster.client(timeout=1, on_error="miss")
    lenient.ping()
    for number in range(3):
        cluster.kill(number)
    for call in RAISES[:-3]:
        with pytest.raises(NodeUnavailable):
            call(lenient)


@pytest.mark.asyncio_full
def test_ping_counts_the_nodes_or_names_one_that_does_not_answer(cluster: LocalCluster) -> None:
    cache = cluster.client(timeout=1, on_error="miss")
    assert cache.ping() == 3
    cluster.kill_nameserver()
    assert cache.ping() == 3
    cluster.pause(1)
    with pytest.raises(NodeUnavailable, match=r"cache\.node\.2"):
        cache.ping()
    cluster.resume(1)
    assert eventually(cache.ping) == 3


@pytest.mark.asyncio_full
def test_a_program_that_starts_before_its_cluster_finds_it_later() -> None:
    with private_cluster(nodes=1) as cluster:
        cluster.kill_nameserver()
        cache = cluster.client(on_error="miss")
        assert cache.set("key", 1) is False
        cluster.restart_nameserver()
        eventually(lambda: cache.set("key", 1))
        assert cache["key"] == 1


@pytest.mark.full
def test_there_is_one_warning_for_each_node_and_minute_with_a_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(ClientContext, "warnings", Throttle(60, lambda: now[0]))
    caplog.set_level(logging.WARNING, "pyrocache.client")
    with private_cluster(nodes=2) as cluster:
        cache = cluster.client(timeout=1, on_error="miss")
        keys = [next(n for n in range(100) if cache.node_for(n).number == node) for node in (1, 2)]
        cluster.kill(0)
        cluster.kill(1)
        for _ in range(10):
            assert [cache.get(key) for key in keys] == [None, None]
            assert cache.namespace("inner").get_many(range(50)) == {}
        first, second = sorted(record.getMessage() for record in caplog.records)
        assert "cache.node.1" in first
        assert "cache.node.2" in second
        caplog.clear()
        now[0] = 61.0
        for _ in range(10):
            cache.get(keys[0])
        (record,) = caplog.records
        assert "20 times" in record.getMessage()


def test_a_node_that_is_paused_delays_async_calls_for_its_keys_only() -> None:
    with private_cluster(nodes=2) as cluster:
        cache = cluster.client(timeout=3, on_error="miss")

        @cache.memoize(key=lambda x: x)
        async def f(x: int) -> int:
            return x

        names = {x: cache.node_for(f.key(x)).name for x in range(400)}
        paused = [x for x, name in names.items() if name == "cache.node.1"]
        healthy = [x for x, name in names.items() if name == "cache.node.2"]
        cluster.pause(0)

        async def main() -> tuple[int, int]:
            behind = [asyncio.create_task(f(x)) for x in paused[:40]]  # type: ignore[arg-type]
            await asyncio.sleep(0.05)
            assert await asyncio.gather(*map(f, healthy)) == healthy
            done = sum(task.done() for task in behind)
            for task in behind:
                task.cancel()
            await asyncio.wait(behind)
            return done, len(behind)

        begun = time.monotonic()
        done, behind = asyncio.run(main())
        assert done < behind, "all calls to the paused node were over before those to the healthy node"
        assert (
            time.monotonic() - begun < 3 * 5
        )  # 40 calls to the paused node, 8 at a time, take five timeouts
        cluster.resume(0)


def test_the_settings_pickle_and_namespaces_have_them(
    client_class: type[PyroCacheClient], away: tuple[str, Any]
) -> None:
    with client_class(away[0], on_error="miss", on_undecodable="miss") as cache:
        for client in (cache.namespace("inner"), pickle.loads(pickle.dumps(cache))):
            assert client._context.config.on_error == client._context.config.on_undecodable == "miss"
