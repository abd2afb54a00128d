"""What systemd is told: messages as sd_notify(3) describes them, to a real socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrocache.runtime.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd has one, and what $NOTIFY_SOCKET is for it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@pyrocache-test-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1))
        sock.setblocking(False)
        yield sock, name


def _received(sock: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(sock.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_each_state_is_a_message(listener: tuple[socket.socket, str]) -> None:
    sock, name = listener
    manager = ServiceManager({"NOTIFY_SOCKET": name})
    manager.ready("3 nodes")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    with manager.reloading():
        assert _received(sock)[0] == "READY=1\nSTATUS=3 nodes"
    manager.stopping()
    manager.alive()  # without $WATCHDOG_USEC
    assert _received(sock) == ["READY=1", "STOPPING=1"]
    with manager.reloading():
        (reloading,) = _received(sock)
    state, _, at = reloading.partition("\nMONOTONIC_USEC=")
    assert state == "RELOADING=1"
    assert before <= int(at) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_reload_that_fails_ends_too(listener: tuple[socket.socket, str]) -> None:
    sock, name = listener
    with pytest.raises(ZeroDivisionError), ServiceManager({"NOTIFY_SOCKET": name}).reloading():
        raise ZeroDivisionError
    assert _received(sock)[-1] == "READY=1"


def test_it_is_alive_twice_in_each_interval(listener: tuple[socket.socket, str]) -> None:
    sock, name = listener
    now = [100.0]
    manager = ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000000"}, clock=lambda: now[0])
    for tenth in range(41):
        now[0] = 100.0 + tenth / 10
        manager.alive()
    assert _received(sock) == ["WATCHDOG=1"] * 5


@pytest.mark.parametrize(
    "variables", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": ""}]
)
def test_a_watchdog_for_another_process_is_ignored(
    listener: tuple[socket.socket, str], variables: dict[str, str]
) -> None:
    sock, name = listener
    ServiceManager({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000000", **variables}).alive()
    assert _received(sock) == []


@pytest.mark.parametrize("name", [None, "", "/nobody/listens/here", "x" * 200])
def test_without_a_service_manager_nothing_happens(name: str | None) -> None:
    manager = ServiceManager({} if name is None else {"NOTIFY_SOCKET": name})
    manager.ready("3 nodes")
    manager.stopping()
