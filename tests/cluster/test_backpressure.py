"""What a node at its limits does to clients: real processes, small limits, real clients beside raw peers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from pyrocache import Overloaded, PartialFailure, PyroCacheClient
from pyrocache.protocol import framing, messages, refusals
from pyrocache.protocol.framing import FrameDecoder
from pyrocache.protocol.refusals import Refusal
from pyrocache.runtime.child_process import start_nameserver, start_node

NAME = "cache.node.1"
NO_VIEW = 0
OUR_NAMESPACE = b"\4\3our"
MIB = 2**20
PATIENCE_SECONDS = 15.0
"""How long a test waits for what should come at once."""

CLOSED = "closed"


@dataclass(frozen=True)
class Running:
    """A node process, alone in its cluster."""

    nameserver: str
    address: tuple[str, int]

    def connections(self) -> int:
        """How many it has, the asking one not counted."""
        with Peer(self) as peer:
            return int(peer.call("stats")["connections"]) - 1


@contextmanager
def running_node(**settings: Any) -> Iterator[Running]:
    """A name server and one node with these settings."""
    with ExitStack() as stack:
        nameserver = start_nameserver(quiet=True)
        stack.callback(nameserver.kill)
        address = nameserver.wait_until_ready()["address"]
        process = start_node({"nameserver": address, "name": NAME, **settings}, quiet=True)
        stack.callback(process.kill)
        ready = process.wait_until_ready()
        yield Running(address, (ready["host"], ready["port"]))
        assert process.exit_status is None


class Peer:
    """A raw connection to a node."""

    def __init__(self, node: Running, *, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(node.address)
        self._decoder = FrameDecoder(lambda header: None, lambda frame_bytes: None)
        hello = messages.pack_plain({"handshake": "hello", "object": NAME})
        self.sock.sendall(framing.pack_message(framing.CONNECT, 0, hello))
        assert self._frame().header.type == framing.CONNECT_OK

    def _frame(self) -> framing.Frame:
        while (frame := self._decoder.next_frame()) is None:
            data = self.sock.recv(256 * 1024)
            if not data:
                raise ConnectionResetError
            self._decoder.feed(data)
        return frame

    def answer(self) -> tuple[int, Any]:
        """The next reply's sequence number, and its result or refusal."""
        header, body = self._frame()
        if header.flags & framing.FLAG_EXCEPTION:
            return header.sequence, refusals.unpack_refusal(body)
        return header.sequence, messages.unpack_plain(body)

    def call(self, method: str, *arguments: Any) -> Any:
        self.sock.sendall(call(1, method, *arguments))
        return self.answer()[1]

    def fate(self) -> Any:
        """The next result or refusal, or `CLOSED`."""
        try:
            return self.answer()[1]
        except ConnectionError:
            return CLOSED

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def call(sequence: int, method: str, *arguments: Any) -> bytes:
    body = messages.pack_plain((NAME, method, arguments, {}))
    return framing.pack_message(framing.INVOKE, sequence, body)


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    """Whether it came true within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(params=["auto", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestReaders:
    def test_pipelined_requests_are_answered_in_order_once_their_replies_are_read(self) -> None:
        value, count = b"v" * 400_000, 200
        with running_node() as node, Peer(node, receive_buffer=4096) as deaf, Peer(node) as other:
            assert other.call("set", NO_VIEW, b"raw", value) is True
            before = other.call("stats")
            for number in range(count):
                deaf.sock.sendall(call(number, "get", NO_VIEW, b"raw"))
            answered = -1
            while answered != (answered := other.call("stats")["hits"]):
                time.sleep(0.1)
            assert answered - before["hits"] < count, "they wait"
            assert [deaf.answer() for _ in range(count)] == [(number, value) for number in range(count)]

    def test_whoever_never_reads_is_cut_off_while_clients_are_served(self, transport: Any) -> None:
        with (
            running_node(request_seconds=0.3) as node,
            Peer(node, receive_buffer=4096) as deaf,
            PyroCacheClient(node.nameserver, transport=transport) as cache,
        ):
            cache.set("key", bytes(MIB))
            assert deaf.call("set", NO_VIEW, b"raw", b"v" * 400_000) is True
            with contextlib.suppress(ConnectionError):
                for number in range(100):
                    deaf.sock.sendall(call(number, "get", NO_VIEW, b"raw"))
            client_alone = 1

            def cut_off() -> bool:
                assert cache.get("key") == bytes(MIB)
                return node.connections() <= client_alone

            assert wait_until(cut_off)


class TestBuffers:
    def test_the_largest_half_request_makes_room_and_clients_notice_nothing(self, transport: Any) -> None:
        with (
            running_node(max_buffered_bytes=16 * MIB) as node,
            Peer(node) as hog,
            PyroCacheClient(node.nameserver, transport=transport) as cache,
        ):
            large = call(9, "set", NO_VIEW, b"large", bytes(30 * MIB))
            hog.sock.sendall(large[: 15 * MIB])
            for number in range(20):
                assert cache.set(number, bytes(2 * MIB)) is True
                assert cache.get(number) == bytes(2 * MIB)
            hog.sock.sendall(large[15 * MIB :])
            sequence, refusal = hog.answer()
            assert (sequence, refusal.code) == (9, refusals.OVERLOADED)
            assert hog.call("set", NO_VIEW, b"small", b"v") is True
            assert hog.call("get", NO_VIEW, b"large") is None

    def test_a_client_whose_value_is_too_much_for_now_says_so(self, transport: Any) -> None:
        with (
            running_node(max_buffered_bytes=4 * MIB) as node,
            PyroCacheClient(node.nameserver, transport=transport, timeout=1.0) as cache,
        ):
            with pytest.raises(Overloaded):
                cache.set("key", bytes(20 * MIB))
            assert cache.set("key", bytes(MIB)) is True
            assert cache.get("key") == bytes(MIB)


class TestConnections:
    def test_a_client_gets_through_when_there_is_room_again(self, transport: Any) -> None:
        with running_node(max_connections=2) as node, ExitStack() as stack:
            crowd = [stack.enter_context(Peer(node)) for _ in range(2)]
            with PyroCacheClient(node.nameserver, transport=transport, timeout=PATIENCE_SECONDS) as cache:
                timer = threading.Timer(0.3, lambda: [peer.sock.close() for peer in crowd])
                timer.start()
                try:
                    assert cache.set("key", "value") is True
                finally:
                    timer.join()
                assert cache.get("key") == "value"

    def test_a_client_says_so_when_there_is_none(self, transport: Any) -> None:
        with running_node(max_connections=2) as node, ExitStack() as stack:
            crowd = [stack.enter_context(Peer(node)) for _ in range(2)]
            with PyroCacheClient(node.nameserver, transport=transport, timeout=0.3) as cache:
                for _ in range(5):
                    with pytest.raises(Overloaded):
                        cache.get("key")
                with pytest.raises(PartialFailure) as caught:
                    cache.set_many({"a": 1, "b": 2})
                assert {type(error) for error in caught.value.errors.values()} == {Overloaded}
            assert crowd[0].call("ping")["serving"] is True


class TestQueue:
    def test_a_client_is_told_that_the_queue_is_full_and_is_served_later(self, transport: Any) -> None:
        entries = 100_000
        with running_node(workers=1, max_queued_calls=1, max_memory=256 * MIB) as node, ExitStack() as stack:
            peers = [stack.enter_context(Peer(node)) for _ in range(6)]
            for start in range(0, entries, 1000):
                keys = [OUR_NAMESPACE + b"entry:%d" % number for number in range(start, start + 1000)]
                assert peers[0].call("set_many", NO_VIEW, keys, [b""] * 1000, 3600) == 1000
            enough = threading.Event()

            def keep_counting(peer: Peer) -> None:
                while not enough.is_set():
                    assert isinstance(peer.call("count", OUR_NAMESPACE), int | Refusal)

            threads = [
                threading.Thread(target=keep_counting, args=(peer,), daemon=True) for peer in peers[1:]
            ]
            for thread in threads:
                thread.start()
            try:
                with PyroCacheClient(node.nameserver, transport=transport, timeout=0.2) as cache:
                    assert wait_until(lambda: is_overloaded(cache))
                    assert cache.set("key", "value") is True, "cheap calls do not queue"
                    enough.set()
                    assert wait_until(lambda: not is_overloaded(cache))
            finally:
                enough.set()
                for thread in threads:
                    thread.join(PATIENCE_SECONDS)


def is_overloaded(cache: PyroCacheClient) -> bool:
    try:
        len(cache)
    except Overloaded:
        return True
    return False
