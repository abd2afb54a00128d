"""`Secret`: the keys by which the processes of one user recognize each other, and where they find them.

`find_secret` looks in these places, and makes a secret in the first where that is possible if there is none:

1. the file that an argument or ``$PYROCACHE_SECRET_FILE`` names: it must exist, and no other place is tried;
2. ``$XDG_CONFIG_HOME/pyrocache/secret``, by default ``~/.config/pyrocache/secret``;
3. ``$XDG_RUNTIME_DIR/pyrocache/secret``;
4. ``secret`` in the private directory of the nodes' sockets (`runtime.private_directory`);
5. the memory of this process.

A secret that is found and cannot be used is an error: with one from the next place, this process could not use the
caches of the others. One in memory is used until the process ends. None is made in the home of another user, as under
``sudo -E``. `runtime.secret_file` has the format of the file, and the rules for its owner and mode.

A `Secret` of a file is pickled as its path. One in memory is not pickled; a child process gets it in its settings,
which are sent through a socket pair (`Secret.for_child`, `secret_of_parent`), and a forked one has it anyway.

Thread safety: thread-safe, without locks: the keys are replaced in one assignment. `Secret.refresh`
reads a file, and may block; several threads may call it.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections.abc import Callable, Iterator

from pyrocache.errors import ConfigurationError
from pyrocache.runtime import private_directory, secret_file
from pyrocache.runtime.log import logger
from pyrocache.runtime.secret_file import FILE_VARIABLE, Key
from pyrocache.runtime.shortage import explain, explained
from pyrocache.tracebacks import came_from_outside

__all__ = [
    "FILE_VARIABLE",
    "Key",
    "Secret",
    "configuration_directory",
    "existing",
    "find_secret",
    "locate",
    "read_secret",
    "secret_of_parent",
]

FilePath = str | os.PathLike[str]

REREAD_SECONDS = 2.0
"""How long the keys that were read are used without a look at the file; see `Secret.current`."""

_NAME = "secret"
_FOLDER = "pyrocache"
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # of this process: another place would not help


class Secret:
    """The keys of a user.

    Attributes:
        path: the absolute path of the file; None if the keys are only in memory.
        keys: the accepted keys of 32 bytes each, at least one. The first is to be used. Read it anew for each use.
    """

    __slots__ = ("__weakref__", "_problem", "_read_at", "keys", "path")

    def __init__(self, path: str | None, keys: tuple[Key, ...]) -> None:
        self.path = path
        self.keys = keys
        self._problem: str | None = None
        self._read_at = time.monotonic()

    @property
    def place(self) -> str:
        """Return where it is, as a part of a sentence."""
        return self.path or "the memory of this process"

    def current(self) -> tuple[Key, ...]:
        """Return the keys, after a look at the file if the last one is `REREAD_SECONDS` ago.

        Not for an I/O thread, which reads `keys`.
        """
        if time.monotonic() - self._read_at >= REREAD_SECONDS:
            self.refresh()
        return self.keys

    def refresh(self) -> bool:
        """Read the file again. Return whether the keys have changed.

        Not for an I/O thread. If the file is gone or cannot be used, the keys stay, and a
        warning is logged once.
        """
        self._read_at = time.monotonic()
        if self.path is None:
            return False
        before = self.keys
        try:
            self.keys = secret_file.read(self.path).all
            self._note(None)
        except ConfigurationError as error:
            self._note(str(error))
        return self.keys != before

    def _note(self, problem: str | None) -> None:
        """Log a change of the state of the file."""
        if problem == self._problem:
            return
        self._problem = problem
        if problem is not None:
            logger("pyrocache.runtime").warning("The keys that were read before remain in use. %s", problem)
        else:
            logger("pyrocache.runtime").info("The key file %s can be used again.", self.path)

    def for_child(self) -> str | list[str]:
        """Return what a child process gets in its settings, for `secret_of_parent`: the path, or the keys in memory.

        Never put it into arguments or an environment, which others can read.
        """
        return self.path if self.path is not None else [key.hex() for key in self.keys]

    def __repr__(self) -> str:
        return f"<Secret in {self.place}, {len(self.keys)} key{'s' * (len(self.keys) > 1)}>"

    def __reduce__(self) -> tuple[Callable[[str], Secret], tuple[str]]:
        if self.path is None:
            raise ConfigurationError(
                "The secret of this process is only in its memory, so nothing that uses it can be pickled: no place "
                f"for a secret file was found. Name one with secret_file= or ${FILE_VARIABLE}."
            )
        return read_secret, (self.path,)


_of_files: weakref.WeakValueDictionary[str, Secret] = weakref.WeakValueDictionary()
_in_memory: dict[str, Secret] = {}  # at most one, the same for everybody in this process


def find_secret(path: FilePath | None = None) -> Secret:
    """Return the secret of this user, from the first place where there is one. Make it if there is none.

    Args:
        path: a file that must exist; None looks for it as the module's docstring says.

    Raises:
        ConfigurationError: the file does not exist, or cannot be used.
        OutOfResources: none can be made, for want of file descriptors or memory.
    """
    named = _named(path)
    if named is not None:
        return read_secret(named)
    if kept := _in_memory.get(
        "secret"
    ):  # the nodes of this process do not know a file that has appeared since
        return kept
    found = _existing() or _made()
    return _of_this_process() if found is None else read_secret(found)


def read_secret(path: FilePath) -> Secret:
    """Return the secret in a file, the same object each time while it is in use.

    Raises:
        ConfigurationError: it does not exist, or cannot be used.
    """
    absolute = _absolute(path)
    keys = secret_file.read(absolute).all
    secret = _of_files.setdefault(absolute, Secret(absolute, keys))
    secret.keys = keys
    return secret


def locate(path: FilePath | None = None, *, make: bool = False) -> str:
    """Return the path of the file that `find_secret` reads, for those who change it.

    Args:
        path: as for `find_secret`.
        make: make the file if ``path`` or the environment names one that does not exist.

    Raises:
        ConfigurationError: there is no place for a file, or it cannot be made.
    """
    named = _named(path)
    if named is not None:
        absolute = _absolute(named)
        if make and not os.path.lexists(absolute):
            _make(absolute)
        return absolute
    found = _existing() or _made()
    if found is None:
        raise ConfigurationError(
            "There is no place for a secret file: this user has no home that can be written to. Name a file with "
            f"--secret-file, and in ${FILE_VARIABLE} for all processes."
        )
    return found


def existing(path: FilePath | None = None) -> str | None:
    """Return the path of the file that `find_secret` would read, for those who only look. None if it would make one.

    Args:
        path: as for `find_secret`. A file that is named need not exist.
    """
    named = _named(path)
    return _existing() if named is None else _absolute(named)


def secret_of_parent(sent: str | list[str]) -> Secret:
    """Return the secret that the parent process uses. In this process, `find_secret` finds it too if it is in memory.

    Args:
        sent: what `Secret.for_child` returned.

    Raises:
        ConfigurationError: the file does not exist, or cannot be used.
    """
    if isinstance(sent, str):
        return read_secret(sent)
    secret = Secret(None, tuple(Key(bytes.fromhex(key)) for key in sent))
    return _in_memory.setdefault("secret", secret)


def _named(path: FilePath | None) -> FilePath | None:
    return (os.environ.get(FILE_VARIABLE) or None) if path is None else path


def _absolute(path: FilePath) -> str:
    if not os.fspath(path):
        raise ConfigurationError("The path of a key file is empty: name a file.")
    return os.path.abspath(os.path.expanduser(path))


def _make(path: str) -> None:
    """Make a file. Raises `ConfigurationError`."""
    try:
        secret_file.make(path)
    except OSError as error:
        if came_from_outside(error):
            raise
        raise ConfigurationError(
            f"The key file {path} cannot be made: {explain(error) or error.strerror or error}. Name a file in a "
            "directory of your own with --secret-file."
        ) from None


def _existing() -> str | None:
    """Return the first place where there is a secret, whether it can be used or not."""
    return next(filter(_exists, _places()), None)


def _exists(path: str) -> bool:
    """Do what `os.path.lexists` does, which would swallow an `OSError` that a signal handler raises."""
    try:
        os.lstat(path)
    except OSError as error:
        if came_from_outside(error):
            raise
        return False
    return True


def _made() -> str | None:
    """Make a secret in the first place where that is possible. Return the place; None if there is none."""
    for place in _places(make=True):
        try:
            if place != _configuration_place() or _is_of_this_user(place):
                secret_file.make(place)
                return place
        except OSError as error:
            _raise_if_not_about_files(error)
    return None


def _raise_if_not_about_files(error: OSError) -> None:
    if came_from_outside(error):
        raise error
    with explained("The secret of this user cannot be made"):
        if error.errno in _SHORTAGES:
            raise error


def _of_this_process() -> Secret:
    secret = Secret(None, (secret_file.new_key(),))
    kept = _in_memory.setdefault("secret", secret)
    if kept is secret:
        logger("pyrocache.runtime").warning(
            "No place for a secret file was found, so only this process and its children know the secret. Make a "
            "file with `pyrocache secret --secret-file FILE`, and name it with secret_file= or $%s.",
            FILE_VARIABLE,
        )
    return kept


def _places(*, make: bool = False) -> Iterator[str]:
    """Yield the places for the secret of this user, the best first. Make the last directory if need be."""
    if configuration := _configuration_place():
        yield configuration
    runtime = _directory("XDG_RUNTIME_DIR")
    if runtime and _is_private(lambda: runtime):
        yield os.path.join(runtime, _FOLDER, _NAME)
    if _is_private(private_directory.make if make else private_directory.path):
        yield os.path.join(private_directory.path(), _NAME)


def configuration_directory() -> str | None:
    """Return the usual directory of this user's files for this package; None if this user has no home."""
    directory = _directory("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(directory, _FOLDER) if os.path.isabs(directory) else None


def _configuration_place() -> str | None:
    """Return the usual place of the secret; None if this user has no home."""
    directory = configuration_directory()
    return None if directory is None else os.path.join(directory, _NAME)


def _directory(variable: str) -> str | None:
    """Return the directory that a variable names. Relative ones are to be ignored, says XDG's specification."""
    directory = os.environ.get(variable, "")
    return directory if os.path.isabs(directory) else None


def _is_private(directory: Callable[[], str]) -> bool:
    try:
        return private_directory.is_private(directory())
    except OSError as error:
        if came_from_outside(error):
            raise
        return False


def _is_of_this_user(place: str) -> bool:
    """Return whether the nearest directory above ``place``, and the home that it is in, belong to this user."""
    home = os.path.normpath(os.path.expanduser("~"))
    directories = [_nearest_directory(place)]
    if os.path.isabs(home) and home != "/" and os.path.commonpath([home, place]) == home:
        directories.append(home)
    return all(os.stat(directory).st_uid == os.geteuid() for directory in directories)


def _nearest_directory(path: str) -> str:
    """Return the directory of a path, or the nearest one above it that exists."""
    directory = os.path.dirname(path)
    while not os.path.lexists(directory) and directory != os.path.dirname(directory):
        directory = os.path.dirname(directory)
    return directory
