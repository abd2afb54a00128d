"""The handshake at both ends of a connection, without I/O: frames in, messages out, a state.

Responsible for the messages before the first request: which object the client wants, which serializer it speaks, how
the server describes itself. Does not send or receive. Does not judge requests either: once the connection is
established, `ServerHandshake.admit` passes their headers on.

The handshake begins as that of Pyro5, with a CONNECT message and an answer. By their `Greeting` both ends compare
cluster, node and incarnation where both give them, and agree on a version of the protocol (`agreed_protocol`); a stock
Pyro5 proxy or daemon gives none of these. Empty fields are not sent.

Ends that have a secret prove that they know it (`protocol.proof`): the caller's greeting has a nonce and the address
that it dialled, the answer has another nonce and the server's proof, and a second CONNECT message has the caller's
proof. The server's `Admission` says who else is admitted.

    client                                          server
    AWAITING    -- CONNECT {greeting, nonce}     -> AWAITING
    PROVING    <- CONNECT_OK {greeting, nonce, proof} -- PROVING      without nonces, both ends are ESTABLISHED
                -- CONNECT {proof}               ->
    ESTABLISHED <- CONNECT_OK {}                 -- ESTABLISHED
    REFUSED     <- CONNECT_FAIL "reason"         -- REFUSED           instead of any CONNECT_OK

Pure: no I/O, no threads, no clock.

Thread safety: a handshake belongs to one connection and is used by one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from pyrocache.errors import ProtocolError
from pyrocache.late_imports import at_first_use
from pyrocache.protocol import framing
from pyrocache.protocol.framing import Buffer, Frame, Header
from pyrocache.protocol.messages import pack_plain, pack_result, unpack_call, unpack_plain
from pyrocache.protocol.proof import NONCE_BYTES, Role, prove, proves, transcript
from pyrocache.protocol.request_id import SESSION_BYTES

REQUEST_BYTES = 16 * 1024
"""Length of the longest message that a server accepts from a caller that has not proved the secret."""

ANSWER_BYTES = 64 * 1024
"""Length of the longest answer to it that a client accepts."""

PROTOCOL = 1
"""The version of what both ends agree on beyond Pyro5's own protocol. It works with the version before and with the
next one: both ends then use the lower of their versions."""

OLDEST_PROTOCOL = 1
"""The oldest version that other ends may have. A version that cannot work with the one before it raises this, too."""

NAMELESS = "nameless"
"""The caller, if it is the name server, or a node that has not joined yet."""

PIPELINED = "pipelined"
"""The capability of a caller that has up to `limits.PIPELINED_CALLS` requests outstanding on the connection, and of a
server that remembers the replies to so many changes."""

UNORDERED = "unordered"
"""The capability of a caller that takes replies in any order, and of a server that reads on while calls on workers and
deferred calls are outstanding."""

OVERLOADED = "overloaded"
OTHER_PROTOCOL, OTHER_CLUSTER = "other-protocol", "other-cluster"
OTHER_NODE, OTHER_INCARNATION = "other-node", "other-incarnation"
NO_SECRET, OTHER_SECRET, OTHER_ADDRESS = "no-secret", "other-secret", "other-address"
NO_TLS, OTHER_CERTIFICATE = "no-tls", "other-certificate"

CODES = (
    *(OVERLOADED, OTHER_PROTOCOL, OTHER_CLUSTER, OTHER_NODE, OTHER_INCARNATION),
    *(NO_SECRET, OTHER_SECRET, OTHER_ADDRESS, NO_TLS, OTHER_CERTIFICATE),
)
"""What a refusal may begin with, followed by a colon and a sentence."""

UNPROVEN = (NO_SECRET, OTHER_SECRET, OTHER_ADDRESS, NO_TLS, OTHER_CERTIFICATE)
"""Those that say that one end has not proved who it is, or that the connection would not be protected."""

_IDENTITY = (
    (OTHER_CLUSTER, "cluster", "cluster"),
    (OTHER_NODE, "node", "node"),
    (OTHER_INCARNATION, "incarnation", "incarnation"),
)

_LEGIBLE_CHARACTERS = 400  # more than any reason of ours has

_ANSWERS = (framing.CONNECT_OK, framing.CONNECT_FAIL)
_ANSWER_FLAGS = framing.FLAG_EXCEPTION | framing.FLAG_CORRELATION_ID


def agreed_protocol(server: int, caller: int, oldest: int = OLDEST_PROTOCOL) -> int:
    """Return the version that both ends are to use: the lower one of their versions; 0 if one of them is not told.

    Args:
        server, caller: the versions of the two ends; 0 if unknown, as of stock Pyro5.
        oldest: the oldest version that is accepted.

    Raises:
        HandshakeRefused: the versions are not neighbours, or one of them is older than ``oldest``.
    """
    if not (server and caller):
        return 0
    lower = min(server, caller)
    if lower < oldest or abs(server - caller) > 1:
        outdated = "server" if server < caller else "caller"
        raise HandshakeRefused(
            f"{OTHER_PROTOCOL}: the server speaks protocol {server} and the caller protocol {caller}: "
            f"upgrade pyrocache at the {outdated}"
        )
    return lower


class State(Enum):
    """The progress of a handshake."""

    AWAITING = "awaiting"
    """The other end has not sent anything yet; only a handshake message is admitted."""
    PROVING = "proving"
    """The caller has to prove that it knows the secret; only a handshake message is admitted."""
    ESTABLISHED = "established"
    """Requests may follow."""
    REFUSED = "refused"
    """The connection is to be closed."""


class HandshakeRefused(Exception):
    """One end refuses the connection. The text is the reason.

    Attributes:
        advice: what the user of the calling end can do, as a sentence; empty if nothing is known.
    """

    advice = ""

    @property
    def code(self) -> str:
        """The code that the reason begins with, one of `CODES`; empty if there is none."""
        code = str(self).partition(": ")[0]
        return code if code in CODES else ""

    @property
    def reason(self) -> str:
        """The reason without its code."""
        return str(self).removeprefix(f"{self.code}: ")


class CloseAfterReply(Exception):
    """Raised by a server to close the connection after ``reply`` has been sent."""

    def __init__(self, reply: bytes) -> None:
        super().__init__("the connection is closed after a last message")
        self.reply = reply


class Greeting(NamedTuple):
    """What one end sends of itself, and what a client expects of the other end. The proofs cover all of it.

    Attributes:
        node: the name of the node. In this, incarnation, protocol and cluster, a client sends what it expects.
        incarnation: differs between the starts of a node.
        max_value_bytes: the largest value frame that the node accepts; 0 if unknown.
        protocol: the version of what is agreed beyond Pyro5's own protocol, `PROTOCOL`.
        cluster: the id of the cluster.
        session: the random id of a client. It is new after a fork.
        caller: name and incarnation of a node that connects, separated by a space, or `NAMELESS`; a client has none.
        clock_ms: the node's clock, modulo 2**32 milliseconds, from 1 on; 0 if unknown.
        capabilities: optional parts of the protocol that this end knows, separated by spaces: `PIPELINED`, `UNORDERED`.
        nonce: `NONCE_BYTES` random bytes, which the other end's proof covers; empty without a secret.
        proof: see `protocol.proof`.
        dialled: the address that a caller with a nonce is connected to, as `format_peer` returns it.
        certificate: with TLS, the SHA-256 hash of the certificate that the caller has got from there.
        token: what a caller without the secret was given by somebody who has it.
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
    dialled: str = ""
    certificate: bytes = b""
    token: str = ""

    def check(self, expected: Greeting) -> None:
        """Compare what a server is with what a client expects. A field that one of them leaves empty is not compared.

        Raises:
            HandshakeRefused: they differ. This does not mean that the node which the client looks for is gone.
        """
        for code, field, what in _IDENTITY:
            mine, wanted = getattr(self, field), getattr(expected, field)
            if mine and wanted and mine != wanted:
                raise HandshakeRefused(
                    f"{code}: this is {what} {legible(str(mine))}, not {legible(str(wanted))}"
                )

    def has(self, capability: str) -> bool:
        """Return whether the sender knows an optional part of the protocol."""
        return capability in self.capabilities.split(" ")

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


