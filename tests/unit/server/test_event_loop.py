"""The node's server on real sockets, within this process: whatever a peer sends, in whatever pieces.

The loop runs in a thread. Each time it looks around, its sum of buffered bytes is compared with what its connections
really hold.
"""

from __future__ import annotations

import contextlib
import math
import random
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from Pyro5.errors import PyroError

from pyrocache.config import NodeConfig
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.protocol import framing, limits, messages, refusals
from pyrocache.protocol.commands import COMMANDS, Command, Runs, Scope
from pyrocache.protocol.framing import Frame
from pyrocache.protocol.refusals import Refusal
from pyrocache.runtime.clock import now
from pyrocache.server import event_loop as event_loop_module
from pyrocache.server.connection import Connection
from pyrocache.server.deferred import Deferred, Session
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop
from pyrocache.testing import FakeClock
from tests.support.waiting import wait_until
from tests.support.wire import frame_decoder

NAME = "cache.node.1"
NO_VIEW = 0
KIB, MIB = 2**10, 2**20
MAX_VALUE_BYTES = 20 * MIB
MAX_FRAME_BYTES = MAX_VALUE_BYTES + 128 * KIB
PATIENCE_SECONDS = 15.0
"""How long a test waits for what should come at once."""

CLOSED = "closed"


class Gated(CacheNode):
    """A node whose `count` takes until the gate is opened, with calls that wait for others."""

    MORE_COMMANDS: ClassVar = {
        name: Command(name, Scope.NODE, False, runs, False)
        for name, runs in (
            ("pause", Runs.DEFERRED),
            ("hold", Runs.DEFERRED),
            ("take_turn", Runs.DEFERRED),
            ("end_turn", Runs.INLINE),
        )
    }

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gate = threading.Event()
        self.gate.set()
        self.held: dict[bytes, Deferred] = {}
        self.turns: Any = None

    def pause(self, seconds: float) -> Any:
        """``b"over"`` after so many seconds; 0: at once, -1: at once, but as a `Deferred`, -2: a refusal."""
        raise AssertionError("only what stands in its place is called")

    def begin_pause(self, session: Session, seconds: float) -> Any:
        if seconds == -2:
            raise PyroError("no such pause")
        if seconds == 0:
            return b"over"
        deferred = Deferred(session, now() + seconds, b"over")
        if seconds == -1:
            deferred.give(b"over")
        return deferred

    hold = pause

    def begin_hold(self, session: Session, name: bytes, seconds: float = 600.0) -> Deferred:
        """Waits until the test gives something to ``held[name]``."""
        self.held[name] = Deferred(session, now() + seconds)
        return self.held[name]

    take_turn = pause

    def begin_take_turn(self, session: Session, seconds: float) -> Deferred:
        deferred: Deferred = self.turns.begin(session, now() + seconds)
        return deferred

    def end_turn(self, token: int) -> bool:
        """At once, on the I/O thread."""
        return bool(self.turns.end(token))

    def waiting(self, name: bytes) -> Deferred:
        """What the call with that name waits for, as soon as it does."""
        assert wait_until(lambda: name in self.held)
        return self.held.pop(name)

    def count(self, view: int, namespace: bytes, enough: int | None = None) -> int:
        assert self.gate.wait(PATIENCE_SECONDS)
        return super().count(view, namespace, enough)


class Server:
    """A transport, its node, and the thread that it runs in."""

    def __init__(
        self,
        listener: socket.socket,
        config: NodeConfig,
        max_memory: int,
        max_frame_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self.node = Gated(Store(max_memory), RequestGuard(NAME), max_value_bytes=config.max_value_bytes)
        self.config = config
        self.family = listener.family
        self.address = listener.getsockname()
        self.miscounted: list[tuple[int, int]] = []
        tcp = [] if listener.family != socket.AF_UNIX else [socket.create_server(("127.0.0.1", 0))]
        dispatcher = Dispatcher(
            NAME,
            self.node,
            COMMANDS | Gated.MORE_COMMANDS,
            greeting=lambda: {"max_value_bytes": config.max_value_bytes},
            max_frame_bytes=max_frame_bytes,
        )
        self.lapses = 0
        self.event_loop = EventLoop(
            [*tcp, listener], dispatcher, config, clock=clock, on_lapse=lambda: self._lapse()
        )
        poll = self.event_loop.poller.poll
        self.event_loop.poller.poll = lambda seconds: self._recount() and poll(seconds)  # type: ignore[method-assign]
        self._loop = threading.Thread(target=self.event_loop.run, daemon=True)

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        self.node.gate.set()
        self.event_loop.shutdown()
        self._loop.join(PATIENCE_SECONDS)
        assert not self._loop.is_alive()

    def clear(self) -> None:
        for space in list(self.node._store.namespaces):
            self.node.clear(NO_VIEW, space.prefix)

    def connection(self) -> Connection:
        """The only one that there is."""
        assert wait_until(lambda: len(self.event_loop.connections) == 1)
        return next(iter(self.event_loop.connections))

    def at_rest(self, connections: int = 0) -> bool:
        """Whether so many connections are left and nothing is kept for them."""
        return wait_until(
            lambda: len(self.event_loop.connections) == connections and self.event_loop.buffers.used == 0
        )

    def _lapse(self) -> None:
        self.lapses += 1
        self.node.ownership.lapse(True)

    def _recount(self) -> bool:
        kept = sum(connection.held for connection in self.event_loop.connections)
        if kept != self.event_loop.buffers.used:
            self.miscounted.append((self.event_loop.buffers.used, kept))
        return True


@contextmanager
def running(
    family: str = "tcp",
    *,
    max_memory: int = 512 * MIB,
    send_buffer: int | None = None,
    max_frame_bytes: int = MAX_FRAME_BYTES,
    clock: Callable[[], float] = now,
    **limits: Any,
) -> Iterator[Server]:
    """A server; nothing of it is left afterwards, and it never miscounts."""
    config = NodeConfig(**{"max_value_bytes": MAX_VALUE_BYTES, **limits})
    with ExitStack() as stack:
        if family == "unix":
            directory = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))
            listener = socket.socket(socket.AF_UNIX)
            stack.callback(listener.close)
            address: Any = f"{directory}/s"
        else:
            listener = socket.socket()
            stack.callback(listener.close)
            address = ("127.0.0.1", 0)
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.bind(address)
        listener.listen(1000)
        server = Server(listener, config, max_memory, max_frame_bytes, clock)
        server.start()
        stack.callback(server.stop)
        yield server
        assert server.miscounted == []
    assert server.event_loop._calls.deadlines._open == 0


@pytest.fixture(scope="module", params=["tcp", "unix"])
def shared_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with running(request.param) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """A server with the usual limits, empty."""
    shared_server.clear()
    yield shared_server
    assert shared_server.at_rest()
    assert shared_server.miscounted == []


class Peer:
    """A raw connection that says what it likes."""

    def __init__(
        self,
        server: Server,
        *,
        greet: bool = True,
        receive_buffer: int | None = None,
        capabilities: str = "",
    ) -> None:
        self.sock = socket.socket(server.family)
        self.sequence = 0
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(server.address)
        if server.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = frame_decoder()
        if greet:
            self.sock.sendall(handshake(greeting={"capabilities": capabilities} if capabilities else "hello"))
            assert self.receive().header.type == framing.CONNECT_OK

    def receive(self) -> Frame:
        """The next message."""
        while (frame := self._decoder.next_frame()) is None:
            data = self.sock.recv(256 * KIB)
            if not data:
                raise ConnectionResetError("the node closed the connection")
            self._decoder.feed(data)
        return frame

    def answer(self) -> tuple[int, Any]:
        """The next reply's sequence number, and its result or refusal."""
        frame = self.receive()
        return frame.header.sequence, result_of(frame)

    def call(self, method: str, *arguments: Any) -> Any:
        """The result, or the refusal, of one call."""
        self.sequence += 1
        self.sock.sendall(call(self.sequence, method, *arguments))
        sequence, result = self.answer()
        assert sequence == self.sequence
        return result

    def fate(self) -> Any:
        """What comes next: a result, a refusal, or `CLOSED`."""
        try:
            return result_of(self.receive())
        except ConnectionError:
            return CLOSED

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def result_of(frame: Frame) -> Any:
    if frame.header.type == framing.PING:
        return bytes(frame.body)
    assert frame.header.type == framing.RESULT
    if frame.header.flags & framing.FLAG_EXCEPTION:
        return refusals.unpack_refusal(frame.body)
    result = messages.unpack_plain(frame.body)
    return bytes(result) if isinstance(result, memoryview) else result


