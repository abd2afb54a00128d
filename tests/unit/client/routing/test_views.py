"""Queries of the name server, with a clock that only pauses move."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache.client.routing.views import Views
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import NameServerUnavailable
from pyrocache.net.directory import Listing, WatchedLookUp
from pyrocache.net.membership import Membership

VIEW = ClusterView([Member("cache.node.1", "127.0.0.1", 1)], number=1)


class Directory:
    """Refuses the first ``refusals`` queries with an error that ``overloaded`` describes."""

    def __init__(self, refusals: int, overloaded: bool) -> None:
        self.refusals = refusals
        self.overloaded = overloaded
        self.queries = 0

    def listing(self, seconds: float) -> Listing:
        self.queries += 1
        if self.queries <= self.refusals:
            error = NameServerUnavailable("too many")
            error.overloaded = self.overloaded
            raise error
        return Listing(views=(VIEW,))


class Time:
    """A clock and a deadline of five seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seconds = 5.0

    def remaining(self) -> float:
        return self.seconds - self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def views_of(directory: Any) -> tuple[Views, Any]:
    time = Time()
    look_up = WatchedLookUp(directory)
    return Views(Membership(look_up), look_up, lambda: time.now, sleep=time.sleep), time


def test_a_name_server_with_too_many_callers_is_asked_again_until_it_answers() -> None:
    directory = Directory(5, overloaded=True)
    views, time = views_of(directory)
    assert views.known(time) == VIEW
    assert directory.queries == 6
    assert 0.0 < time.now < 5.0


def test_it_is_asked_again_only_within_the_deadline() -> None:
    directory = Directory(10_000, overloaded=True)
    views, time = views_of(directory)
    with pytest.raises(NameServerUnavailable, match="too many"):
        views.known(time)
    assert 3.0 < time.now <= 5.0
    assert 5 < directory.queries < 20


def test_any_other_failure_is_told_at_once() -> None:
    directory = Directory(1, overloaded=False)
    views, time = views_of(directory)
    with pytest.raises(NameServerUnavailable):
        views.known(time)
    assert (directory.queries, time.now) == (1, 0.0)
