"""`get` of 100 bytes by 8 client processes, with and without 1000 idle connections of other clients.

One node, TCP. With and without take turns; the ratio is that of calls per second with them to calls without.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess

from benchmarks import servers
from benchmarks.clients import pyrocache_client
from benchmarks.crew import Crew, Limit, Slice
from benchmarks.field import OURS, Contender
from benchmarks.results import Row
from benchmarks.rounds import figures, ratios, rotated
from benchmarks.servers import FORKSERVER
from benchmarks.session import Session
from benchmarks.workloads import filling, single_calls

TITLE = "Idle connections"

TABLE = "1000 idle connections"
ALONE = "pyrocache, 8 clients alone"

_IDLE = 1000
_HOLDERS = 4
_BUSY = 8
_KEYS = 1000
_SIZE = 100
_SECONDS = 30.0


def measure(session: Session) -> list[Row]:
    """Run the case."""
    limit = Limit(seconds=session.slice_seconds)
    slices: dict[bool, list[Slice]] = {True: [], False: []}
    rounds = session.choose(16, 4)
    with servers.pyrocache_cluster(1, "1GiB") as cluster:
        ours = Contender(OURS, "TCP", cluster.pids, partial(pyrocache_client, cluster.address, "TCP"))
        with Crew([ours], processes=_BUSY) as crew:
            crew.fill(partial(filling, "k", _KEYS, _SIZE))
            crew.prepare("get", partial(single_calls, "get", "k", _KEYS, _SIZE))
            crew.run(ours, "get", limit)
            for number in range(rounds):
                session.progress(f"connections: round {number + 1} of {rounds}")
                for beside_idle in rotated([True, False], number):
                    with _idle_clients(cluster.address, _IDLE if beside_idle else 0):
                        slices[beside_idle].append(crew.run(ours, "get", limit))
    with_idle, alone = slices[True], slices[False]
    ratio = ratios([one.calls_per_second for one in with_idle], [one.calls_per_second for one in alone])
    return [
        Row("connections", TABLE, "get", OURS, figures(with_idle) | ratio),
        Row("connections", TABLE, "get", ALONE, figures(alone)),
    ]


@contextmanager
def _idle_clients(nameserver: str, count: int) -> Iterator[None]:
    """``count`` open connections, past their handshake, in a few processes."""
    with ExitStack() as stack:
        holders = []
        for _ in range(_HOLDERS if count else 0):
            ours, theirs = FORKSERVER.Pipe()
            arguments = (theirs, nameserver, count // _HOLDERS)
            holder = FORKSERVER.Process(target=_hold, args=arguments, daemon=True)
            holder.start()
            theirs.close()
            stack.callback(_end, holder, ours)
            holders.append(ours)
        for ours in holders:
            if not ours.poll(_SECONDS) or ours.recv() != count // _HOLDERS:
                raise RuntimeError("the idle clients could not connect")
        yield


def _end(holder: BaseProcess, pipe: Pipe) -> None:
    pipe.close()
    holder.join(_SECONDS)
    holder.kill()
    holder.join()


def _hold(parent: Pipe, nameserver: str, count: int) -> None:
    from pyrocache import PyroCacheClient
    from pyrocache.net.call_protocol import knowing
    from pyrocache.net.connection import Connection
    from pyrocache.net.deadline import Deadline
    from pyrocache.runtime.secret import find_secret

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    with PyroCacheClient(nameserver, transport="tcp") as client:
        (node,) = client.nodes()
    caller = knowing(find_secret())
    connections = []
    for _ in range(count):  # one after the other: a node limits those that have not proved the secret yet
        connections.append(Connection(node, "tcp", caller))
        connections[-1].finish_opening(Deadline(_SECONDS))
    parent.send(len(connections))
    parent.poll(None)
    for connection in connections:
        connection.close()
