"""The store of a node in one process, without a server, compared with caches that run in the same process.

100,000 entries with keys of 16 bytes and values of 100 bytes. The caches are full, and the keys that are read were
stored recently. In each round, every contender makes 20,000 `set` calls with new keys, each of which evicts, then
20,000 `get` calls with present keys. The time of the same loop with an empty body is subtracted.

The other contenders do less: cachetools (Python), cachebox (Rust) and theine (W-TinyLFU in Rust, without its lock)
limit the number of entries. The store accounts for the bytes of each entry, and counts hits by namespace.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.field import OURS
from benchmarks.results import Row
from benchmarks.rounds import ratios, rotated
from benchmarks.session import Session
from pyrocache.node.store.entry import ENTRY_OVERHEAD
from pyrocache.node.store.store import Store

TITLE = "The store alone"

TABLE = "Store, in one process"

_KEY_BYTES = 16
_VALUE = bytes(100)
_CALLS = 20_000


@dataclass(frozen=True, slots=True)
class _Cache:
    """What is called of one contender."""

    get: Callable[[bytes], Any]
    set: Callable[[bytes, bytes], Any]
    has: Callable[[bytes], bool]


def measure(session: Session) -> list[Row]:
    """Run the case."""
    entries = session.choose(100_000, 10_000)
    caches = _caches(session, entries)
    names = list(caches)
    rng = random.Random(1)
    stored: list[bytes] = []
    session.progress("store: filling")
    for _ in range(2 * entries // _CALLS + 1):
        stored = _more_keys(stored, entries)
        for cache in caches.values():
            _sets_us(cache.set, stored[-_CALLS:])
    taken: dict[str, dict[str, list[float]]] = {
        "get hit": defaultdict(list),
        "set, evicting": defaultdict(list),
    }
    rounds = session.choose(20, 5)
    for number in range(rounds):
        session.progress(f"store: round {number + 1} of {rounds}")
        stored = _more_keys(stored, entries)
        for name in rotated(names, number):
            taken["set, evicting"][name].append(_sets_us(caches[name].set, stored[-_CALLS:]))
        for name in rotated(names, number):
            keys = _held(caches[name], stored, rng)
            taken["get hit"][name].append(_gets_us(caches[name].get, keys))
    return [row for operation, of_it in taken.items() for row in _compared(operation, of_it)]


def _compared(operation: str, taken: dict[str, list[float]]) -> Iterable[Row]:
    rates = {name: [1e6 / us for us in of_it] for name, of_it in taken.items()}
    for name, of_it in taken.items():
        figures = {"median_us": float(np.median(of_it)), "calls_per_second": float(np.median(rates[name]))}
        if name != OURS:
            figures |= ratios(rates[OURS], rates[name])
        yield Row("store", TABLE, operation, name, figures)


def _caches(session: Session, entries: int) -> dict[str, _Cache]:
    store = Store(entries * (_KEY_BYTES + len(_VALUE) + ENTRY_OVERHEAD))
    found = {OURS: _Cache(store.get, store.set, store.contains)}
    for name, make in (("cachetools", _cachetools), ("cachebox", _cachebox), ("theine", _theine)):
        try:
            found[name] = make(entries)
        except ImportError:
            session.note(f"{name} is not installed, and is left out.")
    return found


def _cachetools(entries: int) -> _Cache:
    from cachetools import LRUCache

    cache: Any = LRUCache(entries)
    return _Cache(cache.get, cache.__setitem__, cache.__contains__)


def _cachebox(entries: int) -> _Cache:
    from cachebox import LRUCache

    cache: Any = LRUCache(entries)
    return _Cache(cache.get, cache.insert, cache.__contains__)


def _theine(entries: int) -> _Cache:
    from theine import Cache

    cache = Cache(entries, nolock=True)
    return _Cache(cache.get, cache.set, lambda key: bool(cache.get(key)[1]))


def _more_keys(stored: Sequence[bytes], entries: int) -> list[bytes]:
    """``stored`` with so many new keys behind them as are stored in a round, the last ``entries`` of all."""
    first = int(stored[-1][1:]) + 1 if stored else 0
    new = [b"\0%015d" % number for number in range(first, first + _CALLS)]
    return [*stored, *new][-max(entries, _CALLS) :]


def _held(cache: _Cache, stored: Sequence[bytes], rng: random.Random) -> list[bytes]:
    """Keys that ``cache`` has, in any order, as many as are read in a round."""
    held = list(filter(cache.has, rng.sample(stored, min(len(stored), 2 * _CALLS))))
    return rng.choices(held, k=_CALLS)


def _gets_us(get: Callable[[bytes], Any], keys: Sequence[bytes]) -> float:
    begin = time.perf_counter()
    for key in keys:
        get(key)
    return (time.perf_counter() - begin) / len(keys) * 1e6 - _empty_loop_us(keys)


def _sets_us(set_: Callable[[bytes, bytes], Any], keys: Sequence[bytes]) -> float:
    value = _VALUE
    begin = time.perf_counter()
    for key in keys:
        set_(key, value)
    return (time.perf_counter() - begin) / len(keys) * 1e6 - _empty_loop_us(keys)


def _empty_loop_us(keys: Sequence[bytes]) -> float:
    begin = time.perf_counter()
    for _key in keys:
        pass
    return (time.perf_counter() - begin) / len(keys) * 1e6
