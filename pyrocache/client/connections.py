"""Sockets to nodes: opened, pooled, bounded, dropped. One request is under way on a connection at a time.

A connection is dropped on any exception in mid-call, of whatever kind: the next reply on it could be another
call's. Nothing here retries; `Unavailable.maybe_executed` tells the router whether that would be safe. Thread-safe;
after a fork the router makes new ones and lets go of these (`Connections.abandon`) without touching the parent's
streams.
"""

from __future__ import annotations

import codecs
import math
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pyrocache.cluster import wire
from pyrocache.cluster.routing import Member
from pyrocache.cluster.wire import FrameDecoder, Header, Refusal
from pyrocache.config import DEFAULT_MAX_VALUE_BYTES
from pyrocache.errors import ClientClosed, NodeUnavailable, Overloaded, ProtocolError, ValueTooLarge
from pyrocache.places import Place, Places

# Looking a host up imports this codec; a fork in the middle of the import would lock the child out for ever.
codecs.lookup("idna")

_RECEIVE_BYTES = 64 * 1024
_REPLY_SLACK = 256 * 1024
_HANDSHAKE_BYTES = 64 * 1024
_REPLY_FLAGS = wire.FLAG_EXCEPTION | wire.FLAG_CORRELATION_ID


class Deadline:
    """A point in monotonic time that every step of one call respects."""

    __slots__ = ("_clock", "at", "seconds")

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self.at = clock() + seconds

    def remaining(self) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self.at - self._clock())

    def socket_timeout(self) -> float:
        """Seconds left for a socket operation; raises TimeoutError when there are none."""
        remaining = self.at - self._clock()
        if remaining <= 0:
            raise TimeoutError
        return remaining


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


