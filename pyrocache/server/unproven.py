"""`Unproven`: the connections of one server whose peer has not proved the secret: how many there may be, and counts.

Each address may have only a number of them, and all addresses together have another limit. One more closes the oldest
of that address, or of the one with the most: a handshake takes milliseconds, so a peer that cannot prove the secret
loses its own connections, and does not keep others out. What a server serves to strangers is limited in the same way,
as they could stay connected without end: the oldest one is closed, whether it is idle or not.

What is closed is logged once per address and minute.

Thread safety: not thread-safe; used by the event loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import ip_address, ip_network

from pyrocache.protocol.handshake import legible
from pyrocache.runtime.clock import now
from pyrocache.runtime.throttle import Throttle
from pyrocache.server.connection import Connection

log = logging.getLogger("pyrocache.node")

_LOG_SECONDS = 60.0
_THIS_HOST = "this host"
_NETWORK_BITS = 64  # of an IPv6 address: whoever has one has all others of its network


class Unproven:
    """The connections that have not proved the secret: those in the handshake, and those of strangers that are served.

    Args:
        most: how many an address may have.
        most_of_all: how many there may be.
        clock: seconds.

    Attributes:
        counts: since the start of the process, the handshakes that were refused, were no handshakes, took too long, and
            were ended for a newer one.
    """

    def __init__(self, most: int, most_of_all: int, clock: Callable[[], float] = now) -> None:
        self._most = most
        self._most_of_all = most_of_all
        self._logged = Throttle(_LOG_SECONDS, clock)
        self._of: dict[str, dict[Connection, None]] = {}  # by address, the oldest connection first
        self._count = 0
        self.counts = dict.fromkeys(("refused", "malformed", "late", "displaced"), 0)

    def __len__(self) -> int:
        """Return how many there are."""
        return self._count

    def add(self, connection: Connection) -> Connection | None:
        """Add a new connection. Return the one that is to be closed for it, if any."""
        own = self._of.setdefault(connection.peer, {})
        own[connection] = None
        self._count += 1
        if len(own) <= self._most:
            if self._count <= self._most_of_all:
                return None
            own = max(self._of.values(), key=len)
        displaced = next(iter(own))
        self.note(displaced, "displaced", "newer ones from there took its place")
        return displaced

    def remove(self, connection: Connection) -> None:
        """Remove a connection which has proved the secret, or is closed."""
        own = self._of.get(connection.peer)
        if own is not None and connection in own:
            del own[connection]
            self._count -= 1
            if not own:
                del self._of[connection.peer]

    def note(self, connection: Connection, kind: str, why: str) -> None:
        """Count a handshake that has failed, and log why.

        Args:
            kind: a key of `counts`.
        """
        self.counts[kind] += 1
        peer = connection.peer or "a process of this user"
        if count := self._logged.admit(connection.peer):
            more = f" ({count} of them since the last such line)" if count > 1 else ""
            log.warning("A connection from %s was closed: %s%s", peer, legible(why), more)


def origin(address: str) -> str:
    """Return what counts as one address: all of this host's loopback addresses, and a network of IPv6."""
    ip = ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback:
        return _THIS_HOST
    return str(ip if ip.version == 4 else ip_network((int(ip), _NETWORK_BITS), strict=False))
