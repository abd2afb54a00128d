"""The client side of the protocol on one connection, without I/O: received bytes in, results out.

A driver sends what `greet` returns. On `PROVING`, it sends what `prove` returns. Then it sends each message that
`send_call` returns. It passes what it receives to `receive_data`, or writes it into the memory that `space` returns and
calls `received`. `Connection` is the blocking driver.

One request is under way at a time. After any exception other than `Refused`, the next reply could belong to another
call: the driver must close the connection.

Thread safety: not thread-safe; used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from pyrocache.config import DEFAULT_MAX_VALUE_BYTES, Encryption
from pyrocache.errors import ProtocolError
from pyrocache.net.failures import Refused
from pyrocache.protocol import framing, limits, messages, proof, refusals
from pyrocache.protocol.framing import Buffer, FrameDecoder, Header
from pyrocache.protocol.handshake import (
    NO_SECRET,
    NO_TLS,
    OTHER_ADDRESS,
    OTHER_CERTIFICATE,
    OTHER_SECRET,
    PROTOCOL,
    UNPROVEN,
    ClientHandshake,
    Greeting,
    HandshakeRefused,
    State,
    is_on_this_host,
)
from pyrocache.protocol.messages import CallPacker
from pyrocache.protocol.request_id import SESSION_BYTES
from pyrocache.runtime.memory import reserve
from pyrocache.runtime.secret import FILE_VARIABLE, Secret

_REPLY_SLACK = 256 * 1024
_REUSED_BYTES = 32 * 2**20
"""Replies up to this length are received into memory from malloc, and longer ones into pages of their own. The malloc
of glibc keeps blocks up to this size that are freed, so that the next reply needs no new pages: a `get` of 1.5 to 16
MiB takes 0.55 to 0.7 times as long if the value before it was dropped. A header alone can take as much as this."""

_REPLY_FLAGS = framing.FLAG_EXCEPTION | framing.FLAG_CORRELATION_ID


class Progress(Enum):
    """The outcome of a step that has not produced the result of a call."""

    PENDING = "more must come"
    PROVING = "the message that `CallProtocol.prove` returns must be sent"
    GREETED = "the handshake is done"


PENDING, PROVING, GREETED = Progress.PENDING, Progress.PROVING, Progress.GREETED


class Caller(NamedTuple):
    """What one end of the connections tells of itself, and demands of the other ends.

    Attributes:
        greeting: describes it.
        keys: returns the keys of its secret, the one to use first; none if it has no secret.
        trusting: whether it calls servers on this host that do not prove that they know the secret.
        place: where its secret is, as a part of a sentence.
        reply_bytes: the longest reply that it accepts; 0: as long as one with the largest value that the peer takes.
        tls: how its TCP connections are protected.
    """

    greeting: Greeting = Greeting(protocol=PROTOCOL)
    keys: Callable[[], Sequence[bytes]] = tuple
    trusting: bool = True
    place: str = ""
    reply_bytes: int = 0
    tls: Encryption = None


def knowing(
    secret: Secret, greeting: Greeting | None = None, *, trusting: bool = False, tls: Encryption = None
) -> Caller:
    """Return a caller that knows the secret; see `Caller`."""
    proof.prepare()
    greeting = greeting or Greeting(protocol=PROTOCOL)
    return Caller(greeting, secret.current, trusting=trusting, place=secret.place, tls=tls)


_ADVICE = {
    NO_SECRET: "If it is a stock Pyro5 daemon of yours on this host, use PyroCacheClient(authenticate=False).",
    OTHER_SECRET: f"Name the file with its secret with secret_file=, --secret-file or ${FILE_VARIABLE}.",
    OTHER_ADDRESS: "If NAT or a mapped port is in between, start it with --advertise and that address.",
    NO_TLS: "Give tls=pyrocache.TLS(ca=...) or --tls-ca.",
    OTHER_CERTIFICATE: "Something between here and there has ended the TLS connection: connect without it.",
}
_AUTHENTICATE = "Use a PyroCacheClient without authenticate=False."

ANONYMOUS = Caller()
"""A caller without a session and without a secret."""


class CallProtocol:
    """One connection's handshake, calls and replies.

    Args:
        object_id: the id of the remote object.
        caller: describes the caller, and what it expects.

    Attributes:
        decoder: collects the frames that are received.
        sequence: number of the last call.
        identified: whether requests have a `RequestId`: the handshake had this end's session and the peer's clock.
        pack: packs a call for a driver that increments ``sequence`` itself; see `send_call`.
        peer: the greeting of the peer, once the handshake is done.
        max_value_bytes: length of the largest value frame that the peer accepts.
        proved: whether both ends have proved that they know the secret.
        space: returns the memory to receive the rest of a long reply into; None: call `receive_data`.
    """

    __slots__ = (
        *("_caller", "_handshake", "_object_id", "_packer"),
        *("decoder", "identified", "max_value_bytes", "pack", "peer", "proved", "sequence", "space"),
    )

    def __init__(self, object_id: str, caller: Caller = ANONYMOUS) -> None:
        self._object_id = object_id
        self._caller = caller
        self._handshake: ClientHandshake | None = None  # while it lasts
        self.peer = Greeting()
        self.identified = self.proved = False
        # Neither function is a method of this object: a cycle would keep large buffers alive.
        self.decoder = FrameDecoder(_admit_nothing, _room)
        self.space = self.decoder.space
        self._packer = CallPacker(object_id)
        self.pack = self._packer.pack
        self.sequence = 0
        self.max_value_bytes = DEFAULT_MAX_VALUE_BYTES

    def greet(self, dialled: str, nonce: bytes, certificate: bytes = b"") -> bytes:
        """Return the first message to send.

        Args:
            dialled: the address of the peer, as `format_peer` returns it.
            nonce: `NONCE_BYTES` random bytes.
            certificate: with TLS, the hash of the peer's certificate.
        """
        greeting, keys = self._caller.greeting, self._caller.keys()
        trusting = self._caller.trusting and is_on_this_host(dialled)
        if keys:
            greeting = greeting._replace(nonce=nonce, dialled=dialled, certificate=certificate)
        self._handshake = handshake = ClientHandshake(self._object_id, greeting, keys, trusting=trusting)
        self.decoder.admit = handshake.admit
        return handshake.request()

    def prove(self) -> bytes:
        """Return the message that proves that this end knows the secret."""
        assert self._handshake is not None
        return self._handshake.request()

    def send_call(
        self, method: str, arguments: tuple[Any, ...], number: int = 0, deadline: int = 0
    ) -> bytes | list[Buffer]:
        """Return the message that makes a call, in several buffers if a value among its arguments is large.

        ``number`` and ``deadline`` are the last two fields of its `RequestId`, if it is to have one.
        """
        self.sequence = (self.sequence + 1) & 0xFFFF
        return self.pack(method, arguments, self.sequence, number, deadline)

    def receive_data(self, data: bytes) -> Any:
        """Process received bytes. Return the result of the call, `GREETED` or `PENDING`.

        A large value may be a `memoryview` of memory that nothing else uses.

        Raises:
            Refused: the peer refused the call; the connection is still usable.
            HandshakeRefused, ProtocolError, OSError: close the connection.
        """
        if not data:
            raise ConnectionResetError("the node closed the connection")
        if self._handshake is None and self.decoder.between_frames:
            result = messages.unpack_result(data, self.sequence)
            if result is not messages.UNUSUAL:
                return result
        self.decoder.feed(data)
        return self._next_outcome()

    def received(self, count: int) -> Any:
        """Process ``count`` bytes that were received into `space`. Returns and raises as `receive_data`."""
        if not count:
            raise ConnectionResetError("the node closed the connection")
        self.decoder.filled(count)
        return self._next_outcome()

    def _next_outcome(self) -> Any:
        frame = self.decoder.next_frame()
        if frame is None:
            return PENDING
        if self.decoder.buffered:
            raise ProtocolError("More than one reply came to one request.")
        if self._handshake is not None:
            try:
                greeting = self._handshake.receive(frame)
            except HandshakeRefused as refused:
                raise self._explained(refused) from None
            if self._handshake.state is State.PROVING:
                self.proved = True  # once the peer has answered to this end's proof
                return PROVING
            return self._greeted(greeting)
        header, body = frame
        if header.sequence != self.sequence:
            raise ProtocolError("A reply came out of order.")
        if header.flags & framing.FLAG_EXCEPTION:
            raise Refused(refusals.unpack_refusal(body))
        return messages.unpack_plain(body)

    def _explained(self, refused: HandshakeRefused) -> HandshakeRefused:
        """If the secrets differ, add to the refusal where this end's secret is, and what to do."""
        if refused.code not in UNPROVEN:
            return refused
        if refused.code in (NO_TLS, OTHER_CERTIFICATE):
            refused.advice = _ADVICE[refused.code]
            return refused
        if not self._caller.place:
            refused.advice = _AUTHENTICATE
            return refused
        explained = HandshakeRefused(f"{refused}; the secret of this process is in {self._caller.place}")
        explained.advice = _ADVICE.get(refused.code, "")
        return explained

    def _greeted(self, greeting: Greeting) -> Progress:
        self._handshake = None
        self.peer = greeting
        session = self._caller.greeting.session
        if len(session) == SESSION_BYTES and greeting.clock_ms:
            self._packer.identify(session)
            self.identified = True
        self.max_value_bytes = greeting.max_value_bytes or self.max_value_bytes
        longest = self._caller.reply_bytes or self.max_value_bytes + limits.BATCH_BYTES + _REPLY_SLACK
        self.decoder.admit = lambda header: _admit_reply(header, longest)
        return GREETED


def _admit_nothing(header: Header) -> None:
    raise ProtocolError("The peer spoke first.")


def _room(frame_bytes: int) -> memoryview | None:
    """Return memory for a long reply, in which a large value begins at a multiple of 16 (for arrays)."""
    if frame_bytes <= limits.LARGE_BYTES:
        return None
    offset = -messages.VALUE_OFFSET % 16
    if frame_bytes <= _REUSED_BYTES:
        return memoryview(bytearray(offset + frame_bytes))[offset:]
    return reserve(frame_bytes, offset)


def _admit_reply(header: Header, longest: int) -> None:
    if header.type != framing.RESULT or header.serializer != framing.MSGPACK or header.flags & ~_REPLY_FLAGS:
        raise ProtocolError("This is not a plain reply in msgpack.")
    if header.frame_bytes > longest:
        raise ProtocolError("A reply is longer than any value that the node takes.")
