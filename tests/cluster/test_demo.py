"""``pyrocache demo`` on real processes: what it shows, and how it ends."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from pyrocache import LocalCluster, PyroCacheError
from pyrocache.cli.demo import Stage, _client_processes, _show_balance, run
from tests.support.processes import environment

CALLS = [
    "set user:123 {'name': 'Alice', 'age': 30} → True",
    "set product:abc {'name': 'Laptop', 'price': 1200} ttl=0.5s → True",
    "get user:123 → {'name': 'Alice', 'age': 30}",
    "get product:abc → {'name': 'Laptop', 'price': 1200}",
    "set user:456 {'name': 'Bob'} → True",
    "delete user:123 → True",
    "get user:123 → None",
    "get product:abc → None",
]


def test_all_checks_pass(capfd: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    status = run(ttl=0.5, keys=400)
    out, err = capfd.readouterr()
    assert (status, err) == (0, ""), out
    assert time.monotonic() - begin < 15
    lines = out.splitlines()
    assert lines[-1] == "All 11 checks passed."
    checks = [line for line in lines if line.startswith(("✓", "✗"))]
    assert len(checks) == 11
    assert all(re.match(r"✓ cache\.node\.[123] ", line) for line in checks[:8])
    assert [line[15:] for line in checks[:8]] == CALLS
    assert "400 right" in checks[8]
    assert "400 right" in checks[9]
    bars = [re.fullmatch(r"  (cache\.node\.\d)  █+ +(\d+) +([\d.]+)%", line) for line in lines[-5:-2]]
    assert [bar and bar[1] for bar in bars] == ["cache.node.1", "cache.node.2", "cache.node.3"]
    assert sum(int(bar[2]) for bar in bars if bar) == 400
    assert "\x1b" not in out
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", "✗"), ("latin-1", "FAILED")])
def test_a_check_that_fails(encoding: str, mark: str) -> None:
    written = io.BytesIO()
    stage = Stage(Console(file=io.TextIOWrapper(written, encoding, write_through=True), width=80))
    stage.step("cache.node.1", "get user:123", "None", good=True, expected="None")
    stage.step("cache.node.1", "get user:456", "None", good=False, expected="{'name': 'Bob'}")
    assert stage.end() == 1
    lines = written.getvalue().decode(encoding).splitlines()
    assert lines[1].startswith(f"{mark} cache.node.1 get user:456")
    assert lines[1].endswith("None instead of {'name': 'Bob'}")
    assert lines[2] == "1 of 2 checks failed."


@pytest.mark.parametrize(
    ("entries", "good"),
    [
        ([310, 340, 350], True),
        ([333, 333, 333], False),  # one is missing
        ([900, 50, 50], False),
        ([500, 500, 0], False),
        ([0, 0, 0], False),
    ],
)
def test_the_balance_of_a_thousand_keys(entries: list[int], good: bool) -> None:
    stage = Stage(Console(file=io.StringIO()))
    _show_balance(stage, {f"cache.node.{n}": count for n, count in enumerate(entries, 1)}, 1000)
    assert (stage.passed, stage.failed) == (good, not good)


PLAY = (
    "import sys; from pyrocache.cli.demo import run\n"
    "if __name__ == '__main__': sys.exit(run(ttl={ttl}, keys={keys}))\n"
)


@contextmanager
def running(tmp_path: Path, ready: bytes, **options: float) -> Iterator[subprocess.Popen[bytes]]:
    """A demo in a process group of its own that has said ``ready``."""
    script = tmp_path / "play.py"  # its client processes import it
    script.write_text(PLAY.format(**options))
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(PYTHONUNBUFFERED="1"),
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        while ready not in (line := process.stdout.readline()):
            assert line
        yield process


@pytest.mark.parametrize(
    "to_all", [True, pytest.param(False, marks=pytest.mark.full)], ids=["terminal", "kill"]
)
def test_ctrl_c(tmp_path: Path, to_all: bool) -> None:
    with running(tmp_path, b"Waiting", ttl=60.0, keys=40) as process:
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=10)  # to the end of both pipes
    assert (process.returncode, err) == (130, b"")


@pytest.mark.full
def test_ctrl_c_while_the_client_processes_work(tmp_path: Path) -> None:
    with running(tmp_path, b"processes set", ttl=0.1, keys=30_000) as process:
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (130, b"")


@pytest.mark.parametrize("ready", [b"Waiting", pytest.param(b"processes set", marks=pytest.mark.full)])
def test_a_demo_that_is_killed_leaves_no_process(tmp_path: Path, ready: bytes) -> None:
    ttl, keys = (60.0, 40) if ready == b"Waiting" else (0.1, 30_000)
    with running(tmp_path, ready, ttl=ttl, keys=keys) as process:
        process.kill()
        process.communicate(timeout=10)  # to the end of the pipes, which all its processes have


def test_a_client_process_that_dies_is_reported_in_one_sentence(shared_cluster: LocalCluster) -> None:
    with (
        shared_cluster.client() as cache,
        pytest.raises(PyroCacheError, match="client process ended") as caught,
        _client_processes(cache) as pool,
    ):
        pool.submit(os._exit, 1).result()
    assert "\n" not in str(caught.value)
