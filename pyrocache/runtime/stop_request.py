"""The request to stop a process, from a signal or a thread.

Threading: any thread or signal handler may request the stop; only one thread waits for it.
"""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Tells the main thread to stop.

    Unlike a `threading.Event`, it can be set by a signal handler that interrupts `wait`: ``SimpleQueue.put`` is
    reentrant, whereas the event's lock may be held by the thread that the handler interrupts.
    """

    def __init__(self) -> None:
        self.requested = False
        self._wakeups: SimpleQueue[None] = SimpleQueue()

    def request(self) -> None:
        """Request the stop, and end the current or the next `wait`."""
        self.requested = True
        self._wakeups.put(None)

    def wake(self) -> None:
        """End the current or the next `wait`, without requesting the stop."""
        if self._wakeups.empty():
            self._wakeups.put(None)

    def wait(self, timeout: float) -> bool:
        """Wait for at most ``timeout`` seconds. Return whether it was woken before that."""
        try:
            self._wakeups.get(timeout=timeout)
        except Empty:
            return False
        while not self._wakeups.empty():
            self._wakeups.get()
        return True

    def on_signals(self) -> None:
        """Request the stop on SIGINT, SIGTERM and SIGHUP. Only the main thread may call this."""
        for number in ENDING:
            signal.signal(number, lambda *_: self.request())
