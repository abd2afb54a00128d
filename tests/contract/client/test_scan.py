"""Scans of many keys while others come, go and are overwritten: what they return, what they cost, whom they hold up.

``HYPOTHESIS_PROFILE=thorough`` makes it a million keys instead of 200,000.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyrocache import LocalCluster, PyroCacheClient
from tests.support.nodes import private_cluster

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
KEYS = 1_000_000 if THOROUGH else 200_000
MEBIBYTE = 2**20

CHURN = """
import random, sys, threading
from pyrocache import PyroCacheClient

nameserver, keys = sys.argv[1], int(sys.argv[2])
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
cache = PyroCacheClient(nameserver, namespace="scan", timeout=30.0)
often, at = range(0, keys, 50), 0
while not over.is_set():
    new = range(at, at + 400)
    cache.set_many({("come", number): number for number in new})
    for number in random.choices(often, k=10):
        cache.set(("stay", number), number, ttl_seconds=1000)
        cache.incr(("stay", number), 0)
        cache.touch(("stay", number), None)
    cache.set_many({("stay", number): number for number in random.choices(often, k=200)}, tags=["some"])
    cache.delete_many([("come", number) for number in range(at - 8000, at - 7600)])
    at += 400
    if at == 20_000:
        print("going", flush=True)
print(at, flush=True)
"""
"""Writes and deletes until its stdin is closed; then tells how many keys it has used. About 8,000 are there at once."""

READ = """
import json, random, sys, threading, time
from pyrocache import PyroCacheClient

nameserver, keys = sys.argv[1], int(sys.argv[2])
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
cache = PyroCacheClient(nameserver, namespace="scan", timeout=30.0)
assert cache.get(("stay", 0)) == 0
print("going", flush=True)
took = []
while not over.is_set():
    number = random.randrange(keys)
    began = time.perf_counter()
    assert cache.get(("stay", number)) == number
    took.append(time.perf_counter() - began)
    time.sleep(0.0005)
