"""The connections of one client: pooled, bounded, dropped; calls to one node, and to several at once.

A connection is dropped on any exception in mid-call, of whatever kind: the next reply on it could be another
call's. One that a node has granted something on, a lease or a lock, stays its caller's meanwhile (`Held`). Nothing here
retries; `Unavailable.maybe_executed` tells the router whether that would be safe. Thread-safe; after a fork the router
makes new ones and lets go of these (`Connections.abandon`) without touching the parent's streams.
"""

from __future__ import annotations

import _thread
import math
import select
import threading
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from pyrocache.cluster.routing import Member
from pyrocache.config import TransportChoice
from pyrocache.errors import ClientClosed, NodeUnavailable, Overloaded, ProtocolError, ValueTooLarge
from pyrocache.net.connection import Connection, ConnectRefused, Deadline, Refused
from pyrocache.runtime.places import Places

_TRUST_SECONDS = 0.05  # a connection used that recently is not looked at before it is used again
_FIRST_PAUSE_SECONDS = 0.0005
_LONGEST_PAUSE_SECONDS = 0.01
_HELPER_SECONDS = 0.002


class Request(NamedTuple):
    """One call to one node.

    Attributes:
        member: whom to call.
        method: a method of `CacheNode`.
        arguments: its arguments.
        largest_value: bytes of the largest value among them.
    """

    member: Member
    method: str
    arguments: tuple[Any, ...]
    largest_value: int = 0


