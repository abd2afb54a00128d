"""Views over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import EMPTY
from pyrocache.errors import NameServerUnavailable
from pyrocache.net.calls import Connections
from pyrocache.net.directory import Listing
from pyrocache.net.membership import Membership, serving_members
from tests.support.scripted_peer import Line, ScriptedPeer


def member(number: int, port: int = 1) -> Member:
    return Member(f"cache.node.{number}", "127.0.0.1", port)


def view(number: int, *numbers: int, cluster: str = "c1", port: int = 1) -> ClusterView:
    return ClusterView([member(one, port) for one in numbers], number, cluster)


def listing(*views: ClusterView) -> Listing:
    return Listing(views[0].cluster, 1, views, views[0].members)


def refreshed(current: ClusterView, listed: Listing, *serving: Member) -> ClusterView:
    """The view of a client that had ``current``, after a look-up, if these members serve."""
    membership = Membership(lambda timeout: listed, lambda members, seconds: serving)
    membership.view = current
    view = membership.refresh(1.0)
    assert view is membership.view
    return view


def test_the_newest_view_is_used() -> None:
    assert refreshed(EMPTY, listing(view(7, 1, 2), view(6, 1))) == view(7, 1, 2)
    assert refreshed(view(6, 1), listing(view(7, 1, 2), view(6, 1))) == view(7, 1, 2)


def test_a_view_of_the_same_number_replaces_another_one() -> None:
    assert refreshed(view(7, 1), listing(view(7, 1, 2))) == view(7, 1, 2)
    assert refreshed(view(7, 1), listing(view(7, 1, port=2))).members[0].port == 2


def test_a_view_with_zones_replaces_the_same_one_without() -> None:
    current, zoned = view(7, 1), ClusterView([replace(member(1), zone="rack-1")], 7, "c1")
    assert refreshed(current, listing(zoned)) is zoned
    assert refreshed(current, listing(view(7, 1))) is current


def test_nothing_new_is_the_same_object() -> None:
    current = view(7, 1, 2)
    assert refreshed(current, listing(view(7, 1, 2))) is current


def test_an_older_view_is_not_used() -> None:
    """The name server was restored from an old file, or is another one."""
    current = view(7, 1, 2)
    assert refreshed(current, listing(view(6, 1))) is current


def test_an_empty_listing_does_not_empty_the_view() -> None:
    current = view(7, 1, 2)
    for empty in (Listing(), Listing("c1", 1), Listing(members=(member(1),)), Listing("c2", 1)):
        assert refreshed(current, empty) is current


def test_a_cluster_whose_last_node_has_left_has_an_empty_view() -> None:
    assert len(refreshed(view(7, 1), listing(view(8)))) == 0


def test_without_a_view_the_nodes_that_are_listed_are_used() -> None:
    """Those of a stock daemon."""
    listed = Listing(members=(member(1), member(2)))
    found = refreshed(EMPTY, listed)
    assert [one.number for one in found.members] == [1, 2]
    assert found.number == 0
    assert [one.number for one in refreshed(found, Listing(members=(member(3),))).members] == [3]
    assert refreshed(found, listing(view(7, 1))) == view(7, 1)


def test_another_cluster_is_used_once_no_member_serves(caplog: pytest.LogCaptureFixture) -> None:
    current, other = view(7, 1, 2), view(3, 1, cluster="c2")
    assert refreshed(current, listing(other), member(2)) is current
    assert not caplog.records
    assert refreshed(current, listing(other)) == other
    assert "The cluster was replaced" in caplog.text


def test_a_newer_view_that_a_node_sends_is_used() -> None:
    membership = Membership(lambda timeout: pytest.fail("not needed"))
    membership.view = view(7, 1)
    for other in (view(6, 2), view(7, 2), view(8, 2, cluster="c2"), view(8, 2, cluster="")):
        assert not membership.offer(other)
        assert membership.view == view(7, 1)
    assert membership.offer(view(8, 2))
    assert membership.view == view(8, 2)


def test_a_name_server_that_is_away_leaves_the_view_as_it_was() -> None:
    def away(timeout: float) -> Listing:
        raise NameServerUnavailable("away")

    membership = Membership(away)
    membership.view = ClusterView([member(1)])
    with pytest.raises(NameServerUnavailable):
        membership.refresh(1.0)
    assert len(membership.view) == 1


def test_threads_that_wait_for_a_look_up_share_its_result() -> None:
    calls: list[float] = []
    entered, release = threading.Event(), threading.Event()

    def lookup(timeout: float) -> Listing:
        calls.append(timeout)
        entered.set()
        assert release.wait(10)
        return listing(view(1, 1))

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

    def slow(timeout: float) -> Listing:
        entered.set()
        release.wait(10)
        return listing(view(1, 1))

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
    outcomes: list[BaseException | Listing] = [error, error, listing(view(1, 1))]

    def lookup(timeout: float) -> Listing:
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


def test_all_members_are_asked_at_once_in_the_time_that_is_left() -> None:
    asked: list[tuple[list[int], bool]] = []

    def serving(members: Sequence[Member], seconds: float) -> list[Member]:
        asked.append(([one.number for one in members], 0 < seconds <= 1.0))
        return [one for one in members if one.number == 3]

    membership = Membership(lambda timeout: listing(view(3, 1, cluster="c2")), serving)
    membership.view = view(7, 2, 3, 4)
    assert membership.refresh(1.0).number == 7
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
        assert time.monotonic() - began < 1.2  # one after the other: 1.4
        assert [one.number for one in members] == [1]
        everybody = [peer.member for peer in peers]
        assert serving_members(connections, everybody, 0.0) == everybody
    finally:
        connections.close()
        for peer in peers:
            peer.close()
