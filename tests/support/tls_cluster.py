"""A cluster of real processes with TLS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from pyrocache import PyroCacheClient
from pyrocache.config import TLS
from pyrocache.runtime.child_process import ChildProcess, start_nameserver, start_node
from tests.support.certificates import Certificates


@dataclass
class TlsCluster:
    """A name server and nodes.

    Attributes:
        nameserver: its address.
        nodes: the processes of the nodes.
        ready: what each node has told when it was ready.
        tls: the settings of all servers.
        client_tls: those of `client`, unless it is given others.
    """

    nameserver: str
    nameserver_process: ChildProcess
    tls: TLS
    client_tls: TLS
    nodes: list[ChildProcess] = field(default_factory=list)
    ready: list[dict[str, Any]] = field(default_factory=list)

    def client(self, **options: Any) -> PyroCacheClient:
        """Return a new client that uses TCP."""
        return PyroCacheClient(self.nameserver, **{"transport": "tcp", "tls": self.client_tls, **options})

    def start(self, tls: TLS | None = None, **settings: Any) -> ChildProcess:
        """Start a node, which is not waited for."""
        tls_settings = asdict(tls or self.tls)
        return start_node(
            {"nameserver": self.nameserver, "tls": tls_settings, "max_memory": 2**28, **settings}, quiet=True
        )

    def add_node(self, **settings: Any) -> None:
        """Start one more node."""
        self.nodes.append(self.start(**settings))
        self.ready.append(self.nodes[-1].wait_until_ready())

    @property
    def processes(self) -> list[ChildProcess]:
        """Return all of them."""
        return [*self.nodes, self.nameserver_process]

    def kill(self) -> None:
        """Kill all processes."""
        for process in self.processes:
            process.kill()


@contextmanager
def tls_cluster(
    certificates: Certificates,
    nodes: int = 2,
    tls: TLS | None = None,
    client_tls: TLS | None = None,
    **settings: Any,
) -> Iterator[TlsCluster]:
    """Run a cluster with TLS. ``settings`` are those of its nodes."""
    tls = tls or certificates.server()
    with ExitStack() as stack:
        process = start_nameserver(quiet=True, tls=asdict(tls))
        stack.callback(process.kill)
        address = process.wait_until_ready()["address"]
        cluster = TlsCluster(address, process, tls, client_tls or certificates.client())
        stack.callback(cluster.kill)
        cluster.nodes += [cluster.start(new_cluster=True, **settings) for _ in range(nodes)]
        cluster.ready += [node.wait_until_ready() for node in cluster.nodes]
        yield cluster


def said(process: ChildProcess) -> list[str]:
    """Return the lines that a process has printed."""
    output = process._output
    assert output is not None
    return os.pread(output.fileno(), 1_000_000, 0).decode().splitlines()
