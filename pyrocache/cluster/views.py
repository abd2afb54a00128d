"""`next_view`: the cluster view that follows from a listing of the name server.

The name server forgets its entries when it restarts. Therefore an empty listing does not replace a view, and a member
that is missing from the listing stays in the view while it answers that it serves.

Pure: no I/O, no threads, no clock; the caller passes in the function that queries the members.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from pyrocache.cluster.routing import ClusterView, Member

EMPTY = ClusterView(())


def next_view(
    current: ClusterView, listed: Iterable[Member], serving: Callable[[Sequence[Member]], Collection[Member]]
) -> ClusterView:
    """Return the view after a query of the name server; ``current`` itself if nothing has changed.

    Args:
        current: the view before.
        listed: the members that the name server lists.
        serving: called with all members of ``current`` that are not listed, if there are any; returns those that serve.
    """
    members = {member.name: member for member in listed}
    missing = [member for member in current.members if member.name not in members]
    if missing:
        members.update((member.name, member) for member in serving(missing))
    view = ClusterView(members.values())
    return current if view == current else view
