"""Frames of values: what comes back, what is refused, and that garbage does no harm."""

from __future__ import annotations

import enum
import hashlib
import io
import math
import operator
import pickle
import struct
import threading
import tracemalloc
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.client.codec import Codec
from pyrocache.client.pickling import canonical_pickle
from pyrocache.client.unpicklable import type_name
from pyrocache.client.unpickling import canonical_unpickle
from pyrocache.errors import CorruptValue, SerializationError
from pyrocache.protocol.limits import LARGE_BYTES
from pyrocache.protocol.messages import Pieces

CODEC = Codec()


def encode_value(value: Any) -> Any:
    return CODEC.encode(b"key", value)


def decode_value(frame: Any) -> Any:
    return CODEC.decode(b"key", frame)


def encode_values(values: Iterable[Any]) -> list[Any]:
    values = list(values)
    return CODEC.encode_many([b"key"] * len(values), values)


def decode_values(frames: Sequence[Any], missing: Any) -> list[Any]:
    return CODEC.decode_many([b"key"] * len(frames), frames, missing)


any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too
simple = st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | any_text
values = st.recursive(
    simple | st.datetimes() | st.decimals() | st.uuids(),
    lambda inner: st.lists(inner) | st.dictionaries(any_text, inner) | st.tuples(inner, inner),
)

Point = namedtuple("Point", "x y")


class Level(enum.IntEnum):
    LOW = 1


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Person:
    name: str
    tags: set[str] = field(default_factory=set)


class RefusesToPickle:
    def __reduce__(self) -> str:
        raise OSError("the secret content")


class RefusesToUnpickle:
    def __init__(self, error: type[BaseException] = ValueError) -> None:
        self.error = error

    def __reduce__(self) -> tuple[object, ...]:
        return (_raise, (self.error,))


def _frame(value: object) -> bytes:
    return bytes(encode_value(value))


def _raise(error: type[BaseException]) -> None:
    raise error("the secret content")


@given(values)
def test_a_value_comes_back(value: object) -> None:
    assert repr(decode_value(bytes(encode_value(value)))) == repr(value)


@given(simple)
def test_a_simple_value_comes_back_as_its_own_type_without_pickle(value: object) -> None:
    frame = bytes(encode_value(value))
    assert type(decode_value(frame)) is type(value)
    assert frame[0] != pickle.PROTO[0]


@given(st.integers(min_value=0, max_value=4000), st.sampled_from([-1, 1]), st.integers(-1, 1))
def test_an_int_takes_as_few_bytes_as_it_can(bits: int, sign: int, step: int) -> None:
    value = sign * 2**bits + step
    frame = encode_value(value)
    assert decode_value(bytes(frame)) == value
    if len(frame) > 2:  # an int takes at least one byte
        with pytest.raises(OverflowError):
            value.to_bytes(len(frame) - 2, "big", signed=True)


@pytest.mark.parametrize(
    "value",
    [
        Level.LOW,
        Colour.RED,
        Point(1, 2),
        OrderedDict(b=1, a=2),
        Person("Ada", {"x", "y"}),
        np.float64(1.5),
        np.str_("text"),
        datetime(2024, 2, 29, tzinfo=UTC),
        len,
        Person,
        [Person("Ada")] * 2,
        {1: {2: {3: (4, frozenset({5}))}}},
    ],
    ids=type_name,
)
def test_any_picklable_object_comes_back_as_what_it_was(value: object) -> None:
    again = decode_value(bytes(encode_value(value)))
    assert again == value
    assert type(again) is type(value)


def test_identity_within_a_value_is_kept() -> None:
    shared: list[object] = []
    shared.append(shared)
    first, second = decode_value(_frame((shared, shared)))  # type: ignore[misc]
    assert first is second is first[0]


