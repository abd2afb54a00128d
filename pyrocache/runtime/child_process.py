"""`ChildProcess`: a process that never outlives its parent.

A socket pair connects the two. The parent sends the settings over it, as one line of JSON: they may hold a secret, and
any user can read the arguments of a process. The child sends a line when it is ready, or says why it is not, and
reads its end when the parent ends, for whatever reason, or the `ChildProcess` is garbage-collected
(`StopRequest.with_parent`). Standard input and output have no part in this: a child reads nothing from the one, and
what a ``sitecustomize`` prints on the other is nobody's answer.

Each child has its own process group:
Ctrl-C in a terminal reaches only the parent, and a child that is *stopped* (SIGSTOP) when its parent dies receives
SIGHUP and SIGCONT from the kernel, as POSIX requires for orphaned process groups.

The modules that run in a child are `node.process` and `nameserver.process`; `runtime.interpreter` decides what runs
them.

`start_detached` starts a process of another kind, which outlives its parent.

Thread safety: a `ChildProcess` is used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from typing import IO, Any

from pyrocache.errors import PyroCacheError
from pyrocache.runtime import at_fork, interpreter
from pyrocache.runtime.secret import Secret, find_secret
from pyrocache.runtime.shortage import explained

START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_ANSWER_BYTES = 64 * 1024
_QUOTED_LINES = 5
_QUOTED_BYTES = 2000


class ChildProcess:
    """A process that runs a module of this package.

    Args:
        module: the module to run: its ``main`` gets the settings, and the descriptor that leads here, as text.
        settings: its settings, sent as JSON.
        quiet: capture what it prints; the error message quotes it if the process does not start.
        descriptors: further descriptors that it inherits, under the same numbers.

    Raises:
        ConfigurationError: there is no Python interpreter to run it with, or this process is such a child itself.
    """

    def __init__(
        self, module: str, settings: dict[str, Any], *, quiet: bool, descriptors: Sequence[int] = ()
    ) -> None:
        interpreter.refuse_in_a_child()
        self._module = module
        with explained("A process cannot be started", starts_process=True):
            self._start(settings, quiet, descriptors)
        self.started_at = time.monotonic()
        # When this process ends, the kernel closes the link, and continues a suspended child.
        self._let_go = weakref.finalize(self, _let_go, self._link, self._output, self._process)
        self._let_go.atexit = False
        at_fork.in_child(self.let_go_after_fork)

    def _start(self, settings: dict[str, Any], quiet: bool, descriptors: Sequence[int]) -> None:
        self._output = _capture() if quiet else None
        self._link, other_end = socket.socketpair()
        try:
            with other_end:
                # Before it starts: one that fails at once would close the other end. A few KiB fit into the buffer.
                self._link.sendall(json.dumps(settings).encode() + b"\n")
                self._process = subprocess.Popen(
                    interpreter.command(self._module, other_end.fileno()),
                    stdin=subprocess.DEVNULL,
                    # Standard output is nobody's answer: show it with the errors, or not at all.
                    stdout=self._output or subprocess.DEVNULL,
                    stderr=self._output,
                    env=interpreter.environment(),
                    pass_fds=(other_end.fileno(), *descriptors),
                    process_group=0,  # Ctrl-C must not reach it
                )
        except BaseException:
            self._link.close()
            raise

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Return the exit status: None while it runs, minus the signal's number if a signal killed it."""
        return self._process.poll()

    def wait_until_ready(self, timeout: float = START_SECONDS) -> dict[str, Any]:
        """Wait until the process is ready. Return what it has sent (`runtime.start.answer`).

        Raises:
            PyroCacheError: it did not start, for the reason that it gave, or was not ready after ``timeout`` seconds
                and was killed.
        """
        deadline = time.monotonic() + timeout
        try:
            line = _receive_line(self._link, deadline)
            if not line:
                self._process.wait(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            self.signal(signal.SIGKILL)
            raise self._failure(f"did not start within {timeout:g} s. Is the machine busy?") from None
        if not line:
            status = self._process.returncode
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise self._failure(f"{how} before it was ready.")
        content: dict[str, Any] = json.loads(line)
        if "error" in content:
            self.wait()
            raise PyroCacheError(content["error"])
        return content

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

    def _failure(self, what: str) -> PyroCacheError:
        """Wait until the process has ended. Return the error, with the last lines that the process printed."""
        self._process.wait()
        text = f"A process of {self._module} {what}"
        if self._output is not None:
            size = os.fstat(self._output.fileno()).st_size
            last = os.pread(self._output.fileno(), _QUOTED_BYTES, max(0, size - _QUOTED_BYTES))
            lines = last.decode(errors="replace").strip().splitlines()[-_QUOTED_LINES:]
            text = "\n".join([f"{text} It printed:" if lines else text, *lines])
        self._release()
        return PyroCacheError(text)

    def _release(self) -> None:
        self._link.close()
        if self._output is not None:
            self._output.close()

    def let_go_after_fork(self) -> None:
        """Close the link in a forked process. Otherwise the child would not see the end of its parent."""
        self._link.close()
        self._let_go.detach()  # the process is not a child of this one


def _receive_line(link: socket.socket, deadline: float) -> bytes:
    """Return the line that a process sends; nothing if it has ended. Raises `TimeoutError` at the deadline."""
    line = b""
    while not line.endswith(b"\n"):
        link.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = link.recv(_ANSWER_BYTES)
        except ConnectionResetError:  # it ended before it had read its settings
            data = b""
        if not data:
            return b""
        line += data
    return line


_ending: list[
    subprocess.Popen[bytes]
] = []  # end by themselves; a Popen object that is collected before warns


def _let_go(link: socket.socket, output: IO[bytes] | None, process: subprocess.Popen[bytes]) -> None:
    """Let a process end whose `ChildProcess` is collected: it sees the end of its link."""
    link.close()
    if output is not None:
        output.close()
    _ending[:] = [other for other in (*_ending, process) if other.poll() is None]
    if process.returncode is None:
        process.send_signal(signal.SIGCONT)  # a suspended process sees nothing


def _capture() -> IO[bytes] | None:
    """Return a file for what a process prints; None if there is no place for one."""
    try:
        return tempfile.TemporaryFile()
    except OSError:  # no temporary directory
        return os.fdopen(os.memfd_create("output"), "w+b") if hasattr(os, "memfd_create") else None


def start_nameserver(
    *, quiet: bool, secret: Secret | None = None, port: int = 0, **settings: Any
) -> ChildProcess:
    """Start a name server process.

    Args:
        port: the port; 0 takes a free one.
        secret: that of the cluster; None to find that of this user.
        settings: further fields of `NameServerConfig`.
    """
    settings = {**settings, "port": port, "secret": (secret or find_secret()).for_child()}
    return ChildProcess("pyrocache.nameserver.process", settings, quiet=quiet)


def start_node(
    settings: dict[str, Any], *, quiet: bool, secret: Secret | None = None, clock: int | None = None
) -> ChildProcess:
    """Start a node process.

    Args:
        settings: fields of `NodeConfig`.
        secret: that of the cluster; None to find that of this user.
        clock: the descriptor of a `SharedClock` for its TTLs, leases and locks.
    """
    settings = {**settings, "secret": (secret or find_secret()).for_child()}
    descriptors = () if clock is None else (clock,)
    if clock is not None:
        settings = {**settings, "clock": clock}
    return ChildProcess("pyrocache.node.process", settings, quiet=quiet, descriptors=descriptors)


def start_detached(
    module: str, settings: dict[str, Any], *, output: int, descriptors: Sequence[int] = (), timeout: float
) -> dict[str, Any] | None:
    """Start a process that outlives this one, and wait until it is ready. Return what it has sent.

    It has a session of its own, without a terminal, and its ``main`` forks at once (`detach`), so that it is not even a
    child of this process. An exception that ends the wait, such as Ctrl-C, does not end the process.

    Args:
        module, settings: as for `ChildProcess`.
        output: the descriptor of the file that it prints to.
        descriptors: further descriptors that it inherits, under the same numbers.
        timeout: seconds to wait.

    Returns:
        What it has sent (`runtime.start.answer`); None if it has ended without.

    Raises:
        ConfigurationError: as for `ChildProcess`.
        OutOfResources: it cannot be started.
        TimeoutError: it was not ready in time. It goes on.
    """
    interpreter.refuse_in_a_child()
    deadline = time.monotonic() + timeout
    link, other_end = socket.socketpair()
    process: subprocess.Popen[bytes] | None = None
    with link:
        try:
            with other_end, explained("A process cannot be started", starts_process=True):
                link.sendall(json.dumps(settings).encode() + b"\n")
                process = subprocess.Popen(
                    interpreter.command(module, other_end.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=interpreter.environment(),
                    pass_fds=(other_end.fileno(), *descriptors),
                    start_new_session=True,
                )
            line = _receive_line(link, deadline)
        finally:
            if process is not None:
                _ending[:] = [other for other in (*_ending, process) if other.poll() is None]
    return json.loads(line) if line else None


def detach(descriptors: Sequence[int]) -> None:
    """Leave the process that has called `start_detached`: go on in a fork, which is nobody's child.

    Its working directory is the root, so that it keeps no file system busy. Signals are as in a new process, except
    that SIGHUP is ignored. It may start child processes. Call this first, before there is another thread.

    Args:
        descriptors: those that this process has inherited, which its own children must not inherit.
    """
    if os.fork():
        os._exit(0)  # the parent process waits for this
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    sys.path[:] = [os.path.abspath(entry) for entry in sys.path]
    os.chdir("/")
    os.environ.pop(interpreter.CHILD_VARIABLE, None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
