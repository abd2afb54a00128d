"""Exceptions that a signal handler raises, at any moment of every method: they surface as they are, and leave nothing.

The program runs in a process of its own. A handler may also strike where the interpreter calls back and can only print
what is raised (a finaliser, a callback of a weak reference); the program counts these.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyrocache import LocalCluster
from tests.support.processes import environment

PROGRAM = Path(__file__).parent.parent / "support" / "interrupted.py"


def interrupted(cluster: LocalCluster, times: int, seconds: float) -> None:
    command = [sys.executable, "-X", "dev", "-W", "ignore", str(PROGRAM), cluster.nameserver, str(times)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.startswith(f"interrupted {times} times"), done.stdout


@pytest.mark.full
def test_what_a_signal_handler_raises_surfaces_as_it_is_and_leaves_nothing_behind(
    shared_cluster: LocalCluster,
) -> None:
    interrupted(shared_cluster, 800, 80.0)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_ten_thousand_interruptions_change_nothing(shared_cluster: LocalCluster) -> None:
    interrupted(shared_cluster, 10_000, 590.0)
