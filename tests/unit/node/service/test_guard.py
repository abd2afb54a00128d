"""Which requests a node answers: by view, and by the state of each partition."""

from __future__ import annotations

import pytest
from Pyro5.errors import PyroError

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.node.service.guard import PartitionState, RequestGuard
from pyrocache.protocol.limits import NO_VIEW
from pyrocache.protocol.partition import partition_of

NAME = "cache.node.1"
KEY, OTHER = b"\0key", b"\0other"


def view(*names: str) -> ClusterView:
    return ClusterView([Member(name, "127.0.0.1", 1, 1.0, "incarnation") for name in names])


@pytest.fixture
def stale() -> list[bool]:
    return []


@pytest.fixture
def guard(stale: list[bool]) -> RequestGuard:
    return RequestGuard(NAME, "incarnation", on_stale=lambda: stale.append(True))


def refuses(guard: RequestGuard, view_id: object, *keys: bytes) -> bool:
    try:
        guard.check(view_id, keys)
    except PyroError as error:
        return (error.code, error.detail) == ("stale-view", guard.members())  # type: ignore[attr-defined]
    return False


def test_a_node_without_a_view_answers_every_request(guard: RequestGuard) -> None:
    assert not refuses(guard, NO_VIEW, KEY)
    assert not refuses(guard, 5, KEY)


def test_a_request_that_was_routed_with_another_view_is_refused(
    guard: RequestGuard, stale: list[bool]
) -> None:
    guard.adopt(view(NAME))
    assert guard.open_view == view(NAME).id
    assert not refuses(guard, view(NAME).id, KEY)
    assert not stale
    assert refuses(guard, view("cache.node.2").id, KEY)
    assert stale == [True]
    assert not refuses(guard, NO_VIEW, KEY)


@pytest.mark.parametrize("state", [PartitionState.LOADING, PartitionState.RETIRED])
def test_only_the_keys_of_a_partition_that_is_not_served_are_refused(
    guard: RequestGuard, state: PartitionState
) -> None:
    guard.adopt(view(NAME))
    guard.set_state(state, [partition_of(KEY)])
    assert refuses(guard, view(NAME).id, KEY)
    assert refuses(guard, view(NAME).id, OTHER, KEY)
    assert not refuses(guard, view(NAME).id, OTHER)
    guard.set_state(PartitionState.SERVING, [partition_of(KEY)])
    assert not refuses(guard, view(NAME).id, KEY)
    assert guard.open_view == view(NAME).id


def test_nothing_is_served_while_all_partitions_are_loading(guard: RequestGuard) -> None:
    guard.adopt(view(NAME))
    guard.set_state(PartitionState.LOADING)
    assert refuses(guard, view(NAME).id, OTHER)
    guard.adopt(view(NAME, "cache.node.2"))
    assert refuses(guard, view(NAME, "cache.node.2").id, OTHER)
    guard.set_state(PartitionState.SERVING)
    assert not refuses(guard, view(NAME, "cache.node.2").id, OTHER)


@pytest.mark.parametrize("view_id", ["1", None, 1.5, True, b"1"])
def test_a_view_that_is_not_an_int_is_refused(guard: RequestGuard, view_id: object) -> None:
    guard.adopt(view(NAME))
    with pytest.raises(PyroError, match="id"):
        guard.check(view_id, (KEY,))


def test_a_node_that_is_not_in_its_view_does_not_serve(guard: RequestGuard) -> None:
    assert guard.ping(NO_VIEW) == {"name": NAME, "incarnation": "incarnation", "serving": True}
    guard.adopt(view("cache.node.2"))
    assert guard.ping(NO_VIEW)["serving"] is False
    assert not guard.owns(KEY)
