"""The settings in force: those of the settings file and of the variables ``PYROCACHE_*``.

`in_force` returns them. Commands and clients use them where an option or an argument is not given. Nodes and name
servers read neither the file nor the variables: they get their settings from the process that starts them.

`table` lists the settings, `file` decides which file is trusted and parses it, and `reading` checks the values. These
modules are imported only if there is something to read, so that a client without settings does not pay for them.

Only one file is read, the first of these that exists:

1. the one that ``$PYROCACHE_CONFIG`` names;
2. ``pyrocache.toml``, or ``pyproject.toml`` with ``[tool.pyrocache]``, in the working directory or the nearest
   directory above it;
3. ``$XDG_CONFIG_HOME/pyrocache/pyrocache.toml``, by default ``~/.config/pyrocache/pyrocache.toml``.

Thread safety: thread-safe, without locks: what was read last is replaced in one assignment.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pyrocache.config import TLS, Encryption
from pyrocache.errors import ConfigurationError
from pyrocache.runtime.secret import configuration_directory
from pyrocache.tracebacks import came_from_outside

if TYPE_CHECKING:
    from pyrocache.settings.table import Found

CONFIG_VARIABLE = "PYROCACHE_CONFIG"
"""The environment variable that names the settings file."""

NAMESERVER_VARIABLE = "PYROCACHE_NAMESERVER"

FILE_NAME = "pyrocache.toml"
PROJECT_FILE_NAME = "pyproject.toml"

LOOK_AGAIN_SECONDS = 2.0
"""How long a new file in a directory may go unnoticed. A change of the file in use is noticed at once."""

_PREFIX = b"PYROCACHE_"


class Settings:
    """The settings that a file or a variable gives. For all others, the defaults of `pyrocache.config` hold.

    Attributes:
        found: by their names, such as ``"nameserver"`` or ``"node.max_memory"``. Never has both ``no_tls`` and those of
            ``tls``.
        file: the path of the file that was read; None if there is none.
    """

    __slots__ = ("file", "found")

    def __init__(self, found: Mapping[str, Found], file: str | None) -> None:
        self.found = found
        self.file = file

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a setting; ``default`` if nothing gives it."""
        found = self.found.get(name)
        return default if found is None else found.value

    def of(self, table: str) -> dict[str, Any]:
        """Return the settings of a table that are given, by the names of fields of its dataclass."""
        prefix = f"{table}."
        return {
            name.removeprefix(prefix): found.value
            for name, found in self.found.items()
            if name.startswith(prefix)
        }

    @property
    def tls(self) -> Encryption:
        """How TCP connections are protected. Raises `ConfigurationError` if a certificate is without its key."""
        if not self.found:
            return None
        if self.get("no_tls"):
            return False
        files = self.of("tls")
        if not files.keys() & {"ca", "cert", "key"}:
            return None
        try:
            return TLS(**files)
        except ConfigurationError as error:
            source = next(found.source for name, found in self.found.items() if name.startswith("tls."))
            raise ConfigurationError(f"{source}: [tls]: {error}") from None


class _Read:
    """What was read last, and what that depends on."""

    __slots__ = ("looked_at", "settings", "signature", "surroundings")

    def __init__(
        self,
        surroundings: tuple[Any, ...],
        signature: tuple[int, ...] | None,
        looked_at: float,
        settings: Settings,
    ) -> None:
        self.surroundings = surroundings
        self.signature = signature
        self.looked_at = looked_at
        self.settings = settings


_NOTHING = Settings({}, None)
_last: _Read | None = None
_ignored: ContextVar[bool] = ContextVar("pyrocache_settings_ignored", default=False)


def in_force() -> Settings:
    """Return the settings of the environment and of the working directory of this process, as they are now.

    Raises:
        ConfigurationError: the file is not to be trusted or cannot be read, or a setting is unknown or not valid.
    """
    global _last
    if _ignored.get():
        return _NOTHING
    surroundings = _surroundings()
    last, now = _last, time.monotonic()
    if (
        last is not None
        and last.surroundings == surroundings
        and now - last.looked_at < LOOK_AGAIN_SECONDS
        and last.signature == _signature(last.settings.file)
    ):
        return last.settings
    settings, signature = _read(surroundings[0], dict(surroundings[-1]))
    _last = _Read(surroundings, signature, now, settings)
    return settings


@contextmanager
def ignored() -> Iterator[None]:
    """Have this thread, or task, see no settings: the objects that it makes get everything from their arguments."""
    token = _ignored.set(True)
    try:
        yield
    finally:
        _ignored.reset(token)


def _surroundings() -> tuple[Any, ...]:
    """Return the working directory, and what else decides which file is read and what the variables say."""
    # The dict below `os.environb`, which itself takes three times as long.
    environment: Mapping[bytes, bytes] = getattr(os.environb, "_data", os.environb)
    names = [name for name in list(environment) if name.startswith(_PREFIX)]
    return (
        _working_directory(),
        os.geteuid(),
        environment.get(b"XDG_CONFIG_HOME"),
        environment.get(b"HOME"),
        tuple([(name, environment.get(name, b"")) for name in names]) if names else (),
    )


def _working_directory() -> str | None:
    """Return it; None if it was removed."""
    try:
        return os.getcwd()
    except OSError as error:
        if came_from_outside(error):
            raise
        return None


def _read(directory: str | None, variables: dict[bytes, bytes]) -> tuple[Settings, tuple[int, ...] | None]:
    """Return the settings, and the signature of their file from before it was read."""
    given = {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items() if value}
    signature = None
    content = None
    for path, explicit in _places(directory, given.get(CONFIG_VARIABLE)):
        signature = _signature(path)
        if signature is None and not explicit:
            continue
        from pyrocache.settings import file  # imported here: most processes have no file

        content = file.read(path, explicit=explicit)
        if content is not None:
            break
    else:
        signature = None
    if content is None and not given:
        return _NOTHING, None
    from pyrocache.settings.reading import settings_of

    return settings_of(content, given), signature


def _places(directory: str | None, named: str | None) -> Iterator[tuple[str, bool]]:
    """Yield the paths where the file may be, the best first, and whether they were named."""
    if named is not None:
        yield os.path.join(directory or "/", os.path.expanduser(named)), True
        return
    nearest = True
    while directory is not None:
        for name in (FILE_NAME, PROJECT_FILE_NAME):
            path = os.path.join(directory, name)
            if nearest or not _is_for_everybody(directory, path):
                yield path, False
        nearest = False
        above = os.path.dirname(directory)
        directory = above if above != directory else None
    configuration = configuration_directory()
    if configuration is not None:
        yield os.path.join(configuration, FILE_NAME), False


def _is_for_everybody(directory: str, path: str) -> bool:
    """Return whether there is such a file in a directory that everybody can write to, such as ``/tmp``.

    It is passed over, or any user could keep the processes that work below it from starting.
    """
    return _signature(path) is not None and bool(os.stat(directory).st_mode & stat.S_IWOTH)


def _signature(path: str | None) -> tuple[int, ...] | None:
    """Return what changes with the content of a file; None if there is no such file."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError as error:
        if came_from_outside(error):
            raise
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
