"""Where the detached cluster of a user is written down, and the locks that say what is alive.

The files are in the private directory (`runtime.private_directory`). All locks are those of flock(2): the kernel frees
them when the last descriptor of an opened file is closed, however its process ends.

====================  ===========================================================================================
``cluster.json``      The record of the running cluster. Its keeper has locked the file before it gave it this
                      name, and holds the lock as long as it lives. A record that nobody has locked is a stale one;
                      a locked one is that of the process that has locked it, whatever became of the name.
``cluster.start``     Locked by who starts a cluster: by the starter, which passes the descriptor on to the keeper,
                      until the keeper has written its record or has ended; also by who stops one.
``cluster.*.clients`` Locked, shared, by each client that `pyrocache.connect` returned, until it is closed. Each keeper
                      has such a file of its own, so clients of an earlier one do not count. It ends for want of
                      clients only with the exclusive lock, which it keeps: no client can come too late unnoticed.
``cluster.log``       What the keeper and its processes report, the last part of it.
====================  ===========================================================================================

A forked child closes the descriptors that it inherits: otherwise a lock would outlive its holder.

Does not start or end processes.

Thread safety: each object belongs to one thread; several threads and processes may each have their own.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from glob import escape, glob
from typing import Self

from pyrocache.errors import OutOfResources, PyroCacheError
from pyrocache.runtime import at_fork, private_directory
from pyrocache.runtime.shortage import explain
from pyrocache.tracebacks import came_from_outside

_RECORD = "cluster.json"
_START = "cluster.start"
_LOG = "cluster.log"
_CLIENTS = ".clients"
_TEMPORARY = ".new"
_POLL_SECONDS = 0.02
_LONGEST_LOG_BYTES = 2**20
_KEPT_LOG_BYTES = 64 * 1024


@contextmanager
def usable() -> Iterator[None]:
    """Raise `OutOfResources` in place of an `OSError` about the files or the start of a cluster."""
    try:
        yield
    except OSError as error:
        if isinstance(error, PyroCacheError) or came_from_outside(error):  # some are both
            raise
        raise OutOfResources(
            f"There can be no detached cluster here: {explain(error) or error.strerror or error}. Set TMPDIR to a "
            "directory that you can write to, or start nodes with: pyrocache nodes --with-nameserver"
        ) from None


class LockedFile:
    """An open file, closed on `close`, when it is collected, and in a forked child."""

    def __init__(self, path: str, *, create: bool = False, append: bool = False) -> None:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= (os.O_CREAT if create else 0) | (os.O_APPEND if append else 0)
        self.path = path
        self.descriptor = os.open(path, flags, 0o600)
        self.close = weakref.finalize(self, os.close, self.descriptor)  # a second call does nothing
        self.close.atexit = False
        at_fork.in_child(self._close)

    def lock(self, *, shared: bool = False) -> bool:
        """Lock the file without waiting. Return False if another open file has a lock that excludes this one."""
        try:
            fcntl.flock(self.descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if came_from_outside(error):
                raise
            return False
        return True

    def unlock(self) -> None:
        """Free the lock."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def is_locked(self) -> bool:
        """Return whether another open file has it locked exclusively."""
        if not self.lock(shared=True):
            return True
        self.unlock()
        return False

    def _close(self) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a keeper tells of itself and of its cluster.

    Attributes:
        address: ``host:port`` of the name server.
        nodes: the number of nodes that it keeps.
        max_memory: bytes of entries that each node stores at most.
        idle_timeout: seconds without clients after which it ends; None for never.
        pid: its process id.
        started_at: seconds since the epoch.
        clients: the path of the file that its clients lock.
    """

    address: str
    nodes: int
    max_memory: int
    idle_timeout: float | None
    pid: int
    started_at: float
    clients: str


class Running:
    """A detached cluster whose keeper was alive a moment ago.

    Args:
        record: what its keeper has written.
        file: that it was read from.
    """

    def __init__(self, record: Record, file: LockedFile) -> None:
        self.record = record
        self._file = file

    def alive(self) -> bool:
        """Return whether its keeper is still alive."""
        return self._file.is_locked()

    def join(self) -> LockedFile | None:
        """Return what counts as a client until it is closed; None if the cluster is ending, or has ended."""
        try:
            file = LockedFile(self.record.clients)
        except FileNotFoundError as error:
            if came_from_outside(error):
                raise
            return None
        joined = False
        try:
            joined = file.lock(shared=True) and self.alive()
            return file if joined else None
        finally:
            if not joined:  # also after Ctrl-C: a notebook keeps the exception, and all that it refers to
                file.close()

    def signal(self, number: signal.Signals) -> None:
        """Send its keeper a signal, unless that has ended: its process id may be another process's by then."""
        keeper = None
        with suppress(AttributeError, OSError):  # not on macOS, in old kernels, and in some sandboxes
            keeper = os.pidfd_open(self.record.pid)
        try:
            # Alive after the descriptor was opened: so that is the keeper's, and stays so when it ends now.
            if self.alive():
                with suppress(ProcessLookupError):
                    if keeper is None:
                        os.kill(self.record.pid, number)
                    else:
                        signal.pidfd_send_signal(keeper, number)
        finally:
            if keeper is not None:
                os.close(keeper)

    def wait(self, seconds: float) -> bool:
        """Wait until its keeper has ended. Return whether it has."""
        give_up_at = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() >= give_up_at:
                return False
            time.sleep(_POLL_SECONDS)
        return True