def handshake(target: str = NAME, greeting: Any = "hello") -> bytes:
    return framing.pack_message(
        framing.CONNECT, 0, messages.pack_plain({"handshake": greeting, "object": target})
    )


def call(sequence: int, method: str, *arguments: Any, **special: Any) -> bytes:
    return message(sequence, messages.pack_plain((NAME, method, arguments, {})), **special)


def message(
    sequence: int,
    body: bytes,
    *,
    kind: int = framing.INVOKE,
    flags: int = 0,
    correlation: bytes = b"",
    annotations: bytes = b"",
    serializer: int = framing.MSGPACK,
    version: int = 502,
    magic: int = 0x4DC5,
    claim: int | None = None,
) -> bytes:
    """A message with anything special about it, and with a claim about its body's length."""
    if correlation:
        flags |= framing.FLAG_CORRELATION_ID
    length = len(body) if claim is None else claim
    return b"".join((
        struct.pack(
            "!4sHBBHHII16sHH",
            b"PYRO", version, kind, serializer, flags, sequence, length, len(annotations), correlation, 0, magic,
        ),
        annotations,
        body,
    ))  # fmt: skip


class Content(bytes):
    """Bytes that do not fill the screen when a test fails."""

    def __repr__(self) -> str:
        return f"content({len(self)})" if len(self) > 100 else super().__repr__()


@cache
def content(size: int) -> Content:
    """So many bytes that look like no others."""
    return Content(random.Random(size).randbytes(size))


