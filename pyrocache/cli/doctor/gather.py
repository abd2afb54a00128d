"""Observes a cluster and this host for ``pyrocache doctor``: all of its I/O is here.

Each step is bounded: connections by a deadline, and what the system may block in, such as the resolution of a host
name, by not waiting for its thread any longer. Nodes are asked in parallel. Nothing is written or changed, and no
secret is made.

Thread safety: `observe` is for the main thread. Its daemon threads, in which no signal handler runs, do the rest.
"""

from __future__ import annotations

import os
import re
import resource
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pyrocache import __version__
from pyrocache.cli.doctor import tls_files
from pyrocache.cli.doctor.observed import (
    Cause,
    CertificateSeen,
    HostSeen,
    KeyFileSeen,
    NameServerSeen,
    NodeSeen,
    Observed,
    Way,
)
from pyrocache.client.stats import NodeStats, is_stats
from pyrocache.cluster.routing import Member
from pyrocache.config import TLS, Encryption, TransportChoice, is_loopback, parse_address
from pyrocache.errors import ConfigurationError, NameServerUnavailable, PyroCacheError
from pyrocache.net.call_protocol import Caller
from pyrocache.net.channel import Endpoint
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import Listing, NameServerDirectory, UnprovenNameServer
from pyrocache.net.failures import BROKEN, Refused, unavailable
from pyrocache.protocol.handshake import (
    NO_SECRET,
    OTHER_CERTIFICATE,
    OTHER_SECRET,
    PROTOCOL,
    Greeting,
    HandshakeRefused,
)
from pyrocache.runtime import private_directory, secret_file
from pyrocache.runtime.secret import Key, existing

_PINGS = 5
_SETTLING_SECONDS = 1.0  # a change of the view takes less
_LONGEST_SOCKET_PATH = 100  # as in `server.unix_socket`
_STEPS = 4  # of a thread, each of which has a timeout of its own
_ALL_AT_ONCE = 64  # nodes
_START = "start one with: "  # the remedy in the error about a name server that does not exist
_CAUSES = {NO_SECRET: Cause.SECRET, OTHER_SECRET: Cause.SECRET, OTHER_CERTIFICATE: Cause.CERTIFICATE}

_Answer = TypeVar("_Answer")


class Settings(NamedTuple):
    """What to observe.

    Attributes:
        nameserver: the address of the name server.
        source: where it is from, as a part of a sentence.
        tls: how connections are protected.
        secret_file, signing_key_file: the paths that were given.
        seconds: what each step may take.
    """

    nameserver: str
    source: str = ""
    tls: Encryption = None
    secret_file: str | None = None
    signing_key_file: str | None = None
    seconds: float = 2.0


def observe(settings: Settings) -> Observed:
    """Return what there is to see. Raises `ConfigurationError` if the address of the name server is not valid."""
    host, _ = parse_address(settings.nameserver)
    secret, keys = _secret(settings.secret_file)
    caller = Caller(
        Greeting(protocol=PROTOCOL),
        lambda: keys,
        trusting=True,
        place=secret.path or "no file",
        tls=settings.tls,
    )
    found = _bounded([lambda: _name_server(settings, caller)], _STEPS * settings.seconds)[0]
    server = found or NameServerSeen(address=settings.nameserver, way=_late(settings.seconds))
    return Observed(
        now=datetime.now(UTC),
        tls=settings.tls,
        certificates=tuple(tls_files.examine(settings.tls)) if isinstance(settings.tls, TLS) else (),
        secret=secret,
        signing_key=_key_file(settings.signing_key_file)[0] if settings.signing_key_file else None,
        name_server=replace(server, source=settings.source, on_loopback=is_loopback(host)),
        # Without a secret, each of them would refuse, and count it.
        nodes=_settled(server.listing, caller, settings.seconds) if keys else (),
        host=_host(),
    )


