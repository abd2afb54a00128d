"""The faults. Each is a function that does its harm once, waits, and mends it; a run repeats it until its time is over.

Thread safety: as `Scene`; a function runs in one thread.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import Pyro5.api

from pyrocache import PyroCacheClient, PyroCacheError
from pyrocache.cluster.routing import Member
from pyrocache.net.directory import CLUSTER
from tests.chaos.cutter import REPLY_PARTS, REQUEST_PARTS
from tests.chaos.history import GET, OK, SET, Recorder
from tests.chaos.load import REGISTERS, label
from tests.chaos.scene import AT_A_PORT, LEASE_SECONDS, LISTED, TIMEOUT_SECONDS, Scene
from tests.support.secrets import directory_of
from tests.support.stock import name_server_proxy

_SILENT_MEMBERS = 16
_PADDING = "." * 900_000  # below 1 MiB, a node reads it in pieces, and serves others between them
_FOREIGN_KEYS = 60
_NEVER = 1e6


@dataclass(frozen=True)
class Fault:
    """One kind of harm.

    Attributes:
        about: one line for ``--list``.
        once: does it once.
        proxied: half of the load goes through the proxy.
        forks: the load forks.
        renew_seconds: how often users begin new clients: seldom where those that end would free descriptors, never
            where a new one cannot tell which cluster is meant.
    """

    about: str
    once: Callable[[Scene], None]
    proxied: bool = False
    forks: bool = False
    renew_seconds: float = 1.0


# Nodes -------------------------------------------------------------------------------------------------------


def _kill(scene: Scene) -> None:
    with scene.claimed() as node:
        scene.kill(node)
        scene.wait(scene.random.uniform(0.0, 1.0))
        scene.restart(node)
    scene.wait(1.0)


def _stop(scene: Scene, seconds: float) -> None:
    with scene.claimed() as node:
        scene.pause(node)
        scene.wait(seconds)
        scene.resume(node)
    scene.wait(1.5)


def _join_and_leave(scene: Scene) -> None:
    scene.leave(scene.join())


def _take_over(scene: Scene) -> None:
    with scene.claimed() as node:
        dead = scene.random.random() < 0.5
        harm = scene.kill if dead else scene.pause
        harm(node)
        old = node._process
        scene.take_over(node)
        old.signal(signal.SIGCONT)
        scene.wait(1.5)


def _late_bytes(scene: Scene) -> None:
    """Let a large write wait in a stopped node's buffer while its caller gives up and a small one overtakes it."""
    slow, quick = scene.recorder("slow"), scene.recorder("quick")
    with scene.claimed() as node, _tcp_client(scene) as writer, _tcp_client(scene) as other:
        key = scene.random.choice(sorted(scene.keys_of(node.name) & set(REGISTERS)))
        with scene.nameserver_lock:  # new clients have to find this cluster
            for number in range(3):  # lets the system's buffers grow
                _set(slow, writer, key, number, _PADDING)
                _get(quick, other, key)
        scene.pause(node)
        stopped_at = time.monotonic()
        _set(slow, writer, key, 3, _PADDING)
        time.sleep(max(0.0, stopped_at + TIMEOUT_SECONDS + LEASE_SECONDS - time.monotonic()))
        newer = threading.Thread(target=_set, args=(quick, other, key, 4, ""))
        newer.start()
        time.sleep(0.1)
        scene.resume(node)
        newer.join()
        for _ in range(20):
            _get(quick, other, key)
            time.sleep(0.01)


def _tcp_client(scene: Scene) -> PyroCacheClient:
    return PyroCacheClient(scene.cluster.nameserver, timeout=TIMEOUT_SECONDS, transport="tcp")


def _set(
    record: Recorder, cache: PyroCacheClient, key: str, number: int, padding: str = "", of: str = ""
) -> None:
    value = f"{record.client}:{number}"
    stored = f"{value}|{padding}"
    record.call(SET, [of + key], lambda: cache.set(key, stored), lambda _, __: (OK, value), value=value)


def _get(record: Recorder, cache: PyroCacheClient, key: str, of: str = "") -> None:
    record.call(GET, [of + key], lambda: cache.get(key), lambda found, _: (OK, label(found)))


# The name server ---------------------------------------------------------------------------------------------


def _kill_nameserver(scene: Scene) -> None:
    with scene.nameserver_lock:
        scene.kill_nameserver()
        scene.wait(scene.random.uniform(0.5, 2.5))
        scene.start_nameserver()
    scene.wait(2.0)


def _wipe_nameserver(scene: Scene) -> None:
    with scene.nameserver_lock:
        scene.start_nameserver()
    scene.wait(scene.random.uniform(0.5, 3.0))


def _stop_nameserver(scene: Scene, seconds: float, running: float) -> None:
    with scene.nameserver_lock:
        process = scene.nameserver_process
        process.pause()
        scene.note("stop the name server")
        scene.wait(seconds)
        process.signal(signal.SIGCONT)
    scene.wait(running)


def _wipe_and_join(scene: Scene) -> None:
    with scene.nameserver_lock:
        scene.start_nameserver()
        node = scene.join()
    scene.wait(1.5)
    scene.leave(node)


def _stop_and_wipe(scene: Scene) -> None:
    with scene.claimed() as node:
        scene.pause(node)
        with scene.nameserver_lock:
            scene.start_nameserver()
        scene.wait(1.5 * LEASE_SECONDS)
        scene.resume(node)
        scene.wait(2.0)


