"""A program in a pseudo-terminal, which is its controlling one: what it writes there, and the keys that it gets."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from tests.support.processes import ROOT, environment
from tests.support.waiting import PATIENCE_SECONDS

HOME = b"\x1b[H"
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
SHOW_CURSOR = b"\x1b[?25h"
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """A process in a terminal of its own, within a ``with`` block. It is killed in the end.

    Attributes:
        process: the process, the leader of a session.
        written: the bytes that were written so far.
    """

    def __init__(
        self, command: Sequence[str], *, columns: int = 100, lines: int = 24, **variables: str
    ) -> None:
        self._master, self._slave = os.openpty()
        self.resize(columns, lines)
        self.modes = self.now()
        self.written = b""
        variables = {"TERM": "xterm-256color", "PYTHONUNBUFFERED": "", **variables}
        environ = environment(**variables)
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
            if name not in variables:
                environ.pop(name, None)
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            preexec_fn=self._take,
        )

    @staticmethod
    def _take() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def now(self) -> list[Any]:
        """Return the modes of the terminal."""
        return termios.tcgetattr(self._slave)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size. The foreground processes get a SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: str) -> None:
        """Type these keys."""
        os.write(self._master, keys.encode())

    @property
    def frame(self) -> str:
        """The last frame that was drawn as a whole, without codes."""
        return _CODES.sub("", self.written.rpartition(HOME)[2].decode("utf-8", "replace")).replace("\r", "")

    def until(self, condition: Any, seconds: float = PATIENCE_SECONDS) -> None:
        """Read until this is in the last frame (a str), was written (bytes), or is true (a function)."""

        def is_so() -> bool:
            if isinstance(condition, str):
                return condition in self.frame
            return condition in self.written if isinstance(condition, bytes) else bool(condition())

        end = time.monotonic() + seconds
        while not is_so():
            left = end - time.monotonic()
            assert left > 0, (
                f"{condition!r} is not so; the last of what was written: {self.written[-3000:]!r}"
            )
            self._read(min(left, 0.1))

    def end(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Read to the end of the process. Return its exit status; negative for a signal."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it goes on: {self.written[-3000:]!r}"
            self._read(0.05)
        while self._read(0.0):
            pass
        return self.process.wait()

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], (), (), seconds)[0]:
            return False
        self.written += os.read(self._master, 65536)
        return True
