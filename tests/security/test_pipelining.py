"""Hostile clients with the secret that have many requests outstanding: they harm neither the node nor other clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyrocache.protocol import limits
from pyrocache.protocol.refusals import OVERLOADED, Refusal
from tests.support.nodes import RunningNode, running_node
from tests.support.pipelining import Pipeline
from tests.support.waiting import eventually
from tests.support.wire import CLOSED, NO_VIEW

MIB = 2**20


@pytest.fixture(scope="module")
def node() -> Iterator[RunningNode]:
    with running_node(open=False, max_memory=64 * MIB, request_seconds=0.5) as node:
        yield node


@pytest.fixture
def bystander(node: RunningNode) -> Iterator[Pipeline]:
    """Another client, which is served as ever and finds every lock free afterwards."""
    with Pipeline(node) as peer:
        yield peer
        peer.send(
            peer.request(9000, "set", NO_VIEW, b"\0a", b"v") + peer.request(9001, "get", NO_VIEW, b"\0a")
        )
        assert [peer.answer(), peer.answer()] == [(9000, True), (9001, b"v")]
        eventually(lambda: free(peer), 10.0)


def figures(peer: Pipeline) -> dict[str, object]:
    peer.send(peer.request(8000, "stats"))
    answer = peer.answer()[1]
    assert isinstance(answer, dict), answer
    return answer


def free(peer: Pipeline) -> bool:
    now = figures(peer)
    return (now["leases"], now["locks"], now["waiting"]) == (0, 0, 0)


def flood(peer: Pipeline, bystander: Pipeline) -> None:
    """Send until the node, which stops reading and waits for the peer to read, closes the connection."""
    burst = b"".join(peer.request(number, "get", NO_VIEW, b"\0big") for number in range(1000))
    for _ in range(1000):
        peer.send(burst)
        bystander.send(bystander.request(2, "get", NO_VIEW, b"\0none"))
        assert bystander.answer() == (2, None)


@pytest.mark.parametrize("unordered", [False, True])
def test_a_client_that_never_reads_is_closed(node: RunningNode, bystander: Pipeline, unordered: bool) -> None:
    bystander.send(bystander.request(1, "set", NO_VIEW, b"\0big", b"v" * 60_000))
    assert bystander.answer() == (1, True)
    before = figures(bystander)["rss_bytes"]
    with Pipeline(node, unordered=unordered) as peer, pytest.raises(ConnectionError):
        flood(peer, bystander)
    grown = figures(bystander)["rss_bytes"] - before  # type: ignore[operator]
    assert grown < 24 * MIB


def test_waiters_without_end(node: RunningNode, bystander: Pipeline) -> None:
    count = limits.MAX_WAITERS + 1000
    with Pipeline(node, unordered=True) as peer:
        refused = []
        for first in range(1, count, 200):
            numbers = range(first, min(first + 200, count + 1))
            peer.send(
                b"".join(
                    peer.request(number, "acquire", NO_VIEW, b"\0%200d" % number, 1, 60.0, 0.0, number)
                    for number in numbers
                )
            )
            answers = [peer.answer() for _ in numbers]
            refused += [answer for _, answer in answers if isinstance(answer, Refusal)]
        assert len(refused) == 1000
        assert {answer.code for answer in refused} == {OVERLOADED}
        bystander.send(
            bystander.request(3, "acquire", NO_VIEW, b"\0free", 1, 60.0, 0.0, 1)
            + bystander.request(4, "lease", NO_VIEW, b"\0free", 60.0, 0.0, 0, 2)
            + bystander.request(5, "withdraw", 1) + bystander.request(6, "withdraw", 2)
        )  # fmt: skip
        assert [type(bystander.answer()[1]) for _ in range(4)] == [int, list, bool, bool]


def test_waits_without_end(node: RunningNode, bystander: Pipeline) -> None:
    """Each waiter waits for as many names as it may."""
    with Pipeline(node) as holder, Pipeline(node, unordered=True) as peer:
        names = [b"\0%d" % number for number in range(60)]
        holder.send(
            b"".join(
                holder.request(n, "acquire", NO_VIEW, name, 1, 60.0, 0.0) for n, name in enumerate(names)
            )
        )
        assert all(type(holder.answer()[1]) is int for _ in names)
        refused = waiting = 0
        for waiter in range(1, 81):
            peer.send(
                b"".join(
                    peer.request(waiter, "acquire", NO_VIEW, name, 1, 60.0, 60.0, waiter) for name in names
                )
                + peer.request(9, "ping")
            )
            answers = []
            while not answers or not isinstance(answers[-1], dict):
                answers.append(peer.answer()[1])
            refused += len(answers) - 1
            waiting += len(names) - len(answers) + 1
        assert refused > 0
        assert waiting <= limits.DEFERRED_CALLS
        bystander.send(bystander.request(3, "acquire", NO_VIEW, b"\0free", 1, 60.0, 0.0))
        _, token = bystander.answer()
        bystander.send(bystander.request(4, "release", NO_VIEW, b"\0free", token))
        assert bystander.answer() == (4, True)


@pytest.mark.parametrize("garbage", [b"garbage" * 20, b"PYRO" + bytes(60)])
def test_garbage_in_mid_stream_ends_all_that_its_connection_holds(
    node: RunningNode, bystander: Pipeline, garbage: bytes
) -> None:
    with Pipeline(node, unordered=True) as peer:
        for waiter in (1, 2):
            peer.send(peer.request(waiter, "acquire", NO_VIEW, b"\0name", 1, 60.0, 60.0, waiter))
        assert peer.answer()[0] == 1
        peer.send(peer.request(3, "get", NO_VIEW, b"\0a") + garbage)
        fates = [peer.fate()]
        if fates[-1] != CLOSED:
            fates.append(peer.fate())
        assert fates[-1] == CLOSED
