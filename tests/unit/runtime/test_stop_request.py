"""Stopping, from threads and from signal handlers."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from pyrocache.runtime.stop_request import ENDING, StopRequest


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in ENDING}
    request = StopRequest()
    request.on_signals()
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_the_wait(stop: StopRequest, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    assert stop.wait(10.0) is True
    assert stop.requested


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_is_ignored_stays_so_except_sigterm(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in ENDING}
    try:
        signal.signal(number, signal.SIG_IGN)
        request = StopRequest()
        request.on_signals()
        os.kill(os.getpid(), number)
        assert request.wait(0.01) is (number == signal.SIGTERM)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_being_woken_is_not_being_stopped(stop: StopRequest) -> None:
    threading.Thread(target=stop.wake).start()
    assert stop.wait(10.0) is True
    assert not stop.requested
    assert stop.wait(0.001) is False


def test_many_wakes_are_one(stop: StopRequest) -> None:
    for _ in range(100):
        stop.wake()
    assert stop.wait(10.0) is True
    assert stop.wait(0.001) is False


def test_a_request_from_another_thread(stop: StopRequest) -> None:
    threading.Thread(target=stop.request).start()
    assert stop.wait(10.0) is True
    assert stop.requested


def test_the_end_of_the_parent_is_a_request() -> None:
    request = StopRequest()
    ours, other_end = socket.socketpair()
    with ours:
        request.with_parent(ours.fileno())
        other_end.send(b"still here")
        assert request.wait(0.01) is False
        other_end.close()
        assert request.wait(10.0) is True
    assert request.requested
