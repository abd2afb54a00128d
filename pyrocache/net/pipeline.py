"""`Pipeline`: the client side of an open connection with several requests under way, without I/O.

`CallProtocol` makes the handshake; a pipeline takes the connection over. A driver sends what `send_call` returns and
passes what it receives to `receive_data`, or writes it into the memory that `space` returns and calls `received`. Each
reply has the sequence number of its request. After any exception, the driver must close the connection.

Thread safety: not thread-safe; used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

from pyrocache.errors import ProtocolError
from pyrocache.net.call_protocol import CallProtocol
from pyrocache.net.failures import Refused
from pyrocache.protocol import framing, messages, refusals
from pyrocache.protocol.framing import Buffer

Replies: TypeAlias = list[tuple[int, Any]]
"""The sequence numbers of requests, each with its result or the `Refused` of its peer."""

_SEQUENCES = 0xFFFF


class Pipeline:
    """Numbers requests, and finds replies in received bytes.

    Args:
        protocol: of a connection whose handshake is done.
        waiting: the sequence numbers of the requests whose reply has not come yet; the driver changes it.

    Attributes:
        space: returns the memory to receive the rest of a long reply into; None: call `receive_data`.
    """

    __slots__ = ("_decoder", "_pack", "_sequence", "_waiting", "space")

    def __init__(self, protocol: CallProtocol, waiting: Collection[int]) -> None:
        self._decoder = protocol.decoder
        self._pack = protocol.pack
        self._sequence = protocol.sequence
        self._waiting = waiting
        self.space = protocol.decoder.space

    def send_call(
        self, method: str, arguments: tuple[Any, ...], number: int, deadline: int
    ) -> tuple[int, bytes | list[Buffer]]:
        """Return a free sequence number and the message; otherwise as `CallProtocol.send_call`."""
        sequence = (self._sequence + 1) & _SEQUENCES
        while sequence in self._waiting:  # a reply that takes long
            sequence = (sequence + 1) & _SEQUENCES
        self._sequence = sequence
        return sequence, self._pack(method, arguments, sequence, number, deadline)

    def receive_data(self, data: bytes) -> Replies:
        """Process received bytes. Return the replies that are complete.

        Raises:
            ProtocolError, OSError: close the connection.
        """
        if not data:
            raise ConnectionResetError("the node closed the connection")
        replies: Replies = []
        at = messages.unpack_results(data, replies) if self._decoder.between_frames else 0
        if at < len(data):
            self._decoder.feed(data[at:] if at else data)
            self._take_frames(replies)
        return replies

    def received(self, count: int) -> Replies:
        """Process ``count`` bytes that were received into `space`. Returns and raises as `receive_data`."""
        if not count:
            raise ConnectionResetError("the node closed the connection")
        replies: Replies = []
        self._decoder.filled(count)
        self._take_frames(replies)
        return replies

    def _take_frames(self, replies: Replies) -> None:
        while (frame := self._decoder.next_frame()) is not None:
            header, body = frame
            if header.sequence not in self._waiting:
                raise ProtocolError("A reply came to no request.")
            if header.flags & framing.FLAG_EXCEPTION:
                replies.append((header.sequence, Refused(refusals.unpack_refusal(body))))
            else:
                replies.append((header.sequence, messages.unpack_plain(body)))
