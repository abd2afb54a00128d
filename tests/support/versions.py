"""Versions of pyrocache in directories of their own, and processes that run them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Outcome
from tests.support.processes import ROOT, environment

_PATIENCE_SECONDS = 20.0

_CLIENT = """
import json, sys
from pyrocache import PyroCacheClient

with PyroCacheClient(sys.argv[1], timeout=10.0) as cache:
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        try:
            answer = {"result": getattr(cache, method)(*arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=repr), flush=True)
"""


def of_commit(commit: str, directory: Path) -> Path:
    """Write the pyrocache of a commit of this repository to a directory. Skip the test if that is not possible."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit, "pyrocache"]
    try:
        archive = subprocess.run(command, capture_output=True, timeout=_PATIENCE_SECONDS, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"The version before cannot be run: git, or its commit {commit}, is not here.")
    return directory


def with_protocol(protocol: int, directory: Path) -> Path:
    """Write this pyrocache to a directory, with another version of the protocol."""
    # With its compiled modules, which remain valid, as the times of the files remain as well.
    shutil.copytree(ROOT / "pyrocache", directory / "pyrocache")
    module = directory / "pyrocache" / "protocol" / "handshake.py"
    source, count = re.subn(r"(?m)^PROTOCOL = \d+$", f"PROTOCOL = {protocol}", module.read_text())
    assert count == 1
    module.write_text(source)
    return directory


class Client:
    """A `PyroCacheClient` in a process that runs another version. ``call`` takes and returns what JSON can tell."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method. Return the result, in which other objects are their repr.

        Raises:
            RuntimeError: the method raised, with the name of the exception and its text.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]


class Version:
    """One version, and the processes that run it. `stop` ends them.

    Args:
        place: the directory that its package is in.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._stack = ExitStack()

    def nameserver(self, address: str) -> subprocess.Popen[str]:
        """Start a name server; return once it can be reached."""
        return self._serve("Name server ready", "nameserver", "--port", address.rpartition(":")[2])

    def nodes(self, nameserver: str, *options: str) -> subprocess.Popen[str]:
        """Start nodes; return once they serve."""
        return self._serve("ready\n", "nodes", "--nameserver", nameserver, "--max-memory", "64MiB", *options)

    def client(self, nameserver: str) -> Client:
        """Start a process with a client."""
        return Client(self._start("-c", _CLIENT, nameserver))

    def run(self, *command: str) -> Outcome:
        """Run a command to its end."""
        process = self._start("-m", "pyrocache", *command)
        texts = process.communicate(timeout=_PATIENCE_SECONDS)
        return Outcome(process.returncode, *texts)

    def stop(self) -> None:
        """End all processes that still run."""
        self._stack.close()

    def _serve(self, line: str, *command: str) -> subprocess.Popen[str]:
        process = self._start("-m", "pyrocache", *command)
        assert process.stdout is not None
        while not (said := process.stdout.readline()).startswith(line):
            assert said, "it did not start"
        return process

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self._place,
            env=environment(PYTHONPATH=str(self._place)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(_end, process)
        return process


def drain(process: subprocess.Popen[str]) -> None:
    """End a process as an operator does: by SIGTERM, upon which nodes leave the cluster."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(_PATIENCE_SECONDS) == 0


def _end(process: subprocess.Popen[str]) -> None:
    """End a process, and with it those that it has started."""
    process.kill()
    process.communicate()