def _bounded(tasks: Sequence[Callable[[], _Answer]], seconds: float) -> list[_Answer | None]:
    """Do all tasks at the same time. Return what they have returned after so many seconds; None for the others.

    An exception of a task is raised here.
    """
    answers: list[_Answer | None] = [None] * len(tasks)
    errors: list[BaseException] = []

    def do(index: int) -> None:
        try:
            answers[index] = tasks[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=do, args=(index,), daemon=True) for index in range(len(tasks))]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    for error in errors:
        raise error
    return answers


def _late(seconds: float) -> Way:
    return Way(error=f"it did not answer within {seconds:g} s", cause=Cause.TIMED_OUT)


# Key files ---------------------------------------------------------------------------------------------------


def _secret(path: str | None) -> tuple[KeyFileSeen, Sequence[Key]]:
    """Return what there is to see of the secret, and its keys, which no observation has."""
    try:
        found = existing(path)
    except ConfigurationError as error:
        return KeyFileSeen(path=path or "", error=str(error)), ()
    return (KeyFileSeen(), ()) if found is None else _key_file(found)


def _key_file(path: str) -> tuple[KeyFileSeen, Sequence[Key]]:
    path = os.path.abspath(os.path.expanduser(path))
    try:
        keys = secret_file.read(path)
    except ConfigurationError as error:
        return KeyFileSeen(path=path, error=str(error)), ()
    temporary = Path(tempfile.gettempdir()) in Path(path).parents
    staged = keys.staged is not None
    return KeyFileSeen(path=path, keys=len(keys.all), staged=staged, temporary=temporary), keys.all


# Connections -------------------------------------------------------------------------------------------------


def _name_server(settings: Settings, caller: Caller) -> NameServerSeen:
    address, opened = settings.nameserver, list[Connection]()

    def connect(*arguments: Any) -> Connection:
        opened.append(Connection(*arguments))
        return opened[-1]

    directory = NameServerDirectory(address, connect=connect, caller=caller, keep=True)
    try:
        listing = directory.listing(settings.seconds)
        times = []
        for _ in range(_PINGS):
            began_at = time.perf_counter()
            directory.ping(settings.seconds)
            times.append(time.perf_counter() - began_at)
    except (NameServerUnavailable, ConfigurationError) as error:
        return _without_name_server(settings, error)
    finally:
        directory.close()
    way = Way(
        milliseconds=statistics.median(times) * 1000,
        proved=opened[-1].proved,
        certificate=_certificate("the certificate of the name server", opened[-1]),
    )
    return NameServerSeen(address=address, way=way, listing=listing)


def _without_name_server(settings: Settings, error: PyroCacheError) -> NameServerSeen:
    """Return what a name server is that was not asked."""
    cause = Cause.OTHER
    what, advice = _divided(str(error))
    if isinstance(error, ConfigurationError):  # files of TLS
        text = str(error).rstrip(".")
        what, advice = f"it was not asked: {text[0].lower()}{text[1:]}", ""
    elif isinstance(error, UnprovenNameServer):
        cause = _CAUSES.get(what.partition(": ")[0], Cause.OTHER)
    elif isinstance(error, NameServerUnavailable) and error.refused:
        what, cause = "nothing listens there", Cause.REFUSED
    elif isinstance(error, NameServerUnavailable) and error.timed_out:
        cause = Cause.TIMED_OUT
    elif advice.startswith(_START.capitalize()):
        advice = "Is its address right, is its host up, and does a firewall or a missing route keep this host from it?"
    return NameServerSeen(address=settings.nameserver, way=Way(error=what, cause=cause, advice=advice))


def _divided(text: str) -> tuple[str, str]:
    """Return what the error of a name server says is wrong, as a part of a sentence, and what it advises."""
    if refusal := re.search(r" \((.*)\)\. ?(.*)", text):
        return refusal[1], refusal[2]
    _, found, remedy = text.partition(f": {_START}")
    if found:
        return "it cannot be reached", f"{_START[0].upper()}{_START[1:]}{remedy}"
    what, _, advice = text.removesuffix(".").rpartition(": ")[2].partition(". ")
    return what, advice


