"""Somebody on the path of TLS: what they see, change, relay and strip. What a client sends where there is no TLS."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from pyrocache import AuthenticationError, NameServerUnavailable, PyroCacheClient
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import TLS, Encryption
from pyrocache.errors import PyroCacheError
from pyrocache.net.call_protocol import knowing
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NameServerDirectory
from pyrocache.protocol import framing, messages
from pyrocache.protocol.handshake import HandshakeRefused
from pyrocache.runtime.secret import find_secret
from pyrocache.runtime.tls import ServerCertificate
from tests.support.attackers import Between, changed_greeting, node_in_this_process
from tests.support.certificates import Certificates
from tests.support.leaks import shows
from tests.support.nodes import running_nameserver
from tests.support.tls_cluster import tls_cluster
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.wire import frame_decoder

NO_VIEW = 0
MARKER = b"a value that nobody else may see " * 3


class Wire:
    """Passes bytes on and keeps them, or changes them.

    Attributes:
        address: where it listens.
        seen: what came from clients and from the server.
        change: called with who has sent it (0: the client, 1: the server) and the bytes; returns what is passed on.
    """

    def __init__(self, target: tuple[str, int] | None = None) -> None:
        self.target = target
        self.seen: list[bytearray] = [bytearray(), bytearray()]
        self.change: Callable[[int, bytes], bytes] = lambda direction, data: data
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._socks: list[socket.socket] = [self._listener]
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

    @property
    def everything(self) -> bytes:
        """Return all that was seen, of both directions."""
        return bytes(self.seen[0] + self.seen[1])

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._socks.append(client)
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            assert self.target is not None
            server = socket.create_connection(self.target)
            self._socks.append(server)
            self._pass_on(self.accepted(client), self.connected(server))
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def accepted(self, client: socket.socket) -> socket.socket:
        """Return the connection to a client, as this end sees it."""
        return client

    def connected(self, server: socket.socket) -> socket.socket:
        """Return the connection to the server, as this end sees it."""
        return server

    def _pass_on(self, *ends: socket.socket) -> None:
        """Pass bytes on until one end has closed. One thread does both directions: TLS needs that."""
        while True:
            waiting = [end for end in ends if isinstance(end, ssl.SSLSocket) and end.pending()]
            for end in waiting or select.select(ends, [], [], PATIENCE_SECONDS)[0]:
                direction = ends.index(end)
                data = end.recv(256 * 1024)
                if not data:
                    return
                self.seen[direction] += data
                ends[1 - direction].sendall(self.change(direction, data))


class Ending(Wire):
    """Ends TLS on one side or both, with a certificate of its own, and sees what is said."""

    def __init__(self, certificate: TLS | None, *, onward: bool) -> None:
        super().__init__()
        self._certificate = certificate
        self._onward = onward

    def accepted(self, client: socket.socket) -> socket.socket:
        if self._certificate is None:
            return client
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._certificate.cert or "", self._certificate.key)
        return self._kept(context.wrap_socket(client, server_side=True))

    def connected(self, server: socket.socket) -> socket.socket:
        if not self._onward:
            return server
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return self._kept(context.wrap_socket(server))

    def _kept(self, sock: socket.socket) -> socket.socket:
        self._socks.append(sock)
        return sock


@contextmanager
def connection_through(
    wire: Wire | Between, member: Member, tls: Encryption, **more: Any
) -> Iterator[Connection]:
    """Open a connection to a node through whatever is at the address of ``wire``."""
    host, port = wire.address
    there = Member(member.name, host, port, incarnation=member.incarnation)
    connection = Connection(there, "tcp", knowing(find_secret(), tls=tls, **more))
    try:
        connection.finish_opening(Deadline(PATIENCE_SECONDS))
        yield connection
    finally:
        connection.close()


def refused_through(wire: Wire | Between, member: Member, tls: Encryption) -> str:
    """Return the code with which one end refuses."""
    with pytest.raises(HandshakeRefused) as caught, connection_through(wire, member, tls):
        pass
    return caught.value.code


@contextmanager
def node_behind(wire: Wire, tls: TLS | None) -> Iterator[Member]:
    """Serve a node, with TLS or without. It takes the address of ``wire`` for its own, as with NAT in between."""
    certificate = None if tls is None else ServerCertificate(tls)
    advertised = "{} {}".format(*wire.address)
    with node_in_this_process(advertised=[advertised], certificate=certificate) as member:
        wire.target = (member.host, member.port)
        yield member


def in_time(connection: Connection, method: str, *arguments: Any) -> Any:
    return connection.call(method, arguments, Deadline(PATIENCE_SECONDS))


# Who passes bytes on ---------------------------------------------------------------------------------------------


def test_who_passes_bytes_on_reads_nothing(certificates: Certificates) -> None:
    """Neither keys nor values, nor what the handshake of pyrocache tells: names, nonces and proofs."""
    with Wire() as wire, node_behind(wire, certificates.server()) as member:
        with connection_through(wire, member, certificates.client()) as connection:
            for size in (1, 100, 5_000):
                in_time(connection, "set", NO_VIEW, b"the key of it", MARKER * size)
                assert bytes(in_time(connection, "get", NO_VIEW, b"the key of it")) == MARKER * size
        assert len(wire.everything) > 5_000 * len(MARKER)
        assert wire.seen[0].startswith(b"\x16")
        telling = [MARKER, b"the key of it", b"PYRO", b"nonce", b"proof", b"incarnation", b"certificate"]
        telling += [member.name.encode(), member.incarnation.encode()]
        assert [word for word in telling if word in wire.everything] == []
        assert not shows(wire.everything, find_secret().keys)


def test_the_same_without_tls_is_all_there() -> None:
    """The test before would notice."""
    with Wire() as wire, node_behind(wire, None) as member:
        with connection_through(wire, member, None) as connection:
            in_time(connection, "set", NO_VIEW, b"the key of it", MARKER)
        telling = [MARKER, b"the key of it", b"PYRO", b"nonce", b"proof", member.name.encode()]
        assert [word for word in telling if word not in wire.everything] == []
        assert not shows(wire.everything, find_secret().keys)


@pytest.mark.parametrize("direction", [0, 1], ids=["to the server", "to the client"])
def test_who_changes_a_bit_breaks_the_connection(certificates: Certificates, direction: int) -> None:
    """Wherever it is: a call succeeds with what was stored, or fails."""
    generator = random.Random(direction)
    values = {number: os.urandom(20_000) for number in range(5)}
    with Wire() as wire, node_behind(wire, certificates.server()) as member:
        broken = 0
        for _ in range(40):
            at = generator.randrange(1, 130_000)
            passed = 0

            def change(way: int, data: bytes, at: int = at) -> bytes:
                nonlocal passed
                if way != direction:
                    return data
                changed = bytearray(data)
                if passed <= at < passed + len(data):
                    changed[at - passed] ^= 1 << generator.randrange(8)
                passed += len(data)
                return bytes(changed)

            wire.change = change
            failed = False
            try:
                with connection_through(wire, member, certificates.client()) as connection:
                    for number, value in values.items():
                        in_time(connection, "set", NO_VIEW, b"%d" % number, value)
                        assert bytes(in_time(connection, "get", NO_VIEW, b"%d" % number)) == value
            except (OSError, HandshakeRefused):
                failed = True
            # The first record tells a version that nobody looks at.
            assert failed or not 2_000 < at < passed, "a changed bit must not pass"
            broken += failed
        assert broken > 20


# Who ends TLS ----------------------------------------------------------------------------------------------------


def test_another_certificate_of_the_same_authority_for_the_same_host_is_not_enough(
    certificates: Certificates,
) -> None:
    """The key of another server of the cluster was stolen, say. TLS accepts it; the proof of the secret does not."""
    stolen = certificates.server("stolen.example")
    server = certificates.server()
    assert Path(stolen.cert or "").read_bytes() != Path(server.cert or "").read_bytes()
    with Ending(stolen, onward=True) as relay, node_behind(relay, server) as member:
        assert refused_through(relay, member, certificates.client()) == "other-certificate"
        assert b"PYRO" in relay.seen[0], "TLS has accepted it"
        assert relay.everything.count(b"proof") == 0
        assert not shows(relay.everything, find_secret().keys)


def test_the_relay_works_where_nothing_is_bound(certificates: Certificates) -> None:
    """With the certificate of the server itself, nothing distinguishes the relay from it: the test before is one."""
    server = certificates.server()
    with Ending(server, onward=True) as relay, node_behind(relay, server) as member:
        with connection_through(relay, member, certificates.client()) as connection:
            in_time(connection, "set", NO_VIEW, b"key", MARKER)
        assert MARKER in relay.seen[0]


@pytest.mark.parametrize("says", ["the server's", "none", "its own"])
def test_who_ends_tls_cannot_say_another_certificate(certificates: Certificates, says: str) -> None:
    """The proofs cover what the client has said of it."""
    server, stolen = certificates.server(), certificates.server("stolen.example")
    said = {"the server's": hash_of(server), "none": b"", "its own": hash_of(stolen)}[says]

    def change(direction: int, data: bytes) -> bytes:
        if direction or b"certificate" not in data:
            return data
        decoder = frame_decoder()
        decoder.feed(data)
        frame = decoder.next_frame()
        assert frame is not None
        return changed_greeting(frame, lambda greeting: {**greeting, "certificate": said})

    with Ending(stolen, onward=True) as relay, node_behind(relay, server) as member:
        relay.change = change
        code = refused_through(relay, member, certificates.client())
        assert code == ("other-secret" if says == "the server's" else "other-certificate")
        assert b"proof" not in relay.seen[0], "the client has not proved anything"


def hash_of(tls: TLS) -> bytes:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(Path(tls.cert or "").read_text())).digest()


def test_tls_cannot_be_stripped_from_either_side(certificates: Certificates) -> None:
    server, stolen = certificates.server(), certificates.server("stolen.example")
    # The client speaks TLS with the relay, which speaks plainly with a server that has none.
    with Ending(stolen, onward=False) as relay, node_behind(relay, None) as member:
        assert refused_through(relay, member, certificates.client()) == "other-certificate"
        assert b"proof" not in relay.seen[0]
    # The client has no TLS, and the relay speaks it with the server in its place.
    with Ending(None, onward=True) as relay, node_behind(relay, server) as member:
        for tls in (None, False):
            assert refused_through(relay, member, tls) == "other-certificate"
        assert b"proof" not in relay.seen[0]


def test_a_proof_on_one_connection_is_worth_nothing_on_another(certificates: Certificates) -> None:
    """Who has ended TLS with the server's own key can still not use what it has seen once more."""
    server = certificates.server()
    with Ending(server, onward=True) as relay, node_behind(relay, server) as member:
        with connection_through(relay, member, certificates.client()) as connection:
            in_time(connection, "ping")
        said = bytes(relay.seen[0])
        context = ssl.create_default_context(cafile=server.ca)
        with (
            socket.create_connection((member.host, member.port), timeout=PATIENCE_SECONDS) as sock,
            context.wrap_socket(sock, server_hostname=member.host) as secured,
        ):
            secured.sendall(said)
            answers = b""
            with contextlib.suppress(OSError):
                while data := secured.recv(2**16):
                    answers += data
        assert b"the caller has another secret" in answers


