"""What must hold when processes die, stop, come and go: real processes, real signals.

``run_nodes.py`` is used where it is the one that has to act; everywhere else a `LocalCluster`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from pyrocache import (
    LocalCluster,
    LockTimeout,
    NameServerUnavailable,
    NodeUnavailable,
    NoNodes,
    PartialFailure,
    PyroCacheClient,
)
from pyrocache.local import LocalNode
from pyrocache.net.directory import NameServerDirectory
from pyrocache.runtime.child_process import start_nameserver
from tests.support.nodes import running_node
from tests.support.processes import ROOT, free_port, is_gone
from tests.support.secrets import remote
from tests.support.waiting import eventually

KEYS = [f"key {number}" for number in range(300)]


def value_of(key: str, generation: int = 1) -> str:
    return f"value {generation} of {key}"


def fill(cache: PyroCacheClient) -> None:
    for key in KEYS:
        cache.set(key, value_of(key))


def owners(cache: PyroCacheClient) -> dict[str, str]:
    """The node that owns each key, by the name server's latest word."""
    cache.nodes()
    return {key: cache.node_for(key).name for key in KEYS}


def readable(cache: PyroCacheClient) -> set[str]:
    """The keys that have a value, which must be the right one."""
    found = cache.get_many(KEYS)
    assert found == {key: value_of(key) for key in found}
    return set(found)


def view_of(node: LocalNode) -> list[str]:
    """The nodes that ``node`` shares the keys with, itself included."""
    with remote(node.name, node.address) as proxy:
        return [name for name, *_ in proxy.members()]


def nudge(node: LocalNode) -> None:
    """Have ``node`` look into the name server soon, as one does that meets a caller with another view."""
    with remote(node.name, node.address) as proxy:
        proxy.ping(1)


class Start(Protocol):
    def __call__(self, *command: str, ready: str) -> Path: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command that goes on running, and wait until it has printed ``ready``; where it prints to."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, ready: str) -> Path:
        output = tmp_path / f"output {len(started)}"
        with output.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)
        started.append(process)
        eventually(lambda: ready in output.read_text() or process.poll() is not None, 20.0)
        assert process.poll() is None, output.read_text()
        return output

    yield start
    for process in reversed(started):
        process.terminate()
    for process in reversed(started):
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def nameserver(start: Start) -> str:
    """The address of a name server that ``run_nameserver.py`` runs."""
    output = start(sys.executable, "run_nameserver.py", "--port", "0", ready="ready at ")
    return output.read_text().partition("ready at ")[2].partition(". ")[0]


