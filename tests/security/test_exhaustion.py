"""Attacks on what a server has little of, by peers without the secret: real processes, real sockets.

A client with the secret calls the node over TCP while each attack goes on, and makes new connections. Afterwards the
node is the same process, has grown by at most 32 MiB, and its counters tell what happened.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import statistics
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import Pyro5.api
import pytest
from Pyro5.errors import NamingError

from pyrocache import NodeStats, NodeUnavailable, PyroCacheClient
from pyrocache.net.directory import NAMESERVER
from pyrocache.protocol import framing, messages
from pyrocache.protocol.handshake import Greeting, format_peer
from pyrocache.runtime.child_process import ChildProcess, start_nameserver
from tests.support.nodes import RunningNode, running_node
from tests.support.waiting import PATIENCE_SECONDS, eventually, wait_until
from tests.support.wire import CLOSED, NAME, Peer, call_body, handshake, header, invoke, pack_call

MIB = 2**20
GROWTH = 32 * MIB
HANDSHAKE_SECONDS = 1.0
MOST_UNPROVEN = 256

Address = tuple[str, int]


@dataclass
class Scene:
    """A node that serves callers with the secret only, and its name server."""

    node: RunningNode
    names: ChildProcess
    began_at: float = field(default_factory=time.monotonic)

    @property
    def nameserver(self) -> Address:
        host, port = self.node.nameserver.split(":")
        return host, int(port)

    def stats(self) -> NodeStats:
        """What the node says of itself to a client with the secret."""
        with PyroCacheClient(self.node.nameserver, transport="tcp") as cache:
            return cache.stats().nodes[NAME]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    names = start_nameserver(quiet=True)
    try:
        address = names.wait_until_ready()["address"]
        with running_node(
            address,
            open=False,
            max_memory=64 * MIB,
            handshake_seconds=HANDSHAKE_SECONDS,
            max_unproven=MOST_UNPROVEN,
        ) as node:
            yield Scene(node, names)
    finally:
        names.kill()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Bystander:
    """A client with the secret that goes on calling. Every tenth call is made by a new client.

    The connection of a new client may be displaced, if hundreds of others come within the milliseconds of its
    handshake; then the next client must get through.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seconds: list[float] = []
        self.clients = 0
        self._displaced = False
        self.error: BaseException | None = None

    def __enter__(self) -> Bystander:
        self._thread.start()
        assert wait_until(lambda: self.clients > 1 or self.error)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        assert self.error is None, self.error

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                with PyroCacheClient(self._scene.node.nameserver, transport="tcp") as cache:
                    if not self._gets_through(cache):
                        continue
                    self.clients += 1
                    for number in range(10):
                        begun = time.perf_counter()
                        assert cache.set(f"key {number}", number)
                        assert cache.get(f"key {number}") == number
                        self.seconds.append((time.perf_counter() - begun) / 2)
                        time.sleep(0.001)
        except BaseException as error:
            self.error = error

    def _gets_through(self, cache: PyroCacheClient) -> bool:
        """Return whether a new client gets an answer. Raise its error if the one before it got none either."""
        try:
            cache.get("key")
        except NodeUnavailable:
            if self._displaced:
                raise
            self._displaced = True
            return False
        self._displaced = False
        return True


class Growth:
    """How much a process has grown, at most."""

    def __init__(self, pid: int) -> None:
        self._process = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            (self._process / "clear_refs").write_text("5")  # the peak so far is forgotten
        self._before = self._peak()

    def _peak(self) -> int:
        try:
            lines = (self._process / "status").read_text().splitlines()
        except OSError:  # a system without it
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)

    def check(self) -> None:
        """Fail if it ever was larger by more than is allowed."""
        assert self._peak() - self._before <= GROWTH


@dataclass
class Attack:
    """What is known of an attack when it is over."""

    bystander: Bystander
    before: NodeStats
    after: NodeStats | None = None

    def more(self, kind: str) -> int:
        """By how much a counter of handshakes has grown."""
        assert self.after is not None
        return int(getattr(self.after, f"handshakes_{kind}") - getattr(self.before, f"handshakes_{kind}"))