def test_nan_and_signed_zero_are_kept() -> None:
    assert math.isnan(decode_value(_frame(math.nan)))  # type: ignore[arg-type]
    assert math.copysign(1, decode_value(_frame(-0.0))) == -1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "frame"),
    [
        (None, "6e"),
        (False, "6d"),
        (True, "79"),
        (0, "7700"),
        (127, "777f"),
        (128, "770080"),
        (-128, "7780"),
        (-129, "77ff7f"),
        (2**64, "77010000000000000000"),
        (1.5, "663ff8000000000000"),
        (b"", "7a"),
        (b"\0\xff", "7a00ff"),
        ("", "78"),
        ("é\ud800", "78c3a9eda080"),
        ([], "80055d942e"),
    ],
)
def test_the_format_stays_as_it_is(value: object, frame: str) -> None:
    assert bytes(encode_value(value)).hex() == frame
    assert decode_value(bytes.fromhex(frame)) == value
    assert [bytes(other).hex() for other in encode_values([value])] == [frame]


class Buffers:
    """Pickles as buffers, in this order; comes back as them. Nothing of numpy's, whose pickles may change."""

    def __init__(self, *buffers: Any) -> None:
        self.buffers = buffers

    def __reduce__(self) -> tuple[object, ...]:
        return (Buffers, tuple(map(pickle.PickleBuffer, self.buffers)))


