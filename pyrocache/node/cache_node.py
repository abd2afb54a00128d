"""`CacheNode`: the methods that clients call, the same under our transport and under a stock Pyro5 daemon.

Owns the store and its lock, checks every argument (a peer can send anything) and the view that the request was routed
with. Values and keys are opaque bytes; nothing here unpickles. Every method may run on any thread. Those in
`CacheNode.CHEAP` hold the lock briefly and suit an I/O thread; the others walk the whole store, in slices between
which the lock is free.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from Pyro5.errors import PyroError
from Pyro5.server import expose

from pyrocache.cluster.routing import ClusterView
from pyrocache.cluster.wire import (
    BAD_REQUEST,
    BATCH_BYTES,
    KEY_TOO_LARGE,
    MAX_BATCH,
    MAX_KEY_BYTES,
    SCAN_EXPIRED,
    STALE_VIEW,
    VALUE_TOO_LARGE,
)
from pyrocache.config import DEFAULT_MAX_VALUE_BYTES
from pyrocache.node.store import Store, Value, entry_cost

_SLICE = 500
_MAX_SCANS = 64
_SEGMENT_SHARE = 1024  # of a node's memory that the keys of a scan's segment may take
_SMALLEST_SEGMENT = 256 * 1024
_SCAN_SECONDS = 900.0
_KEPT_IN_MESSAGE = 2**20  # smaller values are copied: a message of their own would take more memory pages
_NO_VIEW = 0

_Method = TypeVar("_Method", bound=Callable[..., Any])


class _Scan:
    """Where one walk over the keys has come to.

    The keys are walked in segments, by hash, each of which is listed when its turn comes: the list keeps alive even
    those keys that leave the store meanwhile, and must not hold more than a small share of the memory.
    """

    __slots__ = ("_segment", "_segments", "prefix", "used_at", "waiting")

    def __init__(self, prefix: bytes, segments: int) -> None:
        self.prefix = prefix
        self.waiting: list[bytes] = []
        self.used_at = 0.0
        self._segments = segments
        self._segment = 0

    def next_segment(self, keys: list[bytes]) -> None:
        """Begin the next segment, ``keys`` being all keys there are now."""
        count, turn = self._segments, self._segment
        self.waiting = keys if count == 1 else [key for key in keys if hash(key) % count == turn]
        self._segment += 1

    def at_end(self) -> bool:
        """Whether all has been walked over."""
        return not self.waiting and self._segment == self._segments


def exposed(method: _Method) -> _Method:
    """Pyro5's ``expose``, for the type checker."""
    expose(method)
    return method


