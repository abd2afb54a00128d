"""`Ownership`: adoption of a new cluster view: the node drops the entries, leases and locks that it no longer owns.

Walks over entries in slices, and releases the node's lock between them.

Thread safety: not thread-safe; the life cycle calls it on the main thread. It takes the node's lock itself.
"""

from __future__ import annotations

import time

from pyrocache.cluster.routing import ClusterView
from pyrocache.node.service.coordination import Coordination
from pyrocache.node.service.guard import PartitionState, RequestGuard
from pyrocache.node.store.mutation import Clear, Discard
from pyrocache.node.store.store import Store
from pyrocache.protocol.limits import BATCH_BYTES

_SLICE = 500  # entries that are examined while the lock is held


class Ownership:
    """Changes the view and the partition states of one node, and drops what the node no longer owns.

    Args:
        store, coordination, guard: the parts of the node.
    """

    def __init__(self, store: Store, coordination: Coordination, guard: RequestGuard) -> None:
        self._store = store
        self._coordination = coordination
        self._guard = guard

    def adopt(self, view: ClusterView) -> None:
        """Serve under ``view`` from now on, and drop what the node no longer owns.

        Returns when all of those entries are dropped. Meanwhile the guard refuses requests for them, and afterwards
        none is left that could reappear, outdated, under a later view.
        """
        with self._guard.lock:
            if not self._guard.adopt(view):
                return
            self._coordination.forget(lambda key: not self._guard.owns(key))
            # The list is complete: from now on the guard refuses requests for keys that this node does not own.
            namespaces = [space.prefix for space in self._store.namespaces]
        for namespace in namespaces:
            self._drop_foreign(namespace)

    def redirect(self, view: ClusterView) -> None:
        """Refuse all requests from now on, and send ``view`` in the refusals: this node is leaving."""
        with self._guard.lock:
            self._guard.adopt(view)
        self.set_state(PartitionState.RETIRED)

    def set_state(self, state: PartitionState) -> None:
        """Set the state of all partitions.

        A node is loading until all other nodes that answer know it, or for about 3 seconds at most. Otherwise it could
        serve, and leave again before another node knows it. That node would then still have older values of the keys
        that were set meanwhile.
        """
        with self._guard.lock:
            self._guard.set_state(state)
            if state is not PartitionState.SERVING:
                self._coordination.forget(lambda key: True)

    def forget_everything(self) -> None:
        """Drop all entries: other nodes may have acted in this one's place."""
        with self._guard.lock:
            self._coordination.forget(lambda key: True)
            for namespace in [space.prefix for space in self._store.namespaces]:
                self._store.apply(Clear(namespace))

    def _drop_foreign(self, namespace: bytes) -> None:
        cursor = 0
        while True:
            with self._guard.lock:
                keys, cursor = self._store.page(namespace, namespace, cursor, _SLICE, BATCH_BYTES, stale=True)
                for key in keys:
                    if not self._guard.owns(key):
                        self._store.apply(Discard(key))
            if not cursor:
                return
            time.sleep(0)  # let a waiting I/O thread have the interpreter