def test_the_format_of_large_buffers_stays_as_it_is() -> None:
    large, small, larger = bytearray(b"\1" * 65_537), bytearray(b"\2" * 10), b"\3" * 70_000
    frame = bytes(encode_value(Buffers(large, small, larger)))
    assert frame[:16].hex() == "76" + "00" * 7 + "02000000" + frame[12:16].hex()
    pickled = int.from_bytes(frame[12:16], "little")
    assert [int.from_bytes(frame[at : at + 8], "little") for at in (16, 24)] == [65_537, 70_000]
    assert frame[32:34] == b"\x80\5"
    assert frame[32 + pickled - 1 :][:1] == b"."
    first = -(-(32 + pickled) // 64) * 64
    second = -(-(first + 65_537) // 64) * 64
    assert not any(frame[32 + pickled : first])
    assert frame[first : first + 65_537] == large
    assert not any(frame[first + 65_537 : second])
    assert frame[second:] == larger
    again = decode_value(frame)
    assert isinstance(again, Buffers)
    assert list(map(bytes, again.buffers)) == [large, small, larger]


SHARED: dict[str, Any] = {"a": [1]}

OF_ALL_KINDS: list[Any] = [
    None,
    True,
    False,
    5,
    -(2**70),
    2.5,
    b"",
    b"bytes",
    "text",
    "é\ud800",
    SHARED,
    [SHARED, SHARED],
    b"b" * LARGE_BYTES,
    "t" * LARGE_BYTES,
    ["x" * LARGE_BYTES, b"y" * LARGE_BYTES],
    10 ** (3 * LARGE_BYTES),
]


@pytest.mark.parametrize("value", OF_ALL_KINDS, ids=type_name)
def test_a_frame_may_be_bytes_or_a_memoryview(value: object) -> None:
    frame = bytes(encode_value(value))
    around = b"..." + frame + b"..."
    for given_as in (
        frame,
        memoryview(frame),
        memoryview(bytearray(frame)),
        memoryview(around)[3:-3],
        memoryview(bytearray(around))[3:-3],
    ):
        again = decode_value(given_as)
        assert again == value
        assert type(again) is type(value)


def test_what_came_back_is_not_changed_by_what_becomes_of_the_message() -> None:
    for value in (b"bytes", "text", [b"bytes", bytearray(b"bytes")], b"b" * LARGE_BYTES, "t" * LARGE_BYTES):
        message = bytearray(bytes(encode_value(value)))
        again = decode_value(memoryview(message))
        message[:] = bytes(len(message))
        assert again == value


# Large values.


@pytest.mark.parametrize("value", [b"", b"v", bytes(LARGE_BYTES - 2), "v", "t" * 1000, [1], None])
def test_a_small_frame_is_bytes(value: object) -> None:
    assert type(encode_value(value)) is bytes


@pytest.mark.parametrize(
    "value",
    [
        bytes(LARGE_BYTES),
        "t" * LARGE_BYTES,
        "é" * LARGE_BYTES,
        ["t" * LARGE_BYTES],
        {"a": bytes(LARGE_BYTES)},
        np.zeros(LARGE_BYTES, np.uint8),
    ],
    ids=type_name,
)
def test_a_large_frame_is_in_pieces(value: object) -> None:
    frame = encode_value(value)
    assert type(frame) is Pieces
    assert len(frame) == sum(map(len, frame.buffers)) == len(bytes(frame))
    assert b"".join(frame.buffers) == bytes(frame)


def test_large_bytes_and_arrays_are_not_copied_on_the_way_out() -> None:
    value = bytes(LARGE_BYTES)
    frame = encode_value(value)
    assert type(frame) is Pieces
    assert any(buffer is value for buffer in frame.buffers)
    array = np.zeros(LARGE_BYTES, np.uint8)
    frame = encode_value(array)
    assert type(frame) is Pieces
    array[:] = 7
    assert bytes(frame).count(7) >= LARGE_BYTES


def test_large_arrays_are_not_copied_on_the_way_back_if_the_message_may_be_written_to() -> None:
    message = bytearray(bytes(encode_value(np.zeros(LARGE_BYTES, np.uint8))))
    again: Any = decode_value(memoryview(message))
    message[-1] = 7
    assert again[-1] == 7


def aligned(frame: bytes, *, readonly: bool) -> memoryview:
    """``frame`` where a large value begins: a connection puts it at a multiple of 16."""
    room = np.zeros(len(frame) + 64, np.uint8)
    start = -room.ctypes.data % 64 + 16
    view = memoryview(room)[start : start + len(frame)]
    view[:] = frame
    return view.toreadonly() if readonly else view


def as_bytes(frame: bytes) -> bytes:
    return frame


def as_readonly_view(frame: bytes) -> memoryview:
    return aligned(frame, readonly=True)


def as_writable_view(frame: bytes) -> memoryview:
    return aligned(frame, readonly=False)


Carrier = Callable[[bytes], "bytes | memoryview"]
every_carrier = pytest.mark.parametrize("carrier", [as_bytes, as_readonly_view, as_writable_view])

MANY = 20_000

ARRAYS: dict[str, Any] = {
    "small": np.arange(10),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(1.5),
    "just below large": np.zeros(LARGE_BYTES - 1, np.uint8),
    "just large": np.ones(LARGE_BYTES, np.uint8),
    "float64": np.linspace(0, 1, MANY),
    "float16": np.linspace(0, 1, 5 * MANY, dtype=np.float16),
    "complex": np.arange(MANY) * 1j,
    "bool": np.arange(10 * MANY) % 2 == 0,
    "big-endian": np.arange(MANY, dtype=">i8"),
    "two dimensions": np.arange(MANY).reshape(100, -1),
    "three dimensions": np.arange(MANY).reshape(10, 20, -1),
    "Fortran": np.asfortranarray(np.arange(MANY).reshape(100, -1)),
    "transposed": np.arange(MANY).reshape(10, 20, -1).T,
    "every other one": np.arange(2 * MANY)[::2],
    "reversed": np.arange(MANY)[::-1],
    "columns": np.arange(2 * MANY).reshape(100, -1)[:, 3:200],
    "broadcast": np.broadcast_to(np.arange(1000), (100, 1000)),
    "structured": np.zeros(MANY, [("number", "i4"), ("name", "S3")]),
    "text": np.array(["text", "é"] * MANY),
    "dates": np.arange(MANY).astype("M8[s]"),
    "spans": np.arange(MANY).astype("m8[ms]"),
    "objects": np.array([None, 1, "x"] * MANY, object),
}


@every_carrier
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_writable_and_aligned(name: str, carrier: Carrier) -> None:
    array = ARRAYS[name]
    again: Any = decode_value(carrier(bytes(encode_value(array))))
    assert type(again) is np.ndarray
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert np.array_equal(again, array)
    assert again.flags.writeable
    assert again.flags.aligned
    if array.flags.f_contiguous and array.ndim > 1:
        assert again.flags.f_contiguous
    if again.size:
        again[...] = again.flat[0]


@every_carrier
@pytest.mark.parametrize("size", [10, LARGE_BYTES])
def test_an_array_that_was_read_only_stays_so(size: int, carrier: Carrier) -> None:
    array = np.arange(size)
    array.flags.writeable = False
    again: Any = decode_value(carrier(bytes(encode_value(array))))
    assert np.array_equal(again, array)
    assert not again.flags.writeable


@dataclass
class Table:
    """Like a DataFrame: blocks of columns, an index, and small things."""

    blocks: list[Any]
    index: Any
    columns: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@every_carrier
def test_arrays_within_a_value_come_back_each_by_itself(carrier: Carrier) -> None:
    numbers = np.arange(6 * MANY, dtype=float).reshape(3, -1)
    index = np.arange(2 * MANY, dtype=np.int32)
    index.flags.writeable = False
    table = Table(
        [numbers, np.asfortranarray(numbers.T), ARRAYS["every other one"], np.arange(5), ARRAYS["objects"]],
        index,
        ("a", "b", "c"),
        {"again": numbers, "bytes": b"b" * LARGE_BYTES, "bytearray": bytearray(MANY), "empty": np.zeros(0)},
    )
    frame = bytes(encode_value(table))
    assert len(frame) < 2 * numbers.nbytes + index.nbytes + 8 * MANY + LARGE_BYTES + 500_000
    again: Any = decode_value(carrier(frame))
    assert type(again) is Table
    for one, other in zip(again.blocks, table.blocks, strict=True):
        assert np.array_equal(one, other)
        assert one.flags.writeable
    assert np.array_equal(again.index, index)
    assert not again.index.flags.writeable
    assert again.columns == table.columns
    assert again.attributes["again"] is again.blocks[0], "identity within a value is kept"
    assert again.attributes["bytes"] == table.attributes["bytes"]
    assert again.attributes["bytearray"] == table.attributes["bytearray"]
    again.blocks[0][:] = 0
    assert np.array_equal(again.blocks[1], numbers.T), "no two share memory that did not before"


@every_carrier
def test_a_large_array_of_a_subclass_comes_back_as_one(carrier: Carrier) -> None:
    masked = np.ma.masked_array(np.arange(MANY), np.arange(MANY) % 3 == 0)
    again: Any = decode_value(carrier(bytes(encode_value(masked))))
    assert type(again) is type(masked)
    assert again.sum() == masked.sum()


@every_carrier
@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 63, 64, 65, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1]), max_size=6
    )
)
def test_any_buffers_come_back_in_their_order(carrier: Carrier, sizes: list[int]) -> None:
    buffers = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    again = decode_value(carrier(bytes(encode_value(Buffers(*buffers)))))
    assert isinstance(again, Buffers)
    assert list(map(bytes, again.buffers)) == buffers


