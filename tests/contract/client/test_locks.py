"""Locks that several processes share, and holders that are killed, stopped, cut off or forked."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pyrocache import (
    ClientClosed,
    LocalCluster,
    Lock,
    LockLost,
    LockTimeout,
    NodeUnavailable,
    OutOfResources,
    PyroCacheClient,
)
from pyrocache.client.features.locks import _renewer
from pyrocache.runtime import clock
from tests.support.nodes import private_cluster
from tests.support.secrets import remote
from tests.support.waiting import eventually

SOON = 5.0  # far longer than it takes, and far shorter than any lock lives that is not renewed


def waiting(cache: PyroCacheClient) -> int:
    """Return how many calls wait at nodes."""
    return cache.stats().total.waiting


def acquired(lock: Lock) -> int:
    """Acquire a lock and return its token."""
    assert lock.acquire()
    return lock.token or 0


def is_free(cache: PyroCacheClient, name: object = "name") -> bool:
    """Return whether a lock can be acquired at once."""
    try:
        with cache.lock(name, wait_seconds=0):
            return True
    except LockTimeout:
        return False


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(64)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)


# Holding and waiting -----------------------------------------------------------------------------------------


def test_a_lock_has_one_holder_and_is_free_afterwards(cache: PyroCacheClient) -> None:
    with cache.lock("name") as lock:
        assert lock.held
        assert not is_free(cache)
        assert is_free(cache, "another")
        assert cache.stats().total.locks == 1
    assert not lock.held
    assert lock.token is None
    assert is_free(cache)


def test_a_lock_is_no_entry_and_of_its_namespace(cache: PyroCacheClient) -> None:
    with cache.lock("name"):
        assert cache.get("name") is None
        assert len(cache) == 0
        cache.set("name", "value")
        cache.clear()
        assert not is_free(cache)
        assert is_free(cache.namespace("inner"))


def test_a_name_is_any_key(cache: PyroCacheClient) -> None:
    with cache.lock(("report", 7)):
        assert not is_free(cache, ("report", 7.0))
        assert is_free(cache, ("report", 8))


def test_threads_take_turns_with_one_lock_object(cache: PyroCacheClient, threads: ThreadPoolExecutor) -> None:
    lock = cache.lock("name")
    tokens: list[int] = []
    inside = 0

    def work() -> None:
        nonlocal inside
        for _ in range(10):
            with lock:
                inside += 1
                assert inside == 1
                assert lock.held
                tokens.append(lock.token or 0)
                inside -= 1

    for done in [threads.submit(work) for _ in range(16)]:
        done.result(30)
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 160


def test_waiting_callers_acquire_in_the_order_of_their_calls(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    order: list[int] = []

    def work(number: int) -> None:
        with cache.lock("name"):
            order.append(number)

    with cache.lock("name"):
        done = []
        for number in range(8):
            done.append(threads.submit(work, number))
            eventually(lambda number=number: waiting(cache) == number + 1)
    for one in done:
        one.result(SOON)
    assert order == list(range(8))


def test_a_caller_that_waited_in_vain_gets_a_lock_timeout(cache: PyroCacheClient) -> None:
    with cache.lock("name"):
        for seconds in (0, 0.2):
            since = time.monotonic()
            with (
                pytest.raises(LockTimeout, match="wait_seconds") as caught,
                cache.lock("name", wait_seconds=seconds),
            ):
                pass
            assert isinstance(caught.value, TimeoutError)
            assert seconds <= time.monotonic() - since < seconds + SOON
            since = time.monotonic()
            assert not cache.lock("name", wait_seconds=seconds).acquire()
            assert seconds <= time.monotonic() - since < seconds + SOON


@pytest.mark.asyncio_full
def test_a_wait_spans_several_poll_intervals_and_keeps_its_place_in_the_queue(
    cache: PyroCacheClient, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def work(name: str) -> None:
        with cache.lock("name"):
            order.append(name)

    monkeypatch.setattr("pyrocache.client.features.pinned_wait.POLL_SECONDS", 0.1)
    with cache.lock("name"):
        early = threads.submit(work, "early")
        eventually(lambda: waiting(cache) == 1)
        time.sleep(0.25)
        late = threads.submit(work, "late")
        time.sleep(0.25)
        # A caller that is between two requests when the lock is released is passed over: let both wait for long now.
        monkeypatch.undo()
        time.sleep(0.25)
        eventually(lambda: waiting(cache) == 2)
    early.result(SOON)
    late.result(SOON)
    assert order == ["early", "late"]


def test_only_its_holder_releases_it(cache: PyroCacheClient) -> None:
    first, second = cache.lock("name"), cache.lock("name", wait_seconds=0)
    first.acquire()
    with pytest.raises(RuntimeError, match="does not hold"):
        second.release()
    assert not is_free(cache)
    first.release()
    with pytest.raises(RuntimeError, match="does not hold"):
        first.release()


def test_it_is_not_reentrant_and_says_so(cache: PyroCacheClient) -> None:
    with cache.lock("name") as lock, pytest.raises(RuntimeError, match="reentrant"):
        lock.acquire()
    assert is_free(cache)


def test_a_thread_that_waited_in_vain_releases_nothing(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    lock = cache.lock("name", wait_seconds=0)
    threads.submit(lock.acquire).result(SOON)
    assert not lock.acquire()
    with pytest.raises(RuntimeError, match="does not hold"):
        lock.release()
    assert not is_free(cache)


def test_a_semaphore_has_up_to_n_holders(cache: PyroCacheClient, threads: ThreadPoolExecutor) -> None:
    semaphore = cache.semaphore("name", 3)
    inside, most = 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with semaphore:
                with counting:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with counting:
                    inside -= 1

    for done in [threads.submit(work) for _ in range(16)]:
        done.result(30)
    assert most == 3


def test_a_semaphore_and_a_lock_of_the_same_name_are_two(cache: PyroCacheClient) -> None:
    with cache.semaphore("name", 2), cache.semaphore("name", 2):
        assert is_free(cache)
        assert not cache.semaphore("name", 2, wait_seconds=0).acquire()


def test_an_exception_of_the_body_is_raised(cache: PyroCacheClient) -> None:
    with pytest.raises(LookupError), cache.lock("name"):
        raise LookupError
    assert is_free(cache)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda cache: cache.lock("name", 0), ValueError),
        (lambda cache: cache.lock("name", float("inf")), ValueError),
        (lambda cache: cache.lock("name", None), TypeError),
        (lambda cache: cache.lock("name", wait_seconds=-1), ValueError),
        (lambda cache: cache.lock("name", wait_seconds="1"), TypeError),
        (lambda cache: cache.semaphore("name", 0), ValueError),
        (lambda cache: cache.semaphore("name", True), TypeError),
        (lambda cache: cache.lock("name", thread_local=1), TypeError),
        (lambda cache: cache.lock("name").acquire(False, 1), ValueError),
        (lambda cache: cache.lock("name").acquire(False, 0), ValueError),
        (lambda cache: cache.lock("name").acquire(True, -2), ValueError),
        (lambda cache: cache.lock("name").acquire(timeout=float("nan")), ValueError),
        (lambda cache: cache.lock("name").acquire(timeout="1"), TypeError),
        (lambda cache: cache.lock(float("nan")), ValueError),
    ],
)
def test_invalid_arguments_are_refused(
    cache: PyroCacheClient, make: Callable[[PyroCacheClient], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        make(cache)


# As threading.Lock ---------------------------------------------------------------------------------------------

MAKERS: list[Callable[[PyroCacheClient], Any]] = [
    lambda cache: threading.Lock(),
    lambda cache: cache.lock("name"),
    lambda cache: cache.lock("name", thread_local=False),
    lambda cache: cache.semaphore("name", 1, thread_local=False),
]


@pytest.mark.parametrize("make", MAKERS)
def test_a_call_that_does_not_block_says_whether_it_acquired(
    cache: PyroCacheClient, make: Callable[[PyroCacheClient], Any]
) -> None:
    lock = make(cache)
    assert not lock.locked()
    assert lock.acquire() is True
    assert lock.locked()
    assert lock.acquire(False) is False
    assert lock.acquire(blocking=False) is False
    assert lock.acquire(False, -1) is False
    lock.release()
    assert not lock.locked()
    assert lock.acquire(False) is True
    lock.release()
    assert lock.acquire(True, 5) is True
    lock.release()
    assert lock.acquire(timeout=-1) is True
    lock.release()
    with pytest.raises(RuntimeError):
        lock.release()


def test_it_is_locked_by_whomever_and_whatever_waits(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    other = cache.lock("name")
    with cache.lock("name"):
        assert other.locked()
        waiter = threads.submit(acquired, cache.lock("name"))
        eventually(lambda: waiting(cache) == 1)
        assert other.locked()
    assert waiter.result(SOON)
    two = cache.semaphore("name", 2)
    with cache.semaphore("name", 2):
        assert not two.locked()
        with cache.semaphore("name", 2):
            assert two.locked()


def test_a_timeout_overrides_that_of_the_lock(cache: PyroCacheClient, threads: ThreadPoolExecutor) -> None:
    with cache.lock("name") as lock:
        since = time.monotonic()
        assert not cache.lock("name").acquire(timeout=timedelta(seconds=0.2))
        assert time.monotonic() - since >= 0.2
        assert not cache.lock("name").acquire(timeout=0)
        patient = threads.submit(cache.lock("name", wait_seconds=0).acquire, True, -1)
        eventually(lambda: waiting(cache) == 1)
        lock.release()
        assert patient.result(SOON)
        lock.acquire()


def test_one_thread_may_release_what_another_acquired_if_the_object_is_the_owner(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    lock = cache.lock("name", thread_local=False)
    token = in_a_thread_of_its_own(lambda: acquired(lock))
    assert lock.held
    assert lock.token == token
    assert lock.locked(), "it outlives its thread"
    waiter = threads.submit(acquired, lock)
    eventually(lambda: waiting(cache) == 1)
    lock.release()
    assert waiter.result(SOON) > token
    threads.submit(lock.release).result(SOON)
    assert is_free(cache)


def test_an_object_that_is_the_owner_and_forgotten_holds_nothing(cache: PyroCacheClient) -> None:
    in_a_thread_of_its_own(lambda: acquired(cache.lock("name", 3600, thread_local=False)))
    eventually(lambda: is_free(cache))


def test_an_object_may_hold_several_permits_of_a_semaphore(cache: PyroCacheClient) -> None:
    semaphore = cache.semaphore("name", 2, thread_local=False)
    assert semaphore.acquire()
    assert not semaphore.locked()
    assert semaphore.acquire()
    assert not semaphore.acquire(blocking=False)
    semaphore.release()
    assert semaphore.held
    assert not semaphore.locked()
    semaphore.release()
    assert not semaphore.held
    with pytest.raises(RuntimeError, match="object does not hold"):
        semaphore.release()


@pytest.mark.full
@pytest.mark.asyncio_full
def test_a_late_release_of_a_lock_that_was_lost_leaves_the_new_holder_alone(cluster: LocalCluster) -> None:
    lock = cluster.client(timeout=1).lock("name", ttl_seconds=1, wait_seconds=SOON, thread_local=False)
    assert lock.acquire()
    owner = cluster.client().node_for(("lock", "name")).name
    cluster.restart(next(i for i, node in enumerate(cluster.nodes) if node.name == owner))
    eventually(lambda: not lock.held)
    assert lock.acquire()
    with pytest.raises(LockLost):
        lock.release()
    assert lock.held
    lock.release()


# Interrupted callers -----------------------------------------------------------------------------------------


class Interrupted(BaseException):
    """What a handler of a signal raises."""


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[float], None]]:
    """Have a signal raise `Interrupted` after a number of seconds."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)  # type: ignore[return-value]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.blocking_only("a task is cancelled, and not interrupted between two steps")
