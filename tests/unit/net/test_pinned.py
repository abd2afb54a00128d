"""Connections that stay their caller's between calls."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pyrocache.errors import ClientClosed
from pyrocache.net.calls import Connections
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.protocol import commands, refusals
from tests.support.scripted_peer import (
    Line,
    ScriptedPeer,
    echo,
    refusal_message,
    soon,
)
from tests.support.waiting import PATIENCE_SECONDS

Start = Callable[..., ScriptedPeer]
Open = Callable[..., Connections]


def test_the_same_connection_serves_all_its_calls_and_then_others(start: Start, opened: Open) -> None:
    peer, connections = start(echo), opened(2)
    pinned = connections.pin(peer.member, commands.LEASE, (0, b"key", 5), soon())
    assert pinned is not None
    assert pinned.answer == 5
    assert pinned.call(commands.ABANDON, (0, b"key", 6), soon()) == pinned.answer == 6
    assert connections.pin(peer.member, commands.LEASE, (0, b"key", 7), soon(), pinned) is pinned
    assert peer.opened == 1
    assert connections.call(peer.member, commands.GET, (0, 8), soon()) == 8
    assert peer.opened == 2, "it is nobody else's meanwhile"
    pinned.release()
    pinned.release()
    assert pinned.closed
    assert connections.call(peer.member, commands.GET, (0, 9), soon()) == 9
    assert peer.opened == 2
    assert not connections._pinned


def test_when_no_more_may_be_open_nobody_waits(start: Start, opened: Open) -> None:
    peer, connections = start(echo), opened(2)
    both = [connections.pin(peer.member, commands.LEASE, (0, number), soon()) for number in range(2)]
    assert [pinned.answer for pinned in both if pinned is not None] == [0, 1]
    assert connections.pin(peer.member, commands.LEASE, (0, 2), soon()) is None
    assert both[0] is not None
    both[0].drop()
    assert connections.pin(peer.member, commands.LEASE, (0, 3), soon()) is not None


def test_a_refusal_leaves_nothing_pinned_and_the_connection_good(start: Start, opened: Open) -> None:
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
def test_a_call_that_fails_closes_it(start: Start, opened: Open, way: str) -> None:
    def script(line: Line) -> None:
        line.send(line.reply(line.request()[1][-1]))
        line.request()
        if way == "is silent":
            line.wait_until_closed()

    peer, connections = start(script), opened(1)
    pinned = connections.pin(peer.member, commands.LEASE, (0, 1), soon())
    assert pinned is not None
    with pytest.raises(Unavailable) as caught:
        pinned.call(commands.ABANDON, (0, 2), Deadline(0.3))
    assert caught.value.maybe_executed
    assert pinned.closed
    assert not connections._pinned
    again = connections.pin(peer.member, commands.LEASE, (0, 3), soon(), pinned)
    assert again is not None
    assert again is not pinned


def test_one_that_nobody_refers_to_any_more_is_closed(start: Start, opened: Open) -> None:
    peer, connections = start(echo), opened(1)
    with pytest.warns(ResourceWarning, match="unclosed"):
        connections.pin(peer.member, commands.LEASE, (0, 1), soon())
    assert connections.pin(peer.member, commands.LEASE, (0, 2), soon()) is not None


def test_closing_interrupts_who_waits(start: Start, opened: Open) -> None:
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
