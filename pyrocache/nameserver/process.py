"""The name server process: Pyro5's name server object (`nameserver.names`) on this package's event loop.

``pyrocache nameserver`` calls `serve` in its own process. `main` runs in a child of `LocalCluster` or of
``pyrocache nodes`` (`runtime.child_process`): it takes its settings as JSON, reports when it is ready, and ends with
its parent. It does not answer broadcasts and removes no entries: each node maintains its own entry.
`node.process` is the counterpart for nodes.

Thread safety: the main thread waits for the stop request; another thread runs the event loop.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from Pyro5.core import NAMESERVER_NAME
from Pyro5.errors import PyroError
from Pyro5.nameserver import MemoryStorage, SqlStorage

from pyrocache.config import NameServerConfig, NodeConfig, format_address, is_loopback
from pyrocache.errors import ConfigurationError, OutOfResources, PyroCacheError
from pyrocache.nameserver.holder import is_alive
from pyrocache.nameserver.names import COMMANDS, Names
from pyrocache.nameserver.serpent import SERPENT
from pyrocache.net.call_protocol import knowing
from pyrocache.protocol.handshake import MSGPACK, NAMELESS, PROTOCOL, Greeting, Strangers
from pyrocache.runtime.descriptors import allow_most
from pyrocache.runtime.secret import Secret, secret_of_parent
from pyrocache.runtime.service_manager import ServiceManager
from pyrocache.runtime.shortage import explained
from pyrocache.runtime.start import answer
from pyrocache.runtime.stop_request import StopRequest
from pyrocache.server import tcp_socket
from pyrocache.server.admission import admission, load_again, server_certificate
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop

_POLL_SECONDS = 0.2
_MAX_REQUEST_BYTES = 256 * 1024  # a view of more than a thousand nodes
_LIMITS = NodeConfig(
    max_connections=4096,  # each node keeps one
    max_unproven=250,
    request_seconds=10.0,
    idle_seconds=60.0,
    workers=2,
    max_buffered_bytes=64 * 2**20,
)


def serve(
    config: NameServerConfig,
    *,
    secret: Secret,
    stop: StopRequest,
    ready: Callable[[str], None],
    manager: ServiceManager | None = None,
) -> None:
    """Run a name server until ``stop`` is requested. Call ``ready`` with its ``host:port`` once it can be reached.

    Args:
        secret: what callers must prove that they know, except those that only read, from this host.
        manager: is told that it is alive, or loads its certificate again; None if nobody is to be told.

    Raises:
        ConfigurationError: it cannot be started with these settings.
    """
    manager = manager or ServiceManager({})
    # Python's parser warns of much that is in a body of serpent, and prints each such warning. Anybody can send one.
    warnings.filterwarnings("ignore", module="<unknown>")
    certificate = server_certificate(config.tls)
    names = _names(config, secret)
    listener = _listen(config.host, config.port)
    host, port = tcp_socket.registered_address(listener, config.host, config.advertise)
    address = format_address(host, port)
    advertised = () if config.advertise is None else tcp_socket.dialled_addresses(host, port)
    uri = f"PYRO:{NAMESERVER_NAME}@{address}"
    names.register(NAMESERVER_NAME, uri, metadata={"class:Pyro5.nameserver.NameServer"})
    dispatcher = Dispatcher(
        NAMESERVER_NAME,
        names,
        COMMANDS,
        greeting=lambda: Greeting(protocol=PROTOCOL),
        max_frame_bytes=_MAX_REQUEST_BYTES,
        serializers=(MSGPACK, SERPENT),
        admission=admission(secret, _strangers(config, host), advertised),
    )
    allow_most()
    with explained("The name server cannot start"):
        loop = EventLoop([listener], dispatcher, _LIMITS, certificate=certificate)
        thread = threading.Thread(target=loop.run, name="pyrocache-nameserver", daemon=True)
        thread.start()
    try:
        ready(address)
        # With a timeout, as a signal that reaches another thread does not end a wait.
        while not stop.requested:
            stop.wait(_POLL_SECONDS)
            secret.current()  # reads the file again, which the I/O thread must not do
            if thread.is_alive():
                manager.alive()
            if stop.reload:
                stop.reload = False
                with manager.reloading():
                    load_again(certificate, "The name server")
    finally:
        loop.shutdown()
        thread.join(2.0)


def _strangers(config: NameServerConfig, host: str) -> Strangers:
    """Return what becomes of callers without the secret on a loopback address; elsewhere, they are refused."""
    # What leads to a loopback address from other hosts hides them.
    hidden = is_loopback(config.host) and not is_loopback(host)
    return Strangers.REFUSED if hidden else Strangers.ADMITTED


def _names(config: NameServerConfig, secret: Secret) -> Names:
    """Return the name server object. Raises `ConfigurationError` if its entries cannot be kept in the storage."""
    storage = config.storage
    try:
        caller = knowing(secret, Greeting(protocol=PROTOCOL, caller=NAMELESS), tls=config.tls)
        kept = MemoryStorage() if storage == "memory" else SqlStorage(storage[4:])
        names = Names(kept, partial(is_alive, caller))
        names.count()
    except (sqlite3.Error, PyroError, ValueError) as error:
        # SQLite only says that it is unable to open the file.
        writable = os.access(os.path.dirname(storage[4:]) or ".", os.W_OK)
        reason = str(error) if writable else "its directory does not exist or cannot be written to"
        raise ConfigurationError(f"Cannot keep the entries in {storage!r}: {reason}.") from error
    return names


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `ConfigurationError` if the address cannot be used."""
    try:
        with explained("The name server cannot start"):
            return tcp_socket.listen(host, port)
    except OutOfResources:
        raise
    except OSError as error:
        remedy = (
            tcp_socket.remedy(error)
            or "if a name server is running there already, use that one; else give another port"
        )
        raise ConfigurationError(
            f"Cannot listen on {format_address(host, port)} ({error.strerror}): {remedy}."
        ) from error


def main(argv: list[str]) -> NoReturn:
    """Run a name server.

    Args:
        argv: the settings, a `NameServerConfig` in JSON with the ``secret`` (`Secret.for_child`); and the descriptor
            that leads to the parent process, which gets the `answer`.
    """
    parent = int(argv[1])
    stop = StopRequest()
    stop.on_signals()
    try:
        stop.with_parent(parent)
        settings = json.loads(argv[0])
        secret = secret_of_parent(settings.pop("secret"))
        config = NameServerConfig(**settings)
        stop.on_signals(reloads=bool(config.tls))
        serve(config, secret=secret, stop=stop, ready=partial(_report_ready, parent))
    except PyroCacheError as error:
        print(error, file=sys.stderr)
        answer(parent, {"error": str(error)})
        sys.exit(1)
    sys.exit(0)


def _report_ready(parent: int, address: str) -> None:
    answer(parent, {"address": address, "pid": os.getpid()})
