"""`Connection`: one outgoing connection to one remote object. The blocking driver of a `CallProtocol`.

`server.connection` is the other end. One request is under way at a time. `call` sends a request and waits for the
reply; `begin` and `advance` do not block, for callers that serve several connections at once. A small call takes one
system call to send and few to receive.

After any exception other than `Refused`, the next reply could belong to another call: close the connection.

A node tells its clock in the handshake, and each request says by that clock when its call ends, so that the node does
not execute it later. It must never say more than is true: the node has read its clock at some time before the end of
the handshake, so time is counted from that end, and the two clocks may differ in rate. On one host they are one clock:
both ends have the same address, and the node's clock shows a time of this handshake. (The ends of a tunnel may have the
same address, too, but hardly ever the same clock.) Between hosts, `DRIFT` is allowed for, a connection is replaced when
it is `FRESH_SECONDS` old, and all deadlines are that much earlier as the clocks may have drifted apart by then.

Thread safety: used by one thread at a time, except `interrupt`, which any thread may call.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyrocache.config import TLS, TransportChoice
from pyrocache.errors import ProtocolError
from pyrocache.late_imports import at_first_use
from pyrocache.net.call_protocol import ANONYMOUS, GREETED, PENDING, PROVING, Caller, CallProtocol
from pyrocache.net.channel import (
    PATIENCE_SECONDS,
    Dialing,
    Endpoint,
    Resolved,
    is_cooperative,
    is_same_host,
)
from pyrocache.net.deadline import Deadline
from pyrocache.protocol.framing import Buffer
from pyrocache.protocol.handshake import (
    NO_TLS,
    OTHER_CERTIFICATE,
    OVERLOADED,
    HandshakeRefused,
    format_peer,
    is_on_this_host,
)
from pyrocache.protocol.messages import UNUSUAL, unpack_result
from pyrocache.protocol.proof import NONCE_BYTES
from pyrocache.protocol.request_id import CLOCK, HIGHEST_NUMBER, REPEAT
from pyrocache.runtime import clock
from pyrocache.runtime.channel import Channel, TlsRefused
from pyrocache.runtime.spin import SpinWait
from pyrocache.tracebacks import came_from_outside

if TYPE_CHECKING:
    from pyrocache.runtime.tls import TlsChannel

FRESH_SECONDS = 30.0
"""How long a connection to another host is used for further calls; a second more if they follow each other closely."""

OPENING_SECONDS = 3.0
"""How long a handshake may go on in further calls, once the peer has accepted the connection. After that, a new one may
be quicker: the system repeats what is lost less and less often."""

DRIFT = 0.001
"""By how much the clocks of two hosts may differ in rate: NTP may change each by half of it."""

_NUMBERS = itertools.count(1)  # of requests, by all connections: they must differ within a session


def next_number() -> int:
    """Return the number of a new request, for its `RequestId`."""
    return next(_NUMBERS) & HIGHEST_NUMBER


_RECEIVE_BYTES = 64 * 1024
_BUFFERS_AT_ONCE = 512  # the system limits the buffers of one sendmsg (IOV_MAX, 1024 on Linux)
NOW = socket.MSG_DONTWAIT
"""The flag that keeps a call of a channel from blocking."""

_CLOSED = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
_HURRY_SECONDS = 2 * PATIENCE_SECONDS  # with less than this left, the channel must not block by itself

_Poll = Callable[[int], list[tuple[int, int]]]


class OpenedTooLate(TimeoutError):
    """The connection was opened, but too little time is left for a request: the next one can use it."""


class Connection:
    """An outgoing connection. Making it begins to open it; `finish_opening` or `advance` continue.

    Args:
        endpoint: the remote object to connect to.
        transport: whether its Unix socket may be used.
        caller: describes the caller; what is known about ``endpoint`` is added to its greeting.
        resolved: the addresses of the endpoint, see `Dialing`.

    Attributes:
        protocol: the protocol of this connection.
        max_value_bytes: length of the largest value frame that the peer accepts; 0 until the connection is open.
        opened: whether the handshake is done.
        sent: whether all of the last request was sent; before that, the peer does not execute it.
        checked_at: seconds of `runtime.clock`, set by the pool that hands it out.
        begun_at: seconds of `runtime.clock`, when it was made.
        number: the sequence of the last request in its session; 0 if requests on this connection have no identity.
        fresh_until: seconds of `runtime.clock`, until which deadlines are exact; infinite to the same host.
    """

    __slots__ = (
        *(
            "_ahead",
            "_channel",
            "_dialing",
            "_greeted_ms",
            "_identified",
            "_pack",
            "_poll",
            "_securing",
            "_spin_wait",
            "_tls",
            "_unsent",
        ),
        *("_dialled", "_host"),
        *("begun_at", "checked_at", "fresh_until", "max_value_bytes", "number", "opened", "protocol", "sent"),
    )

    def __init__(
        self,
        endpoint: Endpoint,
        transport: TransportChoice = "auto",
        caller: Caller = ANONYMOUS,
        resolved: Resolved | None = None,
    ) -> None:
        self.max_value_bytes = 0
        self.opened = False
        self.sent = False
        self.checked_at = -math.inf
        self.begun_at = clock.now()
        self.number = 0
        self.fresh_until = math.inf
        self._identified = False
        self._ahead = 0.0  # milliseconds from the clock of deadlines to that of the node
        self._greeted_ms = 0  # when the handshake began, by this end's clock
        greeting = caller.greeting._replace(
            node=endpoint.name, incarnation=endpoint.incarnation, cluster=endpoint.cluster
        )
        self.protocol = CallProtocol(endpoint.name, caller._replace(greeting=greeting))
        self._pack = self.protocol.pack
        self._unsent: list[memoryview] = []
        self._spin_wait: Callable[[_Poll], object] | None = None
        self._tls = caller.tls
        self._host = endpoint.host
        self._securing: TlsChannel | None = None  # while its handshake lasts
        self._dialing: Dialing | None = Dialing(endpoint, transport, resolved)
        self._channel: Channel = self._dialing.sock
        if not self._dialing.pending:
            try:
                self._greet(self._dialing)
            except BaseException:
                self._channel.close()
                raise

    @property
    def channel(self) -> Channel:
        """Return the stream, for a driver that takes it over once the connection is open."""
        return self._channel

    @property
    def connected(self) -> bool:
        """Return whether a peer at the endpoint's address has accepted the connection."""
        return self._dialing is None

    @property
    def opening(self) -> bool:
        """Return whether the peer has accepted the connection, and the handshake is not done."""
        return self._dialing is None and not self.opened

    def may_open(self) -> bool:
        """Return whether it is `opening`, and not for too long."""
        return self.opening and clock.now() - self.begun_at < OPENING_SECONDS

    @property
    def proved(self) -> bool:
        """Return whether both ends have proved that they know the secret, once the connection is open."""
        return self.protocol.proved

    @property
    def peer_certificate(self) -> dict[str, Any]:
        """Return the certificate of the other end, as `ssl.SSLSocket.getpeercert` does; empty without TLS."""
        return getattr(self._channel, "peer_certificate", {})

    @property
    def events(self) -> int:
        """Return the events to poll for before the next `advance`."""
        if (
            self._unsent
            or self._dialing is not None
            or (self._securing is not None and self._securing.unsent)
        ):
            return select.POLLOUT
        return select.POLLIN

    def ends_at(self, deadline: Deadline) -> int:
        """Return a deadline by the node's clock, as a `RequestId` has it."""
        return int(deadline.at * 1000.0 + self._ahead) & CLOCK

    def spin(self) -> bool:
        """Wait for a reply for a moment, if that has paid lately (`SpinWait`). Return whether there is one."""
        return self._spin_wait is not None and bool(self._spin_wait(self._poll))

    def finish_opening(self, deadline: Deadline) -> None:
        """Connect and complete the handshake, unless that is done. Raises one of `failures.BROKEN`."""
        while not self.opened:
            deadline.check()
            self._wait(deadline)
            self.advance()

    def call(self, method: str, arguments: tuple[Any, ...], deadline: Deadline) -> Any:
        """Make a call and return its result. A large value may be a `memoryview` of memory that nothing else uses.

        Raises:
            Refused: the peer refused the call; the connection is still usable.
            ProtocolError, OSError: close the connection.
        """
        # This is begin() and receive() for a small message, in as few Python calls as possible.
        self.sent = False
        protocol = self.protocol
        protocol.sequence = sequence = (protocol.sequence + 1) & 0xFFFF
        if self._identified:
            self.number = number = next(_NUMBERS) & HIGHEST_NUMBER
            ends_at = int(deadline.at * 1000.0 + self._ahead) & CLOCK
            message = self._pack(method, arguments, sequence, number, ends_at)
        else:
            message = self._pack(method, arguments, sequence)
        count = 0
        if type(message) is bytes:
            try:
                count = self._channel.send(message, NOW)
            except BlockingIOError:
                pass
        if count == len(message):
            self.sent = True
        else:
            self._send_rest(message, count, deadline)
        if self._spin_wait is not None:
            self._spin_wait(self._poll)  # blocking and waking cost more than a small request
        try:
            # `recv` may block for PATIENCE_SECONDS. Poll with the exact timeout if there is little time left.
            if deadline.at - deadline.seen_at < _HURRY_SECONDS:
                self._wait(deadline)
            data = self._channel.recv(_RECEIVE_BYTES)
        except BlockingIOError:  # nothing for PATIENCE_SECONDS
            return self.receive(deadline)
        result = unpack_result(data, sequence)
        return result if result is not UNUSUAL else self.receive(deadline, data)  # large, cut, or a refusal

    def begin(self, method: str, arguments: tuple[Any, ...], deadline: Deadline, repeats: int = 0) -> bool:
        """Send as much of a request as the socket accepts now. Return whether that was all; `advance` sends more.

        Args:
            repeats: the `number` of the request that this one repeats; 0 for a new request.
        """
        self.sent = False
        number = ends_at = 0
        if self._identified:
            self.number = repeats or next_number()
            number = self.number | (REPEAT if repeats else 0)
            ends_at = self.ends_at(deadline)
        return self._begin_sending(self.protocol.send_call(method, arguments, number, ends_at))

    def call_unlike(
        self,
        method: str,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        *,
        repeats: int = 0,
        until: Deadline | None = None,
    ) -> Any:
        """Make a call as `call` does, with another identity.

        Args:
            repeats: as for `begin`. Such a request is executed in no case: if its outcome is not known, the refusal
                tells what is.
            until: the deadline to tell the node, if not that of the call.

        Raises:
            ProtocolError: also if the node cannot know the request that is repeated.
        """
        if repeats and not self._identified:
            raise ProtocolError("another node, which knows nothing of this client, answers there")
        if not self.begin(method, arguments, until or deadline, repeats):
            self._send_rest(b"", 0, deadline)
        if self._spin_wait is not None:
            self._spin_wait(self._poll)
        return self.receive(deadline)

    def advance(self) -> Any:
        """Proceed as far as possible without blocking: connect, complete the handshake, send, receive.

        Returns:
            The result of the request, `GREETED` once the connection is open, or `PENDING`: poll for `events`.

        Raises:
            As `call` and `finish_opening`.
        """
        try:
            return self._advance()
        except TlsRefused as error:
            raise _refused(error) from None

    def _advance(self) -> Any:
        if self._dialing is not None:
            if not self._dialing.advance():
                self._channel = self._dialing.sock  # each address has a socket of its own
                return PENDING
            self._greet(self._dialing)
        elif self._securing is None and self._unsent and not self._send_some():
            return PENDING
        if self._securing is not None and not self._secure(self._securing):
            return PENDING
        outcome = PENDING
        while outcome is PENDING:
            try:
                outcome = self._receive_some(NOW)
            except BlockingIOError:
                return PENDING
            if outcome is PROVING:
                outcome = PENDING
                if not self._begin_sending(self.protocol.prove()):
                    return PENDING
        if outcome is GREETED:
            self.opened = True
            self.max_value_bytes = self.protocol.max_value_bytes
            if self.protocol.identified:
                self._set_clock()
        return outcome

    def receive(self, deadline: Deadline, data: bytes | None = None) -> Any:
        """Wait for the reply to the last request, which begins with ``data``. Returns and raises as `call`."""
        outcome = PENDING
        if data is None:
            self._wait(deadline)
        else:
            outcome = self.protocol.receive_data(data)
        while outcome is PENDING:
            # For a long reply, few long calls instead of many short ones.
            flags = socket.MSG_WAITALL if deadline.check() > _HURRY_SECONDS else NOW
            try:
                outcome = self._receive_some(flags)
            except BlockingIOError:
                self._wait(deadline)
        return outcome

    def fileno(self) -> int:
        """Return the descriptor to poll. It may change until the connection is open."""
        return self._channel.fileno()

    def usable(self) -> bool:
        """Return whether the peer has neither closed this connection nor sent anything without a request."""
        try:
            self._channel.recv(1, socket.MSG_PEEK | NOW)
        except BlockingIOError:
            return True
        except OSError as error:
            if came_from_outside(error):
                raise
        return False

    def interrupt(self) -> None:
        """Shut the stream down: a thread that waits for a reply wakes up. Do not call this after a fork."""
        try:
            self._channel.shutdown(socket.SHUT_RDWR)
        except OSError as error:  # it has ended
            if came_from_outside(error):
                raise

    def close(self) -> None:
        """Close this process's descriptor. A stream that was inherited by a fork stays open in the other process."""
        self._channel.close()

    def _greet(self, dialing: Dialing) -> None:
        secure = isinstance(self._tls, TLS) and not dialing.path
        self._channel = channel = dialing.channel(blocks=not secure)
        self._dialing = None
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLIN)
        self._poll: _Poll = poll.poll
        if not is_cooperative(channel):
            self._spin_wait = SpinWait().wait
        # A node that refuses connections may have closed this one already. Its message can still be received.
        try:
            # The name that a Unix socket was made under, which the system tells, need not be where it was found.
            self._dialled = format_peer(dialing.path or channel.getpeername())
            if secure:
                self._begin_securing()
            else:
                self._check_protected()
                self._begin_greeting()
        except OSError as error:
            if error.errno not in _CLOSED:
                raise
            self._unsent = []

    def _check_protected(self) -> None:
        """Raise `HandshakeRefused` if this connection without TLS leaves the host, and the user has not allowed it."""
        if self._tls is None and not is_on_this_host(self._dialled):
            refused = HandshakeRefused(f"{NO_TLS}: the connection would not be encrypted")
            refused.advice = (
                "Give tls=pyrocache.TLS(ca=...) or --tls-ca; or tls=False or --no-tls, if you trust everybody on the "
                "path between the hosts."
            )
            raise refused

    def _begin_greeting(self, certificate: bytes = b"") -> None:
        self._greeted_ms = int(clock.now() * 1000.0)
        self._begin_sending(self.protocol.greet(self._dialled, os.urandom(NONCE_BYTES), certificate))

    def _begin_securing(self) -> None:
        with at_first_use:
            from pyrocache.runtime.tls import client_channel  # imported here, as most processes do without
        assert self._tls
        self._channel = self._securing = client_channel(self._channel, self._tls, self._host)
        self._securing.handshake()  # its first message

    def _secure(self, channel: TlsChannel) -> bool:
        """Proceed with the handshake of TLS, then begin that of pyrocache. Return whether the first is done."""
        if not channel.handshake():
            return False
        self._securing = None
        self._begin_greeting(channel.certificate)
        return True

    def _set_clock(self) -> None:
        """Note the node's clock, just after the end of the handshake."""
        self._identified = True
        at = clock.now()
        # Both ends count whole milliseconds.
        self._ahead = self.protocol.peer.clock_ms - at * 1000.0 - 1.0
        if not (is_same_host(self._channel) and self._is_one_clock(at)):
            self.fresh_until = at + FRESH_SECONDS
            self._ahead -= (FRESH_SECONDS + 1.0) * DRIFT * 1000.0

    def _is_one_clock(self, at: float) -> bool:
        """Return whether the node's clock showed a time between the beginning of the handshake and its end, ``at``."""
        passed = (self.protocol.peer.clock_ms - self._greeted_ms) & CLOCK
        return passed <= int(at * 1000.0) - self._greeted_ms + 1  # a node sends 1 in place of 0

    def _begin_sending(self, message: bytes | list[Buffer], count: int = 0) -> bool:
        buffers = [message] if isinstance(message, bytes) else message
        self._unsent = [memoryview(buffer) for buffer in buffers if buffer]
        self._unsent[0] = self._unsent[0][count:]
        return self._send_some()

    def _receive_some(self, long_flags: int) -> Any:
        """Receive what has arrived; with ``long_flags``, the rest of a long reply. Raises `BlockingIOError`."""
        space = self.protocol.space()
        if space is None:
            return self.protocol.receive_data(self._channel.recv(_RECEIVE_BYTES, NOW))
        return self.protocol.received(self._channel.recv_into(space, 0, long_flags))

    def _send_some(self) -> bool:
        unsent = self._unsent
        while unsent:
            try:
                count = self._channel.sendmsg(unsent[:_BUFFERS_AT_ONCE], (), NOW)
            except BlockingIOError:
                return False
            while unsent and count >= len(unsent[0]):
                count -= len(unsent.pop(0))
            if count:
                unsent[0] = unsent[0][count:]
        self.sent = self.opened  # else this was the handshake
        return True

    def _send_rest(self, message: bytes | list[Buffer], count: int, deadline: Deadline) -> None:
        sent = self._begin_sending(message, count) if message else False
        while not sent:
            deadline.check()
            self._wait(deadline)
            sent = self._send_some()

    def _wait(self, deadline: Deadline) -> None:
        """Poll until the deadline. Check once even if it has passed: a reply that has arrived is valid.

        Raises:
            TimeoutError: nothing arrived.
        """
        if self.events == select.POLLIN:
            poll = self._poll
        else:
            writable = select.poll()
            writable.register(self._channel.fileno(), select.POLLOUT)
            poll = writable.poll
        if not poll(math.ceil(deadline.remaining() * 1000)):
            raise TimeoutError


def _refused(error: TlsRefused) -> HandshakeRefused:
    """Return what a failed handshake of TLS means to the user."""
    cause = TlsRefused.Cause
    code = {cause.CERTIFICATE: OTHER_CERTIFICATE, cause.PROTOCOL: NO_TLS, cause.BUSY: OVERLOADED}[error.cause]
    refused = HandshakeRefused(f"{code}: {error}")
    if code == OTHER_CERTIFICATE:
        refused.advice = "Find out which certificate is wrong with: pyrocache doctor"
    elif code == NO_TLS:
        refused.advice = "Start it with --tls-cert, --tls-key and --tls-ca, or leave tls= and --tls-ca out."
    return refused
