"""`content_of`: the digest of any picklable object, for objects that are compared and never read back.

Arguments of memoized functions need no bytes that can be decoded, so they may be what a key may not be: of any size,
NaN, an array, a table. `ContentEncoding` encodes what `Encoding` encodes, in the same way, and beyond that:

* What takes more than `LARGE` bytes is replaced by its SHA-256 digest, wherever it is nested. Large texts and buffers
  are hashed as they are, without a copy.
* A sequence of `LONG` items or more is encoded by column: its texts, then its other items.
* Arrays and tables of numpy, pandas, polars and pyarrow are encoded by their content, whatever their layout in memory.
* Any other object is encoded by its pickle, in which every part is encoded in turn. A buffer that the pickling code
  hands out (protocol 5) is such a part.

Objects that differ have different bytes. Equal objects have equal bytes, as for keys, except elements of arrays, which
are compared bit by bit, and indexes of pandas, whose class counts. Encoding an object that contains itself
falls back to its plain pickle, which also depends on which of its parts are the same object.

Thread safety: thread-safe; a `ContentEncoding` is used by one thread, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final, Self

from pyrocache.client.keys import arrays, arrow, frames, objects
from pyrocache.client.keys.digests import CHUNK, LARGE, digest, digest_texts, digested
from pyrocache.client.keys.encoding import Encoding
from pyrocache.client.keys.format import nest, utf8
from pyrocache.client.keys.scalars import (
    ENCODERS,
    encode_bytes,
    encode_complex,
    encode_decimal,
    encode_float,
    encode_str,
    rare_encoders,
)
from pyrocache.client.pickling import raw_buffer
from pyrocache.client.unpicklable import type_name
from pyrocache.errors import InvalidKey

LONG: Final = 256
"""Items from which a sequence is encoded by column."""

_ITEMS = 1 << 14  # items that are copied at a time
_IN_MAIN = (type, FunctionType)  # where a worker may have them of a pickle by value
_BY_NAME = (*_IN_MAIN, BuiltinFunctionType)
_SLOW = frozenset(b"XOP")  # digests and objects
_OBJECT, _NAN, _COLUMNS = b"O", b"Q", b"C"  # not kinds of keys
_SPECIAL: dict[str, Callable[[Any, Any], bytes | None]] = {
    "numpy": arrays.encode,
    "pandas": frames.encode,
    "polars": arrow.encode_polars,
    "pyarrow": arrow.encode,
}


@dataclass(frozen=True, slots=True)
class Content:
    """An object, in the key of a memoized call, by the digest of its content."""

    digest: bytes


def content_of(value: object) -> Content:
    """Return the digest of an object. Raises `InvalidKey` if it does not pickle."""
    with ContentEncoding() as encoding:
        return Content(digest((encoding.encode_whole(value),)))


class ContentEncoding(Encoding):
    """The encoders of objects that are only compared. No result is much longer than `LARGE`."""

    def __init__(self) -> None:
        super().__init__()
        # The objects whose encoding took some time, by their id, with their bytes. Without it, an object that is
        # reached by many paths would be encoded for each. The object is kept alive, so that its id is not reused.
        self._known: dict[int, tuple[object, bytes]] = {}
        self._encoders |= {
            str: _encode_str,
            bytes: _encode_bytes,
            bytearray: _encode_bytes,
            float: _encode_float,
            complex: self._encode_complex,
            Decimal: _encode_decimal,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Free the objects now. The encoders refer to each other, and breaking a cycle with a memoryview in it crashes
        # the garbage collector of Python 3.11.
        self.__dict__.clear()

    def encode_whole(self, value: object) -> bytes:
        """Return the bytes of an object, which may contain itself. Raises `InvalidKey`."""
        try:
            return self.encode(value)
        except RecursionError:
            pass
        try:
            return self.encode_shared(value)
        except RecursionError:
            raise InvalidKey(f"an object of type {type_name(value)} is nested too deeply") from None

    def encode_shared(self, value: object) -> bytes:
        """Return the bytes of an object that may contain itself, which depend on which parts are the same object."""
        return objects.encode_pickled(value, self._encode_leaf, float("inf"), shared=True)

    def encode(self, key: Any) -> bytes:
        if (known := self._known.get(id(key))) is not None:
            return known[1]
        cls: Any = type(key)
        encoded = (self._encoders.get(cls) or self._encoder_of(cls))(key)
        if len(encoded) > LARGE:
            encoded = digested((encoded,))
        if encoded[0] in _SLOW:
            self._known[id(key)] = key, encoded
        return encoded

    def compose(self, name: str, *parts: object) -> bytes:
        """Return the bytes of an object by the name of its kind, which fixes the meaning of its parts."""
        return _OBJECT + b"".join(self.nest_all((name, *parts)))

    def items(self, items: list[Any]) -> bytes:
        """Return the digest of the items of a sequence."""
        kinds: set[Any] = set(map(type, items))
        texts = {cls for cls in kinds if (self._encoders.get(cls) or self._encoder_of(cls)) is _encode_str}
        if not texts:
            columns = digest(()), digest(()), digest(()), self._digest_of_others(items)
        elif texts == kinds:
            columns = digest(()), *digest_texts(items), digest(())
        else:
            mask = bytes([type(item) in texts for item in items])
            columns = (
                digest((mask,)),
                *digest_texts([item for item in items if type(item) in texts]),
                self._digest_of_others([item for item in items if type(item) not in texts]),
            )
        return digest((b"%d " % len(items), *columns))

    def _digest_of_others(self, items: list[Any]) -> bytes:
        return digest(
            b"".join(self.nest_all(items[start : start + _ITEMS])) for start in range(0, len(items), _ITEMS)
        )

    def encode_other(self, key: Any) -> bytes:
        if isinstance(key, _IN_MAIN) and objects.in_main(key):
            return self.compose("main", key.__qualname__)
        special = _SPECIAL.get(type(key).__module__.partition(".")[0])
        encoded = None if special is None else special(key, self)
        if encoded is not None:
            return encoded
        if (buffer := raw_buffer(key)) is not None:
            return self.compose("buffer", digest((buffer,)))
        return objects.encode_pickled(key, self.encode_part, float("inf"))

    def encode_part(self, part: Any) -> bytes | None:
        by_name = isinstance(part, _BY_NAME) and not (isinstance(part, _IN_MAIN) and objects.in_main(part))
        return None if by_name else self.encode(part)

    def _encode_leaf(self, part: Any) -> bytes | None:
        """Return the bytes of a part that contains no object which may be shared; None for any other part."""
        if isinstance(part, _IN_MAIN):
            return self.encode(part) if objects.in_main(part) else None
        if type(part) in ENCODERS or raw_buffer(part) is not None or type(part) in rare_encoders():
            return self.encode(part)
        special = _SPECIAL.get(type(part).__module__.partition(".")[0])
        return None if special is None else special(part, self)

    def find_encoder(self, cls: Any) -> Callable[[Any], bytes]:
        encoder = super().find_encoder(cls)
        if encoder in (encode_str, encode_bytes):  # of numpy
            return _encode_str if encoder is encode_str else _encode_bytes
        if cls.__module__ == "numpy" and encoder != self.encode_other:
            return arrays.scalar_encoder(encoder, self)
        return encoder

    def nest_all(self, keys: Iterable[Any]) -> list[bytes]:
        parts = []
        for key in keys:
            encoder = _SHORT.get(type(key))
            if encoder is None or (encoder is encode_str and len(key) > LARGE):
                part = self.encode(key)
            else:  # `encode`, inlined for speed
                part = encoder(key)
                if len(part) > LARGE:
                    part = digested((part,))
            parts.append(nest(part))
        return parts

    def encode_tuple(self, key: tuple[Any, ...]) -> bytes:
        if tuple.__len__(key) < LONG:
            return super().encode_tuple(key)
        return _COLUMNS + b"t" + self.items(list(tuple.__iter__(key)))

    def encode_list(self, key: list[Any]) -> bytes:
        if list.__len__(key) < LONG:
            return super().encode_list(key)
        return _COLUMNS + b"l" + self.items(list(list.__iter__(key)))

    def check_distinct(self, parts: list[bytes], key: object) -> None:
        """Accept members that are in the same state: nothing is looked up in the set or dict."""

    def _encode_complex(self, key: complex) -> bytes:
        if key == key:
            return encode_complex(key)
        return _NAN + b"c" + nest(_encode_float(key.real)) + nest(_encode_float(key.imag))


def _encode_str(key: str) -> bytes:
    size = str.__len__(key)
    if size <= LARGE:
        return encode_str(key)
    return digested(chain((b"s",), (utf8(key[at : at + CHUNK]) for at in range(0, size, CHUNK))))


def _encode_bytes(key: bytes | bytearray) -> bytes:
    return b"b" + key if len(key) < LARGE else digested((b"b", key))


def _encode_float(key: float) -> bytes:
    return encode_float(key) if key == key else _NAN + b"f"


def _encode_decimal(key: Decimal) -> bytes:
    return _NAN + b"d" + str(key).encode() if key.is_nan() else encode_decimal(key)


_SHORT: dict[type, Callable[[Any], bytes]] = {
    **{cls: ENCODERS[cls] for cls in (type(None), bool, int, str)},
    float: _encode_float,
}
"""Encoders of objects that are nearly always short, and frequent."""
