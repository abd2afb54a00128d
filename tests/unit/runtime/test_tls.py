"""TLS over socket pairs: every byte arrives, no end or error goes unnoticed, and each refusal has its sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyrocache.config import TLS
from pyrocache.errors import ConfigurationError
from pyrocache.runtime.channel import TlsRefused
from pyrocache.runtime.tls import ServerCertificate, TlsChannel, check_own_certificate, client_channel
from pyrocache.server.securing import BUSY_ALERT, NO_TLS_ALERT
from tests.support.certificates import Certificates, new_certificates
from tests.support.waiting import PATIENCE_SECONDS
from tests.support.wire import handshake as plain_handshake

KIB, MIB = 2**10, 2**20
RECORD = 16 * KIB
CAUSE = TlsRefused.Cause
SIZES = st.one_of(
    st.integers(1, 300),
    st.sampled_from([RECORD - 1, RECORD, RECORD + 1, 3 * RECORD]),
    st.integers(1, 600_000),
)


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The certificates of another authority."""
    return new_certificates(tmp_path_factory.mktemp("strangers"))


@contextmanager
def socket_pair(buffer: int = 0) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield two connected sockets that do not block, with buffers of about so many bytes; 0: the usual ones."""
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
        if buffer:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    with ends[0], ends[1]:
        yield ends


def shake_hands(*channels: TlsChannel) -> None:
    """Complete the handshake of both ends, each only when its descriptor is ready."""
    waiting = list(channels)
    for _ in range(200):
        waiting = [channel for channel in waiting if not channel.handshake()]
        if not waiting:
            return
        assert any(is_ready(channel) for channel in waiting), "both ends wait for the other"
    raise AssertionError("the handshake does not end")


def is_ready(channel: TlsChannel) -> bool:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLOUT if channel.unsent else select.POLLIN)
    return bool(poll.poll(0))


@dataclass
class Pair:
    """Both ends of TLS after the handshake."""

    server: TlsChannel
    client: TlsChannel
    server_sock: socket.socket
    client_sock: socket.socket

    def ends(self, from_client: bool) -> tuple[TlsChannel, TlsChannel]:
        """Return the end that sends, and the one that receives."""
        return (self.client, self.server) if from_client else (self.server, self.client)


@contextmanager
def tls_pair(certificates: Certificates, buffer: int = 0) -> Iterator[Pair]:
    with socket_pair(buffer) as (ours, theirs):
        server = ServerCertificate(certificates.server()).secure(ours)
        client = client_channel(theirs, certificates.client(), "localhost")
        shake_hands(server, client)
        yield Pair(server, client, ours, theirs)


class Sender:
    """Sends bytes in pieces, as the two users of a channel do: what is not reported as sent is offered again."""

    def __init__(self, channel: TlsChannel, data: bytes, pieces: list[int]) -> None:
        self._channel = channel
        self._data = data
        self._pieces = pieces
        self._sent = 0
        self._turn = 0

    def step(self) -> bool:
        """Send once. Return whether all is sent."""
        if self._sent < len(self._data):
            buffers, at = [], self._sent
            for size in self._pieces[self._turn % len(self._pieces) :] or self._pieces:
                buffers.append(memoryview(self._data)[at : at + size])
                at += size
            try:
                alone = len(buffers) == 1
                count = self._channel.send(bytes(buffers[0])) if alone else self._channel.sendmsg(buffers)
            except BlockingIOError:
                return False
            assert 0 < count <= sum(map(len, buffers))
            self._sent += count
            self._turn += 1
        return self._sent == len(self._data)


class Reader:
    """Receives only when the descriptor is readable, or there is a `rest`, as the event loop does."""

    def __init__(self, channel: TlsChannel, sizes: list[int]) -> None:
        self.got = bytearray()
        self._channel = channel
        self._sizes = sizes
        self._turn = 0
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)

    def step(self) -> bool:
        """Receive once, if there is an event. Return whether there was one."""
        if not self._poll.poll(0):
            return False
        self._receive()
        while self._channel.rest:
            self._receive()
        return True

    def _receive(self) -> None:
        self._turn += 1
        size = self._sizes[self._turn % len(self._sizes)]
        try:
            if size < 0:
                buffer = memoryview(bytearray(-size))
                count = self._channel.recv_into(buffer)
                assert count <= -size
                self.got += buffer[:count]
            else:
                self.got += self._channel.recv(size)
        except BlockingIOError:
            pass


def transfer(senders: list[Sender], readers: list[Reader]) -> None:
    """Let all of them proceed until everything is sent, and no descriptor is readable any more."""
    for _ in range(100_000):
        sent = [sender.step() for sender in senders]
        read = [reader.step() for reader in readers]
        if all(sent) and not any(read):
            return
    raise AssertionError("the transfer does not end")


# Bytes -------------------------------------------------------------------------------------------------------


@given(
    st.lists(SIZES, min_size=1, max_size=4),
    st.lists(SIZES, min_size=1, max_size=4),
    st.lists(SIZES.flatmap(lambda size: st.sampled_from([size, -size])), min_size=1, max_size=4),
    st.sampled_from([0, 5_000, 40_000]),
    st.integers(1, 900_000),
)
@example([1], [1], [1], 0, 300)
@example([600_000], [RECORD], [-1_000_000], 5_000, 900_000)
@example([100, 100, RECORD, 100], [RECORD + 1], [-(RECORD - 1)], 40_000, 500_000)
def test_all_bytes_arrive_in_order_and_no_event_is_missed(
    certificates: Certificates, there: list[int], back: list[int], reads: list[int], buffer: int, total: int
) -> None:
    """Both directions at once, with small buffers of the sockets, in any pieces."""
    total = min(total, 4_000 * min(*there, *back, *map(abs, reads)))  # else it takes too long
    data = os.urandom(total)
    with tls_pair(certificates, buffer) as pair:
        at_server, at_client = Reader(pair.server, reads), Reader(pair.client, reads[::-1])
        senders = [Sender(pair.client, data, there), Sender(pair.server, data[::-1], back)]
        transfer(senders, [at_server, at_client])
        assert bytes(at_server.got) == data
        assert bytes(at_client.got) == data[::-1]


@pytest.mark.parametrize("size", [1, RECORD, RECORD + 1, 200 * KIB])
def test_what_was_not_reported_as_sent_is_sent_once(certificates: Certificates, size: int) -> None:
    """It is offered again with more bytes after it, as the server's buffers grow meanwhile."""
    with tls_pair(certificates, 5_000) as pair:
        filler = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filler += pair.server.send(b"f" * size)
        pending = b"f" * size
        offered = bytearray(pending)
        reader = Reader(pair.client, [64 * KIB])
        while True:
            reader.step()
            offered += b"g"
            try:
                count = pair.server.sendmsg([memoryview(offered)[:1], memoryview(offered)[1:]])
            except BlockingIOError:
                continue
            break
        assert count == size, "what was added later is not sent yet"
        while reader.step():
            pass
        assert reader.got == b"f" * (filler + size)


