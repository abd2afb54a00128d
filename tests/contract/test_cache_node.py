"""One suite for `CacheNode`, however it is reached: called directly, under our server, under a stock daemon.

Whoever serves it, a caller gets the same results and the same refusals. The clock is a fake one throughout, as all
three live in this process.
"""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import Pyro5.api
import pytest
from Pyro5.errors import PyroError

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import NodeConfig
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.eviction import DEFAULT_POLICY
from pyrocache.node.store.store import Store
from pyrocache.protocol import refusals
from pyrocache.protocol.commands import COMMANDS
from pyrocache.protocol.int_frame import pack_int
from pyrocache.server.deferred import Session
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop

NAME = "cache.node.1"
MIB = 2**20
MAX_VALUE_BYTES = 8 * MIB
MAX_MEMORY = 32 * MIB
NO_VIEW = 0
ROOT = b"\0"  # what keys without a namespace begin with
SHOP = b"\x04shop"
KEEP_TTL = -math.inf


class Clock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Refused(Exception):
    """What a caller sees of a refusal."""

    def __init__(self, error: PyroError) -> None:
        super().__init__(str(error))
        self.code = getattr(error, "code", "")
        self.detail = getattr(error, "detail", None)


class Peer:
    """A caller of one `CacheNode`: ``peer.get(view, key)`` and so on."""

    def __init__(self, target: Any, node: CacheNode, clock: Clock, stale: list[int]) -> None:
        self.target = target
        self.node = node
        self.clock = clock
        self.stale = stale

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            while True:
                try:
                    return getattr(self.target, method)(*arguments)
                except PyroError as error:
                    refused = Refused(error)
                    if refused.code != refusals.TRY_AGAIN:  # this process stood still, as the machine is busy
                        raise refused from error

        return call

    def refusal(self, method: str, *arguments: Any) -> str:
        """The code with which a call is refused."""
        with pytest.raises(Refused) as caught:
            getattr(self, method)(*arguments)
        assert str(caught.value), "a refusal says why"
        return caught.value.code


ABOUT_ALL: list[tuple[str, tuple[bytes, ...]]] = [
    ("scan", (ROOT, ROOT)),
    ("count", (ROOT,)),
    ("delete_prefix", (ROOT, ROOT)),
    ("clear", (ROOT,)),
    ("invalidate_tag", (b"tag",)),
]
"""Methods that are about no single key, and their arguments after the view."""


Register = Callable[[CacheNode], str]
"""Serves a node from now on, and returns its URI."""


@pytest.fixture(scope="module")
def our_server() -> Iterator[Register]:
    loops: list[tuple[EventLoop, threading.Thread]] = []

    def stop() -> None:
        loop, thread = loops.pop()
        loop.shutdown()
        thread.join(5)

    def serve(node: CacheNode) -> str:
        while loops:
            stop()
        listener = socket.create_server(("127.0.0.1", 0))
        limits = NodeConfig(max_value_bytes=MAX_VALUE_BYTES)
        dispatcher = Dispatcher(
            NAME, node, COMMANDS, greeting=dict, max_frame_bytes=MAX_VALUE_BYTES + 128 * 1024
        )
        loop = EventLoop([listener], dispatcher, limits)
        thread = threading.Thread(target=loop.run, daemon=True)
        thread.start()
        loops.append((loop, thread))
        return f"PYRO:{NAME}@127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    while loops:
        stop()


@pytest.fixture(scope="module")
def stock_daemon() -> Iterator[Register]:
    daemon = Pyro5.api.Daemon(host="127.0.0.1")
    loop = threading.Thread(target=daemon.requestLoop, daemon=True)
    loop.start()
    yield lambda node: str(daemon.register(node))
    daemon.shutdown()
    loop.join(5)


@pytest.fixture(params=["called directly", "under our server", "under a stock daemon"])
def peer(request: pytest.FixtureRequest, our_server: Register, stock_daemon: Register) -> Iterator[Peer]:
    """A caller of a fresh node that holds no view."""
    clock = Clock()
    stale: list[int] = []
    node = CacheNode(
        Store(MAX_MEMORY, clock=clock),
        RequestGuard(NAME, "the first", on_stale=stale.append),
        max_value_bytes=MAX_VALUE_BYTES,
        clock=clock,
    )
    if request.param == "called directly":
        yield Peer(node, node, clock, stale)
        return
    register = our_server if request.param == "under our server" else stock_daemon
    with Pyro5.api.Proxy(register(node)) as proxy:
        proxy._pyroSerializer = "msgpack"
        proxy._pyroTimeout = 20
        yield Peer(proxy, node, clock, stale)


def two_members(number: int = 7) -> ClusterView:
    members = [
        Member(NAME, "127.0.0.1", 1, 1.0, "the first", "/run/first.sock"),
        Member("cache.node.2", "127.0.0.1", 2, 2.0, "other"),
    ]
    return ClusterView(members, number, "c1")


def as_sent(view: ClusterView) -> dict[str, Any]:
    """A view as the detail of a refusal."""
    members = [[m.name, m.host, m.port, m.weight, m.incarnation, m.socket_path] for m in view.members]
    return {"number": view.number, "cluster": view.cluster, "members": members}


def columns(entries: list[list[bytes]]) -> tuple[list[bytes], list[bytes]]:
    """The keys and the values of entries."""
    return [key for key, _ in entries], [value for _, value in entries]


def owned_by(view: ClusterView, name: str, count: int) -> list[bytes]:
    """Keys that belong to a node."""
    keys = (b"key:%d" % number for number in range(100 * count))
    return [key for key in keys if view.owner(key).name == name][:count]


class TestOneKey:
    @pytest.mark.parametrize("value", [b"", b"\0", bytes(range(256)), b"x" * MIB], ids=len)
    def test_what_was_set_is_what_one_gets(self, peer: Peer, value: bytes) -> None:
        assert peer.set(NO_VIEW, b"key", value) is True
        got = peer.get(NO_VIEW, b"key")
        assert type(got) is bytes
        assert got == value

    def test_any_bytes_are_a_key(self, peer: Peer) -> None:
        for key in (b"\0", b"\xff" * 10, "ключ".encode(), b"k" * 64 * 1024):
            assert peer.set(NO_VIEW, key, key[:10]) is True
            assert peer.get(NO_VIEW, key) == key[:10]

    def test_an_unknown_key_is_a_miss(self, peer: Peer) -> None:
        assert peer.get(NO_VIEW, b"key") is None
        assert peer.contains(NO_VIEW, b"key") is False
        assert peer.ttl(NO_VIEW, b"key") is None
        assert peer.delete(NO_VIEW, b"key") is False

    def test_a_second_set_replaces_value_and_ttl(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"old", 10)
        peer.set(NO_VIEW, b"key", b"new")
        assert peer.get(NO_VIEW, b"key") == b"new"
        assert peer.ttl(NO_VIEW, b"key") == math.inf

    def test_delete_says_whether_there_was_an_entry(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"value")
        assert peer.contains(NO_VIEW, b"key") is True
        assert peer.delete(NO_VIEW, b"key") is True
        assert peer.delete(NO_VIEW, b"key") is False
        assert peer.contains(NO_VIEW, b"key") is False

    @pytest.mark.parametrize("ttl", [10, 10.0])
    def test_an_entry_is_expired_the_instant_its_ttl_is_over(self, peer: Peer, ttl: float) -> None:
        peer.set(NO_VIEW, b"key", b"value", ttl)
        peer.clock.now += 9.75
        assert peer.ttl(NO_VIEW, b"key") == 0.25
        assert peer.get(NO_VIEW, b"key") == b"value"
        peer.clock.now += 0.25
        assert peer.get(NO_VIEW, b"key") is None
        assert peer.contains(NO_VIEW, b"key") is False
        assert peer.ttl(NO_VIEW, b"key") is None
        assert peer.delete(NO_VIEW, b"key") is False

    @pytest.mark.parametrize("ttl", [1e-300, 1e9, 2**63, 1e18, 1e300, 1.7e308])
    def test_a_ttl_may_be_very_short_or_long(self, peer: Peer, ttl: float) -> None:
        for _ in range(3):
            assert peer.set(NO_VIEW, b"key", bytes(MIB), ttl) is True
        assert peer.get(NO_VIEW, b"key") == (bytes(MIB) if ttl > 1 else None)
        assert peer.delete(NO_VIEW, b"key") is (ttl > 1)
        assert (peer.stats()["entries"], peer.stats()["bytes"]) == (0, 0)

    @pytest.mark.parametrize("ttl", [1e18, 1.7e308])
    def test_entries_with_very_long_ttls_are_evicted_like_others(self, peer: Peer, ttl: float) -> None:
        for number in range(12):
            assert peer.set(NO_VIEW, b"long:%d" % number, bytes(4 * MIB), ttl) is True
        stats = peer.stats()
        assert stats["entries"] == stats["sets"] - stats["evictions"] == 7
        for number in range(12):
            assert peer.delete(NO_VIEW, b"long:%d" % number) in (True, False)
        assert (peer.stats()["entries"], peer.stats()["bytes"]) == (0, 0)

    def test_only_get_counts_hits_and_misses(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"value")
        peer.contains(NO_VIEW, b"key")
        peer.contains(NO_VIEW, b"no key")
        peer.ttl(NO_VIEW, b"key")
        assert (peer.stats()["hits"], peer.stats()["misses"]) == (0, 0)
        peer.get(NO_VIEW, b"key")
        peer.get(NO_VIEW, b"no key")
        assert (peer.stats()["hits"], peer.stats()["misses"]) == (1, 1)


