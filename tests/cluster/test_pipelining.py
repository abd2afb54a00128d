"""A node and raw connections that have many requests outstanding: order, lost replies, waiters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyrocache.protocol.int_frame import pack_int, unpack_int
from pyrocache.protocol.refusals import FORGOTTEN, NOT_DONE, TRY_AGAIN, Refusal
from tests.support.nodes import RunningNode, running_node
from tests.support.pipelining import Pipeline
from tests.support.waiting import eventually
from tests.support.wire import NO_VIEW

KEY = b"\0key"
NAME = b"\0name"
ONE, NONE_YET = pack_int(1), pack_int(0)


@pytest.fixture(scope="module")
def started() -> Iterator[RunningNode]:
    with running_node(open=False) as node:
        yield node


@pytest.fixture
def node(started: RunningNode) -> RunningNode:
    """A node that is empty."""
    with Pipeline(started) as peer:
        peer.send(peer.request(1, "clear", NO_VIEW, b"\0"))
        assert isinstance(peer.answer()[1], int)
    return started


def outcomes(peer: Pipeline, numbers: Any) -> list[Any]:
    """Ask for the outcomes of `incr` with these numbers: ints, or the codes of refusals."""
    peer.send(b"".join(peer.request(n, "incr", NO_VIEW, KEY, ONE, NONE_YET, repeated=True) for n in numbers))
    answers = [peer.answer() for _ in numbers]
    assert [sequence for sequence, _ in answers] == list(numbers)
    return [answer.code if isinstance(answer, Refusal) else unpack_int(answer) for _, answer in answers]


@pytest.mark.parametrize("unordered", [False, True])
def test_inline_calls_are_answered_in_order(node: RunningNode, unordered: bool) -> None:
    with Pipeline(node, unordered=unordered) as peer:
        assert peer.server.capabilities == "pipelined unordered"
        requests = []
        for number in range(1, 400, 2):
            value = b"v" * (10 if number % 50 != 1 else 70_000)
            requests.append(peer.request(number, "set", NO_VIEW, b"\0%d" % number, value))
            requests.append(peer.request(number + 1, "get", NO_VIEW, b"\0%d" % number))
        peer.send(b"".join(requests))
        for number in range(1, 400, 2):
            assert peer.answer() == (number, True)
            sequence, value = peer.answer()
            assert (sequence, len(value)) == (number + 1, 10 if number % 50 != 1 else 70_000)


def test_a_wait_delays_the_calls_behind_it_only_without_the_word(node: RunningNode) -> None:
    with Pipeline(node) as ordered, Pipeline(node, unordered=True) as unordered, Pipeline(node) as loader:
        loader.send(loader.request(1, "lease", NO_VIEW, KEY, 60.0, 0.0))
        _, (kind, token, _) = loader.answer()
        assert kind == "load"
        for peer in (ordered, unordered):
            calls = [
                ("lease", NO_VIEW, KEY, 60.0, 60.0),
                ("count", NO_VIEW, b"\0"),
                ("get", NO_VIEW, b"\0other"),
            ]
            peer.send(b"".join(peer.request(number, *each) for number, each in enumerate(calls, 2)))
        assert sorted([unordered.answer(), unordered.answer()]) == [(3, 0), (4, None)]
        loader.send(loader.request(2, "fill", NO_VIEW, KEY, token, b"value"))
        assert loader.answer() == (2, True)
        assert unordered.answer() == (2, ["value", b"value", None, 0.0])
        assert [ordered.answer()[0] for _ in range(3)] == [2, 3, 4]


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "half open"])
def test_each_of_many_changes_is_answered_with_its_own_outcome(node: RunningNode, is_cut: bool) -> None:
    client = b"cut....." if is_cut else b"half...."
    with Pipeline(node, client) as first, Pipeline(node, client) as second:
        first.send(b"".join(first.request(n, "incr", NO_VIEW, KEY, ONE, NONE_YET) for n in range(1, 201)))
        for number in range(1, 11):  # some replies are read, the others are lost
            assert first.answer() == (number, pack_int(number))
        if is_cut:
            first.close()
        second.send(second.request(300, "get", NO_VIEW, KEY))
        eventually(
            lambda: (
                second.answer()[1] == pack_int(200) or second.send(second.request(300, "get", NO_VIEW, KEY))
            )
        )
        assert outcomes(second, range(1, 201)) == list(range(1, 201))
        assert outcomes(second, [201, 202]) == [NOT_DONE] * 2  # they never arrived
        second.send(
            second.request(202, "incr", NO_VIEW, KEY, ONE, NONE_YET)
            + second.request(301, "get", NO_VIEW, KEY)
        )
        assert second.answer()[1].code == TRY_AGAIN  # nor will they be done
        assert second.answer() == (301, pack_int(200))


def test_changes_that_came_one_by_one_are_remembered_too(node: RunningNode) -> None:
    with Pipeline(node, b"onebyone") as first, Pipeline(node, b"onebyone") as second:
        for number in range(1, 11):
            first.send(first.request(number, "incr", NO_VIEW, KEY, ONE, NONE_YET))
            assert first.answer() == (number, pack_int(number))
        assert outcomes(second, range(1, 12)) == [*range(1, 11), NOT_DONE]


def test_a_caller_that_has_too_many_outstanding_is_not_told_that_they_were_not_done(
    node: RunningNode,
) -> None:
    with Pipeline(node, b"toomany.") as first, Pipeline(node, b"toomany.") as second:
        first.send(b"".join(first.request(n, "incr", NO_VIEW, KEY, ONE, NONE_YET) for n in range(1, 1001)))
        assert [first.answer()[0] for _ in range(1000)] == list(range(1, 1001))
        assert outcomes(second, range(1, 1002)) == [FORGOTTEN] * 744 + list(range(745, 1001)) + [NOT_DONE]


def test_what_is_late_is_not_done_in_the_midst_of_a_burst(node: RunningNode) -> None:
    with Pipeline(node) as peer:
        seconds = [30.0, -0.5, 30.0, -1.0, 0.06, 30.0]
        peer.send(
            b"".join(
                peer.request(number, "incr", NO_VIEW, KEY, ONE, NONE_YET, seconds=left)
                for number, left in enumerate(seconds, 1)
            )
        )
        answers = [peer.answer() for _ in seconds]
        assert [sequence for sequence, _ in answers] == [1, 2, 3, 4, 5, 6]
        told = [answer.code if isinstance(answer, Refusal) else unpack_int(answer) for _, answer in answers]
        assert told[:4] == [1, TRY_AGAIN, 2, TRY_AGAIN]
        assert told[4:] in ([3, 4], [TRY_AGAIN, 3])


@pytest.mark.parametrize("end", ["withdraw", "close"])
def test_what_a_waiter_holds_passes_on_when_it_ends(node: RunningNode, end: str) -> None:
    with Pipeline(node, unordered=True) as tasks, Pipeline(node, unordered=True) as other:
        tasks.send(tasks.request(1, "acquire", NO_VIEW, NAME, 1, 60.0, 0.0, 1))
        sequence, token = tasks.answer()
        assert (sequence, type(token)) == (1, int)
        tasks.send(tasks.request(2, "acquire", NO_VIEW, NAME, 1, 60.0, 60.0, 2) + tasks.request(3, "ping"))
        assert tasks.answer()[0] == 3
        other.send(other.request(1, "acquire", NO_VIEW, NAME, 1, 60.0, 60.0, 2) + other.request(2, "ping"))
        assert other.answer()[0] == 2
        if end == "withdraw":
            tasks.send(tasks.request(4, "withdraw", 1))
            answers = dict([tasks.answer(), tasks.answer()])
            assert answers[4] is True
            assert answers[2] > token
            tasks.send(tasks.request(5, "withdraw", 2))
            assert tasks.answer() == (5, True)
        else:
            tasks.close()
        sequence, passed = other.answer()
        assert (sequence, passed > token) == (1, True)