def test_nothing_to_send_is_sent_at_once(certificates: Certificates) -> None:
    with tls_pair(certificates) as pair:
        assert pair.server.sendmsg([]) == pair.server.send(b"") == 0
        with pytest.raises(BlockingIOError):
            pair.client.recv(10)


def test_a_chunk_is_bounded(certificates: Certificates) -> None:
    """So that a large value is not encrypted as a whole before its first byte is sent."""
    with tls_pair(certificates, 5_000) as pair:
        with pytest.raises(BlockingIOError):
            pair.server.sendmsg([bytes(16 * MIB)])
        assert len(pair.server.unsent) < MIB


def test_a_message_that_comes_with_the_end_of_the_handshake_is_received(certificates: Certificates) -> None:
    with socket_pair() as (ours, theirs):
        server = ServerCertificate(certificates.server()).secure(ours)
        client = client_channel(theirs, certificates.client(), "localhost")
        assert not client.handshake()
        assert not server.handshake()
        held = Held(theirs)
        client._sock = held  # sends both at once
        assert client.handshake()
        client.send(b"first")
        client.send(b"second")
        theirs.send(b"".join(held.sent))
        assert server.handshake()
        assert server.recv(100) == b"firstsecond"


class Held:
    """A socket whose sent bytes are kept."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.sent: list[bytes] = []

    def send(self, data: Any) -> int:
        self.sent.append(bytes(data))
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_both_ends_know_the_hash_of_the_servers_certificate(certificates: Certificates) -> None:
    with tls_pair(certificates) as pair:
        assert pair.server.certificate == pair.client.certificate
        assert len(pair.server.certificate) == 32


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_peer_may_ask_for_new_keys(certificates: Certificates) -> None:
    """Python cannot ask for them, but the command of OpenSSL does for a line with ``K``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_SECONDS)
        host, port = listener.getsockname()
        command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-brief"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdin
            assert process.stdout
            sock, _ = listener.accept()
            with sock:
                sock.setblocking(False)
                channel = ServerCertificate(certificates.server()).secure(sock)
                while not channel.handshake():
                    wait_for_data(channel)
                for line in (b"one\n", b"K\n", b"two\n", b"K\n", b"three\n"):
                    process.stdin.write(line)
                    process.stdin.flush()
                    if line == b"K\n":
                        wait_for_data(channel)
                        with pytest.raises(BlockingIOError):
                            channel.recv(100)
                    else:
                        assert receive_all(channel, line)
                        assert channel.send(b"back: " + line) == len(b"back: " + line)
                        assert process.stdout.readline() == b"back: " + line
            process.kill()


