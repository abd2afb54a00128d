"""`CacheNode`: the methods that clients call, the same under our transport and under a stock Pyro5 daemon.

The data verbs are here, `turns` has leases and locks, and `served` what they share. Every argument is checked (a peer
can send anything), and the view that the request was routed with. Values and keys are opaque bytes; nothing here
unpickles. Every method may run on any thread. Those in `CacheNode.CHEAP` hold the lock briefly and suit an I/O
thread; the others walk over entries, in slices between which the lock is free.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Collection
from typing import Any

from pyrocache.errors import ValueTooLarge
from pyrocache.node.service.coordination import Turns
from pyrocache.node.service.guard import SLICE, exposed
from pyrocache.node.service.validation import (
    check_batch,
    check_condition,
    check_int,
    check_key,
    check_keys,
    check_namespace,
    check_tag,
    check_tags,
    check_ttl,
    check_ttl_or_keep,
    refusal,
)
from pyrocache.node.store.entry import Value
from pyrocache.node.store.store import Condition
from pyrocache.protocol.int_frame import pack_int, unpack_int
from pyrocache.protocol.limits import BATCH_BYTES, MAX_BATCH, MAX_KEY_BYTES
from pyrocache.protocol.refusals import BAD_REQUEST, NOT_AN_INT

_PAGES_A_CALL = 16  # of a scan that finds little
_MOST_NAMESPACES = 500  # whose figures are told
_TAGS_SLACK = 64 * 1024  # more than all tags of an entry take beside their names


class CacheNode(Turns):
    """One node's share of the cache, as a Pyro5 remote object.

    Every data method takes the id of the view that the caller routed with, or 0 for no check, and refuses with
    `STALE_VIEW` and its own members when they differ.
    """

    CHEAP = frozenset(
        (
            *("get", "set", "put", "setdefault", "get_with_version", "get_with_times", "incr"),
            *("delete", "pop", "contains", "ttl", "touch", "fill", "abandon", "renew", "release"),
            *("get_many", "set_many", "delete_many", "touch_many"),
            *("clear", "invalidate_tag", "ping", "members", "stats", "reset_stats"),
        )
    )

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
            keys, cursor = self._page(namespace, prefix, cursor, min(limit - len(found), SLICE), room)
            found += keys
            room -= sum(map(len, keys))
            if not cursor or len(found) >= limit or room <= 0:
                break
        return [cursor, found]

    @exposed
    def count(self, namespace: bytes, enough: int | None = None) -> int:
        """How many entries the namespace has; ``enough`` or more will do, where there are as many."""
        check_namespace(namespace)
        if enough is not None and (type(enough) is not int or enough < 1):
            raise refusal(BAD_REQUEST, "What is enough is None or an int above 0.")
        total = cursor = 0
        while True:
            with self._lock:
                count, cursor = self._store.count(namespace, cursor)
            total += count
            if not cursor or (enough is not None and total >= enough):
                return total
            time.sleep(0)  # lets a waiting I/O thread have the interpreter

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
                "bytes": store.used_bytes,
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

    # Inside ----------------------------------------------------------------------------------------------

    def _check_values(
        self, keys: list[bytes], values: list[Any], *, expires: bool, tags: Collection[bytes]
    ) -> None:
        if not set(map(type, values)) <= {bytes} or max(map(len, values), default=0) > self._surely_fits:
            for key, value in zip(keys, values, strict=True):
                self._checked(key, value, expires=expires)
        if tags and values:
            most = 3 * max(map(len, keys)) + max(map(len, values)) + sum(map(len, tags)) + _TAGS_SLACK
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

    def _page(
        self, namespace: bytes, prefix: bytes, cursor: int, limit: int = SLICE, room: int = BATCH_BYTES
    ) -> tuple[list[bytes], int]:
        """Some keys, and the cursor behind them, 0 at the end."""
        with self._lock:
            page = self._store.page(namespace, prefix, cursor, limit, room)
        time.sleep(0)  # lets a waiting I/O thread have the interpreter
        return page
