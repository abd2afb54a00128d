"""A man in the middle: a host that takes over an address of another one, and passes on what comes, changed or not.

It stands between clients and a server of TCP: packets that are meant for the server are diverted to its *front*
(`Network.divert`), which has the server's address. From its *back*, it connects to the real server.

Thread safety: ``changes`` is replaced as a whole; everything else is for one thread.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Self

from pyrocache.config import TLS
from tests.support.network import Host

Changes = Callable[[bytes], bytes]

_BYTES = 65536


class ManInTheMiddle:
    """The proxy.

    Args:
        front, back: the hosts.
        address: the address of the server.
        ports: of the server.
        pose: a certificate with which it acts as the server; without, it passes on what it cannot read.

    Attributes:
        requests, replies: all bytes that have passed, as it could read them.
        changes: returns what to pass on in place of some bytes of a reply.
        refused: how many connections ended before it could read anything.
    """

    def __init__(
        self, front: Host, back: Host, address: str, ports: Sequence[int], pose: TLS | None = None
    ) -> None:
        self.requests = bytearray()
        self.replies = bytearray()
        self.changes: Changes = bytes
        self.refused = 0
        self._back = back
        self._address = address
        self._pose = None if pose is None else _server_side(pose)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socks: list[socket.socket] = []
        for port in ports:
            listener = front.call(socket.create_server, (address, port), family=family)
            self._socks.append(listener)
            threading.Thread(target=self._accept, args=(listener, port), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._socks:
            _end(sock)
            sock.close()

    def _accept(self, listener: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._socks.append(client)
                threading.Thread(target=self._serve, args=(client, port), daemon=True).start()

    def _serve(self, client: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):
            server = self._back.call(socket.create_connection, (self._address, port))
            self._socks.append(server)
            if self._pose is not None:
                try:
                    client = self._pose.wrap_socket(client, server_side=True)
                    # The handshake of a client is done before the server's end knows that it was refused.
                    first = client.recv(_BYTES)
                except OSError:
                    first = b""
                if not first:
                    self.refused += 1
                    _end(server)
                    return
                server = _client_side().wrap_socket(server)
                self._socks += [client, server]
                self.requests += first
                server.sendall(first)
            pump = threading.Thread(target=self._pass_on, args=(client, server), daemon=True)
            pump.start()
            self._return(server, client)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_BYTES):
                self.requests += data
                server.sendall(data)
        _end(server)

    def _return(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(_BYTES):
                self.replies += data
                client.sendall(self.changes(data))
        _end(client)


def _server_side(pose: TLS) -> ssl.SSLContext:
    assert pose.cert is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pose.cert, pose.key)
    return context


def _client_side() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
