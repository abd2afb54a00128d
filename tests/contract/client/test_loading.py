"""A missing value is loaded once, however many ask for it, and whatever becomes of the one who loads it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import pytest

from pyrocache import (
    ClientClosed,
    LocalCluster,
    NodeUnavailable,
    PyroCacheClient,
    WaitTimeout,
)
from pyrocache.client.features import load_once
from pyrocache.runtime.throttle import Throttle
from tests.support.async_client import at_the_node
from tests.support.nodes import private_cluster
from tests.support.waiting import eventually

SOON = 5.0  # far longer than it takes, and far shorter than any lease


class Slow:
    """A factory that takes until it is told to end, and knows how often it was called."""

    all_of_them: ClassVar[list[Slow]] = []

    def __init__(self, value: object = "loaded") -> None:
        self.all_of_them.append(self)
        self.value = value
        self.calls = 0
        self.began = threading.Event()
        self.end = threading.Event()

    def __call__(self) -> Any:
        self.calls += 1
        self.began.set()
        assert self.end.wait(30)
        return self.value


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(120)
    yield pool
    while Slow.all_of_them:  # whatever became of the test
        Slow.all_of_them.pop().end.set()
    pool.shutdown(wait=False, cancel_futures=True)


def waiting(cache: PyroCacheClient) -> int:
    """How many wait at nodes just now."""
    return cache.stats().total.waiting


# Once --------------------------------------------------------------------------------------------------------


def test_an_existing_value_is_returned_and_the_factory_is_not_called(cache: PyroCacheClient) -> None:
    cache.set("there", "value")
    assert cache.get_or_set("there", lambda: pytest.fail("called")) == "value"


def test_a_missing_value_is_loaded_and_stored_with_its_ttl(cache: PyroCacheClient) -> None:
    assert cache.get_or_set("missing", lambda: "loaded", ttl_seconds=60) == "loaded"
    assert cache.get("missing") == "loaded"
    assert 50 < (cache.ttl("missing") or 0) <= 60


def test_none_is_a_value_like_any_other(cache: PyroCacheClient) -> None:
    assert cache.get_or_set("none", lambda: None) is None
    assert cache.get_or_set("none", lambda: pytest.fail("called")) is None


def test_a_hundred_threads_load_once(cache: PyroCacheClient, threads: ThreadPoolExecutor) -> None:
    factory = Slow({"some": "value"})
    callers = [threads.submit(cache.get_or_set, "slow", factory) for _ in range(100)]
    eventually(lambda: waiting(cache) == at_the_node(cache, 99))
    factory.end.set()
    assert [caller.result(SOON) for caller in callers] == [{"some": "value"}] * 100
    assert factory.calls == 1
    assert waiting(cache) == 0


MANY = """
    import sys, threading, time
    from concurrent.futures import ThreadPoolExecutor
    from pyrocache import PyroCacheClient

    cache = PyroCacheClient(sys.argv[1])
    others = PyroCacheClient(sys.argv[1])

    def factory():
        others.incr("calls")
        time.sleep(0.5)
        return "loaded"

    def ask(_):
        together.wait()
        return cache.get_or_set("slow", factory)

    together = threading.Barrier(26)
    with ThreadPoolExecutor(25) as threads:
        results = [threads.submit(ask, number) for number in range(25)]
        others.get("calls")
        print("ready", flush=True)
        sys.stdin.readline()
        together.wait()
        assert [result.result() for result in results] == ["loaded"] * 25
    print("done", flush=True)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that runs ``code``."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str = "go") -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


@pytest.mark.asyncio_full
def test_two_hundred_callers_in_eight_processes_load_once(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(start(MANY, shared_cluster.nameserver)) for _ in range(8)]
        assert [said(process) for process in processes] == ["ready"] * 8
        since = time.monotonic()
        for process in processes:
            tell(process)
        assert [said(process) for process in processes] == ["done"] * 8
        print(f"all of them had the value after {time.monotonic() - since:.2f} s")
        assert time.monotonic() - since < 10
    assert cache.get("calls") == 1


# Loaders that do not end well --------------------------------------------------------------------------------


