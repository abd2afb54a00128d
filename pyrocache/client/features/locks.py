"""Locks and semaphores that threads, processes and hosts share: the client's part.

``node/coordination/locks.py`` describes what a lock promises and what happens when its node ends;
`PyroCacheClient.lock` describes it for users.

The node that owns a lock's name grants it to one caller at a time (a semaphore to several). A grant ends when it is
released, when the connection that it was granted on closes, or when it was not renewed for its time to live. While
a lock is held, one daemon thread of this process renews all locks; it starts with the first lock and ends soon after
the last one.

The node counts the time to live from when it grants or renews; the client counts it from when it has sent the request,
so it never takes a lock for held that the node may have granted to another caller. A node without a lease refuses
renewals; they are sent again until the time to live is over.

A `Grant` belongs to the thread that acquired the lock and is stored in a `threading.local`; without ``thread_local``,
it belongs to the `Lock`. When a thread ends without releasing, its grants are garbage-collected, and so are those of a
`Lock` that nobody refers to. This closes their connections, so that the nodes release the locks. Therefore no other
object may keep a strong reference to a grant for long. The renewing thread has weak references, and
strong ones only while it waits for a node's answer.

Both the renewing thread and the thread that releases a lock use the connection of its grant. A thread removes the
connection from the grant, uses it exclusively, and puts it back. If the connection is in use, the other thread does not
wait for it.

Thread safety: thread-safe; each thread that uses a `Lock` acquires for itself, unless the object is the owner.
"""

from __future__ import annotations

import _thread
import math
import os
import select
import threading
import time
import weakref
from typing import Any, Self, TypeAlias

from pyrocache.client.backend import Backend, Pinned
from pyrocache.client.context import ClientContext, Duration, Ttl
from pyrocache.client.features.pinned_wait import PinnedWait, wait_to_seconds
from pyrocache.config import to_seconds
from pyrocache.errors import LockLost, LockTimeout, PyroCacheError
from pyrocache.net.deadline import Deadline
from pyrocache.net.pinned import PinnedConnection
from pyrocache.protocol.limits import MOST_SECONDS
from pyrocache.runtime import at_fork, clock
from pyrocache.runtime.log import logger
from pyrocache.runtime.shortage import explained
from pyrocache.tracebacks import brief

RENEWALS = 3  # in a lock's time to live
_LONGEST_RENEWAL_SECONDS = 600.0
_RECEIVE_SECONDS = 1.0
PAUSE_SECONDS = 0.1  # after an unexpected exception, or a refusal of a node without a lease
_LINGER_SECONDS = 2.0  # the renewing thread ends that long after the last lock was released, at the latest


class Tenure:
    """For how long a grant of a lock is valid. Pure, except that it reads the clock.

    Args:
        token: the fencing token.
        ttl_seconds: how long the node keeps the lock for a holder that does not renew it.
        asked_at: when the request was sent (seconds of `runtime.clock`); the node may have granted the lock as early as
            that.

    Attributes:
        token, ttl_seconds: as given.
        good_until: when the node may grant the lock to another holder, unless it is renewed, by `runtime.clock`.
        renew_at: when to renew it, by the same clock.
        over: whether it was released or lost.
    """

    def __init__(self, token: int, ttl_seconds: float, asked_at: float) -> None:
        self.token = token
        self.ttl_seconds = min(ttl_seconds, MOST_SECONDS)
        self.over = False
        self._process = os.getpid()  # a forked child does not hold its parent's locks
        self.renewed(asked_at)

    def renewed(self, at: float) -> None:
        """Restart the time to live at ``at`` (seconds of `runtime.clock`)."""
        self.good_until = at + self.ttl_seconds
        self.renew_at = at + min(self.ttl_seconds / RENEWALS, _LONGEST_RENEWAL_SECONDS)

    @property
    def inherited(self) -> bool:
        """Whether this process was forked from the one that holds the lock."""
        return self._process != os.getpid()

    @property
    def valid(self) -> bool:
        """Whether it is neither over nor another process's, and its time has not passed."""
        return not self.over and not self.inherited and clock.now() < self.good_until


class Grant(Tenure):
    """One grant of a lock to a thread or a `Lock`, held or over.

    Attributes:
        backend: the client's.
        name: the lock's canonical bytes.
    """

    def __init__(
        self,
        backend: Backend,
        name: bytes,
        token: int,
        ttl_seconds: float,
        pinned: PinnedConnection,
        asked_at: float,
    ) -> None:
        super().__init__(token, ttl_seconds, asked_at)
        self.backend = backend
        self.name = name
        self._idle = [pinned]  # empty while a thread uses the connection

    @property
    def held(self) -> bool:
        """Whether this grant is still valid, as far as this process knows."""
        # A copy, as another thread may take the connection.
        return self.valid and not any(pinned.closed for pinned in tuple(self._idle))

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

    def end(self) -> None:
        """Close the connection, which frees the lock. The renewing thread closes it if it uses it now."""
        self.over = True
        if (left := self.take()) is not None:
            left.drop()


