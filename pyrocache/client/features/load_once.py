"""Loading once: a value that is missing is loaded by one caller, wherever callers are; the others wait for it.

The node that owns a key grants a *lease* to load its value; see ``node/leases.py`` for what makes it void. It ends with
the connection that it was granted on, which the loader therefore keeps: when its process dies, the node sees the
connection end and has the next caller load at once. Who waits has a call under way that the node answers when there is
something to say, so nobody polls, and no thread of the node waits.

Waiting and loading have connections of their own, so they never keep an ordinary call waiting. When too many of these
are held, asking again every few milliseconds takes their place, and a factory that loads another value in turn does
so without a lease: callers never wait for each other's connections.

No thread is started here; ``coroutines.py`` is the same for coroutines.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import random
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from pyrocache.client.backend import MISSING, Core, Duration, Ttl
from pyrocache.client.codec import encode_value
from pyrocache.config import check_number, to_seconds, ttl_to_seconds
from pyrocache.errors import NodeUnavailable, PyroCacheError, RemoteError, WaitTimeout
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.net.pinned import PinnedConnection
from pyrocache.protocol import commands

log = logging.getLogger("pyrocache.client")

_T = TypeVar("_T")

LEG_SECONDS = 10.0
"""How long one call waits at most, and no longer than the client's timeout; then it is made again, lest a node that
vanished is waited for."""

IF_MISSING, IF_NOBODY_DOES, IN_ANY_CASE = range(3)
"""When to load: if there is no value, even if there is one unless another loads by now, or even then."""

_ABANDON_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.05
_NO_VIEW = 0

_under_way: ContextVar[frozenset[tuple[int, bytes]]] = ContextVar("pyrocache_loads", default=frozenset())
"""What is being loaded here, by router and key: a factory that asks for its own key must not wait for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a value is loaded and kept.

    Attributes:
        ttl_seconds: as `set` takes it, by now a number or None.
        stale_seconds: for how long, once expired, it is good enough while another one is loaded.
        early: XFetch's beta; 0 for no early refresh.
        wait_seconds: how long to wait for another loader; None: as long as it takes.
        lease_seconds: how long a loader may take before somebody else loads.
    """

    ttl_seconds: float | None = None
    stale_seconds: float = 0.0
    early: float = 0.0
    wait_seconds: float | None = None
    lease_seconds: float = 60.0


def checked_terms(
    *,
    ttl_seconds: Ttl,
    stale_seconds: Duration,
    early: float,
    wait_seconds: Duration | None,
    lease_seconds: Duration,
) -> Terms:
    """Terms as a user gives them. Raises `TypeError` or `ValueError` where that makes no sense."""
    check_number(early, "early")
    return Terms(
        ttl_seconds=ttl_to_seconds(ttl_seconds),
        stale_seconds=to_seconds(stale_seconds, "stale_seconds"),
        early=early,
        wait_seconds=None if wait_seconds is None else to_seconds(wait_seconds, "wait_seconds"),
        lease_seconds=to_seconds(lease_seconds, "lease_seconds", zero=False),
    )


class Load:
    """The task of loading a value: one calls `load`, or `begin`, `end`, and then `store`, `abandon` or `drop`.

    Args:
        core, key, terms: whose, the value's canonical key, and how it is kept.
        token: of the lease; None: there is none, and what is loaded is not stored.
        held: the connection that the lease ends with.
        live: the value that there is, if this is an early refresh of it.

    Attributes:
        live: as given.
    """

    __slots__ = ("_began", "_core", "_held", "_key", "_process", "_terms", "_token", "live")

    def __init__(
        self,
        core: Core,
        key: bytes,
        terms: Terms,
        token: int | None = None,
        held: PinnedConnection | None = None,
        live: Any = MISSING,
    ) -> None:
        self._core = core
        self._key = key
        self._terms = terms
        self._token = token
        self._held = held
        self.live = live
        self._process = os.getpid()  # of the lease; a forked child has none
        self._began = time.monotonic()

    def load(
        self,
        factory: Callable[[], _T],
        tags: Callable[[], list[bytes] | None],
        keep: Callable[[_T], object] | None = None,
    ) -> Any:
        """What ``factory`` returns, stored unless ``keep`` says no or it is outdated by now; or what it raises."""
        mark = self.begin()
        try:
            told = tags()
            value = factory()
            if inspect.iscoroutine(value):
                value.close()
                raise TypeError(
                    "get_or_set takes a function that returns the value; for async def there is memoize."
                )
            kept = keep is None or bool(keep(value))
        except Exception as error:
            self.abandon()
            if self.live is MISSING:
                raise
            return self.instead_of(error)
        except BaseException:
            self.drop()
            raise
        finally:
            self.end(mark)
        if kept:
            self.store(value, told)
        else:
            self.abandon()
        return value

    def begin(self) -> Token[frozenset[tuple[int, bytes]]]:
        """From now on time is taken, and what is called here can know that this value is being loaded; until `end`."""
        self._began = time.monotonic()
        return _under_way.set(_under_way.get() | {(id(self._core.router), self._key)})

    @staticmethod
    def end(mark: Token[frozenset[tuple[int, bytes]]]) -> None:
        """The loading that `begin` began has ended."""
        _under_way.reset(mark)

    def store(self, value: object, tags: list[bytes] | None = None) -> bool:
        """Store the loaded value; False when it was not, as it is outdated, or its node is away.

        Raises:
            SerializationError, ValueTooLarge: it cannot be stored; the next caller loads.
        """
        if self._token is None or self._process != os.getpid():
            return False
        seconds = time.monotonic() - self._began
        try:
            frame = encode_value(value)
            terms = self._terms
            stored = self._core.router.call(
                "fill",
                self._key,
                self._token,
                frame,
                terms.ttl_seconds,
                terms.stale_seconds,
                seconds,
                tags,
                deadline=Deadline(self._core.timeout),
                largest_value=len(frame),
            )
        except NodeUnavailable as error:
            self.drop()
            self._core.count("misses_on_error")
            log.warning("A value was loaded but not stored: %s", error)
            return False
        except Exception:
            self.abandon()
            if self._core.closed:  # while it was being loaded: the caller has the value all the same
                return False
            raise
        except BaseException:
            self.drop()
            raise
        if not stored:
            self.drop()  # if the key moved, its former owner may hold on to the lease
        self._give_back()
        return bool(stored)

    def abandon(self) -> None:
        """Give the lease back unused; the next caller loads at once."""
        if self._held is None or self._held.closed:
            return
        try:
            self._held.call(commands.ABANDON, (_NO_VIEW, self._key, self._token), Deadline(_ABANDON_SECONDS))
        except (Refused, Unavailable):
            self.drop()
        self._give_back()

    def drop(self) -> None:
        """The same without asking anybody, and so without waiting: its connection is closed."""
        if self._held is not None:
            self._held.drop()

    def instead_of(self, error: Exception) -> Any:
        """The live value that this was to refresh early: it is good until it expires."""
        log.warning("A value was not refreshed early: loading it failed with %s.", type(error).__name__)
        return self.live

    def _give_back(self) -> None:
        if self._held is not None:
            self._held.release()


class Found(NamedTuple):
    """What `find` has found: a value, or that it is the caller's task to load it."""

    value: Any
    load: Load | None


