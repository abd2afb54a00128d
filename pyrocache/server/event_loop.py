"""`EventLoop`: one thread and one poller for all connections of a server, and worker threads for calls that may block.

The loop reads into each connection's own buffer, has every header checked before the body is kept, answers inline calls
at once, and writes replies; none of this blocks. Replies keep the order of the requests: a connection is not read while
one of its calls is on a worker or deferred, unless its peer takes replies in any order, nor while its peer leaves too
many bytes unread. A peer that sends half a
request, sends nothing, or does not read is closed at a deadline of its own, and does not delay the other peers.

A deferred call occupies no thread. A connection that is not read because of one is watched for a hang-up: if the peer
closes the stream or its sending side, the connection is closed. When a connection closes, first each `Deferred` that it
waits for is cancelled, then its `Session` is closed.

The lease and the deadline of a request are compared with a reading of the clock that is made after the request was
received, because the process may have been suspended before. If two readings are more than half a lease apart, the
process or the machine stood still, and the connections whose requests waited meanwhile are marked. `Requests` decides
what is executed.

Holds the connections; the `Acceptor` brings them. The `Dispatcher` produces the replies.

Thread safety: everything belongs to the thread in `EventLoop.run`, except `wake` and `shutdown`, which any thread may
call.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyrocache.config import DEFAULT_LEASE_SECONDS, NodeConfig
from pyrocache.errors import ProtocolError
from pyrocache.protocol.framing import Frame, frame_end
from pyrocache.protocol.handshake import MSGPACK, CloseAfterReply, State, format_peer
from pyrocache.protocol.limits import LARGE_BYTES
from pyrocache.protocol.messages import sequence_of, with_sequence
from pyrocache.protocol.refusals import Refusal
from pyrocache.protocol.request_id import CLOCK, RequestId, milliseconds, unpack_id
from pyrocache.runtime import unix_peer
from pyrocache.runtime.channel import TlsRefused
from pyrocache.runtime.clock import now
from pyrocache.runtime.descriptors import DescriptorReserve
from pyrocache.server import unix_socket
from pyrocache.server.acceptor import Acceptor
from pyrocache.server.buffer_limit import BufferLimit
from pyrocache.server.calls import OutstandingCalls
from pyrocache.server.connection import MAX_UNREAD_BYTES, Connection
from pyrocache.server.dispatcher import Dispatcher, Job, Method, PendingReply, Reply, refuse
from pyrocache.server.outcomes import SHORT_REPLY_BYTES, Outcomes
from pyrocache.server.poller import READ, WRITE, Poller
from pyrocache.server.requests import Requests, identity_of
from pyrocache.server.securing import BUSY_ALERT, FIRST_BYTE, NO_TLS_ALERT, Securing
from pyrocache.server.unproven import Unproven, origin

if TYPE_CHECKING:
    from pyrocache.runtime.tls import ServerCertificate

log = logging.getLogger("pyrocache.node")

_RECEIVE_BYTES = 64 * 1024
_PIECE_BYTES = 2**20  # of a long request at once: by so much may what is buffered exceed its limit
_LINGER_SECONDS = 1.0
_TICK_SECONDS = 0.25
_STANDSTILL_SECONDS = 2.0
_WAITED_SECONDS = DEFAULT_LEASE_SECONDS / 2  # between two readings of the clock: this process stood still
_PAST = 1 << 31
_EXACT_SECONDS = 0.1  # how long the fast path compares deadlines with a rounded time
_EXACT_MS = 101
_TAKEN_BACK_BYTES = 4096  # of an incomplete request, to be read again by the fast path
_EVENTS_AT_ONCE = 1000  # epoll returns somewhat more


class EventLoop:
    """Serves the connections of its listening sockets until `shutdown`.

    Args:
        listeners: sockets that are bound and listening.
        dispatcher: answers requests.
        limits: the limits of connections, buffers, workers and times.
        housekeeping: called four times a second, and once per iteration of the loop while it returns True.
        on_lapse: called after ``lease_until``, before anything is done for a request.
        ahead: returns the seconds by which the clock of the deferred calls is ahead; asked four times a second.
        clock: seconds (`runtime.clock`).
        reserve: descriptors with which connections of other nodes are accepted when there are no others left.
        certificate: with which TCP connections are encrypted; None for none.

    Attributes:
        connections: the open connections.
        buffers: the limit on the bytes buffered for them.
        poller: waits for events on the sockets.
        lease_until: until when the node may answer (by ``clock``), checked after each request was received.
        outcomes: the remembered replies.
        unproven: the connections whose peer has not proved the secret.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        dispatcher: Dispatcher,
        limits: NodeConfig,
        housekeeping: Callable[[], bool] = lambda: False,
        ahead: Callable[[], float] = lambda: 0.0,
        on_lapse: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = now,
        reserve: DescriptorReserve | None = None,
        certificate: ServerCertificate | None = None,
    ) -> None:
        self._on_lapse = on_lapse
        self.lease_until = math.inf
        self.connections: set[Connection] = set()
        self.poller = Poller()
        self.outcomes = Outcomes()
        self.unproven = Unproven(limits.max_unproven, max(1, limits.max_connections // 2), clock)
        self.buffers = BufferLimit(
            limits.max_buffered_bytes, self.connections, self._refuse, self._close, self._resume
        )
        self._dispatcher = dispatcher
        self._unpack, self._dispatch = dispatcher.unpack, dispatcher.dispatch
        self._refused = self.outcomes.refused  # nearly always empty
        self._requests = Requests(self.outcomes)
        self._limits = limits
        self._housekeeping = housekeeping
        self._ahead = ahead
        self._clock = clock
        self._now = self._tick_at = self._client_left_at = clock()
        self._exact_at = -math.inf  # see `_check_clock`
        self._milliseconds = 0
        self._calls = OutstandingCalls(
            limits.workers, limits.max_queued_calls, self.outcomes, self.wake, clock, ahead
        )
        self._securing = (
            None if certificate is None else Securing(certificate, self.poller, self.wake, self._release)
        )
        self._thread = 0
        self._stopping = False
        self._acceptor = Acceptor(
            listeners,
            self.poller,
            self._open,
            clock,
            reserve if reserve is not None else DescriptorReserve(0),
        )

    def run(self) -> None:
        """Serve until `shutdown` is called."""
        self._thread = threading.get_ident()
        clock, deadlines, handlers = self._clock, self._calls.deadlines, self.poller.handlers
        tick_at = self._tick_at
        while not self._stopping:
            first = deadlines.first
            # The clock is read again only for a deferred call. A tick may be late by the time of one iteration.
            seconds = first - clock() if first < tick_at else tick_at - self._now
            events = self.poller.poll(0.0 if seconds < 0.0 else seconds)
            for descriptor, mask in events:
                handler = handlers.get(descriptor)  # None: closed while an earlier event was handled
                if type(handler) is Connection:
                    try:
                        if handler.idle and mask == READ:
                            self._serve_idle(handler)
                        else:
                            self._serve(handler, mask)
                    except Exception as error:
                        self._give_up(handler, error)
                elif handler is not None:
                    self._read_clock()
                    handler()
            if not events:
                self._read_clock()
            if self._now >= tick_at:
                tick_at = self._tick()
            if self._now >= deadlines.first:
                deadlines.expire(self._now)
            if self._calls.done:
                self._finish_calls()
            if self._securing is not None and self._securing.done:
                self._finish_securing(self._securing)
        self.close()

    def shutdown(self) -> None:
        """Request the end of `run`. Any thread may call this."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """Interrupt the wait of `run`. Any thread may call this."""
        if threading.get_ident() != self._thread:  # the loop looks at `done` anyway before it waits
            self.poller.wake()

    def clientless_seconds(self) -> float:
        """Return for how long no client has been connected; 0 while one is. Any thread may call this.

        Other nodes, name servers and callers that have not completed the handshake are no clients.
        """
        if any(
            _is_of_client(connection) for connection in list(self.connections)
        ):  # the copy is one call into C
            return 0.0
        return max(0.0, self._clock() - self._client_left_at)

    def close(self) -> None:
        """Close all connections and sockets. `run` calls this at its end; call it only if `run` was never called."""
        for connection in list(self.connections):
            self._close(connection)
        if self._securing is not None:
            self._securing.close()
        self.poller.close()
        self._calls.close()
        self._acceptor.close()

    # Requests and replies --------------------------------------------------------------------------------

    def _open(self, sock: socket.socket, lent: bool) -> None:
        securing = self._securing if sock.family != socket.AF_UNIX else None
        if len(self.connections) >= self._limits.max_connections:
            with sock, contextlib.suppress(OSError):
                sock.send(self._dispatcher.rejected() if securing is None else BUSY_ALERT)
                sock.shutdown(socket.SHUT_WR)
            return
        try:
            connection = self._connection(sock)
        except OSError:  # the peer is gone, or another user's
            sock.close()
            return
        connection.handshake.nodes_only = lent
        self.connections.add(connection)
        if (displaced := self.unproven.add(connection)) is not None:
            self._close(displaced)
        try:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # do not delay small replies
            if securing is None:
                self._watch(connection)
            else:
                securing.begin(connection, self._admit_plain)
        except Exception as error:
            self._give_up(connection, error)

    def _connection(self, sock: socket.socket) -> Connection:
        """Return the new connection of a socket. Raises `OSError` if it cannot be served."""
        local, peer = sock.getsockname(), ""
        if sock.family != socket.AF_UNIX:
            peer = origin(sock.getpeername()[0])
        elif unix_peer.is_trusted(sock):
            local = unix_socket.path_of(local)
        else:
            raise PermissionError
        return Connection(sock, self._dispatcher.handshake(format_peer(local)), self._now, peer)

    def _serve_idle(self, connection: Connection) -> None:
        """Fast path: answer a request that arrives alone, complete and small, without a buffer or a queue."""
        try:
            data = connection.channel.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        now = self._clock()  # `_read_clock` without its call
        if now >= self.lease_until:
            self._on_lapse()
        call = self._unpack(data)
        if call is None or now >= self._exact_at:
            self._feed(connection, data)
            return
        self._now = connection.active_at = now
        sequence, method, arguments, client, number, deadline = call
        session = connection.session
        identified = client == session.client
        if identified and (
            not _EXACT_MS < (deadline - self._milliseconds) & CLOCK < _PAST  # it may have passed
            or (self._refused and (client, number) in self._refused)
        ):
            self._feed(connection, data)
            return
        reply = self._dispatch(session, sequence, method, arguments)
        if type(reply) is bytes:
            if method.once and identified:  # `Outcomes.finish` without its call
                if len(reply) <= SHORT_REPLY_BYTES and session.recent is None:
                    session.last = number, reply
                else:
                    self.outcomes.finish(session, number, reply, now)
            try:
                sent = connection.channel.send(reply)
            except BlockingIOError:
                sent = 0
            if sent == len(reply):
                # Nothing is buffered, so neither the accounting nor the watched events change.
                return
            connection.queue(reply[sent:], now)
        else:
            identity = identity_of(session, client, number, deadline)
            self._take(connection, sequence, method, reply, identity)
        self._flush(connection)

    def _serve(self, connection: Connection, mask: int) -> None:
        self._read_clock()
        if mask != WRITE:  # also after a hang-up
            self._read(connection)
        if mask & WRITE and connection in self.connections:
            self._flush(connection)
            waiting = connection.throttled or not connection.decoder.between_frames
            if waiting and connection.ending_at is None and connection in self.connections:
                self._answer(connection)  # requests that waited for the peer to read

    def _read(self, connection: Connection) -> None:
        space = connection.decoder.space()
        try:
            if space is None:
                data = connection.channel.recv(_RECEIVE_BYTES)
                received = len(data)
            else:
                received = connection.channel.recv_into(space, min(len(space), _PIECE_BYTES))
        except BlockingIOError:
            return
        if space is None or not received:
            self._feed(connection, b"" if space is not None else data)
        elif connection.ending_at is None:
            self._read_clock(connection)
            connection.decoder.filled(received)
            self._answer(connection)
        if connection.tls is not None and connection.tls.rest and not connection.closed:
            self._read(connection)

    def _feed(self, connection: Connection, data: bytes) -> None:
        self._read_clock(connection)
        if not data:
            if connection.handshake.state is State.PROVING:
                self.unproven.note(connection, "refused", "it left without a proof")
            self._close(connection)
        elif connection.ending_at is None:
            if connection.decoder.between_frames:
                connection.partial_since = self._now
            if connection.handshake.state is State.AWAITING and data.startswith(FIRST_BYTE):
                self._end(connection, NO_TLS_ALERT, "it speaks TLS, and this server does not")
                return
            if connection.bursts and connection.may_ask() and not connection.waited:
                begun = connection.decoder.take_back(_TAKEN_BACK_BYTES)
                if begun is not None:
                    data = self._answer_burst(connection, begun + data)
            connection.decoder.feed(data)
            self._answer(connection)

    def _answer_burst(self, connection: Connection, data: bytes) -> bytes:
        """Answer the small and usual requests that ``data`` begins with. Return the rest."""
        session, replies, size, start = connection.session, list[bytes](), connection.unread, 0
        while size < MAX_UNREAD_BYTES and 0 < (end := frame_end(data, start)) <= len(data):
            call = self._unpack(data[start:end])
            if call is None:
                break
            sequence, method, arguments, client, number, deadline = call
            identified = client == session.client
            if identified and (
                not _EXACT_MS < (deadline - self._milliseconds) & CLOCK < _PAST  # it may have passed
                or (self._refused and (client, number) in self._refused)
            ):
                break
            start = end
            reply = self._dispatch(session, sequence, method, arguments)
            if type(reply) is bytes and len(reply) < LARGE_BYTES:
                if method.once and identified:
                    self.outcomes.finish(session, number, reply, self._now)
                replies.append(reply)
                size += len(reply)
                continue
            self._queue_all(connection, replies)
            self._take(connection, sequence, method, reply, identity_of(session, client, number, deadline))
            size = connection.unread
            if connection.busy:
                break
        if start:
            connection.partial_since = connection.active_at = self._now
            self._queue_all(connection, replies)
        return data[start:]

    def _queue_all(self, connection: Connection, replies: list[bytes]) -> None:
        """Queue small replies, and clear the list."""
        if replies:
            connection.queue(b"".join(replies), self._now)
            replies.clear()

    def _answer(self, connection: Connection) -> None:
        """Answer the complete requests as long as `Connection.may_ask` is true."""
        try:
            while connection.may_ask() and (frame := connection.decoder.next_frame()) is not None:
                self._answer_frame(connection, frame)
                if not connection.may_ask():  # after sending, it may again
                    connection.send()
        except CloseAfterReply as closing:
            connection.queue(closing.reply, self._now)
            if connection.handshake.state is State.REFUSED:
                self.unproven.note(connection, "refused", connection.handshake.refusal)
            # Input is discarded until then. Closing at once could reset the stream before the peer has read the reply.
            connection.ending_at = self._now + _LINGER_SECONDS
        connection.throttle()
        self._flush(connection)

    def _answer_frame(self, connection: Connection, frame: Frame) -> None:
        handshake = connection.handshake
        if handshake.state is not State.ESTABLISHED or handshake.serializer is None:
            connection.queue(handshake.receive(frame), self._now)
            connection.waited = False
            if handshake.state is State.ESTABLISHED:
                connection.partial_since = connection.active_at = self._now
                connection.session.client = handshake.session
                if handshake.trusted:
                    self.unproven.remove(connection)
                    connection.bursts = handshake.pipelined and handshake.serializer is MSGPACK
                self.outcomes.join(connection.session, handshake.pipelined)
            return
        connection.partial_since = connection.active_at = self._now
        call = self._dispatcher.read(frame, handshake.serializer, handshake.trusted)
        if isinstance(call, bytes):
            self._queue(connection, call)
            return
        sequence, method, arguments, options = call
        identity = identity_of(connection.session, *unpack_id(frame.header.correlation))
        waited = connection.waited
        connection.waited = waited and handshake.pipelined and not connection.is_drained()
        answer = self._requests.answer(identity, self._now, once=method.once, waited=waited)
        if answer is None:
            reply = self._dispatch(connection.session, sequence, method, arguments, options)
            self._take(connection, sequence, method, reply, identity)
        elif isinstance(answer, Refusal):
            self._queue(connection, refuse(sequence, answer, method.serializer))
        else:
            self._queue(connection, with_sequence(answer, sequence))

    def _take(
        self,
        connection: Connection,
        sequence: int,
        method: Method,
        reply: Reply | Job | PendingReply,
        identity: RequestId | None,
    ) -> None:
        """Queue a reply, or start the job or deferred call that makes it."""
        if isinstance(reply, bytes | list):
            if identity is not None and method.once:
                self.outcomes.finish(connection.session, identity.sequence, reply, self._now)
            if method.once and not self.buffers.has_room(connection, _size(reply)):
                # A refusal would mean that the change was not made. The client asks for its outcome instead.
                raise ProtocolError("There is no room for the reply to a change.")
            self._queue(connection, reply)
        elif not self._calls.start(connection, sequence, method, reply, identity):
            self._refuse(connection, sequence)

    def _read_clock(self, connection: Connection | None = None) -> None:
        """Read the clock: after a wait, and after data of ``connection`` was received or a request of it has waited."""
        now = self._clock()
        if now >= self._exact_at and self._check_clock(now) and connection is not None:
            connection.waited = True
        if now >= self.lease_until:  # before requests that waited are answered, and before grants pass on
            self._on_lapse()
        self._now = now

    def _check_clock(self, now: float) -> bool:
        """Return whether this process stood still since the last reading of the clock.

        Until `_exact_at`, the fast path takes `_milliseconds` for the time.
        """
        stood_still = now - self._now > _WAITED_SECONDS
        if stood_still:
            self._stood_still()
        self._exact_at = now + _EXACT_SECONDS
        self._milliseconds = milliseconds(now)
        return stood_still

    def _stood_still(self) -> None:
        """Mark the connections with a request that waited while this process or the machine stood still."""
        for _ in range(len(self.connections) // _EVENTS_AT_ONCE + 1):
            for descriptor, _ in self.poller.poll(0.0):
                handler = self.poller.handlers.get(descriptor)
                if type(handler) is Connection:
                    handler.waited, handler.idle = True, False  # not by the fast path
        for connection in self.connections:
            connection.waited = connection.waited or not connection.decoder.between_frames

    def _queue(self, connection: Connection, reply: Reply) -> None:
        if self.buffers.has_room(connection, _size(reply)):
            connection.queue(reply, self._now)
        else:
            self._refuse(connection, sequence_of(reply))

    def _refuse(self, connection: Connection, sequence: int) -> None:
        reply = self._dispatcher.overloaded(sequence, connection.handshake.serializer)
        connection.queue(reply, self._now)
        self._watch(connection)

    def _resume(self, connection: Connection) -> None:
        connection.partial_since = self._now
        self._watch(connection)

    def _flush(self, connection: Connection) -> None:
        """Send as much as possible. Update the accounting and the watched events, and enforce the buffer limit."""
        connection.send()
        if connection.ending_at is not None and not connection.outgoing:
            connection.channel.shutdown(socket.SHUT_WR)  # the peer sees the end after the last reply
        self.buffers.account(connection)
        self.buffers.take_turns(connection)
        self._watch(connection)
        self.buffers.enforce()

    def _watch(self, connection: Connection) -> None:
        """Update the events that the poller watches this connection for."""
        events = connection.update()
        if events == connection.events or connection not in self.connections:
            return
        self.poller.change(connection.channel, connection.events, events, connection)
        connection.events = events

    def _give_up(self, connection: Connection, error: Exception) -> None:
        """Close a connection after any exception. The other connections are not affected."""
        if not isinstance(error, OSError | ProtocolError):
            log.error("A connection failed with %s; it is closed.", type(error).__name__)
        elif isinstance(error, ProtocolError) and connection.handshake.state is not State.ESTABLISHED:
            self.unproven.note(connection, "malformed", str(error))
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection not in self.connections:
            return
        connection.closed = True
        if _is_of_client(connection):
            self._client_left_at = self._clock()
        self.connections.remove(connection)
        self.unproven.remove(connection)
        self.poller.change(connection.channel, connection.events, 0, connection)
        connection.events = 0
        self.buffers.account(connection)
        if not connection.securing:
            self._release(connection)
        self._calls.cancel(connection)
        self.outcomes.leave(connection.session, self._now)
        connection.session.close()  # last: frees everything granted to it; later grants are freed at once

    def _release(self, connection: Connection) -> None:
        connection.channel.close()
        if connection.handshake.nodes_only:
            self._acceptor.returned()

    # Wake-ups and timers ---------------------------------------------------------------------------------

    def _finish_calls(self) -> None:
        answered: dict[
            Connection, None
        ] = {}  # a caller that takes replies in any order may get several at once
        for connection, reply in self._calls.finished():
            try:
                if reply is None:
                    self._close(connection)
                elif connection in self.connections:
                    self._read_clock(connection)
                    connection.active_at = self._now
                    if not connection.handshake.unordered:  # it was not read
                        connection.partial_since = self._now
                    self._queue(connection, reply)
                    self.buffers.account(connection)
                    answered[connection] = None
            except Exception as error:
                self._give_up(connection, error)
        for connection in answered:
            try:
                if connection in self.connections:
                    self._answer(connection)
            except Exception as error:
                self._give_up(connection, error)

    def _finish_securing(self, securing: Securing) -> None:
        """Go on with the connections whose TLS handshake is done, or has failed."""
        for connection, problem in securing.finished():
            try:
                if isinstance(problem, TlsRefused):
                    self._end(connection, b"", f"in the TLS handshake: {problem}")
                elif problem is not None:
                    self._give_up(connection, problem)
                else:
                    self._watch(connection)
                    self._read(connection)  # the first message may have come with the end of the handshake
            except Exception as error:
                self._give_up(connection, error)

    def _admit_plain(self, connection: Connection) -> None:
        """Serve a connection without TLS, although this server demands it. The handshake refuses it."""
        try:
            self._watch(connection)
        except Exception as error:
            self._give_up(connection, error)

    def _end(self, connection: Connection, last: bytes, why: str) -> None:
        """Send a last message that is not one of the protocol, and close the connection when the peer has read it."""
        self.unproven.note(connection, "malformed", why)
        connection.handshake.state = State.REFUSED
        connection.ending_at = self._now + _LINGER_SECONDS
        if last:
            connection.queue(last, self._now)
        self._flush(connection)

    def _tick(self) -> float:
        """Close connections past their deadline and run the housekeeping. Return when to do so again."""
        now = self._clock()
        # This process or the machine stood still. The peers, which may have stood still as well, have until the next
        # tick to send something.
        late = self._now - self._tick_at > _STANDSTILL_SECONDS
        self._calls.deadlines.set_ahead(self._ahead())
        for connection in [c for c in self.connections if not late and now >= c.deadline(self._limits)]:
            if connection.handshake.state in (State.AWAITING, State.PROVING):
                self.unproven.note(connection, "late", "it did not complete the handshake in time")
            self._close(connection)
        self.buffers.tick()
        self.outcomes.expire(now)
        self._acceptor.tick(now)
        try:
            more = self._housekeeping()
        except Exception as error:
            log.error("Housekeeping failed with %s.", type(error).__name__)
            more = False
        self._tick_at = self._clock() + _TICK_SECONDS
        return -math.inf if more else self._tick_at


def _is_of_client(connection: Connection) -> bool:
    return connection.handshake.of_client and connection.handshake.state is State.ESTABLISHED


def _size(reply: Reply) -> int:
    return len(reply) if isinstance(reply, bytes) else sum(map(len, reply))
