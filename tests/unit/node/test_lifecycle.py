"""A node's dealings with the name server and with its peers, without a process: both are scripted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from Pyro5.errors import PyroError

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import NodeConfig
from pyrocache.errors import NameServerUnavailable, NameTaken, OutOfResources
from pyrocache.node import lifecycle
from pyrocache.node.lifecycle import Node
from pyrocache.node.peers import Peers, PeerState
from pyrocache.node.service.guard import PartitionState
from pyrocache.testing import FakeClock


class MemoryDirectory:
    """A name server in memory."""

    def __init__(self, *members: Member) -> None:
        self.entries = {member.name: member for member in members}
        self.away = False

    def members(self, timeout: float = 5.0) -> list[Member]:
        if self.away:
            raise NameServerUnavailable("away")
        return list(self.entries.values())

    def add(self, member: Member) -> bool:
        return self.entries.setdefault(member.name, member) is member

    def remove(self, member: Member, timeout: float = 5.0) -> bool:
        if self.entries.get(member.name, member).incarnation != member.incarnation:
            return False
        return self.entries.pop(member.name, None) is not None


def peer(number: int, incarnation: str = "x") -> Member:
    return Member(f"cache.node.{number}", "127.0.0.1", 1, 1.0, incarnation)


class ScriptedPeers(Peers):
    """What each peer answers: nothing, unless a test says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, PeerState] = {}
        self.gave_up_on_us = False
        self.asked: list[list[str]] = []

    def states(self, members: Sequence[Member], view_id: int = 0) -> list[PeerState]:
        self.asked.append([member.name for member in members])
        return [self.answers.get(member.name, PeerState.GONE) for member in members]

    def know(self, peers: Sequence[Member], member: Member, view_id: int = 0) -> list[bool | None]:
        serving = [self.answers.get(peer.name) is PeerState.SERVING for peer in peers]
        return [not self.gave_up_on_us if serves else None for serves in serving]


@pytest.fixture
def peers() -> ScriptedPeers:
    return ScriptedPeers()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(100.0)


@pytest.fixture
def start(peers: ScriptedPeers, clock: FakeClock) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def start(directory: MemoryDirectory, **settings: Any) -> Node:
        node = Node(NodeConfig(**settings), directory, peers=peers, clock=clock)
        nodes.append(node)
        node.heartbeat()
        return node

    yield start
    for node in nodes:
        node._event_loop.close()


def names(node: Node) -> list[int]:
    return [member.number for member in node._view.members]


def test_a_node_takes_the_first_free_name(start: Callable[..., Node], peers: ScriptedPeers) -> None:
    peers.answers = {"cache.node.1": PeerState.SERVING, "cache.node.2": PeerState.SILENT}
    directory = MemoryDirectory(peer(1), peer(2))
    assert start(directory).member.name == "cache.node.3"
    assert peers.asked[0] == ["cache.node.1", "cache.node.2"], "all are asked at once"


def test_an_entry_left_by_a_dead_node_is_taken_over(start: Callable[..., Node]) -> None:
    directory = MemoryDirectory(peer(1, "dead"))
    node = start(directory)
    assert node.member.name == "cache.node.1"
    assert directory.entries["cache.node.1"] == node.member


@pytest.mark.parametrize("state", [PeerState.SERVING, PeerState.SILENT])
def test_a_name_that_may_be_alive_is_refused(
    start: Callable[..., Node], peers: ScriptedPeers, state: PeerState
) -> None:
    peers.answers["cache.node.4"] = state
    with pytest.raises(NameTaken, match=r"cache\.node\.4 is held"):
        start(MemoryDirectory(peer(4)), name="cache.node.4")


def test_a_forgotten_node_registers_again_and_keeps_its_entries(start: Callable[..., Node]) -> None:
    directory = MemoryDirectory()
    node = start(directory)
    node.cache_node.set(0, b"k", b"v")
    directory.entries.clear()
    node.heartbeat()
    assert directory.entries["cache.node.1"] == node.member
    assert node.cache_node.get(0, b"k") == b"v"