def wait_for_data(channel: TlsChannel) -> None:
    ready, _, _ = select.select([channel], [], [], PATIENCE_SECONDS)
    assert ready


def receive_all(channel: TlsChannel, data: bytes) -> bool:
    got = b""
    while len(got) < len(data):
        wait_for_data(channel)
        try:
            got += channel.recv(100)
        except BlockingIOError:
            pass
    return got == data


# Ends and damage ---------------------------------------------------------------------------------------------


def sent_by(channel: TlsChannel, sock: socket.socket, *messages: bytes) -> list[bytes]:
    """Return what crosses the wire for each of these messages, without sending it."""
    held, before = Held(sock), channel._sock
    channel._sock = held
    for message in messages:
        channel.send(message)
    channel._sock = before
    return held.sent


def close_notify(channel: TlsChannel) -> bytes:
    with pytest.raises(ssl.SSLWantReadError):
        channel._tls.unwrap()
    return channel._outgoing.read()


def receive(channel: TlsChannel, into: bool) -> bytes:
    if not into:
        return channel.recv(RECORD)
    buffer = memoryview(bytearray(RECORD))
    return bytes(buffer[: channel.recv_into(buffer)])


@contextmanager
def breaks() -> Iterator[None]:
    """Expect an error that ends a connection."""
    with pytest.raises(OSError, match=r".") as caught:
        yield
    assert not isinstance(caught.value, BlockingIOError)


both_ways = pytest.mark.parametrize("into", [False, True], ids=["recv", "recv_into"])


@both_ways
@pytest.mark.parametrize("notified", [False, True], ids=["without close_notify", "with close_notify"])
def test_an_end_is_received_after_what_was_sent_before_it(
    certificates: Certificates, into: bool, notified: bool
) -> None:
    with tls_pair(certificates) as pair:
        pair.client.send(b"last words")
        if notified:
            pair.client_sock.send(close_notify(pair.client))
        pair.client.close()
        assert receive(pair.server, into) == b"last words"
        assert receive(pair.server, into) == receive(pair.server, into) == b""


@both_ways
def test_what_follows_a_close_notify_is_ignored(certificates: Certificates, into: bool) -> None:
    """It must not be looked for again and again: no event comes, and nothing is decrypted any more."""
    with tls_pair(certificates) as pair:
        (message,) = sent_by(pair.client, pair.client_sock, b"last words")
        pair.client_sock.send(message + close_notify(pair.client) + b"\x17\x03\x03\x00\x20" + bytes(40))
        assert receive(pair.server, into) == b"last words"
        assert receive(pair.server, into) == receive(pair.server, into) == b""


