"""Requests with an identity and a deadline, and those that waited while the server stood still.

First the rule by itself, then the event loop with it, on real sockets.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from pyrocache.config import NodeConfig
from pyrocache.protocol import framing, messages, refusals
from pyrocache.protocol.commands import ACQUIRE, DELETE_PREFIX, GET, SET
from pyrocache.protocol.framing import Frame
from pyrocache.protocol.handshake import ClientHandshake, Greeting
from pyrocache.protocol.refusals import Refusal
from pyrocache.protocol.request_id import REPEAT, RequestId, milliseconds
from pyrocache.server.deferred import Deferred, Session
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop
from pyrocache.server.outcomes import Outcomes
from pyrocache.server.requests import Requests, identity_of, is_late
from pyrocache.testing import FakeClock
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.wire import frame_decoder, result_of

NAME = "cache.node.1"
SESSION = b"sessions"


NOW = 100.0
IN_TIME, TOO_LATE = milliseconds(NOW + 5.0), milliseconds(NOW - 5.0)
REPLY = framing.pack_message(framing.RESULT, 1, messages.pack_plain(7))


class TestRule:
    @pytest.fixture
    def outcomes(self) -> Outcomes:
        return Outcomes()

    def answer(self, outcomes: Outcomes, identity: RequestId | None, **how: bool) -> bytes | str | None:
        """The code of a refusal, or as `Requests.answer`."""
        answer = Requests(outcomes).answer(identity, NOW, **{"once": True, "waited": False, **how})
        return answer.code if isinstance(answer, Refusal) else answer

    def test_a_client_without_a_session_has_no_identity(self) -> None:
        session = Session()
        assert identity_of(session, SESSION, 9, IN_TIME) is None
        session.client = SESSION
        assert identity_of(session, b"another.", 9, IN_TIME) is None
        assert identity_of(session, SESSION, 9, IN_TIME) == (SESSION, 9, IN_TIME)

    @pytest.mark.parametrize(
        ("seconds", "late"), [(-9.0, True), (-0.001, True), (0.0, False), (2_000_000.0, False)]
    )
    def test_a_request_is_late_after_its_deadline(self, seconds: float, late: bool) -> None:
        now = 4_294_967.0  # whose milliseconds soon begin again at 0
        assert is_late(RequestId(SESSION, 9, milliseconds(now + seconds)), now) is late

    def test_what_is_in_time_is_executed(self, outcomes: Outcomes) -> None:
        assert self.answer(outcomes, RequestId(SESSION, 9, IN_TIME)) is None
        assert self.answer(outcomes, None) is None

    @pytest.mark.parametrize("number", [9, REPEAT + 9])
    def test_what_is_late_is_not(self, outcomes: Outcomes, number: int) -> None:
        assert self.answer(outcomes, RequestId(SESSION, number, TOO_LATE), once=False) == refusals.TRY_AGAIN
        assert outcomes.refused == {}

    def test_a_change_that_waited_is_not_executed(self, outcomes: Outcomes) -> None:
        for identity in (None, RequestId(SESSION, 9, IN_TIME), RequestId(SESSION, REPEAT + 9, IN_TIME)):
            assert self.answer(outcomes, identity, waited=True) == refusals.TRY_AGAIN
        assert outcomes.refused == {}
        assert self.answer(outcomes, None, waited=True, once=False) is None

    def test_a_repeat_gets_the_outcome_or_ends_its_original(self, outcomes: Outcomes) -> None:
        session = Session()
        session.client = SESSION
        outcomes.join(session)
        outcomes.finish(session, 9, REPLY, NOW)
        assert self.answer(outcomes, RequestId(SESSION, REPEAT + 9, IN_TIME)) == REPLY
        assert self.answer(outcomes, RequestId(SESSION, REPEAT + 8, IN_TIME)) == refusals.NOT_DONE
        assert self.answer(outcomes, RequestId(SESSION, 8, IN_TIME)) == refusals.TRY_AGAIN
        assert self.answer(outcomes, RequestId(b"another.", 8, IN_TIME)) is None


class Target:
    """Counts its changes. ``b"stop"`` as key blocks the caller's thread until `gate` is set."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.stopped = threading.Event()
        self.values: list[bytes] = []
        self.waiting: list[Deferred] = []

    def get(self, view: int, key: bytes) -> bytes:
        if key == b"stop":
            self.stopped.set()
            assert self.gate.wait(PATIENCE_SECONDS)
        return b"value"

    def set(self, view: int, key: bytes, value: bytes) -> Any:
        self.values.append(bytes(value))
        if key == b"pop":
            return b"p" * 2**20
        return value if key == b"echo" else len(self.values)

    def delete_prefix(self, key: bytes) -> int:
        self.get(0, key)
        return self.set(0, key, b"deleted")  # type: ignore[no-any-return]

    def acquire(self) -> None: ...

    def begin_acquire(self, session: Session, seconds: float) -> Deferred:
        self.waiting.append(Deferred(session, seconds, "over"))
        return self.waiting[-1]


