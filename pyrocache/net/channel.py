"""The client side of the byte streams that connections run over: opening a `Channel` without blocking.

To add TLS or another byte stream, start here and in `runtime.channel`, which defines the interface.

A plain channel blocks in `recv` for `PATIENCE_SECONDS` at most, which saves a system call per request;
``MSG_DONTWAIT`` keeps a single call from blocking at all. Sockets under gevent support neither: a gevent channel never
blocks, and its users wait in `select.poll`, which gevent replaces. Both sockets and `select.poll` are looked up when a
channel is opened, so gevent may patch them before or after this module is imported. eventlet removes `select.poll` and
is not supported.

Thread safety: not thread-safe; a `Dialing` is used by one thread at a time.
"""

from __future__ import annotations

import _socket
import codecs
import errno
import os
import select
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from pyrocache.config import TransportChoice
from pyrocache.errors import ConfigurationError
from pyrocache.late_imports import at_first_use
from pyrocache.runtime import private_directory, unix_peer
from pyrocache.runtime.channel import Channel
from pyrocache.tracebacks import came_from_outside

PATIENCE_SECONDS = 0.25
"""Longest time that a plain channel blocks before the deadline is checked again."""

_LOCALHOST = {"localhost": "127.0.0.1"}
"""Nodes and name servers of this name listen there. Anybody may listen at another address that it has, such as ::1."""

Resolved: TypeAlias = Sequence[tuple[int, Any]]
"""The addresses of a host, each with its family."""

_PATIENCE = struct.pack("ll", 0, int(PATIENCE_SECONDS * 1_000_000))  # a struct timeval


class Endpoint(Protocol):
    """The remote object to connect to: a `Member`, or the name server."""

    @property
    def name(self) -> str:
        """The id of the remote object."""

    @property
    def incarnation(self) -> str:
        """Differs between the starts of a node; empty if it is not known."""

    @property
    def cluster(self) -> str:
        """The id of its cluster; empty if it is not known."""

    @property
    def host(self) -> str:
        """Host name or address."""

    @property
    def port(self) -> int:
        """TCP port."""

    @property
    def socket_path(self) -> str:
        """Path of its Unix socket on this host; empty if it has none."""


def check_supported() -> None:
    """Raise `ConfigurationError` if channels cannot work in this interpreter."""
    if not hasattr(select, "poll"):
        raise ConfigurationError(
            "select.poll is missing: pyrocache does not run under eventlet, which removes it; use threads or gevent."
        )


def is_cooperative(channel: Channel) -> bool:
    """Return whether the channel is gevent's socket, which must never block, instead of the interpreter's."""
    return not isinstance(channel, _socket.socket)


def is_same_host(channel: Channel) -> bool:
    """Return whether both ends of a connected channel have one address: they are on one host, or a tunnel's ends."""
    return channel.family == socket.AF_UNIX or channel.getsockname()[0] == channel.getpeername()[0]


class Dialing:
    """A channel that is being opened: to the Unix socket if there is one, then to each TCP address in turn.

    Only resolving a host name may block.

    Args:
        endpoint: the remote object to connect to.
        transport: whether its Unix socket may be used.
        resolved: what `resolve` returned for it; None to resolve its name here.

    Attributes:
        pending: not connected yet; call `advance` once the socket is writable.
        sock: the socket of the current attempt.
        path: the path of the Unix socket that this is an attempt at; empty for a TCP address.
    """

    __slots__ = ("_addresses", "path", "pending", "sock")

    def __init__(
        self, endpoint: Endpoint, transport: TransportChoice, resolved: Resolved | None = None
    ) -> None:
        self._addresses = _addresses(endpoint, transport, resolved)
        self.path = ""
        self._next_address(OSError("no address"))

    def advance(self) -> bool:
        """Return whether the channel is connected. Raises `OSError` if the last address failed."""
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.sock.close()
            self._next_address(OSError(error, os.strerror(error)))
        elif self._is_stranger():
            self.sock.close()
            self._next_address(PermissionError("the Unix socket of another user"))
        else:
            self.pending = False
        return not self.pending

    def channel(self, *, blocks: bool = True) -> Channel:
        """Return the connected channel.

        Args:
            blocks: whether `recv` may block for `PATIENCE_SECONDS`.
        """
        sock = self.sock
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # do not delay a small request
        if blocks and not is_cooperative(sock):
            sock.settimeout(None)  # a timeout of Python's would add a poll to each receive
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        return sock

    def _is_stranger(self) -> bool:
        return self.sock.family == socket.AF_UNIX and not unix_peer.is_trusted(self.sock)

    def _next_address(self, problem: OSError) -> None:
        for family, address in self._addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                # `connect` raises one exception for EINPROGRESS and for EAGAIN, the full backlog of a Unix socket.
                error = sock.connect_ex(address)
                self.sock, self.pending = sock, error != 0
                self.path = address if family == socket.AF_UNIX else ""
                if error == errno.EINPROGRESS or (error == 0 and not self._is_stranger()):
                    return
                problem = OSError(error or errno.EACCES, os.strerror(error or errno.EACCES))
            except BaseException as failure:
                sock.close()
                if not isinstance(failure, OSError) or came_from_outside(failure):
                    raise
                problem = failure  # a path that is too long
            sock.close()
        raise problem


def _is_private(path: str) -> bool:
    """Return whether a path is a socket in a directory of this user alone, and not a link to one that is elsewhere."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode) and private_directory.is_private(os.path.dirname(path))
    except OSError as error:
        if came_from_outside(error):
            raise
        return False


def resolve(host: str, port: int) -> Resolved:
    """Return the TCP addresses of a host. May block, unless `is_resolved` is true for it. Raises `OSError`."""
    # As bytes: a str goes through Python's idna codec, which wraps an exception that a signal handler raises there.
    name = _LOCALHOST.get(host, host)
    if not name.isascii():
        with at_first_use:
            codecs.lookup("idna")  # `getaddrinfo` would import it
    try:
        found = socket.getaddrinfo(name.encode() if name.isascii() else name, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        socket.socket().close()  # without descriptors, no name can be resolved: this raises that cause
        raise
    return [(family, address) for family, _, _, _, address in found]


def is_resolved(host: str) -> bool:
    """Return whether a host is an address, which `resolve` only parses."""
    address = _LOCALHOST.get(host, host).partition("%")[0]
    return any(_is_address(family, address) for family in (socket.AF_INET, socket.AF_INET6))


def _is_address(family: int, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except OSError as error:
        if came_from_outside(error):
            raise
        return False
    except ValueError:  # a null character
        return False
    return True


def _addresses(
    endpoint: Endpoint, transport: TransportChoice, resolved: Resolved | None
) -> Iterator[tuple[int, Any]]:
    if endpoint.socket_path and transport == "auto" and _is_private(endpoint.socket_path):
        # The path may be of another host, another user or a killed node; the TCP addresses follow.
        yield socket.AF_UNIX, endpoint.socket_path
    # Reached only if the Unix socket failed: resolving the name may block.
    yield from resolve(endpoint.host, endpoint.port) if resolved is None else resolved
