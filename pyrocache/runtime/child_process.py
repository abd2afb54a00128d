"""Child processes that never outlive their parent.

A child's standard input is a pipe whose other end only this process holds: when it is gone, by whatever means, the
child reads the end of file and leaves. Each child has a process group of its own, so that Ctrl-C in a terminal
reaches the parent alone, and so that a child which is *stopped* (SIGSTOP) when its parent dies is continued and
hung up by the kernel, as POSIX demands for process groups that become orphaned.

A `ChildProcess` may be used by one thread at a time.
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
from pathlib import Path
from typing import IO, Any

from pyrocache.errors import PyroCacheError
from pyrocache.runtime import at_fork

START_SECONDS = 20.0
_STOP_SECONDS = 5.0


class ChildProcess:
    """A module of this package run as a process of its own.

    Args:
        module: what to run; it prints one line of JSON when it is ready.
        settings: its settings, handed over as JSON.
        quiet: keep what it writes to its standard error to ourselves, for the error message if it fails.
    """

    def __init__(self, module: str, settings: dict[str, Any], *, quiet: bool) -> None:
        self._errors: IO[bytes] | None = tempfile.TemporaryFile() if quiet else None
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                module,
                json.dumps(settings),
            ],  # -P: no module from the working directory
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            process_group=0,
        )
        self.started_at = time.monotonic()
        at_fork.in_child(self.let_go_after_fork)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it lives; minus the signal that killed it, if one did."""
        return self._process.poll()

    def wait_until_ready(self, timeout: float = START_SECONDS) -> dict[str, Any]:
        """What it says when it is ready.

        Raises:
            PyroCacheError: it ended, or took longer than ``timeout`` seconds; it is gone then.
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
                        f"A process did not start within {timeout:g} s; is the machine busy?"
                    )
                data = os.read(self._process.stdout.fileno(), 4096)
                if not data:
                    self._process.wait()
                    raise PyroCacheError(self._last_words())
                line += data
        answer: dict[str, Any] = json.loads(line)
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def pause(self) -> None:
        """Stop it by SIGSTOP; returns when it has stopped, as it runs on for a moment."""
        self.signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):  # macOS has none before Python 3.13
            with contextlib.suppress(ChildProcessError):  # it has ended
                os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def terminate(self) -> None:
        """Ask it to leave; `wait` for it then."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a stopped process acts on nothing else

    def wait(self, timeout: float = _STOP_SECONDS) -> None:
        """Wait until it has ended; after ``timeout`` seconds it is killed."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._release()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._release()

    def _last_words(self) -> str:
        words = ""
        if self._errors is not None:
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip()
        self._release()
        last_line = words.splitlines()[-1] if words else ""
        return last_line or f"A process ended with status {self._process.returncode} before it was ready."

    def _release(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def let_go_after_fork(self) -> None:
        """In a forked process: close the pipe, so that the child depends on its real parent alone."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.close()


def start_nameserver(
    *, host: str = "127.0.0.1", port: int = 0, storage: str = "memory", insecure: bool = False, quiet: bool
) -> ChildProcess:
    """A name server process; port 0 is a free one."""
    settings = {"host": host, "port": port, "storage": storage, "insecure": insecure}
    return ChildProcess("pyrocache.nameserver.process", settings, quiet=quiet)


def start_node(settings: dict[str, Any], *, quiet: bool) -> ChildProcess:
    """A node process; ``settings`` are fields of `NodeConfig`."""
    return ChildProcess("pyrocache.node.process", settings, quiet=quiet)


def environment() -> dict[str, str]:
    """The environment to run a module of this package in."""
    # Pyro5 refuses to be imported when it does not know a PYRO_ variable, and known ones would change the protocol.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYRO_")}
    root = Path(__file__).resolve().parent.parent.parent
    if "site-packages" not in root.parts:  # run from a source tree, perhaps not installed
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else str(root)
    return environment
