"""The most used keys, over all nodes, as the user knows them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from pyrocache import HotKey, LocalCluster, NodeUnavailable, PyroCacheClient, SerializationError
from tests.contract.client.conftest import ClientClass

_numbers = itertools.count()


@pytest.fixture
def own(cache: PyroCacheClient) -> Iterator[PyroCacheClient]:
    """A client of a namespace whose keys nobody has used, while the nodes count."""
    own = cache.namespace(f"hot {next(_numbers)}")
    assert own.hot_keys(seconds=0) == []
    yield own
    own.clear()


def test_the_most_used_keys_come_first_with_their_rate_and_node(own: PyroCacheClient) -> None:
    own["often"] = 1
    for _ in range(300):
        own.get("often")
    for _ in range(30):
        own.get(("never", "stored"))
    own.get(7)
    found = own.hot_keys(10, seconds=0)
    assert [hot.key for hot in found] == ["often", ("never", "stored"), 7]
    assert all(type(hot) is HotKey and type(hot.calls_per_second) is float for hot in found)
    assert [hot.node for hot in found] == [own.node_for(hot.key).name for hot in found]
    assert found[0].calls_per_second > 5 * found[1].calls_per_second > 0
    assert [hot.key for hot in own.hot_keys(1, seconds=0)] == ["often"]


def test_every_way_to_use_a_key_counts(own: PyroCacheClient) -> None:
    own.set("set", 1)
    own.add("add", 1)
    own.get_many([f"many {number}" for number in range(500)])
    own.set_many({"set_many": 1}, 60)
    own.delete_many(["delete_many"])
    own.incr("incr")
    own.get_or_set("get_or_set", lambda: 1)
    own.compute("compute", lambda value: 1, 0)
    own.touch("touch", 5)
    own.memoize(name="memoized")(abs)(-5)
    keys = {hot.key for hot in own.hot_keys(1000, seconds=0)}
    names = {
        *("set", "add", "set_many", "delete_many", "incr", "get_or_set", "compute", "touch"),
        *(f"many {number}" for number in range(500)),
    }
    assert names < keys
    assert len(keys) == len(names) + 1, "and that of the memoized function"


def test_a_namespace_shows_its_own_keys_only(own: PyroCacheClient, cache: PyroCacheClient) -> None:
    inner = own.namespace("inner")
    inner.set("secret", 1)
    own.set("mine", 1)
    assert [hot.key for hot in own.hot_keys(seconds=0)] == ["mine"]
    assert [hot.key for hot in inner.hot_keys(seconds=0)] == ["secret"]
    assert not {"secret", "mine"} & {hot.key for hot in cache.hot_keys(1000, seconds=0)}


def test_the_first_call_waits_until_there_is_something_to_count(
    client_class: ClientClass, own: PyroCacheClient
) -> None:
    ending = threading.Event()

    def use() -> None:
        while not ending.is_set():
            own.get("busy")

    user = threading.Thread(target=use)
    user.start()
    try:
        assert own.hot_keys(seconds=0.3)[0].key == "busy"
    finally:
        ending.set()
        user.join()


def test_what_to_ask_for_is_checked(own: PyroCacheClient) -> None:
    for count, error in ((0, ValueError), (1001, ValueError), (True, TypeError), ("ten", TypeError)):
        with pytest.raises(error, match="count is"):
            own.hot_keys(count)  # type: ignore[arg-type]


class Renamed:
    """A class of the keys of another program."""

    def __reduce__(self) -> object:
        return Renamed, ()


def test_a_key_that_does_not_decode_here_is_as_on_undecodable_says(
    shared_cluster: LocalCluster, client_class: ClientClass, own: PyroCacheClient
) -> None:
    path = own._context.config.namespace
    own.get("plain")
    own.get(Renamed())
    for choice in ("raise", "miss"):
        with client_class(
            shared_cluster.nameserver, namespace=path, allowed_classes=(), on_undecodable=choice
        ) as careful:
            if choice == "raise":
                with pytest.raises(SerializationError):
                    careful.hot_keys(seconds=0)
            else:
                assert [hot.key for hot in careful.hot_keys(seconds=0)] == ["plain"]


@pytest.mark.full
@pytest.mark.asyncio_full
def test_a_node_that_is_away_is_left_out(cluster: LocalCluster) -> None:
    with cluster.client(timeout=2.0) as cache, cluster.client(timeout=2.0, on_error="miss") as lenient:
        assert cache.hot_keys(seconds=0) == []
        for number in range(50):
            cache.get(number)
        owners = {number: cache.node_for(number).name for number in range(50)}
        cluster.kill(1)
        for client in (cache, lenient):
            found = client.hot_keys(100, seconds=0)
            assert {hot.key for hot in found} == {n for n, name in owners.items() if name != "cache.node.2"}
        cluster.kill(0)
        cluster.kill(2)
        with pytest.raises(NodeUnavailable):
            cache.hot_keys(seconds=0)
        assert lenient.hot_keys(seconds=0) == []
