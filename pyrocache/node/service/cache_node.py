"""`CacheNode`: the remote object, with one method for each command of `pyrocache.protocol.commands`.

Composes the store, the coordination service (leases and locks), the request guard and the metrics. Checks every
argument, since a peer can send anything, then takes the node's lock, has the guard check the view that the request was
routed with, and calls the store. Values and keys are opaque bytes; nothing here unpickles.

Every method may run on any thread. Those that run inline hold the lock briefly; the others walk over entries in slices
between which the lock is free. Every change that a caller asks for goes through `CacheNode._apply`; only `set`, and
`get` with ``touch_seconds``, repeat its few lines for speed. With replicas, this is where mutations would be copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pyrocache.config import DEFAULT_MAX_VALUE_BYTES
from pyrocache.errors import ValueTooLarge
from pyrocache.node.coordination.leases import Answer, value_answer
from pyrocache.node.service import validation
from pyrocache.node.service.coordination import Coordination
from pyrocache.node.service.exposing import exposed, forwarded
from pyrocache.node.service.guard import NO_VIEW, RequestGuard
from pyrocache.node.service.metrics import NodeMetrics
from pyrocache.node.service.ownership import Ownership
from pyrocache.node.service.validation import ValueLimits
from pyrocache.node.store.entry import Value
from pyrocache.node.store.mutation import Clear, InvalidateTag
from pyrocache.node.store.store import Condition, Store
from pyrocache.protocol.int_frame import pack_int, unpack_int
from pyrocache.protocol.limits import BATCH_BYTES, MAX_BATCH, MAX_KEY_BYTES
from pyrocache.protocol.refusals import BAD_REQUEST, NOT_AN_INT

SLICE = 500
"""Entries that are examined while the lock is held."""

_PAGES_PER_CALL = 16  # of a scan that finds little

_Result = TypeVar("_Result")


class CacheNode:
    """One node's share of the cache, as a Pyro5 remote object.

    Every data method takes the id of the view that the caller routed with, or 0 for no check.

    Args:
        store: the entries.
        guard: knows the node's name, its view and which partitions it serves; owns the node's lock.
        max_value_bytes: the largest value frame that is accepted.
        gauges: returns further figures for `stats`.
        on_reset: called when `reset_stats` is.
        clock: monotonic seconds.

    Attributes:
        ownership: tells the node of changes of the cluster.
    """

    def __init__(
        self,
        store: Store,
        guard: RequestGuard | None = None,
        *,
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
        gauges: Callable[[], dict[str, Any]] = dict,
        on_reset: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guard = RequestGuard() if guard is None else guard
        self._lock = self._guard.lock
        self._store = store
        self._limits = ValueLimits(max_value_bytes, store.max_bytes)
        self._coordination = Coordination(store, self._guard, clock)
        self._leased = self._coordination.leases.by_key  # nearly always empty; then there is nobody to tell
        self._metrics = NodeMetrics(store, self._coordination, self._lock, gauges, clock)
        self._on_reset = on_reset
        self.ownership = Ownership(store, self._coordination, self._guard)

    # One key ---------------------------------------------------------------------------------------------

    @exposed
    def get(self, view: int, key: bytes, touch_seconds: float | None = None) -> Value | None:
        """Return the value frame, or None. With ``touch_seconds``, set the time to live, counted from now."""
        if type(key) is not bytes or not 0 < len(key) <= MAX_KEY_BYTES:
            validation.check_key(key)
        if touch_seconds is not None:
            validation.check_ttl(touch_seconds)
        with self._lock:
            if view != self._guard.open_view:
                self._guard.check(view, (key,))
            value = self._store.get(key)
            if touch_seconds is not None and value is not None:
                self._store.touch(key, touch_seconds)
            return value

    @exposed
    def get_with_version(self, view: int, key: bytes) -> list[Any] | None:
        """Return the value frame and a number that no other state of the entry has, or None."""
        found = self._read(view, key, self._store.get_with_version)
        return None if found is None else list(found)

    @exposed
    def get_with_times(self, view: int, key: bytes) -> Answer | None:
        """Return ``[frame, seconds left or None, seconds that loading took or None]``, or None."""
        found = self._read(view, key, self._store.lookup)
        return None if found.value is None or found.stale else value_answer(found)[1:]

    @exposed
    def contains(self, view: int, key: bytes) -> bool:
        """Return whether there is an entry. Counts no hit and does not make the entry more recent."""
        return self._read(view, key, self._store.contains)

    @exposed
    def ttl(self, view: int, key: bytes) -> float | None:
        """Return the seconds until the entry expires, infinity if it never does, None if there is none."""
        return self._read(view, key, self._store.remaining)

    @exposed
    def set(self, view: int, key: bytes, value: Value, ttl_seconds: float | None = None) -> bool:
        """Store ``value`` for ``ttl_seconds`` (None: no expiry). Return True.

        A value that is most of a message is kept as that part of it, and must not change.
        """
        if type(key) is not bytes or type(value) is not bytes or len(value) > self._limits.surely_fits:
            validation.check_key(key)
            value = self._limits.accept(key, value, expires=ttl_seconds is not None)
        if not 0 < len(key) <= MAX_KEY_BYTES:
            validation.check_key(key)
        if ttl_seconds is not None:
            validation.check_ttl(ttl_seconds)
        with self._lock:  # the same as `_apply`, without its call
            if view != self._guard.open_view:
                self._guard.check(view, (key,))
            self._store.set(key, value, ttl_seconds)
            if self._leased:
                self._coordination.settle((key,))
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
        """Store ``value`` if the condition holds. Return whether it did.

        Args:
            ttl_seconds: `KEEP_TTL` keeps the entry's, and its tags if none are given.
            condition: None, ``"absent"``, ``"present"`` or a version.
            tags: each with its namespace.
        """
        validation.check_key(key)
        validation.check_ttl_or_keep(ttl_seconds)
        validation.check_condition(condition)
        validation.check_tags(tags)
        value = self._limits.accept(key, value, expires=ttl_seconds is not None)
        return self._apply(
            view,
            (key,),
            lambda store: store.put(key, value, ttl_seconds, condition=condition, tags=tags),
            settles=bool,
        )

    @exposed
    def setdefault(
        self, view: int, key: bytes, value: Value, ttl_seconds: float | None = None
    ) -> Value | None:
        """Return the value that is there. If there is none, store ``value`` and return None."""
        validation.check_key(key)
        validation.check_ttl(ttl_seconds)
        value = self._limits.accept(key, value, expires=ttl_seconds is not None)
        return self._apply(
            view,
            (key,),
            lambda store: store.setdefault(key, value, ttl_seconds),
            settles=lambda there: there is None,
        )

    @exposed
    def incr(
        self, view: int, key: bytes, delta: bytes, default: bytes, ttl_seconds: float | None = None
    ) -> bytes:
        """Add to the int that is there, or to ``default``, which is then stored for ``ttl_seconds``. Return the sum.

        All are frames of ints. An existing entry keeps its TTL and its tags.
        """
        validation.check_key(key)
        validation.check_ttl(ttl_seconds)
        increment, start = validation.check_int(delta), validation.check_int(default)

        def add(store: Store) -> Value:
            total = store.change(key, lambda frame: plus_increment(unpack_int(frame)))
            if total is None:
                total = plus_increment(start)
                store.set(key, total, ttl_seconds)
            return total

        def plus_increment(number: int | None) -> Value:
            if number is None:
                raise validation.refusal(NOT_AN_INT, "The value there is not an int.")
            return self._limits.accept(key, pack_int(number + increment), expires=True)

        return bytes(self._apply(view, (key,), add))

    @exposed
    def touch(self, view: int, key: bytes, ttl_seconds: float | None) -> bool:
        """Set the time to live, counted from now (None: no expiry). Return whether the key exists."""
        validation.check_key(key)
        validation.check_ttl(ttl_seconds)
        return self._apply(view, (key,), lambda store: store.touch(key, ttl_seconds), settles=lambda _: False)

    @exposed
    def delete(self, view: int, key: bytes) -> bool:
        """Remove the entry. Return whether there was one."""
        validation.check_key(key)
        return self._apply(view, (key,), lambda store: store.delete(key))

    @exposed
    def pop(self, view: int, key: bytes) -> Value | None:
        """Remove the entry and return its value, or None."""
        validation.check_key(key)
        return self._apply(view, (key,), lambda store: store.pop(key))

    # Many keys -------------------------------------------------------------------------------------------

    @exposed
    def get_many(self, view: int, keys: list[bytes]) -> list[Value | None]:
        """Return the values of ``keys`` in their order, None for a miss.

        Ends early, after at least one, when the reply has become large: ask again for the rest.
        """
        validation.check_keys(keys)
        with self._lock:
            self._guard.check(view, keys)
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
        """Store each of ``values`` under its key. Return their number. All are checked before any is stored."""
        validation.check_keys(keys)
        validation.check_batch(values)
        validation.check_ttl(ttl_seconds)
        validation.check_tags(tags)
        if len(keys) != len(values):
            raise validation.refusal(BAD_REQUEST, "There must be as many values as keys.")
        self._limits.check_all(keys, values, tags or (), expires=ttl_seconds is not None)

        def store_all(store: Store) -> None:
            if not tags:
                store.set_many(keys, values, ttl_seconds)
            else:
                for key, value in zip(keys, values, strict=True):
                    store.put(key, value, ttl_seconds, tags=tags)

        self._apply(view, keys, store_all)
        return len(keys)

    @exposed
    def delete_many(self, view: int, keys: list[bytes]) -> int:
        """Remove the entries. Return how many there were."""
        validation.check_keys(keys)
        return self._apply(view, keys, lambda store: sum(map(store.delete, keys)))

    @exposed
    def touch_many(self, view: int, keys: list[bytes], ttl_seconds: float | None) -> int:
        """Call `touch` for each of ``keys``. Return how many exist."""
        validation.check_keys(keys)
        validation.check_ttl(ttl_seconds)
        return self._apply(
            view,
            keys,
            lambda store: sum(store.touch(key, ttl_seconds) for key in keys),
            settles=lambda _: False,
        )

    # Leases and locks ------------------------------------------------------------------------------------

    lease = forwarded(Coordination.lease)
    begin_lease = forwarded(Coordination.begin_lease, remote=False)
    abandon = forwarded(Coordination.abandon)
    acquire = forwarded(Coordination.acquire)
    begin_acquire = forwarded(Coordination.begin_acquire, remote=False)
    renew = forwarded(Coordination.renew)
    release = forwarded(Coordination.release)

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
        """Store what the holder of a lease has loaded. Return False if it is outdated or the lease is lost."""
        validation.check_key(key)
        validation.check_ttl(ttl_seconds)
        validation.check_tags(tags)
        validation.check_seconds(stale_seconds)
        validation.check_seconds(load_seconds)
        validation.check_token(token)
        value = self._limits.accept(key, value, expires=ttl_seconds is not None)

        def store_loaded(store: Store) -> bool:
            return self._coordination.leases.accepts(key, token, tags or ()) and store.put(
                key, value, ttl_seconds, tags=tags, stale_seconds=stale_seconds, load_seconds=load_seconds
            )

        return self._apply(view, (key,), store_loaded, settles=bool)

    # A whole namespace -----------------------------------------------------------------------------------

    @exposed
    def scan(self, namespace: bytes, prefix: bytes, cursor: int = 0, limit: int = MAX_BATCH) -> list[Any]:
        """Return ``[next cursor, keys]``: some keys of a namespace that begin with ``prefix``. 0 is the end.

        Over all cursors, each key that exists throughout comes exactly once. A page may be empty before the end.
        """
        validation.check_namespace(namespace)
        validation.check_namespace(prefix)
        validation.check_cursor(cursor)
        validation.check_limit(limit, MAX_BATCH)
        found: list[bytes] = []
        room = BATCH_BYTES
        for _ in range(_PAGES_PER_CALL):
            with self._lock:
                page, cursor = self._store.page(
                    namespace, prefix, cursor, min(limit - len(found), SLICE), room
                )
            found += page
            room -= sum(map(len, page))
            if not cursor or len(found) >= limit or room <= 0:
                break
            time.sleep(0)  # let a waiting I/O thread have the interpreter
        return [cursor, found]

    @exposed
    def count(self, namespace: bytes, enough: int | None = None) -> int:
        """Return the number of entries of the namespace, or any number from ``enough`` up if it has as many."""
        validation.check_namespace(namespace)
        if enough is not None and (type(enough) is not int or enough < 1):
            raise validation.refusal(BAD_REQUEST, "What is enough is None or an int above 0.")
        total = cursor = 0
        while True:
            with self._lock:
                count, cursor = self._store.count(namespace, cursor)
            total += count
            if not cursor or (enough is not None and total >= enough):
                return total
            time.sleep(0)  # let a waiting I/O thread have the interpreter

    @exposed
    def clear(self, namespace: bytes) -> int:
        """Remove every entry of the namespace, in constant time. Return how many there were.

        Expired entries that have not been reclaimed yet are counted too.
        """
        validation.check_namespace(namespace)

        def clear(store: Store) -> int:
            self._coordination.leases.void_all(namespace)
            count: int = store.apply(Clear(namespace))
            return count

        return self._apply(NO_VIEW, (), clear)

    @exposed
    def invalidate_tag(self, tag: bytes) -> int:
        """Remove every entry that has the tag, in constant time. Return how many there were."""
        validation.check_tag(tag)

        def invalidate(store: Store) -> int:
            self._coordination.leases.invalidate(tag)
            count: int = store.apply(InvalidateTag(tag))
            return count

        return self._apply(NO_VIEW, (), invalidate)

    # The node --------------------------------------------------------------------------------------------

    @exposed
    def ping(self, view: int = NO_VIEW) -> dict[str, Any]:
        """Return ``name``, ``incarnation`` and ``serving`` (False once the node is leaving)."""
        return self._guard.ping(view)

    @exposed
    def members(self) -> list[list[Any]]:
        """Return the node's view: ``[name, host, port, weight, incarnation, socket path]`` each."""
        return self._guard.members()

    @exposed
    def stats(self) -> dict[str, Any]:
        """Return the figures of this node by name. Counters count since its start or `reset_stats`."""
        return self._metrics.collect()

    @exposed
    def reset_stats(self) -> bool:
        """Count everything from 0 on again. Return True."""
        self._metrics.reset()
        self._on_reset()
        return True

    def sweep(self) -> bool:
        """Free some expired entries. Return whether there may be more. Not exposed."""
        with self._lock:
            return self._store.reclaim(SLICE)

    # Inside ----------------------------------------------------------------------------------------------

    def _read(self, view: int, key: bytes, read: Callable[[bytes], _Result]) -> _Result:
        validation.check_key(key)
        with self._lock:
            if view != self._guard.open_view:
                self._guard.check(view, (key,))
            return read(key)

    def _apply(
        self,
        view: int,
        keys: Iterable[bytes],
        change: Callable[[Store], _Result],
        settles: Callable[[Any], bool] = lambda _: True,
    ) -> _Result:
        """Check the request, change the store, and settle the leases on ``keys``. Return the result of the change.

        Args:
            settles: tells from the result whether the values of ``keys`` may have changed.
        """
        with self._lock:
            if view != self._guard.open_view:
                self._guard.check(view, keys)
            try:
                result = change(self._store)
            except ValueTooLarge:
                raise self._limits.no_room() from None
            if self._leased and settles(result):
                self._coordination.settle(keys)
        return result
