"""Files of keys: their format, who may own and reach them, how they are made and how their keys are replaced.

The secret of a user is in such a file, and so are the keys that sign values.

One key per line: 64 hexadecimal digits. Blank lines, and what follows ``#``, are ignored. The first key is the
*primary* one, which is used; all are accepted. A key with ``+`` before it is *staged*: accepted, and the next to be
the primary one. The states of a rotation are therefore::

    A   --stage-->   A +B   --promote-->   B A   --prune-->   B

A file is used if it is a regular file of the effective user that nobody else can open, in a directory where nobody
else, except root, can replace it. A file of root that a group can read, and do nothing else with, is used as well: that
is how Kubernetes and systemd hand a secret to a process of another user, and who is in the group is for root to say. A
symbolic link is followed; the rule for directories applies to its own, too.

A file appears complete (`make`), and is replaced as a whole (`update`), so readers need no lock. `read` opens regular
files only, so it does not block on a FIFO.

The functions raise `ConfigurationError`, a sentence with the path and what to do next, never with a key.

Thread safety: functions without state, safe between threads and processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from pyrocache.errors import ConfigurationError
from pyrocache.late_imports import quoted
from pyrocache.runtime.shortage import explain
from pyrocache.tracebacks import came_from_outside

FILE_VARIABLE = "PYROCACHE_SECRET_FILE"
"""The environment variable that names a file in place of the usual one."""

KEY_BYTES = 32
MAX_KEYS = 8
"""The most keys of one secret: whoever checks a proof may have to try all of them."""

_MAX_FILE_BYTES = 16 * 1024
_MOST_LINKS = 40  # as Linux allows
_LOCK_SECONDS = 10.0
_LOCK_PAUSE_SECONDS = 0.02
_OTHERS = 0o077
_OTHERS_WRITE = 0o022
_GROUP_READS = 0o040
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}
_LINE = re.compile(rb"(\+?)\s*([0-9a-fA-F]{%d})" % (2 * KEY_BYTES))
_HEADER = """\
# Keys of pyrocache. Whoever reads them can use what they protect: keep this file private (chmod 600).
# The first key is used, all are accepted. To replace it: pyrocache secret --help
"""


class Key(bytes):
    """A key. Its repr does not show it: tracebacks of debuggers and test runners print the repr of variables."""

    def __repr__(self) -> str:
        return "<key>"

    __str__ = __repr__

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ConfigurationError("The keys of a secret are not pickled.")


class Keys(NamedTuple):
    """The keys of a file, and the steps of a rotation. Each step returns the keys after it."""

    primary: Key
    staged: Key | None = None
    old: tuple[Key, ...] = ()

    @property
    def all(self) -> tuple[Key, ...]:
        """Return them in order of use."""
        return self.primary, *(() if self.staged is None else (self.staged,)), *self.old

    def stage(self) -> Keys:
        """Add a new key that is accepted, and not yet used."""
        if self.staged is not None:
            raise ConfigurationError("A key has been added already: the next step is `promote`.")
        if len(self.all) >= MAX_KEYS:
            raise ConfigurationError(
                f"The secret has {MAX_KEYS} keys, the most that are possible: remove the old ones with `prune`."
            )
        return self._replace(staged=new_key())

    def promote(self) -> Keys:
        """Use the staged key from now on, and still accept the others."""
        if self.staged is None:
            raise ConfigurationError("There is no added key to promote: add one with `add`.")
        return Keys(self.staged, None, (self.primary, *self.old))

    def prune(self) -> Keys:
        """Remove the old keys."""
        if self.staged is not None:
            raise ConfigurationError(
                "The added key is not used yet, so the old keys cannot be removed: the next step is `promote`."
            )
        if not self.old:
            raise ConfigurationError("There is no old key to remove.")
        return Keys(self.primary)


def new_key() -> Key:
    """Return a random key."""
    return Key(os.urandom(KEY_BYTES))


# Reading -----------------------------------------------------------------------------------------------------


def read(path: str) -> Keys:
    """Return the keys of a file.

    Raises:
        ConfigurationError: it does not exist, or cannot be used.
    """
    with _explained(path, "be read"):
        steps = hops(path)
        target = steps[-1]
        _check_file(path, os.lstat(target))  # before it is opened, which has an effect on some devices
        for directory in dict.fromkeys(map(os.path.dirname, steps)):
            _check_directory(path, directory)
        descriptor = os.open(target, _READ)
        try:
            _check_file(path, os.fstat(descriptor))  # another file may have taken its place
            content = _content(descriptor)
        finally:
            os.close(descriptor)
    return _parse(path, content)


def hops(path: str) -> list[str]:
    """Return a path, and those that it leads to as a symbolic link, the file itself last.

    `os.path.realpath` would swallow an `OSError` that a signal handler raises.

    Raises:
        OSError: a file does not exist, or the links form a loop.
    """
    steps = [path]
    while stat.S_ISLNK(os.lstat(steps[-1]).st_mode):
        if len(steps) > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        steps.append(os.path.join(os.path.dirname(steps[-1]), os.readlink(steps[-1])))
    return steps


def _missing(path: str) -> ConfigurationError:
    """Return the error for a file that does not exist."""
    if os.path.islink(path):
        return _refusal(
            path, f"is a link to {os.path.realpath(path)}, which does not exist", "remove the link."
        )
    return _refusal(
        path, "does not exist", f"copy it from where it is in use, or make a new one with: {_command(path)}"
    )


def _refusal(path: str, problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"The key file {path} {problem}: {remedy}")


def _command(path: str) -> str:
    return f"pyrocache secret --secret-file {quoted(path)}"


@contextlib.contextmanager
def _explained(path: str, what: str) -> Iterator[None]:
    """Raise a sentence in place of an `OSError`."""
    try:
        yield
    except OSError as error:
        if came_from_outside(error):
            raise
        if isinstance(error, FileNotFoundError):
            raise _missing(path) from None
        raise ConfigurationError(
            f"The key file {path} cannot {what}: {explain(error) or error.strerror or error}."
        ) from None


def _content(descriptor: int) -> bytes:
    """Return what is in the file, one byte more than the limit at most."""
    content = b""
    while len(content) <= _MAX_FILE_BYTES:
        data = os.read(descriptor, _MAX_FILE_BYTES + 1 - len(content))
        if not data:
            break
        content += data
    return content


def _parse(path: str, content: bytes) -> Keys:
    if len(content) > _MAX_FILE_BYTES:
        raise _useless(path, f"is longer than {_MAX_FILE_BYTES // 1024} KiB")
    found: dict[bytes, list[Key]] = {b"": [], b"+": []}
    for number, line in enumerate(content.splitlines(), 1):
        if text := line.partition(b"#")[0].strip():
            match = _LINE.fullmatch(text)
            if match is None:
                raise _useless(path, f"has no key of {2 * KEY_BYTES} hexadecimal digits in line {number}")
            found[match[1]].append(Key(bytes.fromhex(match[2].decode())))
    used, staged = found[b""], found[b"+"]
    if not used:
        raise _useless(path, "has no key that is in use")
    if len(staged) > 1 or len(used) + len(staged) > MAX_KEYS:
        raise _refusal(
            path, f"has more than {MAX_KEYS} keys, or more than one with +", "remove the old ones."
        )
    return Keys(used[0], staged[0] if staged else None, tuple(used[1:]))


def _useless(path: str, problem: str) -> ConfigurationError:
    return _refusal(path, problem, f"remove it, and make a new one with: {_command(path)}")


def _check_file(path: str, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(path, "is not a regular file", "name another one.")
    if status.st_uid == 0 != os.geteuid() and mode & _OTHERS == _GROUP_READS:
        return  # an access control list shows as the mode of the group
    if status.st_uid != os.geteuid():
        raise _refusal(
            path,
            f"belongs to the user {status.st_uid}, and this process runs as {os.geteuid()}",
            "make a copy that belongs to this user, and name that one.",
        )
    if mode & _OTHERS:
        raise _refusal(
            path,
            f"can be opened by other users (mode {mode:04o})",
            f"run `chmod 600 {quoted(path)}`; and if others may have read it, replace its key "
            "(pyrocache secret --help).",
        )


def _check_directory(path: str, directory: str) -> None:
    """Check that nobody else, except root, can put another file in the place of this one."""
    status = os.stat(directory)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        raise _refusal(
            path,
            f"is in {directory}, a directory of the user {status.st_uid}",
            "move it to a directory of your own, and name that one.",
        )
    if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
        raise _refusal(
            path,
            f"is in {directory}, which other users can change (mode {mode:04o})",
            f"run `chmod go-w {quoted(directory)}`.",
        )


# Making ------------------------------------------------------------------------------------------------------


def make(path: str) -> None:
    """Make a file with a new key, unless there is one. Of processes that do this at once, one makes it.

    Raises:
        ConfigurationError: other users could replace it in its directory.
        OSError: it cannot be made there; nothing is left behind.
    """
    directory = os.path.realpath(os.path.dirname(path))
    _make_directory(directory)
    _check_directory(path, directory)
    unfinished = _write(path, Keys(new_key()), mode=0o600)
    try:
        _link(unfinished, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)


def _make_directory(directory: str) -> None:
    """Make a directory, and those above it that are missing, for this user alone."""
    if os.path.isdir(directory):
        return
    _make_directory(os.path.dirname(directory))
    with contextlib.suppress(FileExistsError):  # another process has just made it
        os.mkdir(directory, 0o700)


def _write(path: str, keys: Keys, *, mode: int) -> str:
    """Write a file under another name in the same directory. Return its path."""
    directory, name = os.path.split(os.path.realpath(path))
    unfinished = os.path.join(directory, f".{name}.{os.urandom(8).hex()}")
    descriptor = os.open(unfinished, _CREATE, 0o600)
    try:
        os.fchmod(descriptor, mode)  # whatever the umask
        _check_file(path, os.fstat(descriptor))  # not every file system has owners and modes
        content = _format(keys)
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)  # or the file may be empty after a crash
    except ConfigurationError as error:
        os.unlink(unfinished)
        raise PermissionError(
            errno.EPERM, "its file system does not keep the owner and the mode of a file"
        ) from error
    except BaseException:
        os.unlink(unfinished)
        raise
    finally:
        os.close(descriptor)
    return unfinished


def _format(keys: Keys) -> bytes:
    marked = [f"{'+' if key is keys.staged else ''}{key.hex()}\n" for key in keys.all]
    return "".join([_HEADER, *marked]).encode()


def _link(unfinished: str, path: str) -> None:
    """Give the file its name, unless there is a file of this name."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename(unfinished, path)