def test_a_value_that_fails_to_pickle_after_its_large_buffers_is_refused() -> None:
    for value in ([np.zeros(LARGE_BYTES), RefusesToPickle()], [RefusesToPickle(), np.zeros(LARGE_BYTES)]):
        with pytest.raises(SerializationError, match="type list ") as caught:
            encode_value(value)
        assert "secret" not in str(caught.value)


# Many at once.


def outcome(of: Callable[[], Any]) -> tuple[str, str]:
    """What a call returns, or how it fails."""
    try:
        returned = of()
    except SerializationError as error:
        return type(error).__name__, str(error)
    return "", repr([bytes(frame) if isinstance(frame, Pieces) else frame for frame in returned])


large_values = st.sampled_from(
    [b"b" * LARGE_BYTES, "t" * LARGE_BYTES, ["t" * LARGE_BYTES], Buffers(bytes(LARGE_BYTES))]
)
unpicklable = st.sampled_from([threading.Lock(), RefusesToPickle(), [RefusesToPickle()]])
of_values = st.lists(values, max_size=6)
pickled = st.lists(st.lists(st.integers(), max_size=3), max_size=6)  # none of a simple kind
with_large_ones = st.lists(simple | st.lists(st.integers()) | large_values, max_size=4)
with_bad_ones = st.lists(
    st.lists(st.integers(), max_size=3) | unpicklable | simple | large_values, max_size=5
)


