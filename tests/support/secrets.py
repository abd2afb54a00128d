"""Secrets of tests, and what knows them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pyrocache.cluster.routing import Member
from pyrocache.config import parse_address
from pyrocache.net.call_protocol import Caller, knowing
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NameServerDirectory
from pyrocache.protocol.handshake import NAMELESS, PROTOCOL, Greeting
from pyrocache.runtime.secret import Secret, find_secret, locate
from pyrocache.runtime.secret_file import Key
from tests.support.waiting import PATIENCE_SECONDS

SECRET = Secret(None, (Key(b"s" * 32),))
OTHER_SECRET = Secret(None, (Key(b"o" * 32),))


def nameless(secret: Secret = SECRET) -> Caller:
    """Return how a name server calls a node."""
    return knowing(secret, Greeting(protocol=PROTOCOL, caller=NAMELESS))


def directory_of(nameserver: str, **options: Any) -> NameServerDirectory:
    """Return a name server as nodes use it that have the secret of this test run."""
    return NameServerDirectory(nameserver, caller=knowing(find_secret(), trusting=True), **options)


class Remote:
    """A node, called with the secret of this test run and without the rest of a client: ``remote.ping()``."""

    def __init__(self, name: str, address: str) -> None:
        host, port = parse_address(address)
        self._connection = Connection(Member(name, host, port), "tcp", knowing(find_secret()))
        self._connection.finish_opening(Deadline(PATIENCE_SECONDS))

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._call, method)

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._connection.call(method, arguments, Deadline(PATIENCE_SECONDS))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def remote(name: str, address: str) -> Iterator[Remote]:
    """Give a `Remote`, and close it."""
    node = Remote(name, address)
    try:
        yield node
    finally:
        node.close()


def copy_for(user: int) -> str:
    """Return the path of a copy of this test run's secret that belongs to another user. Only root can make one."""
    path = f"{locate()}-of-{user}"
    shutil.copyfile(locate(), path)
    os.chmod(path, 0o600)
    os.chown(path, user, user)
    return path