class Server:
    """A running event loop with a clock that stands still."""

    def __init__(self, **limits: Any) -> None:
        self.clock = FakeClock(4_294_967.0)  # whose milliseconds soon begin again at 0
        self.target = Target()
        self.listener = socket.create_server(("127.0.0.1", 0))
        commands = {command.name: command for command in (GET, SET, DELETE_PREFIX, ACQUIRE)}
        dispatcher = Dispatcher(
            NAME,
            self.target,
            commands,
            greeting=lambda: Greeting(clock_ms=milliseconds(self.clock()) or 1),
            max_frame_bytes=2**20,
        )
        self.loop = EventLoop([self.listener], dispatcher, NodeConfig(**limits), clock=self.clock)


@contextmanager
def serving(**limits: Any) -> Iterator[Server]:
    server = Server(**limits)
    thread = threading.Thread(target=server.loop.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.target.gate.set()
        server.loop.shutdown()
        thread.join(PATIENCE_SECONDS)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


class Peer:
    """A connection of a client of pyrocache; ``session`` None: of another one."""

    def __init__(self, server: Server, session: bytes | None = SESSION, *, capabilities: str = "") -> None:
        self.server = server
        self.sock = socket.create_connection(server.listener.getsockname(), timeout=PATIENCE_SECONDS)
        self.packer = messages.CallPacker(NAME)
        self._decoder = frame_decoder()
        self.sequence = 0
        self.sock.sendall(
            ClientHandshake(NAME, Greeting(session=session or b"", capabilities=capabilities)).request()
        )
        assert self.receive().header.type == framing.CONNECT_OK
        self.packer.identify(session or b"whatever")

    def receive(self) -> Frame:
        while (frame := self._decoder.next_frame()) is None:
            data = self.sock.recv(2**20)
            assert data
            self._decoder.feed(data)
        assert frame.header.correlation == bytes(16)
        return frame

    def send(self, method: str, *arguments: Any, number: int = 1, seconds: float = 5.0) -> None:
        self.sequence += 1
        deadline = milliseconds(self.server.clock() + seconds)
        message = self.packer.pack(method, arguments, self.sequence, number, deadline)
        assert isinstance(message, bytes)
        self.sock.sendall(message)

    def answer(self) -> Any:
        """The next result, or the code of a refusal."""
        frame = self.receive()
        assert frame.header.sequence == self.sequence
        result = result_of(frame)
        return result.code if isinstance(result, Refusal) else result

    def call(self, method: str, *arguments: Any, number: int = 1, seconds: float = 5.0) -> Any:
        self.send(method, *arguments, number=number, seconds=seconds)
        return self.answer()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


LARGE = b"v" * 200_000
sizes = pytest.mark.parametrize("value", [b"v", LARGE], ids=["small", "large"])


@contextmanager
def standing_still(server: Server, seconds: float) -> Iterator[None]:
    """Let the event loop do nothing for so long by its clock."""
    with Peer(server) as peer:
        peer.send("get", 0, b"stop")
        assert server.target.stopped.wait(PATIENCE_SECONDS)
        yield
        server.clock.tick(seconds)
        server.target.gate.set()
        assert peer.answer() == b"value"


class TestDeadlines:
    @sizes
    def test_until_then_a_request_is_executed(self, server: Server, value: bytes) -> None:
        with Peer(server) as peer:
            assert peer.call("set", 0, b"key", value, seconds=0.0) == 1
            server.clock.tick(0.5)  # its milliseconds begin again
            assert peer.call("set", 0, b"key", value, seconds=20.0) == 2

    @sizes
    def test_after_it_a_request_is_not_executed(self, server: Server, value: bytes) -> None:
        with Peer(server) as peer:
            assert peer.call("set", 0, b"key", value, seconds=-0.001) == refusals.TRY_AGAIN
            server.clock.tick(0.5)
            assert peer.call("set", 0, b"key", value, seconds=-9.0) == refusals.TRY_AGAIN
            assert peer.call("get", 0, b"key", seconds=-9.0) == refusals.TRY_AGAIN
        assert server.target.values == []

    def test_the_rounded_time_of_the_fast_path_does_not_extend_it(self, server: Server) -> None:
        with Peer(server) as peer:
            assert peer.call("get", 0, b"key") == b"value"  # from now on, for 0.1 s
            server.clock.tick(0.05)
            assert peer.call("set", 0, b"key", b"v", seconds=-0.02) == refusals.TRY_AGAIN
            assert peer.call("set", 0, b"key", b"v", seconds=0.02) == 1

    @sizes
    def test_the_clock_is_read_after_the_request_was_received(self, server: Server, value: bytes) -> None:
        with Peer(server) as peer:
            with standing_still(server, 0.9):
                peer.send("set", 0, b"key", value, seconds=0.5)
            assert peer.answer() == refusals.TRY_AGAIN
        assert server.target.values == []

    def test_a_call_that_waits_for_a_worker_is_not_executed_after_it(self) -> None:
        with serving(workers=1) as server, Peer(server) as busy, Peer(server) as peer:
            busy.send("delete_prefix", b"stop", number=1)
            assert server.target.stopped.wait(PATIENCE_SECONDS)
            peer.send("delete_prefix", b"key", number=2, seconds=0.5)
            assert wait_until(lambda: server.loop._calls._jobs == 2)
            server.clock.tick(0.9)
            server.target.gate.set()
            assert busy.answer() == 1  # it was begun in time
            assert peer.answer() == refusals.TRY_AGAIN
        assert server.target.values == [b"deleted"]

    def test_a_call_that_waits_for_another_caller_waits_no_longer(self, server: Server) -> None:
        with Peer(server) as peer:
            peer.send("acquire", server.clock() + 60.0, seconds=2.0)
            assert wait_until(lambda: bool(server.target.waiting))
            deferred = server.target.waiting[0]
            assert wait_until(lambda: deferred.deadline < server.clock() + 2.1)
            server.clock.tick(0.9)
            assert deferred.waiting
            server.clock.tick(0.9)
            server.clock.tick(0.3)
            assert peer.answer() == "over"

    @pytest.mark.parametrize("session", [None, b"another length"])
    def test_without_a_session_of_the_client_the_field_is_ignored(
        self, server: Server, session: bytes | None
    ) -> None:
        with Peer(server, session) as peer:
            peer.packer.identify(SESSION)
            for _ in range(2):
                assert isinstance(peer.call("set", 0, b"key", b"v", number=REPEAT + 1, seconds=-1.0), int)
        assert len(server.target.values) == 2
        assert server.loop.outcomes.refused == {}


class TestRepeats:
    @pytest.mark.parametrize("closed", [False, True])
    @pytest.mark.parametrize("method", ["set", "delete_prefix"])
    @pytest.mark.parametrize("size", [1, 2_000])
    def test_a_change_is_executed_once(self, server: Server, closed: bool, method: str, size: int) -> None:
        server.target.gate.set()
        arguments: Any = (0, b"echo", b"v" * size) if method == "set" else (b"key",)
        outcome: Any = b"v" * size if method == "set" else 1
        with ExitStack() as stack:
            first, second = Peer(server), stack.enter_context(Peer(server))
            stack.callback(first.sock.close)
            assert first.call("get", 0, b"key", number=8) == b"value"
            assert first.call(method, *arguments, number=9) == outcome
            assert first.call("get", 0, b"key", number=10) == b"value"
            if closed:
                first.sock.close()
            second.sequence = 100
            for _ in range(2):
                assert second.call(method, *arguments, number=REPEAT + 9) == outcome
        assert len(server.target.values) == 1

    @sizes
    def test_what_is_not_recognized_is_never_executed(self, server: Server, value: bytes) -> None:
        with Peer(server) as first, Peer(server) as second:
            assert second.call("set", 0, b"key", value, number=REPEAT + 9) == refusals.NOT_DONE
            assert first.call("set", 0, b"key", value, number=9) == refusals.TRY_AGAIN
            assert second.call("set", 0, b"key", value, number=10) == 1
        assert server.target.values == [value]

    @pytest.mark.parametrize("how", ["alone", "with another"])
    def test_a_change_whose_reply_finds_no_room_is_not_refused(self, how: str) -> None:
        """The refusal would mean that it was not executed. The client asks for the outcome, which was too long."""
        with serving(max_buffered_bytes=2**19) as server, Peer(server) as first, Peer(server) as second:
            if how == "with another":
                first.send("get", 0, b"key")
            first.send("set", 0, b"pop", b"", number=9)
            if how == "with another":
                first.receive()
            assert first.sock.recv(1) == b""
            assert second.call("set", 0, b"pop", b"", number=REPEAT + 9) == refusals.FORGOTTEN
            assert server.target.values == [b""]
            assert second.call("get", 0, b"key") == b"value"

    def test_a_long_outcome_is_forgotten(self, server: Server) -> None:
        with Peer(server) as first, Peer(server) as second:
            assert first.call("set", 0, b"echo", LARGE, number=9) == LARGE
            assert second.call("set", 0, b"echo", LARGE, number=REPEAT + 9) == refusals.FORGOTTEN
        assert len(server.target.values) == 1

    def test_an_original_that_is_being_executed_is_waited_for(self, server: Server) -> None:
        with Peer(server) as second:
            with Peer(server) as first:
                first.send("delete_prefix", b"stop", number=9)
                assert server.target.stopped.wait(PATIENCE_SECONDS)
                assert second.call("delete_prefix", b"stop", number=REPEAT + 9) == refusals.TRY_AGAIN
            assert second.call("delete_prefix", b"stop", number=REPEAT + 9) == refusals.TRY_AGAIN
            server.target.gate.set()
            answers = iter(lambda: second.call("delete_prefix", b"stop", number=REPEAT + 9), 1)
            assert set(answers) <= {refusals.TRY_AGAIN}
        assert len(server.target.values) == 1

    def test_an_original_that_was_refused_may_be_sent_as_a_new_request(self, server: Server) -> None:
        with Peer(server) as first, Peer(server) as second:
            assert first.call("set", 0, b"key", b"v", number=9, seconds=-1.0) == refusals.TRY_AGAIN
            assert second.call("set", 0, b"key", b"v", number=REPEAT + 9) == refusals.NOT_DONE


class TestStandstills:
    @pytest.mark.parametrize("session", [SESSION, None], ids=["ours", "another"])
    @sizes
    def test_a_change_that_waited_is_refused_once(
        self, server: Server, session: bytes | None, value: bytes
    ) -> None:
        with Peer(server, session) as peer, Peer(server, session) as idle, Peer(server, session) as reading:
            with standing_still(server, 1.1):
                peer.send("set", 0, b"key", value)
                reading.send("get", 0, b"key")
            assert peer.answer() == refusals.TRY_AGAIN
            assert reading.answer() == b"value"
            assert idle.call("set", 0, b"key", value, number=2) == 1
            assert peer.call("set", 0, b"key", value, number=3) == 2
            assert reading.call("set", 0, b"key", value, number=4) == 3

    @pytest.mark.parametrize("session", [SESSION, None], ids=["ours", "another"])
    @pytest.mark.parametrize("count", [2, 250, 2000])
    def test_all_pipelined_changes_that_waited_are_refused(
        self, server: Server, session: bytes | None, count: int
    ) -> None:
        """Also those that are received in a further piece; and no later ones."""
        with Peer(server, session, capabilities="pipelined") as peer:
            peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with standing_still(server, 1.1):
                for number in range(count):
                    peer.send("set", 0, b"key", b"v", number=number)
            answers = [result_of(peer.receive()) for _ in range(count)]
            assert {answer.code for answer in answers} == {refusals.TRY_AGAIN}
            assert peer.call("set", 0, b"key", b"v", number=count) == 1
            for number in range(count + 1, count + 11):
                peer.send("set", 0, b"key", b"v", number=number)
            assert [result_of(peer.receive()) for _ in range(10)] == list(range(2, 12))

    def test_a_short_one_is_none(self, server: Server) -> None:
        with Peer(server) as peer:
            with standing_still(server, 0.9):
                peer.send("set", 0, b"key", b"v")
            assert peer.answer() == 1
