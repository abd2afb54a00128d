"""`RequestGuard`: decides which requests a node may answer.

Knows the cluster view that the node serves under and the state of each partition. Refuses a request that was routed
with another view, or whose key is in a partition that is not served; the refusal contains the node's view. Does not
touch the store. Creates the node's lock, `RequestGuard.lock`; a request is checked and executed while it is held.

Thread safety: the caller holds the lock, except for `run`, which takes it, and for `members` and `ping`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, TypeVar

from Pyro5.errors import PyroError

from pyrocache.cluster.routing import ClusterView
from pyrocache.node.service.validation import refusal
from pyrocache.protocol.limits import NO_VIEW
from pyrocache.protocol.partition import PARTITIONS, partition_of
from pyrocache.protocol.refusals import BAD_REQUEST, STALE_VIEW

_Result = TypeVar("_Result")


class PartitionState(IntEnum):
    """The state of a partition, which decides how a node answers requests for it."""

    LOADING = 0
    """Requests are refused: other nodes may still answer for the partition."""
    SERVING = 1
    """Requests are answered."""
    RETIRED = 2
    """Requests are refused: another node answers for the partition from now on."""


class RequestGuard:
    """Checks requests against the view and the partitions of one node.

    Args:
        name: ``cache.node.N``.
        incarnation: differs from one start of the node to the next.
        on_stale: called on any thread when a caller has another view than this node.

    Attributes:
        name: as given.
        lock: the lock of the whole node.
        view: the view that the node serves under, or None before the first.
        open_view: the id of the view while all partitions are served; else NaN, which is equal to no id. A request with
            this id needs no further check.
    """

    __slots__ = ("_incarnation", "_on_stale", "_states", "lock", "name", "open_view", "view")

    def __init__(
        self, name: str = "cache.node.1", incarnation: str = "", on_stale: Callable[[], object] = lambda: None
    ) -> None:
        self.name = name
        self.lock = threading.Lock()  # guards: this object, the store, the leases and the locks
        self.view: ClusterView | None = None
        self.open_view: float = NO_VIEW
        self._incarnation = incarnation
        self._on_stale = on_stale
        self._states = bytearray([PartitionState.SERVING]) * PARTITIONS

    def check(self, view: Any, keys: Iterable[bytes]) -> None:
        """Check a request for ``keys`` that was routed with the view of that id.

        Raises:
            PyroError: it is refused, with the node's own view as detail.
        """
        if view == self.open_view:
            return
        if type(view) is not int:
            raise refusal(BAD_REQUEST, "A view is given by its id.")
        if view == NO_VIEW:  # the caller needs this node, whatever the view: it holds a lock here
            return
        current = self.view
        served = all(self._states[partition_of(key)] == PartitionState.SERVING for key in keys)
        if not served or (current is not None and view != current.id):
            self._on_stale()
            raise self.stale_view()

    def run(self, view: Any, keys: Iterable[bytes], call: Callable[..., _Result], *arguments: Any) -> _Result:
        """Check a request and execute ``call`` atomically. Takes the lock. Return the result."""
        with self.lock:
            if view != self.open_view:
                self.check(view, keys)
            return call(*arguments)

    def owns(self, key: bytes) -> bool:
        """Return whether ``key`` belongs to this node under the current view."""
        view = self.view
        return view is None or (bool(view.members) and view.owner(key).name == self.name)

    def adopt(self, view: ClusterView) -> bool:
        """Serve under ``view`` from now on. Return whether it routes differently from the view before."""
        changed = self.view is None or view.id != self.view.id
        self.view = view
        self._update_open_view()
        return changed

    def set_state(self, state: PartitionState, partitions: Iterable[int] | None = None) -> None:
        """Set the state of the given partitions, or of all."""
        for partition in range(PARTITIONS) if partitions is None else partitions:
            self._states[partition] = state
        self._update_open_view()

    def stale_view(self) -> PyroError:
        """Return the refusal of a request that was routed with another view."""
        return refusal(STALE_VIEW, "The request was routed with another view of the nodes.", self.members())

    def members(self) -> list[list[Any]]:
        """Return the view as ``[name, host, port, weight, incarnation, socket path]`` each."""
        members = self.view.members if self.view is not None else ()
        return [[m.name, m.host, m.port, m.weight, m.incarnation, m.socket_path] for m in members]

    def ping(self, view: int = NO_VIEW) -> dict[str, Any]:
        """Return ``name``, ``incarnation`` and ``serving`` (False once the node is leaving).

        A caller with another ``view`` makes this node query the name server for a newer one.
        """
        current = self.view
        if view != NO_VIEW and (current is None or view != current.id):
            self._on_stale()
        serving = current is None or self.name in current
        return {"name": self.name, "incarnation": self._incarnation, "serving": serving}

    def _update_open_view(self) -> None:
        if self._states.count(PartitionState.SERVING) < PARTITIONS:
            self.open_view = math.nan
        else:
            self.open_view = NO_VIEW if self.view is None else self.view.id
