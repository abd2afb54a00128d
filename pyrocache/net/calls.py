"""`Connections`: every connection of one client or node, and the calls over them.

A call goes to one node, to several nodes at once (`net.multiplex`), or over a pinned connection (`net.pinned`). The
module has nothing to do with `server.calls`, which keeps the outstanding calls of a server.

Any exception in the middle of a call drops the connection, as the next reply on it could belong to another call.
Nothing here retries; `Unavailable.maybe_executed` and the command tell whether a retry would be safe, and
`client.routing.retry` decides. After a fork, the child makes new `Connections` and calls `abandon` on the inherited
ones, which does not touch the parent's streams.

Thread safety: thread-safe.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from typing import Any

from pyrocache.cluster.routing import Member
from pyrocache.config import TransportChoice
from pyrocache.errors import ValueTooLarge
from pyrocache.net import multiplex
from pyrocache.net.call_protocol import ANONYMOUS, Caller
from pyrocache.net.channel import check_supported
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import BROKEN, Refused, Unavailable, broken, client_closed, too_large, unavailable
from pyrocache.net.multiplex import Request
from pyrocache.net.pinned import PinnedConnection
from pyrocache.net.pool import Loan, Pool
from pyrocache.net.suspicion import Suspicions
from pyrocache.protocol.commands import PING, Command

__all__ = ["Connections", "Request"]


class Connections:
    """Connections by node.

    Args:
        max_per_node: how many may be open to any one node; further callers wait within their deadline.
        transport: whether nodes on this host are reached over their Unix sockets.
        suspicions: which nodes seem to hang; None to trust every node.
        caller: describes the caller to each node.
        connect: opens a connection, as `Connection` does.

    Raises:
        ConfigurationError: this interpreter's sockets do not work, under eventlet.
    """

    def __init__(
        self,
        max_per_node: int,
        transport: TransportChoice = "auto",
        suspicions: Suspicions | None = None,
        caller: Caller = ANONYMOUS,
        connect: Callable[..., Connection] = Connection,
    ) -> None:
        check_supported()
        self._connect = connect
        self._suspicions = suspicions
        self._max_per_node = max_per_node
        self._transport = transport
        self._caller = caller
        self._lock = threading.Lock()  # guards: the set of _pools, _closed; each pool's methods need no lock
        self._pools: dict[str, Pool] = {}
        self._pinned: dict[int, weakref.ref[Loan]] = {}  # each use is one call into C
        self._closed = False

    def call(
        self,
        member: Member,
        command: Command,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        largest_value: int = 0,
    ) -> Any:
        """Make one call and return its result.

        Args:
            member, command, arguments, largest_value: as in `Request`.
            deadline: for all of it.

        Raises:
            Refused: the node refused.
            Unavailable: the node could not be reached, or did not answer; or nothing was sent, as it seems to hang.
            ValueTooLarge: the node does not accept the value; nothing was sent.
        """
        pool = self._pools.get(member.name)
        if pool is None or pool.member is not member:  # identity first: `pool` compares by value
            pool = self.pool(member)
        if pool.suspicion.doubted:
            self._ping(pool, command, deadline)
        try:
            connection = pool.checkout(deadline, not command.idempotent)
        except BROKEN as error:
            if not broken(error):
                raise
            raise pool.failed(command.title, deadline, error, sent=False) from error
        try:
            if not connection.opened:
                connection.finish_opening(deadline)
                pool.check_opened(deadline)
            if largest_value > connection.max_value_bytes:
                raise too_large(member, largest_value, connection.max_value_bytes)
            result = connection.call(command.name, arguments, deadline)
        except Refused as refused:
            pool.take_back(connection, refused)
            raise
        except ValueTooLarge:
            pool.idle.append(connection)  # `checkin` without its call: see the ``finally`` for `closed`
            raise
        except BaseException as error:
            pool.give_up(connection, error)
            if broken(error):
                sent, number = connection.sent, connection.number
                raise pool.failed(command.title, deadline, error, sent=sent, number=number) from error
            raise
        else:
            pool.idle.append(connection)
        finally:
            pool.permits.put(None)
            if pool.closed:  # check last: close() may have raced with us
                pool.close()
        return result

    def repeat(self, request: Request, number: int, deadline: Deadline) -> Any:
        """Ask for the outcome of a request whose reply was lost. Returns and raises as `call`.

        The request is executed in no case: if its outcome is not known, the node refuses it and tells what is.
        """
        member, command, arguments, _ = request
        pool = self.pool(member)
        connection: Connection | None = None
        try:
            connection = pool.checkout(deadline, True)
            if not connection.opened:
                connection.finish_opening(deadline)
            result = connection.call_unlike(command.name, arguments, deadline, repeats=number)
        except Refused as refused:
            if connection is not None:
                pool.take_back(connection, refused)
            raise
        except BaseException as error:
            if connection is not None:
                pool.drop(connection)
            if broken(error):
                raise pool.failed(command.title, deadline, error, sent=True, number=number) from error
            raise
        else:
            pool.checkin(connection)
        finally:
            if connection is not None:
                pool.permits.put(None)
        return result

    def pin(
        self,
        member: Member,
        command: Command,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        pinned: PinnedConnection | None = None,
        reserve: int = 0,
    ) -> PinnedConnection | None:
        """Make a call over a pinned connection. The caller keeps the connection, to which the result is bound.

        Args:
            member, command, arguments, deadline: as in `call`.
            pinned: the connection of an earlier call, perhaps to another node. Do not use it afterwards.
            reserve: how many permits must be left after one is taken.

        Returns:
            The connection, whose ``answer`` is the result; None, without waiting, if too many are in use.

        Raises:
            Refused, Unavailable: as `call`.
        """
        pool = self.pool(member)
        if pinned is not None and not pinned.is_from(pool):
            pinned.release()
            pinned = None
        if pinned is None:
            pinned = PinnedConnection(pool, self._pinned)
        try:
            if pool.suspicion.doubted:
                self._ping(pool, command, deadline)
            if pinned.closed and not pinned.open(command, deadline, reserve):
                return None
            if self._closed:  # check last: close() may have raced with us
                raise client_closed()
            pinned.call(command, arguments, deadline)
        except Refused as refused:
            pinned.take_back(refused)
            raise
        except BaseException:
            pinned.drop()
            raise
        return pinned

    def exchange(
        self, requests: Sequence[Request], deadline: Deadline
    ) -> Generator[tuple[int, Any], None, None]:
        """Make calls in parallel: send all requests before the first reply is read. A slow node delays no other.

        Close the generator if it is not run to its end (`contextlib.closing`).

        Args:
            requests: may grow meanwhile, by further calls to nodes that have answered.

        Yields:
            In the order of the replies: the index of a request, and its result or the `Refused`, `Unavailable` or
            `ValueTooLarge` that `call` would have raised.
        """
        if len(requests) != 1:
            yield from multiplex.exchange(self, requests, deadline)
            return
        # To one node `call` is faster. The iterator of a list also returns items that are appended meanwhile.
        for index, (member, command, arguments, largest_value) in enumerate(requests):
            try:
                # A node that always answers in time must not extend the call.
                if deadline.remaining() <= 0:
                    raise unavailable(member, command.title, deadline, TimeoutError(), sent=False)
                outcome: Any = self.call(member, command, arguments, deadline, largest_value)
            except (Refused, Unavailable, ValueTooLarge) as error:
                outcome = error
            yield index, outcome

    def _ping(self, pool: Pool, command: Command, deadline: Deadline) -> None:
        """Ping a node in doubt before a command is sent. Raises `Unavailable` if the node is suspected."""
        if command is not PING:  # a ping itself is always sent
            pool.ping(command.title, deadline, Loan(pool, self._pinned))

    def disconnect(self) -> None:
        """Close the idle connections, and each of the others when its call or grant ends. Later calls open new ones."""
        with self._lock:  # or `pool` could put a new pool into the old table
            self._close_pools()

    def close(self) -> None:
        """Close the idle connections and shut the pinned ones down. The others close when their call ends."""
        with self._lock:
            self._closed = True
        for loan in self._close_pools():
            if (connection := loan.connection) is not None:
                connection.interrupt()

    def abandon(self) -> None:
        """Close the inherited descriptors in a forked child. Takes no lock: one may stay locked forever there."""
        for loan in self._close_pools():
            loan.end(healthy=False)  # a copy left open would hide from the node that the parent closed it

    def _close_pools(self) -> list[Loan]:
        """Close the idle connections. Return the loans of those that are pinned."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()
        return [loan for reference in list(self._pinned.values()) if (loan := reference()) is not None]

    def pool(self, member: Member) -> Pool:
        """Return the connections to ``member``. Raises `ClientClosed` after `close`."""
        pool = self._pools.get(member.name)
        if pool is None or pool.member != member:  # no lock in the usual case: threads would contend for it
            with self._lock:
                if self._closed:
                    raise client_closed()
                pool = self._pools.get(member.name)
                if pool is None or pool.member != member:
                    if pool is not None:
                        pool.close()
                    suspicion = None if self._suspicions is None else self._suspicions.of(member)
                    how = (self._transport, suspicion, self._caller, self._connect)
                    pool = Pool(member, self._max_per_node, *how)
                    self._pools[member.name] = pool
        return pool
