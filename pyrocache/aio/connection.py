"""`PipelinedConnection`: one connection to one node in one event loop, with many calls under way.

`net.connection.Connection` opens it; then this module takes its channel over. All of it runs in callbacks of the event
loop (`add_reader`, `add_writer`), without a task of its own. Requests that are made in one turn of the loop are sent
together; `Lane` says when. A reply resolves the future of its call. If nobody waits for that any more, because the
coroutine was cancelled, the reply is dropped; no other call can get it.

A call that is not answered before its deadline fails. Its reply may still come, so the connection is *retired*: it
takes no further calls, and is closed when the calls under way have ended.

Thread safety: used by the thread of its event loop.
"""

from __future__ import annotations

import asyncio
import math
import select
import weakref
from collections.abc import Callable
from typing import Any

from pyrocache.aio.call import Call
from pyrocache.cluster.routing import Member
from pyrocache.config import TransportChoice
from pyrocache.errors import ProtocolError
from pyrocache.net.call_protocol import Caller
from pyrocache.net.channel import Resolved
from pyrocache.net.connection import NOW, Connection, next_number
from pyrocache.net.failures import BROKEN
from pyrocache.net.pipeline import Pipeline, Replies
from pyrocache.protocol.framing import Buffer
from pyrocache.protocol.handshake import PIPELINED, UNORDERED
from pyrocache.protocol.limits import LARGE_BYTES
from pyrocache.protocol.request_id import REPEAT
from pyrocache.runtime import clock

_RECEIVE_BYTES = 256 * 1024
_PIECE_BYTES = 2**20  # of a long reply at once: other tasks run in between
_BUFFERS_AT_ONCE = 512  # the system limits the buffers of one sendmsg (IOV_MAX, 1024 on Linux)

LONG_BYTES = 2**20
"""Messages above this are long: while one is under way, other calls take another connection if they can."""


