"""Sockets to nodes: opened, pooled, bounded, dropped. One request is under way on a connection at a time.

A node on this host is reached over its Unix socket if it has one, any other over TCP. A small call is one system call
to send and few to receive: the sockets block, for `_PATIENCE_SECONDS` at most, after which deadlines are looked at.

A connection is dropped on any exception in mid-call, of whatever kind: the next reply on it could be another
call's. Nothing here retries; `Unavailable.maybe_executed` tells the router whether that would be safe. Thread-safe;
after a fork the router makes new ones and lets go of these (`Connections.abandon`) without touching the parent's
streams.
"""

from __future__ import annotations

import _thread
import codecs
import contextlib
import math
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

from pyrocache.cluster import wire
from pyrocache.cluster.routing import Member
from pyrocache.cluster.wire import Buffer, CallPacker, FrameDecoder, Header, Refusal
from pyrocache.config import DEFAULT_MAX_VALUE_BYTES, TransportChoice
from pyrocache.errors import ClientClosed, NodeUnavailable, Overloaded, ProtocolError, ValueTooLarge
from pyrocache.places import Place, Places
from pyrocache.waking import Patience

# Looking a host up imports this codec; a fork in the middle of the import would lock the child out for ever.
codecs.lookup("idna")

_RECEIVE_BYTES = 64 * 1024
_REPLY_SLACK = 256 * 1024
_HANDSHAKE_BYTES = 64 * 1024
_REPLY_FLAGS = wire.FLAG_EXCEPTION | wire.FLAG_CORRELATION_ID

_PATIENCE_SECONDS = 0.25
_TRUST_SECONDS = 0.05  # a connection used that recently is not looked at before it is used again
_BUFFERS_AT_ONCE = 512
_FIRST_PAUSE_SECONDS = 0.0005
_LONGEST_PAUSE_SECONDS = 0.01
_PATIENCE = struct.pack("ll", 0, int(_PATIENCE_SECONDS * 1_000_000))  # a struct timeval


