"""`live`: show on a full screen what is read again and again, until a key quits.

Reads in a thread of its own, so that keys work while a node does not answer.

Thread safety: `live` is for the main thread; the function that reads is called in one other thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from rich.text import Text

from pyrocache.cli.screen import Screen

_T = TypeVar("_T")


def live(
    first: _T,
    read: Callable[[], _T],
    lines: Callable[[_T, int, int], Sequence[Text]],
    press: Callable[[str], bool],
    *,
    interval: float,
    count: int | None = None,
) -> _T | None:
    """Show readings until a key quits, and return None; or until ``count`` were made, and return the last.

    Args:
        first: the reading that there is.
        read: makes another one, every ``interval`` seconds.
        lines: returns what is shown of a reading, given the columns and the lines of the screen.
        press: does what a key says; returns whether to go on.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: a signal ended the process, see `Screen`; and whatever ``read`` raises.
    """
    with Screen() as screen:
        reader = _Reader(first, read, interval, screen.wake)
        try:
            while True:
                taken, latest = reader.latest()
                screen.draw(lines(latest, *screen.size))
                if count is not None and taken >= count:
                    return latest
                if not all(map(press, screen.wait(None))):
                    return None
        finally:
            reader.stop()


class _Reader(Generic[_T]):
    """A thread that makes readings.

    Args:
        first: the one that there is.
        read: makes one.
        interval: seconds between two.
        changed: called when there is something new, in the thread.
    """

    def __init__(
        self, first: _T, read: Callable[[], _T], interval: float, changed: Callable[[], None]
    ) -> None:
        self._latest = (0, first)  # replaced as a whole
        self._read = read
        self._interval = interval
        self._changed = changed
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="pyrocache-live", daemon=True).start()

    def latest(self) -> tuple[int, _T]:
        """Return how many readings were made, and the last. Raises what the function that reads has raised."""
        if self._failure is not None:
            raise self._failure
        return self._latest

    def stop(self) -> None:
        """Let the thread end, without waiting for it: a node may not answer."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._latest = (self._latest[0] + 1, self._read())
            except BaseException as error:
                self._failure = error
                self._stopped.set()
            self._changed()
