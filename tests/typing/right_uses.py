"""What type checkers are to infer. Checked, never run."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, MutableMapping, ValuesView
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, assert_type

import numpy as np

from pyrocache import (
    DEFAULT_TTL,
    Entry,
    EntryInfo,
    HotKey,
    LatencyHistogram,
    Lock,
    NodeStats,
    PartialFailure,
    PyroCacheClient,
    Stats,
)

cache = PyroCacheClient("127.0.0.1:9090", namespace="shop", timeout=1, on_error="miss", transport="tcp")
PyroCacheClient(ttl_seconds=timedelta(hours=1))


class Basket:
    pass


# One key.

assert_type(cache.set("key", 1), bool)
assert_type(cache.set("key", 1, timedelta(hours=1), tags=["a"], if_version=3), bool)
assert_type(cache.set("key", 1, ttl_seconds=...), bool)
assert_type(cache.add("key", 1, 2.5, tags=("a", "b")), bool)
assert_type(cache.add("key", 1, ..., expires_at=datetime.now().astimezone()), bool)
assert_type(cache.set("key", 1, np.float32(60)), bool)
assert_type(cache.set("key", 1, np.int64(60)), bool)
assert_type(cache.set("key", 1, Decimal(60)), bool)
assert_type(cache.set("key", 1, DEFAULT_TTL), bool)
assert_type(cache.set("key", 1, expires_at=1.5e9), bool)
assert_type(cache.replace("key", 1, expires_at=np.float64(1.5e9)), bool)
assert_type(cache.replace("key", 1, ...), bool)
assert_type(cache.get("key"), Any | None)
assert_type(cache.get("key", None), Any | None)
assert_type(cache.get("key", 5), Any | int)
assert_type(cache.get("key", default=Basket()), Any | Basket)
assert_type(cache.get("key", touch_seconds=60), Any | None)
assert_type(cache.get("key", "", touch_seconds=timedelta(minutes=1)), Any | str)
assert_type(cache.get_with_version("key"), tuple[Any, int] | None)
assert_type(cache.compare_and_set("key", 1, 2), bool)
assert_type(cache.compare_and_set("key", 1, 2, ttl_seconds=None), bool)
assert_type(cache.incr("key"), int)
assert_type(cache.decr("key", 2, default=10, ttl_seconds=60), int)
assert_type(cache.incr("key", default=None), int)
assert_type(cache.touch("key", None), bool)
assert_type(cache.touch("key"), bool)
assert_type(cache.touch("key", expires_at=0), bool)
assert_type(cache.pop("key"), Any)
assert_type(cache.pop("key", None), Any | None)
assert_type(cache.pop("key", Basket()), Any | Basket)
assert_type(cache.setdefault("key"), Any | None)
assert_type(cache.setdefault("key", 1), Any | int)
assert_type(cache.delete("key"), bool)
assert_type(cache.delete("key", if_version=3), bool)
assert_type(cache.get_entry("key"), Entry | None)
if entry := cache.get_entry("key"):
    assert_type(entry.value, Any)
    assert_type(entry.tags, tuple[str, ...])
    assert_type(entry.age_seconds, float | None)
assert_type(cache.contains("key"), bool)
assert_type(cache.ttl("key"), float | None)
assert_type(cache["key"], Any)
assert_type("key" in cache, bool)


def more(basket: Basket) -> Basket:
    return basket


assert_type(cache.compute("key", more), Basket)
assert_type(cache.compute("key", more, Basket()), Basket)
assert_type(cache.compute("key", function=more, default=None, ttl_seconds=60), Basket)
assert_type(cache.compute("key", lambda value: int(value) + 1, default=0), int)
cache.update({"key": 1})
cache.update({"key": 1}, other=2)
cache.update([("key", 1)])
cache.update(key=1)

# Many keys.

assert_type(cache.get_many(["a", ("b", 1)]), dict[Any, Any])
assert_type(cache.get_entries(["a", ("b", 1)]), dict[Any, Entry])
assert_type(cache.set_many({"a": 1}, 60, tags=["x"]), int)
assert_type(cache.set_many({"a": 1}, ..., ttl_jitter=0.1, expires_at=None), int)
assert_type(cache.delete_many(iter("ab")), int)
assert_type(cache.touch_many(["a"], None), int)
failure = PartialFailure("it failed")
assert_type(failure.errors, dict[Any, Exception])

# The namespace.

assert_type(cache.namespace("inner"), PyroCacheClient)
assert_type(cache.scan(), Iterator[Any])
assert_type(cache.scan(("a", 1), batch=10), Iterator[Any])
assert_type(cache.scan(tag="x"), Iterator[Any])
assert_type(cache.scan("a", tag="x", details=True), Iterator[EntryInfo])
assert_type(cache.scan(details=bool(cache)), Iterator[Any])
assert_type(cache.delete_prefix(("a",)), int)
assert_type(cache.namespace("inner", ttl_seconds=None), PyroCacheClient)
assert_type(cache.clear(), int)
assert_type(cache.invalidate_tag("x"), int)
assert_type(cache.popitem(), tuple[Any, Any])
assert_type(len(cache), int)
keys: KeysView[Any] = cache.keys()
items: ItemsView[Any, Any] = cache.items()
values: ValuesView[Any] = cache.values()
as_mapping: Mapping[str, int] = cache
as_mutable_mapping: MutableMapping[Any, Any] = cache

# Loading once.

assert_type(cache.get_or_set("key", lambda: 5), int)
assert_type(cache.get_or_set("key", list[str], 60, stale_seconds=5, early=1.0, tags=["x"]), list[str])


@cache.memoize(ttl_seconds=60, ttl_jitter=0.1)
def repeat(text: str, times: int = 2, *, between: str = "") -> str:
    return between.join([text] * times)


assert_type(repeat("a"), str)
assert_type(repeat("a", times=3, between=","), str)
assert_type(repeat.refresh("a", 3), str)
assert_type(repeat.invalidate("a"), bool)
assert_type(repeat.original("a"), str)
cache.get(repeat.key("a"))
as_function: Callable[[str], str] = repeat


@cache.memoize(name="numbers", cache_if=bool, tags=lambda number: [f"n:{number}"])
async def half(number: int) -> float:
    return number / 2


async def use_coroutines() -> None:
    assert_type(await half(3), float)
    assert_type(await half.refresh(number=3), float)
    assert_type(await half.invalidate(3), bool)
    assert_type(await half.original(3), float)


class Garden:
    @cache.memoize(ignore=("self",))
    def water(self, litres: float) -> list[str]:
        return []

    @cache.memoize()
    async def grow(self, days: int) -> bytes:
        return b""

    @cache.memoize()
    @staticmethod
    def plant(what: str) -> int:
        return len(what)

    @staticmethod
    @cache.memoize()
    def plant_below(what: str) -> int:
        return len(what)

    async def use(self) -> None:
        assert_type(self.water(1.5), list[str])
        assert_type(self.water.invalidate(litres=1.5), bool)
        assert_type(await self.grow(3), bytes)
        assert_type(Garden.plant("rose"), int)
        assert_type(Garden.plant_below("rose"), int)  # through an instance checkers take it for a method


assert_type(Garden().water(2), list[str])
assert_type(Garden.water(Garden(), 2), list[str])

# Locks.

assert_type(cache.lock("name", 30, wait_seconds=5), Lock)
assert_type(cache.semaphore(("name", 1), 3), Lock)
with cache.lock("name") as lock:
    assert_type(lock.token, int | None)
    assert_type(lock.held, bool)
assert_type(cache.lock("name", thread_local=False).acquire(), bool)
assert_type(cache.lock("name").acquire(True, timeout=5), bool)
assert_type(cache.lock("name").locked(), bool)

# Figures.

stats = cache.stats()
assert_type(stats, Stats)
assert_type(stats.nodes, dict[str, NodeStats])
assert_type(stats.total.hits, int)
assert_type(stats.total.hit_ratio, float)
assert_type(stats.nodes["cache.node.1"].uptime_seconds, float)
assert_type(stats.total.latencies["get"], LatencyHistogram)
assert_type(stats.total.latencies["get"].percentile(99), float)
assert_type(stats.client.misses_on_error, int)
assert_type(cache.ping(), int)
PyroCacheClient(on_undecodable="miss")
assert_type(cache.reset_stats(), None)
assert_type(cache.hot_keys(), list[HotKey])
assert_type(cache.hot_keys(5, seconds=0)[0].calls_per_second, float)

with PyroCacheClient() as opened:
    assert_type(opened, PyroCacheClient)


class Shop(PyroCacheClient):
    pass


assert_type(Shop().namespace("inner"), Shop)
