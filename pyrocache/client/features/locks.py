"""Locks and semaphores that callers in different threads, processes and hosts share.

A lock is a name. Its owner node grants it to one caller at a time, or to so many, until it is given back, the
connection that it was granted on closes, or it was not renewed for its time to live. While any lock is held, one daemon
thread of this process renews all of them; it starts with the first and ends soon after the last.

Each `Grant` has its connection in a list of one: whoever takes it out, the renewing thread or the one that releases
the lock, uses it alone. So nobody waits for a lock of this process, which an exception raised by a signal handler
could leave held for ever.
"""

from __future__ import annotations

import _thread
import math
import os
import select
import threading
import time
import weakref
from contextlib import suppress
from types import EllipsisType, TracebackType
from typing import Any, Self

from pyrocache.client.backend import Core, Duration
from pyrocache.client.features.load_once import LEG_SECONDS
from pyrocache.config import to_seconds
from pyrocache.errors import LockLost, LockTimeout, NodeUnavailable, PyroCacheError, RemoteError
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.net.pinned import PinnedConnection
from pyrocache.protocol import commands

_NO_VIEW = 0
_RENEWALS = 3  # in a lock's time to live
_PAUSE_SECONDS = 0.02
_LONGEST_TTL_SECONDS = 86400.0  # that a node gives
_LONGEST_RENEWAL_SECONDS = 600.0
_RECEIVE_SECONDS = 1.0
_FEW = 64
_LONGEST_REST_SECONDS = 2.0  # after the last lock was released, the thread is there for so long


class Grant:
    """A lock that is held, or was.

    Attributes:
        token: its number.
        idle: its connection, unless somebody uses it.
        good_until: when the node may give the lock to another one, unless it was renewed (monotonic seconds).
        renew_at: when to do so.
        over: it was released, or lost.
        process: the process that holds it; a forked child does not.
    """

    __slots__ = (
        *("__weakref__", "good_until", "idle", "name", "over"),
        *("process", "renew_at", "token", "ttl_seconds"),
    )

    def __init__(self, name: bytes, token: int, ttl_seconds: float, held: PinnedConnection) -> None:
        self.name = name
        self.token = token
        self.ttl_seconds = min(ttl_seconds, _LONGEST_TTL_SECONDS)
        self.idle = [held]
        self.over = False
        self.process = os.getpid()
        self.renewed(time.monotonic())

    def renewed(self, at: float) -> None:
        """The time to live begins anew."""
        self.good_until = at + self.ttl_seconds
        self.renew_at = at + min(self.ttl_seconds / _RENEWALS, _LONGEST_RENEWAL_SECONDS)

    @property
    def held(self) -> bool:
        """Whether nobody else can have the lock, as far as is known here."""
        if self.over or self.process != os.getpid() or time.monotonic() >= self.good_until:
            return False
        return not any(connection.closed for connection in tuple(self.idle))


class Lock:
    """A lock, or a semaphore, by its name: ``with cache.lock("report"): ...``.

    It costs nothing to make one; use it from as many threads as you like, each of which acquires for itself. It is not
    reentrant.

    Args:
        core: the client's.
        name: any key; a lock and an entry of the same name have nothing to do with each other.
        limit: how many may hold it at once.
        ttl_seconds: how long it stays with a holder that does not renew it.
        wait_seconds: how long `acquire` waits; None: as long as it takes.
    """

    def __init__(
        self, core: Core, name: object, limit: int, ttl_seconds: Duration, wait_seconds: Duration | None
    ) -> None:
        self._core = core
        self._key = core.encode_key(("lock" if limit == 1 else "semaphore", name))
        self._name = name
        self._limit = limit
        self._ttl_seconds = to_seconds(ttl_seconds, "ttl_seconds", zero=False)
        self._wait_seconds = _wait(wait_seconds)
        self._grants: dict[int, Grant] = {}  # by the thread that acquired it

    @property
    def token(self) -> int | None:
        """The number of this thread's grant, larger than those of all before; None when it holds none.

        Whatever the lock protects can refuse a holder whose number is smaller than one that it has seen: the only
        protection from a holder that was stopped for longer than its time to live and does not know.
        """
        grant = self._grant()
        return grant.token if grant is not None and self.held else None

    @property
    def held(self) -> bool:
        """Whether this thread holds it, as far as is known here."""
        grant = self._grant()
        return grant is not None and grant.held and not self._core.closed

    def acquire(self, *, wait_seconds: Duration | EllipsisType | None = ...) -> int:
        """Hold the lock, waiting for it if need be; its token.

        Args:
            wait_seconds: instead of the lock's own; 0 does not wait.

        Raises:
            LockTimeout: others held it all the time.
            NodeUnavailable: the lock's node is away, whatever ``on_error`` says.
            RuntimeError: this thread holds it already.
        """
        before = self._grant()
        if before is not None and before.held:
            raise RuntimeError("This thread holds the lock already, and it is not reentrant.")
        seconds = self._wait_seconds if wait_seconds is ... else _wait(wait_seconds)
        grant = _acquire(self._core, self._key, self._limit, self._ttl_seconds, seconds)
        self._grants[threading.get_ident()] = grant
        _renewer.watch(grant)
        return grant.token

    def release(self) -> None:
        """Give back what this thread holds.

        Raises:
            LockLost: it was lost before this; another holder may have done its work meanwhile.
            RuntimeError: this thread has not acquired it.
        """
        grant = self._grants.pop(threading.get_ident(), None)
        if grant is None:
            raise RuntimeError(
                "This thread does not hold the lock: it did not acquire it, or released it already."
            )
        _release(self._core, grant)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except PyroCacheError:
            if kind is None:  # what the body raised says more
                raise

    def __repr__(self) -> str:
        what = "lock" if self._limit == 1 else f"semaphore of {self._limit}"
        return f"<pyrocache {what} {self._name!r}{f', held with token {self.token}' if self.held else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "A Lock is not pickled: have cache.lock make one of the same name in the other process."
        )

    def _grant(self) -> Grant | None:
        return self._grants.get(threading.get_ident())