def refusal(code: str, message: str, detail: Any = None) -> PyroError:
    """The exception that every Pyro5 peer can receive; see ``cluster/wire.py``."""
    error = PyroError(message)
    error.code = code
    error.detail = detail
    return error


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
    """

    CHEAP = frozenset(
        (
            *("get", "set", "delete", "contains", "ttl", "get_many", "set_many", "delete_many"),
            *("ping", "members", "stats"),
        )
    )

    def __init__(
        self,
        store: Store,
        *,
        name: str = "cache.node.1",
        incarnation: str = "",
        max_value_bytes: int = DEFAULT_MAX_VALUE_BYTES,
        gauges: Callable[[], dict[str, Any]] = dict,
        on_stale: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_value_bytes = max_value_bytes
        self._surely_fits = min(max_value_bytes, store.max_bytes - MAX_KEY_BYTES - 1024)  # with any key
        self._name = name
        self._incarnation = incarnation
        self._gauges = gauges
        self._on_stale = on_stale
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()  # guards: _store, _view, _view_id, _admitted, _scans
        self._store = store
        self._view: ClusterView | None = None
        self._view_id = _NO_VIEW
        self._admitted = True
        self._scans: OrderedDict[int, _Scan] = OrderedDict()

    # Data: one key ---------------------------------------------------------------------------------------

    @exposed
    def get(self, view: int, key: bytes) -> Value | None:
        """The value frame stored under ``key``, or None."""
        if type(key) is not bytes or not 0 < len(key) <= MAX_KEY_BYTES:
            _check_key(key)
        with self._lock:
            if view != self._view_id or not self._admitted:
                self._check_view(view)
            return self._store.get(key)

    @exposed
    def set(self, view: int, key: bytes, value: Value, ttl_seconds: float | None = None) -> bool:
        """Store ``value`` for ``ttl_seconds``, or for good; True.

        A value that is the part of a message is kept as that part, if it is most of it, and is not to change.
        """
        if type(key) is not bytes or type(value) is not bytes or len(value) > self._surely_fits:
            self._check_entry(key, value, expires=ttl_seconds is not None)
            if type(value) is memoryview and not _is_most_of_its_message(value):
                value = bytes(value)
        if not 0 < len(key) <= MAX_KEY_BYTES:
            _check_key(key)
        if ttl_seconds is not None:
            _check_ttl(ttl_seconds)
        with self._lock:
            if view != self._view_id or not self._admitted:
                self._check_view(view)
            self._store.set(key, value, ttl_seconds)
        return True

    @exposed
    def delete(self, view: int, key: bytes) -> bool:
        """Remove the entry; whether there was one."""
        _check_key(key)
        with self._lock:
            self._check_view(view)
            return self._store.delete(key)

    @exposed
    def contains(self, view: int, key: bytes) -> bool:
        """Whether there is an entry; counts no hit and does not make it more recent."""
        _check_key(key)
        with self._lock:
            self._check_view(view)
            return self._store.contains(key)

    @exposed
    def ttl(self, view: int, key: bytes) -> float | None:
        """Seconds until the entry expires, infinite when it never does, None when there is none."""
        _check_key(key)
        with self._lock:
            self._check_view(view)
            return self._store.remaining(key)

    # Data: many keys -------------------------------------------------------------------------------------

    @exposed
    def get_many(self, view: int, keys: list[bytes]) -> list[Value | None]:
        """The values of ``keys`` in their order, None for a miss.

        Ends early, after at least one, when the reply has become large: ask again for the rest.
        """
        _check_batch(keys)
        _check_keys(keys)
        with self._lock:
            self._check_view(view)
            return self._store.get_many(keys, BATCH_BYTES)

    @exposed
    def set_many(
        self, view: int, keys: list[bytes], values: list[bytes], ttl_seconds: float | None = None
    ) -> int:
        """Store each of ``values`` under its key; their number. All are checked before any is stored."""
        _check_batch(keys)
        _check_batch(values)
        _check_keys(keys)
        _check_ttl(ttl_seconds)
        if len(keys) != len(values):
            raise refusal(BAD_REQUEST, "There are as many values as keys.")
        self._check_values(keys, values, expires=ttl_seconds is not None)
        with self._lock:
            self._check_view(view)
            self._store.set_many(keys, values, ttl_seconds)
        return len(keys)

    @exposed
    def delete_many(self, view: int, keys: list[bytes]) -> int:
        """Remove the entries; how many there were."""
        _check_batch(keys)
        _check_keys(keys)
        with self._lock:
            self._check_view(view)
            return sum(self._store.delete(key) for key in keys)

    # The whole store -------------------------------------------------------------------------------------

    @exposed
    def count(self, prefix: bytes) -> int:
        """Entries whose key begins with ``prefix``."""
        return sum(
            self._store.contains(key) for batch in self._slices(self._matching(prefix)) for key in batch
        )

    @exposed
    def clear(self, prefix: bytes) -> int:
        """Remove every entry, of those there when the call begins, whose key begins with ``prefix``."""
        return sum(self._store.delete(key) for batch in self._slices(self._matching(prefix)) for key in batch)

    @exposed
    def keys(self, prefix: bytes, cursor: int = 0, limit: int = MAX_BATCH) -> list[Any]:
        """Some keys that begin with ``prefix``, as ``[cursor for the next, or 0 at the end, keys]``.

        Over all cursors, each key that is there from beginning to end comes exactly once.
        """
        if type(cursor) is not int or type(limit) is not int or not 1 <= limit <= MAX_BATCH:
            raise refusal(BAD_REQUEST, f"A cursor is an int, a limit an int from 1 to {MAX_BATCH}.")
        now = self._clock()
        with self._lock:
            scan = self._scans.pop(cursor, None)
        if cursor == 0:
            scan = self._new_scan(prefix)
            cursor = secrets.randbits(62) | 1
        elif scan is None:
            raise refusal(SCAN_EXPIRED, "This scan rested too long or there are too many; begin anew.")
        page = self._next_page(scan, limit)
        if scan.at_end():
            return [0, page]
        scan.used_at = now
        with self._lock:
            self._forget_old_scans(now)
            self._scans[cursor] = scan
        return [cursor, page]

    @exposed
    def stats(self) -> dict[str, Any]:
        """Figures of this node, by name; counters count since its start."""
        with self._lock:
            store = self._store
            figures: dict[str, Any] = {
                **store.counters.as_dict(),
                "entries": len(store),
                "bytes": store.bytes,
                "max_bytes": store.max_bytes,
            }
        return {
            **figures,
            "uptime_seconds": self._clock() - self._started,
            "pid": os.getpid(),
            **self._gauges(),
        }

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
            for batch in self._slices(self._matching(b"")):
                for key in batch:
                    if not view.members or view.owner(key).name != self._name:
                        self._store.discard(key)

    def redirect(self, view: ClusterView) -> None:
        """Refuse every caller from now on, and tell it ``view``: this node is leaving."""
        with self._lock:
            self._view, self._view_id, self._admitted = view, view.id, False

    def set_admitted(self, admitted: bool) -> None:
        """Whether to serve callers at all: not before the other nodes know of this one.

        One that served earlier, and left again before another node had noticed it, would leave that one with entries
        that are older than those it took along.
        """
        with self._lock:
            self._admitted = admitted

    def forget_everything(self) -> None:
        """Drop all entries: other nodes may have acted in this one's place."""
        self.clear(b"")

    def sweep(self) -> bool:
        """Free some expired entries; whether there may be more."""
        with self._lock:
            return self._store.sweep(_SLICE)

    # Inside ----------------------------------------------------------------------------------------------

    def _check_view(self, view: int) -> None:
        if type(view) is not int:
            raise refusal(BAD_REQUEST, "A view is given by its id.")
        if view == _NO_VIEW:
            return
        if not self._admitted or self._view_id not in (view, _NO_VIEW):
            self._on_stale()
            raise refusal(
                STALE_VIEW, "The request was routed with another view of the nodes.", _as_lists(self._view)
            )

    def _check_entry(self, key: Any, value: Any, *, expires: bool) -> None:
        _check_key(key)
        if type(value) is not bytes and type(value) is not memoryview:
            raise refusal(BAD_REQUEST, "A value is bytes.")
        if len(value) > self.max_value_bytes:
            raise refusal(
                VALUE_TOO_LARGE, f"{self._name} takes values of up to {self.max_value_bytes} bytes."
            )
        if entry_cost(key, value, expires=expires) > self._store.max_bytes:
            raise refusal(
                VALUE_TOO_LARGE,
                f"the value does not fit into its {self._store.max_bytes} bytes of memory; start nodes with more.",
            )

    def _check_values(self, keys: list[bytes], values: list[Any], *, expires: bool) -> None:
        limit = min(
            self.max_value_bytes, self._store.max_bytes - MAX_KEY_BYTES - 1024
        )  # always fine up to here
        if not set(map(type, values)) <= {bytes} or max(map(len, values), default=0) > limit:
            for key, value in zip(keys, values, strict=True):
                self._check_entry(key, value, expires=expires)

    def _matching(self, prefix: Any) -> list[bytes]:
        if type(prefix) is not bytes:
            raise refusal(BAD_REQUEST, "A prefix is bytes.")
        with self._lock:
            keys = self._store.keys()
        return [key for key in keys if key.startswith(prefix)] if prefix else keys

    def _slices(self, keys: list[bytes]) -> Iterator[Iterable[bytes]]:
        """``keys`` in slices, the lock held while the caller works on one and free in between."""
        for start in range(0, len(keys), _SLICE):
            with self._lock:
                yield keys[start : start + _SLICE]
            time.sleep(0)  # lets a waiting I/O thread have the interpreter

    def _new_scan(self, prefix: bytes) -> _Scan:
        keys = self._matching(prefix)
        segment_bytes = max(_SMALLEST_SEGMENT, self._store.max_bytes // _SEGMENT_SHARE)
        return _Scan(prefix, segments=1 + sum(map(len, keys)) // segment_bytes)

    def _next_page(self, scan: _Scan, limit: int) -> list[bytes]:
        """The next keys of a scan that are still there, ``limit`` at most."""
        page: list[bytes] = []
        room = BATCH_BYTES
        while len(page) < limit and room > 0 and not scan.at_end():
            if not scan.waiting:
                scan.next_segment(self._matching(scan.prefix))
            with self._lock:
                for _ in range(min(_SLICE, limit - len(page), len(scan.waiting))):
                    key = scan.waiting.pop()
                    if self._store.contains(key):
                        page.append(key)
                        room -= len(key)
            time.sleep(0)  # lets a waiting I/O thread have the interpreter
        return page

    def _forget_old_scans(self, now: float) -> None:
        while self._scans:
            oldest = next(iter(self._scans))
            if len(self._scans) < _MAX_SCANS and now - self._scans[oldest].used_at < _SCAN_SECONDS:
                break
            del self._scans[oldest]


def _as_lists(view: ClusterView | None) -> list[list[Any]]:
    members = view.members if view is not None else ()
    return [[m.name, m.host, m.port, m.weight, m.incarnation, m.socket_path] for m in members]


def _is_most_of_its_message(value: memoryview) -> bool:
    return len(value) >= _KEPT_IN_MESSAGE and 2 * len(value) >= len(value.obj)  # type: ignore[arg-type]


def _check_key(key: Any) -> None:
    if type(key) is not bytes or not key:
        raise refusal(BAD_REQUEST, "A key is bytes, and not empty.")
    if len(key) > MAX_KEY_BYTES:
        raise refusal(KEY_TOO_LARGE, f"A key is at most {MAX_KEY_BYTES} bytes long.")


def _check_keys(keys: list[Any]) -> None:
    if not set(map(type, keys)) <= {bytes} or not all(keys) or max(map(len, keys), default=0) > MAX_KEY_BYTES:
        for key in keys:
            _check_key(key)  # says what is wrong with it


def _check_ttl(ttl_seconds: Any) -> None:
    if ttl_seconds is None:
        return
    number = type(ttl_seconds) in (int, float)
    if not number or not 0 < ttl_seconds < math.inf:
        raise refusal(BAD_REQUEST, "A TTL is None or a finite number of seconds above 0.")


def _check_batch(items: Any) -> None:
    if type(items) not in (list, tuple) or len(items) > MAX_BATCH:
        raise refusal(BAD_REQUEST, f"A batch is a list of at most {MAX_BATCH}.")
