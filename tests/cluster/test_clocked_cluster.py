"""`ClockedCluster`: time passes on its nodes when a test says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from pyrocache.testing import ClockedCluster
from tests.support.processes import state
from tests.support.waiting import PATIENCE_SECONDS, eventually


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClockedCluster]:
    with ClockedCluster(nodes=2) as cluster:
        yield cluster


def test_entries_expire_on_all_nodes_at_once(cluster: ClockedCluster) -> None:
    with cluster.client(namespace="entries") as cache:
        cache.set_many({number: number for number in range(50)}, ttl_seconds=3600)
        cache.set("kept", "for ever")
        cluster.advance(3590)
        assert len(cache.get_many(range(50))) == 50
        assert 0 < (cache.ttl(0) or 0) <= 10
        cluster.advance(timedelta(seconds=10))
        assert cache.get_many(range(50)) == {}
        assert cache.get("kept") == "for ever"
        eventually(lambda: len(cache) == 1)


@pytest.mark.full
def test_a_node_that_is_paused_restarted_or_added_has_the_same_time() -> None:
    with ClockedCluster(nodes=2) as cluster, cluster.client() as cache:
        cache.set_many({number: number for number in range(20)}, ttl_seconds=600)
        cluster.pause(0)
        cluster.advance(600)
        cluster.resume(0)
        assert cache.get_many(range(20)) == {}

        cluster.restart(1)
        cluster.add_node()
        cache.set_many({number: number for number in range(50)}, ttl_seconds=600)
        assert {cache.node_for(number).name for number in range(50)} == {
            f"cache.node.{number}" for number in (1, 2, 3)
        }
        cluster.advance(599)
        assert len(cache.get_many(range(50))) == 50
        cluster.advance(1)
        assert cache.get_many(range(50)) == {}


def test_a_lock_passes_to_the_waiter_when_the_time_of_its_holder_is_over(cluster: ClockedCluster) -> None:
    with cluster.client(namespace="locks", timeout=60.0) as cache, cluster.client(namespace="locks") as other:
        held = other.lock("job", ttl_seconds=3000)
        held.acquire()
        got: list[Any] = []

        def wait() -> None:
            with cache.lock("job", ttl_seconds=3000, wait_seconds=3600) as lock:
                got.append(lock.token)

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        eventually(lambda: sum(node.waiting for node in cache.stats().nodes.values()))
        time.sleep(0.5)  # several ticks of the node's event loop
        assert not got
        cluster.advance(3000)
        waiter.join(PATIENCE_SECONDS)
        assert got


def test_a_load_that_takes_longer_than_its_lease_is_passed_on(cluster: ClockedCluster) -> None:
    with cluster.client(namespace="loads", timeout=60.0) as cache:
        begun, go_on = threading.Event(), threading.Event()

        def never_ready() -> str:
            begun.set()
            go_on.wait(PATIENCE_SECONDS)
            return "late"

        options: dict[str, Any] = {"ttl_seconds": 60, "lease_seconds": 1000}
        slow = threading.Thread(target=lambda: cache.get_or_set("key", never_ready, **options), daemon=True)
        slow.start()
        assert begun.wait(PATIENCE_SECONDS)
        results: list[str] = []
        second = threading.Thread(
            target=lambda: results.append(cache.get_or_set("key", lambda: "loaded", **options)), daemon=True
        )
        second.start()
        eventually(lambda: sum(node.waiting for node in cache.stats().nodes.values()))
        cluster.advance(1000)
        second.join(PATIENCE_SECONDS)
        go_on.set()
        slow.join(PATIENCE_SECONDS)
        assert results == ["loaded"]
        assert cache.get("key") == "loaded"


@pytest.mark.full
def test_a_jump_of_a_year_disturbs_no_node(cluster: ClockedCluster) -> None:
    with cluster.client(namespace="year") as cache:
        cache.set("key", 1)
        cluster.advance(365 * 86_400)
        time.sleep(1.5)  # more than a heartbeat
        assert cache.get("key") == 1
        assert all(state(node.pid) for node in cluster.nodes)
        assert len(cache.nodes()) == 2


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5", None])
def test_time_does_not_go_back(cluster: ClockedCluster, seconds: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="seconds must be"):
        cluster.advance(seconds)


@pytest.mark.full
def test_the_clock_of_other_clusters_cannot_be_moved(cluster: ClockedCluster) -> None:
    descriptors = [path for path in _mapped(cluster.nodes[0].pid) if "pyrocache-clock" in path]
    assert descriptors
    assert all(" r--s " in line for line in descriptors), "a node cannot move it itself"


def _mapped(pid: int) -> list[str]:
    with open(f"/proc/{pid}/maps") as maps:
        return maps.read().splitlines()
