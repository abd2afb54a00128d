"""Who owns what: balance, growth, weights, and vectors that every later version must reproduce."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.cluster.routing import PARTITIONS, ClusterView, Member, partition_of
from pyrocache.errors import ConfigurationError


def view_of(nodes: int, weights: dict[int, float] | None = None) -> ClusterView:
    weights = weights or {}
    return ClusterView(
        Member(f"cache.node.{number}", "127.0.0.1", 1000 + number, weights.get(number, 1.0))
        for number in range(1, nodes + 1)
    )


def owners(view: ClusterView) -> list[int]:
    return [view.owner_of_partition(partition).number for partition in range(PARTITIONS)]


@pytest.mark.parametrize("nodes", [3, 5, 16])
def test_the_partitions_are_balanced_as_chance_would_have_it(nodes: int) -> None:
    shares = [count / PARTITIONS for count in Counter(owners(view_of(nodes))).values()]
    deviation = math.sqrt(sum((share - 1 / nodes) ** 2 for share in shares) / nodes)
    assert len(shares) == nodes
    assert deviation <= 1.5 * math.sqrt((nodes - 1) / PARTITIONS) / nodes


@pytest.mark.parametrize("nodes", [2, 3, 5, 9, 16])
def test_the_nth_node_takes_its_share_and_nobody_else_gains(nodes: int) -> None:
    before, after = owners(view_of(nodes - 1)), owners(view_of(nodes))
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {nodes}
    assert 0.8 / nodes <= len(moved) / PARTITIONS <= 1.2 / nodes


def test_a_node_that_leaves_gives_its_partitions_to_all_others_and_no_other_moves() -> None:
    view = view_of(5)
    without = ClusterView(member for member in view.members if member.number != 2)
    moves = Counter(pair for pair in zip(owners(view), owners(without), strict=True) if len(set(pair)) > 1)
    assert set(moves) == {(2, 1), (2, 3), (2, 4), (2, 5)}
    assert min(moves.values()) > 0.8 * PARTITIONS / 5 / 4


def test_weights_share_in_proportion() -> None:
    shares = Counter(owners(view_of(3, {1: 2.0})))
    assert shares[1] / PARTITIONS == pytest.approx(0.5, rel=0.05)
    assert shares[2] / PARTITIONS == pytest.approx(0.25, rel=0.08)


def test_more_weight_only_attracts() -> None:
    before, after = owners(view_of(4)), owners(view_of(4, {3: 1.5}))
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {3}


def test_addresses_sockets_and_order_do_not_matter() -> None:
    view = view_of(4)
    moved = ClusterView(
        Member(member.name, "10.0.0.1", 7, member.weight) for member in reversed(view.members)
    )
    listening = ClusterView(replace(member, socket_path=f"/run/{member.name}") for member in view.members)
    for other in (moved, listening):
        assert other.id == view.id
        assert owners(other) == owners(view)
        assert other != view


def test_a_node_that_was_started_again_keeps_its_keys_and_is_another_member() -> None:
    view = view_of(4)
    again = ClusterView([replace(view.members[0], incarnation="other"), *view.members[1:]])
    assert owners(again) == owners(view)
    assert again.id != view.id
    assert again.members[0].identity == ("cache.node.1", "other")


def test_a_view_of_other_members_or_weights_has_another_id() -> None:
    ids = {view_of(n).id for n in range(20)} | {view_of(3, {2: 1.5}).id, view_of(3, {3: 1.5}).id}
    assert len(ids) == 22
    assert 0 not in ids


def test_views_are_equal_if_number_cluster_and_members_are() -> None:
    members = view_of(3).members
    view = ClusterView(members, 7, "c1")
    assert view == ClusterView(reversed(members), 7, "c1")
    assert hash(view) == hash(ClusterView(members, 7, "c1"))
    for other in (
        ClusterView(members, 8, "c1"),
        ClusterView(members, 7, "c2"),
        ClusterView(members[1:], 7, "c1"),
    ):
        assert view != other
    assert view != "a view"
    assert ClusterView(members, 8, "c2").id == view.id, "the id is that of the members"
    assert (view_of(3).number, view_of(3).cluster) == (0, "")
    assert repr(view) == "<ClusterView 7: cache.node.1, cache.node.2, cache.node.3>"


SAMPLE = (0, 1, 2, 3, 4, 5, 100, 1000, 8191, 16383)

GOLDEN_VIEWS = {
    1: (0xB8DEA3FA0C6C228D, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    3: (0xAFCEADD5A947B79C, [3, 1, 3, 1, 1, 3, 3, 1, 1, 1]),
    5: (0x8C5E45B9CE038702, [3, 1, 5, 1, 4, 3, 3, 5, 1, 1]),
    16: (0xB42D9FA4741548A1, [8, 1, 5, 1, 4, 15, 13, 15, 11, 9]),
}


@pytest.mark.parametrize("nodes", GOLDEN_VIEWS)
def test_golden_views(nodes: int) -> None:
    view = view_of(nodes)
    assert (view.id, [view.owner_of_partition(p).number for p in SAMPLE]) == GOLDEN_VIEWS[nodes]


def test_golden_weighted_view() -> None:
    view = view_of(3, {2: 2.5})
    assert view.id == 0x3FAAB05BD49C6F1C
    assert [view.owner_of_partition(p).number for p in SAMPLE] == [3, 1, 2, 1, 2, 3, 3, 2, 2, 1]


def test_golden_partitions() -> None:
    keys = [b"", b"\0sa", b"\0suser:123", b"\0i\x01", b"x" * 1000]
    assert [partition_of(key) for key in keys] == [5314, 4268, 2833, 4528, 14978]


def test_an_empty_view_owns_nothing() -> None:
    with pytest.raises(LookupError):
        view_of(0).owner(b"k")
    with pytest.raises(LookupError):
        view_of(0).owner_of_partition(0)
    with pytest.raises(LookupError):
        view_of(0).split([b"k"], [0])
    assert view_of(0).split([b"k"], []) == []


def test_a_member_has_no_socket_unless_it_says_so() -> None:
    assert Member("cache.node.1", "h", 1).socket_path == ""
    assert Member("cache.node.1", "h", 1, 1.0, "x", "/run/1.sock").socket_path == "/run/1.sock"


keys_of_a_batch = st.lists(st.binary(max_size=12) | st.integers(0, 99).map(lambda n: b"%d" % n), max_size=60)


@given(st.integers(1, 12), keys_of_a_batch, st.data())
def test_a_split_gives_each_index_to_the_owner_of_its_key_in_order(
    nodes: int, keys: list[bytes], data: st.DataObject
) -> None:
    some = st.lists(st.integers(0, len(keys) - 1)) if keys else st.just([])
    indices = data.draw(some | st.just(range(len(keys))))
    view = view_of(nodes, {2: 3.0})
    for _ in range(2):  # once with owners yet to be found, and once with all known
        split = view.split(keys, indices)
        assert split == [
            [index for index in indices if view_of(nodes, {2: 3.0}).owner(keys[index]) == member]
            for member in view.members
        ]
        assert all(type(own) is list for own in split)


def test_a_split_of_many_keys_agrees_with_their_owners() -> None:
    view, fresh = view_of(5), view_of(5)
    keys = [b"key:%d" % number for number in range(20_000)]
    split = view.split(keys, range(len(keys)))
    assert sorted(index for own in split for index in own) == list(range(len(keys)))
    for member, own in zip(view.members, split, strict=True):
        assert own == sorted(own)
        assert {fresh.owner(keys[index]) for index in own} == {member}


def test_members_are_checked() -> None:
    with pytest.raises(ConfigurationError):
        Member("cache.node.0", "h", 1)
    with pytest.raises(ConfigurationError):
        Member("cache.node.1", "h", 1, weight=0)
    with pytest.raises(ValueError, match="same name"):
        ClusterView([Member("cache.node.1", "h", 1), Member("cache.node.1", "h", 2)])


def test_numbers_sort_as_numbers() -> None:
    assert [member.number for member in view_of(12).members] == list(range(1, 13))
