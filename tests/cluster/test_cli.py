"""The command line as users have it: processes, what they print, and their exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from pyrocache import LocalCluster, PyroCacheClient
from pyrocache.cli.commands import app
from pyrocache.net.directory import NameServerDirectory
from tests.support.commands import Outcome, call, run, run_all
from tests.support.nodes import private_cluster
from tests.support.processes import ROOT, children, environment, free_address, is_stopped, state
from tests.support.waiting import eventually

NOWHERE = "127.0.0.1:1"
"""An address where nobody listens."""


def names(nameserver: str) -> list[str]:
    """The nodes that are registered, in their order."""
    return [member.name for member in sorted(NameServerDirectory(nameserver).members())]


class Running:
    """A Python command that goes on running."""

    def __init__(self, directory: Path, command: tuple[str, ...], variables: dict[str, str]) -> None:
        directory.mkdir()
        self._out, self._err = directory / "out", directory / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment(**variables),
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def said(self, text: str) -> bool:
        """Whether it has said so on its standard output; an error if it has ended instead."""
        ended = self.process.poll() is not None
        assert text in self.out or not ended, self.err
        return text in self.out

    def ends(self, number: signal.Signals) -> int:
        """Send it a signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(10.0)


class Start(Protocol):
    def __call__(self, *command: str, ready: str, **variables: str) -> Running: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a Python command and wait until it has said ``ready``."""
    running: list[Running] = []

    def start(*command: str, ready: str, **variables: str) -> Running:
        running.append(Running(tmp_path / f"command {len(running)}", command, variables))
        eventually(lambda: running[-1].said(ready), 20.0)
        return running[-1]

    yield start
    for one in reversed(running):
        one.process.terminate()
    for one in reversed(running):
        try:
            one.process.wait(10.0)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()


def start_nodes(start: Start, nameserver: str, *options: str) -> tuple[Running, dict[str, int]]:
    """Run ``run_nodes.py`` until it is ready; the pids of the nodes by their names."""
    nodes = start("run_nodes.py", "--nameserver", nameserver, *options, ready="ready\n")
    rows = re.findall(r"^ *(cache\.node\.\d+) +(\d+) +127\.0\.0\.1:\d+ +\S+ \S+ *$", nodes.out, re.MULTILINE)
    return nodes, {name: int(pid) for name, pid in rows}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two nodes for commands that do no harm to them."""
    with private_cluster(nodes=2) as cluster:
        yield cluster


# run_nameserver.py -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_name_server_says_where_it_is_and_ends_when_told(start: Start, number: signal.Signals) -> None:
    nameserver = start("run_nameserver.py", "--port", "0", ready="\n")
    address = nameserver.out.partition("ready at ")[2].partition(". ")[0]
    assert nameserver.out == (
        f"Name server ready at {address}. Start nodes with: pyrocache nodes --nameserver {address}\n"
    )
    assert names(address) == []
    assert nameserver.ends(number) == 0
    assert nameserver.err == ""


def test_a_name_server_ends_when_told_just_after_pauses(start: Start) -> None:
    """A signal that is still pending for the main thread has the kernel give the next one to another thread."""
    nameserver = start("run_nameserver.py", "--port", "0", ready="ready at")
    for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT):
        nameserver.process.send_signal(number)
    assert nameserver.ends(signal.SIGTERM) == 0


@pytest.mark.full
def test_a_name_server_keeps_its_entries_in_a_file(start: Start, tmp_path: Path) -> None:
    address = free_address()
    command = (
        "run_nameserver.py",
        "--port",
        address.rpartition(":")[2],
        "--storage",
        f"sql:{tmp_path}/names",
    )
    nameserver = start(*command, ready="ready at")
    nodes, pids = start_nodes(start, address, "--nodes", "2")
    for pid in pids.values():  # so that they cannot register again
        os.kill(pid, signal.SIGSTOP)
    assert nameserver.ends(signal.SIGTERM) == 0

    start(*command, ready="ready at")

    assert names(address) == ["cache.node.1", "cache.node.2"]
    assert nodes.process.poll() is None


