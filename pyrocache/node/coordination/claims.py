"""What leases and locks have in common: keys that sessions hold, and the sessions that wait for them in order.

Owns the table of claims, the order of the waiters, and the quota. Does not decide who holds a key. Pure: no I/O and no
threads. Not thread-safe: `CacheNode` calls it under its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from pyrocache.node.coordination.quota import SessionQuota
from pyrocache.server.deferred import Deferred, Session


class Waiter(NamedTuple):
    """A call that waits for a key.

    Attributes:
        deferred: its reply.
        hold_seconds: how long it holds the key once the key is granted to it.
        limit: how many may hold the key then, this one included.
    """

    deferred: Deferred
    hold_seconds: float
    limit: int = 1


class Claim:
    """One key that is held, and who waits for it.

    A waiter parks on a `Deferred` until a holder's time is over at the latest; it then receives None and must ask
    again. It keeps its place as long as it asks over the same connection. So no timer is needed beyond that of the
    `Deferred`.
    """

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        self.waiters: dict[Session, Waiter] = {}  # in the order of their arrival

    def holders(self) -> Iterable[Session]:
        """Return the sessions that hold the key."""
        raise NotImplementedError

    def parked(self) -> list[tuple[Session, Waiter]]:
        """Return the waiters whose call is still open. The others received None and may ask again."""
        return [item for item in self.waiters.items() if item[1].deferred.waiting]


_Claim = TypeVar("_Claim", bound=Claim)


class Claims(Generic[_Claim]):
    """The claims of one node.

    Args:
        quota: bounds what one session, and all of them, hold or wait for.

    Attributes:
        by_key: the claims, roughly in the order in which they were granted. For reading only.
    """

    def __init__(self, quota: SessionQuota | None = None) -> None:
        self.by_key: dict[bytes, _Claim] = {}
        self._quota = SessionQuota() if quota is None else quota

    @property
    def waiting(self) -> int:
        """The number of calls that wait now. May be read without the lock: it walks over copies."""
        claims = list(self.by_key.values())
        return sum(waiter.deferred.waiting for claim in claims for waiter in list(claim.waiters.values()))

    def forget(self, belongs_elsewhere: Callable[[bytes], bool], error: Exception) -> None:
        """Drop the keys that belong to other nodes from now on. Refuse their waiters with ``error``."""
        for key in [key for key in self.by_key if belongs_elsewhere(key)]:
            for waiter in self._close(key).waiters.values():
                waiter.deferred.refuse(error)

    def _open(self, key: bytes, claim: _Claim, session: Session) -> None:
        self.by_key[key] = claim
        self._quota.open(key)
        self._quota.add(session, key)

    def _wait(self, key: bytes, claim: _Claim, session: Session, waiter: Waiter) -> None:
        claim.waiters[session] = waiter  # a session that asks again keeps its place
        self._quota.add(session, key)

    def _strike(self, key: bytes, claim: _Claim, session: Session) -> None:
        """Take ``key`` off the quota of ``session``, unless it still holds it or waits for it."""
        if session not in claim.waiters and session not in claim.holders():
            self._quota.discard(session, key)

    def _close(self, key: bytes) -> _Claim:
        """Remove the claim and return it. Its waiters are the caller's to answer."""
        claim = self.by_key.pop(key)
        self._quota.close(key)
        for session in (*claim.waiters, *claim.holders()):
            self._quota.discard(session, key)
        return claim