def pieces_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """``data``, cut at these places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places) if start < end]


def converse(
    peer: Peer, pieces: Sequence[bytes], *, count: float, in_between: Callable[[], None] = lambda: None
) -> tuple[list[Frame], bool]:
    """Send the pieces, each by itself, reading all the while; after ``count`` replies, say that no more comes.

    Returns:
        The replies, and whether the node closed the connection before it had heard that.
    """
    sock, waiting = peer.sock, list(pieces)
    decoder = frame_decoder()
    replies: list[Frame] = []
    sock.setblocking(False)
    poll = select.poll()
    said_so = gone = False
    while True:
        if not waiting and not said_so and len(replies) >= count:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            said_so = True
        poll.register(sock, select.POLLIN | (select.POLLOUT if waiting else 0))
        events = poll.poll(PATIENCE_SECONDS * 1000)
        assert events, "the node neither reads nor answers"
        if events[0][1] & ~select.POLLOUT:
            try:
                data = sock.recv(256 * KIB)
            except ConnectionError:
                data = b""
            if not data:
                break
            decoder.feed(data)
            while (frame := decoder.next_frame()) is not None:
                replies.append(frame)
        elif waiting:
            try:
                sent = sock.send(waiting[0])
            except BlockingIOError:
                continue
            except OSError:
                waiting, gone = [], True
                continue
            waiting[0] = waiting[0][sent:]
            if not waiting[0]:
                waiting.pop(0)
                in_between()
    assert decoder.between_frames or len(replies) >= count or gone or not said_so, (
        "the last reply is not whole"
    )
    return replies, not said_so


def resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        pytest.skip("this system does not say how much memory a process takes")


# Valid requests, and what a node with nothing in it answers ------------------------------------------------

ROOT = b"\0"  # the namespace of keys that are in none
KEYS = [Content(ROOT + key) for key in (b"a", b"b", b"key:" + bytes(200), b"k" * 65_534, b"K" * 65_535)]
SIZES = [
    0,
    1,
    250,
    255,
    256,
    300,
    65_500,
    65_535,
    65_536,
    65_537,
    100_000,
    MIB - 60,
    MIB - 1,
    MIB,
    MIB + 1,
    1_500_000,
]

keys = st.sampled_from(KEYS)
values = st.sampled_from(SIZES).map(content)
small_values = st.sampled_from(SIZES[:9]).map(content)
specials = st.fixed_dictionaries(
    {},
    optional={
        "correlation": st.binary(min_size=16, max_size=16),
        "annotations": st.sampled_from([b"ABCD\0\0\0\1x", content(1000), content(70_000)]),
    },
)
calls = st.one_of(
    st.tuples(st.just("set"), keys, values),
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("contains"), keys),
    st.tuples(st.just("get_many"), st.lists(keys, max_size=6)),
    st.lists(st.tuples(keys, small_values), max_size=6).map(
        lambda entries: ("set_many", [key for key, _ in entries], [value for _, value in entries])
    ),
    st.tuples(st.just("delete_many"), st.lists(keys, max_size=4, unique=True)),
    st.just(("count", ROOT)),
    st.just(("PING",)),
    st.sampled_from([-1, 0, 0.001, 0.003]).map(lambda seconds: ("pause", seconds)),
    st.sampled_from([
        ("get", "text"), ("get", 7), ("get", b""), ("set", b"a"), ("set", b"a", 1), ("set", b"a", b"v", -1),
        ("set", b"a", b"v", b"v", b"v"), ("get_many", b"a"), ("set_many", [b"a"], []), ("no_method",),
        ("set", b"a", content(70_000), "soon"), ("set", content(70_000), content(70_000)), ("__init__",),
        ("adopt", b""),
    ]).map(lambda wrong: ("wrong", *wrong)),
)  # fmt: skip
requests = st.lists(st.tuples(calls, st.integers(0, 0xFFFF), specials), min_size=1, max_size=12)
cuts = st.lists(st.integers(0, 2**31), max_size=12)

REFUSED = object()


def as_message(request: tuple[Any, ...], sequence: int, special: dict[str, Any]) -> bytes:
    if request[0] == "PING":
        return message(sequence, b"ping", kind=framing.PING, **special)
    if request[0] == "pause":
        return call(sequence, *request, **special)
    method, *arguments = request[1:] if request[0] == "wrong" else request
    return call(sequence, method, NO_VIEW, *arguments, **special)


def expected(request: tuple[Any, ...], model: dict[bytes, bytes]) -> Any:
    """What ``request`` is answered when ``model`` is what the node holds; it is brought up to date."""
    method, *arguments = request
    match method:
        case "set":
            model[arguments[0]] = arguments[1]
            return True
        case "get":
            return model.get(arguments[0])
        case "delete":
            return model.pop(arguments[0], None) is not None
        case "contains":
            return arguments[0] in model
        case "get_many":
            found = [model.get(key) for key in arguments[0]]
            room = limits.BATCH_BYTES
            for count, value in enumerate(found, 1):
                room -= len(value or b"")
                if room < 0:
                    return found[:count]
            return found
        case "set_many":
            model.update(zip(*arguments, strict=True))
            return len(arguments[0])
        case "delete_many":
            return sum(model.pop(key, None) is not None for key in arguments[0])
        case "count":
            return sum(key.startswith(ROOT) for key in model)
        case "PING":
            return b"pong"
        case "pause":
            return b"over"
        case _:
            return REFUSED


def check_replies(
    replies: Sequence[Frame], asked: Sequence[tuple[Any, int, Any]], model: dict[bytes, bytes]
) -> None:
    """The replies are those to the requests, one each, in order."""
    assert [reply.header.sequence for reply in replies] == [sequence for _, sequence, _ in asked]
    for reply, (request, _, _) in zip(replies, asked, strict=True):
        answer, right = result_of(reply), expected(request, model)
        if right is REFUSED:
            assert isinstance(answer, Refusal)
            assert answer.code in (refusals.BAD_REQUEST, refusals.KEY_TOO_LARGE)
        else:
            assert answer == right


CALL_BODY = messages.pack_plain((NAME, "set", (NO_VIEW, b"garbage", b"stored"), {}))
GARBAGE: dict[str, tuple[bytes, str | None]] = {
    "noise": (random.Random(1).randbytes(500), None),
    "zeros": (bytes(100), None),
    "a line of text": (b"GET / HTTP/1.1\r\n\r\n", None),
    "a wrong magic number": (message(1, CALL_BODY, magic=0x1234), None),
    "another version": (message(1, CALL_BODY, version=501), None),
    "another serializer": (message(1, CALL_BODY, serializer=1), None),
    "a second handshake": (handshake(), None),
    "a result": (message(1, CALL_BODY, kind=framing.RESULT), None),
    "a message of an unknown type": (message(1, CALL_BODY, kind=200), None),
    "a oneway call": (message(1, CALL_BODY, flags=framing.FLAG_ONEWAY), None),
    "a compressed call": (message(1, CALL_BODY, flags=framing.FLAG_COMPRESSED), refusals.BAD_REQUEST),
    "a batch": (message(1, CALL_BODY, flags=framing.FLAG_BATCH), refusals.BAD_REQUEST),
    "an unknown flag": (message(1, CALL_BODY, flags=1 << 12), refusals.BAD_REQUEST),
    "a claim of 4 GiB": (message(1, CALL_BODY, claim=2**32 - 1), refusals.VALUE_TOO_LARGE),
    "a claim of a byte too much": (
        message(1, CALL_BODY, claim=MAX_FRAME_BYTES - framing.HEADER_BYTES + 1),
        refusals.VALUE_TOO_LARGE,
    ),
    "no msgpack": (message(1, b"\xc1"), None),
    "nothing": (message(1, b""), None),
    "an extension type": (message(1, b"\xd4\x05\x00"), None),
    "half a call": (message(1, CALL_BODY[:-3]), None),
    "more than a call": (message(1, CALL_BODY + b"\x00"), None),
    "a number": (message(1, b"\x07"), None),
    "a large number of arrays": (message(1, b"\xdc\x03\xff" + b"\x90" * 70_000), None),
    "a large value that is cut short": (
        message(1, messages.pack_plain((NAME, "set", (NO_VIEW, b"garbage", content(100_000)), {}))[:-40_000]),
        None,
    ),
    "a large value and garbage": (
        message(1, messages.pack_plain((NAME, "set", (NO_VIEW, b"garbage", content(100_000)), {}))[:-1] + b"\xc1"),
        None,
    ),
}  # fmt: skip


capabilities = st.sampled_from(["", "pipelined"])


class TestStreams:
    """What comes is answered, in order, however it was cut into pieces."""

    @given(asked=requests, cuts=cuts, words=capabilities)
    @example(
        asked=[(("set", b"a", content(MIB)), 7, {}), (("get", b"a"), 8, {})] * 5,
        cuts=[0, 41, MIB + 50],
        words="",
    )
    @example(asked=[(("get", KEYS[-1]), 1, {})], cuts=[], words="")
    @example(
        asked=[(("set", KEYS[-1], b"v"), 1, {}), (("contains", KEYS[-1]), 2, {})], cuts=[], words="pipelined"
    )
    def test_any_calls_in_any_pieces(
        self, shared_server: Server, asked: list[tuple[Any, int, Any]], cuts: list[int], words: str
    ) -> None:
        server = shared_server
        server.clear()
        data = b"".join(as_message(*one) for one in asked)
        with Peer(server, capabilities=words) as peer:
            replies, closed_first = converse(peer, pieces_of(data, cuts), count=len(asked))
        check_replies(replies, asked, {})
        assert not closed_first
        assert server.at_rest()
        assert server.miscounted == []

    @pytest.mark.parametrize("words", ["", "pipelined"])
    def test_a_stream_in_single_bytes(self, server: Server, words: str) -> None:
        asked: list[tuple[Any, int, Any]] = [
            (("set", b"a", b"value"), 1, {}),
            (("PING",), 2, {}),
            (("get", b"a"), 3, {"correlation": bytes(range(16)), "annotations": b"ABCD\0\0\0\1x"}),
            (("get_many", [b"a", b"b"]), 4, {}),
        ]
        data = b"".join(as_message(*one) for one in asked)
        with Peer(server, capabilities=words) as peer:
            replies, closed_first = converse(peer, [bytes([byte]) for byte in data], count=len(asked))
        check_replies(replies, asked, {})
        assert not closed_first

    @pytest.mark.parametrize("before", [100, 5000, 100_000])
    def test_a_request_within_a_value_is_not_one(self, server: Server, before: int) -> None:
        """Also not if it begins where the node has received the beginning of the value."""
        smuggled = call(9, "set", NO_VIEW, b"smuggled", b"v") * 2
        value = content(before) + smuggled + content(100)
        request = call(1, "set", NO_VIEW, b"a", value)
        start = request.index(smuggled)
        pieces = [request[:start], request[start:], call(2, "contains", NO_VIEW, b"smuggled")]
        with Peer(server, capabilities="pipelined") as peer:
            for piece in pieces:
                peer.sock.sendall(piece)
                time.sleep(0.01)
            assert [peer.answer(), peer.answer()] == [(1, True), (2, False)]

    def test_the_rest_of_a_refused_request_is_not_read_as_requests(self) -> None:
        smuggled = call(9, "set", NO_VIEW, b"smuggled", b"v") * 1000
        with running(max_buffered_bytes=4 * MIB) as server, Peer(server, capabilities="pipelined") as peer:
            request = call(1, "set", NO_VIEW, b"a", content(5 * MIB) + smuggled)
            start = request.index(smuggled)
            peer.sock.sendall(request[:start])
            assert peer.answer()[1].code == refusals.OVERLOADED
            for at in range(start, len(request), len(smuggled) // 1000):
                peer.sock.sendall(request[at : at + len(smuggled) // 1000])
            assert peer.call("contains", NO_VIEW, b"smuggled") is False

    def test_requests_may_come_in_one_piece_with_the_handshake(self, server: Server) -> None:
        with Peer(server, greet=False) as peer:
            peer.sock.sendall(
                handshake() + call(5, "set", NO_VIEW, b"a", b"v") + call(6, "get", NO_VIEW, b"a")
            )
            assert peer.receive().header.type == framing.CONNECT_OK
            assert [peer.answer(), peer.answer()] == [(5, True), (6, b"v")]

    @given(
        asked=requests,
        cuts=cuts,
        garbage=st.sampled_from(sorted(GARBAGE)),
        often=st.booleans(),
        words=capabilities,
    )
    def test_garbage_ends_its_connection_and_nothing_else(
        self,
        shared_server: Server,
        asked: list[tuple[Any, int, Any]],
        cuts: list[int],
        garbage: str,
        often: bool,
        words: str,
    ) -> None:
        server = shared_server
        server.clear()
        nonsense, code = GARBAGE[garbage]
        data = b"".join(as_message(*one) for one in asked) + nonsense
        data += call(9, "set", NO_VIEW, b"after", b"garbage") * 3
        with Peer(server, capabilities=words) as peer, Peer(server) as bystander:
            assert bystander.call("set", NO_VIEW, b"other", b"unharmed") is True
            replies, closed_by_node = converse(
                peer,
                pieces_of(data, cuts),
                count=math.inf,
                in_between=lambda: check_unharmed(bystander) if often else None,
            )
            check_unharmed(bystander)
            assert bystander.call("contains", NO_VIEW, b"after") is False
            assert bystander.call("contains", NO_VIEW, b"garbage") is False
        assert closed_by_node
        if len(replies) > len(asked):
            last = result_of(replies.pop())
            assert isinstance(last, Refusal)
            assert last.code == code
        # The last replies may be lost with the connection, no others.
        answered = asked[: len(replies)]
        check_replies(replies, answered, {b"other": b"unharmed"})
        assert server.at_rest()
        assert server.miscounted == []

    @pytest.mark.parametrize("garbage", [name for name, (_, code) in GARBAGE.items() if code is not None])
    def test_what_is_refused_on_its_header_is_told_why_though_more_follows(
        self, server: Server, garbage: str
    ) -> None:
        nonsense, code = GARBAGE[garbage]
        with Peer(server) as peer:
            peer.sock.sendall(call(1, "ping") + nonsense + bytes(200_000))
            assert isinstance(peer.answer()[1], dict)
            refusal = peer.fate()
            assert isinstance(refusal, Refusal)
            assert refusal.code == code
            assert peer.fate() == CLOSED

    @given(
        asked=requests, cuts=cuts, place=st.integers(0, 2**31), byte=st.integers(0, 255), words=capabilities
    )
    def test_a_byte_that_is_wrong_harms_nobody_else(
        self,
        shared_server: Server,
        asked: list[tuple[Any, int, Any]],
        cuts: list[int],
        place: int,
        byte: int,
        words: str,
    ) -> None:
        server = shared_server
        server.clear()
        messages = [as_message(*one) for one in asked]
        data = bytearray(b"".join(messages))
        place %= min(len(data), 300)  # where heads and keys are; values may be anything anyway
        data[place] = byte
        before = sum(end <= place for end in accumulate(map(len, messages)))
        with Peer(server, capabilities=words) as peer, Peer(server) as bystander:
            assert bystander.call("set", NO_VIEW, b"other", b"unharmed") is True
            replies, closed_first = converse(peer, pieces_of(bytes(data), cuts), count=before)
            check_unharmed(bystander)
        assert len(replies) >= before or closed_first
        check_replies(replies[:before], asked[: min(before, len(replies))], {b"other": b"unharmed"})
        for reply in replies:
            result_of(reply)
        assert server.at_rest()
        assert server.miscounted == []

    @pytest.mark.parametrize("length", [0, 1, 3, 4, 39, 40, 41, 60, 70_000, MIB + 100])
    def test_a_peer_that_leaves_in_mid_request_leaves_nothing(self, server: Server, length: int) -> None:
        request = call(1, "set", NO_VIEW, b"a", content(MIB + 1000))
        with Peer(server) as peer, Peer(server) as bystander:
            replies, _ = converse(peer, [request[:length]] if length else [], count=0)
            assert replies == []
            assert bystander.call("get", NO_VIEW, b"a") is None


def check_unharmed(bystander: Peer) -> None:
    assert bystander.call("get", NO_VIEW, b"other") == b"unharmed"


class TestMemory:
    def test_a_claim_costs_nothing(self, server: Server) -> None:
        count = 150
        claim = message(1, b"", claim=18 * MIB) + bytes(30)
        with ExitStack() as stack:
            peers = [stack.enter_context(Peer(server)) for _ in range(count)]
            before = resident_bytes()
            for peer in peers:
                peer.sock.sendall(claim)
            assert wait_until(lambda: server.event_loop.buffers.used == count * len(claim))
            grown = resident_bytes() - before
            with Peer(server) as bystander:
                assert bystander.call("set", NO_VIEW, b"a", b"v") is True
        assert grown < 100 * MIB

    def test_a_claim_of_sixty_mebibytes_costs_nothing(self) -> None:
        count = 100
        claim = message(1, b"", claim=60 * MIB) + bytes(30)
        with (
            running(max_value_bytes=64 * MIB, max_frame_bytes=64 * MIB + 128 * KIB) as server,
            ExitStack() as stack,
        ):
            peers = [stack.enter_context(Peer(server)) for _ in range(count)]
            before = resident_bytes()
            for peer in peers:
                peer.sock.sendall(claim)
            assert wait_until(lambda: server.event_loop.buffers.used == count * len(claim))
            assert resident_bytes() - before < 100 * MIB
            for peer in peers:
                peer.sock.close()
            assert server.at_rest()

    def test_annotations_of_a_large_value_are_not_kept_with_it(self) -> None:
        count, annotations = 25, bytes(16 * MIB)
        with running(max_memory=64 * MIB) as server, Peer(server) as peer:
            assert peer.call("set", NO_VIEW, b"first", content(MIB)) is True
            before = resident_bytes()
            for number in range(count):
                peer.sock.sendall(
                    call(number, "set", NO_VIEW, b"%d" % number, content(MIB), annotations=annotations)
                )
                assert peer.answer() == (number, True)
            grown = resident_bytes() - before
        print(f"{count} values of 1 MiB that came with 16 MiB of annotations take {grown / MIB:.0f} MiB")
        assert grown < 150 * MIB


class TestLargeValues:
    @pytest.mark.parametrize("size", [MIB - 100, MIB, 3 * MIB + 1, 16 * MIB])
    def test_a_large_value_in_any_pieces(self, server: Server, size: int) -> None:
        value = random.Random(size).randbytes(size)
        request = call(3, "set", NO_VIEW, b"large", value) + call(4, "get", NO_VIEW, b"large")
        chance = random.Random(size)
        pieces = pieces_of(request, [*range(60), *(chance.randrange(len(request)) for _ in range(40))])
        with Peer(server) as peer:
            replies, _ = converse(peer, pieces, count=2)
        assert [(reply.header.sequence, result_of(reply)) for reply in replies] == [(3, True), (4, value)]

    def test_a_value_stays_as_it_was_whatever_happens_to_others(self, server: Server) -> None:
        model = {}
        chance = random.Random(7)
        with Peer(server) as reader:
            for number in range(24):
                key = b"key:%d" % chance.randrange(6)
                size = chance.choice([MIB, MIB + 7, 2 * MIB, 4 * MIB, 100_000])
                value = chance.randbytes(size)
                with Peer(server) as writer:  # its connection is closed, and the value stays
                    assert writer.call("set", NO_VIEW, key, value, *[1000][: number % 2]) is True
                model[key] = value
                if number % 5 == 4:
                    gone = chance.choice(sorted(model))
                    assert reader.call("delete", NO_VIEW, gone) is True
                    del model[gone]
                for other, kept in model.items():
                    assert reader.call("get", NO_VIEW, other) == kept

    def test_a_reply_under_way_is_not_changed_by_a_new_value(self, server: Server) -> None:
        old, new = random.Random(1).randbytes(12 * MIB), random.Random(2).randbytes(12 * MIB)
        with Peer(server, receive_buffer=4096) as slow, Peer(server) as writer:
            assert writer.call("set", NO_VIEW, b"large", old) is True
            slow.sock.sendall(call(1, "get", NO_VIEW, b"large"))
            assert wait_until(lambda: server.event_loop.buffers.used > 0)
            assert writer.call("set", NO_VIEW, b"large", new) is True
            assert writer.call("delete", NO_VIEW, b"large") is True
            assert writer.call("set", NO_VIEW, b"other", new) is True
            assert slow.answer() == (1, old)

    @pytest.mark.parametrize("method", ["get", "set", "delete", "contains", "ttl"])
    def test_the_longest_key_is_taken_by_every_method(self, server: Server, method: str) -> None:
        key = b"k" * limits.MAX_KEY_BYTES
        with Peer(server) as peer:
            answer = peer.call(method, NO_VIEW, key, *[b"value"][: method == "set"])
            assert not isinstance(answer, Refusal)
            answer = peer.call("set", NO_VIEW, key, content(MIB))
            assert answer is True
            assert peer.call("get_many", NO_VIEW, [key]) == [content(MIB)]


class TestSlowReaders:
    """A peer that asks and does not read."""

    def test_its_requests_wait_and_are_answered_in_order_once_it_reads(self) -> None:
        count, value = 120, content(300_000)
        with running(send_buffer=4096) as server, Peer(server) as writer:
            assert writer.call("set", NO_VIEW, b"a", value) is True
            with Peer(server, receive_buffer=4096) as deaf:
                deaf.sock.sendall(b"".join(call(number, "get", NO_VIEW, b"a") for number in range(count)))
                assert wait_until(lambda: server.event_loop.buffers.used > MIB)
                assert writer.call("ping")["name"] == NAME
                most = max(connection.held for connection in server.event_loop.connections)
                assert most < 2 * MIB, "no more is answered than is read"
                assert [deaf.answer() for _ in range(count)] == [(number, value) for number in range(count)]
                assert deaf.call("get", NO_VIEW, b"a") == value
            assert server.at_rest(1)

    def test_one_that_has_read_a_large_reply_is_idle_again(self) -> None:
        with running(send_buffer=4096) as server, Peer(server) as writer:
            assert writer.call("set", NO_VIEW, b"a", content(2 * MIB)) is True
            with Peer(server, receive_buffer=4096) as reader:
                reader.sock.sendall(call(0, "contains", NO_VIEW, b"a") + call(1, "get", NO_VIEW, b"a"))
                assert wait_until(lambda: server.event_loop.buffers.used > MIB)
                assert reader.answer() == (0, True)
                assert reader.answer() == (1, content(2 * MIB))
                assert wait_until(lambda: all(c.idle for c in server.event_loop.connections))
                assert {c.events for c in server.event_loop.connections} == {select.POLLIN}, (
                    "or the loop spins"
                )

    def test_small_replies_are_held_back_too(self) -> None:
        with running(send_buffer=4096) as server, Peer(server, receive_buffer=4096) as deaf:
            connection = server.connection()
            request = b"".join(message(number, b"", kind=framing.PING) for number in range(1000))
            sent = flood(deaf.sock, request, 60 * MIB)
            assert wait_until(lambda: connection.unread >= MIB)
            sent += flood(deaf.sock, request[sent % len(request) :] + request, 60 * MIB)
            assert connection.held < 2 * MIB
            deaf.sock.settimeout(PATIENCE_SECONDS)
            for number in range(sent // framing.HEADER_BYTES):
                assert deaf.answer() == (number % 1000, b"pong")
            assert wait_until(lambda: connection.unread == 0)

    def test_it_is_cut_off_at_its_deadline_while_others_are_served(self) -> None:
        with running(send_buffer=4096, request_seconds=0.3) as server, Peer(server) as other:
            assert other.call("set", NO_VIEW, b"a", content(300_000)) is True
            with Peer(server, receive_buffer=4096) as deaf:
                deaf.sock.sendall(call(1, "get", NO_VIEW, b"a") * 20)
                while len(server.event_loop.connections) > 1:
                    assert other.call("get", NO_VIEW, b"a") == content(300_000)
            assert other.call("ping")["serving"] is True
            assert server.at_rest(1)

    def test_requests_held_back_go_on_when_the_peer_reads_all_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The peer reads between the node's last vain attempt to send and its next: nothing is forgotten over it."""
        send = Connection.send

        def send_later(connection: Connection) -> None:
            if sys._getframe(1).f_code.co_name != "_answer":  # there the socket is still full
                send(connection)

        monkeypatch.setattr(event_loop_module.Connection, "send", send_later)
        value = content(300_000)
        with running() as server, Peer(server) as peer:
            assert peer.call("set", NO_VIEW, b"a", value) is True
            peer.sock.sendall(b"".join(call(number, "get", NO_VIEW, b"a") for number in range(20)))
            peer.sock.settimeout(3.0)
            assert [peer.answer() for _ in range(20)] == [(number, value) for number in range(20)]


