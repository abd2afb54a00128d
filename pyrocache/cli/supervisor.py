"""Keeps the nodes of ``pyrocache nodes`` running: starts them, starts them again when they die, ends them.

Each process has a keeper, which is a thread; the main thread starts the keepers, waits for the end, and is the only one
that signals reach. Nodes write their own errors to the terminal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pyrocache.config import NodeConfig
from pyrocache.errors import PyroCacheError
from pyrocache.runtime.child_process import ChildProcess

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0
_STEADY_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_LEAVE_SECONDS = 5.0
_REFUSED = 3  # the exit status of a node that must not be started again

Report = Callable[[str], None]


class Keeper:
    """Keeps one child process running.

    Args:
        what: how to call it in reports.
        start: starts it; told what it answered when it was last ready, or None the first time.
        report: told what happens.
        renamable: whether one that lost its name to another node may take a new one.
    """

    def __init__(
        self,
        what: str,
        start: Callable[[dict[str, Any] | None], ChildProcess],
        report: Report,
        *,
        renamable: bool = False,
    ) -> None:
        self.what = what
        self.answer: dict[str, Any] | None = None
        self.failure: PyroCacheError | None = None
        self.ended = threading.Event()
        self._start = start
        self._report = report
        self._renamable = renamable
        self._stop = threading.Event()
        self._process: ChildProcess | None = None
        self._thread = threading.Thread(target=self._keep, name=f"keeper of {what}", daemon=True)

    def start(self) -> None:
        """Start the process for the first time; `wait_until_ready` tells how that went."""
        self._process = self._start(None)

    def wait_until_ready(self) -> dict[str, Any]:
        """Wait for the first start and begin to keep it.

        Raises:
            PyroCacheError: it did not start.
        """
        assert self._process is not None
        self.answer = self._process.wait_until_ready()
        self.what = self.answer.get("name", self.what)
        self._thread.start()
        return self.answer

    @property
    def was_killed(self) -> bool:
        """Whether the process ended by a signal, and so could not say why."""
        status = self._process.exit_status if self._process is not None else None
        return status is not None and status < 0

    def stop(self) -> None:
        """Ask the process to leave."""
        self._stop.set()
        if self._process is not None:
            self._process.terminate()

    def join(self) -> None:
        """Wait until it has left; it is killed if it does not."""
        if self._thread.is_alive():
            self._thread.join(_LEAVE_SECONDS + 1.0)
        if self._process is not None:
            self._process.wait(_LEAVE_SECONDS)

    def _keep(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            assert self._process is not None
            while self._process.exit_status is None:
                if self._stop.wait(_LOOK_SECONDS):
                    return
            status = self._process.exit_status
            if self._stop.is_set():
                return
            if status == _REFUSED and not self._renamable:
                self._report(f"{self.what} ended for the reason above and is not started again.")
                self.ended.set()
                return
            if status == _REFUSED:
                self.answer = None  # its name is another's by now, so it takes a new one
            steady = time.monotonic() - self._process.started_at > _STEADY_SECONDS
            pause = _FIRST_PAUSE_SECONDS if steady else pause
            self._report(f"{self.what} ended ({_cause(status)}); starting it again in {pause:g} s.")
            if self._stop.wait(pause):
                return
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            self._start_again()

    def _start_again(self) -> None:
        process = self._start(self.answer)
        self._process = process
        if self._stop.is_set():  # `stop` may have looked just before
            process.terminate()
            return
        try:
            self.answer = process.wait_until_ready()
        except PyroCacheError:
            return  # it has said why; the loop goes on with a longer pause
        self.what = self.answer.get("name", self.what)
        self._report(f"{self.what} is back with pid {self.answer['pid']}.")


def node_settings(config: NodeConfig, answer: dict[str, Any] | None) -> dict[str, Any]:
    """The settings to start a node with: under its name again, if it has one."""
    settings = {name: getattr(config, name) for name in config.__slots__}
    if answer is not None:
        settings["name"] = answer["name"]
    return settings


def _cause(status: int | None) -> str:
    return f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"
