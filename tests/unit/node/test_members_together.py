"""Several nodes and a name server that forgets in the middle of a change. No time passes but that of a fake clock."""

from __future__ import annotations

import pytest

from pyrocache.errors import NameTaken, PyroCacheError
from tests.support.simulated_nodes import Cluster, Node, key_that_moves


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def three(cluster: Cluster) -> tuple[Node, Node, Node]:
    """Start three nodes that serve."""
    nodes = []
    for number in (1, 2, 3):
        nodes.append(cluster.start(number))
        cluster.settle()
    return nodes[0], nodes[1], nodes[2]


@pytest.fixture
def lost_join(cluster: Cluster) -> tuple[Node, Node, Node, Node]:
    """Three members and a joiner; only the second member has acknowledged the join when it is forgotten."""
    one, two, other = three(cluster)
    joiner = cluster.start(4)
    two.tick()
    joiner.tick()
    joiner.tick()
    return one, two, other, joiner


def test_a_node_does_not_take_over_before_the_change_is_valid(
    cluster: Cluster, lost_join: tuple[Node, Node, Node, Node]
) -> None:
    """The change can be lost with the name server, and another node may then own the same keys."""
    one, two, _, joiner = lost_join
    key = key_that_moves(one.view, joiner.view, two, joiner)
    assert joiner.set(key, b"value") == "not-serving", "though the owner has acknowledged the change"
    cluster.replace_name_server()
    one.tick()
    one.tick()
    assert max(cluster.directory.views) < joiner.view.number
    two.dead = True
    again = cluster.start(2)
    for _ in range(4):
        again.tick()
        assert "value" not in (joiner.get(key), again.get(key))
        assert joiner.set(key, b"value") is not True


def test_the_number_of_a_view_that_was_lost_is_not_used_again(
    cluster: Cluster, lost_join: tuple[Node, Node, Node, Node]
) -> None:
    """Requests carry the number alone, and fencing tokens begin with it."""
    one, two, other, joiner = lost_join
    lost = joiner.view
    cluster.replace_name_server()
    one.tick()
    one.tick()
    joiner.dead = True
    cluster.settle(4.0)
    newest = cluster.directory.listing().view
    assert newest.number > lost.number
    assert [node.view for node in (one, two, other)] == [newest] * 3
    assert all(node.has_lease for node in (one, two, other))
    two.dead = True
    again = cluster.start(2)
    cluster.settle()
    assert again.view.number > newest.number
    assert again.has_lease


def test_a_joiner_whose_join_was_lost_ends(
    cluster: Cluster, lost_join: tuple[Node, Node, Node, Node]
) -> None:
    cluster.replace_name_server()
    with pytest.raises(NameTaken, match=r"cache\.node\.4 was removed"):
        cluster.settle(4.0)


def test_members_go_on_while_their_view_gets_another_number(cluster: Cluster) -> None:
    nodes = three(cluster)
    number = nodes[0].view.number
    keys = [b"\x01%d" % i for i in range(30)]
    by_owner = {node.member.name: node for node in nodes}
    for key in keys:
        assert by_owner[nodes[0].view.owner(key).name].set(key, b"value") is True
    cluster.replace_name_server()
    for _ in range(40):
        for node in nodes:
            node.tick()
            for key in keys:
                assert by_owner[nodes[0].view.owner(key).name].get(key) == b"value"
        cluster.clock.tick(0.1)
    assert [node.view.number for node in nodes] == [number + 8] * 3
    assert sorted(cluster.directory.views) == [number, number + 8]
    cluster.replace_name_server()
    cluster.settle(4.0)
    assert [node.view.number for node in nodes] == [number + 16] * 3


def test_a_put_back_that_was_interrupted_blocks_no_join(cluster: Cluster) -> None:
    nodes = three(cluster)
    cluster.replace_name_server()
    stored = []

    def away() -> None:
        stored.append(1)
        cluster.directory.away = len(stored) > 1

    cluster.directory.before_storing = away
    for _ in range(3):
        nodes[0].tick()
    assert len(cluster.directory.views) == 1
    cluster.directory.away = False
    cluster.directory.before_storing = lambda: None
    cluster.settle(4.0)
    assert cluster.directory.listing().complete
    assert cluster.start(4).view.number


def test_a_node_that_was_suspended_in_a_round_of_questions_does_not_count_the_gone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cluster.start(1)
    cluster.settle()
    two = cluster.start(2)
    cluster.settle()

    def suspended() -> bool:
        cluster.clock.tick(4.0)  # a third node joins meanwhile, and takes over
        cluster.directory.gone = two.dead = True
        return False

    monkeypatch.setattr(one.membership, "_needs_number", suspended)  # just after the round has begun
    one.tick()
    assert not one.has_lease


def test_no_other_cluster_begins_while_a_node_waits_to_put_its_own_back(cluster: Cluster) -> None:
    one = cluster.start(1)
    cluster.settle()
    two = cluster.start(2)
    cluster.settle()
    two.paused = True
    cluster.replace_name_server()
    cluster.settle(4.0)
    assert not one.has_lease
    cluster.directory.seconds_there = 100.0
    with pytest.raises(
        PyroCacheError, match=r"forgotten the cluster of cache\.node\.1, .* Continue those, or end"
    ):
        cluster.start(3)
    two.paused = False
    cluster.settle(4.0)
    assert one.has_lease
    assert cluster.start(3).member.cluster == one.member.cluster


def test_what_dead_nodes_have_left_does_not_keep_a_cluster_from_beginning(cluster: Cluster) -> None:
    one = cluster.start(1)
    cluster.settle()
    entries = dict(cluster.directory.entries)
    cluster.replace_name_server()
    one.dead = True
    cluster.directory.entries.update(entries)
    cluster.directory.seconds_there = 100.0
    assert cluster.start(1).member.cluster != one.member.cluster