def flood(sock: socket.socket, data: bytes, most: int) -> int:
    """Send as much as the other side takes until it takes no more for a moment; how much that was."""
    sent = 0
    sock.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while sent < most:
            sent += sock.send(data[sent % len(data) :])
    return sent


class TestBounds:
    """More than all connections together may keep."""

    def test_the_largest_half_request_is_refused_and_its_connection_goes_on(self) -> None:
        with running(max_buffered_bytes=8 * MIB) as server, Peer(server) as hog, Peer(server) as modest:
            large = call(5, "set", NO_VIEW, b"large", content(12 * MIB))
            small = call(6, "set", NO_VIEW, b"small", content(3 * MIB))
            modest.sock.sendall(small[: 2 * MIB])
            assert wait_until(lambda: server.event_loop.buffers.used == 2 * MIB)
            hog.sock.sendall(large[: 7 * MIB])
            sequence, refusal = hog.answer()
            assert (sequence, refusal.code) == (5, refusals.OVERLOADED)
            assert wait_until(lambda: server.event_loop.buffers.used == 2 * MIB)
            hog.sock.sendall(large[7 * MIB :] + call(7, "contains", NO_VIEW, b"large"))
            assert hog.answer() == (7, False)
            modest.sock.sendall(small[2 * MIB :])
            assert modest.answer() == (6, True)
            assert hog.call("set", NO_VIEW, b"large", content(3 * MIB)) is True
            assert hog.call("get", NO_VIEW, b"small") == content(3 * MIB)
            assert server.at_rest(2)

    @pytest.mark.parametrize("at", [0, 1, 100_000, 5 * MIB - 1, 5 * MIB])
    def test_what_is_still_to_come_of_a_refused_request_is_skipped_to_the_byte(self, at: int) -> None:
        with running(max_buffered_bytes=4 * MIB) as server, Peer(server) as peer:
            large = call(5, "set", NO_VIEW, b"large", content(10 * MIB))
            peer.sock.sendall(large[: 5 * MIB])
            assert peer.answer()[1].code == refusals.OVERLOADED
            rest = large[5 * MIB :] + call(6, "set", NO_VIEW, b"small", b"v")
            peer.sock.sendall(rest[:at])
            time.sleep(0.02)
            peer.sock.sendall(rest[at:])
            assert peer.answer() == (6, True)
            assert peer.call("get", NO_VIEW, b"small") == b"v"
            assert peer.call("get", NO_VIEW, b"large") is None

    def test_a_refused_request_of_which_no_more_comes_meets_its_deadline(self) -> None:
        with running(max_buffered_bytes=4 * MIB, request_seconds=0.3) as server, Peer(server) as peer:
            peer.sock.sendall(call(5, "set", NO_VIEW, b"large", content(10 * MIB))[: 5 * MIB])
            assert peer.answer()[1].code == refusals.OVERLOADED
            assert peer.fate() == CLOSED
            assert server.at_rest()

    def test_bytes_are_counted_right_when_replies_wait_too(self) -> None:
        """A peer that left a little unread, and then sends too much, is refused; nothing stays counted."""
        with running(max_buffered_bytes=6 * MIB, send_buffer=4096) as server:
            with Peer(server) as writer:
                assert writer.call("set", NO_VIEW, b"a", content(300_000)) is True
            with Peer(server, receive_buffer=4096) as peer:
                connection = server.connection()
                peer.sock.sendall(call(1, "get", NO_VIEW, b"a") + call(2, "get", NO_VIEW, b"a"))
                assert wait_until(lambda: connection.unread > 200_000)
                peer.sock.sendall(call(3, "set", NO_VIEW, b"large", content(12 * MIB)))
                assert wait_until(lambda: connection.decoder.between_frames)
                assert server.event_loop.buffers.used == connection.held
                assert [peer.answer() for _ in range(2)] == [(1, content(300_000)), (2, content(300_000))]
                sequence, refusal = peer.answer()
                assert (sequence, refusal.code) == (3, refusals.OVERLOADED)
                assert server.at_rest(1)
            assert server.at_rest()

    def test_a_large_reply_without_room_is_refused_and_its_connection_goes_on(self) -> None:
        with running(max_buffered_bytes=3 * MIB, send_buffer=4096) as server, Peer(server) as other:
            assert other.call("set", NO_VIEW, b"a", content(2 * MIB)) is True
            with Peer(server, receive_buffer=4096) as deaf:
                deaf.sock.sendall(call(1, "get", NO_VIEW, b"a"))
                assert wait_until(lambda: server.event_loop.buffers.used > MIB)
                refused = other.call("get", NO_VIEW, b"a")
                assert isinstance(refused, Refusal)
                assert refused.code == refusals.OVERLOADED
                assert other.call("contains", NO_VIEW, b"a") is True
                assert deaf.answer() == (1, content(2 * MIB))
            assert other.call("get", NO_VIEW, b"a") == content(2 * MIB)
            assert server.at_rest(1)

    def test_whoever_leaves_most_unread_is_closed(self) -> None:
        with running(max_buffered_bytes=3 * MIB, send_buffer=4096) as server, Peer(server) as other:
            assert other.call("set", NO_VIEW, b"a", content(20_000)) is True
            with ExitStack() as stack:
                deaf = [stack.enter_context(Peer(server, receive_buffer=4096)) for _ in range(5)]
                for peer in deaf:
                    peer.sock.sendall(b"".join(call(number, "get", NO_VIEW, b"a") for number in range(60)))
                assert wait_until(lambda: len(server.event_loop.connections) < 6)
                assert wait_until(lambda: server.event_loop.buffers.used <= 3 * MIB)
                assert other.call("contains", NO_VIEW, b"a") is True
                fates = [peer.fate() for peer in deaf]
            assert CLOSED in fates
            assert len([fate for fate in fates if fate != CLOSED]) >= 2
            assert server.at_rest(1)


