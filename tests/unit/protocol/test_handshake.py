"""Both ends of the handshake, without a connection."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache.errors import ProtocolError
from pyrocache.protocol import framing, messages
from pyrocache.protocol.framing import Frame, Header
from pyrocache.protocol.handshake import (
    ANSWER_BYTES,
    MSGPACK,
    NAMELESS,
    OLDEST_PROTOCOL,
    OTHER_PROTOCOL,
    OVERLOADED,
    PROTOCOL,
    REQUEST_BYTES,
    ClientHandshake,
    CloseAfterReply,
    Greeting,
    HandshakeRefused,
    ServerHandshake,
    State,
    agreed_protocol,
    format_peer,
    is_on_this_host,
)

GREETING = Greeting("cache.node.1", "abc", 1000)


def frame_of(message: bytes) -> Frame:
    return Frame(framing.parse_header(message), message[framing.HEADER_BYTES :])


def describe(object_id: str, offer: Any) -> Any:
    if object_id != "cache.node.1":
        raise HandshakeRefused("unknown object")
    return {"handshake": GREETING.to_wire(), "meta": {}}


@pytest.fixture
def requests() -> list[Header]:
    """Headers that the server's handshake handed on."""
    return []


def handshake(requests: list[Header]) -> ServerHandshake:
    return ServerHandshake(describe, requests.append, {framing.MSGPACK: MSGPACK}, {1: b"speak msgpack"})


@pytest.fixture
def server(requests: list[Header]) -> ServerHandshake:
    return handshake(requests)


def header(kind: int, serializer: int = framing.MSGPACK, flags: int = 0, body_bytes: int = 10) -> Header:
    return Header(kind, serializer, flags, 7, body_bytes, 0)


def test_a_server_without_descriptors_takes_nodes_only() -> None:
    for greeting in (None, Greeting(session=bytes(8))):
        server = handshake([])
        server.nodes_only = True
        client = ClientHandshake("cache.node.1", greeting)
        with pytest.raises(CloseAfterReply) as closing:
            server.receive(frame_of(client.request()))
        with pytest.raises(HandshakeRefused) as refused:
            client.receive(frame_of(closing.value.reply))
        assert refused.value.code == OVERLOADED
    for caller in (NAMELESS, "cache.node.2 abc"):
        server = handshake([])
        server.nodes_only = True
        client = ClientHandshake("cache.node.1", Greeting(caller=caller))
        assert client.receive(frame_of(server.receive(frame_of(client.request())))) == GREETING


def test_both_ends_establish_a_connection(server: ServerHandshake) -> None:
    client = ClientHandshake("cache.node.1")
    assert (client.state, server.state) == (State.AWAITING, State.AWAITING)
    request = frame_of(client.request())
    server.admit(request.header)
    answer = frame_of(server.receive(request))
    client.admit(answer.header)
    assert client.receive(answer) == GREETING
    assert (client.state, server.state) == (State.ESTABLISHED, State.ESTABLISHED)


def test_the_bytes_of_the_request_are_those_of_pyro5() -> None:
    body = messages.pack_plain({"handshake": "pyrocache", "object": "cache.node.1"})
    assert ClientHandshake("cache.node.1").request() == framing.pack_message(framing.CONNECT, 0, body)


def test_a_refusal_is_the_servers_sentence_on_both_ends(server: ServerHandshake) -> None:
    client = ClientHandshake("cache.node.2")
    request = frame_of(client.request())
    server.admit(request.header)
    with pytest.raises(CloseAfterReply) as refused:
        server.receive(request)
    with pytest.raises(HandshakeRefused, match="unknown object"):
        client.receive(frame_of(refused.value.reply))
    assert (client.state, server.state) == (State.REFUSED, State.REFUSED)


def test_another_serializer_is_refused_in_its_own_words(server: ServerHandshake) -> None:
    with pytest.raises(CloseAfterReply) as refused:
        server.admit(header(framing.CONNECT, serializer=1))
    answer = frame_of(refused.value.reply)
    assert answer.header[:2] == (framing.CONNECT_FAIL, 1)
    assert answer.body == b"speak msgpack"


