"""Changes whose request was late or whose reply was lost: each takes effect once, or never once its call is over."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from pyrocache import LocalCluster, NameServerUnavailable, NodeUnavailable, PyroCacheClient
from pyrocache.client.backend import Backend
from pyrocache.client.context import ClientContext
from pyrocache.client.routing.router import Router
from pyrocache.cluster.routing import ClusterView
from pyrocache.config import ClientConfig, parse_address
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import Listing
from pyrocache.protocol.handshake import format_peer
from pyrocache.runtime.secret import find_secret
from tests.support.cutting_proxy import CuttingProxy
from tests.support.nodes import private_cluster
from tests.support.secrets import directory_of

OLD, LATE, NEW = b"old", b"late", b"new"


@pytest.fixture(scope="module")
def one_node() -> Iterator[LocalCluster]:
    with private_cluster(nodes=1) as cluster:
        yield cluster


class Outdated:
    """A name server that does not answer any more once ``away`` is set."""

    def __init__(self, nameserver: str) -> None:
        self.away = False
        self._directory = directory_of(nameserver)

    def listing(self, timeout: float = 5.0) -> Listing:
        if self.away:
            raise NameServerUnavailable("away")
        return self._directory.listing(timeout)


class Proxied:
    """A name server's entries, with the address of a proxy instead of the node's."""

    def __init__(self, nameserver: str, port: int) -> None:
        self._directory = directory_of(nameserver)
        self._port = port

    def listing(self, timeout: float = 5.0) -> Listing:
        listed = self._directory.listing(timeout)
        members = [replace(member, port=self._port, socket_path="") for member in listed.view.members]
        return listed._replace(views=(ClusterView(members, listed.view.number, listed.cluster),))


@pytest.fixture
def proxy(one_node: LocalCluster) -> Iterator[CuttingProxy]:
    host, port = one_node.nodes[0].address.rsplit(":", 1)
    with CuttingProxy((host, int(port))) as proxy:
        yield proxy


@pytest.fixture
def cut_off(
    one_node: LocalCluster, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PyroCacheClient]:
    """A client behind the proxy, which says that it has dialled the node."""
    node = format_peer(parse_address(one_node.nodes[0].address))
    monkeypatch.setattr(
        "pyrocache.net.connection.format_peer",
        lambda peer: node if peer[1] == proxy.port else format_peer(peer),
    )
    directory: Any = Proxied(one_node.nameserver, proxy.port)
    config = ClientConfig(nameserver=one_node.nameserver)
    client = PyroCacheClient._of(
        ClientContext(config, Backend(Router(directory, caller=knowing(find_secret()))))
    )
    with client:
        yield client


@pytest.fixture
def other(one_node: LocalCluster) -> Iterator[PyroCacheClient]:
    """A client that reaches the node."""
    with one_node.client() as client:
        client.clear()
        yield client


class TestAStoppedNode:
    @pytest.mark.parametrize("transport", ["auto", "tcp"])
    def test_a_set_that_raised_is_not_done_afterwards(self, one_node: LocalCluster, transport: Any) -> None:
        with one_node.client(timeout=0.3, transport=transport) as impatient, one_node.client() as other:
            impatient.set("key", OLD)
            one_node.pause(0)
            try:
                with pytest.raises(NodeUnavailable, match="may have done the set"):
                    impatient.set("key", LATE)
            finally:
                one_node.resume(0)
            for _ in range(20):
                assert other.get("key") == OLD
                time.sleep(0.005)

    def test_a_set_that_raised_does_not_undo_a_later_one(self, one_node: LocalCluster) -> None:
        late = LATE * 25_000  # received in several pieces: the request of the other client overtakes it
        with ExitStack() as stack:
            impatient = stack.enter_context(one_node.client(timeout=0.3))
            other = stack.enter_context(one_node.client())
            for client in (impatient, other):
                client.set("key", OLD)
            one_node.pause(0)
            try:
                with pytest.raises(NodeUnavailable):
                    impatient.set("key", late)
                writer = threading.Thread(target=other.set, args=("key", NEW))
                writer.start()
                time.sleep(0.05)
            finally:
                one_node.resume(0)
            writer.join()
            for _ in range(20):
                assert other.get("key") == NEW
                time.sleep(0.005)


class TestALostReply:
    @pytest.mark.parametrize("keep", [False, True], ids=["closed", "half open"])
    def test_a_retry_does_not_undo_what_another_client_did_meanwhile(
        self, proxy: CuttingProxy, cut_off: PyroCacheClient, other: PyroCacheClient, keep: bool
    ) -> None:
        cut_off.set("key", OLD)
        proxy.keep = keep
        for number in range(10):
            seen: list[Any] = []

            def meanwhile(number: int = number, seen: list[Any] = seen) -> None:
                seen.append(other.get("key"))
                other.set("key", b"%d" % number) if number % 2 else other.delete("key")

            proxy.cut, proxy.meanwhile = "reply", meanwhile
            assert cut_off.set("key", LATE) is True
            assert seen == [LATE]
            assert other.get("key") == (b"%d" % number if number % 2 else None)
        assert proxy.cuts == 10
        assert cut_off.stats().client.repeats == 10

    @pytest.mark.parametrize("lost", ["request", "reply"])
    @pytest.mark.parametrize(
        ("call", "returned", "left"),
        [
            (lambda cache: cache.incr("number", 5), 6, {"number": 6, "key": OLD}),
            (lambda cache: cache.pop("key"), OLD, {"number": 1}),
            (lambda cache: cache.delete("key"), True, {"number": 1}),
            (lambda cache: cache.add("new", 1), True, {"number": 1, "key": OLD, "new": 1}),
            (lambda cache: cache.setdefault("new", 2), 2, {"number": 1, "key": OLD, "new": 2}),
            (lambda cache: cache.touch("key", 60), True, {"number": 1, "key": OLD}),
            (lambda cache: cache.set_many({"a": 1, "b": 2}), 2, {"number": 1, "key": OLD, "a": 1, "b": 2}),
            (lambda cache: cache.delete_many(["key", "number", "x"]), 2, {}),
            (lambda cache: cache.clear(), 2, {}),
        ],
        ids=["incr", "pop", "delete", "add", "setdefault", "touch", "set_many", "delete_many", "clear"],
    )
    def test_each_change_is_done_once(
        self,
        proxy: CuttingProxy,
        cut_off: PyroCacheClient,
        other: PyroCacheClient,
        lost: Any,
        call: Callable[[PyroCacheClient], Any],
        returned: Any,
        left: dict[str, Any],
    ) -> None:
        other.set_many({"number": 1, "key": OLD})
        assert cut_off.get("key") == OLD
        proxy.cut = lost
        assert call(cut_off) == returned
        assert proxy.cuts == 1
        assert other.get_many(["number", "key", "new", "a", "b"]) == left

    def test_a_lock_whose_release_has_no_reply_was_released(
        self, proxy: CuttingProxy, cut_off: PyroCacheClient, other: PyroCacheClient
    ) -> None:
        with cut_off.lock("lock", ttl_seconds=30):
            assert not other.lock("lock").acquire(blocking=False)
            proxy.cut = "reply"
        assert proxy.cuts == 1
        with other.lock("lock", wait_seconds=5):
            pass

    def test_a_reply_that_is_too_long_to_be_remembered(
        self, proxy: CuttingProxy, cut_off: PyroCacheClient, other: PyroCacheClient
    ) -> None:
        other.set("key", bytes(200_000))
        proxy.cut = "reply"
        with pytest.raises(NodeUnavailable, match="may have done the pop"):
            cut_off.pop("key")
        assert "key" not in other
        assert cut_off.stats().client.unsettled == 1


def test_an_unpickled_client_begins_a_session_of_its_own(one_node: LocalCluster) -> None:
    with one_node.client() as client:
        clone = pickle.loads(pickle.dumps(client))
        sessions = {
            each._context.backend._router._connections._caller.greeting.session for each in (client, clone)
        }
        assert len(sessions) == 2
        clone.close()


# All nodes ---------------------------------------------------------------------------------------------------


def unaware_client(cluster: LocalCluster) -> PyroCacheClient:
    """A client that has a view, and that no name server tells of a newer one."""
    directory: Any = Outdated(cluster.nameserver)
    client = PyroCacheClient._of(
        ClientContext(ClientConfig(), Backend(Router(directory, caller=knowing(find_secret()))))
    )
    assert client.ping() == len(cluster.nodes)
    directory.away = True
    return client


SWEEPS: list[tuple[str, Callable[[PyroCacheClient], int], int]] = [
    ("clear", lambda cache: cache.clear(), 0),
    ("invalidate_tag", lambda cache: cache.invalidate_tag("all"), 0),
    ("delete_prefix", lambda cache: cache.delete_prefix("key"), 0),
    ("len", lambda cache: len(cache), 200),
    ("scan", lambda cache: len(list(cache.scan())), 200),
    ("items", lambda cache: len(dict(cache.items())), 200),
]
"""What is asked of all nodes, and how many of the entries are left afterwards."""


@pytest.mark.full
def test_a_node_that_has_joined_is_asked_by_clients_that_did_not_know_it() -> None:
    entries = {f"key {number}": number for number in range(200)}
    with private_cluster(nodes=2) as cluster, ExitStack() as stack:
        clients = [stack.enter_context(unaware_client(cluster)) for _ in SWEEPS]
        joined = cluster.add_node()
        cache = stack.enter_context(cluster.client())
        assert joined.name in {cache.node_for(key).name for key in entries}
        for unaware, (name, sweep, left) in zip(clients, SWEEPS, strict=True):
            cache.clear()
            cache.set_many(entries, tags=["all"])
            assert sweep(unaware) == 200, name
            assert (len(cache), len(cache.get_many(entries))) == (left, left), name
