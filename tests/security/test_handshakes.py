"""Handshakes that are replayed, reflected, relayed, cut off, downgraded or left out, on real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from pyrocache import AuthenticationError, PyroCacheClient
from pyrocache.client.backend import Backend
from pyrocache.client.context import ClientContext
from pyrocache.client.routing.router import Router
from pyrocache.cluster.routing import Member
from pyrocache.config import ClientConfig
from pyrocache.net.call_protocol import knowing
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NAMESERVER, Listing, NameServerDirectory
from pyrocache.protocol import framing, messages
from pyrocache.protocol.framing import Frame
from pyrocache.protocol.handshake import HandshakeRefused, format_peer
from pyrocache.protocol.proof import Role, prove, transcript
from pyrocache.runtime.secret import find_secret
from tests.support.attackers import (
    MIB,
    Between,
    Impostor,
    TrustedPeer,
    as_message,
    changed_greeting,
    claiming,
    member_of,
    node_in_this_process,
    proxy_of,
    register,
    saying,
    stock_nameserver,
)
from tests.support.nodes import RunningNode, running_node
from tests.support.waiting import PATIENCE_SECONDS, eventually
from tests.support.wire import CLOSED, NAME, NO_VIEW, Peer, call, frame_decoder


@pytest.fixture(scope="module")
def node() -> Iterator[RunningNode]:
    with running_node(open=False, max_memory=64 * MIB) as node, PyroCacheClient(node.nameserver) as cache:
        cache["key"] = "value"
        yield node
        assert cache["key"] == "value"


@pytest.fixture(scope="module")
def member(node: RunningNode) -> Member:
    return member_of(node.nameserver)


class At:
    """An address to connect to."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address


def frame_of(message: bytes) -> Frame:
    decoder = frame_decoder()
    decoder.feed(message)
    frame = decoder.next_frame()
    assert frame is not None
    return frame


def fates(peer: Peer, *sent: bytes) -> list[Any]:
    """What becomes of messages: the types of the answers, then `CLOSED`. There is never the result of a call."""
    for message in sent:
        peer.send_as_far_as_taken(message)
    found: list[Any] = []
    while not found or found[-1] is not CLOSED:
        try:
            found.append(peer.receive().header.type)
        except ConnectionError:
            found.append(CLOSED)
    assert framing.RESULT not in found
    return found


PING = call(1, "ping")
REFUSED = [framing.CONNECT_FAIL, CLOSED]
REFUSED_LATER = [framing.CONNECT_OK, framing.CONNECT_FAIL, CLOSED]


def recorded(node: RunningNode) -> tuple[list[bytes], list[bytes]]:
    """Both ends' messages of a whole real handshake, from somebody on the way who could read them, and a call."""
    with Between(node.address) as between:
        with TrustedPeer(At(between.address), dialled=format_peer(node.address)) as peer:
            assert peer.call("ping")["name"] == NAME
        sent = [as_message(frame) for frame in between.from_client]
        return sent, [as_message(frame) for frame in between.from_server]


# Replayed and reflected ------------------------------------------------------------------------------------------


def test_a_whole_handshake_is_of_no_use_again(node: RunningNode) -> None:
    sent, _ = recorded(node)
    assert [frame_of(message).header.type for message in sent] == [framing.CONNECT] * 2 + [framing.INVOKE]
    with Peer(node, greet=False) as peer:
        assert fates(peer, *sent) == REFUSED_LATER
    with Peer(node, greet=False) as peer:
        assert fates(peer, *sent[1:]) == REFUSED


def test_the_answers_of_a_node_are_of_no_use_again() -> None:
    """Whoever is on the way, or gets a node's address after it, has its answers of before."""
    advertised: set[str] = set()
    with (
        node_in_this_process(advertised=advertised) as member,
        Between((member.host, member.port)) as between,
    ):
        advertised.add(format_peer(between.address))
        found = replace(member, port=between.address[1])

        def ping() -> Any:
            connection = Connection(found, "tcp", knowing(find_secret()))
            try:
                return connection.call("ping", (), open_soon(connection))["incarnation"]
            finally:
                connection.close()

        assert ping() == member.incarnation
        answers = iter([as_message(frame) for frame in between.from_server])
        between.to_client = lambda frame, message: next(answers)
        with pytest.raises(HandshakeRefused, match="other-secret"):
            ping()


def open_soon(connection: Connection) -> Deadline:
    deadline = Deadline(PATIENCE_SECONDS)
    connection.finish_opening(deadline)
    return deadline