def _wait(wait_seconds: Duration | None) -> float | None:
    """How long to wait, in seconds. Raises `TypeError` or `ValueError` if that makes no sense."""
    return None if wait_seconds is None else to_seconds(wait_seconds, "wait_seconds")


def check_limit(limit: Any) -> int:
    """How many may hold a semaphore; raises if that makes no sense."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"A semaphore's n is an int, not {type(limit).__name__}.")
    if not 1 <= limit <= 2**20:
        raise ValueError(f"A semaphore's n is from 1 to {2**20}.")
    return limit


def _acquire(core: Core, name: bytes, limit: int, ttl_seconds: float, wait_seconds: float | None) -> Grant:
    give_up_at = math.inf if wait_seconds is None else time.monotonic() + wait_seconds
    held: PinnedConnection | None = None
    try:
        while True:
            asked_at = time.monotonic()
            patience = max(0.0, min(LEG_SECONDS, core.timeout, give_up_at - asked_at))
            deadline = core.deadline(core.timeout + patience)
            held = core.router.hold(
                "acquire", name, limit, ttl_seconds, patience, deadline=deadline, held=held
            )
            if held is None:  # too many wait here: ask without waiting
                held = core.router.hold(
                    "acquire", name, limit, ttl_seconds, 0.0, deadline=deadline, waits=False
                )
                asked = held is not None
                if held is not None and held.answer is None:
                    held.release()
                    held = None
            else:
                asked = True
            if held is not None and held.answer is not None:
                if type(held.answer) is not int:
                    raise RemoteError(f"{held.member.name} answered acquire with what is no token.")
                return Grant(name, held.answer, ttl_seconds, held)
            now = time.monotonic()
            if now >= give_up_at:
                if held is not None:
                    held.release()
                raise LockTimeout(
                    f"acquire failed: others held the lock for the {wait_seconds:g} s that this waited. "
                    "Wait longer with wait_seconds."
                    if asked
                    else "acquire failed: this client holds or loads as much of the lock's node as it may at a time. "
                    "Release some first, or take another client."
                )
            if held is None or now - asked_at < min(_PAUSE_SECONDS, patience):
                time.sleep(min(_PAUSE_SECONDS, give_up_at - now))  # ask again soon; or do not spin
    except BaseException:
        if held is not None:
            held.drop()
        raise


def _release(core: Core, grant: Grant) -> None:
    """Give a lock back. Raises `LockLost`."""
    was_over, grant.over = grant.over or grant.process != os.getpid(), True
    if was_over or not _given_back(core, grant, core.deadline()):
        raise LockLost(
            "The lock was lost before it was released: its node went away, or it could not be renewed in time. "
            "Another holder may have done its work meanwhile."
        )


def _given_back(core: Core, grant: Grant, deadline: Deadline) -> bool:
    """Tell the node; whether the lock was held until then."""
    try:
        held = grant.idle.pop()
    except IndexError:  # it is being renewed at this moment
        try:
            return bool(
                core.router.call("release", grant.name, grant.token, deadline=deadline, idempotent=False)
            )
        except NodeUnavailable:
            return False
    try:
        released = held.call(commands.RELEASE, (_NO_VIEW, grant.name, grant.token), deadline)
    except (Refused, Unavailable):
        held.drop()
        return False
    held.release()
    return released is True


class _Renewer:
    """The thread that renews the locks of this process, while there are any."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew: in a forked child the thread does not exist, and the locks are the parent's."""
        self._lock = threading.Lock()  # guards: all that follows
        self._grants: list[weakref.ref[Grant]] = []
        self._look_through_at = _FEW  # so many of them
        self._wake_at = math.inf  # when the thread looks around by itself
        self._pipe: tuple[int, int] | None = None  # wakes it before that; None: there is none

    def reset_after_fork(self) -> None:
        """As `reset`, and close what was inherited."""
        for descriptor in self._pipe or ():
            os.close(descriptor)
        self.reset()

    def watch(self, grant: Grant) -> None:
        """Renew ``grant`` until it is over, or nobody has it any more."""
        with self._lock:
            self._grants.append(weakref.ref(grant))
            if self._pipe is None:
                self._pipe = os.pipe()
                # No threading.Thread: its start waits at a lock that Python code implements.
                _thread.start_new_thread(self._run, (self._pipe[0],))
            elif grant.renew_at < self._wake_at:
                os.write(self._pipe[1], b"\0")
            if len(self._grants) > self._look_through_at:
                self._live()

    def _live(self) -> list[Grant]:
        """Those to renew, under the lock; the others are forgotten."""
        grants = [grant for reference in self._grants if (grant := reference()) and not grant.over]
        self._grants = [weakref.ref(grant) for grant in grants]
        self._look_through_at = 2 * len(grants) + _FEW
        return grants

    def _run(self, receiver: int) -> None:
        under_way: dict[int, tuple[Grant, PinnedConnection, float]] = {}
        while True:
            wake_at = self._begin_those_due(under_way)
            if wake_at == math.inf and not under_way and self._end():
                return
            self._wait(receiver, under_way, wake_at)

    def _end(self) -> bool:
        with self._lock:
            if self._live():
                return False
            for descriptor in self._pipe or ():
                os.close(descriptor)
            self._pipe = None
            return True

    def _begin_those_due(self, under_way: dict[int, tuple[Grant, PinnedConnection, float]]) -> float:
        """Ask for those that are to be renewed now; when the next is (monotonic seconds)."""
        now = time.monotonic()
        with self._lock:
            grants = self._live()
            wake_at = min((grant.renew_at for grant in grants if grant.renew_at > now), default=math.inf)
            self._wake_at = wake_at
        for grant in grants:
            if grant.renew_at <= now:
                self._begin(grant, under_way, now)
        return wake_at

    def _begin(
        self, grant: Grant, under_way: dict[int, tuple[Grant, PinnedConnection, float]], now: float
    ) -> None:
        """Ask the node to renew a lock; its answer comes while others are asked."""
        try:
            held = grant.idle.pop()
        except IndexError:
            return  # it is being renewed, or released
        grant.renew_at = math.inf  # until it is answered
        if held.closed or not held.begin(
            commands.RENEW, (_NO_VIEW, grant.name, grant.token, grant.ttl_seconds)
        ):
            self._finished(grant, held, lost=True)
        else:
            under_way[held.fileno()] = (grant, held, now)

    def _wait(
        self, receiver: int, under_way: dict[int, tuple[Grant, PinnedConnection, float]], wake_at: float
    ) -> None:
        """Wait for answers, for a grant that is new, or until there is something to do."""
        poll = select.poll()
        poll.register(receiver, select.POLLIN)
        for descriptor in under_way:
            poll.register(descriptor, select.POLLIN)
        wake_at = min([wake_at, *(grant.good_until for grant, _, _ in under_way.values())])
        seconds = max(0.0, min(wake_at - time.monotonic(), _LONGEST_REST_SECONDS))
        for descriptor, _ in poll.poll(math.ceil(seconds * 1000)):
            if descriptor == receiver:
                os.read(receiver, 4096)
                continue
            grant, held, since = under_way.pop(descriptor)
            lost = True
            with suppress(Refused, Unavailable):
                lost = held.finish(Deadline(_RECEIVE_SECONDS)) is not True
            if not lost:
                grant.renewed(since)
            self._finished(grant, held, lost=lost)
        now = time.monotonic()
        for descriptor, (grant, held, _) in list(under_way.items()):
            if now >= grant.good_until or grant.over:
                del under_way[descriptor]
                held.drop()
                self._finished(grant, held, lost=True)

    @staticmethod
    def _finished(grant: Grant, held: PinnedConnection, *, lost: bool) -> None:
        """Put the connection back, unless the lock was released meanwhile or is lost."""
        if lost:
            grant.over = True
        grant.idle.append(held)
        if grant.over:  # looked at last: `_release` may have run just before the line above
            with suppress(IndexError):
                grant.idle.pop().drop()


_renewer = _Renewer()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renewer.reset_after_fork)