def get_or_set(
    core: Core,
    key: bytes,
    factory: Callable[[], _T],
    terms: Terms,
    tags: Callable[[], list[bytes] | None],
    *,
    keep: Callable[[_T], object] | None = None,
    refresh: int = IF_MISSING,
) -> _T:
    """The value under a canonical key, loaded if need be; see `PyroCacheClient.get_or_set`.

    Args:
        tags: makes the value's encoded tags, if it is to be loaded.
        keep: whether a value that was loaded is to be stored.
        refresh: when to load although there is a value.
    """
    value, load = find(core, key, terms, refresh=refresh)
    result: _T = value if load is None else load.load(factory, tags, keep)
    return result


def find(
    core: Core,
    key: bytes,
    terms: Terms,
    *,
    refresh: int = IF_MISSING,
    given_up: Callable[[], bool] = lambda: False,
) -> Found:
    """The value, waiting for another loader if there is one; or the task of loading it.

    Args:
        refresh: when to load although there is a value.
        given_up: looked at from time to time while waiting; True ends it as if the time were over.

    Raises:
        WaitTimeout: another one was still loading when ``wait_seconds`` were over.
        NodeUnavailable: if ``on_error`` is ``"raise"``.
    """
    try:
        live = None if refresh else _look(core, key, terms)
        if live is not None and not live.is_due(terms.early):
            return Found(core.decode(live.frame), None)
        if live is not None:
            return _refresh_early(core, key, terms, core.decode(live.frame))
        return _Search(core, key, terms, refresh, given_up).run()
    except NodeUnavailable as error:
        core.missed(error, None)
        return Found(None, Load(core, key, terms))


class _Live(NamedTuple):
    """A value that there is, with how long it will be, and how long loading it took."""

    frame: Any
    remaining: float | None = None
    load_seconds: float | None = None

    def is_due(self, early: float, dice: Callable[[], float] = random.random) -> bool:
        """Whether it is this caller's turn to refresh the value, which is about to expire.

        Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention" (VLDB 2015).
        """
        if not early or self.remaining is None or not self.load_seconds:
            return False
        return -self.load_seconds * early * math.log(1.0 - dice()) >= self.remaining


