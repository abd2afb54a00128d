"""Several nodes in this thread: the real membership, guard and store, with a fake clock and a name server in memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from Pyro5.errors import PyroError

from pyrocache.cluster.fencing import Heard, Identity
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import NodeConfig
from pyrocache.node.membership import NodeMembership
from pyrocache.node.peers import Peers
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.testing import FakeClock
from tests.support.memory_directory import MemoryDirectory


class PassingTime(FakeClock):
    """A clock on which every look takes a moment, so that no two things happen at once."""

    def __call__(self) -> float:
        self.now += 0.0001
        return self.now


class Cluster:
    """Nodes that share a name server."""

    def __init__(self) -> None:
        self.clock = PassingTime(1000.0)
        self.directory = MemoryDirectory()
        self.directory.seconds_there = 10.0
        self.nodes: dict[Identity, Node] = {}
        self._incarnations = count(1)

    def start(self, number: int) -> Node:
        """Let a node join. It does not tick."""
        return Node(self, f"cache.node.{number}", f"start{next(self._incarnations)}")

    def settle(self, seconds: float = 2.0) -> None:
        """Let all nodes that run tick for a while."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            for node in list(self.nodes.values()):
                node.tick()
            self.clock.tick(0.25)

    def replace_name_server(self) -> None:
        """Start an empty name server in place of the present one."""
        self.directory.wipe()
        self.directory.connection += 1
        self.directory.seconds_there = 0.0


class Node(Peers):
    """One start of a node."""

    def __init__(self, cluster: Cluster, name: str, incarnation: str) -> None:
        super().__init__()
        self.cluster = cluster
        self.dead = self.paused = False
        config = NodeConfig(name=name)
        clock = cluster.clock
        self.membership = NodeMembership(config, cluster.directory, self, clock, clock.tick)
        port = 4000 + len(cluster.nodes)
        self.member = self.membership.join(Member("cache.node.1", "127.0.0.1", port, 1.0, incarnation))
        guard = RequestGuard(name, incarnation, on_stale=self.membership.rumour)
        self.guard = guard
        self.cache_node = CacheNode(Store(2**20), guard, clock=clock)
        self.membership.attach(self.cache_node.ownership)
        cluster.nodes[self.member.identity] = self

    def introduce(self, member: Member) -> None:
        pass

    def ask(self, members: Sequence[Member], view: ClusterView, own: Member) -> list[Heard]:
        return [self._ask(self.cluster.nodes.get(member.identity), view) for member in members]

    def _ask(self, peer: Node | None, view: ClusterView) -> Heard:
        if peer is None or peer.dead:
            return Heard.GONE
        if peer.paused:
            return Heard.SILENT
        answer = peer.guard.ping(view.number)
        if answer["view"] > view.number:
            return Heard.NEWER
        return Heard.SAME if answer["id"] == view.id else Heard.OTHER

    @property
    def view(self) -> ClusterView:
        return self.membership.view

    @property
    def has_lease(self) -> bool:
        return self.membership.has_lease

    def tick(self) -> None:
        if not (self.dead or self.paused):
            self.membership.tick()

    def set(self, key: bytes, value: bytes) -> Any:
        """What the node answers to a ``set`` by its own view: True, or the code of its refusal."""
        return self._answer("set", key, value)

    def get(self, key: bytes) -> Any:
        return self._answer("get", key)

    def _answer(self, method: str, *arguments: bytes) -> Any:
        self.cache_node.ownership.expire(self.cluster.clock())
        try:
            return getattr(self.cache_node, method)(self.view.number, *arguments)
        except PyroError as refused:
            return getattr(refused, "code", refused)


def key_that_moves(before: ClusterView, after: ClusterView, giver: Node, taker: Node) -> bytes:
    """Return a key that one node owns by the one view, and another node by the other one."""
    keys = (b"\x01%d" % number for number in count())
    owners = giver.member.name, taker.member.name
    return next(key for key in keys if (before.owner(key).name, after.owner(key).name) == owners)
