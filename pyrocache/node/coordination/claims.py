"""`Claims`: the common part of leases and locks: keys that sessions hold, and the sessions that wait for them.

Responsible for the table of claims, the FIFO order of the waiters, and the quotas: the keys that one session, one
client and all clients together hold or wait for are bounded, separately for leases and for locks. Does not decide which
session holds a key. Pure: no I/O and no threads; the clock is injected.

Thread safety: not thread-safe; `Coordination` calls it under the guard's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from pyrocache.node.coordination.tokens import Tokens
from pyrocache.server.deferred import Deferred, Session
from pyrocache.server.quota import within_quota

MAX_BYTES = 16 * 2**20
"""The most bytes of keys, with `KEY_OVERHEAD` for each, that may be held or waited for at a time."""

MAX_PER_SESSION = 64
"""The most keys that one connection, or one waiter of it, may hold or wait for. Our clients use one for each key."""

KEY_OVERHEAD = 512  # bytes that a claim takes in addition to its key, roughly


class QuotaExceeded(Exception):
    """One more key would exceed a quota."""


class Waiter(NamedTuple):
    """A call that waits for a key.

    Attributes:
        deferred: the promise of its reply.
        hold_seconds: the time that it holds the key once the key is granted to it.
        limit: the most holders of the key then, this one included.
    """

    deferred: Deferred
    hold_seconds: float
    limit: int = 1


@dataclass(slots=True, eq=False)
class Claim:
    """One key that is held, and the calls that wait for it.

    A waiter parks on a `Deferred` until the time of a holder is over at the latest. It then receives None and must call
    again. It keeps its place as long as it calls over the same connection, as the same waiter. So no timer is needed
    except that of the `Deferred`.

    Attributes:
        waiters: the waiting sessions in FIFO order.
    """

    waiters: dict[Session, Waiter] = field(default_factory=dict, init=False)

    def holders(self) -> Iterable[Session]:
        """Return the sessions that hold the key."""
        raise NotImplementedError

    def parked(self) -> list[tuple[Session, Waiter]]:
        """Return the waiters whose call is still open. The others have received None and may call again."""
        return [item for item in self.waiters.items() if item[1].deferred.waiting]


_Claim = TypeVar("_Claim", bound=Claim)


class Claims(Generic[_Claim]):
    """The claims of one node. A key counts once for as long as any session holds it or waits for it.

    Args:
        tokens: numbers the holders.
        clock: seconds (`runtime.clock`).
        max_bytes: the quota of all keys together, of which a client gets a share (`server.quota`).
        max_per_session: the quota of one session, a number of keys.

    Attributes:
        by_key: the claims, roughly in the order in which they were granted. For reading only.
    """

    def __init__(
        self,
        tokens: Tokens,
        clock: Callable[[], float],
        max_bytes: int = MAX_BYTES,
        max_per_session: int = MAX_PER_SESSION,
    ) -> None:
        self.by_key: dict[bytes, _Claim] = {}
        self._tokens = tokens
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_per_session = max_per_session
        self._bytes = 0
        self._keys: dict[Session, set[bytes]] = {}
        self._uses: dict[Hashable, int] = {}  # by `Session.owner`: bytes, a key for each session

    @property
    def waiting(self) -> int:
        """Return the number of calls that wait now. May be called without the lock: it walks over copies."""
        claims = list(self.by_key.values())
        return sum(waiter.deferred.waiting for claim in claims for waiter in list(claim.waiters.values()))

    def forget(self, belongs_elsewhere: Callable[[bytes], bool], error: Exception) -> None:
        """Drop the keys for which ``belongs_elsewhere`` is true. Refuse their waiters with ``error``."""
        for key in [key for key in self.by_key if belongs_elsewhere(key)]:
            for waiter in self._close(key).waiters.values():
                waiter.deferred.refuse(error)

    def refuse_waiters(self, error: Exception) -> None:
        """Answer all calls that wait with ``error``. They lose their place. The holders keep what they hold."""
        for key, claim in self.by_key.items():
            for session, waiter in claim.parked():
                del claim.waiters[session]
                self._strike(key, claim, session)
                waiter.deferred.refuse(error)

    def _has_room(self, session: Session, key: bytes) -> bool:
        """Return whether ``key`` is within the quotas of the session's client, and of all clients."""
        cost = len(key) + KEY_OVERHEAD
        total = self._bytes if key in self.by_key else self._bytes + cost
        if key in self._keys.get(session, ()):
            return total <= self._max_bytes
        own = self._uses.get(session.owner, 0) + cost
        return within_quota(own, total, self._max_bytes)

    def _check_quota(self, session: Session, key: bytes) -> None:
        """Check the quotas before ``session`` holds or waits for ``key``.

        Raises:
            QuotaExceeded: there are too many keys of this session, of its client, or of all.
        """
        keys = self._keys.get(session, ())
        if len(keys) >= self._max_per_session and key not in keys:
            raise QuotaExceeded(f"A connection may hold or wait for {self._max_per_session} keys at a time.")
        if not self._has_room(session, key):
            raise QuotaExceeded("Too many keys are held or waited for at the moment.")

    def _count(self, key: bytes, session: Session) -> None:
        """Count ``key``, which ``session`` holds or waits for."""
        keys = self._keys.setdefault(session, set())
        if not keys:  # the first key: the server now allows the connection to be idle for longer
            session.hold(1)
        if key not in keys:
            keys.add(key)
            owner = session.owner
            self._uses[owner] = self._uses.get(owner, 0) + len(key) + KEY_OVERHEAD

    def _open(self, key: bytes, claim: _Claim, session: Session) -> None:
        self.by_key[key] = claim
        self._bytes += len(key) + KEY_OVERHEAD
        self._count(key, session)

    def _wait(self, key: bytes, claim: _Claim, session: Session, waiter: Waiter) -> None:
        former = claim.waiters.get(session)
        claim.waiters[session] = waiter  # a dict keeps the place of a session that calls again
        if former is not None:
            former.deferred.give(None)  # if it still waits: only one call of a session waits for a key
        self._count(key, session)

    def _withdraw(self, claim: _Claim, session: Session) -> None:
        """Answer the call of a session that waits, if there is one: the session has ended."""
        if (waiter := claim.waiters.pop(session, None)) is not None:
            waiter.deferred.give(None)

    def _strike(self, key: bytes, claim: _Claim, session: Session) -> None:
        """Stop counting ``key`` for ``session``, unless the session still holds it or waits for it."""
        if session not in claim.waiters and session not in claim.holders():
            self._discount(key, session)

    def _discount(self, key: bytes, session: Session) -> None:
        keys = self._keys.get(session, set())
        if key in keys:
            keys.remove(key)
            owner = session.owner
            left = self._uses.pop(owner) - len(key) - KEY_OVERHEAD
            if left:
                self._uses[owner] = left
        if not keys and self._keys.pop(session, None) is not None:
            session.hold(-1)

    def _close(self, key: bytes) -> _Claim:
        """Remove the claim and return it. The caller must answer its waiters."""
        claim = self.by_key.pop(key)
        self._bytes -= len(key) + KEY_OVERHEAD
        for session in (*claim.waiters, *claim.holders()):
            self._discount(key, session)
        return claim
