"""`Node`: the life cycle of a node: join, serve, keep the lease, leave.

Does not read settings or signals: see `pyrocache.node.process`.

Thread safety: the main thread runs the life cycle, and the I/O thread in the event loop serves requests. They share
the `CacheNode`, whose entries are guarded by the lock of its request guard.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pyrocache import __version__
from pyrocache.cluster.routing import Member
from pyrocache.config import REQUEST_OVERHEAD_BYTES, NodeConfig, format_address
from pyrocache.errors import ConfigurationError, NameServerUnavailable, PyroCacheError
from pyrocache.net.call_protocol import knowing
from pyrocache.net.connection import Connection
from pyrocache.net.directory import PREFIX, Directory
from pyrocache.node.membership import NodeMembership
from pyrocache.node.peers import Peers
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.eviction import POLICIES
from pyrocache.node.store.store import Store
from pyrocache.protocol.commands import COMMANDS
from pyrocache.protocol.handshake import PROTOCOL, Greeting, Strangers
from pyrocache.protocol.limits import BATCH_BYTES
from pyrocache.protocol.request_id import milliseconds
from pyrocache.runtime.clock import now
from pyrocache.runtime.descriptors import DescriptorReserve
from pyrocache.runtime.secret import Secret
from pyrocache.runtime.shared_clock import SharedClock
from pyrocache.runtime.shortage import explain, explained
from pyrocache.runtime.stop_request import StopRequest
from pyrocache.server import tcp_socket, unix_socket
from pyrocache.server.admission import admission, load_again, server_certificate
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop

log = logging.getLogger("pyrocache.node")

_NUDGE_PAUSE_SECONDS = 0.02
_DROP_SECONDS = 0.1  # of dropping outdated entries, until the lease is renewed again
_JOIN_PAUSE_SECONDS = 0.005


class Node:
    """One node: its store, its server and its entry in the name server.

    Args:
        config: the settings.
        directory: the name server.
        peers: probes other nodes; None for a `Peers` with default settings.
        clock: seconds (`runtime.clock`).
        entry_clock: the clock of TTLs, leases and locks, if tests can move it.
        reserve: descriptors for the connections of ``directory`` and ``peers``; the node refills it.
        secret: what callers and other nodes must prove that they know.

    Attributes:
        member: the node as the view has it.
        membership: its place in the cluster.
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
        clock: Callable[[], float] = now,
        entry_clock: SharedClock | None = None,
        reserve: DescriptorReserve | None = None,
        *,
        secret: Secret,
    ) -> None:
        self.config = config
        self._secret = secret
        self.stop_request = StopRequest()
        self._reserve = reserve if reserve is not None else DescriptorReserve()
        self._peers = peers or Peers(
            connect=partial(self._reserve.opening, Connection), caller=knowing(secret, tls=config.tls)
        )
        self._clock = clock
        self.membership = NodeMembership(config, directory, self._peers, clock)
        with explained("The node cannot start"):
            listeners, socket_path = [_listen(config)], ""
        incarnation = secrets.token_hex(8)
        local = unix_socket.listen(incarnation)
        if local is not None:
            listeners.append(local[0])
            socket_path = local[1]
        host, port = tcp_socket.registered_address(listeners[0], config.host, config.advertise)
        unnamed = Member(f"{PREFIX}1", host, port, config.weight, incarnation, socket_path, zone=config.zone)
        bound = None
        self._advertised: Collection[str] = ()
        if config.advertise is not None:
            address, bound_port = listeners[0].getsockname()[:2]
            bound = replace(unnamed, host=address, port=bound_port)
            self._advertised = tcp_socket.dialled_addresses(host, port)
        try:
            self.member = self.membership.join(unnamed, bound)
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
        entry_time = entry_clock or now
        policy = POLICIES[config.eviction]()
        store = Store(config.max_memory, policy=policy, clock=entry_time)
        self.cache_node = CacheNode(
            store,
            RequestGuard(self.member.name, incarnation, on_stale=self._rumour),
            max_value_bytes=config.max_value_bytes,
            gauges=self._gauges,
            on_reset=lambda: self._dispatcher.latencies.reset(),  # a lambda: the dispatcher is made below
            observe=lambda wrap: self._dispatcher.observe(wrap),
            clock=entry_time,
        )
        self._dispatcher = Dispatcher(
            self.member.name,
            self.cache_node,
            COMMANDS,
            greeting=self._greeting,
            max_frame_bytes=max(config.max_value_bytes, BATCH_BYTES) + REQUEST_OVERHEAD_BYTES,
            admission=admission(
                self._secret, Strangers.TRUSTED if config.open else Strangers.REFUSED, self._advertised
            ),
        )
        ahead = {"ahead": entry_clock.ahead} if entry_clock else {}
        self._certificate = server_certificate(config.tls)
        self._event_loop = EventLoop(
            listeners,
            self._dispatcher,
            config,
            self.cache_node.sweep,
            on_lapse=self._lapse,
            reserve=self._reserve,
            certificate=self._certificate,
            **ahead,
        )
        self._io_thread = threading.Thread(target=self._event_loop.run, name="pyrocache-io", daemon=True)
        self.membership.attach(self.cache_node.ownership)

    def run(self, ready: Callable[[Member], None]) -> None:
        """Serve until ``stop_request`` is made. Call ``ready`` once the node answers for all its keys.

        Raises:
            NameTaken: the node is no longer a member.
            PyroCacheError: members that do not answer hold the join up.
        """
        try:
            with explained("The node cannot start"):
                self._io_thread.start()
            began_at = self._clock()
            while not self.stop_request.requested:
                self._tick()
                if self.membership.settled and self.membership.has_lease:
                    break
                self.membership.check_held_up(began_at)
                self.stop_request.wait(_JOIN_PAUSE_SECONDS)
            ready(self.member)
            while not self.stop_request.requested:
                if not self._io_thread.is_alive():
                    raise PyroCacheError(f"{self.member.name}: the I/O thread has ended; see the log.")
                soon = self.membership.in_transition
                pause = _NUDGE_PAUSE_SECONDS if soon else self.config.lease_seconds / 4
                if not self.cache_node.ownership.drop_outdated(min(pause, _DROP_SECONDS)):
                    pause = 0.0
                if self.stop_request.wait(pause):
                    time.sleep(_NUDGE_PAUSE_SECONDS)  # callers with a newer view often arrive together
                self._tick()
        finally:
            self._leave()

    def withdraw(self) -> None:
        """Undo the registration of a node that does not get to run, and remove its Unix socket."""
        with contextlib.suppress(NameServerUnavailable):
            self.membership.leave()
        unix_socket.remove(self.member.socket_path)

    def _tick(self) -> None:
        self.membership.tick()
        self._event_loop.lease_until = self.membership.serving_until
        self._reserve.refill()
        self._secret.current()  # reads the file again, which the I/O thread must not do
        if self.stop_request.reload:
            self.stop_request.reload = False
            load_again(self._certificate, self.member.name)

    def _lapse(self) -> None:
        self.cache_node.ownership.expire(now())  # by then, the main thread may have renewed the lease

    def _rumour(self, number: int) -> None:
        self.membership.rumour(number)
        self.stop_request.wake()

    def _greeting(self) -> Greeting:
        member = self.member
        return Greeting(
            member.name, member.incarnation, self.config.max_value_bytes, PROTOCOL, member.cluster
        )._replace(clock_ms=milliseconds(now()) or 1)

    def _leave(self) -> None:
        """Remove this node from the view, redirect clients for a moment, then stop serving."""
        view = self.membership.leave() if self._io_thread.is_alive() else None
        if (
            view is None
        ):  # stop serving before the listeners close: a refused connection means that this node is gone
            self.cache_node.ownership.lapse(True)
        if view is not None and view.members:
            with contextlib.suppress(RuntimeError):  # no thread can be started: their next query tells them
                threading.Thread(target=self.membership.tell, args=(view,), daemon=True).start()
            time.sleep(self.config.drain_seconds)
        self._reserve.close()
        unix_socket.remove(self.member.socket_path)  # first, so that no client finds a dead path
        self._event_loop.shutdown()
        if self._io_thread.is_alive():
            self._io_thread.join(timeout=2.0)

    def _lease_left(self) -> float:
        """Return for how many seconds the node may serve; a lease without an end counts as a new one."""
        return max(0.0, min(self.membership.serving_until - now(), self.config.lease_seconds))

    def _gauges(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "view": self.membership.view.number,
            "lease_seconds": self._lease_left(),
            "silent": " ".join(self.membership.silent),
            "connections": len(self._event_loop.connections),
            "clientless_seconds": self._event_loop.clientless_seconds(),
            **{f"handshakes_{kind}": count for kind, count in self._event_loop.unproven.counts.items()},
            "rss_bytes": _resident_bytes(),
            "latencies": self._dispatcher.latencies.as_lists(),
        }


def _listen(config: NodeConfig) -> socket.socket:
    try:
        return tcp_socket.listen(config.host, config.port)
    except OSError as error:
        if explain(error):  # another address would not help
            raise
        problem = f"Cannot listen on {format_address(config.host, config.port)} ({error.strerror})"
        if error.errno == errno.EADDRINUSE:  # perhaps not for long: a supervisor may try again
            raise PyroCacheError(f"{problem}: give another --port.") from error
        remedy = tcp_socket.remedy(error) or "give another --host or --port"
        raise ConfigurationError(f"{problem}: {remedy}.") from error


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:  # no /proc: use the peak
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
