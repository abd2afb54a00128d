"""Which settings file is trusted, and its content.

Settings decide where a process connects and whom it trusts. So a file that was found, and not named, must belong to
this user or to root, and so must its directory. Nobody else may be able to write to the file, or to replace it. The
group of the file or of the directory may have write access, as with a umask of 002, if it is this user's own group: the
primary group, which has the user's name and lists no other member.

A ``pyproject.toml`` that does not have the text ``tool.pyrocache`` is passed over without a check.

Thread safety: functions without state.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any, NoReturn

from pyrocache.errors import ConfigurationError
from pyrocache.runtime.secret_file import hops
from pyrocache.runtime.shortage import explain
from pyrocache.settings import CONFIG_VARIABLE, PROJECT_FILE_NAME
from pyrocache.tracebacks import came_from_outside

_MAX_BYTES = 2**20
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
_MARK = b"tool.pyrocache"


@dataclass(frozen=True, slots=True)
class Content:
    """What a file says.

    Attributes:
        path: its absolute path.
        prefix: what its tables' names begin with: ``"tool.pyrocache"`` or ``""``.
        values: the settings of the top level, and a dict for each table.
    """

    path: str
    prefix: str
    values: dict[str, Any]


def read(path: str, *, explicit: bool) -> Content | None:
    """Return the content of a file; None for a ``pyproject.toml`` without settings that was not named.

    Args:
        path: its absolute path.
        explicit: whether it was named, and not found: then it is trusted, and must be there.

    Raises:
        ConfigurationError: it cannot be read, is not TOML, or is not to be trusted.
    """
    is_project = os.path.basename(path) == PROJECT_FILE_NAME
    try:
        data = _data(path, _READ) if explicit else _trusted_data(path, is_project)
    except OSError as error:
        if came_from_outside(error):
            raise
        if is_project and not explicit:
            return None
        named = f", which ${CONFIG_VARIABLE} or --config names," if explicit else ""
        reason = explain(error) or error.strerror or error
        raise ConfigurationError(f"The settings file {path}{named} cannot be read: {reason}.") from None
    if data is None:
        return None
    values = _parse(path, data)
    if not is_project:
        return Content(path, "", values)
    tool: Any = values.get("tool")
    table = tool.get("pyrocache") if isinstance(tool, dict) else None
    if table is None and not explicit:
        return None
    if not isinstance(table, dict):
        raise ConfigurationError(f"The settings file {path} has no table [tool.pyrocache].")
    return Content(path, "tool.pyrocache", table)


def _trusted_data(path: str, is_project: bool) -> bytes | None:
    """Return what is in a file that was found; None if it has no settings: then its owner does not matter.

    Raises:
        ConfigurationError: it is not to be trusted.
        OSError: it cannot be read.
    """
    if not is_project:
        _check(path)
        return _data(path, _READ | os.O_NONBLOCK)
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None
    data = _data(path, _READ | os.O_NONBLOCK)
    if _MARK not in data:
        return None
    _check(path)
    return data


def _data(path: str, flags: int) -> bytes:
    """Return what is in a file, one byte more than the limit at most."""
    descriptor = os.open(path, flags)
    try:
        data = b""
        while len(data) <= _MAX_BYTES and (part := os.read(descriptor, _MAX_BYTES + 1 - len(data))):
            data += part
        return data
    finally:
        os.close(descriptor)


def _parse(path: str, data: bytes) -> dict[str, Any]:
    import tomllib  # imported here: most processes have no file

    if len(data) > _MAX_BYTES:
        raise ConfigurationError(f"The settings file {path} is longer than {_MAX_BYTES // 2**20} MiB.")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ConfigurationError(f"The settings file {path} is not text in UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"The settings file {path} is not valid TOML: {error}.") from None
    except RecursionError:
        raise ConfigurationError(f"The settings file {path} is nested too deeply.") from None


def _check(path: str) -> None:
    """Check that no other user, except root, decides what is in a file.

    Raises:
        ConfigurationError: another one can.
        OSError: it cannot be reached.
    """
    steps = hops(path)  # a symbolic link of another user is not trusted either
    for step in steps:
        status = os.lstat(step)
        if status.st_uid not in (0, os.geteuid()):
            _refuse(path, f"belongs to the user {status.st_uid}, and this process runs as {os.geteuid()}")
    status = os.lstat(steps[-1])
    if not stat.S_ISREG(status.st_mode):
        _refuse(path, "is not a regular file")
    if _others_write(status):
        _refuse(path, f"can be written to by other users (mode {stat.S_IMODE(status.st_mode):04o})")
    for directory in dict.fromkeys(map(os.path.dirname, steps)):
        _check_directory(path, directory)


def _check_directory(path: str, directory: str) -> None:
    status = os.stat(directory)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        _refuse(path, f"is in {directory}, a directory of the user {status.st_uid}")
    if _others_write(status) and not mode & stat.S_ISVTX:
        _refuse(path, f"is in {directory}, which other users can change (mode {mode:04o})")


def _refuse(path: str, problem: str) -> NoReturn:
    raise ConfigurationError(
        f"The settings file {path} {problem}, so it is not used: name it with --config or ${CONFIG_VARIABLE} if you "
        f"trust it, or give {CONFIG_VARIABLE}=/dev/null to read no file."
    )


def _others_write(status: os.stat_result) -> bool:
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_own_group(status.st_gid)


def _is_own_group(group_id: int) -> bool:
    """Return whether this is the group that only this user is in."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(group_id)
    except KeyError:
        return False
    return user.pw_gid == group_id and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
