"""Clients as programs use them: many threads, forks, other processes, every kind of key, every kind of mistake."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest

from pyrocache import (
    ClientClosed,
    ConfigurationError,
    InvalidKey,
    KeyTooLarge,
    LocalCluster,
    NameServerUnavailable,
    NoNodes,
    PartialFailure,
    PyroCacheClient,
    SerializationError,
    ValueTooLarge,
)
from tests.support.nodes import private_cluster
from tests.support.processes import ROOT
from tests.support.waiting import eventually

MEBIBYTE = 2**20


def use(cache: PyroCacheClient, who: object, rounds: int) -> None:
    """Write, read and delete entries of one's own, each value saying whose it is."""
    for number in range(rounds):
        key = ("use", who, number % 50)
        value = {"key": key, "round": number, "body": "x" * (number * 37 % 5000)}
        cache.set(key, value)
        assert cache.get(key) == value
        if number % 10 == 0:
            others = [("use", who, other) for other in range(50)]
            for found, held in cache.get_many(others).items():
                assert held["key"] == found
        if number % 7 == 0:
            assert cache.delete(key)
            assert cache.get(key, "no value") == "no value"


# Threads and processes ---------------------------------------------------------------------------------------


def test_no_value_crosses_over_between_threads_that_share_a_client(cache: PyroCacheClient) -> None:
    with ThreadPoolExecutor(16) as threads:
        for done in [threads.submit(use, cache, thread, 150) for thread in range(16)]:
            done.result()


def test_a_fork_in_the_middle_of_use_disturbs_neither_parent_nor_children(cache: PyroCacheClient) -> None:
    stop = threading.Event()
    rounds = [0] * 4

    def keep_busy(thread: int) -> None:
        while not stop.is_set():
            use(cache, ("parent", thread), 10)
            rounds[thread] += 1

    with ThreadPoolExecutor(4) as threads:
        busy = [threads.submit(keep_busy, thread) for thread in range(4)]
        try:
            eventually(lambda: all(rounds))
            children = [fork(lambda child=child: use(cache, ("child", child), 100)) for child in range(3)]
            before = list(rounds)
            eventually(lambda: all(now > then for now, then in zip(rounds, before, strict=True)))
            statuses = [os.waitpid(child, 0)[1] for child in children]
        finally:
            stop.set()
        for done in busy:
            done.result()
    assert statuses == [0, 0, 0]
    use(cache, "parent afterwards", 20)


FORK_EARLY = """
import os, sys, threading
from pyrocache import PyroCacheClient

cache = PyroCacheClient(sys.argv[1])
threads = [threading.Thread(target=cache.set, args=(number, number)) for number in range(16)]
for thread in threads:
    thread.start()
children = []
for child in range(4):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if cache.set(("child", child), child) and cache.get(("child", child)) == child else 1)
    children.append(pid)
for thread in threads:
    thread.join()
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.full
def test_a_fork_while_threads_make_their_very_first_call_locks_no_child_out(
    shared_cluster: LocalCluster,
) -> None:
    """A child can wait for ever for a lock that another thread held, that of a module being imported for one."""
    for _ in range(8):
        command = [sys.executable, "-c", FORK_EARLY, shared_cluster.nameserver]
        with subprocess.Popen(command, start_new_session=True) as process:
            try:
                assert process.wait(15.0) == 0
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def fork(work: Callable[[], None]) -> int:
    """Do ``work`` in a child, which ends with status 0 when it went well; the child's pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_client_goes_to_another_process_by_pickle(cache: PyroCacheClient, method: str) -> None:
    cache.set("from here", "hello")
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(methodcaller("get", "from here"), [cache] * 4, chunksize=1) == ["hello"] * 4
        assert pool.apply(methodcaller("set", "from there", "hi"), (cache,)) is True
    assert cache.get("from there") == "hi"


def test_a_pickled_client_keeps_its_settings(shared_cluster: LocalCluster, cache: PyroCacheClient) -> None:
    original = shared_cluster.client(namespace="mine", timeout=3.0, on_error="miss")
    copy = pickle.loads(pickle.dumps(original))
    original.close()
    with copy:
        copy.set("key", 1)
        assert "key" not in cache
        assert repr(copy) == f"<PyroCacheClient '{shared_cluster.nameserver}' namespace='mine'>"
        assert copy.clear() == 1


# The life of a client ----------------------------------------------------------------------------------------


