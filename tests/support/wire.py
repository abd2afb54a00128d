"""The wire protocol by hand: messages as bytes, and a raw connection to a node."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable
from typing import Any, Protocol, Self

from pyrocache.protocol import framing, messages, refusals
from tests.support.waiting import PATIENCE_SECONDS

NAME = "cache.node.1"
NO_VIEW = 0
CLOSED = "closed"
"""What `Peer.fate` returns when the node closed the connection."""


def frame_decoder() -> framing.FrameDecoder:
    """Return a decoder that takes every message, however large."""
    return framing.FrameDecoder(lambda header: None, lambda frame_bytes: None)


def pack_refusal(refusal: refusals.Refusal) -> bytes:
    """Return the body of an exception reply in msgpack."""
    return messages.pack_plain(refusals.refusal_to_wire(refusal))


def handshake(target: str = NAME, **options: Any) -> bytes:
    """Return the first message of a connection."""
    body = messages.pack_plain({"handshake": "hello", "object": target})
    return framing.pack_message(framing.CONNECT, 0, body, **options)


def call_body(method: str, *arguments: Any, target: str = NAME) -> bytes:
    """Return the body of a call."""
    return messages.pack_plain((target, method, arguments, {}))


def invoke(body: bytes, **options: Any) -> bytes:
    """Return the message of a call with any body."""
    return framing.pack_message(framing.INVOKE, 1, body, **options)


def call(sequence: int, method: str, *arguments: Any, target: str = NAME) -> bytes:
    """Return the message of a call."""
    return framing.pack_message(framing.INVOKE, sequence, call_body(method, *arguments, target=target))


def pack_call(target: str, method: str, arguments: tuple[Any, ...], sequence: int) -> bytes:
    """Return the message of a call as our client writes it."""
    message = messages.CallPacker(target).pack(method, arguments, sequence)
    return message if isinstance(message, bytes) else b"".join(message)


def header(
    kind: int = framing.INVOKE,
    *,
    body: int = 0,
    annotations: int = 0,
    flags: int = 0,
    version: int = 502,
    magic: int = 0x4DC5,
    serializer: int = framing.MSGPACK,
) -> bytes:
    """Return a header alone, with any claims."""
    return struct.pack(
        "!4sHBBHHII16sHH",
        b"PYRO", version, kind, serializer, flags, 1, body, annotations, bytes(16), 0, magic,
    )  # fmt: skip


def result_of(frame: framing.Frame) -> Any:
    """Return the result, or the refusal, in a reply."""
    if frame.header.flags & framing.FLAG_EXCEPTION:
        return refusals.unpack_refusal(frame.body)
    return messages.unpack_plain(frame.body)


class Addressed(Protocol):
    """Whatever has the address of a node."""

    @property
    def address(self) -> tuple[str, int]: ...


class Peer:
    """A raw connection to a node that sends whatever a test likes."""

    def __init__(self, node: Addressed, *, greet: bool = True, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(node.address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = frame_decoder()
        if greet:
            self.send(handshake())
            assert self.receive().header.type == framing.CONNECT_OK

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.sock.sendall(data)

    def send_as_far_as_taken(self, data: bytes) -> None:
        """Send, unless the node closes the connection meanwhile."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def receive(self) -> framing.Frame:
        """Return the next message."""
        while (frame := self._decoder.next_frame()) is None:
            data = self.sock.recv(256 * 1024)
            if not data:
                raise ConnectionResetError("the node closed the connection")
            self._decoder.feed(data)
        return frame

    def answer(self) -> tuple[int, Any]:
        """Return the next reply's sequence number, and its result or refusal."""
        frame = self.receive()
        return frame.header.sequence, result_of(frame)

    def call(self, method: str, *arguments: Any, target: str = NAME) -> Any:
        """Make one call and return its result or refusal."""
        self.send(pack_call(target, method, arguments, 1))
        return result_of(self.receive())

    def call_all(self, method: str, argument_lists: Iterable[tuple[Any, ...]]) -> None:
        """Make many calls, all sent before the first reply is read; none may be refused."""
        calls = [pack_call(NAME, method, arguments, 1) for arguments in argument_lists]
        self.send(b"".join(calls))
        for _ in calls:
            assert not isinstance(refusal := result_of(self.receive()), refusals.Refusal), refusal

    def fate(self) -> Any:
        """Return what comes next: a result, a refusal, or `CLOSED`."""
        try:
            return result_of(self.receive())
        except ConnectionError:
            return CLOSED

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
