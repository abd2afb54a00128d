"""Tests of `Pipeline` with the bytes of replies, cut at any place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.errors import ProtocolError
from pyrocache.net.call_protocol import ANONYMOUS, CallProtocol
from pyrocache.net.failures import Refused
from pyrocache.net.pipeline import Pipeline
from pyrocache.protocol import framing, messages, refusals
from pyrocache.protocol.limits import LARGE_BYTES
from tests.support.wire import pack_refusal

RESULTS = [
    None,
    True,
    False,
    7,
    b"",
    b"short",
    b"x" * 255,
    b"x" * 256,
    b"x" * 70_000,
    [b"a", None],
    {"k": 1.5},
]


def pipeline(*waiting: int) -> Pipeline:
    """Return a pipeline that waits for replies to these requests."""
    protocol = CallProtocol("cache.node.1", ANONYMOUS)
    protocol.decoder.admit = lambda header: None
    return Pipeline(protocol, dict.fromkeys(waiting))


def packed(sequence: int, result: Any) -> bytes:
    """Return the bytes of a reply."""
    reply = messages.pack_result(sequence, result)
    return reply if isinstance(reply, bytes) else b"".join(reply)


def received(tested: Pipeline, data: bytes, cuts: list[int]) -> list[tuple[int, Any]]:
    """Pass ``data`` to the pipeline as a driver does, in pieces that end at ``cuts``."""
    replies: list[tuple[int, Any]] = []
    begin = 0
    for end in [*sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]:
        piece = data[begin:end]
        while piece:
            space = tested.space()
            if space is None:
                replies += tested.receive_data(piece)
                break
            count = min(len(space), len(piece))
            space[:count] = piece[:count]
            replies += tested.received(count)
            piece = piece[count:]
        begin = end
    return [(sequence, bytes(r) if isinstance(r, memoryview) else r) for sequence, r in replies]


@given(
    st.lists(st.sampled_from(RESULTS), min_size=1, max_size=8), st.lists(st.integers(0, 150_000), max_size=12)
)
def test_replies_are_found_however_the_bytes_are_cut(results: list[Any], cuts: list[int]) -> None:
    expected = list(enumerate(results, start=1))
    data = b"".join(packed(sequence, result) for sequence, result in expected)
    assert received(pipeline(*range(1, 9)), data, cuts) == expected


@given(st.lists(st.integers(0, 400), max_size=6))
def test_a_refusal_among_replies_belongs_to_its_request(cuts: list[int]) -> None:
    body = pack_refusal(refusals.Refusal(refusals.OVERLOADED, "too much"))
    refusal = framing.pack_message(framing.RESULT, 2, body, framing.FLAG_EXCEPTION)
    data = packed(1, b"one") + refusal + packed(3, b"three")
    (first, refused, last) = received(pipeline(1, 2, 3), data, cuts)
    assert (first, last) == ((1, b"one"), (3, b"three"))
    assert refused[0] == 2
    assert isinstance(refused[1], Refused)
    assert refused[1].refusal.code == refusals.OVERLOADED


def test_a_sequence_number_that_is_in_use_is_not_given_again() -> None:
    tested = pipeline(1, 2, 4)
    numbers = [tested.send_call("get", (0, b"k"), 0, 0)[0] for _ in range(3)]
    assert numbers == [3, 5, 6]


def test_sequence_numbers_begin_again() -> None:
    tested = pipeline()
    numbers = [tested.send_call("get", (0, b"k"), 0, 0)[0] for _ in range(0x10001)]
    assert numbers[0xFFFE:] == [0xFFFF, 0, 1]


def test_a_long_reply_to_no_request_ends_the_connection() -> None:
    tested = pipeline(1)
    with pytest.raises(ProtocolError, match="no request"):
        received(tested, packed(9, b"x" * (LARGE_BYTES + 1)), [])


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64, packed(1, b"x")[:40] + b"\xc1" * 3]
)
def test_other_bytes_end_the_connection(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        received(pipeline(1), data, [])


def test_the_end_of_the_stream_is_an_error() -> None:
    with pytest.raises(ConnectionResetError):
        pipeline().receive_data(b"")


def test_the_header_of_each_long_reply_is_judged_before_its_body_is_kept() -> None:
    protocol = CallProtocol("cache.node.1", ANONYMOUS)

    def refuse(header: framing.Header) -> None:
        raise ProtocolError("too long")

    protocol.decoder.admit = refuse
    tested = Pipeline(protocol, {1: None, 2: None})
    data = packed(1, b"x") + packed(2, b"x" * 100_000)[:60]
    with pytest.raises(ProtocolError, match="too long"):
        tested.receive_data(data)
