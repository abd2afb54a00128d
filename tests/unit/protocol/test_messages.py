"""Frames: round trips, and garbage is an error of ours in bounded memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyrocache.errors import ProtocolError
from pyrocache.protocol import framing, limits, messages, refusals
from pyrocache.protocol.framing import FrameDecoder, Header
from pyrocache.protocol.messages import Pieces
from pyrocache.protocol.refusals import Refusal
from tests.support.wire import pack_refusal


def admit_all(header: Header) -> None:
    pass


def no_room(frame_bytes: int) -> None:
    """Frames are collected, however long."""


class Room:
    """Gives memory for frames of ``least`` bytes and more, and remembers it."""

    def __init__(self, least: int = 0) -> None:
        self.least = least
        self.given: list[memoryview] = []

    def __call__(self, frame_bytes: int) -> memoryview | None:
        if frame_bytes < self.least:
            return None
        self.given.append(memoryview(bytearray(frame_bytes)))
        return self.given[-1]


def joined(message: bytes | list[Any]) -> bytes:
    """The bytes of a message, which may be in several buffers."""
    return b"".join(message) if isinstance(message, list) else message


def next_bytes(decoder: FrameDecoder, stream: bytes) -> bytes:
    """Have ``decoder`` receive some of ``stream`` as a connection would; what is left."""
    space = decoder.space()
    if space is None:
        decoder.feed(stream)
        return b""
    count = min(len(space), len(stream))
    space[:count] = stream[:count]
    decoder.filled(count)
    return stream[count:]


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
    assert messages.unpack_plain(messages.pack_plain(value)) == value


@given(st.binary(max_size=300))
def test_any_garbage_body_is_a_plain_value_or_a_protocol_error(body: bytes) -> None:
    try:
        messages.unpack_plain(body)
    except ProtocolError:
        pass


sent_messages = st.tuples(
    st.integers(1, 6), st.integers(0, 0xFFFF), st.binary(max_size=200), st.integers(0, 127)
)


@pytest.mark.parametrize("least", [0, 100, 10**6])
@given(st.lists(sent_messages, max_size=6), st.data())
def test_messages_come_out_whole_however_the_bytes_are_cut(
    least: int, sent: list[tuple[int, int, bytes, int]], data: st.DataObject
) -> None:
    stream = b"".join(framing.pack_message(kind, seq, body, flags=flags) for kind, seq, body, flags in sent)
    decoder = FrameDecoder(admit_all, Room(least))
    received = []
    while stream:
        assert decoder.between_frames == (decoder.buffered == 0)
        size = data.draw(st.integers(1, len(stream)))
        part, stream = stream[:size], stream[size:]
        while part:
            if data.draw(st.booleans()):
                part = next_bytes(decoder, part)
            else:
                decoder.feed(part)  # also while there is space for it
                part = b""
            while frame := decoder.next_frame():
                received.append((frame.header.type, frame.header.sequence, frame.body, frame.header.flags))
    assert received == sent
    assert decoder.buffered == 0
    assert decoder.between_frames
    assert decoder.space() is None


def test_a_long_frame_is_received_to_where_it_stays() -> None:
    room = Room(least=1000)
    decoder = FrameDecoder(admit_all, room)
    body = bytes(range(256)) * 10
    stream = framing.pack_message(framing.RESULT, 1, b"short") + framing.pack_message(framing.RESULT, 2, body)
    decoder.feed(stream[:100])
    first = decoder.next_frame()
    assert first is not None
    assert first.body == b"short"
    assert room.given == []
    assert decoder.next_frame() is None
    assert decoder.buffered == 55
    rest = next_bytes(decoder, stream[100:])
    assert rest == b""
    second = decoder.next_frame()
    assert second is not None
    assert second.body == body
    assert isinstance(second.body, memoryview)
    room.given[0][-1] = 7
    assert second.body[-1] == 7, "the body is the memory that was given for it"
    assert len(room.given) == 1
    assert decoder.space() is None


def test_no_room_is_asked_for_before_the_header_is_judged() -> None:
    class Refused(Exception):
        pass

    def refuse(header: Header) -> None:
        raise Refused

    room = Room()
    decoder = FrameDecoder(refuse, room)
    decoder.feed(framing.pack_message(framing.INVOKE, 1, b"body")[:-1])
    with pytest.raises(Refused):
        decoder.next_frame()
    assert room.given == []


@pytest.mark.parametrize("size", [0, 10, limits.LARGE_BYTES - 40, limits.LARGE_BYTES - 39, 200_000])
def test_a_frame_that_is_collected_is_whole_whatever_its_size(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    message = framing.pack_message(framing.RESULT, 1, body)
    for more in (b"", message):
        decoder = FrameDecoder(admit_all, no_room)
        decoder.feed(message + more)
        frame = decoder.next_frame()
        assert frame is not None
        assert frame.body == body
        assert decoder.buffered == len(more)
        decoder.feed(message)
        assert frame.body == body


@pytest.mark.parametrize("least", [0, 10**9], ids=["in its own memory", "collected"])
@pytest.mark.parametrize("came", [40, 41, 500, 1039])
def test_a_frame_thrown_away_is_skipped_to_its_end(least: int, came: int) -> None:
    message = framing.pack_message(framing.INVOKE, 9, bytes(1000))
    after = framing.pack_message(framing.PING, 10, b"next")
    decoder = FrameDecoder(admit_all, Room(least))
    decoder.feed(message[:came])
    assert decoder.next_frame() is None
    header = decoder.discard()
    assert header is not None
    assert header.sequence == 9
    assert decoder.buffered == 0
    assert decoder.space() is None
    assert not decoder.between_frames, "its rest is still to come"
    rest = message[came:] + after
    for part in (rest[:1], rest[1:300], rest[300:]):
        decoder.feed(part)
    frame = decoder.next_frame()
    assert frame is not None
    assert (frame.header.sequence, frame.body) == (10, b"next")
    assert decoder.between_frames


def test_there_is_nothing_to_throw_away_before_a_header_has_come() -> None:
    decoder = FrameDecoder(admit_all, no_room)
    assert decoder.discard() is None
    message = framing.pack_message(framing.PING, 1, b"body")
    decoder.feed(message[:39])
    assert decoder.next_frame() is None
    assert decoder.discard() is None
    decoder.feed(message[39:])
    frame = decoder.next_frame()
    assert frame is not None
    assert frame.body == b"body"


starts = st.binary(max_size=30).map(lambda body: framing.pack_message(framing.INVOKE, 1, body))


@given(st.lists(st.binary(min_size=1, max_size=120) | starts, max_size=8), st.sampled_from([50, 10**6]))
def test_any_garbage_stream_is_frames_or_a_protocol_error(chunks: list[bytes], least: int) -> None:
    def room(frame_bytes: int) -> memoryview | None:
        return memoryview(bytearray(frame_bytes)) if least <= frame_bytes < 10**5 else None

    decoder = FrameDecoder(admit_all, room)
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
    header = bytearray(framing.pack_message(framing.INVOKE, 1, b""))
    header[position] = noise[position]
    try:
        parsed = framing.parse_header(header)
    except ProtocolError:
        return
    assert isinstance(parsed, Header)


def test_annotations_are_skipped() -> None:
    chunk = b"TEST" + (3).to_bytes(4, "big") + b"abc"
    message = bytearray(framing.pack_message(framing.RESULT, 7, b"body"))
    message[16:20] = len(chunk).to_bytes(4, "big")
    decoder = FrameDecoder(admit_all, no_room)
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

    message = bytearray(framing.pack_message(framing.INVOKE, 1, b""))
    message[12:16] = (3_000_000_000).to_bytes(4, "big")
    decoder = FrameDecoder(refuse, no_room)
    decoder.feed(bytes(message))
    with pytest.raises(Refused):
        decoder.next_frame()


def test_a_claimed_length_reserves_nothing() -> None:
    message = bytearray(framing.pack_message(framing.INVOKE, 1, b""))
    message[12:16] = (2**32 - 1).to_bytes(4, "big")
    tracemalloc.start()
    decoder = FrameDecoder(admit_all, no_room)
    decoder.feed(bytes(message))
    assert decoder.next_frame() is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_a_stream_that_begins_wrong_is_refused_before_a_header_is_whole() -> None:
    decoder = FrameDecoder(admit_all, no_room)
    decoder.feed(b"GET / HTTP/1.1\r\n")
    with pytest.raises(ProtocolError):
        decoder.next_frame()


# Calls.

NAME = "cache.node.1"
METHODS: dict[str, Any] = {"get": object(), "set": object(), "a_method_with_quite_a_name": object()}


@given(st.sampled_from(sorted(METHODS)), st.lists(plain, max_size=5), st.integers(0, 0xFFFF))
def test_calls_come_back(method: str, arguments: list[Any], sequence: int) -> None:
    message = joined(messages.CallPacker(NAME).pack(method, tuple(arguments), sequence))
    assert messages.unpack_call(message[40:]) == (NAME, method, arguments, {})
    assert framing.parse_header(message) == (
        framing.INVOKE,
        framing.MSGPACK,
        0,
        sequence,
        len(message) - 40,
        0,
        bytes(16),
    )
    unpacked = messages.CallUnpacker(NAME, METHODS).unpack(message)
    assert unpacked == (sequence, METHODS[method], arguments, bytes(8), 0, 0)


def test_calls_of_others_are_not_understood_at_once() -> None:
    unpacker = messages.CallUnpacker(NAME, METHODS)
    for message in (
        messages.CallPacker("cache.node.2").pack("get", (1, b"key"), 1),
        messages.CallPacker("cache.node.11").pack("get", (1, b"key"), 1),
        messages.CallPacker(NAME).pack("gets", (1, b"key"), 1),
        messages.CallPacker(NAME).pack("ge", (1, b"key"), 1),
        messages.CallPacker(NAME).pack("x" * 40, (1, b"key"), 1),
        messages.CallPacker(NAME).pack("get", (1, b"k" * limits.LARGE_BYTES), 1),
    ):
        assert unpacker.unpack(joined(message)) is None


@given(st.data())
def test_a_call_that_is_cut_lengthened_or_damaged_is_never_taken_for_another(data: st.DataObject) -> None:
    message = joined(messages.CallPacker(NAME).pack("get", (7, b"key", [None, 1.5]), 5))
    unpacker = messages.CallUnpacker(NAME, METHODS)
    assert unpacker.unpack(message[: data.draw(st.integers(0, len(message) - 1))]) is None
    assert unpacker.unpack(message + data.draw(st.binary(min_size=1, max_size=100))) is None
    damaged = bytearray(message)
    damaged[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    unpacked = unpacker.unpack(bytes(damaged))
    if unpacked is not None:  # then the long way has the same to say
        header = framing.parse_header(damaged)
        object_id, name, arguments, options = messages.unpack_call(bytes(damaged[40:]))
        assert (header.type, header.flags, header.serializer) == (framing.INVOKE, 0, framing.MSGPACK)
        assert header.annotation_bytes == 0
        assert unpacked[:2] == (header.sequence, METHODS[name])
        assert repr(unpacked[2]) == repr(arguments)
        assert (object_id, options) == (NAME, {})


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_garbage_is_no_call_to_be_understood_at_once(garbage: bytes, body: bytes) -> None:
    unpacker = messages.CallUnpacker(NAME, METHODS)
    assert unpacker.unpack(garbage) is None
    begin = b"\x94" + messages.pack_plain(NAME) + messages.pack_plain("get")
    unpacked = unpacker.unpack(framing.pack_message(framing.INVOKE, 1, begin + body))
    assert unpacked is None or messages.unpack_call(begin + body) == (NAME, "get", unpacked[2], {})


large = st.integers(limits.LARGE_BYTES, limits.LARGE_BYTES + 300).map(lambda size: b"v" * size)
options_of_calls = st.dictionaries(st.text(max_size=5), plain, max_size=3)


def large_body(arguments: list[Any], options: dict[str, Any], name: str = "set") -> bytes:
    return messages.pack_plain([NAME, name, arguments, options])


@given(large, st.lists(plain, max_size=4), st.lists(plain, max_size=4), options_of_calls, st.booleans())
def test_a_large_value_stays_where_it_is_and_all_else_is_as_in_a_plain_call(
    value: bytes, before: list[Any], after: list[Any], options: dict[str, Any], writable: bool
) -> None:
    body = large_body([*before, value, *after], options)
    message = memoryview(bytearray(body) if writable else body)
    object_id, name, arguments, told = messages.unpack_call(message)
    assert [object_id, name, arguments, told] == messages.unpack_plain(body)
    assert type(arguments) is list
    # Where `set` has its value: behind a view and a key.
    if len(before) >= 2 and not any(isinstance(argument, list | dict) for argument in before):
        kept = arguments[len(before)]
        assert type(kept) is memoryview
        assert kept.obj is message.obj, "a slice of the body, not a copy"
    # All else is copied, so that it does not keep the message alive.
    assert not any(isinstance(argument, memoryview) for argument in before + arguments[len(before) + 1 :])


def test_a_set_as_it_comes_keeps_its_value_in_the_message() -> None:
    value = bytes(range(256)) * 1000
    for value_in in (value, Pieces((value[:100], value[100:]))):
        message = bytearray(joined(messages.CallPacker(NAME).pack("set", (7, b"key", value_in, 60.0), 5)))
        decoder = FrameDecoder(admit_all, Room(least=limits.LARGE_BYTES))
        decoder.feed(message)
        frame = decoder.next_frame()
        assert frame is not None
        object_id, name, arguments, options = messages.unpack_call(frame.body)
        assert (object_id, name, arguments, options) == (NAME, "set", [7, b"key", value, 60.0], {})
        assert type(arguments[1]) is bytes
        assert type(arguments[2]) is memoryview
        # The frame was whole when it came, so it was handed over or copied once: the value lies within it.
        whole = memoryview(arguments[2].obj)
        assert len(whole) >= len(value)


def test_the_longest_key_is_bytes_like_any_other() -> None:
    key, value = b"k" * limits.MAX_KEY_BYTES, b"v" * 2 * limits.LARGE_BYTES
    for name, arguments in (
        ("get", [7, key]),
        ("set", [7, key, b"small", None]),
        ("set", [7, key, value, None]),
        ("get_many", [7, [key, key]]),
    ):
        told = messages.unpack_call(memoryview(large_body(arguments, {}, name)))[2]
        assert told == arguments
        if name != "get_many":
            assert type(told[1]) is bytes


@pytest.mark.parametrize(
    "arguments",
    [
        [1, [b"v" * 70_000], 2],
        [1, {"a": b"v" * 70_000}, 2],
        [1, "t" * 70_000, b"v" * 70_000],
        [1, b"a" * 65_535, b"b" * 65_535],
        [1, b"a" * 70_000, b"b" * 70_000, b"c"],
        [b"k"] * 1000 + [b"v" * 70_000],
        [[b"k"] * 1000, [b"v" * 70] * 1000],
        [b"v" * 70_000],
    ],
    ids=range(8),
)
def test_other_large_calls_are_as_they_would_be_plain(arguments: list[Any]) -> None:
    for options in ({}, {"ttl_seconds": 1.5, "value": b"v" * 70_000}):
        body = large_body(arguments, options)
        for given_as in (body, memoryview(body), memoryview(bytearray(body))):
            assert list(messages.unpack_call(given_as)) == messages.unpack_plain(body)


def check_call(body: bytes) -> None:
    for given_as in (body, memoryview(body), memoryview(bytearray(body))):
        try:
            call = messages.unpack_call(given_as)
        except ProtocolError:
            continue
        assert list(map(type, call)) == [str, str, list, dict]
        assert repr([*call[:2], list(map(unwrapped, call[2])), call[3]]) == repr(messages.unpack_plain(body))


def unwrapped(argument: Any) -> Any:
    return bytes(argument) if isinstance(argument, memoryview) else argument


@given(st.binary(max_size=100), st.binary(max_size=40))
def test_garbage_in_a_large_body_is_a_call_or_a_protocol_error(before: bytes, after: bytes) -> None:
    begin = b"\x94" + messages.pack_plain(NAME) + messages.pack_plain("set")
    value = messages.pack_plain(bytes(70_000))
    for body in (
        before + value + after,
        begin + before + value + after,
        begin + b"\x93\1" + before + value + after,
        begin + b"\x93\1" + value + after,
        begin + b"\xdd" + before + value + after,
    ):
        check_call(body)


@given(st.data())
def test_a_large_call_that_is_cut_or_damaged_is_a_call_or_a_protocol_error(data: st.DataObject) -> None:
    body = large_body([7, b"key", bytes(70_000), 60.0, [b"more"]], {"a": 1})
    edges = st.integers(0, 50) | st.integers(len(body) - 30, len(body) - 1)
    with pytest.raises(ProtocolError):
        messages.unpack_call(memoryview(body)[: data.draw(edges)])
    with pytest.raises(ProtocolError):
        messages.unpack_call(body + data.draw(st.binary(min_size=1, max_size=20)))
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(edges)] = data.draw(st.integers(0, 255))
    check_call(bytes(damaged))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x94",
        messages.pack_plain([NAME, "get", []]),
        messages.pack_plain([NAME, "get", [], {}, 1]),
        messages.pack_plain([1, "get", [], {}]),
        messages.pack_plain([NAME, b"get", [], {}]),
        messages.pack_plain([NAME, "get", {}, {}]),
        messages.pack_plain([NAME, "get", [], []]),
        messages.pack_plain([1, "get", [bytes(70_000)], {}]),
        messages.pack_plain([NAME, None, [bytes(70_000)], {}]),
        messages.pack_plain([NAME, "get", [bytes(70_000)], []]),
        messages.pack_plain([NAME, "get", [bytes(70_000)]]),
        messages.pack_plain([NAME, "get", [bytes(70_000)], {}, 1]),
        messages.pack_plain([NAME, "get", bytes(70_000), {}]),
        messages.pack_plain(bytes(70_000)),
        messages.pack_plain({"a": bytes(70_000)}),
        msgpack.packb([NAME, "get", [msgpack.ExtType(5, b""), bytes(70_000)], {}]),
        msgpack.packb([NAME, "get", [bytes(70_000), msgpack.ExtType(5, b"")], {}]),
        msgpack.packb([NAME, "get", [msgpack.ExtType(5, bytes(70_000))], {}]),
        msgpack.packb([NAME, "get", [msgpack.ExtType(7, b"1"), bytes(70_000)], {}]),
        msgpack.packb([NAME, "get", [bytes(70_000)] + [1] * 2000, {}]),
        msgpack.packb([NAME, "get", [bytes(70_000), [[[]] * 1000] * 70], {}]),
        b"\x94" + b"\xa1n\xa1m" + b"\xdd\xff\xff\xff\xff" + messages.pack_plain(bytes(70_000)),
        b"\x94" + b"\xa1n\xa1m" + b"\x91\xc6\xff\xff\xff\xff" + bytes(70_000),
        b"\x94" + b"\xa1n\xa1m" + b"\x91" * 70_000,
    ],
    ids=range(25),
)
def test_what_is_no_call_is_a_protocol_error(body: bytes) -> None:
    for given_as in (body, memoryview(body), memoryview(bytearray(body))):
        with pytest.raises(ProtocolError):
            messages.unpack_call(given_as)


# Results.


@given(plain | st.binary(min_size=200, max_size=300), st.integers(0, 0xFFFF))
def test_results_come_back(result: Any, sequence: int) -> None:
    message = joined(messages.pack_result(sequence, result))
    assert messages.unpack_result(message, sequence) == result
    assert messages.unpack_plain(message[40:]) == result
    assert messages.unpack_result(message, sequence ^ 1) is messages.UNUSUAL
    assert messages.unpack_result(message[:-1], sequence) is messages.UNUSUAL
    assert messages.unpack_result(message + b"\0", sequence) is messages.UNUSUAL
    assert messages.unpack_result(b"", sequence) is messages.UNUSUAL


@pytest.mark.parametrize("size", [0, 1, 255, 256, 2**16 - 1, 2**16, 2**16 + 1, 200_000])
def test_results_of_any_size_come_back(size: int) -> None:
    result = bytes(range(256)) * (size // 256) + bytes(size % 256)
    message = joined(messages.pack_result(7, result))
    assert messages.unpack_plain(message[40:]) == result
    assert messages.unpack_plain(memoryview(message)[40:]) == result
    assert messages.unpack_result(message, 7) == (
        result if len(message) <= limits.LARGE_BYTES else messages.UNUSUAL
    )
    assert message[messages.VALUE_OFFSET :] == result or size < limits.LARGE_BYTES


def test_a_large_result_is_not_copied() -> None:
    value = bytes(limits.LARGE_BYTES)
    for result in (value, memoryview(value), memoryview(bytearray(value))):
        message = messages.pack_result(7, result)
        assert isinstance(message, list)
        assert message[-1] is result


def test_refusals_and_other_messages_are_no_results() -> None:
    refusal = pack_refusal(Refusal("a-code", "A sentence."))
    for message in (
        framing.pack_message(framing.RESULT, 7, refusal, flags=framing.FLAG_EXCEPTION),
        framing.pack_message(framing.RESULT, 7, messages.pack_plain(1), flags=framing.FLAG_CORRELATION_ID),
        framing.pack_message(framing.RESULT, 7, messages.pack_plain(1), serializer=2),
        framing.pack_message(framing.PING, 7, messages.pack_plain(1)),
        framing.pack_message(framing.RESULT, 7, b""),
        framing.pack_message(framing.RESULT, 7, messages.pack_plain(1)) * 2,
    ):
        assert messages.unpack_result(message, 7) is messages.UNUSUAL


@given(st.binary(min_size=1, max_size=300))
@example(b"\xc4")
@example(b"\xc4\1")
@example(b"\xc4\2ab")
@example(b"\xc6")
@example(b"\xc6\0\0\0\1")
@example(b"\xc1")
def test_a_garbage_result_is_a_plain_value_or_a_protocol_error(body: bytes) -> None:
    message = framing.pack_message(framing.RESULT, 7, body)
    try:
        result = messages.unpack_result(message, 7)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            messages.unpack_plain(body)
    else:
        assert repr(result) == repr(messages.unpack_plain(body))


@given(st.data())
def test_a_result_that_is_damaged_is_never_taken_for_another(data: st.DataObject) -> None:
    message = bytearray(joined(messages.pack_result(7, data.draw(plain))))
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        result = messages.unpack_result(bytes(message), 7)
    except ProtocolError:
        return
    if result is not messages.UNUSUAL:
        header = framing.parse_header(message)
        assert header[:6] == (framing.RESULT, framing.MSGPACK, 0, 7, len(message) - 40, 0)
        assert repr(result) == repr(messages.unpack_plain(bytes(message[40:])))


def test_pieces_are_as_long_as_what_they_hold() -> None:
    pieces = Pieces([b"ab", bytearray(b"cd"), memoryview(b".ef.")[1:3], b""])
    assert (len(pieces), bytes(pieces)) == (6, b"abcdef")
    assert (len(Pieces(())), bytes(Pieces(()))) == (0, b"")


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
            messages.unpack_plain(bomb)
        with pytest.raises(ProtocolError):
            messages.unpack_call(bomb)
        with pytest.raises(ProtocolError):
            messages.unpack_call(large_body([1, bytes(70_000)], {})[:-1] + bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20


@pytest.mark.parametrize("size", [1, 70_000])
def test_a_timestamp_is_read_as_a_number(size: int) -> None:
    body = msgpack.packb([NAME, "get", [msgpack.Timestamp(5), bytes(size)], {}])
    assert messages.unpack_call(body)[2] == [5.0, bytes(size)]
    assert type(messages.unpack_call(body)[2][0]) is float


@pytest.mark.parametrize(
    "value",
    [msgpack.ExtType(0x31, b"123"), msgpack.ExtType(0x30, bytes(16)), {"a": msgpack.ExtType(5, b"")}],
)
def test_extension_types_are_refused(value: Any) -> None:
    with pytest.raises(ProtocolError):
        messages.unpack_plain(msgpack.packb(value))


def test_a_map_that_names_a_class_stays_a_map() -> None:
    body = msgpack.packb({"__class__": "Pyro5.core.URI", "state": ["PYRO", "x", None, "h", 1]})
    assert type(messages.unpack_plain(body)) is dict


@given(st.text(max_size=30), st.text(max_size=30), plain)
def test_refusals_come_back(code: str, message: str, detail: Any) -> None:
    refusal = Refusal(code, message, detail)
    assert refusals.unpack_refusal(pack_refusal(refusal)) == refusal


def test_a_foreign_exception_becomes_a_refusal_without_a_code() -> None:
    body = messages.pack_plain(
        {"__class__": "builtins.SystemExit", "__exception__": True, "args": [], "attributes": 3}
    )
    assert refusals.unpack_refusal(body) == Refusal("", "builtins.SystemExit", None)


@pytest.mark.parametrize("value", [None, True, False, 0, 1, 127, -1, "", b"", [], {}])
def test_a_reply_of_one_byte_is_the_same_however_it_is_packed(value: object) -> None:
    message = messages.pack_result(7, value)
    assert message == framing.pack_message(framing.RESULT, 7, messages.pack_plain(value))
    result = messages.unpack_result(message, 7)
    assert (result, type(result)) == (value, type(value))


def call_of(*arguments: Any) -> memoryview:
    return memoryview(messages.pack_plain(("cache.node.1", "set_many", arguments, {})))


def test_the_one_value_of_a_batch_is_not_copied() -> None:
    value = bytes(6 * 2**20)
    for rest in ((), (None,), ([60.0], [b"tag"])):
        body = call_of(0, [b"key"], [value], *rest)
        _, name, arguments, options = messages.unpack_call(body)
        assert (name, options) == ("set_many", {})
        assert arguments == [0, [b"key"], [value], *rest]
        assert arguments[2][0].obj is body.obj


def test_a_request_is_at_most_a_batch_beside_one_large_value() -> None:
    small = messages.LONGEST_SMALL_BYTES
    messages.unpack_call(call_of(0, [b"a", b"b"], [bytes(small // 2 - 100)] * 2))
    messages.unpack_call(call_of(0, b"key", bytes(small), bytes(small - 200)))
    for arguments in (
        (0, [b"a", b"b"], [bytes(small // 2)] * 2),
        (0, [b"a", b"b"], [bytes(small), b""]),
        (0, [b"key" * 1000] * (small // 3000)),
        (0, b"key", bytes(small), bytes(small)),
        (0, [b"key"], [bytes(2**20)], bytes(small)),
        ("x" * small,),
        (bytes(small), b"key"),
    ):
        with pytest.raises(messages.TooLong):
            messages.unpack_call(call_of(*arguments))


@pytest.mark.parametrize("cut", range(40))
@pytest.mark.parametrize("keys", [b"key" * 1000, [b"key"], [b"key"] * 2, [b"key"] * 1000, {}])
def test_method_and_number_of_keys_of_a_call_are_in_its_first_bytes(cut: int, keys: Any) -> None:
    several = type(keys) is dict or (type(keys) is list and len(keys) > 1)
    found = messages.called(bytes(call_of(0, keys))[:cut])
    assert found in (None, ("cache.node.1", "set_many", several))
    assert (found is None) == (cut < 26)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xc1",
        b"\x93\xa1a\xa1b",
        b"\x94\xd4\x01\x01",
        b"\x94\xdd\xff\xff\xff\xff",
        b"\x07",
        b"\x94\x90\x90",
    ],
)
def test_what_is_no_call_has_no_method(head: bytes) -> None:
    assert messages.called(head) is None
