"""`StopRequest`: the request to stop a process, made by a signal, by a thread or by the end of the parent process.

SIGHUP has two meanings: the terminal is gone, or an operator asks a server to load its files again. A process that can
do the latter stops only if it had a terminal, and has none any more.

Thread safety: any thread or signal handler may request the stop; only one thread waits for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from queue import Empty, SimpleQueue

from pyrocache.runtime.shortage import explained

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """A flag that requests the main thread to stop, and a way to wait for it.

    Unlike a `threading.Event`, it can be set by a signal handler that interrupts `wait`: ``SimpleQueue.put`` is
    reentrant, whereas the event's lock may be held by the thread that the handler interrupts.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reload = False  # a SIGHUP asks to load files again; who does it sets this back
        self._had_terminal = False
        self._wakeups: SimpleQueue[None] = SimpleQueue()

    def request(self) -> None:
        """Request the stop, and end the current or the next `wait`."""
        self.requested = True
        self._wakeups.put(None)

    def wake(self) -> None:
        """End the current or the next `wait`, without requesting the stop."""
        if self._wakeups.empty():  # many callers may do this: one pending item is enough
            self._wakeups.put(None)

    def wait(self, timeout: float) -> bool:
        """Wait for at most ``timeout`` seconds. Return whether `request` or `wake` ended the wait."""
        try:
            self._wakeups.get(timeout=timeout)
        except Empty:
            return False
        while not self._wakeups.empty():  # requests that came together are one wake-up
            self._wakeups.get()
        return True

    def on_signals(self, *, reloads: bool = False) -> None:
        """Request the stop on SIGINT, SIGTERM and SIGHUP. Only the main thread may call this.

        Args:
            reloads: whether a SIGHUP sets ``reload`` instead, unless the terminal of the process is gone.

        A SIGINT or SIGHUP that was ignored when the process started remains ignored: ``nohup`` and shells that start a
        process in the background want that.
        """
        for number in ENDING:
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: self.request())
        if reloads and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._had_terminal = _has_terminal()
            signal.signal(signal.SIGHUP, lambda *_: self._hang_up())

    def _hang_up(self) -> None:
        if self._had_terminal and not _has_terminal():
            self.request()
        else:
            self.reload = True
            self._wakeups.put(None)

    def with_parent(self, descriptor: int) -> None:
        """Request the stop when the parent process ends: it holds the other end of ``descriptor``, a socket."""
        watch = threading.Thread(
            target=self._watch_parent, args=(descriptor,), name="pyrocache-parent-watch", daemon=True
        )
        with explained("The process cannot start"):
            watch.start()

    def _watch_parent(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):
            while os.read(descriptor, 1024):
                pass
        self.request()


def _has_terminal() -> bool:
    """Return whether this process has a controlling terminal that is there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)  # no descriptor is left to find out
    return True
