"""Client processes of a command: started together, told what to do over pipes, gone with the command.

Each has a pipe of its own, so one that is killed holds no lock that others need, and whichever side ends, the other
reads the end of the pipe. A `WorkerPool` belongs to one thread.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from pyrocache.errors import PyroCacheError

_LEAVE_SECONDS = 5.0


class WorkerPool:
    """Processes that each run ``target(link, *arguments)``, ``link`` being their end of a pipe to this process.

    A context manager: left without an error, it gives its processes time to see their pipes end; with one, it ends them
    at once. They never feel Ctrl-C in the terminal themselves.

    Attributes:
        links: this process's ends.
    """

    def __init__(self, size: int, target: Callable[..., None], *arguments: Any) -> None:
        self.links: list[Connection] = []
        self._processes: list[BaseProcess] = []
        try:
            with interrupts_put_off():
                for _ in range(size):
                    self._start(target, arguments)
        except BaseException:
            self._stop(at_once=True)
            raise

    def _start(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.links.append(ours)
        with theirs:  # ours ends when the process does, and nobody else holds the other end
            process = context.Process(target=_begin, args=(target, theirs, *arguments), daemon=True)
            process.start()
        self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(at_once=kind is not None)

    def _stop(self, *, at_once: bool) -> None:
        for link in self.links:
            link.close()
        deadline = time.monotonic() + (0.0 if at_once else _LEAVE_SECONDS)
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
        for process in self._processes:
            process.join()

    def send(self, link: Connection, message: object) -> None:
        """Tell the process at ``link`` something; `PyroCacheError` as `receive` when it is gone."""
        try:
            link.send(message)
        except OSError:
            while True:  # until we have read why
                self.receive(link)

    def receive(self, link: Connection) -> Any:
        """What the process at ``link`` says next.

        Raises:
            PyroCacheError: it failed, and says why, or it is gone.
        """
        try:
            message = link.recv()
        except (EOFError, OSError):
            process = self._processes[self.links.index(link)]
            process.join(_LEAVE_SECONDS)
            cause = _cause(process.exitcode)
            raise PyroCacheError(f"A client process ended before its work was done ({cause}).") from None
        if isinstance(message, _Failure):
            raise PyroCacheError(message.reason)
        return message

    def ready(self) -> list[Connection]:
        """The links that have something to say, or have ended; waits until there is one."""
        return [link for link in wait(self.links) if isinstance(link, Connection)]


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last words of a client process."""

    reason: str


def _begin(target: Callable[..., None], link: Connection, *arguments: Any) -> None:
    """What a process of a `WorkerPool` runs."""
    with link:
        try:
            target(link, *arguments)
        except PyroCacheError as error:
            _say(link, str(error))
        except (EOFError, ConnectionError):
            pass  # the parent has no more to say, or is gone
        except Exception as error:
            _say(link, f"A client process failed ({type(error).__name__}: {error}).")


@contextlib.contextmanager
def interrupts_put_off() -> Iterator[None]:
    """Put Ctrl-C off, and have processes that are started meanwhile never get it.

    They inherit the mask. To catch the signal in them would be too late: their first imports take long enough to hit.
    """
    multiprocessing.resource_tracker.ensure_running()  # starting it later on would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _say(link: Connection, reason: str) -> None:
    with contextlib.suppress(OSError):
        link.send(_Failure(reason))


def _cause(status: int | None) -> str:
    return f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"
