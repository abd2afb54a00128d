"""`Waiter`: what a connection of its own is to a caller of the blocking client, on a connection that all tasks share.

A node frees what it granted to a waiter when the waiter is withdrawn or its connection closes. A node that does not
know waiters (`UNORDERED`) has granted to the connection; then the grant itself is given back.

Thread safety: used by the thread of its event loop.
"""

from __future__ import annotations

import itertools
from typing import Any

from pyrocache.aio.call import Call
from pyrocache.aio.connection import PipelinedConnection
from pyrocache.cluster.routing import Member
from pyrocache.net.deadline import Deadline
from pyrocache.protocol.commands import WITHDRAW, Command

_WITHDRAW_SECONDS = 60.0  # longer than the clocks of two hosts differ: what is not withdrawn would stay held

_numbers = itertools.count(1)


class Waiter:
    """One caller that waits for a grant, or has one.

    Args:
        connection: an open connection.

    Attributes:
        answer: the last answer of the node.
        connection: as given.
        number: its number on the connection.
    """

    __slots__ = ("_grant", "_over", "answer", "connection", "number")

    def __init__(self, connection: PipelinedConnection) -> None:
        self.answer: Any = None
        self.connection = connection
        self.number = next(_numbers) & 0x7FFFFFFF
        self._grant: tuple[Command, bytes, int] | None = None
        self._over = False
        connection.waiters.add(self.number)

    @property
    def member(self) -> Member:
        """Return the node."""
        return self.connection.member

    @property
    def closed(self) -> bool:
        """Return whether nothing is held or awaited: it was released or dropped, or its connection has closed."""
        return self._over or self.connection.closed

    def granted(self, command: Command, key: bytes, token: int) -> None:
        """Note a grant, and the command that gives it back."""
        self._grant = command, key, token

    def release(self) -> None:
        """End it. Nothing is held or awaited any more."""
        if not self._over:
            self._over = True
            self._leave()

    def drop(self) -> None:
        """End it, and have the node free what it holds and end what it waits for. Does not wait for the node."""
        if self._over:
            return
        self._over = True
        connection = self.connection
        if not connection.closed:
            self._tell(connection)
        self._leave()

    def _tell(self, connection: PipelinedConnection) -> None:
        deadline = Deadline(_WITHDRAW_SECONDS)
        if connection.unordered:
            call = Call(WITHDRAW.name, (self.number,), deadline, None)
        elif self._grant is not None:
            command, key, token = self._grant
            call = Call(command.name, (0, key, token), deadline, None)
        else:
            return
        connection.send(call)
        connection.flush()

    def _leave(self) -> None:
        self.connection.waiters.discard(self.number)
        if self.connection.retired:
            self.connection.retire()  # closes it if this was the last one
