"""`LocalCluster`: it does what its methods say, and nothing it started outlives it, whatever ends it."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pyrocache.local
from pyrocache import (
    ClientClosed,
    ConfigurationError,
    LocalCluster,
    NameServerUnavailable,
    NodeUnavailable,
    NoNodes,
    PyroCacheClient,
    PyroCacheError,
)
from tests.support.processes import ROOT, is_gone, is_stopped, state
from tests.support.waiting import eventually

KEYS = [f"key {number}" for number in range(100)]


def pids(cluster: LocalCluster) -> list[int]:
    """Of everything that a cluster has started."""
    return [cluster._nameserver_process.pid, *(node.pid for node in cluster.nodes)]


@pytest.fixture(scope="module")
def playground() -> Iterator[LocalCluster]:
    """Two nodes that each test may harm, and leaves as two."""
    with LocalCluster(nodes=2) as cluster:
        yield cluster


def text_of(number: int) -> str:
    return str(number)


# Its life ----------------------------------------------------------------------------------------------------


def test_stop_ends_everything_at_once_and_again_does_nothing() -> None:
    cluster = LocalCluster(nodes=2)
    cache = cluster.client()
    cache.set("key", 1)
    started = pids(cluster)
    assert all(map(state, started))

    cluster.stop()

    assert not any(map(state, started))
    with pytest.raises(ClientClosed, match=r"cluster of this client was stopped; start a new one"):
        cache.get("key")
    cluster.stop()
    with PyroCacheClient(cluster.nameserver) as other, pytest.raises(NameServerUnavailable):
        other.get("key")


def test_it_ends_when_nothing_refers_to_it_or_to_a_client_of_it() -> None:
    cluster = LocalCluster(nodes=2)
    started = pids(cluster)
    shop = cluster.client().namespace("shop")
    memoized = shop.memoize()(text_of)
    del cluster
    gc.collect()
    assert shop.set("key", 1)
    assert memoized(1) == "1"
    del shop
    gc.collect()
    assert memoized(2) == "2"
    del memoized
    gc.collect()
    eventually(lambda: all(map(is_gone, started)), 10.0)


def test_it_ends_with_nodes_that_are_paused() -> None:
    cluster = LocalCluster(nodes=2)
    started = pids(cluster)
    cluster.pause(0)
    del cluster
    gc.collect()
    eventually(lambda: all(map(is_gone, started)), 10.0)


def test_a_closed_client_does_not_keep_it() -> None:
    cluster = LocalCluster(nodes=1)
    started = pids(cluster)
    client = cluster.client()
    client.close()
    del cluster
    gc.collect()
    eventually(lambda: all(map(is_gone, started)), 10.0)


@pytest.mark.full
def test_a_forked_child_that_collects_it_ends_nothing() -> None:
    with LocalCluster(nodes=1) as cluster:
        child = os.fork()
        if not child:
            cluster.__dict__.clear()
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        assert cluster.client().set("key", 1)


def test_stop_ends_what_is_paused_or_dead_too() -> None:
    cluster = LocalCluster(nodes=3)
    started = pids(cluster)
    cluster.pause(0)
    cluster.kill(1)
    cluster.kill_nameserver()

    cluster.stop()

    assert not any(map(state, started))


def test_an_error_in_the_with_body_ends_everything() -> None:
    started: list[int] = []

    def fail() -> None:
        with LocalCluster(nodes=1) as cluster:
            started.extend(pids(cluster))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(started) == 2
    assert not any(map(state, started))


def test_it_is_not_pickled_but_its_clients_are(playground: LocalCluster) -> None:
    with pytest.raises(TypeError, match="A LocalCluster is not pickled: give the other process a client"):
        pickle.dumps(playground)
    with pickle.loads(pickle.dumps(playground.client())) as copy:
        assert copy.ping() == len(playground.nodes)


def test_two_clusters_know_nothing_of_each_other(playground: LocalCluster) -> None:
    with LocalCluster(nodes=1) as other:
        assert other.nameserver != playground.nameserver
        assert other.nodes[0].name == playground.nodes[0].name
        here, there = playground.client(), other.client()
        here.set("key", "here")
        there.set("key", "there")
        assert (here.get("key"), there.get("key")) == ("here", "there")
        assert (len(here.nodes()), len(there.nodes())) == (2, 1)
    assert here.get("key") == "here"


def test_when_the_constructor_fails_half_way_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    start_nameserver, start_node = pyrocache.local.start_nameserver, pyrocache.local.start_node

    def start_recorded(*args: Any, **options: Any) -> Any:
        started.append(start_nameserver(*args, **options))
        return started[-1]

    def fail_at_the_third(*args: Any, **options: Any) -> Any:
        if len(started) == 3:
            raise OSError("no more processes")
        started.append(start_node(*args, **options))
        return started[-1]

    monkeypatch.setattr(pyrocache.local, "start_nameserver", start_recorded)
    monkeypatch.setattr(pyrocache.local, "start_node", fail_at_the_third)

    with pytest.raises(OSError, match="no more processes"):
        LocalCluster(nodes=3)

    assert len(started) == 3
    assert not any(state(process.pid) for process in started)


def test_when_a_node_does_not_start_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    start_node = pyrocache.local.start_node

    def start(settings: dict[str, Any], **options: Any) -> Any:
        bad = {**settings, "host": "192.0.2.1"} if len(started) == 1 else settings
        started.append(start_node(bad, **options))
        return started[-1]

    monkeypatch.setattr(pyrocache.local, "start_node", start)

    with pytest.raises(PyroCacheError, match=r"Other hosts can reach 192\.0\.2\.1"):
        LocalCluster(nodes=3)

    assert len(started) == 3
    assert not any(state(process.pid) for process in started)


# The end of its parent ---------------------------------------------------------------------------------------

PARENT = """
import multiprocessing, os, signal, sys, time
from pyrocache import LocalCluster

