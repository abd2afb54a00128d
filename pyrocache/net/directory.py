"""The name server as nodes and clients use it: list the nodes, register a node, remove a node.

Each query opens a connection, uses it once and closes it, all within one deadline. Works with Pyro5's own name server
and with the one of this package (`nameserver.process`). A listing has at most about 1,000 entries, as the size of a
message is limited (`protocol.messages`). Any peer can register names: a longer listing is an error, upon which clients
and nodes keep the view that they have, and malformed entries are left out.

Thread safety: thread-safe, also after a fork; no thread, no lock and no state except the address.
"""

from __future__ import annotations

import re
import socket
import time
from typing import Any, NamedTuple, Protocol

from pyrocache.cluster.routing import Member, is_socket_path
from pyrocache.config import DEFAULT_TIMEOUT_SECONDS, format_address, parse_address
from pyrocache.errors import NameServerUnavailable, ProtocolError
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import BROKEN, Refused, broken
from pyrocache.net.suspicion import Suspicion, Verdict
from pyrocache.runtime.shortage import explain
from pyrocache.tracebacks import came_from_outside

PREFIX = "cache.node."

_ENOUGH_SECONDS = 0.1  # with less time for a query, a timeout says nothing about the name server
_PROBE_SECONDS = 0.5  # for the query that decides whether a suspected name server answers again
_REFUSED = object()
_TAKEN = "already registered"  # in Pyro5's refusal of a name that is taken
_URI = re.compile(r"PYRO:(cache\.node\.[1-9]\d{0,8})@(.*)", re.ASCII)


class Directory(Protocol):
    """The interface of a name server, as nodes and clients use it."""

    def members(self, timeout: float = ...) -> list[Member]:
        """Return the nodes that are registered."""

    def add(self, member: Member) -> bool:
        """Register a node unless its name is taken. Return whether that was done."""

    def remove(self, member: Member, timeout: float = ...) -> bool:
        """Remove the node if its entry is of the same incarnation. Return whether that was done."""


