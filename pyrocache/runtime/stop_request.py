"""How a process of ours learns that it is to end."""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Tells the main thread to stop; set by signals or by any thread.

    Unlike `threading.Event` it may be set by a signal handler that interrupts `wait` anywhere: ``SimpleQueue.put`` is
    reentrant, while the event's lock would then be held by the very thread that waits for it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._wakeups: SimpleQueue[None] = SimpleQueue()

    def request(self) -> None:
        """Stop."""
        self.requested = True
        self._wakeups.put(None)

    def wake(self) -> None:
        """End the present `wait`, or the next one, without stopping."""
        if self._wakeups.empty():
            self._wakeups.put(None)

    def wait(self, timeout: float) -> bool:
        """Wait until woken, or for ``timeout`` seconds; whether it was before that."""
        try:
            self._wakeups.get(timeout=timeout)
        except Empty:
            return False
        while not self._wakeups.empty():
            self._wakeups.get()
        return True

    def on_signals(self) -> None:
        """Have SIGINT, SIGTERM and SIGHUP request the stop. Only the main thread may call this."""
        for number in ENDING:
            signal.signal(number, lambda *_: self.request())
