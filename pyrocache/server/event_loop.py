"""The multiplexed threaded server: one selector for every connection, worker threads for what may block.

One I/O thread accepts, reads without blocking into each connection's own buffer, has every header judged before
the body is kept, answers cheap calls at once and writes replies without blocking. Jobs go to a bounded pool of
workers and their replies come back through the I/O thread, in the order of the requests: a connection is not read
further while one of its jobs runs, nor while its peer leaves too much unread. Whoever sends half a request, nothing,
or does not read meets a deadline of its own, and nobody else notices.

A call that waits for a `Deferred` takes no thread, only its connection, which is not read meanwhile but watched: should
the peer hang up, by closing or by ending its side of the stream, it is closed. When a connection ends, the `Deferred`
it waits for is cancelled then and its `Session` is closed.

A request that comes alone, whole and small, as nearly all do, is answered without entering any buffer or queue. When
more is kept for all connections together than the node may keep, whoever brings most of it is told `Overloaded`, and
whoever leaves most of it unread is cut off. A large reply for which there is no room is `Overloaded` instead.

Everything here belongs to the thread in `Transport.loop`, except `Transport.wake`, which any thread may call, and
the outcomes of jobs and waiting calls, which come from any thread.
`Transport` has the interface that ``Pyro5.server.Daemon`` expects of its ``transportServer``.
"""

from __future__ import annotations

import errno
import logging
import mmap
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pyrocache.config import NodeConfig, format_address
from pyrocache.errors import ProtocolError
from pyrocache.protocol.framing import Buffer, FrameDecoder, Header
from pyrocache.protocol.limits import LARGE_BYTES, MOST_SECONDS
from pyrocache.protocol.messages import sequence_of
from pyrocache.runtime.spin import SpinWait
from pyrocache.server.deferred import Deadlines, Deferred, Session
from pyrocache.server.dispatcher import CloseAfterReply, Dispatcher, Job, PendingReply, Reply

log = logging.getLogger("pyrocache.node")

