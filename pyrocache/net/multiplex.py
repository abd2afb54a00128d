"""Calls to several nodes at once on one thread, without waiting for any single node.

Connecting, the handshake, sending and receiving each proceed as far as they can without blocking, whenever
`select.poll` reports the socket, until the deadline. A node that stalls, even in the middle of a reply, does not delay
the other nodes' replies.

Thread safety: each `exchange` belongs to the thread that runs it; any number may run at once.
"""

from __future__ import annotations

import math
import select
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrocache.cluster.routing import Member
from pyrocache.net.call_protocol import GREETED, PENDING
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import PoolExhausted, Refused, broken, too_large, unavailable
from pyrocache.net.pool import Loan, Pool
from pyrocache.protocol.commands import Command

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
                ready.append(_Flight(begun, request, connections.pool(request.member)))
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
    """A request in progress."""

    __slots__ = ("index", "loan", "request")

    def __init__(self, index: int, request: Request, pool: Pool) -> None:
        self.index = index
        self.request = request
        self.loan = Loan(pool, {})  # not registered elsewhere: `exchange` ends each loan

    def advance(self, deadline: Deadline) -> Any:
        """Proceed as far as possible without blocking. Return the outcome, or `PENDING`."""
        member, command, arguments, largest_value = self.request
        loan = self.loan
        connection = loan.connection
        try:
            if connection is not None:
                outcome = connection.advance()
            elif (connection := loan.take(deadline, not command.idempotent)) is not None:
                outcome = GREETED if connection.opened else PENDING
            elif deadline.remaining() > 0:
                return PENDING
            else:
                raise PoolExhausted
            if outcome is GREETED:
                if largest_value > connection.max_value_bytes:
                    outcome = too_large(member, largest_value, connection.max_value_bytes)
                elif deadline.remaining() <= 0:  # the connection is still usable
                    outcome = unavailable(member, command.name, deadline, TimeoutError(), sent=False)
                else:
                    connection.begin(command.name, arguments)
                    return PENDING
            if outcome is PENDING:
                deadline.check()
                return PENDING
        except Refused as refused:
            outcome = refused
        except BaseException as error:
            loan.end(healthy=False)
            if not broken(error):
                raise
            sent = connection is not None and connection.sent
            return unavailable(member, command.name, deadline, error, sent=sent)
        loan.end(healthy=True)
        return outcome


def _ready(flights: Sequence[_Flight], deadline: Deadline) -> list[_Flight]:
    """Wait. Return the flights that can proceed; all of them once the deadline has passed."""
    poll = select.poll()
    by_descriptor: dict[int, _Flight] = {}
    without_permit = []
    for flight in flights:
        if (connection := flight.loan.connection) is None:
            without_permit.append(flight)
        else:
            by_descriptor[connection.fileno()] = flight
            poll.register(connection, connection.events)
    seconds = deadline.remaining()
    if without_permit:
        seconds = min(seconds, _PERMIT_SECONDS)
    # Poll after the deadline too: a reply that has arrived is valid.
    milliseconds = max(1, math.ceil(seconds * 1000))
    ready = [by_descriptor[descriptor] for descriptor, _ in poll.poll(milliseconds)]
    if not ready and deadline.remaining() <= 0:
        return list(flights)
    return ready + without_permit