@contextmanager
def attacked(scene: Scene) -> Iterator[Attack]:
    """Whatever happens inside, the node and its name server are there afterwards, serve all the time, and are small."""
    before = scene.stats()
    sizes = [Growth(scene.node.process.pid), Growth(scene.names.pid)]
    with Bystander(scene) as bystander:
        attack = Attack(bystander, before)
        called, clients = len(bystander.seconds), bystander.clients
        yield attack
        enough = eventually(
            lambda: len(bystander.seconds) > called + 10 and bystander.clients > clients, PATIENCE_SECONDS
        )
        assert enough
    attack.after = scene.stats()
    assert attack.after.pid == before.pid
    assert attack.after.rss_bytes - before.rss_bytes <= GROWTH
    for size in sizes:
        size.check()
    assert scene.names.exit_status is None
    slowest = statistics.quantiles(bystander.seconds, n=100)[98]
    print(f"{len(bystander.seconds)} calls, p99 {slowest * 1e3:.2f} ms")


def first_message(address: Any, target: str = NAME) -> bytes:
    """What a caller that claims to know the secret says first."""
    greeting = Greeting(protocol=1, nonce=os.urandom(32), dialled=format_peer(address), session=bytes(8))
    body = messages.pack_plain({"handshake": greeting.to_wire(), "object": target})
    return framing.pack_message(framing.CONNECT, 0, body)


def connect_with(body: bytes, **options: Any) -> bytes:
    return framing.pack_message(framing.CONNECT, 0, body, **options)


BOMB = zlib.compress(bytes(10 * MIB), 9)[:16_000]
GREETING_START = b"\x82\xa6object\xac" + NAME.encode() + b"\xa9handshake"
FRAMES = {
    "marshal": connect_with(b"(\xff\xff\xff\x7f", serializer=2),
    "serpent": connect_with(b"{'object': '%s'}" % NAME.encode(), serializer=1),
    "json": connect_with(b"{}", serializer=3),
    "a marshalled call": invoke(b"(\xff\xff\xff\x7f", serializer=2),
    "compressed": connect_with(BOMB, flags=framing.FLAG_COMPRESSED),
    "a compressed call": invoke(BOMB, flags=framing.FLAG_COMPRESSED),
    "a call": invoke(call_body("get", 0, b"key")),
    "a call to the daemon": invoke(call_body("registered", target="Pyro.Daemon")),
    "a oneway call": invoke(call_body("clear", 0, b""), flags=framing.FLAG_ONEWAY),
    "a batch": invoke(call_body("ping"), flags=framing.FLAG_BATCH),
    "a ping": framing.pack_message(framing.PING, 0, b"ping", serializer=42),
    "a header of 1 GiB": header(framing.CONNECT, body=2**30),
    "annotations of 1 GiB": header(framing.CONNECT, annotations=2**30),
    "17 KiB": connect_with(bytes(17 * 1024)),
    "arrays nested 15 k deep": connect_with(GREETING_START + b"\x91" * 15_000 + b"\xc0"),
    "maps nested 5 k deep": connect_with(GREETING_START + b"\x81\xa1a" * 5_000 + b"\xc0"),
    "4 G items": connect_with(GREETING_START + b"\xdd\xff\xff\xff\xff"),
    "4 G entries": connect_with(GREETING_START + b"\xdf\xff\xff\xff\xff"),
    "4 GiB of bytes": connect_with(GREETING_START + b"\xc6\xff\xff\xff\xff"),
    "15 k empty maps": connect_with(GREETING_START + b"\xdc\x3a\x98" + b"\x80" * 15_000),
    "an extension": connect_with(GREETING_START + b"\xd4\x30\x00"),
    "no handshake": handshake(),
}


def fate_of(peer: Peer) -> Any:
    """How a connection ends; a result would be a break-in."""
    try:
        frame = peer.receive()
    except (ConnectionError, TimeoutError):
        return CLOSED
    assert frame.header.type == framing.CONNECT_FAIL
    assert peer.fate() == CLOSED
    return framing.CONNECT_FAIL