def test_a_closed_client_says_so(shared_cluster: LocalCluster) -> None:
    cache = PyroCacheClient(shared_cluster.nameserver)
    with cache as same:
        assert same is cache
        cache.set("key", 1)
        assert "closed" not in repr(cache)
    for call in (
        lambda: cache.get("key"),
        lambda: cache.set("key", 2),
        lambda: cache.delete("key"),
        lambda: cache.get_many(["key"]),
        lambda: cache.set_many({"key": 2}),
        lambda: cache.delete_many(["key"]),
        lambda: len(cache),
        lambda: list(cache),
        lambda: cache.clear(),
        lambda: cache.stats(),
        lambda: cache.nodes(),
        lambda: "key" in cache,
    ):
        with pytest.raises(ClientClosed):
            call()
    assert "closed" in repr(cache)
    cache.close()


def test_connections_are_closed_with_the_client(shared_cluster: LocalCluster, cache: PyroCacheClient) -> None:
    def connections() -> int:
        return cache.stats().total.connections

    cache.stats()  # so that its own are open
    before = connections()
    with PyroCacheClient(shared_cluster.nameserver) as other:
        other.stats()
        assert connections() == before + 3
    eventually(lambda: connections() == before)


def test_a_disconnected_client_connects_on_use(shared_cluster: LocalCluster, cache: PyroCacheClient) -> None:
    def connections() -> int:
        return cache.stats().total.connections

    cache.stats()
    before = connections()
    with shared_cluster.client() as other:
        inner = other.namespace("inner")
        for _ in range(3):
            other["key"] = 1
            other.stats()
            assert connections() == before + 3
            inner.disconnect()  # those of all, since they are shared
            eventually(lambda: connections() == before)
            assert other["key"] == 1
            other.disconnect()
            eventually(lambda: connections() == before)
    other.disconnect()  # nothing happens
    with pytest.raises(ClientClosed):
        other.get("key")


def test_disconnecting_disturbs_no_call_of_another_thread(shared_cluster: LocalCluster) -> None:
    over = threading.Event()
    with shared_cluster.client(timeout=20) as cache, ThreadPoolExecutor(8) as threads:

        def use_until_over(who: int) -> int:
            rounds = 0
            while not over.is_set():
                use(cache, who, 20)
                assert len(cache.get_many(range(100))) <= 100
                rounds += 1
            return rounds

        done = [threads.submit(use_until_over, number) for number in range(8)]
        for _ in range(100):
            cache.disconnect()
            time.sleep(0.01)
        over.set()
        assert all(one.result(30) for one in done)
        cache.disconnect()
        pools = cache._context.backend._router._connections._pools
        assert not pools


