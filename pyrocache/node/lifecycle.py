"""`Node`: the life cycle of a node: register, serve, be admitted, send heartbeats, leave.

Does not read settings or signals: see `pyrocache.node.process`.

Thread safety: the main thread runs the life cycle, and the I/O thread in the event loop serves requests. They share
the `CacheNode`, whose entries are guarded by the lock of its request guard.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import EMPTY, next_view
from pyrocache.config import REQUEST_OVERHEAD_BYTES, NodeConfig
from pyrocache.errors import ConfigurationError, NameServerUnavailable, NameTaken, PyroCacheError
from pyrocache.net.directory import PREFIX, Directory
from pyrocache.node.peers import Peers, PeerState
from pyrocache.node.registration import register
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import PartitionState, RequestGuard
from pyrocache.node.store.eviction import POLICIES
from pyrocache.node.store.store import Store
from pyrocache.protocol.commands import COMMANDS
from pyrocache.protocol.handshake import PROTOCOL, Greeting
from pyrocache.protocol.limits import BATCH_BYTES
from pyrocache.protocol.request_id import milliseconds
from pyrocache.runtime import clock
from pyrocache.runtime.shared_clock import SharedClock
from pyrocache.runtime.shortage import explain, explained
from pyrocache.runtime.stop_request import StopRequest
from pyrocache.server import tcp_socket, unix_socket
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop

log = logging.getLogger("pyrocache.node")

_NUDGE_PAUSE_SECONDS = 0.02
_ADMISSION_SECONDS = 3.0
_LEAVE_SECONDS = 1.0
_NAME_SERVER_SECONDS = 2.0


class Node:
    """One node: its store, its server and its entry in the name server.

    Args:
        config: the settings.
        directory: the name server.
        peers: probes other nodes; None for a `Peers` with default settings.
        clock: monotonic seconds.
        entry_clock: the clock of TTLs, leases and locks, if tests can move it.

    Attributes:
        member: the entry of the node in the name server.
        cache_node: the remote object.
        stop_request: ends `run`.

    Raises:
        NameTaken: a live node has the configured name.
    """

    def __init__(
        self,
        config: NodeConfig,
        directory: Directory,
        peers: Peers | None = None,
        clock: Callable[[], float] = time.monotonic,
        entry_clock: SharedClock | None = None,
    ) -> None:
        self.config = config
        self.stop_request = StopRequest()
        self._directory = directory
        self._peers = Peers() if peers is None else peers
        self._clock = clock
        self._view = EMPTY
        self._name_server_unreachable = False
        with explained("The node cannot start"):
            listeners, socket_path = [_listen(config)], ""
        incarnation = secrets.token_hex(8)
        local = unix_socket.listen(incarnation)
        if local is not None:
            listeners.append(local[0])
            socket_path = local[1]
        address, port = listeners[0].getsockname()[:2]
        # Clients must not resolve `localhost` themselves: it may have another address that this node does not serve.
        host = config.host if config.host != "localhost" else address
        unnamed = Member(f"{PREFIX}1", host, port, config.weight, incarnation, socket_path)
        try:
            self.member = register(config, directory, self._peers, unnamed)
        except BaseException:
            unix_socket.remove(socket_path)
            raise
        try:
            with explained("The node cannot start"):
                self._build(listeners, incarnation, entry_clock)
        except BaseException:
            self.withdraw()
            raise

    def _build(
        self, listeners: Sequence[socket.socket], incarnation: str, entry_clock: SharedClock | None
    ) -> None:
        config = self.config
        # Versions begin at the current time, so that no version of an earlier start of this node is reused.
        now = entry_clock or time.monotonic
        policy = POLICIES[config.eviction]()
        store = Store(config.max_memory, policy=policy, versions=time.time_ns(), clock=now)
        self.cache_node = CacheNode(
            store,
            RequestGuard(self.member.name, incarnation, on_stale=self.stop_request.wake),
            max_value_bytes=config.max_value_bytes,
            gauges=self._gauges,
            on_reset=lambda: self._dispatcher.latencies.reset(),  # a lambda: the dispatcher is made below
            clock=now,
        )
        self._dispatcher = Dispatcher(
            self.member.name,
            self.cache_node,
            COMMANDS,
            greeting=self._greeting,
            max_frame_bytes=max(config.max_value_bytes, BATCH_BYTES) + REQUEST_OVERHEAD_BYTES,
        )
        ahead = {"ahead": entry_clock.ahead} if entry_clock else {}
        self._event_loop = EventLoop(listeners, self._dispatcher, config, self.cache_node.sweep, **ahead)
        self._io_thread = threading.Thread(target=self._event_loop.run, name="pyrocache-io", daemon=True)

    def run(self, ready: Callable[[Member], None]) -> None:
        """Serve until ``stop_request`` is made. Call ``ready`` once the node can be reached.

        Raises:
            NameTaken: another live node has registered under the same name.
        """
        try:
            self.cache_node.ownership.set_state(PartitionState.LOADING)
            with explained("The node cannot start"):
                self._io_thread.start()
            self._be_admitted()
            ready(self.member)
            while not self.stop_request.requested:
                if not self._io_thread.is_alive():
                    raise PyroCacheError(f"{self.member.name}: the I/O thread has ended; see the log.")
                self.heartbeat()
                if self.stop_request.wait(self.config.heartbeat_seconds):
                    time.sleep(_NUDGE_PAUSE_SECONDS)  # callers with a newer view often arrive together
        finally:
            self._leave()

    def withdraw(self) -> None:
        """Remove the registration and the Unix socket of a node that does not get to run."""
        with contextlib.suppress(NameServerUnavailable):
            self._directory.remove(self.member, timeout=_LEAVE_SECONDS)
        unix_socket.remove(self.member.socket_path)

    def heartbeat(self) -> None:
        """Query the name server: check that this node is registered, and adopt the current cluster view.

        Raises:
            NameTaken: see `run`.
        """
        try:
            listed = {member.name: member for member in self._directory.members(_NAME_SERVER_SECONDS)}
            entry = listed.get(self.member.name)
            if entry is None or entry.incarnation != self.member.incarnation:
                self._register_again(entry)
        except NameServerUnavailable as error:
            if not self._name_server_unreachable:
                log.warning("%s: serving on without the name server. %s", self.member.name, error)
            self._name_server_unreachable = True
            return
        if self._name_server_unreachable:
            log.warning("%s: the name server is back.", self.member.name)
        self._name_server_unreachable = False
        listed[self.member.name] = self.member  # the listing may be older than `_register_again`
        view = next_view(self._view, listed.values(), self._serving)
        if view != self._view:
            self._view = view
            self.cache_node.ownership.adopt(view)

    def _register_again(self, entry: Member | None) -> None:
        """Register again: the name server was restarted, or lists another node under this one's name."""
        if entry is not None:
            if self._peers.states([entry]) != [PeerState.GONE]:  # a silent node may come back
                raise NameTaken(f"{self.member.name} is another live node by now; this one ends.")
            self._directory.remove(entry)
        if False in self._peers.know(self._others(), self.member):
            # Another node considered this one dead, for example while it was suspended, and serves its keys.
            self.cache_node.ownership.forget_everything()
        self._directory.add(self.member)
        log.warning("%s: registered again.", self.member.name)

    def _be_admitted(self) -> None:
        """Wait until every other node that answers has this one in its view, but no longer than about 3 seconds.

        Then start to serve.
        """
        give_up_at = self._clock() + _ADMISSION_SECONDS
        waiting = {member.name for member in self._directory.members()} - {self.member.name}
        while not self.stop_request.requested:
            self.heartbeat()
            # The probe carries the view id, so a node with an older view queries the name server.
            asked = [member for member in self._others() if member.name in waiting]
            known = self._peers.know(asked, self.member, self._view.id)
            waiting = {member.name for member, knows in zip(asked, known, strict=True) if knows is False}
            if (self._view.members and not waiting) or self._clock() > give_up_at:
                break
            time.sleep(_NUDGE_PAUSE_SECONDS)
        self.cache_node.ownership.set_state(PartitionState.SERVING)

    def _greeting(self) -> Greeting:
        member = self.member
        return Greeting(
            member.name, member.incarnation, self.config.max_value_bytes, PROTOCOL, member.cluster
        )._replace(clock_ms=milliseconds(clock.now()) or 1)

    def _serving(self, members: Sequence[Member]) -> list[Member]:
        states = self._peers.states(members)
        return [m for m, state in zip(members, states, strict=True) if state is PeerState.SERVING]

    def _others(self) -> list[Member]:
        return [member for member in self._view.members if member.name != self.member.name]

    def _leave(self) -> None:
        """Remove this node from the name server, redirect clients for a moment, then stop serving."""
        with contextlib.suppress(NameServerUnavailable):
            if self._directory.remove(self.member, timeout=_LEAVE_SECONDS) and self._io_thread.is_alive():
                others = ClusterView(self._others())
                self.cache_node.ownership.redirect(others)
                # A ping with this view makes the other nodes query the name server.
                ask_others = partial(self._peers.states, others.members, others.id)
                with contextlib.suppress(
                    RuntimeError
                ):  # no thread can be started: their heartbeats tell them
                    threading.Thread(target=ask_others, daemon=True).start()
                if others.members:
                    time.sleep(self.config.drain_seconds)
        unix_socket.remove(self.member.socket_path)  # first, so that no client finds a dead path
        self._event_loop.shutdown()
        if self._io_thread.is_alive():
            self._io_thread.join(timeout=2.0)

    def _gauges(self) -> dict[str, Any]:
        return {
            "connections": len(self._event_loop.connections),
            "rss_bytes": _resident_bytes(),
            "latencies": self._dispatcher.latencies.as_lists(),
        }


def _listen(config: NodeConfig) -> socket.socket:
    try:
        return tcp_socket.listen(config.host, config.port)
    except OSError as error:
        if explain(error):  # another address would not help
            raise
        raise ConfigurationError(
            f"Cannot listen on {config.host} port {config.port} ({error.strerror}): give another --host or port."
        ) from error


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:  # no /proc: use the peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