class TestLargeValues:
    """Those that stay where they have arrived."""

    @pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, MIB - 1, MIB, MIB + 1, MAX_VALUE_BYTES])
    def test_any_size_comes_back_whole(self, peer: Peer, size: int) -> None:
        value = (b"0123456789abcdef!" * (size // 17 + 1))[:size]
        assert peer.set(NO_VIEW, b"key", value) is True
        assert peer.set(NO_VIEW, b"k" * 65_536, value, 10) is True
        assert peer.get(NO_VIEW, b"key") == peer.get(NO_VIEW, b"k" * 65_536) == value
        assert peer.ttl(NO_VIEW, b"k" * 65_536) == 10
        assert peer.get_many(NO_VIEW, [b"key"]) == [value]

    def test_a_later_message_does_not_change_what_an_earlier_one_brought(self, peer: Peer) -> None:
        values = [bytes([number]) * (2 * MIB + number) for number in range(6)]
        for number, value in enumerate(values):
            peer.set(NO_VIEW, b"key:%d" % number, value)
        peer.get(NO_VIEW, b"key:0")
        assert [peer.get(NO_VIEW, b"key:%d" % number) for number in range(6)] == values

    def test_a_reply_under_way_does_not_change_when_its_key_is_overwritten(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"o" * 2 * MIB)
        got = peer.get(NO_VIEW, b"key")
        peer.set(NO_VIEW, b"key", b"n" * 2 * MIB)
        assert bytes(got) == b"o" * 2 * MIB
        assert peer.get(NO_VIEW, b"key") == b"n" * 2 * MIB

    @pytest.mark.parametrize("size", [0, 10, 2**16, MIB - 1, MIB, 3 * MIB])
    def test_a_value_may_be_the_part_of_a_message(self, size: int) -> None:
        node = CacheNode(Store(MAX_MEMORY))
        message = bytearray(b"head" + b"v" * size + b"tail")
        assert node.set(NO_VIEW, b"key", memoryview(message)[4 : 4 + size], 10) is True
        assert node.get(NO_VIEW, b"key") == b"v" * size
        assert node.get_many(NO_VIEW, [b"key"]) == [b"v" * size]
        assert node.delete(NO_VIEW, b"key") is True
        assert node.stats()["bytes"] == 0

    def test_a_part_of_a_message_is_held_to_the_limits_of_a_value(self) -> None:
        node = CacheNode(Store(4 * MIB), max_value_bytes=8 * MIB)
        for size in (8 * MIB + 1, 4 * MIB):
            with pytest.raises(PyroError) as caught:
                node.set(NO_VIEW, b"key", memoryview(bytes(size)))
            assert caught.value.code == "value-too-large"
        assert node.stats()["entries"] == 0

    @pytest.mark.parametrize(
        "tags", [None, [b"%d" % number for number in range(64)]], ids=["no tags", "tags"]
    )
    def test_a_value_about_as_large_as_the_memory_is_stored_or_refused(
        self, tags: list[bytes] | None
    ) -> None:
        node = CacheNode(Store(4 * MIB), max_value_bytes=8 * MIB)
        key = (SHOP + b"k" * 64 * 1024)[: 64 * 1024]
        codes = []
        for size in range(4 * MIB - 64 * 1024 - 70_000, 4 * MIB - 64 * 1024, 250):
            calls: list[Callable[[], object]] = [
                partial(node.put, NO_VIEW, key, bytes(size), 10, None, tags),
                partial(node.set_many, NO_VIEW, [key], [bytes(size)], 10, tags),
            ]
            if tags is None:
                calls.append(partial(node.set, NO_VIEW, key, bytes(size), 10))
                calls.append(partial(node.setdefault, NO_VIEW, key, bytes(size), 10))
            for call in calls:
                try:
                    call()
                except PyroError as error:
                    codes.append(error.code)
                assert node.stats()["bytes"] <= 4 * MIB
            node.delete(NO_VIEW, key)
        assert set(codes) == {"value-too-large"}

    @pytest.mark.parametrize("size", [100, 2**16, MIB, 3 * MIB])
    def test_what_is_kept_is_not_much_more_than_what_it_counts_for(self, size: int) -> None:
        node = CacheNode(Store(MAX_MEMORY))
        message = memoryview(bytearray(64 * MIB))  # it may have had annotations in front of its body
        assert node.set(NO_VIEW, b"key", message[-size:]) is True
        kept = node.get(NO_VIEW, b"key")
        assert kept is not None
        whole = kept.obj if isinstance(kept, memoryview) else kept
        assert len(whole) <= 2 * size  # type: ignore[arg-type]


class TestManyKeys:
    def test_get_many_answers_in_the_order_of_the_keys(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"a", b"1")
        peer.set(NO_VIEW, b"b", b"")
        asked = [b"b", b"no key", b"a", b"a"]
        assert peer.get_many(NO_VIEW, asked) == [b"", None, b"1", b"1"]
        assert peer.get_many(NO_VIEW, []) == []

    def test_set_many_stores_all_with_one_ttl(self, peer: Peer) -> None:
        keys = [b"key:%d" % number for number in range(1000)]
        values = [b"%d" % number for number in range(1000)]
        assert peer.set_many(NO_VIEW, keys, values, 10.0) == 1000
        assert peer.get_many(NO_VIEW, keys) == values
        assert peer.ttl(NO_VIEW, keys[-1]) == 10
        peer.clock.now += 10
        assert peer.get_many(NO_VIEW, keys) == [None] * 1000

    def test_set_many_without_a_ttl_stores_for_good(self, peer: Peer) -> None:
        assert peer.set_many(NO_VIEW, [b"a"], [b"1"]) == 1
        assert peer.set_many(NO_VIEW, [], []) == 0
        assert peer.ttl(NO_VIEW, b"a") == math.inf

    def test_set_many_replaces_values_and_ttls(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"a", b"old", 10)
        peer.set(NO_VIEW, b"b", b"old")
        assert peer.set_many(NO_VIEW, [b"a", b"b", b"c"], [b"1", b"", b"3"]) == 3
        assert peer.get_many(NO_VIEW, [b"a", b"b", b"c"]) == [b"1", b"", b"3"]
        assert peer.ttl(NO_VIEW, b"a") == math.inf
        assert peer.stats()["entries"] == 3

    def test_of_a_key_that_comes_twice_in_a_batch_the_last_value_stays(self, peer: Peer) -> None:
        keys, values = [b"a", b"b", b"a", b"a"], [b"1", b"2", b"a longer one", b"3"]
        for ttl in (None, 10, None):
            assert peer.set_many(NO_VIEW, keys, values, ttl) == 4
            assert peer.get_many(NO_VIEW, [b"a", b"b"]) == [b"3", b"2"]
            assert peer.stats()["entries"] == 2
        assert peer.delete_many(NO_VIEW, keys) == 2
        assert (peer.stats()["entries"], peer.stats()["bytes"]) == (0, 0)

    def test_a_batch_larger_than_the_memory_evicts_and_stays_within_it(self, peer: Peer) -> None:
        keys = [b"key:%d" % number for number in range(8)]
        for _ in range(11):  # a message cannot hold as much as the memory
            peer.set_many(NO_VIEW, keys[:2], [bytes(2 * MIB - 1000)] * 2)
            keys = [*keys[1:], keys[0] + b"'"]
        assert peer.stats()["bytes"] <= MAX_MEMORY
        assert peer.contains(NO_VIEW, b"key:7") is True

    def test_delete_many_counts_what_was_there(self, peer: Peer) -> None:
        peer.set_many(NO_VIEW, *columns([[b"a", b"1"], [b"b", b"2"]]))
        assert peer.delete_many(NO_VIEW, [b"a", b"no key", b"b", b"b"]) == 2
        assert peer.delete_many(NO_VIEW, []) == 0

    def test_a_large_reply_ends_early_and_the_rest_can_be_asked_for(self, peer: Peer) -> None:
        keys = [b"key:%d" % number for number in range(12)]
        for number, key in enumerate(keys):
            peer.set(NO_VIEW, key, bytes([number]) * MIB)
        got: list[bytes] = []
        replies = 0
        while len(got) < len(keys):
            reply = peer.get_many(NO_VIEW, keys[len(got) :])
            assert 0 < len(reply) < len(keys)
            got += reply
            replies += 1
        assert got == [bytes([number]) * MIB for number in range(12)]
        assert replies <= 4

    def test_a_value_larger_than_a_reply_should_be_comes_alone(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"large", b"x" * 6 * MIB)
        peer.set(NO_VIEW, b"small", b"y")
        assert peer.get_many(NO_VIEW, [b"large", b"small"]) == [b"x" * 6 * MIB]
        assert peer.get_many(NO_VIEW, [b"small", b"large"]) == [b"y", b"x" * 6 * MIB]

    def test_all_entries_are_checked_before_any_is_stored(self, peer: Peer) -> None:
        for key, value in (
            (b"", b"value"),
            ("key", b"value"),
            (None, b"value"),
            ([b"key"], b"value"),
            (b"key", "value"),
            (b"key", None),
            (b"key", 7),
            (b"key", [b"value"]),
        ):
            for keys, values in ([b"first", key], [b"first", value]), ([key, b"last"], [value, b"last"]):
                assert peer.refusal("set_many", NO_VIEW, keys, values) == "bad-request"
        both = [b"first", b"key"]
        for wrong in ([b"value"], [b"value"] * 3, []):
            assert peer.refusal("set_many", NO_VIEW, both, wrong) == "bad-request"
        too_large = [bytes(MAX_VALUE_BYTES + 1)]
        assert peer.refusal("set_many", NO_VIEW, [b"key"], too_large) == "value-too-large"
        too_long = [b"first", bytes(64 * 1024 + 1)]
        assert peer.refusal("set_many", NO_VIEW, too_long, [b"value"] * 2) == "key-too-large"
        assert peer.stats()["entries"] == 0

    def test_a_value_of_the_largest_size_may_come_in_a_batch(self, peer: Peer) -> None:
        for ttl in (None, 60.0, [60.0]):
            assert peer.set_many(NO_VIEW, [b"large"], [bytes(MAX_VALUE_BYTES)], ttl) == 1
            assert peer.get(NO_VIEW, b"large") == bytes(MAX_VALUE_BYTES)
        assert peer.set_many(NO_VIEW, [b"large"], [bytes(MAX_VALUE_BYTES)], None, [b"\0tag"]) == 1
        assert peer.get(NO_VIEW, b"large") == bytes(MAX_VALUE_BYTES)

    def test_a_batch_of_too_many_bytes_of_keys_or_tags_is_refused(self, peer: Peer) -> None:
        keys = [b"%5d" % number + bytes(20_000) for number in range(220)]
        for method in ("get_many", "get_entries", "delete_many"):
            assert peer.refusal(method, NO_VIEW, keys) == "value-too-large"
        assert peer.refusal("touch_many", NO_VIEW, keys, None) == "value-too-large"
        assert peer.refusal("set_many", NO_VIEW, keys, [b""] * 220) == "value-too-large"
        assert peer.get_many(NO_VIEW, keys[:200]) == [None] * 200
        short = [b"%d" % number for number in range(1000)]
        tags = [b"\0%d" % number for number in range(17)]
        assert peer.refusal("set_many", NO_VIEW, short, [b""] * 1000, None, tags) == "value-too-large"
        assert peer.set_many(NO_VIEW, short[:900], [b""] * 900, None, tags) == 900

    @pytest.mark.parametrize("sign", [1, -1])
    def test_an_int_of_more_than_64_kib_is_not_added_to(self, peer: Peer, sign: int) -> None:
        longest, too_long = pack_int(sign << 8 * 65_535 - 9), pack_int(sign << 8 * 65_535)
        one = pack_int(1)
        peer.set(NO_VIEW, b"long", too_long)
        assert peer.refusal("incr", NO_VIEW, b"long", one, None) == "value-too-large"
        assert peer.refusal("incr", NO_VIEW, b"new", too_long, one) == "value-too-large"
        assert peer.refusal("incr", NO_VIEW, b"new", one, too_long) == "value-too-large"
        assert peer.get(NO_VIEW, b"long") == too_long
        assert peer.contains(NO_VIEW, b"new") is False
        assert peer.incr(NO_VIEW, b"new", longest, pack_int(0)) == longest

    @pytest.mark.parametrize("method", ["get_many", "delete_many"])
    def test_one_wrong_key_refuses_the_batch(self, peer: Peer, method: str) -> None:
        peer.set(NO_VIEW, b"a", b"1")
        assert peer.refusal(method, NO_VIEW, [b"a", "b"]) == "bad-request"
        assert peer.refusal(method, NO_VIEW, [b"a", b""]) == "bad-request"
        assert peer.refusal(method, NO_VIEW, [b"a", bytes(64 * 1024 + 1)]) == "key-too-large"
        assert peer.contains(NO_VIEW, b"a") is True

    @pytest.mark.parametrize("method", ["get_many", "set_many", "delete_many"])
    def test_a_batch_is_a_list_of_at_most_a_thousand(self, peer: Peer, method: str) -> None:
        columns = 2 if method == "set_many" else 1
        for wrong in ([b"key"] * 1001, b"key", "key", {"key": 1}, 7, None):
            assert peer.refusal(method, NO_VIEW, *[wrong] * columns) == "bad-request"
            if method == "set_many":
                assert peer.refusal(method, NO_VIEW, [b"key"], wrong) == "bad-request"
                assert peer.refusal(method, NO_VIEW, wrong, [b"value"]) == "bad-request"
        getattr(peer, method)(NO_VIEW, *[[b"key"] * 1000] * columns)


class TestNamespaces:
    def test_each_is_counted_and_cleared_on_its_own(self, peer: Peer) -> None:
        peer.set_many(NO_VIEW, *columns([[SHOP + b"%d" % number, b""] for number in range(700)]))
        peer.set_many(NO_VIEW, *columns([[ROOT + b"%d" % number, b""] for number in range(600)]))
        peer.set(NO_VIEW, b"\x05shop1key", b"")
        namespaces = (SHOP, ROOT, b"\x05shop1", b"\x04none", b"")
        assert [peer.count(NO_VIEW, namespace) for namespace in namespaces] == [700, 600, 1, 0, 0]
        assert peer.clear(NO_VIEW, SHOP) == 700
        assert [peer.count(NO_VIEW, namespace) for namespace in namespaces] == [0, 600, 1, 0, 0]
        assert peer.get(NO_VIEW, SHOP + b"1") is None
        assert peer.clear(NO_VIEW, ROOT) == 600
        assert peer.clear(NO_VIEW, ROOT) == peer.clear(NO_VIEW, b"\x04none") == 0
        assert peer.get(NO_VIEW, b"\x05shop1key") == b""

    def test_expired_entries_are_not_counted(self, peer: Peer) -> None:
        peer.set_many(NO_VIEW, *columns([[ROOT + b"%d" % number, b""] for number in range(1000)]), 1)
        peer.set(NO_VIEW, ROOT + b"a", b"")
        assert peer.count(NO_VIEW, ROOT) == 1001
        peer.clock.now += 1
        assert peer.count(NO_VIEW, ROOT) == 1

    def test_no_more_are_counted_than_is_asked_for(self, peer: Peer) -> None:
        for start in range(0, 10_000, 1000):
            peer.set_many(
                NO_VIEW, *columns([[ROOT + b"%d" % number, b""] for number in range(start, start + 1000)]), 9
            )
        assert peer.count(NO_VIEW, ROOT) == peer.count(NO_VIEW, ROOT, 10_001) == 10_000
        assert 1 <= peer.count(NO_VIEW, ROOT, 1) < 10_000
        assert peer.count(NO_VIEW, SHOP, 1) == 0

    def test_entries_with_an_invalid_tag_are_not_counted(self, peer: Peer) -> None:
        keys = [ROOT + b"%d" % number for number in range(1000)]
        for start in range(0, 3000, 1000):
            peer.set_many(NO_VIEW, [key + b":%d" % start for key in keys], [b""] * 1000, None, [b"a", b"b"])
        peer.set_many(NO_VIEW, keys, [b""] * 1000, None, [b"c"])
        assert peer.count(NO_VIEW, ROOT) == 4000
        peer.invalidate_tag(NO_VIEW, b"a")
        peer.invalidate_tag(NO_VIEW, b"b")
        assert peer.count(NO_VIEW, ROOT) == 1000
        peer.delete(NO_VIEW, keys[0])
        assert peer.count(NO_VIEW, ROOT) == 999

    def test_what_is_cleared_is_swept_in_the_background(self, peer: Peer) -> None:
        entries = [[SHOP + b"%d" % number, b"old"] for number in range(1000)]
        for start in range(0, 5000, 1000):
            peer.set_many(NO_VIEW, [key + b":%d" % start for key, _ in entries], [b"old"] * 1000, 100)
        assert peer.clear(NO_VIEW, SHOP) == 5000
        peer.set_many(NO_VIEW, *columns([[key + b":0", b"new"] for key, _ in entries]))
        assert peer.count(NO_VIEW, SHOP) == 1000
        assert peer.stats()["entries"] > 4000
        while peer.node.sweep():
            pass
        assert peer.stats()["entries"] == peer.count(NO_VIEW, SHOP) == 1000
        assert peer.get_many(NO_VIEW, [key + b":0" for key, _ in entries]) == [b"new"] * 1000

    @pytest.mark.parametrize("method", ["count", "clear"])
    def test_one_is_given_in_bytes(self, peer: Peer, method: str) -> None:
        peer.set(NO_VIEW, ROOT + b"key", b"value")
        for wrong in ("key", None, 1, [b"key"], bytes(65 * 1024)):
            assert peer.refusal(method, NO_VIEW, wrong) == "bad-request"
        assert peer.count(NO_VIEW, ROOT) == 1

    def test_hits_and_misses_are_counted_for_each(self, peer: Peer) -> None:
        peer.set(NO_VIEW, SHOP + b"key", b"")
        peer.set(NO_VIEW, ROOT + b"key", b"")
        for _ in range(3):
            peer.get(NO_VIEW, SHOP + b"key")
        peer.get_many(NO_VIEW, [ROOT + b"key", ROOT + b"no key", b"\x04none of it"])
        found = {namespace: figures for namespace, *figures in peer.stats()["namespaces"]}
        assert found == {SHOP: [3, 0, 1], ROOT: [1, 1, 1], b"\x04none": [0, 1, 0]}
        assert (peer.stats()["hits"], peer.stats()["misses"]) == (4, 2)

    def test_of_many_the_most_used_are_told(self, peer: Peer) -> None:
        for number in range(700):
            key = b"\x04%04dkey" % number
            peer.node.set(NO_VIEW, key, b"")
            for _ in range(number):
                peer.node.get(NO_VIEW, key)
        told = peer.stats()["namespaces"]
        assert [hits for _, hits, _, _ in told] == list(range(699, 199, -1))


class TestConditions:
    """`put`: stored or not, as the entry is."""

    def test_absent_and_present(self, peer: Peer) -> None:
        assert peer.put(NO_VIEW, b"key", b"1", None, "present") is False
        assert peer.put(NO_VIEW, b"key", b"2", None, "absent") is True
        assert peer.put(NO_VIEW, b"key", b"3", None, "absent") is False
        assert peer.get(NO_VIEW, b"key") == b"2"
        assert peer.put(NO_VIEW, b"key", b"4", 10, "present") is True
        assert (peer.get(NO_VIEW, b"key"), peer.ttl(NO_VIEW, b"key")) == (b"4", 10)
        peer.clock.now += 10
        assert peer.put(NO_VIEW, b"key", b"5", None, "present") is False
        assert peer.put(NO_VIEW, b"key", b"6", None, "absent") is True
        assert peer.put(NO_VIEW, b"key", b"7") is True
        assert peer.get(NO_VIEW, b"key") == b"7"

    def test_a_version_is_that_of_one_state(self, peer: Peer) -> None:
        assert peer.get_with_version(NO_VIEW, b"key") is None
        peer.set(NO_VIEW, b"key", b"1", 10)
        value, version = peer.get_with_version(NO_VIEW, b"key")
        assert (value, peer.get_with_version(NO_VIEW, b"key")) == (b"1", [b"1", version])
        assert peer.put(NO_VIEW, b"key", b"2", None, version + 1) is False
        assert peer.put(NO_VIEW, b"other", b"2", None, version) is False
        assert peer.put(NO_VIEW, b"key", b"2", KEEP_TTL, version) is True
        assert peer.put(NO_VIEW, b"key", b"3", KEEP_TTL, version) is False
        assert peer.get_with_version(NO_VIEW, b"key")[1] != version
        assert (peer.get(NO_VIEW, b"key"), peer.ttl(NO_VIEW, b"key")) == (b"2", 10)

    def test_a_version_counts_as_a_get(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"value")
        peer.get_with_version(NO_VIEW, b"key")
        peer.get_with_version(NO_VIEW, b"no key")
        assert (peer.stats()["hits"], peer.stats()["misses"]) == (1, 1)

    def test_of_many_at_once_exactly_one_adds_the_key(self, peer: Peer) -> None:
        added: list[bool] = []
        callers = [
            threading.Thread(
                target=lambda: added.append(peer.node.put(NO_VIEW, b"key", b"value", None, "absent"))
            )
            for _ in range(32)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(20)
        assert sorted(added) == [False] * 31 + [True]

    def test_the_ttl_that_is_there_may_be_kept(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"1", 10)
        peer.clock.now += 4
        assert peer.put(NO_VIEW, b"key", b"2", KEEP_TTL) is True
        assert peer.ttl(NO_VIEW, b"key") == 6
        assert peer.put(NO_VIEW, b"new", b"2", KEEP_TTL) is True
        assert peer.ttl(NO_VIEW, b"new") == math.inf
        peer.clock.now += 6
        assert peer.put(NO_VIEW, b"key", b"3", KEEP_TTL) is True
        assert peer.ttl(NO_VIEW, b"key") == math.inf

    @pytest.mark.parametrize(
        "condition", ["gone", b"absent", 0, -1, 1.5, True, [], ["absent"], {}, math.nan], ids=repr
    )
    def test_a_condition_is_one_of_a_few(self, peer: Peer, condition: Any) -> None:
        assert peer.refusal("put", NO_VIEW, b"key", b"value", None, condition) == "bad-request"
        assert peer.stats()["entries"] == 0

    def test_setdefault_stores_what_is_missing_only(self, peer: Peer) -> None:
        assert peer.setdefault(NO_VIEW, b"key", b"1", 10) is None
        assert peer.setdefault(NO_VIEW, b"key", b"2", 99) == b"1"
        assert (peer.get(NO_VIEW, b"key"), peer.ttl(NO_VIEW, b"key")) == (b"1", 10)
        peer.clock.now += 10
        assert peer.setdefault(NO_VIEW, b"key", b"3") is None
        assert peer.ttl(NO_VIEW, b"key") == math.inf

    def test_pop_returns_what_it_removes(self, peer: Peer) -> None:
        assert peer.pop(NO_VIEW, b"key") is None
        peer.set(NO_VIEW, b"key", b"value", 10)
        assert peer.pop(NO_VIEW, b"key") == b"value"
        assert peer.pop(NO_VIEW, b"key") is None
        peer.set(NO_VIEW, b"key", b"value", 10)
        peer.clock.now += 10
        assert peer.pop(NO_VIEW, b"key") is None
        stats = peer.stats()
        assert (stats["hits"], stats["misses"], stats["deletes"], stats["bytes"]) == (1, 3, 1, 0)


class TestConditionalDeletes:
    def test_an_entry_goes_only_with_its_version(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"1")
        _, version = peer.get_with_version(NO_VIEW, b"key")
        assert peer.delete(NO_VIEW, b"key", version + 1) is False
        assert peer.get(NO_VIEW, b"key") == b"1"
        peer.set(NO_VIEW, b"key", b"2")
        assert peer.delete(NO_VIEW, b"key", version) is False
        _, version = peer.get_with_version(NO_VIEW, b"key")
        assert peer.delete(NO_VIEW, b"key", version) is True
        assert peer.get(NO_VIEW, b"key") is None
        assert peer.delete(NO_VIEW, b"key", version) is False
        assert peer.stats()["deletes"] == 1

    def test_only_one_that_deletes_voids_a_lease(self, peer: Peer) -> None:
        _, token, _ = peer.node.begin_lease(Session(), NO_VIEW, b"key", 60, 0)
        assert peer.delete(NO_VIEW, b"key", 5) is False
        assert peer.fill(NO_VIEW, b"key", token, b"loaded") is True
        _, token, _ = peer.node.begin_lease(Session(), NO_VIEW, b"key", 60, 0, 2)
        _, version = peer.get_with_version(NO_VIEW, b"key")
        assert peer.delete(NO_VIEW, b"key", version) is True
        assert peer.fill(NO_VIEW, b"key", token, b"loaded") is False

    @pytest.mark.parametrize("version", [0, -1, "1", 1.5, True], ids=repr)
    def test_a_version_is_an_int_above_0(self, peer: Peer, version: Any) -> None:
        assert peer.refusal("delete", NO_VIEW, b"key", version) == "bad-request"


class TestTtlsThatAreKept:
    def test_a_new_entry_gets_the_one_without_the_sign(self, peer: Peer) -> None:
        assert peer.put(NO_VIEW, b"key", b"1", -100) is True
        assert peer.ttl(NO_VIEW, b"key") == 100
        peer.clock.now += 10
        assert peer.put(NO_VIEW, b"key", b"2", -50.0) is True
        assert (peer.get(NO_VIEW, b"key"), peer.ttl(NO_VIEW, b"key")) == (b"2", 90)
        peer.clock.now += 90
        assert peer.put(NO_VIEW, b"key", b"3", -50.0, "absent") is True
        assert peer.ttl(NO_VIEW, b"key") == 50
        peer.touch(NO_VIEW, b"key", None)
        peer.put(NO_VIEW, b"key", b"4", -50.0)
        assert peer.ttl(NO_VIEW, b"key") == math.inf

    def test_a_batch_keeps_them_too_and_the_tags(self, peer: Peer) -> None:
        peer.put(NO_VIEW, b"a", b"1", 100, None, [b"t"])
        assert peer.set_many(NO_VIEW, [b"a", b"b"], [b"2", b"2"], KEEP_TTL) == 2
        assert peer.get_many(NO_VIEW, [b"a", b"b"]) == [b"2", b"2"]
        assert [peer.ttl(NO_VIEW, key) for key in (b"a", b"b")] == [100, math.inf]
        assert peer.set_many(NO_VIEW, [b"a", b"c"], [b"3", b"3"], -7) == 2
        assert [peer.ttl(NO_VIEW, key) for key in (b"a", b"c")] == [100, 7]
        assert peer.get_entry(NO_VIEW, b"a")[3] == [b"t"]
        peer.set_many(NO_VIEW, [b"a"], [b"4"], KEEP_TTL, [])
        assert peer.get_entry(NO_VIEW, b"a")[2:4] == [100, []]

    def test_each_entry_of_a_batch_may_have_its_own(self, peer: Peer) -> None:
        keys = [b"%d" % number for number in range(100)]
        peer.set_many(NO_VIEW, keys[::2], keys[::2], 1)  # some overwrite one with a TTL, some are new
        ttls = [10.0 + number for number in range(100)]
        assert peer.set_many(NO_VIEW, keys, keys, ttls) == 100
        assert [peer.ttl(NO_VIEW, key) for key in keys] == ttls
        assert peer.get_many(NO_VIEW, keys) == keys
        peer.clock.now += 59.5
        assert peer.get_many(NO_VIEW, keys) == [None] * 50 + keys[50:]
        assert peer.count(NO_VIEW, ROOT) == 0  # these keys are in no namespace
        while peer.node.sweep():
            pass
        assert peer.stats()["entries"] <= 51
        assert peer.set_many(NO_VIEW, [b"a", b"a"], [b"1", b"2"], [5, 6]) == 2
        assert (peer.get(NO_VIEW, b"a"), peer.ttl(NO_VIEW, b"a")) == (b"2", 6)
        assert peer.set_many(NO_VIEW, [b"a", b"x"], [b"1", b"2"], [-5, 7.5], [b"t"]) == 2
        assert [peer.ttl(NO_VIEW, key) for key in (b"a", b"x")] == [6, 7.5]
        assert peer.invalidate_tag(NO_VIEW, b"t") == 2

    @pytest.mark.parametrize(
        "ttls", [[], [1], [1, None], [1, 0], [1, math.nan], [1, "2"], [1, 2, 3], [1, True]]
    )
    def test_there_is_one_for_each_key(self, peer: Peer, ttls: Any) -> None:
        assert peer.refusal("set_many", NO_VIEW, [b"a", b"b"], [b"1", b"2"], ttls) == "bad-request"
        assert peer.get_many(NO_VIEW, [b"a", b"b"]) == [None, None]


class TestDescriptions:
    def test_an_entry_is_described_and_not_used(self, peer: Peer) -> None:
        peer.put(NO_VIEW, b"key", b"value", 100, None, [b"t", b"u"])
        peer.clock.now += 30
        value, version, left, tags, age, idle, size = peer.get_entry(NO_VIEW, b"key")
        assert (value, left, tags, age, idle) == (b"value", 70, [b"t", b"u"], 30, 30)
        assert peer.get_entries(NO_VIEW, [b"key"]) == [[value, version, left, tags, age, idle, size]]
        figures = peer.stats()
        assert (figures["hits"], figures["misses"]) == (0, 0)
        assert size + 2 * (1 + 512) + 1024 == figures["bytes"]  # two tags and a namespace
        assert peer.get_with_version(NO_VIEW, b"key") == [b"value", version]
        assert peer.put(NO_VIEW, b"key", b"other", 100, version) is True

    def test_none_is_no_entry(self, peer: Peer) -> None:
        assert peer.get_entry(NO_VIEW, b"key") is None
        peer.set(NO_VIEW, b"key", b"value", 1)
        peer.clock.now += 1
        assert peer.get_entry(NO_VIEW, b"key") is None
        assert peer.get_entries(NO_VIEW, [b"key", b"other"]) == [None, None]
        assert peer.stats()["misses"] == 0

    def test_idle_is_since_the_last_use_and_age_since_the_value_was_stored(self, peer: Peer) -> None:
        def age_and_idle() -> Any:
            return peer.get_entry(NO_VIEW, b"key")[4:6]

        peer.set(NO_VIEW, b"key", b"value", 1000)
        uses: list[Callable[[], Any]] = [
            lambda: peer.get(NO_VIEW, b"key"),
            lambda: peer.get_many(NO_VIEW, [b"key", b"none"]),
            lambda: peer.get(NO_VIEW, b"key", 2000),
            lambda: peer.touch(NO_VIEW, b"key", 1000),
            lambda: peer.get_with_version(NO_VIEW, b"key"),
            lambda: peer.get_many(NO_VIEW, [b"key"]),
            lambda: peer.get_with_times(NO_VIEW, b"key"),
            lambda: peer.touch(NO_VIEW, b"key", None),
        ]
        for number, use in enumerate(uses):
            peer.clock.now += 10
            assert age_and_idle() == [10 * (number + 1), 10]
            use()
            assert age_and_idle() == [10 * (number + 1), 0]
            peer.contains(NO_VIEW, b"key")
            peer.ttl(NO_VIEW, b"key")
        peer.put(NO_VIEW, b"key", b"new", KEEP_TTL, None, [b"t"])
        assert age_and_idle() == [0, 0]

    def test_a_batch_of_reads_is_a_use_of_each(self, peer: Peer) -> None:
        keys = [ROOT + b"%d" % number for number in range(5)]
        peer.set_many(NO_VIEW, keys, keys, 1000)
        peer.clock.now += 10
        assert peer.get_many(NO_VIEW, keys[:2]) == keys[:2]
        peer.clock.now += 5
        _, found = peer.scan(NO_VIEW, ROOT, ROOT, 0, 1000, None, True)
        assert {key: (age, idle) for key, _, _, age, idle, _ in found} == {
            **dict.fromkeys(keys[:2], (15, 5)),
            **dict.fromkeys(keys[2:], (15, 15)),
        }

    def test_times_are_exact_to_half_a_second(self, peer: Peer) -> None:
        for number in range(20):
            peer.clock.now += 0.3
            peer.set(NO_VIEW, b"%d" % number, b"value", 1000)
        for number in range(20):
            [age, idle] = peer.get_entry(NO_VIEW, b"%d" % number)[4:6]
            assert -1e-9 < age - 0.3 * (19 - number) < 0.51
            assert idle == age

    def test_a_value_alone_has_no_times(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"value")
        assert peer.get_entry(NO_VIEW, b"key")[2:6] == [math.inf, [], None, None]
        peer.clock.now += 10
        assert peer.get(NO_VIEW, b"key") == b"value"
        peer.clock.now += 10
        assert peer.get_entry(NO_VIEW, b"key")[4:6] == [
            None,
            10,
        ]  # it has a version now, so its use was noted

    def test_a_large_reply_ends_early(self, peer: Peer) -> None:
        keys = [b"%d" % number for number in range(1000)]
        peer.set_many(NO_VIEW, keys, keys)
        found = peer.get_entries(NO_VIEW, keys)
        assert 0 < len(found) < 1000
        assert [each[0] for each in found] == keys[: len(found)]
        peer.set(NO_VIEW, keys[0], bytes(3 * MIB))
        peer.set(NO_VIEW, keys[1], bytes(3 * MIB))
        assert len(peer.get_entries(NO_VIEW, keys)) == 2


class TestDeletingAPrefix:
    def delete_all(self, peer: Peer, namespace: bytes, prefix: bytes) -> tuple[int, int]:
        """How many were removed, and in how many calls."""
        cursor = total = calls = 0
        while calls == 0 or cursor:
            cursor, removed = peer.delete_prefix(NO_VIEW, namespace, prefix, cursor)
            total, calls = total + removed, calls + 1
        return total, calls

    def test_what_begins_so_is_gone_and_nothing_else(self, peer: Peer) -> None:
        for prefix in (ROOT + b"a", ROOT + b"b", SHOP + b"a"):
            keys = [prefix + b"%d" % number for number in range(300)]
            peer.set_many(NO_VIEW, keys, keys)
        peer.put(NO_VIEW, ROOT + b"a tagged", b"v", 10, None, [b"t"])
        peer.set(NO_VIEW, ROOT + b"a dead", b"v", 0.5)
        peer.clock.now += 1
        assert self.delete_all(peer, ROOT, ROOT + b"a") == (301, 1)
        assert (peer.count(NO_VIEW, ROOT), peer.count(NO_VIEW, SHOP)) == (300, 300)
        assert self.delete_all(peer, ROOT, ROOT + b"c") == (0, 1)
        assert self.delete_all(peer, SHOP, SHOP) == (300, 1)
        assert peer.stats()["deletes"] == 601

    def test_a_call_has_an_end(self, peer: Peer) -> None:
        for begin in range(0, 20_000, 1000):
            keys = [ROOT + b"%d" % number for number in range(begin, begin + 1000)]
            peer.set_many(NO_VIEW, keys, keys)
        total, calls = self.delete_all(peer, ROOT, ROOT)
        assert total == 20_000
        assert calls > 1

    def test_what_is_being_loaded_is_not_stored(self, peer: Peer) -> None:
        _, token, _ = peer.node.begin_lease(Session(), NO_VIEW, ROOT + b"a", 60, 0)
        _, other, _ = peer.node.begin_lease(Session(), NO_VIEW, ROOT + b"b", 60, 0)
        assert peer.delete_prefix(NO_VIEW, ROOT, ROOT + b"a") == [0, 0]
        assert peer.fill(NO_VIEW, ROOT + b"a", token, b"loaded") is False
        assert peer.fill(NO_VIEW, ROOT + b"b", other, b"loaded") is True

    @pytest.mark.parametrize("arguments", [("a", b"a"), (b"a", None), (ROOT, ROOT, -1), (ROOT, ROOT, None)])
    def test_wrong_arguments(self, peer: Peer, arguments: Any) -> None:
        assert peer.refusal("delete_prefix", NO_VIEW, *arguments) == "bad-request"


class TestTouch:
    def test_an_entry_expires_so_much_later_than_now(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"value", 10)
        peer.clock.now += 8
        assert peer.touch(NO_VIEW, b"key", 10) is True
        peer.clock.now += 9
        assert (peer.get(NO_VIEW, b"key"), peer.ttl(NO_VIEW, b"key")) == (b"value", 1)
        assert peer.touch(NO_VIEW, b"key", None) is True
        assert peer.ttl(NO_VIEW, b"key") == math.inf
        assert peer.touch(NO_VIEW, b"key", 1.5) is True
        peer.clock.now += 1.5
        assert peer.touch(NO_VIEW, b"key", 10) is False
        assert peer.touch(NO_VIEW, b"no key", None) is False

    def test_many_at_once(self, peer: Peer) -> None:
        keys = [b"key:%d" % number for number in range(10)]
        peer.set_many(NO_VIEW, keys, [b"value"] * 10, 10)
        assert peer.touch_many(NO_VIEW, [*keys[:5], b"no key"], 20) == 5
        assert peer.touch_many(NO_VIEW, [], 20) == 0
        peer.clock.now += 10
        assert peer.get_many(NO_VIEW, keys) == [b"value"] * 5 + [None] * 5

    def test_a_get_may_touch(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"value", 10)
        for _ in range(3):
            peer.clock.now += 9
            assert peer.get(NO_VIEW, b"key", 10) == b"value"
        peer.clock.now += 10
        assert peer.get(NO_VIEW, b"key", 10) is None
        assert peer.get(NO_VIEW, b"no key", 10) is None

    def test_an_entry_with_tags_keeps_them_and_stays_as_long_as_it_is_to(self, peer: Peer) -> None:
        peer.put(NO_VIEW, b"key", b"value", 10, None, [b"tag"])
        assert peer.touch(NO_VIEW, b"key", 20) is True
        peer.clock.now += 19
        while peer.node.sweep():
            pass
        assert peer.get(NO_VIEW, b"key") == b"value"
        assert peer.invalidate_tag(NO_VIEW, b"tag") == 1


def frame(number: int) -> bytes:
    """An int as the client sends it."""
    return b"w" + number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


class TestCounting:
    def test_a_new_one_begins_at_the_default(self, peer: Peer) -> None:
        assert peer.incr(NO_VIEW, b"key", frame(5), frame(100), 10) == frame(105)
        assert peer.get(NO_VIEW, b"key") == frame(105)
        assert peer.ttl(NO_VIEW, b"key") == 10
        assert peer.incr(NO_VIEW, b"other", frame(-1), frame(0)) == frame(-1)
        assert peer.ttl(NO_VIEW, b"other") == math.inf

    def test_without_a_default_there_must_be_one(self, peer: Peer) -> None:
        assert peer.incr(NO_VIEW, b"key", frame(1), None, 10) is None
        assert peer.contains(NO_VIEW, b"key") is False
        peer.set(NO_VIEW, b"key", frame(5))
        assert peer.incr(NO_VIEW, b"key", frame(1), None) == frame(6)
        _, token, _ = peer.node.begin_lease(Session(), NO_VIEW, b"other", 60, 0)
        assert peer.incr(NO_VIEW, b"other", frame(1), None) is None
        assert peer.fill(NO_VIEW, b"other", token, frame(1)) is True

    def test_it_keeps_its_ttl_and_its_tags(self, peer: Peer) -> None:
        peer.put(NO_VIEW, b"key", frame(1), 10, None, [b"tag"])
        peer.clock.now += 4
        assert peer.incr(NO_VIEW, b"key", frame(1), frame(100), 99) == frame(2)
        assert peer.ttl(NO_VIEW, b"key") == 6
        assert peer.invalidate_tag(NO_VIEW, b"tag") == 1
        assert peer.incr(NO_VIEW, b"key", frame(1), frame(100)) == frame(101)

    @pytest.mark.parametrize("number", [0, 127, -128, 2**63 - 1, -(2**63), 10**1000])
    def test_ints_of_any_size(self, peer: Peer, number: int) -> None:
        peer.set(NO_VIEW, b"key", frame(number))
        assert peer.incr(NO_VIEW, b"key", frame(1), frame(0)) == frame(number + 1)
        assert peer.incr(NO_VIEW, b"key", frame(-2 * number), frame(0)) == frame(1 - number)

    @pytest.mark.parametrize("value", [b"", b"w", b"x12", b"n", b"\x80\x05"])
    def test_what_is_no_int_stays_as_it_is(self, peer: Peer, value: bytes) -> None:
        peer.set(NO_VIEW, b"key", value, 10)
        assert peer.refusal("incr", NO_VIEW, b"key", frame(1), frame(0)) == "not-an-int"
        assert (peer.get(NO_VIEW, b"key"), peer.ttl(NO_VIEW, b"key")) == (value, 10)

    @pytest.mark.parametrize("wrong", [1, "1", None, b"", b"w", b"x1", [b"w1"]], ids=repr)
    def test_numbers_are_frames(self, peer: Peer, wrong: Any) -> None:
        assert peer.refusal("incr", NO_VIEW, b"key", wrong, frame(0)) == "bad-request"
        if wrong is not None:  # no default
            assert peer.refusal("incr", NO_VIEW, b"key", frame(1), wrong) == "bad-request"
        assert peer.stats()["entries"] == 0

    def test_a_sum_too_large_for_a_value_changes_nothing(self, peer: Peer) -> None:
        largest = b"w\x7f" + b"\xff" * (MAX_VALUE_BYTES - 2)
        peer.set(NO_VIEW, b"key", largest)
        assert peer.refusal("incr", NO_VIEW, b"key", frame(1), frame(0)) == "value-too-large"
        assert peer.get(NO_VIEW, b"key") == largest

    def test_none_is_lost_when_many_count(self, peer: Peer) -> None:
        def count() -> None:
            for _ in range(500):
                peer.node.incr(NO_VIEW, b"key", frame(1), frame(0))

        callers = [threading.Thread(target=count) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        assert peer.get(NO_VIEW, b"key") == frame(4000)


class TestTags:
    def test_all_entries_with_it_are_gone(self, peer: Peer) -> None:
        peer.set_many(NO_VIEW, *columns([[ROOT + b"%d" % number, b""] for number in range(500)]), 50, [b"t"])
        peer.put(NO_VIEW, ROOT + b"both", b"", None, None, [b"u", b"t", b"t"])
        peer.put(NO_VIEW, ROOT + b"other", b"", None, None, [b"u"])
        peer.set(NO_VIEW, ROOT + b"none", b"")
        assert peer.invalidate_tag(NO_VIEW, b"t") == 501
        assert peer.invalidate_tag(NO_VIEW, b"t") == 0
        assert peer.count(NO_VIEW, ROOT) == 2
        assert sorted(peer.scan(NO_VIEW, ROOT, ROOT)[1]) == [ROOT + b"none", ROOT + b"other"]
        assert peer.get_many(NO_VIEW, [ROOT + b"0", ROOT + b"both", ROOT + b"other"]) == [None, None, b""]
        while peer.node.sweep():
            pass
        assert peer.stats()["entries"] == 2
        assert peer.invalidate_tag(NO_VIEW, b"u") == 1

    def test_a_new_value_has_the_tags_it_comes_with(self, peer: Peer) -> None:
        for key in (b"a", b"b", b"c", b"d"):
            peer.put(NO_VIEW, key, b"1", 10, None, [b"t"])
        peer.set(NO_VIEW, b"a", b"2")
        peer.put(NO_VIEW, b"b", b"2", KEEP_TTL)
        peer.put(NO_VIEW, b"c", b"2", KEEP_TTL, None, [])
        peer.set_many(NO_VIEW, [b"d"], [b"2"])
        assert peer.invalidate_tag(NO_VIEW, b"t") == 1
        assert peer.get_many(NO_VIEW, [b"a", b"b", b"c", b"d"]) == [b"2", None, b"2", b"2"]

    def test_a_key_is_as_new_after_its_tag_was_invalidated(self, peer: Peer) -> None:
        peer.put(NO_VIEW, b"key", b"1", 10, None, [b"t"])
        peer.invalidate_tag(NO_VIEW, b"t")
        assert peer.put(NO_VIEW, b"key", b"2", KEEP_TTL, "absent", [b"t"]) is True
        assert peer.ttl(NO_VIEW, b"key") == math.inf
        assert peer.invalidate_tag(NO_VIEW, b"t") == 1

    @pytest.mark.parametrize(
        "tag", ["tag", b"", None, 7, [b"tag"], bytes(2049)], ids=lambda tag: repr(tag)[:20]
    )
    def test_a_tag_is_bytes(self, peer: Peer, tag: Any) -> None:
        assert peer.refusal("invalidate_tag", NO_VIEW, tag) == "bad-request"
        assert peer.refusal("put", NO_VIEW, b"key", b"value", None, None, [b"t", tag]) == "bad-request"
        assert peer.refusal("set_many", NO_VIEW, [b"key"], [b"value"], None, [tag]) == "bad-request"
        assert peer.stats()["entries"] == 0

    def test_there_are_at_most_64(self, peer: Peer) -> None:
        tags = [b"%064d" % number for number in range(65)]
        for wrong in (tags, "tags", b"tags", 7, {"tag": 1}):
            assert peer.refusal("put", NO_VIEW, b"key", b"value", None, None, wrong) == "bad-request"
            assert peer.refusal("set_many", NO_VIEW, [b"key"], [b"value"], None, wrong) == "bad-request"
        assert peer.put(NO_VIEW, b"key", b"value", None, None, tags[:64]) is True
        assert peer.invalidate_tag(NO_VIEW, tags[63]) == 1
        while peer.node.sweep():
            pass
        assert peer.stats()["bytes"] == 0


def whole_scan(
    peer: Peer,
    namespace: bytes,
    limit: int,
    between: Callable[[int], None] = lambda pages: None,
    *,
    prefix: bytes | None = None,
    cursor: int = 0,
) -> list[bytes]:
    """All keys of a scan; ``between`` is called after each page with its number."""
    found: list[bytes] = []
    pages = 0
    while True:
        cursor, page = peer.scan(NO_VIEW, namespace, namespace if prefix is None else prefix, cursor, limit)
        assert len(page) <= limit
        found += page
        pages += 1
        if cursor == 0:
            return found
        between(pages)


class TestScans:
    def test_a_scan_of_nothing_ends_at_once(self, peer: Peer) -> None:
        assert peer.scan(NO_VIEW, ROOT, ROOT) == [0, []]
        assert peer.scan(NO_VIEW, SHOP, SHOP) == [0, []]

    @pytest.mark.parametrize("limit", [1, 7, 1000])
    def test_each_key_comes_exactly_once(self, peer: Peer, limit: int) -> None:
        there = {SHOP + b"key:%d" % number for number in range(50)}
        peer.set_many(NO_VIEW, *columns([[key, b""] for key in there]))
        peer.set(NO_VIEW, SHOP + b"other", b"")
        peer.set(NO_VIEW, ROOT + b"key:1", b"")
        found = whole_scan(peer, SHOP, limit, prefix=SHOP + b"key:")
        assert sorted(found) == sorted(there)
        assert sorted(whole_scan(peer, SHOP, limit)) == sorted({*there, SHOP + b"other"})

    def test_a_prefix_of_another_namespace_finds_nothing(self, peer: Peer) -> None:
        peer.set(NO_VIEW, ROOT + b"key", b"")
        peer.set(NO_VIEW, SHOP + b"key", b"")
        for prefix in (b"\1", SHOP, b"", SHOP[:3]):
            assert peer.scan(NO_VIEW, ROOT, prefix) == [0, [ROOT + b"key"] if not prefix else []]

    def test_a_page_has_a_thousand_keys_unless_told_otherwise(self, peer: Peer) -> None:
        peer.set_many(NO_VIEW, *columns([[ROOT + b"key:%d" % number, b""] for number in range(1000)]))
        peer.set(NO_VIEW, ROOT + b"one more", b"")
        cursor, page = peer.scan(NO_VIEW, ROOT, ROOT)
        assert cursor != 0
        assert len(page) == 1000
        assert len(peer.scan(NO_VIEW, ROOT, ROOT, cursor)[1]) == 1

    def test_keys_that_stay_come_exactly_once_while_others_come_and_go(self, peer: Peer) -> None:
        staying = {ROOT + b"stays:%d" % number for number in range(1000)}
        leaving = [ROOT + b"leaves:%d" % number for number in range(200)]
        peer.set_many(NO_VIEW, *columns([[key, b""] for key in sorted(staying)]))
        peer.set_many(NO_VIEW, *columns([[key, b""] for key in leaving]))

        def disturb(pages: int) -> None:
            if pages <= 20:
                more = [[ROOT + b"comes:%d:%d" % (pages, number), b""] for number in range(500)]
                peer.set_many(NO_VIEW, *columns(more))
            peer.set_many(NO_VIEW, *columns([[key, b"again"] for key in sorted(staying)[:100]]))
            peer.delete_many(NO_VIEW, leaving[pages * 10 : pages * 10 + 10])

        found = whole_scan(peer, ROOT, 100, disturb)
        assert sorted(key for key in found if key in staying) == sorted(staying)
        assert len(found) == len(set(found)), "no key comes twice"

    def test_the_same_holds_for_keys_that_are_long(self, peer: Peer) -> None:
        def long(name: bytes) -> bytes:
            return ROOT + name + b":" + b"k" * 20_000

        staying = {long(b"stays:%d" % number) for number in range(60)}
        leaving = [long(b"leaves:%d" % number) for number in range(60)]
        peer.set_many(NO_VIEW, *columns([[key, b""] for key in [*staying, *leaving]]))

        def disturb(pages: int) -> None:
            peer.set_many(
                NO_VIEW, *columns([[long(b"comes:%d:%d" % (pages, number)), b""] for number in range(5)])
            )
            peer.set_many(NO_VIEW, *columns([[key, b"again"] for key in staying]))
            peer.delete_many(NO_VIEW, leaving[pages * 3 : pages * 3 + 3])

        found = whole_scan(peer, ROOT, 10, disturb)
        assert sorted(key for key in found if key in staying) == sorted(staying)
        assert len(found) == len(set(found)), "no key comes twice"

    def test_keys_that_are_deleted_or_expire_meanwhile_do_not_come(self, peer: Peer) -> None:
        peer.set_many(NO_VIEW, *columns([[ROOT + b"a:%d" % number, b""] for number in range(10)]), 10)
        peer.set_many(NO_VIEW, *columns([[ROOT + b"b:%d" % number, b""] for number in range(10)]))
        cursor, page = peer.scan(NO_VIEW, ROOT, ROOT, 0, 1)
        peer.delete_many(NO_VIEW, [ROOT + b"b:%d" % number for number in range(10)])
        peer.clock.now += 10
        assert peer.scan(NO_VIEW, ROOT, ROOT, cursor, 1000) == [0, []]
        assert len(page) == 1

    def test_a_scan_goes_on_after_a_clear(self, peer: Peer) -> None:
        peer.set_many(NO_VIEW, *columns([[ROOT + b"%d" % number, b""] for number in range(1000)]))
        peer.set_many(NO_VIEW, *columns([[ROOT + b"more %d" % number, b""] for number in range(1000)]))
        cursor, _ = peer.scan(NO_VIEW, ROOT, ROOT, 0, 10)
        peer.clear(NO_VIEW, ROOT)
        new = {ROOT + b"new %d" % number for number in range(10)}
        peer.set_many(NO_VIEW, *columns([[key, b""] for key in new]))
        assert set(whole_scan(peer, ROOT, 10, cursor=cursor)) <= new

    def test_a_cursor_may_be_used_again(self, peer: Peer) -> None:
        peer.set_many(NO_VIEW, *columns([[ROOT + b"key:%d" % number, b""] for number in range(30)]))
        cursor, first = peer.scan(NO_VIEW, ROOT, ROOT, 0, 10)
        pages = [peer.scan(NO_VIEW, ROOT, ROOT, cursor, 1000)[1] for _ in range(2)]
        assert pages[0] == pages[1]
        assert len({*first, *pages[0]}) == 30

    def test_any_cursor_is_answered(self, peer: Peer) -> None:
        peer.set_many(NO_VIEW, *columns([[ROOT + b"key:%d" % number, b""] for number in range(30)]))
        for cursor in (1, 2**62, 2**63, 2**64 - 1):
            assert len(peer.scan(NO_VIEW, ROOT, ROOT, cursor)[1]) <= 30

    def test_a_limit_is_an_int_from_1_to_1000_and_a_cursor_an_int(self, peer: Peer) -> None:
        for limit in (0, -1, 1001, 1.5, True, "1", None):
            assert peer.refusal("scan", NO_VIEW, ROOT, ROOT, 0, limit) == "bad-request"
        for cursor in (0.0, False, "0", None, b"", -1):
            assert peer.refusal("scan", NO_VIEW, ROOT, ROOT, cursor) == "bad-request"

    def test_a_namespace_and_a_prefix_are_bytes(self, peer: Peer) -> None:
        for wrong in ("key", None, 1, [b"key"], bytes(65 * 1024)):
            assert peer.refusal("scan", NO_VIEW, wrong, ROOT) == "bad-request"
            assert peer.refusal("scan", NO_VIEW, ROOT, wrong) == "bad-request"

    def test_pages_of_long_keys_stay_small(self, peer: Peer) -> None:
        there = {ROOT + b"%04d" % number + b"k" * 60_000 for number in range(150)}
        for key in there:
            peer.set(NO_VIEW, key, b"")
        cursor, page = peer.scan(NO_VIEW, ROOT, ROOT)
        assert sum(map(len, page)) < 5 * MIB
        found = page + whole_scan(peer, ROOT, 1000, cursor=cursor)
        assert sorted(found) == sorted(there)

    @pytest.mark.parametrize("gone", ["expired", "other keys"])
    def test_a_page_does_not_keep_others_waiting_while_it_skips(self, gone: str) -> None:
        keys = 60_000
        pages = 0
        under_way = threading.Event()

        class Watched(Store):
            def page(self, *arguments: Any, **options: Any) -> tuple[list[bytes], int]:
                nonlocal pages
                pages += 1
                if pages == 2:
                    under_way.set()
                return super().page(*arguments, **options)

        clock = Clock()
        node = CacheNode(Watched(64 * MIB, clock=clock), clock=clock)
        for start in range(0, keys, 1000):
            batch = [ROOT + b"%d" % number for number in range(start, start + 1000)]
            node.set_many(NO_VIEW, batch, [b""] * 1000, 1.0)
        if gone == "expired":
            clock.now += 1
        scan = threading.Thread(target=whole_scan_of, args=(node, ROOT + b"x"))
        scan.start()
        assert under_way.wait(20)
        assert node.get(NO_VIEW, b"key") is None
        seen_by_then = pages
        scan.join(20)
        assert seen_by_then < pages, "a get waited until the scan was over"


def whole_scan_of(node: CacheNode, prefix: bytes) -> list[bytes]:
    """A scan of the root that nothing comes between."""
    return whole_scan(Peer(node, node, Clock(), []), ROOT, 1000, prefix=prefix)


class TestScansByTag:
    def scan(self, peer: Peer, prefix: bytes, tag: bytes, limit: int = 1000) -> list[bytes]:
        found, cursor, begun = [], 0, False
        while cursor or not begun:
            cursor, page = peer.scan(NO_VIEW, ROOT, prefix, cursor, limit, tag)
            found, begun = [*found, *page], True
            assert len(page) <= limit
        assert len(set(found)) == len(found)
        return found

    @pytest.mark.parametrize(("tagged", "others"), [(0, 50), (5, 5000), (1300, 2000)])
    def test_those_with_the_tag_come_and_no_others(self, peer: Peer, tagged: int, others: int) -> None:
        keys = [ROOT + b"k%d" % number for number in range(tagged)]
        rest = [ROOT + b"r%d" % number for number in range(others)]
        for begin in range(0, max(tagged, others), 1000):
            chunk = keys[begin : begin + 1000]
            peer.set_many(NO_VIEW, chunk, chunk, None, [ROOT + b"t", ROOT + b"u"])
            chunk = rest[begin : begin + 1000]
            peer.set_many(NO_VIEW, chunk, chunk, None, [ROOT + b"v"])
        assert sorted(self.scan(peer, ROOT, ROOT + b"t")) == sorted(keys)
        assert sorted(self.scan(peer, ROOT, ROOT + b"t", 7)) == sorted(keys)
        assert sorted(self.scan(peer, ROOT + b"k1", ROOT + b"t")) == sorted(
            key for key in keys if key.startswith(ROOT + b"k1")
        )
        assert self.scan(peer, ROOT, ROOT + b"none") == []

    def test_few_are_found_in_one_call_whatever_else_there_is(self, peer: Peer) -> None:
        for begin in range(0, 20_000, 1000):
            keys = [ROOT + b"%d" % number for number in range(begin, begin + 1000)]
            peer.set_many(NO_VIEW, keys, keys)
        peer.put(NO_VIEW, ROOT + b"7", b"v", None, None, [b"t"])
        assert peer.scan(NO_VIEW, ROOT, ROOT, 0, 1000, b"t") == [0, [ROOT + b"7"]]

    def test_an_entry_without_it_any_more_does_not_come(self, peer: Peer) -> None:
        for name in (b"a", b"b", b"c", b"d", b"e", b"f"):
            peer.put(NO_VIEW, ROOT + name, b"v", 10, None, [b"t"])
        peer.set(NO_VIEW, ROOT + b"a", b"v")  # has no tags
        peer.delete(NO_VIEW, ROOT + b"b")
        peer.touch(NO_VIEW, ROOT + b"c", 0.5)
        peer.put(NO_VIEW, ROOT + b"d", b"v", None, None, [b"u"])
        peer.put(NO_VIEW, SHOP + b"key", b"v", None, None, [b"t"])
        peer.clock.now += 1
        assert sorted(self.scan(peer, ROOT, b"t")) == [ROOT + b"e", ROOT + b"f"]
        peer.clear(NO_VIEW, ROOT)
        peer.put(NO_VIEW, ROOT + b"f", b"v", None, None, [b"t"])
        peer.set(NO_VIEW, ROOT + b"e", b"v")
        assert self.scan(peer, ROOT, b"t") == [ROOT + b"f"]
        peer.invalidate_tag(NO_VIEW, b"t")
        assert self.scan(peer, ROOT, b"t") == []

    def test_a_scan_goes_on_when_few_become_many(self, peer: Peer) -> None:
        keys = [ROOT + b"k%d" % number for number in range(2000)]
        peer.set_many(NO_VIEW, keys[:1000], keys[:1000], None, [b"t"])
        cursor, page = peer.scan(NO_VIEW, ROOT, ROOT, 0, 300, b"t")
        peer.set_many(NO_VIEW, keys[1000:], keys[1000:], None, [b"t"])
        found = list(page)
        while cursor:
            cursor, page = peer.scan(NO_VIEW, ROOT, ROOT, cursor, 300, b"t")
            found += page
        assert len(set(found)) == len(found)
        assert set(found) >= set(keys[:1000])

    def test_details_take_the_place_of_keys(self, peer: Peer) -> None:
        peer.put(NO_VIEW, ROOT + b"a", b"value", 100, None, [b"t"])
        peer.set(NO_VIEW, ROOT + b"b", b"value")
        before = peer.stats()["bytes"]
        peer.clock.now += 10
        cursor, found = peer.scan(NO_VIEW, ROOT, ROOT, 0, 1000, None, True)
        assert cursor == 0
        sizes = {key: size for key, *_, size in found}
        assert sum(sizes.values()) + 1 + 512 == before == peer.stats()["bytes"]
        assert sorted(found) == [
            [ROOT + b"a", 90, [b"t"], 10, 10, sizes[ROOT + b"a"]],
            [ROOT + b"b", math.inf, [], None, None, sizes[ROOT + b"b"]],
        ]
        assert [each[0] for each in peer.scan(NO_VIEW, ROOT, ROOT, 0, 1000, b"t", True)[1]] == [ROOT + b"a"]
        assert peer.stats()["hits"] == 0

    def test_pages_of_many_tags_stay_small(self, peer: Peer) -> None:
        tags = [b"%060d" % number + bytes(1900) for number in range(64)]
        keys = [ROOT + b"%d" % number for number in range(200)]
        for begin in range(0, 200, 50):
            chunk = keys[begin : begin + 50]
            peer.set_many(NO_VIEW, chunk, chunk, None, tags)
        found, cursor, begun = [], 0, False
        while cursor or not begun:
            cursor, page = peer.scan(NO_VIEW, ROOT, ROOT, cursor, 1000, None, True)
            assert sum(len(tag) for each in page for tag in each[2]) < 6 * MIB
            found, begun = [*found, *(each[0] for each in page)], True
        assert sorted(found) == sorted(keys)
        entries = peer.get_entries(NO_VIEW, keys)
        assert 10 < len(entries) < 60

    @pytest.mark.parametrize("options", [("t",), (b"",), (bytes(3000),), (None, 1), (None, "yes")])
    def test_wrong_options(self, peer: Peer, options: Any) -> None:
        assert peer.refusal("scan", NO_VIEW, ROOT, ROOT, 0, 10, *options) == "bad-request"


class TestViews:
    def test_a_node_without_a_view_has_no_members(self, peer: Peer) -> None:
        assert peer.members() == []
        answer = {"name": NAME, "incarnation": "the first", "serving": True, "view": 0, "id": 0}
        assert peer.ping() == answer

    def test_a_node_tells_its_view(self, peer: Peer) -> None:
        peer.node.ownership.adopt(two_members())
        assert peer.members() == [
            [NAME, "127.0.0.1", 1, 1.0, "the first", "/run/first.sock"],
            ["cache.node.2", "127.0.0.1", 2, 2.0, "other", ""],
        ]
        answer = peer.ping(7)
        assert (answer["view"], answer["id"], answer["serving"]) == (7, two_members().id, True)
        peer.node.ownership.prepare()
        assert peer.ping(7)["id"] == 0, "a newer view seems to exist"
        peer.node.ownership.confirm()
        assert peer.ping(7)["id"] == two_members().id

    def test_the_right_view_and_none_are_served(self, peer: Peer) -> None:
        view = two_members()
        peer.node.ownership.adopt(view)
        key = owned_by(view, NAME, 1)[0]
        assert peer.set(7, key, b"value") is True
        assert peer.get(7, key) == b"value"
        assert peer.get(NO_VIEW, key) == b"value"
        assert peer.ping(7)["serving"] is True
        assert peer.stale == []

    def test_without_a_view_the_node_checks_ownership_itself(self, peer: Peer) -> None:
        view = two_members()
        peer.node.ownership.adopt(view)
        key = owned_by(view, "cache.node.2", 1)[0]
        for method, arguments in [("get", (key,)), ("set", (key, b"v")), ("get_many", ([key],))]:
            with pytest.raises(Refused) as caught:
                getattr(peer, method)(NO_VIEW, *arguments)
            assert (caught.value.code, caught.value.detail) == ("stale-view", as_sent(view))

    @pytest.mark.parametrize(
        ("method", "arguments"),
        [
            ("get", (b"key",)),
            ("set", (b"key", b"new")),
            ("get", (b"key", 10)),
            ("put", (b"key", b"new")),
            ("put", (b"key", b"new", None, "present", [b"tag"])),
            ("setdefault", (b"other", b"new")),
            ("get_with_version", (b"key",)),
            ("incr", (b"other", b"w\1", b"w\0")),
            ("delete", (b"key",)),
            ("pop", (b"key",)),
            ("contains", (b"key",)),
            ("ttl", (b"key",)),
            ("touch", (b"key", 1)),
            ("get_many", ([b"key"],)),
            ("set_many", ([b"key"], [b"new"])),
            ("set_many", ([b"key"], [b"new"], None, [b"tag"])),
            ("delete_many", ([b"key"],)),
            ("touch_many", ([b"key"], 1)),
        ],
    )
    def test_another_view_is_stale_and_changes_nothing(
        self, peer: Peer, method: str, arguments: tuple[Any, ...]
    ) -> None:
        view = ClusterView([Member(NAME, "127.0.0.1", 1)], 8, "c1")
        peer.node.ownership.adopt(view)
        peer.set(8, b"key", b"old")
        before = peer.stats()
        for number in (7, 9):
            with pytest.raises(Refused) as caught:
                getattr(peer, method)(number, *arguments)
            assert caught.value.code == "stale-view"
            assert caught.value.detail == as_sent(view)
        assert peer.stale == [9], "the node is told to look for a newer view itself"
        after = peer.stats()
        assert {name: after[name] for name in ("hits", "misses", "sets", "deletes", "entries")} == {
            name: before[name] for name in ("hits", "misses", "sets", "deletes", "entries")
        }
        assert (peer.get(8, b"key"), peer.ttl(8, b"key")) == (b"old", math.inf)
        assert peer.contains(8, b"other") is False

    def test_a_newer_view_seen_in_a_ping_is_noted(self, peer: Peer) -> None:
        peer.node.ownership.adopt(two_members())
        for number in (6, 7, 12345):
            assert peer.ping(number)["name"] == NAME
        assert peer.stale == [12345]

    def test_a_node_that_is_not_in_its_own_view_says_that_it_is_leaving(self, peer: Peer) -> None:
        others = ClusterView([Member("cache.node.2", "127.0.0.1", 2)], 8, "c1")
        peer.node.ownership.adopt(others)
        assert peer.ping()["serving"] is False
        for number in (7, NO_VIEW):
            with pytest.raises(Refused) as caught:
                peer.get(number, b"key")
            assert caught.value.detail == as_sent(others)

    def test_a_new_view_drops_what_belongs_to_others(self, peer: Peer) -> None:
        view = two_members()
        mine, theirs = owned_by(view, NAME, 20), owned_by(view, "cache.node.2", 20)
        peer.set_many(NO_VIEW, *columns([[key, b"value"] for key in mine + theirs]))
        peer.node.ownership.adopt(view)
        assert peer.node.ownership.drop_outdated()
        assert peer.get_many(7, mine) == [b"value"] * 20
        assert peer.stats()["entries"] == 20
        alone = ClusterView(view.members[:1], 8, "c1")
        peer.node.ownership.adopt(alone, view)
        assert peer.node.ownership.drop_outdated()
        assert peer.get_many(8, mine) == [b"value"] * 20
        assert peer.get_many(8, theirs) == [None] * 20, "what was dropped never comes back"

    def test_what_moves_away_and_back_unseen_is_dropped(self, peer: Peer) -> None:
        """Another node had the keys in the view before, which this node has not adopted."""
        alone, both = ClusterView(two_members().members[:1], 6, "c1"), two_members()
        mine, theirs = owned_by(both, NAME, 20), owned_by(both, "cache.node.2", 20)
        peer.node.ownership.adopt(alone)
        assert peer.node.ownership.drop_outdated()
        peer.set_many(6, *columns([[key, b"value"] for key in mine + theirs]))
        peer.node.ownership.adopt(ClusterView(alone.members, 8, "c1"), both)
        assert peer.node.ownership.drop_outdated()
        assert peer.get_many(8, mine) == [b"value"] * 20
        assert peer.get_many(8, theirs) == [None] * 20

    def test_after_a_view_that_is_not_known_nothing_is_kept(self, peer: Peer) -> None:
        alone = two_members().members[:1]
        peer.node.ownership.adopt(ClusterView(alone, 6, "c1"))
        assert peer.node.ownership.drop_outdated()
        peer.set(6, b"key", b"value")
        peer.node.ownership.adopt(ClusterView(alone, 9, "c1"), ClusterView(alone, 8, "c1"))
        assert peer.node.ownership.drop_outdated()
        assert peer.get(9, b"key") is None
        assert peer.stats()["entries"] == 0

    def test_what_a_member_of_the_view_before_may_still_serve_waits(self, peer: Peer) -> None:
        before = two_members()
        mine, theirs = (owned_by(before, name, 2) for name in (NAME, "cache.node.2"))
        peer.node.ownership.adopt(before)
        peer.node.ownership.adopt(ClusterView(before.members[:1], 8, "c1"), before, {"cache.node.2"})
        for number in (8, NO_VIEW):
            assert peer.set(number, mine[0], b"value") is True
            assert peer.get_many(number, mine) == [b"value", None]
            assert peer.refusal("set", number, theirs[0], b"value") == "not-serving"
            assert peer.refusal("get_many", number, [mine[0], theirs[0]]) == "not-serving"
        assert peer.ping()["serving"] is True
        peer.node.ownership.take_over(frozenset())
        assert peer.set(8, theirs[0], b"value") is True

    def test_what_is_about_all_entries_carries_the_view_too(self, peer: Peer) -> None:
        peer.node.ownership.adopt(ClusterView(two_members().members[:1], 8, "c1"))
        peer.put(8, ROOT + b"key", b"value", None, None, [b"tag"])
        for method, arguments in ABOUT_ALL:
            for number in (7, 9):
                assert peer.refusal(method, number, *arguments) == "stale-view"
            assert peer.refusal(method, "8", *arguments) == "bad-request"
        assert set(peer.stale) == {9}
        peer.node.ownership.lapse(True)
        for method, arguments in ABOUT_ALL:
            for number in (8, NO_VIEW):
                assert peer.refusal(method, number, *arguments) == "not-serving"
        peer.node.ownership.lapse(False)
        for number in (8, NO_VIEW):
            assert (peer.count(number, ROOT), peer.scan(number, ROOT, ROOT)) == (1, [0, [ROOT + b"key"]])
        assert peer.invalidate_tag(8, b"tag") == 1
        assert peer.delete_prefix(8, ROOT, ROOT) == [0, 0]
        assert type(peer.clear(8, ROOT)) is int

    def test_what_is_about_all_entries_waits_for_a_node_that_may_have_some_and_is_not_asked(
        self, peer: Peer
    ) -> None:
        """A client that has got an answer of each member must not read an older value afterwards, wherever."""
        before = two_members()
        peer.node.ownership.adopt(before)
        joined = ClusterView([*before.members, Member("cache.node.3", "127.0.0.1", 3)], 8, "c1")
        peer.node.ownership.adopt(joined, before, {"cache.node.2"})
        for number in (8, NO_VIEW):
            assert peer.clear(number, ROOT) == 0, "each member is asked itself"
        new = [*joined.members[::2], Member("cache.node.2", "127.0.0.1", 4, 2.0, "started again")]
        peer.node.ownership.adopt(ClusterView(new, 9, "c1"), joined, {"cache.node.2"})
        for method, arguments in ABOUT_ALL:
            for number in (9, NO_VIEW):
                assert peer.refusal(method, number, *arguments) == "not-serving"
        peer.node.ownership.take_over(frozenset())
        assert peer.clear(9, ROOT) == 0

    def test_without_a_lease_entries_are_kept_and_not_served(self, peer: Peer) -> None:
        peer.node.ownership.adopt(ClusterView(two_members().members[:1], 8, "c1"))
        peer.set(8, b"key", b"value")
        peer.node.ownership.lapse(True)
        for number in (8, NO_VIEW):
            assert peer.refusal("get", number, b"key") == "not-serving"
            assert peer.refusal("set", number, b"key", b"new") == "not-serving"
            assert peer.refusal("get_many", number, [b"key"]) == "not-serving"
        assert peer.ping()["serving"] is False
        assert peer.stats()["entries"] == 1
        peer.node.ownership.lapse(False)
        assert peer.get(8, b"key") == b"value"

    def test_versions_and_tokens_grow_with_the_view(self, peer: Peer) -> None:
        """Whatever another owner has counted under a view before."""
        alone = two_members().members[:1]
        peer.node.ownership.adopt(ClusterView(alone, 8, "c1"))
        peer.set(8, b"key", b"value")
        assert 8 << 32 <= peer.get_with_version(8, b"key")[1] < 9 << 32
        assert 8 << 32 < peer.node.acquire(8, b"lock", 1, 60.0, 0.0) < 9 << 32
        peer.node.ownership.adopt(ClusterView(alone, 9, "c1"), ClusterView(alone, 8, "c1"))
        assert peer.get_with_version(9, b"key")[1] < 9 << 32, "the same value"
        peer.set(9, b"key", b"new")
        assert 9 << 32 <= peer.get_with_version(9, b"key")[1] < 10 << 32
        assert 9 << 32 < peer.node.acquire(9, b"another", 1, 60.0, 0.0) < 10 << 32

    def test_expired_values_that_are_kept_a_while_are_dropped_as_well(self, peer: Peer) -> None:
        view = two_members()
        key = owned_by(view, "cache.node.2", 1)[0]
        answer = peer.node.lease(NO_VIEW, key, 10, 0)
        assert answer is not None
        token = answer[1]
        assert peer.node.fill(NO_VIEW, key, token, b"value", 10, 100) is True
        peer.clock.now += 10
        peer.node.ownership.adopt(view)
        assert peer.node.ownership.drop_outdated()
        assert peer.stats()["entries"] == 0

    @pytest.mark.parametrize("view", ["1", 1.5, math.nan, None, True, [], {}, b"1"], ids=repr)
    def test_a_view_is_given_by_its_number(self, peer: Peer, view: Any) -> None:
        peer.node.ownership.adopt(two_members())
        assert peer.refusal("get", view, b"key") == "bad-request"
        assert peer.refusal("set", view, b"key", b"value") == "bad-request"
        assert peer.refusal("get_many", view, [b"key"]) == "bad-request"
        assert peer.refusal("ping", view) == "bad-request"
        assert peer.stats()["entries"] == 0
        assert peer.stale == []


WRONG_KEYS: list[Any] = ["key", b"", None, 7, 1.5, True, [b"key"], {"key": 1}]


class TestWrongArguments:
    @pytest.mark.parametrize("key", WRONG_KEYS, ids=repr)
    def test_a_key_is_bytes_and_not_empty(self, peer: Peer, key: Any) -> None:
        for method in ("get", "delete", "contains", "ttl", "pop", "get_with_version"):
            assert peer.refusal(method, NO_VIEW, key) == "bad-request"
        for method in ("set", "put", "setdefault"):
            assert peer.refusal(method, NO_VIEW, key, b"value") == "bad-request"
        assert peer.refusal("touch", NO_VIEW, key, 1) == "bad-request"
        assert peer.refusal("touch_many", NO_VIEW, [b"key", key], 1) == "bad-request"
        assert peer.refusal("incr", NO_VIEW, key, b"w\1", b"w\1") == "bad-request"
        assert peer.stats()["entries"] == 0

    def test_a_key_is_at_most_64_kib_long(self, peer: Peer) -> None:
        longest = bytes(64 * 1024)
        assert peer.set(NO_VIEW, longest, b"value") is True
        for method in ("get", "delete", "contains", "ttl", "pop", "get_with_version"):
            assert peer.refusal(method, NO_VIEW, longest + b"x") == "key-too-large"
        for method in ("set", "put", "setdefault"):
            assert peer.refusal(method, NO_VIEW, longest + b"x", b"value") == "key-too-large"
        assert peer.refusal("touch", NO_VIEW, longest + b"x", 1) == "key-too-large"
        assert peer.refusal("incr", NO_VIEW, longest + b"x", b"w\1", b"w\1") == "key-too-large"
        assert peer.stats()["entries"] == 1

    @pytest.mark.parametrize("value", ["value", None, 7, [b"value"], {"value": 1}], ids=repr)
    def test_a_value_is_bytes(self, peer: Peer, value: Any) -> None:
        peer.set(NO_VIEW, b"key", b"old")
        for method in ("set", "put", "setdefault"):
            assert peer.refusal(method, NO_VIEW, b"key", value) == "bad-request"
        assert peer.get(NO_VIEW, b"key") == b"old"

    def test_a_value_is_at_most_as_long_as_the_node_takes(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"key", b"old")
        for method in ("set", "put", "setdefault"):
            too_large = bytes(MAX_VALUE_BYTES + 1)
            assert peer.refusal(method, NO_VIEW, b"key", too_large) == "value-too-large"
        assert peer.get(NO_VIEW, b"key") == b"old"
        assert peer.set(NO_VIEW, b"key", bytes(MAX_VALUE_BYTES)) is True

    @pytest.mark.parametrize("ttl", [0, 0.0, -1, math.nan, math.inf, "1", b"1", True, [1], {}], ids=repr)
    def test_a_ttl_is_a_finite_number_above_0(self, peer: Peer, ttl: Any) -> None:
        peer.set(NO_VIEW, b"key", b"old")
        assert peer.refusal("set", NO_VIEW, b"key", b"new", ttl) == "bad-request"
        if ttl not in (-1, [1]):  # a list has a TTL for each key
            assert peer.refusal("set_many", NO_VIEW, [b"key"], [b"new"], ttl) == "bad-request"
            assert peer.refusal("set_many", NO_VIEW, [b"key"], [b"new"], [ttl]) == "bad-request"
        assert peer.refusal("setdefault", NO_VIEW, b"key", b"new", ttl) == "bad-request"
        assert peer.refusal("touch", NO_VIEW, b"key", ttl) == "bad-request"
        assert peer.refusal("touch_many", NO_VIEW, [b"key"], ttl) == "bad-request"
        assert peer.refusal("get", NO_VIEW, b"key", ttl) == "bad-request"
        assert peer.refusal("incr", NO_VIEW, b"key", b"w\1", b"w\1", ttl) == "bad-request"
        if ttl != -1:  # keeps the TTL of an entry
            assert peer.refusal("put", NO_VIEW, b"key", b"new", ttl) == "bad-request"
        assert peer.get(NO_VIEW, b"key") == b"old"
        assert peer.ttl(NO_VIEW, b"key") == math.inf

    def test_an_argument_that_describes_a_proxy_makes_no_call_to_it(self, peer: Peer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as trap:
            trap.setblocking(False)
            uri = f"PYRO:trap@127.0.0.1:{trap.getsockname()[1]}"
            state = [uri, [], ["__len__"], [], "hello", "msgpack"]
            proxy = {"__class__": "Pyro5.client.Proxy", "state": state}
            assert peer.refusal("get", NO_VIEW, proxy) == "bad-request"
            assert peer.refusal("set", NO_VIEW, b"key", proxy) == "bad-request"
            assert peer.refusal("get_many", NO_VIEW, proxy) == "bad-request"
            assert peer.refusal("count", NO_VIEW, proxy) == "bad-request"
            with pytest.raises(BlockingIOError):
                trap.accept()

    def test_a_refusal_never_repeats_a_key_or_a_value(self, peer: Peer) -> None:
        for method, arguments in (
            ("get", (NO_VIEW, "secret")),
            ("set", (NO_VIEW, b"key", "secret")),
            ("set", (NO_VIEW, b"secret" * 20_000, b"value")),
            ("set", (NO_VIEW, b"key", b"secret" * 2_000_000)),
            ("set", (NO_VIEW, b"key", b"value", "secret")),
            ("get_many", (NO_VIEW, [b"key", "secret"])),
            ("set_many", (NO_VIEW, [b"key"], ["secret"])),
            ("set_many", (NO_VIEW, ["secret"], [b"value"])),
            ("clear", (NO_VIEW, "secret")),
            ("put", (NO_VIEW, b"key", b"value", None, "secret")),
            ("put", (NO_VIEW, b"key", b"value", None, None, ["secret"])),
            ("incr", (NO_VIEW, b"key", b"secret", b"w\1")),
            ("invalidate_tag", (NO_VIEW, "secret")),
            ("scan", (NO_VIEW, ROOT, "secret")),
        ):
            with pytest.raises(Refused) as caught:
                getattr(peer, method)(*arguments)
            assert "secret" not in f"{caught.value} {caught.value.detail}"


class TestStats:
    def test_figures_follow_what_happens(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"a", b"12345", 10)
        peer.set(NO_VIEW, b"b", b"12345")
        peer.set(NO_VIEW, b"c", b"12345")
        peer.get(NO_VIEW, b"a")
        peer.get(NO_VIEW, b"x")
        peer.delete(NO_VIEW, b"c")
        peer.clock.now += 10
        peer.get(NO_VIEW, b"a")
        figures = peer.stats()
        assert figures["sets"] == 3
        assert figures["hits"] == 1
        assert figures["misses"] == 2
        assert figures["deletes"] == 1
        assert figures["expirations"] == 1
        assert figures["evictions"] == 0
        assert figures["entries"] == 1
        assert 0 < figures["bytes"] < 2000
        assert figures["max_bytes"] == MAX_MEMORY
        assert figures["uptime_seconds"] == 10
        assert isinstance(figures["pid"], int)

    def test_they_are_counted_anew_when_asked_to(self, peer: Peer) -> None:
        peer.set(NO_VIEW, b"a", b"12345", 10)
        peer.get(NO_VIEW, b"a")
        peer.get(NO_VIEW, b"x")
        peer.delete(NO_VIEW, b"x")
        peer.clock.now += 3
        assert peer.reset_stats() is True
        peer.clock.now += 4
        figures = peer.stats()
        counters = ("hits", "misses", "sets", "deletes", "evictions", "expirations")
        assert [figures[name] for name in counters] == [0] * 6
        assert figures["entries"] == 1
        assert (figures["uptime_seconds"], figures["counted_seconds"]) == (7, 4)

    def test_the_policy_has_a_name(self, peer: Peer) -> None:
        assert peer.stats()["policy"] == DEFAULT_POLICY

    def test_a_full_node_evicts_as_few_as_it_can(self, peer: Peer) -> None:
        value = bytes(4 * MIB)
        for number in range(7):
            peer.set(NO_VIEW, b"%d" % number, value)
        peer.get(NO_VIEW, b"0")
        assert peer.stats()["evictions"] == 0
        peer.set(NO_VIEW, b"7", value)
        there = [number for number in range(8) if peer.contains(NO_VIEW, b"%d" % number)]
        assert len(there) == 7
        assert 7 in there
        assert peer.stats()["evictions"] == 1
        assert peer.stats()["bytes"] <= MAX_MEMORY
