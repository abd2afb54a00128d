"""How many Python functions a node calls for one small request, from the event to the reply."""

from __future__ import annotations

import socket
import sys
import threading
from types import FrameType
from typing import Any

from pyrocache.config import NodeConfig
from pyrocache.protocol import messages
from pyrocache.protocol.commands import GET
from pyrocache.protocol.handshake import ClientHandshake
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.server.event_loop import EventLoop

NAME = "cache.node.1"


class Target:
    def get(self, view: int, key: bytes) -> bytes:
        return b"value"


def test_a_warm_get_takes_few_python_calls_of_the_server() -> None:
    called: list[str] = []

    def record(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    def run() -> None:
        sys.setprofile(record)
        try:
            loop.run()
        finally:
            sys.setprofile(None)

    listener = socket.create_server(("127.0.0.1", 0))
    dispatcher = Dispatcher(NAME, Target(), {"get": GET}, greeting=dict, max_frame_bytes=2**20)
    loop = EventLoop([listener], dispatcher, NodeConfig())
    thread = threading.Thread(target=run)
    thread.start()
    try:
        with socket.create_connection(listener.getsockname(), timeout=10) as client:
            client.sendall(ClientHandshake(NAME).request())
            client.recv(4096)
            packer = messages.CallPacker(NAME)
            for sequence in (2, 3, 4):
                called.clear()
                request = packer.pack("get", (0, b"key"), sequence)
                assert isinstance(request, bytes)
                client.sendall(request)
                client.recv(4096)
    finally:
        loop.shutdown()
        thread.join(10)
    of_one_request = called[called.index("_serve_idle") :]
    assert of_one_request[:6] == ["_serve_idle", "unpack", "_unpack_small", "dispatch", "get", "pack_result"]
