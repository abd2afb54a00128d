"""The name server as nodes and clients use it: list nodes and views, register a node, store a view.

The entries are ``cache.node.N`` for each node, ``cache.cluster`` for the id of the cluster, and ``cache.view.n`` for
view ``n``; ``docs/wire-format.md`` has their metadata. Pyro5's name server has one atomic operation: to create an entry
unless there is one. So the first node that creates ``cache.cluster`` gives the cluster its id, and of several nodes
that want to change the view next, one creates its entry.

Each query opens a connection, uses it once and closes it, all within one deadline, unless the connection is kept. Works
with Pyro5's own name server and with the one of this package (`nameserver.process`). A listing has at most about 1,000
entries, as the size of a message is limited (`protocol.messages`). At Pyro5's own name server, any peer can register
names: a longer listing is an error, upon which clients and nodes keep the view that they have, and malformed entries
are left out.

Thread safety: thread-safe, also after a fork; no thread, no lock and no state except the address. With a kept
connection, and the last listing over it, it belongs to one thread.
"""

from __future__ import annotations

import math
import re
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from pyrocache.cluster.routing import ClusterView, Member, is_id, is_socket_path
from pyrocache.cluster.views import EMPTY, view_from_metadata, view_to_metadata, with_zones
from pyrocache.config import DEFAULT_TIMEOUT_SECONDS, format_address, is_zone, parse_address
from pyrocache.errors import AuthenticationError, NameServerUnavailable, ProtocolError
from pyrocache.late_imports import quoted
from pyrocache.net.call_protocol import ANONYMOUS, Caller
from pyrocache.net.connection import Connection, OpenedTooLate
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import BROKEN, Refused, broken
from pyrocache.net.suspicion import Suspicion, Verdict
from pyrocache.protocol import refusals
from pyrocache.protocol.commands import ISSUE_TOKEN
from pyrocache.protocol.handshake import OTHER_PROTOCOL, OVERLOADED, UNPROVEN, HandshakeRefused
from pyrocache.runtime.log import logger
from pyrocache.runtime.shortage import explain
from pyrocache.runtime.throttle import Throttle
from pyrocache.tracebacks import came_from_outside

_strangers = Throttle(math.inf)

NAMESERVER = "Pyro.NameServer"
PREFIX = "cache.node."
CLUSTER = "cache.cluster"
VIEW = "cache.view."

_LONGEST_REPLY_BYTES = 4 * 2**20  # a listing of 1,000 names with two views of 1,000 nodes
_ENOUGH_SECONDS = 0.1  # with less time for a query, a timeout says nothing about the name server
_PROBE_SECONDS = 0.5  # at least, for the query that decides whether a suspected name server answers again
_LISTINGS = ("list", "yplookup")
_REFUSED = object()
_TAKEN = "already registered"  # in Pyro5's refusal of a name that is taken
_NUMBER = re.compile(r"[1-9]\d{0,9}", re.ASCII)
_VIEW_NAME = re.compile(r"cache\.view\.([1-9]\d{0,9})", re.ASCII)
_URI = re.compile(r"PYRO:(cache\.node\.[1-9]\d{0,8})@(.*)", re.ASCII)


class Listing(NamedTuple):
    """What the name server lists.

    Attributes:
        cluster: the id of the cluster; empty if it has none.
        first: the number of its first view, or of the first one that was put back; 0 if it has none.
        views: the views of this cluster, newest first.
        members: the nodes that are registered. Without a cluster, they wait for their other nodes.
        strangers: whether nodes of another cluster are registered, too.
        obstacle: the number of the next view, if there is an entry of that name which is no view of this cluster: no
            next view can be stored. Else 0.
        connection: the number of the connection that it came over, if connections are kept.
        reserved: no new view may have a smaller number: it may have been used before the name server forgot it.
    """

    cluster: str = ""
    first: int = 0
    views: tuple[ClusterView, ...] = ()
    members: tuple[Member, ...] = ()
    strangers: bool = False
    obstacle: int = 0
    connection: int = 0
    reserved: int = 0

    @property
    def view(self) -> ClusterView:
        """The newest view; an empty one if there is none."""
        return self.views[0] if self.views else EMPTY

    @property
    def before(self) -> ClusterView:
        """The view before it; an empty one if there is none."""
        previous = [view for view in self.views if view.number == self.view.previous]
        return previous[0] if previous else EMPTY

    @property
    def complete(self) -> bool:
        """Whether the view before the newest one is listed, or there was none."""
        return self.view.number == self.first or bool(self.before.number)

    @property
    def next_number(self) -> int:
        """The number of the next view."""
        return max(self.view.number + 1, self.reserved)