@both_ways
def test_an_end_within_a_record_is_an_end(certificates: Certificates, into: bool) -> None:
    with tls_pair(certificates) as pair:
        first, second = sent_by(pair.client, pair.client_sock, b"whole", b"cut")
        pair.client_sock.send(first + second[:-1])
        assert receive(pair.server, into) == b"whole"
        with pytest.raises(BlockingIOError):
            receive(pair.server, into)
        pair.client_sock.close()
        assert receive(pair.server, into) == b""


@both_ways
@pytest.mark.parametrize("place", [0, 3, 5, -1], ids=["type", "length", "content", "tag"])
@pytest.mark.parametrize("before", [b"", b"good"], ids=["alone", "after another record"])
def test_a_changed_bit_breaks_the_connection(
    certificates: Certificates, into: bool, place: int, before: bytes
) -> None:
    """At once, although no further event comes: an error that is found again later would never be looked for."""
    with tls_pair(certificates) as pair:
        *good, changed = sent_by(pair.client, pair.client_sock, *([before] if before else []), b"changed")
        damaged = bytearray(changed)
        damaged[place] ^= 0x80
        pair.client_sock.send(b"".join(good) + damaged)
        with breaks():
            receive(pair.server, into)


def test_the_peer_is_told_of_a_changed_bit(certificates: Certificates) -> None:
    with tls_pair(certificates) as pair:
        damaged = bytearray(sent_by(pair.client, pair.client_sock, b"changed")[0])
        damaged[-1] ^= 1
        pair.client_sock.send(damaged)
        with breaks():
            pair.server.recv(100)
        with pytest.raises(OSError, match=r"(?i)bad.record.mac"):
            pair.client.recv(100)


@both_ways
def test_a_record_that_is_repeated_or_left_out_breaks_the_connection(
    certificates: Certificates, into: bool
) -> None:
    for order in ([0, 0], [1], [1, 0]):
        with tls_pair(certificates) as pair:
            records = sent_by(pair.client, pair.client_sock, b"one", b"two")
            with breaks():
                for number in order:
                    pair.client_sock.send(records[number])
                    receive(pair.server, into)


def test_a_connection_that_is_reset_says_so(certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as theirs:
        theirs.connect(listener.getsockname())
        ours, _ = listener.accept()
        with ours:
            ours.setblocking(False)
            theirs.setblocking(False)
            server = ServerCertificate(certificates.server()).secure(ours)
            client = client_channel(theirs, certificates.client(), "localhost")
            shake_hands(client, server)
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            theirs.close()
            with pytest.raises(ConnectionResetError):
                server.recv(100)


# Handshakes --------------------------------------------------------------------------------------------------


class Scripted:
    """An end that sends some bytes, and then reads and discards."""

    def __init__(self, sock: socket.socket, says: bytes) -> None:
        self._sock = sock
        self._says = says

    def handshake(self) -> bool:
        said, self._says = self._says, b""
        self._sock.send(said)
        return False

    def recv(self, size: int) -> bytes:
        return self._sock.recv(size)

    def close(self) -> None:
        self._sock.close()


def outcomes(server: Any, client: Any) -> list[str | Exception]:
    """Proceed with both ends until both have failed or are done. Return what became of them."""
    ends, outcome = [server, client], ["waits", "waits"]
    result: list[Any] = list(outcome)
    for _ in range(10):
        for number, end in enumerate(ends):
            try:
                if result[number] == "waits":
                    result[number] = "done" if end.handshake() else "waits"
                elif result[number] == "done":
                    end.recv(RECORD)
            except BlockingIOError:
                pass
            except OSError as error:
                result[number] = error
    return result


def refusal(outcome: Any, cause: TlsRefused.Cause) -> str:
    assert isinstance(outcome, TlsRefused), outcome
    assert outcome.cause is cause
    assert "_ssl.c" not in str(outcome)
    return str(outcome)


@contextmanager
def handshake_of(server: TLS, client: TLS, host: str = "localhost") -> Iterator[list[str | Exception]]:
    with socket_pair() as (ours, theirs):
        yield outcomes(ServerCertificate(server).secure(ours), client_channel(theirs, client, host))


def both_refuse(server: TLS, client: TLS, host: str = "localhost") -> tuple[str, str]:
    """Return the sentences of the two ends."""
    with handshake_of(server, client, host) as (at_server, at_client):
        return refusal(at_server, CAUSE.CERTIFICATE), refusal(at_client, CAUSE.CERTIFICATE)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "a.example", "::1%lo"])