@given(of_values | pickled | with_large_ones | with_bad_ones)
def test_many_values_are_encoded_as_each_would_be(several: list[Any]) -> None:
    expected = outcome(lambda: [encode_value(value) for value in several])
    assert outcome(lambda: encode_values(several)) == expected
    assert outcome(lambda: encode_values(value for value in several)) == expected
    assert outcome(lambda: encode_values(dict(enumerate(several)).values())) == expected


@given(with_large_ones)
def test_many_values_are_in_pieces_when_each_would_be(several: list[Any]) -> None:
    assert list(map(type, encode_values(several))) == [type(encode_value(value)) for value in several]


frames = values.map(lambda value: bytes(encode_value(value)))
pickles = st.lists(st.integers(), max_size=3).map(lambda value: bytes(encode_value(value)))
bad_frames = st.sampled_from(
    [
        b"",
        b"n.",
        b"w",
        b"?",
        b"f",
        b"x\xff",
        b"v",
        b"v" + bytes(15),
        b"N.",
        b"I1\n.",
        b"]q\0.",
        b".",
        pickle.dumps([1], 0),
        pickle.dumps([1], 1),
        pickle.dumps([1], 2),
        pickle.dumps([1])[:-3],
        pickle.dumps([1]) + b"more",
        b"\x80\5cno_such_module\nThing\n.",
        bytes(encode_value(RefusesToUnpickle(KeyError))),
    ]
)
not_bytes = st.sampled_from([7, "text", [b"n"], -1.5, True])


def as_views(several: list[Any]) -> list[Any]:
    return [memoryview(frame) if isinstance(frame, bytes) else frame for frame in several]


@given(
    st.lists(frames | st.none()) | st.lists(pickles) | st.lists(pickles | st.none() | bad_frames | not_bytes)
)
def test_many_frames_are_decoded_as_each_would_be(several: list[Any]) -> None:
    missing = object()

    def one(frame: Any) -> Any:
        return missing if frame is None else decode_value(frame)

    for given_as in (several, as_views(several)):
        expected = outcome(lambda given_as=given_as: list(map(one, given_as)))
        assert outcome(lambda given_as=given_as: decode_values(given_as, missing)) == expected


@given(bad_frames | not_bytes)
def test_a_frame_that_is_none_is_refused_among_good_ones(bad: Any) -> None:
    good = bytes(encode_value([1]))
    expected = outcome(lambda: [decode_value(bad)])
    if expected[0]:
        for several in ([bad], [good, bad], [bad, good], [None, bad], [good, bad, None, good]):
            assert outcome(lambda several=several: decode_values(several, None)) == expected


def test_a_miss_is_what_the_caller_says() -> None:
    missing = object()
    assert decode_values([None, b"n", None, b"\x80\5]."], missing) == [missing, None, missing, []]
    assert decode_values([], missing) == []
    assert encode_values([]) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes_among_many(error: type[BaseException]) -> None:
    with pytest.raises(error):
        decode_values([bytes(encode_value(RefusesToUnpickle(error)))] * 2, None)


# Values that do not pickle.


class _Local:
    """Stands for a class that cannot be found by its name."""


