"""The life of a node in this process, with a name server in memory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import NodeConfig
from pyrocache.errors import ConfigurationError, NameTaken, OutOfResources
from pyrocache.net.call_protocol import knowing
from pyrocache.net.calls import Connections, Request
from pyrocache.net.deadline import Deadline
from pyrocache.node import lifecycle
from pyrocache.node.lifecycle import Node
from pyrocache.node.peers import is_here
from pyrocache.protocol import commands
from tests.support.memory_directory import MemoryDirectory
from tests.support.secrets import SECRET
from tests.support.waiting import PATIENCE_SECONDS, wait_until

Start = Callable[..., Node]


@pytest.fixture
def directory() -> MemoryDirectory:
    return MemoryDirectory()


@pytest.fixture
def build(directory: MemoryDirectory) -> Iterator[Start]:
    """Makes nodes that have joined and do not run."""
    nodes: list[Node] = []

    def build(**settings: Any) -> Node:
        node = Node(
            NodeConfig(**{"new_cluster": True, "drain_seconds": 0.0, **settings}), directory, secret=SECRET
        )
        nodes.append(node)
        return node

    yield build
    for node in nodes:
        node._event_loop.close()
        node.withdraw()


class Running:
    """A node that runs on a thread of its own."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.ready = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.node.run(lambda member: self.ready.set())
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self.node.stop_request.request()
        self.join()

    def join(self) -> None:
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture
def start(directory: MemoryDirectory) -> Iterator[Callable[..., Running]]:
    """Starts nodes that run."""
    started: list[Running] = []

    def start(**settings: Any) -> Running:
        settings = {"new_cluster": True, "drain_seconds": 0.0, **settings}
        started.append(Running(Node(NodeConfig(**settings), directory, secret=SECRET)))
        return started[-1]

    yield start
    for running in reversed(started):
        running.stop()


def ping(member: Member, number: int = 0) -> Any:
    """What the node at an address answers to a ping."""
    with closing(Connections(1, caller=knowing(SECRET))) as connections:
        ((_, answer),) = connections.exchange(
            [Request(member, commands.PING, (number,))], Deadline(PATIENCE_SECONDS)
        )
        return answer


def test_a_node_is_ready_when_it_answers_for_its_keys(
    start: Callable[..., Running], directory: MemoryDirectory
) -> None:
    running = start()
    assert running.ready.wait(PATIENCE_SECONDS)
    member = running.node.member
    assert (member.name, member.cluster) == ("cache.node.1", directory.cluster)
    answer = ping(member)
    assert answer == {
        "name": member.name,
        "incarnation": member.incarnation,
        "serving": True,
        "view": directory.first,
        "id": directory.listing().view.id,
    }


def test_nodes_join_and_leave_one_after_the_other(
    start: Callable[..., Running], directory: MemoryDirectory
) -> None:
    first = start()
    assert first.ready.wait(PATIENCE_SECONDS)
    second = start()
    assert second.ready.wait(PATIENCE_SECONDS)
    number = directory.first + 1
    assert [m.number for m in directory.listing().view.members] == [1, 2]
    assert wait_until(lambda: ping(first.node.member)["view"] == number)
    assert ping(second.node.member)["serving"] is True
    second.stop()
    assert second.error is None
    assert directory.listing().view == ClusterView([first.node.member], number + 1, directory.cluster)
    assert list(directory.entries) == ["cache.node.1"]
    assert wait_until(lambda: ping(first.node.member)["view"] == number + 1)
    first.stop()
    assert len(directory.listing().view) == 0
    assert directory.listing().view.number == number + 2


def test_a_caller_with_a_newer_view_wakes_a_node(
    start: Callable[..., Running], directory: MemoryDirectory
) -> None:
    running = start(lease_seconds=200.0)  # so it would ask the name server every 50 s
    assert running.ready.wait(PATIENCE_SECONDS)
    member, number = running.node.member, directory.first
    directory.store_view(ClusterView([member], number + 1, directory.cluster))
    assert ping(member, number + 1)["view"] in (number, number + 1)
    assert wait_until(lambda: ping(member)["view"] == number + 1)


def test_a_node_that_was_struck_out_ends(start: Callable[..., Running], directory: MemoryDirectory) -> None:
    running = start()
    assert running.ready.wait(PATIENCE_SECONDS)
    directory.store_view(ClusterView((), directory.first + 1, directory.cluster))
    running.join()
    assert isinstance(running.error, NameTaken)
    assert directory.listing().view.number == directory.first + 1
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((running.node.member.host, running.node.member.port), 1.0)


def test_the_lease_of_the_event_loop_is_that_of_the_membership(build: Start) -> None:
    node = build()
    node._tick()
    assert node._event_loop.lease_until == node.membership.serving_until > node._clock()


def test_the_greeting_has_the_identity(build: Start, directory: MemoryDirectory) -> None:
    greeting = build()._greeting()
    member = directory.entries["cache.node.1"]
    assert (greeting.node, greeting.incarnation) == (member.name, member.incarnation)
    assert greeting.cluster == directory.cluster != ""


def test_a_node_that_cannot_be_built_leaves_neither_a_registration_nor_a_socket(
    build: Start, directory: MemoryDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without descriptors or threads; `tests.cluster.test_resources` has the real thing."""
    removed: list[str] = []

    def fail(*arguments: Any, **options: Any) -> None:
        assert list(directory.entries) == ["cache.node.1"]
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(lifecycle, "EventLoop", fail)
    monkeypatch.setattr(lifecycle.unix_socket, "remove", removed.append)
    with pytest.raises(OutOfResources, match="The node cannot start: can't start new thread"):
        build()
    assert directory.entries == {}
    assert len(directory.listing().view) == 0
    assert len(removed) == 1


def test_a_node_that_cannot_join_leaves_no_socket(
    build: Start, directory: MemoryDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    monkeypatch.setattr(lifecycle.unix_socket, "remove", removed.append)
    directory.create_cluster("c1", 1)
    directory.register(Member("cache.node.3", "127.0.0.1", 1, cluster="c2"))
    with pytest.raises(ConfigurationError, match="two clusters"):
        build()
    assert len(removed) == 1


def test_a_node_compares_others_with_where_it_listens_and_not_with_what_it_advertises(
    build: Start, directory: MemoryDirectory
) -> None:
    """Behind one advertised address there may be several hosts, so a refused connection there proves nothing."""
    node = build(host="0.0.0.0", advertise="192.0.2.200:7", tls=False)
    assert (node.member.host, node.member.port) == ("192.0.2.200", 7)
    assert directory.listing().view.members == (node.member,)
    neighbour = Member("cache.node.2", "192.0.2.200", 8, incarnation="other")
    assert not is_here(neighbour.host, node.membership._bound.host)
    assert node.membership._bound.port not in (0, 7)
    assert node._advertised == {"192.0.2.200 7"}
