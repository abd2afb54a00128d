"""Which waits cannot end: the graph of loads and waits, and the threads that wait for each other."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest

from pyrocache.client.features import load_deadlock
from pyrocache.client.features.load_deadlock import LoadId, Mark, Waiting
from pyrocache.client.features.thread_waits import waits_for_me
from pyrocache.errors import LoadDeadlock
from pyrocache.runtime.clock import now
from tests.support.waiting import eventually

A, B, C = ("host:1", b"a"), ("host:1", b"b"), ("host:1", b"c")


@contextmanager
def running(
    value: Any, *, leased: bool = True, seconds: float = 60.0, thread: int | None = None
) -> Iterator[None]:
    started = load_deadlock.begin(Mark(value, leased, now() + seconds, thread))
    try:
        yield
    finally:
        load_deadlock.end(started)


@contextmanager
def elsewhere(value: LoadId, *waits_for: LoadId, **options: Any) -> Iterator[None]:
    """A factory in another context, which waits for these values."""
    context = Context()
    factory = running(value, **options)
    context.run(factory.__enter__)
    waits = [context.run(Waiting, wanted) for wanted in waits_for]
    try:
        for waiting in waits:
            waiting.check()
        yield
    finally:
        for waiting in waits:
            waiting.__exit__()
        context.run(factory.__exit__, None, None, None)


def check(value: LoadId) -> None:
    with Waiting(value) as waiting:
        waiting.check()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert not load_deadlock._running
    assert not load_deadlock._waiting


def test_two_loads_that_need_each_other_are_a_deadlock() -> None:
    with running(A), elsewhere(B, A), pytest.raises(LoadDeadlock):
        check(B)


def test_over_any_depth() -> None:
    with running(A), elsewhere(B, A), elsewhere(C, B), pytest.raises(LoadDeadlock):
        check(C)


def test_a_load_that_waits_for_nothing_or_for_somebody_else_is_none() -> None:
    with running(A), elsewhere(B), elsewhere(C, B):
        check(B)
        check(C)


def test_a_caller_without_factories_waits() -> None:
    with elsewhere(A, B), elsewhere(B):
        check(A)
        check(B)


def test_a_load_of_another_process_may_end() -> None:
    with running(A), elsewhere(B, C):  # nobody here loads C
        check(B)


def test_nobody_waits_for_a_load_without_a_lease_nor_for_one_that_is_over() -> None:
    for options in ({"leased": False}, {"seconds": 0.0}):
        with running(A), elsewhere(B, A, **options):
            check(B)


def test_all_loads_of_a_value_must_lead_back() -> None:
    with running(A), elsewhere(B, A):
        with elsewhere(B):  # one of them has taken over from the other
            check(B)
        with pytest.raises(LoadDeadlock):
            check(B)


def test_what_has_ended_is_forgotten() -> None:
    with running(A):
        with elsewhere(B, A):
            pass
        check(B)


def test_a_circle_of_others_is_not_searched_for_ever() -> None:
    with (
        elsewhere(B, A),
        elsewhere(C, B),
    ):  # they wait for A, which is loaded only now, by a factory that waits for C
        context = Context()
        factory = running(A)
        context.run(factory.__enter__)
        waiting = context.run(Waiting, C)
        with pytest.raises(LoadDeadlock):
            waiting.check()
        with running(("host:1", b"d")):
            check(C)
        waiting.__exit__()
        context.run(factory.__exit__, None, None, None)


def test_a_coroutine_may_be_closed_in_another_context() -> None:
    started = load_deadlock.begin(Mark(A, True, math.inf, None))
    Context().run(load_deadlock.end, started)
    assert A not in load_deadlock._running
    load_deadlock.loading.set(frozenset())


# Threads -----------------------------------------------------------------------------------------------------


def by_result(pool: ThreadPoolExecutor, run: Callable[[], Any]) -> Any:
    return pool.submit(run).result()


def by_exception(pool: ThreadPoolExecutor, run: Callable[[], Any]) -> Any:
    return pool.submit(run).exception()


def by_map(pool: ThreadPoolExecutor, run: Callable[[], Any]) -> Any:
    return list(pool.map(lambda _: run(), [1]))


def by_wait(pool: ThreadPoolExecutor, run: Callable[[], Any]) -> Any:
    return futures.wait([pool.submit(run)])


def by_as_completed(pool: ThreadPoolExecutor, run: Callable[[], Any]) -> Any:
    return list(futures.as_completed([pool.submit(run), pool.submit(int)]))


def by_shutdown(pool: ThreadPoolExecutor, run: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(2) as inner:
        inner.submit(int)
        inner.submit(run)


def by_join(pool: ThreadPoolExecutor, run: Callable[[], Any]) -> None:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def by_thread_pool(pool: ThreadPoolExecutor, run: Callable[[], Any]) -> None:
    with ThreadPool(1) as inner:
        inner.apply(run)
        inner.map(lambda _: run(), [1])
        list(inner.imap(lambda _: run(), [1]))


def by_another_thread(pool: ThreadPoolExecutor, run: Callable[[], Any]) -> None:
    by_join(pool, lambda: by_result(pool, run))


WAITS = [by_result, by_exception, by_map, by_wait, by_as_completed, by_shutdown, by_join, by_thread_pool]


@pytest.mark.parametrize("how", [*WAITS, by_another_thread])
def test_a_thread_that_waits_for_this_one_is_recognized(how: Callable[..., Any]) -> None:
    """The thread of the test waits in each way for another one, which asks whether it does."""
    me = threading.get_ident()
    answers = []

    def run() -> None:
        deadline = time.monotonic() + 10
        while not (answer := waits_for_me(me)) and time.monotonic() < deadline:
            time.sleep(0.001)
        answers.append(answer)

    with ThreadPoolExecutor(3) as pool:
        how(pool, run)
    assert answers
    assert all(answers)


@pytest.mark.parametrize(
    "how",
    [
        lambda pool, future, other: future.result(10),
        lambda pool, future, other: futures.wait([future], 10),
        lambda pool, future, other: futures.wait([future, other], return_when=futures.FIRST_COMPLETED),
        lambda pool, future, other: other.result(),
        lambda pool, future, other: next(futures.as_completed([future, other])),
        lambda pool, future, other: time.sleep(0.2),
    ],
)
def test_one_that_waits_for_others_or_for_a_time_is_not(how: Callable[..., Any]) -> None:
    me = threading.get_ident()
    asked = threading.Event()
    other: Future[None] = Future()

    def run() -> bool:
        answers = [time.sleep(0.01) or waits_for_me(me) for _ in range(10)]  # type: ignore[func-returns-value]
        other.set_result(None)
        asked.set()
        return any(answers)

    with ThreadPoolExecutor(3) as pool:
        future = pool.submit(run)
        how(pool, future, other)
        assert eventually(asked.is_set)
        assert future.result(10) is False


def test_no_thread_waits_for_itself_and_none_that_is_not_there() -> None:
    assert waits_for_me(threading.get_ident()) is False
    assert waits_for_me(-1) is False
