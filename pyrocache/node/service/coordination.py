"""The methods of a node for leases and locks: who loads a missing value, and who holds a lock.

`Leases` and `Locks` know the rules. This module checks arguments and views, and binds what is granted to sessions: a
lease or a lock belongs to the connection over which it was granted, and is free again once that closes. A call that
must wait holds no thread: ``begin_lease`` and ``begin_acquire`` return a `Deferred`. `lease` and `acquire` block, for a
stock Pyro5 daemon, which has a thread for each connection. Thread-safe, except for `settle` and `forget`, which
are called under the guard's lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pyrocache.node.coordination.leases import IF_MISSING, Answer, Leases
from pyrocache.node.coordination.locks import Locks
from pyrocache.node.coordination.quota import QuotaExceeded, Tokens
from pyrocache.node.service import validation
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.protocol.refusals import OVERLOADED
from pyrocache.server.deferred import Deferred, Session

_MAX_HOLDERS = 2**20


class Coordination:
    """The leases and the locks of one node.

    Args:
        store: where the values are.
        guard: checks the requests; owns the node's lock.
        clock: monotonic seconds.
        wall_clock: seconds since the epoch, for the tokens.

    Attributes:
        leases, locks: what is granted. Guarded by the lock of ``guard``.
    """

    def __init__(
        self,
        store: Store,
        guard: RequestGuard,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        tokens = Tokens(wall_clock)
        self.leases = Leases(tokens, clock=clock)
        self.locks = Locks(tokens, clock=clock)
        self._store = store
        self._guard = guard
        self._lock = guard.lock
        self._clock = clock

    def lease(
        self, view: int, key: bytes, lease_seconds: float, wait_seconds: float, refresh: int = IF_MISSING
    ) -> Answer | None:
        """Return the value of ``key``, or a lease to load it, after waiting for another loader.

        The caller has already missed (`get`, `get_with_times`), which was counted.

        Args:
            lease_seconds: after which another caller may load the value.
            wait_seconds: how long to wait at most.
            refresh: when the caller wants to load it: 0 if there is no value; 1 even if there is, unless another caller
                is loading it; 2 even then, and that one's value will not be stored.

        Returns:
            ``["value", frame, seconds left or None, seconds that loading took or None]``, ``["stale", frame]`` while
            another caller refreshes it, ``["load", token, frame or None]`` for the loader, None: ask again, or give up.
        """
        begun = self.begin_lease(Session(), view, key, lease_seconds, wait_seconds, refresh)
        answer: Answer | None = self._wait_for(begun)
        return answer

    def begin_lease(
        self,
        session: Session,
        view: int,
        key: bytes,
        lease_seconds: float,
        wait_seconds: float,
        refresh: int = IF_MISSING,
    ) -> Answer | Deferred | None:
        """Call `lease` without blocking. The lease ends with ``session``."""
        validation.check_key(key)
        lease_seconds, wait_seconds = (
            validation.check_span(lease_seconds, above=0.0),
            validation.check_span(wait_seconds),
        )
        validation.check_refresh(refresh)
        session.on_close(_Free(self, session))  # not under the lock, which it takes
        with self._lock:
            self._guard.check(view, (key,))
            if session.closed:
                return None
            try:
                return self.leases.request(
                    key,
                    session,
                    self._store.lookup(key, count=False),
                    lease_seconds=lease_seconds,
                    wait_seconds=wait_seconds,
                    refresh=refresh,
                )
            except QuotaExceeded as error:
                raise validation.refusal(OVERLOADED, str(error)) from None

    def abandon(self, view: int, key: bytes, token: int) -> bool:
        """Give a lease up: the next waiter becomes the loader. Return False if it was no longer held."""
        validation.check_key(key)
        validation.check_token(token)
        with self._lock:
            self._guard.check(view, (key,))
            return self.leases.abandon(key, token)

    def acquire(
        self, view: int, name: bytes, limit: int, ttl_seconds: float, wait_seconds: float
    ) -> int | None:
        """Acquire ``name``, with at most ``limit`` - 1 other holders, until `release` or for ``ttl_seconds``.

        Returns:
            The holder's token, larger than all before it; None: ask again, or give up.
        """
        begun = self.begin_acquire(Session(), view, name, limit, ttl_seconds, wait_seconds)
        token: int | None = self._wait_for(begun)
        return token

    def begin_acquire(
        self, session: Session, view: int, name: bytes, limit: int, ttl_seconds: float, wait_seconds: float
    ) -> int | Deferred | None:
        """Call `acquire` without blocking. The lock is released when ``session`` closes."""
        validation.check_key(name)
        validation.check_limit(limit, _MAX_HOLDERS)
        ttl_seconds, wait_seconds = (
            validation.check_span(ttl_seconds, above=0.0),
            validation.check_span(wait_seconds),
        )
        session.on_close(_Free(self, session))  # not under the lock, which it takes
        with self._lock:
            self._guard.check(view, (name,))
            if session.closed:
                return None
            try:
                return self.locks.acquire(
                    name, session, limit=limit, ttl_seconds=ttl_seconds, wait_seconds=wait_seconds
                )
            except QuotaExceeded as error:
                raise validation.refusal(OVERLOADED, str(error)) from None

    def renew(self, view: int, name: bytes, token: int, ttl_seconds: float) -> bool:
        """Hold the lock for ``ttl_seconds`` from now. Return False if it is no longer held with this token."""
        validation.check_key(name)
        validation.check_token(token)
        ttl_seconds = validation.check_span(ttl_seconds, above=0.0)
        with self._lock:
            self._guard.check(view, (name,))
            return self.locks.renew(name, token, ttl_seconds)

    def release(self, view: int, name: bytes, token: int) -> bool:
        """Release the lock. Return False if it was no longer held with this token."""
        validation.check_key(name)
        validation.check_token(token)
        with self._lock:
            self._guard.check(view, (name,))
            return self.locks.release(name, token)

    # For the node ----------------------------------------------------------------------------------------

    def settle(self, keys: Iterable[bytes]) -> None:
        """Settle the leases on ``keys``, which were written or deleted: the waiters get the value or the lease."""
        for key in keys:
            if key in self.leases.by_key:
                found = self._store.lookup(key, count=False)
                if found.value is None or found.stale:
                    self.leases.void(key)
                else:
                    self.leases.settle(key, found)

    def forget(self, belongs_elsewhere: Callable[[bytes], bool]) -> None:
        """Drop what belongs to other nodes from now on, and refuse its waiters."""
        error = self._guard.stale_view()
        self.leases.forget(belongs_elsewhere, error)
        self.locks.forget(belongs_elsewhere, error)

    def free(self, session: Session) -> None:
        """Free the leases and locks of a connection that has closed. Takes the lock."""
        with self._lock:
            self.leases.free(session)
            self.locks.free(session)

    def _wait_for(self, result: Any) -> Any:
        """Block until a deferred result is there."""
        return result.wait(self._clock) if isinstance(result, Deferred) else result


@dataclass(frozen=True, slots=True)
class _Free:
    """Frees what a session holds when called. Two for one session are equal, so that it is kept once."""

    coordination: Coordination
    session: Session

    def __call__(self) -> None:
        self.coordination.free(self.session)
