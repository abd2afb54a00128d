"""The clock that goes on while the machine sleeps, which no test can have it do."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pyrocache
from pyrocache.runtime import clock
from pyrocache.runtime.shared_clock import SharedClock, shared_file

PACKAGE = Path(pyrocache.__file__).parent


def test_it_is_the_clock_that_counts_sleep() -> None:
    number = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    before, now, after = time.clock_gettime(number), clock.now(), time.clock_gettime(number)
    assert before <= now <= after
    assert clock.now.ahead() == 0.0


def test_where_the_system_refuses_that_clock_it_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 999, raising=False)
    assert clock._clock() == time.CLOCK_MONOTONIC
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert clock._clock() == time.CLOCK_MONOTONIC


def test_the_clock_of_tests_moves_from_there() -> None:
    descriptor = shared_file()
    moved = SharedClock(descriptor, movable=True)
    os.close(descriptor)
    moved.advance(1000.0)
    before, now, after = clock.now(), moved(), clock.now()
    assert before <= now - 1000.0 <= after
    assert moved.ahead() == 1000.0


@pytest.mark.parametrize(
    "layer", ["node", "server", "client/features/locks.py", "client/features/load_deadlock.py"]
)
def test_what_a_node_promises_for_a_time_is_not_measured_with_another_clock(layer: str) -> None:
    place = PACKAGE / layer
    for path in [place] if place.suffix else place.rglob("*.py"):
        if path.name == "lifecycle.py":  # its default is what `node.process` replaces
            continue
        names = [
            node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
        ]
        assert "monotonic" not in names, path


def test_a_node_process_uses_it() -> None:
    code = """
import pyrocache.node.lifecycle as lifecycle
import pyrocache.node.process as process
from pyrocache.runtime.clock import now

class Node:
    def __init__(self, *arguments, secret, clock=lifecycle.Node.__init__.__defaults__[1], entry_clock, **others):
        print(clock is entry_clock is now)
        raise SystemExit

process.Node = Node
process.main(['{"secret": ["' + 64 * "0" + '"]}', "0"])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True\n"
