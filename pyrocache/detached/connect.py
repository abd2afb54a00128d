"""`connect`: a client of the cluster that this user has, or of a detached one that is started. `stop` ends that one.

A detached cluster belongs to no program: its processes have a session of their own. Its keeper (`pyrocache.cli.keeper`)
ends it. `place` has the files by which programs find it, and the locks that decide races.

Thread safety: thread-safe, and usable in a forked child.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pyrocache.client.client import PyroCacheClient
from pyrocache.config import (
    DEFAULT_NAMESERVER,
    NodeConfig,
    format_size,
    parse_size,
    to_seconds,
)
from pyrocache.detached.place import LockedFile, Log, Place, Record, Running, usable
from pyrocache.errors import (
    AuthenticationError,
    CacheUnavailable,
    ConfigurationError,
    NameServerUnavailable,
    PyroCacheError,
)
from pyrocache.late_imports import quoted
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import NameServerDirectory
from pyrocache.runtime import interpreter
from pyrocache.runtime.child_process import START_SECONDS, start_detached
from pyrocache.runtime.log import logger
from pyrocache.runtime.secret import Secret, find_secret
from pyrocache.settings import in_force

_KEEPER = "pyrocache.cli.keeper"
_MOST_NODES = 256  # as for `pyrocache nodes`
_USUAL_SECONDS = 0.8  # for the usual address, where something else may listen that does not answer
_POLL_SECONDS = 0.02
_STOP_SECONDS = 15.0  # nodes get five to end, and are killed then
_QUOTED_LINES = 5
_QUOTED_BYTES = 2000

_ADVICE = "If the cluster was stopped, call pyrocache.connect() again."


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The cluster to start if there is none. Raises `ConfigurationError` if it cannot be."""

    nodes: int
    max_memory: int
    idle_timeout: float | None

    @classmethod
    def of(cls, nodes: int, max_memory: int | str, idle_timeout: float | timedelta | None) -> _Wanted:
        if isinstance(nodes, bool) or not isinstance(nodes, int) or not 1 <= nodes <= _MOST_NODES:
            raise ConfigurationError(
                f"nodes must be a number of nodes from 1 to {_MOST_NODES}, not {nodes!r}."
            )
        seconds = None if idle_timeout is None else to_seconds(idle_timeout, "idle_timeout", zero=False)
        memory = NodeConfig(max_memory=parse_size(max_memory)).max_memory
        return cls(nodes, memory, seconds)


def connect(
    *,
    nodes: int = 3,
    max_memory: int | str = "1GiB",
    idle_timeout: float | timedelta | None = 3600.0,
    quiet: bool = False,
    **client_options: Any,
) -> PyroCacheClient:
    """Return a client of your cluster; start a detached one if there is none.

    It uses the first of these:

    1. the name server that ``$PYROCACHE_NAMESERVER`` or your settings file names;
    2. the one at ``127.0.0.1:9090``, if it has your secret and knows nodes;
    3. your detached cluster, which an earlier call in any of your programs has started;
    4. a detached cluster that it starts now, on free loopback ports.

    A detached cluster keeps running when your program ends or is interrupted, the kernel is restarted, or the terminal
    is closed. There is one for each user and directory for temporary files. It ends after ``idle_timeout`` without
    clients, or with ``pyrocache stop``; its entries are lost then.

    In a notebook or another interactive session, a line is printed that says which cluster it is; elsewhere, it is
    logged by ``pyrocache.connect`` at level INFO.

    Args:
        nodes: the number of nodes to start.
        max_memory: bytes of entries that *each* node stores at most, as a number or like ``"256MiB"``. Memory is taken
            as entries are stored.
        idle_timeout: seconds, or a timedelta, without clients after which the cluster ends; None for never. A client
            that this function returned counts until it is closed or garbage-collected, or its program ends, even if it
            is unused. Other clients count from their first call until they disconnect.
        quiet: neither print nor log the line that says which cluster is used.
        client_options: those of `PyroCacheClient`, without ``nameserver``.

    ``nodes``, ``max_memory`` and ``idle_timeout`` are for a cluster that is started. One that runs is used as it is.

    Raises:
        ConfigurationError: an argument is not valid, or it is called inside a node or a name server.
        CacheUnavailable, AuthenticationError: the configured cluster cannot be used. No other one is started beside it.
        OutOfResources: there is no directory for the files of a detached cluster, or no process can be started.
        PyroCacheError: the cluster did not start, for the reason that it gives. The error names its log.
    """
    interpreter.refuse_in_a_child()
    if "nameserver" in client_options:
        raise ConfigurationError(
            "connect() finds the name server by itself: for one that you name, use PyroCacheClient(nameserver)."
        )
    wanted = _Wanted.of(nodes, max_memory, idle_timeout)
    found = _configured(client_options) or _usual(client_options)
    if found is None:
        with usable():
            found = _detached(wanted, client_options)
    client, line = found
    if not quiet:
        _tell(line)
    return client


