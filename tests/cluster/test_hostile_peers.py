"""What anybody who reaches a node's port can do to it: nothing that others notice.

Real node processes, raw sockets. After each test the node is still the same process, answers, and has not grown.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import statistics
import struct
import threading
import time
import tracemalloc
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgpack
import Pyro5.api
import pytest
from Pyro5.errors import CommunicationError

from pyrocache import (
    NameServerUnavailable,
    NodeUnavailable,
    Overloaded,
    PartialFailure,
    PyroCacheClient,
    ValueTooLarge,
)
from pyrocache.config import NodeConfig
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.store.store import Store
from pyrocache.protocol import framing, messages
from pyrocache.protocol.commands import COMMANDS
from pyrocache.protocol.refusals import Refusal
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop
from pyrocache.server.securing import NO_TLS_ALERT
from tests.support.nodes import RunningNode, private_cluster, running_node
from tests.support.stock import name_server_proxy
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.wire import (
    CLOSED,
    NAME,
    NO_VIEW,
    Peer,
    call_body,
    handshake,
    header,
    invoke,
    pack_call,
    result_of,
)

MIB = 2**20


def p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def timed_calls(cache: PyroCacheClient, count: int) -> list[float]:
    """Seconds that each of so many gets took."""
    cache.set("timed", "value")
    durations = []
    for _ in range(count):
        begun = time.perf_counter()
        assert cache.get("timed") == "value"
        durations.append(time.perf_counter() - begun)
    return durations


@contextmanager
def unharmed(node: RunningNode, *, growth: int = 100 * MIB) -> Iterator[None]:
    """Whatever happens inside, the node is the same afterwards, serves clients, and is hardly larger."""
    with PyroCacheClient(node.nameserver) as cache:
        cache.set("before", "still here")
        identity, before = node.identity(), node.rss
        yield
        assert node.identity() == identity
        assert cache.get("before") == "still here"
        assert cache.set("after", "served") is True
        assert node.rss - before < growth


@contextmanager
def peak_growth_below(node: RunningNode, limit: int) -> Iterator[None]:
    """Not even for a moment does the node grow by more, where the system tells (as Linux does)."""
    process = Path(f"/proc/{node.process.pid}")

    def peak() -> int:
        try:
            lines = (process / "status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)

    with contextlib.suppress(OSError):
        (process / "clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak()
    yield
    assert peak() - before < limit


@pytest.fixture(scope="module")
def the_node() -> Iterator[RunningNode]:
    with running_node(max_memory=256 * MIB) as node:
        yield node


@pytest.fixture
def node(the_node: RunningNode) -> Iterator[RunningNode]:
    """A node with default deadlines, so that what it closes soon it has not closed for being late."""
    with unharmed(the_node):
        yield the_node


STRANGERS = {
    "zeros": bytes(100),
    "noise": random.Random(1).randbytes(5000),
    "a line of text": b"hello\r\n",
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a Redis command": b"*1\r\n$4\r\nPING\r\n",
    "another version": header(framing.CONNECT, version=501),
    "a wrong magic number": header(framing.CONNECT, magic=0x1234),
    "a call": invoke(call_body("ping")),
    "a ping": framing.pack_message(framing.PING, 0, b"ping", serializer=42),
    "a result": framing.pack_message(framing.RESULT, 0, b"\xc0"),
    "an unknown message type": framing.pack_message(99, 0, b"\xc0"),
    "an unknown serializer": handshake(serializer=99),
    "a compressed handshake": framing.pack_message(
        framing.CONNECT, 0, zlib.compress(bytes(10**6)), flags=framing.FLAG_COMPRESSED
    ),
    "a oneway handshake": handshake(flags=framing.FLAG_ONEWAY),
    "a handshake of 17 KiB": framing.pack_message(framing.CONNECT, 0, bytes(17 * 1024)),
    "a handshake that claims 4 GiB": header(framing.CONNECT, body=2**32 - 1),
    "a handshake with 4 GiB of annotations": header(framing.CONNECT, annotations=2**32 - 1),
    "a handshake of nothing": framing.pack_message(framing.CONNECT, 0, b""),
    "a handshake of a list": framing.pack_message(framing.CONNECT, 0, b"\x90"),
    "a handshake without an object": framing.pack_message(framing.CONNECT, 0, b"\x80"),
    "a handshake for a number": framing.pack_message(framing.CONNECT, 0, messages.pack_plain({"object": 7})),
    "a handshake for a list": framing.pack_message(framing.CONNECT, 0, messages.pack_plain({"object": []})),
    "a handshake nested deeply": framing.pack_message(framing.CONNECT, 0, b"\x91" * 16_000),
    "a handshake with an extension type": framing.pack_message(framing.CONNECT, 0, b"\xd4\x30\x00"),
}


GREETED = {
    "garbage": bytes(100),
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a second handshake": handshake(),
    "a result": framing.pack_message(framing.RESULT, 0, b"\xc0"),
    "another serializer": invoke(call_body("ping"), serializer=1),
    "marshal": invoke(b"(\xff\xff\xff\x7f", serializer=2),
    "a oneway call": invoke(call_body("set", NO_VIEW, b"oneway", b"x"), flags=framing.FLAG_ONEWAY),
    "no msgpack": invoke(b"\xc1"),
    "an empty body": invoke(b""),
    "half a body": invoke(call_body("ping")[:-1]),
    "bytes after a body": invoke(call_body("ping") + b"\xc0"),
    "a call that is a number": invoke(b"\x07"),
    "a call of three parts": invoke(messages.pack_plain((NAME, "ping", ()))),
    "a call of five parts": invoke(messages.pack_plain((NAME, "ping", (), {}, 1))),
    "an object that is no text": invoke(messages.pack_plain((7, "ping", (), {}))),
    "an object that is a list": invoke(messages.pack_plain(([], "ping", (), {}))),
    "a method that is no text": invoke(messages.pack_plain((NAME, b"ping", (), {}))),
    "arguments that are no list": invoke(messages.pack_plain((NAME, "ping", 7, {}))),
    "options that are no map": invoke(messages.pack_plain((NAME, "ping", (), []))),
    "text that is no UTF-8": invoke(b"\x94" + msgpack.packb(NAME) + b"\xa4\xff\xff\xff\xff\x90\x80"),
}


FLAGS = {
    "compressed": framing.FLAG_COMPRESSED,
    "batch": framing.FLAG_BATCH,
    "item stream": 1 << 4,
    "keep serialized": 1 << 5,
    "unknown": 1 << 15,
    "an exception": framing.FLAG_EXCEPTION,
}


class TestGarbage:
    """Bytes that no client would send."""

    @pytest.mark.parametrize("data", STRANGERS.values(), ids=STRANGERS)
    def test_a_stranger_who_does_not_begin_with_a_handshake_is_cut_off(
        self, node: RunningNode, data: bytes
    ) -> None:
        with Peer(node, greet=False) as peer:
            peer.sock.settimeout(4.0)  # the deadline of a handshake is 5 s
            peer.send_as_far_as_taken(data)
            assert peer.fate() == CLOSED

    def test_a_tls_hello_is_told_that_there_is_no_tls_here(self, node: RunningNode) -> None:
        with Peer(node, greet=False) as peer:
            peer.sock.settimeout(4.0)
            peer.send_as_far_as_taken(bytes.fromhex("16030100c8010000c40303") + bytes(200))
            assert peer.sock.recv(100) == NO_TLS_ALERT
            assert peer.fate() == CLOSED

    def test_a_handshake_for_an_unknown_object_is_told_so(self, node: RunningNode) -> None:
        for target in ("cache.node.2", "", "_pyroDaemon", "__class__"):
            with Peer(node, greet=False) as peer:
                peer.send(handshake(target))
                answer = peer.receive()
                assert answer.header.type == framing.CONNECT_FAIL
                assert "unknown object" in messages.unpack_plain(answer.body)
                assert peer.fate() == CLOSED

    @pytest.mark.parametrize("data", GREETED.values(), ids=GREETED)
    def test_a_request_that_is_none_ends_the_connection(self, node: RunningNode, data: bytes) -> None:
        with Peer(node) as peer:
            peer.send_as_far_as_taken(data)
            assert peer.fate() == CLOSED
        with Peer(node) as peer:
            assert peer.call("contains", NO_VIEW, b"oneway") is False

    @pytest.mark.parametrize("flag", FLAGS.values(), ids=FLAGS)
    def test_flags_that_are_not_served_are_refused_in_words(self, node: RunningNode, flag: int) -> None:
        with Peer(node) as peer:
            peer.send(invoke(call_body("set", NO_VIEW, b"flagged", b"x"), flags=flag))
            refusal = peer.fate()
            assert refusal.code == "bad-request"
            assert "not served" in refusal.message
            assert peer.fate() == CLOSED
        with Peer(node) as peer:
            assert peer.call("contains", NO_VIEW, b"flagged") is False

    def test_a_compressed_bomb_is_never_inflated(self, node: RunningNode) -> None:
        bomb = zlib.compress(bytes(200 * MIB), 9)
        with peak_growth_below(node, 16 * MIB):
            for _ in range(3):
                with Peer(node) as peer:
                    peer.send_as_far_as_taken(invoke(bomb, flags=framing.FLAG_COMPRESSED))
                    assert peer.fate().code == "bad-request"

    @pytest.mark.parametrize("greeted", [False, True], ids=["from strangers", "once greeted"])
    def test_headers_that_claim_gigabytes_reserve_nothing(self, node: RunningNode, greeted: bool) -> None:
        before = node.rss
        kind = framing.INVOKE if greeted else framing.CONNECT
        with ExitStack() as stack:
            peers = [stack.enter_context(Peer(node, greet=greeted)) for _ in range(6)]
            for number, peer in enumerate(peers[:3], 1):
                peer.send(header(kind, body=min(number * 2**30 + 2**30, 2**32 - 1)))
            for number, peer in enumerate(peers[3:], 1):
                peer.send(header(kind, annotations=min(number * 2**30 + 2**30, 2**32 - 1)))
            assert node.rss - before < 16 * MIB
            for peer in peers:
                fate = peer.fate()
                assert fate == CLOSED if not greeted else fate.code == "value-too-large"

    def test_the_longest_request_that_is_taken_is_not_reserved_in_advance(self, node: RunningNode) -> None:
        before = node.rss
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(Peer(node)).send(header(body=64 * MIB))
            assert node.rss - before < 16 * MIB

    def test_annotations_are_skipped_and_never_returned(self, node: RunningNode) -> None:
        annotation = b"ABCD" + struct.pack("!I", 6) + b"secret"
        body = call_body("ping")
        for odd in (annotation, b"\xff" * 14, b"ABCD\xff\xff\xff\xff" + b"secret"):
            with Peer(node) as peer:
                peer.send(header(body=len(body), annotations=len(odd)) + odd + body)
                answer = peer.receive()
                assert answer.header.annotation_bytes == 0
                assert result_of(answer)["name"] == NAME
                assert b"secret" not in answer.body

    @pytest.mark.parametrize("serializer", ["serpent", "marshal", "json"])
    def test_a_stock_proxy_that_speaks_something_else_is_told_what_to_speak(
        self, node: RunningNode, serializer: str
    ) -> None:
        host, port = node.address
        with Pyro5.api.Proxy(f"PYRO:{NAME}@{host}:{port}") as proxy:
            proxy._pyroSerializer = serializer
            with pytest.raises(CommunicationError, match="msgpack"):
                proxy.ping()


def array(count: int, item: bytes) -> bytes:
    return b"\xdd" + struct.pack("!I", count) + item * count


BOMB_BYTES = 4_000_000  # nearly the longest request that is unpacked
BEGIN = b"\x94" + msgpack.packb(NAME) + msgpack.packb("get")
END = b"\x80"
UNIQUE_KEYS = b"\xdc\x03\x20" + b"".join(
    b"\xde\x01\xf4" + b"".join(b"\xa8%03d%05d\xc0" % (one, two) for two in range(500)) for one in range(800)
)


BODIES: dict[str, Callable[[], bytes]] = {
    "an array that claims 4 G items": lambda: b"\xdd\xff\xff\xff\xff",
    "a map that claims 4 G items": lambda: b"\xdf\xff\xff\xff\xff",
    "bytes that claim 4 GiB": lambda: b"\xc6\xff\xff\xff\xff",
    "text that claims 4 GiB": lambda: b"\xdb\xff\xff\xff\xff",
    "an extension that claims 4 GiB": lambda: b"\xc9\xff\xff\xff\xff\x01",
    "arrays that claim 1000 items, nested": lambda: b"\xdc\x03\xe8" * 20_000,
    "arrays nested 60 k deep": lambda: b"\x91" * 60_000,
    "arrays nested 4 M deep": lambda: b"\x91" * BOMB_BYTES,
    "maps nested deeply": lambda: b"\x81\xa1a" * 100_000,
    "4 M empty maps": lambda: array(BOMB_BYTES, b"\x80"),
    "4 M empty arrays": lambda: array(BOMB_BYTES, b"\x90"),
    "4 M nulls": lambda: array(BOMB_BYTES, b"\xc0"),
    "4 M empty maps in arrays of 1000": lambda: array(4, array(1000, array(1000, b"\x80"))),
    "4 M empty arrays in arrays of 1000": lambda: array(4, array(1000, array(1000, b"\x90"))),
    "a million short texts": lambda: array(BOMB_BYTES // 3, b"\xa2ab"),
    "a million short texts in arrays of 1000": lambda: array(1000, array(1000, b"\xa2ab")),
    "60 k empty maps in a small body": lambda: array(60, array(1000, b"\x80")),
    "400,000 map keys": lambda: UNIQUE_KEYS,
    "an extension type as a key": lambda: b"\x92\x00\xd7\x32" + bytes(8),
    "a timestamp as a key": lambda: b"\x92\x00\xd6\xff" + bytes(4),
    "a big number of Pyro5's as a key": lambda: b"\x92\x00\xc7\xff\x31" + b"9" * 255,
    "a map whose key is a list": lambda: b"\x91\x81\x90\x01",
    "a map whose key is a map": lambda: b"\x91\x81\x80\x01",
    "a map whose key is a number": lambda: b"\x91\x81\x07\x01",
}


class TestBombs:
    """Small or large bodies that would become much larger as objects."""

    @pytest.mark.parametrize("arguments", BODIES.values(), ids=BODIES)
    def test_a_bomb_is_refused_and_costs_little(
        self, node: RunningNode, arguments: Callable[[], bytes]
    ) -> None:
        bomb = invoke(BEGIN + arguments() + END)
        with peak_growth_below(node, 64 * MIB + 3 * len(bomb)):
            for _ in range(2):
                with Peer(node) as peer:
                    peer.send_as_far_as_taken(bomb)
                    fate = peer.fate()
                    assert fate == CLOSED or fate.code == "bad-request"

    def test_options_may_be_a_bomb_too(self, node: RunningNode) -> None:
        with Peer(node) as peer:
            peer.send(invoke(BEGIN + b"\x90" + b"\xde\x01\xf4" + b"\xa2ab\x90" * 500))
            assert peer.fate().code == "bad-request"
            options = {f"option{number}": b"x" * 1000 for number in range(500)}
            peer.send(invoke(messages.pack_plain((NAME, "get", (NO_VIEW, b"key"), options))))
            assert peer.fate().code == "bad-request"
            peer.send(invoke(messages.pack_plain((NAME, "get", (), {"self": 1, "view": 0, "key": b"k"}))))
            assert peer.fate().code == "bad-request"
            peer.send(invoke(messages.pack_plain((NAME, "get", (), {b"view": 0}))))
            assert peer.fate().code == "bad-request"


def describing(name: str, **more: Any) -> dict[str, Any]:
    """A map that Pyro5 makes an object from."""
    return {"__class__": name, **more}


ARGUMENTS = {
    "a key that is text": ("get", NO_VIEW, "key"),
    "a key that is empty": ("get", NO_VIEW, b""),
    "a key that is a list": ("get", NO_VIEW, [b"key"]),
    "a key that is a map": ("get", NO_VIEW, {"a": 1}),
    "a value that is text": ("set", NO_VIEW, b"key", "value"),
    "a value that is nothing": ("set", NO_VIEW, b"key", None),
    "a view that is a fraction": ("get", 0.5, b"key"),
    "a view that is no number": ("get", float("nan"), b"key"),
    "a view that is text": ("get", "1", b"key"),
    "a view that is a list": ("get", [], b"key"),
    "a TTL that is no number": ("set", NO_VIEW, b"key", b"value", float("nan")),
    "a TTL that is infinite": ("set", NO_VIEW, b"key", b"value", float("inf")),
    "a TTL below 0": ("set", NO_VIEW, b"key", b"value", -1.0),
    "a TTL of 0": ("set", NO_VIEW, b"key", b"value", 0),
    "a TTL that is text": ("set", NO_VIEW, b"key", b"value", "60"),
    "a TTL that is true": ("set", NO_VIEW, b"key", b"value", True),
    "1001 keys": ("get_many", NO_VIEW, [b"key"] * 1001),
    "1001 entries": ("set_many", NO_VIEW, [b"key"] * 1001, [b"value"] * 1001),
    "1001 keys to delete": ("delete_many", NO_VIEW, [b"key"] * 1001),
    "entries that are pairs": ("set_many", NO_VIEW, [[b"key", b"value"]], [[b"key", b"value"]]),
    "entries that are keys": ("set_many", NO_VIEW, [b"key", b"value"]),
    "entries that are a map": ("set_many", NO_VIEW, {"key": b"value"}, {"key": b"value"}),
    "keys that are one key": ("set_many", NO_VIEW, b"key", [b"value"] * 3),
    "values that are one value": ("set_many", NO_VIEW, [b"key"] * 5, b"value"),
    "values that are a large value": ("set_many", NO_VIEW, [b"key"], bytes(100_000)),
    "more keys than values": ("set_many", NO_VIEW, [b"key", b"value"], [b"value"]),
    "more values than keys": ("set_many", NO_VIEW, [b"key"], [b"value"] * 2),
    "a text among the values": ("set_many", NO_VIEW, [b"key", b"value"], [b"value", "value"]),
    "nothing among the values": ("set_many", NO_VIEW, [b"key", b"value"], [None, b"value"]),
    "a list among the keys": ("set_many", NO_VIEW, [[b"key"], b"value"], [b"value"] * 2),
    "a large value for a view": ("get", bytes(100_000), b"key"),
    "a large value for a TTL": ("set", NO_VIEW, b"key", b"value", bytes(100_000)),
    "a large value for a prefix": ("clear", NO_VIEW, 7, bytes(100_000)),
    "a prefix that is text": ("clear", NO_VIEW, "key"),
    "a limit of a million": ("scan", NO_VIEW, b"\0", b"\0", 0, 10**6),
    "a cursor that is text": ("scan", NO_VIEW, b"\0", b"\0", "0"),
    "a condition that is a float": ("put", NO_VIEW, b"key", b"value", None, 1.5),
    "tags that are one text": ("put", NO_VIEW, b"key", b"value", None, None, "tag"),
    "more tags than an entry has": ("put", NO_VIEW, b"key", b"value", None, None, [b"tag"] * 65),
    "a large value for a number": ("incr", NO_VIEW, b"key", bytes(100_000), b"w\0"),
    "a lease for ever": ("lease", NO_VIEW, b"key", float("inf"), 0),
    "a wait that is text": ("lease", NO_VIEW, b"key", 1, "0"),
    "a lock for nobody": ("acquire", NO_VIEW, b"key", 0, 1, 0),
    "a token that is text": ("release", NO_VIEW, b"key", "1"),
    "too few arguments": ("set", NO_VIEW),
    "too many arguments": ("ping", 0, 0, 0),
    "metadata of a list": ("get_metadata", []),
    "a map that describes a proxy": ("get", NO_VIEW, describing("Pyro5.client.Proxy", state=[])),
    "a map that describes a URI": ("get", NO_VIEW, describing("Pyro5.core.URI", state=["PYRO", "x"])),
    "a map that describes a daemon": ("clear", NO_VIEW, describing("Pyro5.server.Daemon", state=[])),
    "a map that describes an exception": (
        "set", NO_VIEW, b"key", describing("builtins.SystemExit", __exception__=True, args=[1]),
    ),
    "a map that describes an error of Pyro5's": (
        "get_many", NO_VIEW, describing("Pyro5.errors.PyroError", __exception__=True, args=[], attributes={}),
    ),
}  # fmt: skip


class TestWrongCalls:
    """Messages in good form that ask for what is not to be had."""

    @pytest.mark.parametrize("request_", ARGUMENTS.values(), ids=ARGUMENTS)
    def test_arguments_of_a_wrong_kind_are_refused_and_the_connection_goes_on(
        self, node: RunningNode, request_: tuple[Any, ...]
    ) -> None:
        method, *arguments = request_
        with Peer(node) as peer:
            peer.call("delete", NO_VIEW, b"key")
            refusal = peer.call(method, *arguments)
            assert isinstance(refusal, Refusal)
            assert refusal.code == "bad-request"
            assert refusal.message.endswith(".")
            assert peer.call("contains", NO_VIEW, b"key") is False
            assert peer.call("contains", NO_VIEW, b"value") is False

    def test_no_argument_makes_the_node_call_anybody(self, node: RunningNode) -> None:
        with socket.create_server(("127.0.0.1", 0)) as trap, Peer(node) as peer:
            trap.setblocking(False)
            uri = f"PYRO:trap@127.0.0.1:{trap.getsockname()[1]}"
            proxy = describing(
                "Pyro5.client.Proxy", state=[uri, [], ["__len__", "__eq__"], [], "hello", "msgpack"]
            )
            for request in (
                ("get", NO_VIEW, proxy),
                ("set", NO_VIEW, b"key", proxy),
                ("set", NO_VIEW, b"key", b"value", proxy),
                ("get", proxy, b"key"),
                ("get_many", NO_VIEW, proxy),
                ("set_many", NO_VIEW, [proxy], [b"value"]),
                ("set_many", NO_VIEW, [b"key"], [proxy]),
                ("set_many", NO_VIEW, proxy, proxy),
                ("count", NO_VIEW, proxy),
                ("scan", NO_VIEW, b"\0", proxy),
                ("put", NO_VIEW, b"key", b"value", None, None, proxy),
                ("lease", NO_VIEW, proxy, 1, 0),
                ("acquire", NO_VIEW, b"key", proxy, 1, 0),
            ):
                assert peer.call(*request).code == "bad-request"
            with Peer(node, greet=False) as other:
                body = messages.pack_plain({"handshake": proxy, "object": NAME})
                other.send(framing.pack_message(framing.CONNECT, 0, body))
                assert other.receive().header.type == framing.CONNECT_OK
            with pytest.raises(BlockingIOError):
                trap.accept()

    @pytest.mark.parametrize(
        "method",
        [
            "no_such_method", "", "adopt", "sweep", "ownership", "max_value_bytes", "CHEAP",
            "_store", "_lock", "_check_view", "_pyroDaemon", "_pyroId", "_pyroExposed", "__init__", "__class__",
            "__dict__", "__getattribute__", "__getattr__", "__setattr__", "__reduce__", "__len__", "get.__globals__",
            "get_metadata", "registered", "shutdown", "get_next_stream_item",
        ],
    )  # fmt: skip
    def test_what_is_not_exposed_cannot_be_called(self, node: RunningNode, method: str) -> None:
        with Peer(node) as peer:
            for arguments in ((), ("max_value_bytes",), ("max_value_bytes", 1)):
                refusal = peer.call(method, *arguments)
                assert refusal.code == "bad-request"
                assert "no such object or method" in refusal.message
            assert peer.call("ping")["serving"] is True

    def test_an_unknown_object_cannot_be_called(self, node: RunningNode) -> None:
        with Peer(node) as peer:
            for target in ("cache.node.2", "", "Pyro.NameServer", "_pyroDaemon", NAME + "\0"):
                assert peer.call("ping", target=target).code == "bad-request"

    def test_the_daemons_own_object_gives_nothing_away_and_cannot_be_used(self, node: RunningNode) -> None:
        with Peer(node) as peer:
            assert peer.call("ping", target="Pyro.Daemon") is None
            assert sorted(peer.call("registered", target="Pyro.Daemon")) == ["Pyro.Daemon", NAME]
            assert "get" in peer.call("get_metadata", NAME, target="Pyro.Daemon")["methods"]
            assert isinstance(peer.call("get_metadata", "nothing", target="Pyro.Daemon"), Refusal)
            assert peer.call("get_metadata", [], target="Pyro.Daemon").code == "bad-request"
            for method in (
                "get_next_stream_item", "close_stream", "shutdown", "register", "unregister", "daemon",
                "__init__", "_handshake", "requestLoop", "close",
            ):  # fmt: skip
                refusal = peer.call(method, "x", target="Pyro.Daemon")
                assert refusal.code == "bad-request"
                assert "no such object or method" in refusal.message
            assert peer.call("ping")["serving"] is True

    def test_refusals_carry_no_traceback_path_or_argument(self, node: RunningNode) -> None:
        with Peer(node) as peer:
            for request in (("get", NO_VIEW, "secret"), ("set", NO_VIEW), ("no_such_method", "secret")):
                peer.send(pack_call(NAME, request[0], request[1:], 1))
                body = peer.receive().body
                assert b"secret" not in body
                assert b"raceback" not in body
                assert b".py" not in body


class TestSilentAndSlowPeers:
    @pytest.mark.full
    def test_a_crowd_of_silent_peers_slows_nobody_down_and_is_gone_at_its_deadline(self) -> None:
        handshake_seconds, request_seconds = 2.5, 4.0
        half_a_handshake = handshake()[:45]
        half_a_request = invoke(call_body("set", NO_VIEW, b"half", bytes(1000)))[:500]
        alone: list[float] = []
        crowded: list[float] = []
        settings = {"handshake_seconds": handshake_seconds, "request_seconds": request_seconds}
        with running_node(**settings) as node, PyroCacheClient(node.nameserver) as cache, unharmed(node):
            timed_calls(cache, 100)
            for last_round in (False, False, True):
                with ExitStack() as crowd:
                    alone += timed_calls(cache, 300)
                    begun = time.monotonic()
                    silent = [crowd.enter_context(Peer(node, greet=False)) for _ in range(300)]
                    for peer in silent[::3]:
                        peer.send(half_a_handshake)
                    half = [crowd.enter_context(Peer(node)) for _ in range(50)]
                    for peer in half:
                        peer.send(half_a_request)
                    assert node.connections >= 350
                    crowded += timed_calls(cache, 300)
                    if last_round:
                        closed = seconds_until_closed([*silent, *half], begun)
            assert node.connections <= 3
        print(f"p99 of get: {1e3 * p99(alone):.2f} ms alone, {1e3 * p99(crowded):.2f} ms in a crowd of 350")
        print(f"silent peers closed after {min(closed[:300]):.2f} to {max(closed[:300]):.2f} s, ", end="")
        print(f"half requests after {min(closed[300:]):.2f} to {max(closed[300:]):.2f} s")
        assert p99(crowded) < 2 * p99(alone) + 0.1
        assert handshake_seconds <= min(closed[:300])
        assert max(closed[:300]) < handshake_seconds + 3
        assert request_seconds <= min(closed[300:])
        assert max(closed[300:]) < request_seconds + 3

    def test_a_request_that_comes_a_byte_at_a_time_has_one_deadline_in_all(self) -> None:
        with running_node(request_seconds=1.0) as node, unharmed(node), Peer(node) as peer:
            request = invoke(call_body("ping"))
            begun = time.monotonic()
            peer.sock.settimeout(0.1)
            with pytest.raises(ConnectionError):
                drip(peer, request)
            assert 0.9 < time.monotonic() - begun < 4.0

    def test_a_peer_that_never_reads_is_cut_at_its_deadline(self) -> None:
        with running_node(request_seconds=1.0) as node, PyroCacheClient(node.nameserver) as cache:
            cache.set("large", bytes(MIB))
            with unharmed(node, growth=50 * MIB), Peer(node, receive_buffer=4096) as deaf:
                connections = node.connections
                before = timed_calls(cache, 200)
                request = pack_call(NAME, "get", (NO_VIEW, stored_key(node)), 1)
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    deaf.sock.setblocking(False)
                    for _ in range(1000):
                        deaf.send(request * 100)
                meanwhile = timed_calls(cache, 200)
                assert p99(meanwhile) < 2 * p99(before) + 0.1
                assert wait_until(lambda: node.connections < connections), "the deaf peer is still there"

    def test_a_reply_that_is_read_a_little_at_a_time_has_one_deadline_too(self) -> None:
        with running_node(request_seconds=1.0) as node, PyroCacheClient(node.nameserver) as cache:
            cache.set("large", bytes(32 * MIB))
            with unharmed(node, growth=150 * MIB), Peer(node, receive_buffer=64 * 1024) as slow:
                connections = node.connections
                slow.send(pack_call(NAME, "get", (NO_VIEW, stored_key(node)), 1))

                def gone_after_another_sip() -> bool:
                    with contextlib.suppress(ConnectionError):
                        slow.sock.recv(64 * 1024)
                    return node.connections < connections

                assert wait_until(gone_after_another_sip, 4.0), "the slow reader is still there after 4 s"

    def test_peers_that_never_read_cannot_fill_the_nodes_memory(self) -> None:
        limit = 64 * MIB
        with (
            running_node(max_memory=64 * MIB, max_buffered_bytes=limit) as node,
            PyroCacheClient(node.nameserver) as cache,
        ):
            cache.set("large", bytes(8 * MIB))
            request = pack_call(NAME, "get", (NO_VIEW, stored_key(node)), 1)
            with unharmed(node, growth=2 * limit), ExitStack() as stack:
                before = node.rss
                for _ in range(40):
                    stack.enter_context(Peer(node, receive_buffer=4096)).send(request)
                grown = node.rss - before
                print(f"40 replies of 8 MiB that nobody reads: the node grew by {grown / MIB:.0f} MiB")
                assert grown < 2 * limit

    def test_small_replies_that_nobody_reads_take_hardly_more_memory_than_their_bytes(self) -> None:
        ping = framing.pack_message(framing.PING, 0, b"", serializer=42)
        with transport_here() as (transport, address), socket.create_connection(address) as peer:
            peer.sendall(handshake())
            peer.recv(4096)
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                peer.setblocking(False)
                flood(peer, ping * 1000, 40 * MIB)
                assert wait_until(lambda: any(c.unread for c in transport.connections))
                unread = -1
                while unread != (unread := sum(c.unread for c in transport.connections)):
                    flood(peer, ping * 1000, 4 * MIB)
                    time.sleep(0.3)
                grown = tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()
        print(f"{unread / MIB:.2f} MiB of unread small replies take {grown / MIB:.2f} MiB")
        assert grown < 3 * MIB

    @pytest.mark.full
    def test_half_requests_stay_within_the_limit_for_all_together(self) -> None:
        limit = 32 * MIB
        with running_node(max_buffered_bytes=limit) as node, unharmed(node), ExitStack() as stack:
            before = node.rss
            for _ in range(30):
                peer = stack.enter_context(Peer(node))
                peer.send_as_far_as_taken(header(body=16 * MIB) + bytes(12 * MIB))
            grown = node.rss - before
            print(f"30 requests of which 12 MiB came: the node grew by {grown / MIB:.0f} MiB")
            assert grown < 2 * limit

    def test_peers_that_leave_in_mid_request_leave_nothing_behind(self) -> None:
        half = header(body=64 * MIB) + bytes(50 * MIB)
        with running_node() as node, Peer(node) as watcher:
            before = watcher.call("stats")
            for _ in range(12):
                with Peer(node) as peer:
                    peer.send(half)
            assert wait_until(lambda: watcher.call("stats")["connections"] == before["connections"])
            grown = watcher.call("stats")["rss_bytes"] - before["rss_bytes"]
        print(
            f"12 peers left after 50 of 64 MiB, one after the other: the node grew by {grown / MIB:.0f} MiB"
        )
        assert grown < 80 * MIB

    def test_whoever_holds_most_of_the_buffers_is_dropped_and_not_whoever_comes_last(self) -> None:
        limit = 16 * MIB
        settings = {"max_buffered_bytes": limit, "max_value_bytes": limit}
        with (
            running_node(**settings) as node,
            PyroCacheClient(node.nameserver) as cache,
            unharmed(node),
            Peer(node) as hog,
        ):
            hog.send_as_far_as_taken(header(body=limit) + bytes(limit - 100 * 1024))
            for _ in range(20):
                assert cache.set("honest", bytes(500_000)) is True
            assert cache.get("honest") == bytes(500_000)


def stored_key(node: RunningNode) -> bytes:
    """The bytes of the largest entry's key."""
    with Peer(node) as peer:
        _, keys = peer.call("scan", NO_VIEW, b"\0", b"\0")
        return bytes(max(keys, key=lambda key: b"large" in key))


