"""Calls to several nodes at once on one thread, without waiting for any single node.

Connecting, the handshake, sending and receiving each proceed as far as they can without blocking, whenever
`select.poll` reports the socket, until the deadline. A node that stalls, even in the middle of a reply, does not delay
the other nodes' replies. A node in doubt is pinged over the connection of its request, before that (`net.suspicion`).

Thread safety: each `exchange` belongs to the thread that runs it; any number may run at once.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrocache.cluster.routing import Member
from pyrocache.net.call_protocol import GREETED, PENDING
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import PoolExhausted, Refused, broken, suspected, too_large, unavailable
from pyrocache.net.pool import Loan, Pool
from pyrocache.net.suspicion import Verdict
from pyrocache.protocol.commands import PING, Command
from pyrocache.protocol.refusals import TRY_AGAIN

if TYPE_CHECKING:
    from pyrocache.net.calls import Connections

_PERMIT_SECONDS = 0.002  # between two attempts to take a permit while all are taken


class Request(NamedTuple):
    """One call to one node.

    Attributes:
        member: the node to call.
        command: the method to call.
        arguments: its arguments.
        largest_value: bytes of the largest value among them.
    """

    member: Member
    command: Command
    arguments: tuple[Any, ...]
    largest_value: int = 0


def exchange(
    connections: Connections, requests: Sequence[Request], deadline: Deadline
) -> Generator[tuple[int, Any], None, None]:
    """Make calls; see `Connections.exchange`."""
    flights: list[_Flight] = []
    begun = 0
    try:
        while begun < len(requests) or flights:
            ready = _ready(flights, deadline) if begun == len(requests) else []
            while begun < len(requests):
                request = requests[begun]
                ready.append(_Flight(begun, request, connections.pool(request.member), deadline))
                flights.append(ready[-1])
                begun += 1
            for flight in ready:
                outcome = flight.advance(deadline)
                if outcome is not PENDING:
                    flights.remove(flight)
                    yield flight.index, outcome
    finally:
        for flight in flights:  # their replies are unread, so their connections cannot be reused
            flight.loan.end(healthy=False)


class _Flight:
    """A request in progress.

    Attributes:
        step: while the node is pinged before the request, the deadline of that step.
    """

    __slots__ = ("_pinged", "_since", "_suspected", "index", "loan", "request", "step")

    def __init__(self, index: int, request: Request, pool: Pool, deadline: Deadline) -> None:
        self.index = index
        self.request = request
        self.loan = Loan(pool, {})  # not registered elsewhere: `exchange` ends each loan
        self.step: Deadline | None = None
        self._suspected = False
        if pool.suspicion.doubted and request.command is not PING:
            verdict = pool.suspicion.ask(deadline)
            self._suspected = verdict is Verdict.FAIL
            if verdict is Verdict.PING:
                self.step = Deadline(pool.suspicion.patience(deadline))
                self._pinged = False
                self._since = time.monotonic()

    def advance(self, deadline: Deadline) -> Any:
        """Proceed as far as possible without blocking. Return the outcome, or `PENDING`."""
        member, command, arguments, largest_value = self.request
        loan = self.loan
        connection = loan.connection
        opened = connection is not None and not connection.opened  # now, if the outcome is `GREETED`
        if self._suspected:
            return suspected(member, command.title, loan.pool.suspicion)
        try:
            if connection is not None:
                outcome = connection.advance()
            elif (connection := loan.take(deadline, not command.idempotent)) is not None:
                outcome = GREETED if connection.opened else PENDING
                if self.step is not None:  # waiting for a permit does not count
                    self.step = Deadline(self.loan.pool.suspicion.patience(deadline))
            elif deadline.remaining() > 0:
                return PENDING
            else:
                raise PoolExhausted
            if self.step is not None:
                outcome = self._advance_ping(connection, outcome, deadline)
            if outcome is GREETED:
                if largest_value > connection.max_value_bytes:
                    outcome = too_large(member, largest_value, connection.max_value_bytes)
                elif deadline.remaining() <= 0:  # the connection is still usable
                    outcome = unavailable(member, command.title, deadline, TimeoutError(), sent=False)
                else:
                    if opened:
                        loan.pool.check_opened(deadline)
                    connection.begin(command.name, arguments, deadline)
                    return PENDING
            if outcome is PENDING:
                deadline.check()
                return PENDING
        except Refused as refused:
            loan.end(healthy=refused.refusal.code != TRY_AGAIN)  # see `Pool.take_back`
            return refused
        except BaseException as error:
            loan.end(healthy=False, cause=error)
            if not broken(error):
                raise
            return self._failed(error, deadline, connection)
        loan.end(healthy=True)
        return outcome

    def _advance_ping(self, connection: Connection, outcome: Any, deadline: Deadline) -> Any:
        """Ping once the connection is open. Return `PENDING`, or `GREETED` once that is answered."""
        assert self.step is not None
        if outcome is PENDING:
            self.step.check()
        elif not self._pinged:
            connection.begin(PING.name, (), deadline)
            self._pinged = True
            self.step = Deadline(self.loan.pool.suspicion.patience(deadline))
        else:
            self.loan.pool.suspicion.answered(self._since)
            self.step = None
            return GREETED
        return PENDING

    def _failed(self, error: BaseException, deadline: Deadline, connection: Connection | None) -> Any:
        """Return the outcome after one of `BROKEN`."""
        operation, pool = self.request.command.title, self.loan.pool
        sent = connection is not None and connection.sent
        if self.step is not None:
            sent = False  # what was sent is the ping
            if not isinstance(error, TimeoutError):
                pool.suspicion.answered()
            elif pool.suspicion.silent(self._since):
                return suspected(pool.member, operation, pool.suspicion)
        number = connection.number if connection is not None else 0
        return pool.failed(operation, deadline, error, sent=sent, number=number)


def _ready(flights: Sequence[_Flight], deadline: Deadline) -> list[_Flight]:
    """Wait. Return the flights that can proceed, or whose time is over: all of them once the deadline has passed."""
    poll = select.poll()
    by_descriptor: dict[int, _Flight] = {}
    without_permit = []
    pinging = []
    seconds = deadline.remaining()
    for flight in flights:
        if (connection := flight.loan.connection) is None:
            without_permit.append(flight)
        else:
            by_descriptor[connection.fileno()] = flight
            poll.register(connection, connection.events)
            if flight.step is not None:
                pinging.append(flight)
                seconds = min(seconds, flight.step.remaining())
    if without_permit:
        seconds = min(seconds, _PERMIT_SECONDS)
    # Poll after the deadline too: a reply that has arrived is valid.
    milliseconds = max(1, math.ceil(seconds * 1000))
    ready = [by_descriptor[descriptor] for descriptor, _ in poll.poll(milliseconds)]
    if not ready and deadline.remaining() <= 0:
        return list(flights)
    late = [
        flight for flight in pinging if flight.step and flight not in ready and flight.step.remaining() <= 0
    ]
    return ready + late + without_permit
