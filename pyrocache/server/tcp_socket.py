"""The listening TCP socket of a server, and the addresses at which callers reach it. The Unix socket: `unix_socket`.

Thread safety: functions without state.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Collection

from pyrocache.config import format_address, parse_advertised
from pyrocache.protocol.handshake import format_peer

log = logging.getLogger("pyrocache.node")

_LOCALHOST = {"localhost": "127.0.0.1"}  # where clients look for it


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Port 0 takes a free port. ``::`` is reached over IPv4, too.

    Raises:
        OSError: the host cannot be resolved, or the address cannot be used.
    """
    host = _LOCALHOST.get(host, host)
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A restarted server takes its port again although connections of the former one are in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0
            )  # whatever the system's default is
        listener.bind(address)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener


def registered_address(listener: socket.socket, host: str, advertise: str | None) -> tuple[str, int]:
    """Return the host and the port that others are told.

    Args:
        host: what the listener was made with.
        advertise: the address that leads to it, perhaps without a port; None for its own.
    """
    address, port = listener.getsockname()[:2]
    if advertise is None:
        # Callers must not resolve `localhost` themselves: it may have another address that this server does not serve.
        return (address if host in _LOCALHOST else host), port
    host, advertised_port = parse_advertised(advertise)
    return _LOCALHOST.get(host, host), advertised_port or port


def dialled_addresses(host: str, port: int) -> Collection[str]:
    """Return what callers may have dialled that were told a host and a port, as `format_peer` returns it.

    Resolves the host, which may block. If that fails, returns nothing and logs a warning.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        log.warning(
            "The advertised address %s cannot be resolved (%s): callers are admitted only if what they dial is an "
            "address of this host.",
            format_address(host, port),
            getattr(error, "strerror", None) or error,
        )
        return ()
    return frozenset(format_peer(address) for *_, address in found)


def remedy(error: OSError) -> str:
    """Return what to do if `listen` raised ``error`` for the address and not for the port; empty otherwise."""
    if isinstance(error, socket.gaierror):
        return "give an address of this host, or a name that it has"
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            "this host has no such address. Give one that it has; behind NAT, --host 0.0.0.0 with --advertise"
        )
    return ""
