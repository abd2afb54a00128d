"""Modules that are imported at first use, because most programs never need them: they save time at the start.

``with at_first_use: import ...`` is for functions that any thread may call. A child that was forked while another
thread imported a module would wait for the lock of that module forever. So a fork waits for such imports.

It is for modules of this package and of the standard library, which neither fork nor call us while they are imported.

Thread safety: thread-safe, also across forks.
"""

from __future__ import annotations

import os
from threading import RLock

at_first_use = RLock()  # held during an import, and by a thread that forks

if hasattr(os, "register_at_fork"):  # missing on Windows
    # In the child, the thread that forked is the owner, as in the parent.
    os.register_at_fork(
        before=at_first_use.acquire, after_in_parent=at_first_use.release, after_in_child=at_first_use.release
    )


def quoted(word: str) -> str:
    """Return a word as a shell takes it, for the commands in errors."""
    with at_first_use:
        import shlex

    return shlex.quote(word)


def not_installed(error: ModuleNotFoundError, package: str, what: str, extra: str) -> ModuleNotFoundError:
    """Return the error to raise when ``what`` needs a package of one of our extras, which cannot be imported.

    That is ``error`` itself if it is another module that is missing, one that the package needs.
    """
    if (error.name or "").partition(".")[0] != package:
        return error
    text = f"{what} needs {package}, which is not installed: pip install 'pyrocache[{extra}]'"
    return ModuleNotFoundError(text, name=package)
