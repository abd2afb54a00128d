"""Attackers on real sockets: one that listens where a node should, one in between, and nodes that can be hostile."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from Pyro5.client import Proxy

from pyrocache.cluster.routing import Member
from pyrocache.config import NodeConfig
from pyrocache.net.directory import NAMESERVER, NameServerDirectory
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.protocol import framing, messages
from pyrocache.protocol.commands import COMMANDS
from pyrocache.protocol.framing import Frame
from pyrocache.protocol.handshake import (
    PROTOCOL,
    Admission,
    ClientHandshake,
    Greeting,
    State,
    Strangers,
    format_peer,
)
from pyrocache.protocol.request_id import milliseconds
from pyrocache.runtime.clock import now
from pyrocache.runtime.secret import Secret, find_secret
from pyrocache.runtime.tls import ServerCertificate
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop
from tests.support.processes import environment
from tests.support.scripted_peer import Line, ScriptedPeer
from tests.support.waiting import PATIENCE_SECONDS
from tests.support.wire import NAME, Peer, frame_decoder

MIB = 2**20
Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""


def member_of(nameserver: str, name: str = NAME) -> Member:
    """Return a node as the name server lists it."""
    return next(member for member in NameServerDirectory(nameserver).members() if member.name == name)


def as_message(frame: Frame) -> bytes:
    """Return a message again as it crossed the wire, without a correlation id."""
    header = frame.header
    return framing.pack_message(
        header.type, header.sequence, bytes(frame.body), header.flags, header.serializer
    )


def changed_greeting(frame: Frame, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return a message of a handshake with another greeting: ``change`` alters the dict, or returns another value."""
    body: Any = messages.unpack_plain(frame.body)
    if isinstance(body, dict) and isinstance(body.get("handshake"), dict):
        replaced = change(body["handshake"])
        body = {**body, "handshake": body["handshake"] if replaced is None else replaced}
    return as_message(frame._replace(body=messages.pack_plain(body)))


class TrustedPeer(Peer):
    """A raw connection whose handshake proves a secret, and which keeps the messages of both ends.

    Args:
        node: has the address to connect to.
        secret: what is proved; None for the one of this user.
        target: the remote object.
        dialled: what the greeting says of the address; None for the true one.
        more: further fields of the greeting.

    Attributes:
        server: the greeting of the node.
    """

    def __init__(
        self,
        node: Any,
        secret: Secret | None = None,
        *,
        target: str = NAME,
        dialled: str | None = None,
        **more: Any,
    ) -> None:
        super().__init__(node, greet=False)
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        greeting = Greeting(
            protocol=PROTOCOL,
            nonce=os.urandom(32),
            dialled=dialled or format_peer(self.sock.getpeername()),
            **more,
        )
        self.server = Greeting()
        handshake = ClientHandshake(target, greeting, (secret or find_secret()).keys, trusting=False)
        while handshake.state is not State.ESTABLISHED:
            self.sent.append(handshake.request())
            self.send(self.sent[-1])
            frame = self.receive()
            self.received.append(as_message(frame))
            self.server = handshake.receive(frame)