def stop() -> str | None:
    """End the detached cluster of this user, and wait until it has ended. Return its address; None if there is none.

    Raises:
        PyroCacheError: it cannot be ended, or another program has been starting it for too long.
    """
    place = Place()
    # A start that is under way is waited for, and no other one begins meanwhile.
    with usable():
        lock = place.starting(START_SECONDS)
    if lock is None:
        raise PyroCacheError(
            f"Another program has been starting or stopping a cluster for {START_SECONDS:g} s. See {place.log}"
        )
    try:
        running = place.running()
        if running is None:
            return None
        for number in (signal.SIGTERM, signal.SIGKILL):
            running.signal(number)
            running.signal(signal.SIGCONT)  # a stopped process does not handle SIGTERM until it continues
            if running.wait(_STOP_SECONDS):
                return running.record.address
    finally:
        lock.close()
    raise PyroCacheError(
        f"Process {running.record.pid}, the keeper of the cluster, does not end. See {place.log}"
    )


def address_of_commands() -> str:
    """Return the address of the name server that commands ask if none is configured or given, as `connect` finds it.

    That is the usual one, unless a detached cluster runs and there is none of this user at the usual address. Starts
    nothing, and raises no error: a command tells what is wrong with the address that it asks.
    """
    with suppress(PyroCacheError):
        running = Place.existing().running()
        if running is not None and not _count_at_usual_address({}):
            return running.record.address
    return DEFAULT_NAMESERVER


def _configured(options: dict[str, Any]) -> tuple[PyroCacheClient, str] | None:
    """Return a client of the configured cluster, if there is one, and the line about it."""
    found = in_force().found.get("nameserver")
    if found is None:
        return None
    client = PyroCacheClient(found.value, **options)
    return client, f"Connected to the cluster at {found.value} ({_count(client)}, from {found.source})."


def _usual(options: dict[str, Any]) -> tuple[PyroCacheClient, str] | None:
    """Return a client of the cluster at the usual address, if it is this user's, and the line about it."""
    count = _count_at_usual_address(options)
    if not count:
        return None
    client = PyroCacheClient(DEFAULT_NAMESERVER, **options)
    return client, f"Connected to the cluster at {DEFAULT_NAMESERVER} ({_nodes(count)})."


def _count_at_usual_address(options: dict[str, Any]) -> int:
    """Return how many nodes this user's name server at the usual address knows; 0 if there is none."""
    tls = options.get("tls")
    caller = knowing(_secret(options), tls=in_force().tls if tls is None else tls)
    try:
        return len(NameServerDirectory(DEFAULT_NAMESERVER, caller=caller).members(_USUAL_SECONDS))
    except NameServerUnavailable:  # or it has not proved the secret
        return 0


def _detached(wanted: _Wanted, options: dict[str, Any]) -> tuple[PyroCacheClient, str]:
    """Return a client of the detached cluster, which is started if need be, and the line about it."""
    secret, place = _secret(options), Place()
    give_up_at = time.monotonic() + START_SECONDS
    started = False
    while True:
        last = time.monotonic() >= give_up_at
        running = place.running()
        if running is not None:
            client = _client_of(running, options, place if last else None)
            if client is not None:
                record = running.record
                return client, _of_started(record) if started else _of_running(record, wanted, time.time())
        elif (lock := place.starting()) is not None:
            try:
                # Check again: it may have become ready between the two looks.
                if place.running() is None:
                    _start(place, lock, wanted, secret)
                    started = True
            finally:
                lock.close()
            continue
        if last:
            raise PyroCacheError(
                f"Another program has been starting or stopping your cluster for {START_SECONDS:g} s. See its log, "
                f"{place.log}, or end it with: pyrocache stop"
            )
        time.sleep(_POLL_SECONDS)


