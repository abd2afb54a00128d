"""Signed frames and keys: they come back; whatever else a node can send is refused before anything of it is decoded."""

from __future__ import annotations

import enum
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.client import codec as codec_module
from pyrocache.client.codec import Codec
from pyrocache.client.features.arguments import Arguments
from pyrocache.client.keys.content import content_of
from pyrocache.client.keys.encoding import Encoding, decode_key, encode_key, encode_keys
from pyrocache.client.keys.format import namespace_prefix
from pyrocache.client.signing import Signer, SigningCodec
from pyrocache.errors import InvalidKey, SerializationError, TamperedValue
from pyrocache.protocol.int_frame import pack_int
from pyrocache.protocol.limits import LARGE_BYTES
from pyrocache.protocol.messages import Pieces

ONE, TWO = bytes(range(32)), bytes(range(32, 64))
HEAD = 32
KEY = encode_key("key", namespace_prefix("shop"))
PLAIN = Codec()


def codec_of(*keys: bytes, counters: bool = False, **options: Any) -> SigningCodec:
    return SigningCodec(Codec(**options), Signer(keys or (ONE,)), "namespace 'shop'", counters)


CODEC = codec_of()


def frame_of(value: object, key: bytes = KEY, codec: SigningCodec = CODEC) -> bytes:
    return bytes(codec.encode(key, value))


loaded: list[str] = []


def note(what: str) -> str:
    loaded.append(what)
    return what


class Evil:
    """Its pickle runs `note`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return note, ("ran",)


@pytest.fixture(autouse=True)
def nothing_was_loaded() -> None:
    loaded.clear()


class Colour(enum.Enum):
    RED = 1


class Mode(enum.Flag):
    READ = 1


@dataclass(frozen=True)
class Point:
    x: Any


class Thing:
    """A key of kind P."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and self.x == other.x

    def __hash__(self) -> int:
        return hash(self.x)


OBJECTS = [Colour.RED, Mode.READ, Point(1), Thing("x")]
NESTED = [
    *OBJECTS,
    *[("a", key) for key in OBJECTS],
    *[frozenset({key, 1}) for key in OBJECTS],
    Point(Thing(Colour.RED)),
    Thing((Point(Colour.RED), [Mode.READ])),
]
PLAIN_KEYS: list[Any] = ["text", 1, 1.5, None, b"b", ("a", 1), [1], {"a": 1}, frozenset({1})]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


class TestValues:
    @given(values, st.binary(max_size=300))
    def test_a_value_comes_back(self, value: object, key: bytes) -> None:
        assert CODEC.decode(key, bytes(CODEC.encode(key, value))) == value

    @given(st.lists(values | st.just(1)), st.booleans())
    def test_many_are_the_same_as_each(self, many: list[Any], counters: bool) -> None:
        codec = codec_of(counters=counters)
        keys = [encode_key(number) for number in range(len(many))]
        frames = list(map(bytes, codec.encode_many(keys, many)))
        assert frames == [bytes(codec.encode(key, value)) for key, value in zip(keys, many, strict=True)]
        missing = object()
        assert codec.decode_many(keys, frames, missing) == many
        assert codec.decode_many([b"gone", *keys], [None, *frames], missing) == [missing, *many]

    @pytest.mark.parametrize(
        "options", [{"serializer": "msgpack"}, {"serializer": "json"}, {"compress_above": 10}]
    )
    def test_with_every_serializer(self, options: dict[str, Any]) -> None:
        codec = codec_of(**options)
        value = {"name": "Alice" * 100}
        assert codec.decode(KEY, frame_of(value, codec=codec)) == value

    def test_large_values_are_signed_without_a_copy(self) -> None:
        array = np.arange(LARGE_BYTES)
        frame = CODEC.encode(KEY, array)
        assert type(frame) is Pieces
        inner = PLAIN.encode(KEY, array)
        assert isinstance(inner, Pieces)
        assert len(frame.buffers[0]) == HEAD
        assert any(np.shares_memory(np.frombuffer(buffer, np.uint8), array) for buffer in frame.buffers[1:])
        data = b"x" * LARGE_BYTES
        assert any(buffer is data for buffer in CODEC.encode(KEY, data).buffers)  # type: ignore[union-attr]

    def test_large_values_are_not_copied_on_the_way_back_and_stay_aligned(self) -> None:
        signed = bytes(CODEC.encode(KEY, np.zeros(LARGE_BYTES, np.float64)))
        room = np.zeros(len(signed) + 64, np.uint8)
        start = -room.ctypes.data % 16
        message = memoryview(room)[start : start + len(signed)]  # type: ignore[arg-type]
        message[:] = signed
        again: Any = CODEC.decode(KEY, message)
        assert np.shares_memory(again, room)
        assert again.flags.aligned
        assert again.flags.writeable
        assert again.ctypes.data % 16 == 0

    def test_the_frame_is_as_documented(self) -> None:
        key_id = blake2b(key=ONE, digest_size=7, person=b"pyrocache id").digest()
        inner = PLAIN.encode(KEY, "value")
        assert isinstance(inner, bytes)
        signed = b"\1" + key_id + struct.pack(">I", len(KEY)) + KEY + inner
        tag = blake2b(signed, key=ONE, digest_size=24, person=b"pyrocache value").digest()
        assert frame_of("value") == b"S" + key_id + tag + inner

    def test_the_first_key_signs_and_all_verify(self) -> None:
        old, both, new = codec_of(ONE), codec_of(TWO, ONE), codec_of(TWO)
        assert both.decode(KEY, frame_of("old", codec=old)) == "old"
        assert new.decode(KEY, frame_of("new", codec=both)) == "new"
        with pytest.raises(
            TamperedValue, match=r"namespace 'shop' was not signed with a key of this client's"
        ):
            new.decode(KEY, frame_of("old", codec=old))

    def test_a_signer_does_not_show_its_key(self) -> None:
        signer = Signer((ONE,))
        assert ONE.hex() not in repr(signer) + repr(CODEC)