# run_nodes.py ------------------------------------------------------------------------------------------------


def test_nodes_are_listed_in_a_table_and_leave_when_told(start: Start, cluster: LocalCluster) -> None:
    nodes, pids = start_nodes(start, cluster.nameserver, "--nodes", "2", "--max-memory", "256MiB")
    assert nodes.out.split()[:4] == ["node", "pid", "address", "memory"]
    assert nodes.out.count(" 256.0 MiB") == 2
    assert nodes.out.endswith("\nready\n")
    assert list(pids) == ["cache.node.3", "cache.node.4"]
    assert names(cluster.nameserver) == [f"cache.node.{number}" for number in (1, 2, 3, 4)]
    assert all(map(state, pids.values()))

    assert nodes.ends(signal.SIGINT) == 0

    assert not any(map(state, pids.values()))
    assert names(cluster.nameserver) == ["cache.node.1", "cache.node.2"]
    assert nodes.err == ""


def ignored_signals(pid: int) -> set[int]:
    mask = int(re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0], 16)
    return {number for number in range(1, 65) if mask >> number - 1 & 1}


def test_under_nohup_a_hang_up_ends_nothing(start: Start) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; what is started inherits it
    try:
        address = free_address()
        nodes, pids = start_nodes(start, address, "--with-nameserver", "--nodes", "1")
    finally:
        signal.signal(signal.SIGHUP, before)
    for pid in (nodes.process.pid, *pids.values()):
        assert signal.SIGHUP in ignored_signals(pid)
        os.kill(pid, signal.SIGHUP)
    with PyroCacheClient(address) as cache:
        assert cache.set("key", 1)
    assert nodes.ends(signal.SIGTERM) == 0
    assert not any(map(state, pids.values()))


@pytest.mark.full
def test_a_name_server_that_hangs_is_killed_and_started_again(start: Start) -> None:
    address = free_address()
    nodes, pids = start_nodes(start, address, "--with-nameserver", "--nodes", "1")
    threads = len(os.listdir(f"/proc/{nodes.process.pid}/task"))
    (hanging,) = children(nodes.process.pid) - set(pids.values())
    with PyroCacheClient(address) as cache:
        cache.set("key", 1)
        os.kill(hanging, signal.SIGSTOP)
        eventually(lambda: not state(hanging), 20.0)
        eventually(lambda: "the name server is back with pid " in nodes.err)
        eventually(lambda: names(address) == ["cache.node.1"])
        assert cache.get("key") == 1
    assert "the name server did not answer and was killed; starting it again in 0.2 s.\n" in nodes.err
    assert len(os.listdir(f"/proc/{nodes.process.pid}/task")) == threads


@pytest.mark.full
def test_a_node_that_died_while_the_name_server_was_away_is_back_soon_after_it(start: Start) -> None:
    nameserver = start("run_nameserver.py", "--port", "0", ready="ready at ")
    address = nameserver.out.partition("ready at ")[2].partition(". ")[0]
    nodes, pids = start_nodes(start, address, "--nodes", "1")
    assert nameserver.ends(signal.SIGKILL) == -signal.SIGKILL
    os.kill(pids["cache.node.1"], signal.SIGKILL)
    eventually(lambda: "cache.node.1 is started again as soon as a name server answers.\n" in nodes.err)
    start("run_nameserver.py", "--port", address.rpartition(":")[2], ready="ready at ")
    eventually(lambda: "cache.node.1 is back with pid " in nodes.err)
    assert names(address) == ["cache.node.1"]