def test_nothing_but_a_short_plain_handshake_is_read(scene: Scene) -> None:
    with attacked(scene) as attack:
        for data in FRAMES.values():
            for _ in range(3):
                with Peer(scene.node, greet=False) as peer:
                    peer.send_as_far_as_taken(data)
                    fate_of(peer)
    assert attack.more("refused") + attack.more("malformed") == 3 * len(FRAMES)


def test_nothing_but_the_proof_is_read_after_the_first_message(scene: Scene) -> None:
    first = first_message(scene.node.address)
    with attacked(scene) as attack:
        for data in FRAMES.values():
            with Peer(scene.node, greet=False) as peer:
                peer.send(first)
                assert peer.receive().header.type == framing.CONNECT_OK
                peer.send_as_far_as_taken(data)
                fate_of(peer)
    assert attack.more("refused") + attack.more("malformed") == len(FRAMES)


@pytest.mark.parametrize("flag", [framing.FLAG_COMPRESSED, framing.FLAG_ONEWAY, framing.FLAG_BATCH, 1 << 15])
def test_a_handshake_has_no_flags(scene: Scene, flag: int) -> None:
    data = first_message(scene.node.address)
    with Peer(scene.node, greet=False) as peer:
        peer.send(data[:8] + flag.to_bytes(2, "big") + data[10:])
        assert fate_of(peer) == CLOSED


def test_bytes_that_drip_do_not_extend_the_time_for_a_handshake(scene: Scene) -> None:
    data = handshake()
    lasted: list[float] = []

    def drip(peer: Peer, begun: float) -> None:
        with contextlib.suppress(ConnectionError):
            for at in range(len(data)):  # this would take ten times as long as it may
                peer.sock.sendall(data[at : at + 1])
                time.sleep(10 * HANDSHAKE_SECONDS / len(data))
        lasted.append(time.monotonic() - begun)

    with attacked(scene) as attack, ExitStack() as stack:
        threads = []
        for _ in range(20):
            begun = time.monotonic()
            peer = stack.enter_context(Peer(scene.node, greet=False))
            threads.append(threading.Thread(target=drip, args=(peer, begun), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
    assert len(lasted) == 20
    assert min(lasted) > HANDSHAKE_SECONDS * 0.9
    assert max(lasted) < 8 * HANDSHAKE_SECONDS
    assert attack.more("late") == 20


def crowd(
    address: Address, count: int, stack: ExitStack, said: Callable[[Any], bytes] = lambda address: b""
) -> None:
    """Open so many connections, each of which says something once, and keep them."""
    for _ in range(count):
        sock = stack.enter_context(socket.socket())
        sock.settimeout(PATIENCE_SECONDS)
        with contextlib.suppress(ConnectionError):
            sock.connect(address)
            sock.sendall(said(address))


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(lambda address: b"", id="silent"),
        pytest.param(first_message, id="half a handshake"),
        pytest.param(lambda address: handshake()[:-1], id="half a message", marks=pytest.mark.full),
    ],
)
def test_thousands_of_connections_take_the_place_of_their_like(
    scene: Scene, said: Callable[[Any], bytes]
) -> None:
    with attacked(scene) as attack:
        with ExitStack() as stack:
            crowd(scene.node.address, 2000, stack, said)
            assert scene.stats().connections <= MOST_UNPROVEN + 20
        assert wait_until(lambda: scene.stats().connections < 20)
    # At most as many as were late are not displaced.
    assert attack.more("displaced") >= 2000 - MOST_UNPROVEN - attack.more("late")


def flood(address: Address, data: bytes, connections: int, seconds: float) -> int:
    """Send this without end over so many connections, and read nothing. Open others for those that are closed.

    Return how many connections there were.
    """
    selector, end, opened = selectors.DefaultSelector(), time.monotonic() + seconds, 0

    def another() -> None:
        nonlocal opened
        sock = socket.socket()
        sock.settimeout(PATIENCE_SECONDS)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            return
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_WRITE)
        opened += 1

    with selector:
        while time.monotonic() < end:
            for _ in range(connections - len(selector.get_map())):
                another()
            for key, _ in selector.select(0.01):
                try:
                    key.fileobj.send(data)  # type: ignore[union-attr]
                except BlockingIOError:
                    continue
                except OSError:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    return opened


