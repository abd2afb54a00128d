"""The wire is plain Pyro5, both ways, and Pyro5 is still what we took it for.

A stock proxy calls our node; our client works against nodes that a stock daemon serves; and the seams of Pyro5 that
we use without its promise are pinned, so that a new version that moves them fails here and not in somebody's cluster.
"""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import Pyro5
import Pyro5.api
import Pyro5.nameserver
import Pyro5.protocol
import Pyro5.server
import pytest
from Pyro5 import config
from Pyro5.callcontext import current_context
from Pyro5.core import DAEMON_NAME
from Pyro5.errors import CommunicationError, PyroError
from Pyro5.errors import TimeoutError as PyroTimeoutError
from Pyro5.protocol import SendingMessage
from Pyro5.serializers import serializers, serializers_by_id

from pyrocache import AsyncPyroCacheClient, LocalCluster, Lock, PyroCacheClient, stock_handshake
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import (
    KeyTooLarge,
    LockTimeout,
    NoNodes,
    RemoteError,
    SerializationError,
    ValueTooLarge,
)
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.protocol import commands, framing, messages, refusals
from pyrocache.protocol.commands import Command, Runs, Scope
from pyrocache.runtime import secret_file
from pyrocache.runtime.child_process import start_node
from tests.support.async_verbs import use_all
from tests.support.loops import run_cleanly
from tests.support.stock import admitted
from tests.support.wire import frame_decoder, pack_refusal

NO_VIEW = 0
PREFIX = b"\x08contract"  # a namespace
KEY = PREFIX + b"key"

METHODS = {
    "get", "set", "put", "setdefault", "get_with_version", "incr", "delete", "pop", "contains", "ttl", "touch",
    "get_many", "set_many", "delete_many", "touch_many", "scan", "count", "clear", "invalidate_tag", "delete_prefix",
    "get_entry", "get_entries", "get_with_times", "lease", "fill", "abandon", "acquire", "renew", "release", "holders",
    "withdraw", "stats", "reset_stats", "hot_keys", "ping", "members",
}  # fmt: skip


def acquired(lock: Lock) -> int:
    """Acquire a lock and return its token."""
    assert lock.acquire()
    return lock.token or 0


def through_its_address(cluster: LocalCluster) -> str:
    return f"PYRO:{cluster.nodes[0].name}@{cluster.nodes[0].address}"


def through_the_name_server(cluster: LocalCluster) -> str:
    return f"PYRONAME:{cluster.nodes[0].name}@{cluster.nameserver}"


@contextmanager
def stock_proxy(uri: str, cluster: LocalCluster, name: str = "cache.node.1") -> Iterator[Any]:
    with admitted(uri, cluster.nameserver, name) as proxy:
        proxy._pyroSerializer = "msgpack"
        yield proxy


def joined(message: Any) -> bytes:
    """The bytes of a message, which may be in several buffers."""
    return b"".join(message) if isinstance(message, list) else message


def ping_a_thousand_times(proxy: Any) -> None:
    for _ in range(1000):
        proxy.ping()


@pytest.fixture(params=[through_its_address, through_the_name_server], ids=lambda way: way.__name__)
def proxy(request: pytest.FixtureRequest, shared_cluster: LocalCluster) -> Iterator[Any]:
    """A stock proxy of a node of ours."""
    with stock_proxy(request.param(shared_cluster), shared_cluster) as proxy:
        deadline = time.monotonic() + 10
        while len(proxy.members()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)  # until the nodes have heard of each other: a new view drops others' keys
        proxy.clear(NO_VIEW, PREFIX)
        yield proxy


def keys_of(proxy: Any, count: int) -> list[bytes]:
    """Keys of the node that the proxy is for: without a view, a node answers for its own keys only."""
    view = ClusterView([Member(name, host, port, weight) for name, host, port, weight, *_ in proxy.members()])
    keys = (PREFIX + b"%05d" % number for number in range(100 * count))
    return [key for key in keys if view.owner(key).name == proxy.ping()["name"]][:count]