def test_a_certificate_is_for_its_names_and_addresses(certificates: Certificates, host: str) -> None:
    with handshake_of(certificates.server("a.example"), certificates.client(), host) as ends:
        assert ends == ["done", "done"]


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("b.example", "its certificate is not accepted: Hostname mismatch, certificate is not valid for 'b.example'"),
        ("192.0.2.1", "its certificate is not accepted: IP address mismatch, certificate is not valid for '192.0.2.1'"),
        ("127.1", "its certificate is not accepted: Hostname mismatch, certificate is not valid for '127.1'"),
    ],
)  # fmt: skip
def test_a_certificate_for_another_host_is_refused(certificates: Certificates, host: str, text: str) -> None:
    at_server, at_client = both_refuse(certificates.server("a.example"), certificates.client(), host)
    assert at_client == text
    assert at_server == "it does not accept the certificate of this end: bad certificate"


def test_a_certificate_of_another_authority_is_refused(
    certificates: Certificates, strangers: Certificates
) -> None:
    at_server, at_client = both_refuse(certificates.server(), strangers.client())
    assert at_client == "its certificate is not accepted: self-signed certificate in certificate chain"
    assert at_server == "it does not accept the certificate of this end: unknown ca"


def test_without_a_ca_only_those_of_the_system_are_accepted(certificates: Certificates) -> None:
    at_server, _ = both_refuse(certificates.server(), TLS())
    assert at_server == "it does not accept the certificate of this end: unknown ca"


def test_an_expired_certificate_is_refused(certificates: Certificates) -> None:
    at_server, at_client = both_refuse(certificates.expired("localhost"), certificates.client())
    assert at_client == "its certificate is not accepted: certificate has expired"
    assert at_server == "it does not accept the certificate of this end: certificate expired"


def test_the_certificate_of_a_client_is_not_accepted_for_a_server(certificates: Certificates) -> None:
    with handshake_of(certificates.client("someone"), certificates.client()) as (_, at_client):
        assert "purpose" in refusal(at_client, CAUSE.CERTIFICATE)


def test_a_client_must_have_a_certificate_where_that_is_demanded(
    certificates: Certificates, strangers: Certificates
) -> None:
    server = certificates.server("mutual.example", require_client_cert=True)
    for client in (certificates.client("known"), certificates.server()):
        with handshake_of(server, client) as ends:
            assert ends == ["done", "done"]
    at_server, at_client = both_refuse(server, certificates.client())
    assert at_server == "it has not shown a certificate"
    assert at_client == "it demands a certificate of this end"
    foreign = replace(strangers.client("foreign"), ca=certificates.client().ca)
    at_server, at_client = both_refuse(server, foreign)
    assert at_server == "its certificate is not accepted: unable to get local issuer certificate"
    assert at_client == "it does not accept the certificate of this end: unknown ca"


def test_a_peer_that_speaks_tls_1_2_is_refused(certificates: Certificates) -> None:
    text = "it does not speak TLS 1.3"
    tls = certificates.server()
    old_client = ssl.create_default_context(cafile=tls.ca)
    old_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old_server.load_cert_chain(tls.cert or "", tls.key)
    for context in (old_client, old_server):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket_pair() as (ours, theirs):
        ends = outcomes(ServerCertificate(tls).secure(ours), TlsChannel(theirs, old_client, "localhost"))
        assert [refusal(end, CAUSE.PROTOCOL) for end in ends] == [text, text]
    with socket_pair() as (ours, theirs):
        ends = outcomes(
            TlsChannel(ours, old_server), client_channel(theirs, certificates.client(), "localhost")
        )
        assert [refusal(end, CAUSE.PROTOCOL) for end in ends] == [text, text]


