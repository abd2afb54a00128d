"""The simulation of large clusters with few nodes: it counts what the protocol says."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

pytest.importorskip("greenlet")
pytest.importorskip("benchmarks")

from benchmarks.scale import measure
from benchmarks.scale.clients import Crowd
from benchmarks.scale.cluster import Cluster, member
from benchmarks.scale.meter import Meter
from pyrocache.config import NodeConfig
from pyrocache.node.membership import MOST_NODES

SIZES = (3, 5, 10)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """Forty clients of four nodes."""
    cluster = Cluster(4)
    crowd = Crowd(cluster, 40)
    yield crowd
    crowd.close()


@pytest.mark.parametrize("size", SIZES)
def test_each_node_asks_the_name_server_four_times_in_a_lease_and_no_other_node(size: int) -> None:
    figures = measure.steady(size)
    assert figures["listings"] == size * 4 / NodeConfig().lease_seconds
    assert figures["listing_mb"] == pytest.approx(figures["listings"] * figures["listing_bytes"] / 1e6)


@pytest.mark.parametrize("size", SIZES)
def test_a_join_costs_two_rounds_of_questions_of_all_nodes_to_all(size: int) -> None:
    """The joiner asks all before it proposes; all ask all until they know that all have acknowledged."""
    figures = measure.join(size)
    assert figures["pings"] == 2 * size**2 + 5 * size
    assert figures["waited"] < 0.1


@pytest.mark.parametrize("change", [measure.leave, measure.strike_out])
def test_a_change_costs_four_times_as_much_with_twice_the_nodes(change: object) -> None:
    """It is the square of the number of nodes that limits a cluster."""
    assert callable(change)
    pings = [change(size)["pings"] for size in (10, 20)]
    assert 3.5 < pings[1] / pings[0] < 5.0


def test_all_nodes_route_alike_after_a_join() -> None:
    cluster = Cluster(4)
    joiner = cluster.join(5)
    cluster.run_until_settled(joiner.membership.view.number)
    views = {node.membership.view for node in cluster.nodes.values()}
    assert views == {joiner.membership.view}
    assert [one.name for one in views.pop().members] == [member(number).name for number in range(1, 6)]


def test_each_client_learns_a_view_from_one_refusal(crowd: Crowd) -> None:
    cluster = crowd.cluster
    crowd.settle(next(iter(cluster.nodes.values())).membership.view)
    crowd.start(10.0, lambda: False, 0.1)
    crowd.run(0.5)
    cluster.meter.taken()
    number = cluster.join(5).membership.view.number
    crowd.run(5.0)
    assert all(client.knows(number) for client in crowd.clients)
    assert cluster.meter.requests["clients: refused with a view"] == len(crowd.clients)
    assert crowd.queue.asked == 0
    assert crowd.failed == 0


def test_clients_that_start_at_once_ask_again_if_the_queue_of_the_name_server_is_full() -> None:
    few, many = measure.start(3, 60, 0.0), measure.start(3, 100, 0.0)
    assert (few["failed"], few["look_ups"]) == (0, 60)
    assert many["longest_queue"] == 64
    assert many["failed"] == 0
    assert many["look_ups"] > 100


def test_a_part_within_another_one_counts_for_itself() -> None:
    meter = Meter()
    began = time.process_time()
    with meter.part("outer"), meter.part("inner"):
        sum(range(200_000))
    assert 0.0 < meter.seconds["outer"] < meter.seconds["inner"]
    assert sum(meter.seconds.values()) <= time.process_time() - began


@pytest.mark.full
def test_more_nodes_than_a_message_can_list_do_not_fit() -> None:
    assert measure.most_nodes(1024) == 1020 > MOST_NODES + 4, "and the views that a change adds for a moment"
