"""Locks and semaphores that threads, processes and hosts share: the client's part.

``node/coordination/locks.py`` describes what a lock promises and what happens when its node ends;
`PyroCacheClient.lock` describes it for users.

The node that owns a lock's name grants it to one caller at a time (a semaphore to several). A grant ends when it is
released, when the connection that it was granted on closes, or when it was not renewed for its time to live. While
a lock is held, one daemon thread of this process renews all locks; it starts with the first lock and ends soon after
the last one.

A `Grant` belongs to the thread that acquired the lock and is stored in a `threading.local`. When a thread ends without
releasing, its grants are garbage-collected. This closes their connections, so that the nodes release the locks.
Therefore no other object may keep a strong reference to a grant for long. The renewing thread has weak references, and
strong ones only while it waits for a node's answer.

Both the renewing thread and the thread that releases a lock use the connection of its grant. A thread removes the
connection from the grant, uses it exclusively, and puts it back. If the connection is in use, the other thread does not
wait for it.

Thread safety: thread-safe; each thread that uses a `Lock` acquires for itself.
"""

from __future__ import annotations

import _thread
import logging
import math
import os
import select
import threading
import time
import weakref
from types import EllipsisType
from typing import Any, Self, TypeAlias

from pyrocache.client.backend import Backend, Pinned
from pyrocache.client.context import ClientContext, Duration, Ttl
from pyrocache.client.features.pinned_wait import PinnedWait, wait_to_seconds
from pyrocache.config import to_seconds
from pyrocache.errors import LockLost, LockTimeout, PyroCacheError, RemoteError
from pyrocache.net.deadline import Deadline
from pyrocache.net.pinned import PinnedConnection
from pyrocache.protocol.limits import MOST_SECONDS
from pyrocache.runtime import at_fork
from pyrocache.runtime.shortage import explained

_RENEWALS = 3  # in a lock's time to live
_LONGEST_RENEWAL_SECONDS = 600.0
_RECEIVE_SECONDS = 1.0
_PAUSE_SECONDS = 0.1  # after an unexpected exception
_LINGER_SECONDS = 2.0  # the renewing thread ends that long after the last lock was released, at the latest


log = logging.getLogger("pyrocache.client")


class Grant:
    """One grant of a lock to a thread, held or over.

    Attributes:
        backend: the client's.
        name: the lock's canonical bytes.
        token: the fencing token.
        ttl_seconds: how long the node keeps the lock for a holder that does not renew it.
        good_until: when the node may grant the lock to another holder, unless it is renewed (monotonic seconds).
        renew_at: when to renew it (monotonic seconds).
        over: whether it was released or lost.
    """

    def __init__(
        self, backend: Backend, name: bytes, token: int, ttl_seconds: float, pinned: PinnedConnection
    ) -> None:
        self.backend = backend
        self.name = name
        self.token = token
        self.ttl_seconds = min(ttl_seconds, MOST_SECONDS)
        self.over = False
        self._idle = [pinned]  # empty while a thread uses the connection
        self._process = os.getpid()  # a forked child does not hold its parent's locks
        self.renewed(time.monotonic())

    def renewed(self, at: float) -> None:
        """Restart the time to live at ``at`` (monotonic seconds)."""
        self.good_until = at + self.ttl_seconds
        self.renew_at = at + min(self.ttl_seconds / _RENEWALS, _LONGEST_RENEWAL_SECONDS)

    @property
    def inherited(self) -> bool:
        """Whether this process was forked from the one that holds the lock."""
        return self._process != os.getpid()

    @property
    def held(self) -> bool:
        """Whether this grant is still valid, as far as this process knows."""
        if self.over or self.inherited or time.monotonic() >= self.good_until:
            return False
        return not any(pinned.closed for pinned in tuple(self._idle))  # a copy, as another thread may take it

    def take(self) -> PinnedConnection | None:
        """Take the connection for exclusive use; None while another thread uses it."""
        try:
            return self._idle.pop()  # atomic: of two threads, one gets it
        except IndexError:
            return None

    def put_back(self, pinned: PinnedConnection, *, lost: bool) -> None:
        """Put the connection back after a renewal; ``lost``: the lock is not held any more."""
        if lost:
            self.over = True
        self._idle.append(pinned)
        if self.over and (left := self.take()) is not None:  # `release` may have raced with the line above
            left.drop()


class _OfThread(threading.local):
    """The grant of each thread for one `Lock`. Identifiers of threads are reused, so they cannot be its keys."""

    grant: Grant | None = None


