"""The multiplexed threaded server: one selector for every connection, worker threads for what may block.

One I/O thread accepts, reads without blocking into each connection's own buffer, has every header judged before
the body is kept, answers cheap calls at once and writes replies without blocking. Jobs go to a bounded pool of
workers and their replies come back through the I/O thread, in the order of the requests: a connection is not read
further while one of its jobs runs, nor while its peer leaves too much unread. Whoever sends half a request, nothing,
or does not read meets a deadline of its own, and nobody else notices.

Everything here belongs to the thread in `Transport.loop`, except `Transport.wake`, which any thread may call.
`Transport` has the interface that ``Pyro5.server.Daemon`` expects of its ``transportServer``.
"""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyrocache.cluster.wire import FrameDecoder, Header
from pyrocache.config import NodeConfig, format_address
from pyrocache.errors import ProtocolError
from pyrocache.node.dispatch import Dispatcher, Farewell, Job

log = logging.getLogger("pyrocache.node")

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_RECEIVE_BYTES = 64 * 1024
_SHARED_BYTES = 64 * 1024  # small replies that wait share a buffer of this size
_UNREAD_BYTES = 2**20  # replies that may wait for a slow reader before its requests are left waiting too
_LINGER_SECONDS = 1.0
_TICK_SECONDS = 0.25
_ACCEPT_PAUSE_SECONDS = 1.0
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connection:
    """One peer: what it sent, what it is still to get, and since when."""

    __slots__ = (
        "active_at",
        "busy",
        "decoder",
        "ending_at",
        "greeted",
        "mask",
        "outgoing",
        "partial_since",
        "queued_at",
        "sent",
        "sock",
        "unread",
    )

    def __init__(self, sock: socket.socket, dispatcher: Dispatcher, now: float) -> None:
        self.sock = sock
        self.decoder = FrameDecoder(dispatcher.admit_stranger)
        self.greeted = False
        self.busy = False  # a worker runs one of its calls
        self.mask = 0  # what the selector watches it for
        self.outgoing: deque[bytes | bytearray] = deque()  # small replies share a bytearray
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

    def queue(self, data: bytes, now: float) -> None:
        """Keep a reply until the peer reads it."""
        self.unread += len(data)
        last = self.outgoing[-1] if self.outgoing else None
        if isinstance(last, bytearray) and len(last) + len(data) <= _SHARED_BYTES:
            last += data
            return
        self.outgoing.append(bytearray(data) if len(data) < _SHARED_BYTES // 4 else data)
        self.queued_at.append(now)

    def send(self) -> None:
        """Send what the peer takes for now."""
        while self.outgoing:
            first = self.outgoing[0]
            try:
                with memoryview(first) as whole, whole[self.sent :] as rest:
                    sent = self.sock.send(rest)
            except BlockingIOError:
                return
            self.sent += sent
            self.unread -= sent
            if self.sent == len(first):
                self.outgoing.popleft()
                self.queued_at.popleft()
                self.sent = 0

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
        if self.decoder.buffered:
            return self.partial_since + config.request_seconds
        return self.active_at + config.idle_seconds


class Transport:
    """Serves connections from a listening socket until told to stop.

    Args:
        listener: bound and listening.
        config: the limits.
        housekeeping: called four times a second, or again at once while it returns True.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        listener: socket.socket,
        config: NodeConfig,
        *,
        housekeeping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sock: socket.socket | None = listener
        self.selector = selectors.DefaultSelector()
        self.locationStr = format_address(*listener.getsockname()[:2])  # Pyro5's name for it
        self.connections: set[Connection] = set()
        self.buffered = 0
        self._config = config
        self._housekeeping = housekeeping
        self._clock = clock
        self._dispatcher: Dispatcher
        self._workers = ThreadPoolExecutor(config.workers, thread_name_prefix="pyrocache-worker")
        self._jobs = 0
        self._done: deque[tuple[Connection, bytes | None]] = deque()
        self._accept_again_at: float | None = None
        self._stopping = False
        listener.setblocking(False)
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self.selector.register(listener, _READ, self._accept)
        self.selector.register(self._wake_receiver, _READ, self._finish_jobs)

    def attach(self, dispatcher: Dispatcher) -> None:
        """Whom to ask for replies; before `loop`."""
        self._dispatcher = dispatcher

    # What Pyro5's daemon calls ---------------------------------------------------------------------------

    def loop(self, loopCondition: Callable[[], bool] = lambda: True) -> None:
        """Serve until ``loopCondition`` is False or `shutdown` was called."""
        tick_at = self._clock()
        more = False
        while loopCondition() and not self._stopping:
            timeout = 0.0 if more else max(0.0, tick_at - self._clock())
            for key, mask in self.selector.select(timeout):
                handler = key.data
                if isinstance(handler, Connection):
                    self._serve(handler, mask)
                else:
                    handler()
            if more or self._clock() >= tick_at:
                more = self._tick()
                tick_at = self._clock() + _TICK_SECONDS
        self._close_all()

    def events(self, eventsockets: Any) -> None:
        """Pyro5's hook for foreign event loops, which this server does without."""
        raise NotImplementedError("This server runs its own loop.")

    def combine_loop(self, server: Any) -> None:
        """Pyro5's hook for serving two daemons in one loop, which this server does without."""
        raise NotImplementedError("This server runs its own loop.")

    @property
    def sockets(self) -> list[socket.socket]:
        """The listening socket and every connection's."""
        listening = [self.sock] if self.sock is not None else []
        return [*listening, *(connection.sock for connection in self.connections)]

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

    def _accept(self) -> None:
        assert self.sock is not None
        for _ in range(64):
            try:
                sock, _ = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:
                    log.error("Cannot accept connections for now: %s.", error.strerror)
                    self.selector.unregister(self.sock)
                    self._accept_again_at = self._clock() + _ACCEPT_PAUSE_SECONDS
                    return
                continue
            sock.setblocking(False)
            if len(self.connections) >= self._config.max_connections:
                _turn_away(sock, self._dispatcher.turned_away())
                continue
            connection = Connection(sock, self._dispatcher, self._clock())
            self.connections.add(connection)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._watch(connection)
            except Exception as error:
                self._give_up(connection, error)

    def _serve(self, connection: Connection, mask: int) -> None:
        if connection not in self.connections:
            return
        try:
            if mask & _WRITE:
                self._write(connection)
                if connection.decoder.buffered and connection.ending_at is None:
                    self._answer(connection)  # requests that had to wait until the peer read
            if mask & _READ and connection in self.connections:
                self._read(connection)
        except Exception as error:
            self._give_up(connection, error)

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._close(connection)
        elif connection.ending_at is None:
            if not connection.decoder.buffered:
                connection.partial_since = self._clock()
            connection.decoder.feed(data)
            self.buffered += len(data)
            self._answer(connection)

    def _answer(self, connection: Connection) -> None:
        """Answer what is there, as long as the peer may ask."""
        before = connection.held
        try:
            while self._answer_next(connection):
                if connection.unread >= _UNREAD_BYTES:
                    connection.send()
        except Farewell as farewell:
            connection.queue(farewell.last_words, self._clock())
            self._end(connection)
        finally:
            self.buffered += connection.held - before
        self._write(connection)
        if self.buffered > self._config.max_buffered_bytes:
            self._drop_the_largest()

    def _answer_next(self, connection: Connection) -> bool:
        """Answer one request, if there is a whole one and the peer may ask; whether there was."""
        if connection.busy or connection.unread >= _UNREAD_BYTES:
            return False
        frame = connection.decoder.next_frame()
        if frame is None:
            return False
        now = connection.partial_since = connection.active_at = self._clock()
        reply = self._dispatcher.handle(frame, connection.greeted)
        if not connection.greeted:
            connection.greeted = True
            connection.decoder.admit = self._dispatcher.admit
        if isinstance(reply, bytes):
            connection.queue(reply, now)
        else:
            self._start_job(connection, frame.header, reply)
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

    def _drop_the_largest(self) -> None:
        """Too much is kept for all together: whoever has most of it goes, which is seldom who came last."""
        largest = max(self.connections, key=lambda connection: connection.held)
        log.warning(
            "A connection is closed: %d bytes were kept for it, too much with the others.", largest.held
        )
        self._close(largest)

    def _watch(self, connection: Connection) -> None:
        """Have the selector watch for what can be done with this connection now."""
        if connection not in self.connections:
            return
        readable = not connection.busy and connection.unread < _UNREAD_BYTES
        mask = (_READ if readable else 0) | (_WRITE if connection.outgoing else 0)
        if mask == connection.mask:
            return
        if not connection.mask:
            self.selector.register(connection.sock, mask, connection)
        elif not mask:
            self.selector.unregister(connection.sock)
        else:
            self.selector.modify(connection.sock, mask, connection)
        connection.mask = mask

    def _give_up(self, connection: Connection, error: Exception) -> None:
        """Close a connection that failed; whatever it was, the others go on."""
        if not isinstance(error, OSError | ProtocolError):
            log.error("A connection failed with %s; it is closed.", type(error).__name__)
        self._close(connection)

    def _end(self, connection: Connection) -> None:
        """Close soon. Until then input is read and thrown away: closing at once could cost the peer our last words."""
        connection.ending_at = self._clock() + _LINGER_SECONDS

    def _close(self, connection: Connection) -> None:
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        if connection.mask:
            self.selector.unregister(connection.sock)
        self.buffered -= connection.held
        connection.sock.close()

    # Jobs ------------------------------------------------------------------------------------------------

    def _start_job(self, connection: Connection, header: Header, job: Job) -> None:
        if self._jobs >= self._config.max_queued_calls:
            connection.queue(self._dispatcher.overloaded(header), self._clock())
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

    def _finish_jobs(self) -> None:
        try:
            self._wake_receiver.recv(4096)
        except BlockingIOError:
            pass
        while self._done:
            connection, reply = self._done.popleft()
            self._jobs -= 1
            connection.busy = False
            if reply is None:
                self._close(connection)
            if connection not in self.connections or reply is None:
                continue
            try:
                now = connection.active_at = connection.partial_since = self._clock()
                connection.queue(reply, now)
                self.buffered += len(reply)
                self._answer(connection)
            except Exception as error:
                self._give_up(connection, error)

    # Time ------------------------------------------------------------------------------------------------

    def _tick(self) -> bool:
        """Close what is past its deadline and keep house; whether there is more of the latter to do."""
        now = self._clock()
        for connection in [c for c in self.connections if now >= c.deadline(self._config)]:
            self._close(connection)
        if self._accept_again_at is not None and now >= self._accept_again_at and self.sock is not None:
            self._accept_again_at = None
            self.selector.register(self.sock, _READ, self._accept)
        try:
            return self._housekeeping()
        except Exception as error:
            log.error("Housekeeping failed with %s.", type(error).__name__)
            return False

    def _close_all(self) -> None:
        for connection in list(self.connections):
            self._close(connection)
        if self.sock is not None:
            self.sock.close()
            self.sock = None
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