def _client_of(running: Running, options: dict[str, Any], last_of: Place | None) -> PyroCacheClient | None:
    """Return a client of a detached cluster; None if that is ending, or does not answer yet.

    Args:
        last_of: where it is written down, if this is the last attempt.

    Raises:
        AuthenticationError: the cluster was started with another secret.
        PyroCacheError: it does not answer at the last attempt.
    """
    joined = running.join()
    if joined is None:
        return None
    try:
        # Nothing leaves this host, and the settings file may ask for TLS with other clusters.
        options = {**options, "tls": False} if options.get("tls") is None else options
        client = PyroCacheClient(running.record.address, **options)
        client.nodes()
    except BaseException as error:
        joined.close()
        if not isinstance(error, CacheUnavailable) or isinstance(error, AuthenticationError):
            raise
        if last_of is not None and running.alive():
            raise PyroCacheError(
                f"Your cluster at {running.record.address} does not answer, although its keeper lives. See its log, "
                f"{last_of.log}, or end it with: pyrocache stop"
            ) from None
        return None  # its name server is being started again, perhaps
    client._context.backend.keeps_alive = joined
    client._context.backend.advise(_ADVICE)
    return client


def _start(place: Place, lock: LockedFile, wanted: _Wanted, secret: Secret) -> None:
    """Start a detached cluster, and wait until it is ready.

    The keeper inherits the lock, so an interrupt leaves the start under way, which others then wait for.

    Raises:
        PyroCacheError: it did not start.
    """
    settings = {
        "nodes": wanted.nodes,
        "max_memory": wanted.max_memory,
        "idle_timeout": wanted.idle_timeout,
        "directory": place.directory,
        "secret": secret.for_child(),
        "lock": lock.descriptor,
    }
    with Log(place.log) as log:
        log.shorten()
        began_at = os.fstat(log.descriptor).st_size
        try:
            answer = start_detached(
                _KEEPER,
                settings,
                output=log.descriptor,
                descriptors=(lock.descriptor,),
                timeout=START_SECONDS,
            )
        except TimeoutError:
            raise PyroCacheError(
                f"Your cluster was not ready after {START_SECONDS:g} s. Is the machine busy? If so, call "
                f"pyrocache.connect() again; else see its log, {place.log}"
            ) from None
        if answer is None:
            written = os.pread(log.descriptor, os.fstat(log.descriptor).st_size, began_at)[-_QUOTED_BYTES:]
            lines = written.decode(errors="replace").strip().splitlines()[-_QUOTED_LINES:]
            answer = {"error": "\n".join(lines) or "Its keeper ended without a reason."}
    if "error" in answer:
        raise PyroCacheError(f"Your cluster did not start. {answer['error']}\nIts log: {place.log}")


def _secret(options: dict[str, Any]) -> Secret:
    path = options.get("secret_file")
    return find_secret(in_force().get("secret_file") if path is None else path)


def _count(client: PyroCacheClient) -> str:
    """Return how many nodes there are. Close the client if that cannot be found out."""
    try:
        return _nodes(len(client.nodes()))
    except BaseException:
        client.close()
        raise


def _nodes(count: int) -> str:
    return f"{count} node{'s' * (count != 1)}"


def _of_started(record: Record) -> str:
    idle = (
        "" if record.idle_timeout is None else f"after {_duration(record.idle_timeout)} without clients, or "
    )
    return (
        f"Started a cluster of {_nodes(record.nodes)} at {record.address} "
        f"(in a terminal: pyrocache status --nameserver {quoted(record.address)}). "
        f"It ends {idle}with: pyrocache stop"
    )


def _of_running(record: Record, wanted: _Wanted, now: float) -> str:
    age = _duration(max(1.0, now - record.started_at))  # clocks may be set back
    memory = format_size(record.max_memory)
    line = (
        f"Connected to your cluster at {record.address} ({_nodes(record.nodes)}, started {age} ago; in a terminal: "
        f"pyrocache status --nameserver {quoted(record.address)})."
    )
    if (record.nodes, record.max_memory) == (wanted.nodes, wanted.max_memory):
        return line
    return (
        f"{line} It is used as it is, with {_nodes(record.nodes)} of {memory}, not {wanted.nodes} of "
        f"{format_size(wanted.max_memory)}: to change that, run pyrocache stop, and connect again."
    )


def _duration(seconds: float) -> str:
    """Return a duration as people say it, rounded down: ``90 s``, ``12 min``, ``1 h``, ``3 days``."""
    for unit, size, least in (("days", 86400.0, 172800.0), ("h", 3600.0, 3600.0), ("min", 60.0, 120.0)):
        if seconds >= least:
            return (
                f"{seconds / size:.3g} {unit}"
                if not seconds % (size / 2)
                else f"{int(seconds / size)} {unit}"
            )
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.2g} s"


def _tell(line: str) -> None:
    """Print a line for the person at an interactive session; else log it."""
    if hasattr(sys, "ps1") or sys.flags.interactive:  # IPython and its kernels set ps1 as well
        with suppress(OSError, ValueError):  # nobody reads it
            print(line, flush=True)
    else:
        logger("pyrocache.connect").info(line)
