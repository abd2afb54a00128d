"""Memory of a million entries with keys of 16 bytes and values of 100 bytes, beyond those 116 bytes.

The resident memory of the server before and after, per entry. The values are random `bytes`, not pickled, and every
server must hold all of them. For pyrocache, a second run has a TTL for each entry.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from benchmarks import servers
from benchmarks.field import MEMCACHED, OURS, REDIS
from benchmarks.procfs import rss_bytes
from benchmarks.results import Row
from benchmarks.servers import NotInstalled, Server
from benchmarks.session import Session
from benchmarks.workloads import key

TITLE = "Memory"

TABLE = "Memory"
WITHOUT_TTL = "no expiry"
WITH_TTL = "a TTL each"

_BATCH = 1000
_KEY_BYTES = 16
_VALUE_BYTES = 100
_TTL_SECONDS = 3600

Fill = Callable[[Any, int], int]


def measure(session: Session) -> list[Row]:
    """Run the case."""
    entries = session.choose(1_000_000, 100_000)
    contenders: list[tuple[str, str, Callable[[], AbstractContextManager[Server]], Fill]] = [
        (WITHOUT_TTL, OURS, lambda: servers.pyrocache_cluster(1, "8GiB"), _fill_ours),
        (WITHOUT_TTL, REDIS, servers.redis_server, _fill_redis),
        (
            WITHOUT_TTL,
            MEMCACHED,
            lambda: servers.memcached_server("TCP", megabytes=2048, largest_item="1m"),
            _fill_memcached,
        ),
        (WITH_TTL, OURS, lambda: servers.pyrocache_cluster(1, "8GiB"), _fill_ours_with_ttl),
    ]
    rows = []
    for operation, name, start, fill in contenders:
        session.progress(f"memory: {entries:,} entries, {name}, {operation}")
        try:
            with start() as server:
                before = rss_bytes(server.pids)
                held = fill(server.address, entries)
                after = rss_bytes(server.pids)
        except NotInstalled as missing:
            session.note(str(missing))
            continue
        if held != entries:
            raise RuntimeError(f"{name} holds {held:,} of {entries:,} entries")
        beyond = (after - before) / entries - _KEY_BYTES - _VALUE_BYTES
        figures = {"bytes_per_entry": beyond, "rss_mib": after / 2**20, "entries": float(entries)}
        rows.append(Row("memory", TABLE, operation, name, figures))
    return rows


def _batches(entries: int) -> Iterator[dict[str, bytes]]:
    for start in range(0, entries, _BATCH):
        yield {
            key("k", number): os.urandom(_VALUE_BYTES)
            for number in range(start, min(start + _BATCH, entries))
        }


def _fill_ours(nameserver: str, entries: int, ttl_seconds: float | None = None) -> int:
    from pyrocache import PyroCacheClient

    with PyroCacheClient(nameserver) as cache:
        for batch in _batches(entries):
            cache.set_many(batch, ttl_seconds=ttl_seconds)
        return len(cache)


def _fill_ours_with_ttl(nameserver: str, entries: int) -> int:
    return _fill_ours(nameserver, entries, _TTL_SECONDS)


def _fill_redis(addresses: dict[str, dict[str, Any]], entries: int) -> int:
    import redis

    with redis.Redis(**addresses["TCP"]) as client:
        for batch in _batches(entries):
            client.mset(batch)
        return int(client.dbsize())


def _fill_memcached(address: tuple[str, int], entries: int) -> int:
    from pymemcache.client.base import Client

    client = Client(address, no_delay=True, default_noreply=False)
    try:
        for batch in _batches(entries):
            client.set_many(batch)
        return int(client.stats()[b"curr_items"])
    finally:
        client.close()
