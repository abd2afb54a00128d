"""The client's connections against scripted peers on real sockets: every reply in any pieces, and every failure.

Each test runs over TCP and, where that could matter, over a Unix socket.
"""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest

from pyrocache.client.routing.router import Router
from pyrocache.cluster.routing import Member
from pyrocache.errors import ClientClosed, NameServerUnavailable, Overloaded, PyroCacheError, ValueTooLarge
from pyrocache.net.calls import Connections, Request
from pyrocache.net.channel import Dialing
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.protocol import commands, framing, messages, refusals
from pyrocache.protocol.framing import FrameDecoder
from pyrocache.protocol.messages import Pieces
from pyrocache.protocol.refusals import Refusal

MIB = 2**20
PATIENCE_SECONDS = 15.0
"""How long a test waits for what should come at once."""


class Line:
    """A peer's end of one connection, past the handshake."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.sequence = -1
        self._decoder = FrameDecoder(lambda header: None, lambda frame_bytes: None)

    def frame(self) -> framing.Frame:
        while (frame := self._decoder.next_frame()) is None:
            data = self.sock.recv(256 * 1024)
            if not data:
                raise ConnectionResetError
            self._decoder.feed(data)
        return frame

    def request(self) -> tuple[str, list[Any]]:
        """The next call's method and arguments."""
        header, body = self.frame()
        assert header.type == framing.INVOKE
        _, method, arguments, options = messages.unpack_plain(body)
        assert options == {}
        self.sequence = header.sequence
        return method, arguments

    def send(self, *pieces: bytes) -> None:
        """Each by itself, as far as that can be arranged."""
        for piece in pieces:
            self.sock.sendall(piece)
            if len(pieces) > 1:
                time.sleep(0.0005)

    def reply(self, result: Any) -> bytes:
        return joined(messages.pack_result(self.sequence, result))

    def wait_until_closed(self) -> None:
        """Until the client has closed its end; more requests would be an error."""
        with contextlib.suppress(ConnectionError):
            assert self.sock.recv(1) == b""


Script = Callable[[Line], None]
"""Serves one connection, in a thread of its own, and leaves when it is to be closed."""


class Peer:
    """A node that is nothing but a script."""

    def __init__(self, script: Script, path: str = "", *, number: int = 1, greeting: Any = None) -> None:
        self.script = script
        self.greeting = {"max_value_bytes": 64 * MIB} if greeting is None else greeting
        self.opened = 0
        self.open = 0
        self.most_open = 0
        self.families: list[int] = []
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        tcp = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listen(tcp)
        if path:
            local = socket.socket(socket.AF_UNIX)
            local.bind(path)
            local.listen(128)
            self._listen(local)
        self.member = Member(
            f"cache.node.{number}", "127.0.0.1", tcp.getsockname()[1], incarnation="i", socket_path=path
        )

    def close(self) -> None:
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
        for sock in self._socks:
            sock.close()

    def _listen(self, listener: socket.socket) -> None:
        self._socks.append(listener)
        self._start(self._accept, listener)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._socks.append(sock)
                self.families.append(sock.family)
                self.opened += 1
                self.open += 1
                self.most_open = max(self.open, self.most_open)
                line = Line(sock, self.opened)
            self._start(self._serve, line)

    def _serve(self, line: Line) -> None:
        if line.sock.family != socket.AF_UNIX:
            line.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self.greeting is not False:
                assert line.frame().header.type == framing.CONNECT
                line.send(connect_ok(self.greeting))
            self.script(line)
        except ConnectionError:
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            with self._lock:
                self.open -= 1
            with contextlib.suppress(OSError):
                line.sock.shutdown(socket.SHUT_RDWR)


def connect_ok(greeting: Any) -> bytes:
    return framing.pack_message(
        framing.CONNECT_OK, 0, messages.pack_plain({"handshake": greeting, "meta": {}})
    )


def joined(message: bytes | list[Any]) -> bytes:
    return message if isinstance(message, bytes) else b"".join(message)


def message(
    sequence: int,
    body: bytes,
    *,
    kind: int = framing.RESULT,
    flags: int = 0,
    serializer: int = framing.MSGPACK,
    claim: int | None = None,
    magic: int = 0x4DC5,
    annotations: bytes = b"",
) -> bytes:
    length = len(body) if claim is None else claim
    header = struct.pack(
        "!4sHBBHHII16sHH",
        b"PYRO", 502, kind, serializer, flags, sequence, length, len(annotations), bytes(16), 0, magic,
    )  # fmt: skip
    return header + annotations + body


def refusal_message(sequence: int, code: str) -> bytes:
    body = refusals.pack_refusal(Refusal(code, "no"))
    return framing.pack_message(framing.RESULT, sequence, body, flags=framing.FLAG_EXCEPTION)


