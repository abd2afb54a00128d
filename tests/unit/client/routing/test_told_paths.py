"""Paths of Unix sockets that a node tells of."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyrocache.client.routing.router import Router
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import NameServerUnavailable, PyroCacheError
from pyrocache.net.calls import Connections
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import Listing
from pyrocache.protocol import commands, framing, refusals
from pyrocache.protocol.refusals import Refusal
from tests.support.scripted_peer import (
    Line,
    ScriptedPeer,
)
from tests.support.waiting import PATIENCE_SECONDS
from tests.support.wire import pack_refusal

Start = Callable[..., ScriptedPeer]
Open = Callable[..., Connections]


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory whose path is short, as those of Unix sockets must be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield directory


def test_a_path_that_a_node_tells_is_judged_like_one_in_the_name_server(directory: str) -> None:
    """A node, or whoever took its port, must not make clients speak to any socket of their host."""
    spoken_to: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(f"{directory}/docker.sock")
        engine.listen()
        engine.settimeout(0.2)

        def script(line: Line) -> None:
            while True:
                line.request()
                engines = f"{directory}/docker.sock"
                fields = ["cache.node.1", "127.0.0.1", peer.member.port, 1.0, "0" * 16, engines]
                told = {"number": 2, "cluster": "c1", "members": [fields]}
                body = pack_refusal(Refusal(refusals.STALE_VIEW, "another view", told))
                line.send(
                    framing.pack_message(framing.RESULT, line.sequence, body, flags=framing.FLAG_EXCEPTION)
                )

        peer = ScriptedPeer(script)
        router = Router(NameServerThatGoesAway(peer.member), sleep=lambda seconds: None)
        listening = threading.Thread(target=lambda: listen_to(engine, spoken_to), daemon=True)
        listening.start()
        try:
            with pytest.raises(PyroCacheError):
                router.call(commands.GET, b"key", (), Deadline(0.5))
        finally:
            router.close()
            peer.close()
            listening.join(PATIENCE_SECONDS)
    assert spoken_to == []


def listen_to(listener: socket.socket, heard: list[bytes]) -> None:
    """Note what is said to it until nobody comes for a while."""
    with contextlib.suppress(TimeoutError):
        for _ in range(3):
            sock, _ = listener.accept()
            heard.append(sock.recv(1000))
            sock.close()


class NameServerThatGoesAway:
    """Tells of a node once."""

    def __init__(self, member: Member) -> None:
        self.listed = [member]

    def listing(self, timeout: float = 5.0) -> Listing:
        if not self.listed:
            raise NameServerUnavailable("away")
        member = self.listed.pop()
        return Listing("c1", 1, (ClusterView([member], 1, "c1"),), (member,))

    def register(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("a client changes nothing")

    remove = create_cluster = store_view = forget_views = register
