"""`Fencing`: what one node knows about who may serve, and until when it may serve itself.

Two rules keep two nodes from serving one key at the same time (``docs/failure-modes.md`` has the argument):

- *Lease.* A node serves under its view for ``lease`` seconds after it has *sent* a question that was answered by a
  confirmation: the name server lists this view as the newest one, or more than half of the members, itself included,
  have this very view. A node that has acknowledged a newer view does not confirm an older one any more.
- *Change of the view.* A change is *valid* once at least half of the members of the view before have acknowledged it
  and the name server has been seen to list it after that. Until then, more than half may still confirm the old view.
  From then on, nobody gets a new lease under the old view, so all leases under it are over ``lease`` seconds later. A
  node takes over what another one owned when that one has acknowledged the change, is gone, or when a listing that was
  requested ``lease`` seconds after the change was valid still shows the view.

*Gone* means that the system refused a connection on this same host: the process does not exist. A gone member counts as
one that acknowledges every change. It also lets the last nodes of a host go on (see `Fencing.alone_at`), but only while
a node has reason to believe that it has missed no change: it ran, the name server answered or was gone whenever it
asked, and nobody told it of a newer view (see `Fencing.standstill` and `Fencing.rumour`). This is why the listing is
looked at once more before the keys of a silent owner are taken over: within ``lease`` seconds that owner must have
asked the name server that lists the change, or have lost its trust in the gone ones.

A view that the name server has lost is put back by its members (see `Fencing.may_put_back`).

A `Fencing` is a value: each event returns the one after it. Times are seconds of one clock, which the caller reads.
Pure: no I/O, no threads, no clock.

Thread safety: thread-safe; immutable.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from pyrocache.cluster.routing import ClusterView, Member

_NEVER = -math.inf

Identity: TypeAlias = tuple[str, str]
"""The name and the incarnation of a member: one start of one node."""

Times: TypeAlias = tuple[tuple[Identity, float], ...]
"""For some members, the time when the question was sent that they have answered."""


class Heard(enum.Enum):
    """The outcome of a question to a member: which view does it have?"""

    SAME = "same"
    """It has this node's view, number and members."""
    NEWER = "newer"
    """It has acknowledged a view with a larger number."""
    OTHER = "other"
    """It has an older view, or does not confirm any at this moment."""
    SILENT = "silent"
    """It does not answer. It may be suspended or cut off, and may come back."""
    GONE = "gone"
    """It does not exist any more: the system has refused the connection, on this host."""


