"""Tokens, and the quota of each session: what a connection holds or waits for, bounded, to be freed when it closes.

Pure. Not thread-safe: `Leases` and `Locks` own a quota each, and their owner serialises the calls.
"""

from __future__ import annotations

from collections.abc import Callable

from pyrocache.server.deferred import Session

MAX_BYTES = 16 * 2**20
"""Most bytes of keys, with `KEY_OVERHEAD` for each, that may be held or waited for at a time."""

MAX_PER_SESSION = 64
"""Most keys that one connection may hold or wait for; our clients use a connection for each."""

KEY_OVERHEAD = 512


class QuotaExceeded(Exception):
    """There is no room for one more key."""


class Tokens:
    """Numbers that only grow, also over restarts of the process and from node to node, as far as clocks agree.

    A token is the wall-clock time in microseconds, or the last token plus one if that is larger, as in a hybrid logical
    clock (Kulkarni et al., "Logical Physical Clocks", OPODIS 2014).

    Args:
        wall_clock: seconds since the epoch.
    """

    __slots__ = ("_last", "_wall_clock")

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._last = 0

    def next(self) -> int:
        """Return a number larger than all before."""
        self._last = max(self._last + 1, int(self._wall_clock() * 1_000_000))
        return self._last


class SessionQuota:
    """The keys of each session. A key counts once for as long as any session holds it or waits for it.

    Args:
        max_bytes: the bound on all keys together.
        max_per_session: the bound on the number of keys of one session.
    """

    __slots__ = ("_keys", "_max_bytes", "_max_per_session", "bytes")

    def __init__(self, max_bytes: int = MAX_BYTES, max_per_session: int = MAX_PER_SESSION) -> None:
        self._max_bytes = max_bytes
        self._max_per_session = max_per_session
        self._keys: dict[Session, set[bytes]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        """Return the number of sessions that hold or wait for something."""
        return len(self._keys)

    def has_room(self, key: bytes) -> bool:
        """Return whether one more key fits."""
        return self.bytes + len(key) + KEY_OVERHEAD <= self._max_bytes

    def check(self, session: Session, key: bytes, *, new: bool) -> None:
        """Check that ``session`` may hold or wait for ``key``, which is ``new`` if no session does yet.

        Raises:
            QuotaExceeded: it may not.
        """
        keys = self._keys.get(session, ())
        if len(keys) >= self._max_per_session and key not in keys:
            raise QuotaExceeded(f"A connection may hold or wait for {self._max_per_session} keys at a time.")
        if new and not self.has_room(key):
            raise QuotaExceeded("Too many keys are held or waited for at the moment.")

    def add(self, session: Session, key: bytes) -> None:
        """Note that ``session`` holds ``key`` or waits for it."""
        keys = self._keys.get(session)
        if keys is None:
            keys = self._keys[session] = set()
            session.holds += 1
        keys.add(key)

    def discard(self, session: Session, key: bytes) -> None:
        """Note that ``session`` no longer holds ``key`` nor waits for it."""
        keys = self._keys.get(session)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._keys[session]
                session.holds -= 1

    def of(self, session: Session) -> list[bytes]:
        """Return the keys of ``session``."""
        return list(self._keys.get(session, ()))

    def open(self, key: bytes) -> None:
        """Count ``key``, which a session now holds and none did before."""
        self.bytes += len(key) + KEY_OVERHEAD

    def close(self, key: bytes) -> None:
        """Count ``key`` no longer: no session holds it or waits for it."""
        self.bytes -= len(key) + KEY_OVERHEAD
