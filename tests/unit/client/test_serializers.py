"""Codecs other than the default one: what they carry, what they refuse, and what they read of each other."""

from __future__ import annotations

import math
import pickle
import struct
import tracemalloc
import zlib
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.client.codec import Codec
from pyrocache.client.keys.encoding import decode_key, encode_key
from pyrocache.errors import CorruptValue, SerializationError
from pyrocache.protocol.int_frame import unpack_int
from pyrocache.protocol.limits import LARGE_BYTES
from pyrocache.protocol.messages import Pieces


@dataclass
class Person:
    name: str


@dataclass(frozen=True)
class Place:
    name: str


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


class Thing:
    """An object of kind P as a key."""

    def __init__(self, name: str) -> None:
        self.name = name


Point = namedtuple("Point", "x y")


class Reversed:
    """A codec of a user's: texts, backwards."""

    def dumps(self, obj: Any) -> bytes:
        return repr(obj)[::-1].encode()

    def loads(self, data: bytes) -> Any:
        assert type(data) is bytes
        return eval(data.decode()[::-1])


class Named(Reversed):
    name = "mine"


def by_user() -> Codec:
    return Codec(user=Reversed())


CODECS: dict[str, Callable[[], Codec]] = {
    "pickle": Codec,
    "allowed": lambda: Codec(allowed_classes=()),
    "msgpack": lambda: Codec("msgpack"),
    "json": lambda: Codec("json"),
    "user": by_user,
    "compressed": lambda: Codec(compress_above=0),
    "compressed msgpack": lambda: Codec("msgpack", compress_above=0),
    "compressed user": lambda: Codec(user=Reversed(), compress_above=10),
}


def frame_of(codec: Codec, value: object) -> bytes:
    return bytes(codec.encode(b"key", value))  # type: ignore[call-overload, no-any-return]


def again(codec: Codec, value: object) -> object:
    """What comes back, of one value and of many, of bytes and of memory."""
    frame = frame_of(codec, value)
    found = codec.decode(b"key", frame)
    assert repr(codec.decode(b"key", memoryview(bytearray(frame)))) == repr(found)
    frames = codec.encode_many([b"a", b"b"], [value, value])
    assert [bytes(one) for one in frames] == [frame] * 2  # type: ignore[call-overload]
    assert repr(codec.decode_many([b"a", b"b", b"c"], [frame, None, frame], "none")) == repr(
        [found, "none", found]
    )
    assert repr(codec.decode_many([b"a"], [frame], "none")) == repr([found])
    return found


any_text = st.text(st.characters(exclude_categories=()))
plain_scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | any_text
plain = st.recursive(
    plain_scalars, lambda inner: st.lists(inner) | st.dictionaries(any_text, inner), max_leaves=20
)


@pytest.mark.parametrize("name", CODECS)
@given(value=plain)
def test_plain_values_come_back_as_they_were(name: str, value: object) -> None:
    if name.endswith("user") and ("nan" in repr(value) or "inf" in repr(value)):
        return  # eval knows neither
    assert repr(again(CODECS[name](), value)) == repr(value)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("number", [0, 1, -1, 2**70, -(10**2000)])
def test_ints_are_always_what_nodes_can_add_to(name: str, number: int) -> None:
    codec = CODECS[name]()
    assert unpack_int(frame_of(codec, number)) == number
    assert again(codec, number) == number