@pytest.mark.parametrize("thread_local", [True, False])
def test_an_interrupted_call_holds_nothing(cache: PyroCacheClient, thread_local: bool) -> None:
    random = Random(7)
    lock = cache.lock("name", 3600, thread_local=thread_local)
    kept = []  # an exception refers to what the interrupted functions had
    with lock:
        pass
    since = time.monotonic()
    for _ in range(20):
        with lock:
            pass
    usual = (time.monotonic() - since) / 20
    with interrupts() as interrupt_after:
        for _ in range(400):
            acquired = False
            try:
                interrupt_after(random.random() * usual + 1e-6)
                acquired = lock.acquire()
                lock.release()
                interrupt_after(0)
            except Interrupted as error:
                kept.append(error)
                if acquired and lock.held:  # between the two calls
                    lock.release()
            assert not lock.held
            eventually(lambda: not lock.locked())
            assert lock.acquire(timeout=SOON)
            lock.release()
    assert len(kept) > 20, "they are interrupted"


def test_an_interrupted_wait_leaves_the_queue(cache: PyroCacheClient) -> None:
    with interrupts() as interrupt_after, cache.lock("name"):
        other = cache.lock("name")
        interrupt_after(0.2)
        with pytest.raises(Interrupted):
            other.acquire()
        eventually(lambda: waiting(cache) == 0)
    assert is_free(cache)


