"""`CacheNode`: the remote object, with one method for each command of `pyrocache.protocol.commands`.

Composes the store, the coordination service (leases and locks), the request guard and the metrics. Checks every
argument, since a peer can send anything, then takes the node's lock, has the guard check the view that the request was
routed with, and calls the store. Values and keys are opaque bytes; nothing here unpickles.

Every command that sets or removes values goes through `CacheNode._apply`, which also settles the leases on their keys:
a waiting caller receives the new value, or the lease becomes void. There are four exceptions: `set` repeats the few
lines of `_apply` for speed, and `clear`, `delete_prefix` and `invalidate_tag` void leases by prefix and by tag. Changes
that affect no lease do not go through `_apply`: new times to live (`touch`, `touch_many`, `get` with
``touch_seconds``), version numbers, which `get_with_version` and `get_entry` assign, and reclaiming (`sweep`).
`Ownership` drops the entries and leases of keys that move to other nodes.

Thread safety: every method may run on any thread. Commands that run inline hold the lock briefly; the others walk over
entries in slices and release the lock between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, TypeVar

from Pyro5.errors import PyroError
from Pyro5.server import expose

from pyrocache.config import DEFAULT_MAX_VALUE_BYTES
from pyrocache.errors import ValueTooLarge
from pyrocache.node.coordination.leases import Answer, value_answer
from pyrocache.node.service import validation
from pyrocache.node.service.coordination import Coordination
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.service.hot_keys import HotKeys, Wrap
from pyrocache.node.service.metrics import NodeMetrics
from pyrocache.node.service.ownership import Ownership
from pyrocache.node.service.validation import ValueLimits
from pyrocache.node.store.entry import Value
from pyrocache.node.store.mutation import Clear, InvalidateTag
from pyrocache.node.store.store import Condition, Store
from pyrocache.protocol.commands import COMMANDS
from pyrocache.protocol.int_frame import pack_int
from pyrocache.protocol.limits import BATCH_BYTES, MAX_BATCH, MAX_KEY_BYTES
from pyrocache.protocol.refusals import BAD_REQUEST, NOT_AN_INT
from pyrocache.runtime.clock import now

SLICE = 500
"""Entries that are examined while the lock is held."""

_PAGES_PER_CALL = 16  # examined by one `scan` that finds few keys, or one `delete_prefix`

_INSPECTED = 250  # the most entries of one reply to `get_entries`, which runs inline

_Result = TypeVar("_Result")
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _forwarded(part: str, method: _Method) -> _Method:
    """Return a method that calls ``method`` of the node's attribute ``part``."""

    @wraps(method)
    def call(self: CacheNode, *arguments: Any, **options: Any) -> Any:
        return method(getattr(self, part), *arguments, **options)

    return call  # type: ignore[return-value]