def explain_obstacle(nameserver: str, number: int) -> str:
    """Return what the `obstacle` of a listing means and what to do, as the end of a sentence."""
    return (
        f"the name server has an entry {VIEW}{number} that is no view of this cluster, so no node can join or leave. "
        f"Remove it with: pyrocache nodes remove {VIEW}{number} --nameserver {quoted(nameserver)}"
    )


class Directory(Protocol):
    """The interface of a name server, as nodes and clients use it."""

    def listing(self, timeout: float = ...) -> Listing:
        """Return all entries of the cluster."""

    def create_cluster(
        self, cluster: str, first: int, reserved: int = ..., timeout: float = ..., over: int = ...
    ) -> bool:
        """Give the cluster its id, unless it has one. Return whether that was done.

        Args:
            over: the number of a kept connection. If that has ended, the name server counts as unavailable.
        """

    def store_view(self, view: ClusterView, timeout: float = ..., over: int = ...) -> bool:
        """Store a view unless there is one of its number. Return whether that was done. ``over``: see above."""

    def forget_views(self, numbers: Iterable[int], timeout: float = ...) -> None:
        """Remove the views with these numbers."""

    def age(self, timeout: float = ...) -> float:
        """Return for how many seconds the name server has been there; 0 if that is unknown."""

    def register(self, member: Member, timeout: float = ...) -> bool:
        """Register a node. Return False if the name server says that another one, which is alive, has the name.

        Otherwise it replaces what is registered. In any case, the view decides whose name it is.
        """

    def remove(self, member: Member, timeout: float = ...) -> bool:
        """Remove the node if its entry is of the same incarnation. Return whether that was done."""


