"""Views over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import EMPTY, next_view
from pyrocache.errors import NameServerUnavailable
from pyrocache.net.calls import Connections
from pyrocache.net.membership import Membership, serving_members
from tests.support.scripted_peer import Line, ScriptedPeer


def member(number: int, port: int = 1) -> Member:
    return Member(f"cache.node.{number}", "127.0.0.1", port)


def test_a_member_that_is_not_listed_stays_only_if_it_is_kept() -> None:
    current = ClusterView([member(1), member(2), member(3)])
    view = next_view(current, [member(1)], lambda missing: [m for m in missing if m.number == 3])
    assert [m.number for m in view.members] == [1, 3]


def test_a_new_address_replaces_the_old_one_and_routes_alike() -> None:
    current = ClusterView([member(1), member(2)])
    view = next_view(current, [member(1), member(2, port=9)], lambda missing: missing)
    assert view.members[1].port == 9
    assert view.id == current.id
    assert view != current


def test_nothing_new_is_the_same_object() -> None:
    current = ClusterView([member(1), member(2)])
    assert next_view(current, [member(2), member(1)], lambda missing: missing) is current


def test_an_empty_listing_does_not_empty_the_view() -> None:
    listing = [member(1)]
    membership = Membership(lambda timeout: list(listing))
    assert len(membership.refresh(1.0)) == 1
    listing.clear()
    assert len(membership.refresh(1.0)) == 1


def test_a_name_server_that_is_away_leaves_the_view_as_it_was() -> None:
    def away(timeout: float) -> list[Member]:
        raise NameServerUnavailable("away")

    membership = Membership(away)
    membership.view = ClusterView([member(1)])
    with pytest.raises(NameServerUnavailable):
        membership.refresh(1.0)
    assert len(membership.view) == 1


def test_threads_that_wait_for_a_look_up_share_its_result() -> None:
    calls: list[float] = []
    entered, release = threading.Event(), threading.Event()

    def lookup(timeout: float) -> list[Member]:
        calls.append(timeout)
        entered.set()
        assert release.wait(10)
        return [member(1)]

    membership = Membership(lookup)
    views: list[ClusterView] = []
    threads = [threading.Thread(target=lambda: views.append(membership.refresh(10.0))) for _ in range(5)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:
        thread.start()
    while sum(thread.is_alive() for thread in threads) < 5:
        pass
    release.set()
    for thread in threads:
        thread.join(10)
    assert [len(view) for view in views] == [1] * 5
    assert len(calls) <= 2  # a thread that came just after the first look-up may have made one of its own


def test_whoever_cannot_wait_for_a_look_up_gets_the_view_as_it_is() -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(timeout: float) -> list[Member]:
        entered.set()
        release.wait(10)
        return [member(1)]

    membership = Membership(slow)
    thread = threading.Thread(target=membership.refresh, args=(10.0,))
    thread.start()
    assert entered.wait(10)
    assert membership.refresh(0.001) is EMPTY
    release.set()
    thread.join(10)


@pytest.mark.parametrize("error", [NameServerUnavailable("away"), KeyboardInterrupt()])
def test_an_exception_that_somebody_keeps_does_not_keep_others_from_looking_up(error: BaseException) -> None:
    """As a Future, a circuit breaker or an error reporter does."""
    outcomes: list[BaseException | list[Member]] = [error, error, [member(1)]]

    def lookup(timeout: float) -> list[Member]:
        outcome = outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    membership = Membership(lookup)
    kept: list[BaseException] = []
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            membership.refresh(1.0)
        kept.append(caught.value)
    assert len(membership.refresh(0.05)) == 1
    assert len(kept) == 2


def test_all_missing_members_are_asked_about_at_once_in_the_time_that_is_left() -> None:
    asked: list[tuple[list[int], bool]] = []

    def serving(members: Sequence[Member], seconds: float) -> list[Member]:
        asked.append(([one.number for one in members], 0 < seconds <= 1.0))
        return [one for one in members if one.number == 3]

    membership = Membership(lambda timeout: [member(1)], serving)
    membership.view = ClusterView([member(1), member(2), member(3), member(4)])
    assert [one.number for one in membership.refresh(1.0).members] == [1, 3]
    assert asked == [([2, 3, 4], True)]


def test_silent_members_are_asked_in_parallel_within_the_time_that_there_is() -> None:
    def silent(line: Line) -> None:
        line.request()
        line.wait_until_closed()

    def serving(line: Line) -> None:
        line.request()
        line.send(line.reply({"serving": True}))

    peers = [ScriptedPeer(silent if number > 1 else serving, number=number) for number in range(1, 9)]
    connections = Connections(2)
    try:
        began = time.monotonic()
        members = serving_members(connections, [peer.member for peer in peers], 0.2)
        assert time.monotonic() - began < 0.6
        assert [one.number for one in members] == [1]
        everybody = [peer.member for peer in peers]
        assert serving_members(connections, everybody, 0.0) == everybody
    finally:
        connections.close()
        for peer in peers:
            peer.close()