def _certificate(place: str, connection: Connection) -> CertificateSeen | None:
    """Return what the other end of an open connection has presented; None without TLS."""
    certificate = getattr(connection, "peer_certificate", None)  # a dict, as of `ssl`
    return tls_files.presented(place, certificate) if certificate else None


class _Answers(NamedTuple):
    """What a node has said over one connection."""

    way: Way
    stats: dict[str, Any] = {}  # noqa: RUF012
    max_value_bytes: int = 0


class _OnlyUnix(NamedTuple):
    """A node's Unix socket, without its TCP address."""

    name: str
    incarnation: str
    cluster: str
    socket_path: str
    host: str = ""
    port: int = 0


def _ask(
    member: Member, endpoint: Endpoint, transport: TransportChoice, caller: Caller, seconds: float
) -> _Answers:
    """Ping a node some times, and ask it for its statistics."""
    deadline = Deadline(seconds)
    try:
        with closing(Connection(endpoint, transport, caller)) as connection:
            return _talk(member, connection, deadline)
    except Refused as refused:
        return _Answers(Way(error=f"it refused a request ({refused})", cause=Cause.OTHER))
    except ConfigurationError as error:  # files of TLS
        return _Answers(Way(error=str(error).rstrip("."), cause=Cause.OTHER))
    except BROKEN as error:
        return _Answers(_no_way(member, error, deadline))


def _talk(member: Member, connection: Connection, deadline: Deadline) -> _Answers:
    times = []
    connection.finish_opening(deadline)
    for _ in range(_PINGS):
        began_at = time.perf_counter()
        connection.call("ping", (), deadline)
        times.append(time.perf_counter() - began_at)
    way = Way(
        milliseconds=statistics.median(times) * 1000,
        proved=connection.proved,
        certificate=_certificate(f"the certificate of {member.name}", connection),
    )
    try:
        stats = connection.call("stats", (), deadline)
    except (Refused, *BROKEN):
        stats = None
    return _Answers(way, stats if is_stats(stats) else {}, connection.max_value_bytes)


def _no_way(member: Member, error: BaseException, deadline: Deadline) -> Way:
    text = str(unavailable(member, "", deadline, error, sent=False).error).partition(" failed: ")[2]
    what = text.removeprefix(f"{member.name} at {member.address} ").partition(". ")[0].rstrip(".")
    cause = Cause.OTHER
    if isinstance(error, HandshakeRefused):
        return Way(error=str(error), cause=_CAUSES.get(error.code, Cause.OTHER), advice=error.advice)
    if isinstance(error, ConnectionRefusedError):
        what, cause = "nothing listens there", Cause.REFUSED
    elif isinstance(error, TimeoutError):
        what, cause = f"it did not answer within {deadline.seconds:g} s", Cause.TIMED_OUT
    elif isinstance(error, (socket.gaierror, UnicodeError)):
        what, cause = "that host name has no address", Cause.UNRESOLVED
    return Way(error=what, cause=cause)


# Nodes -------------------------------------------------------------------------------------------------------


def _settled(listing: Listing, caller: Caller, seconds: float) -> tuple[NodeSeen, ...]:
    """Return the nodes; if their views differ, as they do during a change, after another look."""
    members = listing.view.members or listing.members
    nodes = _nodes(members, caller, seconds)
    if len({node.stats.view for node in nodes if node.stats}) > 1:
        time.sleep(_SETTLING_SECONDS)
        nodes = _nodes(members, caller, seconds)
    return nodes


