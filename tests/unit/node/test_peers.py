"""What a node concludes from what it meets at the addresses of others."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pyrocache.cluster.fencing import Heard
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import NodeConfig
from pyrocache.errors import NodeUnavailable
from pyrocache.net.failures import Unavailable
from pyrocache.node.peers import Peers, _heard, is_here
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.protocol.commands import COMMANDS
from pyrocache.protocol.handshake import PROTOCOL, Greeting
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop
from tests.support.scripted_peer import Line, ScriptedPeer, connect_ok
from tests.support.waiting import eventually

NAME = "cache.node.1"
OWN = Member("cache.node.9", "127.0.0.1", 9, 1.0, "own")


def at(listener: socket.socket, name: str = NAME) -> Member:
    return Member(name, "127.0.0.1", listener.getsockname()[1], 1.0, "incarnation", "", "c1")


def serve(node: CacheNode, config: NodeConfig) -> Iterator[Member]:
    listener = socket.create_server(("127.0.0.1", 0))
    greeting = Greeting(NAME, "incarnation", 2**20, PROTOCOL, "c1")
    dispatcher = Dispatcher(NAME, node, COMMANDS, greeting=lambda: greeting, max_frame_bytes=2**20)
    loop = EventLoop([listener], dispatcher, config)
    thread = threading.Thread(target=loop.run, daemon=True)
    member = at(listener)
    thread.start()
    yield member
    loop.shutdown()
    thread.join(5)


@pytest.fixture
def stale() -> list[int]:
    return []


@pytest.fixture
def node(stale: list[int]) -> CacheNode:
    return CacheNode(Store(2**20), RequestGuard(NAME, "incarnation", on_stale=stale.append))


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
        return at(listener, "cache.node.8")


def view(number: int, *members: Member) -> ClusterView:
    return ClusterView(members, number, "c1")


def ask(member: Member, of: ClusterView, own: Member = OWN, seconds: float = 5.0) -> Heard:
    peers = Peers(seconds)
    try:
        (heard,) = peers.ask([member], of, own)
        return heard
    finally:
        peers.close()


def test_all_are_asked_at_once_within_one_deadline(
    node: CacheNode, running: Member, silent: socket.socket, gone: Member
) -> None:
    node.ownership.adopt(view(7, running))
    begun = time.monotonic()
    members = [*(at(silent, f"cache.node.{number}") for number in range(2, 7)), running, gone]
    heard = Peers(timeout=0.5).ask(members, view(7, running), OWN)
    assert heard == [Heard.SILENT] * 5 + [Heard.SAME, Heard.GONE]
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("late", [0.9, 0.45], ids=["opening", "open"])
@pytest.mark.parametrize("others", [0, 1])
def test_questions_with_little_time_open_a_connection_together(
    late: float, others: int, silent: socket.socket
) -> None:
    """Over a long way, a handshake may take longer than a question has, and leave too little for the answer."""

    def script(line: Line) -> None:
        line.frame()
        time.sleep(late)
        line.send(connect_ok({"max_value_bytes": 1}))
        while True:
            line.request()
            time.sleep(0.3)
            line.send(line.reply({"view": 7, "id": ""}))

    peer = ScriptedPeer(script, greeting=False)
    members = [peer.member, *(at(silent, "cache.node.2") for _ in range(others))]
    peers = Peers(timeout=0.6)
    try:
        assert peers.ask(members, view(7), OWN)[0] is Heard.SILENT
        eventually(lambda: peers.ask(members, view(7), OWN)[0] is not Heard.SILENT)
    finally:
        peers.close()
        peer.close()
    assert peer.opened == 1


def test_nobody_is_asked() -> None:
    assert Peers().ask([], view(7), OWN) == []


def test_a_node_has_the_same_view_a_newer_one_or_another(
    node: CacheNode, running: Member, gone: Member, stale: list[int]
) -> None:
    assert ask(running, view(7, running)) is Heard.OTHER, "it has none yet"
    node.ownership.adopt(view(7, running))
    assert ask(running, view(7, running)) is Heard.SAME
    assert ask(running, view(6, running)) is Heard.NEWER
    assert ask(running, view(7, running, gone)) is Heard.OTHER
    assert stale == [7], "the first time"
    assert ask(running, view(8, running)) is Heard.OTHER
    assert stale == [7, 8], "it queries the name server now"


def test_a_node_that_prepares_for_another_view_does_not_confirm(node: CacheNode, running: Member) -> None:
    node.ownership.adopt(view(7, running))
    node.ownership.prepare()
    assert ask(running, view(7, running)) is Heard.OTHER
    assert ask(running, view(6, running)) is Heard.NEWER
    node.ownership.confirm()
    assert ask(running, view(7, running)) is Heard.SAME


def test_a_node_without_a_lease_confirms_all_the_same(node: CacheNode, running: Member) -> None:
    node.ownership.adopt(view(7, running))
    node.ownership.lapse(True)
    assert ask(running, view(7, running)) is Heard.SAME


@pytest.mark.parametrize(
    "other",
    [{"name": "cache.node.5"}, {"incarnation": "before"}, {"cluster": "c2"}],
    ids=["name", "incarnation", "cluster"],
)
def test_whoever_else_is_at_the_address_is_no_proof_that_the_node_is_gone(
    node: CacheNode, running: Member, other: dict[str, str]
) -> None:
    """A proxy or a forwarded port may be in between: only a refused connection proves that."""
    expected = replace(running, **other)
    node.ownership.adopt(view(7, expected))
    assert ask(expected, view(7, expected)) is Heard.SILENT


def test_a_connection_that_is_closed_is_no_proof_either() -> None:
    peer = ScriptedPeer(lambda line: None, greeting=False)
    try:
        assert ask(peer.member, view(7, peer.member)) is Heard.SILENT
    finally:
        peer.close()


def test_a_node_with_too_many_connections_is_silent(node: CacheNode) -> None:
    for member in serve(node, NodeConfig(max_connections=1)):
        node.ownership.adopt(view(7, member))
        with socket.create_connection((member.host, member.port)):
            time.sleep(0.05)
            assert ask(member, view(7, member)) is Heard.SILENT


def test_a_refused_connection_proves_that_a_node_is_gone_on_this_host_only(gone: Member) -> None:
    assert ask(gone, view(7, gone)) is Heard.GONE
    elsewhere = replace(OWN, host="192.0.2.1")
    assert ask(gone, view(7, gone), elsewhere) is Heard.GONE, "a loopback address is this host in any case"
    assert not is_here("192.0.2.7", OWN.host)


def test_a_member_whose_port_this_node_has_is_gone(running: Member, node: CacheNode) -> None:
    node.ownership.adopt(view(7, running))
    own = replace(running, name="cache.node.2", incarnation="new")
    assert ask(running, view(7, running), own) is Heard.GONE


@pytest.mark.parametrize(
    ("listens", "registered", "gone"),
    [
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "192.0.2.200", False),
        ("::", "node-1", False),
        ("0.0.0.0", "::1", False),
    ],
)
def test_whoever_was_at_an_address_where_this_node_listens_is_gone(
    listens: str, registered: str, gone: bool
) -> None:
    earlier = Member(NAME, registered, 1, 1.0, "before")
    here = replace(OWN, host=listens, port=1)
    answer = Unavailable(NodeUnavailable("no answer"), maybe_executed=True, timed_out=True)
    assert _heard(earlier, answer, view(7), here) is (Heard.GONE if gone else Heard.SILENT)
    elsewhere = replace(here, port=2)
    assert _heard(earlier, answer, view(7), elsewhere) is Heard.SILENT


@pytest.mark.parametrize(
    ("host", "own", "here"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.5.5.5", "10.0.0.1", True),
        ("::1", "10.0.0.1", True),
        ("localhost", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.1", True),
        ("node-1", "node-1", True),
        ("10.0.0.2", "10.0.0.1", False),
        ("node-2", "node-1", False),
        ("", "node-1", False),
    ],
)
def test_which_hosts_are_this_one(host: str, own: str, here: bool) -> None:
    assert is_here(host, own) is here


@pytest.mark.parametrize(
    ("answer", "heard"),
    [
        ({"view": 7, "id": "right"}, Heard.SAME),
        ({"view": 8, "id": 0}, Heard.NEWER),
        ({"view": 7, "id": 0}, Heard.OTHER),
        ({"view": 6, "id": "right"}, Heard.OTHER),
        ({"view": True, "id": "right"}, Heard.OTHER),
        ({"view": "8", "id": "right"}, Heard.OTHER),
        ({"view": 8.0, "id": "right"}, Heard.OTHER),
        ({"view": None, "id": None}, Heard.OTHER),
        ({"id": "right"}, Heard.OTHER),
        ({}, Heard.OTHER),
        ([7, 1], Heard.OTHER),
        ("nonsense", Heard.OTHER),
        (None, Heard.OTHER),
    ],
)
def test_any_answer_is_understood_or_confirms_nothing(answer: Any, heard: Heard) -> None:
    def script(line: Line) -> None:
        assert line.request() == ("ping", [7])
        said = answer
        if isinstance(answer, dict) and answer.get("id") == "right":
            said = {**answer, "id": view(7, peer.member).id}
        line.send(line.reply(said))

    peer = ScriptedPeer(script)
    try:
        assert ask(peer.member, view(7, peer.member)) is heard
    finally:
        peer.close()
    assert peer.failures == []


def test_a_connection_is_kept_until_the_node_has_a_name() -> None:
    def script(line: Line) -> None:
        while True:
            line.request()
            line.send(line.reply({}))

    peer = ScriptedPeer(script)
    peers = Peers(5.0)
    try:
        for opened in (1, 1, 2, 2):
            if opened > peer.opened and opened == 2:
                peers.introduce(OWN)
            peers.ask([peer.member], view(7), OWN)
            assert peer.opened == opened
    finally:
        peers.close()
        peer.close()


def test_a_node_of_a_version_too_far_away_is_silent_and_named_until_all_can_be_spoken_with(
    running: Member,
) -> None:
    peer = ScriptedPeer(lambda line: None, greeting={"protocol": PROTOCOL + 2, "node": NAME})
    peers = Peers(5.0)
    try:
        both = [running, replace(peer.member, name=NAME)]
        assert peers.ask(both, view(7), OWN)[1] is Heard.SILENT
        reason = f"the server speaks protocol {PROTOCOL + 2} and the caller protocol {PROTOCOL}"
        assert f"no connection to {NAME} at {peer.member.address} was made, as {reason}" in peers.mismatch
        assert peers.mismatch.endswith(": upgrade pyrocache at the caller.")
        peers.ask([running], view(7), OWN)
        assert peers.mismatch == ""
    finally:
        peers.close()
        peer.close()
