"""Locks and semaphores: a bounded number of callers hold a name, the others wait in FIFO order.

What a lock promises:

- At most ``limit`` callers hold a name at one node. A lock is held until it is released, its connection closes, or it
  was not renewed within its time to live and another caller wants it.
- Each holder has a fencing token, larger than all earlier ones (Kleppmann, "How to do distributed locking", 2016; see
  `Tokens`). A resource that a lock protects can refuse a holder whose token is smaller than one that it has seen.
- Locks are in the memory of the node that owns the name, and are not replicated. If that node dies, or the name moves
  to another node, the lock is lost: another caller can acquire it at the new owner while the former holder still works.
  The former holder learns this when it renews or releases the lock. Until then, only the fencing token tells them
  apart.
- A node without a lease grants nothing, because another one may own the name by then. It refuses the callers that wait,
  so what is given up meanwhile passes to nobody. What is held is kept: the node owns the name still if it has a lease
  again under the same view.

The client's side is in `pyrocache.client.features.locks`. Responsible for the locks of one node. Pure: no I/O and no
threads; the clock is injected.

Thread safety: not thread-safe; `Coordination` calls it under the guard's lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pyrocache.node.coordination.claims import Claim, Claims, Waiter
from pyrocache.server.deferred import Deferred, Session


@dataclass(slots=True)
class _Holder:
    session: Session
    deadline: float


@dataclass(slots=True, eq=False)
class _Lock(Claim):
    by_token: dict[int, _Holder] = field(default_factory=dict)

    def holders(self) -> Iterable[Session]:
        return (holder.session for holder in self.by_token.values())


class Locks(Claims[_Lock]):
    """The locks of one node, by name. The arguments are those of `Claims`."""

    @property
    def held(self) -> int:
        """Return the number of holders now; a semaphore may have several. May be called without the node's lock."""
        return sum(len(lock.by_token) for lock in list(self.by_key.values()))

    def acquire(
        self, name: bytes, session: Session, limit: int, ttl_seconds: float, wait_seconds: float
    ) -> int | Deferred | None:
        """Acquire ``name`` together with at most ``limit`` - 1 other holders.

        Returns:
            The fencing token, or a `Deferred` of the token or of None (call again), or None: the lock is not free.

        Raises:
            QuotaExceeded: there are too many locks, or this session has too many.
        """
        lock = self.by_key.get(name)
        self._check_quota(session, name)
        if lock is None:
            lock = _Lock()
            self._open(name, lock, session)
        deferred = Deferred(session, self._clock() + wait_seconds)
        # Wait first, even if the lock may be free: earlier waiters come first.
        self._wait(name, lock, session, Waiter(deferred, ttl_seconds, limit))
        self._serve(name, lock)
        if not deferred.waiting:
            return int(deferred.outcome())
        if wait_seconds <= 0:
            del lock.waiters[session]
            self._strike(name, lock, session)
            return None
        # When the time of a holder is over, the caller calls again, and that holder loses the lock.
        deferred.deadline = min(deferred.deadline, *(holder.deadline for holder in lock.by_token.values()))
        return deferred

    def renew(self, name: bytes, token: int, ttl_seconds: float) -> bool:
        """Hold the lock for ``ttl_seconds`` from now. Return False if it is no longer held with this token.

        A lock whose time is over can still be renewed if no other caller has requested it since.
        """
        lock = self.by_key.get(name)
        holder = None if lock is None else lock.by_token.get(token)
        if holder is None:
            return False
        holder.deadline = self._clock() + ttl_seconds
        return True

    def release(self, name: bytes, token: int) -> bool:
        """Release the lock to the next waiter. Return False if it is no longer held with this token."""
        lock = self.by_key.get(name)
        if lock is None or token not in lock.by_token:
            return False
        self._release(name, lock, [token])
        self._serve(name, lock)
        return True

    def holders(self, name: bytes) -> int:
        """Return how many callers hold ``name``, without those that would lose it to the next caller."""
        lock, now = self.by_key.get(name), self._clock()
        return 0 if lock is None else sum(now < holder.deadline for holder in lock.by_token.values())

    def free(self, session: Session) -> None:
        """Release the locks of a session that has ended, and answer its calls that wait."""
        for name in list(self._keys.get(session, ())):
            lock = self.by_key[name]
            self._withdraw(lock, session)
            held = [token for token, holder in lock.by_token.items() if holder.session is session]
            self._release(name, lock, held)
            self._strike(name, lock, session)
            self._serve(name, lock)

    # Inside ----------------------------------------------------------------------------------------------

    def _serve(self, name: bytes, lock: _Lock) -> None:
        """Grant the lock to the waiters in FIFO order, as far as their limits allow."""
        for session, waiter in lock.parked():
            if len(lock.by_token) >= waiter.limit:  # requested: a holder whose time is over loses it
                now = self._clock()
                expired = [token for token, holder in lock.by_token.items() if now >= holder.deadline]
                self._release(name, lock, expired)
            if len(lock.by_token) >= waiter.limit:
                break
            del lock.waiters[session]
            token = self._tokens.next()
            if session.closed or not waiter.deferred.give(token):  # the token is skipped; they need only grow
                self._strike(name, lock, session)
                continue
            lock.by_token[token] = _Holder(session, self._clock() + waiter.hold_seconds)
        if not lock.by_token and not lock.parked():
            self._close(name)

    def _release(self, name: bytes, lock: _Lock, tokens: list[int]) -> None:
        for token in tokens:
            self._strike(name, lock, lock.by_token.pop(token).session)
