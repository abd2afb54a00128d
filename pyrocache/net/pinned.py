"""`PinnedConnection`: a connection that one caller keeps between calls.

Leases and locks need it: a node frees what it granted on a connection when the connection closes. The connection holds
a permit of its pool until `release` or `drop`.

Thread safety: used by one thread at a time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from pyrocache.cluster.routing import Member
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import BROKEN, Refused, broken, suspected
from pyrocache.net.pool import Loan, Pool
from pyrocache.protocol.commands import Command
from pyrocache.protocol.refusals import TRY_AGAIN

_GRANTED_SECONDS = 86400.0


class PinnedConnection:
    """A connection that one caller keeps. Used by one thread at a time.

    An exception of a call other than `Refused` closes the connection.

    Args:
        pool: the pool that the connection is taken from and put back into.
        registry: see `Loan`.

    Attributes:
        answer: the result of the last call.
    """

    __slots__ = ("_loan", "_operation", "answer")

    def __init__(self, pool: Pool, registry: dict[int, weakref.ref[Loan]]) -> None:
        self.answer: Any = None
        self._operation = ""
        self._loan = Loan(pool, registry)

    @property
    def member(self) -> Member:
        """Return the node at the other end."""
        return self._loan.pool.member

    @property
    def closed(self) -> bool:
        """Return whether the connection is closed, or back in its pool."""
        return self._loan.connection is None

    def is_from(self, pool: Pool) -> bool:
        """Return whether this is an open connection to the node of ``pool``, perhaps from before a `disconnect`."""
        return self._loan.pool.member == pool.member and not self.closed

    def open(self, command: Command, deadline: Deadline, reserve: int) -> bool:
        """Take a connection and open it. Return False, without waiting, if too few permits would be left.

        Raises:
            Unavailable: the node cannot be reached. Call `drop`.
        """
        try:
            connection = self._loan.take(deadline, False, reserve)
            if connection is None:
                return False
            connection.finish_opening(deadline)
        except BROKEN as error:  # `Connections.pin` drops it
            if not broken(error):
                raise
            raise self._loan.pool.failed(command.name, deadline, error, sent=False) from error
        return True

    def call(self, command: Command, arguments: tuple[Any, ...], deadline: Deadline) -> Any:
        """Make a call over this connection, and return its result.

        Raises:
            Refused, Unavailable: as `Connections.call`; the latter closes the connection.
        """
        self._prepare(command)
        return self._take_answer(partial(self._connection().call, command.name, arguments), deadline)

    def settle(self, command: Command, arguments: tuple[Any, ...], deadline: Deadline) -> Any:
        """Make a call that ends what is granted on this connection. Returns and raises as `call`.

        The node is told a late deadline, for connections that do not know its clock exactly. A caller that gives up
        closes the connection, which ends the grant, too.
        """
        self._prepare(command)
        call = partial(
            self._connection().call_unlike, command.name, arguments, until=Deadline(_GRANTED_SECONDS)
        )
        return self._take_answer(call, deadline)

    def begin(self, command: Command, arguments: tuple[Any, ...], deadline: Deadline) -> bool:
        """Send a small request without blocking. Return False, and close the connection, if that fails."""
        self._operation = command.name
        try:
            if self._connection().begin(command.name, arguments, deadline):
                return True
            raise BlockingIOError
        except BaseException as error:
            self.drop()
            if not isinstance(error, OSError) or not broken(error):
                raise
        return False

    def finish(self, deadline: Deadline) -> Any:
        """Wait for the reply to the request that `begin` sent. Returns and raises as `call`."""
        return self._take_answer(self._connection().receive, deadline)

    def fileno(self) -> int:
        """Return the descriptor, which is readable once the reply to the request of `begin` arrives."""
        return self._connection().fileno()

    def usable(self) -> bool:
        """Return whether the connection is open at both ends."""
        connection = self._loan.connection
        return connection is not None and connection.usable()

    def release(self) -> None:
        """Put the connection back into its pool. No lease or lock may be bound to it any more."""
        self._loan.end(healthy=True)

    def take_back(self, refused: Refused) -> None:
        """End the use of this connection after a refusal. No lease or lock may be bound to it any more."""
        self._loan.end(healthy=refused.refusal.code != TRY_AGAIN)  # see `Pool.take_back`

    def drop(self) -> None:
        """Close the connection. The node then frees what it granted on it."""
        self._loan.end(healthy=False)

    def _prepare(self, command: Command) -> None:
        """Raise `Unavailable`, and close the connection, if the node is suspected."""
        pool = self._loan.pool
        if pool.suspicion.suspected:
            self.drop()
            raise suspected(pool.member, command.name, pool.suspicion)
        self._operation = command.name

    def _take_answer(self, receive: Callable[[Deadline], Any], deadline: Deadline) -> Any:
        connection = self._connection()
        try:
            self.answer = receive(deadline)
        except BaseException as error:
            if not isinstance(error, Refused):
                self.drop()
            if broken(error):
                pool = self._loan.pool
                sent, number = connection.sent, connection.number
                raise pool.failed(self._operation, deadline, error, sent=sent, number=number) from error
            raise
        return self.answer

    def _connection(self) -> Connection:
        connection = self._loan.connection
        assert connection is not None, "it was released or dropped"
        return connection
