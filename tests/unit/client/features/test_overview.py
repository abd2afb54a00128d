"""The query behind a card."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache import Member, PyroCacheClient
from pyrocache.client.context import ClientContext
from pyrocache.config import ClientConfig
from pyrocache.errors import ClientClosed, NameServerUnavailable, NodeUnavailable, NoNodes
from pyrocache.net.deadline import Deadline

MEMBERS = [Member("cache.node.1", "h", 1), Member("cache.node.2", "h", 2)]


class FakeBackend:
    """Answers `stats` with what it was given, or raises it, and keeps the deadlines."""

    nameserver_problem = ""
    retries: dict[str, int]

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.deadlines: list[float] = []
        self.retries = {}

    def stats(self, deadline: Deadline) -> Any:
        self.deadlines.append(deadline.seconds)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def client(backend: FakeBackend, **settings: Any) -> PyroCacheClient:
    config = ClientConfig(nameserver="ns:1", secret=None, **settings)
    made: Any = ClientContext(config, backend)  # type: ignore[type-var]
    return PyroCacheClient._of(made)


def lines(cache: PyroCacheClient) -> list[str]:
    return cache._repr_mimebundle_()["text/plain"].splitlines()


def test_a_card_makes_one_query_of_less_than_a_second_whatever_the_timeout_is() -> None:
    backend = FakeBackend([(MEMBERS[0], {"entries": 7}), (MEMBERS[1], NodeUnavailable("no"))])
    cache = client(backend, timeout=60.0)
    text = "\n".join(lines(cache))
    assert len(backend.deadlines) == 1
    assert 0 < backend.deadlines[0] < 1
    assert "PyroCacheClient: 1 away" in text
    assert "cache.node.1  up" in text
    assert "cache.node.2 does not answer" in text
    cache._repr_html_()
    assert len(backend.deadlines) == 2


def test_a_repr_makes_no_query() -> None:
    backend = FakeBackend([])
    assert repr(client(backend, namespace=("a",))) == "<PyroCacheClient 'ns:1' namespace='a'>"
    assert not backend.deadlines


@pytest.mark.parametrize(
    "error",
    [
        NameServerUnavailable("No name server was found."),
        NoNodes("There are no nodes."),
        ClientClosed("It is closed."),
        ValueError("of any class"),
    ],
)
def test_a_failure_is_a_sentence_on_the_card(error: Exception) -> None:
    shown = lines(client(FakeBackend(error)))
    assert str(error) in shown[-1]
    assert shown[0] == f"PyroCacheClient: {'closed' if isinstance(error, ClientClosed) else 'no answer'}"
    assert "ns:1" in shown[1]


def test_an_interrupt_is_not_a_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        lines(client(FakeBackend(KeyboardInterrupt())))


def test_a_name_server_that_is_gone_is_mentioned_beside_the_figures() -> None:
    backend = FakeBackend([(MEMBERS[0], {})])
    backend.nameserver_problem = "The name server is gone."
    shown = lines(client(backend))
    assert shown[0] == "PyroCacheClient"
    assert shown[-1] == "  The name server is gone."
