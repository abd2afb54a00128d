"""A server that admits only callers which prove its secret, on real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from Pyro5.api import Proxy
from Pyro5.errors import CommunicationError

from pyrocache.cluster.routing import Member
from pyrocache.config import NodeConfig
from pyrocache.net.call_protocol import Caller
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Refused
from pyrocache.protocol.commands import SET, Command, Runs, Scope
from pyrocache.protocol.handshake import Admission, HandshakeRefused, Strangers
from pyrocache.server import tcp_socket
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop
from tests.support.waiting import PATIENCE_SECONDS

NAME = "cache.node.1"
KEY, OTHER = b"k" * 32, b"o" * 32


@dataclass
class Target:
    values: list[bytes] = field(default_factory=list)

    def get(self, view: int, key: bytes) -> bytes:
        return b"value"

    def set(self, view: int, key: bytes, value: bytes) -> bool:
        self.values.append(value)
        return True


@dataclass
class Server:
    target: Target
    tcp: Member
    unix: Member

    def connection(self, *keys: bytes, over: str = "tcp", port: int = 0, **caller: Any) -> Connection:
        member = replace(self.tcp, port=port) if port else getattr(self, over)
        return Connection(member, "auto", Caller(keys=lambda: keys, **{"trusting": False, **caller}))


@contextmanager
def serving(tmp_path: Path, strangers: Strangers = Strangers.REFUSED, **limits: Any) -> Iterator[Server]:
    tcp = tcp_socket.listen("127.0.0.1", 0)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "socket"))
    unix.listen()
    nonces = iter(range(2**16))
    admission = Admission(lambda: (KEY,), lambda: next(nonces).to_bytes(32, "big"), strangers=strangers)
    target = Target()
    commands = {"get": Command("get", Scope.KEY, True, Runs.INLINE, False, open=True), "set": SET}
    dispatcher = Dispatcher(NAME, target, commands, greeting=dict, max_frame_bytes=2**20, admission=admission)
    loop = EventLoop([tcp, unix], dispatcher, NodeConfig(**limits))
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    port = tcp.getsockname()[1]
    try:
        yield Server(
            target,
            Member(NAME, "127.0.0.1", port),
            Member(NAME, "127.0.0.1", port, socket_path=str(tmp_path / "socket")),
        )
    finally:
        loop.shutdown()
        thread.join(PATIENCE_SECONDS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


def call(connection: Connection, method: str = "get", *arguments: Any) -> Any:
    deadline = Deadline(PATIENCE_SECONDS)
    try:
        connection.finish_opening(deadline)
        return connection.call(method, (0, b"key", *arguments), deadline)
    finally:
        connection.close()


@pytest.mark.parametrize("over", ["tcp", "unix"])
@pytest.mark.parametrize("keys", [(KEY,), (KEY, OTHER)])
def test_a_caller_with_the_secret_is_served(server: Server, over: str, keys: tuple[bytes, ...]) -> None:
    assert call(server.connection(*keys, over=over)) == b"value"


@pytest.mark.parametrize("over", ["tcp", "unix"])
@pytest.mark.parametrize(
    ("keys", "trusting", "code"),
    [((OTHER,), False, "other-secret"), ((OTHER,), True, "other-secret"), ((), True, "no-secret")],
)
def test_any_other_caller_is_refused(
    server: Server, over: str, keys: tuple[bytes, ...], trusting: bool, code: str
) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        call(server.connection(*keys, over=over, trusting=trusting), "set", b"value")
    assert refused.value.code == code
    assert server.target.values == []


def test_a_stock_proxy_is_told_what_it_needs(server: Server) -> None:
    with Proxy(f"PYRO:{NAME}@{server.tcp.address}") as proxy:
        proxy._pyroSerializer = "msgpack"
        with pytest.raises(CommunicationError, match=r"pyrocache\.stock_handshake\('cache\.node\.1'\)"):
            proxy.get(0, b"key")


def test_one_who_passes_messages_on_is_noticed(server: Server) -> None:
    """Both ends have the secret, and one in between has not, but listens where the caller believes the node to be."""
    between = socket.create_server(("127.0.0.1", 0))

    def pass_on() -> None:
        sock, _ = between.accept()
        with sock, socket.create_connection((server.tcp.host, server.tcp.port), PATIENCE_SECONDS) as onward:
            onward.sendall(sock.recv(2**16))
            sock.sendall(onward.recv(2**16))

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    with between, pytest.raises(HandshakeRefused) as refused:
        call(server.connection(KEY, port=between.getsockname()[1]))
    assert refused.value.code == "other-address"
    thread.join(PATIENCE_SECONDS)


def test_strangers_may_be_admitted_to_what_is_open(tmp_path: Path) -> None:
    with serving(tmp_path, Strangers.ADMITTED) as server:
        assert call(server.connection(trusting=True)) == b"value"
        with pytest.raises(Refused) as refused:
            call(server.connection(trusting=True), "set", b"value")
        assert refused.value.refusal.code == "not-trusted"
        assert call(server.connection(KEY), "set", b"mine") is True
        assert server.target.values == [b"mine"]


def test_strangers_may_be_trusted(tmp_path: Path) -> None:
    with serving(tmp_path, Strangers.TRUSTED) as server:
        assert call(server.connection(trusting=True), "set", b"value") is True


def test_a_caller_that_does_not_prove_in_time_is_closed(tmp_path: Path) -> None:
    """The first of the two messages gives it no more time."""
    with serving(tmp_path, handshake_seconds=0.5) as server:
        connection = server.connection(KEY)
        while connection._dialing is not None:
            connection.advance()
        sock: Any = connection._channel
        assert sock.recv(2**16)  # the node's proof; none of ours follows
        sock.settimeout(PATIENCE_SECONDS)
        assert sock.recv(1) == b""
        connection.close()
