"""How the view of the cluster goes on from one look into the name server to the next. Pure.

The name server is where everybody starts, and forgets everything when it restarts; so a view is never dropped for an
empty listing, and a member that the listing lacks stays while it says itself that it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from pyrocache.cluster.routing import ClusterView, Member

EMPTY = ClusterView(())


def next_view(
    current: ClusterView, listed: Iterable[Member], serving: Callable[[Sequence[Member]], Collection[Member]]
) -> ClusterView:
    """Return the view after a look into the name server; ``current`` itself if nothing is new.

    Args:
        current: the view before.
        listed: what the name server lists.
        serving: called with all members of ``current`` that are not listed, if there are any; returns those that stay.
    """
    members = {member.name: member for member in listed}
    missing = [member for member in current.members if member.name not in members]
    if missing:
        members.update((member.name, member) for member in serving(missing))
    view = ClusterView(members.values())
    return current if view == current else view