def drip(peer: Peer, data: bytes) -> None:
    """Send a byte every now and then, never the last one, until the node closes the connection."""
    for position in range(len(data) - 1):
        peer.send(data[position : position + 1])
        with contextlib.suppress(TimeoutError):
            if not peer.sock.recv(1):
                raise ConnectionResetError("the node closed the connection")


def flood(sock: socket.socket, data: bytes, most: int) -> None:
    """Send as much as the other side takes for now."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < most:
            sent += sock.send(data)


def seconds_until_closed(peers: Iterable[Peer], begun: float) -> list[float]:
    """When the node closed each, in seconds after ``begun``; 999 where it did not."""
    waiting = list(peers)
    closed = [999.0] * len(waiting)
    deadline = time.monotonic() + PATIENCE_SECONDS
    with selectors.DefaultSelector() as selector:
        for index, peer in enumerate(waiting):
            selector.register(peer.sock, selectors.EVENT_READ, index)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(0.5):
                selector.unregister(key.fileobj)
                closed[key.data] = time.monotonic() - begun
    return closed


@contextmanager
def transport_here() -> Iterator[tuple[EventLoop, tuple[str, int]]]:
    """Our transport in this process, with socket buffers so small that replies soon wait in the node."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen(10)
    dispatcher = Dispatcher(NAME, CacheNode(Store(MIB)), COMMANDS, greeting=dict, max_frame_bytes=MIB)
    transport = EventLoop([listener], dispatcher, NodeConfig())
    address = listener.getsockname()
    loop = threading.Thread(target=transport.run, daemon=True)
    loop.start()
    try:
        yield transport, address
    finally:
        transport.shutdown()
        loop.join(5)