# Who answers without TLS -----------------------------------------------------------------------------------------


class Listening:
    """Listens, may answer to the first message, and keeps what it is sent."""

    def __init__(self, host: str = "127.0.0.1", answer: bytes = b"") -> None:
        self._listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.accepted = 0
        self.received = bytearray()
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.accepted += 1
                with sock, contextlib.suppress(OSError):
                    sock.settimeout(PATIENCE_SECONDS)
                    answer = self._answer
                    while data := sock.recv(2**16):
                        self.received += data
                        sock.sendall(answer)
                        answer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_SECONDS)
        self._listener.close()


GREETED = framing.pack_message(framing.CONNECT_OK, 0, messages.pack_plain({"handshake": {}, "meta": {}}))


@pytest.mark.parametrize(
    "answer", [GREETED, b"\x15\x03\x03\x00\x02\x02\x46"], ids=["plainly", "with an alert"]
)
def test_a_client_with_tls_never_goes_on_without(certificates: Certificates, answer: bytes) -> None:
    with Listening(answer=answer) as listening:
        nameserver = "{}:{}".format(*listening.address)
        with PyroCacheClient(nameserver, tls=certificates.client(), timeout=2.0) as cache:
            for _ in range(3):
                with pytest.raises((AuthenticationError, NameServerUnavailable)) as caught:
                    cache.set("the key of it", MARKER)
                assert "no-tls" in str(caught.value)
        assert listening.accepted >= 1
        assert listening.received.startswith(b"\x16")
        for word in (b"PYRO", b"nonce", b"the key of it", MARKER):
            assert word not in listening.received


