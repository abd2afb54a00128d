"""``top`` and ``status --watch`` on a terminal: keys, sizes, and how the terminal is afterwards, whatever ends them."""

from __future__ import annotations

import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from pyrocache import LocalCluster
from tests.support.commands import call
from tests.support.nodes import private_cluster
from tests.support.terminal import ENTER, LEAVE, SHOW_CURSOR, Terminal

TOP = (sys.executable, "-m", "pyrocache", "top", "-i", "0.1")
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with private_cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture
def load(cluster: LocalCluster) -> Iterator[None]:
    """A client that reads and writes all the time."""
    ended = threading.Event()

    def work() -> None:
        with cluster.client() as cache:
            while not ended.wait(0.002):
                cache["key"] = cache.get("key", 0)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    ended.set()
    thread.join()


def top(cluster: LocalCluster, *options: str, **more: str) -> Terminal:
    size = {"columns": 100, "lines": 24}
    return Terminal([*TOP, *options, "-s", cluster.nameserver], **size, **more)  # type: ignore[arg-type]


def check_restored(terminal: Terminal) -> None:
    assert terminal.now() == terminal.modes
    assert terminal.written.count(ENTER) == terminal.written.count(LEAVE) > 0
    after = terminal.written.rpartition(LEAVE)
    assert SHOW_CURSOR in after[0].rpartition(ENTER)[2] + after[2]
    assert b"Traceback" not in terminal.written


def test_keys_sizes_and_quitting(cluster: LocalCluster, load: None) -> None:
    # Shells may export these; the terminal knows better.
    with top(cluster, COLUMNS="300", LINES="50") as terminal:
        terminal.until("cache.node.2")
        assert b"\x1b[?25l" in terminal.written
        terminal.until(lambda: re.search(r"\n[1-9]\d* ops/s", terminal.frame))
        assert terminal.now() != terminal.modes  # keys come at once, and are not shown

        def sorted_by(title: str) -> bool:
            drawn = terminal.written.rpartition(b"\x1b[H")[2]
            return re.search(rb"\x1b\[[0-9;]*7m *" + title.encode(), drawn) is not None

        terminal.until(lambda: sorted_by("node"))
        for keys, title in (("o", "ops/s"), ("\x1b[C", "gets/s"), ("\x1bOD", "ops/s"), (">>", "sets/s")):
            terminal.type(keys)
            terminal.until(lambda title=title: sorted_by(title))  # type: ignore[misc]
        terminal.type("nr")
        terminal.until(lambda: re.search(r"cache\.node\.2.*\ncache\.node\.1", terminal.frame))
        terminal.type("?")
        terminal.until("q quit")
        terminal.resize(40, 8)
        terminal.until(lambda: "evict/s" not in terminal.frame and "cache.node.2" in terminal.frame)
        assert all(len(line) <= 40 for line in terminal.frame.split("\n"))
        assert len(terminal.frame.split("\n")) <= 8
        terminal.resize(20, 3)
        terminal.resize(130, 30)
        terminal.until("evict/s")
        terminal.type("\x1b[Z\x1b[15~x\x1b")  # keys without a meaning, the last one is not complete
        terminal.type("q")
        assert terminal.end() == 0
        check_restored(terminal)


@pytest.mark.parametrize(
    "ending", ["Ctrl-C", signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.full)]
)
def test_whatever_ends_it_restores_the_terminal(cluster: LocalCluster, ending: signal.Signals | str) -> None:
    with top(cluster) as terminal:
        terminal.until("cache.node.2")
        if isinstance(ending, signal.Signals):
            terminal.process.send_signal(ending)
            assert terminal.end() == -ending
        else:
            terminal.type("\x03")
            assert terminal.end() == 130
        check_restored(terminal)


