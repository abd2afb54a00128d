"""Leases: at most one caller loads the missing or stale value of a key; others wait for it, or get the stale value.

A lease begins when a caller receives the answer `LOAD`. It ends when the value is stored, when the loader gives up,
when its connection closes, or when its time is over and another caller wants it. It becomes void as soon as the key is
set or deleted, or a tag of the loaded value is invalidated: a value loaded before that must not be stored after it.
After Nishtala et al., "Scaling Memcache at Facebook" (NSDI 2013), except that callers wait instead of polling.

Responsible for the leases and the recent tag invalidations. Does not read the store: the caller passes in what it
found. `Leases.by_key` is empty while there is no lease; a write then needs no call of this module. Pure: no I/O and no
threads; the clock is injected.

Thread safety: not thread-safe; `CacheNode` and `Coordination` call it under the guard's lock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from pyrocache.node.coordination.claims import Claim, Claims, Waiter
from pyrocache.node.store.store import Found
from pyrocache.server.deferred import Deferred, Session

VALUE = "value"
STALE = "stale"
LOAD = "load"

IF_MISSING = 0
"""The caller wants to load the value if there is no live one."""
IF_NOT_LOADING = 1
"""The caller wants to load it even if there is a live value, unless another caller is loading it."""
IN_ANY_CASE = 2
"""The caller wants to load it even if another caller is loading it. The value of the other will not be stored."""
UNREADABLE = 3
"""The caller cannot read the value that there is: for it, the value is missing."""

Answer: TypeAlias = list[Any]
"""``["value", frame, seconds left or None, seconds that loading took or None]``, ``["stale", frame]`` or
``["load", token, frame or None]``."""

_MAX_INVALIDATIONS = 1024  # tags that are remembered; see `accepts` for the others
_EXAMINED_FOR_ROOM = 64  # leases, so that a grant takes bounded time


@dataclass(slots=True, eq=False)
class _Lease(Claim):
    token: int
    deadline: float
    loader: Session
    invalidations: int  # the number of tag invalidations before it was granted

    def holders(self) -> Iterable[Session]:
        return (self.loader,)


class Leases(Claims[_Lease]):
    """The leases of one node.

    The arguments are those of `Claims`.

    Attributes:
        granted: the number of callers that became the loader.
    """

    def __init__(self, *arguments: Any, **bounds: Any) -> None:
        super().__init__(*arguments, **bounds)
        self.granted = 0
        self._invalidations = 0
        self._invalidated: OrderedDict[bytes, int] = OrderedDict()  # tag -> number of its latest invalidation
        self._dropped = 0  # the largest number that was removed from there

    # Granting --------------------------------------------------------------------------------------------

    def request(
        self,
        key: bytes,
        session: Session,
        found: Found,
        lease_seconds: float,
        wait_seconds: float,
        refresh: int = IF_MISSING,
    ) -> Answer | Deferred | None:
        """Decide what a caller that wants a value gets.

        Args:
            found: what the store has.
            lease_seconds: the time after which another caller may load the value.
            wait_seconds: the longest time to wait for another loader; 0: do not wait.
            refresh: when to load the value: `IF_MISSING`, `IF_NOT_LOADING`, `IN_ANY_CASE` or `UNREADABLE`.

        Returns:
            An answer, or a `Deferred` of an answer or of None (call again), or None: another caller is loading.

        Raises:
            QuotaExceeded: there are too many leases, or this session has too many.
        """
        lease = self.by_key.get(key)
        if lease is not None and refresh == IN_ANY_CASE:
            return [LOAD, self._take_over(key, lease, session, lease_seconds), found.value]
        if lease is not None and self._clock() >= lease.deadline and not self._pass_on(key, lease):
            lease = None
        usable = found.value is not None and refresh != UNREADABLE
        if usable and not found.stale and (lease is not None or not refresh):
            return value_answer(found)
        if lease is None:
            return [LOAD, self._grant(key, session, lease_seconds), found.value]
        if usable:
            return [STALE, found.value]
        if wait_seconds <= 0:
            return None
        self._check_quota(session, key)
        deferred = Deferred(session, min(self._clock() + wait_seconds, lease.deadline))
        self._wait(key, lease, session, Waiter(deferred, lease_seconds))
        return deferred

    def accepts(self, key: bytes, token: int, tags: Iterable[bytes]) -> bool:
        """Return whether the loaded value, with these tags, may be stored. If so, store it and call `settle`.

        A loader that was slower than its lease may store its value if no other caller has requested the lease since.
        """
        lease = self._lease(key, token)
        if lease is None:
            return False
        # For a tag that is not remembered, assume that it was the latest one that was removed.
        if any(self._invalidated.get(tag, self._dropped) > lease.invalidations for tag in tags):
            self._pass_on(key, lease)
            return False
        return True

    def abandon(self, key: bytes, token: int) -> bool:
        """Pass the lease on to the next waiter. Return False if the caller no longer has the lease."""
        lease = self._lease(key, token)
        if lease is None:
            return False
        self._pass_on(key, lease)
        return True

    def free(self, session: Session) -> None:
        """Pass on the leases of a session that has ended, and answer its calls that wait."""
        for key in list(self._keys.get(session, ())):
            lease = self.by_key[key]
            self._withdraw(lease, session)
            if lease.loader is session:
                self._pass_on(key, lease)
            else:
                self._strike(key, lease, session)

    # What happens to the entries -------------------------------------------------------------------------

    def settle(self, key: bytes, found: Found) -> None:
        """Void the lease on ``key``, whose value was set or deleted: a value that is being loaded may be outdated.

        The waiters get the new value. If there is none, the first of them becomes the loader.
        """
        if found.value is None or found.stale:
            self._pass_on(key, self.by_key[key])
        else:
            for waiter in self._close(key).waiters.values():
                waiter.deferred.give(value_answer(found))

    def void_all(self, prefix: bytes) -> None:
        """Void the leases on all keys that begin with ``prefix``, which were deleted."""
        for key, lease in [item for item in self.by_key.items() if item[0].startswith(prefix)]:
            self._pass_on(key, lease)

    def invalidate(self, tag: bytes) -> None:
        """Refuse values that are being loaded now and have this tag, when they are to be stored."""
        if not self.by_key:  # no value is being loaded
            return
        self._invalidations += 1
        self._invalidated[tag] = self._invalidations
        self._invalidated.move_to_end(tag)
        if len(self._invalidated) > _MAX_INVALIDATIONS:
            _, self._dropped = self._invalidated.popitem(last=False)

    # Inside ----------------------------------------------------------------------------------------------

    def _lease(self, key: bytes, token: int) -> _Lease | None:
        lease = self.by_key.get(key)
        return lease if lease is not None and lease.token == token else None

    def _grant(self, key: bytes, session: Session, lease_seconds: float) -> int:
        if not self._has_room(session, key):
            self._make_room()
        self._check_quota(session, key)
        if not self.by_key:  # no lease is older than these invalidations
            self._invalidated.clear()
            self._dropped = 0
        lease = _Lease(self._tokens.next(), self._clock() + lease_seconds, session, self._invalidations)
        self._open(key, lease, session)
        self.granted += 1
        return lease.token

    def _take_over(self, key: bytes, lease: _Lease, session: Session, lease_seconds: float) -> int:
        """Make ``session`` the loader in place of another one. The waiters continue to wait."""
        self._check_quota(session, key)
        lease.token = self._tokens.next()
        self._count(key, session)
        self._hand_to(key, lease, session, lease_seconds)
        return lease.token

    def _pass_on(self, key: bytes, lease: _Lease) -> bool:
        """Make the next waiter the loader. Return False if there is none; the lease is over then."""
        lease.token = self._tokens.next()  # from now on the former loader cannot store its value
        for session, waiter in lease.parked():
            del lease.waiters[session]
            if not session.closed and waiter.deferred.give([LOAD, lease.token, None]):
                self._hand_to(key, lease, session, waiter.hold_seconds)
                return True
            self._strike(key, lease, session)
        self._close(key)
        return False

    def _hand_to(self, key: bytes, lease: _Lease, session: Session, lease_seconds: float) -> None:
        former, lease.loader = lease.loader, session
        lease.deadline = self._clock() + lease_seconds
        lease.invalidations = self._invalidations
        self.granted += 1
        self._strike(key, lease, former)

    def _make_room(self) -> None:
        """Drop expired leases without waiters, among those that were granted first."""
        now = self._clock()
        for key, lease in list(islice(self.by_key.items(), _EXAMINED_FOR_ROOM)):
            if now >= lease.deadline and not lease.parked():
                self._close(key)


def value_answer(found: Found) -> Answer:
    """Return the answer for a caller when there is a live value."""
    remaining = found.remaining if found.remaining < math.inf else None
    return [VALUE, found.value, remaining, found.load_seconds]
