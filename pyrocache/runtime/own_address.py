"""The addresses of this host: from which one it reaches another host, and whether one is its own.

Asks the system with UDP sockets, on which nothing is sent.

Thread safety: functions without state.
"""

from __future__ import annotations

import ipaddress
import socket

from pyrocache.tracebacks import came_from_outside


def towards(host: str, port: int) -> str:
    """Return the address of this host from which it reaches another one. Resolves the host, which may block.

    Raises:
        OSError: the host cannot be resolved, or no route leads there.
    """
    problem = OSError("no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                return _text(probe.getsockname())
        except OSError as error:
            if came_from_outside(error):
                raise
            problem = error
    raise problem


def is_own(host: str) -> bool:
    """Return whether an address is one of this host's own, for certain: connections to it do not leave the host.

    False for a host name, and for further addresses of an interface.
    """
    try:
        address = ipaddress.ip_address(host)
        # To an address of its own, the system sends from that address. To bind to it would prove less: systems can be
        # set up to allow that for every address.
        return address.is_loopback or ipaddress.ip_address(towards(host, 9)) == address
    except (OSError, ValueError) as error:
        if came_from_outside(error):
            raise
        return False


def leads_back(host: str) -> bool:
    """Return whether a host name or an address means loopback only. Resolves the host, which may block."""
    try:
        return all(
            ipaddress.ip_address(address[0]).is_loopback
            for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        )
    except (OSError, ValueError) as error:
        if came_from_outside(error):
            raise
        return False


def _text(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """Return the host of a socket's address, with the interface of a link-local one."""
    host = address[0]
    return f"{host}%{socket.if_indextoname(address[3])}" if len(address) == 4 and address[3] else host