def test_an_exception_restores_the_terminal() -> None:
    script = (
        "from pyrocache.cli.screen import Screen\nfrom rich.text import Text\n"
        "with Screen() as screen:\n    screen.draw([Text('drawn')])\n    raise ValueError('expected')\n"
    )
    with Terminal([sys.executable, "-c", script]) as terminal:
        assert terminal.end() == 1
        assert terminal.now() == terminal.modes
        assert b"drawn" in terminal.written.partition(LEAVE)[0]
        assert b"expected" in terminal.written.partition(LEAVE)[2]  # where it can be read
        assert SHOW_CURSOR in terminal.written


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_ctrl_z_restores_the_terminal_until_it_goes_on(cluster: LocalCluster) -> None:
    with Terminal(["bash", "--norc", "--noprofile", "-i"], PS1="$ ", HISTFILE="") as terminal:
        terminal.until(b"$ ")
        terminal.type(f"{' '.join(TOP)} -s {cluster.nameserver}\n")
        terminal.until("cache.node.2")
        for _ in range(2):
            terminal.type("\x1a")
            terminal.until(lambda: b"Stopped" in terminal.written.rpartition(LEAVE)[2])
            assert SHOW_CURSOR in terminal.written.rpartition(ENTER)[2]
            terminal.type("stty -a | grep -c ' icanon'; echo stty$?\n")
            terminal.until(b"stty0")
            terminal.type("fg\n")
            terminal.until(lambda: b"cache.node.2" in terminal.written.rpartition(LEAVE)[2])
            terminal.written = ENTER
        terminal.type("q")
        terminal.until(lambda: terminal.written.endswith(b"$ "))
        terminal.type("echo status$?\n")
        terminal.until(b"status0")
        terminal.type("exit\n")
        terminal.end()


def test_a_node_that_does_not_answer_does_not_hold_up_keys(cluster: LocalCluster) -> None:
    with top(cluster, "--timeout", "60") as terminal:
        terminal.until("cache.node.2")
        cluster.pause(1)
        try:
            terminal.type("?")
            terminal.until("q quit")
            terminal.type("q")
            assert terminal.end() == 0
        finally:
            cluster.resume(1)
        check_restored(terminal)


def test_without_colours(cluster: LocalCluster) -> None:
    with top(cluster, "--count", "2", "--sort", "ops", NO_COLOR="1") as terminal:
        assert terminal.end() == 0
        assert ENTER in terminal.written
        assert not COLOUR.search(terminal.written)
        check_restored(terminal)


@pytest.mark.full
def test_a_terminal_that_can_do_nothing(cluster: LocalCluster) -> None:
    with top(cluster, "--count", "2", TERM="dumb") as terminal:
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.written
        assert terminal.written.count(b"cache.node.2") == 2
        assert terminal.now() == terminal.modes


def test_a_status_that_is_watched(cluster: LocalCluster) -> None:
    command = [sys.executable, "-m", "pyrocache", "status", "--watch", "-i", "0.1", "-t", "0.5"]
    with Terminal([*command, "-s", cluster.nameserver], columns=80) as terminal:
        terminal.until("cache.node.2")
        cluster.pause(1)
        try:
            terminal.until("away")
            assert COLOUR.search(terminal.written)
        finally:
            cluster.resume(1)
        terminal.until(lambda: "away" not in terminal.frame and "cache.node.2" in terminal.frame)
        terminal.type("q")
        assert terminal.end() == 0
        check_restored(terminal)


def test_plain_output(cluster: LocalCluster, load: None) -> None:
    """One interval, several, and a cluster of which a node is away."""
    at = ("-i", "0.1", "-t", "0.5", "-s", cluster.nameserver)
    once = call("pyrocache", "top", "--once", *at)
    assert (once.status, once.err) == (0, "")
    assert once.out.isascii()
    assert once.out.startswith(f"pyrocache {cluster.nameserver}, 2 nodes\n")
    assert once.out.count("cache.node.") == 2
    several = call("pyrocache", "top", "--count", "2", "--sort", "ops", *at)
    assert (several.status, several.out.count("cache.node."), several.out.count("ops/s")) == (0, 4, 4)
    cluster.pause(1)
    try:
        away = call("pyrocache", "top", "--once", "--json", *at)
    finally:
        cluster.resume(1)
    assert away.status == 1
    assert '"state": "away"' in away.out


def test_hot_keys_are_shown_or_said_to_be_missing(cluster: LocalCluster, load: None) -> None:
    shown = call("pyrocache", "top", "--once", "--keys", "-i", "0.1", "-s", cluster.nameserver)
    assert (shown.status, shown.err) == (0, "")
    assert "Hottest keys (at least)" in shown.out


def test_where_there_is_no_cluster_it_ends_with_a_sentence() -> None:
    refused = call("pyrocache", "top", "--once", "-s", "127.0.0.1:1")
    assert refused.status == 1
    assert "No name server was found" in refused.sentence