def _nodes(members: Sequence[Member], caller: Caller, seconds: float) -> tuple[NodeSeen, ...]:
    nodes: list[NodeSeen] = []
    for start in range(0, len(members), _ALL_AT_ONCE):
        some = members[start : start + _ALL_AT_ONCE]
        found = _bounded([_task(member, caller, seconds) for member in some], _STEPS * seconds)
        nodes += [
            node or NodeSeen(member=member, tcp=_late(seconds))
            for member, node in zip(some, found, strict=True)
        ]
    return tuple(nodes)


def _task(member: Member, caller: Caller, seconds: float) -> Callable[[], NodeSeen]:
    return lambda: _node(member, caller, seconds)


def _node(member: Member, caller: Caller, seconds: float) -> NodeSeen:
    over_tcp = _ask(member, member, "tcp", caller, seconds)
    here = _is_here(member.host)
    over_unix = _over_unix(member, caller, seconds) if here and member.socket_path else None
    best = over_tcp if over_tcp.stats or over_unix is None else over_unix
    stats = NodeStats.from_wire(best.stats) if best.stats else None
    process = _process(stats.pid) if stats is not None and here else None
    version = best.stats.get("version", "")
    return NodeSeen(
        member=member,
        here=here,
        tcp=over_tcp.way,
        unix=over_unix.way if over_unix is not None else None,
        stats=stats,
        version=version if isinstance(version, str) else "",
        max_value_bytes=best.max_value_bytes,
        descriptors=_descriptors_of(process) if process else None,
        memory_limit=_memory_limit(process) if process else None,
    )


def _over_unix(member: Member, caller: Caller, seconds: float) -> _Answers:
    endpoint = _OnlyUnix(member.name, member.incarnation, member.cluster, member.socket_path)
    try:
        owner = os.lstat(member.socket_path).st_uid
    except PermissionError:
        return _Answers(Way(error="it belongs to another user", cause=Cause.OTHER))
    except OSError:
        return _Answers(Way(error=f"there is no {member.socket_path}", cause=Cause.OTHER))
    if owner != os.getuid():
        return _Answers(Way(error=f"it belongs to the user {owner}", cause=Cause.OTHER))
    answers = _ask(member, endpoint, "auto", caller, seconds)
    if answers.way.cause is Cause.UNRESOLVED:  # what `_OnlyUnix` has in place of an address
        return _Answers(Way(error=f"nothing listens at {member.socket_path}", cause=Cause.REFUSED))
    return answers


def _is_here(host: str) -> bool:
    """Return whether an address, or the first one of a host name, is one of this host."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind(address)
        return True
    except (OSError, UnicodeError):
        return False


# This host ---------------------------------------------------------------------------------------------------


def _host() -> HostSeen:
    directory, length = "", 0
    with suppress(OSError):
        directory = private_directory.path()
        length = len(os.fsencode(f"{directory}/{'0' * 16}.sock"))
    return HostSeen(
        version=__version__,
        memory=_memory(),
        descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],  # nodes raise theirs to the hard limit
        socket_directory=directory,
        socket_path_bytes=(length, _LONGEST_SOCKET_PATH),
    )


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _process(pid: int) -> Path | None:
    """Return where the system describes a node process; None if that is unknown."""
    path = Path("/proc") / str(pid)
    with suppress(OSError):  # no /proc, or another user's
        if b"pyrocache.node.process" in (path / "cmdline").read_bytes():  # else it is in another container
            return path
    return None


def _descriptors_of(process: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in (process / "limits").read_text().splitlines():
            if line.startswith("Max open files"):
                return int(line.split()[3])
    return None


def _memory_limit(process: Path) -> int | None:
    """Return the least limit of the control groups (version 2) that a process is in."""
    limits = []
    with suppress(OSError):
        line = (process / "cgroup").read_text().splitlines()[-1]
        root = Path("/sys/fs/cgroup")
        group = root / line.partition("::")[2].lstrip("/")
        while root in group.parents:
            with suppress(OSError, ValueError):
                limits.append(int((group / "memory.max").read_text()))  # or "max"
            group = group.parent
    return min(limits, default=None)
