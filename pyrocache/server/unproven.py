"""`Unproven`: the connections of one server whose peer has not proved the secret: how many there may be, and counts.

Each address may have only a number of them. One more closes the oldest of that address: a handshake takes milliseconds,
so a peer that cannot prove the secret loses its own connections, and does not keep others out.

Refusals are logged once per address and minute.

Thread safety: not thread-safe; used by the event loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pyrocache.protocol.handshake import legible
from pyrocache.runtime.clock import now
from pyrocache.runtime.throttle import Throttle
from pyrocache.server.connection import Connection

log = logging.getLogger("pyrocache.node")

_LOG_SECONDS = 60.0


class Unproven:
    """The connections that have not proved the secret yet.

    Args:
        most: how many an address may have.
        clock: seconds.

    Attributes:
        counts: since the start of the process, the handshakes that were refused, were no handshakes, took too long, and
            were ended for a newer one.
    """

    def __init__(self, most: int, clock: Callable[[], float] = now) -> None:
        self._most = most
        self._logged = Throttle(_LOG_SECONDS, clock)
        self._of: dict[str, dict[Connection, None]] = {}  # by address, the oldest connection first
        self.counts = dict.fromkeys(("refused", "malformed", "late", "displaced"), 0)

    def add(self, connection: Connection) -> Connection | None:
        """Add a new connection. Return the one that is to be closed for it, if any."""
        own = self._of.setdefault(connection.peer, {})
        own[connection] = None
        if len(own) <= self._most:
            return None
        self.counts["displaced"] += 1
        return next(iter(own))

    def remove(self, connection: Connection) -> None:
        """Remove a connection which has proved the secret, or is closed."""
        own = self._of.get(connection.peer)
        if own is not None:
            own.pop(connection, None)
            if not own:
                del self._of[connection.peer]

    def note(self, connection: Connection, kind: str, why: str) -> None:
        """Count a handshake that has failed, and log why.

        Args:
            kind: a key of `counts`.
        """
        self.counts[kind] += 1
        peer = connection.peer or "a process of this user"
        if count := self._logged.admit((connection.peer, kind)):
            more = f" ({count} of them since the last such line)" if count > 1 else ""
            log.warning("A connection from %s was not admitted: %s%s", peer, legible(why), more)