def refuse(member: Member, port: int, code: str) -> None:
    """A caller that knows the secret refuses what is at the port, or is refused there."""
    connection = Connection(replace(member, port=port, socket_path=""), "tcp", knowing(find_secret()))
    try:
        with pytest.raises(HandshakeRefused) as refused:
            connection.finish_opening(Deadline(PATIENCE_SECONDS))
    finally:
        connection.close()
    assert refused.value.code == code


def test_a_servers_own_messages_are_of_no_use_to_it(node: RunningNode) -> None:
    """All that it says is sent back to it, as an answer and as a handshake."""
    local = format_peer(node.address)
    for as_greeting in (False, True):
        with Peer(node, greet=False) as peer:
            peer.send(greeting_message({"nonce": os.urandom(32), "dialled": local, "protocol": 1}))
            answer = peer.receive()
            said: Any = messages.unpack_plain(answer.body)["handshake"]  # type: ignore[index]
            if as_greeting:
                assert fates(peer, greeting_message({"proof": said["proof"]}), PING) == REFUSED
            else:
                assert fates(peer, as_message(answer), PING) == [CLOSED]
    # As the first message of another connection, with its nonce and its proof.
    with Peer(node, greet=False) as peer:
        mirrored = greeting_message({**said, "dialled": local})
        assert fates(peer, mirrored, greeting_message({"proof": said["proof"]}), PING) == REFUSED_LATER


def greeting_message(greeting: Any, object_id: str = NAME) -> bytes:
    body = messages.pack_plain({"handshake": greeting, "object": object_id})
    return framing.pack_message(framing.CONNECT, 0, body)


def test_a_caller_is_not_answered_with_its_own_messages(node: RunningNode, member: Member) -> None:
    """A server that knows nothing answers with the caller's nonce; or asks another caller for the proof."""
    with Impostor(lambda frame: saying(messages.unpack_plain(frame.body)["handshake"])(frame)) as fake:  # type: ignore[index]
        refuse(member, fake.port, "other-secret")
        assert fake.calls == []


# Relayed ---------------------------------------------------------------------------------------------------------


def test_a_relay_at_another_port_is_refused(node: RunningNode, member: Member) -> None:
    with Between(node.address) as between:
        refuse(member, between.address[1], "other-address")
        assert [frame.header.type for frame in between.from_server] == [framing.CONNECT_FAIL]


def test_a_relay_that_corrects_the_address_is_refused(node: RunningNode, member: Member) -> None:
    with Between(node.address) as between:
        between.to_server = lambda frame, message: changed_greeting(
            frame, lambda greeting: {**greeting, "dialled": format_peer(node.address)}
        )
        refuse(member, between.address[1], "other-secret")
        assert len(between.from_client) == 1


def test_a_forged_entry_cannot_relay(node: RunningNode, member: Member) -> None:
    """Nothing goes through it, and a stock name server's client is told whose node it is."""
    with ExitStack() as stack:
        nameserver = stack.enter_context(stock_nameserver())
        names = stack.enter_context(proxy_of(nameserver))
        between = stack.enter_context(Between(node.address))
        register(names, member, port=between.address[1])
        cache = stack.enter_context(PyroCacheClient(nameserver, on_error="miss"))
        with pytest.raises(AuthenticationError, match=f"{NAME} at .*other-address"):
            cache.get("key")
        assert {frame.header.type for frame in between.from_client} == {framing.CONNECT}


@pytest.mark.parametrize("target", ["unix", "tcp"])
def test_a_relay_at_a_unix_socket_is_refused(
    node: RunningNode, member: Member, tmp_path_factory: pytest.TempPathFactory, target: str
) -> None:
    """It is one of this user; that of another one is not even connected to."""
    directory = tmp_path_factory.mktemp("r") / f"pyrocache-{os.getuid()}"
    directory.mkdir(mode=0o700)
    path = str(directory / f"{member.incarnation}.sock")
    with Between(member.socket_path if target == "unix" else node.address, path) as between:
        connection = Connection(replace(member, socket_path=path), "auto", knowing(find_secret()))
        with pytest.raises(HandshakeRefused, match="other-address"):
            connection.finish_opening(Deadline(PATIENCE_SECONDS))
        connection.close()
        assert len(between.from_client) == 1


