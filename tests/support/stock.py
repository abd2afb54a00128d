"""Stock Pyro5 proxies that servers with a secret admit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import Pyro5.api

from pyrocache import stock_handshake


def admitted(uri: str, nameserver: str, name: str = "", **known: Any) -> Any:
    """Return a proxy that gets a new token for each of its connections.

    Args:
        uri: of the object.
        nameserver: ``host:port`` of the name server.
        name: the node, or the name server, that issues the tokens; by default the object.
        known: ``secret_file`` of `stock_handshake`.
    """

    class Admitted(Pyro5.api.Proxy):  # type: ignore[misc]
        @property
        def _pyroHandshake(self) -> Any:
            return stock_handshake(name or Pyro5.api.URI(uri).object, nameserver, **known)

        @_pyroHandshake.setter
        def _pyroHandshake(self, handshake: Any) -> None:
            pass  # Pyro5 sets the one that it uses without a secret

    proxy = Admitted(uri)
    proxy._pyroTimeout = 20
    return proxy


@contextmanager
def name_server_proxy(address: str) -> Iterator[Any]:
    """Give a proxy of our name server that may register and remove names."""
    with admitted(f"PYRO:Pyro.NameServer@{address}", address) as proxy:
        yield proxy
