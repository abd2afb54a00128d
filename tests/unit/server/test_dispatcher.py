"""What becomes of a message, without sockets: calls that may wait, and how long each took."""

from __future__ import annotations

from typing import Any

import pytest
from Pyro5.errors import PyroError

from pyrocache.protocol import framing, messages, refusals
from pyrocache.protocol.commands import Command, Runs, Scope
from pyrocache.protocol.framing import Frame
from pyrocache.protocol.handshake import MSGPACK
from pyrocache.protocol.refusals import Refusal
from pyrocache.server.deferred import Deferred, Session
from pyrocache.server.dispatcher import SAMPLE, Dispatcher, PendingReply
from pyrocache.server.histogram import BUCKETS, Latencies
from pyrocache.testing import FakeClock

NAME = "cache.node.1"


class Target:
    """Each method takes as long as its first argument says."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def quick(self, seconds: float) -> bytes:
        self.clock.tick(seconds)
        return b"result"

    def rare(self, seconds: float) -> bytes:
        return self.quick(seconds)

    def long(self, seconds: float) -> bytes:
        return self.quick(seconds)

    def wait(self, seconds: float) -> None:
        raise AssertionError("the dispatcher calls another in its place")

    def defer(self) -> Deferred:
        return Deferred(Session(), 1e9)

    def begin_wait(self, session: Session, seconds: float, result: Any = None) -> Any:
        self.clock.tick(seconds)
        return result if result is not None else Deferred(session, 1e9)


COMMANDS = {
    name: Command(name, Scope.NODE, False, runs, False)
    for name, runs in (
        ("quick", Runs.INLINE),
        ("rare", Runs.INLINE),
        ("defer", Runs.INLINE),
        ("long", Runs.WORKER),
        ("wait", Runs.DEFERRED),
        ("missing", Runs.INLINE),
    )
}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def dispatcher(clock: FakeClock) -> Dispatcher:
    return Dispatcher(
        NAME, Target(clock), COMMANDS, greeting=lambda: {"node": NAME}, max_frame_bytes=2**20, timer=clock
    )


def call(method: str, *arguments: Any, sequence: int = 1, options: Any = None) -> Frame:
    data = framing.pack_message(
        framing.INVOKE, sequence, messages.pack_plain((NAME, method, list(arguments), options or {}))
    )
    return Frame(framing.parse_header(data), data[framing.HEADER_BYTES :])


def handle(dispatcher: Dispatcher, frame: Frame, session: Session | None = None) -> Any:
    """What becomes of a message on a connection that is established."""
    request = dispatcher.read(frame, MSGPACK)
    return request if isinstance(request, bytes) else dispatcher.dispatch(session or Session(), *request)


def result_of(reply: Any) -> Any:
    assert isinstance(reply, bytes)
    header = framing.parse_header(reply)
    body = reply[framing.HEADER_BYTES :]
    return (
        refusals.unpack_refusal(body)
        if header.flags & framing.FLAG_EXCEPTION
        else messages.unpack_plain(body)
    )


def latencies_of(dispatcher: Dispatcher) -> dict[str, dict[int, int]]:
    """By method, the buckets that are not empty."""
    return {
        method: {bucket: count for bucket, count in enumerate(counts) if count}
        for method, counts in dispatcher.latencies.as_lists()
    }


class TestWaitingCalls:
    def test_one_that_waits_is_answered_with_the_outcome(self, dispatcher: Dispatcher) -> None:
        session = Session()
        pending = handle(dispatcher, call("wait", 0.0, sequence=7), session)
        assert isinstance(pending, PendingReply)
        assert pending.deferred.session is session
        pending.deferred.give([b"outcome", 5])
        reply = pending.reply()
        assert result_of(reply) == [b"outcome", 5]
        assert messages.sequence_of(reply) == 7

    def test_one_that_need_not_wait_is_answered_at_once(self, dispatcher: Dispatcher) -> None:
        assert result_of(handle(dispatcher, call("wait", 0.0, b"there"))) == b"there"

    def test_an_inline_call_may_be_deferred_too(self, dispatcher: Dispatcher) -> None:
        pending = handle(dispatcher, call("defer", sequence=7))
        assert isinstance(pending, PendingReply)
        pending.deferred.refuse(PyroError("No result."))
        assert result_of(pending.reply()) == Refusal(refusals.BAD_REQUEST, "No result.")

    @pytest.mark.parametrize(
        "frame",
        [
            call("wait"),
            call("wait", 0.0, b"there", b"more"),
            call("wait", 0.0, options={"session": b"another"}),
            call("wait", 0.0, options={b"bytes": 1}),
        ],
    )
    def test_arguments_that_do_not_fit_are_refused(self, dispatcher: Dispatcher, frame: Frame) -> None:
        refusal = result_of(handle(dispatcher, frame))
        assert isinstance(refusal, Refusal)
        assert refusal.code == refusals.BAD_REQUEST


class TestLatencies:
    @pytest.mark.parametrize(
        ("seconds", "bucket"),
        [
            (0.0, 0),
            (0.9e-6, 0),
            (1.1e-6, 1),
            (2.1e-6, 2),
            (3.9e-6, 2),
            (4.1e-6, 3),
            (1.0, 20),
            (1e9, BUCKETS - 1),
        ],
    )
    def test_buckets_are_powers_of_two_of_a_microsecond(self, seconds: float, bucket: int) -> None:
        latencies = Latencies()
        latencies.add("get", seconds)
        counts = [0] * BUCKETS
        counts[bucket] = 1
        assert latencies.as_lists() == [["get", counts]]

    @pytest.mark.parametrize("at_once", [True, False])
    def test_of_cheap_calls_a_share_is_measured_beginning_with_the_first(
        self, dispatcher: Dispatcher, at_once: bool
    ) -> None:
        packer = messages.CallPacker(NAME)
        for sequence in range(1, 3 * SAMPLE + 1):
            # The two alternate, as they do in a program that reads and then writes.
            method, seconds = ("quick", 0.001) if sequence % 2 else ("rare", 0.1)
            if at_once:
                data = packer.pack(method, (seconds,), sequence)
                assert isinstance(data, bytes)
                request = dispatcher.unpack(data)
                assert request is not None
                reply: Any = dispatcher.dispatch(Session(), *request[:3])
            else:
                reply = handle(dispatcher, call(method, seconds, sequence=sequence))  # type: ignore[assignment]
            assert result_of(reply) == b"result"
            assert sequence > 1 or latencies_of(dispatcher) == {"quick": {10: 1}}
        assert latencies_of(dispatcher) == {"quick": {10: 2}, "rare": {17: 1}}

    def test_each_long_call_is_measured_with_the_time_it_waits_for_a_worker(
        self, dispatcher: Dispatcher, clock: FakeClock
    ) -> None:
        for sequence in range(5):
            job = handle(dispatcher, call("long", 0.001, sequence=sequence))
            assert callable(job)
            clock.tick(1.0)
            assert result_of(job()) == b"result"
        assert latencies_of(dispatcher) == {"long": {20: 5}}

    def test_each_waiting_call_is_measured_until_its_outcome(
        self, dispatcher: Dispatcher, clock: FakeClock
    ) -> None:
        pending = handle(dispatcher, call("wait", 0.001, sequence=5))
        assert isinstance(pending, PendingReply)
        clock.tick(1.0)
        assert latencies_of(dispatcher) == {}
        pending.deferred.give(b"outcome")
        pending.reply()
        handle(dispatcher, call("wait", 0.001, b"there", sequence=5))
        handle(dispatcher, call("wait", sequence=5))
        assert latencies_of(dispatcher) == {"wait": {20: 1, 10: 1, 0: 1}}

    def test_they_are_plain_and_can_be_reset(self, dispatcher: Dispatcher) -> None:
        handle(dispatcher, call("quick", 0.001))
        told = dispatcher.latencies.as_lists()
        assert messages.unpack_plain(messages.pack_plain(told)) == told
        handle(dispatcher, call("quick", 0.001))
        assert told != dispatcher.latencies.as_lists(), "a copy"
        dispatcher.latencies.reset()
        assert dispatcher.latencies.as_lists() == []
        assert told[0][0] == "quick"

    def test_methods_that_do_not_exist_are_not_kept(self, dispatcher: Dispatcher) -> None:
        for number in range(100):
            handle(dispatcher, call(f"method {number}"))
        assert dispatcher.latencies.as_lists() == []
