"""`Securing`: the TLS handshakes of new connections, on threads of their own.

A handshake takes up to a millisecond of computing, and the I/O thread must not wait for it. When the peer has sent
something, the I/O thread hands the connection to one of the threads, which takes one step of the handshake. A step does
not block, so a peer that sends nothing, or little by little, occupies no thread. During a step, the connection belongs
to that thread, and the I/O thread does not watch it.

A caller that does not begin with TLS gets its refusal in the clear.

Thread safety: used by the event loop's thread; `_step` runs on the threads.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from pyrocache.server.connection import Connection
from pyrocache.server.poller import READ, WRITE, Poller

if TYPE_CHECKING:
    from pyrocache.runtime.tls import ServerCertificate, TlsChannel

FIRST_BYTE = b"\x16"
"""What TLS begins with. A message of Pyro5 begins with another byte."""

NO_TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x46"
"""What a server without TLS answers to it: the alert `protocol_version`."""

BUSY_ALERT = b"\x15\x03\x03\x00\x02\x02\x50"
"""What a server with as many connections as it takes answers to a new one: the alert `internal_error`."""

_THREADS = 2


class Securing:
    """The TLS handshakes of one server.

    Args:
        certificate: that of the server.
        poller: watches the connections.
        wake: makes the event loop call `finished` soon; called on any thread.
        release: called with each connection that was closed while a thread had it, once none has it.

    Attributes:
        done: connections whose step is done; `finished` takes them.
    """

    def __init__(
        self,
        certificate: ServerCertificate,
        poller: Poller,
        wake: Callable[[], None],
        release: Callable[[Connection], None],
    ) -> None:
        self._certificate = certificate
        self._poller = poller
        self._wake = wake
        self._release = release
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pyrocache-tls")
        self._threads.submit(int)  # one thread from the beginning, in case that none can be started later
        self.done: deque[tuple[Connection, TlsChannel | None, bool, Exception | None]] = deque()

    def begin(self, connection: Connection, admit: Callable[[Connection], object]) -> None:
        """Wait for the first byte of a new connection. If it is not TLS, call ``admit``."""
        connection.handshake.certificate = None  # until it is secured
        self._watch(connection, READ, partial(self._first, connection, admit))

    def finished(self) -> Iterator[tuple[Connection, Exception | None]]:
        """Yield each connection that is secured, or has failed, with the reason."""
        while self.done:
            connection, channel, done, problem = self.done.popleft()
            connection.securing = False
            if connection.closed:
                self._release(connection)
            elif channel is None or problem is not None:
                yield connection, problem
            elif done:
                connection.channel = connection.tls = channel
                connection.handshake.certificate = channel.certificate
                yield connection, None
            else:
                events = WRITE if channel.unsent else READ
                try:
                    self._watch(connection, events, partial(self._step_later, connection, channel))
                except OSError as error:
                    yield connection, error

    def close(self) -> None:
        """End the threads, and close the connections that they have. All connections must be closed already."""
        self._threads.shutdown()  # takes a millisecond: the steps of closed connections are skipped
        for _ in self.finished():
            pass

    def _first(self, connection: Connection, admit: Callable[[Connection], object]) -> None:
        sock: Any = connection.channel
        try:
            begins_with = sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            begins_with = b""
        self._watch(connection, 0, None)
        if begins_with == FIRST_BYTE:
            self._step_later(connection, None)
        else:
            admit(connection)

    def _step_later(self, connection: Connection, channel: TlsChannel | None) -> None:
        self._watch(connection, 0, None)
        connection.securing = True
        with contextlib.suppress(
            RuntimeError
        ):  # no thread can be started; the step is queued, for one that exists
            self._threads.submit(self._step, connection, channel)

    def _step(self, connection: Connection, channel: TlsChannel | None) -> None:  # on a thread
        done, problem = False, None
        try:
            if not connection.closed:
                channel = channel or self._certificate.secure(connection.channel)
                done = channel.handshake()
        except Exception as error:
            problem = error
        self.done.append((connection, channel, done, problem))
        self._wake()

    def _watch(self, connection: Connection, events: int, handler: Callable[[], object] | None) -> None:
        self._poller.change(connection.channel, connection.events, events, handler)
        connection.events = events
