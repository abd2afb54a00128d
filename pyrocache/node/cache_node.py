"""`CacheNode`: the methods that clients call, the same under our transport and under a stock Pyro5 daemon.

Owns the store and its lock, has every argument checked (a peer can send anything) and the view that the request was
routed with. Values and keys are opaque bytes; nothing here unpickles. Every method may run on any thread. Those in
`CacheNode.CHEAP` hold the lock briefly and suit an I/O thread; the others walk over entries, in slices between which
the lock is free.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, ClassVar, TypeVar

from Pyro5.errors import PyroError
from Pyro5.server import expose

from pyrocache.cluster.integers import pack_int, unpack_int
from pyrocache.cluster.routing import ClusterView
from pyrocache.cluster.wire import (
    BAD_REQUEST,
    BATCH_BYTES,
    MAX_BATCH,
    MAX_KEY_BYTES,
    NOT_AN_INT,
    OVERLOADED,
    STALE_VIEW,
    VALUE_TOO_LARGE,
)
from pyrocache.config import DEFAULT_MAX_VALUE_BYTES
from pyrocache.errors import ValueTooLarge
from pyrocache.node.arguments import (
    check_batch,
    check_condition,
    check_int,
    check_key,
    check_keys,
    check_namespace,
    check_seconds,
    check_span,
    check_tag,
    check_tags,
    check_ttl,
    check_ttl_or_keep,
    refusal,
)
from pyrocache.node.entries import Value, entry_cost
from pyrocache.node.holdings import Full, Tokens
from pyrocache.node.later import Later, Peer
from pyrocache.node.leases import IF_MISSING, IF_NOBODY_DOES, IN_ANY_CASE, Answer, Leases
from pyrocache.node.locks import Locks
from pyrocache.node.namespaces import NAMESPACE_OVERHEAD
from pyrocache.node.store import Condition, Found, Store

_SLICE = 500
_PAGES_A_CALL = 64  # of a scan that finds little
_MOST_NAMESPACES = 500  # whose figures are told
_MOST_HOLDERS = 2**20
_TAGS_SLACK = 64 * 1024  # more than all tags of an entry take beside their names
_KEPT_IN_MESSAGE = 2**20  # smaller values are copied: a message of their own would take more memory pages
_NO_VIEW = 0

_Method = TypeVar("_Method", bound=Callable[..., Any])


def exposed(method: _Method) -> _Method:
    """Pyro5's ``expose``, for the type checker."""
    expose(method)
    return method


