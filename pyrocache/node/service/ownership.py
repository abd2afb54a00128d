"""`Ownership`: adoption of a new cluster view: the node drops the entries, leases and locks that it no longer owns.

Walks over entries in slices, and releases the node's lock between them. A million entries take some seconds; the life
cycle renews the node's lease between the slices.

Thread safety: not thread-safe; the life cycle calls it on the main thread, except for `Ownership.expire`. It takes the
node's lock itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator

from pyrocache.cluster.routing import ClusterView
from pyrocache.cluster.views import EMPTY
from pyrocache.node.coordination.tokens import COUNTER_BITS
from pyrocache.node.service.coordination import Coordination
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.mutation import Discard
from pyrocache.node.store.store import Store
from pyrocache.protocol.limits import BATCH_BYTES
from pyrocache.runtime.clock import now

_MOST_TOKENS = 1 << COUNTER_BITS - 1
_SLICE = 500  # entries that are examined while the lock is held


class Ownership:
    """Changes the view and the lease of one node, and drops what the node no longer owns.

    Args:
        store, coordination, guard: the parts of the node.
    """

    def __init__(self, store: Store, coordination: Coordination, guard: RequestGuard) -> None:
        self._store = store
        self._coordination = coordination
        self._guard = guard
        self._until = -math.inf
        self._dropping: Iterator[None] = iter(())

    @property
    def needs_number(self) -> bool:
        """Whether the tokens under the present view are nearly used up."""
        return self._coordination.tokens.used >= _MOST_TOKENS

    def prepare(self) -> None:
        """Stop to confirm the view to other nodes, until the next `adopt` or `confirm`."""
        self._guard.confirms = False

    def confirm(self) -> None:
        """Confirm the view again: there was no newer one."""
        self._guard.confirms = True

    def adopt(self, view: ClusterView, before: ClusterView = EMPTY, pending: Collection[str] = ()) -> None:
        """Serve under ``view`` from now on. What the node does not own by it is dropped by `drop_outdated`.

        Until then, the guard refuses requests for it. All of it is dropped before the node adopts the next view, so
        that nothing reappears, outdated, under a later view. If the node has missed a view, it may own keys that
        another node owned in between; what it has of those is dropped at once.

        Args:
            before, pending: as for `RequestGuard.adopt`.
        """
        self.drop_outdated()
        with self._guard.lock:
            keeps, own = self._keeps(view, before), self._guard.view
            self._guard.adopt(view, before, pending)
            self._coordination.tokens.begin(view.number)
            self._store.begin_versions(view.number << COUNTER_BITS)
            self._coordination.forget(lambda key: not keeps(key))
            # The list is complete: from now on the guard refuses requests for keys that this node does not own.
            namespaces = [space.prefix for space in self._store.namespaces]
            if own is not None and own.number != before.number:
                for namespace in namespaces:
                    self._drop_all(namespace, keeps)
        # By the view alone: entries of keys that have moved here may be stored meanwhile.
        self._dropping = self._drop(namespaces, self._guard.owns)

    def drop_outdated(self, seconds: float = math.inf) -> bool:
        """Drop entries that were outdated by the last `adopt`, for some time. Return whether none is left."""
        until = now() + seconds
        return all(now() < until for _ in self._dropping)

    def take_over(self, pending: Collection[str]) -> None:
        """Answer for the keys of more members of the view before, see `RequestGuard.take_over`."""
        with self._guard.lock:
            self._guard.take_over(pending)

    def renew(self, until: float, now: float) -> None:
        """Note until when the node has a lease. ``until`` and ``now`` are seconds of one clock."""
        with self._guard.lock:
            self._until = until
            self._lapse(now >= until)

    def expire(self, now: float) -> None:
        """Note that it is ``now``: the lease may have ended. Any thread may call this."""
        with self._guard.lock:
            if now >= self._until:
                self._lapse(True)

    def lapse(self, lapsed: bool) -> None:
        """Note that the node has lost its lease, or has one again. Meanwhile it keeps what it has."""
        with self._guard.lock:
            self._lapse(lapsed)

    def _lapse(self, lapsed: bool) -> None:
        """Do `lapse`. The caller holds the lock."""
        if self._guard.lapse(lapsed):
            self._coordination.refuse_waiters()

    def _keeps(self, view: ClusterView, before: ClusterView) -> Callable[[bytes], bool]:
        """Return whether this node owned a key under its own last view, and owns it ever since."""
        name, own = self._guard.name, self._guard.view
        if own is not None and own.number < before.previous:  # a view in between is not known
            return lambda key: False
        views = [one for one in {own or view, before, view} if one.members]
        return lambda key: all(one.owner(key).name == name for one in views)

    def _drop(self, namespaces: Iterable[bytes], keeps: Callable[[bytes], bool]) -> Iterator[None]:
        for namespace in namespaces:
            cursor: int | None = None
            while cursor != 0:
                with self._guard.lock:
                    cursor = self._drop_slice(namespace, cursor or 0, keeps)
                yield
                time.sleep(0)  # let a waiting I/O thread have the interpreter

    def _drop_all(self, namespace: bytes, keeps: Callable[[bytes], bool]) -> None:
        """Drop what is not kept, while the caller holds the lock."""
        cursor: int | None = None
        while cursor != 0:
            cursor = self._drop_slice(namespace, cursor or 0, keeps)

    def _drop_slice(self, namespace: bytes, cursor: int, keeps: Callable[[bytes], bool]) -> int:
        keys, cursor = self._store.page(namespace, namespace, cursor, _SLICE, BATCH_BYTES, stale=True)
        for key in keys:
            if not keeps(key):
                self._store.apply(Discard(key))
        return cursor