def test_a_cancelled_coroutine_whose_thread_waits_for_a_lock_holds_nothing(cache: PyroCacheClient) -> None:
    async def work() -> None:
        lock = cache.lock("name", 3600)
        await asyncio.to_thread(lock.acquire)

    async def cancel_it() -> None:
        task = asyncio.create_task(work())
        while waiting(cache) != 1:
            await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        first.release()

    first = cache.lock("name", thread_local=False)
    first.acquire()
    asyncio.run(cancel_it())
    eventually(lambda: is_free(cache))


# Renewing ----------------------------------------------------------------------------------------------------


def renewing() -> bool:
    """Whether this process has a thread that renews locks."""
    from pyrocache.client.features.locks import _renewer

    return _renewer.running


def test_a_lock_is_renewed_while_it_is_held(cache: PyroCacheClient) -> None:
    with cache.lock("name", ttl_seconds=0.9) as lock:
        time.sleep(1.2)
        assert lock.held
        assert not is_free(cache)


@pytest.mark.blocking_only("the asyncio client has no thread for it")
def test_a_lock_is_renewed_while_it_is_held_by_a_thread_that_ends_afterwards(cache: PyroCacheClient) -> None:
    eventually(lambda: not renewing(), 10)
    descriptors = len(os.listdir("/proc/self/fd"))
    locks = [cache.lock(number, ttl_seconds=0.6) for number in range(20)]
    with contextlib.ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        eventually(renewing, 10)
        time.sleep(1.0)
        assert all(lock.held for lock in locks)
        assert not any(is_free(cache, number) for number in range(20))
    eventually(lambda: not renewing(), 10)
    at_rest = len(locks) + 2 * len(cache.nodes()) + 2  # connections, and a pipe that stays
    assert len(os.listdir("/proc/self/fd")) <= descriptors + at_rest


