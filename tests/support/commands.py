"""Command lines that tests run to their end: as processes, or in this process, which is faster."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from pyrocache.cli import main
from tests.support.processes import ROOT, environment


@dataclass
class Outcome:
    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What was said of an error, which has to be one line, and nothing else."""
        assert self.out == ""
        assert self.err.endswith("\n")
        assert len(self.err.splitlines()) == 1, self.err
        return self.err.strip()


def run(*command: str, cwd: Path = ROOT, **variables: str) -> Outcome:
    """Run a Python command to its end."""
    return run_all([command], cwd=cwd, **variables)[0]


def run_all(commands: Sequence[tuple[str, ...]], *, cwd: Path = ROOT, **variables: str) -> list[Outcome]:
    """Run several at the same time, as their start is what takes long."""
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        said = [process.communicate(timeout=30.0) for process in started]
        return [Outcome(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]
    finally:
        for process in started:
            process.kill()


def call(*command: str, stdin: bytes = b"", **variables: str) -> Outcome:
    """Run a command to its end in this process, which it must not start anything in."""
    script, *arguments = command
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with (
        patch.dict(os.environ, environment(**variables), clear=True),
        patch.object(sys, "argv", [script, *arguments]),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8")),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main({"run_nameserver.py": "nameserver", "run_nodes.py": "nodes"}.get(script))
    return Outcome(ended.value.code, _written(out), _written(err))  # type: ignore[arg-type]


def shell_environment(directory: Path, nameserver: str) -> dict[str, str]:
    """Return the environment of a shell that finds a command ``pyrocache``, which this writes to ``directory``."""
    script = directory / "pyrocache"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m pyrocache "$@"\n')
    script.chmod(0o755)
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    return environment(PATH=path, PYROCACHE_NAMESERVER=nameserver, PYTHONUNBUFFERED="")


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8", "surrogateescape")  # type: ignore[attr-defined, no-any-return]
