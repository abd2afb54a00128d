"""The view of the cluster over time, as one client or one node holds it. The look-up is injected.

The name server is where everybody starts, and forgets everything when it restarts; so a view is never dropped
for an empty listing, and a member that the listing lacks stays while it says itself that it serves (`next_view`).

Thread-safe: ``view`` is replaced whole, and one thread at a time looks up while others wait for its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.runtime.places import Places

EMPTY = ClusterView(())


def next_view(current: ClusterView, listed: Iterable[Member], keep: Callable[[Member], bool]) -> ClusterView:
    """The view after a look into the name server.

    Args:
        current: the view before.
        listed: what the name server lists.
        keep: asked of each member of ``current`` that is not listed: does it stay?
    """
    members = {member.name: member for member in listed}
    for member in current.members:
        if member.name not in members and keep(member):
            members[member.name] = member
    view = ClusterView(members.values())
    return current if view == current else view


class Membership:
    """The latest view, and how to get a later one.

    Args:
        lookup: lists the nodes within the given number of seconds, or raises.
        keep: asked of a member that is no longer listed: does it serve?
    """

    def __init__(
        self,
        lookup: Callable[[float], Iterable[Member]],
        keep: Callable[[Member], bool] = lambda member: False,
    ) -> None:
        self.view = EMPTY
        self._lookup = lookup
        self._keep = keep
        self._turn = Places(1)  # whoever looks up has it
        self._refreshes = 0

    def refresh(self, timeout: float) -> ClusterView:
        """Look up and return the view; one that another thread got while this one waited will do.

        Raises:
            NameServerUnavailable: as the look-up does. ``view`` stays as it was.
        """
        seen = self._refreshes
        turn = self._turn.take(timeout)
        if turn is not None and self._refreshes == seen:
            # An empty listing is a name server that was restarted: the nodes are still where they were.
            listed = list(self._lookup(timeout))
            if listed:
                self.view = next_view(self.view, listed, self._keep)
            self._refreshes += 1
        return self.view

    def adopt(self, view: ClusterView) -> None:
        """Take over a view that a node told of."""
        self.view = view
