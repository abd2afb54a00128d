"""`ChildProcess`: a process that never outlives its parent.

The standard input of a child is a pipe whose other end is open in the parent only. When the parent ends, for whatever
reason, or the `ChildProcess` is garbage-collected, the child reads the end of file and exits
(`StopRequest.with_parent`). Each child has its own process group:
Ctrl-C in a terminal reaches only the parent, and a child that is *stopped* (SIGSTOP) when its parent dies receives
SIGHUP and SIGCONT from the kernel, as POSIX requires for orphaned process groups.

The modules that run in a child are `node.process` and `nameserver.process`.

Thread safety: a `ChildProcess` is used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import IO, Any

from pyrocache.errors import PyroCacheError
from pyrocache.runtime import at_fork
from pyrocache.runtime.shortage import explained

START_SECONDS = 20.0
_STOP_SECONDS = 5.0


class ChildProcess:
    """A process that runs a module of this package.

    Args:
        module: the module to run; it prints one line of JSON when it is ready.
        settings: its settings, passed as JSON.
        quiet: capture its standard error; the error message quotes it if the process does not start.
    """

    def __init__(self, module: str, settings: dict[str, Any], *, quiet: bool) -> None:
        with explained("A process cannot be started", starts_process=True):
            self._start(module, settings, quiet)
        self.started_at = time.monotonic()
        # The Popen object is no help: if the process runs when it is collected, `subprocess` keeps it and its pipes.
        weakref.finalize(self, self._process.stdin.close).atexit = False  # type: ignore[union-attr]
        at_fork.in_child(self.let_go_after_fork)

    def _start(self, module: str, settings: dict[str, Any], quiet: bool) -> None:
        self._errors: IO[bytes] | None = tempfile.TemporaryFile() if quiet else None
        self._process = subprocess.Popen(
            # -P: a module in the working directory must not replace one of ours
            [sys.executable, "-P", "-m", module, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            process_group=0,  # Ctrl-C must not reach it
        )

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Return the exit status: None while it runs, minus the signal's number if a signal killed it."""
        return self._process.poll()

    def wait_until_ready(self, timeout: float = START_SECONDS) -> dict[str, Any]:
        """Wait until the process is ready. Return the JSON that it printed.

        Raises:
            PyroCacheError: it ended, or was not ready after ``timeout`` seconds and was killed.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.kill()
                    raise PyroCacheError(
                        f"A process did not start within {timeout:g} s. Is the machine busy?"
                    )
                # Not `readline`, which would block if the process wrote a part of the line.
                data = os.read(self._process.stdout.fileno(), 4096)
                if not data:
                    self._process.wait()
                    raise PyroCacheError(self._failure())
                line += data
        answer: dict[str, Any] = json.loads(line)
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def pause(self) -> None:
        """Suspend the process with SIGSTOP, and wait until it is suspended."""
        self.signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):  # not on macOS before Python 3.13
            with contextlib.suppress(ChildProcessError):  # it has ended
                os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def terminate(self) -> None:
        """Send SIGTERM, and SIGCONT in case it is stopped. Call `wait` afterwards."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a stopped process does not handle SIGTERM until it continues

    def wait(self, timeout: float = _STOP_SECONDS) -> None:
        """Wait until the process has ended. Kill it after ``timeout`` seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        self._release()

    def kill(self) -> None:
        """Kill the process with SIGKILL, and wait until it has ended."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._release()

    def _failure(self) -> str:
        """Return the last line of its standard error, or its exit status if there is none."""
        lines = [f"A process ended with status {self._process.returncode} before it was ready."]
        if self._errors is not None:
            self._errors.seek(0)
            lines += self._errors.read().decode(errors="replace").strip().splitlines()
        self._release()
        return lines[-1]

    def _release(self) -> None:
        for stream in filter(None, (self._process.stdin, self._process.stdout, self._errors)):
            with contextlib.suppress(OSError):
                stream.close()

    def let_go_after_fork(self) -> None:
        """Close the pipe in a forked process. Otherwise the child would not see the end of its parent."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def start_nameserver(
    *, host: str = "127.0.0.1", port: int = 0, storage: str = "memory", insecure: bool = False, quiet: bool
) -> ChildProcess:
    """Start a name server process. Port 0 takes a free port."""
    settings = {"host": host, "port": port, "storage": storage, "insecure": insecure}
    return ChildProcess("pyrocache.nameserver.process", settings, quiet=quiet)


def start_node(settings: dict[str, Any], *, quiet: bool) -> ChildProcess:
    """Start a node process. ``settings`` are fields of `NodeConfig`."""
    return ChildProcess("pyrocache.node.process", settings, quiet=quiet)


def environment() -> dict[str, str]:
    """Return the environment for running a module of this package."""
    # Pyro5 fails to import if there is an unknown PYRO_ variable, and the known ones would change the protocol.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYRO_")}
    root = Path(__file__).resolve().parent.parent.parent
    if "site-packages" not in root.parts:  # run from a source tree, perhaps not installed
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else str(root)
    return environment
