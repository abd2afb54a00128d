"""Detached clusters of a user who has a directory for temporary files and a secret of his own, and his programs.

Whatever a test leaves running is found by the directory that no other processes have in their environment.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from pyrocache import PyroCacheClient
from pyrocache.detached.place import Place, Running
from tests.support.processes import children, environment, free_address
from tests.support.waiting import PATIENCE_SECONDS, wait_until

_LOOP = """
import json, os, sys
import pyrocache
from pyrocache.detached import connect
connect.DEFAULT_NAMESERVER = os.environ["USUAL_ADDRESS"]  # 9090 may be in use on this host
if "AS_A_PERSON" in os.environ:
    sys.ps1 = ">>> "
names = {"pyrocache": pyrocache}
commands = os.fdopen(int(sys.argv[1]), "r")
answers = os.fdopen(int(sys.argv[2]), "w")
for line in commands:
    try:
        try:
            answer = eval(json.loads(line), names)
        except SyntaxError:
            answer = exec(json.loads(line), names)
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer, default=repr), file=answers, flush=True)
"""


class ProgramError(Exception):
    """What a program has raised: the name of the class, and the text."""


class Program:
    """A Python process that runs what the test sends it, like the kernel of a notebook."""

    def __init__(self, variables: dict[str, str], **options: Any) -> None:
        theirs, ours = os.pipe()
        our_answers, their_answers = os.pipe()
        self._commands, self._answers = os.fdopen(ours, "w"), os.fdopen(our_answers)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LOOP, str(theirs), str(their_answers)],
            env=environment(**variables),
            pass_fds=(theirs, their_answers),
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "start_new_session": True, **options},
        )
        os.close(theirs)
        os.close(their_answers)

    def begin(self, source: str) -> None:
        """Have it run a statement, or evaluate an expression. `end` waits for the outcome."""
        self._commands.write(json.dumps(source) + "\n")
        self._commands.flush()

    def end(self) -> Any:
        """Return the value of the expression. Raises `ProgramError`."""
        answer = json.loads(self._answers.readline())
        if type(answer) is dict and "error" in answer:
            raise ProgramError(answer["error"])
        return answer

    def run(self, source: str) -> Any:
        """Return the value of an expression, or run a statement. Raises `ProgramError`."""
        self.begin(source)
        return self.end()

    def connect(self, arguments: str = "nodes=1, max_memory='64MiB'") -> Any:
        """Have it connect; return the address, and the line that it has printed if it is a person's."""
        self.run(f"cache = pyrocache.connect({arguments})")
        return self.run("cache._context.config.nameserver")

    def printed(self) -> str:
        """Return the next line that it has printed."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def kill(self) -> None:
        """Kill it as if the kernel was restarted."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self._answers, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._commands.close()
        except BrokenPipeError:
            pass


class User:
    """A user with programs and at most one detached cluster.

    Attributes:
        variables: the environment of his programs.
        place: where his cluster is written down.
    """

    def __init__(self, directory: str, **variables: str) -> None:
        self.variables = {
            "TMPDIR": directory,
            "XDG_CONFIG_HOME": os.path.join(directory, "config"),
            "XDG_RUNTIME_DIR": "",
            "USUAL_ADDRESS": free_address(),
            **variables,
        }
        private = os.path.join(directory, f"pyrocache-{os.getuid()}")
        os.makedirs(private, mode=0o700, exist_ok=True)
        self.place = Place(private)
        self._directory = directory
        self._programs = ExitStack()

    def program(self, **options: Any) -> Program:
        """Start a program."""
        return self._programs.enter_context(Program(self.variables, **options))

    def client(self, address: str) -> PyroCacheClient:
        """Return a client in this process, of the kind that does not know of detached clusters."""
        return PyroCacheClient(address, secret_file=self.secret_file, tls=False)

    @property
    def secret_file(self) -> str:
        """Where his secret is."""
        return os.path.join(self.variables["XDG_CONFIG_HOME"], "pyrocache", "secret")

    def running(self) -> Running:
        """Return his cluster."""
        running = self.place.running()
        assert running is not None, self.log
        return running

    def processes(self) -> set[int]:
        """Return the processes that the keeper has started, without itself."""
        return children(self.running().record.pid)

    def everything(self) -> set[int]:
        """Return the processes of all his clusters, found by their environment."""
        mark, kind = f"TMPDIR={self._directory}\0".encode(), b"runtime/start.py\0"
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is another user's
                if mark in (process / "environ").read_bytes() and kind in (process / "cmdline").read_bytes():
                    found.add(int(process.name))
        return found

    @property
    def log(self) -> str:
        """What the keepers have reported."""
        with open(self.place.log) as log:
            return log.read()

    def close(self) -> None:
        """End all that he has started."""
        self._programs.close()
        lock = self.place.starting(PATIENCE_SECONDS)  # a start that is under way is waited for
        assert lock is not None
        running = self.place.running()
        if running is not None:
            running.signal(signal.SIGKILL)
            assert running.wait(PATIENCE_SECONDS)
        lock.close()
        if not wait_until(lambda: not self.everything()):
            left = self.everything()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"{len(left)} processes of clusters were left")


@contextmanager
def user(**variables: str) -> Iterator[User]:
    """Give a user of whom nothing is left afterwards."""
    directory = tempfile.mkdtemp(prefix="pc-")  # short, as the path of a socket is
    try:
        one = User(directory, **variables)
        try:
            yield one
        finally:
            one.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
