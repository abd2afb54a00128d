"""`Screen`: a full screen that is drawn again and again, keys, and signals, for ``top`` and ``status --watch``.

It uses the alternate screen of the terminal, so that what was there before comes back. The terminal is restored in
every case: at the end, after an exception, when a signal ends the process, and while Ctrl-Z has stopped the process.

The handlers of signals only write a byte to a pipe. `wait` reads it, next to the keyboard, and does what the signal
means. So no signal interrupts drawing half way.

Thread safety: for the main thread, except `wake`, which any thread may call.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

_CODES = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1bOC": "right",
    "\x1bOD": "left",
}
_LONGEST_CODE = 32  # characters after ESC that are waited for; a longer one is not of a key
_CODE_SECONDS = 0.05  # within which the rest of such a code arrives
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_WAKE = 0  # no signal has this number


def is_possible() -> bool:
    """Return whether standard output is a terminal that can move its cursor."""
    if sys.stdout is None or not sys.stdout.isatty():
        return False
    return os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


class Screen:
    """The terminal as a full screen, within a ``with`` block in the main thread.

    Raises:
        KeyboardInterrupt: by `wait`, after Ctrl-C.
    """

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, highlight=False)
        self._live: Live | None = None
        self._keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._modes: list[Any] | None = None
        self._ending: signal.Signals | None = None
        self._signalled, self._signal = os.pipe()
        for end in (self._signalled, self._signal):
            os.set_blocking(end, False)
        self._restore = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(os.close, self._signalled)
            undo.callback(os.close, self._signal)
            for number in (signal.SIGINT, *_ENDING, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH):
                if signal.getsignal(number) != signal.SIG_IGN:  # under nohup, in the background
                    undo.callback(signal.signal, number, signal.signal(number, self._on_signal))
            undo.callback(self._leave)
            self._enter()
            self._restore = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore.close()
        if self._ending is not None:  # whoever waits for this process shall see what has ended it
            signal.signal(self._ending, signal.SIG_DFL)
            os.kill(os.getpid(), self._ending)

    @property
    def size(self) -> tuple[int, int]:
        """The columns and the lines of the terminal; not those of ``$COLUMNS``, which do not change."""
        try:
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            columns, lines = 0, 0
        return columns or 80, lines or 24  # a new pseudo-terminal has 0

    def draw(self, lines: Iterable[Text]) -> None:
        """Replace what is shown. Lines that are too long are cut."""
        if self._live is None:
            return
        self._console.size = self.size
        shown = list(lines)
        for line in shown:
            line.no_wrap, line.overflow = True, "crop"
        self._live.update(Group(*shown), refresh=True)

    def wait(self, seconds: float | None) -> list[str]:
        """Wait for a key, for a change of the size, or for `wake`. Return the keys.

        A key is a character, or ``up``, ``down``, ``left`` or ``right``.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            SystemExit: a signal ends the process; on leaving the ``with`` block, it does so.
        """
        sources = [self._signalled, *([] if self._keyboard is None else [self._keyboard])]
        ready = select.select(sources, (), (), seconds)[0]
        if self._signalled in ready:
            for number in os.read(self._signalled, 1024):
                self._take(number)
        return self._read_keys() if self._keyboard in ready else []

    def wake(self) -> None:
        """End the current or the next `wait`."""
        with suppress(OSError):  # it is full, so that there is something to read; or the screen is closed
            os.write(self._signal, bytes([_WAKE]))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            os.write(self._signal, bytes([number]))

    def _take(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number in _ENDING:
            self._ending = signal.Signals(number)
            raise SystemExit(128 + number)
        if number == signal.SIGTSTP:
            self._leave()
            handlers = {
                number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTSTP, signal.SIGCONT)
            }
            os.kill(os.getpid(), signal.SIGTSTP)  # goes on here after SIGCONT
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._enter()
        elif number == signal.SIGCONT:  # the shell may have changed the terminal meanwhile
            self._leave()
            self._enter()

    def _read_keys(self) -> list[str]:
        text, keys = self._read(), []
        while text:
            if text[0] == "\x1b":
                while not (length := _length_of_code(text)) and self._goes_on(text):
                    text += self._read()
                keys.append(_CODES.get(text[:length], ""))
                text = text[length or len(text) :]
            else:
                keys.append(text[0])
                text = text[1:]
        return [key for key in keys if key]

    def _goes_on(self, code: str) -> bool:
        """Return whether more of the code of a key has arrived; it may come in parts."""
        if self._keyboard is None or len(code) > _LONGEST_CODE:
            return False
        return bool(select.select([self._keyboard], (), (), _CODE_SECONDS)[0])

    def _read(self) -> str:
        assert self._keyboard is not None
        try:
            typed = os.read(self._keyboard, 1024)
        except OSError:
            typed = b""
        if not typed:  # the terminal is gone
            self._keyboard = None
        return typed.decode("utf-8", "replace")

    def _enter(self) -> None:
        if self._keyboard is not None:
            self._modes = termios.tcgetattr(self._keyboard)
            tty.setcbreak(self._keyboard, termios.TCSADRAIN)
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _leave(self) -> None:
        live, self._live = self._live, None
        modes, self._modes = self._modes, None
        try:
            if live is not None:
                live.stop()
        finally:
            if modes is not None and self._keyboard is not None:
                with suppress(termios.error):  # the terminal is gone
                    termios.tcsetattr(self._keyboard, termios.TCSADRAIN, modes)


def _length_of_code(text: str) -> int:
    """Return how many characters the code of a key has that a text begins with; 0 if it is not complete."""
    if text[1:2] == "[":
        return next((at + 1 for at in range(2, len(text)) if "@" <= text[at] <= "~"), 0)
    if text[1:2] == "O":
        return 3 if len(text) > 2 else 0
    return 1 if len(text) > 1 else 0  # ESC, and then another key
