"""`LocalCluster`: a name server and nodes as child processes, for notebooks, tests and demos.

The processes listen on loopback ports. They end with this process, however it ends, and when the `LocalCluster` is
garbage-collected (`runtime.child_process`).

Thread safety: not thread-safe; use a `LocalCluster` from one thread.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pyrocache.client.client import PyroCacheClient
from pyrocache.config import DEFAULT_EVICTION, NodeConfig, check_port, parse_size
from pyrocache.display.shown import Shown
from pyrocache.errors import ConfigurationError, PyroCacheError
from pyrocache.late_imports import at_first_use
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import NameServerDirectory
from pyrocache.node.membership import strike_out
from pyrocache.runtime.child_process import ChildProcess, start_nameserver, start_node
from pyrocache.runtime.secret import find_secret
from pyrocache.settings import ignored

if TYPE_CHECKING:
    from pyrocache.aio.client import AsyncPyroCacheClient
    from pyrocache.display.card import Card

_Client = TypeVar("_Client", bound="PyroCacheClient | AsyncPyroCacheClient")


@dataclass(slots=True)
class LocalNode:
    """One node of a `LocalCluster`.

    Attributes:
        name: ``cache.node.N``; unchanged by a restart.
        pid: its process id; changed by a restart.
        address: its ``host:port``; changed by a restart.
    """

    name: str
    pid: int
    address: str
    _process: ChildProcess = field(repr=False)

    @property
    def alive(self) -> bool:
        """Whether its process exists; a paused process does."""
        return self._process.exit_status is None


_REGISTER_AGAIN_SECONDS = 3.0
_STOPPED = "This cluster was stopped; start a new LocalCluster."


def _refuse_while_main_is_imported() -> None:
    """Raise `ConfigurationError` while multiprocessing imports the parent's main module into a new process.

    Otherwise a script that makes a cluster outside ``if __name__ == "__main__"`` would start one in each worker.
    """
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigurationError(
            "A LocalCluster would be started by every process that multiprocessing starts, which imports this module "
            'again: make it under `if __name__ == "__main__":`, and pass its clients to the processes.'
        )


class LocalCluster(Shown):
    """A cluster on this machine: ``with LocalCluster(nodes=3) as cluster: cache = cluster.client()``.

    Its processes end with `stop`, with this process, and when neither the cluster nor any of its clients is referred to
    any more. If a notebook cell that makes a cluster is run again, it makes a new one, without the old entries; the old
    one ends as soon as its clients are replaced as well. IPython keeps what a cell displays: let no cell end with the
    cluster or a client alone.

    The arguments are all of its settings: it reads no settings file, and of the variables only
    ``$PYROCACHE_SECRET_FILE``.

    Args:
        nodes: the number of nodes to start.
        replicas: copies of each entry; must be 1 for now.
        max_memory: bytes of entries that *each* node stores at most, as a number or like ``"256MiB"``. Memory is taken
            as entries are stored.
        eviction: the eviction policy, one of `pyrocache.config.EVICTION_POLICIES`.
        max_value: the largest encoded value that a node accepts, in bytes or like ``"64MiB"``; by default a quarter of
            ``max_memory``.
        port: the port of the name server, so that other processes know its address; by default a free one.
        secret_file: the path of the secret file; by default that of this user, so its other processes can use the
            cluster.

    Attributes:
        nameserver: ``host:port`` of the name server.
        nodes: a list of `LocalNode`, by number at first. The methods' argument ``i`` is an index of it.

    Raises:
        ConfigurationError: an argument is not valid, no Python interpreter was found to run the processes with, or
            multiprocessing is importing the main module of a new process, which would make a cluster in each.
        PyroCacheError: a process did not start. All other processes were killed.
    """

    _stopped = False
    _clock: int | None = None  # the descriptor of the nodes' `SharedClock`; see `pyrocache.testing`

    def __init__(
        self,
        nodes: int = 3,
        *,
        replicas: int = 1,
        max_memory: int | str = "1GiB",
        eviction: str = DEFAULT_EVICTION,
        max_value: int | str | None = None,
        port: int = 0,
        secret_file: str | os.PathLike[str] | None = None,
    ) -> None:
        _refuse_while_main_is_imported()
        if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 0:
            raise ConfigurationError(f"nodes must be the number of nodes to start, not {nodes!r}.")
        if replicas != 1:
            raise ConfigurationError("There is one copy of each entry for now: replicas must be 1.")
        self._settings: dict[str, Any] = {"max_memory": parse_size(max_memory), "eviction": eviction}
        if max_value is not None:
            self._settings["max_value_bytes"] = parse_size(max_value)
        NodeConfig(**self._settings)  # raises before any process is started
        check_port(port)
        # By id and not in a WeakSet, because a client is a mapping and not hashable.
        self._clients: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.nodes: list[LocalNode] = []
        self._started_by = os.getpid()
        self._secret = find_secret(secret_file)
        self._nameserver_process = start_nameserver(port=port, secret=self._secret, quiet=True)
        starting: list[ChildProcess] = []
        try:
            self.nameserver: str = self._nameserver_process.wait_until_ready()["address"]
            # All are started before the first is waited for, so that they start in parallel.
            for _ in range(nodes):
                starting.append(self._start_node(new_cluster=True))
            started = [self._started(process) for process in starting]
        except BaseException:  # also Ctrl-C: no process may be left
            for process in (*starting, self._nameserver_process):
                process.kill()
            raise
        self.nodes = sorted(started, key=lambda node: int(node.name.rpartition(".")[2]))  # 9 before 10

    def client(self, **options: Any) -> PyroCacheClient:
        """Return a new client of this cluster, which `stop` closes. ``options`` are those of `PyroCacheClient`.

        As for the cluster itself, no other settings count: no file and no variable is read.

        Raises:
            PyroCacheError: the cluster was stopped.
        """
        return self._made(PyroCacheClient, options)

    def async_client(self, **options: Any) -> AsyncPyroCacheClient:
        """Return a new asyncio client, otherwise as `client`. ``options`` are those of `AsyncPyroCacheClient`."""
        from pyrocache.aio.client import (
            AsyncPyroCacheClient,  # imported here, as most programs do without asyncio
        )

        return self._made(AsyncPyroCacheClient, options)

    def _made(self, kind: Callable[..., _Client], options: dict[str, Any]) -> _Client:
        self._check_running()
        if options.get("authenticate", True):
            # The file that the nodes use, whatever the environment and the working directory are by now.
            options = {"secret_file": self._secret.path, **options}
        with ignored():
            client = kind(self.nameserver, **options)
        client._context.backend.keeps_alive = self
        self._clients[id(client)] = client
        return client

    def __reduce__(self) -> Any:
        raise TypeError(
            "A LocalCluster is not pickled: give the other process a client, or the address in nameserver."
        )

    def kill(self, i: int) -> None:
        """Kill node ``i`` with SIGKILL. It stays registered at the name server."""
        self._node(i)._process.kill()

    def pause(self, i: int) -> None:
        """Stop node ``i`` with SIGSTOP. Its connections stay open, and it does not answer."""
        self._node(i)._process.pause()

    def resume(self, i: int) -> None:
        """Continue node ``i`` after `pause`."""
        self._node(i)._process.signal(signal.SIGCONT)

    def restart(self, i: int) -> LocalNode:
        """Start node ``i`` again under its name, without entries. Shut it down first if it runs. Return the node."""
        self._check_running()
        node = self._node(i)
        node._process.terminate()
        node._process.wait()
        fresh = self._started(self._start_node(node.name))
        node.pid, node.address, node._process = fresh.pid, fresh.address, fresh._process
        return node

    def add_node(self) -> LocalNode:
        """Start one more node, append it to ``nodes``, and return it."""
        self._check_running()
        node = self._started(self._start_node())
        self.nodes.append(node)
        return node

    def remove_node(self, i: int) -> None:
        """Shut down node ``i``, and remove it from ``nodes`` and from the name server."""
        self._check_running()
        node = self._node(i)
        node._process.terminate()
        node._process.wait()
        del self.nodes[i]
        strike_out(self.nameserver, node.name, self._secret)  # a node that was killed did not leave by itself

    def kill_nameserver(self) -> None:
        """Kill the name server with SIGKILL."""
        self._nameserver_process.kill()

    def restart_nameserver(self) -> None:
        """Start the name server again at its address, without registrations, and wait for those of the nodes.

        Waits at most 3 seconds, because a paused node does not register.
        """
        self._check_running()
        self._nameserver_process.kill()
        host, _, port = self.nameserver.rpartition(":")
        self._nameserver_process = start_nameserver(
            host=host, port=int(port), secret=self._secret, quiet=True
        )
        self._nameserver_process.wait_until_ready()
        directory = NameServerDirectory(self.nameserver, caller=knowing(self._secret, trusting=True))
        alive = {node.name for node in self.nodes if node.alive}
        give_up_at = time.monotonic() + _REGISTER_AGAIN_SECONDS  # paused nodes do not register
        while alive - {entry.name for entry in directory.members()} and time.monotonic() < give_up_at:
            time.sleep(0.05)

    def stop(self) -> None:
        """Close the clients and end all processes. A second call does nothing."""
        self._stopped = True
        for client in list(self._clients.values()):  # a copy: the dictionary shrinks when one is collected
            client._context.close(
                "The cluster of this client was stopped; start a new one and take its client()."
            )
        self._clients.clear()
        for node in self.nodes:
            node._process.terminate()
        for node in self.nodes:
            node._process.wait()
        # Last, because the nodes unregister there.
        self._nameserver_process.terminate()
        self._nameserver_process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        alive = sum(node.alive for node in self.nodes)
        return f"<LocalCluster {self.nameserver!r}, {alive} of {len(self.nodes)} nodes alive>"

    def _card(self) -> Card:
        """Return what notebooks show. It asks the nodes, for less than a second, and never raises."""
        with at_first_use:
            from pyrocache.client.features import overview
            from pyrocache.client.views import Process, of_local_cluster

        def ask() -> overview.Overview:
            for client in list(self._clients.values()):
                # It knows the nodes already, also without the name server, and which of them hang.
                if isinstance(client, PyroCacheClient) and not client._context.closed:
                    return overview.ask(client._context)
            with ignored():
                client = PyroCacheClient(self.nameserver, secret_file=self._secret.path)
            with client:  # not kept: a client of this cluster would keep it alive
                return overview.ask(client._context)

        # Only the process that has started them is told that they have ended.
        told = os.getpid() == self._started_by
        started = [("name server", self._nameserver_process.pid, self.nameserver, self._nameserver_process)]
        started += [(node.name, node.pid, node.address, node._process) for node in self.nodes]
        processes = [
            Process(name, pid, address, process.exit_status is None if told else None)
            for name, pid, address, process in started
        ]
        if self._stopped:
            return of_local_cluster(processes, None, _STOPPED, stopped=True)
        found = overview.attempt(ask)
        return of_local_cluster(processes, found.stats, found.problem)

    def _node(self, i: int) -> LocalNode:
        """Return node ``i``. Raises `IndexError`, with a sentence, if there is none."""
        try:
            return self.nodes[i]
        except IndexError:
            raise IndexError(f"No node has index {i}: this cluster has {len(self.nodes)} nodes.") from None

    def _check_running(self) -> None:
        if self._stopped:
            raise PyroCacheError(_STOPPED)

    def _start_node(self, name: str | None = None, *, new_cluster: bool = False) -> ChildProcess:
        settings = {"nameserver": self.nameserver, "name": name, "new_cluster": new_cluster, **self._settings}
        return start_node(settings, quiet=True, secret=self._secret, clock=self._clock)

    def _started(self, process: ChildProcess) -> LocalNode:
        answer = process.wait_until_ready()
        return LocalNode(answer["name"], answer["pid"], f"{answer['host']}:{answer['port']}", process)