class Place:
    """The files of this user's detached cluster.

    Args:
        directory: where they are; None for the private directory, which is made if need be.

    Raises:
        OutOfResources: the directory cannot be used.
    """

    def __init__(self, directory: str | None = None) -> None:
        with usable():
            self.directory = private_directory.make() if directory is None else directory
        self.log = os.path.join(self.directory, _LOG)

    @classmethod
    def existing(cls) -> Self:
        """Return the place without making its directory. Raises `OutOfResources` if it cannot be used."""
        with usable():
            return cls(private_directory.path())

    def running(self) -> Running | None:
        """Return the cluster that is running; None if there is none.

        Raises:
            OutOfResources: its record cannot be read.
        """
        path = os.path.join(self.directory, _RECORD)
        try:
            file = LockedFile(path)
        except FileNotFoundError as error:
            if came_from_outside(error):
                raise
            return None
        try:
            if not file.is_locked():
                return None
            with open(file.descriptor, "rb", closefd=False) as opened:
                record = Record(**json.load(opened))
        except (ValueError, TypeError) as error:
            if came_from_outside(error):
                raise
            raise OutOfResources(
                f"{path} is not the record of a cluster that this version of pyrocache can read: end that cluster with "
                "the pyrocache that has started it, or remove the file."
            ) from None
        return Running(record, file)

    def starting(self, seconds: float = 0.0) -> LockedFile | None:
        """Return the lock of who starts or stops a cluster, after at most so many seconds; None if another has it."""
        give_up_at = time.monotonic() + seconds
        file = LockedFile(os.path.join(self.directory, _START), create=True)
        locked = False
        try:
            while not (locked := file.lock()):
                if time.monotonic() >= give_up_at:
                    return None
                time.sleep(_POLL_SECONDS)
            return file
        finally:
            if not locked:
                file.close()


class Written:
    """The record of this process, a keeper. It counts as alive until `close`, or until the process ends.

    Args:
        place: where to write it. The caller has the lock of `Place.starting`.
        address, nodes, max_memory, idle_timeout: as in `Record`.
    """

    def __init__(
        self, place: Place, *, address: str, nodes: int, max_memory: int, idle_timeout: float | None
    ) -> None:
        for ending in (_CLIENTS, _TEMPORARY):  # of keepers that were killed
            for left_over in glob(os.path.join(escape(place.directory), f"cluster.*{ending}")):
                with suppress(OSError):
                    os.unlink(left_over)
        name = os.path.join(place.directory, f"cluster.{secrets.token_hex(8)}")
        self._clients = LockedFile(name + _CLIENTS, create=True)
        self._path = os.path.join(place.directory, _RECORD)
        self._file = LockedFile(name + _TEMPORARY, create=True)
        self._file.lock()  # before anybody can find it
        record = Record(
            address=address,
            nodes=nodes,
            max_memory=max_memory,
            idle_timeout=idle_timeout,
            pid=os.getpid(),
            started_at=time.time(),
            clients=self._clients.path,
        )
        os.write(self._file.descriptor, json.dumps(asdict(record)).encode())
        os.replace(self._file.path, self._path)

    def has_clients(self) -> bool:
        """Return whether a client has joined that is still open."""
        if not self._clients.lock():
            return True
        self._clients.unlock()
        return False

    def shut_out(self) -> bool:
        """Let no client join any more, unless there is one. Return whether that was done."""
        return self._clients.lock()

    def touch(self) -> None:
        """Keep the files from being removed for their age, as temporary files are."""
        for file in (self._file, self._clients):
            with suppress(
                OSError
            ):  # a file system that is read-only by now, for example: that ends no cluster
                os.utime(file.descriptor)

    def withdraw(self) -> None:
        """Remove the files, so that a new cluster can be started. This keeper stays alive for who has found it."""
        for file, path in ((self._file, self._path), (self._clients, self._clients.path)):
            with suppress(OSError):
                if os.path.samestat(os.stat(path), os.fstat(file.descriptor)):
                    os.unlink(path)


class Log:
    """The log of a keeper, which several processes append to.

    Args:
        path: where it is; it is made if need be.
    """

    def __init__(self, path: str) -> None:
        self._file = LockedFile(path, create=True, append=True)

    @property
    def descriptor(self) -> int:
        """What to write to."""
        return self._file.descriptor

    def shorten(self) -> None:
        """Keep only the last part if it has become long. What is written at that moment is lost."""
        size = os.fstat(self.descriptor).st_size
        if size > _LONGEST_LOG_BYTES:
            with suppress(OSError):  # a full disk, for example: that ends no cluster
                last = os.pread(self.descriptor, _KEPT_LOG_BYTES, size - _KEPT_LOG_BYTES)
                os.ftruncate(self.descriptor, 0)
                os.write(self.descriptor, last.partition(b"\n")[2])  # from the beginning of a line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
