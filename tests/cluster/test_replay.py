"""``python -m benchmarks replay`` on real processes: what it counts, which cluster it takes, and how it ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab.replay import run as replay
from benchmarks.lab.traces import TraceError
from pyrocache import LocalCluster, NameServerUnavailable, PyroCacheClient, PyroCacheError
from pyrocache.client.codec import Codec
from pyrocache.client.keys.encoding import encode_key
from pyrocache.client.keys.format import namespace_prefix
from pyrocache.node.store.entry import entry_cost
from tests.support.processes import environment

NOWHERE = "127.0.0.1:1"

FIELDS = {
    "accesses",
    "bytes_read",
    "bytes_written",
    "clients",
    "cluster",
    "entries",
    "errors",
    "evictions",
    "get_latency_us",
    "hit_ratio",
    "hits",
    "last_error",
    "max_bytes",
    "misses",
    "mismatches",
    "nodes",
    "operations",
    "operations_per_second",
    "seconds",
    "set_latency_us",
    "sets",
    "skipped",
    "trace",
    "format",
}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def trace(tmp_path: Path) -> Callable[[Iterable[object]], Path]:
    """Writes a trace of those lines."""

    def write(lines: Iterable[object]) -> Path:
        path = tmp_path / "trace"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def run(path: Path, **options: Any) -> int:
    defaults: dict[str, Any] = {
        "limit": None,
        "clients": 1,
        "nameserver": None,
        "nodes": 3,
        "max_memory": None,
        "eviction": None,
        "value_size": 100,
        "as_json": True,
    }
    return replay(path, **{**defaults, **options})


@pytest.fixture
def figures(capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Replays as JSON, successfully."""

    def figures(path: Path, **options: Any) -> dict[str, Any]:
        status = run(path, **options)
        out, _ = capfd.readouterr()
        parsed: dict[str, Any] = json.loads(out)
        assert out.count("\n") == 1
        assert status == 0, parsed
        assert set(parsed) == FIELDS
        assert parsed["mismatches"] == parsed["errors"] == 0
        return parsed

    return figures


def skewed(count: int, keys: int) -> list[str]:
    """Accesses of which few keys get most."""
    weights = [1 / (rank + 10) for rank in range(keys)]
    return [f"key-{key:05}" for key in random.Random(7).choices(range(keys), weights, k=count)]


def lru_hits(accesses: Iterable[str], capacity: int) -> int:
    held: OrderedDict[str, None] = OrderedDict()
    hits = 0
    for key in accesses:
        if key in held:
            held.move_to_end(key)
            hits += 1
            continue
        held[key] = None
        if len(held) > capacity:
            held.popitem(last=False)
    return hits


# What it counts --------------------------------------------------------------------------------------------


@pytest.mark.full
def test_one_client_and_room_for_all(
    trace: Callable[..., Path], figures: Callable[..., dict[str, Any]]
) -> None:
    accesses = skewed(3000, 500)
    distinct = len(set(accesses))
    found = figures(trace(accesses), max_memory="4MiB")
    assert (found["accesses"], found["hits"], found["misses"]) == (3000, 3000 - distinct, distinct)
    assert found["hit_ratio"] == (3000 - distinct) / 3000
    assert (found["sets"], found["entries"], found["evictions"]) == (distinct, distinct, 0)
    assert found["bytes_written"] == 100 * distinct
    assert found["bytes_read"] == 100 * found["hits"]
    assert found["operations"] == 3000 + distinct
    for verb in ("get", "set"):
        latencies = list(found[f"{verb}_latency_us"].values())
        assert list(found[f"{verb}_latency_us"]) == ["p50", "p90", "p99", "p99_9"]
        assert latencies[0] > 0
        assert latencies == sorted(latencies)


