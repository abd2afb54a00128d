"""`Connection`: one incoming connection, with its channel, its handshake and its buffers in both directions.

Holds the buffered bytes of the connection and the times that its deadline is computed from. Does not choose replies
(`Dispatcher` does), nor when to read or to close (`EventLoop` does). `net.connection` is the other end.

Thread safety: not thread-safe; used by the event loop's thread.
"""

from __future__ import annotations

import select
from collections import deque
from typing import TYPE_CHECKING

from pyrocache.config import NodeConfig
from pyrocache.protocol.framing import Buffer, FrameDecoder
from pyrocache.protocol.handshake import ServerHandshake, State
from pyrocache.protocol.limits import MOST_SECONDS
from pyrocache.runtime.channel import Channel
from pyrocache.runtime.memory import reserve
from pyrocache.server.deferred import Deferred, Session
from pyrocache.server.poller import HANG_UP, READ, WRITE

if TYPE_CHECKING:
    from pyrocache.runtime.tls import TlsChannel

_SHARED_BYTES = 64 * 1024  # small unsent replies share a buffer of at most this size
MAX_UNREAD_BYTES = 2**20  # unread replies beyond this make further requests wait
_LENT_SECONDS = 0.25  # for the handshake on a descriptor that is lent, and for reading that it is refused
_OWN_PAGES_BYTES = 2**20  # a request of this length or more gets memory pages of its own
_BUFFERS_AT_ONCE = 16  # of one sendmsg


