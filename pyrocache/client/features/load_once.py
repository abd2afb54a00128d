"""Load a missing value once: one caller of all processes runs the factory, the others wait for its result.

`find` returns the value or a `LoadTask`, which holds the lease while the factory runs. The asyncio client has a
`get_or_set` of its own in ``aio/load_once.py``, with the same rules and the same `Load` and `LoadTask`.

The node that owns a key grants the *lease* to load its value; ``node/coordination/leases.py`` lists what revokes it. A
lease ends with the connection that it was granted on, which the `LoadTask` holds: when a loader's process dies, the
node sees the connection close and lets the next caller load at once.

A thread cannot deadlock with itself: a factory that requests its own key loads without a lease, and its result is not
stored. A factory that requests another key also loads without a lease if too many calls of its client already wait for
the node of that key; otherwise each could wait for a connection that another one holds. ``load_deadlock.py`` finds
loads of this process that wait for each other.

A value that was loaded is always returned: if it cannot be stored, that is counted, and logged once per function and
type of error. A stored value that does not decode in this process is loaded again and replaced, by one caller of all
that cannot read it.

Starts no thread.

Thread safety: thread-safe, except that only one thread at a time may use a `LoadTask`.
"""

from __future__ import annotations

import inspect
import math
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import Any, Generic, NamedTuple, Self, TypeAlias, TypeVar

from pyrocache.client.backend import LoadTimes, NewFrame, Pinned, Seconds, Tags
from pyrocache.client.context import MISSING, ClientContext, Duration, Ttl
from pyrocache.client.features import load_deadlock
from pyrocache.client.features.jitter import check_jitter, jittered
from pyrocache.client.features.load_deadlock import LoadId, Mark, Waiting
from pyrocache.client.features.pinned_wait import PinnedWait, wait_to_seconds
from pyrocache.config import check_number, to_seconds, ttl_to_seconds
from pyrocache.errors import CacheUnavailable, PyroCacheError, SerializationError, WaitTimeout
from pyrocache.net.deadline import Deadline
from pyrocache.runtime import clock
from pyrocache.runtime.log import logger
from pyrocache.runtime.throttle import Throttle
from pyrocache.tracebacks import came_from_outside, users_frames

_T = TypeVar("_T")

IF_MISSING, UNLESS_LOADING, ALWAYS, UNREADABLE = range(4)
"""When to load a value. `IF_MISSING`: if there is none. `UNLESS_LOADING`: also if there is one, except while another
caller is loading. `ALWAYS`: in any case. `UNREADABLE`: as if there were none, because it does not decode here."""

_once = Throttle(math.inf)  # warnings about a function


class LoadOptions(NamedTuple):
    """Settings for loading and keeping a value. Durations are in seconds.

    Attributes:
        ttl_seconds: time to live of the value; None for no expiry.
        stale_seconds: how long after its expiry the value is still returned while a new one is loaded.
        early: XFetch's beta; 0 for no early refresh.
        wait_seconds: how long to wait for another loader; None for no limit.
        lease_seconds: how long a loader may take before another caller loads.
        ttl_jitter: the largest fraction by which the time to live is shortened at random.
    """

    ttl_seconds: float | None = None
    stale_seconds: float = 0.0
    early: float = 0.0
    wait_seconds: float | None = None
    lease_seconds: float = 60.0
    ttl_jitter: float = 0.0


def load_options(
    ttl_seconds: Ttl,
    stale_seconds: Duration,
    early: float,
    wait_seconds: Ttl,
    lease_seconds: Duration,
    ttl_jitter: float = 0.0,
) -> LoadOptions:
    """Return the options from a user's arguments. Raises `TypeError` or `ValueError` if one is not valid."""
    early = check_number(early, "early")
    ttl, stale = ttl_to_seconds(ttl_seconds), to_seconds(stale_seconds, "stale_seconds")
    wait, lease = wait_to_seconds(wait_seconds), to_seconds(lease_seconds, "lease_seconds", zero=False)
    return LoadOptions(ttl, stale, early, wait, lease, check_jitter(ttl_jitter))


