"""Frames of values: what comes back, what is refused, and that garbage does no harm."""

from __future__ import annotations

import enum
import math
import pickle
import threading
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.client.codec import (
    canonical_pickle,
    canonical_unpickle,
    decode_value,
    encode_value,
    type_name,
)
from pyrocache.errors import CorruptValue, SerializationError

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


def _raise(error: type[BaseException]) -> None:
    raise error("the secret content")


@given(values)
def test_a_value_comes_back(value: object) -> None:
    assert repr(decode_value(encode_value(value))) == repr(value)


@given(simple)
def test_a_simple_value_comes_back_as_its_own_type_without_pickle(value: object) -> None:
    frame = encode_value(value)
    assert type(decode_value(frame)) is type(value)
    assert frame[1:2] != b"p"


@given(st.integers(min_value=0, max_value=4000), st.sampled_from([-1, 1]), st.integers(-1, 1))
def test_an_int_takes_as_few_bytes_as_it_can(bits: int, sign: int, step: int) -> None:
    value = sign * 2**bits + step
    frame = encode_value(value)
    assert decode_value(frame) == value
    if len(frame) > 3:  # an int takes at least one byte
        with pytest.raises(OverflowError):
            value.to_bytes(len(frame) - 3, "big", signed=True)


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
    again = decode_value(encode_value(value))
    assert again == value
    assert type(again) is type(value)


def test_identity_within_a_value_is_kept() -> None:
    shared: list[object] = []
    shared.append(shared)
    first, second = decode_value(encode_value((shared, shared)))  # type: ignore[misc]
    assert first is second is first[0]


def test_nan_and_signed_zero_are_kept() -> None:
    assert math.isnan(decode_value(encode_value(math.nan)))  # type: ignore[arg-type]
    assert math.copysign(1, decode_value(encode_value(-0.0))) == -1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "frame"),
    [
        (None, "014e"),
        (False, "0146"),
        (True, "0154"),
        (0, "016900"),
        (127, "01697f"),
        (128, "01690080"),
        (-128, "016980"),
        (-129, "0169ff7f"),
        (2**64, "0169010000000000000000"),
        (1.5, "01663ff8000000000000"),
        (b"", "0162"),
        (b"\0\xff", "016200ff"),
        ("", "0173"),
        ("é\ud800", "0173c3a9eda080"),
        ([], "017080055d942e"),
    ],
)
def test_the_format_stays_as_it_is(value: object, frame: str) -> None:
    assert encode_value(value).hex() == frame
    assert decode_value(bytes.fromhex(frame)) == value


def test_a_frame_may_be_a_memoryview() -> None:
    for value in (None, True, 5, 2.5, b"bytes", "text", {"a": [1]}):
        again = decode_value(memoryview(b"..." + encode_value(value))[3:])
        assert again == value
        assert type(again) is type(value)


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
    assert isinstance(caught.value.__cause__, Exception)


# Frames that are none.


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "0 bytes is too short"),
        (b"\1", "1 bytes is too short"),
        (b"\0N", "version 0"),
        (b"\2N", "version 2"),
        (b"\1\0", "kind 0"),
        (b"\1n", "kind 110"),
        (b"\1N\0", "None has 1 bytes too many"),
        (b"\1F\0\0", "False has 2 bytes too many"),
        (b"\1T\1", "True has 1 bytes too many"),
        (b"\1i", "int has no bytes"),
        (b"\1f", "float has 0 bytes"),
        (b"\1f" + bytes(7), "float has 7 bytes"),
        (b"\1f" + bytes(9), "float has 9 bytes"),
        (b"\1s\xff", "not UTF-8"),
        (b"\1s\xc3", "not UTF-8"),
    ],
)
def test_bytes_that_are_no_frame_are_refused(frame: bytes, message: str) -> None:
    for given_as in (frame, memoryview(frame)):
        with pytest.raises(CorruptValue, match=message):
            decode_value(given_as)


@pytest.mark.parametrize("payload", [b"", b".", b"garbage", pickle.dumps([1, 2, 3])[:-4], b"\x80\x7f."])
def test_a_broken_pickle_is_refused(payload: bytes) -> None:
    with pytest.raises(SerializationError, match=r"does not unpickle \("):
        decode_value(b"\1p" + payload)


@pytest.mark.parametrize("reference", [b"cno_such_module\nThing\n.", b"cmath\nNoSuchThing\n."])
def test_a_class_that_is_not_here_is_said_so(reference: bytes) -> None:
    with pytest.raises(SerializationError, match=r"class cannot be imported here \(\w+Error\)"):
        decode_value(b"\1p" + reference)


@pytest.mark.parametrize("error", [ValueError, KeyError, RecursionError, MemoryError, StopIteration])
def test_what_a_value_raises_when_unpickled_becomes_one_error(error: type[Exception]) -> None:
    with pytest.raises(SerializationError, match=f"{error.__name__}") as caught:
        decode_value(encode_value(RefusesToUnpickle(error)))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes(error: type[BaseException]) -> None:
    with pytest.raises(error):
        decode_value(encode_value(RefusesToUnpickle(error)))


def _no_memory_claims(frame: bytes) -> bytes:
    """Without the opcode that makes an unpickler's memo as large as it says: gigabytes, in a test."""
    return frame.replace(b"r", b"q")


kinds = st.sampled_from([b"N", b"F", b"T", b"i", b"f", b"b", b"s", b"p"])


@given(st.binary() | st.builds(lambda kind, rest: b"\1" + kind + rest, kinds, st.binary()))
def test_garbage_gives_a_value_or_one_of_two_errors(frame: bytes) -> None:
    try:
        decode_value(_no_memory_claims(frame))
    except SerializationError:  # CorruptValue is one
        pass


@given(values, st.data())
def test_damaged_frames_give_a_value_or_one_of_two_errors(value: object, data: st.DataObject) -> None:
    frame = bytearray(encode_value(value))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    try:
        decode_value(_no_memory_claims(bytes(frame[:cut])))
    except SerializationError:
        pass


# The two pickle calls for keys.


def test_canonical_pickle_does_not_see_identity() -> None:
    one, other = "".join(["ab", "cd"]), "".join(["abc", "d"])
    assert one is not other
    assert canonical_pickle([one, one], lambda part: None) == canonical_pickle(
        [one, other], lambda part: None
    )


def test_persistent_ids_stand_for_the_parts_they_were_given_for() -> None:
    seen = []

    def persistent_id(part: object) -> object | None:
        seen.append(part)
        return b"five" if part == 5 else None

    data = canonical_pickle([5, "x"], persistent_id)
    assert seen[:2] == [[5, "x"], 5]
    assert canonical_unpickle(data, lambda pid: (pid, "loaded")) == [(b"five", "loaded"), "x"]


def test_canonical_pickle_fails_on_what_contains_itself() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises((ValueError, RecursionError)):
        canonical_pickle(loop, lambda part: None)


def test_canonical_unpickle_takes_one_pickle_and_no_more() -> None:
    data = canonical_pickle("x", lambda part: None)
    with pytest.raises(pickle.UnpicklingError, match="left over"):
        canonical_unpickle(data + b".", lambda pid: pid)
