"""``pyrocache shell``: code from an argument and from standard input, exit statuses, and both prompts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pyrocache import LocalCluster
from tests.support.commands import Outcome, run_all
from tests.support.nodes import private_cluster
from tests.support.processes import environment
from tests.support.terminal import Terminal

SHELL = (sys.executable, "-m", "pyrocache", "shell")
CLASS = """\
class Point:
    pass
cache["point"] = Point()
assert type(cache["point"]) is Point, "as in a script"
assert __name__ == "__main__" and pyrocache.PyroCacheClient is type(cache)
print(sorted(cache))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with private_cluster(nodes=1) as cluster:
        yield cluster


def piped(cluster: LocalCluster, code: str, *options: str) -> Outcome:
    done = subprocess.run(
        [*SHELL, *options],
        input=code,
        env=environment(PYROCACHE_NAMESERVER=cluster.nameserver),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_code_in_standard_input(cluster: LocalCluster) -> None:
    assert piped(cluster, f"{CLASS}raise SystemExit(3)", "-n", "shell") == Outcome(3, "['point']\n", "")


@pytest.mark.full
def test_statuses_are_those_of_python(cluster: LocalCluster) -> None:
    codes = [
        "print(len(cache.namespace('none')))",
        "import sys; sys.exit('text')",
        "def f():\n    1/0\nf()",
        "1/",
        "print('x' * 100000); cache['nothing']",
        "raise EOFError",
        "raise KeyboardInterrupt",
        "import sys; print(sys.argv)",
    ]
    done = run_all(
        [("-m", "pyrocache", "shell", "-c", code) for code in codes], PYROCACHE_NAMESERVER=cluster.nameserver
    )
    assert [each.status for each in done] == [0, 1, 1, 1, 1, 1, 130, 0]
    assert done[0] == Outcome(0, "0\n", "")
    assert done[1] == Outcome(1, "", "text\n")
    assert done[2].err.splitlines() == [
        "Traceback (most recent call last):",
        '  File "<string>", line 3, in <module>',
        '  File "<string>", line 2, in f',
        "ZeroDivisionError: division by zero",
    ]
    assert done[3].err.startswith('  File "<string>", line 1\n')
    assert "SyntaxError" in done[3].err
    assert done[4].err.endswith("KeyError: 'nothing'\n")
    assert "pyrocache/cli/" not in done[4].err
    assert done[6] == Outcome(130, "", "")
    assert done[7].out.startswith("['-c']")


@pytest.mark.full
def test_the_prompt_of_ipython(cluster: LocalCluster) -> None:
    pytest.importorskip("IPython")
    with Terminal([*SHELL, "-s", cluster.nameserver], TERM="xterm") as terminal:
        terminal.until(f"cache is a client of the cluster at {cluster.nameserver}, 1 node.".encode())
        terminal.type("cache['prompt'] = 40 + 2\r")
        with cluster.client() as cache:
            terminal.until(lambda: cache.get("prompt") == 42)
        terminal.type("exit()\r")
        assert terminal.end() == 0
        assert terminal.now() == terminal.modes


def interrupt(terminal: Terminal) -> None:
    """Press Ctrl-C until it is noticed: the standard library's prompt misses one that comes just before it waits."""
    for _ in range(5):
        terminal.type("\x03")
        with suppress(AssertionError):
            terminal.until(b"KeyboardInterrupt", 2.0)
            return
    terminal.until(b"KeyboardInterrupt")


@pytest.mark.full
def test_the_prompt_without_ipython(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "IPython.py").write_text("raise ImportError")
    command = [sys.executable, "-c", "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "]
    command[-1] += "runpy.run_module('pyrocache', run_name='__main__')"
    with Terminal([*command, str(tmp_path), "shell", "-s", cluster.nameserver], TERM="xterm") as terminal:
        terminal.until(b">>> ")
        terminal.type("print(type(cache))\n")
        terminal.until(b"PyroCacheClient'>")
        terminal.type("cache.compare_\t")
        terminal.until(b"cache.compare_and_set")
        interrupt(terminal)
        terminal.type("exit(5)\n")
        assert terminal.end() == 5
        assert terminal.now() == terminal.modes
