"""`Pool`: the reusable connections to one node, and the permits that limit their number.

A caller needs a permit to use a connection, and there are as many permits as connections may be open. They are the
items of a `queue.SimpleQueue`: waiting for one blocks in C, in FIFO order, and putting one back cannot fail. The class
is looked up when a pool is made, as gevent replaces it.

A permit is put back by a ``finally``, so an exception object that is kept alive does not keep a permit. An exception
that a signal handler raises does not lose a permit either. Python runs signal handlers only at the start of a Python
function, at a backward jump of a loop, and after a call has returned. Therefore a permit is taken without a call
instruction, right before the ``try``: a ``map`` over the queue's ``get`` is unpacked, which calls ``get`` from C. A
permit is put back by the first call of the ``finally``.

Thread safety: thread-safe without a lock; ``list`` appends and pops are atomic.
"""

from __future__ import annotations

import queue
import time
import weakref
from collections.abc import Callable

from pyrocache.cluster.routing import Member
from pyrocache.config import TransportChoice
from pyrocache.net.call_protocol import ANONYMOUS, Caller
from pyrocache.net.connection import Connection, OpenedTooLate
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import BROKEN, PoolExhausted, Refused, Unavailable, suspected, unavailable
from pyrocache.net.suspicion import Suspicion, Verdict
from pyrocache.protocol.commands import PING
from pyrocache.protocol.refusals import TRY_AGAIN
from pyrocache.tracebacks import came_from_outside

_TRUST_SECONDS = 0.05  # a connection that was checked is used that long without a further system call
_CAREFUL_SECONDS = (
    0.001  # likewise, if the caller is careful. In a loop, a lost reply tells anyway that the node died.
)
_AT_ONCE = (False,)
_WAITING = (True,)


