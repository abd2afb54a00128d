"""The identity of a request, and deadlines by a clock that begins again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.protocol import framing
from pyrocache.protocol.messages import CallPacker, CallUnpacker, Pieces
from pyrocache.protocol.request_id import REPEAT, RequestId, milliseconds, seconds_left, unpack_id

NAME = "cache.node.1"


@pytest.mark.parametrize("value", [b"small", b"l" * 70_000, Pieces([b"in", b"pieces"])])
def test_it_is_in_the_header_of_a_request(value: bytes | Pieces) -> None:
    packer = CallPacker(NAME)
    packer.identify(b"sessions")
    message = packer.pack("set", (1, b"key", value), 7, 5, 2**32 - 1)
    head = message if isinstance(message, bytes) else bytes(message[0])
    header = framing.parse_header(head)
    assert unpack_id(header.correlation) == RequestId(b"sessions", 5, 2**32 - 1)
    assert header.flags == 0
    assert head[20:36] == b"sessions" + bytes([0, 0, 0, 5]) + b"\xff" * 4


def test_a_repeat_takes_the_long_way() -> None:
    packer, unpacker = CallPacker(NAME), CallUnpacker(NAME, {"get": "method"})
    for number, usual in ((0, True), (REPEAT - 1, True), (REPEAT, False), (REPEAT + 1, False)):
        message = packer.pack("get", (1, b"key"), 7, number, 9)
        assert isinstance(message, bytes)
        expected = (7, "method", [1, b"key"], bytes(8), number, 9) if usual else None
        assert unpacker.unpack(message) == expected


@given(st.integers(0, 2**40), st.integers(-(2**31) + 1, 2**31 - 1))
def test_deadlines_are_compared_modulo_the_range_of_the_clock(now: int, left: int) -> None:
    deadline = (now + left) % 2**32
    assert seconds_left(deadline, (now + 0.5) / 1000.0) == pytest.approx(left / 1000.0)


def test_a_reading_of_the_clock_crosses_the_wire_in_whole_milliseconds() -> None:
    assert [milliseconds(seconds) for seconds in (0.0, 1.9999, 4_294_967.297)] == [0, 1999, 1]