def format_peer(address: Any) -> str:
    """Return the address of one end of a connection in the one form that both ends compare.

    Args:
        address: what ``getsockname`` or ``getpeername`` of a socket returns; or the path of a Unix socket.
    """
    if not isinstance(address, tuple):
        return os.fsdecode(address)
    host, port = address[:2]
    if ":" not in host:
        return f"{host} {port}"
    with at_first_use:
        from ipaddress import IPv6Address  # imported here: only IPv6 needs it
    ip = IPv6Address(host.partition("%")[0])
    return f"{ip.ipv4_mapped or ip} {port}"


def legible(text: str) -> str:
    """Return what another end has said for an error or a log: in one line, without control characters, not long."""
    return "".join(character if character.isprintable() else "?" for character in text[:_LEGIBLE_CHARACTERS])


def proxies_need(object_id: str) -> str:
    """Return what a caller that cannot prove the secret is told."""
    return f"a Pyro5 proxy needs proxy._pyroHandshake = pyrocache.stock_handshake({object_id!r})"


def is_on_this_host(address: str) -> bool:
    """Return whether an address, as `format_peer` returns it, is a Unix socket or a loopback address."""
    host = address.partition(" ")[0]
    if host.startswith("/") or ":" not in host:
        return host.startswith(("/", "127."))
    with at_first_use:
        from ipaddress import IPv6Address  # imported here: only IPv6 needs it
    return IPv6Address(host).is_loopback


