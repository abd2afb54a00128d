"""The commands ``pyrocache secret``: show where the secret of this user is, make it, and replace its key.

Prints paths and numbers of keys, never a key.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from pyrocache.cli.output import write
from pyrocache.runtime import secret_file
from pyrocache.runtime.secret import locate
from pyrocache.runtime.secret_file import Keys


def show(path: str | None) -> None:
    """Print the path of the secret, after making it if there is none, and how many keys it has.

    Raises:
        ConfigurationError: there is no place for a file, or the file cannot be used.
    """
    file = locate(path, make=True)
    _print(file, secret_file.read(file))


def change(path: str | None, step: Callable[[Keys], Keys]) -> None:
    """Take a step of a rotation, and print what `show` prints.

    Raises:
        ConfigurationError: it is not time for this step, or the file cannot be used.
    """
    file = locate(path)
    _print(file, secret_file.update(file, step))


def _print(path: str, keys: Keys) -> None:
    command = f"pyrocache secret --secret-file {shlex.quote(path)}"
    write(path)
    if keys.staged is not None:
        write(f"{len(keys.all)} keys; the added one is accepted, and not used yet. Next: {command} promote")
    elif keys.old:
        write(f"{len(keys.all)} keys; the first is used, the old ones are accepted. Next: {command} prune")
    else:
        write("1 key")
