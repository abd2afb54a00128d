"""Scripted peers, reached over TCP or over a Unix socket, and connections to them."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pyrocache.net.calls import Connections
from tests.support.scripted_peer import Script, ScriptedPeer


@pytest.fixture(params=["tcp", "unix"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory whose path is short, as those of Unix sockets must be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield directory


Start = Callable[..., ScriptedPeer]


@pytest.fixture
def start(family: str, directory: str) -> Iterator[Start]:
    """Starts peers that are reached over TCP, or over both."""
    with ExitStack() as stack:
        peers: list[ScriptedPeer] = []

        def start(script: Script, **options: Any) -> ScriptedPeer:
            peer = ScriptedPeer(script, f"{directory}/{len(peers)}" if family == "unix" else "", **options)
            peers.append(peer)
            stack.callback(peer.close)
            return peer

        yield start
        stack.close()
        for peer in peers:
            assert peer.failures == []
            expected = socket.AF_UNIX if family == "unix" else socket.AF_INET
            assert set(peer.families) <= {expected}


@pytest.fixture
def opened() -> Iterator[Callable[..., Connections]]:
    """Makes `Connections` and closes them."""
    with ExitStack() as stack:

        def open_(limit: int = 4, **options: Any) -> Connections:
            made = Connections(limit, **options)
            stack.callback(made.close)
            return made

        yield open_