@pytest.fixture(scope="module")
def the_full_node() -> Iterator[RunningNode]:
    """A node with 200,000 entries, one worker, and room for two long calls."""
    with running_node(workers=1, max_queued_calls=2, max_memory=512 * MIB) as node:
        with Peer(node) as peer:
            for start in range(0, ENTRIES, 1000):
                keys = [OURS + b"entry:%d" % number for number in range(start, start + 1000)]
                # With a TTL: then the node has to look at each to count them.
                assert peer.call("set_many", NO_VIEW, keys, [b""] * 1000, 86_400) == 1000
        yield node


ENTRIES = 200_000
OURS = b"\4\3our"  # a namespace


@pytest.fixture
def full_node(the_full_node: RunningNode) -> Iterator[RunningNode]:
    with unharmed(the_full_node):
        yield the_full_node


class TestManyRequestsAtOnce:
    def test_requests_may_come_in_one_packet_with_the_handshake(self, node: RunningNode) -> None:
        with Peer(node, greet=False) as peer:
            peer.send(handshake() + pack_call(NAME, "ping", (), 1) + pack_call(NAME, "stats", (), 2))
            assert peer.receive().header.type == framing.CONNECT_OK
            assert peer.fate()["name"] == NAME
            assert peer.fate()["pid"] == node.process.pid

    def test_what_comes_in_one_packet_with_the_handshake_is_judged_too(self, node: RunningNode) -> None:
        with Peer(node, greet=False) as peer:
            peer.send_as_far_as_taken(handshake() + header(body=2**32 - 1))
            assert peer.receive().header.type == framing.CONNECT_OK
            assert peer.fate().code == "value-too-large"
            assert peer.fate() == CLOSED

    def test_pipelined_requests_are_answered_in_order(self, full_node: RunningNode) -> None:
        requests = [
            ("get", NO_VIEW, OURS + b"entry:7"),
            ("count", NO_VIEW, OURS),
            ("ping",),
            ("set", NO_VIEW, b"pipelined", b"value"),
            ("scan", NO_VIEW, OURS, OURS + b"entry:", 0, 1),
            ("get", NO_VIEW, b"pipelined"),
            ("get", NO_VIEW, "wrong"),
            ("stats",),
            ("delete", NO_VIEW, b"pipelined"),
            ("members",),
        ] * 5
        with Peer(full_node) as peer:
            peer.send(
                b"".join(
                    pack_call(NAME, method, tuple(arguments), number)
                    for number, (method, *arguments) in enumerate(requests)
                )
            )
            frames = [peer.receive() for _ in requests]
        assert [frame.header.sequence for frame in frames] == list(range(len(requests)))
        assert result_of(frames[1]) == ENTRIES
        assert result_of(frames[5]) == b"value"
        assert result_of(frames[6]).code == "bad-request"
        assert result_of(frames[8]) is True

    @pytest.mark.parametrize("size", [1000, 400_000, 3 * MIB], ids=lambda size: f"{size} bytes each")
    def test_pipelined_requests_with_replies_of_any_size_are_all_answered(
        self, node: RunningNode, size: int
    ) -> None:
        count = 20
        with Peer(node) as peer:
            peer.sock.settimeout(3.0)
            assert peer.call("set", NO_VIEW, b"pipelined", bytes(size)) is True
            peer.send(
                b"".join(pack_call(NAME, "get", (NO_VIEW, b"pipelined"), number) for number in range(count))
            )
            answered = 0
            with contextlib.suppress(TimeoutError):
                for number in range(count):
                    frame = peer.receive()
                    assert frame.header.sequence == number
                    assert len(frame.body) >= size
                    answered += 1
        assert answered == count

    def test_a_long_call_does_not_hold_up_other_connections(self, full_node: RunningNode) -> None:
        def long_call(method: str, *arguments: Any) -> tuple[float, list[float]]:
            with Peer(full_node) as long, Peer(full_node) as short:
                short.call("get", NO_VIEW, OURS + b"entry:1")
                waits: list[float] = []
                begun = time.perf_counter()
                long.send(pack_call(NAME, method, arguments, 1))
                long.sock.setblocking(False)
                while True:
                    asked = time.perf_counter()
                    assert short.call("get", NO_VIEW, OURS + b"entry:1") == b""
                    try:
                        long.sock.recv(1, socket.MSG_PEEK)
                    except BlockingIOError:
                        waits.append(time.perf_counter() - asked)
                    else:
                        return time.perf_counter() - begun, waits

        for method, *arguments in (
            ("count", NO_VIEW, OURS),
            ("clear", b"\0no such"),
            ("scan", OURS, OURS + b"no such"),
        ):
            seconds, waits = long_call(method, *arguments)
            longest = max(waits, default=0.0)
            print(
                f"{method} took {1e3 * seconds:.0f} ms; meanwhile {len(waits)} gets, the longest of ", end=""
            )
            print(f"{1e3 * longest:.1f} ms")
            assert longest < 1.0
            if method == "count":
                assert len(waits) >= 3, "gets are answered while the long call runs"

    def test_more_long_calls_than_there_is_room_for_are_refused_at_once(self, full_node: RunningNode) -> None:
        with ExitStack() as stack:
            peers = [stack.enter_context(Peer(full_node)) for _ in range(12)]
            for peer in peers:
                peer.send(pack_call(NAME, "count", (NO_VIEW, OURS), 1))
            with Peer(full_node) as other:
                assert other.call("get", NO_VIEW, OURS + b"entry:1") == b""
            answers = [peer.fate() for peer in peers]
        refused = [answer for answer in answers if isinstance(answer, Refusal)]
        assert [answer for answer in answers if not isinstance(answer, Refusal)] == [ENTRIES] * (
            12 - len(refused)
        )
        assert 0 < len(refused) < 12
        assert {answer.code for answer in refused} == {"overloaded"}

    def test_a_client_learns_that_the_queue_is_full_and_is_served_again_later(
        self, full_node: RunningNode
    ) -> None:
        enough = threading.Event()

        def keep_counting() -> None:
            with Peer(full_node) as peer:
                while not enough.is_set():
                    peer.call("count", NO_VIEW, OURS)

        threads = [threading.Thread(target=keep_counting) for _ in range(4)]
        with PyroCacheClient(full_node.nameserver, timeout=0.5) as cache:
            cache.set("key", "value")
            for thread in threads:
                thread.start()
            try:
                assert wait_until(lambda: is_overloaded(cache))
                assert cache.get("key") == "value"
            finally:
                enough.set()
                for thread in threads:
                    thread.join(PATIENCE_SECONDS)
            assert len(cache) >= 1

    def test_a_peer_that_leaves_in_mid_call_leaves_nothing_behind(self, full_node: RunningNode) -> None:
        before = full_node.connections
        for _ in range(10):
            with Peer(full_node) as peer:
                peer.send(pack_call(NAME, "count", (NO_VIEW, OURS), 1))
        assert wait_until(lambda: full_node.connections <= before)