class LockOptions:
    """What a lock is, from a user's arguments. Creating one sends nothing.

    Args:
        context: the client's.
        name: any key; a lock and an entry of the same name are independent.
        limit: the number of permits: 1 for a lock, more for a semaphore.
        ttl_seconds: how long the node keeps it for a holder that does not renew it; seconds or a timedelta.
        wait_seconds: how long to wait for it; None for no limit.
        thread_local: whether each thread or task acquires for itself.

    Attributes:
        key: the name's canonical bytes.
        name, limit, thread_local: as given.
        ttl_seconds, wait_seconds: in seconds.

    Raises:
        TypeError, ValueError: an argument is not valid.
    """

    def __init__(
        self,
        context: ClientContext[Any],
        name: object,
        limit: int,
        ttl_seconds: Duration,
        wait_seconds: Ttl,
        thread_local: bool = True,
    ) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise brief(TypeError(f"A semaphore's n is an int, not {type(limit).__name__}."))
        if not 1 <= limit <= 2**20:
            raise brief(ValueError(f"A semaphore's n is from 1 to {2**20}."))
        if not isinstance(thread_local, bool):
            raise brief(TypeError(f"thread_local is True or False, not {type(thread_local).__name__}."))
        # The kind is part of the key, so a lock and a semaphore of the same name are independent.
        self.key = context.encode_key(("lock" if limit == 1 else "semaphore", name))
        self.name = name
        self.limit = limit
        self.ttl_seconds = to_seconds(ttl_seconds, "ttl_seconds", zero=False)
        self.wait_seconds = wait_to_seconds(wait_seconds)
        self.thread_local = thread_local

    def seconds(self, blocking: bool, timeout: Duration | None) -> float | None:
        """Return how long a call of ``acquire`` waits; None for no limit. Raises `ValueError` as `Lock.acquire`."""
        if timeout is None:
            return self.wait_seconds if blocking else 0.0
        if timeout == -1:
            return None if blocking else 0.0
        if not blocking:
            raise ValueError("A call that does not block takes no timeout.")
        return to_seconds(timeout, "timeout")

    def repr(self, token: int | None) -> str:
        """Return how a lock that is held with this token shows itself."""
        what = "lock" if self.limit == 1 else f"semaphore of {self.limit}"
        return f"<pyrocache {what} {self.name!r}{'' if token is None else f', held with token {token}'}>"


class _OfObject:
    """The grants of a `Lock`, oldest first. `release` ends the oldest one."""

    def __init__(self) -> None:
        self.grants: list[Grant] = []  # appending and popping are atomic


class _OfThread(_OfObject, threading.local):
    """The grants of each thread for one `Lock`. Identifiers of threads are reused, so they cannot be its keys."""


