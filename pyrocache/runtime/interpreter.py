"""The Python interpreter that runs child processes: which executable, with which flags, and where it imports from.

`sys.executable` is not always Python: in uwsgi and in frozen programs it is the program itself, and where Python is
embedded it may be empty. To run that program would start the user's program again, which would start another child.
Hence only a file whose name begins with ``python`` or ``pypy`` is ever run, and it must report the version of this
interpreter before it is used.

A child imports the same pyrocache as this process, whatever ``sys.path`` it begins with, and the rest from the
``sys.path`` of this process. The working directory and the script's directory come last: a module there must not
replace one of the standard library.

Thread safety: thread-safe.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pyrocache.errors import ConfigurationError
from pyrocache.runtime.shortage import explain

_PACKAGE = Path(__file__).absolute().parents[1]
_VERIFY_SECONDS = 10.0
CHILD_VARIABLE = "PYROCACHE_CHILD_OF"  # set in the environment of each child


def command(module: str, descriptor: int) -> list[str]:
    """Return the command that runs ``main([settings, descriptor])`` of a module of this package (see `runtime.start`).

    Raises:
        ConfigurationError: no Python interpreter of this version was found.
    """
    start = [find(), *_flags(), "-P", str(_PACKAGE / "runtime" / "start.py")]
    return [*start, module, str(descriptor), str(_PACKAGE.parent), *_import_path()]


def find() -> str:
    """Return the path of a Python interpreter of the version that runs this process.

    Raises:
        ConfigurationError: there is none.
    """
    for path in _candidates():
        if _is_this_python(path):
            return path
    raise ConfigurationError(
        f"No Python interpreter was found to run a name server and nodes with: sys.executable is {sys.executable!r}, "
        f"and there is no Python {sys.version_info[0]}.{sys.version_info[1]} in {sys.prefix!r}. "
        "Run `pyrocache nodes --with-nameserver` yourself, and connect to it with PyroCacheClient."
    )


def environment() -> dict[str, str]:
    """Return the environment for a child process."""
    # Pyro5 fails to import if there is an unknown PYRO_ variable, and the known ones would change the protocol.
    # PYTHONINSPECT would keep an interpreter running after its program has ended.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYRO_")}
    kept.pop("PYTHONINSPECT", None)
    return {**kept, CHILD_VARIABLE: str(os.getpid())}


def refuse_in_a_child() -> None:
    """Raise `ConfigurationError` in a process that was started as a child: it could start another one, without end."""
    if CHILD_VARIABLE in os.environ:
        raise ConfigurationError(
            "This process was started to be a node or a name server, and must not start another one: "
            f"{sys.executable!r} or a `sitecustomize` module runs a program that starts a cluster."
        )


def _candidates() -> Iterator[str]:
    if not getattr(sys, "frozen", False):  # set by the tools that freeze programs
        yield from filter(None, (sys.executable, getattr(sys, "_base_executable", None)))
    kind = "pypy" if sys.implementation.name == "pypy" else "python"
    for prefix in dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)):
        yield os.path.join(prefix, "bin", f"{kind}{sys.version_info[0]}.{sys.version_info[1]}")
        yield os.path.join(prefix, "bin", f"{kind}3")


@functools.cache
def _is_this_python(path: str) -> bool:
    if not os.path.basename(path).lower().startswith(("python", "pypy")):
        return False
    # -S and -I: `sitecustomize` must neither run nor print.
    arguments = [path, "-I", "-S", "-c", "import sys; print(sys.implementation.cache_tag)"]
    try:
        printed = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_VERIFY_SECONDS,
            env=environment(),
            process_group=0,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        if isinstance(error, BlockingIOError) or explain(error):  # it says nothing about the program
            raise
        return False
    return printed.decode(errors="replace").strip() == sys.implementation.cache_tag


def _flags() -> list[str]:
    """Return the options of this process that decide where Python imports from."""
    flags = {"-I": "isolated", "-E": "ignore_environment", "-s": "no_user_site", "-S": "no_site"}
    return [flag for flag, name in flags.items() if getattr(sys.flags, name)]


def _import_path() -> list[str]:
    here = {"", os.curdir}
    with contextlib.suppress(OSError):  # the working directory was removed
        here.add(os.getcwd())
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if isinstance(script, str):
        here |= {os.path.dirname(script), os.path.dirname(os.path.abspath(script))}
    entries = [entry for entry in sys.path if isinstance(entry, str)]
    last = [entry for entry in entries if entry in here]
    return [*(entry for entry in entries if entry not in here), *last]