def test_an_exception_of_the_factory_reaches_its_caller_and_another_caller_loads(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    problem = LookupError("the database is away")
    began, end = threading.Event(), threading.Event()

    def fail() -> str:
        began.set()
        assert end.wait(30)
        raise problem

    first = threads.submit(cache.get_or_set, "key", fail)
    assert began.wait(SOON)
    others = [threads.submit(cache.get_or_set, "key", lambda: "loaded") for _ in range(10)]
    eventually(lambda: waiting(cache) == at_the_node(cache, 10))
    end.set()
    assert first.exception(SOON) is problem
    assert [other.result(SOON) for other in others] == ["loaded"] * 10


def test_each_of_many_factories_that_fail_is_called_by_its_own_caller(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    def fail(number: int) -> None:
        time.sleep(0.002)
        raise ValueError(number)

    callers = [threads.submit(cache.get_or_set, "key", lambda n=n: fail(n)) for n in range(40)]
    assert [str(caller.exception(SOON)) for caller in callers] == [str(n) for n in range(40)]
    assert cache.get("key") is None


@pytest.mark.parametrize(
    ("value", "reason"), [(lambda: 0, "does not pickle"), (b"x" * 2**26, "store it in parts")]
)
def test_a_value_that_cannot_be_stored_is_returned_and_another_one_loads(
    cache: PyroCacheClient,
    threads: ThreadPoolExecutor,
    value: object,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    factory = Slow(value)
    first = threads.submit(cache.get_or_set, "key", factory)
    assert factory.began.wait(SOON)
    second = threads.submit(cache.get_or_set, "key", lambda: "loaded")
    eventually(lambda: waiting(cache) == 1)
    factory.end.set()
    assert first.result(SOON) is value
    assert second.result(SOON) == "loaded"
    assert cache.stats().client.loads_not_stored == 1
    assert reason in caplog.text


@pytest.mark.parametrize("early", [0, 1e9])
def test_a_memoized_result_that_cannot_be_stored_is_returned_and_logged_once(
    cache: PyroCacheClient,
    early: float,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_once, "_once", Throttle(math.inf))
    callables: Any = [7]  # the first result is stored; an early refresh then makes one that is not

    @cache.memoize(ttl_seconds=60, early=early)
    def f() -> Any:
        time.sleep(0.001)
        return callables.pop() if callables else threading.Lock()

    if early:
        assert f() == 7
    callables.clear()
    for _ in range(3):
        assert not f().locked()
    assert cache.stats().client.loads_not_stored == 3
    assert len([record for record in caplog.records if "not stored" in record.getMessage()]) == 1


def test_an_async_result_that_cannot_be_stored_is_returned(cache: PyroCacheClient) -> None:
    @cache.memoize()
    async def f() -> Any:
        return threading.Lock()

    assert not asyncio.run(f()).locked()  # type: ignore[arg-type]
    assert cache.stats().client.loads_not_stored == 1


def test_a_result_is_returned_if_its_client_was_closed_meanwhile(shared_cluster: LocalCluster) -> None:
    cache = shared_cluster.client()
    assert cache.get_or_set("closed meanwhile", lambda: [cache.close(), 7][1]) == 7


class Interrupt(BaseException):
    """What a signal handler raises."""


class Limit(TimeoutError):
    """What another one raises."""


@contextmanager
def interrupted_after(seconds: float, kind: type[BaseException] = Interrupt) -> Iterator[None]:
    """The main thread is interrupted, unless it is out of this by then."""

    def interrupt(*_: object) -> None:
        raise kind

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.asyncio_full
@pytest.mark.parametrize("kind", [Interrupt, Limit])
def test_a_loader_that_is_interrupted_frees_the_lease_at_once(
    kind: type[BaseException], cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    began = threading.Event()

    def factory() -> None:
        began.set()
        time.sleep(20)

    second = threads.submit(lambda: began.wait(SOON) and cache.get_or_set("key", lambda: "loaded"))
    with pytest.raises(kind), interrupted_after(0.3, kind):
        cache.get_or_set("key", factory)
    assert second.result(SOON) == "loaded"


def test_a_time_limit_during_an_early_refresh_is_no_failure_of_the_refresh(cache: PyroCacheClient) -> None:
    cache.get_or_set("key", lambda: time.sleep(0.01) or "loaded", ttl_seconds=60)
    with pytest.raises(Limit), interrupted_after(0.3, Limit):
        cache.get_or_set("key", lambda: time.sleep(20), ttl_seconds=60, early=1e9)
    assert cache.get("key") == "loaded"


def test_an_interrupted_waiter_leaves_the_queue(cache: PyroCacheClient, threads: ThreadPoolExecutor) -> None:
    factory = Slow()
    first = threads.submit(cache.get_or_set, "key", factory)
    assert factory.began.wait(SOON)
    with pytest.raises(Interrupt), interrupted_after(0.3):
        cache.get_or_set("key", lambda: pytest.fail("called"))
    eventually(lambda: waiting(cache) == 0)
    factory.end.set()
    assert first.result(SOON) == "loaded"
    assert cache.get_or_set("key", lambda: pytest.fail("called")) == "loaded"


LOADER = """
    import os, sys, time
    from pyrocache import PyroCacheClient

    cache = PyroCacheClient(sys.argv[1], transport=sys.argv[2])

    def factory():
        print(child_that_has_the_descriptors() if sys.argv[3] == "survives" else 0, flush=True)
        time.sleep(60)

    def child_that_has_the_descriptors():
        import ctypes
        pid = ctypes.CDLL(None).fork()  # past the hooks of os.fork, which close its copies
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        return pid

    cache.get_or_set("key", factory, lease_seconds=float(sys.argv[4]))
"""


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_when_the_loader_is_killed_another_one_loads_at_once(
    shared_cluster: LocalCluster, cache: PyroCacheClient, threads: ThreadPoolExecutor, transport: str
) -> None:
    with start(LOADER, shared_cluster.nameserver, transport, "ends", "3600") as loader:
        assert said(loader) == "0"
        callers = [threads.submit(cache.get_or_set, "key", lambda: "loaded") for _ in range(20)]
        eventually(lambda: waiting(cache) == at_the_node(cache, 20))
        since = time.monotonic()
        loader.kill()
        assert [caller.result(SOON) for caller in callers] == ["loaded"] * 20
        print(f"the value was there {time.monotonic() - since:.3f} s after the loader was killed")


@pytest.mark.full
def test_when_its_connection_outlives_the_loader_another_one_loads_once_the_lease_is_over(
    shared_cluster: LocalCluster, cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    with start(LOADER, shared_cluster.nameserver, "auto", "survives", "2") as loader:
        survivor = int(said(loader))
        since = time.monotonic()
        try:
            callers = [threads.submit(cache.get_or_set, "key", lambda: "loaded") for _ in range(20)]
            eventually(lambda: waiting(cache) == at_the_node(cache, 20))
            loader.kill()
            assert [caller.result(2 + SOON) for caller in callers] == ["loaded"] * 20
            took = time.monotonic() - since
        finally:
            os.kill(survivor, signal.SIGKILL)
        assert took > 1.0, "its connection was to outlive it"
        print(f"the value was there {took - 2:.3f} s after the lease was over")


def test_a_loader_that_forks_does_not_leave_its_lease_to_the_child(
    shared_cluster: LocalCluster, cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    code = LOADER.replace("ctypes.CDLL(None).fork()", "os.fork()")
    with start(code, shared_cluster.nameserver, "auto", "survives", "3600") as loader:
        survivor = int(said(loader))
        try:
            caller = threads.submit(cache.get_or_set, "key", lambda: "loaded")
            eventually(lambda: waiting(cache) == 1)
            loader.kill()
            assert caller.result(SOON) == "loaded"
        finally:
            os.kill(survivor, signal.SIGKILL)


def test_a_lease_is_over_after_its_time_though_its_loader_lives(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    slow = Slow("outdated")
    first = threads.submit(cache.get_or_set, "key", slow, lease_seconds=0.3)
    assert slow.began.wait(SOON)
    assert cache.get_or_set("key", lambda: "loaded") == "loaded"
    slow.end.set()
    assert first.result(SOON) == "outdated"
    assert cache.get("key") == "loaded"


# What is newer than what was loaded --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "afterwards"),
    [
        (lambda cache: cache.delete("key"), None),
        (lambda cache: cache.delete_many(["key"]), None),
        (lambda cache: cache.pop("key", None), None),
        (lambda cache: cache.clear(), None),
        (lambda cache: cache.invalidate_tag("tag"), None),
        (lambda cache: cache.set("key", "newer"), "newer"),
        (lambda cache: cache.set("key", "newer", tags=["other"]), "newer"),
        (lambda cache: cache.add("key", "newer"), "newer"),
        (lambda cache: cache.set_many({"key": "newer"}), "newer"),
        (lambda cache: cache.setdefault("key", "newer"), "newer"),
        (lambda cache: cache.incr("key", 7), 7),
        (lambda cache: cache.compute("key", lambda _: "newer", default=0), "newer"),
    ],
)
def test_a_value_that_was_loaded_before_its_key_changed_is_returned_but_not_stored(
    cache: PyroCacheClient, threads: ThreadPoolExecutor, change: Callable[[Any], object], afterwards: object
) -> None:
    slow = Slow("outdated")
    first = threads.submit(cache.get_or_set, "key", slow, tags=["tag"])
    assert slow.began.wait(SOON)
    change(cache)
    slow.end.set()
    assert first.result(SOON) == "outdated"
    assert cache.get("key") == afterwards


@pytest.mark.parametrize(
    "leave_alone",
    [
        lambda cache: cache.set("another", 1),
        lambda cache: cache.delete("another"),
        lambda cache: cache.replace("key", "not there"),
        lambda cache: cache.touch("key", 10),
        lambda cache: cache.get("key"),
        lambda cache: cache.namespace("inner").clear(),
        lambda cache: cache.namespace("inner").set("key", 1),
        lambda cache: cache.invalidate_tag("another"),
        lambda cache: cache.namespace("inner").invalidate_tag("tag"),
    ],
)
def test_a_load_is_stored_if_its_key_did_not_change(
    cache: PyroCacheClient, threads: ThreadPoolExecutor, leave_alone: Callable[[Any], object]
) -> None:
    slow = Slow()
    first = threads.submit(cache.get_or_set, "key", slow, tags=["tag"])
    assert slow.began.wait(SOON)
    leave_alone(cache)
    cache.namespace("inner").clear()
    slow.end.set()
    assert first.result(SOON) == "loaded"
    assert cache.get("key") == "loaded"


def test_waiting_callers_get_a_value_as_soon_as_it_is_set(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    slow = Slow("outdated")
    first = threads.submit(cache.get_or_set, "key", slow)
    assert slow.began.wait(SOON)
    others = [threads.submit(cache.get_or_set, "key", lambda: pytest.fail("called")) for _ in range(5)]
    eventually(lambda: waiting(cache) == at_the_node(cache, 5))
    cache.set("key", "newer")
    assert [other.result(SOON) for other in others] == ["newer"] * 5
    slow.end.set()
    assert first.result(SOON) == "outdated"


def test_after_a_delete_one_of_the_waiting_callers_loads_again(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    slow = Slow("outdated")
    first = threads.submit(cache.get_or_set, "key", slow)
    assert slow.began.wait(SOON)
    others = [threads.submit(cache.get_or_set, "key", lambda: "loaded") for _ in range(5)]
    eventually(lambda: waiting(cache) == at_the_node(cache, 5))
    cache.delete("key")
    assert [other.result(SOON) for other in others] == ["loaded"] * 5
    slow.end.set()
    assert first.result(SOON) == "outdated"
    assert cache.get("key") == "loaded"


@pytest.mark.asyncio_full
def test_no_caller_gets_a_value_that_was_invalidated_before_its_call(
    shared_cluster: LocalCluster, cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    versions = [0] * 3  # in the database, so to speak
    invalidated = [0] * 3
    until = time.monotonic() + 1
    clients = [cache, shared_cluster.client()]

    def load(key: int) -> int:
        version = versions[key]
        time.sleep(random.random() * 0.004)
        return version

    def write(key: int) -> None:
        while time.monotonic() < until:
            versions[key] += 1
            version = versions[key]
            random.choice([cache.delete, lambda key: cache.invalidate_tag(f"tag {key}")])(key)
            invalidated[key] = version
            time.sleep(random.random() * 0.004)

    def read(number: int) -> int:
        reads = 0
        while time.monotonic() < until:
            key = random.randrange(3)
            before = invalidated[key]
            client = clients[number % 2]
            version = client.get_or_set(
                key, partial(load, key), ttl_seconds=random.choice([None, 0.01]), tags=[f"tag {key}"]
            )
            assert version >= before, "what was loaded before an invalidation was stored after it"
            reads += 1
        return reads

    writers = [threads.submit(write, key) for key in range(3)]
    readers = [threads.submit(read, number) for number in range(16)]
    for writer in writers:
        writer.result(30)
    assert sum(reader.result(30) for reader in readers) > 100
    assert cache.stats().total.leases == 0


def test_a_loaded_value_has_its_tags(cache: PyroCacheClient) -> None:
    cache.get_or_set("key", lambda: "loaded", tags=["tag"])
    assert cache.invalidate_tag("tag") == 1
    assert cache.get("key") is None


# Expired and about to expire ---------------------------------------------------------------------------------


def test_an_expired_value_is_good_enough_while_one_caller_loads_a_new_one(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    cache.get_or_set("key", lambda: "old", ttl_seconds=0.2, stale_seconds=60)
    eventually(lambda: cache.get("key") is None)
    slow = Slow("new")
    first = threads.submit(cache.get_or_set, "key", slow, stale_seconds=60)
    assert slow.began.wait(SOON)
    assert cache.get_or_set("key", lambda: pytest.fail("called"), stale_seconds=60) == "old"
    assert cache.get("key") is None, "only those who ask for it get an expired value"
    slow.end.set()
    assert first.result(SOON) == "new"
    assert cache.get("key") == "new"


def test_an_expired_value_is_of_no_use_once_its_time_is_over_too(cache: PyroCacheClient) -> None:
    cache.get_or_set("key", lambda: "old", ttl_seconds=0.1, stale_seconds=0.2)
    time.sleep(0.4)
    assert cache.get_or_set("key", lambda: "new", stale_seconds=0.2) == "new"


def early_loads(cache: PyroCacheClient, early: float, load_seconds: float) -> int:
    """How often a value that would live for a minute was loaded anew in a hundred calls."""
    loads = 0

    def factory() -> int:
        nonlocal loads
        loads += 1
        time.sleep(load_seconds)
        return loads

    for _ in range(100):
        cache.get_or_set("key", factory, ttl_seconds=60, early=early)
    return loads - 1


def test_a_value_is_refreshed_the_earlier_the_longer_that_takes_and_never_unless_asked_for(
    cache: PyroCacheClient,
) -> None:
    assert early_loads(cache, 0.0, 0.01) == 0
    cache.clear()
    assert early_loads(cache, 1.0, 0.001) == 0
    cache.clear()
    assert early_loads(cache, 1e6, 0.001) > 10


def test_an_early_refresh_that_fails_returns_the_existing_value(
    cache: PyroCacheClient,
) -> None:
    def fail() -> None:
        calls.append(1)
        raise LookupError

    calls: list[int] = []
    cache.get_or_set("key", lambda: time.sleep(0.01) or "live", ttl_seconds=60, early=1e6)
    for _ in range(20):
        assert cache.get_or_set("key", fail, early=1e6) == "live"
    assert calls


def test_a_value_is_refreshed_early_by_one_caller_at_a_time(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    cache.get_or_set("key", lambda: time.sleep(0.01) or "live", ttl_seconds=60)
    slow = Slow("new")
    first = threads.submit(lambda: [cache.get_or_set("key", slow, early=1e9) for _ in range(3)])
    assert slow.began.wait(SOON)
    others = [threads.submit(cache.get_or_set, "key", slow, early=1e9) for _ in range(20)]
    assert [other.result(SOON) for other in others] == ["live"] * 20
    assert slow.calls == 1
    slow.end.set()
    assert first.result(SOON)[0] == "new"


# Waiting -----------------------------------------------------------------------------------------------------


def test_a_caller_that_waited_for_wait_seconds_gets_a_wait_timeout(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    slow = Slow()
    first = threads.submit(cache.get_or_set, "key", slow)
    assert slow.began.wait(SOON)
    for seconds in (0, 0.2):
        since = time.monotonic()
        with pytest.raises(WaitTimeout, match="wait_seconds") as caught:
            cache.get_or_set("key", lambda: pytest.fail("called"), wait_seconds=seconds)
        assert isinstance(caught.value, TimeoutError)
        assert seconds <= time.monotonic() - since < seconds + SOON
    slow.end.set()
    assert first.result(SOON) == "loaded"


@pytest.mark.asyncio_full
def test_waiting_takes_longer_than_any_other_call_may(
    shared_cluster: LocalCluster, cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    impatient = shared_cluster.client(timeout=0.2)
    slow = Slow()
    first = threads.submit(cache.get_or_set, "key", slow)
    assert slow.began.wait(SOON)
    second = threads.submit(impatient.get_or_set, "key", lambda: pytest.fail("called"))
    time.sleep(0.6)
    assert not second.done()
    slow.end.set()
    assert first.result(SOON) == second.result(SOON) == "loaded"


def test_a_wait_spans_several_poll_intervals(
    cache: PyroCacheClient, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrocache.client.features.pinned_wait.POLL_SECONDS", 0.05)
    slow = Slow()
    first = threads.submit(cache.get_or_set, "key", slow)
    assert slow.began.wait(SOON)
    second = threads.submit(cache.get_or_set, "key", lambda: pytest.fail("called"))
    time.sleep(0.3)
    slow.end.set()
    assert first.result(SOON) == second.result(SOON) == "loaded"


def test_waiting_callers_do_not_block_other_calls(
    shared_cluster: LocalCluster, threads: ThreadPoolExecutor
) -> None:
    with shared_cluster.client() as cache:
        cache.clear()
        slow = Slow()
        callers = [threads.submit(cache.get_or_set, "key", slow) for _ in range(100)]
        eventually(lambda: waiting(cache) == at_the_node(cache, 99))
        for number in range(200):
            cache.set(number, number)
            assert cache.get(number) == number
        assert cache.get_or_set("another key", lambda: 1) == 1
        slow.end.set()
        assert {caller.result(SOON) for caller in callers} == {"loaded"}


@pytest.mark.blocking_only("is about pinned connections")
def test_factories_that_load_other_values_in_turn_never_wait_for_each_other(
    shared_cluster: LocalCluster, threads: ThreadPoolExecutor
) -> None:
    with shared_cluster.client() as cache:
        cache.clear()
        cache._context.backend._router._pinning._max_per_node = 3

        def outer(number: int) -> tuple[int, int]:
            return number, cache.get_or_set(("inner", number % 7), lambda: inner(number % 7))

        def inner(number: int) -> int:
            time.sleep(0.01)
            return cache.get_or_set(("innermost", number % 3), lambda: number)

        together = [
            threads.submit(cache.get_or_set, ("outer", n % 50), lambda n=n: outer(n % 50)) for n in range(100)
        ]
        for number, caller in enumerate(together):
            assert caller.result(30)[0] == number % 50


def test_a_factory_that_asks_for_its_own_key_does_not_wait_for_itself(cache: PyroCacheClient) -> None:
    assert (
        cache.get_or_set("key", lambda: cache.get_or_set("key", lambda: "inner") + " outer") == "inner outer"
    )
    assert cache.get("key") == "inner outer"


def test_closing_the_client_ends_the_waiting(
    shared_cluster: LocalCluster, cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    client = shared_cluster.client()
    slow, other = Slow(), Slow("of the other")
    loader = threads.submit(client.get_or_set, "key", slow)
    elsewhere = threads.submit(cache.get_or_set, "another", other)
    assert slow.began.wait(SOON)
    assert other.began.wait(SOON)
    waiter = threads.submit(client.get_or_set, "another", lambda: pytest.fail("called"))
    eventually(lambda: waiting(cache) == 1)
    client.close()
    with pytest.raises(ClientClosed):
        waiter.result(SOON)
    assert cache.get_or_set("key", lambda: "loaded at once") == "loaded at once"
    slow.end.set()
    other.end.set()
    assert loader.result(SOON) == "loaded", "its work is not in vain"
    assert elsewhere.result(SOON) == "of the other"
    assert cache.get("key") == "loaded at once"


def test_a_forked_child_loads_for_itself(cache: PyroCacheClient, threads: ThreadPoolExecutor) -> None:
    slow = Slow()
    loader = threads.submit(cache.get_or_set, "key", slow)
    assert slow.began.wait(SOON)
    pid = os.fork()
    if pid == 0:
        good = cache.get_or_set("child", lambda: 1) == 1 and cache.get_or_set("key", lambda: 0) == "loaded"
        os._exit(0 if good else 1)
    eventually(lambda: waiting(cache) == 1)
    slow.end.set()
    assert loader.result(SOON) == "loaded"
    assert os.waitpid(pid, 0)[1] == 0


# Unreachable nodes -------------------------------------------------------------------------------------------


@pytest.mark.asyncio_full
def test_an_unreachable_node_is_an_error_or_the_factory_is_called() -> None:
    calls = []

    def factory() -> str:
        calls.append(1)
        return "loaded"

    with private_cluster(nodes=1) as cluster:
        strict, lenient = cluster.client(timeout=1), cluster.client(timeout=1, on_error="miss")
        strict.get("key"), lenient.get("key")
        cluster.kill(0)
        with pytest.raises(NodeUnavailable):
            strict.get_or_set("key", factory)
        assert not calls
        assert lenient.get_or_set("key", factory) == "loaded"
        assert len(calls) == 1
        assert lenient.stats().client.misses_on_error


@pytest.mark.asyncio_full
@pytest.mark.parametrize("on_error", ["raise", "miss"])
def test_a_value_whose_node_died_during_the_load_is_returned(on_error: Any) -> None:
    with private_cluster(nodes=1) as cluster, ThreadPoolExecutor(2) as threads:
        cache = cluster.client(timeout=1, on_error=on_error)
        slow = Slow()
        first = threads.submit(cache.get_or_set, "key", slow)
        assert slow.began.wait(SOON)
        waiter = threads.submit(cache.get_or_set, "key", lambda: "loaded by itself")
        time.sleep(0.2)
        cluster.kill(0)
        if on_error == "raise":
            with pytest.raises(NodeUnavailable):
                waiter.result(SOON)
        else:
            assert waiter.result(SOON) == "loaded by itself"
        slow.end.set()
        assert first.result(SOON) == "loaded"
        assert cache.stats().client.loads_not_stored >= 1


def test_waiting_callers_follow_a_key_to_its_new_owner() -> None:
    with private_cluster(nodes=1) as cluster, ThreadPoolExecutor(50) as threads:
        cache = cluster.client()
        factories = {number: Slow(number) for number in range(12)}
        loaders = [threads.submit(cache.get_or_set, number, slow) for number, slow in factories.items()]
        assert all(slow.began.wait(SOON) for slow in factories.values())
        waiters = [threads.submit(cache.get_or_set, number, lambda n=number: n) for number in factories]
        eventually(lambda: waiting(cache) == 12)
        cluster.add_node()
        moved = eventually(lambda: {n for n in factories if cache.node_for(n).name.endswith(".2")})
        for number in moved:
            assert waiters[number].result(SOON) == number, "its new owner knows of no lease"
        for slow in factories.values():
            slow.end.set()
        assert [waiter.result(SOON) for waiter in waiters] == list(factories)
        assert [loader.result(SOON) for loader in loaders] == list(factories)
        assert [cache.get(number) for number in factories] == list(factories)


# Arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ttl_seconds": 0}, ValueError),
        ({"stale_seconds": -1}, ValueError),
        ({"stale_seconds": "1"}, TypeError),
        ({"early": float("nan")}, ValueError),
        ({"early": True}, TypeError),
        ({"wait_seconds": -0.1}, ValueError),
        ({"wait_seconds": float("inf")}, ValueError),
        ({"lease_seconds": 0}, ValueError),
        ({"lease_seconds": None}, TypeError),
        ({"tags": "one text"}, TypeError),
        ({"tags": [b"bytes"]}, TypeError),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_loaded(
    cache: PyroCacheClient, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        cache.get_or_set("key", lambda: pytest.fail("called"), **options)


@pytest.mark.blocking_only("the asyncio client awaits it")
def test_a_coroutine_is_not_a_valid_value(cache: PyroCacheClient) -> None:
    async def load() -> int:
        return 1

    with pytest.raises(TypeError, match="for async def there is memoize"):
        cache.get_or_set("key", load)
    assert cache.get_or_set("key", lambda: 2, wait_seconds=0) == 2


def test_a_forked_child_does_not_store_what_its_parent_is_to_load(cache: PyroCacheClient) -> None:
    def load() -> str:
        child = os.fork()
        if not child:
            return "child"
        os.waitpid(child, 0)
        assert cache.get("key") is None
        return "parent"

    parent = os.getpid()
    try:
        value = cache.get_or_set("key", load)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert value == cache.get("key") == "parent"
