"""`RequestGuard`: decides which requests a node may answer.

Knows the cluster view that the node serves under, which keys other nodes may still answer for, and whether the node has
a lease (`cluster.fencing`). Refuses a request that was routed with another view; the refusal contains the node's view.
Does not touch the store. Creates the node's lock, `RequestGuard.lock`; a request is checked and executed while it is
held.

Thread safety: the caller holds the lock, except for `run`, which takes it, and for `members` and `ping`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from Pyro5.errors import PyroError

from pyrocache.cluster.routing import ClusterView
from pyrocache.cluster.views import EMPTY, view_to_wire
from pyrocache.node.service.validation import refusal
from pyrocache.protocol.limits import NO_VIEW
from pyrocache.protocol.refusals import BAD_REQUEST, NOT_SERVING, STALE_VIEW

_Result = TypeVar("_Result")


class RequestGuard:
    """Checks requests against the view and the lease of one node.

    Args:
        name: ``cache.node.N``.
        incarnation: differs from one start of the node to the next.
        on_stale: called on any thread with the number of a view that a caller has and this node has not.

    Attributes:
        name: as given.
        lock: the lock of the whole node.
        view: the view that the node serves under, or None before the first.
        open_view: the number of the view while the node may answer for all its keys; else NaN, which is equal to no
            number. A request with this number needs no further check.
        confirms: whether the node confirms its view to other nodes.
    """

    __slots__ = (
        *("_before", "_incarnation", "_lapsed", "_on_stale", "_pending"),
        *("confirms", "lock", "name", "open_view", "view"),
    )

    def __init__(
        self,
        name: str = "cache.node.1",
        incarnation: str = "",
        on_stale: Callable[[int], object] = lambda number: None,
    ) -> None:
        self.name = name
        self.lock = threading.Lock()  # guards: this object, the store, the leases and the locks
        self.view: ClusterView | None = None
        self.open_view: float = NO_VIEW
        self.confirms = True
        self._incarnation = incarnation
        self._lapsed = False
        self._on_stale = on_stale
        self._before = EMPTY
        self._pending: Collection[str] = ()

    def check(self, view: Any, keys: Iterable[bytes]) -> None:
        """Check a request for ``keys`` that was routed with the view of that number; 0 for no view.

        Raises:
            PyroError: it is refused. If another view is the reason, the node's own one is the detail.
        """
        if view == self.open_view and view != NO_VIEW:
            return
        if type(view) is not int:
            raise refusal(BAD_REQUEST, "A view is given by its number.")
        current = self.view
        if current is None:
            number = NO_VIEW
        else:
            number = current.number
            if view not in (NO_VIEW, number):
                if view > number:
                    self._on_stale(view)
                raise self.stale_view()
        if self._lapsed:
            raise self.not_serving()
        for key in keys:
            if view == NO_VIEW and not self.owns(key):
                raise self.stale_view()
            if self._pending and self._before.owner(key).name in self._pending:
                raise refusal(NOT_SERVING, "The node may not answer for this key yet; try again.")

    def check_all(self, view: Any) -> None:
        """Check a request about all entries that the node has, of which every member of the view gets one.

        Until a node that is not asked, because it is a member no more, has lost its lease, it may still answer for
        the entries that it has. Raises as `check`.
        """
        self.check(view, ())
        if self._pending and self.view is not None:
            members = {member.identity for member in self.view.members}
            if any(m.name in self._pending and m.identity not in members for m in self._before.members):
                raise refusal(NOT_SERVING, "A node that was a member before may still answer; try again.")

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

    def adopt(self, view: ClusterView, before: ClusterView = EMPTY, pending: Collection[str] = ()) -> None:
        """Serve under ``view`` from now on.

        Args:
            before: the view before.
            pending: the names of those members of ``before`` that may still answer for keys which they had.
        """
        self.view, self._before, self._pending = view, before, pending
        self.confirms = True
        self._update_open_view()

    def take_over(self, pending: Collection[str]) -> None:
        """Answer for the keys of more members of the view before: ``pending`` are those left, as for `adopt`."""
        self._pending = pending
        self._update_open_view()

    def lapse(self, lapsed: bool) -> bool:
        """Note that the node's lease has ended, or that it has one. Return whether it has just ended."""
        changes = lapsed != self._lapsed
        if changes:
            self._lapsed = lapsed
            self._update_open_view()
        return changes and lapsed

    def not_serving(self) -> PyroError:
        """Return the refusal of a request by a node without a lease."""
        return refusal(NOT_SERVING, "The node cannot be sure that it is still the owner; try again.")

    def stale_view(self) -> PyroError:
        """Return the refusal of a request that was routed with another view."""
        detail = view_to_wire(self.view) if self.view is not None else None
        return refusal(STALE_VIEW, "The request was routed with another view of the nodes.", detail)

    def members(self) -> list[list[Any]]:
        """Return the view as ``[name, host, port, weight, incarnation, socket path]`` each."""
        return list(view_to_wire(self.view)["members"]) if self.view is not None else []

    def ping(self, view: int = NO_VIEW) -> dict[str, Any]:
        """Return what other nodes and clients ask for.

        A caller with a newer ``view`` makes this node query the name server.

        Returns:
            ``name``, ``incarnation`` and ``serving``: whether it is a member with a lease; ``view``: the number of its
            view, and ``id``: the id of it, 0 while the node does not confirm it.

        Raises:
            PyroError: ``view`` is not an int.
        """
        if type(view) is not int:
            raise refusal(BAD_REQUEST, "A view is given by its number.")
        current = self.view
        number = NO_VIEW if current is None else current.number
        if view > number:
            self._on_stale(view)
        serving = current is None or (self.name in current and not self._lapsed)
        confirmed = current.id if current is not None and self.confirms else 0
        own = {"name": self.name, "incarnation": self._incarnation, "serving": serving}
        return {**own, "view": number, "id": confirmed}

    def _update_open_view(self) -> None:
        if self._lapsed or self._pending:
            self.open_view = math.nan
        else:
            self.open_view = NO_VIEW if self.view is None else self.view.number
