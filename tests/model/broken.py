"""Rules with one mistake each, and a scenario in which it shows."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from pyrocache.cluster.fencing import Fencing, Heard
from tests.model.scenarios import scenario

_NOW = 0  # times in the model are relative


class TakesOverAtOnce(Fencing):
    """Does not wait until the leases of silent owners are over."""

    __slots__ = ()

    def is_free(self, owner: Any) -> bool:
        return owner.identity in self.acknowledged or self.valid_at <= _NOW


class TakesOverInvalid(Fencing):
    """Takes over what an owner had that has acknowledged a change, though the change may still be lost."""

    __slots__ = ()

    def is_free(self, owner: Any) -> bool:
        return owner.identity in self.acknowledged or super().is_free(owner)


class TakesOverUnlisted(Fencing):
    """Waits for a lease, and does not look whether the name server still lists the change then."""

    __slots__ = ()

    def is_free(self, owner: Any) -> bool:
        return owner.identity in self.acknowledged or self.valid_at + self.lease <= _NOW


class ConfirmsOlder(Fencing):
    """Confirms the view before its own."""

    __slots__ = ()

    def answer(self, view: Any) -> Heard:
        return Heard.SAME if view in (self.view, self.before) else super().answer(view)


class ConfirmsWhilePreparing(Fencing):
    """Confirms its view after it has seen a newer one."""

    __slots__ = ()

    def prepare(self, now: float) -> Fencing:
        return replace(super().prepare(now), preparing=False)


class ValidUnlisted(Fencing):
    """Takes a change to be valid without a look at the name server after the acknowledgements."""

    __slots__ = ()

    def heard(self, member: tuple[str, str], heard: Heard, sent_at: float, now: float) -> Fencing:
        after = super().heard(member, heard, sent_at, now)
        return replace(after, valid_at=now) if after.enough_at < math.inf == after.valid_at else after


class CountsTheGone(Fencing):
    """Counts a gone member for a majority, though another one is silent."""

    __slots__ = ()

    def alone_at(self) -> float:
        if self.doubts:
            return -math.inf
        at = sorted(self._times((*self.gone, *self.live)))
        return at[(len(at) - 1) // 2]


class NeverDoubts(Fencing):
    """Counts gone members after a standstill, a rumour, or while the name server is silent."""

    __slots__ = ()

    def rumour(self, now: float) -> Fencing:
        return self

    standstill = rumour


class ForgetsStandstill(Fencing):
    """Counts gone members after a standstill."""

    __slots__ = ()

    def standstill(self, now: float) -> Fencing:
        return self


class PutsBackAlone(Fencing):
    """Puts a view back without asking anybody."""

    __slots__ = ()

    def may_put_back(self, blank_at: float, *, all_here: bool) -> bool:
        return True


MISTAKES = {
    "skip the wait for the lease": scenario("ab", "j joiner", fencing=TakesOverAtOnce),
    "use the number of a lost view again": scenario(
        "ab", "j joiner, k joiner", "wipe name server", reuses_numbers=True
    ),
    "take over without another listing": scenario(
        "ab", "b dead, j joiner", "cut from j2 a1", "wipe name server", fencing=TakesOverUnlisted, lease=4
    ),
    "ignore the incarnation": scenario("ab", "b rival", by_name=True),
    "count the lease from receipt": scenario(
        "ab", "j joiner", "ask, answers are late a1", lease_from_receipt=True
    ),
    "take refused from another host for gone": scenario(
        "ab", "j joiner", "cut between a1 j2", one_host=False, refused_means_gone=True
    ),
    "count a dead member that had acknowledged the next view": scenario(
        "ab", "a rival", "isolate a1", "kill b1", "wipe name server", fencing=NeverDoubts
    ),
    "forget a standstill": scenario(
        "ab", "a asleep, a rival", "kill b1", "wipe name server", fencing=ForgetsStandstill
    ),
    "confirm a view after the next one": scenario(
        "ab", "j joiner", "cut from b1 name server", fencing=ConfirmsOlder
    ),
    "put back without a majority": scenario(
        "ab", "b asleep, b remover", "wipe name server", fencing=PutsBackAlone
    ),
    "propose before the last change has ended": scenario(
        "ab", "j joiner, k joiner", propose_unsettled=True, lease=3
    ),
    "take a silent name server for an empty one": scenario(
        "ab", "b dead, j joiner", "cut from a1 name server", "cut from j2 a1", trusting=True
    ),
}

_rival = partial(scenario, "ab", "b rival, j joiner", "ask, answers are late b1", "wipe name server")

SPARE = {
    "take over before the change is valid": scenario(
        "abc", "j joiner, b rival", "wipe name server", "kill b1", fencing=TakesOverInvalid
    ),
    "count the gone while others are silent": scenario(
        "abc",
        "b dead, c rival, j joiner",
        "cut from a1 c1",
        "cut from j2 a1",
        "wipe name server",
        fencing=CountsTheGone,
        heals=False,
    ),
    "valid without a listing": _rival(fencing=ValidUnlisted),
    "acknowledge without prepare": _rival(unprepared=True),
    "acknowledge without prepare, valid without a listing": _rival(unprepared=True, fencing=ValidUnlisted),
    "reconnect to another name server": scenario(
        "ab", "b rival, j joiner", "wipe name server", "wipe name server", reconnects=True
    ),
}
"""Mistakes for which no search has found a violation: another rule seems to prevent it, or the search is too small
(``tests/unit/node/test_members_together.py`` shows what the first one does). For searches by hand."""
