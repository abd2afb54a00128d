"""Peers that hang: the state machine with a fake clock, then calls to scripted peers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from pyrocache.cluster.routing import Member
from pyrocache.errors import NameServerUnavailable
from pyrocache.net.calls import Connections, Request
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import Listing, WatchedLookUp
from pyrocache.net.failures import Unavailable
from pyrocache.net.suspicion import LONGEST_PING_SECONDS, PING_SECONDS, Suspicion, Suspicions, Verdict
from pyrocache.protocol import commands
from tests.support.scripted_peer import Line, ScriptedPeer, echo, in_threads, soon

Start = Callable[..., ScriptedPeer]
Open = Callable[..., Connections]

PING, SEND, FAIL = Verdict.PING, Verdict.SEND, Verdict.FAIL


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def suspicion(clock: Clock) -> Suspicion:
    return Suspicion(clock, lambda: 0.5)


def long() -> Deadline:
    return Deadline(5.0)


def test_a_peer_is_trusted_until_a_call_times_out(suspicion: Suspicion) -> None:
    assert not suspicion.doubted
    assert suspicion.ask(long()) is SEND
    suspicion.timed_out(1.0)
    assert suspicion.doubted
    assert not suspicion.suspected
    assert [suspicion.ask(long()) for _ in range(3)] == [PING] * 3


def test_a_ping_that_is_answered_ends_the_doubt(suspicion: Suspicion) -> None:
    suspicion.timed_out(1.0)
    suspicion.answered()
    assert not suspicion.doubted
    assert suspicion.ask(long()) is SEND


def test_after_silence_one_caller_pings_when_the_time_is_over(suspicion: Suspicion, clock: Clock) -> None:
    suspicion.timed_out(1.0)
    for _ in range(5):  # the time of suspicion does not grow
        began_at = clock.now
        clock.now += PING_SECONDS
        assert suspicion.silent(began_at)
        assert suspicion.suspected
        clock.now += 1.49
        assert suspicion.ask(long()) is FAIL
        clock.now += 0.02
        assert [suspicion.ask(long()) for _ in range(3)] == [PING, FAIL, FAIL]
    suspicion.answered()
    assert suspicion.ask(long()) is SEND


def test_a_caller_that_never_reports_its_ping_does_not_keep_others_from_it(
    suspicion: Suspicion, clock: Clock
) -> None:
    suspicion.timed_out(1.0)
    suspicion.silent(clock.now + 1)
    clock.now += 2.0
    assert [suspicion.ask(long()), suspicion.ask(long())] == [PING, FAIL]
    clock.now += 2 * suspicion.patience(long())
    assert [suspicion.ask(long()), suspicion.ask(long())] == [PING, FAIL]


def test_an_answer_to_another_caller_outweighs_the_silence(suspicion: Suspicion, clock: Clock) -> None:
    suspicion.timed_out(1.0)
    began_at = clock.now
    clock.now += 0.2
    suspicion.answered()
    clock.now += 0.1
    assert not suspicion.silent(began_at)
    assert not suspicion.doubted


def test_a_timeout_changes_nothing_while_the_peer_is_suspected(suspicion: Suspicion, clock: Clock) -> None:
    suspicion.silent(clock.now + 1)
    suspicion.timed_out(5.0)
    assert suspicion.ask(long()) is FAIL


def test_a_caller_with_little_time_left_does_not_ping(suspicion: Suspicion, clock: Clock) -> None:
    late = Deadline(5.0, clock)
    suspicion.timed_out(1.0)
    clock.now += 4.9
    assert suspicion.ask(late) is SEND
    suspicion.silent(clock.now)
    clock.now += 0.05
    assert suspicion.ask(late) is FAIL


def test_a_ping_may_take_a_part_of_the_call(suspicion: Suspicion) -> None:
    assert suspicion.patience(long()) == PING_SECONDS
    assert suspicion.patience(Deadline(0.1)) == 0.05


def test_after_each_silence_a_ping_has_twice_the_time(suspicion: Suspicion, clock: Clock) -> None:
    suspicion.timed_out(1.0)
    seconds = []
    for _ in range(5):
        seconds.append(suspicion.patience(long()))
        began_at = clock.now
        clock.now += 1.0
        for _ in range(3):  # of several callers who ping at the same time, the first one counts
            suspicion.silent(began_at)
    assert seconds == [PING_SECONDS, 0.5, 1.0, LONGEST_PING_SECONDS, LONGEST_PING_SECONDS]


def test_a_ping_over_a_long_way_has_twice_the_time_that_the_last_one_took(
    suspicion: Suspicion, clock: Clock
) -> None:
    clock.now += 0.4
    suspicion.answered(clock.now - 0.4)
    assert suspicion.patience(long()) == pytest.approx(0.8)
    suspicion.answered(clock.now - 60.0)
    assert suspicion.patience(long()) == LONGEST_PING_SECONDS
    suspicion.answered(clock.now)
    assert suspicion.patience(long()) == PING_SECONDS


def test_it_says_for_how_long_the_peer_is_silent_and_calls_fail(suspicion: Suspicion, clock: Clock) -> None:
    suspicion.timed_out(1.0)
    clock.now += 0.25
    suspicion.silent(clock.now - 0.25)
    clock.now += 1.0
    assert suspicion.describe() == (
        "has not answered for 2.2 s; calls that need it fail at once for another 0.5 s"
    )


def test_a_node_that_restarted_is_trusted() -> None:
    suspicions = Suspicions()
    member = Member("cache.node.1", "127.0.0.1", 1, incarnation="a")
    first = suspicions.of(member)
    assert suspicions.of(Member("cache.node.1", "127.0.0.1", 1, incarnation="a")) is first
    assert suspicions.of(Member("cache.node.1", "127.0.0.1", 2, incarnation="b")) is not first


# Calls -------------------------------------------------------------------------------------------------------


@pytest.fixture
def family() -> str:
    return "tcp"  # the streams make no difference here


def silent(line: Line) -> None:
    while True:
        line.request()


class Hanging:
    """A script that answers nothing until `hangs` is false, and then everything."""

    def __init__(self) -> None:
        self.hangs = True
        self.requests: list[str] = []

    def __call__(self, line: Line) -> None:
        while True:
            method, arguments = line.request()
            self.requests.append(method)
            if not self.hangs:
                line.send(line.reply("pong" if method == "ping" else arguments[-1]))


def failure(connections: Connections, peer: ScriptedPeer, seconds: float = 0.4) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        connections.call(peer.member, commands.GET, (0, b"key"), Deadline(seconds))
    return caught.value


def ask(connections: Connections, *peers: ScriptedPeer, seconds: float = 0.4) -> list[Any]:
    """The outcomes of one parallel call, in the order of the peers."""
    requests = [Request(peer.member, commands.GET, (0, b"key")) for peer in peers]
    outcomes: list[Any] = [None] * len(peers)
    with closing(connections.exchange(requests, Deadline(seconds))) as answers:
        for index, outcome in answers:
            outcomes[index] = outcome
    return outcomes


def test_a_peer_that_hangs_costs_one_timeout_and_one_ping(start: Start, opened: Open) -> None:
    script = Hanging()
    peer, connections = start(script), opened(4, suspicions=Suspicions())
    first, second = failure(connections, peer), failure(connections, peer)
    assert (first.timed_out, first.suspected, first.maybe_executed) == (True, False, True)
    assert (second.timed_out, second.suspected, second.maybe_executed) == (False, True, False)
    assert "has not answered for" in str(second.error)
    assert "fail at once for another" in str(second.error)
    asked, connected = list(script.requests), peer.opened
    began_at = time.monotonic()
    assert all(failure(connections, peer).suspected for _ in range(20))
    assert all(one.suspected for one in ask(connections, peer, peer))
    assert time.monotonic() - began_at < 4, "they ask nobody"
    assert script.requests == asked == ["get", "ping"]
    assert peer.opened == connected


def test_a_slow_request_does_not_cut_off_a_healthy_peer(start: Start, opened: Open) -> None:
    def script(line: Line) -> None:
        while True:
            method, arguments = line.request()
            if arguments != [0, b"slow"]:
                line.send(line.reply(method))

    peer, connections = start(script), opened(4, suspicions=Suspicions())
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            connections.call(peer.member, commands.GET, (0, b"slow"), Deadline(0.3))
        assert caught.value.timed_out
        assert connections.call(peer.member, commands.GET, (0, b"key"), Deadline(0.4)) == "get"
        assert ask(connections, peer, peer) == ["get", "get"]


OTHER_CALLS = ("parallel calls", "a pinned connection")


@pytest.mark.parametrize(
    "how", ["one call", *(pytest.param(how, marks=pytest.mark.full) for how in OTHER_CALLS)]
)
def test_when_its_time_is_over_a_peer_is_pinged_and_used_again(start: Start, opened: Open, how: str) -> None:
    def call() -> Any:
        if how == "one call":
            return connections.call(peer.member, commands.GET, (0, b"key"), Deadline(0.4))
        if how == "parallel calls":
            return ask(connections, peer, other)[0]
        pinned = connections.pin(peer.member, commands.LEASE, (0, b"key"), Deadline(0.4))
        assert pinned is not None
        pinned.release()
        return pinned.answer

    def attempt() -> Any:
        try:
            return call()
        except Unavailable as error:
            return error

    script = Hanging()
    peer, other = start(script), start(echo, number=2)
    connections = opened(4, suspicions=Suspicions())
    assert attempt().timed_out
    assert attempt().suspected
    script.hangs = False
    began_at = time.monotonic()
    while isinstance(outcome := attempt(), Unavailable):
        assert outcome.suspected
        assert time.monotonic() - began_at < 10
        time.sleep(0.01)
    assert outcome == b"key"
    assert time.monotonic() - began_at > 0.5
    assert script.requests[-2] == "ping"


def test_of_parallel_calls_only_those_to_the_peer_that_hangs_fail(start: Start, opened: Open) -> None:
    peer, other = start(silent), start(echo, number=2)
    connections = opened(4, suspicions=Suspicions())
    outcomes = [ask(connections, peer, other, seconds=0.4) for _ in range(4)]
    assert [one for _, one in outcomes] == [b"key"] * 4
    assert [one.timed_out for one, _ in outcomes] == [True, False, False, False]
    assert [one.suspected for one, _ in outcomes] == [False, True, True, True]


def test_pinned_connections_and_calls_share_what_is_known(start: Start, opened: Open) -> None:
    suspicions = Suspicions()
    peer, calls, pins = start(silent), opened(4, suspicions=suspicions), opened(4, suspicions=suspicions)
    assert failure(calls, peer).timed_out
    assert failure(calls, peer).suspected
    with pytest.raises(Unavailable) as caught:
        pins.pin(peer.member, commands.ACQUIRE, (0, b"key"), Deadline(0.4))
    assert caught.value.suspected


def test_what_is_pinned_fails_at_once_on_a_suspected_peer(start: Start, opened: Open) -> None:
    script = Hanging()
    script.hangs = False
    suspicions = Suspicions()
    peer, connections = start(script), opened(4, suspicions=suspicions)
    pinned = connections.pin(peer.member, commands.ACQUIRE, (0, b"key"), soon())
    assert pinned is not None
    suspicions.of(peer.member).silent(time.monotonic())
    with pytest.raises(Unavailable) as caught:
        pinned.call(commands.RELEASE, (0, b"key"), soon())
    assert caught.value.suspected
    assert pinned.closed


def test_threads_that_call_when_a_peer_begins_to_hang_pay_one_timeout_each(
    start: Start, opened: Open
) -> None:
    peer, connections = start(silent), opened(64, suspicions=Suspicions())
    timeouts: list[int] = []

    def call(number: int) -> None:
        failures = [failure(connections, peer, 0.5) for _ in range(10)]
        timeouts.append(sum(one.timed_out for one in failures))

    in_threads(40, call)
    assert timeouts == [1] * 40


def test_a_ping_is_sent_to_a_suspected_peer_too(start: Start, opened: Open) -> None:
    suspicions = Suspicions()
    peer, connections = start(echo), opened(4, suspicions=suspicions)
    suspicions.of(peer.member).silent(time.monotonic())
    assert failure(connections, peer).suspected
    assert connections.call(peer.member, commands.PING, (7,), soon()) == 7
    requests = [Request(peer.member, commands.PING, (number,)) for number in range(2)]
    assert sorted(outcome for _, outcome in connections.exchange(requests, soon())) == [0, 1]


def test_a_peer_that_has_ended_is_not_suspected_any_more(start: Start, opened: Open) -> None:
    suspicions = Suspicions()
    peer, connections = start(echo), opened(4, suspicions=suspicions)
    suspicions.of(peer.member).timed_out(1.0)
    peer.close()
    for outcome in (failure(connections, peer), ask(connections, peer)[0]):
        assert outcome.refused
        assert not outcome.suspected
    assert not suspicions.of(peer.member).doubted


def test_without_connections_to_spare_the_request_of_a_doubted_peer_is_sent(
    start: Start, opened: Open
) -> None:
    suspicions = Suspicions()
    peer, connections = start(echo), opened(1, suspicions=suspicions)
    pinned = connections.pin(peer.member, commands.LEASE, (0, b"key"), soon())
    assert pinned is not None
    suspicions.of(peer.member).timed_out(1.0)
    threading.Timer(0.1, pinned.release).start()
    assert connections.call(peer.member, commands.GET, (0, b"key"), soon()) == b"key"


# The name server ---------------------------------------------------------------------------------------------


class SilentDirectory:
    def __init__(self) -> None:
        self.queries: list[float] = []
        self.answers = False

    def listing(self, timeout: float = 5.0) -> Listing:
        self.queries.append(timeout)
        if self.answers:
            return Listing()
        error = NameServerUnavailable("silent")
        error.timed_out = True
        raise error


def test_a_name_server_that_hangs_costs_one_timeout() -> None:
    directory = SilentDirectory()
    look_up = WatchedLookUp(directory)  # type: ignore[arg-type]
    deadline = Deadline(5.0)
    assert look_up.admit(deadline, 5.0) == 5.0
    with pytest.raises(NameServerUnavailable):
        look_up(5.0)
    with pytest.raises(NameServerUnavailable, match=r"silent It has not answered for .* fail at once"):
        look_up.admit(deadline, 5.0)
    with pytest.raises(NameServerUnavailable, match="silent"):
        look_up.raise_failure()
    directory.answers = True
    assert look_up(5.0) == Listing()
    assert look_up.admit(deadline, 5.0) == 5.0
    look_up.raise_failure()


def test_a_query_with_hardly_any_time_says_nothing_about_the_name_server() -> None:
    look_up = WatchedLookUp(SilentDirectory())  # type: ignore[arg-type]
    with pytest.raises(NameServerUnavailable):
        look_up(0.01)
    assert look_up.admit(Deadline(5.0), 5.0) == 5.0
