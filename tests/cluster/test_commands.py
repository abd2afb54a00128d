"""What holds for every command: help, wrong command lines, JSON, pipes, closed streams, colours.

The commands are those of the program, so that a new one is tested too: `RUNS` must say how to run it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any

import pytest
import typer

from pyrocache import LocalCluster
from pyrocache.cli.commands import app
from tests.support.commands import Outcome, call
from tests.support.nodes import private_cluster
from tests.support.processes import environment, free_address
from tests.support.terminal import Terminal

COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")

RUNS: dict[str, tuple[str, ...]] = {
    "nameserver": ("--help",),  # it serves until it is told to end
    "nodes": ("--nodes", "1", "--nameserver", "127.0.0.1:1"),
    "nodes remove": ("cache.node.9",),
    "config": (),
    "demo": ("--help",),  # it takes long
    "status": (),
    "stats": (),
    "top": ("--once", "-i", "0.1"),
    "ping": (),
    "set": ("key", "value"),
    "get": ("key",),
    "delete": ("other",),
    "scan": (),
    "dump": ("/dev/null",),
    "load": ("/dev/null",),
    "shell": ("-c", "print(cache)"),
    "secret": (),
    "secret add": ("--secret-file", "/dev/null/secret"),
    "secret promote": (),
    "secret prune": (),
    "doctor": (),
    "certificates": ("/dev/null/certificates", "host"),
    "stop": ("--help",),  # it would end the cluster of whoever runs the tests
    "replay": (),
}
"""Arguments with which each command runs to its end and needs nothing but a cluster."""

TAKE_MANY = {"ping", "config", "certificates", "replay", "nodes", "secret"}  # arguments, or commands


def commands() -> dict[str, Any]:
    """Return the program's commands by their names, those within others included."""
    found: dict[str, Any] = {}

    def add(group: Any, before: str) -> None:
        for name, command in group.commands.items():
            found[before + name] = command
            if hasattr(command, "commands"):
                add(command, f"{before}{name} ")

    add(typer.main.get_command(app), "")
    return found


