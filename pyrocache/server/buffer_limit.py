"""Back-pressure: the limit on the bytes buffered for all connections (incomplete requests and unread replies).

Beyond the limit, the connection with the most buffered bytes loses its incomplete request, which is answered
`Overloaded`. If most of its bytes are unread replies, it is closed instead. So a connection with little buffered data
is not affected, even if its bytes were the ones that exceeded the limit.

Thread safety: not thread-safe; used by the event loop's thread.
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
    """The limit on the buffers of all connections.

    Attributes:
        max_bytes: the most bytes that are buffered for all connections together.
        connections: the open connections.
        refuse: answers the request of a connection with that sequence number with `Overloaded`.
        close: closes a connection.
        used: bytes that were buffered at the last `account` of each connection.
    """

    max_bytes: int
    connections: Collection[Connection]
    refuse: Callable[[Connection, int], None]
    close: Callable[[Connection], None]
    used: int = 0

    def account(self, connection: Connection) -> None:
        """Update `used` by the bytes buffered for ``connection`` now: none once it is closed."""
        held = connection.held if connection in self.connections else 0
        self.used += held - connection.accounted
        connection.accounted = held

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
            largest = self._largest()
            log.warning("%d bytes were kept for one connection, too much with the others.", largest.held)
            if not self._refuse_request_of(largest):
                self.close(largest)

    def _largest(self) -> Connection:
        return max(self.connections, key=lambda connection: connection.held)

    def _refuse_request_of(self, connection: Connection) -> bool:
        """Refuse and discard the incomplete request of a connection if most of its buffered bytes are in it."""
        header = connection.decoder.discard() if connection.unread < connection.held // 2 else None
        if header is None:
            return False
        self.refuse(connection, header.sequence)
        self.account(connection)
        return True