def say(*words):  # in one piece, as two processes write to the same file
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def live_on():
    say("child", os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    cluster = LocalCluster(nodes=2)
    cluster.client().set("key", 1)
    if "fork" in sys.argv:
        context = multiprocessing.get_context("fork")
        context.Process(target=live_on).start()
    if "pause" in sys.argv:
        cluster.pause(0)
    say("cluster", cluster._nameserver_process.pid, *(node.pid for node in cluster.nodes))
    if "raise" in sys.argv:
        raise SystemExit("no stop, no with")
    time.sleep(60)
"""


class Parent:
    """A program that has a `LocalCluster`, in a session of its own."""

    def __init__(self, directory: Path, *circumstances: str) -> None:
        program, self._output = directory / "parent.py", directory / "output"
        program.write_text(PARENT)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._output.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(program), *circumstances],
                stdout=stream,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )

    def pids(self, what: str) -> list[int]:
        """What it has said of its ``"cluster"`` or its forked ``"child"``."""
        for line in self._output.read_text().splitlines(keepends=True):
            if line.startswith(what) and line.endswith("\n"):
                return [int(pid) for pid in line.split()[1:]]
        return []

    def clean_up(self) -> None:
        """End what a failed test has left."""
        self.process.kill()
        self.process.wait()
        for pid in [*self.pids("cluster"), *self.pids("child")]:
            if state(pid) and os.getsid(pid) == self.process.pid:
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def run_parent(tmp_path: Path) -> Iterator[Callable[..., Parent]]:
    """Start such a program, and wait until its cluster is ready."""
    parents: list[Parent] = []

    def run_parent(*circumstances: str) -> Parent:
        parents.append(Parent(tmp_path, *circumstances))
        whats = ["cluster", *(["child"] if "fork" in circumstances else [])]
        eventually(lambda: all(map(parents[-1].pids, whats)), 20.0)
        return parents[-1]

    yield run_parent
    for parent in parents:
        parent.clean_up()


@pytest.mark.parametrize(
    "circumstances",
    [
        pytest.param((), id="nothing else"),
        pytest.param(("pause",), id="pause", marks=pytest.mark.full),
        pytest.param(("fork",), id="fork", marks=pytest.mark.full),
        pytest.param(("pause", "fork"), id="pause+fork"),
    ],
)
def test_a_parent_that_is_killed_takes_everything_with_it(
    run_parent: Callable[..., Parent], circumstances: tuple[str, ...]
) -> None:
    parent = run_parent(*circumstances)
    started = parent.pids("cluster")
    assert len(started) == 3
    assert all(map(state, started))
    if "pause" in circumstances:
        eventually(lambda: is_stopped(started[1]))

    parent.process.kill()

    eventually(lambda: not any(map(state, started)))
    assert all(map(state, parent.pids("child")))


def test_a_parent_that_just_ends_takes_everything_with_it(run_parent: Callable[..., Parent]) -> None:
    started = run_parent("raise").pids("cluster")
    assert len(started) == 3
    eventually(lambda: not any(map(state, started)))


# Its methods -------------------------------------------------------------------------------------------------


def test_nodes_say_their_names_pids_and_addresses(playground: LocalCluster) -> None:
    cache = playground.client()
    assert [node.name for node in playground.nodes] == ["cache.node.1", "cache.node.2"]
    assert [node.address for node in playground.nodes] == [member.address for member in cache.nodes()]
    assert {node.name: node.pid for node in playground.nodes} == {
        name: figures.pid for name, figures in cache.stats().nodes.items()
    }
    assert all(node.alive for node in playground.nodes)
    assert playground.nameserver in repr(playground)
    assert "2 of 2 nodes alive" in repr(playground)


def test_a_node_added_and_removed_joins_and_leaves(playground: LocalCluster) -> None:
    cache = playground.client()

    node = playground.add_node()

    assert playground.nodes[2] is node
    assert node.name == "cache.node.3"
    assert [member.name for member in cache.nodes()] == ["cache.node.1", "cache.node.2", "cache.node.3"]

    playground.remove_node(2)

    assert not state(node.pid)
    assert not node.alive
    assert [node.name for node in playground.nodes] == ["cache.node.1", "cache.node.2"]
    assert [member.name for member in cache.nodes()] == ["cache.node.1", "cache.node.2"]


def test_a_node_killed_is_away_until_it_is_restarted(playground: LocalCluster) -> None:
    cache = playground.client(timeout=2.0)
    key = next(key for key in KEYS if cache.node_for(key).name == "cache.node.1")
    node, pid = playground.nodes[0], playground.nodes[0].pid

    playground.kill(0)

    assert not state(pid)
    assert not node.alive
    with pytest.raises(NodeUnavailable):
        cache.get(key)
    assert cache.stats().away == ["cache.node.1"]

    assert playground.restart(0) is node

    assert node.alive
    assert node.pid != pid
    assert node.name == "cache.node.1"
    assert cache.get(key) is None
    assert cache.stats().away == []


def test_a_node_that_runs_is_empty_after_its_restart_and_the_others_are_not(playground: LocalCluster) -> None:
    cache = playground.client()
    for key in KEYS:
        cache.set(key, 1)
    kept = {key for key in KEYS if cache.node_for(key).name == "cache.node.1"}
    pid = playground.nodes[1].pid

    playground.restart(1)

    assert not state(pid)
    assert set(cache.get_many(KEYS)) == kept


def test_a_paused_node_is_alive_and_goes_on_where_it_was(playground: LocalCluster) -> None:
    cache = playground.client(timeout=0.5)
    key = next(key for key in KEYS if cache.node_for(key).name == "cache.node.2")
    cache.set(key, "kept")

    playground.pause(1)
    try:
        eventually(lambda: is_stopped(playground.nodes[1].pid))
        assert playground.nodes[1].alive
        with pytest.raises(NodeUnavailable):
            cache.get(key)
    finally:
        playground.resume(1)

    assert cache.get(key) == "kept"


def test_the_name_server_can_be_killed_and_comes_back_at_its_address(playground: LocalCluster) -> None:
    pid = pids(playground)[0]
    playground.kill_nameserver()
    assert not state(pid)
    with PyroCacheClient(playground.nameserver) as cache:
        with pytest.raises(NameServerUnavailable):
            cache.nodes()
        playground.restart_nameserver()
        eventually(lambda: len(nodes_or_none(cache)) == 2)


def nodes_or_none(cache: PyroCacheClient) -> list[Any]:
    try:
        return cache.nodes()
    except NoNodes:
        return []


def test_a_node_keeps_to_its_memory() -> None:
    with LocalCluster(nodes=1, max_memory="1MiB") as cluster:
        cache = cluster.client()
        for number in range(100):
            cache.set(number, bytes(40_000))
        total = cache.stats().total
        assert total.max_bytes == 2**20
        assert 2**20 - 50_000 < total.bytes <= 2**20
        assert len(cache) == total.entries == 100 - total.evictions
        assert 99 in cache
        assert 0 not in cache


def test_a_cluster_may_begin_without_nodes() -> None:
    with LocalCluster(nodes=0) as cluster:
        cache = cluster.client(namespace="empty", timeout=3.0)
        with pytest.raises(NoNodes, match="pyrocache nodes"):
            cache.get("key")
        assert cluster.add_node().name == "cache.node.1"
        assert cache.set("key", 1)


# Its arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [-1, True, "3", 2.5, None])
def test_a_number_of_nodes_that_makes_no_sense_is_refused(nodes: Any) -> None:
    with pytest.raises(ConfigurationError, match="nodes"):
        LocalCluster(nodes=nodes)


@pytest.mark.parametrize("max_memory", ["lots", "", 0, -1, True, 1.5, None, "1KiB", 1000])
def test_a_memory_that_makes_no_sense_is_refused(max_memory: Any) -> None:
    with pytest.raises(ConfigurationError):
        LocalCluster(nodes=1, max_memory=max_memory)


@pytest.mark.parametrize("replicas", [2, 0, "1", None])
def test_more_than_one_copy_is_refused(replicas: Any) -> None:
    with pytest.raises(ConfigurationError, match="replicas"):
        LocalCluster(nodes=2, replicas=replicas)


@pytest.mark.full
def test_a_node_added_just_after_the_name_server_restarted_takes_nobodys_name() -> None:
    with LocalCluster(nodes=3) as cluster, cluster.client() as cache:
        cache.set_many({number: number for number in range(300)})
        cluster.restart_nameserver()
        assert cluster.add_node().name == "cache.node.4"
        assert len(cache.nodes()) == 4
        assert all(node.alive for node in cluster.nodes)
        assert 150 < len(cache) < 300


@pytest.mark.full
def test_a_dead_node_that_is_removed_leaves_its_keys_to_the_others() -> None:
    with LocalCluster(nodes=3) as cluster, cluster.client() as cache:
        cluster.kill(1)
        cluster.remove_node(1)
        assert cache.set_many({number: number for number in range(300)}) == 300
        assert [node.name for node in cache.nodes()] == ["cache.node.1", "cache.node.3"]


def test_modules_in_the_working_directory_are_none_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resource.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with LocalCluster(nodes=1) as cluster, cluster.client() as cache:
        assert cache.set("key", "value")


def test_an_index_without_a_node_is_a_sentence(playground: LocalCluster) -> None:
    for call in (
        playground.kill,
        playground.pause,
        playground.resume,
        playground.restart,
        playground.remove_node,
    ):
        with pytest.raises(IndexError, match=r"No node has index 9: this cluster has \d nodes"):
            call(9)


def test_a_cluster_that_was_stopped_says_so() -> None:
    cluster = LocalCluster(0)
    cluster.stop()
    for call in (cluster.client, cluster.add_node, cluster.restart_nameserver, partial(cluster.restart, 0)):
        with pytest.raises(PyroCacheError, match="was stopped; start a new LocalCluster"):
            call()