COMMANDS = commands()
WITH_JSON = [name for name, each in COMMANDS.items() if any("--json" in p.opts for p in each.params)]
PLAIN = {name: arguments for name, arguments in RUNS.items() if name != "replay"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with private_cluster(nodes=1) as cluster:
        yield cluster


@pytest.fixture
def broken(tmp_path: Path) -> str:
    path = tmp_path / "pyrocache.toml"
    path.write_text("nameserver = 5\n")
    return str(path)


def test_it_is_said_how_to_run_each_command() -> None:
    assert RUNS.keys() == COMMANDS.keys()
    assert {"config", "status", "stats", "top", "doctor"} <= set(WITH_JSON)


@pytest.mark.parametrize("name", ["", *PLAIN])
def test_help_fits_a_terminal_and_needs_no_settings(name: str, broken: str) -> None:
    words = name.split()
    told = call("pyrocache", *words, "--help", COLUMNS="80", PYROCACHE_CONFIG=broken)
    assert (told.status, told.err) == (0, "")
    assert " ".join(["Usage: pyrocache", *words]) in told.out
    assert max(map(len, told.out.splitlines())) <= 80
    assert "\x1b" not in told.out
    for paragraph in (COMMANDS[name].help if name else "").split("\n\n"):
        for line in wrap(paragraph, 78):  # no line ends before the terminal does
            assert line in told.out


@pytest.mark.parametrize("name", PLAIN)
def test_a_wrong_command_line_is_told_in_one_sentence(name: str) -> None:
    words = name.split()
    wrong = [("--no-such-option",)]
    if name not in TAKE_MANY:
        wrong.append(("a", "b", "c", "d"))
    for arguments in wrong:
        refused = call("pyrocache", *words, *arguments)
        assert refused.status == 2
        assert refused.sentence.startswith(" ".join(["pyrocache", *words]) + ": ")
        assert refused.sentence.endswith("--help")


@pytest.mark.parametrize("name", PLAIN)
def test_broken_settings_are_told_in_one_sentence(name: str, broken: str) -> None:
    if RUNS[name] == ("--help",):
        return
    refused = call("pyrocache", *name.split(), *RUNS[name], PYROCACHE_CONFIG=broken)
    assert refused.status == 1
    assert refused.sentence.endswith("nameserver: It must be a text, not 5.")


@pytest.mark.parametrize("name", WITH_JSON)
def test_json_is_one_document_whatever_happens(name: str, broken: str, cluster: LocalCluster) -> None:
    command = ("pyrocache", *name.split(), *RUNS[name], "--json")
    good = call(*command, PYROCACHE_NAMESERVER=cluster.nameserver)
    assert (good.status, good.err) == (0, "")
    shown = json.loads(good.out)

    # A list has the findings of `doctor`.
    refused = call(*command, PYROCACHE_CONFIG=broken)
    sentence = f"{broken}: nameserver: It must be a text, not 5."
    assert refused.status == 1
    assert refused.err == f"{sentence}\n"
    found = json.loads(refused.out)
    assert type(found) is type(shown)
    assert sentence in (found["error"] if isinstance(found, dict) else [each["what"] for each in found])

    if name != "config":
        away = call(*command, PYROCACHE_NAMESERVER=free_address())
        assert away.status == 1
        assert type(json.loads(away.out)) is type(shown)
        assert len(away.err.splitlines()) <= 1


@pytest.mark.parametrize("name", RUNS)
def test_output_that_is_piped_has_no_codes(name: str, cluster: LocalCluster) -> None:
    if name == "shell":  # it replaces this process's main module
        return
    done = ran(name, cluster)
    assert "\x1b" not in done.out + done.err
    assert "Traceback" not in done.err


def ran(name: str, cluster: LocalCluster) -> Outcome:
    return call("pyrocache", *name.split(), *RUNS[name], PYROCACHE_NAMESERVER=cluster.nameserver)


def each(*briefly: str) -> list[Any]:
    """Each command; those that are not named here only among the tests that take long, as they start a process."""
    return [name if name in briefly else pytest.param(name, marks=pytest.mark.full) for name in RUNS]


@pytest.mark.parametrize("name", each("scan", "shell"))
def test_closed_streams_make_no_traceback(name: str, cluster: LocalCluster) -> None:
    """Nobody reads the output, and there is no input."""
    reader, writer = os.pipe()
    os.close(reader)
    with cluster.client() as cache:
        cache["key"] = "value"
    try:
        done = subprocess.run(
            [
                "bash",
                "-c",
                'exec "$@" <&-',
                "bash",
                sys.executable,
                "-m",
                "pyrocache",
                *name.split(),
                *RUNS[name],
            ],
            env=environment(PYROCACHE_NAMESERVER=cluster.nameserver),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    finally:
        os.close(writer)
    assert done.returncode in (0, 1, 2, 141)
    assert name not in ("status", "scan", "top", "shell") or done.returncode == 141
    assert len(done.stderr.splitlines()) <= 1, done.stderr


@pytest.mark.parametrize("name", each("status"))
def test_no_color_on_a_terminal(name: str, cluster: LocalCluster) -> None:
    arguments = () if name == "shell" else RUNS[name]
    command = [sys.executable, "-m", "pyrocache", *name.split(), *arguments]
    with Terminal(command, NO_COLOR="1", PYROCACHE_NAMESERVER=cluster.nameserver) as terminal:
        if name == "shell":
            terminal.until(b"cache is a client")
            terminal.type("1/0\r")
            terminal.until(b"ZeroDivisionError: ")
            terminal.type("exit()\r")
        terminal.end()
        assert terminal.written or name in ("set", "delete")
        assert not COLOUR.search(terminal.written)


@pytest.mark.full
def test_help_and_errors_have_colours_where_they_are_wanted(cluster: LocalCluster) -> None:
    """So that the test above can fail."""
    with Terminal([sys.executable, "-m", "pyrocache", "status", "--help"]) as terminal:
        assert terminal.end() == 0
        assert COLOUR.search(terminal.written)


def test_options_before_nodes_remove_count(cluster: LocalCluster, tmp_path: Path) -> None:
    other = str(tmp_path / "secret")
    assert call("pyrocache", "secret", "--secret-file", other).status == 0
    remove = ("remove", "cache.node.9")
    refused = call("pyrocache", "nodes", "--secret-file", other, "-s", cluster.nameserver, *remove)
    assert refused.status == 1
    assert other in refused.sentence
    unknown = call("pyrocache", "nodes", "-s", cluster.nameserver, *remove)
    assert (unknown.status, "cache.node.9 is not a node of this cluster" in unknown.sentence) == (1, True)
    wrong = call("pyrocache", "nodes", "--port", "7", *remove)
    assert wrong.status == 2
    assert "'--port' / '-p': remove has no such option" in wrong.sentence


def test_ctrl_c_during_the_imports_prints_nothing() -> None:
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'pyrocache.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from pyrocache.__main__ import main\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")


def test_ping_does_not_wait_for_another_secret(cluster: LocalCluster, tmp_path: Path) -> None:
    other = str(tmp_path / "secret")
    assert call("pyrocache", "secret", "--secret-file", other).status == 0
    refused = call("pyrocache", "ping", "--wait", "3600", "--secret-file", other, "-s", cluster.nameserver)
    assert refused.status == 1
    assert other in refused.sentence
