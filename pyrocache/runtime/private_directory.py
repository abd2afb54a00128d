"""This user's directory below the one for temporary files: mode 0700, so that no other user can enter it.

Nodes have their Unix sockets there, and the secret of a user without a usable home is there.

Thread safety: functions without state.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from pyrocache.late_imports import at_first_use


def path() -> str:
    """Return its path, whether it exists or not.

    Raises:
        OSError: there is no directory for temporary files.
    """
    with at_first_use:
        import tempfile  # imported here, which saves time: clients of a user with a home do not need it
    return os.path.join(tempfile.gettempdir(), f"pyrocache-{os.getuid()}")


def make() -> str:
    """Return its path. Create it if needed.

    Raises:
        OSError: it cannot be created, or other users may enter it.
    """
    directory = path()
    with suppress(FileExistsError):
        os.mkdir(directory, mode=0o700)
    if not is_private(directory):
        raise PermissionError(f"{directory} is not a directory of this user alone")
    return directory


def is_private(directory: str) -> bool:
    """Return whether it is a directory that belongs to this user, and that no other user may enter.

    Raises:
        OSError: it does not exist, or cannot be reached.
    """
    status = os.lstat(directory)  # not `stat`, which would follow a symbolic link of another user
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