def _look(core: Core, key: bytes, terms: Terms) -> _Live | None:
    """The value, if there is one: most callers find it, and this is the fastest call that there is."""
    if not terms.early:
        frame = core.router.call("get", key, deadline=core.deadline())
        return None if frame is None else _Live(frame)
    answer = core.router.call("get_with_times", key, deadline=core.deadline())
    if answer is None:
        return None
    if type(answer) is not list or len(answer) != 3:
        raise RemoteError("A node answered get_with_times with what is no answer to it.")
    return _Live(*answer)


def _refresh_early(core: Core, key: bytes, terms: Terms, value: Any) -> Found:
    """The task of loading a new value, or the one that there is if somebody else loads already."""
    try:
        load = _Search(core, key, terms, IF_NOBODY_DOES, lambda: True).run().load
    except (PyroCacheError, ConnectionError):
        return Found(value, None)
    if load is None:
        return Found(value, None)
    load.live = value
    return Found(None, load)


class _Search:
    """One call of `find`, and the connection that it waits over."""

    __slots__ = ("_core", "_give_up_at", "_given_up", "_held", "_key", "_pause", "_refresh", "_terms")

    def __init__(
        self, core: Core, key: bytes, terms: Terms, refresh: int, given_up: Callable[[], bool]
    ) -> None:
        self._core = core
        self._key = key
        self._terms = terms
        self._refresh = refresh
        self._given_up = given_up
        self._give_up_at = math.inf if terms.wait_seconds is None else time.monotonic() + terms.wait_seconds
        self._held: PinnedConnection | None = None
        self._pause = _FIRST_PAUSE_SECONDS

    def run(self) -> Found:
        """The outcome. Raises as `find`."""
        try:
            return self._run()
        except BaseException:
            if self._held is not None:
                self._held.drop()
            raise

    def _run(self) -> Found:
        core, terms = self._core, self._terms
        recursive = (id(core.router), self._key) in _under_way.get()
        while True:
            asked_at = time.monotonic()
            leg = min(LEG_SECONDS, core.timeout)
            patience = 0.0 if recursive else max(0.0, min(leg, self._give_up_at - asked_at))
            deadline = core.deadline(core.timeout + patience)
            self._held = core.router.hold(
                "lease",
                self._key,
                terms.lease_seconds,
                patience,
                self._refresh,
                deadline=deadline,
                held=self._held,
            )
            if self._held is None:  # too many wait here: ask without waiting
                self._held = core.router.hold(
                    "lease",
                    self._key,
                    terms.lease_seconds,
                    0.0,
                    self._refresh,
                    deadline=deadline,
                    waits=False,
                )
                if self._held is not None and self._held.answer is None and not recursive:
                    self._end()
            if self._held is None:
                found = self._without_lease()
                if found is not None:
                    return found
            else:
                answer = self._held.answer
                if answer is not None:
                    return self._understood(answer)
                if recursive:
                    self._end()
                    return Found(None, Load(core, self._key, terms))
                if time.monotonic() - asked_at < min(_FIRST_PAUSE_SECONDS, patience):
                    time.sleep(_FIRST_PAUSE_SECONDS)  # whatever made the node answer at once, do not spin
            if time.monotonic() >= self._give_up_at or self._given_up():
                self._end()
                raise WaitTimeout(
                    f"get_or_set failed: another caller was still loading the value after {terms.wait_seconds:g} s. "
                    "Wait longer with wait_seconds, or take expired values meanwhile with stale_seconds."
                    if terms.wait_seconds is not None
                    else "get_or_set was given up while another caller was loading the value."
                )

    def _understood(self, answer: Any) -> Found:
        held = self._held
        assert held is not None
        kind, *told = answer if type(answer) is list and answer else [None]
        if kind == "load" and len(told) == 2:
            self._held = None
            return Found(None, Load(self._core, self._key, self._terms, told[0], held))
        self._end()
        if (kind, len(told)) not in (("value", 3), ("stale", 1)):
            raise RemoteError(f"{held.member.name} answered lease with what is no answer to it.")
        return Found(self._core.decode(told[0]), None)

    def _without_lease(self) -> Found | None:
        """What to do while as many connections are held as may be: look whether there is a value by now."""
        live = _look(self._core, self._key, self._terms)
        if live is not None and self._refresh == IF_MISSING:
            return Found(self._core.decode(live.frame), None)
        if _under_way.get():
            return Found(
                None, Load(self._core, self._key, self._terms)
            )  # others may be waiting for this thread
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        return None

    def _end(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None