_READ, _WRITE = select.POLLIN, select.POLLOUT
_HANG_UP = getattr(select, "POLLRDHUP", select.POLLHUP)  # the peer sends nothing any more
_RECEIVE_BYTES = 64 * 1024
_SHARED_BYTES = 64 * 1024  # small replies that wait share a buffer of this size
_UNREAD_BYTES = 2**20  # replies that may wait for a slow reader before its requests are left waiting too
_BUFFERS_AT_ONCE = 16
_OWN_MEMORY_BYTES = (
    2**20
)  # a request from which on has its own memory pages, which it takes only as it arrives
_HUGE_PAGE_BYTES = 2 * 2**20
_LINGER_SECONDS = 1.0
_TICK_SECONDS = 0.25
_ACCEPT_PAUSE_SECONDS = 1.0
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connection:
    """One peer: what it sent, what it is still to get, and since when."""

    __slots__ = (
        "active_at",
        "busy",
        "calm",
        "decoder",
        "deferred",
        "ending_at",
        "greeted",
        "held_back",
        "mask",
        "outgoing",
        "partial_since",
        "queued_at",
        "sent",
        "session",
        "sock",
        "unread",
    )

    def __init__(self, sock: socket.socket, dispatcher: Dispatcher, now: float) -> None:
        self.sock = sock
        self.decoder = FrameDecoder(dispatcher.admit_stranger, _room)
        self.greeted = False
        self.calm = False  # greeted, and nothing is under way or kept
        self.busy = False  # one of its calls is on a worker or waits
        self.deferred: Deferred | None = None  # what that waits for
        self.session = Session()
        self.held_back = False  # it left so much unread that requests were left waiting
        self.mask = 0  # what the selector watches it for
        self.outgoing: deque[Buffer] = deque()  # small replies share a bytearray
        self.queued_at: deque[float] = deque()  # when each of them was begun
        self.sent = 0  # bytes of the first of them that are sent
        self.unread = 0  # bytes in outgoing that are not
        self.partial_since = now  # when the request that is not yet whole began
        self.active_at = now
        self.ending_at: float | None = None  # once set, input is thrown away and it closes then

    @property
    def held(self) -> int:
        """Bytes that are kept for it."""
        return self.decoder.buffered + self.unread

    def queue(self, reply: Reply, now: float) -> None:
        """Keep a reply until the peer reads it."""
        for data in (reply,) if isinstance(reply, bytes) else reply:
            self.unread += len(data)
            last = self.outgoing[-1] if self.outgoing else None
            if isinstance(last, bytearray) and len(last) + len(data) <= _SHARED_BYTES:
                last += data
            else:
                self.outgoing.append(bytearray(data) if len(data) < _SHARED_BYTES // 4 else data)
                self.queued_at.append(now)

    def send(self) -> None:
        """Send what the peer takes for now."""
        while self.outgoing:
            buffers = [memoryview(self.outgoing[i]) for i in range(min(len(self.outgoing), _BUFFERS_AT_ONCE))]
            buffers[0] = buffers[0][self.sent :]
            try:
                sent = self.sock.sendmsg(buffers)
            except BlockingIOError:
                return
            finally:
                for buffer in buffers:
                    buffer.release()
            self.unread -= sent
            self.sent += sent
            while self.outgoing and self.sent >= len(self.outgoing[0]):
                self.sent -= len(self.outgoing.popleft())
                self.queued_at.popleft()

    def deadline(self, config: NodeConfig) -> float:
        """When it is to be closed unless something happens (monotonic seconds)."""
        if self.ending_at is not None:
            return self.ending_at
        if not self.greeted:
            return self.active_at + config.handshake_seconds
        if self.queued_at:
            return self.queued_at[0] + config.request_seconds
        if self.busy:
            return float("inf")
        if not self.decoder.between_frames:
            return self.partial_since + config.request_seconds
        return self.active_at + (
            max(config.idle_seconds, MOST_SECONDS) if self.session.holds else config.idle_seconds
        )


class _Selector:
    """Watches sockets: the platform's ``epoll`` or ``poll``, and what is to handle the events of each."""

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._spin_wait = SpinWait()
        epoll = hasattr(select, "epoll")
        self._poll: Any = select.epoll() if epoll else select.poll()
        self._units_per_second = 1 if epoll else 1000

    def select(self, seconds: float) -> list[tuple[Any, int]]:
        """Handlers and masks of what is ready, waiting up to ``seconds`` for something."""
        look = self._poll.poll
        events = look(0) or self._spin_wait.wait(look) or look(seconds * self._units_per_second)
        handlers = self._handlers
        return [(handlers[descriptor], mask) for descriptor, mask in events]

    def register(self, sock: socket.socket, mask: int, handler: Any) -> None:
        """Watch ``sock`` for what is in ``mask``."""
        self._poll.register(sock, mask)
        self._handlers[sock.fileno()] = handler

    def modify(self, sock: socket.socket, mask: int) -> None:
        """Watch it for something else."""
        self._poll.modify(sock, mask)

    def unregister(self, sock: socket.socket) -> None:
        """Watch it no more; before it is closed."""
        self._poll.unregister(sock)
        del self._handlers[sock.fileno()]

    def close(self) -> None:
        """Let go of everything."""
        self._handlers.clear()
        if hasattr(self._poll, "close"):
            self._poll.close()


class Transport:
    """Serves connections from listening sockets until told to stop.

    Args:
        listeners: bound and listening; the first is the one that is known to everybody.
        config: the limits.
        housekeeping: called four times a second, or again at once while it returns True.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        config: NodeConfig,
        *,
        housekeeping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sock = listeners[0]
        self.selector = _Selector()
        self.locationStr = format_address(*self.sock.getsockname()[:2])  # Pyro5's name for it
        self.connections: set[Connection] = set()
        self.buffered = 0
        self._config = config
        self._housekeeping = housekeeping
        self._clock = clock
        self._now = clock()
        self._listeners = tuple(listeners)
        self._inbox = memoryview(bytearray(_RECEIVE_BYTES))  # where everything short arrives
        self._dispatcher: Dispatcher
        self._workers = ThreadPoolExecutor(config.workers, thread_name_prefix="pyrocache-worker")
        self._jobs = 0
        self._done: deque[tuple[Connection, Reply | PendingReply | None]] = deque()
        self._deadlines = Deadlines()
        self._thread = 0  # of the loop
        self._accept_again_at: float | None = None
        self._stopping = False
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._listen()
        self.selector.register(self._wake_receiver, _READ, self._stay_awake)

    def attach(self, dispatcher: Dispatcher) -> None:
        """Whom to ask for replies; before `loop`."""
        self._dispatcher = dispatcher

    # What Pyro5's daemon calls ---------------------------------------------------------------------------

    def loop(self, loopCondition: Callable[[], bool] = lambda: True) -> None:
        """Serve until ``loopCondition`` is False or `shutdown` was called."""
        self._thread = threading.get_ident()
        tick_at = self._now
        more = False
        while loopCondition() and not self._stopping:
            first = self._deadlines.first
            seconds = first - self._clock() if first < tick_at else tick_at - self._now
            events = self.selector.select(0.0 if more or seconds < 0.0 else seconds)
            self._now = self._clock()
            for handler, mask in events:
                if type(handler) is Connection:
                    self._serve(handler, mask)
                else:
                    handler()
            if more or self._now >= tick_at:
                more = self._tick()
                tick_at = self._clock() + _TICK_SECONDS
            if self._now >= self._deadlines.first:
                self._deadlines.expire(self._now)
            if self._done:
                self._finish_calls()
        self._close_all()

    def events(self, eventsockets: Any) -> None:
        """Pyro5's hook for foreign event loops, which this server does without."""
        raise NotImplementedError("This server runs its own loop.")

    def combine_loop(self, server: Any) -> None:
        """Pyro5's hook for serving two daemons in one loop, which this server does without."""
        raise NotImplementedError("This server runs its own loop.")

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening sockets and every connection's."""
        return [*self._listeners, *(connection.sock for connection in self.connections)]

    def shutdown(self) -> None:
        """End `loop` soon."""
        self._stopping = True
        self.wake()

    def close(self) -> None:
        """Pyro5 calls this after `shutdown`; `loop` closes everything on its way out."""
        self.shutdown()

    def wake(self) -> None:
        """Make `loop` look around now. Any thread may call this."""
        try:
            self._wake_sender.send(b"\0")
        except OSError:  # full: it is awake; closed: it has ended
            pass

    # Connections -----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        for listener in self._listeners:
            listener.setblocking(False)
            self.selector.register(listener, _READ, partial(self._accept, listener))

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(64):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    self._stop_accepting(error)
                    return
                continue
            sock.setblocking(False)
            if len(self.connections) >= self._config.max_connections:
                _turn_away(sock, self._dispatcher.turned_away())
                continue
            connection = Connection(sock, self._dispatcher, self._now)
            self.connections.add(connection)
            try:
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._watch(connection)
            except Exception as error:
                self._give_up(connection, error)

    def _stop_accepting(self, error: OSError) -> None:
        log.error("Cannot accept connections for now: %s.", error.strerror)
        if self._accept_again_at is None:
            for listener in self._listeners:
                self.selector.unregister(listener)
        self._accept_again_at = self._now + _ACCEPT_PAUSE_SECONDS

    def _serve(self, connection: Connection, mask: int) -> None:
        if not connection.mask:  # closed by another one's request a moment ago
            return
        try:
            if mask != _WRITE:  # also when it hung up
                self._read(connection)
            if mask & _WRITE and connection.mask:
                self._write(connection)
                if not connection.decoder.between_frames and connection.ending_at is None:
                    self._answer(connection)  # requests that had to wait until the peer read
        except Exception as error:
            self._give_up(connection, error)

    def _read(self, connection: Connection) -> None:
        space = None if connection.calm else connection.decoder.space()
        try:
            if space is not None:
                received = connection.sock.recv_into(space)
            else:
                received = connection.sock.recv_into(self._inbox)
                data = self._inbox[:received].tobytes()
        except BlockingIOError:
            return
        if not received:
            self._close(connection)
            return
        if connection.calm:
            reply = self._dispatcher.handle_at_once(data)
            if reply is not None:
                self._send_at_once(connection, reply)
                return
            connection.calm = False
        if connection.ending_at is not None:
            return
        before = connection.held
        if connection.decoder.between_frames:
            connection.partial_since = self._now
        if space is not None:
            connection.decoder.filled(received)
        else:
            connection.decoder.feed(data)
        self.buffered += connection.held - before
        self._answer(connection)

    def _send_at_once(self, connection: Connection, reply: Reply) -> None:
        connection.active_at = self._now
        if type(reply) is bytes:
            try:
                sent = connection.sock.send(reply)
            except BlockingIOError:
                sent = 0
            if sent == len(reply):
                return
            reply = reply[sent:]
        else:
            reply = self._affordable(connection, reply)
        connection.queue(reply, self._now)
        self.buffered += connection.unread
        self._write(connection)
        self._keep_within_bounds()

    def _affordable(self, connection: Connection, reply: Reply) -> Reply:
        """``reply``, or that there is no room for it now: a large one may have to wait until its peer reads."""
        size = len(reply) if isinstance(reply, bytes) else sum(map(len, reply))
        if size < LARGE_BYTES:
            return reply
        while self.buffered + size > self._config.max_buffered_bytes:
            largest = self._largest()
            if largest is connection or largest.held < size or not self._refuse_request_of(largest):
                return self._dispatcher.overloaded(sequence_of(reply))
        return reply

    def _answer(self, connection: Connection) -> None:
        """Answer what is there, as long as the peer may ask."""
        before = connection.held
        try:
            while self._answer_next(connection):
                if connection.unread >= _UNREAD_BYTES:
                    connection.send()
        except CloseAfterReply as farewell:
            connection.queue(farewell.last_words, self._now)
            self._end(connection)
        finally:
            self.buffered += connection.held - before
        connection.held_back = connection.unread >= _UNREAD_BYTES
        self._write(connection)
        self._keep_within_bounds()

    def _answer_next(self, connection: Connection) -> bool:
        """Answer one request, if there is a whole one and the peer may ask; whether there was."""
        if connection.busy or connection.unread >= _UNREAD_BYTES:
            return False
        frame = connection.decoder.next_frame()
        if frame is None:
            return False
        connection.partial_since = connection.active_at = self._now
        reply = self._dispatcher.handle(frame, connection.greeted, connection.session)
        if not connection.greeted:
            connection.greeted = True
            connection.decoder.admit = self._dispatcher.admit
        if isinstance(reply, PendingReply):
            self._start_to_wait(connection, reply)
        elif callable(reply):
            self._start_job(connection, frame.header, reply)
        else:
            connection.queue(self._affordable(connection, reply), self._now)
        return True

    def _write(self, connection: Connection) -> None:
        before = connection.unread
        try:
            connection.send()
        finally:
            self.buffered += connection.unread - before
        if connection.ending_at is not None and not connection.outgoing:
            connection.sock.shutdown(socket.SHUT_WR)
        self._watch(connection)

    def _keep_within_bounds(self) -> None:
        """If too much is kept for all together, whoever has most of it makes room, which is seldom who came last."""
        while self.buffered > self._config.max_buffered_bytes:
            largest = self._largest()
            log.warning("%d bytes were kept for one connection, too much with the others.", largest.held)
            if not self._refuse_request_of(largest):
                self._close(largest)

    def _largest(self) -> Connection:
        return max(self.connections, key=lambda connection: connection.held)

    def _refuse_request_of(self, connection: Connection) -> bool:
        """Throw an unfinished request away and say so, if it is most of what is kept for the connection."""
        before = connection.held
        header = connection.decoder.discard() if connection.unread < before // 2 else None
        if header is None:
            return False
        connection.queue(self._dispatcher.overloaded(header.sequence), self._now)
        self.buffered += connection.held - before
        self._watch(connection)
        return True

    def _watch(self, connection: Connection) -> None:
        """Have the selector watch for what can be done with this connection now."""
        if connection not in self.connections:
            return
        connection.calm = (
            connection.greeted
            and not connection.busy
            and not connection.outgoing
            and not connection.held_back
            and connection.ending_at is None
            and connection.decoder.between_frames
        )
        readable = not connection.busy and connection.unread < _UNREAD_BYTES
        writable = connection.outgoing or (connection.held_back and connection.ending_at is None)
        mask = (_READ if readable else 0) | (_WRITE if writable else 0)
        if connection.deferred is not None:
            mask |= _HANG_UP
        if mask == connection.mask:
            return
        if not connection.mask:
            self.selector.register(connection.sock, mask, connection)
        elif not mask:
            self.selector.unregister(connection.sock)
        else:
            self.selector.modify(connection.sock, mask)
        connection.mask = mask

    def _give_up(self, connection: Connection, error: Exception) -> None:
        """Close a connection that failed; whatever it was, the others go on."""
        if not isinstance(error, OSError | ProtocolError):
            log.error("A connection failed with %s; it is closed.", type(error).__name__)
        self._close(connection)

    def _end(self, connection: Connection) -> None:
        """Close soon. Until then input is read and thrown away: closing at once could cost the peer our last words."""
        connection.ending_at = self._now + _LINGER_SECONDS

    def _close(self, connection: Connection) -> None:
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        if connection.mask:
            self.selector.unregister(connection.sock)
            connection.mask = 0
        self.buffered -= connection.held
        connection.sock.close()
        self._forget_later(connection)
        connection.session.close()  # after that: what it was given until then is freed, and nothing is given afterwards

    # Jobs and waiting calls ------------------------------------------------------------------------------

    def _start_job(self, connection: Connection, header: Header, job: Job) -> None:
        if self._jobs >= self._config.max_queued_calls:
            connection.queue(self._dispatcher.overloaded(header.sequence), self._now)
            return
        self._jobs += 1
        connection.busy = True
        self._workers.submit(self._run_job, connection, job)

    def _run_job(self, connection: Connection, job: Job) -> None:  # on a worker
        reply = None
        try:
            reply = job()
        except BaseException as error:
            log.error("A call failed with %s.", type(error).__name__)
        self._done.append((connection, reply))
        self.wake()

    def _start_to_wait(self, connection: Connection, call: PendingReply) -> None:
        connection.busy = True
        connection.deferred = call.deferred
        self._deadlines.add(call.deferred)
        call.deferred.take(partial(self._end_wait, connection, call))

    def _end_wait(self, connection: Connection, call: PendingReply) -> None:  # on any thread
        self._done.append((connection, call))
        if threading.get_ident() != self._thread:
            self.wake()

    def _forget_later(self, connection: Connection) -> None:
        deferred, connection.deferred = connection.deferred, None
        if deferred is not None:
            self._deadlines.discard(deferred)
            deferred.cancel()

    def _stay_awake(self) -> None:
        try:
            self._wake_receiver.recv(4096)
        except BlockingIOError:
            pass

    def _finish_calls(self) -> None:
        while self._done:
            connection, reply = self._done.popleft()
            connection.busy = False
            if isinstance(reply, PendingReply):
                self._forget_later(connection)
            else:
                self._jobs -= 1
                if reply is None:
                    self._close(connection)
            if connection not in self.connections or reply is None:
                continue
            try:
                connection.active_at = connection.partial_since = self._now
                if isinstance(reply, PendingReply):
                    reply = reply.reply()
                before = connection.unread
                connection.queue(self._affordable(connection, reply), self._now)
                self.buffered += connection.unread - before
                self._answer(connection)
            except Exception as error:
                self._give_up(connection, error)

    # Time ------------------------------------------------------------------------------------------------

    def _tick(self) -> bool:
        """Close what is past its deadline and keep house; whether there is more of the latter to do."""
        now = self._clock()
        for connection in [c for c in self.connections if now >= c.deadline(self._config)]:
            self._close(connection)
        if self._accept_again_at is not None and now >= self._accept_again_at:
            self._accept_again_at = None
            self._listen()
        try:
            return self._housekeeping()
        except Exception as error:
            log.error("Housekeeping failed with %s.", type(error).__name__)
            return False

    def _close_all(self) -> None:
        for connection in list(self.connections):
            self._close(connection)
        for listener in self._listeners:
            listener.close()
        self.selector.close()
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._wake_receiver.close()
        self._wake_sender.close()


def _turn_away(sock: socket.socket, last_words: bytes) -> None:
    with sock:
        try:
            sock.send(last_words)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def _room(frame_bytes: int) -> memoryview | None:
    """Memory for a long request that costs nothing before the request has come, whatever its header claims."""
    if frame_bytes < _OWN_MEMORY_BYTES:
        return None
    memory = mmap.mmap(-1, frame_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if frame_bytes > 2 * _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE, _HUGE_PAGE_BYTES, frame_bytes - _HUGE_PAGE_BYTES)
    return memoryview(memory)
