"""What all methods of a node share: the store and its lock, the view that it is served under, who waits.

`Served` is the base of `CacheNode`. It knows when a request was routed with another view than this node's and refuses
it, and drops what belongs to other nodes when the view changes. Values and keys are opaque bytes. Every method may run
on any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from Pyro5.errors import PyroError
from Pyro5.server import expose

from pyrocache.cluster.routing import ClusterView
from pyrocache.config import DEFAULT_MAX_VALUE_BYTES
from pyrocache.node.coordination.leases import Leases
from pyrocache.node.coordination.locks import Locks
from pyrocache.node.coordination.quota import Tokens
from pyrocache.node.service.validation import refusal
from pyrocache.node.store.entry import Value, entry_cost
from pyrocache.node.store.namespaces import NAMESPACE_OVERHEAD
from pyrocache.node.store.store import Found, Store
from pyrocache.protocol.limits import BATCH_BYTES, MAX_KEY_BYTES
from pyrocache.protocol.refusals import BAD_REQUEST, STALE_VIEW, VALUE_TOO_LARGE

SLICE = 500
"""Entries that are looked at while the lock is held."""

NO_VIEW = 0

_KEPT_IN_MESSAGE = 2**20  # smaller values are copied: a message of their own would take more memory pages
_OVERHEADS = 2048  # more than an entry without tags takes beyond its key and value

_Method = TypeVar("_Method", bound=Callable[..., Any])


def exposed(method: _Method) -> _Method:
    """Pyro5's ``expose``, for the type checker."""
    expose(method)
    return method