@pytest.mark.parametrize(
    "first",
    [
        header(framing.INVOKE),
        header(framing.CONNECT, flags=framing.FLAG_COMPRESSED),
        header(framing.CONNECT, serializer=77),
        header(framing.CONNECT, body_bytes=REQUEST_BYTES),
    ],
)
def test_anything_else_before_the_handshake_ends_the_connection(
    server: ServerHandshake, first: Header
) -> None:
    with pytest.raises(ProtocolError):
        server.admit(first)


@pytest.mark.parametrize("request_value", [None, [], {}, {"object": 7}])
def test_a_handshake_must_name_an_object(server: ServerHandshake, request_value: Any) -> None:
    message = framing.pack_message(framing.CONNECT, 0, messages.pack_plain(request_value))
    with pytest.raises(ProtocolError):
        server.receive(frame_of(message))


def test_once_established_headers_are_handed_on_unless_the_serializer_changes(
    server: ServerHandshake, requests: list[Header]
) -> None:
    server.receive(frame_of(ClientHandshake("cache.node.1").request()))
    server.admit(header(framing.INVOKE))
    server.admit(header(framing.PING, serializer=42))
    assert [kind for kind, *_ in requests] == [framing.INVOKE, framing.PING]
    with pytest.raises(ProtocolError):
        server.admit(header(framing.INVOKE, serializer=1))


@pytest.mark.parametrize(
    "answer",
    [
        header(framing.RESULT),
        header(framing.CONNECT_OK, serializer=1),
        header(framing.CONNECT_OK, flags=framing.FLAG_COMPRESSED),
        header(framing.CONNECT_OK, body_bytes=ANSWER_BYTES),
    ],
)
def test_a_client_takes_nothing_but_a_plain_answer(answer: Header) -> None:
    with pytest.raises(ProtocolError):
        ClientHandshake("cache.node.1").admit(answer)


@pytest.mark.parametrize(
    ("data", "greeting"),
    [
        ("hello", Greeting()),
        ({"max_value_bytes": "much", "node": 7}, Greeting()),
        (
            Greeting(capabilities="a b", nonce=b"n", proof=b"p").to_wire(),
            Greeting(capabilities="a b", nonce=b"n", proof=b"p"),
        ),
    ],
)
def test_a_greeting_is_what_can_be_understood_of_it(data: Any, greeting: Greeting) -> None:
    assert Greeting.from_wire(messages.unpack_plain(messages.pack_plain(data))) == greeting


def test_what_a_client_says_of_itself_reaches_the_server() -> None:
    body = messages.unpack_plain(frame_of(ClientHandshake("a", Greeting(nonce=b"n")).request()).body)
    assert body == {"handshake": {"nonce": b"n"}, "object": "a"}


IDENTITY = {"cluster": ("a", "b"), "node": ("n", "m"), "incarnation": ("i", "j")}


@pytest.mark.parametrize("field", IDENTITY)
def test_what_both_ends_give_is_compared_by_both(field: str) -> None:
    one, other = IDENTITY[field]
    mine, yours = Greeting()._replace(**{field: one}), Greeting()._replace(**{field: other})
    with pytest.raises(
        HandshakeRefused, match=f"^other-{field}: this is {field} {one}, not {other}"
    ) as refused:
        mine.check(yours)
    assert refused.value.code == f"other-{field}"
    for left, right in ((mine, mine), (mine, Greeting()), (Greeting(), yours)):
        left.check(right)
    client = ClientHandshake("a", yours)
    answer = frame_of(
        framing.pack_message(framing.CONNECT_OK, 0, messages.pack_plain({"handshake": mine.to_wire()}))
    )
    with pytest.raises(HandshakeRefused, match=f"^other-{field}"):
        client.receive(answer)
    assert client.state is State.REFUSED


VERSIONS = [0, 1, 2, 3, 4, 7]
"""Of the protocol; 0: not told, as by stock Pyro5."""


