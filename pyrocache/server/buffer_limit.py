"""Bounds the bytes that are kept for all connections together: requests not yet whole, replies not yet read.

When there are too many, whoever brings most of them is told `Overloaded`, and whoever leaves most of them unread is cut
off, which is seldom who came last. Belongs to the event loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from pyrocache.protocol.limits import LARGE_BYTES
from pyrocache.server.connection import Connection

log = logging.getLogger("pyrocache.node")


@dataclass
class BufferLimit:
    """The buffers of all connections.

    Attributes:
        max_bytes: what may be kept for all together.
        connections: all of them.
        refuse: tells a connection that its request with that sequence number is refused as `Overloaded`.
        close: closes a connection.
        used: bytes that are kept, as of the last `account` of each connection.
    """

    max_bytes: int
    connections: Collection[Connection]
    refuse: Callable[[Connection, int], None]
    close: Callable[[Connection], None]
    used: int = 0

    def account(self, connection: Connection) -> None:
        """Count what is kept for ``connection`` now: nothing once it is closed."""
        held = connection.held if connection in self.connections else 0
        self.used += held - connection.accounted
        connection.accounted = held

    def has_room(self, connection: Connection, size: int) -> bool:
        """Return whether a reply of ``size`` may wait until its peer reads. Others' unfinished requests make room."""
        if size < LARGE_BYTES:
            return True
        self.account(connection)
        while self.used + size > self.max_bytes:
            largest = self._largest()
            if largest is connection or largest.held < size or not self._refuse_request_of(largest):
                return False
        return True

    def enforce(self) -> None:
        """Make room until no more is kept than may be."""
        while self.used > self.max_bytes:
            largest = self._largest()
            log.warning("%d bytes were kept for one connection, too much with the others.", largest.held)
            if not self._refuse_request_of(largest):
                self.close(largest)

    def _largest(self) -> Connection:
        return max(self.connections, key=lambda connection: connection.held)

    def _refuse_request_of(self, connection: Connection) -> bool:
        """Throw an unfinished request away and say so, if it is most of what is kept for the connection."""
        header = connection.decoder.discard() if connection.unread < connection.held // 2 else None
        if header is None:
            return False
        self.refuse(connection, header.sequence)
        self.account(connection)
        return True
