"""`LocalCluster`: a name server and nodes as child processes, for notebooks, tests and demos.

Real processes on free loopback ports, which end with this process whatever ends it. Use it from one thread.
"""

from __future__ import annotations

import signal
import time
import weakref
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from pyrocache.client.client import PyroCacheClient
from pyrocache.config import DEFAULT_EVICTION, NodeConfig, parse_size
from pyrocache.errors import ConfigurationError
from pyrocache.net.directory import NameServerDirectory
from pyrocache.runtime.child_process import ChildProcess, start_nameserver, start_node


@dataclass(slots=True)
class LocalNode:
    """One node of a `LocalCluster`.

    Attributes:
        name: ``cache.node.N``, the same after a restart.
        pid: its process id; another one after a restart.
        address: its ``host:port``; another one after a restart.
    """

    name: str
    pid: int
    address: str
    _process: ChildProcess = field(repr=False)

    @property
    def alive(self) -> bool:
        """Whether its process runs (or is paused)."""
        return self._process.exit_status is None


_BACK_SECONDS = 3.0


class LocalCluster:
    """A cluster on this machine: ``with LocalCluster(nodes=3) as cluster: cache = cluster.client()``.

    Args:
        nodes: how many to start.
        replicas: copies of each entry; only 1 so far.
        max_memory: bytes of entries *each* node holds, as a number or like ``"256MiB"``.
        eviction: what goes when they are taken, one of `pyrocache.config.EVICTION_POLICIES`.

    Attributes:
        nameserver: ``host:port`` of its name server.
        nodes: a `LocalNode` each; indices in the methods count in this list.

    Raises:
        ConfigurationError: an argument makes no sense.
        PyroCacheError: a process did not start; those that did are gone again.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        replicas: int = 1,
        max_memory: int | str = "256MiB",
        eviction: str = DEFAULT_EVICTION,
    ) -> None:
        if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 0:
            raise ConfigurationError(f"nodes is how many nodes to start, not {nodes!r}.")
        if replicas != 1:
            raise ConfigurationError("Entries are kept in one copy so far: replicas can only be 1.")
        self._settings: dict[str, Any] = {"max_memory": parse_size(max_memory), "eviction": eviction}
        NodeConfig(**self._settings)  # raises now if they are wrong
        self._clients: weakref.WeakValueDictionary[int, PyroCacheClient] = weakref.WeakValueDictionary()
        self.nodes: list[LocalNode] = []
        self._nameserver_process = start_nameserver(quiet=True)
        try:
            self.nameserver: str = self._nameserver_process.wait_until_ready()["address"]
            starting: list[ChildProcess] = []
            try:
                for _ in range(nodes):
                    starting.append(self._start_node())
                started = [self._started(process) for process in starting]
            except BaseException:
                for process in starting:
                    process.kill()
                raise
        except BaseException:
            self._nameserver_process.kill()
            raise
        self.nodes = sorted(started, key=lambda node: int(node.name.rpartition(".")[2]))

    def client(self, **options: Any) -> PyroCacheClient:
        """A new client of this cluster; `stop` closes it. ``options`` are those of `PyroCacheClient`."""
        client = PyroCacheClient(self.nameserver, **options)
        self._clients[id(client)] = client
        return client

    def kill(self, i: int) -> None:
        """End node ``i`` by SIGKILL: it has no time to unregister."""
        self.nodes[i]._process.kill()

    def pause(self, i: int) -> None:
        """Stop node ``i`` by SIGSTOP: it is there, and does nothing."""
        self.nodes[i]._process.pause()

    def resume(self, i: int) -> None:
        """Let node ``i`` go on after `pause`."""
        self.nodes[i]._process.signal(signal.SIGCONT)

    def restart(self, i: int) -> LocalNode:
        """Start node ``i`` again under its name, empty; if it still runs, it leaves gracefully first."""
        node = self.nodes[i]
        node._process.terminate()
        node._process.wait()
        fresh = self._started(self._start_node(node.name))
        node.pid, node.address, node._process = fresh.pid, fresh.address, fresh._process
        return node

    def add_node(self) -> LocalNode:
        """Start one more node; it is the last of ``nodes``."""
        node = self._started(self._start_node())
        self.nodes.append(node)
        return node

    def remove_node(self, i: int) -> None:
        """Have node ``i`` leave gracefully, and forget it."""
        process = self.nodes[i]._process
        process.terminate()
        process.wait()
        node = self.nodes.pop(i)
        directory = NameServerDirectory(self.nameserver)
        for entry in directory.members():
            if (entry.name, entry.address) == (
                node.name,
                node.address,
            ):  # it had no time to unregister itself
                directory.remove(entry)

    def kill_nameserver(self) -> None:
        """End the name server by SIGKILL."""
        self._nameserver_process.kill()

    def restart_nameserver(self) -> None:
        """Start the name server again, empty, at its old address; returns when the nodes are back in it."""
        self._nameserver_process.kill()
        host, _, port = self.nameserver.rpartition(":")
        self._nameserver_process = start_nameserver(host=host, port=int(port), quiet=True)
        self._nameserver_process.wait_until_ready()
        directory = NameServerDirectory(self.nameserver)
        alive = {node.name for node in self.nodes if node.alive}
        give_up_at = time.monotonic() + _BACK_SECONDS  # paused nodes do not come back
        while alive - {entry.name for entry in directory.members()} and time.monotonic() < give_up_at:
            time.sleep(0.05)

    def stop(self) -> None:
        """End everything. Doing so again does nothing."""
        for client in list(self._clients.values()):
            client.close()
        self._clients.clear()
        for node in self.nodes:
            node._process.terminate()
        for node in self.nodes:
            node._process.wait()
        self._nameserver_process.terminate()
        self._nameserver_process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        alive = sum(node.alive for node in self.nodes)
        return f"<LocalCluster {self.nameserver!r}, {alive} of {len(self.nodes)} nodes alive>"

    def _start_node(self, name: str | None = None) -> ChildProcess:
        settings = {"nameserver": self.nameserver, "name": name, **self._settings}
        return start_node(settings, quiet=True)

    def _started(self, process: ChildProcess) -> LocalNode:
        answer = process.wait_until_ready()
        return LocalNode(answer["name"], answer["pid"], f"{answer['host']}:{answer['port']}", process)
