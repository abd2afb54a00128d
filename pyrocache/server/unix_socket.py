"""The Unix socket of a node: where its path is, and how the paths of dead nodes are removed.

Clients on the node's host use it instead of TCP. It is in a directory of this user alone (mode 0700), so that nobody
else can connect, and its name is the node's incarnation, so that it never becomes another node's. A node that is
killed leaves its path behind; the next one that starts removes every path that nobody answers on. To make that safe, a
socket gets its final name only when it listens. Any thread may call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import tempfile
from pathlib import Path

log = logging.getLogger("pyrocache.node")

_LONGEST_PATH = 100  # bytes; the least that platforms allow is 104
_SUFFIX = ".sock"


def listen(incarnation: str) -> tuple[socket.socket, str] | None:
    """Return a listening socket and its path, to be removed when the node ends; None where there can be none."""
    try:
        path = _directory() / f"{incarnation}{_SUFFIX}"
        return _listen(path), os.fspath(path)
    except (OSError, AttributeError) as error:  # no such family, no directory, a path too long
        log.warning("This node is reached over TCP alone: it has no Unix socket (%s).", error)
        return None


def remove(path: str) -> None:
    """Remove the path of a socket, if it is there."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def _listen(path: Path) -> socket.socket:
    unfinished = path.with_suffix("")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise OSError("the path of the directory for temporary files is too long")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(unfinished))
        listener.listen(1024)
        unfinished.rename(path)
    except BaseException:
        listener.close()
        unfinished.unlink(missing_ok=True)
        raise
    return listener


def _directory() -> Path:
    """Return this user's directory for sockets, after removing those of dead nodes. It is made if need be.

    Raises:
        OSError: it cannot be made, or others may enter it.
    """
    directory = Path(tempfile.gettempdir()) / f"pyrocache-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{directory} is not a directory of this user alone")
    for path in directory.glob(f"*{_SUFFIX}"):
        if _nobody_answers(path):
            path.unlink(missing_ok=True)
    return directory


def _nobody_answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(os.fspath(path)) == errno.ECONNREFUSED
