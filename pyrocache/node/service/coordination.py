"""`Coordination`: a node's methods for leases and locks.

`Leases` and `Locks` implement the rules. This module checks arguments and views, and binds leases and locks to
sessions: each belongs to the connection over which it was granted, or to a waiter of it, and is released once that
ends. A call that must wait does not occupy a thread: ``begin_lease`` and ``begin_acquire`` return a `Deferred`. `lease`
and `acquire` block, for a stock Pyro5 daemon, which has a thread for each connection.

Thread safety: thread-safe, except for `settle`, `forget` and `refuse_waiters`, which are called under the guard's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from pyrocache.node.coordination.claims import QuotaExceeded
from pyrocache.node.coordination.leases import IF_MISSING, Answer, Leases
from pyrocache.node.coordination.locks import Locks
from pyrocache.node.coordination.tokens import Tokens
from pyrocache.node.service import validation
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.protocol.limits import MAX_WAITERS, MOST_SECONDS
from pyrocache.protocol.refusals import OVERLOADED
from pyrocache.runtime.clock import now
from pyrocache.server.deferred import Deferred, Session

_Result = TypeVar("_Result")


class Coordination:
    """The leases and the locks of one node.

    Args:
        store: the values.
        guard: checks the requests, and holds the node's lock.
        clock: seconds (`runtime.clock`).

    Attributes:
        tokens, leases, locks: the grants. Guarded by ``lock``.
        lock: the lock of ``guard``.
    """

    def __init__(self, store: Store, guard: RequestGuard, clock: Callable[[], float] = now) -> None:
        self.tokens = Tokens()
        self.leases = Leases(self.tokens, clock)
        self.locks = Locks(self.tokens, clock)
        self.lock = guard.lock
        self._store = store
        self._guard = guard
        self._clock = clock

    def lease(
        self,
        view: int,
        key: bytes,
        lease_seconds: float,
        wait_seconds: float,
        refresh: int = IF_MISSING,
        waiter: int = 0,
    ) -> Answer | None:
        """Return the value of ``key``, or a lease to load it, after waiting for another loader.

        Does not count a miss: the caller has missed before, with `get` or `get_with_times`.

        Args:
            lease_seconds: the time after which another caller may load the value.
            wait_seconds: the longest time to wait.
            refresh: 0: load the value if there is none. 1: load it even if there is one, unless another caller is
                loading it. 2: load it in any case; the value of another loader will not be stored. 3: load it as if
                there were none, because the caller cannot read it.
            waiter: the waiter of the connection that the lease is for; 0: the connection itself.

        Returns:
            ``["value", frame, seconds left or None, seconds that loading took or None]``, ``["stale", frame]`` while
            another caller refreshes it, ``["load", token, frame or None]`` for the loader, or None: call again or give
            up.
        """
        return self._wait_for(
            self.begin_lease(Session(), view, key, lease_seconds, wait_seconds, refresh, waiter)
        )

    def begin_lease(
        self,
        session: Session,
        view: int,
        key: bytes,
        lease_seconds: float,
        wait_seconds: float,
        refresh: int = IF_MISSING,
        waiter: int = 0,
    ) -> Answer | Deferred | None:
        """Call `lease` without blocking. The lease ends with ``session``, or with a waiter of it."""
        validation.check(key=key, span=lease_seconds, duration=wait_seconds, refresh=refresh, waiter=waiter)

        def request(session: Session) -> Answer | Deferred | None:
            found = self._store.lookup(key, count=False)
            # Bounded, as the server keeps an idle connection with a grant open for MOST_SECONDS only.
            lease, wait = min(lease_seconds, MOST_SECONDS), min(wait_seconds, MOST_SECONDS)
            return self.leases.request(key, session, found, lease, wait, refresh)

        return self._begin(session, waiter, view, key, request)

    def abandon(self, view: int, key: bytes, token: int) -> bool:
        """Give up a lease: the next waiter becomes the loader. Return False if it was no longer held."""
        validation.check(key=key, token=token)
        return self._guard.run(view, (key,), self.leases.abandon, key, token)

    def acquire(
        self,
        view: int,
        name: bytes,
        limit: int,
        ttl_seconds: float,
        wait_seconds: float,
        waiter: int = 0,
    ) -> int | None:
        """Acquire ``name``, with at most ``limit`` - 1 other holders, until `release` or for ``ttl_seconds``.

        Args:
            waiter: the waiter of the connection that the lock is for; 0: the connection itself.

        Returns:
            The fencing token, larger than all earlier ones of this node; None: call again or give up.
        """
        return self._wait_for(
            self.begin_acquire(Session(), view, name, limit, ttl_seconds, wait_seconds, waiter)
        )

    def begin_acquire(
        self,
        session: Session,
        view: int,
        name: bytes,
        limit: int,
        ttl_seconds: float,
        wait_seconds: float,
        waiter: int = 0,
    ) -> int | Deferred | None:
        """Call `acquire` without blocking. The lock is released when ``session``, or the waiter of it, ends."""
        validation.check(key=name, holders=limit, span=ttl_seconds, duration=wait_seconds, waiter=waiter)

        def acquire(session: Session) -> int | Deferred | None:
            ttl, wait = min(ttl_seconds, MOST_SECONDS), min(wait_seconds, MOST_SECONDS)
            return self.locks.acquire(name, session, limit, ttl, wait)

        return self._begin(session, waiter, view, name, acquire)

    def withdraw(self, waiter: int) -> bool:
        """End a waiter of the connection: what it holds passes on, and its calls that wait are answered None.

        Return False if there is none. On a stock Pyro5 daemon, there are none.
        """
        return self.begin_withdraw(Session(), waiter)

    def begin_withdraw(self, session: Session, waiter: int) -> bool:
        """Do `withdraw` for the connection of ``session``."""
        validation.check(waiter=waiter)
        return session.end_waiter(waiter)

    def renew(self, view: int, name: bytes, token: int, ttl_seconds: float) -> bool:
        """Hold the lock for ``ttl_seconds`` from now. Return False if it is no longer held with this token."""
        validation.check(key=name, token=token, span=ttl_seconds)
        return self._guard.run(view, (name,), self.locks.renew, name, token, min(ttl_seconds, MOST_SECONDS))

    def release(self, view: int, name: bytes, token: int) -> bool:
        """Release the lock. Return False if it was no longer held with this token."""
        validation.check(key=name, token=token)
        return self._guard.run(view, (name,), self.locks.release, name, token)

    def holders(self, view: int, name: bytes) -> int:
        """Return how many callers hold the lock, without those whose time to live is over."""
        validation.check(key=name)
        return self._guard.run(view, (name,), self.locks.holders, name)

    # For the node ----------------------------------------------------------------------------------------

    def settle(self, keys: Iterable[bytes]) -> None:
        """Settle the leases on ``keys``, which were set or deleted: the waiters get the value or the lease."""
        for key in keys:
            if key in self.leases.by_key:
                self.leases.settle(key, self._store.lookup(key, count=False))

    def forget(self, belongs_elsewhere: Callable[[bytes], bool]) -> None:
        """Drop the leases and locks of keys that belong to other nodes from now on, and refuse their waiters."""
        error = self._guard.stale_view()
        self.leases.forget(belongs_elsewhere, error)
        self.locks.forget(belongs_elsewhere, error)

    def refuse_waiters(self) -> None:
        """Refuse the calls that wait for leases and locks, because the node must not grant any from now on."""
        error = self._guard.not_serving()
        self.leases.refuse_waiters(error)
        self.locks.refuse_waiters(error)

    def free(self, session: Session) -> None:
        """Free the leases and locks of a session that has ended. Takes the lock."""
        with self.lock:
            self.leases.free(session)
            self.locks.free(session)

    def _begin(
        self, connection: Session, waiter: int, view: int, key: bytes, request: Callable[[Session], _Result]
    ) -> _Result | None:
        """Check a request for a grant that ends with a connection or a waiter, and answer it by ``request``."""
        session = connection.waiter(waiter) if waiter else connection
        if session is None:
            raise validation.refusal(OVERLOADED, f"A connection may have {MAX_WAITERS} waiters at a time.")
        session.on_close(self.free, session)  # not under the lock, which `free` takes
        try:
            with self.lock:
                self._guard.check(view, (key,))
                try:
                    # A grant to a closed session would have no end: `free` has run already.
                    return None if session.closed else request(session)
                except QuotaExceeded as error:
                    raise validation.refusal(OVERLOADED, str(error)) from None
        finally:
            if waiter and not session.holds:  # neither holds nor waits
                connection.end_waiter(waiter)

    def _wait_for(self, result: _Result | Deferred) -> _Result:
        """Block until a deferred result has its outcome."""
        return result.wait(self._clock) if isinstance(result, Deferred) else result