def _silent_members(scene: Scene) -> None:
    """Have nodes of the name server's list fall silent, and a node join just after they were struck out."""
    directory = directory_of(scene.cluster.nameserver)
    with contextlib.ExitStack() as stack, scene.losing_all("silent members come and go"):
        members = []
        for number in range(100, 100 + _SILENT_MEMBERS):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listener.getsockname()[1]
            members.append(Member(f"cache.node.{number}", "127.0.0.1", port, 0.01, f"{number:016x}"))
        with contextlib.suppress(PyroCacheError):  # the name server may be away
            for member in members:
                directory.register(member)
            scene.wait(1.5)
            for member in members:
                directory.remove(member)
        node = scene.join()
        scene.wait(2.0)
    scene.leave(node)


def _other_cluster(scene: Scene) -> None:
    """Have a node of another cluster come up under the name and at the port of a dead one."""
    with scene.claimed() as node:
        scene.kill(node)
        with scene.other_cluster(node.name, int(node.address.rpartition(":")[2])) as address:
            _use_other_cluster(scene, address, AT_A_PORT)
    scene.wait(1.0)


def _list_other_cluster(scene: Scene) -> None:
    """Have the name server list another cluster in place of this one, under the same names."""
    with scene.nameserver_lock, scene.other_cluster() as address:
        with Pyro5.api.Proxy(f"PYRO:Pyro.NameServer@{address}") as other:
            entries = other.list(prefix="cache.", return_metadata=True)
        with name_server_proxy(scene.cluster.nameserver) as ours:
            # The id of the cluster first: nodes of another one register no more. Names of live ones must be removed.
            for name in sorted(entries, key=lambda name: name != CLUSTER):
                ours.remove(name)
                uri, metadata = entries[name]
                ours.register(name, uri, False, metadata)
        scene.note("the name server lists the other cluster")
        _use_other_cluster(scene, address, LISTED)
        scene.start_nameserver()
    scene.wait(2.0)


def _use_other_cluster(scene: Scene, address: str, of: str) -> None:
    """Write there, and read that again; ``of`` is before the names of the keys in the history."""
    record = scene.recorder("other")
    keys = scene.random.sample(REGISTERS, _FOREIGN_KEYS)
    with PyroCacheClient(address, timeout=TIMEOUT_SECONDS) as cache:
        for number, key in enumerate(keys):
            _set(record, cache, key, number, of=of)
        scene.wait(2.0)
        for key in keys:
            _get(record, cache, key, of=of)


# Connections and descriptors ---------------------------------------------------------------------------------


def _cut(scene: Scene, parts: tuple[str, ...]) -> None:
    scene.cutter.parts = tuple({*scene.cutter.parts, *parts})
    scene.wait(1.0)


def _node_without_descriptors(scene: Scene) -> None:
    with scene.claimed() as node, scene.without_descriptors([node.pid]):
        scene.wait(2.0)
    scene.wait(1.0)


def _join_without_descriptors(scene: Scene) -> None:
    with scene.claimed() as node, scene.without_descriptors([node.pid]):
        joined = scene.join()
        scene.wait(4.0)
    scene.leave(joined)


def _clients_without_descriptors(scene: Scene) -> None:
    with scene.without_descriptors(scene.load_pids):
        scene.wait(1.0)
    scene.wait(1.0)


def _nothing(scene: Scene) -> None:
    scene.wait(1.0)


FAULTS = {
    "none": Fault("nothing; the load alone", _nothing),
    "kill": Fault("a node is killed and started again", _kill),
    "stop-short": Fault("a node is stopped for half a lease", partial(_stop, seconds=0.5 * LEASE_SECONDS)),
    "stop": Fault("a node is stopped for a lease", partial(_stop, seconds=LEASE_SECONDS)),
    "stop-long": Fault("a node is stopped for three leases", partial(_stop, seconds=3 * LEASE_SECONDS)),
    "late-bytes": Fault("a stopped node gets a write whose caller has given up", _late_bytes),
    "joins": Fault("nodes join and leave back to back", _join_and_leave),
    "take-over": Fault("a node takes the name of one that is dead or stopped", _take_over),
    "ns-kill": Fault("the name server is killed, and back, empty, after a while", _kill_nameserver),
    "ns-wipe": Fault("the name server is replaced by an empty one", _wipe_nameserver),
    "ns-stop": Fault("the name server is stopped", partial(_stop_nameserver, seconds=3.0, running=2.0)),
    "ns-slow": Fault(
        "the name server runs a tenth of the time", partial(_stop_nameserver, seconds=0.27, running=0.03)
    ),
    "wipe-join": Fault("a node joins just after the name server was wiped", _wipe_and_join),
    "stop-wipe": Fault("the name server is wiped while a node is stopped", _stop_and_wipe),
    "silent-join": Fault("a node joins just after 16 silent members were struck out", _silent_members),
    "foreign-node": Fault("another cluster's node takes the port of a dead one", _other_cluster),
    "foreign-list": Fault("the name server lists another cluster", _list_other_cluster, renew_seconds=_NEVER),
    "cut-request": Fault("connections end within requests", partial(_cut, parts=REQUEST_PARTS), proxied=True),
    "cut-reply": Fault(
        "connections end before or within replies", partial(_cut, parts=REPLY_PARTS), proxied=True
    ),
    "fds-node": Fault("a node has no free descriptors", _node_without_descriptors),
    "fds-join": Fault(
        "a node joins while another has no free descriptors", _join_without_descriptors, renew_seconds=4.0
    ),
    "fds-client": Fault("the clients have no free descriptors", _clients_without_descriptors),
    "fork": Fault("clients fork in the middle of calls", _nothing, forks=True),
}
"""Every fault, by its name."""