class WatchedLookUp:
    """The queries of one client, which cost one timeout together if the name server hangs (`net.suspicion`).

    A timeout makes the name server suspected without a ping, as no query takes long. Thread-safe.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._suspicion = Suspicion()
        self._failure = (
            "The name server did not answer in time."  # why there is no listing; empty if there is one
        )

    def __call__(self, seconds: float) -> list[Member]:
        """Return the nodes that are registered. Raises `NameServerUnavailable`."""
        began_at = time.monotonic()
        try:
            members = self._directory.members(seconds)
        except NameServerUnavailable as error:
            self._failure = str(error)
            if not error.timed_out:
                self._suspicion.answered()
            elif seconds >= _ENOUGH_SECONDS:
                self._suspicion.silent(began_at)
            raise
        self._failure = ""
        self._suspicion.answered()
        return members

    def admit(self, deadline: Deadline, seconds: float) -> float:
        """Return the seconds that a query may take, ``seconds`` at most.

        Raises:
            NameServerUnavailable: it did not answer lately, and it is not this caller that tries again.
        """
        if not self._suspicion.doubted:
            return seconds
        if self._suspicion.ask(deadline) is Verdict.FAIL:
            raise NameServerUnavailable(f"{self._failure} It {self._suspicion.describe()}.")
        return min(seconds, _PROBE_SECONDS)

    def raise_failure(self) -> None:
        """Raise `NameServerUnavailable` if the last query failed, or there was none."""
        if self._failure:
            raise NameServerUnavailable(self._failure)


class _RefusedByNameServer(NameServerUnavailable):
    """The name server answered with a refusal, such as that its disk is full."""


class _NameServer(NamedTuple):
    """The `Endpoint` of a name server."""

    host: str
    port: int
    name: str = "Pyro.NameServer"
    socket_path: str = ""


class NameServerDirectory:
    """The nodes registered in the name server at ``address`` (``host:port``)."""

    def __init__(self, address: str) -> None:
        self._server = _NameServer(*parse_address(address))

    def members(self, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> list[Member]:
        """Return the nodes that are registered. Malformed entries are left out.

        Raises:
            NameServerUnavailable: no name server answered within ``timeout`` seconds.
        """
        return self._members(Deadline(timeout))

    def add(self, member: Member, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> bool:
        """Register ``member`` atomically. Return False if its name is taken."""
        uri = f"PYRO:{member.name}@{member.address}"
        arguments = (member.name, uri, True, _metadata(member))  # True: `safe`, refused if the name is taken
        try:
            self._ask(Deadline(timeout), "register a node", "register", *arguments)
        except _RefusedByNameServer as refused:
            if _TAKEN in str(refused):
                return False
            raise
        return True

    def remove(self, member: Member, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> bool:
        """Remove ``member``. Return False if it is not registered, or if another incarnation has its name."""
        deadline = Deadline(timeout)
        # Two requests, as Pyro5 has no conditional removal. `node.registration` allows for the race.
        entry = next((entry for entry in self._members(deadline) if entry.name == member.name), None)
        if entry is not None and entry.incarnation != member.incarnation:
            return False
        return bool(self._ask(deadline, "remove a node", "remove", member.name))

    def _members(self, deadline: Deadline) -> list[Member]:
        purpose = "list the nodes"
        listed = self._ask(deadline, purpose, "list", PREFIX, None, True, if_refused=_REFUSED)
        if listed is _REFUSED:  # Pyro5 cannot write entries without metadata in msgpack
            addresses = self._ask(deadline, purpose, "list", PREFIX, None, False)
            listed = {name: (uri, ()) for name, uri in addresses.items()}
            listed.update(self._ask(deadline, purpose, "yplookup", ["pyrocache"], None, True))
        members = (_member(name, entry) for name, entry in listed.items())
        return [member for member in members if member is not None]

    def _ask(
        self, deadline: Deadline, purpose: str, method: str, *arguments: Any, if_refused: Any = None
    ) -> Any:
        """Call a method. Return its result, or ``if_refused``, unless that is None, if the call is refused.

        Raises:
            NameServerUnavailable: there was no reply, a refusal, or a listing that is not a dict.
        """
        connection: Connection | None = None
        try:
            connection = Connection(self._server)
            connection.finish_opening(deadline)
            answer = connection.call(method, arguments, deadline)
            if method in ("list", "yplookup") and type(answer) is not dict:
                raise ProtocolError("a listing is a dict")
            return answer
        except Refused as refused:
            if if_refused is not None:
                return if_refused
            raise _RefusedByNameServer(
                f"The name server at {format_address(self._server.host, self._server.port)} refused to {purpose}: "
                f"{refused}"
            ) from None
        except BROKEN as error:
            if not broken(error):
                raise
            answered = connection is not None and connection.connected
            raise self._unavailable(purpose, error, answered=answered) from None
        finally:
            if connection is not None:
                connection.close()

    def _unavailable(self, purpose: str, error: BaseException, *, answered: bool) -> NameServerUnavailable:
        host, port = self._server.host, self._server.port
        where = format_address(host, port)
        if shortage := explain(error):
            return NameServerUnavailable(
                f"The name server at {where} cannot be asked to {purpose}: {shortage}."
            )
        if answered:
            remedy = "what listens there did not answer as a Pyro5 name server"
            # A listing that is too long is not read further than its header.
            too_long = ", or it lists over 1,000 names" if isinstance(error, ProtocolError) else ""
            remedy += f"{too_long}. Is the address right?"
        elif isinstance(error, (socket.gaierror, UnicodeError)):
            remedy = "that host name cannot be resolved. Is it right?"
        else:
            remedy = f"start one with: pyrocache nameserver --host {host} --port {port}"
        unavailable = NameServerUnavailable(f"No name server was found to {purpose} at {where}: {remedy}")
        unavailable.timed_out = isinstance(error, TimeoutError)
        return unavailable


def _metadata(member: Member) -> list[str]:
    metadata = ["pyrocache", f"weight={float(member.weight)!r}", f"incarnation={member.incarnation}"]
    return [*metadata, f"unix={member.socket_path}"] if member.socket_path else metadata


def _member(name: Any, entry: Any) -> Member | None:
    """Return the node of one entry, or None if it is malformed: any peer can write to a name server."""
    try:
        uri, metadata = entry
        if type(uri) is dict:  # a Pyro5 URI in msgpack: protocol, object, socket name, host, port
            protocol, object_id, _, host, port = uri["state"]
            uri = f"{protocol}:{object_id}@{format_address(host, port)}"
        match = _URI.fullmatch(uri)
        if match is None or match[1] != name:
            return None
        host, port = parse_address(match[2], default_port=0)
        tags = dict(tag.split("=", 1) for tag in metadata if "=" in tag)
        weight, incarnation, path = (tags.get(tag, "") for tag in ("weight", "incarnation", "unix"))
        # A forged entry must not make clients connect to an arbitrary Unix socket.
        path = path if is_socket_path(path, incarnation) else ""
        return Member(name, host, port, float(weight or 1.0), incarnation, path)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if came_from_outside(error):
            raise
        return None