def test_a_relay_with_the_name_of_a_unix_socket_is_refused(
    node: RunningNode, member: Member, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The system tells a caller under which name a socket was made, which need not be where it is."""
    directory = tmp_path_factory.mktemp("r") / f"pyrocache-{os.getuid()}"
    directory.mkdir(mode=0o700)
    path = str(directory / f"{member.incarnation}.sock")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(member.socket_path)
        name = probe.getpeername()
    with Between(member.socket_path, name) as between:
        os.rename(name, path)
        connection = Connection(replace(member, socket_path=path), "auto", knowing(find_secret()))
        with pytest.raises(HandshakeRefused, match="other-address"):
            connection.finish_opening(Deadline(PATIENCE_SECONDS))
        connection.close()
        assert len(between.from_client) == 1


def test_a_relay_from_one_transport_to_the_other_is_refused(node: RunningNode, member: Member) -> None:
    with Between(member.socket_path) as between:
        refuse(member, between.address[1], "other-address")


# Cut off, changed, left out --------------------------------------------------------------------------------------


def test_a_part_of_a_handshake_is_answered_with_nothing(node: RunningNode) -> None:
    sent, _ = recorded(node)
    first = sent[0]
    for length in (0, 1, 39, 40, 41, len(first) - 1):
        with Peer(node, greet=False) as peer:
            peer.send(first[:length])
            peer.sock.shutdown(1)
            assert fates(peer) == [CLOSED]
    for length in (1, 40, len(sent[1]) - 1):
        with Peer(node, greet=False) as peer:
            peer.send(first)
            peer.receive()
            peer.send(sent[1][:length])
            peer.sock.shutdown(1)
            assert fates(peer) == [CLOSED]


def test_a_part_of_a_proof_is_no_proof(node: RunningNode) -> None:
    secret, local = find_secret(), format_peer(node.address)
    for length in (0, 1, 16, 31):
        offer = {"nonce": os.urandom(32), "dialled": local, "protocol": 1}
        with Peer(node, greet=False) as peer:
            peer.send(greeting_message(offer))
            answer: Any = messages.unpack_plain(peer.receive().body)
            proof = proof_for(secret, offer, answer["handshake"])
            assert fates(peer, greeting_message({"proof": proof[:length]}), PING) == REFUSED


def test_the_proof_of_another_connection_is_of_no_use(node: RunningNode) -> None:
    """Two connections, both begun by a caller that knows the secret; their proofs are exchanged."""
    with Between(node.address) as one, Between(node.address) as two:
        held: list[bytes] = []
        one.to_server = lambda frame, message: held_back(message, held) if is_proof(frame) else message
        secret, local = find_secret(), format_peer(node.address)
        offer = {"nonce": os.urandom(32), "dialled": local, "protocol": 1}
        with Peer(At(one.address), greet=False) as first, Peer(At(two.address), greet=False) as second:
            for peer in (first, second):
                peer.send(greeting_message(offer))
            answers: list[Any] = [messages.unpack_plain(peer.receive().body) for peer in (first, second)]
            assert answers[0]["handshake"]["nonce"] != answers[1]["handshake"]["nonce"]
            first.send(greeting_message({"proof": proof_for(secret, offer, answers[0]["handshake"])}))
            eventually(lambda: held)
            assert fates(second, held[0], PING) == REFUSED


def held_back(message: bytes, held: list[bytes]) -> None:
    held.append(message)


def is_proof(frame: Frame) -> bool:
    body: Any = messages.unpack_plain(frame.body)
    return frame.header.type == framing.CONNECT and "proof" in body["handshake"]


def proof_for(secret: Any, offer: dict[str, Any], answer: dict[str, Any]) -> bytes:
    return prove(secret.keys[0], Role.CALLER, transcript(NAME, offer, answer))


NO_PROOFS: dict[str, Any] = {
    "nothing": {},
    "none": {"proof": b""},
    "zeros": {"proof": bytes(32)},
    "short": {"proof": b"p"},
    "text": {"proof": "p" * 32},
    "a nonce again": {"nonce": bytes(32)},
    "a token": {"token": "0" * 64},
    "plain": "hello",
}


@pytest.mark.parametrize("second", NO_PROOFS.values(), ids=NO_PROOFS)
def test_a_proof_is_not_left_out(node: RunningNode, second: Any) -> None:
    first = greeting_message({"nonce": os.urandom(32), "dialled": format_peer(node.address), "protocol": 1})
    with Peer(node, greet=False) as peer:
        assert fates(peer, first, greeting_message(second), PING) == REFUSED_LATER


FIRST: dict[str, Any] = {
    "none": "hello",
    "empty": {},
    "a proof at once": {"proof": bytes(32)},
    "an empty nonce": {"nonce": b""},
    "another type of nonce": {"nonce": "n" * 32},
    "a node": {"caller": "cache.node.2 0123456789abcdef", "protocol": 1},
    "the name server": {"caller": "nameless", "protocol": 1},
}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_a_caller_that_gives_no_nonce_is_refused(node: RunningNode, first: Any) -> None:
    with Peer(node, greet=False) as peer:
        assert fates(peer, greeting_message(first), PING) == REFUSED


def test_no_call_is_answered_before_the_handshake_is_done(node: RunningNode, member: Member) -> None:
    first = greeting_message({"nonce": os.urandom(32), "dialled": format_peer(node.address), "protocol": 1})
    early = [
        PING,
        call(1, "get", NO_VIEW, b"\0skey"),
        framing.pack_message(framing.PING, 1, b""),
        call(1, "get_metadata", NAME, target="Pyro.Daemon"),
        call(1, "issue_token"),
    ]
    for message in early:
        with Peer(node, greet=False) as peer:
            assert fates(peer, message) == [CLOSED]
        with Peer(node, greet=False) as peer:
            assert fates(peer, first + message) in ([CLOSED], [framing.CONNECT_OK, CLOSED])
        with Peer(node, greet=False) as peer:  # after the refusal, in one piece
            assert fates(peer, greeting_message("hello") + message) == REFUSED


# Downgraded ------------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], Any]
STRIPS: dict[str, Change] = {
    "no nonce": lambda greeting: without(greeting, "nonce"),
    "no nonce and no address": lambda greeting: without(greeting, "nonce", "dialled"),
    "a stock greeting": lambda greeting: "hello",
}


def without(greeting: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in greeting.items() if name not in names}


@pytest.mark.parametrize("strip", STRIPS.values(), ids=STRIPS)
def test_a_caller_cannot_be_made_a_stranger(node: RunningNode, member: Member, strip: Change) -> None:
    with Between(node.address) as between:
        between.to_server = lambda frame, message: changed_greeting(frame, strip)
        refuse(member, between.address[1], "no-secret")
        assert len(between.from_client) == 1


ANSWERS: dict[str, Any] = {
    "a stock daemon": lambda member: "hello",
    "nothing": lambda member: {},
    "a node without a secret": claiming,
    "no proof": lambda member: claiming(member, nonce=bytes(32)),
    "no nonce": lambda member: claiming(member, proof=bytes(32)),
    "another type": lambda member: claiming(member, nonce="n" * 32, proof="p" * 32),
    "another proof": lambda member: claiming(member, nonce=bytes(32), proof=bytes(32)),
    "none": lambda member: None,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_client_refuses_a_node_that_proves_nothing(member: Member, answer: Callable[[Member], Any]) -> None:
    with ExitStack() as stack:
        fake = stack.enter_context(Impostor(saying(answer(member))))
        cache = stack.enter_context(client_of(member, fake.port))
        for attempt in (lambda: cache.get("key"), lambda: cache.set("key", "value")):
            with pytest.raises(AuthenticationError, match=NAME):
                attempt()
        assert fake.greetings
        assert fake.calls == []


class Listed:
    """A name server that lists one node."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def listing(self, timeout: float = 5.0) -> Any:
        return Listing(members=(self._member,))


def client_of(member: Member, port: int) -> PyroCacheClient:
    """A client that has been told that a node is at this port."""
    found = replace(member, port=port, socket_path="", cluster="")
    router = Router(Listed(found), caller=knowing(find_secret()))  # type: ignore[arg-type]
    return PyroCacheClient._of(ClientContext(ClientConfig(on_error="miss"), Backend(router)))


@pytest.mark.parametrize("strip", STRIPS.values(), ids=STRIPS)
def test_an_answer_without_a_proof_on_the_way_is_refused(
    node: RunningNode, member: Member, strip: Change
) -> None:
    """The node answers with its proof, which somebody on the way takes out; the address is the right one for both."""
    with Between(node.address) as between:
        local = format_peer(node.address)
        between.to_client = lambda frame, message: changed_greeting(
            frame, lambda greeting: strip(without(greeting, "proof"))
        )
        with pytest.raises(HandshakeRefused, match=r"no-secret|other-secret"):
            TrustedPeer(At(between.address), dialled=local)
        assert len(between.from_client) == 1


def test_a_name_server_that_is_downgraded_is_told_nothing(node: RunningNode, member: Member) -> None:
    """It may be Pyro5's, so its listings are taken as hints; no proof is given to it, and no change is made."""
    host, _, port = node.nameserver.rpartition(":")
    with Between((host, int(port))) as between:
        between.to_server = lambda frame, message: changed_greeting(frame, STRIPS["a stock greeting"])
        directory = NameServerDirectory(
            f"127.0.0.1:{between.address[1]}", caller=knowing(find_secret(), trusting=True)
        )
        assert directory.members() == [member]
        with pytest.raises(ConnectionError, match="stock_handshake"):
            directory.remove(member)
        said = [
            messages.unpack_plain(f.body) for f in between.from_client if f.header.type == framing.CONNECT
        ]
        assert not any("proof" in str(greeting) for greeting in said)
        assert NAMESERVER in str(said[0])
    assert member_of(node.nameserver) == member
