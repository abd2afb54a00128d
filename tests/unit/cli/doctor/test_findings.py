"""What `pyrocache doctor` concludes from what it has observed, and what it advises."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pyrocache.cli.doctor.findings import Finding, Level, findings
from pyrocache.cli.doctor.observed import (
    Cause,
    CertificateSeen,
    HostSeen,
    KeyFileSeen,
    NameServerSeen,
    NodeSeen,
    Observed,
    Way,
)
from pyrocache.cli.output import remember_tls
from pyrocache.client.stats import NodeStats
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import TLS
from pyrocache.net.directory import Listing

NOW = datetime(2027, 1, 1, tzinfo=UTC)
GIB = 2**30
ADDRESS = "192.0.2.1:9090"
MEMBERS = [Member(f"cache.node.{number}", f"192.0.2.{number}", 9100, cluster="c") for number in (1, 2)]
WAY = Way(milliseconds=0.2, proved=True)


def _stats(**changes: Any) -> NodeStats:
    return NodeStats(**{"view": 7, "lease_seconds": 1.5, "policy": "s3fifo", "max_bytes": GIB, **changes})


def _node(number: int = 1, **changes: Any) -> NodeSeen:
    seen = {"member": MEMBERS[number - 1], "tcp": WAY, "stats": _stats(), "max_value_bytes": GIB // 4}
    return NodeSeen(**{**seen, **changes})


def _listing(**changes: Any) -> Listing:
    view = ClusterView(MEMBERS, number=7, cluster="c")
    return Listing("c", 7, (view,), tuple(MEMBERS))._replace(**changes)


def _seen(**changes: Any) -> Observed:
    server = NameServerSeen(address=ADDRESS, source="--nameserver", way=WAY, listing=_listing())
    seen: dict[str, Any] = {
        "now": NOW,
        "secret": KeyFileSeen(path="/etc/secret", keys=1),
        "name_server": replace(server, **changes.pop("name_server", {})),
        "nodes": (_node(1), _node(2)),
        "host": HostSeen(
            version="1.0",
            memory=8 * GIB,
            descriptors=100_000,
            socket_directory="/tmp/x",
            socket_path_bytes=(40, 100),
        ),
    }
    return Observed(**{**seen, **changes})


def _found(**changes: Any) -> list[Finding]:
    return [finding for finding in findings(_seen(**changes)) if finding.level is not Level.OK]


def _only(**changes: Any) -> Finding:
    (finding,) = _found(**changes)
    return finding


def test_a_healthy_cluster_has_neither_problems_nor_notes() -> None:
    assert _found() == []
    assert {finding.subject for finding in findings(_seen())} == {
        *("secret", "name server", "cache.node.1", "cache.node.2", "view")
    }


@pytest.mark.parametrize(
    ("secret", "level", "what", "advice"),
    [
        (KeyFileSeen(path="/s", keys=2, staged=True), Level.NOTE, "not used yet", "promote"),
        (KeyFileSeen(path="/s", keys=2), Level.NOTE, "old ones are still accepted", "prune"),
        (KeyFileSeen(path="/s", keys=1, temporary=True), Level.NOTE, "temporary files", "lasting place"),
        (KeyFileSeen(path="/s", error="It is open to all: chmod 600"), Level.PROBLEM, "chmod 600", ""),
        (KeyFileSeen(), Level.PROBLEM, "no secret file", "pyrocache secret"),
    ],
)
def test_the_secret(secret: KeyFileSeen, level: Level, what: str, advice: str) -> None:
    finding = _only(secret=secret)
    assert (finding.level, finding.subject) == (level, "secret")
    assert what in finding.what
    assert advice in finding.advice


def test_the_signing_key_is_a_key_file_too() -> None:
    assert _only(signing_key=KeyFileSeen(path="/k", error="no")).subject == "signing key"


def _certificate(days: float, **changes: Any) -> CertificateSeen:
    return CertificateSeen(place="/tls/cert.pem", ends=NOW + timedelta(days=days), **changes)


@pytest.mark.parametrize(
    ("certificate", "level", "what"),
    [
        (_certificate(31), None, ""),
        (_certificate(29), Level.NOTE, "29 days from now"),
        (_certificate(-1), Level.PROBLEM, "ended on 2026-12-31"),
        (CertificateSeen(place="/tls/cert.pem", error="it is empty"), Level.PROBLEM, "it is empty"),
    ],
)
def test_certificates(certificate: CertificateSeen, level: Level | None, what: str) -> None:
    in_a_file = _found(certificates=(certificate,))
    assert [finding.level for finding in in_a_file] == ([level] if level else [])
    assert all(what in finding.what and finding.advice for finding in in_a_file)
    if not certificate.error:
        presented = replace(WAY, certificate=certificate)
        by_node = _found(nodes=(_node(1, tcp=presented), _node(2)))
        by_name_server = _found(name_server={"way": presented})
        assert (
            [one.level for one in by_node]
            == [one.level for one in by_name_server]
            == ([level] if level else [])
        )
        assert all("SIGHUP" in finding.advice for finding in (*by_node, *by_name_server))


def test_a_certificate_that_is_not_for_the_nodes_here() -> None:
    certificate = _certificate(100, names=("cache1.example",))
    here = _node(1, here=True)
    assert "not for 192.0.2.1" in _only(certificates=(certificate,), nodes=(here, _node(2))).what
    fitting = replace(certificate, names=("cache1.example", "192.0.2.1"))
    assert _found(certificates=(fitting,), nodes=(here, _node(2))) == []


def test_a_name_server_that_is_not_there() -> None:
    advice = "Start one with: pyrocache nameserver"
    way = Way(error="nothing listens there", cause=Cause.REFUSED, advice=advice)
    missing = {"way": way, "listing": Listing()}
    finding = _only(name_server=missing, nodes=())
    assert (finding.level, finding.subject) == (Level.PROBLEM, "name server")
    assert finding.what == f"{ADDRESS} (--nameserver): nothing listens there."
    assert finding.advice == advice


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        (Cause.SECRET, "same secret file"),
        (Cause.CERTIFICATE, "pyrocache certificates"),
        (Cause.OTHER, "Do that"),
    ],
)
def test_servers_that_do_not_fit(cause: Cause, advice: str) -> None:
    way = Way(error="it is so", cause=cause, advice="Do that.")
    assert advice in _only(name_server={"way": way}).advice
    finding = _only(nodes=(_node(1), _node(2, tcp=way, stats=None)))
    assert (finding.level, finding.subject) == (Level.PROBLEM, "cache.node.2")
    assert advice in finding.advice


def test_a_name_server_that_proves_nothing() -> None:
    unproven = {"way": replace(WAY, proved=False)}
    assert "proves no secret" in _only(name_server=unproven).what
    without = _found(name_server=unproven, secret=KeyFileSeen(), nodes=())
    assert [finding.level for finding in without] == [Level.PROBLEM, Level.NOTE]
    assert "Without a secret, neither it nor the nodes were checked" in without[1].what


def test_other_hosts_without_encryption() -> None:
    far = {"on_loopback": False}
    assert _only(name_server=far, tls=False).subject == "encryption"
    assert _found(name_server=far, tls=TLS(ca="/ca.pem")) == []


@pytest.mark.parametrize(
    ("listing", "level", "what", "advice"),
    [
        (Listing(), Level.PROBLEM, "No node is registered", f"pyrocache nodes --nameserver {ADDRESS}"),
        (_listing(obstacle=8), Level.PROBLEM, "cache.view.8", "pyrocache nodes remove cache.view.8"),
        (_listing(strangers=True), Level.NOTE, "another cluster", "nodes remove NAME"),
        (_listing(views=()), Level.NOTE, "no view", "Wait"),
        (
            _listing(members=(*MEMBERS, Member("cache.node.3", "192.0.2.3", 1))),
            *(Level.NOTE, "cache.node.3: registered, but not in the view", "hold it up"),
        ),
    ],
)
def test_listings(listing: Listing, level: Level, what: str, advice: str) -> None:
    finding = _only(name_server={"listing": listing}, nodes=())
    assert (finding.level, finding.subject) == (level, "name server")
    assert what in finding.what
    assert advice in finding.advice


def test_a_dead_node() -> None:
    dead = _node(2, tcp=Way(error="nothing listens there", cause=Cause.REFUSED), stats=None)
    finding = _only(nodes=(_node(1), dead))
    assert (finding.level, finding.what) == (Level.PROBLEM, "192.0.2.2:9100: nothing listens there.")
    assert f"pyrocache nodes remove cache.node.2 --nameserver {ADDRESS}" in finding.advice


def test_a_node_that_does_not_answer() -> None:
    silent = _node(2, tcp=Way(error="no answer", cause=Cause.TIMED_OUT), stats=None)
    assert "firewall let port 9100 through" in _only(nodes=(_node(1), silent)).advice


def test_a_node_behind_a_firewall_of_its_own_host() -> None:
    blocked = _node(2, tcp=Way(error="no answer", cause=Cause.TIMED_OUT), unix=WAY)
    finding = _only(nodes=(_node(1), blocked))
    assert finding.level is Level.PROBLEM
    assert "It answers on its Unix socket" in finding.advice


def test_a_unix_socket_that_is_gone() -> None:
    finding = _only(nodes=(_node(1, unix=Way(error="there is no /tmp/x", cause=Cause.OTHER)), _node(2)))
    assert finding.level is Level.NOTE
    assert "there is no /tmp/x" in finding.what


@pytest.mark.parametrize(
    ("stats", "level", "what"),
    [
        (None, Level.PROBLEM, "did not send its statistics"),
        (_stats(lease_seconds=0.0), Level.PROBLEM, "has no lease"),
        (
            _stats(silent="cache.node.1 cache.node.3"),
            Level.PROBLEM,
            "no answer from cache.node.1 and cache.node.3",
        ),
        (_stats(handshakes_refused=1), Level.NOTE, "refused 1 connection since"),
        (_stats(handshakes_malformed=2, handshakes_late=3), Level.NOTE, "5 connections sent no valid"),
    ],
)
def test_what_a_node_says_of_itself(stats: NodeStats | None, level: Level, what: str) -> None:
    finding = _only(nodes=(_node(1), _node(2, stats=stats)))
    assert (finding.level, finding.subject) == (level, "cache.node.2")
    assert what in finding.what
    assert finding.advice


def test_a_slow_node() -> None:
    finding = _only(nodes=(_node(1), _node(2, tcp=replace(WAY, milliseconds=80.0))))
    assert (finding.level, finding.subject, finding.what) == (
        Level.NOTE,
        "cache.node.2",
        "A ping takes 80 ms.",
    )


@pytest.mark.parametrize(
    ("other", "level", "subject"),
    [
        ({"stats": _stats(view=8)}, Level.PROBLEM, "view"),
        ({"stats": _stats(policy="lru")}, Level.NOTE, "eviction"),
        ({"stats": _stats(max_bytes=4 * GIB)}, Level.NOTE, "memory"),
        ({"max_value_bytes": 1024}, Level.NOTE, "values"),
        ({"version": "0.9"}, Level.NOTE, "version"),
    ],
)
def test_nodes_that_differ(other: dict[str, Any], level: Level, subject: str) -> None:
    finding = _only(nodes=(_node(1), _node(2, **other)))
    assert (finding.level, finding.subject) == (level, subject)


def test_a_node_with_more_memory_and_weight_is_as_it_should_be() -> None:
    heavy = replace(MEMBERS[1], weight=4.0)
    assert _found(nodes=(_node(1), _node(2, member=heavy, stats=_stats(max_bytes=4 * GIB)))) == []


@pytest.mark.parametrize(
    ("gib", "level"), [(4.0, None), (3.0, Level.NOTE), (2.5, Level.PROBLEM)]
)  # two nodes of 1 GiB need 2 * (1.3 GiB + 64 MiB), which is 2.725 GiB
def test_memory_of_this_host(gib: float, level: Level | None) -> None:
    here = (_node(1, here=True), _node(2, here=True))
    memory = int(gib * GIB)
    for changes in (
        {"host": replace(_seen().host, memory=memory), "nodes": here},
        {"nodes": (replace(here[0], memory_limit=memory), here[1])},
    ):
        found = _found(**changes)
        assert [(finding.level, finding.subject) for finding in found] == (
            [(level, "memory")] if level else []
        )
    assert _found(host=replace(_seen().host, memory=memory)) == []  # they are on other hosts


@pytest.mark.parametrize(
    ("descriptors", "connections", "level"),
    [(100_000, 5000, None), (1024, 10, Level.NOTE), (5000, 4900, Level.PROBLEM)],
)
def test_descriptors_of_a_node(descriptors: int, connections: int, level: Level | None) -> None:
    node = _node(2, stats=_stats(connections=connections), descriptors=descriptors)
    assert [finding.level for finding in _found(nodes=(_node(1), node))] == ([level] if level else [])


def test_descriptors_of_nodes_that_would_be_started_here() -> None:
    assert _only(host=replace(_seen().host, descriptors=1024)).subject == "descriptors"


@pytest.mark.parametrize("changes", [{"socket_directory": ""}, {"socket_path_bytes": (120, 100)}])
def test_the_directory_of_unix_sockets(changes: dict[str, Any]) -> None:
    finding = _only(host=replace(_seen().host, **changes))
    assert (finding.level, finding.subject) == (Level.NOTE, "Unix sockets")
    assert "TMPDIR" in finding.advice


def test_commands_to_copy_repeat_the_options_of_tls() -> None:
    remember_tls(TLS(ca="/etc/ca.pem"))
    try:
        dead = _node(2, tcp=Way(error="nothing listens there", cause=Cause.REFUSED), stats=None)
        finding = _only(nodes=(_node(1), dead), tls=TLS(ca="/etc/ca.pem"))
    finally:
        remember_tls(None)
    command = f"pyrocache nodes remove cache.node.2 --nameserver {ADDRESS} --tls-ca /etc/ca.pem"
    assert command in finding.advice
