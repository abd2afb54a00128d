"""``status --watch``: what it shows while the name server or the nodes do not answer."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache.cli.status import _screen, _Source, _watch
from pyrocache.client.stats import ClientStats, NodeStats, Stats
from pyrocache.cluster.routing import Member
from pyrocache.errors import AuthenticationError, NameServerUnavailable, NoNodes
from pyrocache.net.directory import UnprovenNameServer

NAMESERVER = "127.0.0.1:9090"


class Cluster:
    """A client and the directory of a name server, whose answers a test sets."""

    obstacle = 0

    def __init__(self) -> None:
        self.members: Any = [Member("cache.node.1", "127.0.0.1", 1), Member("cache.node.2", "127.0.0.1", 2)]
        self.figures: Any = {name: NodeStats(pid=1) for name in ("cache.node.1", "cache.node.2")}

    def nodes(self) -> Any:
        return self._answer(self.members)

    def stats(self) -> Stats:
        nodes = self._answer(self.figures)
        away = [member.name for member in self.known if member.name not in nodes]
        return Stats.of(nodes, ClientStats(), away)

    @property
    def known(self) -> list[Member]:
        return [] if isinstance(self.members, Exception) else self.members

    def listing(self, timeout: float) -> Any:
        return self

    @staticmethod
    def _answer(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer


def source(cluster: Any) -> _Source:
    return _Source(cluster, cluster, NAMESERVER, 1.0)


def test_it_goes_on_with_what_is_known_without_a_name_server() -> None:
    cluster = Cluster()
    watched = source(cluster)
    assert watched.read_anyway().serves
    cluster.members = NameServerUnavailable("No name server was found.")
    status = watched.read_anyway()
    assert not status.serves
    text = "\n".join(status.lines(100))
    assert "cache.node.1" in text
    assert text.endswith("Warning: No name server was found.")
    assert status.as_json()["error"] == "No name server was found."
    assert len(status.as_json()["nodes"]) == 2
    cluster.figures = NoNodes("No node answers.")
    assert watched.read_anyway().as_json()["nodes"] == []
    cluster.__init__()  # type: ignore[misc]
    assert watched.read_anyway().serves


def test_it_begins_before_there_is_a_cluster() -> None:
    cluster = Cluster()
    cluster.members = NameServerUnavailable("No name server was found.")
    shown = source(cluster).read_anyway().lines()
    assert shown == [f"Name server {NAMESERVER}", "Warning: No name server was found."]


def test_a_node_that_does_not_answer_is_away() -> None:
    cluster = Cluster()
    del cluster.figures["cache.node.2"]
    status = source(cluster).read_anyway()
    assert not status.serves
    assert "away" in "\n".join(status.lines(100))


@pytest.mark.parametrize("error", [AuthenticationError, UnprovenNameServer])
def test_a_wrong_secret_ends_it(error: type[AuthenticationError]) -> None:
    cluster = Cluster()
    cluster.members = error("other-secret")
    with pytest.raises(AuthenticationError):
        source(cluster).read_anyway()


def test_what_is_wrong_is_seen_on_a_small_screen() -> None:
    cluster = Cluster()
    watched = source(cluster)
    watched.read_anyway()
    cluster.members = NameServerUnavailable("No name server was found at this address, so start one.")
    lines = _screen(watched.read_anyway(), 40, 8)
    assert len(lines) <= 8
    assert [line.plain for line in lines[:2]] == [
        "No name server was found at this",
        "address, so start one.",
    ]


def test_without_a_terminal_they_follow_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    for as_json in (True, False):
        pauses.clear()
        with pytest.raises(KeyboardInterrupt):
            _watch(source(Cluster()), 2.0, as_json=as_json, sleep=sleep)
        assert capsys.readouterr().out.count(NAMESERVER) == 3
        assert pauses == [2.0] * 3
