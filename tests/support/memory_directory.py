"""A name server in memory, for tests of a node or a client without processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import NameServerUnavailable
from pyrocache.net.directory import Listing


class MemoryDirectory:
    """The entries of a name server.

    Args:
        views: those that it has, of the cluster ``c1``.

    Attributes:
        away: whether it does not answer.
        gone: whether its process does not exist.
        connection: the number of the kept connection to it.
        seconds_there: what it says to be its age.
        before_listing, before_storing: called before a query is answered, so that things can happen in between.
        held: names of entries that are of live nodes, in the name server's opinion.
        obstacle: the number of an entry that is no view.
        queries: how often it was asked for a listing.
    """

    def __init__(self, *views: ClusterView) -> None:
        self.cluster, self.first = ("c1", min(view.number for view in views)) if views else ("", 0)
        self.reserved = 0
        self.views = {view.number: view for view in views}
        self.entries: dict[str, Member] = {}
        self.held: set[str] = set()
        self.obstacle = 0
        self.away = self.gone = False
        self.connection = 1
        self.seconds_there = 0.0
        self.queries = 0
        self.before_listing: Callable[[], object] = lambda: None
        self.before_storing: Callable[[], object] = lambda: None

    def wipe(self) -> None:
        """Forget everything."""
        self.cluster, self.first, self.reserved = "", 0, 0
        self.views.clear()
        self.entries.clear()

    def listing(self, timeout: float = 5.0) -> Listing:
        self.queries += 1
        self.before_listing()
        self._answer()
        views = sorted(self.views.values(), key=lambda view: -view.number)
        members = [
            one for one in self.entries.values() if one.cluster in ("", self.cluster) or not self.cluster
        ]
        strangers = bool(self.cluster) and len(members) < len(self.entries)
        own = [view for view in views if view.cluster == self.cluster]
        following = max(own[0].number + 1, self.reserved) if own else self.first
        obstacle = self.obstacle if self.obstacle == following else 0
        entries = tuple(own), tuple(members), strangers, obstacle
        return Listing(self.cluster, self.first, *entries, self.connection, self.reserved)

    def create_cluster(
        self, cluster: str, first: int, reserved: int = 0, timeout: float = 5.0, over: int = 0
    ) -> bool:
        self._answer(over)
        if self.cluster:
            return False
        self.cluster, self.first, self.reserved = cluster, first, reserved
        return True

    def store_view(self, view: ClusterView, timeout: float = 5.0, over: int = 0) -> bool:
        self.before_storing()
        self._answer(over)
        return view.number != self.obstacle and self.views.setdefault(view.number, view) is view

    def forget_views(self, numbers: Iterable[int], timeout: float = 5.0) -> None:
        self._answer()
        for number in numbers:
            self.views.pop(number, None)

    def age(self, timeout: float = 5.0) -> float:
        self._answer()
        return self.seconds_there

    def register(self, member: Member, timeout: float = 5.0) -> bool:
        self._answer()
        if member.name in self.held and self.entries.get(member.name, member) != member:
            return False
        self.entries[member.name] = member
        return True

    def remove(self, member: Member, timeout: float = 5.0) -> bool:
        self._answer()
        if self.entries.get(member.name, member).incarnation != member.incarnation:
            return False
        return self.entries.pop(member.name, None) is not None

    def _answer(self, over: int = 0) -> None:
        if self.away or self.gone or over not in (0, self.connection):
            error = NameServerUnavailable("away")
            error.refused = self.gone
            raise error
