"""The life of a node process: register, serve, heartbeat, leave.

The main thread lives that life; the I/O thread in `Transport` serves the data; they meet in `CacheNode`, whose lock
guards the entries. The process ends cleanly on SIGTERM, SIGINT and SIGHUP, and when the process that started it is
gone, which it notices because its standard input ends.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from Pyro5.server import Daemon

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import EMPTY, next_view
from pyrocache.config import NodeConfig
from pyrocache.errors import ConfigurationError, NameServerUnavailable, NameTaken, PyroCacheError
from pyrocache.net.directory import PREFIX, Directory, NameServerDirectory
from pyrocache.node import peers
from pyrocache.node.peers import PeerState
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.store.eviction import POLICIES
from pyrocache.node.store.store import Store
from pyrocache.protocol.limits import BATCH_BYTES, MAX_KEY_BYTES
from pyrocache.runtime.stop_request import StopRequest
from pyrocache.server import unix_socket
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import Transport

log = logging.getLogger("pyrocache.node")

EXIT_REFUSED = 3
"""Exit status of a node that must not be started again: its name is taken, or a setting is wrong."""

_NUDGE_PAUSE_SECONDS = 0.02
_SETTLE_SECONDS = 0.1
_ADMISSION_SECONDS = 3.0
_LEAVE_SECONDS = 1.0
_FRAME_SLACK = 256 * 1024  # as much as the tags of an entry may take, and more


class NodeDaemon(Daemon):  # type: ignore[misc]
    """A Pyro5 daemon whose transport is ours, and whose handshake tells what clients must know."""

    def __init__(self, transport: Transport, greeting: dict[str, Any]) -> None:
        here, there = socket.socketpair()
        super().__init__(connected_socket=here)  # Pyro5's one way to start without a server of its own
        here.close()
        there.close()
        self.transportServer = transport
        self.locationStr = transport.locationStr
        self._greeting = greeting

    def validateHandshake(self, conn: Any, data: Any) -> dict[str, Any]:
        """What a new connection is told about this node."""
        return self._greeting


class Node:
    """One node: its store, its server and its entry in the name server.

    Args:
        config: the settings.
        directory: the name server.
        clock: monotonic seconds.
        probe: asks another node whether it is there.
        knows: asks another node whether a node is in its view.

    Attributes:
        member: its entry in the name server.
        stop_request: ends `run`.
    """

    def __init__(
        self,
        config: NodeConfig,
        directory: Directory,
        *,
        clock: Callable[[], float] = time.monotonic,
        probe: Callable[[Member], PeerState] = peers.probe,
        knows: Callable[..., bool | None] = peers.knows,
    ) -> None:
        self.config = config
        self._directory = directory
        self._clock = clock
        self._probe = probe
        self._knows = knows
        self.stop_request = StopRequest()
        self._view = EMPTY
        self._name_server_away = False
        self._listeners = [_listen(config)]
        incarnation = secrets.token_hex(8)
        local = unix_socket.listen(incarnation)
        socket_path = ""
        if local is not None:
            self._listeners.append(local[0])
            socket_path = local[1]
        try:
            self.member = self._register(incarnation, socket_path)
        except BaseException:
            unix_socket.remove(socket_path)
            raise
        store = Store(
            config.max_memory,
            policy=POLICIES[config.eviction](),
            versions=time.time_ns(),  # one that an earlier start of this node gave says nothing here
        )
        self.cache_node = CacheNode(
            store,
            name=self.member.name,
            incarnation=self.member.incarnation,
            max_value_bytes=config.max_value_bytes,
            gauges=self._gauges,
            on_stale=self.stop_request.wake,
            on_reset=self._reset_latencies,
        )
        self._transport = Transport(self._listeners, config, housekeeping=self.cache_node.sweep)
        greeting = {
            "node": self.member.name,
            "incarnation": self.member.incarnation,
            "max_value_bytes": config.max_value_bytes,
        }
        self._daemon = NodeDaemon(self._transport, greeting)
        self._daemon.register(self.cache_node, self.member.name)
        self._dispatcher = Dispatcher(
            self._daemon,
            cheap=CacheNode.CHEAP,
            waiting=CacheNode.WAITING,
            max_frame_bytes=max(config.max_value_bytes + MAX_KEY_BYTES, BATCH_BYTES) + _FRAME_SLACK,
        )
        self._transport.attach(self._dispatcher)
        self._io_thread = threading.Thread(target=self._daemon.requestLoop, name="pyrocache-io", daemon=True)

    def run(self, ready: Callable[[Member], None]) -> None:
        """Serve until ``stop_request`` is made; ``ready`` is called once the node can be reached.

        Raises:
            NameTaken: another node that is alive has taken this one's name.
        """
        try:
            self.cache_node.set_admitted(False)
            self._io_thread.start()
            self._be_admitted()
            ready(self.member)
            while not self.stop_request.requested:
                if self.stop_request.wait(self.config.heartbeat_seconds) and not self.stop_request.requested:
                    time.sleep(_NUDGE_PAUSE_SECONDS)  # whoever comes next was meant by the same nudge
                if not self._io_thread.is_alive():
                    raise PyroCacheError(f"{self.member.name}: the I/O thread has ended; see the log.")
                if not self.stop_request.requested:
                    self.heartbeat()
        finally:
            self._leave()

    def heartbeat(self) -> None:
        """Look into the name server: is this node entered, and who else is?

        Raises:
            NameTaken: see `run`.
        """
        try:
            listed = self._directory.members(timeout=2.0)
            entry = next((member for member in listed if member.name == self.member.name), None)
            if entry is None or entry.incarnation != self.member.incarnation:
                self._enter_again(entry)
        except NameServerUnavailable as error:
            if not self._name_server_away:
                log.warning("%s: serving on without the name server. %s", self.member.name, error)
            self._name_server_away = True
            return
        if self._name_server_away:
            log.warning("%s: the name server is back.", self.member.name)
        self._name_server_away = False
        others = [member for member in listed if member.name != self.member.name]
        self._adopt(next_view(self._view, [*others, self.member], self._serving))

    def _enter_again(self, entry: Member | None) -> None:
        """The name server lacks this node (it was restarted) or lists another under its name."""
        if entry is not None:
            if self._probe(entry) is not PeerState.GONE:
                raise NameTaken(f"{self.member.name} is another live node by now; this one ends.")
            self._directory.remove(entry)
        if any(self._knows(peer, self.member) is False for peer in self._peers()):
            # Another node took this one for dead, while it was stopped say, and acts in its place.
            self.cache_node.forget_everything()
        self._directory.add(self.member)
        log.warning("%s: registered again.", self.member.name)

    def _be_admitted(self) -> None:
        """Serve once every other node that answers has this one in its view."""
        give_up_at = self._clock() + _ADMISSION_SECONDS
        waiting = {peer.name for peer in self._directory.members()} - {self.member.name}
        while not self.stop_request.requested:
            self.heartbeat()
            for peer in self._peers():
                if (
                    peer.name in waiting
                    and self._knows(peer, self.member, view_id=self._view.id) is not False
                ):
                    waiting.discard(peer.name)
            admitted = self._view.members and not waiting & {peer.name for peer in self._peers()}
            if admitted or self._clock() > give_up_at:
                break
            time.sleep(_NUDGE_PAUSE_SECONDS)
        self.cache_node.set_admitted(True)

    def _serving(self, members: Sequence[Member]) -> list[Member]:
        return [member for member in members if self._probe(member) is PeerState.SERVING]

    def _adopt(self, view: ClusterView) -> None:
        if view != self._view:
            self._view = view
            self.cache_node.adopt(view)

    def _peers(self) -> list[Member]:
        return [member for member in self._view.members if member.name != self.member.name]

    def _leave(self) -> None:
        """Strike this node out, redirect clients for a moment, then stop serving."""
        try:
            if self._directory.remove(self.member, timeout=_LEAVE_SECONDS) and self._io_thread.is_alive():
                others = ClusterView(self._peers())
                self.cache_node.redirect(others)
                threading.Thread(target=peers.tell_view, args=(others.members, others), daemon=True).start()
                if others.members:
                    time.sleep(self.config.drain_seconds)
        except NameServerUnavailable:
            pass
        unix_socket.remove(self.member.socket_path)
        self._transport.shutdown()
        if self._io_thread.is_alive():
            self._io_thread.join(timeout=2.0)

    def _gauges(self) -> dict[str, Any]:
        return {
            "connections": len(self._transport.connections),
            "rss_bytes": _resident_bytes(),
            "latencies": self._dispatcher.latencies(),
        }

    def _reset_latencies(self) -> None:
        self._dispatcher.reset_latencies()

    # Registration ----------------------------------------------------------------------------------------

    def _register(self, incarnation: str, socket_path: str) -> Member:
        host, port = self._listeners[0].getsockname()[:2]
        me = Member(
            name=self.config.name or f"{PREFIX}1",
            host=self.config.host if self.config.host != "localhost" else host,
            port=port,
            weight=self.config.weight,
            incarnation=incarnation,
            socket_path=socket_path,
        )
        if self.config.name is not None:
            if not self._take(me):
                raise NameTaken(
                    f"{me.name} is held by a live node at the name server {self.config.nameserver}: "
                    "stop that one first, or start this one under another name."
                )
            return me
        while True:
            taken = {m.name: m for m in self._directory.members()}
            number = 1
            while not self._take(me := replace(me, name=f"{PREFIX}{number}"), taken.get(me.name)):
                number += 1
            return me

    def _take(self, me: Member, holder: Member | None = None) -> bool:
        """Enter ``me`` unless a live node has the name; an entry left by a dead one is taken over."""
        if holder is None:
            if self._directory.add(me):
                return True
            holder = next((m for m in self._directory.members() if m.name == me.name), None)
        if holder is not None:
            if self._probe(holder) is not PeerState.GONE:
                return False
            self._directory.remove(holder)
        if not self._directory.add(me):
            return False
        # Two that found the same dead entry may both have struck it out, one of them the other's new one.
        time.sleep(secrets.randbelow(1000) / 1000 * _SETTLE_SECONDS + _SETTLE_SECONDS)
        return any(m.incarnation == me.incarnation for m in self._directory.members())


def _listen(config: NodeConfig) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {config.host} port {config.port} ({error.strerror}): give another --host or port."
        ) from error
    return listener


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:  # no /proc: the peak will do
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _stop_with_parent(stop: Callable[[], None]) -> None:
    """Call ``stop`` when standard input ends: whoever started this process holds its other end."""

    def watch() -> None:
        while True:
            try:
                if not os.read(sys.stdin.fileno(), 1024):
                    break
            except OSError:
                break
        stop()

    threading.Thread(target=watch, name="pyrocache-parent-watch", daemon=True).start()


def main(argv: list[str]) -> NoReturn:
    """Run a node as ``argv[0]``, a `NodeConfig` in JSON, says; prints one line of JSON when ready."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        config = NodeConfig(**json.loads(argv[0]))
        _raise_descriptor_limit()
        # Walking over millions of entries takes long, and nothing that lives long here is in a cycle.
        gc.set_threshold(700, 10, 10_000)
        sys.setswitchinterval(0.001)  # a worker in pure Python must not keep the I/O thread waiting for long
        node = Node(config, NameServerDirectory(config.nameserver))
    except PyroCacheError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_REFUSED if isinstance(error, NameTaken | ConfigurationError) else 1)
    node.stop_request.on_signals()
    _stop_with_parent(node.stop_request.request)
    try:
        node.run(ready=_print_ready)
    except PyroCacheError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_REFUSED if isinstance(error, NameTaken) else 1)
    sys.exit(0)


def _print_ready(member: Member) -> None:
    print(
        json.dumps({"name": member.name, "host": member.host, "port": member.port, "pid": os.getpid()}),
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
