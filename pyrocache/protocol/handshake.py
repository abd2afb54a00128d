"""The handshake at both ends of a connection, without I/O: frames in, messages out, a state.

Responsible for the messages before the first request: which object the client wants, which serializer it speaks, how
the server describes itself. Does not send or receive. Does not judge requests either: once the connection is
established, `ServerHandshake.admit` passes their headers on.

The handshake is that of Pyro5: one CONNECT message and one answer. By their `Greeting` both ends compare protocol,
cluster, node and incarnation where both give them; a stock Pyro5 proxy or daemon gives none. It also has fields for
authentication and for agreeing on capabilities. Empty fields are not sent. To add authentication by a shared secret
(challenge and response), one more message is needed: the client's proof for the server's nonce. For that, add a member
to `State` between `AWAITING` and `ESTABLISHED`, and admit only this message in that state.

    client                                  server
    AWAITING   -- CONNECT {greeting}     -> AWAITING
    ESTABLISHED <- CONNECT_OK {greeting} -- ESTABLISHED
    REFUSED    <- CONNECT_FAIL "reason"  -- REFUSED

Pure: no I/O, no threads, no clock.

Thread safety: a handshake belongs to one connection and is used by one thread at a time.
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
from pyrocache.protocol.request_id import SESSION_BYTES

REQUEST_BYTES = 16 * 1024
"""Length of the longest CONNECT message that a server accepts."""

ANSWER_BYTES = 64 * 1024
"""Length of the longest answer to it that a client accepts."""

PROTOCOL = 1
"""The version of what both ends agree on beyond Pyro5's own protocol."""

NAMELESS = "nameless"
"""The caller, if it is the name server, or a node that has not joined yet."""

OVERLOADED = "overloaded"
OTHER_PROTOCOL, OTHER_CLUSTER = "other-protocol", "other-cluster"
OTHER_NODE, OTHER_INCARNATION = "other-node", "other-incarnation"

CODES = (OVERLOADED, OTHER_PROTOCOL, OTHER_CLUSTER, OTHER_NODE, OTHER_INCARNATION)
"""What a refusal may begin with, followed by a colon and a sentence."""

_IDENTITY = (
    (OTHER_PROTOCOL, "protocol", "protocol"),
    (OTHER_CLUSTER, "cluster", "cluster"),
    (OTHER_NODE, "node", "node"),
    (OTHER_INCARNATION, "incarnation", "incarnation"),
)

_ANSWERS = (framing.CONNECT_OK, framing.CONNECT_FAIL)
_ANSWER_FLAGS = framing.FLAG_EXCEPTION | framing.FLAG_CORRELATION_ID


class State(Enum):
    """The progress of a handshake."""

    AWAITING = "awaiting"
    """The other end has not sent anything yet; only a handshake message is admitted."""
    ESTABLISHED = "established"
    """Requests may follow."""
    REFUSED = "refused"
    """The connection is to be closed."""


class HandshakeRefused(Exception):
    """One end refuses the connection. The text is the reason."""

    @property
    def code(self) -> str:
        """The code that the reason begins with, one of `CODES`; empty if there is none."""
        code = str(self).partition(": ")[0]
        return code if code in CODES else ""


class CloseAfterReply(Exception):
    """Raised by a server to close the connection after ``reply`` has been sent."""

    def __init__(self, reply: bytes) -> None:
        super().__init__("the connection is closed after a last message")
        self.reply = reply


class Greeting(NamedTuple):
    """What one end sends of itself, and what a client expects of the other end. None of it is authenticated.

    Attributes:
        node: the name of the node. Like the next three, a client sends the one that it expects to find.
        incarnation: differs between the starts of a node.
        max_value_bytes: the largest value frame that the node accepts; 0 if unknown.
        protocol: the version of what is agreed beyond Pyro5's own protocol, `PROTOCOL`.
        cluster: the id of the cluster.
        session: the random id of a client. It is new after a fork.
        caller: name and incarnation of a node that connects, separated by a space, or `NAMELESS`; a client has none.
        clock_ms: the node's clock, modulo 2**32 milliseconds, from 1 on; 0 if unknown.
        capabilities: optional parts of the protocol that this end knows, separated by spaces. None are defined yet.
        nonce: a random challenge, which the other end answers by a proof. Not used yet.
        proof: the answer to the other end's nonce. Not used yet.
    """

    node: str = ""
    incarnation: str = ""
    max_value_bytes: int = 0
    protocol: int = 0
    cluster: str = ""
    session: bytes = b""
    caller: str = ""
    clock_ms: int = 0
    capabilities: str = ""
    nonce: bytes = b""
    proof: bytes = b""

    def check(self, expected: Greeting) -> None:
        """Compare what a server is with what a client expects. A field that one of them leaves empty is not compared.

        Raises:
            HandshakeRefused: they differ. This does not mean that the node which the client looks for is gone.
        """
        for code, field, what in _IDENTITY:
            mine, wanted = getattr(self, field), getattr(expected, field)
            if mine and wanted and mine != wanted:
                raise HandshakeRefused(f"{code}: this is {what} {mine}, not {wanted}")

    def to_wire(self) -> dict[str, Any]:
        """Return the plain value to send: the fields that are not empty."""
        return {name: value for name, value in self._asdict().items() if value}

    @classmethod
    def from_wire(cls, data: Any) -> Greeting:
        """Return the greeting in ``data``. Missing fields and those of a wrong type stay empty.

        A stock Pyro5 daemon sends "hello", which is an empty greeting.
        """
        if not isinstance(data, dict):
            return cls()
        empty = cls._field_defaults
        return cls(**{name: data[name] for name in empty if type(data.get(name)) is type(empty[name])})