class ClientHandshake:
    """The state of a handshake at the client.

    Args:
        object_id: the remote object that the connection is for.
        greeting: describes the client, and what it expects; None sends Pyro5's plain greeting.
        keys: those of the secret, the one to use first; empty if the client has none. Then ``greeting`` has no nonce.
        trusting: whether a server that proves nothing is accepted.

    Attributes:
        state: the progress.
        protocol: the version that both ends use, once the server has answered; 0 if one of them told none.
    """

    __slots__ = (
        *("_expected", "_keys", "_object_id", "_offer", "_said", "_server", "_trusting"),
        *("protocol", "state"),
    )

    def __init__(
        self,
        object_id: str,
        greeting: Greeting | None = None,
        keys: Sequence[bytes] = (),
        *,
        trusting: bool = True,
    ) -> None:
        self._object_id = object_id
        self._expected = greeting or Greeting()
        self._offer: Any = greeting.to_wire() if greeting else "pyrocache"
        self._keys = keys
        self._trusting = trusting
        self._said = b""
        self._server = Greeting()
        self.protocol = 0
        self.state = State.AWAITING

    def request(self) -> bytes:
        """Return the message that begins the handshake; while `PROVING`, the one with this end's proof."""
        handshake = self._offer
        if self.state is State.PROVING:
            handshake = Greeting(proof=prove(self._keys[0], Role.CALLER, self._said)).to_wire()
        body = pack_plain({"handshake": handshake, "object": self._object_id})
        return framing.pack_message(framing.CONNECT, 0, body)

    def admit(self, header: Header) -> None:
        """Judge the header of an answer before its body is read.

        Raises:
            ProtocolError: drop the connection.
        """
        if header.type not in _ANSWERS or header.serializer != framing.MSGPACK:
            raise ProtocolError("This is no answer to a handshake in msgpack.")
        if header.flags & ~_ANSWER_FLAGS or header.frame_bytes > ANSWER_BYTES:
            raise ProtocolError("This answer to a handshake is compressed or too long.")

    def receive(self, frame: Frame) -> Greeting:
        """Process an answer, whose header `admit` has accepted. Return the server's greeting.

        If the state is `PROVING` afterwards, send `request` and wait for another answer.

        Raises:
            HandshakeRefused: the server refuses, or is not what the client expects.
            ProtocolError: the body is not plain msgpack.
        """
        answer = unpack_plain(frame.body)
        try:
            if frame.header.type == framing.CONNECT_FAIL:
                raise HandshakeRefused(legible(answer) if isinstance(answer, str) else "no reason was given")
            if self.state is State.PROVING:
                self.state = State.ESTABLISHED
            else:
                said = answer.get("handshake") if isinstance(answer, dict) else None
                self._server = Greeting.from_wire(said)
                self.protocol = agreed_protocol(self._server.protocol, self._expected.protocol)
                self._server.check(self._expected)
                self.state = self._examine(said if isinstance(said, dict) else {})
        except HandshakeRefused:
            self.state = State.REFUSED
            raise
        return self._server

    def _examine(self, answer: dict[Any, Any]) -> State:
        """Check the server's proof. Return the next state."""
        if not (self._keys and self._server.nonce):
            if not self._trusting:
                raise HandshakeRefused(f"{NO_SECRET}: this server does not prove that it knows the secret")
            return State.ESTABLISHED
        self._said = transcript(self._object_id, self._offer, answer)
        if not proves(self._keys, Role.SERVER, self._said, self._server.proof):
            raise HandshakeRefused(f"{OTHER_SECRET}: this server has another secret")
        return State.PROVING


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


class Strangers(Enum):
    """What a server does with callers that do not prove that they know its secret."""

    REFUSED = "they are refused"
    ADMITTED = "they may do what is open to all"
    TRUSTED = "they may do all"


