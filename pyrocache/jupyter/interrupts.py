"""`Interrupts`: put Ctrl-C off while something is changed that must not stay half changed.

A notebook's "interrupt" is SIGINT, whose handler raises `KeyboardInterrupt` between any two instructions, also in a
``finally`` clause. While `held` is true, this handler only notes the signal; `stop` raises it.

Thread safety: signals are handled in the main thread; in other threads, which they do not interrupt, this does nothing.
"""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupts:
    """The handler of SIGINT from `start` to `stop`. Interrupts are held at first.

    To be used as follows. The first instruction of the ``finally`` clause is an assignment, at which no signal is
    handled::

        interrupts = Interrupts()
        try:
            interrupts.start()
            ...                     # held
            interrupts.release()
            ...                     # as usual
        finally:
            interrupts.held = True
            ...                     # held
            interrupts.stop()

    Attributes:
        held: whether interrupts are put off.
    """

    def __init__(self) -> None:
        self.held = True
        self._noted: Any = None  # the arguments of the handler
        self._before: Any = None

    def start(self) -> None:
        """Set the handler, unless SIGINT has none that is written in Python."""
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if callable(before):
                self._before = before
                signal.signal(signal.SIGINT, self._handle)

    def release(self) -> None:
        """Let interrupts take effect again. Raises `KeyboardInterrupt` if there was one."""
        self.held = False
        self._deliver()

    def stop(self) -> None:
        """Restore the handler. Raises `KeyboardInterrupt` if there was an interrupt."""
        # Not if the code in between has set a handler of its own.
        if self._before is not None and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._before)
        self._deliver()

    def _handle(self, *arguments: Any) -> None:
        __tracebackhide__ = True
        if self.held:
            self._noted = arguments
        else:
            self._before(*arguments)

    def _deliver(self) -> None:
        __tracebackhide__ = True
        noted, self._noted = self._noted, None
        if noted is not None:
            self._before(*noted)
