"""`stock_handshake`: what a Pyro5 proxy, which does not know the secret, needs to be admitted.

Thread safety: a function without state.
"""

from __future__ import annotations

import os

from pyrocache.config import (
    DEFAULT_NAMESERVER,
    DEFAULT_TIMEOUT_SECONDS,
    Encryption,
    check_seconds,
    checked_tls,
)
from pyrocache.errors import NodeUnavailable, RemoteError
from pyrocache.net.call_protocol import knowing
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NAMESERVER, NameServerDirectory
from pyrocache.net.failures import BROKEN, Refused, broken, unavailable
from pyrocache.protocol.commands import ISSUE_TOKEN
from pyrocache.protocol.handshake import Greeting
from pyrocache.runtime.secret import find_secret
from pyrocache.settings import in_force


def stock_handshake(
    name: str,
    nameserver: str | None = None,
    *,
    secret_file: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    tls: Encryption = None,
) -> dict[str, str]:
    """Return what to assign to ``_pyroHandshake`` of a stock Pyro5 proxy, so that it is admitted.

    It holds a token that admits one connection, within 30 seconds, to this start of the node. Whoever has it can use
    it, and then do what a client can: give it to nobody else.

    What is left out is taken from the user's settings, as for `PyroCacheClient`.

    Args:
        name: the node that the proxy is for, such as ``cache.node.1``; or ``Pyro.NameServer``.
        nameserver: ``host:port`` of the name server; by default ``127.0.0.1:9090``.
        secret_file: the path of the secret file; by default as for `PyroCacheClient`.
        timeout: seconds that this may take; by default 5.
        tls: how this asks the node for the token, as for `PyroCacheClient`. The proxy follows Pyro5's own settings.

    Raises:
        NameServerUnavailable: no name server answers.
        NodeUnavailable: the node is not registered, or does not answer.
        AuthenticationError: the node or the name server has another secret.

    Example:
        >>> proxy = Pyro5.api.Proxy("PYRONAME:cache.node.1")                           # doctest: +SKIP
        >>> proxy._pyroSerializer = "msgpack"                                          # doctest: +SKIP
        >>> proxy._pyroHandshake = pyrocache.stock_handshake("cache.node.1")           # doctest: +SKIP
    """
    settings = in_force()
    if timeout is None:
        timeout = settings.get("client.timeout", DEFAULT_TIMEOUT_SECONDS)
    deadline = Deadline(check_seconds("timeout", timeout))
    secret = find_secret(settings.get("secret_file") if secret_file is None else secret_file)
    caller = knowing(secret, tls=checked_tls(settings.tls if tls is None else tls))
    address = nameserver or settings.get("nameserver", DEFAULT_NAMESERVER)
    directory = NameServerDirectory(address, caller=caller._replace(trusting=True))
    if name == NAMESERVER:
        return Greeting(token=directory.issue_token(deadline.remaining())).to_wire()
    found = [member for member in directory.members(deadline.remaining()) if member.name == name]
    if not found:
        raise NodeUnavailable(f"The name server at {address} knows no node {name!r}.")
    try:
        connection = Connection(found[0], "auto", caller)
        try:
            connection.finish_opening(deadline)
            token = connection.call(ISSUE_TOKEN, (), deadline)
        finally:
            connection.close()
    except Refused as refused:
        raise RemoteError(f"{name} refused to issue a token: {refused}") from None
    except BROKEN as error:
        if not broken(error):
            raise
        raise unavailable(found[0], ISSUE_TOKEN, deadline, error, sent=False).error from None
    if not isinstance(token, str):
        raise RemoteError(f"{name} did not answer with a token.")
    return Greeting(node=name, incarnation=found[0].incarnation, token=token).to_wire()
