"""Who loads a missing value: at most one caller for each key, while the others wait or have the expired value.

A lease belongs to a key, from the moment that somebody is told to load its value until the value is there, the loader
gives up or its connection closes, or the time is over and somebody else wants it. It is void as soon as the key is
set or deleted, or a tag of the loaded value was invalidated: what was loaded before that must not be stored after it.
After Nishtala et al., "Scaling Memcache at Facebook" (NSDI 2013), with callers that wait instead of asking again.

A waiter parks on a `Deferred` until the lease expires at the latest; it then receives None and must ask again, and
whoever comes first has the lease. It keeps its place in the queue as long as it asks over the same connection. So no
timer is needed beyond that of each `Deferred`.

Pure, but for the locks within a `Deferred`: no I/O, no threads, the clock injected. Not thread-safe: `CacheNode` calls
it under its lock. While there is no lease, `by_key` is empty, and nothing here needs to be called at all.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from Pyro5.errors import PyroError

from pyrocache.node.coordination.quota import Holdings, Tokens
from pyrocache.node.store.store import Found
from pyrocache.server.deferred import Deferred, Session

VALUE = "value"
STALE = "stale"
LOAD = "load"

IF_MISSING = 0
IF_NOBODY_DOES = 1
IN_ANY_CASE = 2
"""When a caller wants to load: if there is no live value; even if there is, unless another loads by now; or even then,
and what that one has loaded is not to be stored."""

Answer: TypeAlias = list[Any]
"""``["value", frame, seconds left or None, seconds that loading took or None]``, ``["stale", frame]`` or
``["load", token, frame or None]``."""

_MAX_INVALIDATIONS = 1024
_LOOKED_THROUGH = 64


class _Waiter(NamedTuple):
    deferred: Deferred
    lease_seconds: float


class _Lease:
    __slots__ = ("deadline", "session", "since", "token", "waiters")

    def __init__(self, token: int, deadline: float, session: Session, since: int) -> None:
        self.token = token
        self.deadline = deadline
        self.session = session
        self.since = since  # the number of the last invalidation before it was granted
        self.waiters: dict[Session, _Waiter] = {}  # in the order in which they came


class Leases:
    """The leases of one node.

    Args:
        tokens: whence the leases' numbers come.
        clock: monotonic seconds.
        holdings: what bounds it all.

    Attributes:
        by_key: the keys that are being loaded. To be looked at from outside, not changed.
        granted, waited, passed_on: how often so far somebody became the loader, had to wait, or became the loader
            because another one did not end well.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        clock: Callable[[], float] = time.monotonic,
        holdings: Holdings | None = None,
    ) -> None:
        self.by_key: dict[bytes, _Lease] = {}  # those granted earlier come first, roughly
        self.granted = 0
        self.waited = 0
        self.passed_on = 0
        self._tokens = tokens
        self._clock = clock
        self._holdings = Holdings() if holdings is None else holdings
        self._invalidation = 0  # the number of the last one
        self._invalidated: OrderedDict[bytes, int] = OrderedDict()  # tag -> number, the latest of them only
        self._forgotten = 0  # the largest number that is not in there any more

    @property
    def waiting(self) -> int:
        """How many wait for a value now."""
        return sum(
            waiter.deferred.waiting for lease in self.by_key.values() for waiter in lease.waiters.values()
        )

    # Who loads -------------------------------------------------------------------------------------------

    def request(
        self,
        key: bytes,
        session: Session,
        found: Found,
        *,
        lease_seconds: float,
        wait_seconds: float,
        refresh: int = IF_MISSING,
    ) -> Answer | Deferred | None:
        """What to tell a caller that wants a value, given what the store has.

        Args:
            lease_seconds: how long it may load before somebody else may.
            wait_seconds: how long it waits for another loader; 0: it does not.
            refresh: when it wants to load the value: `IF_MISSING`, `IF_NOBODY_DOES` or `IN_ANY_CASE`.

        Returns:
            An answer; a `Deferred` of one, or of None when it is to ask again; or None: somebody else loads.

        Raises:
            Full: there are too many leases, or this peer has too many.
        """
        lease = self.by_key.get(key)
        if lease is not None and refresh == IN_ANY_CASE:
            return [LOAD, self._take_over(key, lease, session, lease_seconds), found.value]
        if lease is not None and self._clock() >= lease.deadline and not self._pass_on(key, lease):
            lease = None
        if found.value is not None and not found.stale and (lease is not None or not refresh):
            return value_answer(found)
        if lease is None:
            return [LOAD, self._grant(key, session, lease_seconds), found.value]
        if found.value is not None:
            return [STALE, found.value]
        if wait_seconds <= 0:
            return None
        return self._wait(key, lease, session, lease_seconds, wait_seconds)

    def accepts(self, key: bytes, token: int, tags: Iterable[bytes]) -> bool:
        """Whether the loaded value, with these tags, may be stored; then do, and call `settle`.

        A loader that was slower than its lease may as well, as long as nobody wanted the lease since.
        """
        lease = self.by_key.get(key)
        if lease is None or lease.token != token:
            return False
        if any(self._invalidated.get(tag, self._forgotten) > lease.since for tag in tags):
            self._pass_on(key, lease)
            return False
        return True

    def abandon(self, key: bytes, token: int) -> bool:
        """The loader gives up, and the next waiter becomes the loader; False if the lease is not its any more."""
        lease = self.by_key.get(key)
        if lease is None or lease.token != token:
            return False
        self._pass_on(key, lease)
        return True

    def free(self, session: Session) -> None:
        """A connection is closed: what it was loading goes to the next waiter, and it waits for nothing more."""
        for key in self._holdings.of(session):
            lease = self.by_key.get(key)
            if lease is None:
                continue
            lease.waiters.pop(session, None)
            if lease.session is session:
                self._pass_on(key, lease)
            self._holdings.discard(session, key)

    # What happens to the entries -------------------------------------------------------------------------

    def settle(self, key: bytes, found: Found) -> None:
        """``key`` has this value now, whoever set it: the lease on it is void, and who waits for it has it."""
        lease = self.by_key.get(key)
        if lease is not None:
            self._drop(key, lease)
            for waiter in lease.waiters.values():
                waiter.deferred.give(value_answer(found))

    def void(self, key: bytes) -> None:
        """``key`` was deleted: what is being loaded may be outdated, so the next waiter becomes the loader."""
        lease = self.by_key.get(key)
        if lease is not None:
            self._pass_on(key, lease)

    def void_all(self, prefix: bytes) -> None:
        """The same for all keys that begin with ``prefix``."""
        for key in [key for key in self.by_key if key.startswith(prefix)]:
            self.void(key)

    def invalidate(self, tag: bytes) -> None:
        """What is being loaded and has this tag must not be stored."""
        if not self.by_key:
            return
        self._invalidation += 1
        self._invalidated[tag] = self._invalidation
        self._invalidated.move_to_end(tag)
        if len(self._invalidated) > _MAX_INVALIDATIONS:
            _, self._forgotten = self._invalidated.popitem(last=False)

    def forget(self, belongs_elsewhere: Callable[[bytes], bool], error: PyroError) -> None:
        """Let go of keys that other nodes look after from now on; who waits is refused with ``error``."""
        for key in [key for key in self.by_key if belongs_elsewhere(key)]:
            lease = self.by_key[key]
            self._drop(key, lease)
            for waiter in lease.waiters.values():
                waiter.deferred.refuse(error)

    # Inside ----------------------------------------------------------------------------------------------

    def _grant(self, key: bytes, session: Session, lease_seconds: float) -> int:
        if not self._holdings.has_room(key):
            self._make_room()
        self._holdings.check(session, key, new=True)
        if not self.by_key:  # nothing was granted before any of these
            self._invalidated.clear()
            self._forgotten = 0
        token = self._tokens.next()
        self.by_key[key] = _Lease(token, self._clock() + lease_seconds, session, self._invalidation)
        self._holdings.opened(key)
        self._holdings.add(session, key)
        self.granted += 1
        return token

    def _take_over(self, key: bytes, lease: _Lease, session: Session, lease_seconds: float) -> int:
        """A lease for ``session`` in place of another one's; who waits goes on waiting."""
        self._holdings.check(session, key, new=False)
        if lease.session not in lease.waiters:
            self._holdings.discard(lease.session, key)
        self._holdings.add(session, key)
        lease.token, lease.session = self._tokens.next(), session
        lease.deadline = self._clock() + lease_seconds
        lease.since = self._invalidation
        self.granted += 1
        return lease.token

    def _wait(
        self, key: bytes, lease: _Lease, session: Session, lease_seconds: float, wait_seconds: float
    ) -> Deferred:
        self._holdings.check(session, key, new=False)
        deferred = Deferred(session, min(self._clock() + wait_seconds, lease.deadline))
        lease.waiters[session] = _Waiter(deferred, lease_seconds)  # one that asks again keeps its place
        self._holdings.add(session, key)
        self.waited += 1
        return deferred

    def _pass_on(self, key: bytes, lease: _Lease) -> bool:
        """The next waiter becomes the loader; False if there is none and the lease is over."""
        if lease.session not in lease.waiters:
            self._holdings.discard(lease.session, key)
        lease.token = self._tokens.next()
        for session in [session for session, waiter in lease.waiters.items() if waiter.deferred.waiting]:
            waiter = lease.waiters.pop(session)
            if not session.closed and waiter.deferred.give([LOAD, lease.token, None]):
                lease.session = session
                lease.deadline = self._clock() + waiter.lease_seconds
                lease.since = self._invalidation
                self.granted += 1
                self.passed_on += 1
                return True
            self._holdings.discard(session, key)
        self._drop(key, lease)
        return False

    def _drop(self, key: bytes, lease: _Lease) -> None:
        del self.by_key[key]
        self._holdings.closed(key)
        self._holdings.discard(lease.session, key)
        for session in lease.waiters:
            self._holdings.discard(session, key)

    def _make_room(self) -> None:
        """Let go of some leases, of those granted first, whose time is over."""
        now = self._clock()
        for key in [
            key for key, lease in islice(self.by_key.items(), _LOOKED_THROUGH) if now >= lease.deadline
        ]:
            lease = self.by_key[key]
            if not any(waiter.deferred.waiting for waiter in lease.waiters.values()):
                self._drop(key, lease)


def value_answer(found: Found) -> Answer:
    """What a caller is told when there is a live value."""
    remaining = found.remaining if found.remaining < math.inf else None
    return [VALUE, found.value, remaining, found.load_seconds]