@pytest.mark.parametrize("name", ["msgpack", "json", "compressed msgpack"])
@pytest.mark.parametrize(
    "value", [b"", b"\0\xff" * 5, b"b" * LARGE_BYTES, "t" * LARGE_BYTES, math.nan, 2**100, None]
)
def test_simple_values_are_of_any_size(name: str, value: Any) -> None:
    assert repr(again(CODECS[name](), value)) == repr(value)


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        ((1, 2), "tuple"),
        ([1, (2,)], "tuple"),
        ({"a": {"b": [{1}]}}, "set"),
        ({1: "a"}, "keys of type int"),
        ({("a",): 1}, "keys of type tuple"),
        ([b"bytes"], "bytes"),
        ([bytearray(b"x")], "bytearray"),
        (bytearray(b"x"), "bytearray"),
        (memoryview(b"x"), "memoryview"),
        ([2**64], "more than 64 bits"),
        (Level.LOW, "Level"),
        ([Level.LOW], "Level"),
        (Point(1, 2), "Point"),
        (OrderedDict(a=1), "OrderedDict"),
        ([np.float64(1.5)], "float64"),
        (np.arange(3), "ndarray"),
        (date(2024, 1, 1), "date"),
        ([Decimal(1)], "Decimal"),
        (1j, "complex"),
        (Person("Ada"), "Person"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_would_come_back_as_something_else_is_refused(value: object, refused: str) -> None:
    carried = {"json": [[2**64]], "msgpack": [[b"bytes"], {1: "a"}]}
    for name in ("json", "msgpack"):
        codec = Codec(name)
        if repr(value) in map(repr, carried[name]):
            assert again(codec, value) == value
            continue
        for encode in (lambda: codec.encode(b"", value), lambda: codec.encode_many([b""], [value])):  # noqa: B023
            with pytest.raises(SerializationError, match=refused) as caught:
                encode()
            assert f'serializer="{name}"' in str(caught.value)
            assert "Ada" not in str(caught.value)


@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_a_value_that_contains_itself_or_is_very_deep_is_refused(name: str) -> None:
    loop: list[object] = []
    loop.append(loop)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(SerializationError):
            Codec(name).encode(b"", value)


@pytest.mark.parametrize(
    ("name", "value", "frame"),
    [
        ("msgpack", [1, "é"], b"k\x92\x01\xa2\xc3\xa9"),
        ("msgpack", {"a": b"b"}, b"k\x81\xa1a\xc4\x01b"),
        ("json", [1, "é", None], b'j[1,"\xc3\xa9",null]'),
        ("json", {"a": 1.5}, b'j{"a":1.5}'),
        ("user", [1], b"u\x08Reversed]1["),
        ("user", "text", b"u\x08Reversed'txet'"),
    ],
)
def test_the_formats_stay_as_they_are(name: str, value: object, frame: bytes) -> None:
    codec = CODECS[name]()
    assert frame_of(codec, value) == frame
    assert codec.decode(b"", frame) == value


# Clients of other serializers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["pickle", "allowed", "msgpack", "json", "user"])
@pytest.mark.parametrize("writer", ["pickle", "out of band", "msgpack", "json", "user", "named", "simple"])
def test_a_frame_of_another_serializer_is_refused_by_its_name(writer: str, reader: str) -> None:
    value: Any = [1, "x"]
    codec = Codec(user=Named()) if writer == "named" else CODECS.get(writer, Codec)()
    if writer == "out of band":
        value = [np.zeros(LARGE_BYTES)]
    if writer == "simple":
        value = "simple"
    titles = {
        "out of band": 'serializer="pickle"',
        "user": "codec 'Reversed'",
        "named": "codec 'mine'",
        "simple": "without a codec",
    }
    frame = frame_of(codec, value)
    other = CODECS[reader]()
    readable = writer == reader or (writer == "simple" and reader != "user")
    if readable or (reader in ("pickle", "allowed") and writer in ("pickle", "out of band")):
        return
    for bad in (frame, memoryview(frame)):
        with pytest.raises(SerializationError) as caught:
            other.decode(b"", bad)
        assert not isinstance(caught.value, CorruptValue)
        assert titles.get(writer, f'serializer="{writer}"') in str(caught.value)
        with pytest.raises(SerializationError):
            other.decode_many([b"", b""], [bad, bad], None)


class RunsCode:
    ran: list[object] = []  # noqa: RUF012

    def __reduce__(self) -> tuple[object, ...]:
        return (_run, ("ran",))


def _run(what: object) -> None:
    RunsCode.ran.append(what)


@pytest.mark.parametrize("name", ["msgpack", "json", "user", "allowed"])
def test_no_code_of_a_pickle_is_run(name: str) -> None:
    frame = pickle.dumps(RunsCode(), 5)
    RunsCode.ran.clear()
    codec = CODECS[name]()
    for bad in (frame, b"v" + bytes(7) + struct.pack("<II", 0, len(frame)) + frame):
        with pytest.raises(SerializationError):
            codec.decode(b"", bad)
        with pytest.raises(SerializationError):
            codec.decode_many([b""], [bad], None)
        squeezed = b"d" + struct.pack("<Q", len(bad)) + zlib.compress(bad)
        with pytest.raises(SerializationError):
            codec.decode(b"", squeezed)
    assert not RunsCode.ran
    Codec().decode(b"", frame)
    assert RunsCode.ran == ["ran"]


@pytest.mark.parametrize("kind", [b"k", b"j", b"u\x08Reversed", b"u", b"u\xff", b"u\3"])
@given(rest=st.binary())
def test_garbage_gives_a_value_or_an_error(kind: bytes, rest: bytes) -> None:
    for name in ("msgpack", "json", "pickle"):
        try:
            CODECS[name]().decode(b"", kind + rest)
        except SerializationError:
            pass


# A user's codec ------------------------------------------------------------------------------------------------


def test_a_users_codec_gets_every_value_but_ints() -> None:
    codec = by_user()
    for value in (None, True, 1.5, "text", b"bytes", (1, 2), {1: {2, 3}}):
        assert frame_of(codec, value)[:1] == b"u"
        assert again(codec, value) == value
    assert frame_of(codec, 5)[:1] == b"w"


class Broken:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def dumps(self, obj: Any) -> bytes:
        raise self.error

    def loads(self, data: bytes) -> Any:
        raise self.error


def test_what_a_users_codec_raises_is_the_cause_of_an_error() -> None:
    cause = ValueError("the secret content")
    codec = Codec(user=Broken(cause))
    for call in (lambda: codec.encode(b"", "x"), lambda: codec.decode(b"", b"u\6Broken")):
        with pytest.raises(SerializationError, match=r"codec 'Broken'.*ValueError") as caught:
            call()
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is cause
    interrupted = Codec(user=Broken(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        interrupted.encode(b"", "x")


def test_a_users_codec_must_return_bytes() -> None:
    class Text(Reversed):
        def dumps(self, obj: Any) -> Any:
            return "text"

    with pytest.raises(SerializationError, match="returned str instead of bytes"):
        Codec(user=Text()).encode(b"", "x")


# Allowed classes -----------------------------------------------------------------------------------------------

HERE = __name__


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, (2.5, {"a": {1, 2}}, frozenset("x"))],
        bytearray(b"x"),
        1 + 2j,
        range(5),
        slice(1, 2),
        Ellipsis,
    ],
    ids=repr,
)
def test_builtin_values_are_always_allowed(value: object) -> None:
    assert again(Codec(allowed_classes=()), value) == value