@pytest.mark.blocking_only("the asyncio client has no thread for it")
def test_if_the_renewing_thread_cannot_be_started_the_lock_is_free_and_later_ones_are_renewed(
    cache: PyroCacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: not renewing(), 10)

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", fail)
        lock = cache.lock("name", ttl_seconds=30)
        with pytest.raises(OutOfResources, match=r"can.t start new thread: raise the limit") as kept:
            lock.acquire()
        assert not lock.held
        assert lock.token is None
    with cache.lock("name", ttl_seconds=0.6, wait_seconds=1) as lock:
        time.sleep(1.5)
        assert lock.held
    assert kept.value.__traceback__ is not None  # it does not keep the lock


def test_a_release_during_a_renewal_releases_the_lock(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    def work(number: int) -> None:
        for _ in range(60):
            with cache.lock(number, ttl_seconds=0.02):  # renewed all the time
                time.sleep(0.005 * Random().random())

    for done in [threads.submit(work, number) for number in range(8)]:
        try:
            done.result(30)
        except LockLost:  # the machine may be too busy for this
            continue
    assert all(is_free(cache, number) for number in range(8))


def test_a_lock_that_nobody_refers_to_is_free(cache: PyroCacheClient) -> None:
    cache.lock("name").acquire()
    eventually(lambda: is_free(cache))


def in_a_thread_of_its_own(function: Callable[[], Any]) -> Any:
    """Return what a function returns in a new thread, after the thread has ended."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(30)
    assert results, "the thread raised, or did not end"
    return results[0]


@pytest.mark.parametrize("ttl_seconds", [3600, 0.3])
def test_a_lock_is_free_when_the_thread_that_holds_it_ends(
    cache: PyroCacheClient, ttl_seconds: float
) -> None:
    lock = cache.lock("name", ttl_seconds)

    def acquire_and_outlive_a_renewal() -> int:
        token = acquired(lock)
        time.sleep(0.5 if ttl_seconds < 1 else 0)
        assert lock.held
        return token

    token = in_a_thread_of_its_own(acquire_and_outlive_a_renewal)
    assert not lock.held
    assert acquired(cache.lock("name", wait_seconds=SOON)) > token


def test_a_thread_does_not_hold_what_an_ended_thread_with_its_identifier_held(cache: PyroCacheClient) -> None:
    lock = cache.lock("name", 3600, wait_seconds=SOON)
    held_before: set[int] = set()

    def acquire_unless_the_identifier_is_used_again() -> bool:
        again = threading.get_ident() in held_before
        held_before.add(threading.get_ident())
        assert not lock.held
        assert lock.token is None
        with pytest.raises(RuntimeError, match="does not hold"):
            lock.release()
        assert lock.acquire()
        return again

    for _ in range(1000):
        if in_a_thread_of_its_own(acquire_unless_the_identifier_is_used_again):
            return
    pytest.skip("this system does not use identifiers of threads again")


# Holders that ended ------------------------------------------------------------------------------------------

HOLDER = """
    import os, sys, time
    from pyrocache import PyroCacheClient

    cache = PyroCacheClient(sys.argv[1], transport=sys.argv[2])
    with cache.lock("name", ttl_seconds=float(sys.argv[3])) as lock:
        print(lock.token, flush=True)
        time.sleep(60)
"""


@contextlib.contextmanager
def holder(nameserver: str, ttl_seconds: float, transport: str = "auto") -> Iterator[tuple[Any, int]]:
    """A process that holds the lock ``"name"``, and its token."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), nameserver, transport, str(ttl_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_a_lock_is_free_at_once_when_its_holder_is_killed(
    shared_cluster: LocalCluster, cache: PyroCacheClient, threads: ThreadPoolExecutor, transport: str
) -> None:
    with holder(shared_cluster.nameserver, 3600, transport) as (process, token):
        waiter = threads.submit(acquired, cache.lock("name"))
        eventually(lambda: waiting(cache) == 1)
        process.kill()
        assert waiter.result(SOON) > token


