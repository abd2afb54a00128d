"""Calls to several nodes at once: none waits for another."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from pyrocache.cluster.routing import Member
from pyrocache.errors import ValueTooLarge
from pyrocache.net.calls import Connections, Request
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Unavailable
from pyrocache.protocol import commands
from pyrocache.testing import FakeClock
from tests.support.scripted_peer import MIB, Line, ScriptedPeer, connect_ok, echo, soon
from tests.support.waiting import PATIENCE_SECONDS, wait_until

Start = Callable[..., ScriptedPeer]
Open = Callable[..., Connections]


def test_an_exchange_that_is_not_idempotent_neither(start: Start, opened: Open) -> None:
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


def test_an_exchange_that_is_given_up_leaves_no_reply_behind(start: Start, opened: Open) -> None:
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


@pytest.mark.parametrize("nodes", [1, 3])
def test_nodes_that_always_answer_in_time_do_not_extend_the_call(
    start: Start, opened: Open, nodes: int
) -> None:
    peers = [start(echo, number=number + 1) for number in range(nodes)]
    connections = opened(1)
    clock = FakeClock()
    deadline = Deadline(10.0, clock)
    requests = [Request(peer.member, commands.GET, (0, b"key")) for peer in peers]
    outcomes = list(
        connections.exchange(requests, soon())
    )  # by this clock, a connection may be opened too late
    assert len(outcomes) == nodes
    outcomes = []
    for index, outcome in connections.exchange(requests, deadline):
        outcomes.append(outcome)
        clock.tick(1.0)
        requests.append(requests[index])
        assert len(requests) < 100
        if isinstance(outcome, Unavailable):
            break
    answered = len(outcomes) - 1
    assert outcomes[:-1] == [b"key"] * answered
    assert 10 <= answered < 10 + nodes, "those that were under way when the deadline passed are answered"
    assert outcomes[-1].timed_out
    assert not outcomes[-1].maybe_executed
    if nodes == 1:
        assert connections.call(peers[0].member, commands.GET, (0, b"key"), soon()) == b"key"
        assert peers[0].opened == 1, "the connection was idle, and is used again"


def test_one_silent_node_costs_the_others_of_an_exchange_nothing(start: Start, opened: Open) -> None:
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


def test_an_interrupted_exchange_loses_its_connections_and_no_permit(start: Start, opened: Open) -> None:
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


@pytest.mark.parametrize("sent", [pytest.param(40, marks=pytest.mark.full), 1_000_000])
def test_a_reply_that_stalls_half_way_costs_the_other_nodes_nothing(
    start: Start, opened: Open, sent: int
) -> None:
    def stalls(line: Line) -> None:
        line.request()
        line.send(line.reply(bytes(3 * MIB))[:sent])
        line.wait_until_closed()

    def answers_late(line: Line) -> None:
        while True:
            value = line.request()[1][-1]
            time.sleep(0.1)  # the other one has stalled by now
            line.send(line.reply(value))

    peers = [start(stalls, number=1), start(answers_late, number=2), start(answers_late, number=3)]
    connections = opened(1)
    requests = [Request(peer.member, commands.GET_MANY, (0, b"v" * 100_000)) for peer in peers]
    arrived: dict[int, float] = {}
    began = time.monotonic()
    for index, outcome in connections.exchange(requests, Deadline(1.0)):
        arrived[index] = time.monotonic() - began
        assert isinstance(outcome, Unavailable) if index == 0 else outcome == b"v" * 100_000
        if index == 2 and len(requests) == 3:
            requests.append(Request(peers[2].member, commands.GET_MANY, (0, b"v" * 100_000)))
    assert sorted(arrived) == [0, 1, 2, 3]
    assert max(arrived[1], arrived[2], arrived[3]) < 0.9 < arrived[0] < 2.0


@pytest.mark.parametrize("stage", ["connecting", pytest.param("half a greeting", marks=pytest.mark.full)])
def test_a_node_that_stalls_while_it_is_connected_to_costs_the_others_nothing(
    start: Start, opened: Open, stage: str
) -> None:
    def stalls(line: Line) -> None:
        line.frame()
        line.send(connect_ok({})[:50])
        line.wait_until_closed()

    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        if stage == "connecting":
            for _ in range(3):  # more than its queue has room for
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(full.getsockname())
            stalled = Member("cache.node.1", "127.0.0.1", full.getsockname()[1])
        else:
            stalled = start(stalls, number=1, greeting=False).member
        members = [stalled, *(start(echo, number=number).member for number in (2, 3))]
        requests = [Request(member, commands.GET, (0, b"key")) for member in members]
        arrived: dict[int, float] = {}
        began = time.monotonic()
        for index, outcome in opened(1).exchange(requests, Deadline(1.0)):
            arrived[index] = time.monotonic() - began
            if index:
                assert outcome == b"key"
            else:
                assert isinstance(outcome, Unavailable)
                assert (outcome.maybe_executed, outcome.timed_out) == (False, True)
        assert max(arrived[1], arrived[2]) < 0.9 < arrived[0] < 2.0


def test_a_node_whose_connections_are_all_in_use_is_asked_once_one_is_free(
    start: Start, opened: Open
) -> None:
    peers = [start(echo, number=number) for number in (1, 2)]
    connections = opened(1)
    pinned = connections.pin(peers[0].member, commands.LEASE, (0, 1), soon())
    assert pinned is not None
    requests = [Request(peer.member, commands.GET, (0, b"key")) for peer in peers]
    outcomes = connections.exchange(requests, Deadline(0.1))
    assert next(outcomes) == (1, b"key")
    ((index, outcome),) = outcomes
    assert index == 0
    assert isinstance(outcome, Unavailable)
    assert "in use" in str(outcome)
    release = threading.Timer(0.1, pinned.release)
    release.start()
    assert dict(connections.exchange(requests, soon())) == {0: b"key", 1: b"key"}
    release.join()


def test_a_value_that_is_too_large_for_one_node_is_not_sent_to_it(start: Start, opened: Open) -> None:
    peers = [start(echo, number=1, greeting={"max_value_bytes": 10}), start(echo, number=2)]
    connections = opened(1)
    requests = [Request(peer.member, commands.SET, (0, b"key"), 11) for peer in peers]
    for _ in range(3):
        outcomes = dict(connections.exchange(requests, soon()))
        assert isinstance(outcomes[0], ValueTooLarge)
        assert outcomes[1] == b"key"
    assert peers[0].opened == 1
