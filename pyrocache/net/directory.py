"""The name server as nodes and clients see it: list the nodes, enter one, strike one out.

Each call opens a connection with a timeout, uses it once and closes it, so that nothing here has a thread, a lock
or state worth mentioning: any thread may call, also after a fork. The one point where Pyro5's own proxy is used,
because the name server is Pyro5's own, and where its exceptions are turned into ours.
"""

from __future__ import annotations

import re
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from pyrocache.cluster.routing import Member, is_socket_path
from pyrocache.config import DEFAULT_TIMEOUT_SECONDS, format_address, parse_address
from pyrocache.errors import ConfigurationError, NameServerUnavailable

PREFIX = "cache.node."

_T = TypeVar("_T")

# What asking can end in, garbage for an answer included; and no more: a signal handler's exception is none of ours.
_FAILURES = (
    *(
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        SyntaxError,
        RecursionError,
    ),
    *(struct.error, zlib.error),
)
_ENTRY = re.compile(r"PYRO:(cache\.node\.[1-9]\d{0,8})@(?:\[([0-9a-fA-F:.]+)\]|([^:\s/@]+)):(\d{1,5})")


class Directory(Protocol):
    """What nodes and clients need of a name server."""

    def members(self, timeout: float = ...) -> list[Member]:
        """The nodes that are entered."""

    def add(self, member: Member) -> bool:
        """Enter a node unless its name is taken; whether that was done."""

    def remove(self, member: Member, timeout: float = ...) -> bool:
        """Strike the node out if the entry is still this incarnation's; whether that was done."""


class NameServerDirectory:
    """The nodes entered in the Pyro5 name server at ``address`` (``host:port``)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._host, self._port = parse_address(address)
        _import_pyro5()  # now and not on first use, when another thread may fork in the middle of it

    def members(self, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> list[Member]:
        """The nodes that are entered, entries that make no sense left out."""
        listed = self._ask(
            lambda server: server.list(prefix=PREFIX, return_metadata=True), timeout, "list the nodes"
        )
        members = (_member(name, entry) for name, entry in listed.items())
        return [member for member in members if member is not None]

    def add(self, member: Member) -> bool:
        """Enter ``member``, which is a compare-and-set: False when the name is taken, by whomsoever."""

        def register(server: Any) -> bool:
            from Pyro5.errors import NamingError

            try:
                server.register(member.name, _uri(member), safe=True, metadata=_metadata(member))
            except NamingError:
                return False
            return True

        return self._ask(register, DEFAULT_TIMEOUT_SECONDS, "register a node")

    def remove(self, member: Member, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> bool:
        """Strike ``member`` out, unless another incarnation has its name by now."""
        current = [entry for entry in self.members(timeout) if entry.name == member.name]
        if current and current[0].incarnation != member.incarnation:
            return False
        return bool(self._ask(lambda server: server.remove(name=member.name), timeout, "unregister a node"))

    def _ask(self, question: Callable[[Any], _T], timeout: float, purpose: str) -> _T:
        from Pyro5.client import Proxy
        from Pyro5.errors import PyroError

        uri = f"PYRO:Pyro.NameServer@{self.address}"
        if ":" not in self.address.rpartition("]")[2]:
            uri = f"PYRO:Pyro.NameServer@{format_address(self._host, self._port)}"
        try:
            with _clean_context(), Proxy(uri) as server:
                server._pyroTimeout = timeout
                server._pyroSerializer = "serpent"  # which every Pyro5 speaks
                return question(server)
        except PyroError as error:
            raise self._unavailable(purpose, error) from error
        except _FAILURES as error:
            raise self._unavailable(purpose, error) from error

    def _unavailable(self, purpose: str, error: BaseException) -> NameServerUnavailable:
        begin = f"No name server was found to {purpose}"
        try:
            with socket.create_connection((self._host, self._port), timeout=0.5):
                remedy = "what listens there did not answer as a Pyro5 name server. Is the address right?"
        except socket.gaierror:
            remedy = "that host name cannot be resolved. Is it right?"
        except OSError:
            remedy = f"start one with: pyrocache nameserver --host {self._host} --port {self._port}"
        where = format_address(self._host, self._port)
        return NameServerUnavailable(f"{begin} at {where}: {remedy}")


def _import_pyro5() -> None:
    try:
        import Pyro5.client  # noqa: F401
    except ValueError as error:  # it knows all variables that begin with PYRO_, and refuses others
        raise ConfigurationError(f"Pyro5 does not start: {error}; unset that variable.") from error


@contextmanager
def _clean_context() -> Iterator[None]:
    """Keep the calling thread's Pyro5 annotations out of our calls: they are sticky and go to every server."""
    from Pyro5.callcontext import current_context

    annotations, current_context.annotations = current_context.annotations, {}
    try:
        yield
    finally:
        current_context.annotations = annotations


def _uri(member: Member) -> str:
    return f"PYRO:{member.name}@{format_address(member.host, member.port)}"


def _metadata(member: Member) -> list[str]:
    metadata = ["pyrocache", f"weight={float(member.weight)!r}", f"incarnation={member.incarnation}"]
    return [*metadata, f"unix={member.socket_path}"] if member.socket_path else metadata


def _member(name: str, entry: Any) -> Member | None:
    """The node of one entry, or None: anybody can write anything into a name server."""
    try:
        uri, metadata = entry
        match = _ENTRY.fullmatch(str(uri))
        if match is None or match[1] != name:
            return None
        host, port = parse_address(str(uri).partition("@")[2])
        tags = dict(tag.split("=", 1) for tag in metadata if "=" in tag)
        incarnation, socket_path = tags.get("incarnation", ""), tags.get("unix", "")
        return Member(
            name=name,
            host=host,
            port=port,
            weight=float(tags.get("weight", "1.0")),
            incarnation=incarnation,
            socket_path=socket_path if is_socket_path(socket_path, incarnation) else "",
        )
    except (TypeError, ValueError):
        return None