def test_disconnecting_loses_no_lock_and_no_load(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    client = shared_cluster.client()
    loading = threading.Event()
    disconnected = threading.Event()

    def factory() -> str:
        loading.set()
        disconnected.wait(20)
        return "loaded"

    def stats() -> Any:
        return cache.stats().total

    with cache.lock("another"):  # whose connection stays open
        before = stats().connections
    with client, ThreadPoolExecutor(2) as threads, client.lock("name", ttl_seconds=0.6) as lock:
        with cache.lock("another"):
            waiter = threads.submit(client.lock("another").acquire)
            load = threads.submit(client.get_or_set, "key", factory)
            assert loading.wait(20)
            eventually(lambda: stats().waiting == 1)
            client.disconnect()
            disconnected.set()
            assert load.result(20) == "loaded"
            assert cache.get("key") == "loaded"
            time.sleep(1)  # it is renewed
            assert lock.held
            assert cache.lock("name").locked()
        assert waiter.result(20)
        lock.release()
        client.disconnect()
        eventually(lambda: (stats().locks, stats().connections) == (0, before))
        lock.acquire()


@pytest.mark.parametrize(
    ("settings", "about"),
    [
        ({"on_error": ""}, "on_error"),
        ({"on_error": "ignore"}, "on_error"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": math.inf}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"namespace": 1}, "namespace"),
        ({"namespace": "x" * 256}, "namespace"),
        ({"nameserver": "a:b:c"}, "'a:b:c' is not a valid address"),
        ({"nameserver": "127.0.0.1:0"}, "address"),
        ({"nameserver": 9090}, "address"),
    ],
    ids=repr,
)
def test_a_setting_that_makes_no_sense_is_refused(settings: dict[str, Any], about: str) -> None:
    with pytest.raises(ConfigurationError, match=about):
        PyroCacheClient(**settings)


def test_errors_of_a_cluster_that_is_not_there_name_the_command_that_helps() -> None:
    with private_cluster(nodes=0) as cluster:
        _, _, port = cluster.nameserver.rpartition(":")
        with cluster.client() as cache, pytest.raises(NoNodes, match="start some with: pyrocache nodes"):
            cache.get("key")
    with PyroCacheClient(cluster.nameserver) as cache:
        with pytest.raises(
            NameServerUnavailable, match=f"pyrocache nameserver --host 127.0.0.1 --port {port}"
        ):
            cache.get("key")
        with pytest.raises(ConnectionError, match=cluster.nameserver):
            len(cache)


def test_the_name_server_may_come_from_the_environment(
    shared_cluster: LocalCluster, cache: PyroCacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYROCACHE_NAMESERVER", shared_cluster.nameserver)
    cache.set("key", "value")
    with PyroCacheClient() as other:
        assert other.get("key") == "value"


# One key -----------------------------------------------------------------------------------------------------


def test_a_client_reads_like_a_dict(cache: PyroCacheClient) -> None:
    assert not cache
    cache["key"] = [1, 2]
    assert cache
    assert cache["key"] == [1, 2]
    assert "key" in cache
    assert len(cache) == 1
    del cache["key"]
    assert "key" not in cache
    with pytest.raises(KeyError, match="key"):
        cache["key"]
    with pytest.raises(KeyError, match="key"):
        del cache["key"]
    assert not cache


def test_none_is_a_value_like_any_other(cache: PyroCacheClient) -> None:
    assert cache.set("key", None) is True
    assert cache.get("key", "no value") is None
    assert cache["key"] is None
    assert "key" in cache
    assert cache.get_many(["key", "none"]) == {"key": None}
    assert cache.set_many({None: None}) == 1
    assert cache.get(None, "no value") is None
    assert list(cache.get_many([None])) == [None]
    assert cache.delete("key") is True
    assert cache.delete("key") is False
    assert cache.get("key", "no value") == "no value"


def test_an_entry_says_how_long_it_has(cache: PyroCacheClient) -> None:
    assert cache.ttl("key") is None
    cache.set("key", 1)
    assert cache.ttl("key") == math.inf
    cache.set("key", 2, ttl_seconds=100)
    assert 90 < cache.ttl("key") <= 100
    cache.set("key", 3, timedelta(minutes=10))
    assert 590 < cache.ttl("key") <= 600
    cache.set("key", 4, math.inf)
    assert cache.ttl("key") == math.inf
    cache.set_many({"key": 5, "other": 6}, ttl_seconds=30)
    assert 20 < cache.ttl("key") <= 30
    assert 20 < cache.ttl("other") <= 30
    cache.set("key", 7)
    assert cache.ttl("key") == math.inf


@pytest.mark.parametrize(
    ("ttl", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (-0.0, ValueError),
        (math.nan, ValueError),
        (timedelta(0), ValueError),
        ("60", TypeError),
        (True, TypeError),
        (1j, TypeError),
    ],
    ids=repr,
)
def test_a_ttl_that_makes_no_sense_is_refused_and_the_old_value_stays(
    cache: PyroCacheClient, ttl: Any, error: type[Exception]
) -> None:
    cache.set("key", "old")
    with pytest.raises(error):
        cache.set("key", "new", ttl_seconds=ttl)
    with pytest.raises(error):
        cache.set_many({"key": "new"}, ttl_seconds=ttl)
    assert cache.get("key") == "old"


def test_entries_expire_and_are_gone_from_everywhere(cluster: LocalCluster) -> None:
    """A cluster of its own: other tests leave entries in other namespaces, which the statistics count too."""
    cache = cluster.client()
    cache.set("for good", 1)
    cache.set("renewed", 1, ttl_seconds=0.2)
    cache.set_many({number: number for number in range(50)}, ttl_seconds=0.2)
    cache.set("brief", 1, ttl_seconds=0.2)
    assert "brief" in cache
    cache.set("renewed", 2)

    eventually(lambda: "brief" not in cache)

    assert cache.get("brief", "no value") == "no value"
    assert cache.ttl("brief") is None
    assert cache.delete("brief") is False
    eventually(lambda: not cache.get_many(range(50)))
    assert set(cache) == {"for good", "renewed"}
    assert len(cache) == 2
    assert cache.get_many(["for good", "renewed", "brief"]) == {"for good": 1, "renewed": 2}
    eventually(lambda: cache.stats().total.entries == 2)


def test_a_value_that_does_not_pickle_is_refused_and_the_old_one_stays(cache: PyroCacheClient) -> None:
    cache.set("key", "old")
    with pytest.raises(SerializationError, match="function"):
        cache.set("key", lambda: None)
    with pytest.raises(SerializationError, match="lock"):
        cache.set_many({"other": 1, "key": threading.Lock()})
    assert cache.get("key") == "old"
    assert "other" not in cache


def test_a_value_that_is_too_large_is_refused_and_the_old_one_stays(cache: PyroCacheClient) -> None:
    cache.set("key", "old")
    too_large = bytes(65 * MEBIBYTE)
    with pytest.raises(ValueTooLarge, match=r"68157441 bytes .* up to 67108864"):
        cache.set("key", too_large)
    with pytest.raises(PartialFailure) as caught:
        cache.set_many({"key": too_large, "other": 1})
    assert isinstance(caught.value.errors["key"], ValueTooLarge)
    assert cache.get_many(["key", "other"]) == {"key": "old", "other": 1}


def test_a_key_that_is_too_large_or_has_no_bytes_is_refused(cache: PyroCacheClient) -> None:
    longest = "x" * (64 * 1024 - 2)
    cache.set(longest, 1)
    assert cache.get(longest) == 1
    for key, error in ((longest + "x", KeyTooLarge), (math.nan, InvalidKey), (lambda: None, InvalidKey)):
        for call in (
            lambda key=key: cache.set(key, 1),
            lambda key=key: cache.get(key),
            lambda key=key: cache.delete(key),
            lambda key=key: cache.get_many(["fine", key]),
            lambda key=key: cache.set_many({"fine": 1, key: 1}),
        ):
            with pytest.raises(error):
                call()
    assert len(cache) == 1


# Many keys ---------------------------------------------------------------------------------------------------


def test_thousands_of_entries_and_large_ones_go_in_one_call(cache: PyroCacheClient) -> None:
    large = {("large", number): number.to_bytes(1) * MEBIBYTE for number in range(30)}
    small = {f"key {number}": number for number in range(5000)}
    entries: dict[Any, Any] = {}
    for position, (key, value) in enumerate(small.items()):
        entries[key] = value
        if position % 160 == 0 and large:
            entries.update([large.popitem()])
    assert len(entries) == 5030

    assert cache.set_many(entries) == len(entries)
    assert len(cache) == len(entries)
    found = cache.get_many(["no such key", *entries, "nor this one"])
    assert found == entries
    assert list(found) == list(entries)
    assert cache.delete_many([*list(small)[:2000], "no such key"]) == 2000
    assert cache.delete_many(entries) == 3030
    assert len(cache) == 0


def test_nothing_is_many_too(cache: PyroCacheClient) -> None:
    assert cache.get_many([]) == {}
    assert cache.set_many({}) == 0
    assert cache.delete_many([]) == 0


def test_a_key_given_twice_counts_once(cache: PyroCacheClient) -> None:
    assert cache.set_many({1: "one"}) == 1
    assert cache.get_many([1, 1.0, True]) == {1: "one"}
    assert cache.delete_many([1, 1.0, True]) == 1


def test_iteration_gives_every_key_once(cache: PyroCacheClient) -> None:
    kinds: list[Callable[[int], Any]] = [
        str,
        int,
        lambda number: str(number).encode(),
        lambda number: (number, str(number)),
        lambda number: number + 0.5,
        lambda number: frozenset((number, -1)),
    ]
    keys = {kind(number) for kind in kinds for number in range(700)}
    cache.set_many(dict.fromkeys(keys, 0))

    iterated = list(cache)

    assert len(iterated) == len(keys)
    assert set(iterated) == keys
    assert len(set(map(type, iterated))) == len(kinds)


def test_iteration_goes_on_while_others_write(cache: PyroCacheClient) -> None:
    cache.set_many(dict.fromkeys(range(5000), 0))
    seen = []
    for position, key in enumerate(cache):
        seen.append(key)
        if position % 50 == 0:
            cache.set(("new", position), 0)
    there_throughout = [key for key in seen if isinstance(key, int)]
    assert sorted(there_throughout) == list(range(5000))
    assert len(set(seen)) == len(seen)


def test_namespaces_do_not_see_each_other(cluster: LocalCluster) -> None:
    """A cluster of its own, as above."""
    spaces = [cluster.client(), *(cluster.client(namespace=name) for name in ("a", "b", "aa", "é"))]
    for number, space in enumerate(spaces):
        for key in range(10 + number):
            space.set(key, number)
        space.set(f"only in {number}", number)
    for number, space in enumerate(spaces):
        assert len(space) == 11 + number
        assert set(space) == {*range(10 + number), f"only in {number}"}
        assert set(space.get_many(range(20)).values()) == {number}
        assert f"only in {number + 1}" not in space
    assert spaces[1].clear() == 12
    assert [len(space) for space in spaces] == [11, 0, 13, 14, 15]
    assert spaces[0].clear() == 11
    assert [len(space) for space in spaces] == [0, 0, 13, 14, 15]
    for space in spaces:
        space.clear()
    eventually(lambda: spaces[0].stats().total.entries == 0)


# Keys are the same everywhere --------------------------------------------------------------------------------

KEYS_OF_ALL_KINDS = '''
import datetime
import enum
from dataclasses import dataclass
from fractions import Fraction

KINDS = ("str", "bytes", "int", "tuple", "dataclass", "dict", "enum", "date")
EACH = 12_500
TWINS = 200


@dataclass(frozen=True)
class Point:
    x: int
    name: str


Colour = enum.Enum("Colour", {f"C{number}": number for number in range(EACH)}, module=__name__)


def key(kind, number):
    """One of the keys, made anew."""
    text = "".join(["key ", str(number)])
    match kind:
        case "str":
            return text
        case "bytes":
            return text.encode()
        case "int":
            return number - EACH // 2
        case "tuple":
            return (text, number, (None, True))
        case "dataclass":
            return Point(number, text)
        case "dict":
            return {text: number, number: text, "set": {text, number}}
        case "enum":
            return Colour(number)
        case "date":
            return datetime.date.fromordinal(700_000 + number)


def twin(kind, number):
    """A key equal to that one, and as different from it as it can be."""
    text = "".join(["key ", str(number)])
    match kind:
        case "int":
            return float(number - EACH // 2)
        case "tuple":
            return (text, Fraction(number), (None, 1.0))
        case "dataclass":
            return Point(name=text, x=float(number))
        case "dict":
            return {"set": {float(number), text}, number: text, text: number}
        case "bytes":
            return bytes(bytearray(text, "ascii"))
        case _:
            return key(kind, number)


def hashable(kind):
    return kind != "dict"


def everything():
    """The keys, the value of each, by kind."""
    for kind in KINDS:
        yield kind, [(key(kind, number), f"{kind} {number}") for number in range(EACH)]
'''

WRITE = """
import sys
from keys_of_all_kinds import *
from pyrocache import PyroCacheClient

cache = PyroCacheClient(sys.argv[1], timeout=30.0)
for kind, entries in everything():
    if hashable(kind):
        assert cache.set_many(dict(entries)) == len(entries)
    else:
        for key_, value in entries:
            cache.set(key_, value)
assert len(cache) == 100_000, len(cache)
"""

READ = """
import sys
from keys_of_all_kinds import *
from pyrocache import PyroCacheClient

cache = PyroCacheClient(sys.argv[1], timeout=30.0)
for kind, entries in everything():
    if hashable(kind):
        assert cache.get_many(dict(entries)) == dict(entries), kind
    else:
        assert all(cache.get(key_) == value for key_, value in entries), kind
    for number in range(TWINS):
        first, second = key(kind, number), twin(kind, number)
        assert first == second and (first is not second or kind == "enum"), kind
        assert cache.get(second) == f"{kind} {number}", (kind, number)
        cache.set(second, "seen")
        assert cache.get(first) == "seen", (kind, number)
assert len(cache) == 100_000, len(cache)
"""


@pytest.mark.full
def test_a_hundred_thousand_keys_of_all_kinds_are_found_in_another_process(
    cache: PyroCacheClient, shared_cluster: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "keys_of_all_kinds.py").write_text(KEYS_OF_ALL_KINDS)
    for seed, program in (("1", WRITE), ("2", READ)):
        path = os.pathsep.join([str(ROOT), str(tmp_path)])
        done = subprocess.run(
            [sys.executable, "-c", program, shared_cluster.nameserver],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60.0,
        )
        assert done.returncode == 0, done.stderr
    assert len(cache) == 100_000
    assert cache.stats().total.evictions == 0