def between(server: int, caller: int) -> tuple[ServerHandshake, ClientHandshake, str]:
    """Let two ends of these versions greet each other. Return them, and the refusal; empty if there is none."""

    def described(object_id: str, offer: Any) -> Any:
        return {"handshake": Greeting("cache.node.1", protocol=server).to_wire(), "meta": {}}

    serving = ServerHandshake(described, lambda header: None, {framing.MSGPACK: MSGPACK}, {})
    calling = ClientHandshake("cache.node.1", Greeting(protocol=caller))
    try:
        answer = serving.receive(frame_of(calling.request()))
    except CloseAfterReply as closing:
        answer = closing.reply
    try:
        calling.receive(frame_of(answer))
    except HandshakeRefused as refused:
        return serving, calling, refused.reason if refused.code == OTHER_PROTOCOL else str(refused)
    return serving, calling, ""


@pytest.mark.parametrize("server", VERSIONS)
@pytest.mark.parametrize("caller", VERSIONS)
def test_neighbouring_versions_work_together_and_others_are_told_who_is_outdated(
    server: int, caller: int
) -> None:
    serving, calling, reason = between(server, caller)
    if not server or not caller or abs(server - caller) <= 1:
        assert reason == ""
        assert (serving.state, calling.state) == (State.ESTABLISHED, State.ESTABLISHED)
        assert serving.protocol == calling.protocol == (min(server, caller) if server and caller else 0)
        return
    outdated = "server" if server < caller else "caller"
    assert reason == (
        f"the server speaks protocol {server} and the caller protocol {caller}: upgrade pyrocache at the {outdated}"
    )
    assert (serving.state, calling.state) == (State.REFUSED, State.REFUSED)
    assert serving.refusal == f"{OTHER_PROTOCOL}: {reason}"


@pytest.mark.parametrize(("server", "caller"), [(1, 3), (3, 1), (1, 2**63), (2**63, 1)])
def test_a_client_refuses_a_server_that_does_not_compare(server: int, caller: int) -> None:
    client = ClientHandshake("a", Greeting(protocol=caller))
    body = messages.pack_plain({"handshake": {"protocol": server}})
    with pytest.raises(
        HandshakeRefused, match=f"protocol {server} and the caller protocol {caller}: upgrade"
    ):
        client.receive(frame_of(framing.pack_message(framing.CONNECT_OK, 0, body)))
    assert (client.state, client.protocol) == (State.REFUSED, 0)


def test_a_version_can_give_up_the_one_before_it() -> None:
    assert agreed_protocol(4, 3) == agreed_protocol(3, 4) == agreed_protocol(4, 3, oldest=3) == 3
    for versions in ((4, 3), (3, 4), (-1, -1)):
        with pytest.raises(HandshakeRefused):
            agreed_protocol(*versions, oldest=4)
    assert agreed_protocol(4, 5, oldest=4) == 4


def test_this_version_accepts_itself() -> None:
    assert OLDEST_PROTOCOL <= PROTOCOL
    assert agreed_protocol(PROTOCOL, PROTOCOL) == PROTOCOL


def test_a_reason_without_a_known_code_has_none() -> None:
    assert HandshakeRefused("unknown object").reason == "unknown object"
    assert HandshakeRefused("overloaded: too many: 7").reason == "too many: 7"
    assert HandshakeRefused("unknown object").code == ""
    assert HandshakeRefused("strange: a colon").code == ""
    assert HandshakeRefused("overloaded: too many").code == "overloaded"


@pytest.mark.parametrize(
    ("address", "text", "here"),
    [
        (("127.0.0.1", 80), "127.0.0.1 80", True),
        (("127.9.0.1", 80), "127.9.0.1 80", True),
        (("10.0.0.127", 80), "10.0.0.127 80", False),
        (("::1", 80, 0, 0), "::1 80", True),
        (("::ffff:127.0.0.1", 80, 0, 0), "127.0.0.1 80", True),
        (("fe80::1%eth0", 80, 0, 2), "fe80::1 80", False),
        (b"/tmp/x.sock", "/tmp/x.sock", True),
        ("/tmp/a:b/x.sock", "/tmp/a:b/x.sock", True),
        ("", "", False),
    ],
)
def test_addresses_have_one_form_and_those_of_this_host_are_known(
    address: Any, text: str, here: bool
) -> None:
    assert format_peer(address) == text
    assert is_on_this_host(text) is here
