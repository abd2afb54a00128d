"""Whether the node that a name is registered for is alive, with scripted peers on real sockets."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from typing import Any

import pytest

from pyrocache.cluster.routing import Member
from pyrocache.nameserver.holder import PING_SECONDS, is_alive
from pyrocache.net.call_protocol import ANONYMOUS
from pyrocache.protocol.handshake import PROTOCOL
from tests.support.scripted_peer import Line, ScriptedPeer, refusal_message
from tests.support.secrets import nameless

SELF = {"name": "cache.node.1", "incarnation": "i", "serving": False, "view": 0, "id": 0}


def answer_of(answer: Any, greeting: Any = None, **other: str) -> bool:
    """Ask a node that gives this answer to a ping."""

    def script(line: Line) -> None:
        assert line.request() == ("ping", [])
        line.send(refusal_message(line.sequence, answer) if type(answer) is str else line.reply(answer))

    peer = ScriptedPeer(script, greeting=greeting)
    try:
        return is_alive(ANONYMOUS, replace(peer.member, **other))
    finally:
        peer.close()
        assert not peer.failures


def test_a_node_that_answers_is_alive_without_a_lease_too() -> None:
    assert answer_of(SELF)


@pytest.mark.parametrize(
    "answer",
    [{**SELF, "incarnation": "j"}, {}, None, "bad-request", [1]],
    ids=["another", "0", "1", "2", "3"],
)
def test_another_answer_is_none(answer: Any) -> None:
    assert not answer_of(answer)


@pytest.mark.parametrize(
    ("field", "value"), [("incarnation", "j"), ("cluster", "c2"), ("name", "cache.node.2")]
)
def test_another_node_cluster_or_incarnation_at_the_address_is_not_it(field: str, value: str) -> None:
    greeting = {"protocol": 1, "node": "cache.node.1", "cluster": "c1", "incarnation": "i"}
    assert not answer_of(SELF, greeting, **{field: value})


def test_what_is_gone_or_silent_is_not_alive_and_is_not_waited_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        member = Member("cache.node.1", "127.0.0.1", silent.getsockname()[1], incarnation="i")
        began_at = time.monotonic()
        assert not is_alive(ANONYMOUS, member)
        assert time.monotonic() - began_at >= PING_SECONDS
    began_at = time.monotonic()
    assert not is_alive(ANONYMOUS, member)
    assert time.monotonic() - began_at < PING_SECONDS


def test_a_node_with_another_secret_is_not_gone_and_a_process_that_proves_nothing_is_no_node() -> None:
    own = {"protocol": 1, "node": "cache.node.1", "incarnation": "i"}
    for greeting, alive in ({**own, "nonce": b"n" * 32, "proof": b"p" * 32}, True), (own, False):
        peer = ScriptedPeer(lambda line: None, greeting=greeting)
        try:
            assert is_alive(nameless(), replace(peer.member, incarnation="i")) is alive
            assert not is_alive(nameless(), replace(peer.member, incarnation="j"))
        finally:
            peer.close()


def test_a_node_of_a_version_too_far_away_is_alive() -> None:
    """Otherwise a node of another version could take its name."""
    assert answer_of(SELF, {"protocol": PROTOCOL + 2, "node": "cache.node.1"})
