"""How `pyrocache doctor` bounds what the system may block in, and what it says of a name server that it cannot ask."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from pyrocache.cli.doctor.gather import Settings, _bounded, observe
from pyrocache.config import TLS


def test_a_task_that_blocks_has_no_answer() -> None:
    released = threading.Event()
    try:
        assert _bounded([lambda: 1, lambda: int(released.wait(60)), lambda: 3], 0.05) == [1, None, 3]
    finally:
        released.set()


def test_an_error_of_a_task_is_raised() -> None:
    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _bounded([fail], 5)


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        way = observe(Settings(address, tls=TLS(ca=str(tmp_path)))).name_server.way
    assert way.error == f"it was not asked: cannot use {tmp_path} for TLS: is a directory"


def test_a_host_without_a_route_is_no_reason_to_start_a_name_server_there() -> None:
    way = observe(Settings("255.255.255.255:9", tls=False)).name_server.way
    assert way.error == "it cannot be reached"
    assert "missing route" in way.advice