def test_what_a_client_without_tls_says_in_the_clear(certificates: Certificates) -> None:
    """Its greeting, and no more: what it looks for, its session, and random bytes. Neither a proof nor a request."""
    with tls_cluster(certificates, nodes=0) as cluster, Wire() as wire:
        host, _, port = cluster.nameserver.rpartition(":")
        wire.target = (host, int(port))
        with (
            PyroCacheClient("{}:{}".format(*wire.address), tls=False, timeout=2.0) as cache,
            pytest.raises(AuthenticationError, match="no-tls: this server speaks TLS only"),
        ):
            cache.set("the key of it", MARKER)
        said = greetings(wire.seen[0])
        assert said
        for message in said:
            assert message["object"] == "Pyro.NameServer"
            assert set(message["handshake"]) == {"node", "protocol", "nonce", "dialled"}
        assert not shows(wire.everything, find_secret().keys)
        for word in (MARKER, b"the key of it", b"proof"):
            assert word not in wire.everything


def greetings(data: bytes | bytearray) -> list[Any]:
    """Return the handshakes in a stream, which must have nothing else."""
    decoder = frame_decoder()
    decoder.feed(bytes(data))
    found = []
    while (frame := decoder.next_frame()) is not None:
        assert frame.header.type == framing.CONNECT
        found.append(messages.unpack_plain(frame.body))
    assert decoder.between_frames
    return found