class Unavailable(Exception):
    """The node could not be asked, or did not answer.

    Attributes:
        error: what to tell the user.
        maybe_executed: the request had been sent, so the node may have acted on it.
        timed_out: it did not answer in time.
    """

    def __init__(self, error: NodeUnavailable, *, maybe_executed: bool, timed_out: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.maybe_executed = maybe_executed
        self.timed_out = timed_out


_OUTCOMES = (Refused, Unavailable, ValueTooLarge)


class Connections:
    """The connections of one client, by node.

    Args:
        max_per_node: how many may be open to any one node; further callers wait within their deadline.
        transport: whether nodes on this host are reached over their Unix sockets.
    """

    def __init__(self, max_per_node: int, transport: TransportChoice = "auto") -> None:
        self._max_per_node = max_per_node
        self._transport = transport
        self._lock = threading.Lock()  # guards: the set of _pools, _closed; each pool's methods need no lock
        self._pools: dict[str, _Pool] = {}
        self._held: dict[int, weakref.ref[Held]] = {}  # by its id; each of its uses is one call into C
        self._closed = False

    def call(
        self,
        member: Member,
        method: str,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        *,
        largest_value: int = 0,
        careful: bool = False,
    ) -> Any:
        """Make one call and return its result.

        Args:
            member, method, arguments, largest_value: as in `Request`.
            deadline: for all of it.
            careful: the call must not be lost on a connection that the node has closed.

        Raises:
            Refused: the node refused.
            Unavailable: it could not be asked, or did not answer.
            ValueTooLarge: nothing was sent.
        """
        pool = self._pools.get(member.name)
        if pool is None or pool.member is not member:
            pool = self._pool(member)
        try:
            connection = pool.checkout(deadline, careful)
        except _CANNOT_CONNECT as error:
            raise _unavailable(member, method, deadline, error, sent=False) from error
        if largest_value > connection.max_value_bytes:
            raise _too_large(pool, connection, largest_value)
        sent = False
        try:
            connection.send(method, arguments, deadline)
            sent = True
            result = connection.receive(deadline)
        except Refused:
            pool.checkin(connection)
            raise
        except BaseException as error:
            pool.drop(connection)
            if isinstance(error, OSError | ProtocolError):  # a request that is not whole is not executed
                raise _unavailable(member, method, deadline, error, sent=sent) from error
            raise
        pool.checkin(connection)
        return result

    def hold(
        self,
        member: Member,
        method: str,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        held: Held | None = None,
        reserve: int = 0,
    ) -> Held | None:
        """Make a call whose result is bound to its connection, which stays the caller's; `Held.answer` is the result.

        Args:
            member, method, arguments, deadline: as in `call`.
            held: from an earlier call, which may have been to another node; it is not the caller's any more.
            reserve: how many more must be left if one is taken for this.

        Returns:
            None, without waiting, when no more connections to the node may be open, the ``reserve`` considered.

        Raises:
            Refused, Unavailable: as `call`.
        """
        pool = self._pool(member)
        if held is not None and not held.is_from(pool):
            held.give_back()
            held = None
        if held is None:
            try:
                connection = pool.checkout_now(deadline, reserve)
            except _CANNOT_CONNECT as error:
                raise _unavailable(member, method, deadline, error, sent=False) from error
            if connection is None:
                return None
            held = Held(self._held, pool, connection)
            if self._closed:  # looked at last: `close` may have run just before the line above
                held.drop()
                raise _closed()
        try:
            held.ask(method, arguments, deadline)
        except Refused:
            held.give_back()
            raise
        return held

    def exchange(
        self, requests: Sequence[Request], deadline: Deadline, *, careful: bool = False
    ) -> Generator[tuple[int, Any], None, None]:
        """Make calls, all of them sent before the first reply is read; no node keeps another waiting.

        Args:
            requests: may grow while this runs, by further calls to nodes that have answered.

        Yields:
            As the replies come, a request's index and its result, or the `Refused`, `Unavailable` or `ValueTooLarge`
            that `call` would have raised.
        """
        begun = 0
        if len(requests) == 1:
            while begun < len(requests):
                yield begun, self._outcome(requests[begun], deadline, careful)
                begun += 1
            return
        outcomes: dict[int, Any] = {}
        helpers: list[_Helper] = []
        under_way: dict[int, tuple[int, _Pool, Connection]] = {}
        try:
            while begun < len(requests) or under_way or helpers or outcomes:
                while begun < len(requests):
                    index, request = begun, requests[begun]
                    begun += 1
                    pool = self._pool(request.member)
                    connection = pool.checkout_idle(deadline, careful)
                    if connection is None:
                        # Connecting may take until the deadline, which must cost no other node its answer.
                        helpers.append(
                            _Helper(self._outcome_into, outcomes, index, request, deadline, careful)
                        )
                        continue
                    if request.largest_value > connection.max_value_bytes:
                        outcomes[index] = _too_large(pool, connection, request.largest_value)
                        continue
                    descriptor = connection.fileno()
                    under_way[descriptor] = (index, pool, connection)
                    problem = self._push(pool, connection, request, deadline)
                    if problem is not None:
                        del under_way[descriptor]
                        outcomes[index] = problem
                for descriptor in _ready(under_way, deadline, most_seconds=_pause(helpers, outcomes)):
                    index, pool, connection = under_way[descriptor]
                    if connection.sending:
                        problem = self._push(pool, connection, requests[index], deadline)
                        if problem is not None:
                            del under_way[descriptor]
                            outcomes[index] = problem
                        continue
                    try:
                        outcome = self._finish(pool, connection, requests[index], deadline)
                    finally:
                        del under_way[descriptor]
                    yield index, outcome
                helpers = [helper for helper in helpers if not helper.ended]
                for index in list(outcomes):
                    outcome = outcomes.pop(index)
                    if isinstance(outcome, BaseException) and not isinstance(outcome, _OUTCOMES):
                        raise outcome
                    yield index, outcome
        finally:
            for _, pool, connection in under_way.values():  # an exception left replies unread
                pool.drop(connection)

    def _push(
        self, pool: _Pool, connection: Connection, request: Request, deadline: Deadline
    ) -> Unavailable | None:
        """Send a request, or more of it, as far as the node takes it now."""
        try:
            if not connection.sending:
                connection.begin(request.method, request.arguments)
            elif deadline.remaining() > 0:
                connection.go_on()
            else:
                raise TimeoutError
        except BaseException as error:
            pool.drop(connection)
            if not isinstance(error, OSError):  # a request that is not whole is not executed
                raise
            return _unavailable(request.member, request.method, deadline, error, sent=False)
        return None

    def _finish(self, pool: _Pool, connection: Connection, request: Request, deadline: Deadline) -> Any:
        try:
            outcome = connection.receive(deadline)
        except Refused as error:
            outcome = error
        except BaseException as error:
            pool.drop(connection)
            if not isinstance(error, OSError | ProtocolError):
                raise
            return _unavailable(request.member, request.method, deadline, error, sent=True)
        pool.checkin(connection)
        return outcome

    def _outcome(self, request: Request, deadline: Deadline, careful: bool) -> Any:
        member, method, arguments, largest_value = request
        try:
            return self.call(
                member, method, arguments, deadline, largest_value=largest_value, careful=careful
            )
        except _OUTCOMES as error:
            return error

    def _outcome_into(
        self, outcomes: dict[int, Any], index: int, request: Request, deadline: Deadline, careful: bool
    ) -> None:
        try:
            outcomes[index] = self._outcome(request, deadline, careful)
        except BaseException as error:
            outcomes[index] = error

    def close(self) -> None:
        """Close the idle connections, and end those that are held; others close when their call ends."""
        with self._lock:
            self._closed = True
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()
        for held in self._all_held():
            held.interrupt()

    def abandon(self) -> None:
        """In a forked child: let go of every connection. No lock is taken, as one may be held for ever."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()
        for held in self._all_held():
            held.drop()  # or the node would not see it end when the parent does

    def _all_held(self) -> list[Held]:
        return [held for reference in list(self._held.values()) if (held := reference()) is not None]

    def _pool(self, member: Member) -> _Pool:
        pool = self._pools.get(member.name)
        if pool is None or pool.member != member:
            with self._lock:
                if self._closed:
                    raise _closed()
                pool = self._pools.get(member.name)
                if pool is None or pool.member != member:
                    if pool is not None:
                        pool.close()
                    pool = self._pools[member.name] = _Pool(member, self._max_per_node, self._transport)
        return pool


class Held:
    """A connection that stays its caller's between calls, since what a node granted on it ends when it is closed.

    Used by one thread at a time, but for `interrupt`. An exception other than `Refused` closes the connection.

    Attributes:
        answer: the result of the last call.
        closed: whether the connection is closed, or back in its pool.
    """

    __slots__ = ("__weakref__", "_connection", "_pool", "_registry", "answer", "closed")

    def __init__(self, registry: dict[int, weakref.ref[Held]], pool: _Pool, connection: Connection) -> None:
        self.answer: Any = None
        self.closed = False
        self._registry = registry
        self._pool = pool
        self._connection = connection
        registry[id(self)] = weakref.ref(self, partial(_forget, registry, id(self)))

    @property
    def member(self) -> Member:
        """The node at the other end."""
        return self._pool.member

    def is_from(self, pool: _Pool) -> bool:
        """Whether this is a connection of ``pool`` that can be used."""
        return self._pool is pool and not self.closed

    def ask(self, method: str, arguments: tuple[Any, ...], deadline: Deadline) -> Any:
        """Make a call over this connection, and return its result.

        Raises:
            Refused, Unavailable: as `Connections.call`; the latter closes the connection.
        """
        sent = False
        try:
            self._connection.send(method, arguments, deadline)
            sent = True
            self.answer = self._connection.receive(deadline)
        except Refused:
            raise
        except BaseException as error:
            self.drop()
            if isinstance(error, OSError | ProtocolError):
                raise _unavailable(self.member, method, deadline, error, sent=sent) from error
            raise
        return self.answer

    def begin(self, method: str, arguments: tuple[Any, ...]) -> bool:
        """Send a small request without waiting; whether that worked. If not, the connection is closed."""
        try:
            if self._connection.begin(method, arguments):
                return True
            raise BlockingIOError
        except BaseException as error:
            self.drop()
            if not isinstance(error, OSError):
                raise
        return False

    def finish(self, deadline: Deadline) -> Any:
        """The reply to what was begun. Raises as `ask`."""
        try:
            self.answer = self._connection.receive(deadline)
        except Refused:
            raise
        except BaseException as error:
            self.drop()
            if isinstance(error, OSError | ProtocolError):
                raise _unavailable(self.member, "renew", deadline, error, sent=True) from error
            raise
        return self.answer

    def fileno(self) -> int:
        """The descriptor that becomes readable when the reply to what was begun comes."""
        return self._connection.fileno()

    def usable(self) -> bool:
        """Whether the connection is open at both ends."""
        return not self.closed and self._connection.usable()

    def give_back(self) -> None:
        """Put the connection, on which nothing is granted any more, back into its pool."""
        if not self.closed:
            self.closed = True
            self._registry.pop(id(self), None)
            self._pool.checkin(self._connection)

    def drop(self) -> None:
        """Close the connection; the node frees what it had granted on it."""
        if not self.closed:
            self.closed = True
            self._registry.pop(id(self), None)
            self._pool.drop(self._connection)

    def interrupt(self) -> None:
        """Have whoever waits for a reply on another thread see the connection end."""
        if not self.closed:
            self._connection.interrupt()


def _forget(registry: dict[int, weakref.ref[Held]], number: int, gone: weakref.ref[Held]) -> None:
    if registry.get(number) is gone:  # not of another one that has the number by now
        registry.pop(number, None)


def _closed() -> ClientClosed:
    return ClientClosed("This client was closed; make a new PyroCacheClient.")


class _PoolExhausted(Exception):
    """Other threads kept all connections to the node until the deadline."""


_CANNOT_CONNECT = (OSError, UnicodeError, ProtocolError, ConnectRefused, _PoolExhausted)


class _Pool:
    """The connections to one node at one address. ``list`` appends and pops are atomic, so there is no lock."""

    __slots__ = ("_closed", "_idle", "_places", "_transport", "member")

    def __init__(self, member: Member, limit: int, transport: TransportChoice) -> None:
        self.member = member
        self._transport = transport
        self._idle: list[Connection] = []
        self._places = Places(limit)  # an open connection has one
        self._closed = False

    def checkout(self, deadline: Deadline, careful: bool) -> Connection:
        """A connection, opened if need be; a ``careful`` caller gets none that the node has closed."""
        connection = self.checkout_idle(deadline, careful)
        if connection is None:
            connection = self._open(deadline, careful)
        return connection

    def checkout_now(self, deadline: Deadline, reserve: int) -> Connection | None:
        """A connection, opened if need be; None if no more may be open, or then fewer than ``reserve`` were left."""
        connection = self.checkout_idle(deadline, careful=False)
        if connection is None:
            return self._open_if_allowed(deadline, reserve)
        if self._left() < reserve:
            self.checkin(connection)
            return None
        return connection

    def _left(self) -> int:
        """How many more may be in use."""
        return self._places.free + len(self._idle)

    def _open(self, deadline: Deadline, careful: bool) -> Connection:
        pause = _FIRST_PAUSE_SECONDS
        while (connection := self._open_if_allowed(deadline)) is None:
            if deadline.remaining() <= 0:
                raise _PoolExhausted
            time.sleep(min(pause, deadline.remaining()))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            connection = self.checkout_idle(deadline, careful)
            if connection is not None:
                break
        return connection

    def _open_if_allowed(self, deadline: Deadline, reserve: int = 0) -> Connection | None:
        """A new connection; None if no more may be open, or then fewer than ``reserve`` were left."""
        place = self._places.take(0.0)
        if place is None or self._left() < reserve:  # looked at last: others take places at the same moment
            return None
        try:
            connection = Connection(self.member, deadline, self._transport)
            connection.place = place
        finally:
            del place  # an exception would keep it
        return connection

    def checkout_idle(self, deadline: Deadline, careful: bool) -> Connection | None:
        """A connection that is open already, or None; without waiting."""
        now = deadline.seen_at
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if (now - connection.used_at < _TRUST_SECONDS and not careful) or connection.usable():
                connection.used_at = now
                return connection
            connection.close()

    def checkin(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._closed:  # looked at last: `close` may have run just before the line above
            self.close()

    def drop(self, connection: Connection) -> None:
        """Close a connection whose call failed, and those at rest that the same cause has closed."""
        connection.close()
        for _ in range(len(self._idle)):
            try:
                other = self._idle.pop(0)
            except IndexError:
                return
            if other.usable():
                self.checkin(other)
            else:
                other.close()

    def close(self) -> None:
        self._closed = True
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return


def _too_large(pool: _Pool, connection: Connection, largest_value: int) -> ValueTooLarge:
    pool.checkin(connection)
    return ValueTooLarge(
        f"The value is {largest_value} bytes long once encoded, and {pool.member.name} takes "
        f"up to {connection.max_value_bytes}: store it in parts, or start the nodes with a larger --max-value."
    )


class _Helper:
    """A thread that makes one call.

    No `threading.Thread`: its ``start`` waits at a lock that Python code implements, which an interrupt can break.
    """

    __slots__ = ("ended",)

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self.ended = False
        _thread.start_new_thread(self._run, (target, *arguments))

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        try:
            target(*arguments)
        finally:
            self.ended = True


def _pause(helpers: Sequence[_Helper], outcomes: Mapping[int, Any]) -> float:
    """Seconds after which to look for outcomes that no socket tells of."""
    if outcomes:
        return 0.0
    return _HELPER_SECONDS if helpers else math.inf


def _ready(
    under_way: Mapping[int, tuple[int, _Pool, Connection]], deadline: Deadline, *, most_seconds: float
) -> list[int]:
    """The descriptors that can go on, waiting for one; all of them once the deadline has passed."""
    poll = select.poll()
    for descriptor, (_, _, connection) in under_way.items():
        poll.register(descriptor, select.POLLOUT if connection.sending else select.POLLIN)
    remaining = deadline.remaining()
    seconds = min(remaining, most_seconds) if under_way else min(_HELPER_SECONDS, most_seconds)
    ready = poll.poll(math.ceil(seconds * 1000))
    remaining = deadline.remaining()
    if ready or remaining > 0:
        return [descriptor for descriptor, _ in ready]
    return list(under_way)


def _unavailable(
    member: Member, method: str, deadline: Deadline, cause: BaseException, *, sent: bool
) -> Unavailable:
    where = f"{member.name} at {member.address}"
    timed_out = isinstance(cause, TimeoutError | _PoolExhausted)
    kind: type[NodeUnavailable] = NodeUnavailable
    if isinstance(cause, _PoolExhausted):
        text = f"all connections to {where} were in use for {deadline.seconds:g} s"
    elif timed_out:
        text = f"{where} did not answer within {deadline.seconds:g} s"
    elif isinstance(cause, ConnectRefused):
        text = f"{where} refused the connection ({cause})"
        if str(cause).startswith("overloaded"):
            kind = Overloaded
    elif isinstance(cause, ProtocolError):
        text = f"{where} sent what is no reply ({cause})"
    else:
        text = f"{where} cannot be reached ({type(cause).__name__})"
    error = kind(f"{method} failed: {text}. See which nodes answer with: pyrocache status")
    return Unavailable(error, maybe_executed=sent, timed_out=timed_out)