KEYS_OF_60_MB = [b"%4d" % number + bytes(60_000) for number in range(1000)]


class TestLargeRequests:
    """Requests that are within the length of the largest value, but hold something else."""

    @pytest.mark.parametrize(
        ("method", "rest"),
        [("get_many", ()), ("delete_many", ()), ("get_entries", ()), ("touch_many", (None,))],
    )
    def test_a_batch_of_60_mb_of_keys_is_refused_before_it_is_buffered(
        self, node: RunningNode, method: str, rest: tuple[Any, ...]
    ) -> None:
        request = pack_call(NAME, method, (NO_VIEW, KEYS_OF_60_MB, *rest), 1)
        with peak_growth_below(node, 16 * MIB):
            for _ in range(3):
                with Peer(node) as peer:
                    peer.send_as_far_as_taken(request)
                    fate = peer.fate()
                    assert fate == CLOSED or fate.code == "value-too-large"
        with Peer(node) as peer:
            peer.send(request[:1000])
            assert peer.fate().code == "value-too-large"
        with Peer(node) as peer:
            assert "in parts" in peer.call("get_many", NO_VIEW, KEYS_OF_60_MB[:70]).message

    def test_large_arguments_of_other_calls_are_refused_before_they_are_buffered(
        self, node: RunningNode
    ) -> None:
        large = bytes(40 * MIB)
        with peak_growth_below(node, 16 * MIB):
            for method, *arguments in (
                ("incr", NO_VIEW, b"key", b"w" + large, None),
                ("scan", NO_VIEW, b"\0", large),
                ("invalidate_tag", NO_VIEW, large),
                ("clear", NO_VIEW, large),
                ("acquire", NO_VIEW, large, 1, 1.0, 0.0),
                ("lease", NO_VIEW, large, 1.0, 0.0),
                ("no_such_method", large),
            ):
                with Peer(node) as peer:
                    peer.send_as_far_as_taken(pack_call(NAME, method, tuple(arguments), 1))
                    fate = peer.fate()
                    assert fate == CLOSED or fate.code == "value-too-large"

    def test_a_batch_of_many_values_is_at_most_a_batch_and_one_value_may_be_large(
        self, node: RunningNode
    ) -> None:
        with Peer(node) as peer:
            keys, values = [b"%d" % number for number in range(40)], [bytes(MIB)] * 40
            with peak_growth_below(node, 16 * MIB), Peer(node) as other:
                other.send_as_far_as_taken(pack_call(NAME, "set_many", (NO_VIEW, keys, values), 1))
                fate = other.fate()
                assert fate == CLOSED or fate.code == "value-too-large"
            assert peer.call("set_many", NO_VIEW, [b"0"], values).code == "value-too-large"
            assert peer.call("contains", NO_VIEW, b"0") is False
            assert peer.call("set_many", NO_VIEW, [b"one"], [bytes(40 * MIB)]) == 1
            assert peer.call("delete", NO_VIEW, b"one") is True
            two = peer.call("put", NO_VIEW, b"one", bytes(20 * MIB), None, bytes(20 * MIB))
            assert two.code == "value-too-large"
        with PyroCacheClient(node.nameserver) as cache:
            assert cache.set_many({number: bytes(3 * MIB) for number in range(8)}) == 8
            assert cache.set_many({"large": bytes(40 * MIB), "small": 1}, 60) == 2
            assert len(cache.get("large")) == 40 * MIB
            assert cache.delete_many(["large", "small", *range(8)]) == 10

    def test_a_large_int_is_not_added_to(self, node: RunningNode) -> None:
        with PyroCacheClient(node.nameserver) as cache:
            large = 1 << 8 * 40 * MIB
            cache.set("large", large)
            with peak_growth_below(node, 16 * MIB):
                with pytest.raises(ValueTooLarge, match="65536 bytes"):
                    cache.incr("large")
                with pytest.raises(ValueTooLarge, match="65536 bytes"):
                    cache.incr("new", large)
            assert cache.get("large") == large
            assert cache.delete("large")
            assert cache.incr("new", 1 << 8 * 60_000) == 1 << 8 * 60_000
            cache.delete("new")


