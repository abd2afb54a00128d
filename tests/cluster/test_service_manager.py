"""A name server and nodes as systemd runs them: real processes tell a real socket what they do."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes import ROOT, environment, free_address


@contextmanager
def _service(listener: socket.socket, *command: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    variables = {"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "600000", **variables}
    process = subprocess.Popen(
        [sys.executable, "-m", "pyrocache", *command],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        finally:
            process.kill()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(path))
    listener.settimeout(15)
    return listener


def _next(listener: socket.socket, *, after: str = "") -> str:
    """Return the next message, after those that are ``after``."""
    while (message := listener.recv(4096).decode()) == after:
        pass
    return message


def test_name_server_and_nodes_say_what_they_do(tmp_path: Path) -> None:
    address = free_address()
    command = ("nodes", "--nodes", "1", "--max-memory", "64MiB", "--nameserver", address)
    with (
        _listen(tmp_path / "names") as names,
        _listen(tmp_path / "nodes") as nodes,
        _service(names, "nameserver", "--port", address.rpartition(":")[2]) as nameserver,
    ):
        assert _next(names) == f"READY=1\nSTATUS=Name server at {address}"
        assert _next(names) == "WATCHDOG=1"
        with _service(nodes, *command) as running:
            assert _next(nodes) == f"READY=1\nSTATUS=1 node of the name server {address}"
            assert _next(nodes) == "WATCHDOG=1"
            running.terminate()
            assert _next(nodes, after="WATCHDOG=1") == "STOPPING=1"
            assert running.wait(15) == 0
        nameserver.terminate()
        assert _next(names, after="WATCHDOG=1") == "STOPPING=1"
        assert nameserver.wait(15) == 0
