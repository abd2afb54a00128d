"""A command that goes on running while a test uses it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import ROOT, environment
from tests.support.waiting import PATIENCE_SECONDS, eventually


@dataclass(frozen=True)
class Background:
    """A running process, and the files that it prints to."""

    process: subprocess.Popen[bytes]
    out_file: Path
    err_file: Path

    @property
    def out(self) -> str:
        return self.out_file.read_text()

    @property
    def err(self) -> str:
        return self.err_file.read_text()

    def has_said(self, text: str) -> bool:
        """Return whether it has printed ``text``. Fails if it has ended without."""
        ended = self.process.poll() is not None
        assert text in self.out or not ended, self.err
        return text in self.out


@contextmanager
def background(
    directory: Path, *command: str, ready: str, cwd: Path = ROOT, **variables: str
) -> Iterator[Background]:
    """Run a Python command, which has printed ``ready`` once this yields. Kill it afterwards.

    Its children see its end, and end too.

    Args:
        directory: where the files for its output are made.
        command: the arguments of the interpreter.
        cwd: its working directory.
        variables: changes of its environment.
    """
    directory.mkdir(exist_ok=True)
    number = len(list(directory.iterdir()))
    out_file, err_file = directory / f"{number}.out", directory / f"{number}.err"
    with out_file.open("wb") as out, err_file.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=cwd, env=environment(**variables), stdout=out, stderr=err
        )
    running = Background(process, out_file, err_file)
    try:
        eventually(lambda: running.has_said(ready), PATIENCE_SECONDS)
        yield running
    finally:
        process.kill()
        process.wait()