class TestGreedyPeers:
    def test_six_connections_cannot_hold_all_locks_of_a_node(self, node: RunningNode) -> None:
        with ExitStack() as stack, PyroCacheClient(node.nameserver) as cache:
            for number in range(6):
                peer = stack.enter_context(Peer(node))
                for each in range(70):
                    name = b"\0s%d %d" % (number, each) + bytes(64_000)
                    peer.call("acquire", NO_VIEW, name, 1, 86_400.0, 0.0)
                    peer.call("lease", NO_VIEW, name, 86_400.0, 0.0)
            locks = [cache.lock(f"lock {number}") for number in range(20)]
            for lock in locks:
                assert lock.acquire(timeout=0)
            assert cache.get_or_set("value", lambda: "loaded") == "loaded"
            for lock in locks:
                lock.release()


class TestNameServerFlood:
    @pytest.mark.full
    def test_names_that_anybody_registers_end_nobody(self) -> None:
        with private_cluster(2) as cluster, cluster.client() as cache:
            cache.set("key", "value")
            with name_server_proxy(cluster.nameserver) as names:
                names._pyroSerializer = "msgpack"

                def register(number: int) -> None:
                    name = f"cache.node.{number}"
                    names.register(name, f"PYRO:{name}@127.0.0.1:1", True, ["pyrocache"])

                with pytest.raises(Exception, match="4096 names"):
                    deque(map(register, range(10, 33_000)), 0)
                time.sleep(2 * NodeConfig().heartbeat_seconds)
                assert cache.get("key") == "value"
                assert cache.ping() == 2
                assert len(cache.nodes()) == 2
                with cluster.client() as late, pytest.raises(NameServerUnavailable, match="1,000 names"):
                    late.get("key")
                for number in range(10, 4200):
                    names.remove(f"cache.node.{number}")
                with cluster.client() as late:
                    assert late.get("key") == "value"


