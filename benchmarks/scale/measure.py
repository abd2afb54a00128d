"""What is measured of simulated clusters: each function makes its own cluster, and returns figures by name."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from statistics import median

from benchmarks.scale.clients import CLIENTS, TIMEOUT_SECONDS, Crowd
from benchmarks.scale.cluster import JOINER, MEMBERS, PINGS, Cluster, Node, handshake_cost, member
from benchmarks.scale.meter import Meter
from benchmarks.scale.wire import SERVER, MeteredDirectory, NameServer
from pyrocache.cluster.routing import PARTITIONS, ClusterView
from pyrocache.cluster.views import view_from_wire, view_to_wire
from pyrocache.config import NodeConfig
from pyrocache.errors import NameServerUnavailable
from pyrocache.node.membership import NodeMembership
from pyrocache.protocol.messages import pack_plain, unpack_plain

Figures = dict[str, float]

_LISTING = f"{SERVER}: list"
_GROWN_SECONDS = 0.5  # a quarter of a lease: each node has asked the name server once more


def steady(size: int) -> Figures:
    """One second without changes: what nodes ask the name server, and what that costs."""
    cluster = Cluster(size)
    cluster.run(1.0)
    meter = cluster.meter.taken()
    assert meter.requests[PINGS] == 0
    register = Meter()
    directory = MeteredDirectory(NameServer(register, lambda holder: False), "node")
    directory.register(member(size))
    return {
        "entry_bytes": register.bytes[f"{SERVER}: register"],
        "listing_bytes": cluster.server.listing_bytes,
        "listing_ms": cluster.server.listing_seconds * 1e3,
        "listings": meter.requests[_LISTING],
        "listing_mb": meter.bytes[_LISTING] / 1e6,
        "server_cpu": meter.seconds[SERVER],
        "node_cpu": meter.seconds[MEMBERS] / size,
    }


def join(size: int) -> Figures:
    """One node joins ``size`` others."""
    cluster = Cluster(size)
    began = cluster.clock.now
    node = cluster.join(size + 1)
    return _change(cluster, size, node.membership.view.number, began)


def leave(size: int) -> Figures:
    """One of ``size`` nodes leaves."""
    cluster = Cluster(size)
    began = cluster.clock.now
    node = list(cluster.nodes.values())[-1]
    node._part = JOINER
    with cluster.meter.part(JOINER):
        view = node.membership.leave()
        assert view is not None
        node.membership.tell(view)
    cluster.run(NodeConfig().drain_seconds)
    node.dead = True
    return _change(cluster, size, view.number, began, NodeConfig().drain_seconds)


def strike_out(size: int) -> Figures:
    """An operator removes one of ``size`` nodes, whose host is dead, with ``--force``."""
    cluster = Cluster(size)
    node = list(cluster.nodes.values())[-1]
    node.dead = True
    began = cluster.clock.now
    operator = Node(cluster, member(size + 1), "operator")
    membership = NodeMembership(NodeConfig(), cluster.admin, operator, cluster.clock, cluster.run)
    assert membership.strike_out(node.member.name, force=True)
    return _change(cluster, size, membership.view.number, began)


def _change(cluster: Cluster, size: int, number: int, began: float, already: float = 0.0) -> Figures:
    cluster.run_until_settled(number)
    waited = cluster.clock.now - began
    cluster.run(max(0.0, _GROWN_SECONDS - waited))
    meter = cluster.meter.taken()
    asked = meter.seconds["members asked"] + meter.seconds[MEMBERS]
    server = {kind: count for kind, count in meter.requests.items() if kind.startswith(SERVER)}
    return {
        "pings": meter.requests[PINGS],
        "ping_mb": meter.bytes[PINGS] / 1e6,
        "server_requests": sum(server.values()),
        "server_mb": sum(meter.bytes[kind] for kind in server) / 1e6,
        "server_cpu": meter.seconds[SERVER],
        "joiner_cpu": meter.seconds[JOINER],
        "member_cpu": asked / size,
        "waited": waited - already,
    }


def routing(size: int) -> Figures:
    """A view in a client: its bytes on the wire and in memory, the time to read it, and to find owners."""
    view = ClusterView([member(number) for number in range(1, size + 1)], 1_790_000_000, "c")
    packed = pack_plain(view_to_wire(view))
    read_ms = _fastest_ms(lambda: view_from_wire(unpack_plain(packed)))
    tracemalloc.start()
    read = view_from_wire(unpack_plain(packed))
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read is not None
    began = time.process_time()
    for partition in range(PARTITIONS):
        read.owner_of_partition(partition)
    seconds = time.process_time() - began
    return {
        "view_bytes": len(packed),
        "read_ms": read_ms,
        "memory_kib": memory / 1024,
        "first_use_ms": seconds / PARTITIONS * 1e3,
        "all_seconds": seconds,
    }


def learn(nodes: int, clients: int, per_second: float) -> Figures:
    """All clients learn of a node that has joined, while each sends ``per_second`` requests."""
    cluster = Cluster(nodes)
    crowd = Crowd(cluster, clients, handshake_cost()[2])
    crowd.settle(next(iter(cluster.nodes.values())).membership.view)
    crowd.start(per_second, lambda: False, 1 / per_second)
    crowd.run(1.5 / per_second)
    cluster.meter.taken()
    crowd.outcomes.clear()
    began = cluster.clock.now
    number = cluster.join(nodes + 1).membership.view.number
    while not all(client.knows(number) for client in crowd.clients):
        if cluster.clock.now - began > 30.0:
            raise RuntimeError("Some clients do not learn the view.")
        crowd.run(0.05)
    meter = cluster.meter.taken()
    crowd.close()
    times = [client.known_at - began for client in crowd.clients]
    views = "clients: refused with a view"
    refused = meter.requests[views]
    return {
        "views_sent": refused,
        "view_mb": meter.bytes[views] / 1e6,
        "not_serving": meter.requests["clients: refused with not-serving"],
        "look_ups": crowd.queue.asked,
        "failed": crowd.failed,
        "slow": crowd.outcomes["slower than 50 ms"],
        "half_know_after": median(times),
        "all_know_after": max(times),
        "client_cpu_ms": meter.seconds[CLIENTS] / clients * 1e3,
        "node_cpu_ms": meter.seconds["members asked by clients"] / nodes * 1e3,
    }


def start(nodes: int, clients: int, within: float) -> Figures:
    """All clients start within so many seconds: each asks the name server for the nodes."""
    cluster = Cluster(nodes)
    crowd = Crowd(cluster, clients, handshake_cost()[2])
    began = cluster.clock.now
    seconds = within + TIMEOUT_SECONDS + 1.0
    crowd.start(0.001, lambda: cluster.clock.now > began + seconds, within)  # one call each
    crowd.run(seconds)
    return {
        "look_ups": crowd.queue.asked,
        "failed": crowd.failed,
        "longest_queue": crowd.queue.longest,
        "look_up_ms": (cluster.server.listing_seconds + crowd.handshake_seconds) * 1e3,
    }


def most_nodes(highest: int = 1200) -> int:
    """Return the most nodes that the name server can list, with two views of them, in one valid message."""
    low, high = 1, highest
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _fits(size: int) -> bool:
    server = NameServer(Meter(), lambda holder: False)
    directory = MeteredDirectory(server, "node")
    members = [member(number) for number in range(1, size + 1)]
    try:
        directory.create_cluster("c", 1)
        for number in (1, 2):
            directory.store_view(ClusterView(members, number, "c"))
        for one in members:
            directory.register(one)
        return len(directory.listing().view) == size
    except NameServerUnavailable:
        return False


def _fastest_ms(work: Callable[[], object], times: int = 3) -> float:
    taken = []
    for _ in range(times):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken) * 1e3
