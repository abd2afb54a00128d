"""The tables of the command line: they fit the terminal, whole words only, whatever the nodes are called and hold."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import Any

import pytest

from pyrocache.cli.tables import nodes_as_json, print_nodes, status_lines
from pyrocache.client.stats import ClientStats, NodeStats, Stats
from pyrocache.cluster.routing import Member
from pyrocache.errors import NodeUnavailable, ProtocolMismatch

NAMESERVER = "10.20.30.40:9090"
HOSTS = {
    "short": "127.0.0.1",
    "long": "192.168.100.100",
    "ipv6": "fe80:1111:2222:3333:4444:5555:6666:7777",
    "name": "node-17.cache.eu-central-1.example.internal",
}


def print_status(*arguments: Any) -> None:
    print("\n".join(status_lines(*arguments)))


def members(host: str) -> list[Member]:
    return [Member(f"cache.node.{number}", host, 65430 + number, 1.0, "i") for number in (1, 2, 103)]


def stats(*, large: bool = False) -> Stats:
    """The first two of three nodes answer."""
    busy = {"entries": 123_456_789, "bytes": 999 * 2**20, "max_bytes": 1023 * 2**30, "hits": 99, "misses": 1}
    one = NodeStats(
        pid=1,
        policy="s3fifo",
        connections=4096,
        uptime_seconds=1e6,
        view=7,
        lease_seconds=1.54321,
        silent="cache.node.103",
        **(busy if large else {"max_bytes": 2**30}),
    )
    return Stats.of({"cache.node.1": one, "cache.node.2": one}, ClientStats(), ["cache.node.103"])


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("large", [False, True], ids=["empty", "full"])
@pytest.mark.parametrize("width", [60, 80])
def test_the_status_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, large: bool, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_status(NAMESERVER, members(HOSTS[host]), stats(large=large))
    shown, _ = capsys.readouterr()
    assert max(map(len, shown.splitlines())) <= width
    assert shown.isascii()
    for member in members(HOSTS[host]):
        assert re.search(rf"^{re.escape(member.name)}( |$)", shown, re.MULTILINE)
        assert member.address in shown.split()  # a whole word
    assert re.search(r"^cache\.node\.103 .*away$", shown, re.MULTILINE)
    header = shown.splitlines()[2].split()
    assert {"node", "entries", "memory", "hits"} <= set(header)
    assert ("123,456,789" in shown) == large


def test_a_wide_terminal_shows_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    print_status(NAMESERVER, members("127.0.0.1"), stats())
    assert capsys.readouterr().out == (
        "Name server 10.20.30.40:9090, 3 nodes, view 7\n\n"
        "node            address          entries         memory  eviction  hits  peers         up  lease\n"
        "cache.node.1    127.0.0.1:65431        0  0 B / 1.0 GiB  s3fifo       -   4096  11 d 13 h  1.5 s\n"
        "cache.node.2    127.0.0.1:65432        0  0 B / 1.0 GiB  s3fifo       -   4096  11 d 13 h  1.5 s\n"
        "cache.node.103  127.0.0.1:65533     away\n"
        "cache.node.1 gets no answer from cache.node.103.\n"
        "cache.node.2 gets no answer from cache.node.103.\n"
    )


@pytest.mark.parametrize(
    ("terminal", "variables", "red"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_a_node_that_is_away_is_red_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    variables: dict[str, str],
    red: bool,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    print_status(NAMESERVER, members("127.0.0.1"), stats())
    assert ("\x1b[31mcache.node.103 " in capsys.readouterr().out) is red


def test_an_entry_in_the_place_of_the_next_view_is_shown_with_its_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_status(NAMESERVER, members("127.0.0.1"), stats(), 8)
    *_, last = capsys.readouterr().out.splitlines()
    host, _, port = NAMESERVER.rpartition(":")
    assert last == (
        "Warning: the name server has an entry cache.view.8 that is no view of this cluster, so no node can join or "
        f"leave. Remove it with: pyrocache nodes remove cache.view.8 --nameserver {host}:{port}"
    )


def test_weights_are_shown_if_they_differ_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    one, *others = members("127.0.0.1")
    print_status(NAMESERVER, [replace(one, weight=2.5), *others], stats())
    header, first, second, *_ = capsys.readouterr().out.splitlines()[2:]
    assert header.split()[:4] == ["node", "address", "weight", "entries"]
    assert (first.split()[2], second.split()[2]) == ("2.5", "1")
    assert [node["weight"] for node in nodes_as_json([replace(one, weight=2.5)], stats())] == [2.5]


def test_zones_are_shown_if_a_node_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    one, *others = members("127.0.0.1")
    print_status(NAMESERVER, [replace(one, zone="rack-a"), *others], stats())
    header, first, second, third = capsys.readouterr().out.splitlines()[2:6]
    assert header.split()[:4] == ["node", "address", "zone", "entries"]
    assert [line.split()[2] for line in (first, second, third)] == ["rack-a", "-", "-"]
    shown = nodes_as_json([replace(one, zone="rack-a"), *others], stats())
    assert [node["zone"] for node in shown] == ["rack-a", "", ""]


@pytest.mark.parametrize("older", ["0.1.0", ""])
def test_versions_are_shown_while_they_differ(capsys: pytest.CaptureFixture[str], older: str) -> None:
    """A node of the first versions does not tell its own."""
    found = stats().nodes
    new = {"cache.node.1": replace(found["cache.node.1"], version="0.2.0\x1b[2J")}
    for old in ("0.2.0\x1b[2J", older):
        two = replace(found["cache.node.2"], version=old)
        mixed = Stats.of({**new, "cache.node.2": two}, ClientStats(), ["cache.node.103"])
        print_status(NAMESERVER, members("127.0.0.1"), mixed)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    same, _, differing = shown.partition("Name server")[2].partition("Name server")
    assert "version" not in same
    header, first, second, third = differing.splitlines()[2:6]
    assert header.split()[2] == "version"
    assert [first.split()[2], second.split()[2]] == ["0.2.0?[2J", older or "-"]
    assert third.split() == ["cache.node.103", "127.0.0.1:65533", "away"]
    assert [node["version"] for node in nodes_as_json(members("::1"), mixed)][1:] == [older, None]


def test_a_node_of_a_version_too_far_away_is_named_with_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for error in (ProtocolMismatch("upgrade it."), NodeUnavailable("it is gone.")):
        away = Stats.of({}, ClientStats(), ["cache.node.103"], {"cache.node.103": error})
        print_status(NAMESERVER, members("::1"), away)
    shown = capsys.readouterr().out
    assert shown.count("Warning: upgrade it.\n") == 1
    assert "gone" not in shown


def test_the_json_of_the_status_is_small_and_has_every_name() -> None:
    up, _, away = nodes_as_json(members("::1"), stats(large=True))
    assert up == {
        "name": "cache.node.1",
        "address": "[::1]:65431",
        "zone": "",
        "weight": 1.0,
        "state": "up",
        "entries": 123_456_789,
        "bytes": 999 * 2**20,
        "max_bytes": 1023 * 2**30,
        "hits": 99,
        "misses": 1,
        "evictions": 0,
        "connections": 4096,
        "uptime_seconds": 1e6,
        "view": 7,
        "version": "",
        "lease_seconds": 1.543,
        "silent": ["cache.node.103"],
    }
    assert (away["name"], away["state"]) == ("cache.node.103", "away")
    assert list(away) == list(up)
    assert {away[name] for name in list(away)[5:]} == {None}
    assert json.loads(json.dumps([up, away])) == [up, away]


@pytest.mark.parametrize("width", [60, 80])
def test_the_nodes_that_were_started_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for host in HOSTS.values():
        answers = [
            {"name": f"cache.node.{number}", "pid": 4_194_304, "host": host, "port": 65535}
            for number in (1, 256)
        ]
        print_nodes(answers, 2**30, NAMESERVER)
        table, _, hints = capsys.readouterr().out.partition("Show them with: ")
        assert max(map(len, table.splitlines())) <= width
        assert table.count(host) == 2
        assert hints.startswith(f"pyrocache status --nameserver {NAMESERVER}\n")


@pytest.mark.parametrize(
    ("nameserver", "variable", "hint"),
    [
        ("127.0.0.1:9090", "", "pyrocache status"),
        ("127.0.0.1:9090", "10.0.0.1:9090", "pyrocache status --nameserver 127.0.0.1:9090"),
        ("[::1]:9090", "", "pyrocache status --nameserver '[::1]:9090'"),
    ],
)
def test_hints_are_quoted_and_name_the_address_in_use(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    nameserver: str,
    variable: str,
    hint: str,
) -> None:
    monkeypatch.setenv("PYROCACHE_NAMESERVER", variable)
    print_nodes([{"name": "cache.node.1", "pid": 1, "host": "::1", "port": 1}], 2**30, nameserver)
    assert f"Show them with: {hint}\n" in capsys.readouterr().out
