"""The event loop with a certificate: whatever a peer does in the TLS handshake, at whatever time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from pyrocache.config import TLS, NodeConfig
from pyrocache.protocol import framing, messages
from pyrocache.protocol.commands import GET, SET
from pyrocache.protocol.handshake import (
    PROTOCOL,
    Admission,
    ClientHandshake,
    Greeting,
    HandshakeRefused,
    State,
    Strangers,
    format_peer,
)
from pyrocache.runtime.channel import TlsRefused
from pyrocache.runtime.clock import now
from pyrocache.runtime.descriptors import DescriptorReserve
from pyrocache.runtime.tls import ServerCertificate, TlsChannel, client_channel
from pyrocache.server.connection import Connection
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop
from pyrocache.server.securing import NO_TLS_ALERT
from pyrocache.testing import FakeClock
from tests.support.certificates import Certificates
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.wire import NAME, call, frame_decoder, handshake, result_of

KEY = b"k" * 32
MIB = 2**20


class Target:
    """A node that answers with the length of what it is sent."""

    def get(self, view: int, key: bytes) -> bytes:
        return b"value of " + key

    def set(self, view: int, key: bytes, value: Any, *more: Any) -> int:
        return len(value)


class GatedCertificate(ServerCertificate):
    """A certificate whose handshakes begin when the gate is open."""

    def __init__(self, tls: TLS) -> None:
        super().__init__(tls)
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = 0

    def secure(self, sock: Any) -> TlsChannel:
        self.waiting += 1
        assert self.gate.wait(PATIENCE_SECONDS)
        self.waiting -= 1
        return super().secure(sock)


class Listener(socket.socket):
    """A listening socket of a process that may lack descriptors."""

    scarce = False

    def accept(self) -> tuple[socket.socket, Any]:
        if self.scarce:
            self.scarce = False
            raise OSError(errno.EMFILE, "none left")
        return super().accept()


class Reserve(DescriptorReserve):
    """Counts how often it was filled."""

    refills = 0

    def refill(self) -> None:
        self.refills += 1
        super().refill()


class Watched:
    """The socket of a connection; notes which threads close it."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.closed_by: list[int] = []

    def close(self) -> None:
        self.closed_by.append(threading.get_ident())
        self.sock.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


@dataclass
class Server:
    """A loop in a thread of its own."""

    loop: EventLoop
    certificate: GatedCertificate
    listener: Listener
    thread: threading.Thread
    reserve: Reserve
    tls: TLS
    stack: ExitStack = field(default_factory=ExitStack)

    def connect(self) -> socket.socket:
        """Return a plain connection."""
        sock = self.stack.enter_context(socket.create_connection(self.listener.getsockname()))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(PATIENCE_SECONDS)
        return sock

    def secured(self) -> ssl.SSLSocket:
        """Return a connection with TLS, made with the standard library alone."""
        context = ssl.create_default_context(cafile=self.tls.ca)
        return self.stack.enter_context(context.wrap_socket(self.connect(), server_hostname="localhost"))

    def half(self) -> Half:
        return Half(self.connect(), self.tls)

    @property
    def counts(self) -> dict[str, int]:
        return {kind: count for kind, count in self.loop.unproven.counts.items() if count}

    def only_connection(self) -> Connection:
        """Return the one connection, once the server has it."""
        assert wait_until(lambda: len(self.loop.connections) == 1)
        (connection,) = self.loop.connections
        return connection

    def watch(self) -> Watched:
        """Watch the one connection, which a thread must have and not use yet."""
        connection = self.only_connection()
        assert wait_until(lambda: connection.securing and self.certificate.waiting)
        watched = Watched(connection.channel)
        connection.channel = watched  # type: ignore[assignment]
        return watched

    def let_pass(self, clock: FakeClock, seconds: float) -> None:
        """Let the server see so much time pass, without a standstill."""
        until = clock() + seconds
        while clock() < until:
            clock.tick(min(1.0, until - clock()))
            self.loop.wake()
            assert wait_until(lambda: self.loop._tick_at > clock())

    def all_wait(self, count: int, displaced: int) -> bool:
        """Return whether so many connections are with the threads, or wait for one, and all others are displaced."""
        connections = list(self.loop.connections)
        waiting = [connection for connection in connections if connection.securing]
        return (
            len(waiting) == len(connections) == count and self.loop.unproven.counts["displaced"] == displaced
        )

    def is_idle(self) -> bool:
        """Return whether no thread has a connection."""
        return not any(connection.securing for connection in list(self.loop.connections))

    def empty(self) -> bool:
        return wait_until(lambda: not self.loop.connections and not self.loop.unproven._of)


