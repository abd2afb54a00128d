"""The handshake of ends that have a secret: who is admitted, and what becomes of every attempt without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pyrocache.errors import ProtocolError
from pyrocache.protocol import framing, messages
from pyrocache.protocol.framing import Frame, Header
from pyrocache.protocol.handshake import (
    MSGPACK,
    Admission,
    ClientHandshake,
    CloseAfterReply,
    Greeting,
    HandshakeRefused,
    ServerHandshake,
    State,
    Strangers,
)
from pyrocache.protocol.proof import Role, prove, transcript

KEY, OTHER = b"k" * 32, b"o" * 32
NODE, HERE = "cache.node.1", "127.0.0.1 7001"
OFFER = Greeting(node=NODE, session=b"sessions", nonce=b"c" * 32, dialled=HERE)
OWN = Greeting(node=NODE, incarnation="abc", clock_ms=5)


def frame_of(message: bytes) -> Frame:
    return Frame(framing.parse_header(message), message[framing.HEADER_BYTES :])


def caller(*keys: bytes, offer: Greeting = OFFER, trusting: bool = False) -> ClientHandshake:
    return ClientHandshake(NODE, offer, keys, trusting=trusting)


def server(
    *keys: bytes, local: str = HERE, own: Greeting = OWN, nonce: bytes = b"s" * 32, **admission: Any
) -> ServerHandshake:
    return ServerHandshake(
        lambda object_id, offer: {"handshake": own.to_wire(), "meta": {}},
        lambda header: None,
        {framing.MSGPACK: MSGPACK},
        {},
        admission=Admission(lambda: keys, lambda: nonce, **admission),
        local=local,
    )


def passed(handshake: ServerHandshake, message: bytes) -> bytes:
    """What a server answers, accepting or refusing."""
    frame = frame_of(message)
    try:
        handshake.admit(frame.header)
        return handshake.receive(frame)
    except CloseAfterReply as refused:
        return refused.reply


def greet(client: ClientHandshake, node: ServerHandshake) -> None:
    """Run a handshake to its end."""
    while client.state in (State.AWAITING, State.PROVING):
        client.receive(frame_of(passed(node, client.request())))


def refusal(client: ClientHandshake, node: ServerHandshake) -> str:
    """The code of the refusal that a handshake ends with."""
    with pytest.raises(HandshakeRefused) as refused:
        greet(client, node)
    assert client.state is State.REFUSED
    assert node.state is not State.ESTABLISHED
    assert not node.trusted
    return refused.value.code


@pytest.mark.parametrize("callers", [(KEY,), (KEY, OTHER), (OTHER, KEY)])
@pytest.mark.parametrize("servers", [(KEY,), (KEY, OTHER), (OTHER, KEY)])
def test_ends_that_share_a_key_admit_each_other(callers: Sequence[bytes], servers: Sequence[bytes]) -> None:
    """While keys are exchanged for others, both have two of them; each must have the first one of the other."""
    client, node = caller(*callers), server(*servers)
    if callers[0] in servers and servers[0] in callers:
        greet(client, node)
        assert (client.state, node.state, node.trusted) == (State.ESTABLISHED, State.ESTABLISHED, True)
        assert node.session == b"sessions"
    else:
        assert refusal(client, node) == "other-secret"


def test_neither_end_with_another_secret_is_accepted() -> None:
    assert refusal(caller(OTHER), server(KEY)) == "other-secret"


def test_a_caller_that_only_says_that_it_knows_the_secret_is_refused() -> None:
    node = server(KEY)
    passed(node, caller(KEY).request())
    body = messages.pack_plain({"handshake": {"proof": b"p" * 32}, "object": NODE})
    answer = frame_of(passed(node, framing.pack_message(framing.CONNECT, 0, body)))
    assert answer.header.type == framing.CONNECT_FAIL
    assert (node.state, node.trusted) == (State.REFUSED, False)


def test_nothing_but_the_proof_is_admitted_while_it_is_awaited() -> None:
    node = server(KEY)
    passed(node, caller(KEY).request())
    for kind in (framing.INVOKE, framing.PING, framing.RESULT):
        with pytest.raises(ProtocolError):
            node.admit(Header(kind, framing.MSGPACK, 0, 1, 10, 0))


def test_a_recorded_handshake_is_of_no_use_later() -> None:
    client, node = caller(KEY), server(KEY)
    first = client.request()
    client.receive(frame_of(passed(node, first)))
    second = client.request()
    passed(node, second)
    assert node.trusted
    later = server(KEY, nonce=b"t" * 32)
    passed(later, first)
    assert frame_of(passed(later, second)).header.type == framing.CONNECT_FAIL
    assert not later.trusted


def test_a_recorded_answer_of_a_node_is_of_no_use_later() -> None:
    recorded = passed(server(KEY), caller(KEY).request())
    client = caller(KEY, offer=OFFER._replace(nonce=b"d" * 32))
    with pytest.raises(HandshakeRefused, match="other-secret"):
        client.receive(frame_of(recorded))


def test_a_servers_proof_cannot_be_sent_back_to_it() -> None:
    client, node = caller(KEY), server(KEY)
    answer: Any = messages.unpack_plain(frame_of(passed(node, client.request())).body)
    body = messages.pack_plain({"handshake": {"proof": answer["handshake"]["proof"]}, "object": NODE})
    assert (
        frame_of(passed(node, framing.pack_message(framing.CONNECT, 0, body))).header.type
        == framing.CONNECT_FAIL
    )
    assert not node.trusted


def test_a_handshake_that_is_passed_on_to_another_address_is_refused() -> None:
    """The caller has dialled the one in between. If that says otherwise, the proofs do not hold."""
    between = OFFER._replace(dialled="127.0.0.1:6666")
    assert refusal(caller(KEY, offer=between), server(KEY)) == "other-address"
    client, node = caller(KEY, offer=between), server(KEY)
    with pytest.raises(HandshakeRefused, match="other-secret"):
        client.receive(frame_of(passed(node, caller(KEY).request())))  # with the address changed on the way
    assert not node.trusted


def test_an_advertised_address_may_be_dialled() -> None:
    client, node = (
        caller(KEY, offer=OFFER._replace(dialled="10.1.1.1:7")),
        server(KEY, advertised={"10.1.1.1:7"}),
    )
    greet(client, node)
    assert node.trusted


@pytest.mark.parametrize(
    "change",
    [
        {"incarnation": "abd"},
        {"clock_ms": 6},
        {"new": 1},
        {"node": None},
        {"nonce": b"n" * 32},
        {"proof": b""},
    ],
)
def test_what_is_changed_on_the_way_is_noticed(change: dict[str, Any]) -> None:
    client, node = caller(KEY), server(KEY)
    answer: Any = messages.unpack_plain(frame_of(passed(node, client.request())).body)
    answer["handshake"].update(change)
    with pytest.raises(HandshakeRefused, match="other-secret"):
        client.receive(frame_of(framing.pack_message(framing.CONNECT_OK, 0, messages.pack_plain(answer))))


@pytest.mark.parametrize("changed", [{"session": b"SESSIONS"}, {"caller": "x"}, {"capabilities": "x"}])
def test_what_the_caller_said_is_covered_too(changed: dict[str, Any]) -> None:
    client, node = caller(KEY), server(KEY)
    with pytest.raises(HandshakeRefused, match="other-secret"):
        client.receive(frame_of(passed(node, caller(KEY, offer=OFFER._replace(**changed)).request())))


def test_a_server_that_proves_nothing_is_refused_by_callers_that_do_not_trust_it() -> None:
    def stripped(message: bytes) -> Frame:
        answer: Any = messages.unpack_plain(frame_of(message).body)
        del answer["handshake"]["nonce"], answer["handshake"]["proof"]
        return frame_of(framing.pack_message(framing.CONNECT_OK, 0, messages.pack_plain(answer)))

    client = caller(KEY)
    with pytest.raises(HandshakeRefused, match="no-secret"):
        client.receive(stripped(passed(server(KEY), client.request())))
    trusting = caller(KEY, trusting=True)
    trusting.receive(stripped(passed(server(KEY), trusting.request())))
    assert trusting.state is State.ESTABLISHED


def test_a_caller_without_a_secret_refuses_every_server_unless_it_trusts_it() -> None:
    plain = OFFER._replace(nonce=b"", dialled="")
    client, node = caller(offer=plain), server(KEY, strangers=Strangers.TRUSTED)
    with pytest.raises(HandshakeRefused, match="no-secret"):
        greet(client, node)
    greet(caller(offer=plain, trusting=True), server(KEY, strangers=Strangers.TRUSTED))


@pytest.mark.parametrize(
    ("strangers", "admitted", "trusted"),
    [
        (Strangers.REFUSED, False, False),
        (Strangers.ADMITTED, True, False),
        (Strangers.TRUSTED, True, True),
    ],
)
def test_strangers(strangers: Strangers, admitted: bool, trusted: bool) -> None:
    node = server(KEY, strangers=strangers)
    answer = frame_of(passed(node, ClientHandshake(NODE).request()))
    assert (answer.header.type == framing.CONNECT_OK, node.trusted) == (admitted, trusted)
    if not admitted:
        assert f"pyrocache.stock_handshake('{NODE}')" in str(messages.unpack_plain(answer.body))


def test_a_token_admits_a_caller_without_the_secret() -> None:
    tokens = {"t" * 16}

    def take(token: str) -> bool:
        valid = token in tokens
        tokens.discard(token)
        return valid

    def attempt() -> ServerHandshake:
        node = server(KEY, accepts_token=take)
        passed(node, ClientHandshake(NODE, Greeting(token="t" * 16)).request())
        return node

    assert attempt().trusted
    assert (again := attempt()).state is State.REFUSED
    assert not again.trusted


@pytest.mark.parametrize("nonce", [b"n", b"n" * 31, b"n" * 33])
def test_a_nonce_has_its_length(nonce: bytes) -> None:
    assert refusal(caller(KEY, offer=OFFER._replace(nonce=nonce)), server(KEY)) == "other-secret"


@pytest.mark.parametrize(
    "offered", [{1: 2, "nonce": b"c" * 32, "dialled": HERE}, {"nonce": b"c" * 32, b"a": [1], "dialled": HERE}]
)
def test_strange_greetings_do_no_harm(offered: Any) -> None:
    node = server(KEY)
    body = messages.pack_plain({"handshake": offered, "object": NODE})
    try:
        answer = passed(node, framing.pack_message(framing.CONNECT, 0, body))
    except ProtocolError:
        return
    said = transcript(NODE, offered, messages.unpack_plain(frame_of(answer).body)["handshake"])  # type: ignore[index]
    second = messages.pack_plain({"handshake": {"proof": prove(KEY, Role.CALLER, said)}, "object": NODE})
    passed(node, framing.pack_message(framing.CONNECT, 0, second))
    assert node.trusted


def test_a_refused_caller_gets_no_second_chance() -> None:
    client, node = caller(KEY), server(KEY)
    client.receive(frame_of(passed(node, client.request())))
    body = messages.pack_plain({"handshake": {}, "object": NODE})
    passed(node, framing.pack_message(framing.CONNECT, 0, body))
    with pytest.raises((ProtocolError, CloseAfterReply)):
        node.receive(frame_of(client.request()))
    assert not node.trusted