class TestJobs:
    """Calls that take long."""

    def test_one_too_many_is_refused_and_the_others_are_answered(self) -> None:
        with running(workers=1, max_queued_calls=2) as server, ExitStack() as stack:
            server.node.gate.clear()
            peers = [stack.enter_context(Peer(server)) for _ in range(4)]
            for number, peer in enumerate(peers):
                peer.sock.sendall(call(number, "count", NO_VIEW, b"") + call(100 + number, "ping"))
                time.sleep(0.05)  # in that order
            for number, peer in enumerate(peers[2:], 2):
                sequence, refusal = peer.answer()
                assert (sequence, refusal.code) == (number, refusals.OVERLOADED)
                assert peer.answer()[0] == 100 + number
                assert peer.call("get", NO_VIEW, b"a") is None
            server.node.gate.set()
            for number, peer in enumerate(peers[:2]):
                assert peer.answer() == (number, 0)
                assert peer.answer()[0] == 100 + number
            assert peers[3].call("count", NO_VIEW, b"") == 0
            assert server.at_rest(4)

    def test_requests_behind_a_long_call_wait_for_it(self) -> None:
        with running() as server, Peer(server) as peer, Peer(server) as other:
            server.node.gate.clear()
            behind = b"".join(call(number, "set", NO_VIEW, b"%d" % number, b"v") for number in range(2, 500))
            peer.sock.sendall(call(1, "count", NO_VIEW, b"") + behind)
            assert other.call("set", NO_VIEW, b"other", b"v") is True
            assert other.call("contains", NO_VIEW, b"2") is False
            server.node.gate.set()
            assert peer.answer() == (1, 1)
            assert [peer.answer() for _ in range(2, 500)] == [(number, True) for number in range(2, 500)]

    def test_a_peer_that_leaves_in_mid_call_leaves_nothing(self) -> None:
        with running(workers=1) as server:
            server.node.gate.clear()
            for _ in range(3):
                with Peer(server) as peer:
                    peer.sock.sendall(
                        call(1, "count", NO_VIEW, b"") + call(2, "set", NO_VIEW, b"a", content(MIB))[:5000]
                    )
            with Peer(server) as other:
                assert other.call("ping")["serving"] is True
            server.node.gate.set()
            assert server.at_rest()
            with Peer(server) as other:
                assert other.call("count", NO_VIEW, b"") == 0