class Load(NamedTuple, Generic[_T]):
    """A value to return, or to load.

    Attributes:
        context: the client's.
        key: canonical bytes.
        factory: makes the value, or in the asyncio client an awaitable of it.
        options: settings for loading and keeping it.
        tags: makes its encoded tags; called only if the value is loaded.
        keep: a function that is called with a loaded value and returns whether to store it. None stores every value.
        refresh: `IF_MISSING`, `UNLESS_LOADING` or `ALWAYS`.
        notice: called with a warning about the factory and its reason, in place of logging it.
    """

    context: ClientContext[Any]
    key: bytes
    factory: Callable[[], _T]
    options: LoadOptions
    tags: Callable[[], list[bytes] | None]
    keep: Callable[[Any], object] | None = None
    refresh: int = IF_MISSING
    notice: Callable[[str, Exception], object] | None = None

    @property
    def value(self) -> LoadId:
        """What is loaded, for other loads of this process."""
        return self.context.config.nameserver, self.key

    def warn(self, text: str, error: Exception) -> None:
        """Log a warning about the factory with the reason, once for each type of error; or give it to ``notice``."""
        if self.notice is not None:
            self.notice(text, error)
            return
        factory: Any = self.factory
        while isinstance(factory, partial):
            factory = factory.func
        name = f"{factory.__module__}.{getattr(factory, '__qualname__', type(factory).__name__)}"
        line = getattr(getattr(factory, "__code__", None), "co_firstlineno", 0)  # lambdas have the same name
        if _once.admit((text, name, line, type(error))):
            # The text of an error that is not ours may have the value in it.
            reason = str(error).rstrip(".") if isinstance(error, PyroCacheError) else type(error).__name__
            logger("pyrocache.client").warning("%s (%s): %s. This is logged once.", text, name, reason)


Filling: TypeAlias = tuple[bytes, int, NewFrame, LoadTimes, Tags, Deadline]
"""The arguments of `Backend.fill`."""


class LoadTask:
    """The task of loading a value.

    The factory runs in a ``with`` block that ends with `loaded`; `settle`, which may block, gives the outcome::

        with task:
            task.loaded(load.tags(), load.factory())
        return task.settle()

    The block suppresses an exception of the factory; `settle` raises it once the lease has ended. Any other exception,
    such as Ctrl-C, a cancellation, or what a signal handler raises, closes the connection, which ends the lease without
    waiting for the node.

    Args:
        load: the value to load.
        pinned: the connection that the lease was granted on, or in the asyncio client the `Waiter`; None for no lease,
            so that the value is not stored.
        token: the number of the lease.
        asynchronous: whether the factory may be awaited, so that it does not occupy its thread.

    Attributes:
        load, pinned, token: as given.
        backend: that of the client, also once the client is closed.
        live: the existing value, if this is an early refresh of it; else `MISSING`.
        stored: whether the node has stored the loaded value.
    """

    def __init__(
        self, load: Load[Any], pinned: Any = None, token: int = 0, *, asynchronous: bool = False
    ) -> None:
        self.load = load
        self.backend: Any = load.context.backend
        self.pinned = pinned
        self.token = token
        self.live: Any = MISSING
        self.stored = False
        self._asynchronous = asynchronous
        self._process = os.getpid()  # of the lease; a forked child has none
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        load, self._started_at = self.load, time.monotonic()
        thread = None if self._asynchronous else get_ident()
        ends_at = clock.now() + load.options.lease_seconds
        self._started = load_deadlock.begin(Mark(load.value, self.pinned is not None, ends_at, thread))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        load_deadlock.end(self._started)
        if isinstance(error, Exception) and not came_from_outside(error):
            self._error = error.with_traceback(users_frames(error.__traceback__) or error.__traceback__)
            return True
        if error is not None:
            self.drop()
        return False

    def loaded(self, tags: list[bytes] | None, value: Any) -> None:
        """Set the loaded value and its encoded tags. `settle` stores it unless ``keep`` returns false or fails."""
        self._load_seconds = time.monotonic() - self._started_at
        self._tags = tags
        self._value = value
        try:
            self._keep = self.load.keep is None or bool(self.load.keep(value))
        except Exception as error:  # of the user's code; the value must not be lost by it
            if came_from_outside(error):
                raise
            self._keep = False
            self.not_stored(error, "cache_if failed, so a loaded value was returned but not stored")

    def settle(self) -> Any:
        """Store the loaded value, or end the lease. Return the value, or raise the factory's exception.

        If the value is outdated by now, or cannot be stored, it is returned but not stored; the next caller loads.
        """
        __tracebackhide__ = True
        self._store() if self.to_store else self.abandon()
        return self.result()

    @property
    def to_store(self) -> bool:
        """Whether there is a loaded value that is to be stored."""
        return self._error is None and self._keep

    @property
    def leased(self) -> bool:
        """Whether this process had the lease, and it has not ended with its connection."""
        return self.pinned is not None and not self.pinned.closed

    def result(self) -> Any:
        """Return the value, or raise the factory's exception. To be called once, when the lease has ended."""
        __tracebackhide__ = True
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            if self.live is MISSING:
                raise error
            logger("pyrocache.client").warning(
                "A value was not refreshed early: loading it failed with %s.", type(error).__name__
            )
            return self.live
        finally:
            del error  # or this frame and its traceback would keep each other alive

    def drop(self) -> None:
        """End the lease by closing its connection, without waiting for the node."""
        if self.pinned is not None:
            self.pinned.drop()

    def filling(self) -> Filling | None:
        """Return the arguments of `Backend.fill` for the loaded value; None if there was no lease.

        Raises:
            SerializationError: the value does not pickle.
        """
        if self.pinned is None or self._process != os.getpid():
            return None
        context, key, _, options, *_ = self.load
        frame = context.codec.encode(key, self._value)
        ttl = jittered(options.ttl_seconds, options.ttl_jitter)
        times = (ttl, options.stale_seconds, self._load_seconds)
        return key, self.token, frame, times, self._tags, context.deadline()

    def filled(self, stored: bool) -> None:
        """End the use of the connection after a `fill`. ``stored``: its answer."""
        self.stored = stored
        if not stored:
            self.drop()  # if the key moved, its former owner may still hold the lease
        self.pinned.release()

    def _store(self) -> None:
        try:
            filling = self.filling()
            if filling is None:
                return
            stored = self.load.context.backend.fill(*filling)
        except (PyroCacheError, MemoryError) as error:
            # End the lease, or other callers would wait until it expires.
            self.drop() if isinstance(error, CacheUnavailable) else self.abandon()
            self.not_stored(error)
        except BaseException:
            self.drop()
            raise
        else:
            self.filled(stored)

    def not_stored(self, error: Exception, text: str = "A loaded value was returned but not stored") -> None:
        """Count a value that cannot be stored, and log the reason once."""
        self.load.context.count("loads_not_stored")
        self.load.warn(text, error)

    def abandon(self) -> None:
        """End the lease without storing a value, so that the next caller loads immediately."""
        if self.leased:
            self.backend.abandon(self.load.key, self.token, self.pinned)


