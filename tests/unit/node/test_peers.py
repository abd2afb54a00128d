"""What a probe of other nodes concludes from what it meets at their addresses."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import NodeConfig
from pyrocache.node.peers import Peers, PeerState
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.protocol.commands import COMMANDS
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop
from tests.support.scripted_peer import Line, ScriptedPeer

NAME = "cache.node.1"


def at(listener: socket.socket, name: str = NAME) -> Member:
    return Member(name, "127.0.0.1", listener.getsockname()[1], 1.0, "incarnation")


def serve(node: CacheNode, config: NodeConfig) -> Iterator[Member]:
    listener = socket.create_server(("127.0.0.1", 0))
    loop = EventLoop(
        [listener], Dispatcher(NAME, node, COMMANDS, greeting=dict, max_frame_bytes=2**20), config
    )
    thread = threading.Thread(target=loop.run, daemon=True)
    member = at(listener)
    thread.start()
    yield member
    loop.shutdown()
    thread.join(5)


@pytest.fixture
def node() -> CacheNode:
    return CacheNode(Store(2**20), RequestGuard(NAME, "incarnation"))


@pytest.fixture
def running(node: CacheNode) -> Iterator[Member]:
    yield from serve(node, NodeConfig())


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def gone() -> Member:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return at(listener, "cache.node.9")


def test_all_are_asked_at_once_within_one_deadline(
    running: Member, silent: socket.socket, gone: Member
) -> None:
    begun = time.monotonic()
    members = [*(at(silent, f"cache.node.{number}") for number in range(2, 7)), running, gone]
    states = Peers(timeout=0.5).states(members)
    assert states == [PeerState.SILENT] * 5 + [PeerState.SERVING, PeerState.GONE]
    assert time.monotonic() - begun < 2


def test_a_node_of_another_name_at_the_address_means_that_it_is_gone(running: Member) -> None:
    stranger = Member("cache.node.5", running.host, running.port)
    assert Peers(5.0).states([stranger]) == [PeerState.GONE]


def test_a_node_that_is_leaving_is_gone(node: CacheNode, running: Member) -> None:
    node.ownership.redirect(ClusterView([]))
    assert Peers(5.0).states([running]) == [PeerState.GONE]


def test_a_node_with_too_many_connections_is_serving(node: CacheNode) -> None:
    for member in serve(node, NodeConfig(max_connections=1)):
        with socket.create_connection((member.host, member.port)):
            time.sleep(0.05)
            assert Peers(5.0).states([member]) == [PeerState.SERVING]


def test_peers_tell_whether_they_know_a_node(
    node: CacheNode, running: Member, silent: socket.socket, gone: Member
) -> None:
    node.ownership.adopt(ClusterView([running]))
    asked = [running, at(silent, "cache.node.2"), gone]
    assert Peers(0.5).know(asked, running) == [True, None, None]
    assert Peers(0.5).know([running], Member(NAME, running.host, 1, 1.0, "another")) == [False]


def test_whatever_a_peer_answers_is_one_of_the_states() -> None:
    answers: list[Any] = []

    def script(line: Line) -> None:
        while True:
            line.request()
            line.send(line.reply(answers[0]))

    odd: list[Any] = [
        *(
            None,
            True,
            -1,
            2**63,
            1.5,
            math.nan,
            "",
            "abcde",
            ["abcde"],
            b"",
            b"abcde",
            [],
            {},
            {"serving": 1},
        ),
        *(
            [[]],
            [[None] * 5],
            [[1, 2, 3, 4, 5]],
            [None],
            [[[]] * 5],
            {"abcde": 1},
            [{"a": 1}],
            [["x"] * 1000],
        ),
    ]
    peer = ScriptedPeer(script)
    try:
        for answer in odd:
            answers[:] = [answer]
            assert Peers().states([peer.member]) == [PeerState.GONE]
            assert Peers().know([peer.member], peer.member)[0] in (None, False)
    finally:
        peer.close()