class Lock:
    """A lock or a semaphore: ``with cache.lock("report"): ...``. It has the methods of `threading.Lock`.

    Creating one sends nothing. Any number of threads may use one object. With ``thread_local``, each thread acquires
    and releases for itself. Without it, the object is the owner: what one thread acquired, another one may release.

    A call that an exception interrupts, `KeyboardInterrupt` or that of a signal handler, holds nothing afterwards.

    Args: as of `LockOptions`.
    """

    def __init__(
        self,
        context: ClientContext,
        name: object,
        limit: int,
        ttl_seconds: Duration,
        wait_seconds: Ttl,
        thread_local: bool = True,
    ) -> None:
        self._context = context
        self._options = LockOptions(context, name, limit, ttl_seconds, wait_seconds, thread_local)
        self._owner = _OfThread() if thread_local else _OfObject()

    @property
    def token(self) -> int | None:
        """The fencing token of the last grant to this thread, or to this object without ``thread_local``; None if none.

        It is larger than the token of any earlier grant.

        The protected resource can refuse a holder whose token is smaller than one that it has seen. Nothing else
        protects it from a holder that was suspended for longer than the time to live and has not noticed.
        """
        if self._context.closed:
            return None
        return max((grant.token for grant in tuple(self._owner.grants) if grant.held), default=None)

    @property
    def held(self) -> bool:
        """Whether this thread holds it, or this object without ``thread_local``, as far as this process knows."""
        return self.token is not None

    def locked(self) -> bool:
        """Ask the node whether `acquire` would have to wait: whether all permits are taken, by anybody.

        Raises:
            NodeUnavailable: the lock's node is unreachable, independent of ``on_error``.
        """
        return (
            self._context.backend.holders(self._options.key, self._context.deadline()) >= self._options.limit
        )

    def acquire(self, blocking: bool = True, timeout: Duration | None = None) -> bool:
        """Acquire the lock, waiting if another holder has it. Return whether it was acquired.

        Args:
            blocking: whether to wait.
            timeout: how long to wait, in seconds or as a timedelta; -1 for no limit, None for the lock's own
                ``wait_seconds``.

        Returns:
            False if other callers held it all the time, or if this client has too many pinned connections to its node.
            A ``with`` statement raises `LockTimeout` instead.

        Raises:
            NodeUnavailable: the lock's node is unreachable, independent of ``on_error``.
            OutOfResources: the thread that renews locks cannot be started; the lock is released.
            RuntimeError: this thread holds it already, and would wait for itself (with ``thread_local``).
            ValueError: ``timeout`` is negative and not -1, or is not -1 with ``blocking=False``.
        """
        try:
            self._acquire(self._options.seconds(blocking, timeout), blocking)
        except LockTimeout:
            return False
        return True

    def _acquire(self, seconds: float | None, blocking: bool = True) -> None:
        """Acquire it within ``seconds``. Raises `LockTimeout`, and otherwise as `acquire`."""
        grants = self._owner.grants
        if self._options.thread_local and grants:
            if self.held:
                if blocking:
                    raise held_already("thread")
                raise timed_out(0.0)
            grants.clear()  # lost, and only this thread could release them
        grant: Grant | None = None
        # The grant keeps this backend: an exception would end the thread that renews all locks.
        backend = self._context.backend
        wait = PinnedWait(self._context, self._ask, seconds)
        try:
            token, asked_at = self._wait_for(wait, seconds)
            assert wait.pinned is not None
            grant = Grant(backend, self._options.key, token, self._options.ttl_seconds, wait.pinned, asked_at)
            _renewer.watch(grant)
            grants.append(grant)
        except BaseException:
            # An exception object refers to this frame, so the connection must be closed and not only forgotten.
            if grant is None:
                if wait.pinned is not None:
                    wait.pinned.drop()
            else:
                grant.end()
                if grant in grants:
                    grants.remove(grant)
            raise
        # No call here: an exception of a signal handler would be raised after it.

    def _ask(self, poll: float, deadline: Deadline, pinned: Pinned) -> Pinned:
        # The backend of the moment, which raises once the context is closed.
        backend = self._context.backend
        return backend.acquire(
            self._options.key, self._options.limit, self._options.ttl_seconds, poll, deadline, pinned
        )

    def _wait_for(self, wait: PinnedWait, seconds: float | None) -> tuple[int, float]:
        """Return the token once the node grants the lock, and when the node was asked.

        The connection of ``wait`` then has the grant.
        """
        while True:
            asked_at = clock.now()
            # Not longer, so that little of the time to live is over when the grant arrives, however late it was made.
            token = wait.ask(self._options.ttl_seconds / RENEWALS)
            if token is not None and wait.pinned is not None:
                if clock.now() < asked_at + self._options.ttl_seconds:
                    return int(token), asked_at
                wait.pinned.drop()  # the grant was under way for so long that it may be over
            if wait.is_over():
                wait.release()
                raise timed_out(seconds, at_limit=wait.pinned is None)
            wait.pause()

    def release(self) -> None:
        """Release the lock that this thread holds, or this object without ``thread_local``.

        Raises:
            LockLost: the lock was lost before, or its node did not answer. Another caller may have held it meanwhile.
            RuntimeError: it is not held: it was not acquired, or released already.
        """
        grants = self._owner.grants
        grant: Grant | None = None
        pinned: Pinned = None
        try:
            # A forked child need not release what its parent acquired.
            while grant is None or (grant.inherited and grants):
                try:
                    grant = grants.pop(0)  # the oldest
                except IndexError:
                    raise not_held("thread" if self._options.thread_local else "object") from None
            was_over = grant.over or grant.inherited
            # If the renewing thread is using the connection, the release goes over another one. `over` is set
            # afterwards: the renewing thread closes the connection of a grant that is over. If it did so before the
            # node has received the release, the node would end the grant first and answer that the lock was lost.
            deadline = self._context.deadline()
            pinned = grant.take()
            released = not was_over and self._context.backend.release(
                grant.name, grant.token, deadline, pinned
            )
            grant.over = True
        except BaseException:
            # An exception object refers to this frame, so the connection must be closed, which frees the lock.
            if pinned is not None:
                pinned.drop()
            if grant is not None:
                grant.end()
            raise
        if not released:
            raise lost()

    def __enter__(self) -> Self:
        self._acquire(self._options.wait_seconds)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.release()
        except PyroCacheError:
            if kind is None:  # the exception of the body is more informative
                raise

    def __repr__(self) -> str:
        return self._options.repr(self.token)

    def __reduce__(self) -> Any:
        raise TypeError(
            "A Lock is not pickled: have cache.lock make one of the same name in the other process."
        )


