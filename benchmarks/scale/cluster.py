"""`Cluster`: nodes in this process with a simulated clock, and the real membership, guard, `CacheNode` and dispatcher.

Each node does what the loop of `node.lifecycle` would do at that time. On the simulated clock, messages and work take
no time: only the waits of the protocol do. CPU time is measured separately.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from benchmarks.scale.meter import Meter
from benchmarks.scale.wire import ADMISSION, CALLER, MeteredDirectory, NameServer, answer, shake
from pyrocache.cluster.fencing import Fencing, Identity
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import EMPTY
from pyrocache.config import NodeConfig
from pyrocache.errors import NodeUnavailable
from pyrocache.net.call_protocol import CallProtocol
from pyrocache.net.calls import Request
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Unavailable
from pyrocache.node.lifecycle import _JOIN_PAUSE_SECONDS, _NUDGE_PAUSE_SECONDS
from pyrocache.node.membership import NodeMembership
from pyrocache.node.peers import Peers
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.protocol.commands import COMMANDS
from pyrocache.protocol.handshake import PROTOCOL, Greeting
from pyrocache.protocol.messages import CallPacker, unpack_result
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.testing import FakeClock

MEMBERS, JOINER = "members", "joiner"
PINGS = "between nodes: ping"
FIRST = 1_790_000_000  # the number of a first view is the time
CLUSTER = "0123456789abcdef"


class PassingTime(FakeClock):
    """A clock on which every look takes a moment, so that no two things happen at once."""

    def __call__(self) -> float:
        """Return the time."""
        self.now += 1e-8
        return self.now


def member(number: int) -> Member:
    """Return a node with an address, an incarnation and a Unix socket of the usual lengths."""
    incarnation = f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"
    host = f"10.20.{number // 250}.{number % 250 + 1}"
    path = f"/run/user/1000/pyrocache-1000/{incarnation}.sock"
    return Member(f"cache.node.{number}", host, 7001, 1.0, incarnation, path, CLUSTER)


class Cluster:
    """A cluster of ``size`` nodes that serve.

    Attributes:
        meter: counts what they do.
        clock: theirs.
        nodes: by identity.
        server: the name server.
    """

    def __init__(self, size: int) -> None:
        self.meter = Meter()
        self.clock = PassingTime(1000.0)
        self.nodes: dict[Identity, Node] = {}
        self.server = NameServer(self.meter, lambda holder: holder.identity in self.nodes)
        self._due: list[tuple[float, int, Node]] = []
        self._order = count()
        self.admin = MeteredDirectory(self.server, "operator")
        members = [member(number) for number in range(1, size + 1)]
        view = ClusterView(members, FIRST, CLUSTER)
        self.admin.create_cluster(CLUSTER, FIRST - 1)
        for one in (ClusterView(members, FIRST - 1, CLUSTER), view):  # the name server keeps two
            self.admin.store_view(one)
        lease = NodeConfig().lease_seconds
        for place, here in enumerate(members):
            self.admin.register(here)
            node = Node(self, here, MEMBERS)
            node.begin(view)
            node.wake(lease / 4 * place / size)
        self.run(lease / 4)  # each asks the name server once
        self.meter.taken()

    def run(self, seconds: float) -> None:
        """Let all nodes run for some time."""
        until = self.clock.now + seconds
        while self._due and self._due[0][0] <= until:
            at, _, node = heapq.heappop(self._due)
            if node.due == at and not node.dead:
                self.clock.now = max(self.clock.now, at)
                node.step()
        self.clock.now = max(self.clock.now, until)

    def run_until_settled(self, number: int, longest: float = 30.0) -> float:
        """Run until all nodes serve under view ``number`` or a newer one. Return the seconds."""
        began = self.clock.now
        while not all(node.serves(number) for node in self.nodes.values() if not node.dead):
            if self.clock.now - began > longest:
                raise RuntimeError("The nodes do not agree.")
            self.run(0.005)
        return self.clock.now - began

    def schedule(self, node: Node, after: float) -> None:
        """Let ``node`` take its next step then."""
        node.due = self.clock.now + after
        heapq.heappush(self._due, (node.due, next(self._order), node))

    def join(self, number: int) -> Node:
        """Start a node, and run until it has stored its view."""
        node = Node(self, member(number), JOINER)
        with self.meter.part(JOINER):
            node.member = node.membership.join(node.member)
        node.attach()
        self.schedule(node, 0.0)
        return node


class Node(Peers):
    """One node. It is also what asks its peers."""

    def __init__(self, cluster: Cluster, member: Member, part: str) -> None:
        self._cluster, self._part = cluster, part
        super().__init__(caller=CALLER)
        self.member = member
        self.due = float("inf")
        self.dead = self._woken = False
        clock = cluster.clock
        config = NodeConfig(name=member.name)
        directory = MeteredDirectory(cluster.server, part)
        self.membership = NodeMembership(config, directory, self, clock, cluster.run)
        guard = RequestGuard(member.name, member.incarnation, on_stale=self._rumour)
        self.guard = guard
        self.cache_node = CacheNode(Store(2**20, clock=clock), guard, clock=clock)
        greeting = Greeting(member.name, member.incarnation, 2**20, PROTOCOL, CLUSTER, clock_ms=1)
        self.dispatcher = Dispatcher(
            member.name,
            self.cache_node,
            COMMANDS,
            greeting=lambda: greeting,
            max_frame_bytes=2**21,
            admission=ADMISSION,
        )

    def begin(self, view: ClusterView) -> None:
        """Be a member of a cluster that has been there for long."""
        membership = self.membership
        membership._me = self.member
        lease = NodeConfig().lease_seconds
        fencing = Fencing(self.member.identity, lease, EMPTY, EMPTY)
        membership.fencing = fencing.adopt(view, EMPTY, self._cluster.clock())
        self.attach()

    def attach(self) -> None:
        """Take part."""
        self.membership.attach(self.cache_node.ownership)
        self._cluster.nodes[self.member.identity] = self

    def serves(self, number: int) -> bool:
        """Whether it may answer for all its keys, under that view or a newer one."""
        here = self.membership
        return here.view.number >= number and here.settled and here.has_lease

    def step(self) -> None:
        """Do one round of the loop of `node.lifecycle`."""
        self._woken = False
        with self._cluster.meter.part(self._part):
            self.membership.tick()
        joining = self._part == JOINER and not self.serves(0)
        soon = _JOIN_PAUSE_SECONDS if joining else _NUDGE_PAUSE_SECONDS
        pause = soon if self.membership.in_transition else NodeConfig().lease_seconds / 4
        self._cluster.schedule(self, _NUDGE_PAUSE_SECONDS if self._woken else pause)

    def wake(self, after: float) -> None:
        """Let the next step follow soon."""
        if self.due > self._cluster.clock.now + after:
            self._cluster.schedule(self, after)

    def _rumour(self, number: int) -> None:
        self.membership.rumour(number)
        self._woken = True
        self.wake(_NUDGE_PAUSE_SECONDS)

    def _connect(self, name: str) -> Any:
        return Links(self._cluster, self._part)


class Links:
    """The connections of a node to its peers, with what `Peers` uses of `Connections`."""

    def __init__(self, cluster: Cluster, part: str) -> None:
        self._cluster, self._part = cluster, part
        self.opened: set[Identity] = set()

    def exchange(self, requests: Sequence[Request], deadline: Deadline) -> Iterator[tuple[int, Any]]:
        """Make calls; see `Connections.exchange`."""
        meter, nodes = self._cluster.meter, self._cluster.nodes
        peers = [nodes.get(request.member.identity) for request in requests]
        live = [index for index, peer in enumerate(peers) if peer is not None and not peer.dead]
        with meter.part(self._part):
            sent = [_pack(requests[index]) for index in live]
        with meter.part("members asked" if self._part == MEMBERS else MEMBERS):
            replies = [answer(peers[i].dispatcher, one) for i, one in zip(live, sent, strict=True)]  # type: ignore[union-attr]
        meter.count(PINGS, sum(map(len, sent)) + sum(map(len, replies)), len(live))
        self.opened.update(requests[index].member.identity for index in live)
        with meter.part(self._part):
            yield from ((i, unpack_result(reply, 1)) for i, reply in zip(live, replies, strict=True))
        for index in set(range(len(requests))).difference(live):
            yield index, silence(requests[index].member)

    def close(self) -> None:
        """Nothing is held."""


def silence(member: Member) -> Unavailable:
    """Return the outcome of a call to a host where nothing listens."""
    return Unavailable(NodeUnavailable(f"{member.name} does not answer."), False, False, refused=True)


def handshake_cost() -> tuple[int, float, float]:
    """Return the bytes of a handshake with a node, and the CPU seconds of the caller and of the node."""
    cluster = Cluster(1)
    (node,) = cluster.nodes.values()
    rounds = 200
    for _ in range(rounds):
        protocol = CallProtocol(node.member.name, CALLER)
        shake(cluster.meter, protocol, node.dispatcher, "handshake", "caller", "node")
    meter = cluster.meter
    size = meter.bytes["handshake"] // rounds
    assert meter.requests["handshake"] == 2 * rounds
    return size, meter.seconds["caller"] / rounds, meter.seconds["node"] / rounds


def _pack(request: Request) -> bytes:
    packed = CallPacker(request.member.name).pack(request.command.name, request.arguments, 1)
    assert isinstance(packed, bytes)
    return packed
