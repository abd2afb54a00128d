"""The keeper: the process of a detached cluster. It starts a name server and nodes, keeps them running, and ends them.

`pyrocache.connect` starts it (`pyrocache.detached`). It writes the record by which others find the cluster, and ends
by SIGTERM, as `pyrocache stop` sends it, or when there has been no client for the idle timeout. If it is killed, its
children end by themselves (`runtime.child_process`).

A client is there while one that `pyrocache.connect` returned is open, which the keeper sees by a lock
(`detached.place`), or while a node has a connection to a client of any kind: each node says for how long it has had
none. Connections to a detached cluster are not closed for being idle: both ends are on this host, where the system
closes those of a process that has ended. The time counts that the machine sleeps.

Thread safety: runs in the main thread; supervisors have their own threads.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any, NoReturn

from pyrocache.cli.nodes import end, ping_of, start_nodes
from pyrocache.cli.output import report
from pyrocache.cli.supervisor import Supervisor
from pyrocache.cluster.routing import Member
from pyrocache.config import MAX_SECONDS, NodeConfig, parse_address
from pyrocache.detached.place import Log, Place, Written
from pyrocache.errors import PyroCacheError
from pyrocache.net.call_protocol import knowing
from pyrocache.net.calls import Connections, Request
from pyrocache.net.deadline import Deadline
from pyrocache.protocol.commands import STATS
from pyrocache.protocol.handshake import NAMELESS, PROTOCOL, Greeting
from pyrocache.runtime.child_process import detach, start_nameserver
from pyrocache.runtime.clock import now
from pyrocache.runtime.secret import Secret, secret_of_parent
from pyrocache.runtime.start import answer
from pyrocache.runtime.stop_request import StopRequest

_LOOKS = 20  # for clients, in an idle timeout
_SHORTEST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_ASK_SECONDS = 2.0
_POLL_SECONDS = 0.2


class IdleTimer:
    """Decides whether there has been no client for so long that the cluster ends.

    Args:
        timeout: seconds; None for never.
        has_clients: returns whether a client has joined.
        shut_out: lets no client join any more, and returns True; or returns False because there is one.
        clientless: returns for how many seconds each node that answers has had no client.
        clock: seconds.
    """

    def __init__(
        self,
        timeout: float | None,
        has_clients: Callable[[], bool],
        shut_out: Callable[[], bool],
        clientless: Callable[[], Sequence[float]],
        clock: Callable[[], float] = now,
    ) -> None:
        self._timeout = timeout
        self._has_clients = has_clients
        self._shut_out = shut_out
        self._clientless = clientless
        self._clock = clock
        self._had_clients = False
        self._seen_at = clock()  # when the last client was there, as far as is known

    def is_over(self) -> bool:
        """Look for clients. Return whether the timeout has passed without any, and none can join any more."""
        if self._timeout is None:
            return False
        if self._has_clients():
            self._had_clients = True
            return False
        if self._had_clients:  # it has left since the last look: when, nobody knows
            self._had_clients = False
            self._seen_at = self._clock()
        if self._clock() - self._seen_at < self._timeout:
            return False
        # Only now are the nodes asked. Those that do not answer are left out, or one that hangs would keep the cluster.
        if seconds := self._clientless():
            self._seen_at = max(self._seen_at, self._clock() - min(seconds))
        # Last: a client may have joined while the nodes were asked.
        return self._clock() - self._seen_at >= self._timeout and self._shut_out()


class Keeper:
    """The processes of a detached cluster.

    Args:
        count: the number of nodes.
        max_memory: bytes of entries that each node stores at most.
        secret: that of the cluster.

    Attributes:
        address: ``host:port`` of the name server, once `start` has been called.
    """

    def __init__(self, count: int, max_memory: int, secret: Secret) -> None:
        self._count = count
        self._max_memory = max_memory
        self._secret = secret
        self._nameservers: list[Supervisor] = []
        self._nodes: list[Supervisor] = []
        self.address = ""

    def start(self) -> None:
        """Start all of them, and wait until they are ready. Raises `PyroCacheError`."""
        nameserver = Supervisor(
            "the name server", self._start_nameserver, self._ping, is_name_server=True, report=_report
        )
        self._nameservers.append(nameserver)
        nameserver.wait_until_ready()
        self.address = nameserver.answer["address"]
        config = NodeConfig(
            nameserver=self.address, max_memory=self._max_memory, idle_seconds=MAX_SECONDS, new_cluster=True
        )
        start_nodes(config, self._secret, self._count, self._nodes, _report)

    def end(self) -> None:
        """End all of them."""
        end(self._nodes)
        end(self._nameservers)  # after the nodes, which unregister there

    def clientless(self) -> list[float]:
        """Return for how many seconds each node that answers has had no connection to a client."""
        caller = knowing(self._secret, Greeting(protocol=PROTOCOL, caller=NAMELESS))  # so it is no client
        ready = [node.answer for node in self._nodes if node.answer]
        members = [Member(one["name"], one["host"], one["port"]) for one in ready]
        with closing(Connections(1, caller=caller)) as connections:
            requests = [Request(member, STATS, ()) for member in members]
            with closing(connections.exchange(requests, Deadline(_ASK_SECONDS))) as answers:
                return [figures["clientless_seconds"] for _, figures in answers if type(figures) is dict]

    def _start_nameserver(self, _: str | None) -> Any:
        port = parse_address(self.address)[1] if self.address else 0  # a free one at first, later the same
        return start_nameserver(port=port, secret=self._secret, quiet=False)

    def _ping(self) -> None:
        ping_of(self.address, self._secret)()


def run(settings: dict[str, Any], *, ready: Callable[[], None]) -> None:
    """Run a detached cluster to its end. Call ``ready`` once it can be found.

    Args:
        settings: see `main`.
    """
    stop = StopRequest()
    stop.on_signals()
    secret = secret_of_parent(settings["secret"])
    place = Place(settings["directory"])
    timeout = settings["idle_timeout"]
    pause = _LONGEST_PAUSE_SECONDS
    if timeout is not None:
        pause = min(pause, max(_SHORTEST_PAUSE_SECONDS, timeout / _LOOKS))
    keeper = Keeper(settings["nodes"], settings["max_memory"], secret)
    try:
        keeper.start()
        if stop.requested:
            return
        written = Written(
            place,
            address=keeper.address,
            nodes=settings["nodes"],
            max_memory=settings["max_memory"],
            idle_timeout=timeout,
        )
        try:
            _report(f"A cluster is ready at {keeper.address}. Nodes: {settings['nodes']}.")
            ready()
            timer = IdleTimer(timeout, written.has_clients, written.shut_out, keeper.clientless)
            with Log(place.log) as log:
                look_at = now() + pause
                while not stop.requested:
                    # With a short timeout, as a signal that reaches another thread does not end a wait.
                    stop.wait(min(pause, _POLL_SECONDS))
                    if now() < look_at:
                        continue
                    look_at = now() + pause
                    log.shorten()
                    written.touch()
                    if timer.is_over():
                        _report(f"There was no client for {timeout:g} s, so the cluster ends.")
                        break
        finally:
            written.withdraw()
    finally:
        keeper.end()
        _report("The cluster has ended.")


def _report(text: str) -> None:
    report(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}")


def main(argv: list[str]) -> NoReturn:
    """Run a keeper. `pyrocache.detached.connect` starts it, with `start_detached`.

    Args:
        argv: the settings in JSON: ``nodes``, ``max_memory``, ``idle_timeout``, the ``directory`` of the files, the
            ``secret`` (`Secret.for_child`), and ``lock``, the descriptor of the lock of `Place.starting`; and the
            descriptor that leads to the starter, which gets the `answer`.
    """
    starter = int(argv[1])
    settings = json.loads(argv[0])
    lock = settings["lock"]
    detach((starter, lock))

    started = False

    def ready() -> None:
        nonlocal started
        started = True
        os.close(lock)  # first: who has the answer may start a cluster
        answer(starter, {"pid": os.getpid()})
        os.close(starter)

    try:
        run(settings, ready=ready)
    except PyroCacheError as error:
        _report(str(error))
        if not started:
            answer(starter, {"error": str(error)})
        sys.exit(1)
    sys.exit(0)