class CacheNode:
    """One node's share of the cache, as a Pyro5 remote object.

    Every method for keys, namespaces or tags takes the number of the view that the caller has, or 0 for no view.

    Args:
        store: the entries.
        guard: knows the node's name, its view and which partitions it serves; owns the node's lock.
        max_value_bytes: the largest value frame that is accepted.
        gauges: returns further statistics for `stats`.
        on_reset: called by `reset_stats`.
        observe: makes calls of methods go through a function, for `hot_keys`; see `HotKeys`. Without it, as under a
            stock Pyro5 daemon, no uses are counted.
        clock: seconds (`runtime.clock`).

    Attributes:
        ownership: applies changes of the cluster view to the node.
    """

    def __init__(
        self,
        store: Store,
        guard: RequestGuard | None = None,
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
        gauges: Callable[[], dict[str, Any]] = dict,
        on_reset: Callable[[], object] = lambda: None,
        observe: Callable[[Wrap | None], object] = lambda wrap: None,
        clock: Callable[[], float] = now,
    ) -> None:
        self._guard = RequestGuard() if guard is None else guard
        self._lock = self._guard.lock
        self._store = store
        self._limits = ValueLimits(max_value_bytes, store.max_bytes)
        self._coordination = Coordination(store, self._guard, clock)
        self._leased = self._coordination.leases.by_key  # nearly always empty; then nothing is settled
        self._metrics = NodeMetrics(store, self._coordination, gauges, on_reset, clock)
        self._hot_keys = HotKeys(observe, clock)
        self.ownership = Ownership(store, self._coordination, self._guard)

    # One key ---------------------------------------------------------------------------------------------

    def get(self, view: int, key: bytes, touch_seconds: float | None = None) -> Value | None:
        """Return the value frame, or None. With ``touch_seconds``, set the time to live, counted from now."""
        if type(key) is not bytes or not 0 < len(key) <= MAX_KEY_BYTES:
            validation.check_key(key)
        if touch_seconds is not None:
            validation.check(ttl=touch_seconds)
        with self._lock:
            if view != self._guard.open_view:
                self._guard.check(view, (key,))
            value = self._store.get(key)
            if touch_seconds is not None and value is not None:
                self._store.touch(key, touch_seconds)
            return value

    def get_with_version(self, view: int, key: bytes) -> list[Any] | None:
        """Return the value frame and the version, or None. Every write of a value gives a new version."""
        validation.check_key(key)
        found = self._guard.run(view, (key,), self._store.get_with_version, key)
        return None if found is None else list(found)

    def get_with_times(self, view: int, key: bytes) -> Answer | None:
        """Return ``[frame, seconds left or None, seconds that loading took or None]``, or None."""
        validation.check_key(key)
        found = self._guard.run(view, (key,), self._store.lookup, key)
        return None if found.value is None or found.stale else value_answer(found)[1:]

    def get_entry(self, view: int, key: bytes) -> list[Any] | None:
        """Return ``[value, version, seconds left, tags, age, idle seconds, bytes]``, or None. Does not count as a use.

        Seconds left are infinite if the entry never expires. Age and idle seconds are None if they are unknown.
        """
        validation.check_key(key)
        found = self._guard.run(view, (key,), self._store.inspect, key)
        return None if found is None else [*found[:2], *found[2]]

    def contains(self, view: int, key: bytes) -> bool:
        """Return whether there is an entry. Counts no hit and does not make the entry more recent."""
        validation.check_key(key)
        return self._guard.run(view, (key,), self._store.contains, key)

    def ttl(self, view: int, key: bytes) -> float | None:
        """Return the seconds until the entry expires, infinity if it never does, None if there is none."""
        validation.check_key(key)
        return self._guard.run(view, (key,), self._store.remaining, key)

    def set(self, view: int, key: bytes, value: Value, ttl_seconds: float | None = None) -> bool:
        """Store ``value`` for ``ttl_seconds`` (None: no expiry). Return True.

        A `memoryview` that is most of a large message is stored without a copy: the message must not change.
        """
        # One condition for the usual case. `accept` also checks the type of a value that is not bytes.
        if type(key) is not bytes or type(value) is not bytes or len(value) > self._limits.surely_fits:
            validation.check_key(key)
            value = self._limits.accept(key, value, ttl_seconds)
        if not 0 < len(key) <= MAX_KEY_BYTES:
            validation.check_key(key)
        if ttl_seconds is not None:
            validation.check(ttl=ttl_seconds)
        with self._lock:  # the same as `_apply`, without its call
            if view != self._guard.open_view:
                self._guard.check(view, (key,))
            self._store.set(key, value, ttl_seconds)
            if self._leased:
                self._coordination.settle((key,))
        return True

    def put(
        self,
        view: int,
        key: bytes,
        value: Value,
        ttl_seconds: float | None = None,
        condition: Condition = None,
        tags: list[bytes] | None = None,
    ) -> bool:
        """Store ``value`` if the condition holds. Return whether it was stored.

        Args:
            ttl_seconds: seconds to live (None: no expiry). A negative number keeps those of the entry, and its tags
                unless ``tags`` are given; a new entry gets the number without its sign, or no expiry for `KEEP_TTL`.
            condition: None, ``"absent"``, ``"present"`` or a version.
            tags: the tags of the entry, each with its namespace.
        """
        validation.check(key=key, ttl_or_keep=ttl_seconds, condition=condition, tags=tags)
        value = self._limits.accept(key, value, ttl_seconds)
        put = partial(self._store.put, key, value, ttl_seconds, condition=condition, tags=tags)
        return self._apply(view, (key,), put, settles=bool)

    def setdefault(
        self, view: int, key: bytes, value: Value, ttl_seconds: float | None = None
    ) -> Value | None:
        """Return the stored value. If there is none, store ``value`` and return None."""
        validation.check(key=key, ttl=ttl_seconds)
        value = self._limits.accept(key, value, ttl_seconds)
        setdefault = partial(self._store.setdefault, key, value, ttl_seconds)
        return self._apply(view, (key,), setdefault, settles=lambda there: there is None)

    def incr(
        self,
        view: int,
        key: bytes,
        delta: bytes,
        default: bytes | None,
        ttl_seconds: float | None = None,
    ) -> bytes | None:
        """Add ``delta`` to the stored int, or to ``default`` if there is none. Store and return the sum.

        All are frames of ints. An existing entry keeps its TTL and its tags; a new one expires after ``ttl_seconds``.
        Return None, and store nothing, if there is no entry and no ``default``.
        """
        validation.check(key=key, ttl=ttl_seconds)
        increment = validation.int_in(delta)
        start = None if default is None else validation.int_in(default)

        def plus_increment(number: int) -> Value:
            return self._limits.accept(key, pack_int(number + increment), ttl_seconds)

        def changed(frame: Value) -> Value:
            return plus_increment(validation.int_in(frame, NOT_AN_INT, "The value there is not an int."))

        def add() -> Value | None:
            total = self._store.change(key, changed)
            if total is None and start is not None:
                total = plus_increment(start)
                self._store.set(key, total, ttl_seconds)
            return total

        total = self._apply(view, (key,), add, settles=lambda total: total is not None)
        return None if total is None else bytes(total)

    def touch(self, view: int, key: bytes, ttl_seconds: float | None) -> bool:
        """Set the time to live, counted from now (None: no expiry). Return whether the key exists."""
        validation.check(key=key, ttl=ttl_seconds)
        return self._guard.run(view, (key,), self._store.touch, key, ttl_seconds)

    def delete(self, view: int, key: bytes, version: int | None = None) -> bool:
        """Remove the entry, if it has this ``version`` unless that is None. Return whether it was removed."""
        validation.check(key=key, version=version)
        delete = partial(self._store.delete, key, version)
        return self._apply(view, (key,), delete, settles=lambda removed: removed or version is None)

    def pop(self, view: int, key: bytes) -> Value | None:
        """Remove the entry and return its value, or None."""
        validation.check_key(key)
        return self._apply(view, (key,), partial(self._store.pop, key))

    # Many keys -------------------------------------------------------------------------------------------

    def get_many(self, view: int, keys: list[bytes]) -> list[Value | None]:
        """Return the values of ``keys`` in their order, None for a miss.

        Returns fewer, but at least one, when the reply has become large: request the rest again.
        """
        validation.check(keys=keys)
        return self._guard.run(view, keys, self._store.get_many, keys, BATCH_BYTES)

    def get_entries(self, view: int, keys: list[bytes]) -> list[list[Any] | None]:
        """Return `get_entry` of each of ``keys``, or of only the first of them: request the rest again."""
        validation.check(keys=keys)

        def find() -> list[list[Any] | None]:
            found: list[list[Any] | None] = []
            room = BATCH_BYTES
            for entry in map(self._store.inspect, keys[:_INSPECTED]):
                found.append(None if entry is None else [*entry[:2], *entry[2]])
                if entry is not None:
                    room -= len(entry[0]) + sum(map(len, entry[2].tags))
                    if room < 0:
                        break
            return found

        return self._guard.run(view, keys, find)

    def set_many(
        self,
        view: int,
        keys: list[bytes],
        values: list[Value],
        ttl_seconds: float | list[float] | None = None,
        tags: list[bytes] | None = None,
    ) -> int:
        """Store each of ``values`` under its key. Return their number. All are checked before any is stored.

        ``ttl_seconds`` is as for `put`, or a list with one for each key.
        """
        validation.check(keys=keys, batch=values, ttls=ttl_seconds, tags=tags)
        each = ttl_seconds if isinstance(ttl_seconds, (list, tuple)) else [ttl_seconds] * len(keys)
        if not len(keys) == len(values) == len(each):
            raise validation.refusal(
                BAD_REQUEST, "There must be as many values, and TTLs in a list, as keys."
            )
        frames = self._limits.accept_all(keys, values, ttl_seconds is not None, tags or ())

        def store_all() -> None:
            if not tags and not validation.keeps_any(ttl_seconds):
                self._store.set_many(keys, frames, ttl_seconds)
                return
            for key, value, ttl in zip(keys, frames, each, strict=True):
                self._store.put(key, value, ttl, tags=tags)

        self._apply(view, keys, store_all)
        return len(keys)

    def delete_many(self, view: int, keys: list[bytes]) -> int:
        """Remove the entries. Return how many there were."""
        validation.check(keys=keys)
        return self._apply(view, keys, partial(self._delete_all, keys))

    def touch_many(self, view: int, keys: list[bytes], ttl_seconds: float | None) -> int:
        """Call `touch` for each of ``keys``. Return how many exist."""
        validation.check(keys=keys, ttl=ttl_seconds)
        return self._guard.run(view, keys, lambda: sum(self._store.touch(key, ttl_seconds) for key in keys))

    # Leases and locks ------------------------------------------------------------------------------------

    lease = _forwarded("_coordination", Coordination.lease)
    begin_lease = _forwarded("_coordination", Coordination.begin_lease)
    abandon = _forwarded("_coordination", Coordination.abandon)
    acquire = _forwarded("_coordination", Coordination.acquire)
    begin_acquire = _forwarded("_coordination", Coordination.begin_acquire)
    withdraw = _forwarded("_coordination", Coordination.withdraw)
    begin_withdraw = _forwarded("_coordination", Coordination.begin_withdraw)
    renew = _forwarded("_coordination", Coordination.renew)
    release = _forwarded("_coordination", Coordination.release)
    holders = _forwarded("_coordination", Coordination.holders)

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
        """Store the value that a lease holder has loaded. Return False if it is outdated or the lease is lost."""
        validation.check(key=key, ttl=ttl_seconds, tags=tags, duration=stale_seconds, token=token)
        validation.check(duration=load_seconds)
        value = self._limits.accept(key, value, ttl_seconds)

        def store_loaded() -> bool:
            return self._coordination.leases.accepts(key, token, tags or ()) and self._store.put(
                key, value, ttl_seconds, tags=tags, stale_seconds=stale_seconds, load_seconds=load_seconds
            )

        return self._apply(view, (key,), store_loaded, settles=bool)

    # A whole namespace -----------------------------------------------------------------------------------

    def scan(
        self,
        view: int,
        namespace: bytes,
        prefix: bytes,
        cursor: int = 0,
        limit: int = MAX_BATCH,
        tag: bytes | None = None,
        details: bool = False,
    ) -> list[Any]:
        """Return ``[next cursor, keys]``: some keys of a namespace that begin with ``prefix``. Cursor 0 is the end.

        A key that exists throughout the scan is returned exactly once. A page may be empty before the end.

        Args:
            tag: return only keys of entries with this tag. If few have it, the other entries are not examined.
            details: return ``[key, seconds left, tags, age, idle seconds, bytes]`` in place of each key, see
                `get_entry`.
        """
        validation.check(namespace=namespace, cursor=cursor, limit=limit, tag_or_none=tag, details=details)
        validation.check(namespace=prefix)
        found: list[Any] = []
        room = BATCH_BYTES
        for _ in range(_PAGES_PER_CALL):
            with self._lock:
                self._guard.check_all(view)
                most = min(limit - len(found), SLICE)
                keys, cursor = self._store.page(
                    namespace, prefix, cursor, most, room, tag=tag, described=details
                )
                page: list[Any] = self._described(keys) if details else keys
            found += page
            room -= sum(map(len, keys))
            if details:
                room -= sum(len(tag) for entry in page for tag in entry[2])
            if not cursor or len(found) >= limit or room <= 0:
                break
            time.sleep(0)  # let a waiting I/O thread have the interpreter
        return [cursor, found]

    def count(self, view: int, namespace: bytes, enough: int | None = None) -> int:
        """Return the number of entries of the namespace, or any number from ``enough`` up if there are as many."""
        validation.check(namespace=namespace, enough=enough)
        total = cursor = 0
        while True:
            with self._lock:
                self._guard.check_all(view)
                count, cursor = self._store.count(namespace, cursor)
            total += count
            if not cursor or (enough is not None and total >= enough):
                return total
            time.sleep(0)  # let a waiting I/O thread have the interpreter

    def delete_prefix(self, view: int, namespace: bytes, prefix: bytes, cursor: int = 0) -> list[int]:
        """Remove some entries that begin with ``prefix``. Return ``[next cursor, how many]``. Cursor 0 is the end.

        Void the leases on such keys at the beginning, as `delete` does.
        """
        validation.check(namespace=namespace, cursor=cursor)
        validation.check(namespace=prefix)
        removed = 0
        if not cursor:
            with self._lock:
                self._guard.check_all(view)
                self._coordination.leases.void_all(prefix)
        for _ in range(_PAGES_PER_CALL):
            with self._lock:
                try:
                    self._guard.check_all(view)
                except PyroError:  # the view has changed, or the lease has ended, since the last slice
                    if not removed:
                        raise
                    break
                keys, cursor = self._store.page(namespace, prefix, cursor, SLICE, BATCH_BYTES, stale=True)
                removed += self._delete_all(keys)
                self._coordination.settle(keys)
            if not cursor:
                break
            time.sleep(0)  # let a waiting I/O thread have the interpreter
        return [cursor, removed]

    def clear(self, view: int, namespace: bytes) -> int:
        """Remove every entry of the namespace, in constant time. Return how many there were.

        Expired entries that have not been reclaimed yet are counted too.
        """
        validation.check(namespace=namespace)
        with self._lock:
            self._guard.check_all(view)
            self._coordination.leases.void_all(namespace)
            return int(self._store.apply(Clear(namespace)))

    def invalidate_tag(self, view: int, tag: bytes) -> int:
        """Remove every entry that has the tag, in constant time. Return how many there were."""
        validation.check(tag=tag)
        with self._lock:
            self._guard.check_all(view)
            self._coordination.leases.invalidate(tag)
            return int(self._store.apply(InvalidateTag(tag)))

    # The node --------------------------------------------------------------------------------------------

    ping = _forwarded("_guard", RequestGuard.ping)
    members = _forwarded("_guard", RequestGuard.members)
    stats = _forwarded("_metrics", NodeMetrics.collect)
    reset_stats = _forwarded("_metrics", NodeMetrics.reset)

    def hot_keys(self, namespace: bytes, limit: int) -> list[Any]:
        """Return ``[seconds, [[key, calls], ...]]``: the most used keys of a namespace, ``limit`` of them at most.

        ``calls`` were counted in the last ``seconds``; it is a lower bound. The node counts for some seconds after each
        call of this method, and not otherwise: the first call returns nothing.
        """
        validation.check(namespace=namespace, limit=limit)
        return self._hot_keys.ask(namespace, limit)

    def sweep(self) -> bool:
        """Free some dead entries: expired, cleared or invalidated. Return whether there may be more.

        Not a remote method. The I/O thread calls it.
        """
        self._hot_keys.tick()
        with self._lock:
            return self._store.reclaim(SLICE)

    # Inside ----------------------------------------------------------------------------------------------

    def _delete_all(self, keys: Sequence[bytes]) -> int:
        return sum(map(self._store.delete, keys))

    def _described(self, keys: Sequence[bytes]) -> list[list[Any]]:
        described = ((key, self._store.describe(key)) for key in keys)
        return [[key, *description] for key, description in described if description is not None]

    def _apply(
        self,
        view: int,
        keys: Sequence[bytes],
        change: Callable[[], _Result],
        settles: Callable[[Any], bool] = lambda _: True,
    ) -> _Result:
        """Check the request, change the store, and settle the leases on ``keys``. Return the result of the change.

        Args:
            settles: returns, given the result, whether the values of ``keys`` may have changed.
        """
        with self._lock:
            if view != self._guard.open_view:
                self._guard.check(view, keys)
            try:
                result = change()
            except ValueTooLarge:  # with its tags, which `accept` does not count
                raise self._limits.no_room() from None
            if self._leased and settles(result):
                self._coordination.settle(keys)
        return result


for _name in COMMANDS:  # a stock Pyro5 daemon serves what is exposed
    expose(getattr(CacheNode, _name))