_Local.__qualname__ = "nowhere"


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda: None, "type function "),
        (threading.Lock(), "type _thread.lock "),
        ((x for x in "x"), "type generator "),
        (RefusesToPickle(), f"type {__name__}.RefusesToPickle "),
        (_Local(), f"type {__name__}.nowhere "),
        ([threading.Lock()], "type list "),
        (nested(100_000), "type list "),
    ],
    ids=["lambda", "lock", "generator", "own reduce", "unimportable class", "inside a list", "too deep"],
)
def test_a_value_that_does_not_pickle_is_refused(value: object, named: str) -> None:
    with pytest.raises(SerializationError, match="does not pickle") as caught:
        encode_value(value)
    assert named in str(caught.value)
    assert "secret" not in str(caught.value)
    assert (caught.value.__cause__ is not None) == isinstance(value, RefusesToPickle)


# Frames that are none.


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "empty"),
        (b"\0", "kind 0"),
        (b"\1N", "kind 1"),
        (b"N", "kind 78"),
        (b"N.", "kind 78"),
        (b"]q\0.", "kind 93"),
        (b"\x81", "kind 129"),
        (b"n\0", "None has 1 bytes too many"),
        (b"m\0\0", "False has 2 bytes too many"),
        (b"y\1", "True has 1 bytes too many"),
        (b"w", "int has no bytes"),
        (b"f", "float has 0 bytes"),
        (b"f" + bytes(7), "float has 7 bytes"),
        (b"f" + bytes(9), "float has 9 bytes"),
        (b"x\xff", "not UTF-8"),
        (b"x\xc3", "not UTF-8"),
        (b"v", "no whole head"),
        (b"v" + bytes(14), "no whole head"),
        (b"v" + bytes(7) + b"\1\0\0\0" + b"\1\0\0\0" + bytes(7), "no whole head"),
        (b"v" + bytes(7) + b"\xff" * 8 + bytes(100), "no whole head"),
        (b"v" + bytes(15) + b".", "not as long as it says"),
        (b"v" + bytes(11) + b"\5\0\0\0" + b"\x80\5N", "not as long as it says"),
        (b"v" + bytes(7) + b"\1\0\0\0\2\0\0\0" + b"\xff" * 8 + b"N.", "not as long as it says"),
    ],
)
def test_bytes_that_are_no_frame_are_refused(frame: bytes, message: str) -> None:
    for given_as in (frame, memoryview(frame), memoryview(bytearray(frame))):
        with pytest.raises(CorruptValue, match=message):
            decode_value(given_as)
        with pytest.raises(CorruptValue, match=message):
            decode_values([given_as], None)


@pytest.mark.parametrize("other", [None, 7, "text", 1.5, [b"n"], True], ids=repr)
def test_what_is_not_even_bytes_is_refused(other: Any) -> None:
    with pytest.raises(CorruptValue, match="not bytes"):
        decode_value(other)


def out_of_band(pickled: bytes, *buffers: bytes) -> bytes:
    """A frame of kind v, made by hand."""
    frame = struct.pack("<c7xII", b"v", len(buffers), len(pickled))
    frame += struct.pack(f"<{len(buffers)}Q", *map(len, buffers)) + pickled
    for buffer in buffers:
        frame += bytes(-len(frame) % 64) + buffer
    return frame


@pytest.mark.parametrize(
    "frame",
    [
        out_of_band(b""),
        out_of_band(b"\x80\5"),
        out_of_band(b"garbage"),
        out_of_band(b"\x80\5\x97."),  # asks for a buffer, and there is none
        out_of_band(b"cno_such_module\nThing\n."),
        out_of_band(pickle.dumps(RefusesToUnpickle(MemoryError))),
    ],
)
def test_a_broken_pickle_with_buffers_is_refused(frame: bytes) -> None:
    for given_as in (frame, memoryview(frame), memoryview(bytearray(frame))):
        with pytest.raises(SerializationError) as caught:
            decode_value(given_as)
        assert "secret" not in str(caught.value)


def test_a_pickle_with_buffers_made_by_hand_is_read() -> None:
    assert decode_value(out_of_band(b"\x80\5\x97.", b"buffer")) == b"buffer"
    assert decode_value(out_of_band(b"\x80\5N.")) is None


