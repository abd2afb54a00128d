"""The key of a secret is replaced in use: no call fails, and the old key is worth nothing in the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrocache import LocalCluster
from pyrocache.net.call_protocol import knowing
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NameServerDirectory
from pyrocache.runtime import secret_file
from pyrocache.runtime.secret import REREAD_SECONDS, Secret, read_secret
from pyrocache.runtime.secret_file import Key
from tests.support.commands import call
from tests.support.nodes import private_cluster
from tests.support.processes import ROOT, environment
from tests.support.secret_load import Load, refusing
from tests.support.waiting import PATIENCE_SECONDS, eventually

DOCUMENTED_SECONDS = 10.0
"""How long docs/security.md says to wait after each step."""

_MARGIN_SECONDS = 0.3


class Rotation:
    """The steps of a rotation of a cluster's secret.

    Args:
        wait_seconds: how long to wait after a step; None for no longer than is certain to be enough.
    """

    def __init__(self, cluster: LocalCluster, file: Path, wait_seconds: float | None) -> None:
        self.cluster = cluster
        self.file = file
        self.wait_seconds = wait_seconds
        (self.old,) = secret_file.read(str(file)).all

    def step(self, name: str) -> tuple[Key, ...]:
        """Take a step, and return the keys after it."""
        outcome = call("pyrocache", "secret", "--secret-file", str(self.file), name)
        assert outcome.status == 0, outcome.err
        return secret_file.read(str(self.file)).all

    def wait(self, known: Callable[[], bool]) -> None:
        """Wait until all processes have read the file again. ``known`` says so of those that serve."""
        if self.wait_seconds is not None:
            time.sleep(self.wait_seconds)
            assert known()
            return
        # Those that call read it at their next connection after that.
        time.sleep(REREAD_SECONDS + _MARGIN_SECONDS)
        eventually(known)

    def serves(self, *keys: Key) -> bool:
        """Return whether all nodes and the name server serve a caller with these keys, who uses the first."""
        return refusing(self.cluster.nameserver, Secret(None, keys)) == []

    def refuses(self, *keys: Key) -> bool:
        """Return whether none of them does."""
        return len(refusing(self.cluster.nameserver, Secret(None, keys))) == len(self.cluster.nodes) + 1

    def run(self) -> Key:
        """Take all steps. Return the new key."""
        _, new = self.step("add")
        assert self.serves(self.old)
        self.wait(lambda: self.serves(new, self.old))
        assert self.step("promote") == (new, self.old)
        self.wait(lambda: self.serves(new))
        assert self.serves(self.old, new), "the old key is still accepted"
        assert self.step("prune") == (new,)
        self.wait(lambda: self.refuses(self.old))
        assert self.serves(new)
        return new


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    secret_file.make(str(path))
    return path


@pytest.fixture
def rotated(file: Path) -> Iterator[LocalCluster]:
    """A cluster with a secret of its own."""
    with private_cluster(nodes=2, secret_file=file) as cluster:
        yield cluster


def other_process(cluster: LocalCluster, file: Path) -> subprocess.Popen[str]:
    """Start a process that calls the cluster all the time."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.secret_load", cluster.nameserver, str(file)],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def counted(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Let the process end. Return what it has counted."""
    answer, _ = process.communicate(timeout=PATIENCE_SECONDS)
    return dict(json.loads(answer))


def opened(cluster: LocalCluster, file: Path) -> list[Connection]:
    """Return connections to the nodes."""
    caller = knowing(read_secret(file))
    connections = [
        Connection(member, "tcp", caller) for member in NameServerDirectory(cluster.nameserver).members()
    ]
    for connection in connections:
        connection.finish_opening(Deadline(PATIENCE_SECONDS))
    return connections


def rotate(rotation: Rotation) -> None:
    """Rotate under load; see the tests."""
    cluster, file = rotation.cluster, rotation.file
    from_before = opened(cluster, file)
    process, load = other_process(cluster, file), Load(cluster.nameserver, str(file))
    try:
        rotation.run()
    finally:
        load.end()
        other = counted(process)
    assert (load.failures[:5], other["failures"]) == ([], [])
    for done in (load.done, other["done"]):
        assert len(done) == 3
        assert min(done.values()) > 10
    # A connection was admitted once; only new ones need a key.
    for connection in from_before:
        assert connection.call("ping", (), Deadline(PATIENCE_SECONDS))["serving"] is True
        connection.close()


@pytest.mark.full
def test_no_call_fails_while_the_key_is_replaced(rotated: LocalCluster, file: Path) -> None:
    rotate(Rotation(rotated, file, None))


@pytest.mark.full
def test_no_call_fails_with_the_documented_waits(rotated: LocalCluster, file: Path) -> None:
    rotate(Rotation(rotated, file, DOCUMENTED_SECONDS))
    rotated.add_node()
    assert Rotation(rotated, file, None).serves(*secret_file.read(str(file)).all)