class Lock:
    """A lock or a semaphore: ``with cache.lock("report"): ...``.

    Any number of threads may use one object; each acquires for itself. Creating one sends nothing. It is not reentrant.

    Args:
        context: the client's.
        name: any key; a lock and an entry of the same name are independent.
        limit: the number of permits: 1 for a lock, more for a semaphore.
        ttl_seconds: how long the node keeps it for a holder that does not renew it; seconds or a timedelta.
        wait_seconds: how long `acquire` waits; None for no limit.
    """

    def __init__(
        self, context: ClientContext, name: object, limit: int, ttl_seconds: Duration, wait_seconds: Ttl
    ) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"A semaphore's n is an int, not {type(limit).__name__}.")
        if not 1 <= limit <= 2**20:
            raise ValueError(f"A semaphore's n is from 1 to {2**20}.")
        self._context = context
        # The kind is part of the key, so a lock and a semaphore of the same name are independent.
        self._key = context.encode_key(("lock" if limit == 1 else "semaphore", name))
        self._name = name
        self._limit = limit
        self._ttl_seconds = to_seconds(ttl_seconds, "ttl_seconds", zero=False)
        self._wait_seconds = wait_to_seconds(wait_seconds)
        self._of_thread = _OfThread()

    @property
    def token(self) -> int | None:
        """The fencing token of this thread's grant; None if it holds none.

        It is larger than the token of any earlier grant, provided that the clocks of the nodes agree.

        The protected resource can refuse a holder whose token is smaller than one that it has seen. Nothing else
        protects it from a holder that was suspended for longer than the time to live and has not noticed.
        """
        grant = self._of_thread.grant
        return grant.token if grant is not None and self.held else None

    @property
    def held(self) -> bool:
        """Whether this thread holds it, as far as this process knows."""
        grant = self._of_thread.grant
        return grant is not None and grant.held and not self._context.closed

    def acquire(self, *, wait_seconds: Duration | EllipsisType | None = ...) -> int:
        """Acquire the lock, waiting if another holder has it, and return its token.

        Args:
            wait_seconds: overrides the lock's own; None for no limit, 0 for not at all.

        Raises:
            LockTimeout: other callers held it all the time, or this client has too many pinned connections to its node.
            NodeUnavailable: the lock's node is unreachable, independent of ``on_error``.
            OutOfResources: the thread that renews locks cannot be started; the lock is released.
            RuntimeError: this thread holds it already.
        """
        before = self._of_thread.grant
        if before is not None and before.held:
            raise RuntimeError("This thread holds the lock already, and it is not reentrant.")
        seconds = self._wait_seconds if wait_seconds is ... else wait_to_seconds(wait_seconds)
        grant = self._granted(seconds)
        try:
            with explained("acquire failed, and the lock is free again"):
                _renewer.watch(grant)
        except BaseException:  # it would not be renewed, so the node must free it
            if (pinned := grant.take()) is not None:
                grant.put_back(pinned, lost=True)
            raise
        self._of_thread.grant = grant
        return grant.token

    def _granted(self, wait_seconds: float | None) -> Grant:
        # `ask` uses the backend of the moment, which raises once the context is closed. The grant keeps this one: an
        # exception would end the thread that renews all locks.
        context, backend = self._context, self._context.backend

        def ask(poll: float, deadline: Deadline, pinned: Pinned) -> Pinned:
            return context.backend.acquire(self._key, self._limit, self._ttl_seconds, poll, deadline, pinned)

        with PinnedWait(context, ask, wait_seconds) as wait:
            while (token := wait.ask()) is None:
                if wait.is_over():
                    wait.release()
                    raise LockTimeout(
                        f"acquire failed: the lock was not available within {wait_seconds:g} s. "
                        "To wait longer, pass wait_seconds."
                        if wait.pinned is not None
                        else "acquire failed: this client has reached its limit of locks and loads on the node of this "
                        "lock. Release some of them, or create another client."
                    )
                wait.pause()
            if type(token) is not int:
                raise RemoteError("A node answered acquire with an invalid reply.")
            return Grant(backend, self._key, token, self._ttl_seconds, wait.take())

    def release(self) -> None:
        """Release the lock that this thread holds.

        Raises:
            LockLost: the lock was lost before, or its node did not answer. Another caller may have held it meanwhile.
            RuntimeError: this thread has not acquired it.
        """
        grant = self._of_thread.grant
        if grant is None:
            raise RuntimeError(
                "This thread does not hold the lock: it did not acquire it, or released it already."
            )
        self._of_thread.grant = None
        was_over = grant.over or grant.inherited
        # If the renewing thread is using the connection, the release goes over another one. `over` is set afterwards:
        # the renewing thread closes the connection of a grant that is over. If it did so before the node has received
        # the release, the node would end the grant first and answer that the lock was lost.
        pinned, deadline = grant.take(), self._context.deadline()
        released = not was_over and self._context.backend.release(grant.name, grant.token, deadline, pinned)
        grant.over = True
        if not released:
            raise LockLost(
                "The lock was lost before its release (its node went away, or it was not renewed in time), or its node "
                "did not answer the release. Another holder may have done its work meanwhile."
            )

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.release()
        except PyroCacheError:
            if kind is None:  # the exception of the body is more informative
                raise

    def __repr__(self) -> str:
        what = "lock" if self._limit == 1 else f"semaphore of {self._limit}"
        return f"<pyrocache {what} {self._name!r}{f', held with token {self.token}' if self.held else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "A Lock is not pickled: have cache.lock make one of the same name in the other process."
        )