LARGE_FRAME = bytes(
    encode_value([np.arange(LARGE_BYTES // 8), "between", np.zeros(LARGE_BYTES + 3, np.uint8)])
)
HEAD_OF_LARGE_FRAME = 32 + int.from_bytes(LARGE_FRAME[12:16], "little")


def check_large_frame(frame: bytes) -> None:
    for given_as in (frame, memoryview(frame), memoryview(bytearray(frame))):
        try:
            decode_value(given_as)
        except SerializationError:  # CorruptValue is one
            pass


@given(st.integers(0, HEAD_OF_LARGE_FRAME) | st.integers(0, len(LARGE_FRAME) - 1))
def test_a_large_frame_that_is_cut_is_corrupt(cut: int) -> None:
    for given_as in (
        LARGE_FRAME[:cut],
        memoryview(LARGE_FRAME)[:cut],
        memoryview(bytearray(LARGE_FRAME))[:cut],
    ):
        with pytest.raises(CorruptValue):
            decode_value(given_as)
    with pytest.raises(CorruptValue):
        decode_value(LARGE_FRAME + bytes(cut % 100 + 1))


@given(st.lists(st.tuples(st.integers(0, HEAD_OF_LARGE_FRAME), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_large_frame_that_is_damaged_gives_a_value_or_one_of_two_errors(
    damage: list[tuple[int, int]],
) -> None:
    frame = bytearray(LARGE_FRAME)
    for at, byte in damage:
        frame[at] = byte
    check_large_frame(
        _no_memory_claims(bytes(frame[: HEAD_OF_LARGE_FRAME + 1])) + frame[HEAD_OF_LARGE_FRAME + 1 :]
    )


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 2**64 - 1), max_size=4),
    st.binary(),
)
def test_a_head_that_claims_anything_costs_nothing(
    count: int, length: int, sizes: list[int], rest: bytes
) -> None:
    frame = struct.pack("<c7xII", b"v", count, length) + struct.pack(f"<{len(sizes)}Q", *sizes) + rest
    tracemalloc.start()
    try:
        check_large_frame(_no_memory_claims(frame))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("payload", [b"", b".", b"\5", b"\5.", pickle.dumps([1, 2, 3])[1:-4], b"\x7f."])
def test_a_broken_pickle_is_refused(payload: bytes) -> None:
    with pytest.raises(SerializationError, match=r"does not unpickle \("):
        decode_value(b"\x80" + payload)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (b"cno_such_module\nThing\n.", "there is no module no_such_module"),
        (b"cmath\nNoSuchThing\n.", "there is no class math.NoSuchThing"),
        (b"c__main__\nNoSuchThing\n.", "there is no class .*__main__.NoSuchThing; define it in a module"),
    ],
)
def test_a_class_that_is_not_here_is_named(reference: bytes, reason: str) -> None:
    for frame in (b"\x80\5" + reference, out_of_band(reference)):
        with pytest.raises(SerializationError, match=f"cannot be imported here.*{reason}"):
            decode_value(frame)


@pytest.mark.parametrize("error", [ValueError, KeyError, RecursionError, MemoryError, StopIteration])
def test_what_a_value_raises_when_unpickled_becomes_one_error(error: type[Exception]) -> None:
    with pytest.raises(SerializationError, match=f"{error.__name__}") as caught:
        decode_value(_frame(RefusesToUnpickle(error)))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes(error: type[BaseException]) -> None:
    with pytest.raises(error):
        decode_value(_frame(RefusesToUnpickle(error)))


def _no_memory_claims(frame: bytes) -> bytes:
    """Without the opcode that makes an unpickler's memo as large as it says: gigabytes, in a test."""
    return frame.replace(b"r", b"q")


kinds = st.sampled_from([b"n", b"m", b"y", b"w", b"f", b"z", b"x", b"v", b"\x80", b"\x80\5"])


@given(st.binary() | st.builds(operator.add, kinds, st.binary()))
def test_garbage_gives_a_value_or_one_of_two_errors(frame: bytes) -> None:
    try:
        decode_value(_no_memory_claims(frame))
    except SerializationError:  # CorruptValue is one
        pass


@given(values, st.data())
def test_damaged_frames_give_a_value_or_one_of_two_errors(value: object, data: st.DataObject) -> None:
    frame = bytearray(bytes(encode_value(value)))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    try:
        decode_value(_no_memory_claims(bytes(frame[:cut])))
    except SerializationError:
        pass


# The two pickle calls for keys.


def canonical(obj: object, persistent_id: Callable[[object], object | None] = lambda part: None) -> bytes:
    file = io.BytesIO()
    canonical_pickle(obj, persistent_id, file)
    return file.getvalue()


def test_canonical_pickle_does_not_see_identity() -> None:
    one, other = "".join(["ab", "cd"]), "".join(["abc", "d"])
    assert one is not other
    assert canonical([one, one]) == canonical([one, other])


def test_persistent_ids_stand_for_the_parts_they_were_given_for() -> None:
    seen = []

    def persistent_id(part: object) -> object | None:
        seen.append(part)
        return b"five" if part == 5 else None

    data = canonical([5, "x"], persistent_id)
    assert seen[:2] == [[5, "x"], 5]
    assert canonical_unpickle(data, lambda pid: (pid, "loaded")) == [(b"five", "loaded"), "x"]


def test_canonical_pickle_fails_on_what_contains_itself() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises((ValueError, RecursionError)):
        canonical(loop)


def test_canonical_unpickle_takes_one_pickle_and_no_more() -> None:
    with pytest.raises(pickle.UnpicklingError, match="left over"):
        canonical_unpickle(canonical("x") + b".", lambda pid: pid)


# A codec that needs the key.


class SigningCodec:
    """Binds each frame to its key, by wrapping the plain codec."""

    def __init__(self, secret: bytes) -> None:
        self._plain, self._secret = Codec(), secret

    def encode(self, key: bytes, value: object) -> bytes:
        frame = bytes(self._plain.encode(key, value))
        return self._signature(key, frame) + frame

    def decode(self, key: bytes, frame: bytes) -> object:
        if frame[:32] != self._signature(key, frame[32:]):
            raise CorruptValue("a stored value is not signed for its key")
        return self._plain.decode(key, frame[32:])

    def _signature(self, key: bytes, frame: bytes) -> bytes:
        return hashlib.blake2b(len(key).to_bytes(4) + key + frame, key=self._secret, digest_size=32).digest()


def test_a_codec_that_signs_can_wrap_the_plain_one() -> None:
    codec = SigningCodec(b"secret")
    frame = codec.encode(b"key", [1, "x"])
    assert codec.decode(b"key", frame) == [1, "x"]
    with pytest.raises(CorruptValue):
        codec.decode(b"other key", frame)


def test_the_key_makes_no_difference_to_the_plain_codec() -> None:
    frames = [CODEC.encode(key, [1]) for key in (b"", b"key")]
    assert frames[0] == frames[1]
    assert [CODEC.decode(key, frames[0]) for key in (b"", b"key")] == [[1], [1]]


class CountsItsPickling:
    """Raises what a signal handler might, the third time that it is pickled or made again."""

    calls = 0

    def __reduce__(self) -> tuple[object, ...]:
        type(self)._count()
        return (_made_again, ())

    @classmethod
    def _count(cls) -> None:
        cls.calls += 1
        if cls.calls == 3:
            raise InterruptedError("from a handler")


def _made_again() -> CountsItsPickling:
    CountsItsPickling._count()
    return CountsItsPickling()


def test_what_is_raised_in_the_midst_of_many_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountsItsPickling, "calls", 0)
    with pytest.raises(SerializationError, match="InterruptedError"):
        encode_values([CountsItsPickling() for _ in range(5)])
    monkeypatch.setattr(CountsItsPickling, "calls", 10)
    frames = encode_values([CountsItsPickling() for _ in range(5)])
    monkeypatch.setattr(CountsItsPickling, "calls", 0)
    with pytest.raises(SerializationError, match="InterruptedError"):
        decode_values(frames, None)
