"""One connection to one node: opened, spoken over, closed. One request is under way on it at a time.

A node on this host is reached over its Unix socket if it has one, any other over TCP. A small call is one system call
to send and few to receive: the socket blocks, for `_PATIENCE_SECONDS` at most, after which deadlines are looked at.

Used by one thread at a time. After an exception other than `Refused` the next reply could be another call's: close it.
"""

from __future__ import annotations

import codecs
import contextlib
import math
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from pyrocache.cluster.routing import Member
from pyrocache.config import DEFAULT_MAX_VALUE_BYTES, TransportChoice
from pyrocache.errors import ProtocolError
from pyrocache.protocol import framing, limits, messages, refusals
from pyrocache.protocol.framing import FrameDecoder, Header
from pyrocache.protocol.messages import CallPacker
from pyrocache.protocol.refusals import Refusal
from pyrocache.runtime.places import Place
from pyrocache.runtime.spin import SpinWait

# Looking a host up imports this codec; a fork in the middle of the import would lock the child out for ever.
codecs.lookup("idna")

_RECEIVE_BYTES = 64 * 1024
_REPLY_SLACK = 256 * 1024
_HANDSHAKE_BYTES = 64 * 1024
_REPLY_FLAGS = framing.FLAG_EXCEPTION | framing.FLAG_CORRELATION_ID

_PATIENCE_SECONDS = 0.25
_PATIENCE = struct.pack("ll", 0, int(_PATIENCE_SECONDS * 1_000_000))  # a struct timeval
_BUFFERS_AT_ONCE = 512


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