class Found(NamedTuple):
    """The result of `find`: a value, or the task of loading it."""

    value: Any
    task: LoadTask | None = None


def get_or_set(load: Load[_T]) -> _T:
    """Return the value, and load it if there is none; see `PyroCacheClient.get_or_set`."""
    __tracebackhide__ = True  # debuggers, pytest and notebooks leave this frame out
    value, task = find(load, load.options.wait_seconds)
    if task is not None:
        try:
            with task:
                task.loaded(load.tags(), _no_coroutine(load.factory()))
            value = task.settle()
        except BaseException:  # also one that a signal handler raises just before the ``with``
            task.drop()
            raise
    return value  # type: ignore[no-any-return]


def find(load: Load[Any], wait_seconds: float | None) -> Found:
    """Return the value, or the task of loading it. Wait for another loader if there is one.

    Args:
        wait_seconds: how long to wait for another loader; None for no limit.

    Raises:
        WaitTimeout: another caller was still loading when ``wait_seconds`` were over.
        CacheUnavailable: if ``on_error`` is ``"raise"``.
        LoadDeadlock: the wait for another loader of this process cannot end.
    """
    begun = time.monotonic()
    try:
        try:
            if not load.refresh:
                found = _find_or_refresh_early(load) if load.options.early else _find(load)
                if found is not None:
                    return found
            return _wait_or_load(load, wait_seconds)
        except SerializationError as error:
            load.context.count("undecodable")
            load.warn("A stored value does not decode here and is loaded anew", error)
        if wait_seconds is not None:
            wait_seconds = max(0.0, wait_seconds - (time.monotonic() - begun))
        return _wait_or_load(load._replace(refresh=UNREADABLE), wait_seconds)
    except CacheUnavailable as error:
        # Either raises, or the value is loaded without a lease.
        load.context.missed(error, None)
    except SerializationError:
        # The one that another caller loaded meanwhile does not decode here either: the two processes know different
        # classes, and would replace each other's values forever. So this one is not stored.
        pass
    return Found(None, LoadTask(load))


