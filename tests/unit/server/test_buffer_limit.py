"""Long requests take turns in the buffers: connections without sockets, and no clock."""

from __future__ import annotations

from typing import Any, cast

import pytest

from pyrocache.protocol.handshake import ServerHandshake
from pyrocache.server.buffer_limit import BufferLimit
from pyrocache.server.connection import Connection
from tests.support.wire import header

MIB = 2**20


class Buffers:
    """A limit of 16 MiB, and what it has decided."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self.refused: list[Connection] = []
        self.resumed: list[Connection] = []
        self.limit = BufferLimit(
            16 * MIB,
            self.connections,
            lambda connection, _: self.refused.append(connection),
            self.close,
            self.resumed.append,
        )

    def begin(self, size: int, came: int) -> Connection:
        """Open a connection on which ``came`` bytes of a request of ``size`` have arrived."""
        connection = Connection(cast(Any, None), cast(ServerHandshake, _AnyFrame()), 0.0)
        self.connections.add(connection)
        connection.decoder.feed(header(body=size - 40))
        connection.decoder.next_frame()
        self.receive(connection, came - 40)
        return connection

    def receive(self, connection: Connection, count: int) -> None:
        """Let more bytes of its request arrive, as the event loop does."""
        connection.decoder.filled(count)
        connection.decoder.next_frame()
        self.limit.account(connection)
        self.limit.take_turns(connection)
        self.limit.enforce()

    def close(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self.limit.account(connection)


class _AnyFrame:
    def admit(self, _: Any) -> None:
        pass

    def admit_head(self, *_: Any) -> bool:
        return True


@pytest.fixture
def buffers() -> Buffers:
    return Buffers()


def test_requests_that_fit_together_are_all_received(buffers: Buffers) -> None:
    connections = [buffers.begin(5 * MIB, 4 * MIB) for _ in range(3)]
    assert not any(connection.paused for connection in connections)
    assert buffers.limit.used == 12 * MIB


def test_a_request_that_does_not_fit_waits_until_the_other_is_complete(buffers: Buffers) -> None:
    first = buffers.begin(12 * MIB, 9 * MIB)
    second, third = buffers.begin(12 * MIB, 100), buffers.begin(12 * MIB, 200)
    assert [c.paused for c in (first, second, third)] == [False, True, True]
    buffers.receive(first, 3 * MIB)
    assert [c.paused for c in (second, third)] == [False, True]
    assert buffers.resumed == [second]
    buffers.receive(second, second.decoder.missing)
    assert buffers.resumed[-1] is third
    buffers.receive(third, third.decoder.missing)
    assert buffers.refused == []
    assert buffers.limit.used == 0


def test_requests_that_began_together_lose_the_paused_ones_and_not_the_one_that_goes_on(
    buffers: Buffers,
) -> None:
    connections = [buffers.begin(15 * MIB, MIB) for _ in range(8)]
    for connection in connections:
        if not connection.paused:
            buffers.receive(connection, 100_000)
    (running,) = [connection for connection in connections if not connection.paused]
    while running.decoder.missing:
        buffers.receive(running, min(MIB, running.decoder.missing))
        assert buffers.limit.used <= 16 * MIB
        assert not any(connection.paused for connection in buffers.refused)
    assert running not in buffers.refused
    assert buffers.refused
    assert set(buffers.refused) <= set(buffers.resumed), "their rest is read"
    assert buffers.limit.used <= 16 * MIB


def test_beyond_the_limit_the_client_with_most_loses_and_not_the_largest_connection(buffers: Buffers) -> None:
    honest = buffers.begin(5 * MIB, 4 * MIB)
    greedy = []
    for number in range(7):
        greedy.append(buffers.begin(3 * MIB, 100))
        greedy[-1].session.client = "greedy"
        buffers.receive(greedy[-1], 2 * MIB + number)
    assert buffers.refused
    assert set(buffers.refused) <= set(greedy)
    assert honest.held == 4 * MIB, "though no other connection has more"


def test_a_peer_that_closes_makes_room(buffers: Buffers) -> None:
    first, second = buffers.begin(12 * MIB, 9 * MIB), buffers.begin(12 * MIB, 100)
    assert second.paused
    buffers.close(first)
    assert not second.paused
    assert buffers.resumed == [second]


def test_a_paused_peer_that_closes_is_forgotten(buffers: Buffers) -> None:
    first, second = buffers.begin(12 * MIB, 9 * MIB), buffers.begin(12 * MIB, 100)
    buffers.close(second)
    buffers.receive(first, 3 * MIB)
    assert buffers.resumed == []
    assert buffers.limit.used == 0


def test_a_request_that_others_wait_for_must_arrive(buffers: Buffers) -> None:
    slow = buffers.begin(12 * MIB, 9 * MIB)
    for _ in range(5):
        buffers.limit.tick()
        buffers.receive(slow, 1)
    assert buffers.refused == [], "nobody waits for it"
    waiting = buffers.begin(12 * MIB, 100)
    buffers.limit.tick()
    assert buffers.refused == [], "since when others wait, it had no time"
    buffers.receive(slow, 1000)
    buffers.limit.tick()
    assert buffers.refused == [slow]
    assert not waiting.paused
    buffers.limit.tick()
    assert buffers.refused == [slow], "neither had the next one"


def test_a_request_that_arrives_steadily_keeps_its_turn(buffers: Buffers) -> None:
    steady, waiting = buffers.begin(14 * MIB, 9 * MIB), buffers.begin(12 * MIB, 100)
    for _ in range(4):
        buffers.limit.tick()
        assert waiting.paused
        buffers.receive(steady, MIB)
    buffers.receive(steady, steady.decoder.missing)
    assert not waiting.paused
    assert buffers.refused == []