@pytest.mark.asyncio_full
def test_a_lock_is_free_after_its_time_when_its_holder_is_stopped(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    with holder(shared_cluster.nameserver, 1) as (process, token):
        process.send_signal(signal.SIGSTOP)
        assert acquired(cache.lock("name", wait_seconds=1 + SOON)) > token


@pytest.mark.asyncio_full
def test_a_lock_that_was_lost_is_an_error_when_it_is_released(cluster: LocalCluster) -> None:
    cache = cluster.client(timeout=1)
    lock = cache.lock("name", ttl_seconds=1)
    lock.acquire()
    owner = cache.node_for(("lock", "name")).name
    cluster.restart(next(i for i, node in enumerate(cluster.nodes) if node.name == owner))
    eventually(lambda: not lock.held)
    with pytest.raises(LockLost):
        lock.release()


def test_a_lost_lock_does_not_hide_an_exception_of_the_body(cluster: LocalCluster) -> None:
    def body() -> None:
        with cluster.client(timeout=1).lock("name"):
            for index in range(3):
                cluster.kill(index)
            raise LookupError

    with pytest.raises(LookupError):
        body()


def test_a_lock_of_an_unreachable_node_cannot_be_acquired_whatever_on_error_is(cluster: LocalCluster) -> None:
    cache = cluster.client(timeout=1, on_error="miss")
    cache.get("something")
    for index in range(3):
        cluster.kill(index)
    with pytest.raises(NodeUnavailable):
        cache.lock("name").acquire()


def test_a_lock_that_moved_to_another_node_is_lost_and_can_be_acquired_there(cluster: LocalCluster) -> None:
    cache = cluster.client()
    names = range(40)
    locks = {name: cache.lock(name, ttl_seconds=1) for name in names}
    for lock in locks.values():
        lock.acquire()
    cluster.add_node()
    assert eventually(lambda: len(cache.nodes()) == 4)
    moved = [name for name in names if cache.node_for(("lock", name)).name.endswith(".4")]
    assert moved
    for name in moved:
        assert cache.lock(name, wait_seconds=SOON).acquire()
        eventually(lambda name=name: not locks[name].held)
        with pytest.raises(LockLost):
            locks.pop(name).release()
    for lock in locks.values():
        lock.release()


@pytest.mark.blocking_only("is about the renewing thread")
def test_a_node_without_a_lease_passes_no_lock_on_and_loses_none(threads: ThreadPoolExecutor) -> None:
    """The name server is gone and the other node is stopped: it might be the one that knows of a newer view."""
    with private_cluster(nodes=2) as cluster, ExitStack() as stack:
        dying, cache = cluster.client(), cluster.client(timeout=30.0)
        node = cluster.nodes[1]
        assert {cache.node_for(("lock", name)).name for name in ("name", "a")} == {node.name}
        proxy = stack.enter_context(remote(node.name, node.address))
        dying_lock = dying.lock("name")
        dying_lock.acquire()
        kept = cache.lock("a", 60, thread_local=False)
        token = acquired(kept)
        waiter = threads.submit(acquired, cache.lock("name"))
        eventually(lambda: proxy.stats()["waiting"] == 1)
        cluster.kill_nameserver()
        cluster.pause(0)
        eventually(lambda: not proxy.ping()["serving"])
        dying.close()
        eventually(lambda: proxy.stats()["locks"] == 1)
        (grant,) = kept._owner.grants
        grant.renew_at = at = clock.now()
        _renewer.watch(grant)
        eventually(lambda: at < grant.renew_at < clock.now() + 1.0)  # it was refused, and is to be sent again
        assert kept.held
        releasing = threads.submit(kept.release)
        assert (proxy.stats()["locks"], waiter.done(), releasing.done()) == (1, False, False)
        cluster.resume(0)
        cluster.restart_nameserver()
        releasing.result(SOON)
        assert waiter.result(SOON) > token


def test_a_forked_child_does_not_hold_what_its_parent_holds(
    cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    lock = cache.lock("name", ttl_seconds=1)
    with lock:
        pid = os.fork()
        if pid == 0:
            good = False
            try:
                good = not lock.held and not is_free(cache)
                with contextlib.suppress(LockLost):
                    lock.release()
                    good = False
                with cache.lock("child", ttl_seconds=0.3) as own:
                    time.sleep(0.5)
                    good = good and own.held
            finally:  # or the child would go on with the tests
                os._exit(0 if good else 1)
        assert os.waitpid(pid, 0)[1] == 0
        time.sleep(0.5)
        assert lock.held


def test_closing_the_client_frees_its_locks_and_ends_the_waiting(
    shared_cluster: LocalCluster, cache: PyroCacheClient, threads: ThreadPoolExecutor
) -> None:
    client = shared_cluster.client()
    lock = client.lock("name")
    lock.acquire()
    with cache.lock("another"):
        waiter = threads.submit(client.lock("another").acquire)
        eventually(lambda: waiting(cache) == 1)
        client.close()
        with pytest.raises(ClientClosed):
            waiter.result(SOON)
    eventually(lambda: is_free(cache))
    with pytest.raises(ClientClosed):
        lock.release()


def test_one_client_may_hold_more_locks_than_ordinary_connections(shared_cluster: LocalCluster) -> None:
    with shared_cluster.client() as cache, contextlib.ExitStack() as stack:
        for number in range(300):
            stack.enter_context(cache.lock(number))
        cache.set("key", "value")
        assert cache.get("key") == "value"


@pytest.mark.full
@pytest.mark.asyncio_full
@pytest.mark.parametrize("inner", ["lock", pytest.param("load", marks=pytest.mark.full)])
def test_waiting_callers_do_not_use_up_the_connections_that_the_holder_needs(inner: str) -> None:
    with private_cluster(nodes=1) as cluster, cluster.client() as cache, ThreadPoolExecutor(300) as many:
        others_wait = threading.Event()

        def outer_and_inner(number: int) -> int:
            with cache.lock("outer", wait_seconds=20):
                others_wait.wait(20)
                if inner == "load":
                    return cache.get_or_set("inner", lambda: number, wait_seconds=20)
                with cache.lock("inner", wait_seconds=20):
                    return number

        done = [many.submit(outer_and_inner, number) for number in range(300)]
        eventually(lambda: waiting(cache) > 150)
        time.sleep(0.5)  # so that all of them have come
        others_wait.set()
        assert len({one.result() for one in done}) == (1 if inner == "load" else 300)


def test_a_lock_is_not_held_after_its_client_was_closed(
    client_class: type[PyroCacheClient], shared_cluster: LocalCluster
) -> None:
    client = client_class(shared_cluster.nameserver)
    lock = client.lock("name")
    lock.acquire()
    client.close()
    assert not lock.held
    assert lock.token is None


def test_a_lock_is_not_pickled(cache: PyroCacheClient) -> None:
    with pytest.raises(TypeError, match=r"have cache\.lock make one of the same name"):
        pickle.dumps(cache.lock("name"))


@pytest.mark.blocking_only("the asyncio client pins no connections")
def test_a_client_with_too_many_pinned_connections_gets_a_lock_timeout(shared_cluster: LocalCluster) -> None:
    with shared_cluster.client() as cache:
        cache._context.backend._router._pinning._max_per_node = 1
        semaphore = [cache.semaphore("name", 2, wait_seconds=0.1) for _ in range(2)]
        semaphore[0].acquire()
        with pytest.raises(LockTimeout, match="limit of locks"), semaphore[1]:
            pass
        assert not semaphore[1].acquire()
        semaphore[0].release()
        assert semaphore[1].acquire()


# Many --------------------------------------------------------------------------------------------------------

CONTENDER = """
    import os, sys, time
    from pathlib import Path
    from pyrocache import PyroCacheClient

    # Whoever is inside has the file `inside` for its own, and adds one to the counter in two steps.
    folder, rounds, ttl = Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    cache = PyroCacheClient(sys.argv[1])
    for _ in range(rounds):
        with cache.lock("name", ttl) as lock:
            inside = os.open(folder / "inside", os.O_CREAT | os.O_RDWR)
            before = os.pread(inside, 100, 0)
            if before and not (folder / f"killed.{before.decode()}").exists() and before != b"nobody":
                (folder / "violation").write_text(f"{os.getpid()} met {before.decode()}")
            os.ftruncate(inside, 0)
            os.pwrite(inside, str(os.getpid()).encode(), 0)
            count = int((folder / "counter").read_text())
            with open(folder / "tokens", "a") as tokens:
                tokens.write(f"{lock.token}\\n")
            time.sleep(0.002)
            (folder / "next").write_text(str(count + 1))
            os.replace(folder / "next", folder / "counter")
            os.ftruncate(inside, 0)
            os.pwrite(inside, b"nobody", 0)
            os.close(inside)
    print("done", flush=True)
"""


@pytest.mark.asyncio_full
@pytest.mark.parametrize(("processes", "kills"), [(5, 8), pytest.param(16, 30, marks=pytest.mark.full)])
def test_processes_whose_holders_are_killed_at_random_are_never_inside_together(
    shared_cluster: LocalCluster, cache: PyroCacheClient, tmp_path: Path, processes: int, kills: int
) -> None:
    random = Random(20)
    (tmp_path / "counter").write_text("0")
    command = [sys.executable, "-c", textwrap.dedent(CONTENDER), shared_cluster.nameserver, str(tmp_path)]

    def contender() -> subprocess.Popen[str]:
        return subprocess.Popen([*command, "25", "30"], stdout=subprocess.PIPE, text=True)

    running = [contender() for _ in range(processes)]
    killed = 0
    try:
        eventually(lambda: (tmp_path / "tokens").exists(), 30)
        while killed < kills:
            time.sleep(random.random() * 0.05)
            inside = (tmp_path / "inside").read_bytes()
            victims = [process for process in running if str(process.pid).encode() == inside]
            victims = victims or ([random.choice(running)] if random.random() < 0.2 else [])
            for victim in victims:
                victim.send_signal(signal.SIGSTOP)  # so that it is still inside when it is said to be killed
                (tmp_path / f"killed.{victim.pid}").touch()
                victim.kill()
                victim.wait()
                running.remove(victim)
                running.append(contender())
                killed += 1
        for process in running:
            assert process.wait(60) == 0
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert not (tmp_path / "violation").exists(), (tmp_path / "violation").read_text()
    tokens = [int(line) for line in (tmp_path / "tokens").read_text().split()]
    count = int((tmp_path / "counter").read_text())
    print(f"{len(tokens)} times inside, {killed} killed, {count} counted")
    assert tokens == sorted(set(tokens)), "tokens only grow"
    assert len(tokens) - killed <= count <= len(tokens), "who is killed may have counted or not"
    assert count >= processes * 25