def swapped(first: bytes, second: bytes, at: int) -> bytes:
    return first[:at] + second[at:]


class TestTampering:
    @pytest.mark.parametrize("value", ["value", {"a": 1}, 7, None], ids=repr)
    def test_every_flipped_bit_is_found(self, value: object) -> None:
        frame = frame_of(value)
        for bit in range(8 * len(frame)):
            changed = bytearray(frame)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY, bytes(changed))
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY, memoryview(changed))

    def test_every_truncated_and_longer_frame_is_found(self) -> None:
        frame = frame_of({"a": 1})
        for end in range(len(frame)):
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY, frame[:end])
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY, memoryview(frame)[:end])
        with pytest.raises(TamperedValue):
            CODEC.decode(KEY, frame + b"\0")

    @pytest.mark.parametrize(
        "other",
        [
            encode_key("another key", namespace_prefix("shop")),
            encode_key("key", namespace_prefix("bank")),
            encode_key("key"),
            KEY[:-1],
            KEY + b"\0",
        ],
    )
    def test_the_value_of_another_key_or_namespace_is_found(self, other: bytes) -> None:
        with pytest.raises(TamperedValue, match="was changed, or stored under another key"):
            CODEC.decode(KEY, frame_of("value", other))
        with pytest.raises(TamperedValue):
            CODEC.decode_many([KEY], [frame_of("value", other)], None)

    def test_bytes_do_not_move_between_the_key_and_the_value(self) -> None:
        frame = frame_of(b"zzzz")
        inner = frame[HEAD:]
        for taken in range(1, len(inner)):
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY + inner[:taken], frame[:HEAD] + inner[taken:])
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY[:-taken], frame[:HEAD] + KEY[-taken:] + inner)

    @pytest.mark.parametrize("kind", sorted(set(codec_module._DECODERS) | set(b"kjudS\x80\0")))
    def test_another_kind_is_found(self, kind: int) -> None:
        frame = frame_of(b"\x80\x05N.")
        if kind != frame[0]:
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY, bytes((kind,)) + frame[1:])
        if kind != frame[HEAD]:
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY, frame[:HEAD] + bytes((kind,)) + frame[HEAD + 1 :])

    def test_the_tag_of_another_value_is_found(self) -> None:
        one, two = frame_of("one"), frame_of("two")
        for at in (9, 20, HEAD):
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY, swapped(one, two, at))

    @pytest.mark.parametrize(
        "value", [None, True, 1, 1.5, "text", b"bytes", [1], Evil()], ids=lambda value: type(value).__name__
    )
    def test_an_unsigned_value_of_any_kind_is_refused(self, value: object) -> None:
        frame = bytes(PLAIN.encode(KEY, value))
        for given_frame in (frame, memoryview(bytearray(frame)), b""):
            with pytest.raises(TamperedValue, match="is not signed"):
                CODEC.decode(KEY, given_frame)
            with pytest.raises(TamperedValue, match="is not signed"):
                CODEC.decode_many([KEY], [given_frame], None)
        assert loaded == []

    def test_a_malicious_pickle_is_not_loaded_whatever_it_claims(self) -> None:
        evil = pickle.dumps(Evil(), 5)
        head = frame_of("value")[:HEAD]
        for frame in (
            evil,
            b"S" + evil,
            head + evil,
            head[:8] + bytes(24) + evil,
            b"d" + struct.pack("<Q", len(evil)) + zlib.compress(evil),
            frame_of(Evil(), codec=codec_of(TWO)),
            frame_of(Evil(), b"another"),
        ):
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY, frame)
        assert loaded == []
        assert CODEC.decode(KEY, frame_of(Evil())) == "ran"  # it would have been, with a valid signature

    def test_nothing_is_decompressed_or_decoded_before_the_tag_is_checked(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frame = frame_of("x" * 1000, codec=codec_of(compress_above=100))
        monkeypatch.setattr(codec_module, "decompress", note)
        codec = codec_of()
        with pytest.raises(TamperedValue):
            codec.decode(b"another", frame)
        with pytest.raises(TamperedValue):
            codec.decode(KEY, frame[HEAD:])
        assert loaded == []

    @given(st.binary(max_size=100))
    def test_no_bytes_are_a_signed_value_by_chance(self, data: bytes) -> None:
        for frame in (data, frame_of("value")[:8] + data, b"S" + data):
            with pytest.raises(TamperedValue):
                CODEC.decode(KEY, frame)

    def test_errors_do_not_show_the_key_or_the_value(self) -> None:
        key = encode_key("secret key", namespace_prefix("shop"))
        for frame in (
            PLAIN.encode(key, "secret"),
            frame_of("secret", b"other"),
            frame_of("secret", key, codec_of(TWO)),
        ):
            with pytest.raises(TamperedValue, match="signing_key_file") as raised:
                CODEC.decode(key, frame)  # type: ignore[arg-type]
            assert "secret" not in str(raised.value)
            assert "namespace 'shop'" in str(raised.value)

    def test_without_a_key_a_signed_value_is_refused_with_advice(self) -> None:
        for codec in (PLAIN, Codec("msgpack"), Codec(user=pickle)):
            with pytest.raises(
                SerializationError, match="is signed, and this client has no signing key"
            ) as raised:
                codec.decode(KEY, frame_of("value"))
            assert not isinstance(raised.value, TamperedValue)

    def test_a_compressed_value_with_a_signed_one_in_it_is_refused(self) -> None:
        inner = frame_of("value")
        packed = b"d" + struct.pack("<Q", len(inner)) + zlib.compress(inner)
        with pytest.raises(SerializationError, match="is signed"):
            PLAIN.decode(KEY, packed)


class TestCounters:
    def test_ints_are_not_signed(self) -> None:
        codec = codec_of(counters=True)
        assert codec.encode(KEY, 7) == pack_int(7)
        assert codec.decode(KEY, pack_int(8)) == 8
        assert codec.decode_many([KEY, KEY], [pack_int(8), frame_of("x")], None) == [8, "x"]
        assert codec.decode(KEY, frame_of(9)) == 9  # of a client without counters

    @pytest.mark.parametrize(
        "value", [True, None, 1.5, "7", b"7", Evil()], ids=lambda value: type(value).__name__
    )
    def test_all_else_is_signed(self, value: object) -> None:
        codec = codec_of(counters=True)
        assert bytes(codec.encode(KEY, value))[:1] == b"S"
        with pytest.raises(TamperedValue):
            codec.decode(KEY, bytes(PLAIN.encode(KEY, value)))
        assert loaded == []

    def test_elsewhere_an_unsigned_int_is_refused_with_advice(self) -> None:
        with pytest.raises(TamperedValue, match=r"is not signed \(an int, as incr stores it.*counters=True"):
            CODEC.decode(KEY, pack_int(7))


def encoder(key: bytes = ONE) -> Callable[[Any], bytes]:
    return Encoding(sign=Signer((key,)).sign_part).encode


class TestKeys:
    @pytest.mark.parametrize("key", NESTED, ids=map(str, range(len(NESTED))))
    def test_a_key_comes_back_only_with_its_tag(self, key: Any) -> None:
        prefix = namespace_prefix("shop")
        encoded = encode_key(key, prefix, encoder())
        assert decode_key(encoded, CODEC) == key
        assert encoded == encode_key(key, prefix, encoder()) == encode_keys([key], prefix, encoder())[0]
        assert encoded not in (encode_key(key, prefix), encode_key(key, prefix, encoder(TWO)))
        with pytest.raises(TamperedValue, match="A key in namespace 'shop' is an object, and is not signed"):
            decode_key(encode_key(key, prefix), CODEC)
        with pytest.raises(
            TamperedValue, match="was not signed with a key of this client's signing_key_file"
        ):
            decode_key(encode_key(key, prefix, encoder(TWO)), CODEC)
        with pytest.raises(SerializationError, match="is signed, and this client has no signing key"):
            decode_key(encoded)
        assert decode_key(encoded, codec_of(TWO, ONE)) == key  # in the course of a rotation

    @pytest.mark.parametrize("key", PLAIN_KEYS, ids=map(str, range(len(PLAIN_KEYS))))
    def test_keys_of_plain_types_are_not_signed(self, key: Any) -> None:
        encoded = encode_key(key, b"\0", encoder())
        assert encoded == encode_key(key)
        assert decode_key(encoded, CODEC) == key

    @pytest.mark.parametrize("key", NESTED, ids=map(str, range(len(NESTED))))
    def test_a_changed_key_runs_no_code(self, key: Any) -> None:
        encoded = encode_key(key, b"\0", encoder())
        for at in range(1, len(encoded)):
            for changed in (encoded[:at] + bytes((encoded[at] ^ 1,)) + encoded[at + 1 :], encoded[:at]):
                try:
                    assert decode_key(changed, CODEC) != key
                except (InvalidKey, SerializationError):
                    pass

    def test_a_malicious_key_runs_no_code(self) -> None:
        evil = b"P" + pickle.dumps(Evil(), 5)
        good = encode_key(Thing(1), b"\0", encoder())
        for encoded in (evil, b"G" + evil, b"G" + bytes(16) + evil, good[1:18] + evil):
            with pytest.raises(TamperedValue):
                decode_key(b"\0" + encoded, CODEC)
            nested = b"t" + encoded[:1] + _varint(len(encoded) - 1) + encoded[1:]
            with pytest.raises(TamperedValue):
                decode_key(b"\0" + nested, CODEC)
        assert loaded == []
        assert decode_key(b"\0" + evil) == "ran"  # without a signing key

    def test_no_module_is_imported_for_a_key(self) -> None:
        import sys

        name = "this"  # of the standard library; prints a poem when it is imported
        sys.modules.pop(name, None)
        for kind in (b"e", b"F", b"D"):
            parts = b"".join(b"s" + _varint(len(text)) + text for text in (name.encode(), b"Class", b"x"))
            with pytest.raises(TamperedValue):
                decode_key(b"\0" + kind + parts, CODEC)
        assert name not in sys.modules

    def test_with_allowed_classes_only_those(self) -> None:
        codec = codec_of(allowed_classes=[f"{__name__}.Colour"])
        assert decode_key(encode_key(Colour.RED, b"\0", encoder()), codec) is Colour.RED
        for key in (Mode.READ, Point(1), Thing(1)):
            with pytest.raises(SerializationError, match="allowed_classes"):
                decode_key(encode_key(key, b"\0", encoder()), codec)

    @pytest.mark.parametrize(
        "parts",
        [((Colour.RED, 1),), ((Point(1),),), ((b"x" * 5000,),), ((Thing(1), "a"),), (tuple(range(3000)),)],
    )
    def test_arguments_of_memoized_calls_are_encoded_as_keys_are(self, parts: tuple[Any, ...]) -> None:
        arguments = Arguments(Signer((ONE,)).sign_part)
        if arguments.is_plain(parts):
            assert b"t" + arguments.encode_plain(parts) == encoder()(parts)
        found, encoded = arguments.by_content(parts)
        assert b"t" + encoded == encoder()(found)
        assert decode_key(b"\0t" + encoded, CODEC) == found
        assert Arguments().by_content(parts)[0] == found

    def test_a_digest_is_the_same_for_all_clients(self) -> None:
        assert content_of(Thing(1)) == content_of(Thing(1))


def _varint(number: int) -> bytes:
    from pyrocache.client.keys.format import varint

    return varint(number)
