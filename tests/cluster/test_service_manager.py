"""A name server and nodes as systemd runs them: real processes tell a real socket what they do."""

from __future__ import annotations

import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyrocache.runtime.secret import locate
from tests.support.certificates import Certificates
from tests.support.processes import ROOT, environment, free_address

UNITS = ROOT / "examples" / "deployment"


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


def _unit(name: str, settings: Path) -> list[str]:
    """Return the arguments of the program that a unit starts, with another settings file."""
    text = (UNITS / f"pyrocache-{name}.service").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    return shlex.split(line.replace("/etc/pyrocache/pyrocache.toml", str(settings)))[1:]


@pytest.mark.full
@pytest.mark.skipif(not UNITS.exists(), reason="the tests run without the project around them")
def test_units_start_and_reload_what_they_say(tmp_path: Path, certificates: Certificates) -> None:
    port, tls = free_address().rpartition(":")[2], certificates.server()
    text = (UNITS / "pyrocache.toml").read_text(encoding="utf-8")
    for there, here in {
        "192.0.2.1": "127.0.0.1",
        "9090": port,
        '"secret"': f'"{locate()}"',
        "port = 7001": "port = 0",
        "1GiB": "64MiB",
        '"ca.pem"': f'"{tls.ca}"',
        '"cert.pem"': f'"{tls.cert}"',
        '"key.pem"': f'"{tls.key}"',
    }.items():
        assert there in text
        text = text.replace(there, here)
    settings = tmp_path / "pyrocache.toml"
    settings.write_text(text.replace("[name_server]", f"[name_server]\nport = {port}"))
    with (
        _listen(tmp_path / "names") as names,
        _listen(tmp_path / "nodes") as nodes,
        _service(names, *_unit("nameserver", settings)) as nameserver,
    ):
        assert _next(names) == f"READY=1\nSTATUS=Name server at 127.0.0.1:{port}"
        with _service(nodes, *_unit("nodes", settings)) as running:
            assert _next(nodes) == f"READY=1\nSTATUS=2 nodes of the name server 127.0.0.1:{port}"
            for listener, process in ((names, nameserver), (nodes, running)):
                process.send_signal(signal.SIGHUP)  # ExecReload=
                assert _next(listener, after="WATCHDOG=1").startswith("RELOADING=1\n")
                assert _next(listener, after="WATCHDOG=1") == "READY=1"
