"""Connections are reused and bounded, and no permit is ever lost."""

from __future__ import annotations

import math
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from pyrocache.errors import ClientClosed
from pyrocache.net.calls import Connections, Request
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.protocol import commands
from pyrocache.protocol.messages import Pieces
from tests.support.scripted_peer import (
    MIB,
    Line,
    ScriptedPeer,
    connect_ok,
    echo,
    in_threads,
    message,
    refusal_message,
    soon,
)
from tests.support.waiting import PATIENCE_SECONDS, wait_until

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


class TestPool:
    def test_a_call_that_is_not_idempotent_is_not_sent_over_a_connection_that_the_peer_has_closed(
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

    def test_a_connection_whose_clock_may_have_drifted_is_replaced(self, start: Start, opened: Open) -> None:
        peer, connections = start(echo), opened(1)
        connections.call(peer.member, commands.GET, (0, b"key"), soon())
        (connection,) = connections.pool(peer.member).idle
        assert connection.fresh_until == math.inf  # the same host
        connections.call(peer.member, commands.GET, (0, b"key"), soon())
        assert peer.opened == 1
        connection.fresh_until = connection.checked_at = time.monotonic() - 1.0
        connections.call(peer.member, commands.GET, (0, b"key"), soon())
        assert peer.opened == 2

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
    def test_an_exception_that_somebody_keeps_keeps_no_permit(
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
    def test_an_interrupted_call_loses_its_connection_and_no_permit(
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


def test_interrupts_at_any_moment_lose_no_permit(start: Start, opened: Open) -> None:
    """Python runs a signal's handler between any two of its own steps, so also right before and after a permit."""
    peers = [start(echo, number=number) for number in (1, 2)]
    connections = opened(2)
    requests = [Request(peer.member, commands.GET, (0, b"key")) for peer in peers]
    one = peers[0].member

    armed: list[bool] = []

    def interrupt(*_: object) -> None:
        if armed:
            armed.clear()
            raise Interrupted

    def call_until_interrupted(number: int) -> None:
        # Armed only in here: an interrupt can then leave no statement outside of the caller's `try`.
        armed.append(True)
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0001, 0.001), 0.02)
        while armed:  # a finaliser may swallow the exception
            if number % 3 == 0:
                connections.call(one, commands.GET, (0, b"key"), soon())
            elif number % 3 == 1:
                with closing(connections.exchange(requests, soon())) as outcomes:
                    assert dict(outcomes) == {0: b"key", 1: b"key"}
            else:
                pinned = connections.pin(one, commands.LEASE, (0, b"key"), soon())
                if pinned is not None:
                    pinned.release()

    dice = random.Random(1)
    struck = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(300):
            try:
                call_until_interrupted(number)
            except Interrupted:
                struck += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert struck > 250
    assert [pool.permits.qsize() for pool in connections._pools.values()] == [2, 2]
    assert dict(connections.exchange(requests, soon())) == {0: b"key", 1: b"key"}


def test_kept_exceptions_of_all_kinds_keep_no_permit(start: Start, opened: Open) -> None:
    def script(line: Line) -> None:
        kinds = [b"garbage", None, refusal_message(1, "some-code")]
        line.request()
        reply = kinds[line.number % 3]
        if reply is not None:
            line.send(reply)

    peer, connections = start(script), opened(1)
    kept: list[BaseException] = []
    for _ in range(9):
        try:
            connections.call(peer.member, commands.GET, (0, b"key"), Deadline(1.0))
        except (Unavailable, Refused) as error:
            kept.append(error)
    try:
        connections.pin(peer.member, commands.LEASE, (0, b"key"), Deadline(1.0))
    except (Unavailable, Refused) as error:
        kept.append(error)
    assert len(kept) == 10
    assert not any("in use" in str(error) for error in kept)
    assert connections._pools[peer.member.name].permits.qsize() == 1


def test_who_waits_for_a_permit_gets_it_in_turn(start: Start, opened: Open) -> None:
    peer, connections = start(echo), opened(1)
    in_threads(16, lambda n: [connections.call(peer.member, commands.GET, (n,), soon()) for _ in range(20)])
    assert peer.opened == 1
