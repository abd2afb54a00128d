"""A proxy before a node that loses one message of a connection, and then cuts the connection."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable
from typing import Any, Literal, Self

from pyrocache.protocol import framing
from tests.support.waiting import PATIENCE_SECONDS

_REST_SECONDS = 0.05


class CuttingProxy:
    """Passes whole messages on, one request at a time.

    Attributes:
        port: where it listens, on 127.0.0.1.
        cut: which message of the next call is lost, if any. Afterwards there is nothing to lose again.
        after: how many calls it passes on before that.
        rest: whether the node gets the requests that were pipelined behind a lost reply; their replies are lost, too.
        meanwhile: called before the client sees that the connection is cut.
        keep: whether the connection to the node stays open then.
        cuts: how many connections were cut.
    """

    def __init__(self, node: tuple[str, int]) -> None:
        self.cut: Literal["request", "reply"] | None = None
        self.meanwhile: Callable[[], Any] = lambda: None
        self.keep = False
        self.after = 0
        self.rest = False
        self.cuts = 0
        self._node = node
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._socks = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                node = socket.create_connection(self._node, timeout=PATIENCE_SECONDS)
                self._socks += [client, node]
                threading.Thread(target=self._serve, args=(client, node), daemon=True).start()

    def _serve(self, client: socket.socket, node: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self._pass_on(client, node):
                pass
        if not self.keep:
            node.close()
        client.close()

    def _pass_on(self, client: socket.socket, node: socket.socket) -> bool:
        """Pass a request and its reply on. Return False if one was lost."""
        request = _message(client)
        lost = None
        if framing.parse_header(request).type == framing.INVOKE:
            if self.after:
                self.after -= 1
            else:
                lost, self.cut = self.cut, None
        if lost != "request":
            node.sendall(request)
            reply = _message(node)
        if lost is not None:
            self.cuts += 1
            if self.rest:
                _exchange_all(client, node)
            self.meanwhile()
            return False
        client.sendall(reply)
        return True


def _exchange_all(client: socket.socket, node: socket.socket) -> None:
    """Pass the requests on that have come, and drop the replies."""
    while select.select([client], [], [], _REST_SECONDS)[0]:
        node.sendall(_message(client))
        _message(node)


def _message(sock: socket.socket) -> bytes:
    data = b""
    wanted = framing.HEADER_BYTES
    while len(data) < wanted:
        received = sock.recv(wanted - len(data))
        if not received:
            raise ConnectionResetError
        data += received
        if len(data) == framing.HEADER_BYTES:
            wanted = framing.parse_header(data).frame_bytes
    return data