def _rename(unfinished: str, path: str) -> None:
    """Do what `_link` does in a file system without hard links: rename, under a lock as that replaces files."""
    descriptor = os.open(os.path.dirname(unfinished), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(descriptor)
        if not os.path.lexists(path):
            os.rename(unfinished, path)
    finally:
        os.close(descriptor)


# Changing ----------------------------------------------------------------------------------------------------


def update(path: str, change: Callable[[Keys], Keys]) -> Keys:
    """Replace the keys of a file by what ``change`` returns for them. Return that.

    Only one process at a time does this. The file keeps its mode and its group.

    Raises:
        ConfigurationError: the file cannot be used or changed, or ``change`` raised it; the file is unchanged.
    """
    with _explained(path, "be changed"):
        descriptor = _open_locked(path)
        try:
            keys = change(read(path))
            _replace(path, keys, os.fstat(descriptor))
        finally:
            os.close(descriptor)
    return keys


def _open_locked(path: str) -> int:
    """Return a descriptor of the file, locked until it is closed."""
    read(path)  # before it is opened for writing: it is what it should be
    while True:
        # To be locked on NFS, it must be opened for writing. The lock is on the file as it may be open to this user
        # alone, whereas anybody can lock a directory that he can read.
        descriptor = os.open(os.path.realpath(path), os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _lock(descriptor)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process has replaced it meanwhile


def _replace(path: str, keys: Keys, status: os.stat_result) -> None:
    unfinished = _write(path, keys, mode=stat.S_IMODE(status.st_mode))
    try:
        with contextlib.suppress(PermissionError):  # a group that this user is not in
            os.chown(unfinished, -1, status.st_gid)
        os.replace(unfinished, os.path.realpath(path))
    except BaseException:
        os.unlink(unfinished)
        raise


def _lock(descriptor: int) -> None:
    """Lock an open file or directory. Raises `TimeoutError` after some seconds."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "another process keeps it locked") from None
        time.sleep(_LOCK_PAUSE_SECONDS)