# Without TLS, only this host -------------------------------------------------------------------------------------


def addresses_of_this_host() -> list[str]:
    """Return an address of each family, which is not loopback."""
    found = []
    for family, far in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((far, 9))  # sends nothing
            address = sock.getsockname()[0]
            with socket.create_server((address, 0), family=family):
                found.append(address)
    return found


ADDRESSES = [
    pytest.param(address, marks=[pytest.mark.full] if number else [])
    for number, address in enumerate(addresses_of_this_host())
]
beyond = pytest.mark.skipif(not ADDRESSES, reason="this host has no address but loopback")


@beyond
@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_said_in_the_clear_to_a_name_server_beyond_this_host(address: str) -> None:
    with Listening(address, answer=GREETED) as listening:
        host, port = listening.address
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        with PyroCacheClient(where, timeout=2.0) as cache, pytest.raises(AuthenticationError) as caught:
            cache.get("key")
        assert "no-tls: the connection would not be encrypted" in str(caught.value)
        assert not listening.received


@beyond
@pytest.mark.parametrize("how", [pytest.param("entry", marks=pytest.mark.full), "view"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_forged_entry_does_not_make_a_client_speak_in_the_clear(address: str, how: str) -> None:
    """Also if the name server says that a node of this host is elsewhere."""
    with running_nameserver() as nameserver, Listening(address, answer=GREETED) as listening:
        host, port = listening.address
        member = Member("cache.node.1", host, port, incarnation=os.urandom(8).hex(), cluster="forged")
        directory = NameServerDirectory(nameserver, caller=knowing(find_secret()))
        assert directory.create_cluster("forged", 1)
        if how == "view":
            assert directory.store_view(ClusterView((member,), 1, "forged"))
        assert directory.register(member)
        for transport in ("auto", "tcp"):
            with PyroCacheClient(nameserver, timeout=2.0, transport=transport) as cache:
                calls: list[Callable[[], Any]] = [
                    lambda: cache.get("key"),
                    lambda: cache.set("key", MARKER),
                    lambda: cache.get_many(["a", "b"]),
                    lambda: cache.clear(),
                    lambda: cache.lock("key").acquire(timeout=0),
                ]
                for call in calls:
                    with pytest.raises(PyroCacheError) as caught:
                        call()
                    assert "no-tls: the connection would not be encrypted" in str(caught.value)
        assert wait_until(lambda: listening.accepted > 0), "it has connected"
        assert not listening.received
        allowed = PyroCacheClient(nameserver, timeout=2.0, transport="tcp", tls=False)
        with allowed as cache, pytest.raises(PyroCacheError):
            cache.get("key")
        assert wait_until(lambda: b"PYRO" in listening.received), "where that is allowed, it speaks"
        assert b"proof" not in listening.received


@beyond
@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_of_this_host_that_others_reach_is_no_loopback(address: str) -> None:
    """The connection stays on this host, but the address may be that of another one tomorrow."""
    with Listening(address) as listening:
        member = Member("cache.node.1", *listening.address)
        connection = Connection(member, "tcp", knowing(find_secret()))
        try:
            with pytest.raises(HandshakeRefused) as caught:
                connection.finish_opening(Deadline(PATIENCE_SECONDS))
        finally:
            connection.close()
        assert caught.value.code == "no-tls"
        assert "tls=False or --no-tls" in caught.value.advice
        assert not listening.received
