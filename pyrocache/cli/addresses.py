"""Where the nodes of one command listen, and what they advertise.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

from dataclasses import replace

from pyrocache.config import NodeConfig, format_address, is_loopback, parse_address, parse_advertised
from pyrocache.errors import ConfigurationError, NameServerUnavailable
from pyrocache.runtime.own_address import leads_back, towards

_LOOPBACK = "127.0.0.1"
_LAST_PORT = 65535


def host_of_nodes(nameserver: str, host: str | None, advertise: str | None) -> str:
    """Return the address that nodes listen on. May block while it resolves host names.

    Without ``host``, it is the loopback address if the name server listens there. Otherwise, it is the address from
    which this host reaches the name server.

    Raises:
        ConfigurationError: other hosts reach the name server, and could not reach the nodes.
        NameServerUnavailable: the name server's host cannot be resolved, or no route leads there.
    """
    where, port = parse_address(nameserver)
    here = _is_only_here(where)
    if host is None:
        host = _LOOPBACK if here else _towards(nameserver, where, port)
    reached = parse_advertised(advertise)[0] if advertise else host
    if not here and _is_only_here(reached):
        raise ConfigurationError(
            f"No other host reaches nodes at {reached}, but the name server {nameserver} is not on loopback: leave "
            "--host out, or name with --advertise the address that leads to the nodes."
        )
    return host


def check_ports(config: NodeConfig, count: int) -> None:
    """Raise `ConfigurationError` if ``count`` nodes cannot have the ports that `of_node` gives them."""
    advertised = parse_advertised(config.advertise)[1] if config.advertise else 0
    if advertised and not config.port:
        raise ConfigurationError(
            f"--advertise {config.advertise} names a port: say with --port on which one the first node listens."
        )
    for first in (config.port, advertised):
        if first + count - 1 > _LAST_PORT:
            raise ConfigurationError(
                f"{count} nodes from port {first} on need ports above {_LAST_PORT}: give a smaller one."
            )


def of_node(config: NodeConfig, number: int) -> NodeConfig:
    """Return the settings of one of the nodes of a command, counted from 0. Nodes have consecutive ports."""
    advertise = config.advertise
    if advertise is not None:
        host, port = parse_advertised(advertise)
        advertise = format_address(host, port + number) if port else advertise
    return replace(config, port=config.port + number if config.port else 0, advertise=advertise)


def _is_only_here(host: str) -> bool:
    return is_loopback(host) or leads_back(host)


def _towards(nameserver: str, host: str, port: int) -> str:
    try:
        return towards(host, port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NameServerUnavailable(
            f"The name server {nameserver} cannot be reached from this host ({reason}). Is its address right?"
        ) from None
