"""`Membership`: the latest cluster view that one client has, and how it is refreshed.

The look-up is injected. One thread at a time looks up, while other threads wait for its result; ``view`` is replaced as
a whole. The right to look up is a permit in a queue, taken and put back as ``net/pool.py`` explains, so an exception
from a signal handler cannot lose it. `client.routing.views` decides when to refresh.

Thread safety: thread-safe.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Collection, Sequence
from contextlib import closing

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import EMPTY
from pyrocache.net.calls import Connections, Request
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import Listing
from pyrocache.protocol import commands
from pyrocache.runtime.log import logger

_PING_SECONDS = 0.5
_WAITING = (True,)


class Membership:
    """A view that is kept up to date.

    Args:
        lookup: lists what is registered within the given number of seconds, or raises.
        serving: returns those of the given members that serve; takes the time limit in seconds.

    Attributes:
        view: the latest view; empty at first.
    """

    def __init__(
        self,
        lookup: Callable[[float], Listing],
        serving: Callable[[Sequence[Member], float], Collection[Member]] = lambda members, seconds: (),
    ) -> None:
        self.view = EMPTY
        self._lookup = lookup
        self._serving = serving
        self._permit: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._permit.put(None)
        self._refreshes = 0

    def refresh(self, timeout: float) -> ClusterView:
        """Look up and return the view, or return the one that another thread looked up meanwhile.

        Raises:
            NameServerUnavailable: from the look-up. ``view`` is unchanged.
        """
        deadline = Deadline(timeout)
        seen = self._refreshes
        try:
            # Not a call in Python, so no signal handler can run between the permit and the next ``try``.
            (_,) = map(self._permit.get, _WAITING, (timeout,))
        except queue.Empty:
            return self.view
        try:
            if self._refreshes == seen:
                listing = self._lookup(max(deadline.remaining(), 0.001))
                self._take(listing, deadline)
                self._refreshes += 1
        finally:
            self._permit.put(None)
        return self.view

    def offer(self, view: ClusterView) -> bool:
        """Use a view that a node has sent, if it is a newer one of the same cluster. Return whether it is used."""
        current = self.view
        newer = view.number > current.number and view.cluster == current.cluster
        if newer:
            self.view = view
        return newer

    def _take(self, listing: Listing, deadline: Deadline) -> None:
        """Use what the name server lists, unless the view is newer: the name server may have been restarted."""
        current, listed = self.view, listing.view
        if not listed.number:
            # No view: nodes of a stock Pyro5 daemon, or a name server that has forgotten all.
            if listing.members and not current.number:
                self.view = ClusterView(listing.members)
        elif not current.number or listed.cluster == current.cluster:
            # An equal one does not know its owners yet. A node may have sent a view without zones.
            same = listed == current and listed.zones == current.zones
            if listed.number >= current.number and not same:
                self.view = listed
        elif not self._serving(current.members, deadline.remaining()):
            logger("pyrocache.client").warning(
                "The cluster was replaced: no node of %s serves, and the name server lists another one.",
                current,
            )
            self.view = listed


def serving_members(
    connections: Connections, members: Sequence[Member], seconds: float
) -> Collection[Member]:
    """Ping all members in parallel. Return those that report within ``seconds``, at most 0.5, that they serve.

    Without time for a ping, return all: a member is not given up without one.
    """
    if seconds <= 0:
        return members
    requests = [Request(member, commands.PING, ()) for member in members]
    with closing(connections.exchange(requests, Deadline(min(seconds, _PING_SECONDS)))) as outcomes:
        answers = [(members[index], outcome) for index, outcome in outcomes if isinstance(outcome, dict)]
    return [member for member, answer in answers if answer.get("serving") is True]
