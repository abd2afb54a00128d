"""Views over time."""

from __future__ import annotations

import threading

import pytest

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import EMPTY, next_view
from pyrocache.errors import NameServerUnavailable
from pyrocache.net.membership import Membership


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
    membership.adopt(ClusterView([member(1)]))
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
