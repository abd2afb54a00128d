"""The rules of `Fencing`, with a test for each."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest

from pyrocache.cluster.fencing import Fencing, Heard
from pyrocache.cluster.routing import Member

LEASE = 2.0


@dataclass(frozen=True)
class View:
    """A view of three lines."""

    number: int
    members: tuple[Member, ...]
    dead: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.members)


def member(number: int, incarnation: str = "one") -> Member:
    return Member(f"cache.node.{number}", "127.0.0.1", 7000 + number, incarnation=incarnation)


A, B, C, D = (member(number) for number in range(1, 5))
NOTHING: Any = View(0, ())
ALONE: Any = View(1, (A,))
PAIR: Any = View(5, (A, B))
THREE: Any = View(6, (A, B, C))


def new(me: Member, view: Any, before: Any = NOTHING, at: float = 0.0) -> Fencing:
    return Fencing(me.identity, LEASE, NOTHING, NOTHING).adopt(view, before, at)


def until(fencing: Fencing, *, all_here: bool = True) -> float:
    return fencing.serves_until(all_here=all_here)


def test_without_a_confirmation_a_node_does_not_serve() -> None:
    assert until(new(A, PAIR)) == -math.inf


def test_a_listing_gives_a_lease_from_its_request() -> None:
    assert until(new(A, PAIR).listed(10.0, 11.0)) == 12.0


def test_an_older_answer_does_not_shorten_the_lease() -> None:
    assert until(new(A, PAIR).listed(10.0, 11.0).listed(9.0, 12.0)) == 12.0


def test_more_than_half_of_the_members_give_a_lease() -> None:
    fencing = new(A, THREE, PAIR).heard(B.identity, Heard.SAME, 10.0, 10.5)
    assert until(fencing) == 12.0


def test_half_of_the_members_do_not() -> None:
    assert until(new(A, PAIR)) == -math.inf
    assert until(new(A, PAIR).heard(B.identity, Heard.OTHER, 10.0, 10.5)) == -math.inf


def test_the_only_member_serves_for_ever() -> None:
    assert until(new(A, ALONE)) == math.inf


def test_who_is_not_a_member_does_not_serve() -> None:
    assert until(new(C, PAIR).listed(10.0, 11.0)) == -math.inf


def test_another_incarnation_does_not_confirm() -> None:
    restarted = member(2, "two")
    fencing = new(A, PAIR).heard(restarted.identity, Heard.SAME, 10.0, 10.5)
    assert until(fencing) == -math.inf


def test_a_node_confirms_its_view_only() -> None:
    fencing = new(A, THREE, PAIR)
    assert fencing.answer(THREE) is Heard.SAME
    assert fencing.answer(PAIR) is Heard.NEWER
    assert fencing.answer(View(7, (A,))) is Heard.OTHER  # type: ignore[arg-type]
    assert fencing.answer(View(6, (A, B, D))) is Heard.OTHER  # type: ignore[arg-type]


def test_a_node_that_prepares_does_not_confirm_until_its_view_is_listed_again() -> None:
    preparing = new(A, PAIR).prepare(1.0)
    assert preparing.answer(PAIR) is Heard.OTHER
    assert preparing.listed(2.0, 2.0).answer(PAIR) is Heard.SAME


def test_a_change_is_valid_once_it_is_listed_after_half_have_acknowledged_it() -> None:
    fencing = new(C, THREE, PAIR)
    assert fencing.listed(1.0, 1.0).valid_at == math.inf
    enough = fencing.heard(A.identity, Heard.SAME, 1.0, 2.0)
    assert enough.valid_at == math.inf
    assert enough.listed(2.0, 2.1).valid_at == math.inf  # not after it
    assert enough.listed(2.5, 3.0).valid_at == 3.0


@pytest.mark.parametrize("heard", [Heard.SAME, Heard.NEWER, Heard.GONE])
def test_what_acknowledges_a_change(heard: Heard) -> None:
    assert new(C, THREE, PAIR).heard(A.identity, heard, 1.0, 2.0).enough_at == 2.0


@pytest.mark.parametrize("heard", [Heard.OTHER, Heard.SILENT])
def test_what_does_not_acknowledge_a_change(heard: Heard) -> None:
    assert new(C, THREE, PAIR).heard(A.identity, heard, 1.0, 2.0).enough_at == math.inf


def test_a_new_member_does_not_acknowledge_for_the_old_ones() -> None:
    assert new(C, THREE, PAIR).acknowledged == frozenset()
    assert new(A, THREE, PAIR).acknowledged == {A.identity}


def valid(at: float) -> Fencing:
    """Return what C knows after A has acknowledged, and the name server has listed the change."""
    return new(C, THREE, PAIR).heard(A.identity, Heard.SAME, at - 1, at - 0.5).listed(at, at)


def test_what_an_owner_had_is_free_when_it_has_acknowledged() -> None:
    assert valid(5.0).is_free(A)
    assert not valid(5.0).is_free(B)


def test_what_a_silent_owner_had_is_free_when_the_change_is_still_listed_a_lease_later() -> None:
    fencing = valid(5.0)
    assert not fencing.is_free(B)  # the name server may have lost the change
    assert not fencing.listed(6.9, 7.1).is_free(B)
    assert fencing.listed(7.0, 7.1).is_free(B)


def test_a_change_is_settled_when_everything_is_free() -> None:
    assert not valid(5.0).settled(5.0)
    assert valid(5.0).heard(B.identity, Heard.GONE, 5.0, 5.0).settled(5.0)


def alone(at: float) -> Fencing:
    """Return what A knows when B is gone and the name server lists nothing."""
    return new(A, PAIR).unlisted(at).heard(B.identity, Heard.GONE, at, at)


def test_the_last_node_of_a_host_goes_on() -> None:
    assert until(alone(10.0)) == 12.0


def test_the_gone_do_not_count_where_members_are_on_other_hosts() -> None:
    assert until(alone(10.0), all_here=False) == -math.inf


def test_the_gone_do_not_count_while_another_member_is_silent() -> None:
    fencing = new(A, THREE, PAIR).unlisted(10.0).heard(B.identity, Heard.GONE, 10.0, 10.0)
    assert until(fencing) == -math.inf
    assert until(fencing.heard(C.identity, Heard.SAME, 10.0, 10.0)) == 12.0


def test_the_gone_do_not_count_unless_the_name_server_was_heard_of() -> None:
    assert until(new(A, PAIR).heard(B.identity, Heard.GONE, 10.0, 10.0)) == -math.inf


@pytest.mark.parametrize("event", [Fencing.rumour, Fencing.standstill, Fencing.prepare])
def test_the_gone_do_not_count_after(event: Any) -> None:
    after = event(alone(10.0), 10.5)
    assert until(after) == -math.inf
    again = after.unlisted(11.0).heard(B.identity, Heard.GONE, 11.0, 11.0)
    assert until(again) == -math.inf


def test_a_member_with_a_newer_view_is_a_rumour() -> None:
    fencing = alone(10.0).heard(B.identity, Heard.NEWER, 10.5, 10.6)
    assert fencing.doubts
    assert until(fencing) == -math.inf


def test_a_later_listing_or_majority_ends_the_doubts() -> None:
    doubting = new(A, THREE, PAIR).rumour(10.0)
    assert doubting.listed(10.0, 10.5).doubts
    assert not doubting.listed(10.1, 10.5).doubts
    assert doubting.heard(B.identity, Heard.SAME, 10.0, 10.5).doubts
    assert not doubting.heard(B.identity, Heard.SAME, 10.1, 10.5).doubts


def test_doubts_outlive_a_change() -> None:
    assert new(A, PAIR).rumour(10.0).adopt(THREE, PAIR, 11.0).doubts


def test_a_majority_that_confirms_after_the_loss_puts_a_view_back() -> None:
    fencing = new(A, PAIR).heard(B.identity, Heard.SAME, 10.0, 10.1)
    assert fencing.may_put_back(9.9, all_here=False)
    assert not fencing.may_put_back(10.0, all_here=False)


def test_the_last_node_puts_a_view_back_when_the_leases_are_over() -> None:
    fencing = alone(10.0)
    assert fencing.may_put_back(8.0, all_here=True)
    assert not fencing.may_put_back(8.1, all_here=True)
    assert not fencing.may_put_back(8.0, all_here=False)
    assert not fencing.rumour(10.0).may_put_back(8.0, all_here=True)


def test_a_new_view_forgets_what_was_known_of_the_old_one() -> None:
    adopted = new(A, PAIR).listed(10.0, 10.0).adopt(THREE, PAIR, 10.5)
    assert until(adopted) == -math.inf
    assert not adopted.preparing


def test_a_member_that_an_operator_declares_dead_acknowledges_the_change() -> None:
    after: Any = View(6, (B, C), dead=(A.identity,))
    fencing = Fencing(B.identity, 2.0, PAIR, NOTHING).adopt(after, PAIR, 10.0)
    assert not fencing.is_free(A), "the change is not valid yet"
    assert fencing.listed(10.1, 10.1).is_free(A)


def test_answers_that_are_noted_together_count_as_one_after_the_other() -> None:
    """All answers of three members, with doubts and without, and of a node that has heard of them before."""
    four: Any = View(7, (A, B, C, D))
    known = new(A, four, THREE, 1.0).heard(B.identity, Heard.SAME, 2.0, 2.5)
    known = known.heard(C.identity, Heard.GONE, 2.0, 2.5)
    for start in (new(A, four, THREE, 1.0), known, known.rumour(3.0), new(A, ALONE, PAIR).rumour(3.0)):
        for answers in product(Heard, repeat=3):
            pairs = [(one.identity, heard) for one, heard in zip((B, C, D), answers, strict=True)]
            expected = start
            for identity, heard in sorted(pairs, key=lambda pair: pair[1] is Heard.NEWER):
                expected = heard_by_the_rules(expected, identity, heard)
            assert start.heard_all(pairs, 4.0, 4.5) == expected, answers


def heard_by_the_rules(fencing: Fencing, identity: tuple[str, str], heard: Heard) -> Fencing:
    """What one answer means, to a question sent at 4.0 and answered at 4.5."""
    acknowledges = heard in (Heard.SAME, Heard.NEWER, Heard.GONE)
    if acknowledges and identity in {one.identity for one in fencing.before.members}:
        fencing = replace(fencing, acknowledged=fencing.acknowledged | {identity})
    if acknowledges and 2 * len(fencing.acknowledged) >= len(fencing.before):
        fencing = replace(fencing, enough_at=min(fencing.enough_at, 4.5))
    if heard is Heard.NEWER:
        return fencing.rumour(4.5)
    if heard is Heard.GONE:
        return replace(fencing, gone=tuple(sorted({**dict(fencing.gone), identity: 4.0}.items())))
    if heard is Heard.SAME:
        fencing = replace(fencing, live=tuple(sorted({**dict(fencing.live), identity: 4.0}.items())))
        if fencing.majority_at() > fencing.doubted_at:
            return replace(fencing, doubts=False)
    return fencing


def test_noting_the_answers_of_many_members_takes_time_in_proportion() -> None:
    """Calls of Python functions are counted, not seconds."""
    members = tuple(member(number) for number in range(1, 201))
    view: Any = View(6, members)
    before: Any = View(5, members[:-1])
    fencing = new(members[0], view, before)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    answers = [(one.identity, Heard.SAME) for one in members[1:]]
    sys.setprofile(count)
    try:
        fencing = fencing.heard_all(answers, 1.0, 2.0)
    finally:
        sys.setprofile(None)
    assert len(fencing.acknowledged) == 199
    assert calls < 200 * 10, "one look through the members for each answer would be 40,000"