class Pool:
    """The connections to one node at one address.

    Args:
        member: the node.
        limit: the most connections that may be open.
        transport: whether its Unix socket may be used.
        suspicion: what is known about whether the node answers; None to trust it always.
        caller: describes the caller.
        connect: opens a connection, as `Connection` does.

    Attributes:
        member: as given.
        suspicion: as given, or one that nothing is reported to.
        idle: open connections that no caller uses.
        permits: one token for each connection that may be taken. The caller of `checkout` puts its permit back.
        closed: whether connections are closed instead of kept idle.
    """

    __slots__ = (
        "_caller",
        "_connect",
        "_take",
        "_transport",
        "_trusted",
        "closed",
        "idle",
        "member",
        "permits",
        "suspicion",
    )

    def __init__(
        self,
        member: Member,
        limit: int,
        transport: TransportChoice,
        suspicion: Suspicion | None = None,
        caller: Caller = ANONYMOUS,
        connect: Callable[..., Connection] = Connection,
    ) -> None:
        self._caller = caller
        self._connect = connect
        self.member = member
        self.suspicion = Suspicion() if suspicion is None else suspicion
        self._trusted = suspicion is None
        self.closed = False
        self.idle: list[Connection] = []
        self.permits: queue.SimpleQueue[object] = queue.SimpleQueue()
        for _ in range(limit):
            self.permits.put(None)
        self._take = self.permits.get
        self._transport = transport

    def checkout(self, deadline: Deadline, careful: bool, wait: bool = True) -> Connection:
        """Take a permit and return a connection, which may not be open yet.

        Args:
            deadline: limits the wait for a permit.
            careful: check that the node has not closed the connection, even if that was checked a moment ago.
            wait: whether to wait for a permit if all are taken.

        Raises:
            PoolExhausted: there was no permit before the deadline, or without waiting.
            OSError, UnicodeError: the node cannot be reached.
        """
        try:
            (_,) = map(self._take, _AT_ONCE)
        except queue.Empty:
            seconds = deadline.remaining() if wait else 0.0
            try:
                (_,) = map(self._take, _WAITING, (seconds,))
            except queue.Empty:
                raise PoolExhausted from None
        connection: Connection | None = None
        try:
            now = deadline.seen_at
            while True:
                try:
                    connection = self.idle.pop()  # the last one used, which is the least likely to be closed
                except IndexError:
                    return self._connect(self.member, self._transport, self._caller)
                if now - connection.checked_at < (_CAREFUL_SECONDS if careful else _TRUST_SECONDS):
                    return connection
                if not connection.opened:
                    if connection.may_open():
                        return connection
                elif now < connection.fresh_until and connection.usable():
                    connection.checked_at = now
                    return connection
                connection.close()
        except BaseException:
            self.permits.put(None)
            if connection is not None:  # an exception that is kept would keep it open
                connection.close()
            raise

    def checkin(self, connection: Connection) -> None:
        """Keep a connection, on which no reply is outstanding, for the next caller. Does not put a permit back."""
        self.idle.append(connection)
        if self.closed:  # check last: close() may have raced with us
            self.close()

    def take_back(self, connection: Connection, refused: Refused) -> None:
        """Keep a connection on which a call was refused, unless the node's clock may have to be asked again.

        If this machine was suspended, the deadlines on the connection are too early: the node refuses each request.
        """
        if refused.refusal.code == TRY_AGAIN:
            self.drop(connection)
        else:
            self.checkin(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection whose call failed, and the idle ones that have failed with it."""
        connection.close()
        for _ in range(len(self.idle)):  # each one once: `checkin` appends the usable ones again
            try:
                other = self.idle.pop(0)
            except IndexError:
                return
            if other.usable():
                self.checkin(other)
            else:
                other.close()

    def check_opened(self, deadline: Deadline) -> None:
        """Raise `OpenedTooLate` if the opening of a connection has left too little time for its first request.

        Where no node is suspected, calls are repeated, and have less time than all of that takes over a long way.
        """
        if self._trusted and deadline.remaining() < deadline.seconds / 2:
            raise OpenedTooLate

    def give_up(self, connection: Connection, cause: BaseException) -> None:
        """Close a connection whose call failed with ``cause``, unless the next call can open it further, or use it."""
        unfinished = self._trusted and isinstance(cause, TimeoutError) and connection.opening
        if unfinished or isinstance(cause, OpenedTooLate):
            self.checkin(connection)
        else:
            self.drop(connection)

    def failed(
        self, operation: str, deadline: Deadline, cause: BaseException, *, sent: bool, number: int = 0
    ) -> Unavailable:
        """Return the outcome of a request that failed with ``cause``, one of `BROKEN`. Doubt a node that hangs."""
        if isinstance(cause, TimeoutError) and not self._trusted:
            self.suspicion.timed_out(deadline.seconds)
            self._close_idle()  # they may hang as well; a ping over a new connection tells
        return unavailable(self.member, operation, deadline, cause, sent=sent, number=number)

    def ping(self, operation: str, deadline: Deadline, loan: Loan) -> None:
        """Ping the node, which is in doubt, unless it is suspected. Takes ``loan`` meanwhile.

        Raises:
            Unavailable: it is suspected.
        """
        suspicion = self.suspicion
        verdict = suspicion.ask(deadline)
        if verdict is Verdict.FAIL:
            raise suspected(self.member, operation, suspicion)
        if verdict is Verdict.SEND:
            return
        seconds, since = suspicion.patience(deadline), time.monotonic()
        try:
            connection = loan.take(deadline, True)
            if connection is not None:
                connection.finish_opening(Deadline(seconds))
                connection.call(PING.name, (), Deadline(min(seconds, deadline.remaining())))
            elif suspicion.suspected:  # no permit: all connections are in calls that hang
                raise suspected(self.member, operation, suspicion)
        except (Refused, *BROKEN) as error:
            if came_from_outside(error):
                raise
            if not isinstance(error, TimeoutError):
                suspicion.answered()  # the request itself will tell
            elif suspicion.silent(since):
                raise suspected(self.member, operation, suspicion) from None
        else:
            loan.end(healthy=True)
            if connection is not None:
                suspicion.answered(since)
        finally:
            loan.end(healthy=False)

    def close(self) -> None:
        """Close the idle connections. Those in use are closed when they are put back."""
        self.closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        while self.idle:
            try:
                self.idle.pop().close()
            except IndexError:
                return


class Loan:
    """A connection taken from a pool, with its permit, until both are given back exactly once.

    Args:
        pool: the pool to take it from.
        registry: holds a weak reference to each loan that is taken, which puts the permit back if the loan is
            garbage-collected without `end`; its connection then closes with a `ResourceWarning`.

    Attributes:
        pool: as given.
        connection: None before `take` and after `end`.
    """

    __slots__ = ("__weakref__", "_number", "_registry", "connection", "pool")

    def __init__(self, pool: Pool, registry: dict[int, weakref.ref[Loan]]) -> None:
        self.pool = pool
        self.connection: Connection | None = None
        self._number = id(self)
        self._registry = registry

    def take(self, deadline: Deadline, careful: bool, reserve: int = 0) -> Connection | None:
        """Take a connection, which may not be open yet, without waiting for a permit.

        Return None if there is no permit, or fewer than ``reserve`` would be left. Raises `OSError` or `UnicodeError`.
        """
        permits = self.pool.permits
        try:
            self.connection = self.pool.checkout(deadline, careful, False)
        except PoolExhausted:
            return None
        self._registry[self._number] = weakref.ref(self, permits.put)  # in C: safe in any garbage collection
        if permits.qsize() < reserve:  # check last: other threads may have taken permits meanwhile
            self.end(healthy=self.connection.opened)
        return self.connection

    def end(self, *, healthy: bool, cause: BaseException | None = None) -> None:
        """Give the connection and its permit back. Close the connection unless it is healthy.

        Args:
            cause: why it is not healthy; see `Pool.give_up`.
        """
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                self._registry.pop(self._number, None)
                if healthy:
                    self.pool.checkin(connection)
                elif cause is not None:
                    self.pool.give_up(connection, cause)
                else:
                    self.pool.drop(connection)
            finally:
                self.pool.permits.put(None)