class Refused(Exception):
    """The node answered with a refusal."""

    def __init__(self, member: Member, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.member = member
        self.refusal = refusal


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


class Connection:
    """One open connection to one node, past the handshake."""

    __slots__ = ("_decoder", "_sequence", "_sock", "max_value_bytes", "member", "place")

    def __init__(self, member: Member, deadline: Deadline) -> None:
        self.member = member
        self.place: Place | None = None  # in its pool, while in use
        self.max_value_bytes = DEFAULT_MAX_VALUE_BYTES
        self._sequence = 0
        self._decoder = FrameDecoder(_admit_greeting)  # no method: a cycle would keep large buffers alive
        self._sock = socket.create_connection((member.host, member.port), deadline.socket_timeout())
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._shake_hands(deadline)
        except BaseException:
            self._sock.close()
            raise
        longest = self.max_value_bytes + wire.BATCH_BYTES + _REPLY_SLACK
        self._decoder.admit = lambda header: _admit_reply(header, longest)

    def send(self, request: Request, deadline: Deadline) -> None:
        """Send a request; `receive` its reply before the next."""
        self._sequence = (self._sequence + 1) & 0xFFFF
        message = wire.pack_call(self.member.name, request.method, request.arguments, self._sequence)
        self._send(message, deadline)

    def receive(self, deadline: Deadline) -> Any:
        """The reply to the request sent last.

        Raises:
            Refused: the node refused; the connection is as good as before.
            ProtocolError, OSError: drop the connection.
        """
        header, body = self._next_frame(deadline)
        if header.sequence != self._sequence:
            raise ProtocolError("A reply came out of order.")
        if header.flags & wire.FLAG_EXCEPTION:
            raise Refused(self.member, wire.unpack_refusal(body))
        return wire.unpack_plain(body)

    def fileno(self) -> int:
        """The descriptor that becomes readable when the reply comes."""
        return self._sock.fileno()

    def usable(self) -> bool:
        """Whether the node has neither closed this connection nor sent anything unasked."""
        try:
            self._sock.setblocking(False)
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close this process's end; after a fork the other process's stays open."""
        self._sock.close()

    def _shake_hands(self, deadline: Deadline) -> None:
        body = wire.pack_plain({"handshake": "pyrocache", "object": self.member.name})
        self._send(wire.pack_message(wire.CONNECT, 0, body), deadline)
        header, answered = self._next_frame(deadline)
        answer = wire.unpack_plain(answered)
        if header.type == wire.CONNECT_FAIL:
            raise _ConnectRefused(answer if isinstance(answer, str) else "no reason was given")
        greeting = answer.get("handshake") if isinstance(answer, dict) else None
        if isinstance(greeting, dict) and isinstance(greeting.get("max_value_bytes"), int):
            self.max_value_bytes = greeting["max_value_bytes"]

    def _send(self, message: bytes, deadline: Deadline) -> None:
        self._sock.settimeout(deadline.socket_timeout())
        self._sock.sendall(message)

    def _next_frame(self, deadline: Deadline) -> wire.Frame:
        while (frame := self._decoder.next_frame()) is None:
            self._sock.settimeout(deadline.socket_timeout())
            data = self._sock.recv(_RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("the node closed the connection")
            self._decoder.feed(data)
        return frame


def _admit_greeting(header: Header) -> None:
    if header.type not in (wire.CONNECT_OK, wire.CONNECT_FAIL) or header.serializer != wire.MSGPACK:
        raise ProtocolError("This is no answer to a handshake in msgpack.")
    if header.flags & ~_REPLY_FLAGS or header.frame_bytes > _HANDSHAKE_BYTES:
        raise ProtocolError("This answer to a handshake is compressed or too long.")


def _admit_reply(header: Header, longest: int) -> None:
    if header.type != wire.RESULT or header.serializer != wire.MSGPACK or header.flags & ~_REPLY_FLAGS:
        raise ProtocolError("This is no plain reply in msgpack.")
    if header.frame_bytes > longest:
        raise ProtocolError("A reply is longer than any value that the node takes.")


class _ConnectRefused(Exception):
    """The peer refused the handshake, in these words."""


class Connections:
    """The connections of one client, by node.

    Args:
        max_per_node: how many may be open to any one node; further callers wait within their deadline.
    """

    def __init__(self, max_per_node: int) -> None:
        self._max_per_node = max_per_node
        self._lock = threading.Lock()  # guards: the set of _pools, _closed; each pool's methods need no lock
        self._pools: dict[str, _Pool] = {}
        self._closed = False

    def call(self, request: Request, deadline: Deadline) -> Any:
        """Make one call and return its result.

        Raises:
            Refused: the node refused.
            Unavailable: it could not be asked, or did not answer.
            ValueTooLarge: nothing was sent.
        """
        pool, connection = self._begin(request, deadline)
        return self._finish(pool, connection, request, deadline)

    def exchange(self, requests: Sequence[Request], deadline: Deadline) -> list[Any]:
        """Make calls to different nodes, all sent before the first reply is read.

        Returns:
            For each request its result, or the `Refused` or `Unavailable` that `call` would have raised.

        Raises:
            ValueTooLarge: a value is too large for its node; that request and those after it were not sent.
        """
        if len(requests) == 1:
            return [self._outcome(requests[0], deadline)]
        outcomes: list[Any] = [None] * len(requests)
        helpers: list[threading.Thread] = []
        under_way: dict[int, tuple[int, _Pool, Connection]] = {}
        try:
            for index, request in enumerate(requests):
                pool = self._pool(request.member)
                connection = pool.checkout_idle()
                if connection is None:
                    # Connecting may take until the deadline, which must cost no other node its answer.
                    helpers.append(_start(self._outcome_into, outcomes, index, request, deadline))
                    continue
                try:
                    self._send(pool, connection, request, deadline)
                except Unavailable as error:
                    outcomes[index] = error
                else:
                    under_way[connection.fileno()] = (index, pool, connection)
            while under_way:
                for descriptor in _readable(under_way, deadline):
                    index, pool, connection = under_way.pop(descriptor)
                    try:
                        outcomes[index] = self._finish(pool, connection, requests[index], deadline)
                    except (Refused, Unavailable) as error:
                        outcomes[index] = error
        finally:
            for _, pool, connection in under_way.values():  # an exception left replies unread
                pool.drop(connection)
        for helper in helpers:
            helper.join()  # each ends by the same deadline
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Refused | Unavailable):
                raise outcome
        return outcomes

    def _outcome(self, request: Request, deadline: Deadline) -> Any:
        try:
            return self.call(request, deadline)
        except (Refused, Unavailable) as error:
            return error

    def _outcome_into(self, outcomes: list[Any], index: int, request: Request, deadline: Deadline) -> None:
        try:
            outcomes[index] = self._outcome(request, deadline)
        except BaseException as error:
            outcomes[index] = error

    def close(self) -> None:
        """Close the idle connections; those in use close when their call ends."""
        with self._lock:
            self._closed = True
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def abandon(self) -> None:
        """In a forked child: let go of every connection. No lock is taken, as one may be held for ever."""
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()

    def _begin(self, request: Request, deadline: Deadline) -> tuple[_Pool, Connection]:
        pool = self._pool(request.member)
        try:
            connection = pool.checkout(deadline)
        except (OSError, UnicodeError, ProtocolError, _ConnectRefused, _PoolExhausted) as error:
            raise _unavailable(request, deadline, error, sent=False) from error
        self._send(pool, connection, request, deadline)
        return pool, connection

    def _send(self, pool: _Pool, connection: Connection, request: Request, deadline: Deadline) -> None:
        if request.largest_value > connection.max_value_bytes:
            pool.checkin(connection)
            raise ValueTooLarge(
                f"The value is {request.largest_value} bytes long once encoded, and {request.member.name} takes "
                f"up to {connection.max_value_bytes}: store it in parts, or start the nodes with a larger --max-value."
            )
        try:
            connection.send(request, deadline)
        except BaseException as error:
            pool.drop(connection)
            if isinstance(error, OSError):  # a request that is not whole is not executed
                raise _unavailable(request, deadline, error, sent=False) from error
            raise

    def _finish(self, pool: _Pool, connection: Connection, request: Request, deadline: Deadline) -> Any:
        try:
            result = connection.receive(deadline)
        except Refused:
            pool.checkin(connection)
            raise
        except BaseException as error:
            pool.drop(connection)
            if isinstance(error, OSError | ProtocolError):
                raise _unavailable(request, deadline, error, sent=True) from error
            raise
        pool.checkin(connection)
        return result

    def _pool(self, member: Member) -> _Pool:
        pool = self._pools.get(member.name)
        if pool is None or pool.member != member:
            with self._lock:
                if self._closed:
                    raise ClientClosed("This client was closed; make a new PyroCacheClient.")
                pool = self._pools.get(member.name)
                if pool is None or pool.member != member:
                    if pool is not None:
                        pool.close()
                    pool = self._pools[member.name] = _Pool(member, self._max_per_node)
        return pool


class _PoolExhausted(Exception):
    """Other threads kept all connections to the node until the deadline."""


class _Pool:
    """The connections to one node at one address. ``list`` appends and pops are atomic, so there is no lock."""

    __slots__ = ("_closed", "_idle", "_places", "member")

    def __init__(self, member: Member, limit: int) -> None:
        self.member = member
        self._idle: list[Connection] = []
        self._places = Places(limit)
        self._closed = False

    def checkout(self, deadline: Deadline) -> Connection:
        place = self._places.take(deadline.remaining())
        if place is None:
            raise _PoolExhausted
        connection = self._pop_usable() or Connection(self.member, deadline)
        connection.place = place
        return connection

    def checkout_idle(self) -> Connection | None:
        """A connection that is open already, or None; without waiting."""
        place = self._places.take(0.0) if self._idle else None
        connection = self._pop_usable() if place is not None else None
        if connection is not None:
            connection.place = place
        return connection

    def checkin(self, connection: Connection) -> None:
        connection.place = None
        self._idle.append(connection)
        if self._closed:  # looked at last: `close` may have run just before the line above
            self.close()

    def drop(self, connection: Connection) -> None:
        connection.close()
        connection.place = None

    def close(self) -> None:
        self._closed = True
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    def _pop_usable(self) -> Connection | None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.usable():
                return connection
            connection.close()


def _start(target: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, name="pyrocache-connect", daemon=True)
    thread.start()
    return thread


def _readable(descriptors: Iterable[int], deadline: Deadline) -> list[int]:
    """Those that can be read from, waiting for one; all of them once the deadline has passed."""
    poll = select.poll()
    waiting = list(descriptors)
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    ready = poll.poll(math.ceil(deadline.remaining() * 1000))
    return [descriptor for descriptor, _ in ready] or waiting


def _unavailable(request: Request, deadline: Deadline, cause: BaseException, *, sent: bool) -> Unavailable:
    member = request.member
    where = f"{member.name} at {member.address}"
    timed_out = isinstance(cause, TimeoutError | _PoolExhausted)
    kind: type[NodeUnavailable] = NodeUnavailable
    if isinstance(cause, _PoolExhausted):
        text = f"all connections to {where} were in use for {deadline.seconds:g} s"
    elif timed_out:
        text = f"{where} did not answer within {deadline.seconds:g} s"
    elif isinstance(cause, _ConnectRefused):
        text = f"{where} refused the connection ({cause})"
        if str(cause).startswith("overloaded"):
            kind = Overloaded
    elif isinstance(cause, ProtocolError):
        text = f"{where} sent what is no reply ({cause})"
    else:
        text = f"{where} cannot be reached ({type(cause).__name__})"
    error = kind(f"{request.method} failed: {text}. See which nodes answer with: pyrocache status")
    return Unavailable(error, maybe_executed=sent, timed_out=timed_out)