def test_only_allowed_classes_are_loaded() -> None:
    frame = frame_of(Codec(), [Person("Ada")])
    allowed = Codec(allowed_classes=[f"{HERE}.Person"])
    assert allowed.decode(b"", frame) == [Person("Ada")]
    assert allowed.decode_many([b""], [frame], None) == [[Person("Ada")]]
    assert again(allowed, Person("Ada")) == Person("Ada")
    for codec in (Codec(allowed_classes=()), Codec(allowed_classes=[f"{HERE}.Place"])):
        with pytest.raises(SerializationError, match=rf"{HERE}\.Person.*allowed_classes") as caught:
            codec.decode(b"", frame)
        assert "Ada" not in str(caught.value)
        with pytest.raises(SerializationError, match="Person"):
            codec.decode_many([b""], [frame], None)


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("builtins", "getattr"), ("builtins", "list")],
)
def test_what_runs_code_is_not_among_the_builtins(module: str, name: str) -> None:
    with pytest.raises(SerializationError, match=f"{module}.{name}"):
        Codec(allowed_classes=()).decode(b"", b"\x80\5c" + f"{module}\n{name}\n".encode() + b".")


def test_arrays_need_the_functions_that_make_them() -> None:
    small, large = np.arange(5), np.zeros(LARGE_BYTES)
    names: list[str] = []
    for value in (small, large):
        while True:
            try:
                found: Any = Codec(allowed_classes=names).decode(b"", frame_of(Codec(), value))
                break
            except SerializationError as error:
                names.append(str(error).split()[0])
        assert np.array_equal(found, value)
        found[0] = 1  # it is writable
    assert all(name.startswith("numpy.") for name in names)


def test_an_allowed_class_that_fails_says_so() -> None:
    frame = b"\x80\5c" + f"{HERE}\nMissing\n".encode() + b"."
    with pytest.raises(SerializationError, match="cannot be imported"):
        Codec(allowed_classes=[f"{HERE}.Missing"]).decode(b"", frame)
    with pytest.raises(SerializationError, match="unpickle"):
        Codec(allowed_classes=()).decode(b"", b"\x80\5garbage")


