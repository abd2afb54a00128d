"""Processes that tests start, and what the system knows of them."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def default_signals() -> None:
    """Undo what this process inherited, which those that it starts would inherit too.

    A shell starts background commands with SIGINT ignored, nohup with SIGHUP ignored.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD):
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def state(pid: int) -> str:
    """Return the system's letter for the state of a process; ``""`` when it has ended, reaped or not."""
    try:
        os.kill(pid, 0)
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return ""
    return letter.strip("ZX")


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    return not state(pid)


def is_stopped(pid: int) -> bool:
    """Return whether all threads of a process have stopped after SIGSTOP; they stop one by one."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def children(pid: int) -> set[int]:
    """Return the processes that this one has started and that are not gone."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(path.parent.name))
    return found


def free_port() -> int:
    """Return a loopback port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def free_address() -> str:
    """Return a loopback address where nobody listens."""
    return f"127.0.0.1:{free_port()}"


def environment(**variables: str) -> dict[str, str]:
    """Return the environment for a command run from the source tree."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYROCACHE_NAMESERVER"}
    return {**inherited, "COLUMNS": "200", "PYTHONPATH": str(ROOT), **variables}