took.sort()
p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
print(json.dumps({"gets": len(took), "p50": p50, "p99": p99, "max": took[-1]}), flush=True)
"""
"""Gets one key after the other until its stdin is closed; then tells how long that took."""


class Meanwhile:
    """A program that runs beside a scan; `told` is what it says in the end."""

    def __init__(self, program: str, cluster: LocalCluster, keys: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, cluster.nameserver, str(keys)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told: Any = None

    def wait_until_going(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "going\n"

    def end(self) -> None:
        output, _ = self._process.communicate(timeout=30.0)
        assert self._process.returncode == 0
        self.told = json.loads(output)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def meanwhile(program: str, cluster: LocalCluster, keys: int = KEYS) -> Iterator[Meanwhile]:
    """Run a program while this lasts."""
    running = Meanwhile(program, cluster, keys)
    try:
        running.wait_until_going()
        yield running
        running.end()
    finally:
        running.kill()


@pytest.fixture(scope="module")
def full_cluster() -> Iterator[LocalCluster]:
    """Three nodes, with as many entries as these tests are about."""
    with private_cluster(nodes=3, max_memory="512MiB") as cluster:
        with cluster.client(namespace="scan", timeout=30.0) as cache:
            for start in range(0, KEYS, 20_000):
                cache.set_many({("stay", number): number for number in range(start, start + 20_000)})
        yield cluster


@pytest.fixture
def full(full_cluster: LocalCluster) -> Iterator[PyroCacheClient]:
    with full_cluster.client(namespace="scan", timeout=30.0) as cache:
        yield cache


class Seen:
    """How often each key has come, in no more memory than a byte for each."""

    def __init__(self) -> None:
        self.stayed = bytearray(KEYS)
        self.came = bytearray(4 * KEYS)

    def add(self, key: tuple[str, int]) -> None:
        kind, number = key
        (self.stayed if kind == "stay" else self.came)[number] += 1

    def check(self) -> None:
        assert self.stayed.count(1) == KEYS
        assert max(self.came) <= 1


# What a scan returns -----------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.full
def test_each_key_that_is_there_throughout_comes_once_while_others_come_and_go(
    full: PyroCacheClient, full_cluster: LocalCluster
) -> None:
    with meanwhile(CHURN, full_cluster) as churn:
        seen = Seen()
        before = full.stats()
        most = {name: node.rss_bytes for name, node in before.nodes.items()}
        next(iter(full.scan()))  # what is made at first use does not count
        tracemalloc.start()
        for count, key in enumerate(full.scan()):
            seen.add(key)
            if count == 20_000:
                client_most = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()  # it takes time
            if count % 20_000 == 0:
                for name, node in full.stats().nodes.items():
                    most[name] = max(most[name], node.rss_bytes)
    seen.check()
    assert churn.told > 20_000
    node_grown = max(most[name] - node.rss_bytes for name, node in before.nodes.items())
    print(f"{KEYS:,} keys; client {client_most / MEBIBYTE:.1f} MiB, a node +{node_grown / MEBIBYTE:.1f} MiB")
    assert client_most < MEBIBYTE  # the 20,000 keys alone take more
    assert node_grown < 24 * MEBIBYTE


@pytest.mark.blocking_only("the asyncio client iterates over the same pages, which the test before shows")
@pytest.mark.timeout(300)
@pytest.mark.full
def test_each_entry_comes_once_too(full: PyroCacheClient, full_cluster: LocalCluster) -> None:
    with meanwhile(CHURN, full_cluster):
        seen = Seen()
        for key, value in full.items():
            assert value == key[1]
            seen.add(key)
        seen.check()


@pytest.mark.asyncio_full
def test_a_key_comes_once_though_the_table_grows_many_times_over(shared_cluster: LocalCluster) -> None:
    with shared_cluster.client(namespace="grows", timeout=30.0) as cache:
        cache.set_many(dict.fromkeys(range(3000)))
        seen: list[int] = []
        for key in cache.scan(batch=100):
            seen.append(key)
            if len(seen) % 50 == 1 and len(seen) < 1500:
                cache.set_many(dict.fromkeys(range(-len(seen) * 1000, -len(seen) * 1000 + 1000)))
        assert len(set(seen)) == len(seen)
        assert set(seen) >= set(range(3000))
        assert cache.clear() >= 30_000


@pytest.mark.asyncio_full
def test_a_scan_goes_on_over_a_namespace_that_was_cleared_meanwhile(shared_cluster: LocalCluster) -> None:
    with shared_cluster.client(namespace="cleared") as cache:
        cache.set_many(dict.fromkeys(range(9000)))
        scan = cache.scan(batch=100)
        first = [next(scan) for _ in range(150)]
        assert cache.clear() == 9000
        cache.set_many(dict.fromkeys(range(-9000, 0)))
        rest = list(scan)
        assert len({*first, *rest}) == len(first) + len(rest)
        assert sum(key >= 0 for key in rest) < 100  # what it had asked for already
        assert cache.clear() == 9000


# Whom it holds up --------------------------------------------------------------------------------------------


@pytest.mark.blocking_only("it is about the nodes")
@pytest.mark.timeout(300)
@pytest.mark.full
def test_gets_are_not_held_up_by_a_scan(full: PyroCacheClient, full_cluster: LocalCluster) -> None:
    with meanwhile(READ, full_cluster) as alone:
        time.sleep(1.5)
    with meanwhile(READ, full_cluster) as beside:
        seen = Seen()
        for key in full.scan(("stay",)):
            seen.add(key)
    seen.check()
    print(f"alone: {alone.told}; during a scan: {beside.told}")
    assert beside.told["p99"] < 0.1
    assert beside.told["max"] < 0.5


# Eviction ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.full
def test_what_is_not_evicted_during_a_scan_comes_once() -> None:
    with private_cluster(nodes=3, max_memory="4MiB") as cluster, cluster.client() as cache:
        for start in range(0, 100_000, 10_000):
            cache.set_many(dict.fromkeys(range(start, start + 10_000)))
        evicted = cache.stats().total.evictions
        assert evicted > 10_000
        there = set(cache)
        seen: list[int] = []
        new = 100_000
        for key in cache.scan(batch=100):
            seen.append(key)
            if len(seen) % 100 == 0:
                cache.set_many(dict.fromkeys(range(new, new + 40)))
                new += 40
        total = cache.stats().total
        assert total.evictions > evicted + 2000
        assert total.bytes <= total.max_bytes
        assert len(set(seen)) == len(seen)
        assert set(seen) <= there | set(range(100_000, new))
        stayed = there & cache.get_many(there).keys()  # each was set once only, so those were never gone
        assert len(stayed) > 1000
        assert stayed <= set(seen)
        assert len(cache) == len(set(cache)) == total.entries