class TestWaitingCalls:
    """Calls whose reply is made later, by somebody else or by the clock."""

    def test_the_reply_comes_when_it_is_given_and_others_are_served_meanwhile(self, server: Server) -> None:
        with Peer(server) as peer, Peer(server) as other:
            peer.sock.sendall(call(1, "hold", b"it") + call(2, "set", NO_VIEW, b"behind", b"v"))
            deferred = server.node.waiting(b"it")
            assert other.call("contains", NO_VIEW, b"behind") is False
            assert not readable(peer.sock)
            assert deferred.give([b"result", 7]) is True
            assert peer.answer() == (1, [b"result", 7])
            assert peer.answer() == (2, True)
            assert not deferred.session.closed

    @pytest.mark.parametrize("seconds", [-1, 0, 0.002])
    def test_a_result_may_be_there_at_once(self, server: Server, seconds: float) -> None:
        with Peer(server) as peer:
            for _ in range(3):
                assert peer.call("pause", seconds) == b"over"
                assert peer.call("get", NO_VIEW, b"a") is None

    def test_refusals_are_told(self, server: Server) -> None:
        with Peer(server) as peer:
            assert peer.call("pause", -2) == Refusal(refusals.BAD_REQUEST, "no such pause")
            assert peer.call("pause").code == refusals.BAD_REQUEST
            assert peer.call("pause", "soon").code == refusals.BAD_REQUEST
            peer.sock.sendall(call(7, "hold", b"it"))
            assert server.node.waiting(b"it").refuse(PyroError("no longer")) is True
            assert peer.answer() == (7, Refusal(refusals.BAD_REQUEST, "no longer"))
            peer.sock.sendall(call(8, "hold", b"what cannot be sent"))
            server.node.waiting(b"what cannot be sent").give(object())
            assert peer.answer()[0] == 8
            assert peer.call("ping")["serving"] is True

    def test_deadlines_are_met_to_a_few_milliseconds(self, server: Server) -> None:
        late = []
        with Peer(server) as peer, Peer(server) as other:
            other.sock.sendall(call(1, "pause", 600.0))  # no reason to look seldom
            for _ in range(15):
                seconds = random.uniform(0.001, 0.1)
                before = time.monotonic()
                assert peer.call("pause", seconds) == b"over"
                late.append(time.monotonic() - before - seconds)
        assert min(late) >= 0
        assert sorted(late)[len(late) // 2] < 0.01

    def test_what_another_thread_gives_is_sent_at_once(self, server: Server) -> None:
        took = []
        with Peer(server) as peer:
            for number in range(10):
                peer.sock.sendall(call(1, "hold", b"%d" % number))
                deferred = server.node.waiting(b"%d" % number)
                time.sleep(0.01)  # the node sleeps by now
                before = time.monotonic()
                deferred.give(None)
                assert peer.answer() == (1, None)
                took.append(time.monotonic() - before)
        assert sorted(took)[5] < 0.05, "not at the next tick"

    def test_many_wait_together_and_no_thread_with_them(self, server: Server) -> None:
        count = 300
        threads = threading.active_count()
        with ExitStack() as stack:
            peers = [stack.enter_context(Peer(server)) for _ in range(count)]
            for number, peer in enumerate(peers):
                peer.sock.sendall(call(1, "hold", b"%d" % number, 600.0 if number % 2 else 0.3))
            laters = [server.node.waiting(b"%d" % number) for number in range(count)]
            assert threading.active_count() <= threads
            for number in range(1, count, 2):
                assert laters[number].give(number) is True
            answers = [peer.answer()[1] for peer in peers]
        assert answers == [number if number % 2 else None for number in range(count)]

    def test_one_request_ends_the_wait_of_another(self, server: Server, turns: Any) -> None:
        """On the I/O thread, in the midst of its round."""
        server.node.turns = turns
        with Peer(server) as first, Peer(server) as second:
            token = first.call("take_turn", 1.0)
            waited = []
            for holder, waiter in [(first, second), (second, first)] * 20:
                waiter.sock.sendall(call(77, "take_turn", 600.0))
                assert wait_until(lambda: len(turns.queue) == 1)
                before = time.monotonic()
                assert holder.call("end_turn", token) is True
                sequence, token = waiter.answer()
                assert sequence == 77
                waited.append(time.monotonic() - before)
            assert sorted(waited)[20] < 0.1, "not at the next tick"
            assert second.call("take_turn", 0.01) is None
        assert wait_until(lambda: turns.holder is None)

    @pytest.mark.parametrize("way", ["close", "close with input unread", "reset", "half close"])
    def test_whoever_hangs_up_waits_no_longer(self, server: Server, way: str) -> None:
        check_hang_up(server, way)

    @pytest.mark.parametrize("way", ["close", "close with input unread", "reset", "half close"])
    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_nor_on_systems_without_epoll(
        self, monkeypatch: pytest.MonkeyPatch, way: str, family: str
    ) -> None:
        monkeypatch.delattr(select, "epoll", raising=False)
        with running(family) as server:
            check_hang_up(server, way)

    def test_after_a_wait_one_that_says_no_more_still_gets_its_replies(self, server: Server) -> None:
        server.node.gate.clear()
        with Peer(server) as peer:
            assert peer.call("pause", 0.001) == b"over"
            peer.sock.sendall(call(7, "count", NO_VIEW, b""))
            peer.sock.shutdown(socket.SHUT_WR)
            assert not readable(peer.sock)
            server.node.gate.set()
            assert peer.answer() == (7, 0)

    def test_hanging_up_is_noticed_while_replies_are_unread_too(self) -> None:
        with running(send_buffer=4096) as server, Peer(server, receive_buffer=4096) as peer:
            assert peer.call("set", NO_VIEW, b"a", content(300_000)) is True
            peer.sock.sendall(call(1, "get", NO_VIEW, b"a") + call(2, "hold", b"it"))
            deferred = server.node.waiting(b"it")
            assert server.connection().unread > 0
            peer.sock.shutdown(socket.SHUT_WR)
            assert wait_until(lambda: deferred.session.closed, 1.0)
            assert not deferred.waiting

    @pytest.mark.parametrize("family", ["tcp", "unix"])
    def test_what_is_given_to_one_that_leaves_goes_to_the_next(self, family: str, turns: Any) -> None:
        """Peers that leave at any moment, before, while and after the only token is theirs."""
        with running(family) as server:
            server.node.turns = turns
            inside: list[int] = []
            tokens: list[int] = []

            def live(seed: int) -> None:
                chance = random.Random(seed)
                for _ in range(60):
                    with Peer(server) as peer:
                        peer.sock.sendall(call(1, "take_turn", chance.choice([0.001, 600.0])))
                        if chance.random() < 0.4:
                            time.sleep(chance.random() * 0.002)
                            continue
                        _, token = peer.answer()
                        if token is None:
                            continue
                        inside.append(token)
                        assert len(inside) == 1
                        tokens.append(token)
                        assert inside.pop() == token
                        if chance.random() < 0.5:
                            assert peer.call("end_turn", token) is True

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(live, range(8)))
            with Peer(server) as last:
                assert last.call("take_turn", 1.0) > max(tokens)
            assert tokens == sorted(tokens)
            assert server.at_rest()

    def test_large_outcomes_for_which_there_is_no_room_are_refused(self) -> None:
        with running(max_buffered_bytes=4 * MIB, send_buffer=4096) as server, ExitStack() as stack:
            peers = [stack.enter_context(Peer(server, receive_buffer=4096)) for _ in range(10)]
            for number, peer in enumerate(peers):
                peer.sock.sendall(call(1, "hold", b"%d" % number))
            for number in range(10):
                server.node.waiting(b"%d" % number).give(content(MIB))
            assert wait_until(
                lambda: not any(connection.busy for connection in server.event_loop.connections)
            )
            assert server.event_loop.buffers.used <= 4 * MIB
            answers = [peer.answer()[1] for peer in peers]
            refused = [answer for answer in answers if isinstance(answer, Refusal)]
            assert {answer.code for answer in refused} == {refusals.OVERLOADED}
            assert len(refused) >= 6
            assert [answer for answer in answers if answer == content(MIB)]
            assert server.at_rest(10)

    @pytest.mark.parametrize(
        "end", ["the node stops", "its replies stay unread", "it leaves too much unread"]
    )
    def test_a_wait_is_over_when_its_connection_is(self, end: str) -> None:
        limits = {"request_seconds": 0.3} if end == "its replies stay unread" else {}
        with running(send_buffer=4096, max_buffered_bytes=MIB, **limits) as server, ExitStack() as stack:
            other, peer = (stack.enter_context(Peer(server, receive_buffer=4096)) for _ in range(2))
            assert other.call("set", NO_VIEW, b"a", content(300_000)) is True
            peer.sock.sendall(call(1, "get", NO_VIEW, b"a") * 2 + call(2, "hold", b"it"))
            deferred = server.node.waiting(b"it")
            given: list[bool] = []
            deferred.session.on_close(lambda: given.append(deferred.give(None)))
            assert wait_until(lambda: server.event_loop.buffers.used > 500_000)
            if end == "the node stops":
                server.event_loop.shutdown()
            elif end == "it leaves too much unread":
                other.sock.sendall(call(1, "set", NO_VIEW, b"b", content(600_000))[:-100_000])
            assert wait_until(lambda: given == [False]), "nothing can be given any more when the peer closes"

    @pytest.mark.parametrize("end", ["it leaves", "garbage", "a refused header", "idle", "the node stops"])
    def test_however_a_connection_ends_its_peer_is_closed(self, end: str) -> None:
        limits = {"idle_seconds": 0.3} if end == "idle" else {}
        closed: list[int] = []
        with running(**limits) as server, Peer(server) as peer:
            peer.sock.sendall(call(1, "hold", b"it"))
            deferred = server.node.waiting(b"it")
            deferred.session.on_close(lambda: closed.append(threading.get_ident()))
            assert deferred.give(None) is True
            assert peer.answer() == (1, None)
            assert not deferred.session.closed
            if end == "it leaves":
                peer.sock.close()
            elif end == "the node stops":
                server.event_loop.shutdown()
            elif end != "idle":
                peer.sock.sendall(bytes(100) if end == "garbage" else GARBAGE["a batch"][0])
            assert wait_until(lambda: deferred.session.closed)
            assert wait_until(lambda: len(closed) == 1)

    def test_a_peer_that_holds_something_may_be_idle_for_longer(self) -> None:
        with running(idle_seconds=0.3) as server, Peer(server) as peer:
            peer.sock.sendall(call(1, "hold", b"it"))
            deferred = server.node.waiting(b"it")
            deferred.session.holds = 1
            deferred.give(None)
            assert peer.answer() == (1, None)
            time.sleep(1.0)
            assert not deferred.session.closed
            deferred.session.holds = 0
            assert wait_until(lambda: deferred.session.closed)

    def test_after_a_standstill_a_peer_may_send_before_it_is_idle_for_too_long(self) -> None:
        clock = FakeClock(1000.0)
        with running(clock=clock, idle_seconds=60.0) as server, Peer(server) as busy, Peer(server) as idle:
            ticks = 0

            def tick() -> bool:
                nonlocal ticks
                ticks += 1
                return False

            server.event_loop._housekeeping = tick
            clock.tick(3600.0)
            assert wait_until(lambda: ticks == 1)
            assert isinstance(busy.call("ping"), dict)
            clock.tick(1.0)
            assert idle.fate() == CLOSED
            assert isinstance(busy.call("ping"), dict)

    def test_waiting_does_not_count_as_being_idle(self) -> None:
        with running(idle_seconds=0.1, request_seconds=0.1) as server, Peer(server) as peer:
            assert peer.call("pause", 0.8) == b"over"


