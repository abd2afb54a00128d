"""Arbitrary and mutated input for everything that reads what a peer has sent: only declared errors come out.

The number of examples follows the Hypothesis profile (`tests/conftest.py`). Ten minutes of them:
``HYPOTHESIS_PROFILE=fuzz pytest -n 0 --timeout 0 tests/security/test_fuzzing.py``.
"""

from __future__ import annotations

import logging
import pickle
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from Pyro5.nameserver import MemoryStorage

from pyrocache.client.codec import Codec
from pyrocache.client.keys.encoding import decode_key, encode_key
from pyrocache.client.signing import Signer, SigningCodec
from pyrocache.client.stats import ClientStats, NodeStats, Stats, is_stats
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import view_from_metadata, view_from_wire, view_to_metadata, view_to_wire
from pyrocache.config import is_zone
from pyrocache.errors import InvalidKey, ProtocolError, SerializationError, TamperedValue
from pyrocache.nameserver.names import COMMANDS as NAME_COMMANDS
from pyrocache.nameserver.names import Names
from pyrocache.nameserver.serpent import SERPENT
from pyrocache.net.call_protocol import GREETED, Caller, CallProtocol
from pyrocache.net.directory import Listing, _listing
from pyrocache.net.failures import Refused
from pyrocache.protocol import framing, messages, refusals
from pyrocache.protocol.framing import FrameDecoder, Header
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
from pyrocache.protocol.messages import pack_plain
from pyrocache.server.deferred import Session
from pyrocache.server.dispatcher import Dispatcher

DECLARED = (ProtocolError, HandshakeRefused, CloseAfterReply)
NODE, HERE = "cache.node.1", "127.0.0.1 7001"
KEY = b"k" * 32
OFFER = Greeting(node=NODE, session=b"sessions", nonce=b"c" * 32, dialled=HERE)
OWN = Greeting(node=NODE, incarnation="abc", clock_ms=5, max_value_bytes=2**20)
PER_PROFILE = 3
"""Examples of a test for each one that the profile asks for: they are quick."""

fuzzed = settings(max_examples=PER_PROFILE * settings().max_examples)

WORDS = (
    *("object", "handshake", "nonce", "proof", "dialled", "token", "node", "session", "caller", "clock_ms"),
    *("number", "cluster", "members", "cache.node.1", "cache.view.1", "cache.cluster", "first=1", "member="),
    *(
        "PYRO:cache.node.1@127.0.0.1:7001",
        "Pyro.NameServer",
        "__class__",
        "__exception__",
        "args",
        "attributes",
    ),
    *("code", "detail", "namespaces", "latencies", "pid", "policy", "state", "data", "encoding", ""),
)
numbers = st.integers(-(2**63), 2**64 - 1) | st.sampled_from((0, -1, 1, 2**31, 2**32 - 1, 2**63))
texts = st.text(max_size=20) | st.sampled_from(WORDS)
scalars = st.none() | st.booleans() | numbers | st.floats() | st.binary(max_size=40) | texts
plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(texts | st.binary(max_size=9), inner, max_size=6)
    ),
    max_leaves=20,
)
"""What msgpack carries."""


