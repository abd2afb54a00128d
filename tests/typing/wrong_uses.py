"""What type checkers are to refuse: each line that ends with ``# wrong``, and no other. Checked, never run."""

from __future__ import annotations

from collections.abc import Hashable

from pyrocache import PyroCacheClient

cache = PyroCacheClient()

PyroCacheClient(on_error="ignore")  # wrong
PyroCacheClient(on_undecodable="ignore")  # wrong
PyroCacheClient(timeout="5")  # wrong
PyroCacheClient(namespace=5)  # wrong
cache.set("key")  # wrong
cache.set("key", 1, "60")  # wrong
cache.set("key", 1, tags=[1])  # wrong
cache.set("key", 1, if_version="3")  # wrong
cache.setdefault("key", 1, ttl_seconds=...)  # wrong
cache.set("key", 1, expires_at="tomorrow")  # wrong
cache.get_or_set("key", list, ttl_seconds=...)  # wrong
cache.delete("key", 3)  # wrong
cache.delete_prefix(None)  # wrong
cache.scan(tag=5)  # wrong
cache.set_many({}, ttl_jitter="0.1")  # wrong
PyroCacheClient(ttl_seconds="60")  # wrong
PyroCacheClient(ttl_seconds=...)  # wrong
cache.get()  # wrong
cache.get("key", None, 60)  # wrong
cache.get("key", touch_seconds="60")  # wrong
cache.compare_and_set("key", 1)  # wrong
cache.compare_and_set("key", 1, None)  # wrong
cache.incr("key", 1.5)  # wrong
cache.incr("key", "1")  # wrong
cache.touch("key", ...)  # wrong
cache.compute("key", 5)  # wrong
cache.update("key", len)  # wrong
cache.compute("key", lambda: 5)  # wrong
cache.set_many([("key", 1)])  # wrong
cache.get_many(5)  # wrong
cache.touch_many(["key"], "60")  # wrong
cache.scan(5)  # wrong
cache.scan(batch="10")  # wrong
cache.namespace(5)  # wrong
cache.invalidate_tag(5)  # wrong
cache.stats()["hits"]  # wrong
number: int = cache.incr("key").bit_length().real
text: str = cache.incr("key")  # wrong
hashable: Hashable = cache  # wrong
cache.get_or_set("key", 5)  # wrong
cache.get_or_set("key", len)  # wrong
loaded: str = cache.get_or_set("key", lambda: 5)  # wrong
cache.memoize("60")  # wrong
cache.memoize(key="text")  # wrong
cache.memoize(tags=5)  # wrong
cache.memoize(name=5)  # wrong
cache.lock("name", wait_seconds="5")  # wrong
cache.semaphore("name")  # wrong
cache.lock("name").acquire(timeout="5")  # wrong


@cache.memoize()
def double(number: int) -> int:
    return 2 * number


double("2")  # wrong
double()  # wrong
double.invalidate("2")  # wrong
doubled: str = double(2)  # wrong
cache.set("key", 1, ttl=5)  # wrong
cache.set_many({}, timeout=5)  # wrong
cache.get_or_set("key", lambda: 5, ex=5)  # wrong
cache.setdefault("key", 1, expire=5)  # wrong
cache.memoize(ttl=5)  # wrong
PyroCacheClient(timeout_seconds=5)  # wrong