NOT_TLS = {
    "a message of Pyro5": plain_handshake(),
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": bytes(100),
    "a record of no known version": b"\x16" + b"\xaa" * 100,
}
BROKEN_TLS = {
    "a record that is too long": b"\x16\x03\x03\xff\xff" + bytes(70_000),
    "a cut hello": b"\x16\x03\x01\x00\x08\x01\x00\x00\x04\x03\x03\x00\x00",
    "data before the handshake": b"\x17\x03\x03\x00\x02ab",
}


@pytest.mark.parametrize("says", NOT_TLS.values(), ids=NOT_TLS)
def test_a_peer_without_tls_is_named(certificates: Certificates, says: bytes) -> None:
    for at in at_both_ends(certificates, says):
        assert refusal(at, CAUSE.PROTOCOL) == "it does not speak TLS 1.3"


@pytest.mark.parametrize("says", BROKEN_TLS.values(), ids=BROKEN_TLS)
def test_broken_tls_is_refused_without_a_line_of_source_code(certificates: Certificates, says: bytes) -> None:
    for at in at_both_ends(certificates, says):
        assert refusal(at, CAUSE.PROTOCOL).startswith("it breaks the rules of TLS: ")


def at_both_ends(certificates: Certificates, says: bytes) -> Iterator[str | Exception]:
    """Yield what a server, and then a client, makes of a peer that says this."""
    with socket_pair(200_000) as (ours, theirs):
        server = ServerCertificate(certificates.server()).secure(ours)
        yield outcomes(server, Scripted(theirs, says))[0]
    with socket_pair(200_000) as (ours, theirs):
        client = client_channel(theirs, certificates.client(), "localhost")
        yield outcomes(Scripted(ours, says), client)[1]


def test_what_our_servers_answer_before_tls_is_understood(certificates: Certificates) -> None:
    for says, cause, text in (
        (NO_TLS_ALERT, CAUSE.PROTOCOL, "it does not speak TLS 1.3"),
        (BUSY_ALERT, CAUSE.BUSY, "it has as many connections as it takes"),
    ):
        with socket_pair() as (ours, theirs):
            client = client_channel(theirs, certificates.client(), "localhost")
            assert refusal(outcomes(Scripted(ours, says), client)[1], cause) == text


@pytest.mark.parametrize("says", [b"", BUSY_ALERT], ids=["nothing", "why"])
def test_a_server_may_be_gone_before_the_handshake_begins(certificates: Certificates, says: bytes) -> None:
    """What it has said before can still be received."""
    with socket_pair() as (ours, theirs):
        ours.send(says)
        ours.close()
        with pytest.raises(ConnectionError) as caught:
            client_channel(theirs, certificates.client(), "localhost").handshake()
    if says:
        refusal(caught.value, CAUSE.BUSY)
    else:
        assert str(caught.value) == "the connection was closed during the TLS handshake"


@pytest.mark.parametrize("pieces", [1, 100])
def test_a_handshake_proceeds_with_any_pieces(certificates: Certificates, pieces: int) -> None:
    with socket_pair() as (ours, far), socket_pair() as (near, theirs):
        server = ServerCertificate(certificates.server()).secure(ours)
        client = client_channel(theirs, certificates.client(), "localhost")
        done = {server: False, client: False}
        for _ in range(20_000):
            for channel in done:
                done[channel] = done[channel] or channel.handshake()
            for source, target in ((far, near), (near, far)):
                try:
                    target.send(source.recv(pieces))
                except BlockingIOError:
                    pass
            if all(done.values()):
                break
        assert all(done.values())
        assert server.certificate == client.certificate


# Files -------------------------------------------------------------------------------------------------------


@dataclass
class Files:
    """A certificate and its key, which a test may replace."""

    directory: Path
    tls: TLS

    def put(self, field: str, content: bytes) -> None:
        (self.directory / f"{field}.pem").write_bytes(content)