class WatchedLookUp:
    """The queries of one client, which cost one timeout together if the name server hangs (`net.suspicion`).

    A timeout makes the name server suspected without a ping, as no query takes long. Thread-safe.

    Attributes:
        failure: why there is no listing, in a sentence; empty if there is one.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._suspicion = Suspicion()
        self.failure = "The name server did not answer in time."

    def __call__(self, seconds: float) -> Listing:
        """Return what is registered. Raises `NameServerUnavailable`."""
        began_at = time.monotonic()
        try:
            listing = self._directory.listing(seconds)
        except NameServerUnavailable as error:
            self.failure = str(error)
            if not error.timed_out:
                self._suspicion.answered()
            elif seconds >= _ENOUGH_SECONDS:
                self._suspicion.silent(began_at)
            raise
        self.failure = ""
        self._suspicion.answered(began_at)
        return listing

    def admit(self, deadline: Deadline, seconds: float) -> float:
        """Return the seconds that a query may take, ``seconds`` at most.

        Raises:
            NameServerUnavailable: it did not answer lately, and it is not this caller that tries again.
        """
        if not self._suspicion.doubted:
            return seconds
        if self._suspicion.ask(deadline) is Verdict.FAIL:
            raise NameServerUnavailable(f"{self.failure} It {self._suspicion.describe()}.")
        return min(seconds, max(_PROBE_SECONDS, self._suspicion.patience(deadline)))

    def raise_failure(self) -> None:
        """Raise `NameServerUnavailable` if the last query failed, or there was none."""
        if self.failure:
            raise NameServerUnavailable(self.failure)


class UnprovenNameServer(AuthenticationError, NameServerUnavailable):
    """The name server and this process have not proved the same secret to each other."""


class _RefusedByNameServer(NameServerUnavailable):
    """The name server answered with a refusal, such as that its disk is full."""


class _NameServer(NamedTuple):
    """The `Endpoint` of a name server."""

    host: str
    port: int
    name: str = NAMESERVER
    socket_path: str = ""
    incarnation: str = ""
    cluster: str = ""


class NameServerDirectory:
    """The entries in the name server at ``address`` (``host:port``).

    Every method raises `NameServerUnavailable` if no name server answers within ``timeout`` seconds.

    Args:
        address: ``host:port``.
        keep: whether to keep the connection between queries, also while it is being opened: a query may have less time
            than the handshake takes over a long way.
        connect: opens a connection, as `Connection` does.
        caller: describes the caller, and what it knows.
    """

    def __init__(
        self,
        address: str,
        *,
        keep: bool = False,
        connect: Callable[..., Connection] = Connection,
        caller: Caller = ANONYMOUS,
    ) -> None:
        self._connect = connect
        self._caller = caller._replace(reply_bytes=_LONGEST_REPLY_BYTES)
        self._server = _NameServer(*parse_address(address))
        self._keep = keep
        self._kept: Connection | None = None
        self._connected = False  # in the last exchange, something at the address accepted the connection
        self._opened = 0  # the number of the connection that was opened last
        self._listed: dict[Any, Any] = {}  # the last answer over a kept connection
        self._read = Listing()  # what it says

    def listing(self, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> Listing:
        """Return all entries. Malformed ones are left out, and so are views and nodes of other clusters."""
        return self._listing(Deadline(timeout))

    def ping(self, timeout: float) -> None:
        """Raise `NameServerUnavailable` unless a name server answers within ``timeout`` seconds."""
        self._ask(Deadline(timeout), "ask whether it answers", "ping")

    def members(self, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> list[Member]:
        """Return the nodes that are registered. Malformed entries are left out."""
        return list(self._listing(Deadline(timeout)).members)

    def create_cluster(
        self,
        cluster: str,
        first: int,
        reserved: int = 0,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        over: int = 0,
    ) -> bool:
        """Give the cluster its id, unless it has one. Return whether that was done."""
        metadata = ["pyrocache", f"cluster={cluster}", f"first={first}"]
        if reserved:
            metadata.append(f"reserved={reserved}")
        return self._create(CLUSTER, metadata, timeout, over)

    def store_view(self, view: ClusterView, timeout: float = DEFAULT_TIMEOUT_SECONDS, over: int = 0) -> bool:
        """Store a view unless there is one of its number. Return whether that was done."""
        return self._create(f"{VIEW}{view.number}", view_to_metadata(view), timeout, over)

    def forget_views(self, numbers: Iterable[int], timeout: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        """Remove the views with these numbers."""
        deadline = Deadline(timeout)
        for number in numbers:
            self._ask(deadline, "remove a view", "remove", f"{VIEW}{number}")

    def remove_obstacle(self, name: str, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> bool:
        """Remove the `obstacle` of the listing if ``name`` is that entry's. Return whether that was done."""
        deadline = Deadline(timeout)
        obstacle = self._listing(deadline).obstacle
        if not obstacle or name != f"{VIEW}{obstacle}":
            return False
        return bool(self._ask(deadline, "remove an entry", "remove", name))

    def age(self, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> float:
        """Return for how many seconds the name server has been there; 0 for Pyro5's own, which does not say so."""
        age = self._ask(Deadline(timeout), "say its age", "age", if_refused=0.0)
        return age if type(age) is float else 0.0

    def issue_token(self, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> str:
        """Return a token that admits a stock Pyro5 proxy once, see `server.tokens`."""
        return str(self._ask(Deadline(timeout), "issue a token", ISSUE_TOKEN))

    def register(self, member: Member, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> bool:
        """Register ``member``. Return False if another node, which is alive, has the name.

        Pyro5's own name server replaces that one.
        """
        arguments = (member.name, f"PYRO:{member.name}@{member.address}", False, _metadata(member))
        return self._register(arguments, timeout)

    def _create(self, name: str, metadata: list[str], timeout: float, over: int) -> bool:
        """Create the entry of the cluster or of a view, unless it exists. Return whether it was created."""
        arguments = (name, f"PYRO:{name}@127.0.0.1:1", True, metadata)  # True: refused if the name is taken
        return self._register(arguments, timeout, over)

    def _register(self, arguments: tuple[Any, ...], timeout: float, over: int = 0) -> bool:
        """Register an entry. Return False if its name is taken."""
        try:
            self._ask(Deadline(timeout), "register a node", "register", *arguments, over=over)
        except _RefusedByNameServer as refused:
            if _TAKEN in str(refused):
                return False
            raise
        return True

    def remove(self, member: Member, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> bool:
        """Remove ``member``. Return False if it is not registered, or if another incarnation has its name."""
        deadline = Deadline(timeout)
        # Two requests, as Pyro5 has no conditional removal. A node whose entry is removed by mistake registers again.
        listed = self._listing(deadline).members
        entry = next((entry for entry in listed if entry.name == member.name), None)
        if entry is not None and entry.incarnation != member.incarnation:
            return False
        return bool(self._ask(deadline, "remove a node", "remove", member.name))

    def close(self) -> None:
        """Close the connection that is kept."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _listing(self, deadline: Deadline) -> Listing:
        purpose = "list the nodes"
        listed = self._ask(deadline, purpose, "list", "cache.", None, True, if_refused=_REFUSED)
        if listed is _REFUSED:  # Pyro5 cannot write entries without metadata in msgpack
            addresses = self._ask(deadline, purpose, "list", "cache.", None, False)
            listed = {name: (uri, ()) for name, uri in addresses.items()}
            listed.update(self._ask(deadline, purpose, "yplookup", ["pyrocache"], None, True))
        if not self._keep:
            return _listing(listed)
        # A node asks twice a second, and to read a long listing takes 40 times as long as to compare it.
        if listed != self._listed:
            self._listed, self._read = listed, _listing(listed)
        return self._read._replace(connection=self._opened)

    def _ask(
        self,
        deadline: Deadline,
        purpose: str,
        method: str,
        *arguments: Any,
        if_refused: Any = None,
        over: int = 0,
    ) -> Any:
        """Call a method. Return its result, or ``if_refused``, unless that is None, if the call is refused.

        Args:
            over: the number of the connection to use, 0 for any.

        Raises:
            NameServerUnavailable: there was no reply, a refusal, or a listing that is not a dict.
        """
        kept = self._kept is not None and not over and method in _LISTINGS
        try:
            try:
                return self._exchange(deadline, method, arguments, over)
            except ConnectionError as error:
                if not kept or came_from_outside(error):
                    raise
                # The name server may have closed the kept connection just now.
                return self._exchange(deadline, method, arguments, over)
        except Refused as refused:
            if if_refused is not None:
                return if_refused
            where = format_address(self._server.host, self._server.port)
            unavailable = _RefusedByNameServer(f"The name server at {where} refused to {purpose}: {refused}")
            unavailable.overloaded = refused.refusal.code == refusals.OVERLOADED
            raise unavailable from None
        except BROKEN as error:
            if not broken(error):
                raise
            raise self._unavailable(purpose, error, answered=self._connected) from None

    def _exchange(self, deadline: Deadline, method: str, arguments: tuple[Any, ...], over: int) -> Any:
        """Call a method over the kept connection if there is one, as `_ask`. Raises `Refused` or one of `BROKEN`."""
        connection, self._kept = self._kept, None
        self._connected = reusable = False
        try:
            if over not in (0, self._opened):
                raise ConnectionResetError
            if connection is None or not self._may_go_on(connection):
                if connection is not None:
                    connection.close()
                if over:
                    raise ConnectionResetError
                connection = self._connect(self._server, "tcp", self._caller)
                self._opened += 1
            try:
                self._finish_opening(connection, deadline)
            except TimeoutError as error:
                reusable = connection.opening or isinstance(error, OpenedTooLate)
                raise
            self._note_stranger(connection)
            try:
                answer = connection.call(method, arguments, deadline)
            except Refused:
                reusable = True
                raise
            if method in _LISTINGS and type(answer) is not dict:
                raise ProtocolError("a listing is a dict")
            reusable = True
            return answer
        finally:
            if connection is not None:
                self._connected = connection.connected
                if reusable and self._keep:
                    self._kept = connection
                else:
                    connection.close()

    def _finish_opening(self, connection: Connection, deadline: Deadline) -> None:
        """Open a connection. If it is kept and little time is left, leave the query to the next call."""
        if not connection.opened:
            connection.finish_opening(deadline)
            if self._keep and deadline.remaining() < deadline.seconds / 2:
                raise OpenedTooLate

    def _may_go_on(self, connection: Connection) -> bool:
        """Return whether a kept connection can be used, or is worth to be opened further."""
        return connection.usable() if connection.opened else connection.may_open()

    def _note_stranger(self, connection: Connection) -> None:
        """Warn once, if this process has a secret, of a name server that does not."""
        if self._caller.place and not connection.proved:
            address = format_address(self._server.host, self._server.port)
            if _strangers.admit(address):
                logger("pyrocache.net").warning(
                    "The name server at %s does not prove the secret: any user of this host may run it. Nodes still "
                    "must. `pyrocache nameserver` is one that proves it.",
                    address,
                )

    def _unavailable(self, purpose: str, error: BaseException, *, answered: bool) -> NameServerUnavailable:
        host, port = self._server.host, self._server.port
        where = format_address(host, port)
        if shortage := explain(error):
            return NameServerUnavailable(
                f"The name server at {where} cannot be asked to {purpose}: {shortage}."
            )
        if isinstance(error, HandshakeRefused) and error.code in UNPROVEN:
            text = f"The name server at {where} cannot be asked to {purpose} ({error}). {error.advice}"
            return UnprovenNameServer(text.rstrip())
        if isinstance(error, HandshakeRefused) and error.code == OVERLOADED:
            unavailable = NameServerUnavailable(
                f"The name server at {where} cannot be asked to {purpose} ({error})."
            )
            unavailable.overloaded = True
            return unavailable
        if isinstance(error, HandshakeRefused) and error.code == OTHER_PROTOCOL:
            text = f"The name server at {where} cannot be asked to {purpose}, as {error.reason}."
            return NameServerUnavailable(text)
        if answered and isinstance(error, TimeoutError):
            remedy = "what listens there did not answer in time. It hangs, or is no Pyro5 name server."
        elif answered:
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
        unavailable.refused = isinstance(error, ConnectionRefusedError)
        return unavailable


def _metadata(member: Member) -> list[str]:
    metadata = ["pyrocache", f"weight={float(member.weight)!r}", f"incarnation={member.incarnation}"]
    if member.cluster:
        metadata.append(f"cluster={member.cluster}")
    if member.zone:
        metadata.append(f"zone={member.zone}")
    return [*metadata, f"unix={member.socket_path}"] if member.socket_path else metadata


def _listing(entries: dict[Any, Any]) -> Listing:
    """Return what is valid among entries, which any peer can have written."""
    members, cluster, first, reserved = [], "", 0, 0
    views: dict[int, ClusterView | None] = {}
    for name, entry in entries.items():
        if type(name) is not str:
            continue
        if name.startswith(PREFIX):
            members.append(member_from_entry(name, entry))
        elif name == CLUSTER:
            tags = _tags(entry)
            cluster = tags.get("cluster", "")
            cluster = cluster if is_id(cluster) else ""
            first, reserved = (
                int(tags[name]) if _NUMBER.fullmatch(tags.get(name, "")) else 0
                for name in ("first", "reserved")
            )
        elif (match := _VIEW_NAME.fullmatch(name)) is not None:
            views[int(match[1])] = view_from_metadata(int(match[1]), _metadata_of(entry))
    own = [view for view in views.values() if view is not None and view.cluster == cluster]
    own.sort(key=lambda view: -view.number)
    # A view that a node of the version before has made tells no zones, but each node has registered its own.
    zones = {member.identity: member.zone for member in members if member is not None and member.zone}
    own = [with_zones(view, zones) for view in own] if zones else own
    following = max(own[0].number + 1, reserved) if own else first
    obstacle = following if following in views else 0
    valid = [member for member in members if member is not None]
    ours = tuple(member for member in valid if member.cluster in ("", cluster) or not cluster)
    strangers = bool(cluster) and len(ours) < len(valid)
    return Listing(cluster, first, tuple(own), ours, strangers, obstacle, reserved=reserved)


def _metadata_of(entry: Any) -> list[str]:
    """Return the metadata of an entry; none if it is malformed."""
    if (
        not isinstance(entry, (list, tuple))
        or len(entry) != 2
        or not isinstance(entry[1], (list, tuple, set))
    ):
        return []
    return [line for line in entry[1] if type(line) is str]


def _tags(entry: Any) -> dict[str, str]:
    return dict(line.split("=", 1) for line in _metadata_of(entry) if "=" in line)


def member_from_entry(name: Any, entry: Any) -> Member | None:
    """Return the node of one entry, a URI and metadata; None if it is malformed."""
    try:
        uri = entry[0]
        if type(uri) is dict:  # a Pyro5 URI in msgpack: protocol, object, socket name, host, port
            protocol, object_id, _, host, port = uri["state"]
            uri = f"{protocol}:{object_id}@{format_address(host, port)}"
        match = _URI.fullmatch(uri)
        if match is None or match[1] != name:
            return None
        host, port = parse_address(match[2], default_port=0)
        tags = _tags(entry)
        weight, incarnation, path, cluster, zone = (
            tags.get(tag, "") for tag in ("weight", "incarnation", "unix", "cluster", "zone")
        )
        # A forged entry must not make clients connect to an arbitrary Unix socket.
        path = path if is_socket_path(path, incarnation) else ""
        if not (is_id(incarnation) and is_id(cluster)):
            return None
        zone = zone if is_zone(zone) else ""
        return Member(name, host, port, float(weight or 1.0), incarnation, path, cluster, zone)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if came_from_outside(error):
            raise
        return None
