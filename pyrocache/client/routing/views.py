"""`Views`: the cluster view that a router uses, and when it queries the name server for a newer one.

A query takes at most a share of the call's deadline. After failures, queries are at least `_PAUSE_SECONDS` apart. After
a timeout, calls that need the name server fail at once for 1 to 2 seconds; then one query decides (`net.suspicion`).

Thread safety: thread-safe; the view is immutable and replaced atomically.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyrocache.cluster.routing import ClusterView
from pyrocache.cluster.views import view_from_wire
from pyrocache.errors import NameServerUnavailable, NoNodes
from pyrocache.late_imports import quoted
from pyrocache.net.backoff import Backoff
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import WatchedLookUp
from pyrocache.net.failures import client_closed
from pyrocache.net.membership import Membership

_PAUSE_SECONDS = 0.05
_LONGEST_SECONDS = 1.0


class Views:
    """The cluster view of one router.

    Args:
        membership: holds the latest view and queries the name server.
        nameserver: what ``membership`` queries.
        clock: monotonic seconds.
        sleep: waits; None for `time.sleep`.
        address: of the name server, for the hints in errors.

    Attributes:
        looked_up_at: when the last query of the name server began, even if it failed.
        closed: whether the router was closed.
    """

    __slots__ = ("_address", "_clock", "_membership", "_nameserver", "_sleep", "closed", "looked_up_at")

    def __init__(
        self,
        membership: Membership,
        nameserver: WatchedLookUp,
        clock: Callable[[], float],
        address: str = "",
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._membership = membership
        self._address = address
        self._nameserver = nameserver
        self._clock = clock
        self._sleep = sleep
        self.looked_up_at = float("-inf")
        self.closed = False

    @property
    def nameserver_problem(self) -> str:
        """Return why the last query of the name server failed, in a sentence; empty if it did not."""
        return self._nameserver.failure

    def known(self, deadline: Deadline) -> ClusterView:
        """Return the latest view. Query the name server if no node is known.

        Raises:
            ClientClosed: the router was closed.
            NameServerUnavailable: no node is known, and no name server answers.
            NoNodes: the name server knows no node.
        """
        if self.closed:
            raise client_closed()
        view = self._membership.view
        if not view.members:
            view = self._first(deadline)
            if not view.members:
                self._nameserver.raise_failure()  # of the query of another thread that this one waited for
                option = f" --nameserver {quoted(self._address)}" if self._address else ""
                raise NoNodes(f"The name server knows no node; start some with: pyrocache nodes{option}")
        return view

    def fresh(self, deadline: Deadline) -> ClusterView:
        """Return the view after a query of the name server, or the last view if the name server does not answer.

        Raises:
            NameServerUnavailable, NoNodes: as `known`.
        """
        if self._membership.view.members:  # so it is not closed
            self._look_up_if_possible(deadline)
        return self.known(deadline)

    def learn(self, sent: Any, number: int) -> bool:
        """Use the view that a node has sent if it is newer. Return whether the latest view is newer than ``number``."""
        view = view_from_wire(sent)
        if view is not None:
            self._membership.offer(view)
        return self._membership.view.number > number

    def after_failure(self, deadline: Deadline, sent: Any = None) -> None:
        """Query the name server, unless it was queried within the last `_PAUSE_SECONDS`.

        Args:
            sent: the view of the node that refused the request. If it is newer than the latest one, it is used and
                the name server is not queried; it is ignored if it is not valid.
        """
        if not self.offer(sent) and self.may_look_up():
            self._look_up_if_possible(deadline)

    def offer(self, sent: Any) -> bool:
        """Use the view that a node has sent, if it is valid and newer. Return whether it is used."""
        view = view_from_wire(sent)
        return view is not None and self._membership.offer(view)

    def may_look_up(self) -> bool:
        """Return whether the name server was not queried within the last `_PAUSE_SECONDS`."""
        return self._clock() - self.looked_up_at >= _PAUSE_SECONDS

    def _first(self, deadline: Deadline) -> ClusterView:
        """Query the name server, again and again while it has too many callers: many clients may start at once."""
        backoff = Backoff(_PAUSE_SECONDS, _LONGEST_SECONDS, sleep=self._sleep)
        while True:
            try:
                return self._look_up(deadline, deadline.remaining())
            except NameServerUnavailable as error:
                if not error.overloaded or deadline.remaining() <= backoff.longest_next:
                    raise
            backoff.pause()

    def _look_up_if_possible(self, deadline: Deadline) -> bool:
        """Query the name server for a part of the deadline only: the request follows. Return whether it answered."""
        try:
            self._look_up(deadline, min(deadline.remaining() / 2, _LONGEST_SECONDS))
        except NameServerUnavailable:
            return False
        return True

    def _look_up(self, deadline: Deadline, seconds: float) -> ClusterView:
        self.looked_up_at = self._clock()
        seconds = self._nameserver.admit(deadline, seconds)
        return self._membership.refresh(max(seconds, 0.001))
