"""Nodes and clusters of real processes, for a test of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from pyrocache import LocalCluster
from pyrocache.protocol.refusals import Refusal
from pyrocache.runtime.child_process import ChildProcess, start_nameserver, start_node
from tests.support.waiting import PATIENCE_SECONDS
from tests.support.wire import NAME, Peer


@dataclass(frozen=True)
class RunningNode:
    """A node process, alone in its cluster."""

    process: ChildProcess
    nameserver: str
    address: tuple[str, int]

    def stats(self) -> dict[str, Any]:
        """Return the node's figures, once it has room for the question."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with Peer(self) as peer:
            while isinstance(figures := peer.call("stats"), Refusal) and time.monotonic() < deadline:
                assert figures.code == "overloaded"
        return dict(figures)

    @property
    def rss(self) -> int:
        """Resident bytes, as the node says."""
        return int(self.stats()["rss_bytes"])

    @property
    def connections(self) -> int:
        """Connections that the node has, without the asking one."""
        return int(self.stats()["connections"]) - 1

    def identity(self) -> tuple[int, str]:
        """Return what changes when the node is started again."""
        with Peer(self) as peer:
            return self.stats()["pid"], peer.call("ping")["incarnation"]


@contextmanager
def running_nameserver() -> Iterator[str]:
    """Run a name server; yield its address."""
    process = start_nameserver(quiet=True)
    try:
        yield process.wait_until_ready()["address"]
    finally:
        process.kill()


@contextmanager
def running_node(nameserver: str | None = None, **settings: Any) -> Iterator[RunningNode]:
    """Run one node with these settings, and a name server unless one is given.

    It serves everybody, as most tests talk to it by hand.
    """
    with ExitStack() as stack:
        address = nameserver or stack.enter_context(running_nameserver())
        process = start_node(
            {"nameserver": address, "name": NAME, "new_cluster": True, "open": True, **settings}, quiet=True
        )
        stack.callback(process.kill)
        ready = process.wait_until_ready()
        yield RunningNode(process, address, (ready["host"], ready["port"]))


@contextmanager
def private_cluster(nodes: int = 3, **settings: Any) -> Iterator[LocalCluster]:
    """Run a `LocalCluster` that a test may harm. Its nodes are killed in the end: leaving takes them a second.

    Its nodes are small, so that a value of 64 MiB is too large for them.
    """
    cluster = LocalCluster(nodes, **{"max_memory": "256MiB", **settings})
    try:
        yield cluster
    finally:
        for number in range(len(cluster.nodes)):
            cluster.kill(number)
        cluster.kill_nameserver()
        cluster.stop()
