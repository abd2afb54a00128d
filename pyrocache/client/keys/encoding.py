"""`encode_key` and `decode_key`: any key to canonical bytes, and back; with containers and the choice of a kind.

Keys compare as dict keys do. Equal keys have the same bytes in every process, independent of PYTHONHASHSEED, insertion
order and interning, except objects of kind P (see below). The bytes decode to an equal key, not always of the same
type: 1.0 may come back as 1, a named tuple as a tuple.

An encoded key consists of the prefix of its namespace, a type byte, and a payload without a length. Hence the bytes of
"user:" are a prefix of those of "user:1", and the bytes of ("a", 1) are a prefix of those of ("a", 1, "x"). A namespace
is a path of names. Its prefix is the varint length of what follows, then the varint length and the UTF-8 text of each
name. The root's prefix is a zero byte, and no path's prefix begins with that of another path.

Inside a payload, a nested key is type byte, varint payload length, payload. Varints are LEB128, ints are minimal
big-endian two's complement, floats big-endian binary64, strings UTF-8, which may contain lone surrogates::

    byte kind                                      payload
    N    None                                      nothing
    i    every number with an integral value       int
    f    other numbers that a float holds exactly  8 bytes
    r    other rational numbers                    nested numerator, denominator
    c    complex numbers with an imaginary part    nested real part, imaginary part
    s    str                                       text
    b    bytes, bytearray                          the bytes
    t    tuple, named tuple                        nested items
    l    list                                      nested items
    S    set, frozenset                            nested items, sorted
    d    dict, also OrderedDict and Counter        nested key and value of each item, sorted
    y    date                                      int: proleptic ordinal
    n    datetime, naive                           int: microseconds since year 1
    a    datetime, aware                           int: microseconds since year 1, UTC
    h    time, naive                               int: microseconds since midnight
    H    time, aware                               int: microseconds since midnight, minus the UTC
                                                   offset in whole seconds
    T    timedelta                                 int: microseconds
    u    UUID                                      16 bytes
    p    path, POSIX flavour                       text
    w    path, Windows flavour                     text, lower case
    e    Enum member                               nested module, qualified name, member name
    F    Flag member                               nested module, qualified name, value
    D    dataclass instance                        nested module, qualified name, then name and value of
                                                   each compared field, sorted by name
    P    any other object                          pickle; objects of other kinds that it refers to are
                                                   persistent ids: their encoded bytes
    G    with a signing key: kind e, F, D or P     tag of 16 bytes, then that kind's type byte and payload

A numpy scalar has the kind of its value. A subclass that inherits the ``==`` of its builtin (IntEnum, a named tuple) is
encoded as that builtin. Any other object (kind P) is encoded as its class and its pickled state: if its class defines
``==``, or if its pickle is not reproducible, two equal objects may have different bytes.

Raises `InvalidKey` for NaN and NaT, for objects that do not pickle or that contain themselves, for classes that cannot
be imported by name, and for sets and dicts with two members that are unequal but have the same bytes, as objects of
kind P may have. Raises `KeyTooLarge` for keys that take more than `MAX_KEY_BYTES` of ``protocol/limits.py``.

Decoding imports the classes that the bytes name, and unpickles kind P: check untrusted bytes before decoding them, or
decode them with a `Codec` that allows few classes or does not unpickle, or with a `SigningCodec`. That one decodes
kinds e, F, D and P only within kind G, whose tag it checks, so no node can make it run code.
Encoding runs the key's own pickling code.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import Enum
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any, TypeAlias

from pyrocache.client.codec import Codec
from pyrocache.client.keys import numpy_scalars, objects, scalars
from pyrocache.client.keys.format import nest, own_code_failed, split, split_namespace, too_large
from pyrocache.client.signing import SigningCodec
from pyrocache.client.unpicklable import type_name
from pyrocache.client.unpickling import canonical_unpickle, missing_name
from pyrocache.errors import InvalidKey, KeyTooLarge, SerializationError
from pyrocache.protocol.limits import MAX_KEY_BYTES
from pyrocache.tracebacks import cause_of

__all__ = ["Encoding", "decode_key", "encode_key", "encode_keys"]

Encode: TypeAlias = Callable[[Any], bytes]
AnyCodec: TypeAlias = Codec | SigningCodec
_Decoder: TypeAlias = Callable[[bytes, AnyCodec], object]

_ALL_CLASSES = Codec()
_SURELY_SHORT = MAX_KEY_BYTES // 4 - 256  # characters that fit in UTF-8, whatever they are, behind any prefix


def encode_key(key: object, prefix: bytes = b"\0", encode: Encode | None = None) -> bytes:
    """Return the canonical bytes of a key behind a prefix from `format.namespace_prefix`.

    Args:
        encode: the `Encoding.encode` of keys that are signed; None for keys that are not.

    Raises:
        KeyTooLarge: they are more than `MAX_KEY_BYTES`.
        InvalidKey: the key has no canonical bytes.
    """
    if type(key) is str and len(key) <= _SURELY_SHORT:  # nearly always
        try:
            return prefix + b"s" + key.encode()
        except UnicodeEncodeError:
            pass
    try:
        data = prefix + (_encode if encode is None else encode)(key)
    except KeyTooLarge:
        raise too_large(key) from None  # found in some part of the key
    except InvalidKey as error:
        name = type_name(key)
        if type(key) is float or name in str(error):
            raise
        raise InvalidKey(f"{error} (in a key of type {name})") from error.__cause__
    except RecursionError:
        raise InvalidKey(f"a key of type {type_name(key)} is nested too deeply, or contains itself") from None
    except Exception as error:  # the key's own code may raise anything
        raise own_code_failed(key, error) from cause_of(error)
    if len(data) > MAX_KEY_BYTES:
        raise too_large(key)
    return data


def encode_keys(keys: Sequence[object], prefix: bytes = b"\0", encode: Encode | None = None) -> list[bytes]:
    """Return the canonical bytes of each key. Faster than `encode_key` for each if all are str. Raises as it does."""
    if set(map(type, keys)) <= {str}:
        texts: Any = keys
        try:
            encoded = list(map((prefix + b"s").__add__, map(str.encode, texts)))
            # The sum is cheaper than the maximum, and nearly always small enough.
            if sum(map(len, encoded)) <= MAX_KEY_BYTES or len(max(encoded, key=len)) <= MAX_KEY_BYTES:
                return encoded
        except UnicodeEncodeError:
            pass
    return [encode_key(key, prefix, encode) for key in keys]  # raises the error of a key that is too large


def decode_key(data: bytes, codec: AnyCodec = _ALL_CLASSES) -> object:
    """Return the key in bytes from `encode_key`, whatever its namespace.

    Args:
        codec: decides which classes the key may refer to, whether it may be unpickled, and what must be signed.

    Raises:
        InvalidKey: the bytes are not canonical, or a class of the key cannot be imported here.
        SerializationError: the key refers to a class that is not allowed, or is a pickle and may not be.
        TamperedValue: a part of the key is not signed, and must be.
    """
    if len(data) > MAX_KEY_BYTES:
        raise InvalidKey(f"{len(data)} bytes are more than a key has")
    _, encoded = split_namespace(data)
    try:
        return _decode(encoded, codec)
    except (InvalidKey, SerializationError):
        raise
    except RecursionError:
        raise InvalidKey("an encoded key is nested too deeply to be decoded") from None
    except Exception as error:  # unpickling and a class's own code may raise anything
        cause = cause_of(error)
        if isinstance(error, (ImportError, AttributeError)):
            name = missing_name(error)
            raise InvalidKey(f"an encoded key's class cannot be imported here ({name})") from cause
        raise InvalidKey(f"these bytes are not a valid encoded key ({type_name(error)})") from cause


# Encoding: by the exact type, else by what the class inherits, else by pickle. A kind depends on the class alone.


class Encoding:
    """The encoders, by type. A subclass encodes some kinds differently; this one makes keys.

    Args:
        limit: the most bytes that the parts of a container take; more raise `KeyTooLarge`.
        sign: returns the signed form of a part that names a class; None for keys that are not signed.
    """

    def __init__(self, limit: int = MAX_KEY_BYTES, sign: Callable[[bytes], bytes] | None = None) -> None:
        self._limit = limit
        self._sign = sign
        self._encoders: dict[type, Callable[[Any], bytes]] = {
            **scalars.ENCODERS,
            tuple: self.encode_tuple,
            list: self.encode_list,
            set: self._encode_set,
            frozenset: self._encode_set,
            dict: self._encode_dict,
            OrderedDict: self._encode_dict,
            Counter: self._encode_dict,
            datetime: self.encode_datetime,
        }
        self._encoder_of = lru_cache(maxsize=1024)(self.find_encoder)

    def encode(self, key: Any) -> bytes:
        """Return the type byte and the payload of a key. Raises as `encode_key`, and whatever the key's code raises."""
        cls: Any = type(key)
        return (self._encoders.get(cls) or self._encoder_of(cls))(key)

    def encode_other(self, key: Any) -> bytes:
        """Encode an object that is of no other kind."""
        encoded = objects.encode_pickled(key, self.encode_part)
        return encoded if self._sign is None else self._sign(encoded)

    def find_encoder(self, cls: Any) -> Callable[[Any], bytes]:
        """Return the encoder for keys of a class that is not in the table."""
        # Before the base classes: numpy.float64 inherits from float, and numpy.str_ from str.
        if (
            cls.__module__ == "numpy"
            and (encoder := numpy_scalars.encoder_of(cls, self.encode_other)) is not None
        ):
            return encoder
        known = {**scalars.rare_encoders(), **self._encoders}
        base = next((base for base in cls.__mro__ if base in known), None)
        if base is not None and cls.__eq__ is base.__eq__:
            return known[base]
        if issubclass(cls, Enum):
            return self.signing(objects.encode_enum)
        if (names := objects.compared_fields(cls)) is not None:
            return self.signing(lambda key: objects.encode_dataclass(key, names, self.nest_all))
        return self.encode_other

    def signing(self, encoder: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
        """Return an encoder that also signs, if these keys are signed."""
        sign = self._sign
        return encoder if sign is None else lambda key: sign(encoder(key))

    def nest_all(self, keys: Iterable[Any]) -> list[bytes]:
        """Return each key in its nested form. Raise `KeyTooLarge` as soon as they are too large.

        A small key can have huge canonical bytes, because an object that it contains many times is encoded each time.
        """
        room = self._limit
        parts = []
        encoders = self._encoders
        for key in keys:
            cls: Any = type(key)
            part = nest((encoders.get(cls) or self._encoder_of(cls))(key))  # `encode`, inlined for speed
            room -= len(part)
            if room < 0:
                raise too_large(keys)
            parts.append(part)
        return parts

    def encode_part(self, part: Any) -> bytes | None:
        """Return the canonical bytes of a part of a pickled key; None if the part is to be pickled, too."""
        cls: Any = type(part)
        encoder = self._encoders.get(cls) or self._encoder_of(cls)
        return None if encoder == self.encode_other else encoder(part)

    # Containers are iterated as their builtin's == would, past what a subclass may override.

    def encode_tuple(self, key: tuple[Any, ...]) -> bytes:
        """Encode a tuple."""
        return b"t" + b"".join(self.nest_all(tuple.__iter__(key)))

    def encode_list(self, key: list[Any]) -> bytes:
        """Encode a list."""
        return b"l" + b"".join(self.nest_all(list.__iter__(key)))

    def _encode_set(self, key: Any) -> bytes:
        parts = sorted(self.nest_all((set if isinstance(key, set) else frozenset).__iter__(key)))
        self.check_distinct(parts, key)
        return b"S" + b"".join(parts)

    def _encode_dict(self, key: dict[Any, Any]) -> bytes:
        parts = self.nest_all(chain.from_iterable(dict.items(key)))
        self.check_distinct(parts[::2], key)
        return b"d" + b"".join(sorted(map(operator.add, parts[::2], parts[1::2])))

    def check_distinct(self, parts: list[bytes], key: object) -> None:
        """Raise `InvalidKey` for members without an ``==`` of their own that are in the same state."""
        if len(set(parts)) != len(parts):
            raise InvalidKey(f"a key of type {type_name(key)} has two members with the same canonical bytes")

    def encode_datetime(self, key: datetime) -> bytes:
        """Encode a datetime."""
        # A pickle includes the fold, which `==` ignores within one zone.
        return scalars.encode_datetime(key) or self.encode_other(
            datetime.combine(key.date(), key.timetz().replace(fold=0))
        )


_encode = Encoding().encode


# Decoding. Each decoder may raise anything; decode_key makes an InvalidKey of it.


def _decode(encoded: bytes, codec: AnyCodec) -> object:
    type_byte = encoded[:1]
    if (simple := scalars.DECODERS.get(type_byte)) is not None:
        key = simple(encoded[1:])
    elif (decoder := _DECODERS.get(type_byte)) is not None:
        key = decoder(encoded[1:], codec)
    else:
        raise InvalidKey("an encoded key is of an unknown kind")
    if type_byte in _CHECKED and _encode(key) != encoded:
        raise InvalidKey("an encoded key is not in its canonical form")
    return key


def _decode_signed(payload: bytes, codec: AnyCodec) -> object:
    encoded = codec.opened_part(payload)
    key = _OF_CLASSES[encoded[:1]](encoded[1:], codec)
    if encoded[:1] in _CHECKED and _encode(key) != encoded:
        raise InvalidKey("an encoded key is not in its canonical form")
    return key


def _unsigned(decoder: _Decoder) -> _Decoder:
    """Return a decoder that refuses what must be signed."""

    def decode(payload: bytes, codec: AnyCodec) -> object:
        if isinstance(codec, SigningCodec):
            raise codec.unsigned_part()
        return decoder(payload, codec)

    return decode


def _decode_all(encoded: list[bytes], codec: AnyCodec) -> list[Any]:
    return [_decode(part, codec) for part in encoded]


def _of_items(build: Callable[..., object]) -> _Decoder:
    """Return a decoder that passes the decoded keys of a payload to ``build``."""
    return lambda payload, codec: build(*_decode_all(split(payload), codec))


def _of_class(build: Callable[..., object]) -> _Decoder:
    """Return a decoder that does the same for a class that ``build`` imports: the first two keys are its name."""

    def decode(payload: bytes, codec: AnyCodec) -> object:
        module, name, *rest = _decode_all(split(payload), codec)
        codec.check_class(module, name)
        return build(module, name, *rest)

    return decode


def _decode_set(payload: bytes, codec: AnyCodec) -> frozenset[Any]:
    members = split(payload)
    _check_sorted(members)
    return frozenset(_decode_all(members, codec))


def _decode_dict(payload: bytes, codec: AnyCodec) -> dict[Any, Any]:
    parts = split(payload)
    _check_sorted(parts[::2])
    return dict(zip(_decode_all(parts[::2], codec), _decode_all(parts[1::2], codec), strict=True))


def _decode_pickled(payload: bytes, codec: AnyCodec) -> object:
    if not codec.reads_pickles:
        raise SerializationError(
            "a key is a pickled object, and this client does not unpickle. Use keys of plain types, or a namespace of "
            "its own for the client that stored this one."
        )
    return canonical_unpickle(payload, lambda part: _decode(part, codec), codec.check_class)


def _check_sorted(members: list[bytes]) -> None:
    if not all(one < other for one, other in pairwise(map(nest, members))):
        raise InvalidKey("an encoded key's members are not in their canonical order")


_OF_CLASSES: dict[bytes, _Decoder] = {
    **{kind: _of_class(build) for kind, build in objects.BUILDERS.items()},
    b"P": _decode_pickled,
}
"""The kinds that name classes: decoding them runs code."""

_DECODERS: dict[bytes, _Decoder] = {
    **{kind: _of_items(build) for kind, build in scalars.BUILDERS.items()},
    **{kind: _unsigned(decoder) for kind, decoder in _OF_CLASSES.items()},
    b"G": _decode_signed,
    b"t": lambda payload, codec: tuple(_decode_all(split(payload), codec)),
    b"l": lambda payload, codec: _decode_all(split(payload), codec),
    b"S": _decode_set,
    b"d": _decode_dict,
}

# Kinds whose decoders accept more than their encoders make. Not P: its pickle need not be reproducible.
_CHECKED = frozenset(bytes((kind,)) for kind in b"NifrcahHnyTpweF")