class Refused(Exception):
    """The node answered with a refusal."""

    def __init__(self, member: Member, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.member = member
        self.refusal = refusal


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
        *("_decoder", "_packer", "_spin_wait", "_poll", "_sequence", "_sock", "_unsent"),
        *("max_value_bytes", "member", "place", "used_at"),
    )

    def __init__(self, member: Member, deadline: Deadline, transport: TransportChoice = "auto") -> None:
        self.member = member
        self.place: Place | None = None
        self.used_at = deadline.seen_at
        self.max_value_bytes = DEFAULT_MAX_VALUE_BYTES
        self._sequence = 0
        self._unsent: list[memoryview] = []
        self._packer = CallPacker(member.name)
        # Neither is a method of this object: a cycle would keep large buffers alive.
        self._decoder = FrameDecoder(_admit_greeting, _room)
        self._sock = _connect(member, deadline, transport)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._spin_wait = SpinWait()
        try:
            self._sock.settimeout(None)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
            self._shake_hands(deadline)
        except BaseException:
            self._sock.close()
            raise
        longest = self.max_value_bytes + limits.BATCH_BYTES + _REPLY_SLACK
        self._decoder.admit = lambda header: _admit_reply(header, longest)

    def send(self, method: str, arguments: tuple[Any, ...], deadline: Deadline) -> None:
        """Send a request; `receive` its reply before the next."""
        if not self.begin(method, arguments):
            self._send_rest(deadline)

    def begin(self, method: str, arguments: tuple[Any, ...]) -> bool:
        """Send as much of a request as the node takes at once; whether that was all. If not, `go_on`."""
        self._sequence = sequence = (self._sequence + 1) & 0xFFFF
        message = self._packer.pack(method, arguments, sequence)
        if isinstance(message, bytes):
            try:
                sent = self._sock.send(message, socket.MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            if sent == len(message):
                return True
            message = [memoryview(message)[sent:]]
        self._unsent = [memoryview(buffer) for buffer in message if buffer]
        return self.go_on()

    @property
    def sending(self) -> bool:
        """Whether a part of the request is still to be sent."""
        return bool(self._unsent)

    def go_on(self) -> bool:
        """Send as much of what is left as the node takes; whether that was all."""
        unsent = self._unsent
        while unsent:
            try:
                sent = self._sock.sendmsg(unsent[:_BUFFERS_AT_ONCE], (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            while unsent and sent >= len(unsent[0]):
                sent -= len(unsent.pop(0))
            if sent:
                unsent[0] = unsent[0][sent:]
        return True

    def receive(self, deadline: Deadline) -> Any:
        """The reply to the request sent last; a large value may be a `memoryview` of memory that is nobody else's.

        Raises:
            Refused: the node refused; the connection is as good as before.
            ProtocolError, OSError: drop the connection.
        """
        self._spin_wait.wait(self._poll.poll)
        try:
            if deadline.at - deadline.seen_at < 2 * _PATIENCE_SECONDS:
                self._wait(select.POLLIN, deadline)
            data = self._sock.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            data = self._receive_some(deadline)
        result = messages.unpack_result(data, self._sequence)
        return result if result is not messages.UNUSUAL else self._receive_unusual(data, deadline)

    def _receive_unusual(self, data: bytes, deadline: Deadline) -> Any:
        header, body = self._receive_frame(data, deadline)
        if header.sequence != self._sequence:
            raise ProtocolError("A reply came out of order.")
        if header.flags & framing.FLAG_EXCEPTION:
            raise Refused(self.member, refusals.unpack_refusal(body))
        return messages.unpack_plain(body)

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

    def interrupt(self) -> None:
        """End the stream, so that whoever waits for a reply on another thread sees it end. Not after a fork."""
        with contextlib.suppress(OSError):  # it has ended
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this process's end, and give its place back; after a fork the other process's end stays open."""
        self.place = None  # now, as an exception that somebody keeps may keep this object too
        self._sock.close()

    def _shake_hands(self, deadline: Deadline) -> None:
        body = messages.pack_plain({"handshake": "pyrocache", "object": self.member.name})
        # A node that turns connections away may have closed this one by now; what it said is there to be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._unsent = [memoryview(framing.pack_message(framing.CONNECT, 0, body))]
            self._send_rest(deadline)
        header, answered = self._receive_frame(self._receive_some(deadline), deadline)
        answer = messages.unpack_plain(answered)
        if header.type == framing.CONNECT_FAIL:
            raise ConnectRefused(answer if isinstance(answer, str) else "no reason was given")
        greeting = answer.get("handshake") if isinstance(answer, dict) else None
        if isinstance(greeting, dict) and isinstance(greeting.get("max_value_bytes"), int):
            self.max_value_bytes = greeting["max_value_bytes"]

    def _send_rest(self, deadline: Deadline) -> None:
        while not self.go_on():
            deadline.socket_timeout()
            self._wait(select.POLLOUT, deadline)

    def _receive_some(self, deadline: Deadline) -> bytes:
        deadline.socket_timeout()
        self._wait(select.POLLIN, deadline)
        data = self._sock.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the node closed the connection")
        return data

    def _receive_frame(self, data: bytes, deadline: Deadline) -> framing.Frame:
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
            deadline.socket_timeout()
            self._wait(select.POLLIN, deadline)
            return 0
        if not count:
            raise ConnectionResetError("the node closed the connection")
        return count

    def _wait(self, event: int, deadline: Deadline) -> None:
        """Wait until the deadline; what is there by then is good even if it has passed."""
        poll = self._poll
        if event != select.POLLIN:
            poll = select.poll()
            poll.register(self._sock, event)
        if not poll.poll(math.ceil(deadline.remaining() * 1000)):
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
    if frame_bytes <= limits.LARGE_BYTES:
        return None
    offset = -messages.VALUE_OFFSET % 16
    return memoryview(bytearray(offset + frame_bytes))[offset:]


def _admit_greeting(header: Header) -> None:
    if header.type not in (framing.CONNECT_OK, framing.CONNECT_FAIL) or header.serializer != framing.MSGPACK:
        raise ProtocolError("This is no answer to a handshake in msgpack.")
    if header.flags & ~_REPLY_FLAGS or header.frame_bytes > _HANDSHAKE_BYTES:
        raise ProtocolError("This answer to a handshake is compressed or too long.")


def _admit_reply(header: Header, longest: int) -> None:
    if header.type != framing.RESULT or header.serializer != framing.MSGPACK or header.flags & ~_REPLY_FLAGS:
        raise ProtocolError("This is no plain reply in msgpack.")
    if header.frame_bytes > longest:
        raise ProtocolError("A reply is longer than any value that the node takes.")


class ConnectRefused(Exception):
    """The peer refused the handshake, in these words."""