@pytest.fixture(params=["tcp", "unix"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory whose path is short, as those of Unix sockets must be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield directory


Start = Callable[..., Peer]


@pytest.fixture
def start(family: str, directory: str) -> Iterator[Start]:
    """Starts peers that are reached over TCP, or over both."""
    with ExitStack() as stack:
        peers: list[Peer] = []

        def start(script: Script, **options: Any) -> Peer:
            peer = Peer(script, f"{directory}/{len(peers)}" if family == "unix" else "", **options)
            peers.append(peer)
            stack.callback(peer.close)
            return peer

        yield start
        stack.close()
        for peer in peers:
            assert peer.failures == []
            expected = socket.AF_UNIX if family == "unix" else socket.AF_INET
            assert set(peer.families) <= {expected}


@pytest.fixture
def opened() -> Iterator[Callable[..., Connections]]:
    """Makes `Connections` and closes them."""
    with ExitStack() as stack:

        def open_(limit: int = 4, **options: Any) -> Connections:
            made = Connections(limit, **options)
            stack.callback(made.close)
            return made

        yield open_


Open = Callable[..., Connections]


def soon() -> Deadline:
    return Deadline(PATIENCE_SECONDS)


def unavailable(
    connections: Connections, peer: Peer, seconds: float = PATIENCE_SECONDS, **options: Any
) -> Unavailable:
    """The failure of one call, without what it refers to."""
    with pytest.raises(Unavailable) as caught:
        connections.call(peer.member, commands.GET, (0, b"key"), Deadline(seconds), **options)
    failure = caught.value
    failure.__cause__ = failure.__context__ = None
    return failure.with_traceback(None)


def echo(line: Line) -> None:
    """Answers every call with its last argument."""
    while True:
        line.send(line.reply(line.request()[1][-1]))


def within_patience(call: Callable[[], Any]) -> None:
    """Run it in a thread that must end: a deadline that does not hold fails a test, and does not stop the others."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), "it waits for ever"


class TestReplies:
    @pytest.mark.parametrize(
        "result", [b"", b"v" * 30, b"v" * 255, b"v" * 256, None, 7, [b"a", None], {"name": "n"}], ids=repr
    )
    def test_a_small_reply_may_be_cut_anywhere(self, start: Start, opened: Open, result: Any) -> None:
        size = len(joined(messages.pack_result(0, result)))
        places = range(1, size) if size < 120 else [*range(1, 50), size - 2, size - 1]

        def script(line: Line) -> None:
            for place in places:
                line.request()
                reply = line.reply(result)
                line.send(reply[:place], reply[place:])
            line.request()
            line.send(*(bytes([byte]) for byte in line.reply(result)))
            line.wait_until_closed()

        peer, connections = start(script), opened()
        for _ in range(len(places) + 1):
            answer = connections.call(peer.member, commands.GET, (0, b"key"), soon())
            assert (type(answer), answer) == (type(result), result)
        assert peer.opened == 1
        connections.close()

    @pytest.mark.parametrize("size", [65_491, 65_497, 65_536, 3 * MIB + 3])
    def test_a_large_reply_may_be_cut_anywhere(self, start: Start, opened: Open, size: int) -> None:
        value = random.Random(size).randbytes(size)
        places = [1, 39, 40, 41, 44, 45, 46, 100, 65_535, 65_536, 65_537, size // 2, size + 40, size + 44]

        def script(line: Line) -> None:
            for place in places:
                line.request()
                reply = line.reply(value)
                line.send(reply[:place], reply[place:])
            line.request()
            reply = line.reply(value)
            cuts = sorted({0, *places, len(reply)})
            line.send(*(reply[begin:end] for begin, end in pairwise(cuts)))
            line.wait_until_closed()

        peer, connections = start(script), opened()
        kept = []
        for _ in range(len(places) + 1):
            answer = connections.call(peer.member, commands.GET, (0, b"key"), soon())
            assert answer == value
            kept.append(answer)
        assert all(answer == value for answer in kept), "no reply's memory is another's"
        assert peer.opened == 1
        connections.close()

    def test_replies_of_all_sizes_follow_each_other(self, start: Start, opened: Open) -> None:
        sizes = [0, 10, 255, 256, 70_000, 1, 65_536, 65_535, 300_000, 5]
        peer, connections = start(echo), opened()
        for size in sizes * 5:
            value = bytes([size % 251]) * size
            assert connections.call(peer.member, commands.SET, (0, b"key", value), soon()) == value
        assert peer.opened == 1

    def test_a_value_in_pieces_is_sent_whole(self, start: Start, opened: Open) -> None:
        parts = [random.Random(n).randbytes(n * 1000) for n in range(1, 60)]
        peer, connections = start(echo), opened()
        for pieces in (parts, parts * 30):  # more buffers than one system call takes
            answer = connections.call(peer.member, commands.SET, (0, b"key", Pieces(pieces)), soon())
            assert answer == b"".join(pieces)

    def test_sequence_numbers_begin_anew_after_the_last(self, start: Start, opened: Open) -> None:
        def script(line: Line) -> None:
            for expected in (1, 2):
                line.request()
                assert line.sequence == expected
                line.send(line.reply(b""))
            line.request()
            assert line.sequence == 0xFFFF
            line.send(line.reply(b""))
            line.request()
            assert line.sequence == 0
            line.send(line.reply(b"last"))
            line.wait_until_closed()

        peer, connections = start(script), opened()
        connections.call(peer.member, commands.GET, (0, b"key"), soon())
        connections.call(peer.member, commands.GET, (0, b"key"), soon())
        (connection,) = connections._pools[peer.member.name].idle
        connection._protocol.sequence = 0xFFFE
        connections.call(peer.member, commands.GET, (0, b"key"), soon())
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"last"
        connections.close()

    @pytest.mark.parametrize("place", [None, 1, 39, 40, 41, 80])
    def test_a_refusal_leaves_the_connection_as_good_as_before(
        self, start: Start, opened: Open, place: int | None
    ) -> None:
        def script(line: Line) -> None:
            line.request()
            reply = refusal_message(line.sequence, "some-code")
            line.send(*[reply] if place is None else [reply[:place], reply[place:]])
            echo(line)

        peer, connections = start(script), opened()
        with pytest.raises(Refused) as caught:
            connections.call(peer.member, commands.GET, (0, b"key"), soon())
        assert caught.value.refusal == Refusal("some-code", "no")
        assert caught.value.member == peer.member
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"
        assert peer.opened == 1

    def test_annotations_and_a_correlation_id_are_skipped(self, start: Start, opened: Open) -> None:
        def script(line: Line) -> None:
            line.request()
            flags = framing.FLAG_CORRELATION_ID
            line.send(message(line.sequence, b"\xc4\x01v", annotations=b"ABCD\0\0\0\1x", flags=flags))
            echo(line)

        peer, connections = start(script), opened()
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"v"
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"


LARGE_REPLY = messages.pack_plain(bytes(200_000))

NO_REPLY: dict[str, Callable[[int], bytes]] = {
    "another's sequence number": lambda n: message(n + 1, b"\xc3"),
    "an earlier sequence number": lambda n: message((n - 1) & 0xFFFF, b"\xc4\x01v"),
    "a large reply to another": lambda n: message(n + 1, LARGE_REPLY),
    "a refusal to another": lambda n: refusal_message(n + 1, "stale-view"),
    "a byte too much": lambda n: message(n, b"\xc3") + b"\0",
    "two replies": lambda n: message(n, b"\xc3") * 2,
    "a compressed reply": lambda n: message(n, b"\xc3", flags=framing.FLAG_COMPRESSED),
    "a batch": lambda n: message(n, b"\xc3", flags=framing.FLAG_BATCH),
    "another serializer": lambda n: message(n, b"\xc3", serializer=1),
    "a request": lambda n: message(n, b"\xc3", kind=framing.INVOKE),
    "a pong": lambda n: message(n, b"pong", kind=framing.PING),
    "a handshake's answer": lambda n: connect_ok({}),
    "a reply of 4 GiB": lambda n: message(n, b"\xc3", claim=2**32 - 1),
    "a wrong magic number": lambda n: message(n, b"\xc3", magic=1),
    "text": lambda n: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "no msgpack": lambda n: message(n, b"\xc1"),
    "an extension type": lambda n: message(n, b"\xd4\x05\x00"),
    "half a value": lambda n: message(n, b"\xc4\x05v"),
    "half a head of a value": lambda n: message(n, b"\xc4"),
    "half a head of a large value": lambda n: message(n, b"\xc6\x00"),
    "a value and more": lambda n: message(n, b"\xc4\x01v\xc3"),
    "half a large value": lambda n: message(n, LARGE_REPLY[:-1]),
    "a large value and more": lambda n: message(n, LARGE_REPLY + b"\xc3"),
    "nothing": lambda n: message(n, b""),
    "a refusal that is none": lambda n: message(n, b"\xc3", flags=framing.FLAG_EXCEPTION),
}  # fmt: skip


class TestBrokenPeers:
    @pytest.mark.parametrize("what", NO_REPLY)
    def test_what_is_no_reply_ends_the_connection_and_not_the_next_call(
        self, start: Start, opened: Open, what: str
    ) -> None:
        def script(line: Line) -> None:
            if line.number == 1:
                line.request()
                line.send(NO_REPLY[what](line.sequence))
                line.wait_until_closed()
            else:
                echo(line)

        peer, connections = start(script), opened(1)
        failure = unavailable(connections, peer)
        assert (failure.maybe_executed, failure.timed_out) == (True, False)
        assert "sent what is not a reply" in str(failure)
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"
        assert peer.opened == 2

    def test_bytes_after_a_large_reply_are_never_taken_for_the_next(self, start: Start, opened: Open) -> None:
        def script(line: Line) -> None:
            if line.number > 1:
                echo(line)
            line.request()
            line.send(line.reply(bytes(200_000)) + line.reply(b"another's"))
            line.sock.recv(1000)

        peer, connections = start(script), opened(1)
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == bytes(200_000)
        with contextlib.suppress(Unavailable):
            assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"
        assert peer.opened == 2

    @pytest.mark.parametrize("sent", [0, 1, 39, 40, 41, 100, 100_000])
    def test_a_peer_that_closes_before_or_during_a_reply(self, start: Start, opened: Open, sent: int) -> None:
        def script(line: Line) -> None:
            if line.number > 1:
                echo(line)
            line.request()
            line.send(line.reply(bytes(1000 * sent))[:sent])

        peer, connections = start(script), opened(1)
        failure = unavailable(connections, peer)
        assert (failure.maybe_executed, failure.timed_out) == (True, False)
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"

    @pytest.mark.parametrize("sent", [0, 1, 40, 57])
    def test_a_peer_that_closes_in_the_handshake(self, start: Start, opened: Open, sent: int) -> None:
        def script(line: Line) -> None:
            line.frame()
            line.send(connect_ok({})[:sent])

        peer, connections = start(script, greeting=False), opened(1)
        failure = unavailable(connections, peer)
        assert (failure.maybe_executed, failure.timed_out) == (False, False)

    @pytest.mark.parametrize(
        "answer",
        [b"SSH-2.0-OpenSSH_9.9\r\n", connect_ok({}) + b"x", message(0, b"\xc3"), message(0, bytes(80_000), kind=2)],
        ids=["text", "a byte too much", "a result", "too long"],
    )  # fmt: skip
    def test_what_is_no_answer_to_a_handshake(self, start: Start, opened: Open, answer: bytes) -> None:
        def script(line: Line) -> None:
            line.frame()
            line.send(answer)
            line.wait_until_closed()

        peer, connections = start(script, greeting=False), opened(1)
        for _ in range(3):  # its place came back
            failure = unavailable(connections, peer)
            assert (failure.maybe_executed, failure.timed_out) == (False, False)

    def test_a_peer_that_closes_while_it_is_sent_much_has_not_executed_it(
        self, start: Start, opened: Open
    ) -> None:
        def script(line: Line) -> None:
            line.sock.recv(1000)
            line.sock.close()

        peer, connections = start(script), opened(1)
        with pytest.raises(Unavailable) as caught:
            connections.call(peer.member, commands.SET, (0, b"key", bytes(40 * MIB)), soon())
        assert (caught.value.maybe_executed, caught.value.timed_out) == (False, False)

    @pytest.mark.parametrize("at_once", [False, True])
    def test_whoever_is_turned_away_is_told_so(
        self, start: Start, opened: Open, monkeypatch: pytest.MonkeyPatch, at_once: bool
    ) -> None:
        """Also if the node closes the connection before the client has said a word, as it may."""
        turned_away = threading.Event()

        def script(line: Line) -> None:
            if not at_once:
                line.frame()
            line.send(
                framing.pack_message(framing.CONNECT_FAIL, 0, messages.pack_plain("overloaded: too many"))
            )
            with contextlib.suppress(OSError):  # the client has read it and left
                line.sock.shutdown(socket.SHUT_WR)
            line.sock.close()
            turned_away.set()

        channel = Dialing.channel

        def connect_slowly(dialing: Dialing) -> Any:
            assert not at_once or turned_away.wait(PATIENCE_SECONDS)
            return channel(dialing)

        monkeypatch.setattr(Dialing, "channel", connect_slowly)
        peer, connections = start(script, greeting=False), opened(1)
        failure = unavailable(connections, peer)
        assert isinstance(failure.error, Overloaded)
        assert not failure.maybe_executed

    def test_a_value_that_is_too_large_is_not_sent_and_costs_no_connection(
        self, start: Start, opened: Open
    ) -> None:
        peer, connections = start(echo, greeting={"max_value_bytes": 10}), opened(1)
        for _ in range(3):
            with pytest.raises(ValueTooLarge):
                connections.call(peer.member, commands.SET, (0, b"key", b"v" * 11), soon(), largest_value=11)
            assert connections.call(
                peer.member, commands.SET, (0, b"key", b"v" * 10), soon(), largest_value=10
            )
        assert peer.opened == 1


class TestDeadlines:
    @pytest.mark.parametrize("size", [10, 5 * MIB])
    def test_a_reply_that_drips(self, start: Start, opened: Open, size: int) -> None:
        def script(line: Line) -> None:
            if line.number > 1:
                echo(line)
            line.request()
            for byte in line.reply(bytes(size)):
                line.send(bytes([byte]))
                time.sleep(0.02)

        peer, connections = start(script), opened(1)
        connections.call(start(echo, number=2).member, commands.GET, (0, b"key"), soon())
        failures: list[Unavailable] = []
        for seconds in (0.1, 0.55):  # with and without the patience to wait for all of it
            fresh = opened(1)
            within_patience(
                lambda fresh=fresh, seconds=seconds: failures.append(unavailable(fresh, peer, seconds))
            )
            peer.opened = 0
        assert [(failure.maybe_executed, failure.timed_out) for failure in failures] == [(True, True)] * 2

    def test_a_peer_that_never_answers_a_call(self, start: Start, opened: Open) -> None:
        def script(line: Line) -> None:
            line.request()
            line.wait_until_closed()

        peer, connections = start(script), opened(1)
        failures: list[Unavailable] = []
        for seconds in (0.05, 0.55):
            within_patience(lambda seconds=seconds: failures.append(unavailable(connections, peer, seconds)))
        assert [(failure.maybe_executed, failure.timed_out) for failure in failures] == [(True, True)] * 2
        assert peer.opened == 2

    def test_a_peer_that_never_answers_the_handshake(self, start: Start, opened: Open) -> None:
        peer, connections = start(lambda line: line.wait_until_closed(), greeting=False), opened(1)
        failures: list[Unavailable] = []
        peer.script = lambda line: (line.frame(), line.wait_until_closed())[1]
        within_patience(lambda: failures.append(unavailable(connections, peer, 0.1)))
        assert [(failure.maybe_executed, failure.timed_out) for failure in failures] == [(False, True)]

    def test_a_peer_that_never_accepts(self, family: str, directory: str, opened: Open) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as tcp, socket.socket(socket.AF_UNIX) as local:
            local.bind(f"{directory}/s")
            local.listen(0)
            path = f"{directory}/s" if family == "unix" else ""
            member = Member("cache.node.1", "127.0.0.1", tcp.getsockname()[1], socket_path=path)
            connections = opened(8)
            failures: list[Unavailable] = []

            def call() -> None:
                for _ in range(3):
                    with pytest.raises(Unavailable) as caught:
                        connections.call(member, commands.GET, (0, b"key"), Deadline(0.1))
                    failures.append(caught.value)

            within_patience(call)
            assert [(failure.maybe_executed, failure.timed_out) for failure in failures] == [
                (False, True)
            ] * 3

    def test_a_peer_that_does_not_read_a_large_request(self, start: Start, opened: Open) -> None:
        done = threading.Event()

        def script(line: Line) -> None:
            if line.number > 1:
                echo(line)
            assert done.wait(PATIENCE_SECONDS)

        peer, connections = start(script), opened(1)
        failures: list[Unavailable] = []

        def call() -> None:
            with pytest.raises(Unavailable) as caught:
                connections.call(
                    peer.member, commands.SET, (0, b"key", Pieces([bytes(40 * MIB)])), Deadline(0.3)
                )
            failures.append(caught.value)

        try:
            within_patience(call)
            assert [(failure.maybe_executed, failure.timed_out) for failure in failures] == [(False, True)]
            assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"
        finally:
            done.set()

    def test_a_reply_that_comes_slowly_but_in_time_is_taken(self, start: Start, opened: Open) -> None:
        value = random.Random(1).randbytes(MIB)

        def script(line: Line) -> None:
            line.request()
            reply = line.reply(value)
            for begin in range(0, len(reply), 500_000):
                line.send(reply[begin : begin + 500_000])
                time.sleep(0.3)  # longer than the client waits in one system call
            line.wait_until_closed()

        peer, connections = start(script), opened(1)
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == value
        connections.close()


class TestPool:
    def test_a_careful_call_is_not_sent_over_a_connection_that_the_peer_has_closed(
        self, start: Start, opened: Open
    ) -> None:
        closed = threading.Event()
        calls: list[int] = []

        def script(line: Line) -> None:
            line.request()
            calls.append(line.number)
            line.send(line.reply(b"v"))
            line.sock.shutdown(socket.SHUT_RDWR)
            closed.set()

        peer, connections = start(script), opened(1)
        for _ in range(10):
            closed.clear()
            assert connections.call(peer.member, commands.DELETE, (0, b"key"), soon()) == b"v"
            assert closed.wait(PATIENCE_SECONDS)
        assert calls == list(range(1, 11))

    def test_a_careful_exchange_neither(self, start: Start, opened: Open) -> None:
        closed = threading.Event()

        def script(line: Line) -> None:
            line.request()
            line.send(line.reply(line.number))
            line.sock.shutdown(socket.SHUT_RDWR)
            closed.set()

        peers = [start(script, number=number) for number in (1, 2)]
        connections = opened(1)
        for turn in (1, 2, 3):
            closed.clear()
            requests = [Request(peer.member, commands.DELETE, (0, b"key")) for peer in peers]
            assert dict(connections.exchange(requests, soon())) == {0: turn, 1: turn}
            assert wait_until(lambda: not any(peer.open for peer in peers))

    def test_what_came_unasked_makes_a_connection_useless(self, start: Start, opened: Open) -> None:
        said = threading.Event()

        def script(line: Line) -> None:
            line.request()
            line.send(line.reply(line.number))
            if line.number == 1:
                time.sleep(0.1)  # a reply too much that comes with the first is another test
                line.send(message(2, b"\xc4\x09another's"))
                said.set()
            line.wait_until_closed()

        peer, connections = start(script), opened(1)
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == 1
        assert said.wait(PATIENCE_SECONDS)
        assert connections.call(peer.member, commands.DELETE, (0, b"key"), soon()) == 2
        connections.close()

    def test_no_more_connections_than_the_limit_are_ever_open(self, start: Start, opened: Open) -> None:
        def script(line: Line) -> None:
            while True:
                line.request()
                time.sleep(0.001)
                line.send(line.reply(line.number))

        peer, connections = start(script), opened(3)
        answers = in_threads(
            12, lambda n: [connections.call(peer.member, commands.GET, (n,), soon()) for _ in range(20)]
        )
        assert {number for numbers in answers for number in numbers} <= {1, 2, 3}
        assert peer.opened <= 3

    @pytest.mark.parametrize("in_handshake", [False, True])
    def test_an_exception_that_somebody_keeps_keeps_no_place(
        self, start: Start, opened: Open, in_handshake: bool
    ) -> None:
        """As the router does while it tries again, and a user who collects them."""

        def script(line: Line) -> None:
            if line.number == 1 and in_handshake:
                return
            if in_handshake:
                line.frame()
                line.send(connect_ok({}))
            if line.number == 1:
                line.request()
                return
            echo(line)

        peer, connections = start(script, greeting=not in_handshake and None), opened(1)
        with pytest.raises(Unavailable) as kept:
            connections.call(peer.member, commands.GET, (0, b"key"), soon())
        assert connections.call(peer.member, commands.GET, (0, b"key"), Deadline(1.0)) == b"key"
        assert kept.value is not None

    def test_the_limit_holds_when_connections_fail_all_the_time(self, start: Start, opened: Open) -> None:
        def script(line: Line) -> None:
            try:
                for turn in range(3):
                    line.request()
                    if turn == 2 and line.number % 3 == 0:
                        line.send(b"garbage")
                    elif turn < 2:
                        line.send(line.reply(turn))
                line.wait_until_closed() if line.number % 3 == 0 else None
            finally:
                with connected:
                    counted[1] -= 1

        connected, counted = threading.Lock(), [0, 0]

        def count_and(line: Line) -> None:
            with connected:
                counted[1] += 1
                counted[0] = max(counted[0], counted[1])
            script(line)

        peer, connections = start(count_and), opened(2)

        def call(number: int) -> int:
            failed = 0
            for _ in range(20):
                try:
                    connections.call(peer.member, commands.GET, (number,), soon())
                except Unavailable:
                    failed += 1
            return failed

        assert sum(in_threads(6, call)) > 0
        pool = connections._pools[peer.member.name]
        assert pool.permits.qsize() == 2, "every permit came back"

    def test_a_caller_that_finds_all_in_use_waits_no_longer_than_its_deadline(
        self, start: Start, opened: Open
    ) -> None:
        go_on, busy = threading.Event(), threading.Event()

        def script(line: Line) -> None:
            line.request()
            busy.set()
            assert go_on.wait(PATIENCE_SECONDS)
            line.send(line.reply(b"at last"))
            echo(line)

        peer, connections = start(script), opened(1)
        results: list[Any] = []
        first = threading.Thread(
            target=lambda: results.append(connections.call(peer.member, commands.GET, (0, b"key"), soon())),
            daemon=True,
        )
        first.start()
        try:
            assert busy.wait(PATIENCE_SECONDS)
            failure = unavailable(connections, peer, 0.05)
            assert (failure.maybe_executed, failure.timed_out) == (False, True)
            assert "in use" in str(failure)
        finally:
            go_on.set()
            first.join(PATIENCE_SECONDS)
        assert results == [b"at last"]
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"
        assert peer.opened == 1

    def test_threads_never_see_each_others_replies(self, start: Start, opened: Open) -> None:
        peers = [start(echo, number=number) for number in (1, 2)]
        connections = opened(3)

        def call(number: int) -> None:
            for turn in range(60):
                value = b"%d:%d:" % (number, turn) + bytes(70_000 if turn % 17 == 5 else turn)
                if turn % 5:
                    assert connections.call(peers[turn % 2].member, commands.SET, (0, value), soon()) == value
                else:
                    requests = [
                        Request(peer.member, commands.SET, (peer.member.name, value)) for peer in peers
                    ]
                    assert dict(connections.exchange(requests, soon())) == {0: value, 1: value}

        in_threads(8, call)
        assert all(peer.opened <= 3 for peer in peers)

    def test_an_exchange_that_is_given_up_leaves_no_reply_behind(self, start: Start, opened: Open) -> None:
        peers = [start(echo, number=number) for number in (1, 2, 3)]
        connections = opened(1)
        for turn in range(10):
            requests = [Request(peer.member, commands.SET, (0, b"%d" % turn)) for peer in peers]
            outcomes = connections.exchange(requests, soon())
            _, value = next(outcomes)
            assert value == b"%d" % turn
            outcomes.close()
            for peer in peers:
                assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"

    def test_one_silent_node_costs_the_others_of_an_exchange_nothing(
        self, start: Start, opened: Open
    ) -> None:
        def silent(line: Line) -> None:
            line.request()
            line.wait_until_closed()

        peers = [start(echo, number=1), start(silent, number=2), start(echo, number=3)]
        connections = opened(1)
        requests = [Request(peer.member, commands.GET, (0, b"key")) for peer in peers]
        outcomes = dict(connections.exchange(requests, Deadline(0.6)))
        assert (outcomes[0], outcomes[2]) == (b"key", b"key")
        assert isinstance(outcomes[1], Unavailable)
        assert outcomes[1].timed_out

    def test_a_closed_pool_closes_what_is_in_use_when_its_call_ends(self, start: Start, opened: Open) -> None:
        asked, go_on = threading.Event(), threading.Event()

        def script(line: Line) -> None:
            line.request()
            asked.set()
            assert go_on.wait(PATIENCE_SECONDS)
            line.send(line.reply(b"v"))
            line.wait_until_closed()

        peer, connections = start(script), opened(1)
        results: list[Any] = []
        thread = threading.Thread(
            target=lambda: results.append(connections.call(peer.member, commands.GET, (0, b"key"), soon())),
            daemon=True,
        )
        thread.start()
        assert asked.wait(PATIENCE_SECONDS)
        connections.close()
        go_on.set()
        thread.join(PATIENCE_SECONDS)
        assert results == [b"v"]
        assert wait_until(lambda: peer.open == 0)
        with pytest.raises(ClientClosed):
            connections.call(peer.member, commands.GET, (0, b"key"), soon())


class Interrupted(BaseException):
    """What a signal handler raises here, besides KeyboardInterrupt."""


class TestInterruptions:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
    @pytest.mark.parametrize(
        "stage", ["before the reply", "in a small reply", "in a large reply", "in the request"]
    )
    def test_an_interrupted_call_loses_its_connection_and_no_place(
        self, start: Start, opened: Open, stage: str, error: type[BaseException]
    ) -> None:
        main = threading.main_thread().ident
        assert main is not None
        over = threading.Event()

        def script(line: Line) -> None:
            if line.number > 1:
                echo(line)
            if stage == "in the request":
                line.sock.recv(10)
            else:
                line.request()
                reply = line.reply(b"outdated" if stage == "in a small reply" else bytes(5 * MIB))
                line.send(reply[: {"before the reply": 0, "in a small reply": 43}.get(stage, 2 * MIB)])
            time.sleep(0.05)  # it waits in a system call by now
            signal.pthread_kill(main, signal.SIGUSR1)
            assert over.wait(PATIENCE_SECONDS)

        def interrupt(*_: object) -> None:
            raise error

        peer, connections = start(script), opened(1)
        value = Pieces([bytes(40 * MIB)]) if stage == "in the request" else b"value"
        before = signal.signal(signal.SIGUSR1, interrupt)
        try:
            with pytest.raises(error):
                connections.call(peer.member, commands.SET, (0, b"key", value), soon())
        finally:
            signal.signal(signal.SIGUSR1, before)
            over.set()
        assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"
        pool = connections._pools[peer.member.name]
        assert (pool.permits.qsize(), len(pool.idle)) == (1, 1)

    def test_an_interrupted_exchange_loses_its_connections_and_no_place(
        self, start: Start, opened: Open
    ) -> None:
        main = threading.main_thread().ident
        assert main is not None
        over = threading.Event()

        def script(line: Line) -> None:
            line.request()
            line.send(line.reply(b"first"))
            if line.number == 1:
                line.request()
                if line.sock is not None and line.sequence == 2:
                    time.sleep(0.05)
                    with lock:
                        if not killed:
                            killed.append(True)
                            signal.pthread_kill(main, signal.SIGUSR1)
                    assert over.wait(PATIENCE_SECONDS)
                    line.send(line.reply(b"outdated"))
            echo(line)

        killed: list[bool] = []
        lock = threading.Lock()

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        peers = [start(script, number=number) for number in (1, 2)]
        connections = opened(1)
        requests = [Request(peer.member, commands.GET, (0, b"key")) for peer in peers]
        assert dict(connections.exchange(requests, soon())) == {0: b"first", 1: b"first"}
        before = signal.signal(signal.SIGUSR1, interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                list(connections.exchange(requests, soon()))
        finally:
            signal.signal(signal.SIGUSR1, before)
            over.set()
        for answer in (b"first", b"key"):
            assert dict(connections.exchange(requests, soon())) == {0: answer, 1: answer}


class TestWhichTransport:
    """Of a node that can be reached over both."""

    @pytest.fixture
    def both(self, directory: str) -> Iterator[Peer]:
        peer = Peer(echo, f"{directory}/s")
        yield peer
        peer.close()
        assert peer.failures == []

    def test_the_unix_socket_is_preferred(self, both: Peer, opened: Open) -> None:
        assert opened().call(both.member, commands.GET, (0, b"key"), soon()) == b"key"
        assert both.families == [socket.AF_UNIX]

    def test_tcp_alone_means_tcp_alone(self, both: Peer, opened: Open) -> None:
        assert opened(transport="tcp").call(both.member, commands.GET, (0, b"key"), soon()) == b"key"
        assert both.families == [socket.AF_INET]

    @pytest.mark.parametrize(
        "path", ["gone", "a file", "nobody listens", "no directory", "much too long" * 20]
    )
    def test_a_path_that_leads_nowhere_means_tcp(
        self, directory: str, both: Peer, opened: Open, path: str
    ) -> None:
        lost = f"{directory}/{path}/s" if path == "no directory" else f"{directory}/{path}"
        with socket.socket(socket.AF_UNIX) as dead:
            if path == "a file":
                open(lost, "w").close()
            elif path == "nobody listens":
                dead.bind(lost)
            member = Member(both.member.name, both.member.host, both.member.port, socket_path=lost)
            assert opened().call(member, commands.GET, (0, b"key"), soon()) == b"key"
        assert both.families == [socket.AF_INET]

    def test_a_socket_whose_queue_is_full_means_tcp(self, directory: str, both: Peer, opened: Open) -> None:
        with socket.socket(socket.AF_UNIX) as busy, ExitStack() as stack:
            busy.bind(f"{directory}/busy")
            busy.listen(0)
            with contextlib.suppress(BlockingIOError):
                for _ in range(100):
                    waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                    waiting.setblocking(False)
                    waiting.connect(f"{directory}/busy")
            member = Member(
                both.member.name, both.member.host, both.member.port, socket_path=f"{directory}/busy"
            )
            assert opened().call(member, commands.GET, (0, b"key"), soon()) == b"key"
        assert both.families == [socket.AF_INET]

    def test_a_path_that_a_node_tells_is_judged_like_one_in_the_name_server(self, directory: str) -> None:
        """A node, or whoever took its port, must not make clients speak to any socket of their host."""
        spoken_to: list[bytes] = []
        with socket.socket(socket.AF_UNIX) as engine:
            engine.bind(f"{directory}/docker.sock")
            engine.listen()
            engine.settimeout(0.2)

            def script(line: Line) -> None:
                while True:
                    line.request()
                    told = [
                        [
                            "cache.node.1",
                            "127.0.0.1",
                            peer.member.port,
                            1.0,
                            "0" * 16,
                            f"{directory}/docker.sock",
                        ]
                    ]
                    body = refusals.pack_refusal(Refusal(refusals.STALE_VIEW, "another view", told))
                    line.send(
                        framing.pack_message(
                            framing.RESULT, line.sequence, body, flags=framing.FLAG_EXCEPTION
                        )
                    )

            peer = Peer(script)
            router = Router(NameServerThatGoesAway(peer.member), sleep=lambda seconds: None)
            listening = threading.Thread(target=lambda: listen_to(engine, spoken_to), daemon=True)
            listening.start()
            try:
                with pytest.raises(PyroCacheError):
                    router.call("get", b"key", deadline=Deadline(0.5))
            finally:
                router.close()
                peer.close()
                listening.join(PATIENCE_SECONDS)
        assert spoken_to == []


def listen_to(listener: socket.socket, heard: list[bytes]) -> None:
    """Note what is said to it until nobody comes for a while."""
    with contextlib.suppress(TimeoutError):
        for _ in range(3):
            sock, _ = listener.accept()
            heard.append(sock.recv(1000))
            sock.close()


class NameServerThatGoesAway:
    """Tells of a node once."""

    def __init__(self, member: Member) -> None:
        self.listed = [member]

    def members(self, timeout: float = 5.0) -> list[Member]:
        if not self.listed:
            raise NameServerUnavailable("away")
        return [self.listed.pop()]

    def add(self, member: Member) -> bool:
        raise AssertionError

    def remove(self, member: Member, timeout: float = 5.0) -> bool:
        raise AssertionError


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    """Whether it came true within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def in_threads(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What it returns in each of so many threads; raises what one of them raised."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            results[number] = call(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results


class TestHeldConnections:
    def test_the_same_connection_serves_all_its_calls_and_then_others(
        self, start: Start, opened: Open
    ) -> None:
        peer, connections = start(echo), opened(2)
        held = connections.pin(peer.member, commands.LEASE, (0, b"key", 5), soon())
        assert held is not None
        assert held.answer == 5
        assert held.call(commands.ABANDON, (0, b"key", 6), soon()) == held.answer == 6
        assert connections.pin(peer.member, commands.LEASE, (0, b"key", 7), soon(), held) is held
        assert peer.opened == 1
        assert connections.call(peer.member, commands.GET, (0, 8), soon()) == 8
        assert peer.opened == 2, "it is nobody else's meanwhile"
        held.release()
        held.release()
        assert held.closed
        assert connections.call(peer.member, commands.GET, (0, 9), soon()) == 9
        assert peer.opened == 2
        assert not connections._pinned

    def test_when_no_more_may_be_open_nobody_waits(self, start: Start, opened: Open) -> None:
        peer, connections = start(echo), opened(2)
        both = [connections.pin(peer.member, commands.LEASE, (0, number), soon()) for number in range(2)]
        assert [held.answer for held in both if held is not None] == [0, 1]
        assert connections.pin(peer.member, commands.LEASE, (0, 2), soon()) is None
        assert both[0] is not None
        both[0].drop()
        assert connections.pin(peer.member, commands.LEASE, (0, 3), soon()) is not None

    def test_a_refusal_leaves_nothing_held_and_the_connection_good(self, start: Start, opened: Open) -> None:
        def script(line: Line) -> None:
            line.request()
            line.send(refusal_message(line.sequence, refusals.OVERLOADED))
            echo(line)

        peer, connections = start(script), opened(1)
        with pytest.raises(Refused):
            connections.pin(peer.member, commands.LEASE, (0, b"key"), soon())
        assert not connections._pinned
        assert connections.call(peer.member, commands.GET, (0, 1), soon()) == 1
        assert peer.opened == 1

    @pytest.mark.parametrize("way", ["ends", "is silent"])
    def test_a_call_that_fails_closes_it(self, start: Start, opened: Open, way: str) -> None:
        def script(line: Line) -> None:
            line.send(line.reply(line.request()[1][-1]))
            line.request()
            if way == "is silent":
                line.wait_until_closed()

        peer, connections = start(script), opened(1)
        held = connections.pin(peer.member, commands.LEASE, (0, 1), soon())
        assert held is not None
        with pytest.raises(Unavailable) as caught:
            held.call(commands.ABANDON, (0, 2), Deadline(0.3))
        assert caught.value.maybe_executed
        assert held.closed
        assert not connections._pinned
        again = connections.pin(peer.member, commands.LEASE, (0, 3), soon(), held)
        assert again is not None
        assert again is not held

    def test_one_that_nobody_refers_to_any_more_is_closed(self, start: Start, opened: Open) -> None:
        peer, connections = start(echo), opened(1)
        connections.pin(peer.member, commands.LEASE, (0, 1), soon())
        assert not connections._pinned
        assert connections.pin(peer.member, commands.LEASE, (0, 2), soon()) is not None

    def test_closing_interrupts_who_waits(self, start: Start, opened: Open) -> None:
        waiting = threading.Event()

        def script(line: Line) -> None:
            line.request()
            waiting.set()
            line.wait_until_closed()

        peer, connections = start(script), opened(1)
        problems: list[Exception] = []

        def wait() -> None:
            try:
                connections.pin(peer.member, commands.LEASE, (0, 1), soon())
            except Unavailable as problem:
                problems.append(problem)

        thread = threading.Thread(target=wait)
        thread.start()
        assert waiting.wait(PATIENCE_SECONDS)
        connections.close()
        thread.join(PATIENCE_SECONDS)
        assert len(problems) == 1
        with pytest.raises(ClientClosed):
            connections.pin(peer.member, commands.LEASE, (0, 1), soon())