class PipelinedConnection:
    """A connection. Making it begins to open it.

    Args:
        loop: the running event loop.
        member: the node.
        transport: whether its Unix socket may be used.
        caller: describes the caller, with the capabilities that it asks for.
        resolved: the addresses of the node.
        on_change: called when it is open, closed, or can take more calls than before.

    Attributes:
        member: as given.
        calls: those under way, by sequence number.
        opened, closed: its state.
        retired: it takes no further calls.
        pipelined: whether the node remembers the outcomes of as many changes as may be under way.
        unordered: whether the node answers in any order, and knows waiters.
        max_value_bytes: length of the largest value frame that the node accepts, once it is open.
        failure: why it is closed.
        waiters: the numbers of the waiters of this connection, see `Waiter`. With any, it stays open if it is retired.
        long: the number of long requests under way, and of long replies that are being received.

    Raises:
        OSError, UnicodeError, HandshakeRefused: the node cannot be reached.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        member: Member,
        transport: TransportChoice,
        caller: Caller,
        resolved: Resolved,
        on_change: Callable[[PipelinedConnection], object],
    ) -> None:
        self.member = member
        self.calls: dict[int, Call] = {}
        self.opened = self.closed = self.retired = False
        self.pipelined = self.unordered = False
        self.max_value_bytes = 0
        self.failure: BaseException = ConnectionResetError("the connection was closed")
        self.long = 0
        self.waiters: set[int] = set()
        self._loop = loop
        self._on_change = on_change
        self._unsent: list[Buffer] = []
        self._queued = self._sent = 0  # bytes, since it was opened
        self._writing = False  # the loop watches for room to send
        self._receiving_long = False
        self._expires_at = math.inf  # of the timer
        self._timer: asyncio.TimerHandle | None = None
        self._connection = Connection(member, transport, caller, resolved)
        self._descriptor, self._events = -1, 0
        # Also if the event loop ends without closing it; `close` of a descriptor needs no loop.
        self._close_channel = weakref.finalize(self, self._connection.close)
        self._watch(self._connection.events)  # whether it is connected is known only once it is ready

    def opens_until(self, at: float) -> None:
        """Give up opening it at this time of `runtime.clock`, or at a later one that was given before."""
        if self._timer is None or at > self._expires_at:
            self._set_timer(at)

    def send(self, call: Call) -> None:
        """Add a request to those that `flush` sends."""
        if self.closed:  # after the coroutine was given it, and before it went on
            call.fail(self.failure)
            return
        connection = self._connection
        number = ends_at = 0
        if connection.protocol.identified:
            call.number = call.repeats or next_number()
            number = call.number | (REPEAT if call.repeats else 0)
            ends_at = connection.ends_at(call.deadline)
        elif call.repeats:
            call.fail(ProtocolError("another node, which knows nothing of this client, answers there"))
            return
        sequence, message = self._pipeline.send_call(call.method, call.arguments, number, ends_at)
        self.calls[sequence] = call
        if isinstance(message, bytes):
            self._unsent.append(message)
            self._queued += len(message)
        else:
            self._unsent += message
            size = sum(map(len, message))
            self._queued += size
            if size > LONG_BYTES:
                call.long = True
                self.long += 1
            if call.future is not None:
                call.future.add_done_callback(self._keep_unsent)
        call.ends_at_byte = self._queued
        if call.deadline.at < self._expires_at:
            self._set_timer(call.deadline.at)

    def _keep_unsent(self, future: asyncio.Future[Any]) -> None:
        """Copy what is still to be sent of a large value: its coroutine has ended, and may change the value."""
        if not future.cancelled() and future.exception() is None:
            return  # its reply came, so all of it was sent
        self._unsent[:] = [part if type(part) is bytes else bytes(part) for part in self._unsent]

    def flush(self) -> None:
        """Send as much as the channel accepts now; the rest when it accepts more."""
        if not self._writing and self._unsent:
            self._send_some()

    def spin(self) -> bool:
        """Wait for a reply for a moment, if that has paid lately. Return whether all calls have ended."""
        if not self._connection.spin():
            return False
        self._receive()
        return not self.calls

    def has_sent(self, call: Call) -> bool:
        """Return whether all of a request was sent; before that, the node does not execute it."""
        return 0 < call.ends_at_byte <= self._sent

    def is_fresh(self, now: float) -> bool:
        """Return whether deadlines over it are exact still; see `net.connection`."""
        return now < self._connection.fresh_until

    def retire(self) -> None:
        """Take no further calls. Close it now or when those under way have ended."""
        self.retired = True
        self._close_if_done()

    def close(self, failure: BaseException) -> None:
        """Close it. The calls under way fail."""
        if self.closed:
            return
        self.closed = self.retired = True
        self.failure = failure
        if self._timer is not None:
            self._timer.cancel()
        if not self._loop.is_closed():
            self._watch(0)
        self._close_channel()
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.fail(failure, sent=self.has_sent(call))
        self._unsent.clear()
        self._on_change(self)

    def abandon(self) -> None:
        """Close the descriptor only, in a forked child or when the event loop has ended."""
        self.closed = self.retired = True
        self._close_channel()

    # Opening ---------------------------------------------------------------------------------------------

    def _open_further(self) -> None:
        try:
            connection = self._connection
            if not connection.connected:
                self._watch(0)  # the next address has another socket, perhaps with the same descriptor
            connection.advance()
            if connection.opened:
                self._take_over()
            else:
                self._watch(connection.events)
        except BROKEN as error:
            self.close(error)

    def _take_over(self) -> None:
        connection = self._connection
        said = connection.protocol.peer.capabilities.split()
        self.pipelined, self.unordered = PIPELINED in said, UNORDERED in said
        self.max_value_bytes = connection.max_value_bytes
        self._channel = connection.channel
        self._pipeline = Pipeline(connection.protocol, self.calls)
        self.opened = True
        self._set_timer(math.inf)
        self._watch(select.POLLIN)
        self._on_change(self)
        if self.retired:
            self._close_if_done()

    # Receiving -------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            self._receive_some()
            rest = getattr(self._channel, "rest", b"")
            while rest and not self.closed:  # decrypted by TLS: no event announces it
                self._receive_some()
                rest = getattr(self._channel, "rest", b"")
        except BlockingIOError:
            pass
        except BROKEN as error:
            self.close(error)
        except Exception as error:
            # Nobody else would see it: without this, the calls would end at their deadlines only.
            self.close(ProtocolError(f"its replies cannot be read ({type(error).__name__})"))

    def _receive_some(self) -> None:
        space = self._pipeline.space()
        if space is None:
            replies = self._pipeline.receive_data(self._channel.recv(_RECEIVE_BYTES, NOW))
        else:
            count = self._channel.recv_into(space, min(len(space), _PIECE_BYTES), NOW)
            replies = self._pipeline.received(count)
        receiving_long = (space := self._pipeline.space()) is not None and len(space) > LONG_BYTES
        if receiving_long is not self._receiving_long:
            self.long += 1 if receiving_long else -1
            self._receiving_long = receiving_long
        if replies:
            self._resolve(replies)

    def _resolve(self, replies: Replies) -> None:
        calls = self.calls
        for sequence, outcome in replies:
            call = calls.pop(sequence, None)
            if call is None:
                raise ProtocolError("A reply came to no request.")
            if call.long:
                self.long -= 1
            call.finish(outcome)
        if self.retired:
            self._close_if_done()
        self._on_change(self)

    # Sending ---------------------------------------------------------------------------------------------

    def _send_some(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                _join_small(unsent)
                count = self._channel.sendmsg(unsent[:_BUFFERS_AT_ONCE], (), NOW)
                self._sent += count
                while unsent and count >= len(unsent[0]):
                    count -= len(unsent.pop(0))
                if count:
                    unsent[0] = memoryview(unsent[0])[count:]
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(error)
            return
        if bool(unsent) is not self._writing:
            self._writing = bool(unsent)
            self._watch(select.POLLIN | (select.POLLOUT if unsent else 0))

    # The loop --------------------------------------------------------------------------------------------

    def _watch(self, events: int) -> None:
        """Have the loop call back for these events from now on."""
        descriptor, loop = self._connection.fileno() if events else -1, self._loop
        if descriptor != self._descriptor:  # each address of the node has a socket of its own
            if self._descriptor >= 0:
                loop.remove_reader(self._descriptor)
                loop.remove_writer(self._descriptor)
            self._descriptor, self._events = descriptor, 0
        if self._descriptor < 0:
            return
        receive = self._receive if self.opened else self._open_further
        send = self._send_some if self.opened else self._open_further
        if events & select.POLLIN:
            loop.add_reader(descriptor, receive)
        elif self._events & select.POLLIN:
            loop.remove_reader(descriptor)
        if events & select.POLLOUT:
            loop.add_writer(descriptor, send)
        elif self._events & select.POLLOUT:
            loop.remove_writer(descriptor)
        self._events = events

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._expires_at = at
        if at < math.inf:
            self._timer = self._loop.call_later(max(0.0, at - clock.now()), self._expire)

    def _expire(self) -> None:
        now = clock.now()
        self._timer, self._expires_at = None, math.inf
        if not self.opened:
            self.close(TimeoutError())
            return
        following = math.inf
        late = False
        for call in self.calls.values():
            if call.expired:
                continue
            if call.deadline.at <= now:
                call.expired = late = True
                call.fail(TimeoutError(), sent=self.has_sent(call))
            else:
                following = min(following, call.deadline.at)
        if following < math.inf:
            self._set_timer(following)
        if late:
            self.retire()
            self._on_change(self)

    def _close_if_done(self) -> None:
        if self.closed or not self.opened or self.waiters:
            return
        if all(call.expired for call in self.calls.values()):
            self.close(ConnectionResetError("the connection was given up"))


def _join_small(buffers: list[Buffer]) -> None:
    """Join buffers if they are several and small: one copy costs less than a long vector."""
    if len(buffers) > 1 and sum(map(len, buffers)) <= LARGE_BYTES:
        buffers[:] = [b"".join(buffers)]