@pytest.mark.full
def test_a_second_command_adds_nodes_and_takes_only_its_own_away(start: Start) -> None:
    address = free_address()
    first, pids = start_nodes(start, address, "--with-nameserver")
    assert first.err == f"Name server ready at {address}.\n"
    assert list(pids) == ["cache.node.1", "cache.node.2", "cache.node.3"]

    second, more_pids = start_nodes(start, address, "--with-nameserver", "--nodes", "2")
    assert second.err == ""
    assert list(more_pids) == ["cache.node.4", "cache.node.5"]
    with PyroCacheClient(address) as cache:
        cache.set("key", 1)
        assert len(cache.nodes()) == 5

    os.kill(more_pids["cache.node.4"], signal.SIGSTOP)
    eventually(lambda: is_stopped(more_pids["cache.node.4"]))
    assert second.ends(signal.SIGTERM) == 0
    assert not any(map(state, more_pids.values()))
    assert names(address) == list(pids)

    assert first.ends(signal.SIGTERM) == 0
    assert not any(map(state, pids.values()))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))


def test_nodes_do_not_outlive_the_command_that_started_them(start: Start, cluster: LocalCluster) -> None:
    nodes, pids = start_nodes(start, cluster.nameserver, "--nodes", "2")
    os.kill(pids["cache.node.3"], signal.SIGSTOP)
    eventually(lambda: is_stopped(pids["cache.node.3"]))

    assert nodes.ends(signal.SIGKILL) == -signal.SIGKILL

    eventually(lambda: not any(map(state, pids.values())))
    eventually(lambda: names(cluster.nameserver) == ["cache.node.1", "cache.node.2"])


# What is refused ---------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named(cluster: LocalCluster) -> None:
    _, _, port = cluster.nameserver.rpartition(":")
    refused = run("run_nameserver.py", "--port", port)
    assert refused.status == 1
    assert refused.sentence.startswith(f"Cannot listen on {cluster.nameserver} (Address already in use)")
    assert "else give another port." in refused.sentence


def test_where_no_name_server_is_the_command_that_starts_one_is_named() -> None:
    address = free_address()
    host, _, port = address.rpartition(":")
    refusals = [
        run("run_nodes.py", "--nameserver", address),
        call("pyrocache", "get", "key", "--nameserver", address),
        call("pyrocache", "status", "--nameserver", address),
    ]
    for refused in refusals:
        assert refused.status == 1
        assert address in refused.sentence
        assert f"pyrocache nameserver --host {host} --port {port}" in refused.sentence


@pytest.mark.full
def test_a_name_that_a_live_node_holds_is_refused(cluster: LocalCluster) -> None:
    refused = run(
        "run_nodes.py", "--nodes", "1", "--name", "cache.node.2", "--nameserver", cluster.nameserver
    )
    assert refused.status == 1
    assert refused.sentence.startswith("cache.node.2 is held by a live node")
    assert names(cluster.nameserver) == ["cache.node.1", "cache.node.2"]


def test_an_address_that_other_hosts_reach_is_refused() -> None:
    for refused in (
        run("run_nameserver.py", "--host", "192.0.2.1"),
        call("run_nodes.py", "--host", "192.0.2.1"),
    ):
        assert refused.status == 1
        assert refused.sentence.startswith("Other hosts can reach 192.0.2.1")
        assert "--no-tls" in refused.sentence


def test_no_tls_is_allowed_and_warned_of(start: Start) -> None:
    warning = (
        "Warning: --no-tls: whoever is on the path can read and change values, which means running code in clients "
        "that do not use `signing_key_file`.\n"
    )
    address = free_address()
    command = ("run_nodes.py", "--with-nameserver", "--nameserver", address, "--nodes", "1", "--no-tls")
    assert start(*command, ready="ready").err == warning + f"Name server ready at {address}.\n"


def test_a_port_and_a_storage_that_make_no_sense_are_refused_in_one_sentence() -> None:
    commands = [("--port", "99999"), ("--port", "0", "--storage", "sql:/nowhere/names")]
    outcomes = run_all([("run_nameserver.py", *command) for command in commands])
    for command, refused in zip(commands, outcomes, strict=True):
        assert refused.status == 1, command
        assert command[-1].removeprefix("sql:") in refused.sentence, command


