"""``pyrocache demo`` on real processes: what it shows, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from pyrocache.cli.demo import _show_balance, _Stage, run

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


def test_all_checks_pass(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
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


def test_a_standard_output_that_knows_no_check_marks(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert run(ttl=0.1, keys=40) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert len(re.findall(r"^ok ", out, re.MULTILINE)) == 11
    assert out.isascii()


@pytest.mark.parametrize(("encoding", "mark"), [("utf-8", "✗"), ("latin-1", "FAILED")])
def test_a_check_that_fails(encoding: str, mark: str) -> None:
    written = io.BytesIO()
    stage = _Stage(Console(file=io.TextIOWrapper(written, encoding, write_through=True), width=80))
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
    stage = _Stage(Console(file=io.StringIO()))
    _show_balance(stage, {f"cache.node.{n}": count for n, count in enumerate(entries, 1)}, 1000)
    assert (stage.passed, stage.failed) == (good, not good)


def test_an_error_in_the_client_is_one_sentence() -> None:
    settings = json.dumps({"nameserver": "127.0.0.1:1", "ttl": 1.0, "keys": 4})
    stays_open, keep = os.pipe()  # its end would be the end of the client
    process = subprocess.run(
        [sys.executable, "-m", "pyrocache.cli.demo", settings],
        stdin=stays_open,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    os.close(stays_open)
    os.close(keep)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (1, "", 1)
    assert "No name server was found" in process.stderr


@pytest.mark.parametrize("to_all", [True, False], ids=["terminal", "kill"])
def test_ctrl_c(to_all: bool) -> None:
    code = "import sys; from pyrocache.cli.demo import run; sys.exit(run(ttl=60.0, keys=40))"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        while b"Waiting" not in (line := process.stdout.readline()):
            assert line
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=10)  # to the end of both pipes, which the client has too
    assert (process.returncode, err) == (130, b"")


def test_a_demo_that_is_killed_takes_its_client_along() -> None:
    code = "import sys; from pyrocache.cli.demo import run; sys.exit(run(ttl=60.0, keys=40))"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        while b"Waiting" not in (line := process.stdout.readline()):
            assert line
        process.kill()
        _, err = process.communicate(timeout=10)
    assert err == b""