class Served:
    """A store that is served under a view.

    Args:
        store: the entries.
        name: ``cache.node.N``.
        incarnation: tells this start of the node from the others.
        max_value_bytes: the largest value frame that is taken.
        gauges: further figures for `CacheNode.stats`.
        on_stale: called, on any thread, when a caller holds another view than this node.
        on_reset: called when figures are to be counted anew.
        clock, wall_clock: monotonic seconds, and those since the epoch.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str = "cache.node.1",
        incarnation: str = "",
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
        gauges: Callable[[], dict[str, Any]] = dict,
        on_stale: Callable[[], None] = lambda: None,
        on_reset: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_value_bytes = max_value_bytes
        self._surely_fits = min(
            max_value_bytes, store.max_bytes - 2 * MAX_KEY_BYTES - _OVERHEADS
        )  # with any key
        self._name = name
        self._incarnation = incarnation
        self._gauges = gauges
        self._on_stale = on_stale
        self._on_reset = on_reset
        self._clock = clock
        self._started = self._counted_since = clock()
        self._lock = threading.Lock()  # guards: _store, _leases, _locks, _view, _view_id, _admitted
        self._store = store
        tokens = Tokens(wall_clock)
        self._leases = Leases(tokens, clock=clock)
        self._leased = self._leases.by_key  # nearly always empty, and then there is nobody to tell
        self._locks = Locks(tokens, clock=clock)
        self._view: ClusterView | None = None
        self._view_id = NO_VIEW
        self._admitted = True

    # What any node tells --------------------------------------------------------------------------------

    @exposed
    def ping(self, view: int = NO_VIEW) -> dict[str, Any]:
        """Who answers: ``name``, ``incarnation`` and ``serving`` (False once it is leaving)."""
        if view not in (NO_VIEW, self._view_id):
            self._on_stale()
        current = self._view
        return {
            "name": self._name,
            "incarnation": self._incarnation,
            "serving": current is None or self._name in current,
        }

    @exposed
    def members(self) -> list[list[Any]]:
        """The view as this node holds it: ``[name, host, port, weight, incarnation, socket path]`` each."""
        return _as_lists(self._view)

    # For the process that the node lives in; not exposed -------------------------------------------------

    def adopt(self, view: ClusterView) -> None:
        """Serve under ``view`` from now on, and drop what no longer belongs here.

        Returns when all of that is gone. Until the next call of this method no caller can reach those entries, and
        afterwards nothing is left that could come back, outdated, with a later view.
        """
        with self._lock:
            changed = view.id != self._view_id
            self._view, self._view_id = view, view.id
            if changed:
                self._forget(lambda key: not self._owns(view, key))
        if changed:
            with self._lock:
                namespaces = [space.prefix for space in self._store.namespaces]
            for namespace in namespaces:
                self._drop_foreign(namespace, view)

    def redirect(self, view: ClusterView) -> None:
        """Refuse every caller from now on, and tell it ``view``: this node is leaving."""
        with self._lock:
            self._view, self._view_id, self._admitted = view, view.id, False
            self._forget(lambda key: True)

    def set_admitted(self, admitted: bool) -> None:
        """Whether to serve callers at all: not before the other nodes know of this one.

        One that served earlier, and left again before another node had noticed it, would leave that one with entries
        that are older than those it took along.
        """
        with self._lock:
            self._admitted = admitted
            if not admitted:
                self._forget(lambda key: True)

    def forget_everything(self) -> None:
        """Drop all entries: other nodes may have acted in this one's place."""
        with self._lock:
            self._forget(lambda key: True)
            for space in [space.prefix for space in self._store.namespaces]:
                self._store.clear(space)

    def sweep(self) -> bool:
        """Free some expired entries; whether there may be more."""
        with self._lock:
            return self._store.reclaim(SLICE)

    # For the methods of a node ---------------------------------------------------------------------------

    def _check_view(self, view: int) -> None:
        if type(view) is not int:
            raise refusal(BAD_REQUEST, "A view is given by its id.")
        if view == NO_VIEW:
            return
        if not self._admitted or self._view_id not in (view, NO_VIEW):
            self._on_stale()
            raise self._stale_view()

    def _checked(self, key: bytes, value: Any, *, expires: bool) -> Value:
        """``value``, as it is to be kept."""
        if type(value) is not bytes and type(value) is not memoryview:
            raise refusal(BAD_REQUEST, "A value is bytes.")
        if len(value) > self.max_value_bytes:
            raise refusal(
                VALUE_TOO_LARGE, f"{self._name} takes values of up to {self.max_value_bytes} bytes."
            )
        if entry_cost(key, value, expires=expires) + NAMESPACE_OVERHEAD > self._store.max_bytes:
            raise self._no_room()
        if type(value) is memoryview and not _is_most_of_its_message(value):
            value = bytes(value)
        kept: Value = value
        return kept

    def _no_room(self) -> PyroError:
        return refusal(
            VALUE_TOO_LARGE,
            f"the value does not fit into its {self._store.max_bytes} bytes of memory; start nodes with more.",
        )

    def _settle(self, key: bytes, value: Value, load_seconds: float | None = None) -> None:
        """Tell those who wait for ``key``, which has a new value, under the lock. Only while there are leases."""
        if key in self._leased:
            seconds = self._store.remaining(key)
            self._leases.settle(key, Found(value, remaining=seconds or 0.0, load_seconds=load_seconds))

    # Inside ----------------------------------------------------------------------------------------------

    def _forget(self, belongs_elsewhere: Callable[[bytes], bool]) -> None:
        """Refuse whoever waits for what other nodes look after from now on."""
        error = self._stale_view()
        self._leases.forget(belongs_elsewhere, error)
        self._locks.forget(belongs_elsewhere, error)

    def _stale_view(self) -> PyroError:
        return refusal(
            STALE_VIEW, "The request was routed with another view of the nodes.", _as_lists(self._view)
        )

    def _owns(self, view: ClusterView, key: bytes) -> bool:
        return bool(view.members) and view.owner(key).name == self._name

    def _drop_foreign(self, namespace: bytes, view: ClusterView) -> None:
        """Remove what belongs to other nodes."""
        cursor = 0
        while True:
            with self._lock:
                keys, cursor = self._store.page(namespace, namespace, cursor, SLICE, BATCH_BYTES, stale=True)
                for key in keys:
                    if not self._owns(view, key):
                        self._store.discard(key)
            if not cursor:
                return
            time.sleep(0)


def _as_lists(view: ClusterView | None) -> list[list[Any]]:
    members = view.members if view is not None else ()
    return [[m.name, m.host, m.port, m.weight, m.incarnation, m.socket_path] for m in members]


def _is_most_of_its_message(value: memoryview) -> bool:
    return len(value) >= _KEPT_IN_MESSAGE and 2 * len(value) >= len(value.obj)  # type: ignore[arg-type]
