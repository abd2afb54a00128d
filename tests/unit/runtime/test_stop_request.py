"""Stopping, from threads and from signal handlers."""

from __future__ import annotations

import os
import pty
import resource
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


def test_a_hangup_asks_to_load_files_again_where_that_is_possible(stop: StopRequest) -> None:
    stop.on_signals(reloads=True)
    stop._had_terminal = False
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.wait(10.0) is True
        assert (stop.reload, stop.requested) == (True, False)
        stop.reload = False


@pytest.mark.parametrize("without_descriptors", [False, True])
def test_a_process_whose_terminal_is_there_is_not_stopped(without_descriptors: bool) -> None:
    """If there is no descriptor left to find out, the terminal is taken to be there."""
    receiver, sender = os.pipe()
    pid, terminal = pty.fork()
    if pid == 0:
        request = StopRequest()
        request.on_signals(reloads=True)
        if without_descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        os.kill(os.getpid(), signal.SIGHUP)
        os.write(sender, bytes([request._had_terminal, request.reload, request.requested]))
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as answer:
        assert answer.read() == b"\1\1\0"
    os.waitpid(pid, 0)
    os.close(terminal)