def changed_in(values: st.SearchStrategy[Any], parts: Iterable[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Maps with some of these keys, and others."""
    return st.dictionaries(st.sampled_from(tuple(parts)) | texts, values, max_size=8)


EDITS = ("flip", "insert", "delete", "repeat", "number")


@st.composite
def mutated(draw: Any, originals: Sequence[bytes]) -> bytes:
    """One of some messages, changed at a few places, or cut."""
    data = bytearray(draw(st.sampled_from(originals)))
    for edit, at, value in draw(
        st.lists(
            st.tuples(st.sampled_from(EDITS), st.integers(0, 2**16), st.binary(min_size=1, max_size=8)),
            max_size=4,
        )
    ):
        at %= len(data) + 1
        if edit in ("flip", "number"):
            data[at : at + (1 if edit == "flip" else len(value))] = value[:1] if edit == "flip" else value
        elif edit == "insert":
            data[at:at] = value
        elif edit == "delete":
            del data[at : at + len(value)]
        else:
            data[at:at] = data[at : at + 4 * len(value)]
    return bytes(data if draw(st.booleans()) else data[: draw(st.integers(0, len(data)))])


def pieces_of(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[begin:end] for begin, end in pairwise(ends)]


def frame_of(message: bytes) -> framing.Frame:
    return framing.Frame(framing.parse_header(message), message[framing.HEADER_BYTES :])


@contextmanager
def logged() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("pyrocache")
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


# Framing ------------------------------------------------------------------------------------------------------------

FRAMES = [
    framing.pack_message(framing.CONNECT, 0, pack_plain({"handshake": OFFER.to_wire(), "object": NODE})),
    framing.pack_message(framing.INVOKE, 1, pack_plain((NODE, "get", (0, b"key"), {}))),
    framing.pack_message(framing.RESULT, 7, bytes(range(256)) * 2),
    framing.pack_message(framing.PING, 3, b"ping", serializer=42),
]


def admit_short(header: Header) -> None:
    if header.frame_bytes > 2000:
        raise ProtocolError("too long")


def room(size: int) -> memoryview | None:
    return memoryview(bytearray(size)) if size > 200 else None


def decoded(pieces: Iterable[bytes]) -> tuple[list[tuple[Header, bytes]], bool]:
    """The frames in some bytes, received in these pieces, and whether they end in an error."""
    decoder, frames = FrameDecoder(admit_short, room), []
    try:
        for piece in pieces:
            while piece:
                if (space := decoder.space()) is None:
                    taken = len(piece)
                    decoder.feed(piece)
                else:
                    taken = min(len(space), len(piece))
                    space[:taken] = piece[:taken]
                    decoder.filled(taken)
                piece = piece[taken:]
                while (frame := decoder.next_frame()) is not None:
                    frames.append((frame.header, bytes(frame.body)))
                assert decoder.buffered <= 2000 + len(piece)
    except ProtocolError:
        return frames, True
    return frames, False


@fuzzed
@given(
    st.lists(mutated(FRAMES) | st.sampled_from(FRAMES) | st.binary(max_size=100), max_size=4).map(b"".join),
    st.lists(st.integers(0, 5000), max_size=8),
)
def test_frames_do_not_depend_on_the_pieces_that_they_come_in(data: bytes, cuts: list[int]) -> None:
    whole, in_pieces = decoded([data]), decoded(pieces_of(data, cuts))
    assert in_pieces[0] == whole[0]
    # The last bytes of an incomplete header are judged as soon as they are there.
    assert in_pieces[1] == whole[1]


# Handshakes ---------------------------------------------------------------------------------------------------------


def server(strangers: Strangers, nonce: bytes = b"s" * 32) -> ServerHandshake:
    return ServerHandshake(
        lambda object_id, offer: {"handshake": OWN.to_wire(), "meta": {}},
        admit_short,
        {framing.MSGPACK: MSGPACK, SERPENT.number: SERPENT},
        {},
        admission=Admission(lambda: (KEY,), lambda: nonce, strangers=strangers),
        local=HERE,
    )


def honest_messages() -> tuple[list[bytes], list[bytes]]:
    """What client and server send to each other in a handshake that succeeds."""
    client, node = ClientHandshake(NODE, OFFER, (KEY,), trusting=False), server(Strangers.REFUSED)
    asked, answered = [], []
    while client.state in (State.AWAITING, State.PROVING):
        asked.append(client.request())
        answered.append(node.receive(frame_of(asked[-1])))
        client.receive(frame_of(answered[-1]))
    return asked, answered


ASKED, ANSWERED = honest_messages()
greetings = changed_in(plain | st.just(b"c" * 32) | st.just(HERE), Greeting._fields)


def as_connect(handshake: Any, target: Any) -> bytes:
    return framing.pack_message(framing.CONNECT, 0, pack_plain({"handshake": handshake, "object": target}))


def as_serpent(text: str) -> bytes:
    return framing.pack_message(framing.CONNECT, 0, text.encode(), serializer=SERPENT.number)


SERPENT_TEXTS = [
    f"{{'object': '{NODE}', 'handshake': {{'nonce': {b'c' * 32!r}, 'dialled': '{HERE}', 'x': {odd}}}}}"
    for odd in ("1j", "{1}", "10**9", "9" * 40, "(1, [2])", "'\\ud800'", "{1: 2}", "None")
]
connects = (
    mutated(ASKED)
    | st.builds(as_connect, greetings | plain, st.just(NODE) | plain)
    | mutated([text.encode() for text in SERPENT_TEXTS]).map(
        lambda text: as_serpent(text.decode("utf-8", "replace"))
    )
    | st.builds(
        framing.pack_message, st.integers(0, 9), st.just(0), plain.map(pack_plain) | st.binary(max_size=60)
    )
    | st.binary(max_size=100)
)


@fuzzed
@example(ASKED, Strangers.REFUSED)
@example([as_serpent(SERPENT_TEXTS[0])], Strangers.REFUSED)
@example([as_serpent(SERPENT_TEXTS[3])], Strangers.ADMITTED)
@given(
    st.lists(connects, max_size=4) | st.lists(connects, max_size=2).map(lambda later: [ASKED[0], *later]),
    st.sampled_from((Strangers.REFUSED, Strangers.ADMITTED)),
)
def test_no_stranger_is_trusted_by_a_server(sent: list[bytes], strangers: Strangers) -> None:
    # With another nonce: what was recorded proves nothing.
    node = server(strangers, nonce=b"t" * 32)
    decoder = FrameDecoder(node.admit, lambda frame_bytes: None)
    try:
        for data in sent:
            decoder.feed(data)
            while (frame := decoder.next_frame()) is not None:
                if node.state is State.ESTABLISHED:
                    return
                assert type(node.receive(frame)) is bytes
    except DECLARED:
        assert node.state is not State.ESTABLISHED or strangers is Strangers.ADMITTED
    finally:
        assert not node.trusted
        assert strangers is Strangers.ADMITTED or node.state is not State.ESTABLISHED


answers = (
    mutated(ANSWERED)
    | st.builds(
        lambda kind, said: framing.pack_message(kind, 0, pack_plain(said)),
        st.sampled_from((framing.CONNECT_OK, framing.CONNECT_FAIL)),
        plain | greetings.map(lambda greeting: {"handshake": greeting, "meta": {}}),
    )
    | st.binary(max_size=100)
)


@fuzzed
@example(ANSWERED, [])
@given(
    st.lists(answers, max_size=3) | st.lists(answers, max_size=2).map(lambda later: [ANSWERED[0], *later]),
    st.lists(st.integers(0, 5000), max_size=4),
)
def test_no_server_without_the_secret_gets_a_request(sent: list[bytes], cuts: list[int]) -> None:
    protocol = CallProtocol(NODE, Caller(OFFER, lambda: (b"o" * 32,), trusting=False))
    protocol.greet(HERE, b"d" * 32)
    try:
        for piece in chain.from_iterable(pieces_of(data, cuts) for data in sent):
            assert protocol.receive_data(piece) is not GREETED
    except (ProtocolError, HandshakeRefused):
        pass
    assert not protocol.identified


@fuzzed
@given(mutated(ANSWERED[1:]) | answers)
def test_a_proven_server_may_still_answer_anything(sent: bytes) -> None:
    client = ClientHandshake(NODE, OFFER, (KEY,), trusting=False)
    client.receive(frame_of(ANSWERED[0]))
    client.request()
    decoder = FrameDecoder(client.admit, lambda frame_bytes: None)
    decoder.feed(sent)
    try:
        while (frame := decoder.next_frame()) is not None and client.state is State.PROVING:
            client.receive(frame)
    except (ProtocolError, HandshakeRefused):
        pass


# Calls and replies --------------------------------------------------------------------------------------------------

BODIES = [
    pack_plain((NODE, "get", (0, b"key"), {})),
    pack_plain((NODE, "set", (0, b"key", bytes(300), None), {})),
]
CALLS = [messages.CallPacker(NODE).pack("set", (0, b"key", b"value"), 5, 1, 2)]
REPLIES = [
    messages.pack_result(5, value)
    for value in (None, True, b"short", 7, "text", [1, {"a": b"b"}], bytes(300))
]
REFUSALS = [
    framing.pack_message(
        framing.RESULT,
        5,
        pack_plain(refusals.refusal_to_wire(refusals.Refusal("stale-view", "no", [1]), kind)),
        framing.FLAG_EXCEPTION,
    )
    for kind in ("PyroError", "SystemExit")
]


@fuzzed
@given(
    mutated(BODIES)
    | plain.map(pack_plain)
    | st.tuples(texts | plain, texts | plain, plain | st.just([]), plain | st.just({})).map(pack_plain)
    | st.binary(max_size=100)
)
def test_bodies_of_calls(body: bytes) -> None:
    messages.called(body)
    try:
        object_id, name, arguments, options = messages.unpack_call(body)
    except ProtocolError:
        return
    assert (type(object_id), type(name), type(arguments), type(options)) == (str, str, list, dict)


@fuzzed
@given(mutated([bytes(call) for call in CALLS]))  # type: ignore[arg-type]
def test_calls_of_the_fast_path(data: bytes) -> None:
    unpacker = messages.CallUnpacker(NODE, {"set": "set", "get": "get"})
    call = unpacker.unpack(data)
    assert call is None or type(call[2]) is list


@fuzzed
@given(
    st.lists(
        mutated([bytes(reply) for reply in REPLIES + REFUSALS])  # type: ignore[arg-type]
        | plain.map(lambda value: bytes(messages.pack_result(5, value)))  # type: ignore[arg-type]
        | plain.map(
            lambda value: framing.pack_message(framing.RESULT, 5, pack_plain(value), framing.FLAG_EXCEPTION)
        ),
        max_size=2,
    ),
    st.lists(st.integers(0, 5000), max_size=4),
)
def test_replies(sent: list[bytes], cuts: list[int]) -> None:
    protocol = CallProtocol(NODE)
    protocol.greet(HERE, b"")
    assert protocol.receive_data(ANSWERED[0]) is GREETED
    protocol.sequence = 5
    try:
        for piece in pieces_of(b"".join(sent), cuts):
            space = protocol.space()
            if space is None:
                protocol.receive_data(piece)
            else:
                count = min(len(space), len(piece))
                space[:count] = piece[:count]
                protocol.received(count)
    except Refused as refused:
        assert type(refused.refusal.code) is type(refused.refusal.message) is str  # noqa: PT017
    except ProtocolError:
        pass


@fuzzed
@given(
    st.sampled_from((MSGPACK, SERPENT)),
    st.sampled_from(sorted(NAME_COMMANDS)),
    st.lists(plain, max_size=4),
    st.dictionaries(
        st.sampled_from(("name", "prefix", "regex", "uri", "metadata", "meta_all")), plain, max_size=2
    ),
    st.booleans(),
)
def test_calls_of_the_name_server(
    serializer: Any,
    method: str,
    arguments: list[Any],
    options: dict[str, Any],
    trusted: bool,
) -> None:
    names = Names(MemoryStorage(), lambda member: False)
    names.register(NODE, f"PYRO:{NODE}@127.0.0.1:7001", metadata=["pyrocache"])
    dispatcher = Dispatcher(
        "Pyro.NameServer", names, NAME_COMMANDS, greeting=lambda: "hello", max_frame_bytes=2**18,
        serializers=(MSGPACK, SERPENT),
    )  # fmt: skip
    body = serializer.dumps(("Pyro.NameServer", method, arguments, options))
    header = Header(framing.INVOKE, serializer.number, 0, 1, len(body), 0)
    try:
        call = dispatcher.read(framing.Frame(header, body), serializer, trusted)
    except ProtocolError:
        return
    if isinstance(call, bytes):
        assert not trusted or serializer is SERPENT
        return
    job = dispatcher.dispatch(Session(), *call)
    with logged() as lines:
        assert isinstance(job(), bytes | list)  # type: ignore[operator]
    assert lines == [], "whoever may call could fill the log"


# Values and keys ----------------------------------------------------------------------------------------------------

VALUES: list[object] = [
    *(None, True, 3, -(10**30), 1.5, b"bytes", "text\ud800", [1, {"a": (2, 3)}], {1, 2}, 1j, range(3)),
    *(bytearray(b"array"), "x" * 500, [bytes(300)] * 3, {"key": [None, True]}, [[[]]]),
]


class Decimals:
    """A user's codec whose loads raises whatever `int` raises."""

    name = "decimals"

    def dumps(self, value: object) -> bytes:
        return repr(value).encode()

    def loads(self, data: bytes) -> object:
        return int(data)


INNER = {
    "checked pickle": Codec(allowed_classes=["collections.OrderedDict"]),
    "compressed": Codec(allowed_classes=[], compress_above=50),
    "msgpack": Codec("msgpack", compress_above=50),
    "json": Codec("json"),
    "user": Codec(user=Decimals()),
}
SIGNER = Signer([b"s" * 32, b"t" * 32])
SIGNING = SigningCodec(Codec(), SIGNER, "the root", counters=True)


def frames_of(codec: Any) -> list[bytes]:
    frames = []
    for value in VALUES:
        try:
            frames.append(bytes(codec.encode(b"key", value)))
        except SerializationError:
            continue
    return frames


OUT_OF_BAND = bytes(Codec().encode(b"key", [pickle.PickleBuffer(bytearray(300))]))
FRAMES_OF = {name: [*frames_of(codec), OUT_OF_BAND] for name, codec in INNER.items()}
FRAMES_OF["compressed"] = [frame for frame in FRAMES_OF["compressed"] if frame[:1] == b"d"]


@pytest.mark.parametrize("name", INNER)
@fuzzed
@given(data=st.data(), many=st.booleans())
def test_value_frames(name: str, data: Any, many: bool) -> None:
    drawn = data.draw(
        mutated(FRAMES_OF[name])
        | st.binary(max_size=60).map(lambda rest: b"\x80\x05" + rest)
        | st.binary(max_size=60)
    )
    codec = INNER[name]
    try:
        if many:
            codec.decode_many([b"key"], [drawn], None)
        else:
            codec.decode(b"key", memoryview(bytearray(drawn)))
    except SerializationError as error:
        assert len(str(error)) < 500  # noqa: PT017


@pytest.mark.parametrize("opcode", [b"\x96", b"\x8e", b"\x8d", b"\x95", b"\x8b"])
def test_a_short_pickle_takes_little_memory_whatever_it_claims(opcode: bytes) -> None:
    frame = b"\x80\x05" + opcode + (2**29).to_bytes(8, "little") + b"..."
    tracemalloc.start()
    try:
        with pytest.raises(SerializationError):
            INNER["checked pickle"].decode(b"key", frame)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


SIGNED = frames_of(SIGNING)


@fuzzed
@given(mutated(SIGNED) | st.binary(max_size=100), st.sampled_from((b"key", b"other")))
def test_signed_frames_that_were_changed_are_never_decoded(frame: bytes, key: bytes) -> None:
    try:
        SIGNING.decode(key, frame)
    except TamperedValue:
        return
    except SerializationError:  # an int, which is not signed
        assert frame[:1] == b"w"
    assert frame[:1] == b"w" or (key == b"key" and frame in SIGNED)


KEYS = [
    encode_key(key)
    for key in (
        "text",
        7,
        -1,
        b"bytes",
        ("a", 1, (2.5, None)),
        frozenset((1, 2)),
        True,
        1j,
        range(3),
        (((),),),
    )
]


@fuzzed
@given(mutated(KEYS) | st.binary(max_size=60), st.sampled_from(("checked pickle", "msgpack")))
def test_keys(data: bytes, codec: str) -> None:
    try:
        decode_key(data, INNER[codec])
    except (InvalidKey, SerializationError):
        pass


# Cluster ------------------------------------------------------------------------------------------------------------

MEMBERS = (
    Member(NODE, "127.0.0.1", 7001, 1.0, "abc", "", "c1", "rack-1"),
    Member("cache.node.2", "::1", 7002, 2.5, "def", "", "c1"),
)
VIEW = ClusterView(MEMBERS, 3, "c1", [("cache.node.3", "ghi")], 1)
LINES = [line.encode() for line in view_to_metadata(VIEW)]
lines = st.lists(mutated(LINES).map(lambda line: line.decode("utf-8", "replace")) | texts, max_size=6)
metadata = lines | st.just(view_to_metadata(VIEW)) | plain
uris = (
    st.sampled_from([f"PYRO:{member.name}@{member.address}" for member in MEMBERS])
    | st.builds(
        lambda state: {"__class__": "Pyro5.core.URI", "state": state}, st.lists(scalars, max_size=6) | plain
    )
    | plain
)
entry_names = st.sampled_from(
    (
        NODE,
        "cache.node.2",
        "cache.node.0",
        "cache.cluster",
        "cache.view.1",
        "cache.view.3",
        "cache.view.9999999999",
    )
)


@fuzzed
@given(st.dictionaries(entry_names | texts, st.tuples(uris, metadata).map(list) | plain, max_size=6))
def test_listings(entries: dict[Any, Any]) -> None:
    listing = _listing(entries)
    assert isinstance(listing, Listing)
    assert all(type(member.host) is str and 0 < member.port < 65536 for member in listing.members)
    assert listing.next_number >= 0
    assert (listing.complete, listing.before) is not None


@fuzzed
@given(numbers, metadata)
def test_views_in_the_name_server(number: int, lines: Any) -> None:
    if isinstance(lines, list | dict | str):
        view = view_from_metadata(number, lines)
        assert view is None or 0 <= view.number < 2**31


members = st.lists(
    st.sampled_from(view_to_wire(VIEW)["members"]) | st.lists(scalars, min_size=5, max_size=7) | plain,
    max_size=4,
)


@fuzzed
@given(
    st.fixed_dictionaries(
        {"number": numbers, "cluster": texts, "members": members | plain},
        optional={"zones": st.dictionaries(st.just(NODE) | texts, texts | plain) | plain},
    )
    | changed_in(plain, ("number", "cluster", "members"))
    | plain
)
def test_views_of_nodes(sent: Any) -> None:
    view = view_from_wire(sent)
    assert view is None or all(isinstance(member, Member) and is_zone(member.zone) for member in view.members)


rows = st.lists(
    st.lists(st.binary(max_size=9) | texts | numbers | st.lists(numbers, max_size=4), max_size=4), max_size=4
)


@fuzzed
@given(
    changed_in(numbers | st.floats() | texts, NodeStats.__dataclass_fields__)
    | changed_in(rows, ("namespaces", "latencies"))
    | plain
)
def test_statistics(sent: Any) -> None:
    if is_stats(sent):
        stats = NodeStats.from_wire(sent)
        everything = Stats.of({NODE: stats, "cache.node.2": stats}, ClientStats(), [])
        assert repr(everything)
        assert everything.as_dict()
