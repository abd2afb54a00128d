"""`Supervisor`: starts one child process of ``pyrocache nodes``, starts it again when it dies or hangs, and ends it.

Does not decide what to run: the caller passes a function that starts the process. Processes write their own errors to
the terminal.

Pauses between starts grow, up to `_LONGEST_PAUSE_SECONDS`, for a process that dies again and again. A node that dies
because no name server answers is no such process: it is started again as soon as one does.

Thread safety: public methods are for the main thread; each supervisor watches its process from a thread of its own.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pyrocache.cli.output import report
from pyrocache.errors import NameServerUnavailable, OutOfResources, PyroCacheError
from pyrocache.runtime.child_process import ChildProcess
from pyrocache.runtime.shortage import explained
from pyrocache.runtime.start import EXIT_NO_NAME_SERVER, EXIT_REFUSED

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 10.0  # after so long a life the pauses begin anew
_POLL_SECONDS = 0.1
_PING_PAUSE_SECONDS = 1.0
_MOST_SILENCES = 3  # pings in a row without an answer, then it hangs
_STOP_SECONDS = 5.0


class Supervisor:
    """Keeps one child process running.

    Args:
        what: its name in reports, until the process has reported a name.
        start: starts it, given its name, or None the first time.
        ping: asks the name server for an answer and raises `NameServerUnavailable` if there is none, after a bounded
            time. It is called in the thread that watches the process.
        renamable: whether a process that lost its name to another node may take a new one.
        is_name_server: whether the process is the name server, which is killed if it does not answer.
        report: prints what happens to the process, in the thread that watches it.

    Attributes:
        answer: the report of the process when it was last ready.
        gave_up: whether it ended and is not started again.
    """

    def __init__(
        self,
        what: str,
        start: Callable[[str | None], ChildProcess],
        ping: Callable[[], None],
        *,
        renamable: bool = False,
        is_name_server: bool = False,
        report: Callable[[str], None] = report,
    ) -> None:
        self.what = what
        self.answer: dict[str, Any] = {}
        self.gave_up = False
        self._start = start
        self._ping = ping
        self._renamable = renamable
        self._is_name_server = is_name_server
        self._report = report
        self._pause = _FIRST_PAUSE_SECONDS
        self._silences = 0
        self._ping_at = 0.0
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

    def reload(self) -> None:
        """Have the process load its certificate again."""
        self._process.signal(signal.SIGHUP)

    def join(self) -> None:
        """Wait until the process has ended; kill it after `_STOP_SECONDS`."""
        if self._thread.is_alive():  # it was not started if the first start failed
            self._thread.join(_STOP_SECONDS + 1.0)
        self._process.wait(_STOP_SECONDS)

    def _wait_until_ready(self) -> None:
        self.answer = self._process.wait_until_ready()
        self.what = self.answer.get("name", self.what)

    def _watch(self) -> None:
        while not self._stopping.wait(_POLL_SECONDS):
            status = self._process.exit_status
            if status is None and self._hangs():
                self._process.kill()
                self._start_again("did not answer and was killed")
            elif status == EXIT_REFUSED and not self._renamable:
                self._report(f"{self.what} ended for the reason above and is not started again.")
                self.gave_up = True
                return
            elif status == EXIT_NO_NAME_SERVER:
                self._start_with_name_server()
            elif status is not None:
                if status == EXIT_REFUSED:
                    self.answer = {}  # a live node holds the name, so take a new one
                cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
                self._start_again(f"ended ({cause})")

    def _hangs(self) -> bool:
        """Return whether the process is a name server that has not answered several times in a row.

        Asks it if it is time.
        """
        if not self._is_name_server or time.monotonic() < self._ping_at:
            return False
        try:
            self._ping()
            self._silences = 0
        except NameServerUnavailable as error:
            # Any other failure is an answer, like that it has too many connections, or the end of the process.
            self._silences = self._silences + 1 if error.timed_out else 0
        self._ping_at = time.monotonic() + _PING_PAUSE_SECONDS
        return self._silences >= _MOST_SILENCES and not self._stopping.is_set()

    def _start_again(self, why: str) -> None:
        """Start the process again after a pause."""
        if time.monotonic() - self._process.started_at > _STEADY_SECONDS:
            self._pause = _FIRST_PAUSE_SECONDS
        self._report(f"{self.what} {why}; starting it again in {self._pause:g} s.")
        if not self._stopping.wait(self._pause):
            self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)
            self._restart()

    def _start_with_name_server(self) -> None:
        """Start the process again once a name server answers."""
        self._report(f"{self.what} is started again as soon as a name server answers.")
        while not self._stopping.wait(_PING_PAUSE_SECONDS):
            with suppress(NameServerUnavailable):
                self._ping()
                self._pause = _FIRST_PAUSE_SECONDS
                self._restart()
                return

    def _restart(self) -> None:
        self._silences = 0
        try:
            self._process = self._start(self.answer.get("name"))
        except OutOfResources as error:  # tried again after the next, longer pause
            self._report(str(error))
            return
        if self._stopping.is_set():  # `stop` may have terminated the previous process
            self._process.terminate()
            return
        with suppress(PyroCacheError):  # the process has printed why; the next pause is longer
            self._wait_until_ready()
            self._report(f"{self.what} is back with pid {self.answer['pid']}.")