class Connection:
    """The state of one connection: received requests, unsent replies, and their times.

    Attributes:
        session: the part of the connection that calls may use.
        idle: established and trusted, with no call outstanding and no bytes buffered: the fast path may be used.
        outstanding: the number of its calls that are on a worker thread or deferred.
        busy: the connection is not read while there are any, so that replies keep the order of the requests; never for
            a caller that takes replies in any order.
        deferred: the outstanding calls that are deferred.
        events: the events that the poller watches for; 0: not registered.
        unread: bytes of replies that are not yet sent.
        paused: a long request is not read for now, until others are complete (see `BufferLimit`).
        throttled: too many bytes are unread, so further requests wait (back-pressure).
        accounted: bytes that the `BufferLimit` counts for this connection.
        active_at: time of the last activity (seconds of `runtime.clock`, like the other times).
        partial_since: time at which the incomplete request began.
        waited: its next request waited while the server stood still; of a caller that pipelines, all that it had sent.
            See `EventLoop`.
        peer: the host at the other end (`unproven.origin`); empty for a Unix socket.
        ending_at: None, or the time at which it will be closed. Input is discarded until then.
        tls: its channel, if that is a `TlsChannel`.
        securing: a thread has its channel, for a step of the TLS handshake.
        bursts: its caller sends several requests at once, which may be answered without the decoder.
        closed: it is closed; its channel is as well, unless a thread has it.
    """

    __slots__ = (
        *(
            "accounted",
            "active_at",
            "busy",
            "channel",
            "decoder",
            "deferred",
            "ending_at",
            "events",
        ),
        *("bursts", "closed", "handshake", "idle", "outgoing", "partial_since", "paused", "peer", "securing"),
        *("outstanding", "queued_at", "sent", "session", "throttled", "tls", "unread", "waited"),
    )

    def __init__(self, channel: Channel, handshake: ServerHandshake, now: float, peer: str = "") -> None:
        self.channel = channel
        self.peer = peer
        self.handshake = handshake
        self.decoder = FrameDecoder(handshake.admit, _room, handshake.admit_head)
        self.session = Session()
        self.idle = False
        self.busy = False
        self.deferred: set[Deferred] = set()
        self.outstanding = 0
        self.waited = False
        self.paused = False
        self.throttled = False
        self.events = 0
        self.outgoing: deque[Buffer] = deque()  # small replies share a bytearray: one system call sends them
        self.queued_at: deque[float] = deque()  # when each of them was begun
        self.sent = 0  # bytes of the first of them that are sent
        self.unread = 0
        self.accounted = 0
        self.active_at = self.partial_since = now
        self.ending_at: float | None = None
        self.tls: TlsChannel | None = None
        self.securing = self.closed = self.bursts = False

    @property
    def held(self) -> int:
        """Return the number of bytes buffered for this connection."""
        return self.decoder.buffered + self.unread

    def may_ask(self) -> bool:
        """Return whether the next request may be answered: in its turn, and the peer must read the replies."""
        return not self.busy and self.unread < MAX_UNREAD_BYTES

    def is_drained(self) -> bool:
        """Return whether there is nothing more to be read of what the peer has sent so far."""
        if not self.decoder.between_frames or (self.tls is not None and self.tls.rest):
            return False
        poll = select.poll()
        poll.register(self.channel, READ)
        return not poll.poll(0)

    def queue(self, reply: bytes | list[Buffer], now: float) -> None:
        """Buffer a reply until the peer reads it."""
        for data in (reply,) if isinstance(reply, bytes) else reply:
            self.unread += len(data)
            last = self.outgoing[-1] if self.outgoing else None
            if isinstance(last, bytearray) and len(last) + len(data) <= _SHARED_BYTES:
                last += data
            else:
                self.outgoing.append(bytearray(data) if len(data) < _SHARED_BYTES // 4 else data)
                self.queued_at.append(now)

    def send(self) -> None:
        """Send as much as the socket accepts without blocking."""
        while self.outgoing:
            buffers = [memoryview(self.outgoing[i]) for i in range(min(len(self.outgoing), _BUFFERS_AT_ONCE))]
            buffers[0] = buffers[0][self.sent :]
            try:
                sent = self.channel.sendmsg(buffers)
            except BlockingIOError:
                return
            finally:
                for buffer in buffers:  # a bytearray with an exported view cannot be extended by `queue`
                    buffer.release()
            self.unread -= sent
            self.sent += sent
            while self.outgoing and self.sent >= len(self.outgoing[0]):
                self.sent -= len(self.outgoing.popleft())
                self.queued_at.popleft()

    def throttle(self) -> None:
        """Set `throttled`: whether further requests must wait until the peer has read."""
        self.throttled = self.unread >= MAX_UNREAD_BYTES

    def update(self) -> int:
        """Update `idle`, and return the events to watch for now."""
        ending = self.ending_at is not None
        self.idle = not (
            self.busy
            or self.outgoing
            or self.throttled
            or ending
            or self.handshake.state is not State.ESTABLISHED
            or not self.handshake.trusted
            or not self.decoder.between_frames
        )
        events = READ if self.may_ask() and not self.paused else 0
        if self.outgoing or (self.throttled and not ending):
            events |= WRITE  # also without output: waiting requests continue when it is writable
        if (self.deferred and not events & READ) or self.paused:
            events |= HANG_UP  # the connection is not read, so only this shows that the peer is gone
        return events

    def deadline(self, limits: NodeConfig) -> float:
        """Return the time at which to close the connection unless there is activity before."""
        if self.handshake.nodes_only and self.handshake.state is not State.ESTABLISHED:
            return self.active_at + _LENT_SECONDS
        if self.ending_at is not None:
            return self.ending_at
        if self.handshake.state is not State.ESTABLISHED:
            return self.active_at + limits.handshake_seconds  # no activity counts before it is done
        if self.queued_at:
            return self.queued_at[0] + limits.request_seconds
        if self.busy or self.paused:  # the peer waits for this server
            return float("inf")
        if not self.decoder.between_frames:
            return self.partial_since + limits.request_seconds
        if self.outstanding:
            return float("inf")
        if self.session.holds:  # a holder may be silent until its lease or lock must be renewed
            return self.active_at + max(limits.idle_seconds, MOST_SECONDS)
        return self.active_at + limits.idle_seconds


def _room(frame_bytes: int) -> memoryview | None:
    """Return memory for a long request; None for a shorter one."""
    return reserve(frame_bytes) if frame_bytes >= _OWN_PAGES_BYTES else None
