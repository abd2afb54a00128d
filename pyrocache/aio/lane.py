"""`Lane`: the connections to one node for one kind of calls, and the calls that wait for their turn on one.

Calls are collected until the end of the current turn of the event loop, and leave in one write. `get`s of one turn
travel as one `get_many`. A connection has at most `window` calls under way; the others wait here until there is room,
within their deadlines. A further connection is opened only if it is needed: when the others are full, or one is
occupied by a long value.

Thread safety: used by the thread of its event loop.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from pyrocache.aio.call import Call, Get, Gets, OpenConnection
from pyrocache.aio.connection import LONG_BYTES, PipelinedConnection
from pyrocache.cluster.routing import Member
from pyrocache.config import TransportChoice
from pyrocache.net.call_protocol import Caller
from pyrocache.net.channel import Resolved, is_resolved, resolve
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import BROKEN, PoolExhausted, client_closed, too_large
from pyrocache.protocol.commands import GET
from pyrocache.protocol.limits import LARGE_BYTES, MAX_BATCH
from pyrocache.runtime import clock

_SHORT_KEY_BYTES = 1024
"""Reads of longer keys travel alone, so that a `get_many` stays far below the longest request."""

_ALIKE_SECONDS = 0.1
"""Reads travel together if their deadlines differ by less."""

_REFUSED_SECONDS = 1.0
"""How long after a failure to open one, no second connection is tried."""


class Lane:
    """Connections of one kind to one node, and their calls.

    Args:
        loop: the running event loop.
        member: the node.
        transport: whether its Unix socket may be used.
        caller: describes the caller, with the capabilities that these connections need.
        most: the most connections.
        window: the most calls under way on one, at a node that can take several.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        member: Member,
        transport: TransportChoice,
        caller: Caller,
        most: int,
        window: int,
    ) -> None:
        self._loop = loop
        self._member = member
        self._transport = transport
        self._caller = caller
        self._most = most
        self._window = window
        self._connections: list[PipelinedConnection] = []
        self._resolving: asyncio.Future[Resolved] | None = None
        self._pending: deque[Call] = deque()
        self._gets: list[Get] = []
        self._gets_view = 0
        self._gets_deadline: Deadline | None = None
        self._scheduled = False
        self._alone: PipelinedConnection | None = None  # over which the last turn sent a single call
        self._spun = False  # that call was answered in this turn
        self._timer: asyncio.TimerHandle | None = None
        self._expires_at = self._first_deadline = math.inf  # of the timer; of the calls that wait, or earlier
        self._refused_until = -math.inf  # by `runtime.clock`: no further connection before, if there is one
        self._closed: Exception | None = None  # what calls fail with from now on

    def submit(self, call: Call) -> None:
        """Make a call: at the end of this turn of the loop, or when a connection has room."""
        alone = self._alone
        if alone is not None and self._is_free(alone, call):
            alone.send(call)
            alone.flush()
            if alone.spin():
                # One in each turn of the loop: `result_of` lets the other tasks run before the next.
                self._spun = True
                self._schedule()
        else:
            self._queue(call)

    def _is_free(self, connection: PipelinedConnection, call: Call) -> bool:
        """Return whether a call can be sent now, because nothing else is to be sent or under way."""
        return not (
            self._scheduled
            or connection.calls
            or connection.retired
            or call.largest > min(LARGE_BYTES, connection.max_value_bytes)
            or not connection.is_fresh(call.deadline.seen_at)
        )

    def _queue(self, call: Call) -> None:
        if self._closed is not None:  # while its coroutine pinged the node
            call.fail(self._closed)
            return
        self._pending.append(call)
        self._first_deadline = min(self._first_deadline, call.deadline.at)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._loop.call_soon(self._flush)  # first: it may raise, in a deep recursion
            self._scheduled = True

    def get(self, view: int, key: bytes, deadline: Deadline) -> asyncio.Future[Any]:
        """Read a value, together with the other reads of this turn. Return the future of its frame."""
        future = self._loop.create_future()
        alone = self._alone
        if len(key) > _SHORT_KEY_BYTES or (alone is not None and not (self._scheduled or alone.calls)):
            self.submit(Call(GET.name, (view, key), deadline, future))
            return future
        if self._gets and not self._goes_with(view, deadline):
            self._pack_gets()
        if not self._gets:
            self._gets_view, self._gets_deadline = view, deadline
        self._gets.append((key, future))
        self._schedule()
        return future

    def _goes_with(self, view: int, deadline: Deadline) -> bool:
        """Return whether a read may travel with those that are collected."""
        first = self._gets_deadline
        alike = first is not None and abs(deadline.at - first.at) < _ALIKE_SECONDS
        return alike and view == self._gets_view and len(self._gets) < MAX_BATCH

    async def connection(self, deadline: Deadline) -> PipelinedConnection:
        """Return an open connection that takes calls. Raises `CallFailed`."""
        future = self._loop.create_future()
        self._queue(OpenConnection(deadline, future))
        connection: PipelinedConnection = await future
        return connection

    def retire(self) -> None:
        """Close each connection when the calls under way on it have ended. Later calls open new ones."""
        for connection in list(self._connections):
            connection.retire()

    def close(self) -> None:
        """Close the connections. All calls fail with `ClientClosed`."""
        self._closed = error = client_closed()
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.close(error)
        self._pack_gets()
        self._fail_pending(error)

    def leave(self) -> None:
        """Open no further connection, because the node has moved. Calls under way may end; the others fail."""
        self._closed = ConnectionResetError("the node has moved")
        self.retire()
        self._pack_gets()
        self._fail_pending(self._closed)

    @property
    def open_connections(self) -> int:
        """Return the number of open connections. Any thread may ask."""
        return sum(connection.opened for connection in list(self._connections))

    @property
    def connected(self) -> bool:
        """Return whether there is any connection."""
        return bool(self._connections)

    def abandon(self) -> None:
        """Close the descriptors only, in a forked child or when the event loop has ended."""
        for connection in self._connections:
            connection.abandon()

    # Sending ---------------------------------------------------------------------------------------------

    def _pack_gets(self) -> None:
        gets, self._gets = self._gets, []
        deadline = self._gets_deadline
        if not gets or deadline is None:
            return
        self._first_deadline = min(self._first_deadline, deadline.at)
        if len(gets) == 1:
            ((key, future),) = gets
            self._pending.append(Call(GET.name, (self._gets_view, key), deadline, future))
        else:
            self._pending.append(Gets(self._gets_view, gets, deadline, partial(self._get_each, deadline)))

    def _get_each(self, deadline: Deadline, view: int, gets: Sequence[Get]) -> None:
        """Send reads one by one: their values are large."""
        for key, future in gets:
            if not future.done():
                self.submit(Call(GET.name, (view, key), deadline, future))

    def _flush(self) -> None:
        self._scheduled = False
        if self._gets:
            self._pack_gets()
        connection: PipelinedConnection | None = None
        used: dict[PipelinedConnection, None] = {}
        sent = 0
        while self._pending:
            call = self._pending[0]
            if not call.wanted:
                self._pending.popleft()
                continue
            connection = self._connection_for(call)
            if connection is None or not self._pending:  # they have all failed
                break
            self._pending.popleft()
            if type(call) is OpenConnection:
                call.finish(connection)
            elif call.largest > connection.max_value_bytes:
                call.fail(too_large(self._member, call.largest, connection.max_value_bytes))
            else:
                try:
                    connection.send(call)
                except Exception as error:  # no memory, for example
                    call.fail(error)
                    continue
                used[connection] = None
                sent += 1
        for connection in used:
            connection.flush()
        # One coroutine that makes one call after the other need not wait for the end of the turn.
        if not (self._spun and sent == 0):
            self._alone = connection if sent == 1 and not self._spun else None
        self._spun = False
        if self._pending:
            self._watch_deadlines()

    def _connection_for(self, call: Call) -> PipelinedConnection | None:
        """Return the connection to send a call over; None to wait. Open one if that is needed."""
        long = call.largest > LONG_BYTES
        best: PipelinedConnection | None = None
        opening = self._resolving is not None
        now = call.deadline.seen_at
        for connection in self._connections:
            if connection.retired or not connection.is_fresh(now):
                continue
            if not connection.opened:
                opening = True
            elif len(connection.calls) < (self._window if connection.pipelined else 1) and (
                best is None or _load(connection, long) < _load(best, long)
            ):
                best = connection
        crowded = (
            best is None or (best.long > 0 and not long) or (long and best.long == 0 and bool(best.calls))
        )
        may_open = best is None or clock.now() >= self._refused_until
        if crowded and not opening and may_open and self._usable() < self._most:
            opening = self._open(call)
        if best is not None and best.long > 0 and not long and opening:
            return None  # the other connection is there in no time, compared to a long value
        return best

    def _usable(self) -> int:
        """Return how many connections count towards the limit. Retires those whose deadlines are not exact any more."""
        now = clock.now()
        for connection in list(self._connections):
            if connection.opened and not connection.retired and not connection.is_fresh(now):
                connection.retire()
        return sum(not connection.retired for connection in self._connections)

    # Opening ---------------------------------------------------------------------------------------------

    def _open(self, call: Call) -> bool:
        """Begin to open a connection. Return whether it is being opened now."""
        member = self._member
        try:
            if is_resolved(member.host):
                return self._connect(resolve(member.host, member.port), call.deadline)
            future = self._loop.run_in_executor(None, resolve, member.host, member.port)
            self._resolving = future
            future.add_done_callback(partial(self._resolved, call.deadline))
        except (*BROKEN, RuntimeError) as error:  # the latter if no thread can be started
            self._opening_failed(error)
            return False
        return True

    def _resolved(self, deadline: Deadline, future: asyncio.Future[Resolved]) -> None:
        self._resolving = None
        if self._closed is not None or future.cancelled():
            return
        try:
            self._connect(future.result(), deadline)
        except BROKEN as error:
            self._opening_failed(error)

    def _connect(self, resolved: Resolved, deadline: Deadline) -> bool:
        connection = PipelinedConnection(
            self._loop, self._member, self._transport, self._caller, resolved, self._changed
        )
        if connection.closed:
            self._opening_failed(connection.failure)
            return False
        self._connections.append(connection)
        if connection.opened:
            self._changed(connection)
            return False
        connection.opens_until(deadline.at)
        return True

    def _opening_failed(self, error: BaseException) -> None:
        self._refused_until = clock.now() + _REFUSED_SECONDS
        if not any(connection.opened and not connection.retired for connection in self._connections):
            self._fail_pending(error)

    def _changed(self, connection: PipelinedConnection) -> None:
        """Go on after a connection was opened or closed, or has answered."""
        if connection.closed and connection in self._connections:
            self._connections.remove(connection)
            if not connection.opened:
                self._opening_failed(connection.failure)
        if (self._pending or self._gets) and self._closed is None:
            self._schedule()

    # Deadlines -------------------------------------------------------------------------------------------

    def _watch_deadlines(self) -> None:
        """Set the timer for the first deadline of the calls that wait; have connections open until the last one."""
        for connection in self._connections:
            if not connection.opened:
                connection.opens_until(max((call.deadline.at for call in self._pending), default=0.0))
        if self._timer is not None:
            if self._expires_at <= self._first_deadline:
                return
            self._timer.cancel()
        self._expires_at = self._first_deadline
        self._timer = self._loop.call_later(max(0.0, self._expires_at - clock.now()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = clock.now()
        exhausted = any(connection.opened for connection in self._connections)
        pending, self._pending = self._pending, deque()
        for call in pending:
            if call.deadline.at <= now:
                call.fail(PoolExhausted() if exhausted else TimeoutError())
            else:
                self._pending.append(call)
        self._first_deadline = min((call.deadline.at for call in self._pending), default=math.inf)
        if self._pending:
            self._watch_deadlines()

    def _fail_pending(self, error: BaseException) -> None:
        pending, self._pending = self._pending, deque()
        for call in pending:
            call.fail(error)


def _load(connection: PipelinedConnection, long: bool) -> tuple[int, int]:
    """Return what a further call would wait for: long values share a connection, the other calls avoid it."""
    return (-connection.long if long else connection.long), len(connection.calls)
