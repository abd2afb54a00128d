"""Locks and semaphores: so many callers at once hold a name, the others wait in line.

A holder has a token, a number that only grows (Kleppmann, "How to do distributed locking", 2016): whatever a lock
protects can refuse a holder whose token is smaller than one that it has seen. A lock is held until it is released, its
connection closes, or it was not renewed for its time to live and somebody else wants it.

A waiter parks on a `Deferred` until the first holder expires at the latest; it then receives None and
asks again. It keeps its place in the queue as long as it asks over the same connection.

Pure, but for the locks within a `Deferred`: no I/O, no threads, the clock injected. Not thread-safe: `CacheNode` calls
it under its lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from Pyro5.errors import PyroError

from pyrocache.node.coordination.quota import Holdings, Tokens
from pyrocache.server.deferred import Deferred, Session


class _Holder:
    __slots__ = ("deadline", "session")

    def __init__(self, session: Session, deadline: float) -> None:
        self.session = session
        self.deadline = deadline


class _Waiter(NamedTuple):
    deferred: Deferred
    limit: int
    ttl_seconds: float


class _Lock:
    __slots__ = ("holders", "waiters")

    def __init__(self) -> None:
        self.holders: dict[int, _Holder] = {}  # by token
        self.waiters: dict[Session, _Waiter] = {}  # in the order in which they came


class Locks:
    """The locks of one node.

    Args:
        tokens: whence the holders' numbers come.
        clock: monotonic seconds.
        holdings: what bounds it all.

    Attributes:
        by_name: what is held. To be looked at from outside, not changed.
        granted, waited, expired: how often so far somebody was given a lock, had to wait, or lost one for not
            having renewed it.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        clock: Callable[[], float] = time.monotonic,
        holdings: Holdings | None = None,
    ) -> None:
        self.by_name: dict[bytes, _Lock] = {}
        self.granted = 0
        self.waited = 0
        self.expired = 0
        self._tokens = tokens
        self._clock = clock
        self._holdings = Holdings() if holdings is None else holdings

    @property
    def held(self) -> int:
        """How many are held now, each holder of a semaphore counted."""
        return sum(len(lock.holders) for lock in self.by_name.values())

    @property
    def waiting(self) -> int:
        """How many wait for one now."""
        return sum(
            waiter.deferred.waiting for lock in self.by_name.values() for waiter in lock.waiters.values()
        )

    def acquire(
        self, name: bytes, session: Session, *, limit: int, ttl_seconds: float, wait_seconds: float
    ) -> int | Deferred | None:
        """Hold ``name`` together with at most ``limit`` - 1 others.

        Returns:
            The holder's token; a `Deferred` of it, or of None when the caller is to ask again; None: it is not free.

        Raises:
            Full: there are too many locks, or this peer has too many.
        """
        lock = self.by_name.get(name)
        self._holdings.check(session, name, new=lock is None)
        if lock is None:
            lock = self.by_name[name] = _Lock()
            self._holdings.opened(name)
        deferred = Deferred(session, self._clock() + wait_seconds)
        lock.waiters[session] = _Waiter(deferred, limit, ttl_seconds)  # one that asks again keeps its place
        self._holdings.add(session, name)
        self._serve(name, lock)
        if not deferred.waiting:
            token: int = deferred.outcome()
            return token
        if wait_seconds <= 0:
            del lock.waiters[session]
            self._strike(name, lock, session)
            return None
        deferred.deadline = min(deferred.deadline, *(holder.deadline for holder in lock.holders.values()))
        self.waited += 1
        return deferred

    def renew(self, name: bytes, token: int, ttl_seconds: float) -> bool:
        """Hold it for so long from now; False if it is not held with this token any more.

        One whose time was over is held on to as well, as long as nobody wanted it since.
        """
        holder = self._holder(name, token)
        if holder is None:
            return False
        holder.deadline = self._clock() + ttl_seconds
        return True

    def release(self, name: bytes, token: int) -> bool:
        """Hold it no more, and give it to the next; False if it was not held with this token any more."""
        if self._holder(name, token) is None:
            return False
        lock = self.by_name[name]
        self._release(name, lock, token)
        self._serve(name, lock)
        return True

    def free(self, session: Session) -> None:
        """A connection is closed: release what it holds, and it waits for nothing more."""
        for name in self._holdings.of(session):
            lock = self.by_name.get(name)
            if lock is None:
                continue
            lock.waiters.pop(session, None)
            for token in [token for token, holder in lock.holders.items() if holder.session is session]:
                self._release(name, lock, token)
            self._strike(name, lock, session)
            self._serve(name, lock)

    def forget(self, belongs_elsewhere: Callable[[bytes], bool], error: PyroError) -> None:
        """Let go of names that other nodes look after from now on; who waits is refused with ``error``."""
        for name in [name for name in self.by_name if belongs_elsewhere(name)]:
            lock = self.by_name.pop(name)
            self._holdings.closed(name)
            for session in [*lock.waiters, *(holder.session for holder in lock.holders.values())]:
                self._holdings.discard(session, name)
            for waiter in lock.waiters.values():
                waiter.deferred.refuse(error)

    # Inside ----------------------------------------------------------------------------------------------

    def _holder(self, name: bytes, token: int) -> _Holder | None:
        lock = self.by_name.get(name)
        return None if lock is None else lock.holders.get(token)

    def _serve(self, name: bytes, lock: _Lock) -> None:
        """Give the lock to those who wait, in their order, for as many as may hold it."""
        for session, waiter in list(lock.waiters.items()):
            if not waiter.deferred.waiting:
                continue  # it is about to ask again
            if len(lock.holders) >= waiter.limit:
                self._expire(name, lock)
            if len(lock.holders) >= waiter.limit:
                break
            del lock.waiters[session]
            token = self._tokens.next()
            if session.closed or not waiter.deferred.give(token):
                self._strike(name, lock, session)
                continue
            lock.holders[token] = _Holder(session, self._clock() + waiter.ttl_seconds)
            self.granted += 1
        self._close_if_free(name, lock)

    def _expire(self, name: bytes, lock: _Lock) -> None:
        """Release it for those whose time is over, now that somebody wants it."""
        now = self._clock()
        for token in [token for token, holder in lock.holders.items() if now >= holder.deadline]:
            self._release(name, lock, token)
            self.expired += 1

    def _release(self, name: bytes, lock: _Lock, token: int) -> None:
        session = lock.holders.pop(token).session
        self._strike(name, lock, session)

    def _strike(self, name: bytes, lock: _Lock, session: Session) -> None:
        """Note that ``session`` does not have to do with ``name`` any more, if that is so."""
        if session not in lock.waiters and not any(
            holder.session is session for holder in lock.holders.values()
        ):
            self._holdings.discard(session, name)

    def _close_if_free(self, name: bytes, lock: _Lock) -> None:
        if not lock.holders and not any(waiter.deferred.waiting for waiter in lock.waiters.values()):
            for session in lock.waiters:
                self._holdings.discard(session, name)
            del self.by_name[name]
            self._holdings.closed(name)