def _find(load: Load[Any]) -> Found | None:
    """Return the value; None if there is none."""
    context = load.context
    frame = context.backend.get(load.key, context.deadline())
    return None if frame is None else Found(context.decode(load.key, frame))


def _readable(load: Load[Any], frame: Any = None) -> Found | None:
    """Return the value in ``frame``, by default the stored one; None if there is none or it does not decode."""
    try:
        return _find(load) if frame is None else Found(load.context.decode(load.key, frame))
    except SerializationError:
        return None


def _granted(load: Load[Any], task: LoadTask, frame: Any) -> Found:
    """Return the task of a lease that the node has granted, or the value if there is one by now that decodes."""
    if load.refresh == UNREADABLE:
        try:
            # Another caller may have replaced the value between the read and the request.
            found = _readable(load, frame)
        except BaseException:
            task.drop()
            raise
        if found is not None:
            task.abandon()
            return found
    return Found(None, task)


def _find_or_refresh_early(load: Load[Any]) -> Found | None:
    """Return the value, or the task of an early refresh if one is due and no other caller loads; None if no value."""
    context = load.context
    answer = context.backend.get_with_times(load.key, context.deadline())
    if answer is None:
        return None
    frame, remaining, load_seconds = answer
    found = Found(context.decode(load.key, frame))
    if refresh_is_due(load.options.early, remaining, load_seconds):
        # The value exists, so a failure to get the lease is not an error of this call.
        with suppress(PyroCacheError):
            task = _wait_or_load(load._replace(refresh=UNLESS_LOADING), 0.0).task
            if task is not None:
                task.live = found.value
                return Found(None, task)
    return found


def refresh_is_due(
    early: float, remaining: Seconds, load_seconds: Seconds, dice: Callable[[], float] = random.random
) -> bool:
    """Return whether this caller is to refresh a value that expires in ``remaining`` seconds (None: never).

    ``load_seconds`` is the time that loading the value took. Implements XFetch:
    Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention" (VLDB 2015).
    """
    if not early or remaining is None or not load_seconds:
        return False
    return -load_seconds * early * math.log(1.0 - dice()) >= remaining  # dice() may be 0, but not 1


_LOOK: dict[int, Callable[[Load[Any]], Found | None]] = {IF_MISSING: _find, UNREADABLE: _readable}


def _wait_or_load(load: Load[Any], wait_seconds: float | None) -> Found:
    """Request the lease until the node grants it or has a value. Raises as `find`."""
    context: ClientContext = load.context
    key, refresh = load.key, load.refresh
    recursive = load_deadlock.is_loading(load.value)

    def ask(seconds: float, deadline: Deadline, pinned: Pinned) -> Pinned:
        return context.backend.lease(key, load.options.lease_seconds, seconds, refresh, deadline, pinned)

    with PinnedWait(context, ask, 0.0 if recursive else wait_seconds) as wait, Waiting(load.value) as waiting:
        while True:
            match wait.ask(waiting.poll_seconds()):
                case None:
                    pass
                case ["load", token, frame]:
                    return _granted(load, wait.give(LoadTask(load, wait.pinned, token)), frame)
                case ["value", frame, _, _] | ["stale", frame]:
                    return Found(context.decode(key, frame))
            # Load without a lease. Otherwise, there could be a deadlock: a factory would wait for its own lease, or for
            # a connection of a call that waits for this factory.
            if recursive or (wait.crowded and load_deadlock.loading.get()):
                return Found(None, LoadTask(load))
            # No request was sent, so look whether another caller has loaded the value meanwhile.
            if wait.pinned is None and refresh in _LOOK and (found := _LOOK[refresh](load)) is not None:
                return found
            if wait.is_over():
                # Keep the connection open: `wait` would close it because of the exception.
                wait.release()
                raise still_loading(wait_seconds)
            waiting.check()
            wait.pause()


def still_loading(wait_seconds: float | None) -> WaitTimeout:
    """Return the error of a caller whose wait for another loader has ended without a value."""
    return WaitTimeout(
        f"get_or_set failed: another caller was still loading the value after {wait_seconds or 0.0:g} s. "
        "Wait longer with wait_seconds, or take expired values meanwhile with stale_seconds."
    )


def _no_coroutine(value: _T) -> _T:
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError(
            "get_or_set takes a function that returns the value; for async def there is memoize, and the get_or_set "
            "of AsyncPyroCacheClient."
        )
    return value