class Half:
    """A client of which the test sends the messages of TLS."""

    def __init__(self, sock: socket.socket, tls: TLS) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=tls.ca)
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def hello(self) -> bytes:
        """Return the first message."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def finish(self) -> bytes:
        """Receive the server's answer, and return this end's."""
        while True:
            self.incoming.write(self.sock.recv(2**16))
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                return self.outgoing.read()

    def encrypted(self, *parts: bytes) -> bytes:
        for part in parts:
            self.tls.write(part)
        return self.outgoing.read()

    def frames(self) -> Iterator[framing.Frame]:
        decoder = frame_decoder()
        while True:
            while (frame := decoder.next_frame()) is None:
                try:
                    decoder.feed(self.tls.read(2**16))
                except ssl.SSLWantReadError:
                    self.incoming.write(self.sock.recv(2**16))
            yield frame


@pytest.fixture
def serving(certificates: Certificates) -> Callable[..., Any]:
    @contextmanager
    def serve(
        strangers: Strangers = Strangers.TRUSTED,
        clock: Callable[[], float] = now,
        require_client_cert: bool = False,
        **limits: Any,
    ) -> Iterator[Server]:
        listener = Listener()
        listener.bind(("127.0.0.1", 0))
        listener.listen(300)
        name = "mutual.example" if require_client_cert else "localhost"
        tls = certificates.server(name, require_client_cert=require_client_cert)
        certificate = GatedCertificate(tls)
        greeting = Greeting(node=NAME, protocol=PROTOCOL)
        dispatcher = Dispatcher(
            NAME,
            Target(),
            {"get": GET, "set": SET},
            greeting=lambda: greeting,
            max_frame_bytes=8 * MIB,
            admission=Admission(lambda: (KEY,), lambda: b"n" * 32, strangers=strangers),
        )
        reserve = Reserve(1)
        reserve.refill()
        loop = EventLoop(
            [listener],
            dispatcher,
            NodeConfig(**limits),
            clock=clock,
            certificate=certificate,
            reserve=reserve,
        )
        thread = threading.Thread(target=loop.run, daemon=True)
        thread.start()
        server = Server(loop, certificate, listener, thread, reserve, tls)
        try:
            with server.stack:
                yield server
        finally:
            certificate.gate.set()
            loop.shutdown()
            thread.join(PATIENCE_SECONDS)
            reserve.close()
            assert not thread.is_alive()

    return serve


def is_closed(sock: socket.socket) -> bool:
    """Whether the server closes the connection, whatever it sends before."""
    with contextlib.suppress(ConnectionError):
        while sock.recv(2**16):
            pass
    return True


def one_call(sock: ssl.SSLSocket) -> Any:
    """Greet, make one call, and return its result."""
    decoder = frame_decoder()
    result = None
    for message in (handshake(), call(1, "get", 0, b"key")):
        sock.sendall(message)
        while (frame := decoder.next_frame()) is None:
            data = sock.recv(2**16)
            assert data
            decoder.feed(data)
        result = result_of(frame)
    return result


# Slow peers ------------------------------------------------------------------------------------------------------


def test_a_handshake_may_come_byte_by_byte(serving: Callable[..., Any]) -> None:
    with serving() as server:
        half = server.half()
        for byte in half.hello():
            half.sock.sendall(bytes([byte]))
        for byte in half.finish():
            half.sock.sendall(bytes([byte]))
        half.sock.sendall(half.encrypted(handshake()))
        assert next(half.frames()).header.type == framing.CONNECT_OK


def test_who_stops_in_the_middle_holds_no_thread_and_is_closed_in_time(serving: Callable[..., Any]) -> None:
    clock = FakeClock()
    with serving(clock=clock, handshake_seconds=5.0) as server:
        halves = [server.half() for _ in range(8)]
        for number, half in enumerate(halves):
            hello = half.hello()
            half.sock.sendall(hello[: 1 + number * len(hello) // 8])
        assert wait_until(lambda: len(server.loop.connections) == 8 and server.is_idle())
        assert one_call(server.secured()) == b"value of key"
        server.let_pass(clock, 4.0)
        half = halves[3]
        half.sock.sendall(hello[100:110])  # activity does not extend the time
        assert wait_until(server.is_idle)
        server.let_pass(clock, 1.1)
        assert all(is_closed(half.sock) for half in halves)
        assert wait_until(lambda: len(server.loop.connections) == 1)
        assert server.counts == {"late": 8}


def test_who_stops_after_tls_is_closed_in_time(serving: Callable[..., Any]) -> None:
    clock = FakeClock()
    with serving(Strangers.REFUSED, clock=clock, handshake_seconds=5.0) as server:
        sock = server.secured()
        connection = server.only_connection()
        assert wait_until(lambda: connection.tls is not None)
        server.let_pass(clock, 5.1)
        assert sock.recv(1) == b""
        assert server.empty()
        assert server.counts == {"late": 1}


def test_many_that_stop_in_the_middle_do_not_slow_the_others_down(serving: Callable[..., Any]) -> None:
    """Compared with nobody; the thread of the server has nothing to do for them."""
    with serving(max_unproven=500, max_connections=2_000, handshake_seconds=60.0) as server:
        alone = statistics.median(seconds_of(lambda: one_call(server.secured())) for _ in range(15))
        halves = [server.half() for _ in range(200)]
        for half in halves:
            half.sock.sendall(half.hello()[:-1])
        assert wait_until(lambda: len(server.loop.connections) >= 200 and server.is_idle())
        crowded = statistics.median(seconds_of(lambda: one_call(server.secured())) for _ in range(15))
        assert crowded < 10 * alone


def seconds_of(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def test_handshakes_that_wait_for_a_thread_do_not_hold_up_open_connections(
    serving: Callable[..., Any],
) -> None:
    with serving() as server:
        sock = server.secured()
        assert one_call(sock) == b"value of key"
        server.certificate.gate.clear()
        for _ in range(10):
            half = server.half()
            half.sock.sendall(half.hello())
        assert wait_until(lambda: server.certificate.waiting == 2), "of at most two threads"
        sock.sendall(call(2, "get", 0, b"other"))
        assert framing.parse_header(sock.recv(2**16)).sequence == 2
        server.certificate.gate.set()
        assert one_call(server.secured()) == b"value of key"


# Connections that are closed while a thread has them -------------------------------------------------------------


def test_a_connection_that_is_late_is_closed_once_no_thread_has_it(serving: Callable[..., Any]) -> None:
    """Else the descriptor could be that of another connection by the time that the thread writes to it."""
    clock = FakeClock()
    with serving(clock=clock, handshake_seconds=5.0) as server:
        server.certificate.gate.clear()
        half = server.half()
        half.sock.sendall(half.hello())
        watched = server.watch()
        descriptor = watched.fileno()
        server.let_pass(clock, 5.1)
        assert server.empty()
        assert server.counts == {"late": 1}
        assert (watched.closed_by, watched.fileno()) == ([], descriptor)
        others = [server.connect() for _ in range(5)]
        assert wait_until(lambda: len(server.loop.connections) == 5)
        assert descriptor not in [connection.channel.fileno() for connection in server.loop.connections]
        server.certificate.gate.set()
        assert is_closed(half.sock)
        assert wait_until(lambda: watched.closed_by == [server.thread.ident])
        assert watched.fileno() == -1
        assert others


def test_a_connection_that_is_displaced_is_closed_once_no_thread_has_it(serving: Callable[..., Any]) -> None:
    with serving(max_unproven=3) as server:
        server.certificate.gate.clear()
        half = server.half()
        half.sock.sendall(half.hello())
        watched = server.watch()
        newer = [server.connect() for _ in range(3)]
        assert wait_until(lambda: server.counts == {"displaced": 1})
        assert watched.closed_by == []
        server.certificate.gate.set()
        assert is_closed(half.sock)
        assert wait_until(lambda: watched.closed_by == [server.thread.ident])
        assert len(server.loop.connections) == len(newer)
        assert server.counts == {"displaced": 1}


def test_what_a_thread_has_at_the_end_of_the_server_is_closed_too(serving: Callable[..., Any]) -> None:
    with serving() as server:
        server.certificate.gate.clear()
        halves = [server.half() for _ in range(4)]
        for half in halves:
            half.sock.sendall(half.hello())
        assert wait_until(lambda: sum(c.securing for c in list(server.loop.connections)) == 4)
        channels = [connection.channel for connection in server.loop.connections]
        server.loop.shutdown()
        assert server.empty()
        server.certificate.gate.set()
        server.thread.join(PATIENCE_SECONDS)
        assert [channel.fileno() for channel in channels] == [-1] * 4


def test_a_closed_connection_is_not_secured_any_more(serving: Callable[..., Any]) -> None:
    """Those that a flood has displaced must not cost the threads their time."""
    with serving(max_unproven=2) as server:
        server.certificate.gate.clear()
        halves: list[Half] = []
        for number in range(30):
            halves.append(server.half())
            halves[-1].sock.sendall(halves[-1].hello())
            assert wait_until(partial(server.all_wait, min(number + 1, 2), displaced=max(0, number - 1)))
        begun = server.certificate.waiting
        secured: list[Any] = []
        gated = server.certificate.secure
        server.certificate.secure = lambda sock: (secured.append(sock), gated(sock))[1]
        server.certificate.gate.set()
        assert all(is_closed(half.sock) for half in halves[:28])
        assert len(secured) <= 2
        assert begun <= 2


def test_the_peer_may_leave_at_any_time(serving: Callable[..., Any]) -> None:
    with serving() as server:
        length = len(server.half().hello())
        for size in (0, 1, 5, 6, length // 2, length - 1, length):
            for reset in (False, True):
                half = server.half()
                half.sock.sendall(half.hello()[:size])
                if reset:
                    half.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                half.sock.close()
        server.stack.close()
        assert server.empty()
        assert server.counts == {}
        assert one_call(server.secured()) == b"value of key"


# Limits ----------------------------------------------------------------------------------------------------------


def test_one_connection_too_many_is_told_so(serving: Callable[..., Any]) -> None:
    with serving(max_connections=2, max_unproven=50) as server:
        for _ in range(2):
            assert one_call(server.secured()) == b"value of key"
        for _ in range(20):
            sock = server.connect()
            sock.setblocking(False)
            channel = client_channel(sock, TLS(ca=server.tls.ca), "localhost")
            with pytest.raises(TlsRefused) as refused:
                proceed(channel)
            assert refused.value.cause is TlsRefused.Cause.BUSY
        assert len(server.loop.connections) == 2


def proceed(channel: TlsChannel) -> None:
    """Complete a handshake."""

    def step() -> bool:
        return channel.handshake()

    assert wait_until(step)


def test_a_lent_descriptor_is_for_nodes_and_comes_back(serving: Callable[..., Any]) -> None:
    with serving(Strangers.REFUSED) as server:
        for caller, served in (("", False), ("cache.node.2 abc", True)):
            server.listener.scarce = True
            refills = server.reserve.refills
            sock = server.secured()
            connection = server.only_connection()
            assert connection.handshake.nodes_only
            if served:
                prove(sock, caller=caller)
            else:
                with pytest.raises(HandshakeRefused, match="no file descriptors left for clients"):
                    prove(sock, caller=caller)
            sock.close()
            assert server.empty()
            assert wait_until(lambda expected=refills + 1: server.reserve.refills == expected)


def test_a_lent_descriptor_comes_back_when_no_thread_has_it(serving: Callable[..., Any]) -> None:
    """It could not be reserved again before."""
    clock = FakeClock()
    with serving(clock=clock) as server:
        server.certificate.gate.clear()
        server.listener.scarce = True
        half = server.half()
        half.sock.sendall(half.hello())
        watched = server.watch()
        refills = server.reserve.refills
        server.let_pass(clock, 0.3)  # it has less time than others
        assert server.empty()
        assert server.reserve.refills == refills
        server.certificate.gate.set()
        assert wait_until(lambda: server.reserve.refills == refills + 1)
        assert watched.fileno() == -1


# Requests --------------------------------------------------------------------------------------------------------


def test_requests_may_come_with_the_end_of_the_handshake(serving: Callable[..., Any]) -> None:
    with serving() as server:
        half = server.half()
        half.sock.sendall(half.hello())
        calls = [call(number, "get", 0, b"%d" % number) for number in range(50)]
        half.sock.sendall(half.finish() + half.encrypted(handshake(), *calls))
        frames = half.frames()
        assert next(frames).header.type == framing.CONNECT_OK
        for number in range(50):
            assert result_of(next(frames)) == b"value of %d" % number


@pytest.mark.parametrize("size", [100, 16_300, 70_000, MIB, 3 * MIB])
def test_requests_may_come_with_the_end_of_a_long_one(serving: Callable[..., Any], size: int) -> None:
    """Their bytes are decrypted with it, and no event announces them."""
    with serving() as server:
        half = server.half()
        half.sock.sendall(half.hello())
        half.sock.sendall(half.finish() + half.encrypted(handshake()))
        frames = half.frames()
        next(frames)
        for turn in range(3):
            calls = [
                call(1, "set", 0, b"key", bytes(size + turn), None),
                call(2, "get", 0, b"a"),
                call(3, "set", 0, b"key", bytes(size), None),
                call(4, "get", 0, b"b"),
            ]
            data = b"".join(calls)
            # In one record or many, which do not begin and end where the requests do.
            half.sock.sendall(half.encrypted(*(data[at : at + 9_999] for at in range(0, len(data), 9_999))))
            for expected in (size + turn, b"value of a", size, b"value of b"):
                assert result_of(next(frames)) == expected


def test_a_peer_that_does_not_read_gets_all_replies_later(serving: Callable[..., Any]) -> None:
    with serving() as server:
        sock = server.secured()
        assert one_call(sock) == b"value of key"
        key = os.urandom(20_000)
        count = 300

        def ask() -> None:
            for number in range(count):
                sock.sendall(call(number, "get", 0, key))

        asking = threading.Thread(target=ask)
        asking.start()
        (connection,) = server.loop.connections
        assert wait_until(lambda: connection.throttled)
        decoder = frame_decoder()
        for number in range(count):
            while (frame := decoder.next_frame()) is None:
                decoder.feed(sock.recv(2**16))
            assert frame.header.sequence == number
            assert result_of(frame) == b"value of " + key
        asking.join(PATIENCE_SECONDS)


# Who is refused --------------------------------------------------------------------------------------------------


def receive_message(sock: socket.socket) -> framing.Frame:
    decoder = frame_decoder()
    while (frame := decoder.next_frame()) is None:
        data = sock.recv(2**16)
        assert data, "the server closes the connection without a message"
        decoder.feed(data)
    return frame


def prove(sock: ssl.SSLSocket, certificate: bytes | None = None, caller: str = "") -> None:
    """Make the whole handshake, perhaps with the hash of another certificate."""
    import hashlib

    shown = hashlib.sha256(sock.getpeercert(binary_form=True) or b"").digest()
    greeting = Greeting(
        nonce=b"c" * 32,
        caller=caller,
        dialled=format_peer(sock.getpeername()),
        certificate=shown if certificate is None else certificate,
    )
    client = ClientHandshake(NAME, greeting, (KEY,), trusting=False)
    while client.state is not State.ESTABLISHED:
        sock.sendall(client.request())
        client.receive(receive_message(sock))


def test_a_proof_is_for_the_certificate_of_this_server(serving: Callable[..., Any]) -> None:
    with serving(Strangers.REFUSED) as server:
        prove(server.secured())
        for certificate in (b"", bytes(32), b"short"):
            with pytest.raises(HandshakeRefused) as refused:
                prove(server.secured(), certificate)
            assert refused.value.code == "other-certificate"


def test_a_caller_without_tls_is_told_in_the_clear(serving: Callable[..., Any]) -> None:
    for strangers in Strangers:
        with serving(strangers) as server:
            sock = server.connect()
            sock.sendall(handshake() + call(1, "get", 0, b"key"))
            frame = receive_message(sock)
            assert frame.header.type == framing.CONNECT_FAIL
            assert messages.unpack_plain(frame.body) == "no-tls: this server speaks TLS only"
            assert is_closed(sock)
            sock.close()
            assert server.empty()
            assert server.counts == {"refused": 1}


def test_a_caller_without_tls_gets_no_proof(serving: Callable[..., Any]) -> None:
    with serving(Strangers.REFUSED) as server:
        sock = server.connect()
        greeting = Greeting(nonce=b"c" * 32, dialled=format_peer(sock.getpeername()))
        client = ClientHandshake(NAME, greeting, (KEY,), trusting=False)
        sock.sendall(client.request())
        body = receive_message(sock).body
        assert b"proof" not in bytes(body)
        assert b"nonce" not in bytes(body)


@pytest.mark.parametrize(
    "says",
    [b"GET / HTTP/1.1\r\n\r\n" * 5, b"\x15\x03\x03\x00\x02\x02\x46" * 9, bytes(100)],
    ids=["HTTP", "an alert", "zeros"],
)
def test_what_is_neither_is_closed(serving: Callable[..., Any], says: bytes) -> None:
    with serving() as server:
        sock = server.connect()
        sock.sendall(says)
        assert is_closed(sock)
        assert server.empty()
        assert server.counts == {"malformed": 1}


@pytest.mark.parametrize(
    "says",
    [b"\x16" * 100, b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x16\x03\x01\x00\x05" + bytes(50)],
    ids=["no version", "too long", "no hello"],
)
def test_broken_tls_is_closed_and_counted(serving: Callable[..., Any], says: bytes) -> None:
    with serving() as server:
        sock = server.connect()
        with contextlib.suppress(ConnectionError):
            sock.sendall(says)
        assert is_closed(sock)
        sock.close()
        assert server.empty()
        assert server.counts == {"malformed": 1}


def test_a_client_that_refuses_the_certificate_is_logged(
    serving: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as server:
        context = ssl.create_default_context()
        with pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(server.connect(), server_hostname="localhost")
        server.stack.close()
        assert server.empty()
        assert server.counts == {"malformed": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "A connection from this host was closed: in the TLS handshake: it does not accept the certificate of this "
        "end: unknown ca"
    ]


def test_a_client_must_show_a_certificate_where_that_is_demanded(
    serving: Callable[..., Any], certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(require_client_cert=True) as server:
        sock = server.secured()  # in TLS 1.3, the server judges when the client is done
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            sock.recv(1)
        known = certificates.client("known")
        context = ssl.create_default_context(cafile=known.ca)
        context.load_cert_chain(known.cert or "", known.key)
        with context.wrap_socket(server.connect(), server_hostname="localhost") as sock:
            assert one_call(sock) == b"value of key"
        assert server.counts == {"malformed": 1}
    assert "it has not shown a certificate" in caplog.text


def test_a_server_without_a_certificate_answers_to_tls_with_an_alert(certificates: Certificates) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    dispatcher = Dispatcher(NAME, Target(), {"get": GET}, greeting=Greeting, max_frame_bytes=MIB)
    loop = EventLoop([listener], dispatcher, NodeConfig())
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    try:
        with socket.create_connection(listener.getsockname()) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            sock.sendall(Half(sock, certificates.client()).hello())
            assert sock.recv(100) == NO_TLS_ALERT
            assert sock.recv(100) == b""
        with socket.create_connection(listener.getsockname()) as sock:
            sock.setblocking(False)
            with pytest.raises(TlsRefused, match=r"it does not speak TLS 1\.3"):
                proceed(client_channel(sock, certificates.client(), "localhost"))
        assert wait_until(lambda: not loop.connections)
        assert loop.unproven.counts["malformed"] == 2
    finally:
        loop.shutdown()
        thread.join(PATIENCE_SECONDS)


# Damage after the handshake --------------------------------------------------------------------------------------


def test_what_follows_a_close_notify_does_not_occupy_the_server(serving: Callable[..., Any]) -> None:
    """Before the proof, anybody could send this."""
    with serving() as server:
        half = server.half()
        half.sock.sendall(half.hello())
        half.sock.sendall(half.finish() + half.encrypted(handshake()))
        next(half.frames())
        last = half.encrypted(call(1, "get", 0, b"key"))
        with contextlib.suppress(ssl.SSLWantReadError):
            half.tls.unwrap()
        half.sock.sendall(last + half.outgoing.read() + b"\x17\x03\x03\x00\x20" + bytes(64))
        assert one_call(server.secured()) == b"value of key"


@pytest.mark.parametrize("behind", [b"", call(1, "get", 0, b"key")], ids=["alone", "behind a request"])
def test_a_changed_bit_ends_the_connection(serving: Callable[..., Any], behind: bytes) -> None:
    with serving() as server:
        half = server.half()
        half.sock.sendall(half.hello())
        half.sock.sendall(half.finish() + half.encrypted(handshake()))
        next(half.frames())
        good = half.encrypted(behind) if behind else b""
        changed = bytearray(half.encrypted(call(2, "get", 0, b"key")))
        changed[-1] ^= 1
        half.sock.sendall(good + changed)
        assert is_closed(half.sock)
        assert server.empty()