class Deadline:
    """A point in monotonic time that every step of one call respects."""

    __slots__ = ("_clock", "at", "seconds", "seen_at")

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self.seen_at = now = clock()  # when the clock was last looked at, to save looking again
        self.at = now + seconds

    def remaining(self) -> float:
        """Seconds left, 0 when it has passed."""
        self.seen_at = now = self._clock()
        return max(0.0, self.at - now)

    def socket_timeout(self) -> float:
        """Seconds left for a socket operation; raises TimeoutError when there are none."""
        remaining = self.remaining()
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
    """One open connection to one node, past the handshake.

    Args:
        member: whom to connect to.
        deadline: until when.
        transport: whether its Unix socket may be used.

    Attributes:
        used_at: monotonic seconds; set by its pool when it is handed out.
        place: in its pool, for as long as it lives.
    """

    __slots__ = (
        *("_decoder", "_packer", "_patience", "_poll", "_sequence", "_sock"),
        *("max_value_bytes", "member", "place", "used_at"),
    )

    def __init__(self, member: Member, deadline: Deadline, transport: TransportChoice = "auto") -> None:
        self.member = member
        self.place: Place | None = None
        self.used_at = deadline.seen_at
        self.max_value_bytes = DEFAULT_MAX_VALUE_BYTES
        self._sequence = 0
        self._packer = CallPacker(member.name)
        self._decoder = FrameDecoder(
            _admit_greeting, _room
        )  # no methods: a cycle would keep large buffers alive
        self._sock = _connect(member, deadline, transport)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._patience = Patience()
        try:
            self._sock.settimeout(None)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
            self._shake_hands(deadline)
        except BaseException:
            self._sock.close()
            raise
        longest = self.max_value_bytes + wire.BATCH_BYTES + _REPLY_SLACK
        self._decoder.admit = lambda header: _admit_reply(header, longest)

    def send(self, method: str, arguments: tuple[Any, ...], deadline: Deadline) -> None:
        """Send a request; `receive` its reply before the next."""
        self._sequence = sequence = (self._sequence + 1) & 0xFFFF
        message = self._packer.pack(method, arguments, sequence)
        if type(message) is bytes:
            try:
                sent = self._sock.send(message, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent == len(message):
                return
            message = [memoryview(message)[sent:]]
        assert type(message) is list
        self._send_all(message, deadline)

    def receive(self, deadline: Deadline) -> Any:
        """The reply to the request sent last; a large value may be a `memoryview` of memory that is nobody else's.

        Raises:
            Refused: the node refused; the connection is as good as before.
            ProtocolError, OSError: drop the connection.
        """
        self._patience.wait(self._poll.poll)
        try:
            if deadline.at - deadline.seen_at < 2 * _PATIENCE_SECONDS:
                self._wait(select.POLLIN, deadline)
            data = self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            data = self._receive_some(deadline)
        result = wire.unpack_result(data, self._sequence)
        return result if result is not wire.UNUSUAL else self._receive_unusual(data, deadline)

    def _receive_unusual(self, data: bytes, deadline: Deadline) -> Any:
        header, body = self._receive_frame(data, deadline)
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
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close this process's end, and give its place back; after a fork the other process's end stays open."""
        self.place = None  # now, as an exception that somebody keeps may keep this object too
        self._sock.close()

    def _shake_hands(self, deadline: Deadline) -> None:
        body = wire.pack_plain({"handshake": "pyrocache", "object": self.member.name})
        # A node that turns connections away may have closed this one by now; what it said is there to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send_all([wire.pack_message(wire.CONNECT, 0, body)], deadline)
        header, answered = self._receive_frame(self._receive_some(deadline), deadline)
        answer = wire.unpack_plain(answered)
        if header.type == wire.CONNECT_FAIL:
            raise _ConnectRefused(answer if isinstance(answer, str) else "no reason was given")
        greeting = answer.get("handshake") if isinstance(answer, dict) else None
        if isinstance(greeting, dict) and isinstance(greeting.get("max_value_bytes"), int):
            self.max_value_bytes = greeting["max_value_bytes"]

    def _send_all(self, buffers: list[Buffer], deadline: Deadline) -> None:
        waiting = [memoryview(buffer) for buffer in buffers if buffer]
        while waiting:
            try:
                sent = self._sock.sendmsg(waiting[:_BUFFERS_AT_ONCE], (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
                continue
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.pop(0))
            if sent:
                waiting[0] = waiting[0][sent:]

    def _receive_some(self, deadline: Deadline) -> bytes:
        self._wait(select.POLLIN, deadline)
        data = self._sock.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the node closed the connection")
        return data

    def _receive_frame(self, data: bytes, deadline: Deadline) -> wire.Frame:
        """The whole of the frame that begins with ``data``."""
        decoder = self._decoder
        if not data:
            raise ConnectionResetError("the node closed the connection")
        decoder.feed(data)
        while (frame := decoder.next_frame()) is None:
            space = decoder.space()
            if space is None:
                decoder.feed(self._receive_some(deadline))
            else:
                decoder.filled(self._receive_into(space, deadline))
        if decoder.buffered:
            raise ProtocolError("More than one reply came to one request.")
        return frame

    def _receive_into(self, space: memoryview, deadline: Deadline) -> int:
        """Receive until ``space`` is full or it is time to look at the deadline; how many bytes came."""
        patient = deadline.socket_timeout() > 2 * _PATIENCE_SECONDS
        try:
            count = self._sock.recv_into(space, 0, socket.MSG_WAITALL if patient else socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._wait(select.POLLIN, deadline)
            return 0
        if not count:
            raise ConnectionResetError("the node closed the connection")
        return count

    def _wait(self, event: int, deadline: Deadline) -> None:
        poll = self._poll
        if event != select.POLLIN:
            poll = select.poll()
            poll.register(self._sock, event)
        if not poll.poll(math.ceil(deadline.socket_timeout() * 1000)):
            raise TimeoutError


def _connect(member: Member, deadline: Deadline, transport: TransportChoice) -> socket.socket:
    if member.socket_path and transport == "auto":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(deadline.socket_timeout())
            sock.connect(member.socket_path)
            return sock
        except TimeoutError:
            sock.close()
            raise
        except OSError:  # another host's, another user's, or of a node that was killed
            sock.close()
        except BaseException:
            sock.close()
            raise
    sock = socket.create_connection((member.host, member.port), deadline.socket_timeout())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _room(frame_bytes: int) -> memoryview | None:
    """Memory for a long reply, such that a large value in it begins at a multiple of 16."""
    if frame_bytes <= wire.LARGE_BYTES:
        return None
    offset = -wire.VALUE_OFFSET % 16
    return memoryview(bytearray(offset + frame_bytes))[offset:]


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
        transport: whether nodes on this host are reached over their Unix sockets.
    """

    def __init__(self, max_per_node: int, transport: TransportChoice = "auto") -> None:
        self._max_per_node = max_per_node
        self._transport = transport
        self._lock = threading.Lock()  # guards: the set of _pools, _closed; each pool's methods need no lock
        self._pools: dict[str, _Pool] = {}
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
        except (OSError, UnicodeError, ProtocolError, _ConnectRefused, _PoolExhausted) as error:
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

    def exchange(
        self, requests: Sequence[Request], deadline: Deadline, *, careful: bool = False
    ) -> Generator[tuple[int, Any], None, None]:
        """Make calls to different nodes, all sent before the first reply is read.

        Yields:
            As the replies come, a request's index and its result, or the `Refused` or `Unavailable` that `call` would
            have raised.

        Raises:
            ValueTooLarge: a value is too large for its node; that request and those after it were not sent.
        """
        if len(requests) == 1:
            yield 0, self._outcome(requests[0], deadline, careful)
            return
        outcomes: dict[int, Any] = {}
        helpers: list[_Helper] = []
        under_way: dict[int, tuple[int, _Pool, Connection]] = {}
        try:
            for index, request in enumerate(requests):
                pool = self._pool(request.member)
                connection = pool.checkout_idle(deadline, careful)
                if connection is None:
                    # Connecting may take until the deadline, which must cost no other node its answer.
                    helpers.append(_Helper(self._outcome_into, outcomes, index, request, deadline, careful))
                    continue
                if request.largest_value > connection.max_value_bytes:
                    raise _too_large(pool, connection, request.largest_value)
                try:
                    connection.send(request.method, request.arguments, deadline)
                except BaseException as error:
                    pool.drop(connection)
                    if not isinstance(error, OSError):
                        raise
                    outcomes[index] = _unavailable(
                        request.member, request.method, deadline, error, sent=False
                    )
                else:
                    under_way[connection.fileno()] = (index, pool, connection)
            while under_way:
                for descriptor in _readable(under_way, deadline):
                    index, pool, connection = under_way[descriptor]
                    try:
                        outcome = self._finish(pool, connection, requests[index], deadline)
                    finally:
                        del under_way[descriptor]
                    yield index, outcome
        finally:
            for _, pool, connection in under_way.values():  # an exception left replies unread
                pool.drop(connection)
        for helper in helpers:
            helper.join()  # each ends by the same deadline
        for index, outcome in outcomes.items():
            if isinstance(outcome, BaseException) and not isinstance(outcome, Refused | Unavailable):
                raise outcome
            yield index, outcome

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
        except (Refused, Unavailable) as error:
            return error

    def _outcome_into(
        self, outcomes: dict[int, Any], index: int, request: Request, deadline: Deadline, careful: bool
    ) -> None:
        try:
            outcomes[index] = self._outcome(request, deadline, careful)
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
                    pool = self._pools[member.name] = _Pool(member, self._max_per_node, self._transport)
        return pool


class _PoolExhausted(Exception):
    """Other threads kept all connections to the node until the deadline."""


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

    def _open(self, deadline: Deadline, careful: bool) -> Connection:
        connection: Connection | None = None
        pause = _FIRST_PAUSE_SECONDS
        while connection is None:
            place = self._places.take(0.0)
            if place is not None:
                try:
                    connection = Connection(self.member, deadline, self._transport)
                    connection.place = place
                finally:
                    del place  # an exception would keep it
                break
            if deadline.remaining() <= 0:
                raise _PoolExhausted
            time.sleep(min(pause, deadline.remaining()))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            connection = self.checkout_idle(deadline, careful)
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

    __slots__ = ("_ended",)

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._ended = _thread.allocate_lock()
        self._ended.acquire()
        _thread.start_new_thread(self._run, (target, *arguments))

    def _run(self, target: Callable[..., None], *arguments: Any) -> None:
        try:
            target(*arguments)
        finally:
            self._ended.release()

    def join(self) -> None:
        """Wait until it has ended."""
        self._ended.acquire()


def _readable(descriptors: Iterable[int], deadline: Deadline) -> list[int]:
    """Those that can be read from, waiting for one; all of them once the deadline has passed."""
    poll = select.poll()
    waiting = list(descriptors)
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    ready = poll.poll(math.ceil(deadline.remaining() * 1000))
    return [descriptor for descriptor, _ in ready] or waiting


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
    elif isinstance(cause, _ConnectRefused):
        text = f"{where} refused the connection ({cause})"
        if str(cause).startswith("overloaded"):
            kind = Overloaded
    elif isinstance(cause, ProtocolError):
        text = f"{where} sent what is no reply ({cause})"
    else:
        text = f"{where} cannot be reached ({type(cause).__name__})"
    error = kind(f"{method} failed: {text}. See which nodes answer with: pyrocache status")
    return Unavailable(error, maybe_executed=sent, timed_out=timed_out)