class _Renewer:
    """The thread that renews the locks of this process, while there are any."""

    _pipe: tuple[int, int] | None = None

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all grants: in a forked child the thread does not exist, and the parent holds the locks."""
        for descriptor in self._pipe or ():
            os.close(descriptor)
        self._lock = threading.Lock()  # guards: all that follows
        self._grants: weakref.WeakSet[Grant] = weakref.WeakSet()  # a thread that ends drops its grants
        self._wake_at = math.inf  # when the thread wakes by itself
        self._pipe = None  # wakes it before that
        self.running = False  # set by the thread itself: to start it may fail

    def watch(self, grant: Grant) -> None:
        """Renew a grant until it is over or collected. Starts the thread if there is none."""
        with self._lock:
            if self._pipe is None:
                self._pipe = os.pipe()
            self._grants.add(grant)
            if not self.running:
                # Not threading.Thread: its `start` waits for an event, and an exception from a signal handler can
                # leave that event's lock held.
                _thread.start_new_thread(self._run, (self._pipe[0],))
            elif grant.renew_at < self._wake_at:
                os.write(self._pipe[1], b"\0")  # the thread would wake too late by itself

    def _live(self) -> list[Grant]:
        """Return the grants to renew. The caller holds ``_lock``."""
        return [grant for grant in self._grants if not grant.over]

    def _run(self, receiver: int) -> None:
        with self._lock:
            if self.running:  # `watch` was called twice before the first thread began
                return
            self.running = True
        renewals: dict[int, _Renewal] = {}
        try:
            while not self._renew(receiver, renewals):
                pass
        finally:
            self.running = False  # also after an exception that nobody expects: the next lock starts a thread

    def _renew(self, receiver: int, renewals: dict[int, _Renewal]) -> bool:
        """Do one round of renewals. Return whether there is nothing left to renew."""
        try:
            self._begin_those_due(renewals)
            if self._wake_at == math.inf and not renewals and self._end():
                return True
            _receive(receiver, renewals, self._wake_at)  # only this thread changes it
        except (
            Exception
        ) as error:  # no memory, for example; the locks that are held must be renewed nevertheless
            log.error("The renewal of locks failed with %s; trying again.", type(error).__name__)
            time.sleep(_PAUSE_SECONDS)
        return False

    def _end(self) -> bool:
        with self._lock:
            self.running = bool(self._live())
            return not self.running

    def _begin_those_due(self, renewals: dict[int, _Renewal]) -> None:
        """Send the renewals that are due, and set the time of the next one."""
        now = time.monotonic()
        with self._lock:
            grants = self._live()
            times = (grant.renew_at for grant in grants if grant.renew_at > now)
            self._wake_at = min(times, default=math.inf)
        for grant in grants:
            if grant.renew_at <= now and (pinned := grant.take()) is not None:
                grant.renew_at = math.inf  # until it is answered
                if grant.backend.begin_renew(grant.name, grant.token, grant.ttl_seconds, pinned):
                    renewals[pinned.fileno()] = (grant, pinned, now)
                else:
                    grant.put_back(pinned, lost=True)


_Renewal: TypeAlias = tuple[Grant, PinnedConnection, float]
"""A renewal that was sent: the grant, its connection, and the time of sending (monotonic seconds)."""


def _receive(receiver: int, renewals: dict[int, _Renewal], wake_at: float) -> None:
    """Wait until a node answers, `_Renewer.watch` writes to the pipe, or a time has come. Receive the answers."""
    poll = select.poll()
    for descriptor in (receiver, *renewals):
        poll.register(descriptor, select.POLLIN)
    wake_at = min([wake_at, *(grant.good_until for grant, _, _ in renewals.values())])
    seconds = max(0.0, min(wake_at - time.monotonic(), _LINGER_SECONDS))
    # Rounded up, because poll() with 0 milliseconds would spin until the time has come.
    for descriptor, _ in poll.poll(math.ceil(seconds * 1000)):
        if descriptor == receiver:
            os.read(receiver, 4096)  # the bytes only wake the thread
            continue
        grant, pinned, sent_at = renewals.pop(descriptor)
        lost = not grant.backend.finish_renew(pinned, Deadline(_RECEIVE_SECONDS))
        if not lost:
            grant.renewed(sent_at)  # counted from the sending: the node may have received it at once
        grant.put_back(pinned, lost=lost)
    now = time.monotonic()
    for descriptor, (grant, pinned, _) in list(renewals.items()):
        # Lost or released before the node has answered. The node frees the lock when the connection closes.
        if now >= grant.good_until or grant.over:
            del renewals[descriptor]
            pinned.drop()
            grant.put_back(pinned, lost=True)


_renewer = _Renewer()
at_fork.in_child(_renewer.reset)
