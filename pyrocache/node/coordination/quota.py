"""What each connection holds or waits for, so that it can be freed when the connection closes. Bounded.

Pure. Not thread-safe: `Leases` and `Locks` own one each, and whoever owns those serialises the calls.
"""

from __future__ import annotations

from collections.abc import Callable

from pyrocache.server.deferred import Session

MAX_BYTES = 16 * 2**20
"""Of keys, and `KEY_OVERHEAD` for each, that may be held or waited for at a time."""

MAX_PER_PEER = 64
"""How many of them any one connection may hold or wait for; our clients keep a connection for each."""

KEY_OVERHEAD = 512


class Full(Exception):
    """There is no room for one more."""


class Tokens:
    """Numbers that only grow, also over restarts of the process and from node to node, as far as clocks agree.

    Microseconds of wall-clock time, or the number after the last one if that is larger, as in a hybrid logical
    clock (Kulkarni et al., "Logical Physical Clocks", OPODIS 2014).

    Args:
        wall_clock: seconds since the epoch.
    """

    __slots__ = ("_last", "_wall_clock")

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._last = 0

    def next(self) -> int:
        """A number larger than all before."""
        self._last = max(self._last + 1, int(self._wall_clock() * 1_000_000))
        return self._last


class Holdings:
    """The keys of each peer. A key has a place here for as long as any peer holds it or waits for it.

    Args:
        max_bytes, max_per_peer: the bounds.
    """

    __slots__ = ("_max_bytes", "_max_per_peer", "_of_session", "bytes")

    def __init__(self, max_bytes: int = MAX_BYTES, max_per_peer: int = MAX_PER_PEER) -> None:
        self._max_bytes = max_bytes
        self._max_per_peer = max_per_peer
        self._of_session: dict[Session, set[bytes]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        """Peers that hold something or wait."""
        return len(self._of_session)

    def has_room(self, key: bytes) -> bool:
        """Whether there is room for one more that is held."""
        return self.bytes + len(key) + KEY_OVERHEAD <= self._max_bytes

    def check(self, session: Session, key: bytes, *, new: bool) -> None:
        """Raise `Full` unless ``session`` may hold or wait for ``key``; ``new``: nobody does yet."""
        keys = self._of_session.get(session, ())
        if len(keys) >= self._max_per_peer and key not in keys:
            raise Full(f"A connection holds or waits for {self._max_per_peer} at a time.")
        if new and not self.has_room(key):
            raise Full("Too many are held or waited for at the moment.")

    def add(self, session: Session, key: bytes) -> None:
        """``session`` holds ``key`` or waits for it."""
        keys = self._of_session.get(session)
        if keys is None:
            keys = self._of_session[session] = set()
            session.holds += 1
        keys.add(key)

    def discard(self, session: Session, key: bytes) -> None:
        """It does no more."""
        keys = self._of_session.get(session)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._of_session[session]
                session.holds -= 1

    def of(self, session: Session) -> list[bytes]:
        """The keys of ``session``."""
        return list(self._of_session.get(session, ()))

    def opened(self, key: bytes) -> None:
        """Somebody holds ``key`` now, and nobody did."""
        self.bytes += len(key) + KEY_OVERHEAD

    def closed(self, key: bytes) -> None:
        """Nobody holds ``key`` or waits for it any more."""
        self.bytes -= len(key) + KEY_OVERHEAD