UNORDERED = {"capabilities": "pipelined unordered"}


class TestUnordered:
    """Callers that take replies in any order."""

    def test_calls_that_take_long_delay_no_other(self, server: Server) -> None:
        server.node.gate.clear()
        with Peer(server, **UNORDERED) as peer:
            peer.sock.sendall(
                call(1, "hold", b"1") + call(2, "count", NO_VIEW, b"\0") + call(3, "hold", b"3")
                + call(4, "set", NO_VIEW, b"a", b"v") + call(5, "get", NO_VIEW, b"a")
            )  # fmt: skip
            assert peer.answer() == (4, True)
            assert peer.answer() == (5, b"v")
            server.node.waiting(b"3").give("three")
            assert peer.answer() == (3, "three")
            peer.sock.sendall(call(6, "pause", 0.001) + call(7, "pause", -1))
            assert sorted([peer.answer(), peer.answer()]) == [(6, b"over"), (7, b"over")]
            server.node.gate.set()
            assert peer.answer() == (2, 0)
            server.node.waiting(b"1").refuse(PyroError("no longer"))
            assert peer.answer() == (1, Refusal(refusals.BAD_REQUEST, "no longer"))
            connection = server.connection()
            assert (connection.outstanding, connection.deferred, connection.busy) == (0, set(), False)
            assert connection.idle

    def test_the_order_is_kept_for_others(self, server: Server) -> None:
        server.node.gate.clear()
        with Peer(server, capabilities="pipelined") as peer:
            peer.sock.sendall(call(1, "count", NO_VIEW, b"\0") + call(2, "hold", b"2") + call(3, "ping"))
            assert not readable(peer.sock)
            server.node.gate.set()
            assert peer.answer() == (1, 0)
            deferred = server.node.waiting(b"2")
            assert not readable(peer.sock)
            deferred.give("two")
            assert peer.answer() == (2, "two")
            assert peer.answer()[0] == 3

    def test_large_replies_and_unread_ones_in_a_burst(self) -> None:
        """The burst ends where the peer must read first."""
        with (
            running(send_buffer=4096) as server,
            Peer(server, capabilities="pipelined", receive_buffer=4096) as peer,
        ):
            values = {b"s": b"v", b"m": content(60_000), b"l": content(MIB)}
            for key, value in values.items():
                assert peer.call("set", NO_VIEW, key, value) is True
            keys = [b"s", b"m", b"l", b"s"] + [b"m"] * 60 + [b"s"] * 5
            peer.sock.sendall(b"".join(call(number, "get", NO_VIEW, key) for number, key in enumerate(keys)))
            assert wait_until(lambda: server.connection().throttled)
            assert server.connection().unread < 3 * MIB
            for number, key in enumerate(keys):
                assert peer.answer() == (number, values[key])
            assert server.at_rest(1)
            assert wait_until(lambda: server.connection().idle)

    def test_many_replies_that_are_there_at_once(self, server: Server) -> None:
        with Peer(server, **UNORDERED) as peer:
            peer.sock.sendall(b"".join(call(number, "hold", b"%d" % number) for number in range(1000)))
            held = [server.node.waiting(b"%d" % number) for number in range(1000)]
            for number, deferred in enumerate(held):
                deferred.give(number)
            assert sorted(peer.answer() for _ in held) == [(number, number) for number in range(1000)]

    def test_deferred_calls_are_bounded(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyrocache.server.calls.DEFERRED_CALLS", 10)
        with Peer(server, **UNORDERED) as peer, Peer(server, **UNORDERED) as other:
            peer.sock.sendall(b"".join(call(number, "hold", b"%d" % number) for number in range(12)))
            assert {peer.answer()[0], peer.answer()[0]} == {10, 11}
            other.sock.sendall(call(1, "hold", b"other"))
            server.node.waiting(b"other").give(None)
            assert other.answer() == (1, None)
            server.node.waiting(b"3").give("three")
            assert peer.answer() == (3, "three")
            assert peer.call("pause", 0.001) == b"over"

    def test_jobs_are_within_the_quota(self) -> None:
        with running(workers=1, max_queued_calls=8) as server, Peer(server, **UNORDERED) as peer:
            server.node.gate.clear()
            peer.sock.sendall(b"".join(call(number, "count", NO_VIEW, b"\0") for number in range(4)))
            assert [peer.answer(), peer.answer()] == [
                (number, Refusal(refusals.OVERLOADED, "The node has too much to do; try again."))
                for number in (2, 3)
            ]
            with Peer(server) as other:
                other.sock.sendall(call(1, "count", NO_VIEW, b"\0"))
                server.node.gate.set()
                assert other.answer() == (1, 0)
            assert sorted([peer.answer(), peer.answer()]) == [(0, 0), (1, 0)]

    @pytest.mark.parametrize("way", ["close", "reset", "half close", "garbage"])
    def test_all_its_waits_end_with_a_connection(self, server: Server, way: str) -> None:
        peer = Peer(server, **UNORDERED)
        with peer:
            peer.sock.sendall(b"".join(call(number, "hold", b"%d" % number) for number in range(50)))
            held = [server.node.waiting(b"%d" % number) for number in range(50)]
            if way == "reset":
                peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if way == "half close":
                peer.sock.shutdown(socket.SHUT_WR)
                assert peer.fate() == CLOSED
            elif way == "garbage":
                peer.sock.sendall(b"garbage" * 10)
                assert peer.fate() == CLOSED
        assert wait_until(lambda: not any(deferred.waiting for deferred in held))
        assert server.at_rest()

    def test_a_waiting_connection_outlives_the_limit_of_idle_ones(self) -> None:
        with running(idle_seconds=0.3, request_seconds=0.3) as server, Peer(server, **UNORDERED) as peer:
            peer.sock.sendall(call(1, "hold", b"1"))
            deferred = server.node.waiting(b"1")
            with Peer(server, **UNORDERED) as other:
                assert other.fate() == CLOSED
            deferred.give(1)
            assert peer.answer() == (1, 1)
            assert peer.fate() == CLOSED

    def test_half_a_request_is_late_whatever_is_outstanding(self) -> None:
        with running(request_seconds=0.3) as server, Peer(server, **UNORDERED) as peer:
            waits = b"".join(call(number, "pause", number / 5) for number in range(1, 20))
            peer.sock.sendall(waits + call(99, "ping")[:-1])
            fates = []
            while CLOSED not in fates:
                fates.append(peer.fate())
            assert len(fates) < 20


class TestLease:
    """Until when the node may answer."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock(1000.0)

    @pytest.fixture
    def leased(self, clock: FakeClock) -> Iterator[Server]:
        with running(clock=clock) as server:
            server.event_loop.lease_until = 1000.1
            yield server

    @pytest.mark.parametrize("size", [1, 300 * KIB], ids=["alone and small", "in parts"])
    def test_what_is_received_after_its_end_is_refused(
        self, leased: Server, clock: FakeClock, size: int
    ) -> None:
        value = bytes(size)
        with Peer(leased) as peer:
            clock.now = 1000.09
            assert peer.call("set", NO_VIEW, b"key", value) is True
            assert leased.lapses == 0
            clock.now = 1000.1
            assert peer.call("set", NO_VIEW, b"key", value).code == refusals.NOT_SERVING
            assert peer.call("get", NO_VIEW, b"key").code == refusals.NOT_SERVING
            assert leased.lapses > 0

    def test_requests_that_waited_on_their_connection_are_refused(
        self, leased: Server, clock: FakeClock
    ) -> None:
        with Peer(leased) as peer:
            peer.sock.sendall(call(1, "hold", b"it") + call(2, "set", NO_VIEW, b"key", b"value"))
            deferred = leased.node.waiting(b"it")
            clock.now = 1000.15
            assert deferred.give(b"result") is True
            assert peer.answer() == (1, b"result")
            sequence, refused = peer.answer()
            assert (sequence, refused.code) == (2, refusals.NOT_SERVING)

    def test_it_is_noted_without_a_request(self, leased: Server, clock: FakeClock) -> None:
        clock.now = 1000.15
        leased.event_loop.wake()
        assert wait_until(lambda: leased.lapses > 0)

    def test_a_renewed_lease_is_one(self, leased: Server, clock: FakeClock) -> None:
        with Peer(leased) as peer:
            clock.now = 1000.15
            assert peer.call("get", NO_VIEW, b"key").code == refusals.NOT_SERVING
            leased.event_loop.lease_until = 1000.2
            leased.node.ownership.lapse(False)
            assert peer.call("get", NO_VIEW, b"key") is None


def check_hang_up(server: Server, way: str) -> None:
    """Whoever leaves in this way while it waits is noticed at once, and what it waited for goes to somebody else."""
    with Peer(server) as peer, Peer(server) as other:
        peer.sock.sendall(call(1, "hold", b"it"))
        deferred = server.node.waiting(b"it")
        if way == "close with input unread":
            peer.sock.sendall(call(2, "ping") * 100)
        if way == "reset":
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if way == "half close":
            peer.sock.shutdown(socket.SHUT_WR)
        else:
            peer.sock.close()
        assert wait_until(lambda: deferred.session.closed, 1.0)
        assert deferred.give(b"result") is False
        assert other.call("ping")["serving"] is True
        assert wait_until(lambda: len(server.event_loop.connections) == 1)


def readable(sock: socket.socket) -> bool:
    """Whether something has come."""
    return bool(select.select([sock], [], [], 0.05)[0])


class TestConnections:
    def test_one_too_many_is_told_so(self) -> None:
        for family in ("tcp", "unix"):
            with running(family, max_connections=2) as server, Peer(server), Peer(server) as second:
                with Peer(server, greet=False) as third:
                    answer = third.receive()
                    assert answer.header.type == framing.CONNECT_FAIL
                    assert messages.unpack_plain(answer.body).startswith("overloaded")
                    assert third.fate() == CLOSED
                assert second.call("ping")["serving"] is True
                second.sock.close()
                assert wait_until(lambda server=server: len(server.event_loop.connections) == 1)
                with Peer(server) as fourth:
                    assert fourth.call("ping")["serving"] is True

    def test_whoever_says_nothing_is_closed_at_its_deadline(self) -> None:
        limits = {"handshake_seconds": 0.3, "request_seconds": 0.3, "idle_seconds": 0.3}
        with running(**limits) as server, ExitStack() as stack:
            silent = [stack.enter_context(Peer(server, greet=greet)) for greet in (True, False)]
            half = [stack.enter_context(Peer(server, greet=greet)) for greet in (True, False)]
            half[0].sock.sendall(call(1, "set", NO_VIEW, b"a", content(MIB + 9))[:-1])
            half[1].sock.sendall(handshake()[:-1])
            assert [peer.fate() for peer in silent + half] == [CLOSED] * 4
            assert server.at_rest()

    def test_a_stop_closes_everything(self) -> None:
        with running() as server, Peer(server) as peer, Peer(server) as half:
            half.sock.sendall(call(1, "set", NO_VIEW, b"a", content(MIB + 9))[:-1])
            assert wait_until(lambda: server.event_loop.buffers.used > MIB)
            server.event_loop.shutdown()
            assert peer.fate() == CLOSED
            assert half.fate() == CLOSED
            assert server.at_rest()

    def test_for_how_long_there_was_no_client(self) -> None:
        clock = FakeClock(1000.0)
        with running(clock=clock) as server, Peer(server, greet=False) as node:
            node.sock.sendall(handshake(greeting={"caller": "cache.node.2 0123"}))
            assert node.receive().header.type == framing.CONNECT_OK
            with Peer(server, greet=False):
                clock.tick(3.0)
                assert server.event_loop.clientless_seconds() == 3.0  # a node, and somebody who says nothing
            with Peer(server):
                clock.tick(3.0)
                assert server.event_loop.clientless_seconds() == 0.0
            assert wait_until(lambda: len(server.event_loop.connections) == 1)
            clock.tick(2.0)
            assert server.event_loop.clientless_seconds() == 2.0
