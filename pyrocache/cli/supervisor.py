"""`Supervisor`: starts one child process of ``pyrocache nodes``, restarts it when it dies, and ends it.

Does not decide what to run: the caller passes a function that starts the process. Processes write their own errors to
the terminal.

Thread safety: public methods are for the main thread; each supervisor watches its process from a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyrocache.cli.output import report
from pyrocache.errors import OutOfResources, PyroCacheError
from pyrocache.runtime.child_process import ChildProcess
from pyrocache.runtime.shortage import explained

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 10.0  # after so long a life the pauses begin anew
_POLL_SECONDS = 0.1
_STOP_SECONDS = 5.0
_REFUSED = 3  # exit status of a node whose name a live node holds


class Supervisor:
    """Keeps one child process running.

    Args:
        what: its name in reports, until the process has reported a name.
        start: starts it, given its name, or None the first time.
        renamable: whether a process that lost its name to another node may take a new one.

    Attributes:
        answer: the report of the process when it was last ready.
        gave_up: whether it ended and is not restarted.
    """

    def __init__(
        self, what: str, start: Callable[[str | None], ChildProcess], renamable: bool = False
    ) -> None:
        self.what = what
        self.answer: dict[str, Any] = {}
        self.gave_up = False
        self._start = start
        self._renamable = renamable
        self._stopping = threading.Event()
        self._process = start(None)
        self._thread = threading.Thread(target=self._watch, name=f"supervisor of {what}", daemon=True)

    def wait_until_ready(self) -> None:
        """Wait for the first start, then begin to watch.

        Raises:
            PyroCacheError: it did not start.
        """
        self._wait_until_ready()
        with explained(f"{self.what} cannot be supervised"):
            self._thread.start()

    @property
    def killed(self) -> bool:
        """Whether a signal ended the process, so that it could not print the reason."""
        status = self._process.exit_status
        return status is not None and status < 0

    def stop(self) -> None:
        """Request the process to end, without waiting; `join` waits."""
        self._stopping.set()
        self._process.terminate()

    def join(self) -> None:
        """Wait until the process has ended; kill it after `_STOP_SECONDS`."""
        if self._thread.is_alive():  # it was not started if the first start failed
            self._thread.join(_STOP_SECONDS + 1.0)
        self._process.wait(_STOP_SECONDS)

    def _wait_until_ready(self) -> None:
        self.answer = self._process.wait_until_ready()
        self.what = self.answer.get("name", self.what)

    def _watch(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.wait(_POLL_SECONDS):
            status = self._process.exit_status
            if status is None:
                continue
            refused = status == _REFUSED
            if refused and not self._renamable:
                report(f"{self.what} ended for the reason above and is not started again.")
                self.gave_up = True
                return
            if time.monotonic() - self._process.started_at > _STEADY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            report(f"{self.what} ended ({cause}); starting it again in {pause:g} s.")
            if self._stopping.wait(pause):
                return
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            if refused:
                self.answer = {}  # a live node holds the name, so take a new one
            self._restart()

    def _restart(self) -> None:
        try:
            self._process = self._start(self.answer.get("name"))
        except OutOfResources as error:  # tried again after the next, longer pause
            report(str(error))
            return
        if self._stopping.is_set():  # `stop` may have terminated the previous process
            self._process.terminate()
            return
        with suppress(PyroCacheError):  # the process has printed why; the next pause is longer
            self._wait_until_ready()
            report(f"{self.what} is back with pid {self.answer['pid']}.")
