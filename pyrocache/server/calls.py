"""`OutstandingCalls`: the calls of a server whose reply is not ready at once.

Such a call runs as a job on a worker thread, or is deferred until another caller acts (`server.deferred`). A connection
has at most one of them at a time, unless its caller takes replies in any order. None begins or waits after the deadline
of its request; the reply to a change goes to `Outcomes`, also if the connection has closed meanwhile. (`net.calls` is
the client's side: the calls that are made.)

Thread safety: used by the event loop's thread, except that outcomes may arrive on any thread: they are appended to a
deque, and the event loop is woken.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from pyrocache.protocol.limits import DEFERRED_CALLS
from pyrocache.protocol.request_id import RequestId, seconds_left
from pyrocache.runtime.shortage import explain
from pyrocache.server.connection import Connection
from pyrocache.server.deferred import Deadlines
from pyrocache.server.dispatcher import Job, Method, PendingReply, Reply, refuse
from pyrocache.server.outcomes import Outcomes
from pyrocache.server.quota import within_quota
from pyrocache.server.requests import LATE, is_late

log = logging.getLogger("pyrocache.node")


class Ended(NamedTuple):
    """A call that has its outcome.

    Attributes:
        connection: the connection that it was made on.
        change: its number if it is a change, else None.
        outcome: a reply, or the `PendingReply` that has one; None if there is none.
    """

    connection: Connection
    change: int | None
    outcome: Reply | PendingReply | None


class OutstandingCalls:
    """The outstanding calls of all connections.

    Args:
        workers: number of threads that run jobs.
        max_jobs: the most jobs that may run or wait for a worker. A client gets a share of them (`server.quota`), and
            one job in any case.
        outcomes: remembers the replies to changes.
        wake: makes the event loop call `finished` soon; called on any thread.
        clock: seconds, that the deadlines of requests are compared with.
        ahead: returns the seconds by which the clock of the deferred calls is ahead of it.

    Attributes:
        deadlines: the deadlines of the deferred calls.
        done: calls that have their outcome; `finished` takes them.
    """

    def __init__(
        self,
        workers: int,
        max_jobs: int,
        outcomes: Outcomes,
        wake: Callable[[], None],
        clock: Callable[[], float],
        ahead: Callable[[], float],
    ) -> None:
        self.deadlines = Deadlines()
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="pyrocache-worker")
        self._workers.submit(
            _start
        )  # one worker from the beginning, in case that no thread can be started later
        self._max_jobs = max_jobs
        self._jobs = 0
        self._jobs_of: dict[Hashable, int] = {}  # by `_owner`
        self._short_of_threads = False
        self._outcomes = outcomes
        self._wake = wake
        self._clock = clock
        self._ahead = ahead
        self.done: deque[Ended] = deque()

    def start(
        self,
        connection: Connection,
        sequence: int,
        method: Method,
        call: Job | PendingReply,
        identity: RequestId | None,
    ) -> bool:
        """Run a job on a worker thread, or make ``connection`` wait for a deferred call.

        Return False if there are too many jobs, or of one client, or too many deferred calls of the connection.

        Args:
            sequence, method, identity: of the request; the last is None if its client gives none.
        """
        change = identity.sequence if method.once and identity is not None else None
        if isinstance(call, PendingReply):
            if len(connection.deferred) >= DEFERRED_CALLS:
                call.deferred.cancel()
                return False
            self._defer(connection, change, call, identity)
        elif not self._start_job(
            connection,
            change,
            call if identity is None else partial(self._run_in_time, sequence, method, identity, call),
        ):
            return False
        connection.outstanding += 1
        connection.busy = not connection.handshake.unordered
        if change is not None:
            self._outcomes.begin(connection.session, change)
        return True

    def cancel(self, connection: Connection) -> None:
        """Cancel the deferred calls that ``connection`` waits for."""
        while connection.deferred:
            deferred = connection.deferred.pop()
            self.deadlines.discard(deferred)
            deferred.cancel()

    def finished(self) -> Iterator[tuple[Connection, Reply | None]]:
        """Yield each connection whose call has its outcome, with the reply: None if there is none."""
        while self.done:
            connection, change, outcome = self.done.popleft()
            connection.busy = False
            connection.outstanding -= 1
            if isinstance(outcome, PendingReply):
                if outcome.deferred in connection.deferred:
                    connection.deferred.remove(outcome.deferred)
                    self.deadlines.discard(outcome.deferred)
                wanted = change is not None or not connection.session.closed
                reply = outcome.reply() if wanted else None
            else:
                self._forget_job(_owner(connection))
                reply = outcome
            if change is not None:
                self._outcomes.finish(connection.session, change, reply, self._clock())
            yield connection, reply

    def close(self) -> None:
        """Discard the jobs that wait for a worker. Running jobs continue to their end."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _start_job(self, connection: Connection, change: int | None, job: Job) -> bool:
        owner = _owner(connection)
        own = self._jobs_of.get(owner, 0)
        if self._jobs >= self._max_jobs or (
            own and not within_quota(own + 1, self._jobs + 1, self._max_jobs)
        ):
            return False
        self._jobs += 1
        self._jobs_of[owner] = own + 1
        try:
            self._workers.submit(self._run, connection, change, job)
        except RuntimeError as error:
            # The system's limit of threads is reached. The job is queued, for a worker that exists.
            if not self._short_of_threads:
                log.error("Calls may have to wait for a worker: %s.", explain(error))
            self._short_of_threads = True
        return True

    def _defer(
        self, connection: Connection, change: int | None, call: PendingReply, identity: RequestId | None
    ) -> None:
        deferred = call.deferred
        if identity is not None:  # nobody waits for it any longer
            now = self._clock()
            at = now + self._ahead() + seconds_left(identity.deadline, now)
            deferred.deadline = min(deferred.deadline, at)
        connection.deferred.add(deferred)
        self.deadlines.add(deferred)
        deferred.take(partial(self._end, connection, change, call))

    def _forget_job(self, owner: Hashable) -> None:
        self._jobs -= 1
        self._jobs_of[owner] -= 1
        if not self._jobs_of[owner]:
            del self._jobs_of[owner]

    def _run_in_time(  # on a worker
        self, sequence: int, method: Method, identity: RequestId, job: Job
    ) -> Reply:
        return refuse(sequence, LATE, method.serializer) if is_late(identity, self._clock()) else job()

    def _run(self, connection: Connection, change: int | None, job: Job) -> None:  # on a worker
        reply = None
        try:
            reply = job()
        except BaseException as error:  # also SystemExit: otherwise the connection would wait forever
            log.error("A call failed with %s.", type(error).__name__)
        self._end(connection, change, reply)

    def _end(  # on any thread
        self, connection: Connection, change: int | None, outcome: Reply | PendingReply | None
    ) -> None:
        self.done.append(Ended(connection, change, outcome))
        self._wake()


def _owner(connection: Connection) -> Hashable:
    """Return whose jobs those of a connection are. All strangers of one address are one."""
    if not connection.handshake.trusted:
        return connection.peer
    return connection.session.owner


def _start() -> None:
    """Do nothing; the first job makes the executor start a worker."""