class TestTooManyConnections:
    def test_one_too_many_is_told_so_and_a_client_recovers_when_others_close(self) -> None:
        with running_node(max_connections=4) as node, ExitStack() as stack:
            crowd = [stack.enter_context(Peer(node)) for _ in range(4)]
            for greet_first in (True, False):
                with Peer(node, greet=False) as peer:
                    if greet_first:
                        peer.send_as_far_as_taken(handshake())
                    answer = peer.receive()
                    assert answer.header.type == framing.CONNECT_FAIL
                    assert messages.unpack_plain(answer.body).startswith("overloaded")
                    assert peer.fate() == CLOSED
            with PyroCacheClient(node.nameserver, timeout=0.5) as cache:
                with pytest.raises(NodeUnavailable, match="overloaded"):
                    cache.get("key")
                with pytest.raises(PartialFailure, match="overloaded"):
                    cache.set_many({"a": 1, "b": 2})
                with PyroCacheClient(node.nameserver, timeout=0.3, on_error="miss") as forgiving:
                    assert forgiving.get("key", "a miss") == "a miss"
                assert crowd[0].call("ping")["serving"] is True, "those who are there notice nothing"
                for peer in crowd:
                    peer.close()
                assert wait_until(lambda: try_to_set(cache))
                assert cache.get("key") == "value"

    def test_a_client_that_waits_gets_through_as_soon_as_there_is_room(self) -> None:
        with running_node(max_connections=2) as node, ExitStack() as stack:
            crowd = [stack.enter_context(Peer(node)) for _ in range(2)]
            with PyroCacheClient(node.nameserver, timeout=PATIENCE_SECONDS) as cache:
                timer = threading.Timer(0.3, lambda: [peer.close() for peer in crowd])
                timer.start()
                assert cache.set("key", "value") is True
                timer.join()

    @pytest.mark.full
    def test_thousands_of_connections_that_come_and_go_leave_nothing_behind(self, node: RunningNode) -> None:
        connections, before = node.connections, node.rss
        for _ in range(10):
            with ExitStack() as stack:
                for _ in range(200):
                    stack.enter_context(Peer(node, greet=False))
        assert wait_until(lambda: node.connections <= connections)
        assert node.rss - before < 16 * MIB


def try_to_set(cache: PyroCacheClient) -> bool:
    with contextlib.suppress(NodeUnavailable):
        return cache.set("key", "value")
    return False


def is_overloaded(cache: PyroCacheClient) -> bool:
    try:
        len(cache)
    except Overloaded:
        return True
    return False
