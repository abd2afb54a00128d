"""The listening Unix socket of a node: the choice of its path, and the removal of paths that dead nodes left.

Clients on the node's host use it instead of TCP. It is in a directory that only this user can enter (mode 0700), so
that no other user can connect. The socket is named after the node's incarnation, a random id of its process, so no two
nodes ever share a path. A killed node leaves its path behind; the next node that starts removes every path on which
nothing listens. To make that safe, a socket gets its final name only when it listens.

Thread safety: thread-safe.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from pathlib import Path

from pyrocache.runtime import private_directory
from pyrocache.runtime.shortage import explain

log = logging.getLogger("pyrocache.node")

_LONGEST_PATH = 100  # bytes; the smallest limit of all platforms is 104
_SUFFIX = ".sock"
_UNFINISHED = ".new"


def listen(incarnation: str) -> tuple[socket.socket, str] | None:
    """Return a listening socket and its path, or None if that fails. Call `remove` when the node ends."""
    try:
        path = _directory() / f"{incarnation}{_SUFFIX}"
        return _listen(path), os.fspath(path)
    except (OSError, AttributeError) as error:  # no such family, no directory, path too long
        log.warning(
            "This node is reached over TCP alone: it has no Unix socket (%s).", explain(error) or error
        )
        return None


def path_of(name: str | bytes) -> str:
    """Return where a socket is found that has this name, by ``getsockname``: the one that it got before it listened."""
    text = os.fsdecode(name)
    return text.removesuffix(_UNFINISHED) + _SUFFIX if text.endswith(_UNFINISHED) else text


def remove(path: str) -> None:
    """Remove the path of a socket, if it exists."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def _listen(path: Path) -> socket.socket:
    unfinished = path.with_suffix(_UNFINISHED)
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise OSError("the path of the directory for temporary files is too long")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(unfinished))
        listener.listen(1024)
        unfinished.rename(path)  # only now: other nodes remove a path on which nothing listens
    except BaseException:
        listener.close()
        unfinished.unlink(missing_ok=True)
        raise
    return listener


def _directory() -> Path:
    """Return this user's directory for sockets, after removing the paths of dead nodes. Create it if needed.

    Raises:
        OSError: it cannot be created, or other users may enter it.
    """
    directory = Path(private_directory.make())
    for path in directory.glob(f"*{_SUFFIX}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # a full backlog belongs to a live node: do not wait for it
            if probe.connect_ex(os.fspath(path)) == errno.ECONNREFUSED:
                path.unlink(missing_ok=True)
    return directory
