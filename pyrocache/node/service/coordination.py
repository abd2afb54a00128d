"""Taking turns: who loads a missing value, and who holds a lock. The methods of a node for that.

`Turns` is a base of `CacheNode`; `leases` and `locks` know the rules. A lease or a lock belongs to the connection over
which it was given, and is free again once that closes. Who has to wait holds no thread: under our transport a method of
`CacheNode.WAITING` answers later, and only under a stock daemon, with a thread for each connection, does it block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyrocache.errors import ValueTooLarge
from pyrocache.node.coordination.leases import IF_MISSING, IF_NOBODY_DOES, IN_ANY_CASE, Answer, value_answer
from pyrocache.node.coordination.quota import QuotaExceeded
from pyrocache.node.service.guard import Served, exposed
from pyrocache.node.service.validation import (
    check_key,
    check_seconds,
    check_span,
    check_tags,
    check_ttl,
    refusal,
)
from pyrocache.node.store.entry import Value
from pyrocache.protocol.refusals import BAD_REQUEST, OVERLOADED
from pyrocache.server.deferred import Deferred, Session

_MOST_HOLDERS = 2**20


class Turns(Served):
    """Leases and locks."""

    WAITING: ClassVar[dict[str, str]] = {"lease": "begin_lease", "acquire": "begin_acquire"}
    """Methods that may wait, each with the one that begins it; see `Dispatcher`."""

    # Loading once ----------------------------------------------------------------------------------------

    @exposed
    def get_with_times(self, view: int, key: bytes) -> Answer | None:
        """``[frame, seconds left or None, seconds that loading took or None]``, or None: to refresh it in good time."""
        check_key(key)
        with self._lock:
            self._check_view(view)
            found = self._store.lookup(key)
        return None if found.value is None or found.stale else value_answer(found)[1:]

    @exposed
    def lease(
        self, view: int, key: bytes, lease_seconds: float, wait_seconds: float, refresh: int = IF_MISSING
    ) -> Answer | None:
        """The value under ``key``, or leave to load it, waiting for another loader first.

        Who calls this has looked in vain (`get`, `get_with_times`), which was counted.

        Args:
            lease_seconds: after which somebody else may load it.
            wait_seconds: how long to wait at most.
            refresh: when the caller wants to load it: 0 if there is no value; 1 even if there is, unless another one
                does by now; 2 even then, and what that one has loaded is not stored.

        Returns:
            ``["value", frame, seconds left or None, seconds that loading took or None]``, ``["stale", frame]`` while
            another refreshes it, ``["load", token, frame or None]`` for the loader, None: ask again, or give up.
        """
        begun = self.begin_lease(Session(), view, key, lease_seconds, wait_seconds, refresh)
        answer: Answer | None = _awaited(begun, self._clock)
        return answer

    @exposed
    def fill(
        self,
        view: int,
        key: bytes,
        token: int,
        value: Value,
        ttl_seconds: float | None = None,
        stale_seconds: float = 0.0,
        load_seconds: float = 0.0,
        tags: list[bytes] | None = None,
    ) -> bool:
        """Store what the holder of a lease has loaded; False when it is outdated, or another one loads by now."""
        check_key(key)
        check_ttl(ttl_seconds)
        check_tags(tags)
        check_seconds(stale_seconds)
        check_seconds(load_seconds)
        _check_token(token)
        value = self._checked(key, value, expires=ttl_seconds is not None)
        with self._lock:
            self._check_view(view)
            if not self._leases.accepts(key, token, tags or ()):
                return False
            try:
                self._store.put(
                    key, value, ttl_seconds, tags=tags, stale_seconds=stale_seconds, load_seconds=load_seconds
                )
            except ValueTooLarge:
                raise self._no_room() from None
            self._settle(key, value, load_seconds)
        return True

    @exposed
    def abandon(self, view: int, key: bytes, token: int) -> bool:
        """Give a lease back unused: whoever waits first becomes the loader. False if it was not held any more."""
        check_key(key)
        _check_token(token)
        with self._lock:
            self._check_view(view)
            return self._leases.abandon(key, token)

    def begin_lease(
        self,
        session: Session,
        view: int,
        key: bytes,
        lease_seconds: float,
        wait_seconds: float,
        refresh: int = IF_MISSING,
    ) -> Answer | Deferred | None:
        """`lease`, without blocking, for the peer whose connection the lease is to end with."""
        check_key(key)
        lease_seconds, wait_seconds = check_span(lease_seconds, above=0.0), check_span(wait_seconds)
        if refresh not in (IF_MISSING, IF_NOBODY_DOES, IN_ANY_CASE):
            raise refusal(BAD_REQUEST, "What to refresh is 0, 1 or 2.")
        session.on_close(_Freed(self, session))  # not under the lock, which that takes
        with self._lock:
            self._check_view(view)
            if session.closed:
                return None
            try:
                return self._leases.request(
                    key,
                    session,
                    self._store.lookup(key, count=False),
                    lease_seconds=lease_seconds,
                    wait_seconds=wait_seconds,
                    refresh=refresh,
                )
            except QuotaExceeded as error:
                raise refusal(OVERLOADED, str(error)) from None

    # Locks -----------------------------------------------------------------------------------------------

    @exposed
    def acquire(
        self, view: int, name: bytes, limit: int, ttl_seconds: float, wait_seconds: float
    ) -> int | None:
        """Hold ``name``, with at most ``limit`` - 1 others, until `release` or for ``ttl_seconds``.

        Returns:
            The holder's token, larger than all before it; None: ask again, or give up.
        """
        begun = self.begin_acquire(Session(), view, name, limit, ttl_seconds, wait_seconds)
        token: int | None = _awaited(begun, self._clock)
        return token

    @exposed
    def renew(self, view: int, name: bytes, token: int, ttl_seconds: float) -> bool:
        """Hold it for ``ttl_seconds`` from now; False if it is not held with this token any more."""
        check_key(name)
        _check_token(token)
        ttl_seconds = check_span(ttl_seconds, above=0.0)
        with self._lock:
            self._check_view(view)
            return self._locks.renew(name, token, ttl_seconds)

    @exposed
    def release(self, view: int, name: bytes, token: int) -> bool:
        """Hold it no more; False if it was not held with this token any more."""
        check_key(name)
        _check_token(token)
        with self._lock:
            self._check_view(view)
            return self._locks.release(name, token)

    def begin_acquire(
        self, session: Session, view: int, name: bytes, limit: int, ttl_seconds: float, wait_seconds: float
    ) -> int | Deferred | None:
        """`acquire`, without blocking, for the peer whose connection it is to end with."""
        check_key(name)
        if type(limit) is not int or not 1 <= limit <= _MOST_HOLDERS:
            raise refusal(BAD_REQUEST, f"A limit is an int from 1 to {_MOST_HOLDERS}.")
        ttl_seconds, wait_seconds = check_span(ttl_seconds, above=0.0), check_span(wait_seconds)
        session.on_close(_Freed(self, session))  # not under the lock, which that takes
        with self._lock:
            self._check_view(view)
            if session.closed:
                return None
            try:
                return self._locks.acquire(
                    name, session, limit=limit, ttl_seconds=ttl_seconds, wait_seconds=wait_seconds
                )
            except QuotaExceeded as error:
                raise refusal(OVERLOADED, str(error)) from None

    def free_held_by(self, session: Session) -> None:
        """Free the leases and locks of a connection that is closed."""
        with self._lock:
            self._leases.free(session)
            self._locks.free(session)


class _Freed:
    """Frees what a peer holds, once it is called; two of the same peer are equal, so that it is kept once."""

    __slots__ = ("_node", "_session")

    def __init__(self, node: Turns, session: Session) -> None:
        self._node = node
        self._session = session

    def __call__(self) -> None:
        self._node.free_held_by(self._session)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Freed) and other._session is self._session and other._node is self._node

    def __hash__(self) -> int:
        return id(self._session)


def _check_token(token: Any) -> None:
    if type(token) is not int:
        raise refusal(BAD_REQUEST, "A token is an int.")


def _awaited(result: Any, clock: Callable[[], float]) -> Any:
    """A result, waiting for it where it is made later: under a daemon with a thread for each connection."""
    return result.wait(clock) if isinstance(result, Deferred) else result
