"""Back-pressure: the limit on the bytes buffered for all connections (incomplete requests and unread replies).

From half of the limit on, long requests take turns: one that would not fit with those that are being received is
paused, which means that its connection is not read until others are complete. Otherwise clients that send large values
at the same time would push each other out of the buffers again and again. A request that others wait for must arrive at
4 MiB/s, or it is refused.

Beyond the limit, the client with the most buffered bytes loses the incomplete request of its connection with the most,
which is answered `Overloaded`. If most of its bytes are unread replies, it is closed instead. So a client with little
buffered data is not affected, even if its bytes were the ones that exceeded the limit.

Thread safety: not thread-safe; used by the event loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field

from pyrocache.protocol.limits import LARGE_BYTES
from pyrocache.server.connection import Connection

_TURNS_PROGRESS_BYTES = 2**20  # of a request that others wait for, from one tick to the next
_WORTH_BYTES = 2**20  # less is not worth refusing a paused request

log = logging.getLogger("pyrocache.node")


@dataclass
class BufferLimit:
    """The limit on the buffers of all connections.

    Attributes:
        max_bytes: the most bytes that are buffered for all connections together.
        connections: the open connections.
        refuse: answers the request of a connection with that sequence number with `Overloaded`.
        close: closes a connection.
        resume: reads a connection again that was paused.
        used: bytes that were buffered at the last `account` of each connection.
    """

    max_bytes: int
    connections: Collection[Connection]
    refuse: Callable[[Connection, int], None]
    close: Callable[[Connection], None]
    resume: Callable[[Connection], None]
    used: int = 0
    # Connections that receive a long request: how many bytes were missing at the last tick.
    _receiving: dict[Connection, int] = field(default_factory=dict)
    _paused: dict[Connection, None] = field(default_factory=dict)  # those of them that are paused, in order

    def account(self, connection: Connection) -> None:
        """Update `used` by the bytes buffered for ``connection`` now: none once it is closed."""
        held = connection.held if connection in self.connections else 0
        self.used += held - connection.accounted
        connection.accounted = held
        if not connection.decoder.missing or connection not in self.connections:
            self._forget(connection)

    def take_turns(self, connection: Connection) -> None:
        """Pause a connection whose long request does not fit with those that are being received."""
        missing = connection.decoder.missing
        if not missing or connection not in self.connections:
            return
        self._receiving.setdefault(connection, missing)
        hopeless = connection.held + missing > self.max_bytes  # `enforce` will refuse it
        crowded = self.used > self.max_bytes // 2 and not self._fits(connection)
        if crowded and not hopeless and not connection.paused:
            if not self._paused:  # from now on, the others must progress; before, nobody waited for them
                for other in self._receiving:
                    self._receiving[other] = other.decoder.missing + _TURNS_PROGRESS_BYTES
            connection.paused = True
            self._paused[connection] = None

    def tick(self) -> None:
        """Refuse requests that others wait for and that do not arrive. Call this four times a second."""
        if self._paused:
            for connection in [c for c in self._receiving if not c.paused]:
                came = self._receiving[connection] - connection.decoder.missing
                if came < _TURNS_PROGRESS_BYTES:
                    self._refuse_request_of(connection)
        for connection in self._receiving:
            self._receiving[connection] = connection.decoder.missing

    def has_room(self, connection: Connection, size: int) -> bool:
        """Return whether a reply of ``size`` bytes may be buffered until its peer reads it.

        To make room, larger incomplete requests of other connections are discarded.
        """
        if size < LARGE_BYTES:  # not worth the search: `enforce` handles the sum of small replies
            return True
        self.account(connection)
        while self.used + size > self.max_bytes:
            largest = self._largest()
            if largest is connection or largest.held < size or not self._refuse_request_of(largest):
                return False
        return True

    def enforce(self) -> None:
        """Discard requests or close connections until the limit is met."""
        while self.used > self.max_bytes:
            # A paused one first: the others are closer to their end.
            paused = max(self._paused, key=lambda connection: connection.held, default=None)
            largest = paused if paused is not None and paused.held >= _WORTH_BYTES else self._largest()
            log.warning("%d bytes were kept for one connection, too much with the others.", largest.held)
            if not self._refuse_request_of(largest):
                self.close(largest)

    def _largest(self) -> Connection:
        held: dict[Hashable, int] = {}
        for connection in self.connections:
            owner = connection.session.owner
            held[owner] = held.get(owner, 0) + connection.held
        return max(self.connections, key=lambda each: (held[each.session.owner], each.held))

    def _refuse_request_of(self, connection: Connection) -> bool:
        """Refuse and discard the incomplete request of a connection if most of its buffered bytes are in it."""
        header = connection.decoder.discard() if connection.unread < connection.held // 2 else None
        if header is None:
            return False
        self.refuse(connection, header.sequence)
        self.account(connection)
        return True

    def _fits(self, connection: Connection) -> bool:
        """Return whether a long request may be received now: the first one always, others if all fit."""
        others = [c.decoder.missing for c in self._receiving if c is not connection and not c.paused]
        return not others or self.used + sum(others) + connection.decoder.missing <= self.max_bytes

    def _forget(self, connection: Connection) -> None:
        """Note that a connection is not receiving a long request any more, and continue with paused ones that fit."""
        if self._receiving.pop(connection, None) is None:
            return
        if connection.paused:  # refused: its rest must be read
            self._continue(connection)
        for waiting in list(self._paused):
            if not self._fits(waiting):
                return
            # It must have progressed by the next tick but one.
            self._receiving[waiting] = waiting.decoder.missing + _TURNS_PROGRESS_BYTES
            self._continue(waiting)

    def _continue(self, connection: Connection) -> None:
        del self._paused[connection]
        connection.paused = False
        if connection in self.connections:
            self.resume(connection)
