"""What clients and servers need of an open byte stream. Pure.

A `Channel` has a socket's own methods, and the plain one *is* the socket, so that it costs nothing.

TLS would be a class with these methods around an ``ssl.SSLObject`` and its memory buffers, made where the event loop
accepts and where a client has connected. It raises BlockingIOError where ``SSLWantReadError`` comes, and has to be read
until it does so, as decrypted bytes that it holds make no descriptor readable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class Channel(Protocol):
    """An open byte stream. Calls that cannot go on raise `BlockingIOError`."""

    def send(self, data: bytes, flags: int = 0, /) -> int:
        """Send the beginning of ``data``, and return how many bytes."""

    def sendmsg(self, buffers: Iterable[Any], ancillary: Iterable[Any] = (), flags: int = 0, /) -> int:
        """Send the beginning of ``buffers``, and return how many bytes."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receive at most ``size`` bytes; nothing once the peer has closed its end."""

    def recv_into(self, buffer: memoryview, size: int = 0, flags: int = 0, /) -> int:
        """Receive into ``buffer``, and return how many bytes."""

    def fileno(self) -> int:
        """Return the descriptor to wait at."""

    def shutdown(self, how: int, /) -> None:
        """End one direction of the stream, or both."""

    def close(self) -> None:
        """Close this end."""