@pytest.mark.parametrize(
    ("command", "about"),
    [
        ("run_nodes.py --max-memory lots", "'lots'"),
        ("run_nodes.py --max-memory 1KiB", "at least 64KiB"),
        ("run_nodes.py --max-memory 64MiB --max-value 64MiB", "the largest can have 33226752 bytes"),
        ("run_nodes.py --host not.a/host", "'not.a/host'"),
        ("run_nodes.py --nameserver 127.0.0.1:99999", "'127.0.0.1:99999'"),
        ("run_nodes.py --name cache.node.1", "--nodes 1"),
        ("run_nodes.py --eviction mru", "'mru'"),
        ("run_nodes.py --eviction adaptive", "adaptive' was removed"),
        ("pyrocache get key --nameserver a:b:c", "'a:b:c'"),
        ("pyrocache set key value --ttl 0", "--ttl"),
        ("pyrocache status --timeout -1", "timeout"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_in_one_sentence(command: str, about: str) -> None:
    refused = call(*command.split(), PYROCACHE_NAMESERVER=NOWHERE)
    assert refused.status == 1
    assert about in refused.sentence


@pytest.mark.parametrize("arguments", ["", "trace --policy all --json", "--help"])
def test_replay_says_where_it_went(arguments: str) -> None:
    refused = call("pyrocache", "replay", *arguments.split())
    assert refused.status == 2
    assert "python -m benchmarks replay" in refused.sentence


# pyrocache -----------------------------------------------------------------------------------------------------


def test_set_get_and_delete(cluster: LocalCluster) -> None:
    def pyrocache(*command: str) -> Outcome:
        return call("pyrocache", *command, PYROCACHE_NAMESERVER=cluster.nameserver)

    with cluster.client() as cache, cluster.client(namespace="other") as other:
        cache.set("object", {"list": [1, None]})
        assert pyrocache("set", "a key", "a 'quoted' value") == Outcome(0, "", "")
        brief = ("set", "brief", "value", "--ttl", "60", "--namespace", "other")
        assert pyrocache(*brief) == Outcome(0, "", "")
        assert cache.get("a key") == "a 'quoted' value"
        assert 50 < other.ttl("brief") <= 60

        assert pyrocache("get", "a key") == Outcome(0, "\"a 'quoted' value\"\n", "")
        assert pyrocache("get", "object") == Outcome(0, "{'list': [1, None]}\n", "")
        assert pyrocache("get", "brief", "--namespace", "other") == Outcome(0, "'value'\n", "")

        assert pyrocache("delete", "a key") == Outcome(0, "", "")
        assert "a key" not in cache
        for command in ("get", "a key"), ("delete", "a key"), ("get", "brief"):
            missed = pyrocache(*command)
            assert missed.status == 1
            assert missed.sentence == "There is no entry under this key."


def test_signed_entries_need_the_signing_key(cluster: LocalCluster, tmp_path: Path) -> None:
    path = str(tmp_path / "signing.key")
    made = call("pyrocache", "secret", "--secret-file", path)
    assert (made.status, made.out) == (0, f"{path}\n1 key\n")
    at = ("--nameserver", cluster.nameserver, "--namespace", "signed")
    assert call("pyrocache", "set", "key", "value", "--signing-key-file", path, *at).status == 0
    assert call("pyrocache", "get", "key", "--signing-key-file", path, *at).out == "'value'\n"
    assert call("pyrocache", "scan", "--signing-key-file", path, *at).out == "'key'\n"
    without = call("pyrocache", "get", "key", *at)
    assert without.status == 1
    assert "signing_key_file" in without.sentence
    assert call("pyrocache", "delete", "key", "--signing-key-file", path, *at).status == 0


def test_the_command_as_a_module(cluster: LocalCluster) -> None:
    command = ("-m", "pyrocache", "set", "module", "value", "--nameserver", cluster.nameserver)
    with cluster.client() as cache:
        assert run(*command) == Outcome(0, "", "")
        assert cache.get("module") == "value"


def test_an_option_counts_more_than_the_environment(cluster: LocalCluster) -> None:
    command = ("pyrocache", "set", "key", "value")
    assert NOWHERE in call(*command, PYROCACHE_NAMESERVER=NOWHERE).sentence
    assert call(*command, "--nameserver", cluster.nameserver, PYROCACHE_NAMESERVER=NOWHERE).status == 0


def test_status_shows_what_the_nodes_hold(cluster: LocalCluster) -> None:
    with cluster.client() as cache:
        cache.set_many({number: number for number in range(50)})
        nodes = cache.stats().nodes
    entries = {name: figures.entries for name, figures in nodes.items()}
    command = ("pyrocache", "status", "--nameserver", cluster.nameserver)

    shown = call(*command)
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.startswith(f"Name server {cluster.nameserver}, 2 nodes, view ")
    rows = {row.split()[0]: row.split() for row in shown.out.splitlines() if "cache.node." in row}
    assert {name: int(row[2]) for name, row in rows.items()} == entries
    assert all(nodes[name].policy in row for name, row in rows.items())
    assert [row[1] for row in rows.values()] == [node.address for node in cluster.nodes]

    told = call(*command, "--json")
    assert (told.status, told.err) == (0, "")
    figures = json.loads(told.out)
    assert list(figures) == ["nameserver", "nodes"]
    assert figures["nameserver"] == cluster.nameserver
    assert {node["name"]: node["entries"] for node in figures["nodes"]} == entries
    assert [node["address"] for node in figures["nodes"]] == [node.address for node in cluster.nodes]
    assert {node["state"] for node in figures["nodes"]} == {"up"}


def test_stats_has_every_figure(cluster: LocalCluster) -> None:
    with cluster.client() as cache:
        cache["key"] = 1
        total = cache.stats().total
    command = ("pyrocache", "stats", "--nameserver", cluster.nameserver)
    shown, told = call(*command), call(*command, "--json")
    assert (shown.status, shown.err, told.status, told.err) == (0, "", 0, "")
    assert shown.out.startswith("Statistics of 2 nodes\n")
    figures = json.loads(told.out)
    assert list(figures) == ["nodes", "total", "client", "away"]
    assert (figures["total"]["entries"], figures["total"]["sets"]) == (total.entries, total.sets)
    assert "set" in figures["total"]["latencies"]


def test_status_fails_when_a_node_does_not_answer(cluster: LocalCluster) -> None:
    command = ("pyrocache", "status", "--timeout", "0.3", "--nameserver", cluster.nameserver)
    cluster.pause(0)
    try:
        shown, told = call(*command), call(*command, "--json")
    finally:
        cluster.resume(0)
    assert (shown.status, told.status) == (1, 1)
    assert re.search(r"^ *cache\.node\.1 +\S+ +away *$", shown.out, re.MULTILINE)
    assert shown.out.count("away") == 1
    away, up = json.loads(told.out)["nodes"]
    assert (away["name"], away["state"], away["entries"]) == ("cache.node.1", "away", None)
    assert (up["name"], up["state"]) == ("cache.node.2", "up")
    assert list(away) == list(up)


def test_the_scripts_explain_themselves_and_the_program_lists_its_commands() -> None:
    for script in ("run_nameserver.py", "run_nodes.py"):
        told = call(script, "--help")
        assert (told.status, told.err) == (0, "")
        assert f"Usage: python {script}" in told.out
    listed, version = call("pyrocache", "--help"), call("pyrocache", "--version")
    assert (listed.status, version.status) == (0, 0)
    found = set(re.findall(r"^[│|]? *([a-z]+)  +[A-Z]", listed.out, re.MULTILINE))
    assert found == {command.name for command in app.registered_commands if not command.hidden} | {
        group.name for group in app.registered_groups
    }
    assert re.fullmatch(r"pyrocache \d+\.\d+\.\d+\n", version.out)


@pytest.mark.parametrize("command", ["pyrocache get", "pyrocache fetch key", "run_nodes.py --nodes 0"])
def test_a_wrong_command_line_has_another_status(command: str) -> None:
    assert call(*command.split()).status == 2