class TestAStockProxyOnOurNode:
    def test_metadata_lists_every_method_and_nothing_else(self, proxy: Any) -> None:
        proxy._pyroBind()
        assert proxy._pyroMethods == METHODS
        assert proxy._pyroAttrs == set()
        assert proxy._pyroOneway == set()

    def test_a_proxy_can_be_bound_and_released_and_used_again(
        self, proxy: Any, shared_cluster: LocalCluster
    ) -> None:
        proxy._pyroRelease()
        assert proxy._pyroBind() is True
        assert str(proxy._pyroUri) == through_its_address(shared_cluster)
        assert proxy._pyroBind() is False
        proxy._pyroRelease()
        assert proxy.ping()["name"] == "cache.node.1"
        proxy._pyroReconnect(tries=1)
        assert proxy.ping()["name"] == "cache.node.1"

    def test_the_handshake_tells_of_the_node(self, shared_cluster: LocalCluster) -> None:
        greetings: list[Any] = []

        class Curious(Pyro5.api.Proxy):  # type: ignore[misc]
            def _pyroValidateHandshake(self, response: Any) -> None:
                greetings.append(response)

        with Curious(through_its_address(shared_cluster)) as proxy:
            proxy._pyroSerializer = "msgpack"
            proxy._pyroHandshake = {
                **stock_handshake("cache.node.1", shared_cluster.nameserver),
                "anything": [1, 2, 3],
            }
            proxy._pyroBind()
        assert greetings[0]["node"] == "cache.node.1"
        assert greetings[0]["max_value_bytes"] == 256 * 2**20 // 4

    def test_every_method_answers(self, proxy: Any) -> None:
        a, b, c, missing = keys_of(proxy, 4)
        everything = bytes(range(256))
        assert proxy.set(NO_VIEW, a, everything) is True
        assert proxy.set(NO_VIEW, b, b"", 60) is True
        assert proxy.set(NO_VIEW, key=c, value=b"named", ttl_seconds=0.5) is True
        assert proxy.get(NO_VIEW, a) == everything
        assert proxy.get(NO_VIEW, b) == b""
        assert proxy.get(NO_VIEW, missing) is None
        assert proxy.contains(NO_VIEW, b) is True
        assert proxy.ttl(NO_VIEW, a) == math.inf
        assert 50 < proxy.ttl(NO_VIEW, b) <= 60
        assert proxy.ttl(NO_VIEW, missing) is None
        assert proxy.delete(NO_VIEW, c) is True
        assert proxy.delete(NO_VIEW, c) is False
        assert proxy.set_many(NO_VIEW, (a, b), (b"1", b"2"), 60.0) == 2
        assert proxy.get_many(NO_VIEW, (a, missing, b)) == [b"1", None, b"2"]
        assert proxy.count(NO_VIEW, PREFIX) == 2
        cursor, page = proxy.scan(NO_VIEW, PREFIX, PREFIX, 0, 1)
        last, rest = proxy.scan(NO_VIEW, PREFIX, PREFIX, cursor, limit=10)
        assert last == 0
        assert sorted(page + rest) == [a, b]
        assert proxy.delete_many(NO_VIEW, [a, missing]) == 1
        assert proxy.clear(NO_VIEW, PREFIX) == 1
        assert proxy.put(NO_VIEW, a, b"w\x01", 60.0, "absent", [b"tag"]) is True
        assert proxy.setdefault(NO_VIEW, a, b"other") == b"w\x01"
        assert proxy.incr(NO_VIEW, a, b"w\x02", b"w\x00") == b"w\x03"
        value, version = proxy.get_with_version(NO_VIEW, a)
        assert value == b"w\x03"
        assert proxy.put(NO_VIEW, a, b"new", -math.inf, version) is True
        assert proxy.touch(NO_VIEW, a, 90.0) is True
        assert proxy.touch_many(NO_VIEW, [a, b], 90.0) == 1
        assert proxy.get_with_times(NO_VIEW, a)[0] == b"new"
        assert proxy.get_entry(NO_VIEW, a)[3] == [b"tag"]
        assert [entry and entry[0] for entry in proxy.get_entries(NO_VIEW, [a, missing])] == [b"new", None]
        assert proxy.scan(NO_VIEW, PREFIX, PREFIX, tag=b"tag", details=True)[1][0][:1] == [a]
        assert proxy.invalidate_tag(NO_VIEW, b"tag") == 1
        assert proxy.set(NO_VIEW, a, b"value") is True
        assert proxy.pop(NO_VIEW, a) == b"value"
        assert proxy.set(NO_VIEW, a, b"value") is True
        assert proxy.delete_prefix(NO_VIEW, PREFIX, a) == [0, 1]
        _, token, _ = proxy.lease(NO_VIEW, a, 10, 0)
        assert proxy.fill(NO_VIEW, a, token, b"loaded", 60.0, 60.0, 0.5) is True
        assert proxy.lease(NO_VIEW, a, 10, 0)[:2] == ["value", b"loaded"]
        _, token, _ = proxy.lease(NO_VIEW, b, 10, 0)
        assert proxy.abandon(NO_VIEW, b, token) is True
        token = proxy.acquire(NO_VIEW, missing, 1, 10, 0)
        assert proxy.renew(NO_VIEW, missing, token, 10) is True
        assert proxy.holders(NO_VIEW, missing) == 1
        assert proxy.release(NO_VIEW, missing, token) is True
        assert proxy.reset_stats() is True
        assert proxy.set(NO_VIEW, a, b"value") is True
        assert proxy.stats()["sets"] >= 1
        assert proxy.hot_keys(PREFIX, 10)[0] >= 0
        assert proxy.contains(NO_VIEW, a) is True
        assert a in [key for key, _ in proxy.hot_keys(PREFIX, 1000)[1]]
        assert proxy.ping()["serving"] is True
        assert {len(fields) for fields in proxy.members()} == {6}
        assert [name for name, *_ in proxy.members()] == ["cache.node.1", "cache.node.2", "cache.node.3"]

    def test_refusals_are_readable_errors_with_a_code(self, proxy: Any) -> None:
        for method, arguments, code in (
            ("get", (NO_VIEW, "no bytes"), "bad-request"),
            ("get", (NO_VIEW, b"k" * 70_000), "key-too-large"),
            ("set", (NO_VIEW, KEY, b"value", -1), "bad-request"),
            ("set", (NO_VIEW,), "bad-request"),
            ("set", (NO_VIEW, KEY, b"value", 1, 2, 3), "bad-request"),
            ("scan", (NO_VIEW, PREFIX, PREFIX, -1), "bad-request"),
            ("get", (12345, KEY), "stale-view"),
        ):
            with pytest.raises(PyroError) as caught:
                getattr(proxy, method)(*arguments)
            assert caught.value.code == code
            assert str(caught.value).endswith("."), "a sentence"
            assert not hasattr(caught.value, "_pyroTraceback"), "no paths and no source lines of the node's"
        with pytest.raises(PyroError) as caught:
            proxy.get(NO_VIEW, no_such_argument=1)
        assert caught.value.code == "bad-request"
        assert proxy.ping()["serving"] is True

    def test_a_stale_view_tells_the_nodes_view(self, proxy: Any) -> None:
        with pytest.raises(PyroError) as caught:
            proxy.get(12345, KEY)
        told = caught.value.detail
        assert told["members"] == proxy.members()
        assert (told["number"], told["cluster"] != "") == (proxy.ping()["view"], True)

    def test_a_key_of_another_node_is_refused_with_the_view(
        self, proxy: Any, shared_cluster: LocalCluster
    ) -> None:
        own = set(keys_of(proxy, 100))
        foreign = next(key for key in (PREFIX + b"%05d" % number for number in range(100)) if key not in own)
        with pytest.raises(PyroError) as caught:
            proxy.set(NO_VIEW, foreign, b"value")
        assert caught.value.code == "stale-view"
        view = ClusterView([Member(*fields) for fields in caught.value.detail["members"]])
        owner = view.owner(foreign)
        with stock_proxy(f"PYRO:{owner.name}@{owner.address}", shared_cluster, owner.name) as other:
            assert other.set(caught.value.detail["number"], foreign, b"value") is True
            assert other.get(NO_VIEW, foreign) == b"value"
            assert other.delete(NO_VIEW, foreign) is True

    def test_what_a_proxy_does_not_know_it_does_not_send(self, proxy: Any) -> None:
        for name in ("adopt", "sweep", "max_value_bytes", "_store", "no_such_method"):
            with pytest.raises(AttributeError):
                getattr(proxy, name)

    def test_a_value_of_many_megabytes_passes(self, proxy: Any) -> None:
        value, (key,) = bytes(range(256)) * 65536, keys_of(proxy, 1)
        assert proxy.set(NO_VIEW, key, value) is True
        assert proxy.get(NO_VIEW, key) == value

    def test_a_timeout_is_kept(self, cluster_of_one: LocalCluster) -> None:
        with stock_proxy(through_its_address(cluster_of_one), cluster_of_one) as proxy:
            assert proxy.ping()["serving"] is True
            proxy._pyroTimeout = 0.2
            cluster_of_one.pause(0)
            try:
                with pytest.raises(PyroTimeoutError):
                    ping_a_thousand_times(proxy)  # the kernel may take a moment to stop every thread
            finally:
                cluster_of_one.resume(0)
            proxy._pyroTimeout = 20
            assert proxy.ping()["serving"] is True

    def test_a_ping_message_is_answered(self, proxy: Any) -> None:
        proxy._pyroBind()
        for _ in range(3):
            SendingMessage.ping(proxy._pyroConnection)
        assert proxy.ping()["serving"] is True

    def test_a_correlation_id_and_annotations_are_taken_and_not_returned(self, proxy: Any) -> None:
        (key,) = keys_of(proxy, 1)
        current_context.correlation_id = uuid.uuid4()
        current_context.annotations = {"TEST": b"of the caller"}
        try:
            assert proxy.set(NO_VIEW, key, b"value") is True
            assert proxy.get(NO_VIEW, key) == b"value"
            assert current_context.response_annotations == {}
        finally:
            current_context.correlation_id = None
            current_context.annotations = {}

    @pytest.mark.full
    def test_two_proxies_in_two_threads_do_not_mix_replies(self, shared_cluster: LocalCluster) -> None:
        mixed_up: list[bytes] = []
        start = threading.Barrier(2)

        def work(name: bytes) -> None:
            with stock_proxy(through_its_address(shared_cluster), shared_cluster) as proxy:
                keys = keys_of(proxy, 200)[name == b"two" :: 2]
                start.wait(10)
                for number, key in enumerate(keys):
                    value = name * (1 + number * 7 % 500)
                    proxy.set(NO_VIEW, key, value)
                    if proxy.get(NO_VIEW, key) != value:
                        mixed_up.append(key)

        threads = [threading.Thread(target=work, args=(name,)) for name in (b"one", b"two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert mixed_up == []

    def test_the_daemons_own_object_can_be_asked(self, shared_cluster: LocalCluster) -> None:
        with stock_proxy(f"PYRO:{DAEMON_NAME}@{shared_cluster.nodes[0].address}", shared_cluster) as daemon:
            assert daemon.ping() is None
            assert sorted(daemon.registered()) == [DAEMON_NAME, "cache.node.1"]
            assert set(daemon.get_metadata("cache.node.1")["methods"]) == METHODS

    @pytest.mark.parametrize("serializer", ["serpent", "marshal", "json"])
    def test_another_serializer_gets_a_readable_error(
        self, shared_cluster: LocalCluster, serializer: str
    ) -> None:
        with Pyro5.api.Proxy(through_its_address(shared_cluster)) as proxy:
            proxy._pyroSerializer = serializer
            with pytest.raises(CommunicationError, match="msgpack"):
                proxy.ping()

    def test_an_unknown_object_gets_a_readable_error(self, shared_cluster: LocalCluster) -> None:
        uri = f"PYRO:cache.node.77@{shared_cluster.nodes[0].address}"
        with (
            stock_proxy(uri, shared_cluster) as proxy,
            pytest.raises(CommunicationError, match="unknown object"),
        ):
            proxy.ping()

    def test_batches_and_oneway_calls_are_not_served(self, proxy: Any) -> None:
        batch = Pyro5.api.BatchProxy(proxy)
        one, two = keys_of(proxy, 2)
        batch.set(NO_VIEW, one, b"value")
        with pytest.raises(PyroError) as caught:
            batch()
        assert caught.value.code == "bad-request"
        proxy._pyroRelease()
        proxy._pyroBind()
        proxy._pyroOneway.add("set")
        proxy.set(NO_VIEW, two, b"value")
        proxy._pyroOneway.clear()
        proxy._pyroRelease()
        assert proxy.count(NO_VIEW, PREFIX) == 0


@pytest.fixture
def cluster_of_one() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=1) as cluster:
        yield cluster


@contextmanager
def pyro5_server_type(kind: str) -> Iterator[None]:
    before, config.SERVERTYPE = config.SERVERTYPE, kind
    try:
        yield
    finally:
        config.SERVERTYPE = before


@contextmanager
def running(daemon: Any) -> Iterator[None]:
    loop = threading.Thread(target=daemon.requestLoop, daemon=True)
    loop.start()
    try:
        yield
    finally:
        daemon.shutdown()
        loop.join(5)


@contextmanager
def stock_name_server() -> Iterator[tuple[str, Any]]:
    """``host:port`` of a stock name server without entries, and its object."""
    _, daemon, _ = Pyro5.nameserver.start_ns(host="127.0.0.1", port=0, enableBroadcast=False)
    with running(daemon):
        yield daemon.locationStr, daemon.nameserver


@pytest.fixture(scope="module", params=["thread", "multiplex"])
def stock_cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """``host:port`` of a stock name server with two `CacheNode` objects that stock daemons serve."""
    with ExitStack() as stack:
        address, name_server = stack.enter_context(stock_name_server())
        stack.enter_context(pyro5_server_type(request.param))
        for name in ("cache.node.1", "cache.node.2"):
            daemon = Pyro5.api.Daemon(host="127.0.0.1")
            node = CacheNode(Store(64 * 2**20), RequestGuard(name), max_value_bytes=2**20)
            name_server.register(name, daemon.register(node, name))
            stack.enter_context(running(daemon))
        yield address


@pytest.fixture(params=["unsigned", "signed"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """What a client is made with."""
    if request.param == "unsigned":
        return {"authenticate": False}
    path = str(tmp_path / "signing.key")
    secret_file.make(path)
    return {"authenticate": False, "signing_key_file": path}


class TestOurClientOnStockDaemons:
    def test_every_verb_works(self, stock_cluster: str, options: dict[str, Any]) -> None:
        with PyroCacheClient(stock_cluster, namespace="verbs", **options) as cache:
            assert [member.name for member in cache.nodes()] == ["cache.node.1", "cache.node.2"]
            values = {"user:1": {"name": "Alice"}, ("a", 1): [None, 1.5], 7: None, b"b": b"\0" * 300_000}
            for key, value in values.items():
                assert cache.set(key, value) is True
            assert {key: cache.get(key, "missing") for key in values} == values
            assert cache.get("no such key", "missing") == "missing"
            assert cache.contains(7) is True
            assert "no such key" not in cache
            assert cache.ttl(7) == math.inf
            assert cache.set("short", 1, ttl_seconds=60) is True
            remaining = cache.ttl("short")
            assert remaining is not None
            assert 50 < remaining <= 60
            assert cache.delete("short") is True
            assert cache.delete("short") is False
            assert len(cache) == 4
            assert set(cache) == set(values)
            cache["item"] = "value"
            assert cache["item"] == "value"
            del cache["item"]
            with pytest.raises(KeyError):
                cache["item"]
            assert cache.clear() == 4
            assert len(cache) == 0

    def test_batches_reach_both_nodes(self, stock_cluster: str, options: dict[str, Any]) -> None:
        with PyroCacheClient(stock_cluster, namespace="batches", **options) as cache:
            values = {f"key:{number}": number for number in range(3000)}
            assert cache.set_many(values, ttl_seconds=60) == 3000
            assert cache.get_many([*values, "no such key"]) == values
            assert set(cache.keys()) == set(values)
            figures = cache.stats()
            assert figures.away == []
            assert figures.total.entries >= 3000
            assert all(node.entries > 1000 for node in figures.nodes.values())
            assert {cache.node_for(key).name for key in values} == {"cache.node.1", "cache.node.2"}
            assert cache.delete_many([*values, "no such key"]) == 3000
            assert len(cache) == 0

    def test_refusals_are_our_errors(self, stock_cluster: str) -> None:
        with PyroCacheClient(stock_cluster, authenticate=False) as cache:
            cache.set("key", "old")
            with pytest.raises(ValueTooLarge, match=r"cache\.node\.. .*1048576"):
                cache.set("key", b"x" * (2**20 + 1))
            with pytest.raises(KeyTooLarge):
                cache.set("k" * 70_000, 1)
            with pytest.raises(SerializationError):
                cache.set("key", threading.Lock())
            assert cache.get("key") == "old"
            member = cache.node_for("key")
            unknown = Command("no_such_method", Scope.KEY, True, Runs.INLINE, False)
            router, deadline = cache._context.backend._router, cache._context.deadline()  # type: ignore[attr-defined]
            with pytest.raises(RemoteError, match="bytes"):
                router.ask(member, commands.GET, ("no bytes",), deadline)
            with pytest.raises(RemoteError):
                router.ask(member, unknown, (), deadline)
            assert cache.get("key") == "old"

    def test_values_are_loaded_once(self, stock_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # a daemon with one thread waits with it
        monkeypatch.setattr("pyrocache.client.features.pinned_wait.POLL_SECONDS", 0.1)
        calls: list[int] = []

        def load() -> str:
            calls.append(1)
            time.sleep(0.3)
            return "loaded"

        with (
            PyroCacheClient(stock_cluster, namespace="loading", authenticate=False) as cache,
            ThreadPoolExecutor(8) as threads,
        ):
            callers = [threads.submit(cache.get_or_set, "key", load, ttl_seconds=60) for _ in range(8)]
            assert [caller.result(20) for caller in callers] == ["loaded"] * 8
            assert len(calls) == 1
            with pytest.raises(ZeroDivisionError):
                cache.get_or_set("another", lambda: 1 // 0)
            assert cache.get_or_set("another", lambda: 1, wait_seconds=0) == 1
            double = cache.memoize()(lambda number: 2 * number)
            assert double(4) == double(4) == 8
            assert double.refresh(4) == 8
            assert double.invalidate(4) is True

    def test_locks_are_held_by_one_at_a_time(
        self, stock_cluster: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pyrocache.client.features.pinned_wait.POLL_SECONDS", 0.1)
        with (
            PyroCacheClient(stock_cluster, namespace="locks", authenticate=False) as cache,
            ThreadPoolExecutor(1) as threads,
        ):
            with cache.lock("name", ttl_seconds=0.6) as lock:
                token = lock.token or 0
                assert cache.lock("name").locked()
                waiter = threads.submit(acquired, cache.lock("name"))
                with pytest.raises(LockTimeout), cache.lock("name", wait_seconds=0):
                    pass
                time.sleep(1)
                assert lock.held
                assert not waiter.done()
            assert waiter.result(20) > token
            with cache.semaphore("name", 2), cache.semaphore("name", 2):
                assert not cache.semaphore("name", 2).acquire(blocking=False)

    def test_threads_share_a_client(self, stock_cluster: str) -> None:
        wrong: list[str] = []
        with PyroCacheClient(stock_cluster, authenticate=False) as cache:

            def work(name: str) -> None:
                for number in range(50):
                    cache.set(f"{name}:{number}", name * number)
                    if cache.get(f"{name}:{number}") != name * number:
                        wrong.append(name)

            threads = [threading.Thread(target=work, args=(f"thread{number}",)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert wrong == []

    def test_the_asyncio_client_works_too(self, stock_cluster: str) -> None:
        async def main() -> None:
            async with AsyncPyroCacheClient(
                stock_cluster, namespace="tasks", timeout=20, authenticate=False
            ) as cache:
                await use_all(cache)

        run_cleanly(main)

    def test_a_node_of_ours_works_with_a_stock_name_server(self) -> None:
        with stock_name_server() as (address, name_server), PyroCacheClient(address) as cache:
            with pytest.raises(NoNodes):
                cache.get("key")
            process = start_node({"nameserver": address}, quiet=True)
            try:
                process.wait_until_ready()
                assert cache.set("key", "value") is True
                assert cache.get("key") == "value"
                assert list(name_server.list(prefix="cache.node.")) == ["cache.node.1"]
            finally:
                process.terminate()
                process.wait()
            assert name_server.list(prefix="cache.node.") == {}
            assert [*name_server.list(prefix="cache.view.")], "whoever comes next continues from there"
            with pytest.raises(NoNodes):
                cache.get("key")


class TestTheSeamsOfPyro5:
    """What `pyrocache.node` and `pyrocache.cluster.wire` use without Pyro5's promise."""

    def test_it_is_the_version_whose_source_was_read(self) -> None:
        assert Pyro5.__version__.split(".")[:2] == ["5", "17"]

    def test_message_types_are_as_numbered_in_wire(self) -> None:
        ours = [
            framing.CONNECT,
            framing.CONNECT_OK,
            framing.CONNECT_FAIL,
            framing.INVOKE,
            framing.RESULT,
            framing.PING,
        ]
        protocol = Pyro5.protocol
        assert ours == [
            protocol.MSG_CONNECT,
            protocol.MSG_CONNECTOK,
            protocol.MSG_CONNECTFAIL,
            protocol.MSG_INVOKE,
            protocol.MSG_RESULT,
            protocol.MSG_PING,
        ]

    def test_flags_are_as_numbered_in_wire(self) -> None:
        protocol = Pyro5.protocol
        assert framing.FLAG_EXCEPTION == protocol.FLAGS_EXCEPTION
        assert framing.FLAG_COMPRESSED == protocol.FLAGS_COMPRESSED
        assert framing.FLAG_ONEWAY == protocol.FLAGS_ONEWAY
        assert framing.FLAG_BATCH == protocol.FLAGS_BATCH
        assert framing.FLAG_CORRELATION_ID == protocol.FLAGS_CORR_ID

    def test_the_header_has_the_same_layout(self) -> None:
        protocol = Pyro5.protocol
        assert framing.HEADER_BYTES == protocol._header_size == struct.calcsize(protocol._header_format)
        assert protocol._header_format == "!4sHBBHHII16sHH"
        assert protocol.PROTOCOL_VERSION == 502
        assert protocol._magic_number == 0x4DC5

    def test_msgpack_has_the_same_number(self) -> None:
        assert serializers["msgpack"].serializer_id == framing.MSGPACK
        assert serializers_by_id[framing.MSGPACK] is serializers["msgpack"]

    @pytest.mark.parametrize(
        ("kind", "sequence", "body", "flags", "serializer"),
        [
            (framing.CONNECT, 0, b"", 0, framing.MSGPACK),
            (framing.INVOKE, 1, b"x", 0, framing.MSGPACK),
            (framing.RESULT, 65535, bytes(1000), framing.FLAG_EXCEPTION, framing.MSGPACK),
            (framing.PING, 7, b"pong", 0, 42),
            (framing.CONNECT_FAIL, 9, b"no", 0, 1),
        ],
    )
    def test_messages_are_the_same_bytes(
        self, kind: int, sequence: int, body: bytes, flags: int, serializer: int
    ) -> None:
        theirs = SendingMessage(kind, flags, sequence, serializer, body)
        assert framing.pack_message(kind, sequence, body, flags=flags, serializer=serializer) == theirs.data

    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            (2**64 - 1, b"key", [b"a", None, 1.5], "text", True),
            (1, b"key", b"", None),
            (1, b"k" * 65_536, b"v" * 200_000, 60.0),
            (1, [b"key"] * 1000, [b"value" * 30] * 1000, None),
            (1, {3}, {"a": {4}}, (1, (2,))),
            tuple(range(40)),
        ],
        ids=lambda arguments: f"{len(arguments)} arguments",
    )
    def test_calls_are_the_same_bytes(self, arguments: tuple[Any, ...]) -> None:
        packer = messages.CallPacker("cache.node.1")
        for sequence, method in (5, "get"), (6, "set_many"), (65_535, "get"), (0, "m" * 40):
            body = serializers["msgpack"].dumpsCall("cache.node.1", method, arguments, {})
            theirs = SendingMessage(framing.INVOKE, 0, sequence, framing.MSGPACK, body).data
            assert joined(packer.pack(method, arguments, sequence)) == theirs

    @pytest.mark.parametrize("size", [2**16, 2**16 + 1, 300_000])
    def test_calls_with_values_in_pieces_are_the_same_bytes(self, size: int) -> None:
        value = bytes(range(256)) * (size // 256) + bytes(size % 256)
        pieces = messages.Pieces((value[:3], memoryview(value)[3:1000], b"", bytearray(value[1000:])))
        packer = messages.CallPacker("cache.node.1")
        for arguments, whole in (
            ((1, b"key", pieces, None), (1, b"key", value, None)),
            ((pieces,), (value,)),
            (
                (1, [b"a", b"b"], [pieces, b"small", pieces], 2.5, {3}, {"a": 1}),
                (1, [b"a", b"b"], [value, b"small", value], 2.5, {3}, {"a": 1}),
            ),
            ((1, b"key", b"afterwards", None), (1, b"key", b"afterwards", None)),
        ):
            body = serializers["msgpack"].dumpsCall("cache.node.1", "set", whole, {})
            theirs = SendingMessage(framing.INVOKE, 0, 5, framing.MSGPACK, body).data
            assert joined(packer.pack("set", arguments, 5)) == theirs

    @pytest.mark.parametrize("as_view", [False, True])
    @pytest.mark.parametrize("size", [0, 1, 255, 256, 2**16 - 1, 2**16, 2**16 + 1, 300_000])
    def test_results_are_the_same_bytes(self, size: int, as_view: bool) -> None:
        value = bytes(range(256)) * (size // 256) + bytes(size % 256)
        if as_view and size < 2**16:
            return  # a node keeps no small ones
        body = serializers["msgpack"].dumps(value)
        theirs = SendingMessage(framing.RESULT, 0, 5, framing.MSGPACK, body).data
        ours = messages.pack_result(5, memoryview(b"." + value)[1:] if as_view else value)
        assert joined(ours) == theirs

    @pytest.mark.parametrize(
        "result", [None, True, 7, 1.5, "text", [b"a", None], {"a": [1]}, [b"v" * 70_000, b""]], ids=type
    )
    def test_other_results_are_the_same_bytes(self, result: Any) -> None:
        body = serializers["msgpack"].dumps(result)
        theirs = SendingMessage(framing.RESULT, 0, 5, framing.MSGPACK, body).data
        assert joined(messages.pack_result(5, result)) == theirs

    def test_their_calls_are_understood_at_once(self) -> None:
        called: list[Any] = []
        unpacker = messages.CallUnpacker("cache.node.1", {"get": called.append})
        body = serializers["msgpack"].dumpsCall("cache.node.1", "get", (7, b"key"), {})
        data = bytes(SendingMessage(framing.INVOKE, 0, 9, framing.MSGPACK, body).data)
        assert unpacker.unpack(data) == (9, called.append, [7, b"key"], bytes(8), 0, 0)

    def test_their_results_are_understood_at_once(self) -> None:
        for result in (b"", b"value", b"x" * 256, None, True, [b"a", None], {"a": 1}):
            body = serializers["msgpack"].dumps(result)
            data = bytes(SendingMessage(framing.RESULT, 0, 9, framing.MSGPACK, body).data)
            assert messages.unpack_result(data, 9) == result

    def test_plain_values_are_the_same_bytes(self) -> None:
        for value in (
            None,
            True,
            -1,
            2**63,
            math.inf,
            b"bytes",
            "text",
            [1, [2]],
            {"a": [b"b"]},
            (1, 2),
            {3},
        ):
            assert messages.pack_plain(value) == serializers["msgpack"].dumps(value)

    def test_their_message_with_all_it_can_carry_is_read(self) -> None:
        current_context.correlation_id = uuid.uuid4()
        try:
            data = SendingMessage(
                framing.INVOKE, 0, 77, framing.MSGPACK, b"body", {"TEST": b"annotation"}
            ).data
        finally:
            current_context.correlation_id = None
        decoder = frame_decoder()
        decoder.feed(data)
        frame = decoder.next_frame()
        assert frame is not None
        assert frame.body == b"body"
        assert frame.header[:6] == (framing.INVOKE, framing.MSGPACK, framing.FLAG_CORRELATION_ID, 77, 4, 18)
        assert decoder.buffered == 0

    def test_our_refusal_is_their_exception(self) -> None:
        body = pack_refusal(refusals.Refusal("a-code", "A sentence.", [["detail", 1]]))
        error = serializers["msgpack"].loads(body)
        assert type(error) is PyroError
        assert (str(error), error.code, error.detail) == ("A sentence.", "a-code", [["detail", 1]])

    def test_their_exception_is_our_refusal(self) -> None:
        error = PyroError("A sentence.")
        error.code = "a-code"
        error.detail = {"some": b"detail"}
        error._pyroTraceback = ["lines\n", "of it\n"]
        refusal = refusals.unpack_refusal(serializers["msgpack"].dumps(error))
        assert refusal == ("a-code", "A sentence.", {"some": b"detail"})
        assert refusals.unpack_refusal(serializers["msgpack"].dumps(SystemExit(3))).code == ""

    def test_exposing_changes_nothing_for_local_callers(self) -> None:
        node = CacheNode(Store(2**20))
        assert node.set(NO_VIEW, b"key", b"value") is True
        assert {name for name in dir(node) if getattr(getattr(node, name), "_pyroExposed", False)} == METHODS

    def test_a_proxy_keeps_its_connection_where_we_look_for_it(self, shared_cluster: LocalCluster) -> None:
        with stock_proxy(through_its_address(shared_cluster), shared_cluster) as proxy:
            proxy._pyroBind()
            assert isinstance(proxy._pyroConnection.sock, socket.socket)
            assert proxy._pyroTimeout == 20
            assert proxy._pyroConnection.timeout == 20
