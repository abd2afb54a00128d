"""`NodeMembership`: a node's place in the cluster: it joins, keeps its lease, adopts changes of the view, and leaves.

`cluster.fencing` decides who may serve and until when; this module asks the name server and the other members, and
tells the rest of the node. ``docs/failure-modes.md`` describes the protocol.

Thread safety: the main thread calls it, except `rumour`, which any thread may call.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from pyrocache.cluster.fencing import Fencing, Heard, Identity
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import EMPTY, LARGEST_NUMBER
from pyrocache.config import Encryption, NodeConfig, parse_address
from pyrocache.errors import ConfigurationError, NameServerUnavailable, NameTaken, PyroCacheError
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import PREFIX, Directory, Listing, NameServerDirectory, explain_obstacle
from pyrocache.node.peers import Peers, is_here
from pyrocache.node.service.ownership import Ownership
from pyrocache.runtime.clock import now
from pyrocache.runtime.secret import Secret

log = logging.getLogger("pyrocache.node")

MOST_NODES = 1010
"""The most members of a cluster. A listing of 1,021 nodes and two views is more than one message may hold."""

_PAUSE_SECONDS = 0.02  # between attempts to join
_LOST_NUMBERS = 8  # of views that a name server has forgotten, and that are not put back: at most one
_HELD_UP_SECONDS = 8.0  # after that, a node that cannot join says why
_OBSTACLE_SECONDS = (
    2.0  # likewise, if an entry is in the way. A listing of Pyro5's own name server is not atomic.
)
_LEAVE_SECONDS = 0.5


class NodeMembership:
    """The membership of one node.

    Args:
        config: the settings.
        directory: the name server.
        peers: asks other nodes.
        clock: seconds (`runtime.clock`).
        sleep: waits for some seconds.

    Attributes:
        fencing: what the node knows about the view and its lease.
        serving_until: when the lease ends, by ``clock``.
        silent: the names of the members that did not answer when they were last asked.
    """

    def __init__(
        self,
        config: NodeConfig,
        directory: Directory,
        peers: Peers,
        clock: Callable[[], float] = now,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._directory = directory
        self._peers = peers
        self._clock = clock
        self._sleep = sleep
        self._lease = config.lease_seconds
        self._me = Member(f"{PREFIX}1", config.host, 0)  # until `join`
        self._bound = self._me  # this node, at the address where it listens
        self.fencing = Fencing(self._me.identity, self._lease, EMPTY, EMPTY)
        self.serving_until = float("-inf")
        self.silent: tuple[str, ...] = ()
        self._ownership: Ownership | None = None
        self._rumoured = 0  # the largest number of a view that some caller had
        self._blank_at: float | None = None  # since when the name server does not list the view
        self._blank_over = 0  # the connection that this is known from
        self._ticked_at: float | None = None
        self._unreachable = self._foreign = self._displaced = False  # what was logged
        self._obstacle = 0  # the number of the next view, while it cannot be stored
        self._obstacle_at = 0.0  # since when
        self._made = ""  # the id of a cluster that this node has made
        self._reserved = 0  # no view may have a smaller number
        self._waiting = False  # whether it was logged that this node waits for others
        self._forgotten: tuple[
            str, ...
        ] = ()  # the names of nodes of a cluster that the name server has forgotten

    @property
    def view(self) -> ClusterView:
        """The view that the node has acknowledged."""
        return self.fencing.view

    @property
    def settled(self) -> bool:
        """Whether the node may answer for all its keys, if it has a lease."""
        return not self._pending() and self.fencing.valid_at <= self._clock()

    @property
    def in_transition(self) -> bool:
        """Whether the next `tick` should follow soon: a change is not settled, or the name server has lost the view."""
        return not self.settled or self._blank_at is not None

    @property
    def has_lease(self) -> bool:
        """Whether the node may serve at this moment."""
        return self._clock() < self.serving_until

    # Joining ---------------------------------------------------------------------------------------------

    def join(self, unnamed: Member, bound: Member | None = None) -> Member:
        """Find the cluster, or make it, and store the next view, of which this node is a member.

        Args:
            unnamed: the node, with any name.
            bound: the same at the address where it listens, if that is not the registered one.

        Returns:
            The node with its name and its cluster. It does not serve before `tick` has found that it may.

        Raises:
            NameTaken: a live node has the configured name.
            ConfigurationError: there are `MOST_NODES` others.
            PyroCacheError: members that do not answer hold the change up.
        """
        began_at = self._clock()
        self._me = unnamed
        self._bound = bound or unnamed
        while (member := self._try_to_join(self._directory.listing(), began_at)) is None:
            self.check_held_up(began_at)
            self._sleep(_PAUSE_SECONDS)
        self._me = member
        self._peers.introduce(member)
        self._obstacle = 0
        self._register()
        return member

    def attach(self, ownership: Ownership) -> None:
        """Tell ``ownership`` what the node may serve from now on."""
        self._ownership = ownership
        ownership.lapse(True)
        ownership.adopt(self.view, self.fencing.before, self._pending())

    def _try_to_join(self, listing: Listing, began_at: float) -> Member | None:
        if listing.strangers:
            raise ConfigurationError(
                "The name server lists nodes of two clusters: stop those of one of them, or give this node the address "
                "of another name server."
            )
        self._note_obstacle(listing)
        if not listing.view.number:
            return self._begin_cluster(listing, began_at)
        states = self._observe(listing)
        return None if states is None else self._propose_to_join(states, began_at)

    def _observe(self, listing: Listing, dead: Sequence[Identity] = ()) -> dict[Member, Heard] | None:
        """Return the answers of the members of the newest view; None if its change is not settled yet.

        Args:
            dead: members that are known not to exist any more.
        """
        if not listing.complete:  # a member is about to put back what the name server had forgotten
            return None
        if listing.view != self.view:
            self.fencing = Fencing(self._me.identity, self._lease, EMPTY, EMPTY)
            self.fencing = self.fencing.adopt(listing.view, listing.before, self._clock())
        states = self._ask((*listing.view.members, *listing.before.members))
        at = self._clock()
        for identity in dead:
            self.fencing = self.fencing.heard(identity, Heard.GONE, at, at)
        requested_at = self._clock()
        if self._directory.listing().view != self.view:
            return None
        self.fencing = self.fencing.listed(requested_at, self._clock())
        return states if self.fencing.settled(self._clock()) else None

    def _begin_cluster(self, listing: Listing, began_at: float) -> Member | None:
        """Give the cluster an id or a first view. A live node may be about to put back what the name server forgot."""
        if not listing.cluster and self._is_awaited(listing):
            return None
        wait = self._lease + self._config.heartbeat_seconds
        left = wait - max(self._clock() - began_at, self._directory.age())
        waited = left <= 0.0
        if not waited and not self._config.new_cluster and not self._waiting:
            self._waiting = True
            log.warning("The name server lists no nodes: waiting %.1f s for nodes of an older cluster.", left)
        if not listing.cluster:
            if self._config.new_cluster or waited:
                made = secrets.token_hex(8)
                first = min(int(time.time()), LARGEST_NUMBER - 2**24)
                if self._directory.create_cluster(made, first):
                    self._made = made
            return None
        if listing.cluster != self._made and not waited:
            return None
        name = self._config.name or f"{PREFIX}1"
        member = replace(self._me, name=name, cluster=listing.cluster)
        view = ClusterView([member], listing.first or 1, listing.cluster)
        if not self._directory.store_view(view):
            return None
        self.fencing = Fencing(member.identity, self._lease, EMPTY, EMPTY).adopt(view, EMPTY, self._clock())
        return member

    def _is_awaited(self, listing: Listing) -> bool:
        """Return whether nodes of a cluster that the name server has forgotten wait until they can put it back.

        Removes what nodes that are gone have left.
        """
        waiting = [member for member in listing.members if member.cluster]
        states = self._peers.ask(waiting, EMPTY, self._bound) if waiting else []
        gone = [one for one, heard in zip(waiting, states, strict=True) if heard is Heard.GONE]
        for member in gone:
            self._directory.remove(member)
        self._forgotten = tuple(member.name for member in waiting if member not in gone)
        return bool(self._forgotten)

    def _propose_to_join(self, states: dict[Member, Heard], began_at: float) -> Member | None:
        view = self.view
        silent = [member for member in view.members if states[member] is Heard.SILENT]
        if 2 * len(silent) > len(view):  # the change could not become valid
            return None
        name = self._free_name(view, states, began_at)
        if name is None:
            return None
        member = replace(self._me, name=name, cluster=view.cluster)
        others = [other for other in view.members if other.name != name]
        if len(others) >= MOST_NODES:
            raise ConfigurationError(
                f"The cluster has {len(others)} nodes, and {MOST_NODES} are the most that the name server can list: "
                "start another cluster at another name server, or fewer and larger nodes."
            )
        return member if self._store([*others, member], view, member) is not None else None

    def _free_name(self, view: ClusterView, states: dict[Member, Heard], began_at: float) -> str | None:
        """Return a name that no live node has; None if that is not known yet."""
        wanted = self._config.name
        if wanted is None:
            gone = [member.number for member in view.members if states[member] is Heard.GONE]
            taken = {member.number for member in view.members}
            return f"{PREFIX}{min(gone or [min(set(range(1, len(taken) + 2)) - taken)])}"
        holder = view.member(wanted)
        if holder is None or states[holder] is Heard.GONE:
            return wanted
        if states[holder] is Heard.SILENT:
            return wanted if self._clock() - began_at >= self._lease else None
        raise NameTaken(
            f"{wanted} is held by a live node at the name server {self._config.nameserver}: "
            "stop that one first, or start this one under another name."
        )

    def check_held_up(self, began_at: float, what: str = "This node cannot join") -> None:
        """Raise `PyroCacheError`, which says what to do, if something holds a change of the view up too long.

        Args:
            began_at: since when it is tried.
            what: the beginning of the sentence.
        """
        at = self._clock()
        if self._obstacle and at - self._obstacle_at > _OBSTACLE_SECONDS:
            reason = explain_obstacle(self._config.nameserver, self._obstacle)
            raise PyroCacheError(f"The view of the cluster cannot be changed: {reason}")
        if self._peers.mismatch:
            raise PyroCacheError(f"{what}: {self._peers.mismatch}")
        if at - began_at <= _HELD_UP_SECONDS + self._lease:
            return
        nameserver = self._config.nameserver
        if self._forgotten:
            names = " and ".join(self._forgotten)
            raise PyroCacheError(
                f"{what}: the name server has forgotten the cluster of {names}, which cannot put it back while most of "
                "its nodes do not answer. Continue those, or end all nodes of that cluster."
            )
        if len(self.silent) == 1:
            raise PyroCacheError(
                f"{what}: {self.silent[0]} does not answer, and may still serve. Continue or end it; if it does not "
                f"exist any more, run: pyrocache nodes remove {self.silent[0]} --force --nameserver {nameserver}"
            )
        if self.silent:
            raise PyroCacheError(
                f"{what}: {' and '.join(self.silent)} do not answer, and may still serve. Continue or end them; for "
                f"each that does not exist any more, run: pyrocache nodes remove NAME --force --nameserver {nameserver}"
            )
        raise PyroCacheError(
            f"{what}: the name server does not answer, or has not got all that the nodes know. See them with: "
            f"pyrocache status --nameserver {nameserver}"
        )

    def _note_obstacle(self, listing: Listing) -> None:
        if listing.obstacle != self._obstacle:
            self._obstacle, self._obstacle_at = listing.obstacle, self._clock()

    def _store(
        self, members: Iterable[Member], before: ClusterView, member: Member, dead: Sequence[Identity] = ()
    ) -> ClusterView | None:
        """Store the view after ``before``, and acknowledge it. Return it; None if another node was faster."""
        listing = self._directory.listing()
        if listing.view != before:
            return None
        proposal = ClusterView(members, listing.next_number, before.cluster, dead, before.number)
        if not self._directory.store_view(proposal, over=listing.connection):
            return None
        old = [view.number for view in listing.views[1:]]
        self._directory.forget_views(old)
        self.fencing = replace(self.fencing, me=member.identity).adopt(proposal, before, self._clock())
        return proposal

    # Striking out ----------------------------------------------------------------------------------------

    def strike_out(self, name: str, *, force: bool = False) -> bool:
        """Remove a dead node from the cluster. Return False if it is not a member.

        Args:
            name: of the node.
            force: remove it although it cannot be seen that it is dead. If it still serves, two nodes answer for its
                keys.

        Raises:
            PyroCacheError: the node is alive, or may be; or other nodes that do not answer hold the change up.
        """
        began_at = self._clock()
        while True:
            listing = self._directory.listing()
            self._note_obstacle(listing)
            member = listing.view.member(name)
            if member is None:
                return False
            dead = [member.identity] if force else []
            states = self._observe(listing, dead)
            if states is not None:
                self._check_dead(member, states[member], force=force)
                others = [other for other in listing.view.members if other is not member]
                proposal = self._store(others, listing.view, self._me, [member.identity])
                if proposal is not None:
                    self._directory.remove(member)
                    self.tell(proposal)
                    return True
            self.check_held_up(began_at, f"{name} cannot be removed now")
            self._sleep(_PAUSE_SECONDS)

    def _check_dead(self, member: Member, heard: Heard, *, force: bool) -> None:
        if heard not in (Heard.SILENT, Heard.GONE):
            raise PyroCacheError(
                f"{member.name} is alive: end its process, and it leaves the cluster by itself."
            )
        if heard is Heard.SILENT and not force:
            raise PyroCacheError(
                f"{member.name} at {member.address} does not answer, but may still serve. If you know that it does not "
                "exist any more, repeat the command with --force."
            )

    # Serving ---------------------------------------------------------------------------------------------

    def rumour(self, number: int) -> None:
        """Note that a caller had a view with that number."""
        self._rumoured = max(self._rumoured, number)

    def tick(self) -> None:
        """Ask the name server and, if needed, the members; adopt a newer view; renew the lease.

        Raises:
            NameTaken: the node is no longer a member.
        """
        at = self._look_for_standstill()
        self._ticked_at = at
        if self._rumoured > self.view.number:
            self.fencing = self.fencing.rumour(at)
        if self._needs_number() and self.fencing.settled(at):
            self._renumber()
        confirmed = self._ask_name_server()
        if not confirmed or not self.fencing.settled(self._clock()):
            self._ask((*self.view.members, *self.fencing.before.members))
        else:
            self.silent = ()
        self._renew()

    def _look_for_standstill(self) -> float:
        """Return the time, after noting whether this node stood still since it began the last round of questions."""
        at = self._clock()
        if self._ticked_at is not None and at - self._ticked_at > self._lease * 3 / 8:
            self.fencing = self.fencing.standstill(at)
        return at

    def _needs_number(self) -> bool:
        """Return whether the view needs another number: its tokens are nearly used up, or it was put back."""
        if self._ownership is None:
            return False
        return self._ownership.needs_number or 0 < self.view.number < self._reserved

    def _renumber(self) -> None:
        """Make a view of the same members."""
        with contextlib.suppress(NameServerUnavailable):
            before = self.view
            view = self._store(before.members, before, self._me)
            if view is not None and self._ownership is not None:
                self._ownership.adopt(view, before, self._pending())

    def _ask_name_server(self) -> bool:
        """Return whether the name server confirms the view."""
        requested_at = self._clock()
        try:
            listing = self._directory.listing(self._lease / 4)
            if listing.cluster not in ("", self._me.cluster):
                self._note_foreign()
                return False
            if listing.view.number > self.view.number:
                requested_at = self._clock()
                listing = self._follow()
        except NameServerUnavailable as error:
            # If it does not exist any more, it cannot tell anybody of a newer view.
            here = error.refused and self._all_here()
            at = self._clock()
            self.fencing = self.fencing.unlisted(requested_at) if here else self.fencing.rumour(at)
            if not self._unreachable:
                log.warning("%s: serving on without the name server. %s", self._me.name, error)
            self._unreachable = True
            return False
        if self._unreachable:
            log.warning("%s: the name server is back.", self._me.name)
        self._unreachable = self._foreign = False
        self._reserved = listing.reserved
        if listing.view.number < self.view.number:
            self.fencing = self.fencing.unlisted(requested_at)
            self._put_back(listing)
            return False
        if listing.view.id != self.view.id or listing.view.number > self.view.number:
            self.fencing = self.fencing.rumour(self._clock())
            return False
        self._blank_at = None
        self._rumoured = 0
        self.fencing = self.fencing.listed(requested_at, self._clock())
        if self._me not in listing.members and self._me in self.view.members:
            self._register()
        return True

    def _register(self) -> None:
        """Register this node, which is a member already. If that fails, the next `tick` tries again."""
        with contextlib.suppress(NameServerUnavailable):
            registered = self._directory.register(self._me, self._lease / 2)
            if not registered and not self._displaced:
                log.warning(
                    "%s: the name server lists another live node by this name; serving on.", self._me.name
                )
            self._displaced = not registered

    def _follow(self) -> Listing:
        """Adopt the newest view. Before that, stop to confirm the present one, and look again."""
        if self._ownership is not None:
            self._ownership.prepare()
        self.fencing = self.fencing.prepare(self._clock())
        listing = self._directory.listing(self._lease / 4)
        before = listing.before
        if not listing.complete and self.view.number == listing.view.previous:
            before = self.view
        known = listing.complete or before is self.view
        if listing.view.number <= self.view.number or not known:
            if self._ownership is not None:
                self._ownership.confirm()
            self.fencing = replace(self.fencing, preparing=False)
            return listing
        if not any(member.identity == self._me.identity for member in listing.view.members):
            raise NameTaken(f"{self._me.name} was removed from the cluster, or replaced; this node ends.")
        self.fencing = self.fencing.adopt(listing.view, before, self._clock())
        if self._ownership is not None:
            self._ownership.adopt(listing.view, before, self._pending())
        return listing

    def _put_back(self, listing: Listing) -> None:
        """Put the view back into a name server that has lost it, if enough members have confirmed it since."""
        over = listing.connection
        if self._blank_at is None or self._blank_over != over:  # another process may be there by now
            self._blank_at, self._blank_over = self._clock(), over
        if self._me not in self.view.members:
            return
        if not self.fencing.may_put_back(self._blank_at, all_here=self._all_here()):
            if not listing.cluster and self._me not in listing.members:
                self._register()  # whoever starts now must not begin another cluster
            return
        before = self.fencing.before
        first, reserved = before.number or self.view.number, self.view.number + _LOST_NUMBERS
        cluster = self._me.cluster
        try:
            if not listing.cluster and not self._directory.create_cluster(
                cluster, first, reserved, over=over
            ):
                return
            # The newest one first: without the other, nobody adopts it; the other alone would be followed.
            for view in (self.view, before):
                if view.number > listing.view.number:
                    self._directory.store_view(view, over=over)
        except NameServerUnavailable:
            return
        self._register()
        log.warning("%s: the name server had forgotten the cluster; it is registered again.", self._me.name)

    def _ask(self, members: Iterable[Member]) -> dict[Member, Heard]:
        """Ask members, and note what they say."""
        asked = [m for m in dict.fromkeys(members) if m.identity != self._me.identity]
        sent_at = self._clock()
        states = dict(zip(asked, self._peers.ask(asked, self.view, self._bound), strict=True))
        received_at = self._clock()
        answers = ((member.identity, heard) for member, heard in states.items())
        self.fencing = self.fencing.heard_all(answers, sent_at, received_at)
        self.silent = tuple(member.name for member, heard in states.items() if heard is Heard.SILENT)
        return states

    def _all_here(self) -> bool:
        """Return whether all members and the name server are on this host."""
        hosts = {member.host for member in self.view.members}
        nameserver = parse_address(self._config.nameserver)[0]
        return all(is_here(host, self._bound.host) for host in (nameserver, *hosts))

    def _renew(self) -> None:
        # Once more: gone members must not count if the node stood still since it has asked.
        at = self._look_for_standstill()
        until = self.fencing.serves_until(all_here=self._all_here())
        if not self.fencing.before.members and self.fencing.valid_at > at:
            until = float("-inf")  # the first view must be known to be the first one
        self.serving_until = until
        if self._ownership is not None:
            self._ownership.take_over(self._pending())
            self._ownership.renew(until, at)

    def _pending(self) -> frozenset[str]:
        """Return the names of the members of the view before that may still serve what they had."""
        others = (member for member in self.fencing.before.members if member.identity != self._me.identity)
        return frozenset(member.name for member in others if not self.fencing.is_free(member))

    def _note_foreign(self) -> None:
        if not self._foreign:
            log.error(
                "%s: the name server lists another cluster; serving on in the present one.", self._me.name
            )
        self._foreign = True

    # Leaving ---------------------------------------------------------------------------------------------

    def leave(self) -> ClusterView | None:
        """Store a view without this node, and acknowledge it. Return it; None if that is not possible now."""
        give_up_at = self._clock() + _LEAVE_SECONDS
        try:
            while self._clock() < give_up_at:
                self.tick()
                if self.fencing.settled(self._clock()):
                    before = self.view
                    others = [member for member in before.members if member.identity != self._me.identity]
                    proposal = self._store(others, before, self._me, () if others else self._stop())
                    if proposal is not None:
                        if self._ownership is not None:
                            self._ownership.adopt(proposal, before)
                        self._directory.remove(self._me, timeout=_LEAVE_SECONDS)
                        return proposal
                self._sleep(_PAUSE_SECONDS / 4)
        except (NameServerUnavailable, NameTaken):
            pass
        return None

    def _stop(self) -> list[Identity]:
        """Stop serving. Return the identity of this node, as a list of members that do not exist any more.

        Nobody else can confirm the change by which the last node leaves. On other hosts, that this one is gone is not
        seen, and nobody could join any more.
        """
        if self._ownership is not None:
            self._ownership.lapse(True)  # if the change is not stored, the next `tick` renews the lease
        return [self._me.identity]

    def tell(self, view: ClusterView) -> None:
        """Make the members of ``view`` query the name server for it."""
        self._peers.ask([m for m in view.members if m.identity != self._me.identity], view, self._bound)


def strike_out(
    nameserver: str, name: str, secret: Secret, *, force: bool = False, tls: Encryption = None
) -> bool:
    """Remove a dead node, see `NodeMembership.strike_out`; or the entry that is the `Listing.obstacle`."""
    peers = Peers(caller=knowing(secret, tls=tls))
    directory = NameServerDirectory(nameserver, keep=True, caller=knowing(secret, trusting=True, tls=tls))
    membership = NodeMembership(NodeConfig(nameserver=nameserver), directory, peers)
    try:
        return directory.remove_obstacle(name) or membership.strike_out(name, force=force)
    finally:
        peers.close()
        directory.close()
