"""Accepting while the system has no descriptors, with a scripted listener."""

from __future__ import annotations

import errno
import socket
from typing import Any, cast

import pytest

from pyrocache.runtime.descriptors import DescriptorReserve
from pyrocache.server.acceptor import Acceptor
from pyrocache.server.poller import Poller


class Listener:
    """A listening socket of a process that may have a few more descriptors."""

    def __init__(self) -> None:
        self.free = 0
        self.waiting = 0
        self.watched = False

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def accept(self) -> tuple[Listener, None]:
        if not self.free:  # the system looks for a descriptor first
            raise OSError(errno.EMFILE, "none left")
        if not self.waiting:
            raise BlockingIOError
        self.free -= 1
        self.waiting -= 1
        return self, None


class Reserve(DescriptorReserve):
    """Descriptors of that process."""

    def __init__(self, listener: Listener, held: int) -> None:
        self.listener = listener
        self.most = self.held = held

    def give_up(self) -> bool:
        if not self.held:
            return False
        self.held -= 1
        self.listener.free += 1
        return True

    def refill(self) -> None:
        count = min(self.listener.free, self.most - self.held)
        self.listener.free -= count
        self.held += count


class Watching:
    """A poller."""

    def register(self, listener: Listener, events: int, handler: Any) -> None:
        listener.watched = True
        self.accept = handler

    def unregister(self, listener: Listener) -> None:
        listener.watched = False


class Accepting:
    def __init__(self, held: int = 2) -> None:
        self.listener = Listener()
        self.reserve = Reserve(self.listener, held)
        self.poller = Watching()
        self.taken: list[bool] = []
        self.acceptor = Acceptor(
            [cast(socket.socket, self.listener)],
            cast(Poller, self.poller),
            lambda sock, lent: self.taken.append(lent),
            lambda: 1000.0,
            self.reserve,
        )

    def accept(self, *, free: int = 0, waiting: int = 0) -> list[bool]:
        """What is accepted, and whether it is lent its descriptor."""
        self.listener.free += free
        self.listener.waiting += waiting
        self.taken.clear()
        self.poller.accept()
        return self.taken


def test_with_descriptors_nothing_is_lent(caplog: pytest.LogCaptureFixture) -> None:
    accepting = Accepting()
    assert accepting.accept(free=5, waiting=3) == [False] * 3
    assert (accepting.reserve.held, caplog.records) == (2, [])


def test_the_last_descriptor_is_no_shortage(caplog: pytest.LogCaptureFixture) -> None:
    accepting = Accepting()
    assert accepting.accept(free=1, waiting=1) == [False]
    assert (accepting.reserve.held, accepting.listener.watched, caplog.records) == (2, True, [])


def test_descriptors_in_reserve_are_lent_until_there_are_none(caplog: pytest.LogCaptureFixture) -> None:
    accepting = Accepting()
    assert accepting.accept(free=1, waiting=4) == [False, True, True]
    assert (accepting.reserve.held, accepting.listener.watched) == (0, False), (
        "it would be ready all the time"
    )
    accepting.acceptor.tick(1000.5)
    assert not accepting.listener.watched
    accepting.acceptor.tick(1001.0)
    assert accepting.listener.watched
    assert accepting.accept() == []
    assert len(caplog.records) == 1


def test_a_lent_descriptor_that_comes_back_is_lent_again_at_once(caplog: pytest.LogCaptureFixture) -> None:
    accepting = Accepting()
    accepting.accept(waiting=3)
    assert not accepting.listener.watched
    accepting.listener.free += 1
    accepting.acceptor.returned()
    assert (accepting.reserve.held, accepting.listener.watched) == (1, True)
    assert accepting.accept() == [True]
    assert [record.getMessage()[:37] for record in caplog.records] == [
        "No more connections are accepted for "
    ]
    assert accepting.accept(free=3, waiting=1) == [False]
    assert caplog.records[-1].getMessage() == "Connections are accepted again."