@pytest.mark.full
@pytest.mark.parametrize("clients", [1, 3])
def test_little_room_is_like_one_lru(
    trace: Callable[..., Path], figures: Callable[..., dict[str, Any]], clients: int
) -> None:
    accesses = skewed(20_000, 5000)
    max_bytes = 3 * 110_000
    key = encode_key(accesses[0], namespace_prefix("replay-" + 12 * "0"))
    capacity = max_bytes // entry_cost(key, bytes(Codec().encode(b"", bytes(100))), expires=False)
    expected = lru_hits(accesses, capacity) / len(accesses)
    assert expected < lru_hits(accesses, 5000) / len(accesses) - 0.1  # the room matters

    found = figures(trace(accesses), max_memory=str(max_bytes // 3), eviction="lru", clients=clients)
    assert found["hit_ratio"] == pytest.approx(expected, abs=0.02)
    assert 0 < found["evictions"] <= found["sets"] - found["entries"]  # two may set the same key at once
    assert found["entries"] == pytest.approx(capacity, rel=0.02)
    assert found["max_bytes"] == max_bytes


@pytest.mark.full
def test_sizes_from_the_trace_and_values_that_do_not_fit(
    trace: Callable[..., Path], figures: Callable[..., dict[str, Any]]
) -> None:
    lines = ["1 7 10", "2 7 20", "3 8 100000", "4 8 100000", "5 9 0", "6 9 0", f"7 10 {10**15}"]
    found = figures(trace(lines), max_memory="64KiB")
    assert (found["hits"], found["misses"], found["skipped"], found["sets"]) == (2, 5, 3, 2)
    assert (found["bytes_read"], found["bytes_written"]) == (10, 10)


@pytest.mark.full
def test_a_limit(trace: Callable[..., Path], figures: Callable[..., dict[str, Any]]) -> None:
    found = figures(trace(range(1000)), max_memory="1MiB", limit=450, clients=2)
    assert found["accesses"] == found["misses"] == found["entries"] == 450
    assert (found["clients"], found["nodes"]) == (2, 3)


def test_the_text(trace: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(trace([*range(10), *range(10)]), max_memory="1MiB", nodes=1, as_json=False) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert (
        "Replaying trace (a key a line) from 1 client process\non a cluster of its own (1 node of 1.0 MiB)."
        in out
    )
    assert "50.00% (10 hits)" in out
    assert "p99.9" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


# Which cluster it takes ------------------------------------------------------------------------------------


def test_a_running_cluster_is_left_as_it_was(
    trace: Callable[..., Path], shared_cluster: LocalCluster, capfd: pytest.CaptureFixture[str]
) -> None:
    with PyroCacheClient(shared_cluster.nameserver) as cache:
        cache.clear()
        cache.set("1", "mine")
        for _ in range(2):
            assert run(trace([1, 2, 3, 1]), nameserver=shared_cluster.nameserver) == 0
            out, err = capfd.readouterr()
            assert f"on the cluster at {shared_cluster.nameserver} (3 nodes)." in err
            assert (json.loads(out)["hits"], json.loads(out)["evictions"]) == (1, 0)
            assert not left_behind(cache)
        assert cache["1"] == "mine"
        cache.clear()


@pytest.mark.full
def test_the_default_address(
    trace: Callable[..., Path],
    figures: Callable[..., dict[str, Any]],
    shared_cluster: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYROCACHE_NAMESERVER", shared_cluster.nameserver)
    assert figures(trace([1]))["cluster"] == shared_cluster.nameserver
    assert figures(trace([1]), max_memory="1MiB")["cluster"] != shared_cluster.nameserver
    monkeypatch.setenv("PYROCACHE_NAMESERVER", NOWHERE)
    assert figures(trace([1]), nodes=2)["max_bytes"] == 2 * 256 * 2**20


def test_a_name_server_that_was_asked_for_must_be_there(trace: Callable[..., Path]) -> None:
    with pytest.raises(NameServerUnavailable):
        run(trace([1]), nameserver=NOWHERE)


# How it ends -----------------------------------------------------------------------------------------------


def test_no_cluster_is_started_for_a_trace_that_cannot_be_read(
    trace: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.lab.replay.LocalCluster", None)
    with pytest.raises(TraceError, match="empty"):
        run(trace([]), max_memory="1MiB")


@pytest.mark.full
def test_a_trace_that_breaks_off(trace: Callable[..., Path]) -> None:
    with pytest.raises(TraceError, match="line 2001"):
        run(trace([*("1 1 0 0" for _ in range(2000)), "x"]), max_memory="1MiB", clients=2)


@contextmanager
def meanwhile(clients: int, action: Callable[[list[Any]], object]) -> Iterator[None]:
    """Do ``action`` to the client processes once all of them have been at work for a moment."""

    def watch() -> None:
        deadline = time.monotonic() + 10
        while len(children := multiprocessing.active_children()) < clients and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)
        action(children)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.full
def test_a_client_process_that_dies(trace: Callable[..., Path]) -> None:
    path = trace(["0 10000000 0 0"])

    def kill(children: list[Any]) -> None:
        os.kill(children[0].pid, signal.SIGKILL)

    expected = r"^A client process ended before its work was done \(killed by signal 9\)\.$"
    with meanwhile(2, kill), pytest.raises(PyroCacheError, match=expected):
        run(path, max_memory="1MiB", clients=2)


@pytest.mark.full
def test_a_cluster_that_dies(trace: Callable[..., Path], cluster: LocalCluster) -> None:
    path = trace(["0 10000000 0 0"])

    def kill(_: object) -> None:
        for node in range(3):
            cluster.kill(node)

    with meanwhile(2, kill), pytest.raises(PyroCacheError) as caught:
        run(path, nameserver=cluster.nameserver, clients=2)
    assert "cache.node." in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.full
def test_a_cluster_that_lost_a_node(
    trace: Callable[..., Path], cluster: LocalCluster, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.kill(0)
    status = run(trace(i % 300 for i in range(600)), nameserver=cluster.nameserver)
    found = json.loads(capfd.readouterr().out)
    assert (status, found["accesses"], found["nodes"], found["mismatches"]) == (1, 600, 2, 0)
    assert found["hits"] + found["misses"] + found["errors"] >= 600
    assert 0 < found["errors"] < 600
    assert "cache.node.1" in found["last_error"]


@pytest.mark.full
@pytest.mark.parametrize("own", [True, False], ids=["own cluster", "running cluster"])
def test_ctrl_c(trace: Callable[..., Path], shared_cluster: LocalCluster, own: bool) -> None:
    cluster = ["--max-memory", "1MiB"] if own else ["--nameserver", shared_cluster.nameserver]
    arguments = ["replay", str(trace(["0 10000000 0 0"])), "--json", *cluster]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert "Replaying" in process.stderr.readline()
        assert "cluster" in process.stderr.readline()
        time.sleep(1.0)
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the client processes are in the group
        out, err = process.communicate(timeout=10)  # to the end of both pipes, which they have too
    assert (process.returncode, out, err) == (130, "", "")
    assert time.monotonic() - begin < 5
    with PyroCacheClient(shared_cluster.nameserver) as cache:
        assert not left_behind(cache)


def left_behind(cache: PyroCacheClient) -> int:
    """Entries in the namespaces of replays."""
    namespaces = cache.stats().total.namespaces.items()
    return sum(figures.entries for path, figures in namespaces if path and path[0].startswith("replay-"))