class Impostor:
    """Listens where a node should be, says anything, and keeps all that it is sent.

    Args:
        answer: returns the answer to a message of a handshake; None for none.
        path: also listens on this Unix socket.

    Attributes:
        greetings: the bodies of the handshakes.
        calls: method and arguments of the calls.
    """

    def __init__(self, answer: Callable[[Frame], bytes | None], path: str = "") -> None:
        self.greetings: list[Any] = []
        self.calls: list[Any] = []
        self._answer = answer
        self._peer = ScriptedPeer(self._serve, path, greeting=False)
        self.host, self.port = self._peer.member.host, self._peer.member.port

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port."""
        return self.host, self.port

    def _serve(self, line: Line) -> None:
        while True:
            frame = line.frame()
            if frame.header.type == framing.CONNECT:
                self.greetings.append(messages.unpack_plain(frame.body))
                if (answer := self._answer(frame)) is not None:
                    line.send(answer)
            else:
                self.calls.append(messages.unpack_plain(frame.body))
                line.send(framing.pack_message(framing.RESULT, frame.header.sequence, b"\xc0"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.close()


META = {"methods": ["ping", "get", "set"], "oneway": [], "attrs": []}


def saying(greeting: Any) -> Callable[[Frame], bytes]:
    """Return an answer to handshakes for an `Impostor`."""
    body = messages.pack_plain({"handshake": greeting, "meta": META})
    return lambda frame: framing.pack_message(framing.CONNECT_OK, frame.header.sequence, body)


def claiming(member: Member, **more: Any) -> dict[str, Any]:
    """Return the greeting of a node; it proves nothing."""
    greeting = Greeting(
        member.name, member.incarnation, 64 * MIB, protocol=PROTOCOL, cluster=member.cluster, clock_ms=1
    )
    return {**greeting.to_wire(), **more}


class Between:
    """Passes the messages of each connection on, and may change them.

    Args:
        target: the server.
        path: listens on this Unix socket, and not on a TCP port.

    Attributes:
        address: where it listens.
        to_server, to_client: called with each message; return what is passed on, None to drop it.
        from_client, from_server: the messages that came.
    """

    def __init__(self, target: Address, path: str = "") -> None:
        self.to_server: Callable[[Frame, bytes], bytes | None] = lambda frame, message: message
        self.to_client: Callable[[Frame, bytes], bytes | None] = lambda frame, message: message
        self.from_client: list[Frame] = []
        self.from_server: list[Frame] = []
        self._target = target
        self._listener = socket.socket(socket.AF_UNIX) if path else socket.create_server(("127.0.0.1", 0))
        if path:
            self._listener.bind(path)
            self._listener.listen(8)
        self.address: Any = self._listener.getsockname()
        self._socks = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        for sock in self._socks:
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
                self._socks += [client, server]
                server.connect(self._target)
                for pump in (
                    (client, server, self.from_client, lambda *m: self.to_server(*m)),
                    (server, client, self.from_server, lambda *m: self.to_client(*m)),
                ):
                    thread = threading.Thread(target=self._pump, args=pump, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    @staticmethod
    def _pump(
        source: socket.socket, sink: socket.socket, kept: list[Frame], change: Callable[[Frame, bytes], Any]
    ) -> None:
        with contextlib.suppress(OSError):
            received = b""
            while data := source.recv(256 * 1024):
                received += data
                while (message := _first(received)) is not None:
                    received = received[len(message) :]
                    decoder = frame_decoder()
                    decoder.feed(message)
                    frame = decoder.next_frame()
                    assert frame is not None
                    kept.append(frame)
                    if (changed := change(frame, message)) is not None:
                        sink.sendall(changed)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _first(received: bytes) -> bytes | None:
    """Return the first whole message."""
    if len(received) < framing.HEADER_BYTES:
        return None
    total = framing.parse_header(received).frame_bytes
    return received[:total] if len(received) >= total else None


@contextmanager
def node_in_this_process(
    kind: type[CacheNode] = CacheNode,
    *,
    name: str = NAME,
    advertised: Collection[str] = (),
    secret: Secret | None = None,
    certificate: ServerCertificate | None = None,
) -> Iterator[Member]:
    """Serve a node as a node process does. It proves the secret.

    Args:
        kind: its class, which a test may have made hostile.
        advertised: further addresses that callers may have dialled, see `Admission`. It may be filled later.
        certificate: with which it is encrypted; None for none.
    """
    keys = (secret or find_secret()).keys
    incarnation = os.urandom(8).hex()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    dispatcher = Dispatcher(
        name,
        kind(Store(64 * MIB), RequestGuard(name, incarnation)),
        COMMANDS,
        greeting=lambda: Greeting(name, incarnation, 16 * MIB, PROTOCOL, clock_ms=milliseconds(now()) or 1),
        max_frame_bytes=32 * MIB,
        admission=Admission(
            lambda: keys, lambda: os.urandom(32), strangers=Strangers.REFUSED, advertised=advertised
        ),
    )
    loop = EventLoop([listener], dispatcher, NodeConfig(), certificate=certificate)
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    try:
        yield Member(name, "127.0.0.1", listener.getsockname()[1], incarnation=incarnation)
    finally:
        loop.shutdown()
        thread.join(PATIENCE_SECONDS)


@contextmanager
def stock_nameserver() -> Iterator[str]:
    """Run Pyro5's own name server, where anybody can register, in a process of its own. Yield its address."""
    command = [sys.executable, "-u", "-m", "Pyro5.nameserver", "-n", "127.0.0.1", "-p", "0", "-x"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()
    ) as process:
        try:
            assert process.stdout is not None
            uri = next(line for line in process.stdout if line.startswith("URI = "))
            yield uri.strip().partition("@")[2]
        finally:
            process.kill()


@contextmanager
def proxy_of(nameserver: str, handshake: Any = "hello") -> Iterator[Any]:
    """Yield a stock proxy of a name server."""
    with Proxy(f"PYRO:{NAMESERVER}@{nameserver}") as proxy:
        proxy._pyroTimeout = PATIENCE_SECONDS
        proxy._pyroHandshake = handshake
        yield proxy


def register(names: Any, member: Member, *, host: str = "", port: int = 0) -> None:
    """Register a node, perhaps with another address, through a stock proxy of a name server."""
    metadata = {"pyrocache", "weight=1.0", f"incarnation={member.incarnation}", f"cluster={member.cluster}"}
    uri = f"PYRO:{member.name}@{host or member.host}:{port or member.port}"
    names.register(member.name, uri, metadata=metadata - {"cluster="})


def run_as_another_user(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a program in Python as the user 65534. Its output can be read."""
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    return subprocess.Popen(
        [*command, sys.executable, "-I", "-u", "-c", program, *arguments],
        cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def why_no_other_user() -> str:
    """Return why `run_as_another_user` does not work here; empty if it does."""
    if os.geteuid() != 0:
        return "only root can become another user"
    try:
        with run_as_another_user("print(1)") as process:
            out, error = process.communicate(timeout=PATIENCE_SECONDS)
    except FileNotFoundError:
        return "setpriv is not installed"
    return "" if out == "1\n" else f"another user cannot run this interpreter: {error.strip()[-200:]}"


def files_of(paths: Sequence[Path]) -> list[bytes]:
    """Return the contents of files that can be read; processes may end meanwhile."""
    contents = []
    for path in paths:
        with contextlib.suppress(OSError):
            contents.append(path.read_bytes())
    return contents
