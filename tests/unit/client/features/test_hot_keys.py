"""What becomes of the nodes' answers about hot keys, and how long a call waits for them."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache import HotKey, NodeUnavailable, PyroCacheError, RemoteError
from pyrocache.client.context import ClientContext
from pyrocache.client.features.hot_keys import hot_keys
from pyrocache.client.keys.encoding import encode_key
from pyrocache.cluster.routing import Member
from pyrocache.config import ClientConfig

A, B, C = (encode_key(name, b"\0") for name in "abc")
OLD = RemoteError("cache.node.1 refused hot_keys: There is no such object or method here.")
AWAY = NodeUnavailable("away")


class Backend:
    """Gives one answer of the nodes after the other, and notes what was asked."""

    retries: dict[str, int]

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[bytes, int]] = []

    def hot_keys(self, prefix: bytes, limit: int, deadline: Any) -> Any:
        self.asked.append((prefix, limit))
        answers = self.answers.pop(0)
        if isinstance(answers, Exception):
            raise answers
        return [
            (Member(f"cache.node.{number + 1}", "127.0.0.1", 1), answer)
            for number, answer in enumerate(answers)
        ]


def ask(backend: Backend, count: int = 10, seconds: float = 1.0, **config: Any) -> tuple[Any, list[float]]:
    """The result of a call, and the pauses that it made."""
    pauses: list[float] = []
    context: ClientContext[Any] = ClientContext(ClientConfig(**config), backend)  # type: ignore[type-var]
    return hot_keys(context, count, seconds, pauses.append), pauses


def test_the_keys_of_all_nodes_are_in_one_order() -> None:
    backend = Backend([[2.0, [[A, 10.0], [B, 1]]], [4.0, [[C, 12.0]]], [4.0, []]])
    expected = [HotKey("a", 5.0, "cache.node.1"), HotKey("c", 3.0, "cache.node.2")]
    assert ask(backend, 2) == (expected, [])
    assert backend.asked == [(b"\0", 2)]


def test_a_call_waits_until_the_last_node_has_counted_long_enough() -> None:
    backend = Backend([[0.25, [[A, 1]]], [7.0, []]], [[1.5, [[A, 3.0]]], [8.0, []]])
    assert ask(backend) == ([HotKey("a", 2.0, "cache.node.1")], [0.75])
    assert len(backend.asked) == 2


def test_it_need_not_wait() -> None:
    assert ask(Backend([[0.0, []]]), seconds=0) == ([], [])
    assert ask(Backend([]), seconds=1.0) == ([], [])


def test_nodes_of_an_older_version_and_nodes_that_are_away_are_left_out() -> None:
    backend = Backend([OLD, [2.0, [[A, 4]]], AWAY])
    assert ask(backend) == ([HotKey("a", 2.0, "cache.node.2")], [])


@pytest.mark.parametrize(("answers", "expected"), [([OLD, OLD], OLD), ([AWAY, OLD], OLD), ([AWAY], AWAY)])
def test_if_no_node_answers_the_error_says_why(answers: list[Any], expected: PyroCacheError) -> None:
    with pytest.raises(type(expected)) as caught:
        ask(Backend(answers))
    assert caught.value is expected


def test_on_error_miss_makes_no_keys_of_nodes_that_are_away() -> None:
    assert ask(Backend([AWAY]), on_error="miss") == ([], [])
    assert ask(Backend(AWAY), on_error="miss") == ([], [])
    with pytest.raises(RemoteError):
        ask(Backend([OLD]), on_error="miss")