class ClientHandshake:
    """The state of a handshake at the client.

    Args:
        object_id: the remote object that the connection is for.
        greeting: describes the client, and what it expects; None sends Pyro5's plain greeting.

    Attributes:
        state: the progress.
    """

    __slots__ = ("_expected", "_greeting", "_object_id", "state")

    def __init__(self, object_id: str, greeting: Greeting | None = None) -> None:
        self._object_id = object_id
        self._expected = greeting or Greeting()
        self._greeting = greeting.to_wire() if greeting else "pyrocache"
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
        """Process the answer, whose header `admit` has accepted. Return the server's greeting.

        Raises:
            HandshakeRefused: the server refuses, or is not what the client expects.
            ProtocolError: the body is not plain msgpack.
        """
        answer = unpack_plain(frame.body)
        if frame.header.type == framing.CONNECT_FAIL:
            self.state = State.REFUSED
            raise HandshakeRefused(answer if isinstance(answer, str) else "no reason was given")
        greeting = Greeting.from_wire(answer.get("handshake") if isinstance(answer, dict) else None)
        try:
            greeting.check(self._expected)
        except HandshakeRefused:
            self.state = State.REFUSED
            raise
        self.state = State.ESTABLISHED
        return greeting


class Serializer(NamedTuple):
    """A serialization format for the bodies of messages.

    Attributes:
        number: its id in a message's header.
        dumps: returns a plain value as bytes.
        loads: returns the plain value in a body; raises `ProtocolError`.
        loads_call: returns object id, method, arguments and options of the request in a body; raises `ProtocolError`.
        pack_result: returns the whole reply to the request with the given sequence number.
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
    """The state of a handshake at the server.

    Attributes:
        describe: called with the id of the object that the client wants, and the client's greeting. Returns the plain
            value of the CONNECT_OK message; raises `HandshakeRefused` to refuse.
        admit_request: judges the headers of requests, once the connection is established.
        spoken: the serializers that a client may choose from, by number.
        admit_head: judges the beginnings of long requests, see `FrameDecoder`.
        refusals: by the number of a serializer that is not supported, the refusal, written in that serializer.
        state: the progress.
        serializer: the serializer that the client chose; messages in any other are refused from then on.
        nodes_only: whether clients are refused, for want of file descriptors.
        session: the session that requests are identified by (see `request_id`); None unless the client gave one and
            this end gave its clock.
    """

    describe: Callable[[str, Any], Any]
    admit_request: Callable[[Header], None]
    spoken: Mapping[int, Serializer]
    refusals: Mapping[int, bytes]
    admit_head: Callable[[Header, bytes], bool] = lambda header, head: True
    state: State = State.AWAITING
    serializer: Serializer | None = None
    nodes_only: bool = False
    session: bytes | None = None

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
        """Process the client's handshake. Return the reply that accepts it.

        Raises:
            ProtocolError: drop the connection.
            CloseAfterReply: send its reply, then drop the connection.
        """
        header, body = frame
        serializer = self.spoken[header.serializer]
        request = serializer.loads(body)
        if not isinstance(request, dict) or not isinstance(request.get("object"), str):
            raise ProtocolError("A handshake names the object that it is for.")
        greeting = Greeting.from_wire(request.get("handshake"))
        if self.nodes_only and not greeting.caller:
            text = f"{OVERLOADED}: this server has no file descriptors left for clients"
            raise self._refused(header, serializer.dumps(text))
        try:
            answer = self.describe(request["object"], request.get("handshake"))
        except HandshakeRefused as refused:
            raise self._refused(header, serializer.dumps(str(refused))) from None
        self.state, self.serializer = State.ESTABLISHED, serializer
        session = greeting.session
        if len(session) == SESSION_BYTES and Greeting.from_wire(answer.get("handshake")).clock_ms:
            self.session = session
        accepted = serializer.dumps(answer)
        return framing.pack_message(framing.CONNECT_OK, header.sequence, accepted, 0, serializer.number)

    def _admit_first(self, header: Header) -> None:
        if header.type != framing.CONNECT or header.flags & ~framing.FLAG_CORRELATION_ID:
            raise ProtocolError("A connection begins with a plain handshake.")
        if header.frame_bytes > REQUEST_BYTES:
            raise ProtocolError("A handshake is short.")
        if header.serializer not in self.spoken:
            if header.serializer not in self.refusals:  # the peer could not read any reason
                raise ProtocolError("An unknown serializer.")
            raise self._refused(header, self.refusals[header.serializer])

    def _refused(self, header: Header, body: bytes) -> CloseAfterReply:
        self.state = State.REFUSED
        fail = framing.pack_message(framing.CONNECT_FAIL, header.sequence, body, 0, header.serializer)
        return CloseAfterReply(fail)
