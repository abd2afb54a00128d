"""One connection against scripted peers: every reply in any pieces, and every failure.

Each test runs over TCP and over a Unix socket.
"""

from __future__ import annotations

import contextlib
import math
import random
import resource
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest

from pyrocache.cluster.routing import Member
from pyrocache.errors import Overloaded, ValueTooLarge
from pyrocache.net import connection as connection_module
from pyrocache.net.call_protocol import Caller
from pyrocache.net.calls import Connections
from pyrocache.net.channel import Dialing, is_resolved, is_same_host
from pyrocache.net.connection import DRIFT, FRESH_SECONDS, Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.protocol import commands, framing, messages
from pyrocache.protocol.handshake import PROTOCOL, Greeting
from pyrocache.protocol.messages import Pieces
from pyrocache.protocol.refusals import Refusal
from pyrocache.protocol.request_id import CLOCK, RequestId, milliseconds, unpack_id
from pyrocache.runtime import clock
from tests.support.scripted_peer import (
    MIB,
    Line,
    ScriptedPeer,
    connect_ok,
    echo,
    joined,
    message,
    refusal_message,
    soon,
)
from tests.support.waiting import PATIENCE_SECONDS

Start = Callable[..., ScriptedPeer]
Open = Callable[..., Connections]


def unavailable(
    connections: Connections, peer: ScriptedPeer, seconds: float = PATIENCE_SECONDS, **options: Any
) -> Unavailable:
    """The failure of one call, without what it refers to."""
    with pytest.raises(Unavailable) as caught:
        connections.call(peer.member, commands.GET, (0, b"key"), Deadline(seconds), **options)
    failure = caught.value
    failure.__cause__ = failure.__context__ = None
    return failure.with_traceback(None)


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
        connection.protocol.sequence = 0xFFFE
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

    @pytest.mark.parametrize("claimed", ["body", "annotations"])
    def test_a_header_that_claims_gigabytes_takes_memory_only_as_bytes_arrive(
        self, opened: Open, claimed: str
    ) -> None:
        def script(line: Line) -> None:
            line.request()
            sizes = (3 << 30, 0) if claimed == "body" else (100, 3 << 30)
            line.send(message(line.sequence, b"")[:12] + struct.pack("!II", *sizes) + message(0, b"")[20:])
            line.send(bytes(2 * MIB))
            line.wait_until_closed()

        peer = ScriptedPeer(script, greeting={"max_value_bytes": 2**32 - 1})
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            tracemalloc.start()
            assert unavailable(opened(1), peer, 0.3).timed_out
            assert tracemalloc.get_traced_memory()[1] < 16 * MIB
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
        finally:
            tracemalloc.stop()
            peer.close()

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

        def connect_slowly(dialing: Dialing, **options: Any) -> Any:
            assert not at_once or turned_away.wait(PATIENCE_SECONDS)
            return channel(dialing, **options)

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


class TestWhichTransport:
    """Of a node that can be reached over both."""

    @pytest.fixture
    def both(self, directory: str) -> Iterator[ScriptedPeer]:
        peer = ScriptedPeer(echo, f"{directory}/s")
        yield peer
        peer.close()
        assert peer.failures == []

    def test_the_unix_socket_is_preferred(self, both: ScriptedPeer, opened: Open) -> None:
        assert opened().call(both.member, commands.GET, (0, b"key"), soon()) == b"key"
        assert both.families == [socket.AF_UNIX]

    def test_tcp_alone_means_tcp_alone(self, both: ScriptedPeer, opened: Open) -> None:
        assert opened(transport="tcp").call(both.member, commands.GET, (0, b"key"), soon()) == b"key"
        assert both.families == [socket.AF_INET]

    @pytest.mark.parametrize(
        "path", ["gone", "a file", "nobody listens", "no directory", "much too long" * 20]
    )
    def test_a_path_that_leads_nowhere_means_tcp(
        self, directory: str, both: ScriptedPeer, opened: Open, path: str
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

    def test_a_socket_whose_queue_is_full_means_tcp(
        self, directory: str, both: ScriptedPeer, opened: Open
    ) -> None:
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


class Addresses:
    """The ends of a channel, of which `is_same_host` asks."""

    def __init__(self, family: int, here: str, there: str) -> None:
        self.family = family
        self._here, self._there = here, there

    def getsockname(self) -> Any:
        return (self._here, 1)

    def getpeername(self) -> Any:
        return (self._there, 2)


@pytest.mark.parametrize(
    ("family", "here", "there", "same"),
    [
        (socket.AF_UNIX, "", "/path", True),
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", True),
        (socket.AF_INET, "10.0.0.1", "10.0.0.1", True),
        (socket.AF_INET, "10.0.0.1", "10.0.0.2", False),
        (socket.AF_INET6, "::1", "::1", True),
    ],
)
def test_one_clock_is_only_assumed_where_there_is_one(family: int, here: str, there: str, same: bool) -> None:
    channel: Any = Addresses(family, here, there)
    assert is_same_host(channel) is same


@pytest.mark.parametrize(
    ("same_address", "ahead_seconds", "one_clock"),
    [
        (True, 0.0, True),
        (False, 0.0, False),
        (True, 3600.0, False),
        (True, -3600.0, False),
        (True, -0.5, False),
    ],
    ids=["one host", "two hosts", "a tunnel, ahead", "a tunnel, behind", "a tunnel, nearly the same"],
)
def test_unless_it_is_one_clock_deadlines_are_earlier_by_what_clocks_may_drift(
    monkeypatch: pytest.MonkeyPatch, same_address: bool, ahead_seconds: float, one_clock: bool
) -> None:
    ids: list[RequestId] = []

    def script(line: Line) -> None:
        line.frame()
        line.send(connect_ok({"clock_ms": milliseconds(clock.now() + ahead_seconds)}))
        while True:
            header, _ = line.frame()
            ids.append(unpack_id(header.correlation))
            line.sequence = header.sequence
            line.send(line.reply(True))

    peer = ScriptedPeer(script, greeting=False)
    monkeypatch.setattr(connection_module, "is_same_host", lambda channel: same_address)
    try:
        began = clock.now()
        connection = Connection(peer.member, "auto", Caller(Greeting(protocol=PROTOCOL, session=b"sessions")))
        connection.finish_opening(soon())
        most_ms = 3 + (clock.now() - began) * 1000  # what the handshake took counts, too
        deadline = soon()
        connection.call("get", (), deadline)
        early = (milliseconds(deadline.at + ahead_seconds) - ids[-1].deadline) & CLOCK
        allowed = 0 if one_clock else FRESH_SECONDS * DRIFT * 1000
        assert allowed <= early <= allowed + most_ms
        assert (connection.fresh_until == math.inf) is one_clock
        connection.close()
    finally:
        peer.close()


@pytest.mark.parametrize(
    ("host", "resolved"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("example.org", False),
        ("1.2.3", False),
        ("01.2.3.4", False),
        ("1.2.3.4\0", False),
        ("\udc80", False),
        ("", False),
    ],
)
def test_addresses_need_not_be_resolved(host: str, resolved: bool) -> None:
    assert is_resolved(host) is resolved