class Load:
    """What users do meanwhile: set and get, all the time, checking what comes back."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.caches = [cluster.client(namespace=f"load {number}") for number in range(2)]
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.rounds = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.run, args=(cache,)) for cache in self.caches]
        for thread in threads:
            thread.start()
        try:
            yield
            at_the_end = self.rounds
            eventually(lambda: self.failures or self.rounds > at_the_end + 2)
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()
        if self.failures:
            raise self.failures[0]

    def run(self, cache: PyroCacheClient) -> None:
        """Every key has one writer, so a read finds the last value written, or nothing: never an older one."""
        try:
            written = dict.fromkeys(KEYS, 0)
            while not self.stop.is_set():
                for key in KEYS[:100]:
                    assert cache.get(key, written[key]) == written[key]
                    written[key] += 1
                    cache.set(key, written[key])
                found = cache.get_many(KEYS[:100])
                assert found == {key: written[key] for key in found}
                self.rounds += 1
        except BaseException as error:
            self.failures.append(error)


@pytest.fixture
def load(cluster: LocalCluster) -> Load:
    return Load(cluster)


# Nodes that die ----------------------------------------------------------------------------------------------


def test_a_node_killed_is_back_under_its_name_and_takes_no_other_with_it(
    start: Start, nameserver: str
) -> None:
    said = start(sys.executable, "run_nodes.py", "--nodes", "3", "--nameserver", nameserver, ready="ready")
    with (
        PyroCacheClient(nameserver, timeout=1.0) as cache,
        PyroCacheClient(nameserver, timeout=1.0, on_error="miss") as lenient,
    ):
        fill(cache)
        victim = cache.node_for(KEYS[0]).name
        untouched = {key: value_of(key) for key, name in owners(cache).items() if name != victim}
        pid = cache.stats().nodes[victim].pid
        assert lenient.get(KEYS[0]) == value_of(KEYS[0])

        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        eventually(lambda: is_gone(pid))
        with pytest.raises(NodeUnavailable, match=victim):
            cache.get(KEYS[0])
        assert lenient.get(KEYS[0], "no value") == "no value"
        assert lenient.stats().client.misses_on_error == 1
        assert time.monotonic() - killed_at < 2.5

        def back() -> bool:
            assert cache.get_many(untouched) == untouched
            try:
                return cache.get(KEYS[0], "no value") == "no value"
            except NodeUnavailable:
                return False

        eventually(back, 5.0 - (time.monotonic() - killed_at))
        assert cache.node_for(KEYS[0]).name == victim
        assert cache.stats().nodes[victim].pid != pid
        assert cache.get_many(untouched) == untouched
        cache.set(KEYS[0], "as good as before")
        assert lenient.get(KEYS[0]) == "as good as before"
    assert f"\n{victim} ended (killed by signal 9); starting it again in " in said.read_text()
    eventually(lambda: f"\n{victim} is back with pid " in said.read_text())


@pytest.mark.full
def test_the_next_node_takes_over_the_name_that_a_dead_one_left_in_the_name_server(
    cluster: LocalCluster,
) -> None:
    cache = cluster.client()
    fill(cache)
    kept = {key for key, name in owners(cache).items() if name != "cache.node.2"}
    cluster.kill(1)

    fresh = cluster.add_node()

    assert fresh.name == "cache.node.2"
    assert [node.address for node in cache.nodes()][1] == fresh.address
    assert readable(cache) == kept


@pytest.mark.full
def test_a_client_finds_a_node_that_restarted_on_another_port(cluster: LocalCluster) -> None:
    cache = cluster.client()
    fill(cache)
    before = owners(cache)
    old_address, old_pid = cluster.nodes[0].address, cluster.nodes[0].pid
    key = next(key for key in KEYS if before[key] == "cache.node.1")
    cluster.kill(0)

    cluster.restart(0)

    assert (cluster.nodes[0].address, cluster.nodes[0].pid) != (old_address, old_pid)
    assert cache.get(key) is None
    cache.set(key, "new")
    assert cache.get(key) == "new"
    assert cache.node_for(key).address == cluster.nodes[0].address
    assert owners(cache) == before


# The name server ---------------------------------------------------------------------------------------------


def test_clients_go_on_without_a_name_server_and_never_see_fewer_nodes_when_it_is_back(
    cluster: LocalCluster,
) -> None:
    cache = cluster.client()
    fill(cache)
    cluster.kill_nameserver()

    assert readable(cache) == set(KEYS)
    cache.set(KEYS[0], "changed")
    assert cache.get(KEYS[0]) == "changed"
    cache.set(KEYS[0], value_of(KEYS[0]))
    assert len(cache) == len(KEYS)
    assert len(cache.nodes()) == 3
    with PyroCacheClient(cluster.nameserver) as newcomer, pytest.raises(NameServerUnavailable):
        newcomer.get(KEYS[0])

    seen: set[tuple[int, int]] = set()
    failures: list[BaseException] = []
    stop = threading.Event()

    def watch(watcher: PyroCacheClient) -> None:
        try:
            while not stop.is_set():
                seen.add((len(watcher.nodes()), len(watcher)))
        except BaseException as error:
            failures.append(error)

    other = cluster.client()
    watchers = [threading.Thread(target=watch, args=(cache,)) for _ in range(3)]
    for thread in watchers:
        thread.start()
    try:
        cluster.restart_nameserver()
        nudge(cluster.nodes[1])  # so that they come back one by one
        directory = NameServerDirectory(cluster.nameserver)
        eventually(lambda: len(directory.members()) == 3, 5.0)
        assert readable(other) == set(KEYS)
    finally:
        stop.set()
        for thread in watchers:
            thread.join()
    assert failures == []
    assert seen == {(3, len(KEYS))}
    assert len(other) == len(KEYS)


def test_a_client_that_began_before_the_name_server_heals_while_its_first_error_is_kept() -> None:
    address = f"127.0.0.1:{free_port()}"
    with PyroCacheClient(address, timeout=2.0) as cache, ExitStack() as stack:
        with pytest.raises(NameServerUnavailable) as kept:
            cache.get("key")
        nameserver = start_nameserver(host="127.0.0.1", port=int(address.rpartition(":")[2]), quiet=True)
        stack.callback(nameserver.kill)
        nameserver.wait_until_ready()
        stack.enter_context(running_node(address))
        cache.set("key", "value")
        assert cache.get("key") == "value"
        assert kept.value.__traceback__ is not None  # it still refers to the frames of the failed look-up


@pytest.mark.full
def test_a_name_server_that_does_not_answer_leaves_clients_the_time_to_go_on(
    start: Start, tmp_path: Path
) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    serve = "from pyrocache.cli import main; import os; print(os.getpid(), flush=True); main('nameserver')"
    output = start(sys.executable, "-c", serve, "--port", str(port), ready="ready at ")
    pid = int(output.read_text().split()[0])
    start(sys.executable, "run_nodes.py", "--nodes", "2", "--nameserver", address, ready="ready")
    with PyroCacheClient(address, timeout=1.0) as cache:
        fill(cache)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert cache.get(KEYS[0]) == value_of(KEYS[0])
            assert len(cache) == len(KEYS)
            assert cache.stats().away == []
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.full
def test_a_name_server_that_pyro5_itself_started_will_do(start: Start) -> None:
    port = str(free_port())
    pyro5_ns = str(Path(sys.executable).with_name("pyro5-ns"))
    start(sys.executable, "-u", pyro5_ns, "-n", "127.0.0.1", "-p", port, "-x", ready="NS running")
    address = f"127.0.0.1:{port}"
    start(sys.executable, "run_nodes.py", "--nodes", "2", "--nameserver", address, ready="ready")
    with PyroCacheClient(address) as cache:
        fill(cache)
        assert readable(cache) == set(KEYS)
        assert [node.name for node in cache.nodes()] == ["cache.node.1", "cache.node.2"]


# Nodes that stop ---------------------------------------------------------------------------------------------


def test_a_paused_node_costs_a_call_its_timeout_and_other_keys_nothing(cluster: LocalCluster) -> None:
    cache = cluster.client(timeout=1.0)
    fill(cache)
    names = owners(cache)
    mine = [key for key in KEYS if names[key] == "cache.node.1"]
    others = [key for key in KEYS if names[key] != "cache.node.1"]

    cluster.pause(0)
    with ThreadPoolExecutor() as threads:
        began_at = time.monotonic()
        calls = [
            threads.submit(cache.get, mine[0]),
            threads.submit(cache.delete, mine[1]),
            threads.submit(cache.contains, mine[2]),
        ]
        for call in calls:
            with pytest.raises(NodeUnavailable, match=r"cache\.node\.1 .* did not answer within 1 s"):
                call.result()
        assert time.monotonic() - began_at < 1.5
    began_at = time.monotonic()
    assert all(cache.get(key) == value_of(key) for key in others)
    assert time.monotonic() - began_at < 1.0

    cluster.resume(0)
    assert cache.get(mine[0]) == value_of(mine[0])
    cache.set(mine[0], "new")
    assert cache.get(mine[0]) == "new"


@pytest.mark.full
def test_a_paused_node_costs_no_other_node_its_answer(cluster: LocalCluster) -> None:
    cache = cluster.client(timeout=0.6, on_error="miss")
    fill(cache)
    names = owners(cache)
    paused = cluster.nodes[2]
    others = {key for key in KEYS if names[key] != paused.name}
    cluster.pause(2)

    for user in (cache, cluster.client(timeout=0.6, on_error="miss")):
        assert user.stats().away == [paused.name]
        assert readable(user) == others

    cluster.resume(2)
    eventually(lambda: readable(cache) == set(KEYS))


def test_a_paused_node_costs_one_timeout_and_not_one_for_each_call(cluster: LocalCluster) -> None:
    cache = cluster.client(timeout=1.0)
    fill(cache)
    names = owners(cache)
    mine = [key for key in KEYS if names[key] == cluster.nodes[0].name]
    others = [key for key in KEYS if names[key] != cluster.nodes[0].name]

    def fails(call: Callable[[], Any]) -> bool:
        """Return whether it fails for the timeout; any other failure says that the node is suspected."""
        with pytest.raises(NodeUnavailable) as caught:
            call()
        assert "did not answer within" in str(caught.value) or "has not answered for" in str(caught.value)
        return "did not answer within" in str(caught.value)

    cluster.pause(0)
    try:
        began_at = time.monotonic()
        timeouts = [fails(lambda: cache.get(mine[0])) for _ in range(50)]
        assert sum(timeouts) == 1
        assert time.monotonic() - began_at < 10  # 50 timeouts are 50 s
        began_at = time.monotonic()
        for _ in range(20):
            assert not fails(lambda: cache.set(mine[0], 1))
            with pytest.raises(PartialFailure) as caught:
                cache.get_many(KEYS)
            assert set(caught.value.results) == set(others)
            assert cache.stats().away == [cluster.nodes[0].name]
            assert not fails(lambda: list(cache))
        assert time.monotonic() - began_at < 15
        assert all(cache.get(key) == value_of(key) for key in others)
    finally:
        cluster.resume(0)
    eventually(lambda: set(cache.get_many(KEYS)) == set(KEYS) if not cache.stats().away else None)
    assert all(cache.get(key) == value_of(key) for key in KEYS)


@pytest.mark.full
def test_threads_that_meet_a_paused_node_pay_one_timeout_each(cluster: LocalCluster) -> None:
    cache = cluster.client(timeout=1.0)
    fill(cache)
    names = owners(cache)
    mine = [key for key in KEYS if names[key] == cluster.nodes[0].name]

    def calls(number: int) -> float:
        """Return the seconds of the longest call."""
        longest = 0.0
        for _ in range(10):
            began_at = time.monotonic()
            with pytest.raises(NodeUnavailable):
                cache.get(mine[number % len(mine)])
            longest = max(longest, time.monotonic() - began_at)
        return longest

    cluster.pause(0)
    try:
        began_at = time.monotonic()
        with ThreadPoolExecutor(40) as threads:
            longest = list(threads.map(calls, range(40)))
        assert time.monotonic() - began_at < 5  # 10 timeouts each are 10 s
        assert max(longest) < 3  # the deadline holds, but for a busy machine
    finally:
        cluster.resume(0)
    eventually(lambda: readable(cache) == set(KEYS) if not cache.stats().away else None)


@pytest.mark.full
def test_a_lock_of_a_paused_node_fails_at_once_and_a_long_wait_for_one_is_no_timeout(
    cluster: LocalCluster,
) -> None:
    with cluster.client(timeout=0.5) as cache, cluster.client(timeout=0.5) as other:
        with cache.lock("job"):
            with pytest.raises(LockTimeout):  # two polls: the node answers each in time
                other.lock("job", wait_seconds=1.2).__enter__()
            assert other.get("job") is None
        for number in range(3):
            cluster.pause(number)
        try:
            with pytest.raises(NodeUnavailable, match="did not answer within"):
                cache.lock("job").acquire()
            began_at = time.monotonic()
            for _ in range(20):
                with pytest.raises(NodeUnavailable, match="has not answered for"):
                    cache.lock("job").acquire()
            assert time.monotonic() - began_at < 5
        finally:
            for number in range(3):
                cluster.resume(number)

        def acquires() -> bool:
            try:
                with cache.lock("job"):
                    return True
            except NodeUnavailable:
                return False

        eventually(acquires)


@pytest.mark.full
def test_a_forked_child_trusts_a_node_that_its_parent_suspects(cluster: LocalCluster) -> None:
    cache = cluster.client(timeout=0.5)
    fill(cache)
    key = next(key for key, name in owners(cache).items() if name == cluster.nodes[0].name)
    cluster.pause(0)
    for _ in range(2):
        with pytest.raises(NodeUnavailable):
            cache.get(key)
    cluster.resume(0)
    with pytest.raises(NodeUnavailable, match="has not answered for"):
        cache.get(key)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if cache.get(key) == value_of(key) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_paused_name_server_costs_one_timeout() -> None:
    process = start_nameserver(quiet=True)
    try:
        address = process.wait_until_ready()["address"]
        process.pause()
        with PyroCacheClient(address, timeout=0.5) as cache:
            began_at = time.monotonic()
            for _ in range(30):
                with pytest.raises(NameServerUnavailable):
                    cache.get("key")
            assert time.monotonic() - began_at < 8
            process.signal(signal.SIGCONT)

            def knows_no_node() -> bool:
                try:
                    cache.get("key")
                except NoNodes:
                    return True
                except NameServerUnavailable:
                    return False
                return False

            eventually(knows_no_node)
    finally:
        process.kill()


@pytest.mark.parametrize("transport", ["auto", "tcp"])
@pytest.mark.full
def test_a_paused_node_keeps_no_other_from_the_rest_of_a_batch(cluster: LocalCluster, transport: Any) -> None:
    """Neither by a large message that it does not read, nor by those that were to follow for the others."""
    many, large = range(5000), {number: bytes(300_000) for number in range(40)}
    with (
        cluster.client(transport=transport, timeout=0.8, on_error="miss") as cache,
        cluster.client() as other,
    ):
        cache.set_many(dict.fromkeys(many, "before"))
        for victim in range(2):
            name = cluster.nodes[victim].name
            living = [number for number in many if cache.node_for(number).name != name]
            cluster.pause(victim)
            try:
                assert list(cache.get_many(many)) == living
                cache.set_many(large)
                found = other.get_many(set(living) & set(large))
                assert all(value == large[number] for number, value in found.items())
            finally:
                cluster.resume(victim)
            assert set(
                eventually(lambda: cache.get_many(many) if len(cache.get_many(many)) == 5000 else None)
            )
            cache.set_many(dict.fromkeys(many, "before"))


@pytest.mark.full
def test_a_paused_node_stays_a_member_when_the_name_server_is_wiped(cluster: LocalCluster) -> None:
    cache = cluster.client(timeout=1.0)
    fill(cache)
    key = next(key for key, name in owners(cache).items() if name == "cache.node.1")
    cluster.kill_nameserver()
    cluster.pause(0)
    cluster.restart_nameserver()
    assert len(cluster.client().nodes()) == 3
    with pytest.raises(NodeUnavailable):
        cache.set(key, value_of(key, 2))

    cluster.resume(0)

    eventually(lambda: readable(cache) == set(KEYS))
    assert cache.get(key) == value_of(key), "the set that raised is never done"


# Nodes that come and go --------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_cluster_that_is_ready_keeps_what_it_is_given(cluster: LocalCluster) -> None:
    cache = cluster.client()
    fill(cache)
    eventually(lambda: all(len(view_of(node)) == 3 for node in cluster.nodes))
    assert readable(cache) == set(KEYS)


@pytest.mark.full
def test_a_node_that_joins_takes_only_its_own_share(cluster: LocalCluster, load: Load) -> None:
    cache = cluster.client()
    fill(cache)
    before = owners(cache)
    assert readable(cache) == set(KEYS)

    with load():
        node = cluster.add_node()
        eventually(lambda: len(cache.nodes()) == 4)

    after = owners(cache)
    moved = {key for key in KEYS if after[key] != before[key]}
    assert moved
    assert {after[key] for key in moved} == {node.name}
    assert len(moved) < len(KEYS) / 2
    assert readable(cache) == set(KEYS) - moved


@pytest.mark.full
def test_a_node_that_leaves_takes_only_its_own_keys_with_it(cluster: LocalCluster, load: Load) -> None:
    cache = cluster.client()
    fill(cache)
    before = owners(cache)
    leaving = cluster.nodes[1].name

    with load():
        cluster.remove_node(1)

    assert [node.name for node in cache.nodes()] == ["cache.node.1", "cache.node.3"]
    assert readable(cache) == {key for key in KEYS if before[key] != leaving}


def test_a_node_that_joins_serves_nobody_before_the_others_know_of_it(cluster: LocalCluster) -> None:
    """Else one client would write to it what another one, by the nodes that it knows, still reads elsewhere."""
    cache, other = cluster.client(), cluster.client()
    fill(cache)
    assert readable(other) == set(KEYS)
    with ThreadPoolExecutor() as threads:
        joining = threads.submit(cluster.add_node)
        eventually(lambda: len(cache.nodes()) == 4, pause=0)
        moved = [key for key in KEYS if cache.node_for(key).name == "cache.node.4"]
        for key in moved:
            cache.set(key, "new")
            assert other.get(key, "new") == "new"
        assert joining.result().name == "cache.node.4"
    assert len(moved) > len(KEYS) / 10


@pytest.mark.full
def test_no_old_value_comes_back_however_nodes_come_and_go(cluster: LocalCluster, load: Load) -> None:
    """`Load` looks for one all the time."""
    with load():
        cluster.add_node()
        cluster.remove_node(3)
        cluster.restart(0)
        cluster.remove_node(1)
        cluster.add_node()


@pytest.mark.full
def test_no_old_value_comes_back_with_its_owner(cluster: LocalCluster) -> None:
    cache = cluster.client()
    fill(cache)
    before = owners(cache)
    for _ in range(2):
        cluster.add_node()
        moved = [key for key, name in owners(cache).items() if name != before[key]]
        assert moved
        for key in moved:
            cache.set(key, value_of(key, 2))
        cluster.remove_node(3)
        assert not cache.get_many(moved)
        for key in moved:
            cache.set(key, value_of(key))
