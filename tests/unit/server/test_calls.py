"""Jobs for workers when the system lets no thread start."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from pyrocache.protocol.commands import Runs
from pyrocache.protocol.handshake import MSGPACK
from pyrocache.server.calls import OutstandingCalls
from pyrocache.server.deferred import Session
from pyrocache.server.dispatcher import Job, Method
from pyrocache.server.outcomes import Outcomes
from tests.support.waiting import wait_until


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the system refuse threads; `tests.cluster.test_resources` has the real thing."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def connection(owner: str | None = None, *, unordered: bool = False) -> Any:
    session = Session()
    session.client = owner
    handshake = SimpleNamespace(trusted=True, unordered=unordered)
    return SimpleNamespace(busy=False, outstanding=0, deferred=set(), session=session, handshake=handshake)


def outstanding(workers: int, max_jobs: int) -> OutstandingCalls:
    return OutstandingCalls(workers, max_jobs, Outcomes(), lambda: None, lambda: 0.0, lambda: 0.0)


def start(calls: OutstandingCalls, job: Job, owner: str | None = None) -> bool:
    return calls.start(connection(owner), 1, Method("count", job, Runs.WORKER, MSGPACK), job, None)


def test_a_client_gets_a_share_of_the_workers_queue_and_one_job_in_any_case() -> None:
    calls, release = outstanding(1, 8), threading.Event()

    def begin(owner: str) -> bool:
        return start(calls, lambda: release.wait(10) and b"", owner)  # type: ignore[arg-type, return-value]

    try:
        assert [begin("greedy") for _ in range(4)] == [True, True, False, False]
        assert [begin(f"client {number}") for number in range(7)] == [True] * 6 + [False]
        release.set()
        assert wait_until(lambda: len(calls.done) == 8)
        assert len(list(calls.finished())) == 8
        assert begin("greedy")
        assert wait_until(lambda: len(calls.done) == 1)
        assert list(calls.finished())
        assert calls._jobs_of == {}
    finally:
        release.set()
        calls.close()


def test_jobs_wait_for_the_worker_that_there_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    calls = outstanding(4, 10)
    assert wait_until(lambda: calls._workers._work_queue.empty())
    request.getfixturevalue("no_threads")
    release = threading.Event()
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            assert start(calls, lambda: release.wait(10) and b"reply")  # type: ignore[arg-type, return-value]
    assert caplog.text.count("can't start new thread") == 1
    release.set()
    assert wait_until(lambda: len(calls.done) == 5)
    assert [reply for _, reply in calls.finished()] == [b"reply"] * 5
    assert calls._jobs == 0
    calls.close()


def test_without_any_worker_a_server_does_not_start(no_threads: None) -> None:
    with pytest.raises(RuntimeError, match="can't start new thread"):
        outstanding(4, 10)
