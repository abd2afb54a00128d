"""`EventLoop`: one thread and one poller for all connections of a server, and worker threads for calls that may block.

The loop accepts connections, reads into each connection's own buffer, has every header checked before the body is
kept, answers inline calls at once, and writes replies; none of this blocks. Replies keep the order of the requests: a
connection is not read while one of its calls is on a worker or deferred, nor while its peer leaves too many bytes
unread. A peer that sends half a request, sends nothing, or does not read is closed at a deadline of its own, and does
not delay the other peers.

A deferred call occupies no thread, only its connection, which is watched for a hang-up meanwhile: if the peer closes
the stream or its sending side, the connection is closed. When a connection closes, first the `Deferred` that it waits
for is cancelled, then its `Session` is closed.

A request of a client of pyrocache has a deadline. It is compared with a reading of the clock that is made after the
request was received, because the process may have been suspended before; and again when a worker begins the call. The
replies to changes are remembered by `Outcomes`. If readings of the clock are more than half a lease apart, the process
or the machine stood still: all changes that waited meanwhile are refused once.

Holds the listening sockets and the connections. The `Dispatcher` produces the replies.

Thread safety: everything belongs to the thread in `EventLoop.run`, except `wake` and `shutdown`, which any thread may
call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial

from pyrocache.config import DEFAULT_LEASE_SECONDS, NodeConfig
from pyrocache.errors import ProtocolError
from pyrocache.protocol import refusals
from pyrocache.protocol.framing import Frame, Header
from pyrocache.protocol.handshake import CloseAfterReply, State, format_peer
from pyrocache.protocol.messages import sequence_of, with_sequence
from pyrocache.protocol.request_id import CLOCK, REPEAT, RequestId, milliseconds, seconds_left, unpack_id
from pyrocache.runtime.clock import now
from pyrocache.runtime.shortage import explain
from pyrocache.server.buffer_limit import BufferLimit
from pyrocache.server.calls import OutstandingCalls
from pyrocache.server.connection import Connection
from pyrocache.server.dispatcher import Dispatcher, Job, Method, PendingReply, Reply
from pyrocache.server.outcomes import SHORT_REPLY_BYTES, Fate, Outcomes
from pyrocache.server.poller import READ, WRITE, Poller

log = logging.getLogger("pyrocache.node")

_RECEIVE_BYTES = 64 * 1024
_LINGER_SECONDS = 1.0
_TICK_SECONDS = 0.25
_STANDSTILL_SECONDS = 2.0
_WAITED_SECONDS = DEFAULT_LEASE_SECONDS / 2  # between two readings of the clock: this process stood still
_PAST = 1 << 31
_EXACT_SECONDS = 0.1  # how long the fast path compares deadlines with a rounded time
_EXACT_MS = 101
_EVENTS_AT_ONCE = 1000  # epoll returns somewhat more
_ACCEPT_AT_ONCE = 64  # then open connections have their turn
_ACCEPT_PAUSE_SECONDS = 1.0
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


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

    Attributes:
        connections: the open connections.
        buffers: the limit on the bytes buffered for them.
        poller: waits for events on the sockets.
        lease_until: until when the node may answer (by ``clock``), checked after each request was received.
        outcomes: the remembered replies.
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
    ) -> None:
        self._on_lapse = on_lapse
        self.lease_until = math.inf
        self.connections: set[Connection] = set()
        self.poller = Poller()
        self.outcomes = Outcomes()
        self.buffers = BufferLimit(
            limits.max_buffered_bytes, self.connections, self._refuse, self._close, self._resume
        )
        self._listeners = tuple(listeners)
        self._dispatcher = dispatcher
        self._unpack, self._dispatch = dispatcher.unpack, dispatcher.dispatch
        self._refused = self.outcomes.refused  # nearly always empty
        self._limits = limits
        self._housekeeping = housekeeping
        self._ahead = ahead
        self._clock = clock
        self._now = clock()
        self._exact_at = -math.inf  # see `_check_clock`
        self._milliseconds = 0
        self._calls = OutstandingCalls(limits.workers, limits.max_queued_calls, self.wake)
        self._thread = 0
        self._accept_again_at: float | None = None
        self._full = False  # the system had no more descriptors or memory for connections
        self._stopping = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._listen()
        self.poller.register(self._wake_receiver, READ, self._drain_wakes)

    def run(self) -> None:
        """Serve until `shutdown` is called."""
        self._thread = threading.get_ident()
        clock, deadlines, handlers = self._clock, self._calls.deadlines, self.poller.handlers
        tick_at = self._now
        more = False
        while not self._stopping:
            first = deadlines.first
            # The clock is read again only for a deferred call. A tick may be late by the time of one iteration.
            seconds = first - clock() if first < tick_at else tick_at - self._now
            events = self.poller.poll(0.0 if more or seconds < 0.0 else seconds)
            for descriptor, mask in events:
                handler = handlers.get(descriptor)  # None: closed while an earlier event was handled
                if type(handler) is Connection:
                    if handler.idle and mask == READ:
                        self._serve_idle(handler)
                    else:
                        self._serve(handler, mask)
                elif handler is not None:
                    self._read_clock()
                    handler()
            if not events:
                self._read_clock()
            if more or self._now >= tick_at:
                more = self._tick(late=self._now - tick_at > _STANDSTILL_SECONDS)
                tick_at = clock() + _TICK_SECONDS
            if self._now >= deadlines.first:
                deadlines.expire(self._now)
            if self._calls.done:
                self._finish_calls()
        self.close()

    def shutdown(self) -> None:
        """Request the end of `run`. Any thread may call this."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """Interrupt the wait of `run`. Any thread may call this."""
        if threading.get_ident() != self._thread:  # the loop looks at `done` anyway before it waits
            with contextlib.suppress(OSError):  # full: the loop is awake; closed: it has ended
                self._wake_sender.send(b"\0")

    def close(self) -> None:
        """Close all connections and sockets. `run` calls this at its end; call it only if `run` was never called."""
        for connection in list(self.connections):
            self._close(connection)
        self.poller.close()
        self._calls.close()
        for sock in (*self._listeners, self._wake_receiver, self._wake_sender):
            sock.close()

    # Accepting -------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        for listener in self._listeners:
            listener.setblocking(False)
            self.poller.register(listener, READ, partial(self._accept, listener))

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._stop_accepting(error)
                    return
                continue  # the peer is gone already
            if self._full:
                self._full = False
                log.error("Connections are accepted again.")
            sock.setblocking(False)
            if len(self.connections) >= self._limits.max_connections:
                with sock, contextlib.suppress(OSError):
                    sock.send(self._dispatcher.rejected())
                    sock.shutdown(socket.SHUT_WR)
                continue
            handshake = self._dispatcher.handshake(format_peer(sock.getsockname()))
            connection = Connection(sock, handshake, self._now)
            self.connections.add(connection)
            try:
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # do not delay small replies
                self._watch(connection)
            except Exception as error:
                self._give_up(connection, error)

    def _stop_accepting(self, error: OSError) -> None:
        """Pause accepting. Without file descriptors, a listening socket stays readable and the loop would spin."""
        if not self._full:  # once: it is tried again and again
            log.error("No more connections are accepted for now: %s.", explain(error))
        self._full = True
        if self._accept_again_at is None:
            for listener in self._listeners:
                self.poller.unregister(listener)
        self._accept_again_at = self._now + _ACCEPT_PAUSE_SECONDS

    # Requests and replies --------------------------------------------------------------------------------

    def _serve_idle(self, connection: Connection) -> None:
        """Fast path: answer a request that arrives alone, complete and small, without a buffer or a queue."""
        try:
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
                    if len(reply) <= SHORT_REPLY_BYTES:
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
                identity = RequestId(client, number, deadline) if identified else None
                self._take(connection, sequence, method, reply, identity)
            self._flush(connection)
        except Exception as error:
            self._give_up(connection, error)

    def _serve(self, connection: Connection, mask: int) -> None:
        try:
            self._read_clock()
            if mask != WRITE:  # also after a hang-up
                self._read(connection)
            if mask & WRITE and connection in self.connections:
                self._flush(connection)
                waiting = connection.throttled or not connection.decoder.between_frames
                if waiting and connection.ending_at is None and connection in self.connections:
                    self._answer(connection)  # requests that waited for the peer to read
        except Exception as error:
            self._give_up(connection, error)

    def _read(self, connection: Connection) -> None:
        space = connection.decoder.space()
        try:
            if space is None:
                data = connection.channel.recv(_RECEIVE_BYTES)
                received = len(data)
            else:
                received = connection.channel.recv_into(space)
        except BlockingIOError:
            return
        if space is None or not received:
            self._feed(connection, b"" if space is not None else data)
        elif connection.ending_at is None:
            self._read_clock(connection)
            connection.decoder.filled(received)
            self._answer(connection)

    def _feed(self, connection: Connection, data: bytes) -> None:
        self._read_clock(connection)
        if not data:
            self._close(connection)
        elif connection.ending_at is None:
            if connection.decoder.between_frames:
                connection.partial_since = self._now
            connection.decoder.feed(data)
            self._answer(connection)

    def _answer(self, connection: Connection) -> None:
        """Answer the complete requests as long as `Connection.may_ask` is true."""
        try:
            while connection.may_ask() and (frame := connection.decoder.next_frame()) is not None:
                self._answer_frame(connection, frame)
                if not connection.may_ask():  # after sending, it may again
                    connection.send()
        except CloseAfterReply as closing:
            connection.queue(closing.reply, self._now)
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
                self.outcomes.join(connection.session)
            return
        connection.partial_since = connection.active_at = self._now
        call = self._dispatcher.read(frame, handshake.serializer, handshake.trusted)
        if isinstance(call, bytes):
            self._queue(connection, call)
            return
        sequence, method, arguments, options = call
        identity = _identity_of(connection, frame.header)
        refusal = self._not_executed(connection, sequence, method, identity)
        if refusal is not None:
            self._queue(connection, refusal)
            return
        reply = self._dispatch(connection.session, sequence, method, arguments, options)
        self._take(connection, sequence, method, reply, identity)

    def _not_executed(
        self, connection: Connection, sequence: int, method: Method, identity: RequestId | None
    ) -> bytes | None:
        """Return the reply to a request that is not to be executed, or None."""
        waited, connection.waited = connection.waited, False
        code, text = refusals.TRY_AGAIN, ""
        if identity is not None and seconds_left(identity.deadline, self._now) < 0.0:
            text = "The deadline of the request has passed."
        elif waited and method.once:
            text = "The node stood still while the request waited."
        elif identity is not None and identity.sequence & REPEAT:
            outcome = self._outcome(identity)
            if isinstance(outcome, bytes):
                return with_sequence(outcome, sequence)
            code, text = _FATES[outcome]
        elif identity is not None and identity[:2] in self._refused:
            text = "The request was given up before."
        return self._dispatcher.not_executed(sequence, code, text, method.serializer) if text else None

    def _outcome(self, identity: RequestId) -> bytes | Fate:
        """Return the outcome of a request that is repeated."""
        number, left = identity.sequence & ~REPEAT, seconds_left(identity.deadline, self._now)
        outcome = self.outcomes.repeat(identity.session, number, self._now, left)
        if isinstance(outcome, bytes) and not self._dispatcher.was_executed(outcome):
            return self.outcomes.refuse((identity.session, number), self._now, left)
        return outcome

    def _take(
        self,
        connection: Connection,
        sequence: int,
        method: Method,
        reply: Reply | Job | PendingReply,
        identity: RequestId | None,
    ) -> None:
        """Queue a reply, or start the job or deferred call that makes it."""
        change = identity.sequence if identity is not None and method.once else None
        if isinstance(reply, bytes | list):
            if change is not None:
                self.outcomes.finish(connection.session, change, reply, self._now)
            self._queue(connection, reply)
            return
        if isinstance(reply, PendingReply):
            if identity is not None:  # nobody waits for it any longer
                at = self._now + self._ahead() + seconds_left(identity.deadline, self._now)
                reply.deferred.deadline = min(reply.deferred.deadline, at)
            self._calls.defer(connection, reply)
        else:
            if identity is not None:
                reply = partial(self._run_in_time, sequence, method, identity, reply)
            if not self._calls.start_job(connection, reply):
                self._refuse(connection, sequence)
                return
        if change is not None:
            connection.change = change
            self.outcomes.begin(connection.session, change)

    def _run_in_time(
        self, sequence: int, method: Method, identity: RequestId, job: Job
    ) -> Reply:  # on a worker
        if seconds_left(identity.deadline, self._clock()) >= 0.0:
            return job()
        text = "The deadline of the request has passed."
        return self._dispatcher.not_executed(sequence, refusals.TRY_AGAIN, text, method.serializer)

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
        size = len(reply) if isinstance(reply, bytes) else sum(map(len, reply))
        if self.buffers.has_room(connection, size):
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
        if not connection.events:
            self.poller.register(connection.channel, events, connection)
        elif not events:
            self.poller.unregister(connection.channel)
        else:
            self.poller.modify(connection.channel, events)
        connection.events = events

    def _give_up(self, connection: Connection, error: Exception) -> None:
        """Close a connection after any exception. The other connections are not affected."""
        if not isinstance(error, OSError | ProtocolError):
            log.error("A connection failed with %s; it is closed.", type(error).__name__)
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        if connection.events:
            self.poller.unregister(connection.channel)
            connection.events = 0
        self.buffers.account(connection)
        connection.channel.close()
        self._calls.cancel(connection)
        self.outcomes.leave(connection.session, self._now)
        connection.session.close()  # last: frees everything granted to it; later grants are freed at once

    # Wake-ups and timers ---------------------------------------------------------------------------------

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_receiver.recv(4096)

    def _finish_calls(self) -> None:
        for connection, reply in self._calls.finished():
            try:
                change, connection.change = connection.change, None
                wanted = change is not None or connection in self.connections
                if wanted and isinstance(reply, PendingReply):
                    reply = reply.reply()
                if change is not None:  # also if the connection has closed meanwhile
                    self.outcomes.finish(connection.session, change, reply, self._now)
                if reply is None:
                    self._close(connection)
                elif connection in self.connections and not isinstance(reply, PendingReply):
                    self._read_clock(connection)
                    connection.active_at = connection.partial_since = self._now
                    self._queue(connection, reply)
                    self._answer(connection)
            except Exception as error:
                self._give_up(connection, error)

    def _tick(self, late: bool) -> bool:
        """Close connections past their deadline and run the housekeeping. Return whether that has more to do.

        Args:
            late: whether this process or the machine stood still. The peers, which may have stood still as well, have
                until the next tick to send something.
        """
        now = self._clock()
        self._calls.deadlines.set_ahead(self._ahead())
        for connection in [c for c in self.connections if not late and now >= c.deadline(self._limits)]:
            self._close(connection)
        self.buffers.tick()
        self.outcomes.expire(now)
        if self._accept_again_at is not None and now >= self._accept_again_at:
            self._accept_again_at = None
            self._listen()
        try:
            return self._housekeeping()
        except Exception as error:
            log.error("Housekeeping failed with %s.", type(error).__name__)
            return False


_FATES = {
    Fate.RUNNING: (refusals.TRY_AGAIN, "The node has not finished the request yet."),
    Fate.NOT_DONE: (refusals.NOT_DONE, "The node has not executed the request, and will not."),
    Fate.FORGOTTEN: (refusals.FORGOTTEN, "The node does not remember whether it has executed the request."),
}


def _identity_of(connection: Connection, header: Header) -> RequestId | None:
    """Return the identity of a request; None if its client is not one that gives any."""
    if connection.session.client is None:
        return None
    identity = unpack_id(header.correlation)
    return identity if identity.session == connection.session.client else None
