"""What the operating system has run out of: turns its errors into sentences that say what to do.

File descriptors, threads and processes, disk space, memory, a directory for temporary files.

Thread safety: functions without state.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pyrocache.errors import OutOfResources

_PROCESSES = "raise the limit of threads and processes (ulimit -u, or the pids limit of the container)"
_TEXTS = {
    errno.EMFILE: "this process has no file descriptors left: raise its limit (ulimit -n), or close files and sockets",
    errno.ENFILE: "this system has no file descriptors left: raise fs.file-max, or end other processes",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota of this user is used up",
    errno.EROFS: "the file system is read-only",
    errno.ENOMEM: "the system has no memory left",
    errno.ENOBUFS: "the system has no memory for sockets left",
}


def explain(error: BaseException) -> str | None:
    """Return what the system lacks and what to do, as the end of a sentence; None if ``error`` has another cause."""
    if isinstance(error, RuntimeError) and str(error).startswith("can't start new thread"):
        return f"{error}: {_PROCESSES}"
    if not isinstance(error, OSError):
        return None
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        return "there is no writable directory for temporary files: set TMPDIR to one"
    text = _TEXTS.get(error.errno or 0)
    return f"{text} ({error.filename})" if text and error.filename else text


@contextmanager
def explained(failure: str, *, starts_process: bool = False) -> Iterator[None]:
    """Raise `OutOfResources`, which begins with ``failure``, in place of an error that `explain` knows.

    Args:
        starts_process: the body starts a process, which may fail for the limit of processes.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        text = explain(error)
        if starts_process and isinstance(error, BlockingIOError):
            text = f"no process can be started: {_PROCESSES}"
        if text is None:
            raise
        raise OutOfResources(f"{failure}: {text}.") from None