class Admission(NamedTuple):
    """Whom a server with a secret admits.

    Attributes:
        keys: returns the keys of the secret, the one to use first.
        nonce: returns `NONCE_BYTES` random bytes, others each time.
        accepts_token: returns whether a token (see `Greeting.token`) is valid; each only once.
        strangers: what becomes of callers with neither a nonce nor a token. From other hosts, they are refused.
        advertised: the addresses, beside the one that a connection was accepted on, that callers may have dialled.
    """

    keys: Callable[[], Sequence[bytes]]
    nonce: Callable[[], bytes]
    accepts_token: Callable[[str], bool] = lambda token: False
    strangers: Strangers = Strangers.REFUSED
    advertised: Collection[str] = ()


class ServerHandshake:
    """The state of a handshake at the server.

    Attributes:
        describe: called with the id of the object that the client wants, and the client's greeting. Returns the plain
            value of the CONNECT_OK message; raises `HandshakeRefused` to refuse.
        admit_request: judges the headers of requests, once the connection is established.
        spoken: the serializers that a client may choose from, by number.
        admit_head: judges the beginnings of long requests, see `FrameDecoder`.
        refusals: by the number of a serializer that is not supported, the refusal, written in that serializer.
        admission: whom to admit; None for everybody.
        local: the address that the connection was accepted on, as `format_peer` returns it.
        certificate: with TLS, the SHA-256 hash of this end's certificate; None if this end demands TLS, and the
            connection is without it.
        state: the progress.
        trusted: whether the caller may do what is not open to all.
        refusal: why the handshake was refused; empty if it was not.
        serializer: the serializer that the client chose; messages in any other are refused from then on.
        nodes_only: whether clients are refused, for want of file descriptors.
        session: the session that requests are identified by (see `request_id`); None unless the client gave one and
            this end gave its clock.
        protocol: the version that both ends use, once the client has greeted; 0 if one of them told none.
        pipelined, unordered: whether the client has these capabilities (`PIPELINED`, `UNORDERED`).
        of_client: whether the caller, once it has greeted, is neither a node nor a name server.
    """

    __slots__ = (
        *(
            "_said",
            "admission",
            "admit_head",
            "admit_request",
            "certificate",
            "describe",
            "local",
            "nodes_only",
            "of_client",
        ),
        *(
            "pipelined",
            "protocol",
            "refusal",
            "refusals",
            "serializer",
            "session",
            "spoken",
            "state",
            "trusted",
        ),
        "unordered",
    )

    def __init__(
        self,
        describe: Callable[[str, Any], Any],
        admit_request: Callable[[Header], None],
        spoken: Mapping[int, Serializer],
        refusals: Mapping[int, bytes],
        admit_head: Callable[[Header, bytes], bool] = lambda header, head: True,
        admission: Admission | None = None,
        local: str = "",
        certificate: bytes | None = b"",
        nodes_only: bool = False,
    ) -> None:
        self.describe = describe
        self.admit_request = admit_request
        self.spoken = spoken
        self.refusals = refusals
        self.admit_head = admit_head
        self.admission = admission
        self.local = local
        self.certificate = certificate
        self.nodes_only = nodes_only
        self.state = State.AWAITING
        self.trusted = False
        self.refusal = ""
        self.serializer: Serializer | None = None
        self.session: bytes | None = None
        self.protocol = 0
        self.pipelined = self.unordered = self.of_client = False
        self._said = b""

    def admit(self, header: Header) -> None:
        """Judge a header, in any state, before its body is read.

        Raises:
            ProtocolError: drop the connection.
            CloseAfterReply: send its reply, then drop the connection.
        """
        if self.state is not State.ESTABLISHED:
            self._admit_handshake(header)
        elif header.type != framing.PING and self.serializer and header.serializer != self.serializer.number:
            raise ProtocolError("The peer changed its serializer.")
        elif not self.trusted and header.frame_bytes > REQUEST_BYTES:
            raise ProtocolError(
                "The request is longer than 16 KiB, and the caller has not proved the secret."
            )
        else:
            self.admit_request(header)

    def receive(self, frame: Frame) -> bytes:
        """Process a message of the handshake. Return the reply that accepts it.

        Raises:
            ProtocolError: drop the connection.
            CloseAfterReply: send its reply, then drop the connection.
        """
        if self.state is State.REFUSED:
            raise ProtocolError("The handshake has failed.")
        header, body = frame
        serializer = self.spoken[header.serializer]
        request = serializer.loads(body)
        if not isinstance(request, dict) or not isinstance(request.get("object"), str):
            raise ProtocolError("A handshake names the object that it is for.")
        greeting = Greeting.from_wire(request.get("handshake"))
        try:
            if self.state is State.PROVING:
                answer = self._check_proof(greeting)
            elif self.nodes_only and not greeting.caller:
                raise HandshakeRefused(f"{OVERLOADED}: this server has no file descriptors left for clients")
            else:
                answer = self._answer(request["object"], request.get("handshake"))
        except HandshakeRefused as refused:
            self.refusal = str(refused)
            raise self._refused(header, serializer.dumps(self.refusal)) from None
        self.serializer = serializer
        return framing.pack_message(
            framing.CONNECT_OK, header.sequence, serializer.dumps(answer), 0, serializer.number
        )

    def _answer(self, object_id: str, offered: Any) -> Any:
        """Return the answer to the first message, and set the next state."""
        offer = Greeting.from_wire(offered)
        if self.certificate is None:
            raise HandshakeRefused(f"{NO_TLS}: this server speaks TLS only")
        proving = self.admission is not None and bool(offer.nonce)
        if not proving:
            self.trusted = self.admission is None or self._admit_stranger(self.admission, object_id, offer)
        answer = self.describe(object_id, offered)
        mine = answer.get("handshake")
        own = Greeting.from_wire(mine)
        self.protocol = agreed_protocol(own.protocol, offer.protocol)
        if len(offer.session) == SESSION_BYTES and own.clock_ms:
            self.session = offer.session
        self.pipelined, self.unordered = offer.has(PIPELINED), offer.has(UNORDERED)
        self.of_client = not offer.caller
        if self.admission is not None and proving:
            answer = {**answer, "handshake": self._prove(self.admission, object_id, offered, mine)}
        self.state = State.PROVING if proving else State.ESTABLISHED
        return answer

    def _admit_stranger(self, admission: Admission, object_id: str, offer: Greeting) -> bool:
        """Return whether a caller that gives no nonce is trusted. Refuse it if it may not do anything."""
        if offer.token:
            if not admission.accepts_token(offer.token):
                reason = "it was used, is older than 30 seconds, or is of another server"
                raise HandshakeRefused(
                    f"{OTHER_SECRET}: this token is not valid: {reason}; {proxies_need(object_id)} for each connection"
                )
            return True
        if admission.strangers is Strangers.REFUSED or not is_on_this_host(self.local):
            raise HandshakeRefused(
                f"{NO_SECRET}: this server serves callers that prove its secret; {proxies_need(object_id)}"
            )
        return admission.strangers is Strangers.TRUSTED

    def _prove(self, admission: Admission, object_id: str, offered: Any, mine: Any) -> dict[str, Any]:
        """Return this end's greeting with its nonce and proof."""
        offer = Greeting.from_wire(offered)
        if len(offer.nonce) != NONCE_BYTES:
            raise HandshakeRefused(f"{OTHER_SECRET}: the nonce does not have {NONCE_BYTES} bytes")
        if offer.dialled != self.local and offer.dialled not in admission.advertised:
            raise HandshakeRefused(f"{OTHER_ADDRESS}: this server does not listen on {offer.dialled!r}")
        if offer.certificate != self.certificate:
            raise HandshakeRefused(
                f"{OTHER_CERTIFICATE}: the caller has got another one than this server has"
            )
        answer = {**(mine if isinstance(mine, dict) else {}), "nonce": admission.nonce()}
        self._said = transcript(object_id, offered, answer)
        return {**answer, "proof": prove(admission.keys()[0], Role.SERVER, self._said)}

    def _check_proof(self, second: Greeting) -> dict[str, Any]:
        assert self.admission is not None
        if not proves(self.admission.keys(), Role.CALLER, self._said, second.proof):
            raise HandshakeRefused(f"{OTHER_SECRET}: the caller has another secret")
        self.state, self.trusted = State.ESTABLISHED, True
        return {"handshake": {}, "meta": {}}

    def _admit_handshake(self, header: Header) -> None:
        if header.type != framing.CONNECT or header.flags & ~framing.FLAG_CORRELATION_ID:
            raise ProtocolError("A connection begins with a plain handshake.")
        if header.frame_bytes > REQUEST_BYTES:
            raise ProtocolError("The handshake is longer than 16 KiB.")
        if header.serializer not in self.spoken:
            if header.serializer not in self.refusals:  # the peer could not read any reason
                raise ProtocolError("An unknown serializer.")
            self.refusal = "it speaks another serializer"
            raise self._refused(header, self.refusals[header.serializer])

    def _refused(self, header: Header, body: bytes) -> CloseAfterReply:
        self.state = State.REFUSED
        fail = framing.pack_message(framing.CONNECT_FAIL, header.sequence, body, 0, header.serializer)
        return CloseAfterReply(fail)
