"""Which requests a node answers: by view, by lease, and by the members of the view before."""

from __future__ import annotations

import math
from typing import Any

import pytest
from Pyro5.errors import PyroError

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import EMPTY, view_to_wire
from pyrocache.node.service.guard import RequestGuard
from pyrocache.protocol.limits import NO_VIEW

NAME = "cache.node.1"
KEY, OTHER = b"\0key", b"\0other"


def view(number: int, *names: str) -> ClusterView:
    return ClusterView([Member(name, "127.0.0.1", 1, 1.0, "incarnation") for name in names], number, "c")


def owner_before(key: bytes) -> str:
    return view(1, "cache.node.2", "cache.node.3").owner(key).name


@pytest.fixture
def stale() -> list[int]:
    return []


@pytest.fixture
def guard(stale: list[int]) -> RequestGuard:
    return RequestGuard(NAME, "incarnation", on_stale=stale.append)


def refusal(guard: RequestGuard, number: object, *keys: bytes) -> str:
    """Return the code of the refusal, or nothing."""
    error: Any = None
    try:
        guard.check(number, keys)
    except PyroError as refused:
        error = refused
    if error is not None and error.code == "stale-view":
        assert guard.view is not None
        assert error.detail == view_to_wire(guard.view)
    return "" if error is None else str(error.code)


def test_a_node_without_a_view_answers_every_request(guard: RequestGuard, stale: list[int]) -> None:
    assert refusal(guard, NO_VIEW, KEY) == ""
    assert refusal(guard, 5, KEY) == ""
    assert guard.members() == []
    assert stale == []


def test_a_request_that_was_routed_with_another_view_is_refused(
    guard: RequestGuard, stale: list[int]
) -> None:
    guard.adopt(view(5, NAME))
    assert guard.open_view == 5
    assert refusal(guard, 5, KEY) == ""
    assert refusal(guard, 4, KEY) == "stale-view"
    assert stale == [], "an older view is no news"
    assert refusal(guard, 6, KEY) == "stale-view"
    assert stale == [6]


def test_without_a_view_the_node_checks_ownership_itself(guard: RequestGuard) -> None:
    both = view(5, NAME, "cache.node.2")
    guard.adopt(both)
    keys = [b"\0%d" % number for number in range(50)]
    for key in keys:
        mine = both.owner(key).name == NAME
        assert guard.owns(key) is mine
        assert refusal(guard, NO_VIEW, key) == ("" if mine else "stale-view")
    assert len({guard.owns(key) for key in keys}) == 2
    assert refusal(guard, NO_VIEW, *keys) == "stale-view"


def test_keys_of_members_of_the_view_before_wait_for_them(guard: RequestGuard) -> None:
    before = view(1, "cache.node.2", "cache.node.3")
    of_2 = next(key for key in (b"\0%d" % n for n in range(99)) if owner_before(key) == "cache.node.2")
    of_3 = next(key for key in (b"\0%d" % n for n in range(99)) if owner_before(key) == "cache.node.3")
    guard.adopt(view(2, NAME), before, ["cache.node.2"])
    assert math.isnan(guard.open_view)
    assert refusal(guard, 2, of_2) == "not-serving"
    assert refusal(guard, 2, of_3, of_2) == "not-serving"
    assert refusal(guard, 2, of_3) == ""
    assert refusal(guard, NO_VIEW, of_2) == "not-serving"
    assert refusal(guard, NO_VIEW, of_3) == ""
    guard.take_over([])
    assert refusal(guard, 2, of_2) == ""
    assert guard.open_view == 2


def test_without_a_lease_nothing_is_answered(guard: RequestGuard) -> None:
    guard.adopt(view(2, NAME))
    guard.lapse(True)
    assert math.isnan(guard.open_view)
    for number in (2, NO_VIEW):
        assert refusal(guard, number, KEY) == "not-serving"
    assert refusal(guard, 1, KEY) == "stale-view", "the caller needs the view in any case"
    with pytest.raises(PyroError, match="cannot be sure"):
        guard.check_all(2)
    guard.adopt(view(3, NAME))
    assert refusal(guard, 3, KEY) == "not-serving", "a new view is no lease"
    guard.lapse(False)
    guard.check_all(3)
    assert refusal(guard, 3, KEY) == ""
    assert guard.open_view == 3


def test_a_lease_does_not_free_keys_that_wait(guard: RequestGuard) -> None:
    guard.adopt(view(2, NAME), view(1, "cache.node.2"), ["cache.node.2"])
    guard.lapse(True)
    guard.lapse(False)
    assert math.isnan(guard.open_view)
    assert refusal(guard, 2, KEY) == "not-serving"


@pytest.mark.parametrize("number", ["1", None, 1.5, 1.0, math.nan, True, False, b"1", [], {}], ids=repr)
def test_a_view_that_is_not_an_int_is_refused(guard: RequestGuard, number: object) -> None:
    guard.adopt(view(7, NAME))
    assert refusal(guard, number, KEY) == "bad-request"


def test_a_check_and_its_call_are_one(guard: RequestGuard) -> None:
    guard.adopt(view(2, NAME))
    assert guard.run(2, [KEY], lambda text: (text, guard.lock.locked()), "x") == ("x", True)
    with pytest.raises(PyroError, match="another view"):
        guard.run(1, [KEY], lambda: pytest.fail("executed"))
    assert not guard.lock.locked()


def answers(guard: RequestGuard, number: int = NO_VIEW) -> dict[str, Any]:
    answer = guard.ping(number)
    assert (answer.pop("name"), answer.pop("incarnation")) == (NAME, "incarnation")
    return answer


def test_a_ping_tells_the_view(guard: RequestGuard) -> None:
    assert answers(guard) == {"serving": True, "view": 0, "id": 0}
    guard.adopt(view(5, NAME))
    assert answers(guard) == {"serving": True, "view": 5, "id": view(5, NAME).id}
    guard.confirms = False
    assert answers(guard) == {"serving": True, "view": 5, "id": 0}
    guard.adopt(view(6, NAME, "cache.node.2"))
    assert answers(guard) == {"serving": True, "view": 6, "id": view(6, NAME, "cache.node.2").id}


def test_a_node_that_is_no_member_or_has_no_lease_does_not_serve(guard: RequestGuard) -> None:
    guard.adopt(view(5, NAME))
    guard.lapse(True)
    assert answers(guard)["serving"] is False
    guard.lapse(False)
    assert answers(guard)["serving"] is True
    guard.adopt(view(6, "cache.node.2"))
    assert answers(guard)["serving"] is False
    assert not guard.owns(KEY)
    guard.adopt(ClusterView((), 7, "c"), EMPTY)
    assert not guard.owns(KEY)
    assert refusal(guard, 5, KEY) == "stale-view"


def test_a_ping_with_a_newer_view_is_news(guard: RequestGuard, stale: list[int]) -> None:
    guard.adopt(view(5, NAME))
    for number in (NO_VIEW, 4, 5, 6):
        guard.ping(number)
    assert stale == [6]


@pytest.mark.parametrize("number", ["1", None, 1.5, True, b"1", [], {}], ids=repr)
def test_a_ping_with_anything_else_is_refused(guard: RequestGuard, stale: list[int], number: Any) -> None:
    with pytest.raises(PyroError, match="number"):
        guard.ping(number)
    assert stale == []
