"""Ints as frames: what the codec writes, so that nodes can count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.client.codec import Codec
from pyrocache.protocol.int_frame import pack_int, unpack_int

EDGES = [
    0,
    1,
    -1,
    127,
    128,
    -128,
    -129,
    255,
    256,
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    10**1000,
    -(10**1000),
]


@pytest.mark.parametrize("number", EDGES)
def test_ints_of_any_size_come_back(number: int) -> None:
    assert unpack_int(pack_int(number)) == number
    assert unpack_int(memoryview(pack_int(number))) == number


@given(st.integers() | st.integers(-(10**500), 10**500))
def test_frames_are_those_of_the_codec(number: int) -> None:
    assert pack_int(number) == bytes(Codec().encode(b"", number))
    assert Codec().decode(b"", pack_int(number)) == number
    assert unpack_int(bytes(Codec().encode(b"", number))) == number


@pytest.mark.parametrize("number", [0, -1, 127, -128, 128, -129])
def test_no_frame_is_longer_than_it_need_be(number: int) -> None:
    assert len(pack_int(number)) == (2 if -128 <= number <= 127 else 3)


@pytest.mark.parametrize("value", [None, True, False, 1.0, "1", b"1", [1], b"w\1", "w", b""])
def test_frames_of_anything_else_hold_no_int(value: object) -> None:
    assert unpack_int(bytes(Codec().encode(b"", value))) is None


@pytest.mark.parametrize("frame", [b"", b"w", b"x\1", b"\0", memoryview(b""), memoryview(b"w")])
def test_what_is_no_frame_of_an_int_holds_none(frame: bytes | memoryview) -> None:
    assert unpack_int(frame) is None
