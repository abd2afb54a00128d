"""Calls whose reply does not come at once: on a worker thread, or deferred until another caller acts.

A connection has at most one of them. Everything here belongs to the event loop's thread, except that outcomes come from
any thread: they are appended to a deque, and the loop is woken.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pyrocache.server.connection import Connection
from pyrocache.server.deferred import Deadlines
from pyrocache.server.dispatcher import Job, PendingReply, Reply

log = logging.getLogger("pyrocache.node")


class OutstandingCalls:
    """The calls of all connections that are under way.

    Args:
        workers: threads for jobs.
        max_jobs: jobs that may run or wait for a worker.
        wake: makes the event loop call `finished` soon; called on any thread.

    Attributes:
        deadlines: of the deferred calls.
        done: those that have their outcome, for `finished`.
    """

    def __init__(self, workers: int, max_jobs: int, wake: Callable[[], None]) -> None:
        self.deadlines = Deadlines()
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="pyrocache-worker")
        self._max_jobs = max_jobs
        self._jobs = 0
        self._wake = wake
        self.done: deque[tuple[Connection, Reply | PendingReply | None]] = deque()

    def start_job(self, connection: Connection, job: Job) -> bool:
        """Run ``job`` on a worker. Return False, and do nothing, if there are too many."""
        if self._jobs >= self._max_jobs:
            return False
        self._jobs += 1
        connection.busy = True
        self._workers.submit(self._run, connection, job)
        return True

    def defer(self, connection: Connection, call: PendingReply) -> None:
        """Have ``connection`` wait for a deferred call."""
        connection.busy = True
        connection.deferred = call.deferred
        self.deadlines.add(call.deferred)
        call.deferred.take(partial(self._end, connection, call))

    def cancel(self, connection: Connection) -> None:
        """The connection waits for no deferred call any more."""
        deferred, connection.deferred = connection.deferred, None
        if deferred is not None:
            self.deadlines.discard(deferred)
            deferred.cancel()

    def finished(self) -> Iterator[tuple[Connection, Reply | PendingReply | None]]:
        """Yield the connections whose call has its outcome; None for a job that raised what no job should."""
        while self.done:
            connection, reply = self.done.popleft()
            connection.busy = False
            if isinstance(reply, PendingReply):
                self.cancel(connection)
            else:
                self._jobs -= 1
            yield connection, reply

    def close(self) -> None:
        """Start no job any more; those that run end by themselves."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _run(self, connection: Connection, job: Job) -> None:  # on a worker
        reply = None
        try:
            reply = job()
        except BaseException as error:
            log.error("A call failed with %s.", type(error).__name__)
        self._end(connection, reply)

    def _end(self, connection: Connection, reply: Reply | PendingReply | None) -> None:  # on any thread
        self.done.append((connection, reply))
        self._wake()