@dataclass(frozen=True, slots=True)
class Fencing:
    """The knowledge of one node, or of one that wants to join.

    Attributes:
        me: the node.
        lease: seconds.
        view: its view.
        before: the view with the number before, or an empty one.
        acknowledged: the members of ``before`` that have acknowledged ``view``, or are gone.
        enough_at: when they were first at least half.
        valid_at: when the change was known to be valid.
        nameserver_at: when the listing was requested that confirmed the view last.
        unlisted_at: when the name server was last asked and listed nothing as new as the view, or was gone.
        live: the confirmations of members.
        gone: when members were last found to be gone.
        doubts: whether gone members do not count for the lease.
        doubted_at: since when.
        preparing: whether it is about to acknowledge a newer view, and does not confirm the present one.
    """

    me: Identity
    lease: float
    view: ClusterView
    before: ClusterView
    acknowledged: frozenset[Identity] = frozenset()
    enough_at: float = math.inf
    valid_at: float = math.inf
    nameserver_at: float = _NEVER
    unlisted_at: float = _NEVER
    live: Times = ()
    gone: Times = ()
    doubts: bool = False
    doubted_at: float = _NEVER
    preparing: bool = False

    def adopt(self, view: ClusterView, before: ClusterView, now: float) -> Fencing:
        """Acknowledge ``view``, whose predecessor is ``before``. Nothing that was known of the old view counts.

        The name server must list ``view`` as the newest one, in a listing that was requested after `prepare`.
        """
        adopted = type(self)(
            self.me, self.lease, view, before, doubts=self.doubts, doubted_at=self.doubted_at
        )
        return adopted._acknowledge((self.me, *view.dead), now)

    def prepare(self, now: float) -> Fencing:
        """Stop to confirm the view: the name server lists a newer one."""
        return replace(self.rumour(now), preparing=True)

    def answer(self, view: ClusterView) -> Heard:
        """Return the answer to a node that asks whether this one has ``view``."""
        if self.view.number > view.number:
            return Heard.NEWER
        return Heard.SAME if self.view == view and not self.preparing else Heard.OTHER

    def listed(self, sent_at: float, now: float) -> Fencing:
        """Note that the name server lists ``view`` as the newest, in a listing that was requested at ``sent_at``."""
        valid_at = min(self.valid_at, now) if self.enough_at < sent_at else self.valid_at
        latest = max(self.nameserver_at, sent_at)
        confirmed = replace(self, nameserver_at=latest, valid_at=valid_at, preparing=False)
        return replace(confirmed, doubts=False) if sent_at > self.doubted_at else confirmed

    def unlisted(self, sent_at: float) -> Fencing:
        """Note that the name server lists only older views or none, or that it is gone, asked at ``sent_at``.

        If it does not answer, or lists another view with the same number, call `rumour`.
        """
        return replace(self, unlisted_at=max(self.unlisted_at, sent_at))

    def heard(self, member: Identity, heard: Heard, sent_at: float, now: float) -> Fencing:
        """Note what ``member``, one of ``view`` or of ``before``, has answered to a question sent at ``sent_at``."""
        return self.heard_all([(member, heard)], sent_at, now)

    def heard_all(self, answers: Iterable[tuple[Identity, Heard]], sent_at: float, now: float) -> Fencing:
        """Note the answers of several members, as `heard` one after the other, those with a newer view last.

        Takes time in proportion to the number of members.
        """
        acknowledged, live, gone = [], dict(self.live), dict(self.gone)
        same = newer = False
        for member, heard in answers:
            if heard in (Heard.SAME, Heard.NEWER, Heard.GONE):
                acknowledged.append(member)
            if heard is Heard.SAME:
                same, live[member] = True, max(live.get(member, _NEVER), sent_at)
            elif heard is Heard.GONE:
                gone[member] = max(gone.get(member, _NEVER), sent_at)
            newer = newer or heard is Heard.NEWER
        after = self._acknowledge(acknowledged, now) if acknowledged else self
        after = replace(after, live=tuple(sorted(live.items())), gone=tuple(sorted(gone.items())))
        if same and after.doubts and after.majority_at() > after.doubted_at:
            after = replace(after, doubts=False)
        return after.rumour(now) if newer else after

    def rumour(self, now: float) -> Fencing:
        """Note that a newer view exists, or that it may: the name server does not answer.

        From now on gone members do not count: they may have acknowledged the newer view before they ended.
        """
        return replace(self, doubts=True, doubted_at=now, gone=())

    standstill = rumour
    """Note that this node did not run for three eighths of a lease or more. It may have missed a rumour."""

    def majority_at(self) -> float:
        """Return the latest time after which more than half of the members have confirmed the view."""
        at = sorted(self._times(self.live))
        return at[(len(at) - 1) // 2] if at else _NEVER

    def alone_at(self) -> float:
        """Return the latest time after which each other member was gone or has confirmed the view.

        The name server, too, must have answered or have been gone. Nobody who is silent may be left: it could be the
        one that knows of a newer view.
        """
        if self.doubts:
            return _NEVER
        return min(self.unlisted_at, *self._times((*self.gone, *self.live)))

    def serves_until(self, *, all_here: bool) -> float:
        """Return when the lease ends; infinite for the only member.

        A rumour may make it earlier.

        Args:
            all_here: whether all members and the name server are on this host, so that gone members may count.
        """
        if not any(member.identity == self.me for member in self.view.members):
            return _NEVER
        alone_at = self.alone_at() if all_here else _NEVER
        return max(self.nameserver_at, self.majority_at(), alone_at) + self.lease

    def may_put_back(self, blank_at: float, *, all_here: bool) -> bool:
        """Return whether this member may give its view back to the name server, which does not list it any more.

        More than half of the members must have confirmed it since. Where the others are gone, all leases that the name
        server gave before must be over.

        Args:
            blank_at: when it was first seen that nothing as new as the view is listed, on the *present* connection to
                the name server. The view must be stored through this connection too: a name server that has been
                restarted in the meantime may have known of a newer one.
            all_here: as for `serves_until`.
        """
        return self.majority_at() > blank_at or (all_here and self.alone_at() >= blank_at + self.lease)

    def is_free(self, owner: Member) -> bool:
        """Return whether what ``owner`` had in the view before may be taken over.

        Not before the change is valid, whatever ``owner`` has acknowledged: the change may yet be lost with the name
        server, and the view before be followed by another one.
        """
        if self.valid_at == math.inf:
            return False
        return owner.identity in self.acknowledged or self.nameserver_at >= self.valid_at + self.lease

    def settled(self, now: float) -> bool:
        """Return whether no member has a lease under an older view any more. The next change may begin."""
        return self.valid_at <= now and all(map(self.is_free, self.before.members))

    def _times(self, times: Times) -> list[float]:
        """Return the latest of ``times`` for each member of the view; infinite for this node itself."""
        latest: dict[Identity, float] = {self.me: math.inf}
        for member, at in times:
            latest[member] = max(latest.get(member, _NEVER), at)
        return [latest.get(member.identity, _NEVER) for member in self.view.members]

    def _acknowledge(self, members: Iterable[Identity], now: float) -> Fencing:
        of_before = {other.identity for other in self.before.members}
        acknowledged = self.acknowledged.union(member for member in members if member in of_before)
        enough = 2 * len(acknowledged) >= len(self.before)
        return replace(
            self, acknowledged=acknowledged, enough_at=min(self.enough_at, now) if enough else self.enough_at
        )