def test_connections_that_come_again_and_again_keep_nobody_out(scene: Scene) -> None:
    with attacked(scene) as attack:
        assert flood(scene.node.address, first_message(scene.node.address), 400, 0.7) > 400
    assert attack.more("displaced") > 0


ONEWAY = invoke(call_body("set", 0, b"oneway", b"x"), flags=framing.FLAG_ONEWAY) * 500


def test_floods_of_oneway_calls_are_cut_off(scene: Scene) -> None:
    with attacked(scene) as attack:
        opened = flood(scene.node.address, ONEWAY, 50, 0.5)
        assert opened > 50
    assert attack.more("malformed") > 0
    with PyroCacheClient(scene.node.nameserver) as cache:
        assert len(list(cache)) <= 10


def test_peers_that_never_read_hold_nothing(scene: Scene) -> None:
    with attacked(scene), ExitStack() as stack:
        for _ in range(200):
            peer = stack.enter_context(Peer(scene.node, greet=False, receive_buffer=1024))
            peer.send_as_far_as_taken(first_message(scene.node.address) * 10)


def test_what_is_not_admitted_is_logged_once_per_peer_and_minute(scene: Scene) -> None:
    for _ in range(20):
        with Peer(scene.node, greet=False) as peer:
            peer.send(handshake())
            fate_of(peer)
    output = scene.node.process._output
    assert output is not None
    log = os.pread(output.fileno(), 10 * MIB, 0).decode()
    said = [line for line in log.splitlines() if "was closed" in line]
    minutes = (time.monotonic() - scene.began_at) // 60
    assert 1 <= len(said) <= minutes + 1
    assert len(log) < 20_000


class TestNameServer:
    """Strangers may read, so they are admitted; the node and its clients must not notice them."""

    def test_hundreds_of_connections_of_strangers(self, scene: Scene) -> None:
        listing = pack_call(NAMESERVER, "list", ("cache.", None, True), 1)
        with attacked(scene), ExitStack() as stack:
            crowd(scene.nameserver, 500, stack, lambda address: handshake(NAMESERVER) + listing)
            crowd(scene.nameserver, 200, stack, lambda address: first_message(address, NAMESERVER))
            crowd(scene.nameserver, 200, stack)

    @pytest.mark.full
    def test_floods_of_listings(self, scene: Scene) -> None:
        listing = pack_call(NAMESERVER, "list", ("", None, True), 1)
        with attacked(scene) as attack:
            # For longer than the node's lease, which is renewed at the name server.
            flood(scene.nameserver, handshake(NAMESERVER) + listing * 100, 100, 2.2)
            assert scene.stats().serving
        assert attack.after is not None

    def test_regular_expressions_are_refused(self, scene: Scene) -> None:
        evil = "(a+)+$"
        with attacked(scene), Pyro5.api.Proxy(f"PYRO:{NAMESERVER}@{scene.node.nameserver}") as names:
            with pytest.raises(NamingError, match="Regular expressions"):
                names.list(regex=evil)
            with pytest.raises(Exception, match="secret"):
                names.remove(regex=evil)

    @pytest.mark.full
    def test_serpent_that_takes_long_to_parse(self, scene: Scene) -> None:
        slow = [
            b"(" * 15_000,
            b"-" * 15_000 + b"1",
            b"[" * 100 + b"1," * 7_000,
            b"9" * 15_000,
            b"{1:" * 5_000,
        ]
        with attacked(scene):
            for body in slow:
                for _ in range(5):
                    with Peer(_At(scene.nameserver), greet=False) as peer:
                        peer.send_as_far_as_taken(connect_with(body, serializer=1))
                        fate_of(peer)


@dataclass
class _At:
    address: Address