@pytest.mark.parametrize("key", [Colour.RED, Place("here"), Thing("it"), ("a", Place("here")), [Thing("it")]])
def test_keys_are_loaded_of_allowed_classes_only(key: object) -> None:
    data = encode_key(key)
    names = [f"{HERE}.{cls}" for cls in ("Colour", "Place", "Thing")]
    assert encode_key(decode_key(data)) == data
    assert encode_key(decode_key(data, Codec(allowed_classes=names))) == data
    for codec in (Codec(allowed_classes=()), Codec("msgpack"), Codec("json"), by_user()):
        with pytest.raises(SerializationError):
            decode_key(data, codec)
    pickled = "Thing" in repr(key)
    without_pickle = Codec("json", allowed_classes=names)
    if pickled:
        with pytest.raises(SerializationError, match="does not unpickle"):
            decode_key(data, without_pickle)
    else:
        assert decode_key(data, without_pickle) == key


def test_plain_keys_are_loaded_by_every_codec() -> None:
    key = ("a", 1, 2.5, None, frozenset({b"x"}), date(2024, 1, 1), PurePosixPath("/a"), Decimal("0.1"))
    for make in CODECS.values():
        assert decode_key(encode_key(key), make()) == decode_key(encode_key(key))


# Compression ---------------------------------------------------------------------------------------------------


def test_only_frames_above_the_size_are_compressed() -> None:
    codec = Codec(compress_above=100)
    assert frame_of(codec, "x" * 99)[:1] == b"x"
    assert frame_of(codec, "x" * 100)[:1] == b"d"
    assert len(frame_of(codec, "x" * 100_000)) < 1000


@pytest.mark.parametrize(
    "value",
    [
        "t" * LARGE_BYTES,
        b"b" * 10 * LARGE_BYTES,
        ["x"] * 1000,
        {"a": np.zeros(LARGE_BYTES)},
        np.arange(100_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_client_reads_compressed_values(value: Any) -> None:
    for codec in (Codec(compress_above=1000), Codec()):
        frame = Codec(compress_above=1000).encode(b"", value)
        assert bytes(frame)[:1] == b"d"  # type: ignore[call-overload]
        assert type(frame) is (bytes if len(frame) < LARGE_BYTES else Pieces)
        found: Any = codec.decode(b"", bytes(frame))  # type: ignore[call-overload]
        assert pickle.dumps(found) == pickle.dumps(value)
        if isinstance(value, np.ndarray):
            found[0] = 7  # it is writable, as any array


def test_what_does_not_become_smaller_is_not_compressed() -> None:
    value = np.random.default_rng(1).bytes(5000)
    assert frame_of(Codec(compress_above=0), value) == b"z" + value


def compressed(inner: bytes, size: int | None = None) -> bytes:
    return b"d" + struct.pack("<Q", len(inner) if size is None else size) + zlib.compress(inner)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"d", "no whole head"),
        (b"d" + bytes(7), "no whole head"),
        (b"d" + bytes(8), "as long as it says"),
        (b"d" + struct.pack("<Q", 5) + b"garbage", "does not decompress"),
        (compressed(b"xtext", 4), "as long as it says"),
        (compressed(b"xtext", 6), "as long as it says"),
        (compressed(b"xtext")[:-1], "as long as it says"),
        (compressed(b"xtext") + b".", "as long as it says"),
        (compressed(b"xtext", 2**40), "too many"),
        (compressed(compressed(b"xtext")), "twice"),
        (compressed(b""), "empty"),
        (compressed(b"\0"), "kind 0"),
    ],
)
def test_a_compressed_frame_that_is_not_valid_is_refused(frame: bytes, message: str) -> None:
    for given_as in (frame, memoryview(frame)):
        with pytest.raises(CorruptValue, match=message):
            Codec().decode(b"", given_as)


def test_a_small_frame_does_not_fill_the_memory() -> None:
    bomb = zlib.compress(bytes(64 * 2**20), 9)
    tracemalloc.start()
    try:
        for size in (0, 1000, 2**30, 2**63):
            with pytest.raises(CorruptValue):
                Codec().decode(b"", b"d" + struct.pack("<Q", size) + bomb)
            if size < 2**30:
                _, peak = tracemalloc.get_traced_memory()
                assert peak < 1_000_000
    finally:
        tracemalloc.stop()
