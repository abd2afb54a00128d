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

from pyrocache import PyroCacheClient, PyroCacheError
from pyrocache.cluster.routing import Member
from pyrocache.net.directory import NameServerDirectory
from tests.chaos.cutter import REPLY_PARTS, REQUEST_PARTS
from tests.chaos.history import GET, OK, SET, Recorder
from tests.chaos.load import REGISTERS, label
from tests.chaos.scene import LEASE_SECONDS, TIMEOUT_SECONDS, Scene

_SILENT_MEMBERS = 16
_PADDING = "." * 900_000  # below 1 MiB, a node reads it in pieces, and serves others between them
_FOREIGN_KEYS = 60


@dataclass(frozen=True)
class Fault:
    """One kind of harm.

    Attributes:
        about: one line for ``--list``.
        once: does it once.
        proxied: half of the load goes through the proxy.
        forks: the load forks.
    """

    about: str
    once: Callable[[Scene], None]
    proxied: bool = False
    forks: bool = False


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
    if (node := scene.join()) is not None:
        scene.leave(node)


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


def _set(record: Recorder, cache: PyroCacheClient, key: str, number: int, padding: str = "") -> None:
    value = f"{record.client}:{number}"
    record.call(
        SET, [key], lambda: cache.set(key, f"{value}|{padding}"), lambda _, __: (OK, value), value=value
    )


def _get(record: Recorder, cache: PyroCacheClient, key: str) -> None:
    record.call(GET, [key], lambda: cache.get(key), lambda found, _: (OK, label(found)))


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
    if node is not None and [other.name for other in scene.cluster.nodes].count(node.name) == 1:
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
    directory = NameServerDirectory(scene.cluster.nameserver)
    with contextlib.ExitStack() as stack, scene.losing_all("silent members come and go"):
        members = []
        for number in range(100, 100 + _SILENT_MEMBERS):
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = listener.getsockname()[1]
            members.append(Member(f"cache.node.{number}", "127.0.0.1", port, 0.01, f"{number:016x}"))
        with contextlib.suppress(PyroCacheError):  # the name server may be away
            added = [member for member in members if directory.add(member)]
            scene.wait(1.5)
            for member in added:
                directory.remove(member)
        node = scene.join()
        scene.wait(2.0)
    if node is not None:
        scene.leave(node)


def _foreign_node(scene: Scene) -> None:
    """Have a node of another cluster come up at the port of a dead one."""
    record = scene.recorder("foreign")
    with scene.claimed() as node:
        keys = sorted(scene.keys_of(node.name))
        scene.kill(node)
        with scene.foreign_node(node.name, int(node.address.rpartition(":")[2])) as cache:
            for number, key in enumerate(scene.random.sample(keys, min(len(keys), _FOREIGN_KEYS))):
                value = f"{record.client}:{number}"
                _at_foreign(record, SET, key, partial(cache.set, key, value), value)
            scene.wait(2.0)
            for key in keys:
                _at_foreign(record, GET, key, partial(cache.get, key))
    scene.wait(1.0)


def _at_foreign(
    record: Recorder, kind: str, key: str, function: Callable[[], object], value: str | None = None
) -> None:
    record.call(kind, [f"foreign {key}"], function, lambda found, _: (OK, value or label(found)), value=value)


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
    if joined is not None:
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
    "foreign": Fault("another cluster's node takes the port of a dead one", _foreign_node),
    "reply-lost": Fault("connections end before a reply", partial(_cut, parts=("reply",)), proxied=True),
    "cut-request": Fault("connections end within requests", partial(_cut, parts=REQUEST_PARTS), proxied=True),
    "cut-reply": Fault("connections end within replies", partial(_cut, parts=REPLY_PARTS), proxied=True),
    "fds-node": Fault("a node has no free descriptors", _node_without_descriptors),
    "fds-join": Fault("a node joins while another has no free descriptors", _join_without_descriptors),
    "fds-client": Fault("the clients have no free descriptors", _clients_without_descriptors),
    "fork": Fault("clients fork in the middle of calls", _nothing, forks=True),
}
"""Every fault, by its name."""
