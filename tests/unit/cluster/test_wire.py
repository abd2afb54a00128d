"""Frames: round trips, and garbage is an error of ours in bounded memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.cluster import wire
from pyrocache.cluster.wire import FrameDecoder, Header, Refusal
from pyrocache.errors import ProtocolError


def admit_all(header: Header) -> None:
    pass


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_plain_values_come_back(value: Any) -> None:
    assert wire.unpack_plain(wire.pack_plain(value)) == value


@given(st.binary(max_size=300))
def test_any_garbage_body_is_a_plain_value_or_a_protocol_error(body: bytes) -> None:
    try:
        wire.unpack_plain(body)
    except ProtocolError:
        pass


messages = st.tuples(st.integers(1, 6), st.integers(0, 0xFFFF), st.binary(max_size=200), st.integers(0, 127))


@given(st.lists(messages, max_size=6), st.data())
def test_messages_come_out_whole_however_the_bytes_are_cut(
    sent: list[tuple[int, int, bytes, int]], data: st.DataObject
) -> None:
    stream = b"".join(wire.pack_message(kind, seq, body, flags=flags) for kind, seq, body, flags in sent)
    decoder = FrameDecoder(admit_all)
    received = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        decoder.feed(stream[:size])
        stream = stream[size:]
        while frame := decoder.next_frame():
            received.append((frame.header.type, frame.header.sequence, frame.body, frame.header.flags))
    assert received == sent
    assert decoder.buffered == 0


@given(st.lists(st.binary(min_size=1, max_size=120), max_size=8))
def test_any_garbage_stream_is_frames_or_a_protocol_error(chunks: list[bytes]) -> None:
    decoder = FrameDecoder(admit_all)
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while decoder.next_frame():
                pass
    except ProtocolError:
        return
    assert decoder.buffered <= sum(map(len, chunks))


@given(st.binary(min_size=40, max_size=40), st.integers(0, 39))
def test_a_damaged_header_never_raises_anything_else(noise: bytes, position: int) -> None:
    header = bytearray(wire.pack_message(wire.INVOKE, 1, b""))
    header[position] = noise[position]
    try:
        parsed = wire.parse_header(header)
    except ProtocolError:
        return
    assert isinstance(parsed, Header)


def test_annotations_are_skipped() -> None:
    chunk = b"TEST" + (3).to_bytes(4, "big") + b"abc"
    message = bytearray(wire.pack_message(wire.RESULT, 7, b"body"))
    message[16:20] = len(chunk).to_bytes(4, "big")
    decoder = FrameDecoder(admit_all)
    decoder.feed(bytes(message[:40]) + chunk + bytes(message[40:]))
    frame = decoder.next_frame()
    assert frame is not None
    assert frame.body == b"body"


def test_the_header_is_judged_before_any_body_is_there() -> None:
    class Refused(Exception):
        pass

    def refuse(header: Header) -> None:
        assert header.body_bytes == 3_000_000_000
        raise Refused

    message = bytearray(wire.pack_message(wire.INVOKE, 1, b""))
    message[12:16] = (3_000_000_000).to_bytes(4, "big")
    decoder = FrameDecoder(refuse)
    decoder.feed(bytes(message))
    with pytest.raises(Refused):
        decoder.next_frame()


def test_a_claimed_length_reserves_nothing() -> None:
    message = bytearray(wire.pack_message(wire.INVOKE, 1, b""))
    message[12:16] = (2**32 - 1).to_bytes(4, "big")
    tracemalloc.start()
    decoder = FrameDecoder(admit_all)
    decoder.feed(bytes(message))
    assert decoder.next_frame() is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_a_stream_that_begins_wrong_is_refused_before_a_header_is_whole() -> None:
    decoder = FrameDecoder(admit_all)
    decoder.feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ProtocolError):
        decoder.next_frame()


BOMBS = {
    "arrays that claim to be long, nested": b"\xdd\x03\xff\xff\xff" * 1000 + b"\xc0" * 1000,
    "many empty arrays": b"\xdc\x03\xe8" + b"\xdc\x03\xe8" * 0 + (b"\xdc\x03\xe8" + b"\x90" * 1000) * 1000,
    "many empty maps": b"\xdc\x03\xe8" + (b"\xdc\x03\xe8" + b"\x80" * 1000) * 1000,
    "deep nesting": b"\x91" * 100_000 + b"\xc0",
    "many short strings": b"\xdd\x00\x10\x00\x00" + b"\xa2ab" * 2**20,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_costs_little(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            wire.unpack_plain(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20


@pytest.mark.parametrize(
    "value",
    [msgpack.ExtType(0x31, b"123"), msgpack.ExtType(0x30, bytes(16)), {"a": msgpack.ExtType(5, b"")}],
)
def test_extension_types_are_refused(value: Any) -> None:
    with pytest.raises(ProtocolError):
        wire.unpack_plain(msgpack.packb(value))


def test_a_map_that_names_a_class_stays_a_map() -> None:
    body = msgpack.packb({"__class__": "Pyro5.core.URI", "state": ["PYRO", "x", None, "h", 1]})
    assert type(wire.unpack_plain(body)) is dict


@given(st.text(max_size=30), st.text(max_size=30), plain)
def test_refusals_come_back(code: str, message: str, detail: Any) -> None:
    refusal = Refusal(code, message, detail)
    assert wire.unpack_refusal(wire.pack_refusal(refusal)) == refusal


def test_a_foreign_exception_becomes_a_refusal_without_a_code() -> None:
    body = wire.pack_plain(
        {"__class__": "builtins.SystemExit", "__exception__": True, "args": [], "attributes": 3}
    )
    assert wire.unpack_refusal(body) == Refusal("", "builtins.SystemExit", None)
