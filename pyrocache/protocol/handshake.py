"""The handshake of both ends of a connection, without I/O: frames in, messages out, a state. Pure.

Owns what is said before the first request: which object the client wants, which serializer it speaks, what the server
tells of itself. Does not send or receive, and does not judge requests; `ServerHandshake.admit` hands their headers on
once the connection is established. A handshake belongs to one connection and is used by one thread at a time.

Today it is Pyro5's: one CONNECT message and one answer. `Greeting` has the places for authentication and
for agreeing on capabilities; what is left empty is not sent, so that the bytes are those of Pyro5. A proof of a shared
secret by challenge and response needs one message more: the client's proof of the server's nonce. `State` gets a
member between `AWAITING` and `ESTABLISHED` then, and nothing else is admitted in that state.

    client                                  server
    AWAITING   -- CONNECT {greeting}     -> AWAITING
    ESTABLISHED <- CONNECT_OK {greeting} -- ESTABLISHED
    REFUSED    <- CONNECT_FAIL "reason"  -- REFUSED
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from pyrocache.errors import ProtocolError
from pyrocache.protocol import framing
from pyrocache.protocol.framing import Buffer, Frame, Header
from pyrocache.protocol.messages import pack_plain, pack_result, unpack_call, unpack_plain

REQUEST_BYTES = 16 * 1024
"""Length of the longest CONNECT message that a server takes."""

ANSWER_BYTES = 64 * 1024
"""Length of the longest answer to it that a client takes."""

_ANSWERS = (framing.CONNECT_OK, framing.CONNECT_FAIL)
_ANSWER_FLAGS = framing.FLAG_EXCEPTION | framing.FLAG_CORRELATION_ID


class State(Enum):
    """How far a handshake has come."""

    AWAITING = "awaiting"
    """The other end has not spoken; nothing but a handshake message is admitted."""
    ESTABLISHED = "established"
    """Requests may follow."""
    REFUSED = "refused"
    """The connection is to be closed."""


class HandshakeRefused(Exception):
    """The server refuses the connection, for the reason that is the text."""


class CloseAfterReply(Exception):
    """The server ends the connection after ``reply`` has been sent."""

    def __init__(self, reply: bytes) -> None:
        super().__init__("the connection is closed after a last message")
        self.reply = reply


class Greeting(NamedTuple):
    """What one end says of itself. A client says nothing yet.

    Attributes:
        node: the name of the node; identity, unproven.
        incarnation: tells this start of the node from the others; identity, unproven.
        max_value_bytes: the largest value frame that the node takes; 0: it does not say.
        capabilities: optional parts of the protocol that this end knows, separated by spaces. None are defined yet.
        nonce: a random challenge that the other end has to answer by a proof. Not used yet.
        proof: the answer to the other end's nonce. Not used yet.
    """

    node: str = ""
    incarnation: str = ""
    max_value_bytes: int = 0
    capabilities: str = ""
    nonce: bytes = b""
    proof: bytes = b""

    def to_wire(self) -> dict[str, Any]:
        """Return the plain value to send: what is not empty."""
        return {name: value for name, value in self._asdict().items() if value}

    @classmethod
    def from_wire(cls, data: Any) -> Greeting:
        """Return what ``data`` says; what is missing or of a wrong type stays empty. A stock daemon says "hello"."""
        if not isinstance(data, dict):
            return cls()
        empty = cls._field_defaults
        return cls(**{name: data[name] for name in empty if type(data.get(name)) is type(empty[name])})


class ClientHandshake:
    """The client's end.

    Args:
        object_id: the remote object that the connection is for.
        greeting: what to say of the client, if anything.

    Attributes:
        state: how far it has come.
    """

    __slots__ = ("_greeting", "_object_id", "state")

    def __init__(self, object_id: str, greeting: Greeting | None = None) -> None:
        self._object_id = object_id
        self._greeting = "pyrocache" if greeting is None else greeting.to_wire()
        self.state = State.AWAITING

    def request(self) -> bytes:
        """Return the message that begins the handshake."""
        body = pack_plain({"handshake": self._greeting, "object": self._object_id})
        return framing.pack_message(framing.CONNECT, 0, body)

    def admit(self, header: Header) -> None:
        """Judge the header of the answer before its body is read.

        Raises:
            ProtocolError: drop the connection.
        """
        if header.type not in _ANSWERS or header.serializer != framing.MSGPACK:
            raise ProtocolError("This is no answer to a handshake in msgpack.")
        if header.flags & ~_ANSWER_FLAGS or header.frame_bytes > ANSWER_BYTES:
            raise ProtocolError("This answer to a handshake is compressed or too long.")

    def receive(self, frame: Frame) -> Greeting:
        """Take the answer and return what the server says of itself.

        Raises:
            HandshakeRefused: the server refuses.
            ProtocolError: the answer is none.
        """
        self.admit(frame.header)
        answer = unpack_plain(frame.body)
        if frame.header.type == framing.CONNECT_FAIL:
            self.state = State.REFUSED
            raise HandshakeRefused(answer if isinstance(answer, str) else "no reason was given")
        self.state = State.ESTABLISHED
        return Greeting.from_wire(answer.get("handshake") if isinstance(answer, dict) else None)


class Serializer(NamedTuple):
    """One way to write the bodies of messages.

    Attributes:
        number: its id in a message's header.
        dumps: a plain value as bytes.
        loads: the plain value in a body; raises ProtocolError.
        loads_call: object, method, arguments and options in the body of a request; raises ProtocolError.
        pack_result: the whole reply to the request with that sequence number.
    """

    number: int
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes | memoryview], Any]
    loads_call: Callable[[bytes | memoryview], tuple[str, str, list[Any], dict[str, Any]]]
    pack_result: Callable[[int, Any], bytes | list[Buffer]]


MSGPACK = Serializer(framing.MSGPACK, pack_plain, unpack_plain, unpack_call, pack_result)
"""The serializer of clients and nodes."""


@dataclass(slots=True, eq=False)
class ServerHandshake:
    """The server's end.

    Attributes:
        describe: what to tell a client of the object that it wants, as the plain value of a CONNECT_OK message. Gets
            the object's id and the client's greeting; raises `HandshakeRefused` to refuse.
        admit_request: judges the headers of requests, once the connection is established.
        spoken: the serializers that a client may choose from, by number.
        refusals: a sentence for clients that chose another one, written in that one, by number.
        state: how far it has come.
        serializer: what the client chose; nothing else is taken from it afterwards.
    """

    describe: Callable[[str, Any], Any]
    admit_request: Callable[[Header], None]
    spoken: Mapping[int, Serializer]
    refusals: Mapping[int, bytes]
    state: State = State.AWAITING
    serializer: Serializer | None = None

    def admit(self, header: Header) -> None:
        """Judge a header, in any state, before its body is read.

        Raises:
            ProtocolError: drop the connection.
            CloseAfterReply: send its reply, then drop the connection.
        """
        if self.serializer is None:
            self._admit_first(header)
        elif header.type != framing.PING and header.serializer != self.serializer.number:
            raise ProtocolError("The peer changed its serializer.")
        else:
            self.admit_request(header)

    def receive(self, frame: Frame) -> bytes:
        """Take the client's handshake and return the reply that accepts it.

        Raises:
            ProtocolError: drop the connection.
            CloseAfterReply: send its reply, then drop the connection.
        """
        header, body = frame
        serializer = self.spoken[header.serializer]
        request = serializer.loads(body)
        if not isinstance(request, dict) or not isinstance(request.get("object"), str):
            raise ProtocolError("A handshake names the object that it is for.")
        try:
            answer = self.describe(request["object"], request.get("handshake"))
        except HandshakeRefused as refused:
            raise self._refused(header, serializer.dumps(str(refused))) from None
        self.state, self.serializer = State.ESTABLISHED, serializer
        accepted = serializer.dumps(answer)
        return framing.pack_message(framing.CONNECT_OK, header.sequence, accepted, 0, serializer.number)

    def _admit_first(self, header: Header) -> None:
        if header.type != framing.CONNECT or header.flags & ~framing.FLAG_CORRELATION_ID:
            raise ProtocolError("A connection begins with a plain handshake.")
        if header.frame_bytes > REQUEST_BYTES:
            raise ProtocolError("A handshake is short.")
        if header.serializer not in self.spoken:
            if header.serializer not in self.refusals:
                raise ProtocolError("An unknown serializer.")
            raise self._refused(header, self.refusals[header.serializer])

    def _refused(self, header: Header, body: bytes) -> CloseAfterReply:
        self.state = State.REFUSED
        fail = framing.pack_message(framing.CONNECT_FAIL, header.sequence, body, 0, header.serializer)
        return CloseAfterReply(fail)