@pytest.mark.parametrize("gave_up", [True, False])
def test_a_forgotten_node_that_others_gave_up_forgets_its_entries(
    start: Callable[..., Node], peers: ScriptedPeers, gave_up: bool
) -> None:
    directory = MemoryDirectory(peer(2))
    peers.answers["cache.node.2"] = PeerState.SERVING
    node = start(directory, name="cache.node.1")
    node.cache_node.set(0, b"k", b"v")
    directory.entries.clear()
    peers.gave_up_on_us = gave_up
    node.heartbeat()
    assert node.cache_node.get(0, b"k") == (None if gave_up else b"v")


def test_a_node_serves_nobody_before_the_others_know_of_it(
    start: Callable[..., Node], peers: ScriptedPeers, clock: FakeClock
) -> None:
    peers.answers["cache.node.2"] = PeerState.SERVING
    peers.gave_up_on_us = True  # they do not know of us yet
    node = start(MemoryDirectory(peer(2), peer(3)), name="cache.node.1")
    asked: list[bool] = []

    def know(others: Sequence[Member], member: Member, view_id: int = 0) -> list[bool | None]:
        with pytest.raises(PyroError, match="another view"):
            node.cache_node.get(node._view.id, b"k")
        asked.append(True)
        return [len(asked) >= 5 for _ in others]

    peers.know = know  # type: ignore[method-assign]
    node.cache_node.ownership.set_state(PartitionState.LOADING)
    node._be_admitted()
    assert node.cache_node.get(node._view.id, b"k") is None
    assert len(asked) == 5


def test_a_node_whose_name_a_live_one_has_taken_ends(
    start: Callable[..., Node], peers: ScriptedPeers
) -> None:
    directory = MemoryDirectory()
    node = start(directory)
    directory.entries["cache.node.1"] = replace(node.member, incarnation="another")
    peers.answers["cache.node.1"] = PeerState.SERVING
    with pytest.raises(NameTaken):
        node.heartbeat()


def test_members_that_the_name_server_forgot_stay_while_they_answer(
    start: Callable[..., Node], peers: ScriptedPeers
) -> None:
    directory = MemoryDirectory(peer(2), peer(3), peer(4))
    node = start(directory, name="cache.node.1")
    assert names(node) == [1, 2, 3, 4]
    directory.entries.clear()
    peers.answers = {"cache.node.2": PeerState.SERVING, "cache.node.3": PeerState.SILENT}
    node.heartbeat()
    assert names(node) == [1, 2]


def test_without_a_name_server_the_view_stays(start: Callable[..., Node]) -> None:
    directory = MemoryDirectory(peer(2))
    node = start(directory, name="cache.node.1")
    directory.away = True
    node.heartbeat()
    assert names(node) == [1, 2]


def test_a_dead_member_stays_in_the_view_while_it_is_listed(start: Callable[..., Node]) -> None:
    node = start(MemoryDirectory(peer(2)), name="cache.node.1")
    node.heartbeat()
    assert names(node) == [1, 2]


def test_what_moves_away_is_dropped_and_never_comes_back(start: Callable[..., Node]) -> None:
    directory = MemoryDirectory()
    node = start(directory)
    keys = [b"%d" % number for number in range(300)]
    for key in keys:
        node.cache_node.set(0, key, b"old")
    directory.entries["cache.node.2"] = peer(2)
    node.heartbeat()
    kept = {key for key in keys if node.cache_node.get(0, key) == b"old"}
    mine = {key for key in keys if ClusterView([node.member, peer(2)]).owner(key).number == 1}
    assert kept == mine
    assert 0 < len(kept) < len(keys)
    del directory.entries["cache.node.2"]
    node.heartbeat()
    assert {key for key in keys if node.cache_node.get(0, key) is not None} == kept


def test_a_node_that_cannot_be_built_leaves_neither_a_registration_nor_a_socket(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without descriptors or threads; `tests.cluster.test_resources` has the real thing."""
    removed: list[str] = []
    directory = MemoryDirectory()

    def fail(*arguments: Any, **options: Any) -> None:
        assert list(directory.entries) == ["cache.node.1"]
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(lifecycle, "EventLoop", fail)
    monkeypatch.setattr(lifecycle.unix_socket, "remove", removed.append)
    with pytest.raises(OutOfResources, match="The node cannot start: can't start new thread"):
        start(directory)
    assert directory.entries == {}
    assert len(removed) == 1
