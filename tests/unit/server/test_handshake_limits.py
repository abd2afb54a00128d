"""The event loop and its unproven connections: when they are closed, which, and that none is left in the table."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyrocache.config import NodeConfig
from pyrocache.protocol import framing, messages
from pyrocache.protocol.commands import GET
from pyrocache.protocol.handshake import Admission, Greeting, Strangers, format_peer
from pyrocache.runtime.clock import now
from pyrocache.server import tcp_socket
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop
from pyrocache.testing import FakeClock
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.wire import NAME, handshake, header

KEY = b"k" * 32


class Target:
    def get(self, view: int, key: bytes) -> bytes:
        return b"value"


@dataclass
class Server:
    loop: EventLoop
    listeners: list[socket.socket]
    _stack: ExitStack = field(default_factory=ExitStack)

    def connect(self, over: int = 0) -> socket.socket:
        """Connect over TCP, or 1, the Unix socket, and wait until that is noticed."""
        before, displaced = len(self.loop.connections), self.loop.unproven.counts["displaced"]
        listener = self.listeners[over]
        sock = self._stack.enter_context(socket.socket(listener.family))
        sock.settimeout(PATIENCE_SECONDS)
        sock.connect(listener.getsockname())
        assert wait_until(
            lambda: len(self.loop.connections) > before or self.loop.unproven.counts["displaced"] > displaced
        )
        return sock

    @property
    def counts(self) -> dict[str, int]:
        return {kind: count for kind, count in self.loop.unproven.counts.items() if count}

    def empty(self) -> bool:
        """Whether no connection is left, in any table."""
        return wait_until(lambda: not self.loop.connections and self.loop.unproven._of == {})


@contextmanager
def serving(
    tmp_path: Path, strangers: Strangers = Strangers.REFUSED, clock: Callable[[], float] = now, **limits: Any
) -> Iterator[Server]:
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "socket"))
    unix.listen()
    listeners = [tcp_socket.listen("127.0.0.1", 0), unix]
    admission = Admission(lambda: (KEY,), lambda: b"n" * 32, strangers=strangers)
    greeting = Greeting(node=NAME)
    dispatcher = Dispatcher(
        NAME, Target(), {"get": GET}, greeting=lambda: greeting, max_frame_bytes=2**20, admission=admission
    )
    loop = EventLoop(listeners, dispatcher, NodeConfig(**limits), clock=clock)
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    server = Server(loop, listeners)
    try:
        with server._stack:
            yield server
    finally:
        loop.shutdown()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


def first_message(sock: socket.socket) -> bytes:
    """What a caller with some secret says first, on this connection."""
    greeting = Greeting(nonce=b"c" * 32, dialled=format_peer(sock.getpeername()))
    body = messages.pack_plain({"handshake": greeting.to_wire(), "object": NAME})
    return framing.pack_message(framing.CONNECT, 0, body)


def is_closed(sock: socket.socket) -> bool:
    """Whether the server closes the connection, whatever it sends before."""
    try:
        while sock.recv(2**16):
            pass
    except ConnectionError:
        pass
    return True


def is_open(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        sock.settimeout(PATIENCE_SECONDS)


@pytest.mark.parametrize("proving", [False, True])
def test_activity_does_not_extend_the_time_for_a_handshake(tmp_path: Path, proving: bool) -> None:
    clock = FakeClock()
    with serving(tmp_path, clock=clock, handshake_seconds=5.0) as server:
        sock = server.connect()
        if proving:
            sock.sendall(first_message(sock))
            assert sock.recv(2**16)
        (connection,) = server.loop.connections
        dripped = handshake()
        for count in range(1, 5):
            clock.tick(1.2)
            sock.sendall(dripped[count - 1 : count])
            assert wait_until(lambda expected=count: connection.decoder.buffered == expected)
            assert is_open(sock)
        clock.tick(0.3)
        assert is_closed(sock)
        assert server.empty()
        assert server.counts == {"late": 1}


def test_a_caller_that_leaves_instead_of_proving_is_counted_as_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for _ in range(2):
            sock = server.connect()
            offer = Greeting(nonce=b"n" * 32, dialled=format_peer(sock.getpeername()))
            body = messages.pack_plain({"handshake": offer.to_wire(), "object": NAME})
            sock.sendall(framing.pack_message(framing.CONNECT, 0, body))
            assert framing.parse_header(sock.recv(2**16)).type == framing.CONNECT_OK
            sock.close()
            assert server.empty()
        server.connect().close()  # said nothing
        assert server.empty()
        assert server.counts == {"refused": 2}


def test_the_oldest_of_the_same_address_makes_room_and_no_other(tmp_path: Path) -> None:
    with serving(tmp_path, max_unproven=3) as server:
        local = server.connect(1)
        socks = [server.connect() for _ in range(3)]
        assert wait_until(lambda: len(server.loop.unproven) == 4)
        assert server.counts == {}
        for count, oldest in enumerate(socks[:2], 1):
            server.connect()
            assert is_closed(oldest)
            assert server.counts == {"displaced": count}
        assert is_open(socks[2])
        assert is_open(local)


def test_all_addresses_together_may_have_half_of_the_connections(tmp_path: Path) -> None:
    with serving(tmp_path, max_unproven=50, max_connections=8) as server:
        local = server.connect(1)
        crowd = [server.connect() for _ in range(3)]
        assert wait_until(lambda: len(server.loop.unproven) == 4)
        server.connect(1)
        assert is_closed(crowd[0])
        assert is_open(local)
        assert len(server.loop.unproven) == 4


def test_addresses_of_the_loopback_network_are_one(tmp_path: Path) -> None:
    with serving(tmp_path, max_unproven=4) as server, ExitStack() as stack:
        for number in range(1, 20):
            sock = stack.enter_context(socket.socket())
            try:
                sock.bind((f"127.0.0.{number}", 0))
            except OSError:
                pytest.skip("this system has one loopback address")
            sock.connect(server.listeners[0].getsockname())
        assert wait_until(lambda: server.counts == {"displaced": 15})
        assert len(server.loop.connections) == 4


def test_what_ends_in_any_way_is_counted_once_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        refused, malformed, gone, half = (server.connect() for _ in range(4))
        refused.sendall(handshake() + handshake() + bytes(5000))
        assert is_closed(refused)
        malformed.sendall(header(framing.CONNECT, body=2**30) + bytes(5000))
        assert is_closed(malformed)
        gone.close()
        half.sendall(first_message(half))
        assert half.recv(2**16)
        half.sendall(handshake())
        assert is_closed(half)
        for sock in (refused, malformed, half):
            sock.close()
        assert server.empty()
        assert server.counts == {"refused": 2, "malformed": 1}


def test_a_connection_that_ends_before_it_is_served_is_no_leak(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for _ in range(50):
            with socket.create_connection(server.listeners[0].getsockname()) as sock:
                # A reset instead of an end.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert server.empty()
        server.connect().close()
        assert server.empty()
        assert server.counts == {}


def test_strangers_that_are_admitted_count_as_long_as_they_stay(tmp_path: Path) -> None:
    """Otherwise they could keep all connections of a name server."""
    with serving(tmp_path, Strangers.ADMITTED, max_unproven=2) as server:
        first, second = server.connect(), server.connect()
        for sock in (first, second):
            sock.sendall(handshake())
            assert sock.recv(2**16)
        assert len(server.loop.unproven) == 2
        server.connect()
        assert is_closed(first)
        assert is_open(second)


def test_strangers_that_are_trusted_do_not_count(tmp_path: Path) -> None:
    with serving(tmp_path, Strangers.TRUSTED, max_unproven=1) as server:
        for _ in range(3):
            sock = server.connect()
            sock.sendall(handshake())
            assert sock.recv(2**16)
        assert len(server.loop.connections) == 3
        assert server.counts == {}
