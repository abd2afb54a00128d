"""The child's side of `runtime.child_process`: the script that it runs, and `answer`.

The script finds pyrocache, then calls ``main`` of one of its modules.

Run as ``python -P start.py MODULE DESCRIPTOR PLACE ENTRY ...`` by `runtime.child_process`. The settings are the line
that the parent process has sent to the descriptor. PLACE is the directory of the pyrocache that the parent uses, which
is imported from there in any case. The entries are the parent's ``sys.path``. Those that the child begins with remain
after them: another interpreter of this version, as in a frozen program, has its own standard library.

Thread safety: runs on the main thread, before there is another; `answer` is thread-safe.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any

EXIT_REFUSED = 3
"""Exit status of a node that must not be started again: its name is taken, or a setting is not valid."""

EXIT_NO_NAME_SERVER = 4
"""Exit status of a node that found no name server when it started."""

_SETTINGS_BYTES = 64 * 1024


def main(module: str, descriptor: str, place: str, *path: str) -> None:
    """Call ``main([settings, descriptor])`` of ``module``."""
    settings = _receive_line(int(descriptor))
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
    spec = PathFinder.find_spec("pyrocache", [place])
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules["pyrocache"] = module_from_spec(spec)
    spec.loader.exec_module(package)
    gc.disable()  # during the imports, which take 7 % less time then: nothing of them is garbage
    process = import_module(module)
    gc.enable()
    process.main([settings, descriptor])


def _receive_line(descriptor: int) -> str:
    """Return the line that the parent process has sent. It sends nothing else."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(descriptor, _SETTINGS_BYTES)
        if not data:
            raise SystemExit("The parent process ended before it sent the settings.")
        line += data
    return line.decode()


def answer(descriptor: int, content: dict[str, Any]) -> None:
    """Send the parent the line that `ChildProcess.wait_until_ready` waits for. Call this once.

    Args:
        content: what that returns, or ``{"error": text}`` if this process cannot start.
    """
    with contextlib.suppress(OSError):  # the parent has ended
        os.write(descriptor, json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