def lost() -> LockLost:
    """Return the error of a release that came too late, or was not answered."""
    return LockLost(
        "The lock was lost before its release (its node went away, or it was not renewed in time), or its node "
        "did not answer the release. Another holder may have done its work meanwhile."
    )


def not_held(owner: str) -> RuntimeError:
    """Return the error of a release by an ``owner`` (thread, task or object) that has no grant."""
    return brief(
        RuntimeError(f"This {owner} does not hold the lock: it did not acquire it, or released it already.")
    )


def held_already(owner: str) -> RuntimeError:
    """Return the error of an ``owner`` that would wait for itself."""
    return brief(RuntimeError(f"This {owner} holds the lock already, and it is not reentrant."))


def timed_out(seconds: float | None, *, at_limit: bool = False) -> LockTimeout:
    """Return the error of a caller that did not get the lock; ``at_limit``: too many calls of its client wait."""
    if at_limit:
        return LockTimeout(
            "acquire failed: this client has reached its limit of locks and loads on the node of this lock. Release "
            "some of them, or create another client."
        )
    return LockTimeout(
        f"acquire failed: the lock was not available within {seconds or 0.0:g} s. To wait longer, pass wait_seconds."
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
            self._grants.add(grant)
            if not self.running or self._pipe is None:
                self._start()
            elif grant.renew_at < self._wake_at:
                os.write(self._pipe[1], b"\0")  # the thread would wake too late by itself

    def _start(self) -> None:
        """Start the thread. The caller holds ``_lock``."""
        with explained("acquire failed, and the lock is free again"):
            if self._pipe is None:
                self._pipe = os.pipe()
            # Not threading.Thread: its `start` waits for an event, and an exception from a signal handler can leave
            # that event's lock held.
            _thread.start_new_thread(self._run, (self._pipe[0],))

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
            logger("pyrocache.client").error(
                "The renewal of locks failed with %s; trying again.", type(error).__name__
            )
            time.sleep(PAUSE_SECONDS)
        return False

    def _end(self) -> bool:
        with self._lock:
            self.running = bool(self._live())
            return not self.running

    def _begin_those_due(self, renewals: dict[int, _Renewal]) -> None:
        """Send the renewals that are due, and set the time of the next one."""
        now = clock.now()
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
"""A renewal that was sent: the grant, its connection, and the time of sending (seconds of `runtime.clock`)."""


def _receive(receiver: int, renewals: dict[int, _Renewal], wake_at: float) -> None:
    """Wait until a node answers, `_Renewer.watch` writes to the pipe, or a time has come. Receive the answers."""
    poll = select.poll()
    for descriptor in (receiver, *renewals):
        poll.register(descriptor, select.POLLIN)
    wake_at = min([wake_at, *(grant.good_until for grant, _, _ in renewals.values())])
    seconds = max(0.0, min(wake_at - clock.now(), _LINGER_SECONDS))
    # Rounded up, because poll() with 0 milliseconds would spin until the time has come.
    for descriptor, _ in poll.poll(math.ceil(seconds * 1000)):
        if descriptor == receiver:
            os.read(receiver, 4096)  # the bytes only wake the thread
            continue
        grant, pinned, sent_at = renewals.pop(descriptor)
        held = grant.backend.finish_renew(pinned, Deadline(_RECEIVE_SECONDS))
        now = clock.now()
        if held:
            grant.renewed(sent_at)  # counted from the sending: the node may have received it at once
        elif held is None:  # the node has no lease
            grant.renew_at = min(now + PAUSE_SECONDS, grant.good_until)
        grant.put_back(pinned, lost=held is False or (held is None and now >= grant.good_until))
    now = clock.now()
    for descriptor, (grant, pinned, _) in list(renewals.items()):
        # Lost or released before the node has answered. The node frees the lock when the connection closes.
        if now >= grant.good_until or grant.over:
            del renewals[descriptor]
            pinned.drop()
            grant.put_back(pinned, lost=True)


_renewer = _Renewer()
at_fork.in_child(_renewer.reset)
