"""`Channel`: the interface of an open byte stream, for clients and servers. An interface only, without code.

To add another byte stream, start here. `net.channel` opens channels; `server.event_loop` accepts them.

A `Channel` has the methods of a socket, and the plain channel *is* the socket, so the interface costs nothing. With
TLS, it is a `runtime.tls.TlsChannel`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, Protocol


class Channel(Protocol):
    """An open byte stream. A call that would block raises `BlockingIOError`."""

    @property
    def family(self) -> int:
        """The address family."""

    def getsockname(self) -> Any:
        """Return the address of this end."""

    def getpeername(self) -> Any:
        """Return the address of the other end."""

    def send(self, data: bytes, flags: int = 0, /) -> int:
        """Send the beginning of ``data``. Return how many bytes were sent."""

    def sendmsg(self, buffers: Iterable[Any], ancillary: Iterable[Any] = (), flags: int = 0, /) -> int:
        """Send the beginning of ``buffers``. Return how many bytes were sent."""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Receive at most ``size`` bytes; empty once the peer has closed its end."""

    def recv_into(self, buffer: memoryview, size: int = 0, flags: int = 0, /) -> int:
        """Receive into ``buffer``. Return how many bytes were received."""

    def fileno(self) -> int:
        """Return the file descriptor to poll."""

    def shutdown(self, how: int, /) -> None:
        """End one direction of the stream, or both."""

    def close(self) -> None:
        """Close this end."""


class TlsRefused(ConnectionError):
    """The TLS handshake would fail again. The text is the reason, for a sentence about the other end.

    Attributes:
        cause: which of the things that can be wrong.
    """

    class Cause(Enum):
        """Why a TLS handshake would fail again."""

        CERTIFICATE = "one end does not accept the certificate of the other"
        PROTOCOL = "one end does not speak TLS 1.3"
        BUSY = "the server has as many connections as it takes"

    def __init__(self, reason: str, cause: Cause) -> None:
        super().__init__(reason)
        self.cause = cause