class CacheNode:
    """One node's share of the cache, as a Pyro5 remote object.

    Every data method takes the id of the view that the caller routed with, or 0 for no check, and refuses with
    `STALE_VIEW` and its own members when they differ.

    Args:
        store: the entries.
        name: ``cache.node.N``.
        incarnation: tells this start of the node from the others.
        max_value_bytes: the largest value frame that is taken.
        gauges: further figures for `stats`.
        on_stale: called, on any thread, when a caller holds another view than this node.
        on_reset: called when figures are to be counted anew.
        clock, wall_clock: monotonic seconds, and those since the epoch.
    """

    CHEAP = frozenset(
        (
            *("get", "set", "put", "setdefault", "get_with_version", "incr"),
            *("delete", "pop", "contains", "ttl", "touch", "fill", "abandon", "renew", "release"),
            *("get_many", "set_many", "delete_many", "touch_many"),
            *("clear", "invalidate_tag", "ping", "members", "stats", "reset_stats"),
        )
    )

    WAITING: ClassVar[dict[str, str]] = {"lease": "begin_lease", "acquire": "begin_acquire"}
    """Methods that may wait, each with the one that begins it; see `Dispatcher`."""

    def __init__(
        self,
        store: Store,
        *,
        name: str = "cache.node.1",
        incarnation: str = "",
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
        gauges: Callable[[], dict[str, Any]] = dict,
        on_stale: Callable[[], None] = lambda: None,
        on_reset: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_value_bytes = max_value_bytes
        self._surely_fits = min(max_value_bytes, store.max_bytes - MAX_KEY_BYTES - 1024)  # with any key
        self._name = name
        self._incarnation = incarnation
        self._gauges = gauges
        self._on_stale = on_stale
        self._on_reset = on_reset
        self._clock = clock
        self._started = self._counted_since = clock()
        self._lock = threading.Lock()  # guards: _store, _leases, _locks, _view, _view_id, _admitted
        self._store = store
        tokens = Tokens(wall_clock)
        self._leases = Leases(tokens, clock=clock)
        self._leased = self._leases.by_key  # nearly always empty, and then there is nobody to tell
        self._locks = Locks(tokens, clock=clock)
        self._view: ClusterView | None = None
        self._view_id = _NO_VIEW
        self._admitted = True

    # Data: one key ---------------------------------------------------------------------------------------

    @exposed
    def get(self, view: int, key: bytes, touch_seconds: float | None = None) -> Value | None:
        """The value frame stored under ``key``, or None; with ``touch_seconds`` it expires so much later than now."""
        if type(key) is not bytes or not 0 < len(key) <= MAX_KEY_BYTES:
            check_key(key)
        if touch_seconds is not None:
            check_ttl(touch_seconds)
        with self._lock:
            if view != self._view_id or not self._admitted:
                self._check_view(view)
            value = self._store.get(key)
            if touch_seconds is not None and value is not None:
                self._store.touch(key, touch_seconds)
            return value

    @exposed
    def get_with_version(self, view: int, key: bytes) -> list[Any] | None:
        """The value frame and what tells this state of the entry from all others, or None."""
        check_key(key)
        with self._lock:
            self._check_view(view)
            found = self._store.get_with_version(key)
        return None if found is None else list(found)

    @exposed
    def set(self, view: int, key: bytes, value: Value, ttl_seconds: float | None = None) -> bool:
        """Store ``value`` for ``ttl_seconds``, or for good; True.

        A value that is the part of a message is kept as that part, if it is most of it, and is not to change.
        """
        if type(key) is not bytes or type(value) is not bytes or len(value) > self._surely_fits:
            check_key(key)
            value = self._checked(key, value, expires=ttl_seconds is not None)
        if not 0 < len(key) <= MAX_KEY_BYTES:
            check_key(key)
        if ttl_seconds is not None:
            check_ttl(ttl_seconds)
        with self._lock:
            if view != self._view_id or not self._admitted:
                self._check_view(view)
            self._store.set(key, value, ttl_seconds)
            if self._leased:
                self._settle(key, value)
        return True

    @exposed
    def put(
        self,
        view: int,
        key: bytes,
        value: Value,
        ttl_seconds: float | None = None,
        condition: Condition = None,
        tags: list[bytes] | None = None,
    ) -> bool:
        """Store ``value`` if the condition holds; whether it did.

        Args:
            ttl_seconds: `KEEP_TTL` keeps the entry's, and its tags if there are none here.
            condition: None, ``"absent"``, ``"present"`` or a version.
            tags: each with its namespace.
        """
        check_key(key)
        check_ttl_or_keep(ttl_seconds)
        check_condition(condition)
        check_tags(tags)
        value = self._checked(key, value, expires=ttl_seconds is not None)
        with self._lock:
            self._check_view(view)
            try:
                stored = self._store.put(key, value, ttl_seconds, condition=condition, tags=tags)
            except ValueTooLarge:
                raise self._no_room() from None
            if stored and self._leased:
                self._settle(key, value)
        return stored

    @exposed
    def setdefault(
        self, view: int, key: bytes, value: Value, ttl_seconds: float | None = None
    ) -> Value | None:
        """The value that is there; None if there was none, and ``value`` was stored."""
        check_key(key)
        check_ttl(ttl_seconds)
        value = self._checked(key, value, expires=ttl_seconds is not None)
        with self._lock:
            self._check_view(view)
            there = self._store.setdefault(key, value, ttl_seconds)
            if there is None and self._leased:
                self._settle(key, value)
        return there

    @exposed
    def incr(
        self, view: int, key: bytes, delta: bytes, default: bytes, ttl_seconds: float | None = None
    ) -> bytes:
        """Add to the int that is there, or to ``default``, which is then stored for ``ttl_seconds``; the sum.

        All are frames of ints. An entry that is there keeps its TTL and its tags.
        """
        check_key(key)
        check_ttl(ttl_seconds)
        more, begin = check_int(delta), check_int(default)
        with self._lock:
            self._check_view(view)
            try:
                total = self._store.change(key, lambda frame: self._sum(key, unpack_int(frame), more))
                if total is None:
                    total = self._sum(key, begin, more)
                    self._store.set(key, total, ttl_seconds)
            except ValueTooLarge:
                raise self._no_room() from None
            if self._leased:
                self._settle(key, total)
        return bytes(total)

    @exposed
    def delete(self, view: int, key: bytes) -> bool:
        """Remove the entry; whether there was one."""
        check_key(key)
        with self._lock:
            self._check_view(view)
            if self._leased:
                self._leases.void(key)
            return self._store.delete(key)

    @exposed
    def pop(self, view: int, key: bytes) -> Value | None:
        """Remove the entry and return its value, or None."""
        check_key(key)
        with self._lock:
            self._check_view(view)
            if self._leased:
                self._leases.void(key)
            return self._store.pop(key)

    @exposed
    def contains(self, view: int, key: bytes) -> bool:
        """Whether there is an entry; counts no hit and does not make it more recent."""
        check_key(key)
        with self._lock:
            self._check_view(view)
            return self._store.contains(key)

    @exposed
    def ttl(self, view: int, key: bytes) -> float | None:
        """Seconds until the entry expires, infinite when it never does, None when there is none."""
        check_key(key)
        with self._lock:
            self._check_view(view)
            return self._store.remaining(key)

    @exposed
    def touch(self, view: int, key: bytes, ttl_seconds: float | None) -> bool:
        """Have the entry expire so much later than now, or never; whether there is one."""
        check_key(key)
        check_ttl(ttl_seconds)
        with self._lock:
            self._check_view(view)
            return self._store.touch(key, ttl_seconds)

    # Data: many keys -------------------------------------------------------------------------------------

    @exposed
    def get_many(self, view: int, keys: list[bytes]) -> list[Value | None]:
        """The values of ``keys`` in their order, None for a miss.

        Ends early, after at least one, when the reply has become large: ask again for the rest.
        """
        check_keys(keys)
        with self._lock:
            self._check_view(view)
            return self._store.get_many(keys, BATCH_BYTES)

    @exposed
    def set_many(
        self,
        view: int,
        keys: list[bytes],
        values: list[bytes],
        ttl_seconds: float | None = None,
        tags: list[bytes] | None = None,
    ) -> int:
        """Store each of ``values`` under its key; their number. All are checked before any is stored."""
        check_keys(keys)
        check_batch(values)
        check_ttl(ttl_seconds)
        check_tags(tags)
        if len(keys) != len(values):
            raise refusal(BAD_REQUEST, "There are as many values as keys.")
        self._check_values(keys, values, expires=ttl_seconds is not None, tags=tags or ())
        with self._lock:
            self._check_view(view)
            if not tags:
                self._store.set_many(keys, values, ttl_seconds)
            else:
                for key, value in zip(keys, values, strict=True):
                    self._store.put(key, value, ttl_seconds, tags=tags)
            if self._leased:
                for key, value in zip(keys, values, strict=True):
                    self._settle(key, value)
        return len(keys)

    @exposed
    def delete_many(self, view: int, keys: list[bytes]) -> int:
        """Remove the entries; how many there were."""
        check_keys(keys)
        with self._lock:
            self._check_view(view)
            if self._leased:
                for key in keys:
                    self._leases.void(key)
            return sum(map(self._store.delete, keys))

    @exposed
    def touch_many(self, view: int, keys: list[bytes], ttl_seconds: float | None) -> int:
        """`touch` each of ``keys``; how many there are."""
        check_keys(keys)
        check_ttl(ttl_seconds)
        with self._lock:
            self._check_view(view)
            return sum(self._store.touch(key, ttl_seconds) for key in keys)

    # Loading once ----------------------------------------------------------------------------------------

    @exposed
    def lease(
        self, view: int, key: bytes, lease_seconds: float, wait_seconds: float, refresh: int = IF_MISSING
    ) -> Answer | None:
        """The value under ``key``, or leave to load it, waiting for another loader first.

        Args:
            lease_seconds: after which somebody else may load it.
            wait_seconds: how long to wait at most.
            refresh: when the caller wants to load it: 0 if there is no value; 1 even if there is, unless another one
                does by now; 2 even then, and what that one has loaded is not stored.

        Returns:
            ``["value", frame, seconds left or None, seconds that loading took or None]``, ``["stale", frame]`` while
            another refreshes it, ``["load", token, frame or None]`` for the loader, None: ask again, or give up.
        """
        begun = self.begin_lease(Peer(), view, key, lease_seconds, wait_seconds, refresh)
        answer: Answer | None = _awaited(begun, self._clock)
        return answer

    @exposed
    def fill(
        self,
        view: int,
        key: bytes,
        token: int,
        value: Value,
        ttl_seconds: float | None = None,
        stale_seconds: float = 0.0,
        load_seconds: float = 0.0,
        tags: list[bytes] | None = None,
    ) -> bool:
        """Store what the holder of a lease has loaded; False when it is outdated, or another one loads by now."""
        check_key(key)
        check_ttl(ttl_seconds)
        check_tags(tags)
        check_seconds(stale_seconds)
        check_seconds(load_seconds)
        value = self._checked(key, value, expires=ttl_seconds is not None)
        with self._lock:
            self._check_view(view)
            if not self._leases.accepts(key, token, tags or ()):
                return False
            try:
                self._store.put(
                    key, value, ttl_seconds, tags=tags, stale_seconds=stale_seconds, load_seconds=load_seconds
                )
            except ValueTooLarge:
                raise self._no_room() from None
            self._settle(key, value, load_seconds)
        return True

    @exposed
    def abandon(self, view: int, key: bytes, token: int) -> bool:
        """Give a lease back unused: whoever waits first becomes the loader. False if it was not held any more."""
        check_key(key)
        with self._lock:
            self._check_view(view)
            return self._leases.abandon(key, token)

    def begin_lease(
        self,
        peer: Peer,
        view: int,
        key: bytes,
        lease_seconds: float,
        wait_seconds: float,
        refresh: int = IF_MISSING,
    ) -> Answer | Later | None:
        """`lease`, without blocking, for the peer whose connection the lease is to end with."""
        check_key(key)
        lease_seconds, wait_seconds = check_span(lease_seconds, above=0.0), check_span(wait_seconds)
        if refresh not in (IF_MISSING, IF_NOBODY_DOES, IN_ANY_CASE):
            raise refusal(BAD_REQUEST, "What to refresh is 0, 1 or 2.")
        peer.on_close(_Freed(self, peer))  # not under the lock, which that takes
        with self._lock:
            self._check_view(view)
            try:
                return self._leases.request(
                    key,
                    peer,
                    self._store.lookup(key),
                    lease_seconds=lease_seconds,
                    wait_seconds=wait_seconds,
                    refresh=refresh,
                )
            except Full as error:
                raise refusal(OVERLOADED, str(error)) from None

    # Locks -----------------------------------------------------------------------------------------------

    @exposed
    def acquire(
        self, view: int, name: bytes, limit: int, ttl_seconds: float, wait_seconds: float
    ) -> int | None:
        """Hold ``name``, with at most ``limit`` - 1 others, until `release` or for ``ttl_seconds``.

        Returns:
            The holder's token, larger than all before it; None: ask again, or give up.
        """
        begun = self.begin_acquire(Peer(), view, name, limit, ttl_seconds, wait_seconds)
        token: int | None = _awaited(begun, self._clock)
        return token

    @exposed
    def renew(self, view: int, name: bytes, token: int, ttl_seconds: float) -> bool:
        """Hold it for ``ttl_seconds`` from now; False if it is not held with this token any more."""
        check_key(name)
        ttl_seconds = check_span(ttl_seconds, above=0.0)
        with self._lock:
            self._check_view(view)
            return self._locks.renew(name, token, ttl_seconds)

    @exposed
    def release(self, view: int, name: bytes, token: int) -> bool:
        """Hold it no more; False if it was not held with this token any more."""
        check_key(name)
        with self._lock:
            self._check_view(view)
            return self._locks.release(name, token)

    def begin_acquire(
        self, peer: Peer, view: int, name: bytes, limit: int, ttl_seconds: float, wait_seconds: float
    ) -> int | Later | None:
        """`acquire`, without blocking, for the peer whose connection it is to end with."""
        check_key(name)
        if type(limit) is not int or not 1 <= limit <= _MOST_HOLDERS:
            raise refusal(BAD_REQUEST, f"A limit is an int from 1 to {_MOST_HOLDERS}.")
        ttl_seconds, wait_seconds = check_span(ttl_seconds, above=0.0), check_span(wait_seconds)
        peer.on_close(_Freed(self, peer))  # not under the lock, which that takes
        with self._lock:
            self._check_view(view)
            try:
                return self._locks.acquire(
                    name, peer, limit=limit, ttl_seconds=ttl_seconds, wait_seconds=wait_seconds
                )
            except Full as error:
                raise refusal(OVERLOADED, str(error)) from None

    # A whole namespace -----------------------------------------------------------------------------------

    @exposed
    def scan(self, namespace: bytes, prefix: bytes, cursor: int = 0, limit: int = MAX_BATCH) -> list[Any]:
        """Some keys of a namespace that begin with ``prefix``, as ``[cursor for the next, or 0 at the end, keys]``.

        Over all cursors, each key that is there from beginning to end comes exactly once. There may be no keys though
        the end has not come. Nothing is remembered here between two calls.
        """
        check_namespace(namespace)
        check_namespace(prefix)
        if type(cursor) is not int or not 0 <= cursor < 2**64:
            raise refusal(BAD_REQUEST, "A cursor is what the last page came with, or 0.")
        if type(limit) is not int or not 1 <= limit <= MAX_BATCH:
            raise refusal(BAD_REQUEST, f"A limit is an int from 1 to {MAX_BATCH}.")
        found: list[bytes] = []
        room = BATCH_BYTES
        for _ in range(_PAGES_A_CALL):
            keys, cursor = self._page(namespace, prefix, cursor, min(limit - len(found), _SLICE), room)
            found += keys
            room -= sum(map(len, keys))
            if not cursor or len(found) >= limit or room <= 0:
                break
        return [cursor, found]

    @exposed
    def count(self, namespace: bytes) -> int:
        """Entries of the namespace."""
        check_namespace(namespace)
        with self._lock:
            space = self._store.namespaces.get(namespace)
            if space is None or not space.unsure:
                return space.count if space is not None else 0
        keys, cursor = self._page(namespace, namespace, 0)
        total = len(keys)
        while cursor:
            keys, cursor = self._page(namespace, namespace, cursor)
            total += len(keys)
        return total

    @exposed
    def clear(self, namespace: bytes) -> int:
        """Remove every entry of the namespace; how many there were.

        That takes no longer for many than for one. Those that had expired and were not swept yet are counted too.
        """
        check_namespace(namespace)
        with self._lock:
            self._leases.void_all(namespace)
            return self._store.clear(namespace)

    @exposed
    def invalidate_tag(self, tag: bytes) -> int:
        """Remove every entry that has the tag; how many there were. That takes no longer for many than for one."""
        check_tag(tag)
        with self._lock:
            self._leases.invalidate(tag)
            return self._store.invalidate(tag)

    # The node --------------------------------------------------------------------------------------------

    @exposed
    def stats(self) -> dict[str, Any]:
        """Figures of this node, by name; counters count since its start or `reset_stats`."""
        with self._lock:
            store = self._store
            figures: dict[str, Any] = {
                "hits": store.hits,
                "misses": store.misses,
                **store.counters.as_dict(),
                "entries": len(store),
                "bytes": store.bytes,
                "max_bytes": store.max_bytes,
                "policy": store.policy.name,
                "namespaces": self._namespaces(),
                "leases": len(self._leased),
                "loads": self._leases.granted,
                "locks": self._locks.held,
                "waiting": self._leases.waiting + self._locks.waiting,
            }
        now = self._clock()
        return {
            **figures,
            "uptime_seconds": now - self._started,
            "counted_seconds": now - self._counted_since,
            "pid": os.getpid(),
            **self._gauges(),
        }

    @exposed
    def reset_stats(self) -> bool:
        """Count everything from 0 on again; True."""
        with self._lock:
            self._store.reset_counters()
            self._counted_since = self._clock()
        self._on_reset()
        return True

    @exposed
    def ping(self, view: int = _NO_VIEW) -> dict[str, Any]:
        """Who answers: ``name``, ``incarnation`` and ``serving`` (False once it is leaving)."""
        if view not in (_NO_VIEW, self._view_id):
            self._on_stale()
        current = self._view
        return {
            "name": self._name,
            "incarnation": self._incarnation,
            "serving": current is None or self._name in current,
        }

    @exposed
    def members(self) -> list[list[Any]]:
        """The view as this node holds it: ``[name, host, port, weight, incarnation, socket path]`` each."""
        return _as_lists(self._view)

    # For the process that the node lives in; not exposed -------------------------------------------------

    def adopt(self, view: ClusterView) -> None:
        """Serve under ``view`` from now on, and drop what no longer belongs here.

        Returns when all of that is gone. Until the next call of this method no caller can reach those entries, and
        afterwards nothing is left that could come back, outdated, with a later view.
        """
        with self._lock:
            changed = view.id != self._view_id
            self._view, self._view_id = view, view.id
            if changed:
                self._forget(lambda key: not self._owns(view, key))
        if changed:
            for space in self._prefixes():
                self._drop_foreign(space, view)

    def redirect(self, view: ClusterView) -> None:
        """Refuse every caller from now on, and tell it ``view``: this node is leaving."""
        with self._lock:
            self._view, self._view_id, self._admitted = view, view.id, False
            self._forget(lambda key: True)

    def set_admitted(self, admitted: bool) -> None:
        """Whether to serve callers at all: not before the other nodes know of this one.

        One that served earlier, and left again before another node had noticed it, would leave that one with entries
        that are older than those it took along.
        """
        with self._lock:
            self._admitted = admitted
            if not admitted:
                self._forget(lambda key: True)

    def forget_everything(self) -> None:
        """Drop all entries: other nodes may have acted in this one's place."""
        with self._lock:
            self._forget(lambda key: True)
        for space in self._prefixes():
            self.clear(space)

    def sweep(self) -> bool:
        """Free some expired entries; whether there may be more."""
        with self._lock:
            return self._store.sweep(_SLICE)

    def free_held_by(self, peer: Peer) -> None:
        """Free the leases and locks of a connection that is closed."""
        with self._lock:
            self._leases.free(peer)
            self._locks.free(peer)

    # Inside ----------------------------------------------------------------------------------------------

    def _settle(self, key: bytes, value: Value, load_seconds: float | None = None) -> None:
        """Tell those who wait for ``key``, which has a new value, under the lock. Only while there are leases."""
        if key in self._leased:
            seconds = self._store.remaining(key)
            self._leases.settle(key, Found(value, remaining=seconds or 0.0, load_seconds=load_seconds))

    def _forget(self, belongs_elsewhere: Callable[[bytes], bool]) -> None:
        """Refuse whoever waits for what other nodes look after from now on."""
        error = self._stale_view()
        self._leases.forget(belongs_elsewhere, error)
        self._locks.forget(belongs_elsewhere, error)

    def _stale_view(self) -> PyroError:
        return refusal(
            STALE_VIEW, "The request was routed with another view of the nodes.", _as_lists(self._view)
        )

    def _check_view(self, view: int) -> None:
        if type(view) is not int:
            raise refusal(BAD_REQUEST, "A view is given by its id.")
        if view == _NO_VIEW:
            return
        if not self._admitted or self._view_id not in (view, _NO_VIEW):
            self._on_stale()
            raise self._stale_view()

    def _checked(self, key: bytes, value: Any, *, expires: bool) -> Value:
        """``value``, as it is to be kept."""
        if type(value) is not bytes and type(value) is not memoryview:
            raise refusal(BAD_REQUEST, "A value is bytes.")
        if len(value) > self.max_value_bytes:
            raise refusal(
                VALUE_TOO_LARGE, f"{self._name} takes values of up to {self.max_value_bytes} bytes."
            )
        if entry_cost(key, value, expires=expires) + NAMESPACE_OVERHEAD > self._store.max_bytes:
            raise self._no_room()
        if type(value) is memoryview and not _is_most_of_its_message(value):
            value = bytes(value)
        kept: Value = value
        return kept

    def _no_room(self) -> PyroError:
        return refusal(
            VALUE_TOO_LARGE,
            f"the value does not fit into its {self._store.max_bytes} bytes of memory; start nodes with more.",
        )

    def _check_values(
        self, keys: list[bytes], values: list[Any], *, expires: bool, tags: Collection[bytes]
    ) -> None:
        if not set(map(type, values)) <= {bytes} or max(map(len, values), default=0) > self._surely_fits:
            for key, value in zip(keys, values, strict=True):
                self._checked(key, value, expires=expires)
        if tags and values:
            most = max(map(len, keys)) + max(map(len, values)) + sum(map(len, tags)) + _TAGS_SLACK
            if most > self._store.max_bytes:
                raise self._no_room()

    def _sum(self, key: bytes, number: int | None, delta: int) -> bytes:
        if number is None:
            raise refusal(NOT_AN_INT, "What is stored there is no int.")
        total = pack_int(number + delta)
        self._checked(key, total, expires=True)
        return total

    def _namespaces(self) -> list[list[Any]]:
        spaces = [space for space in self._store.namespaces if space.count or space.hits or space.misses]
        if len(spaces) > _MOST_NAMESPACES:
            spaces = heapq.nlargest(_MOST_NAMESPACES, spaces, key=lambda space: space.hits + space.misses)
        return [[space.prefix, space.hits, space.misses, space.count] for space in spaces]

    def _prefixes(self) -> list[bytes]:
        with self._lock:
            return [space.prefix for space in self._store.namespaces]

    def _page(
        self, namespace: bytes, prefix: bytes, cursor: int, limit: int = _SLICE, room: int = BATCH_BYTES
    ) -> tuple[list[bytes], int]:
        """Some keys, and the cursor behind them, 0 at the end."""
        with self._lock:
            page = self._store.page(namespace, prefix, cursor, limit, room)
        time.sleep(0)  # lets a waiting I/O thread have the interpreter
        return page

    def _owns(self, view: ClusterView, key: bytes) -> bool:
        return bool(view.members) and view.owner(key).name == self._name

    def _drop_foreign(self, namespace: bytes, view: ClusterView) -> None:
        """Remove what belongs to other nodes."""
        cursor = 0
        while True:
            with self._lock:
                keys, cursor = self._store.page(namespace, namespace, cursor, _SLICE, BATCH_BYTES)
                for key in keys:
                    if not self._owns(view, key):
                        self._store.discard(key)
            if not cursor:
                return
            time.sleep(0)


def _as_lists(view: ClusterView | None) -> list[list[Any]]:
    members = view.members if view is not None else ()
    return [[m.name, m.host, m.port, m.weight, m.incarnation, m.socket_path] for m in members]


def _is_most_of_its_message(value: memoryview) -> bool:
    return len(value) >= _KEPT_IN_MESSAGE and 2 * len(value) >= len(value.obj)  # type: ignore[arg-type]


class _Freed:
    """Frees what a peer holds, once it is called; two of the same peer are equal, so that it is kept once."""

    __slots__ = ("_node", "_peer")

    def __init__(self, node: CacheNode, peer: Peer) -> None:
        self._node = node
        self._peer = peer

    def __call__(self) -> None:
        self._node.free_held_by(self._peer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Freed) and other._peer is self._peer and other._node is self._node

    def __hash__(self) -> int:
        return id(self._peer)


def _awaited(result: Any, clock: Callable[[], float]) -> Any:
    """A result, waiting for it where it is made later: under a daemon with a thread for each connection."""
    return result.wait(clock) if isinstance(result, Later) else result