@pytest.fixture
def files(certificates: Certificates, tmp_path: Path) -> Files:
    good = certificates.server()
    paths = {}
    for field in ("ca", "cert", "key"):
        path = tmp_path / f"{field}.pem"
        path.write_bytes(Path(getattr(good, field)).read_bytes())
        paths[field] = str(path)
    return Files(tmp_path, TLS(**paths, require_client_cert=True))


def encrypted(key: bytes, traditional: bool) -> bytes:
    from cryptography.hazmat.primitives import serialization as forms

    private = forms.load_pem_private_key(key, None)
    form = forms.PrivateFormat.TraditionalOpenSSL if traditional else forms.PrivateFormat.PKCS8
    return private.private_bytes(forms.Encoding.PEM, form, forms.BestAvailableEncryption(b"password"))


def remove(files: Files, field: str) -> None:
    (files.directory / f"{field}.pem").unlink()


def make_directory(files: Files, field: str) -> None:
    remove(files, field)
    (files.directory / f"{field}.pem").mkdir()


MISPLACED = "one of them does not hold what it should, in PEM"
LOCKED = "the private key is encrypted, and nobody can be asked for its password"
CERT_AND_KEY = "{directory}/cert.pem with {directory}/key.pem"
BAD_FILES: dict[str, tuple[Callable[[Files], Any], str, str]] = {
    "no certificate": (lambda files: remove(files, "cert"), CERT_AND_KEY, "no such file or directory"),
    "no key": (lambda files: remove(files, "key"), CERT_AND_KEY, "no such file or directory"),
    "no ca": (lambda files: remove(files, "ca"), "{directory}/ca.pem", "no such file or directory"),
    "a directory": (lambda files: make_directory(files, "cert"), CERT_AND_KEY, "is a directory"),
    "a directory as ca": (lambda files: make_directory(files, "ca"), "{directory}/ca.pem", "is a directory"),
    "an empty certificate": (lambda files: files.put("cert", b""), CERT_AND_KEY, MISPLACED),
    "an empty key": (lambda files: files.put("key", b""), CERT_AND_KEY, MISPLACED),
    "an empty ca": (
        lambda files: files.put("ca", b""), "{directory}/ca.pem", "no certificate or crl found",
    ),
    "half a certificate": (
        lambda files: files.put("cert", Path(files.tls.cert or "").read_bytes()[:300]), CERT_AND_KEY, MISPLACED,
    ),
    "the key in both": (
        lambda files: files.put("cert", Path(files.tls.key or "").read_bytes()), CERT_AND_KEY, MISPLACED,
    ),
    "bytes": (lambda files: files.put("cert", os.urandom(999)), CERT_AND_KEY, MISPLACED),
    "an encrypted key": (
        lambda files: files.put("key", encrypted(Path(files.tls.key or "").read_bytes(), False)), CERT_AND_KEY, LOCKED,
    ),
    "a key that is encrypted in the old way": (
        lambda files: files.put("key", encrypted(Path(files.tls.key or "").read_bytes(), True)), CERT_AND_KEY, LOCKED,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "path", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named_and_the_old_certificate_stays(
    files: Files, spoil: Callable[[Files], Any], path: str, reason: str
) -> None:
    certificate = ServerCertificate(files.tls)
    before = certificate._current
    spoil(files)
    with pytest.raises(ConfigurationError) as caught:
        certificate.load()
    assert str(caught.value) == f"Cannot use {path.format(directory=files.directory)} for TLS: {reason}."
    assert certificate._current == before
    with pytest.raises(ConfigurationError):
        ServerCertificate(files.tls)
    with socket_pair() as (ours, _):
        assert certificate.secure(ours).certificate == before[1]


def test_a_key_of_another_certificate_is_named(files: Files, strangers: Certificates) -> None:
    files.put("key", Path(strangers.server().key or "").read_bytes())
    with pytest.raises(ConfigurationError, match="key values mismatch"):
        ServerCertificate(files.tls)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_of_somebody_else_is_named(files: Files) -> None:
    Path(files.tls.key or "").chmod(0)
    with pytest.raises(ConfigurationError, match=r"permission denied"):
        ServerCertificate(files.tls)


def test_text_around_the_certificate_may_be_in_any_encoding(files: Files) -> None:
    """OpenSSL writes the names of people before it."""
    certificate = Path(files.tls.cert or "").read_bytes()
    expected = ServerCertificate(files.tls)._current[1]
    for word in (b"BEGIN ", b"END "):
        certificate = certificate.replace(word, word + b"X509 ")
    files.put("cert", "Subject: CN=K\xf6ln\n".encode("latin-1") + certificate)
    assert ServerCertificate(files.tls)._current[1] == expected


def test_the_hash_is_that_of_the_first_certificate(files: Files) -> None:
    """The chain follows it in the file."""
    expected = ServerCertificate(files.tls)._current[1]
    files.put("cert", Path(files.tls.cert or "").read_bytes() + Path(files.tls.ca or "").read_bytes())
    certificate = ServerCertificate(replace(files.tls, require_client_cert=False))
    with socket_pair() as (ours, theirs):
        server = certificate.secure(ours)
        client = client_channel(theirs, TLS(ca=files.tls.ca), "localhost")
        shake_hands(server, client)
        assert server.certificate == client.certificate == expected


def test_a_new_certificate_is_for_new_channels(files: Files, certificates: Certificates) -> None:
    certificate = ServerCertificate(replace(files.tls, require_client_cert=False))
    with socket_pair() as (ours, theirs), socket_pair() as (ours_later, theirs_later):
        old = certificate.secure(ours)
        other = certificates.server("other.example")
        for field in ("cert", "key"):
            files.put(field, Path(getattr(other, field)).read_bytes())
        certificate.load()
        new = certificate.secure(ours_later)
        old_client = client_channel(theirs, certificates.client(), "localhost")
        new_client = client_channel(theirs_later, certificates.client(), "other.example")
        shake_hands(old, old_client)
        shake_hands(new, new_client)
        assert old_client.certificate == old.certificate != new.certificate == new_client.certificate


def test_a_client_takes_a_changed_file_for_its_next_connection(
    certificates: Certificates, strangers: Certificates, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Path(strangers.client().ca or "").read_bytes())
    with handshake_of(certificates.server(), TLS(ca=str(ca))) as (_, at_client):
        refusal(at_client, CAUSE.CERTIFICATE)
    ca.write_bytes(Path(certificates.client().ca or "").read_bytes())
    os.utime(ca, ns=(1, 1))
    with handshake_of(certificates.server(), TLS(ca=str(ca))) as ends:
        assert ends == ["done", "done"]
    ca.unlink()
    with socket_pair() as (_, theirs), pytest.raises(ConfigurationError, match="no such file"):
        client_channel(theirs, TLS(ca=str(ca)), "localhost")


def test_a_channel_has_the_methods_of_a_socket(certificates: Certificates) -> None:
    with tls_pair(certificates) as pair:
        sock = pair.server_sock
        assert pair.server.family == sock.family
        assert pair.server.getsockname() == sock.getsockname()
        assert pair.server.getpeername() == sock.getpeername()
        assert pair.server.fileno() == sock.fileno()
        pair.server.shutdown(socket.SHUT_WR)
        assert pair.client.recv(10) == b""
        pair.server.close()
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            sock.getsockname()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "192.0.2.1", "fe80::1%eth0"])
def test_a_server_accepts_its_own_certificate(certificates: Certificates, host: str) -> None:
    check_own_certificate(certificates.server("192.0.2.1,fe80::1"), host)


def test_a_certificate_that_others_would_not_accept_is_found(
    certificates: Certificates, strangers: Certificates
) -> None:
    server = certificates.server()
    for tls, host, reason in (
        (server, "192.0.2.7", "not valid for '192.0.2.7'"),
        (replace(server, ca=strangers.client().ca), "localhost", "self-signed|issuer"),
        (certificates.client("a-client"), "localhost", "purpose"),
        (certificates.expired("localhost"), "localhost", "expired"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            check_own_certificate(tls, host)
