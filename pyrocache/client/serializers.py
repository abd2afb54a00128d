"""Serializers other than pickle: msgpack, JSON, and a user's own object. ``codec.py`` puts their bytes into frames.

msgpack and JSON carry plain values only: None, bool, int, float, str, lists, dicts, and for msgpack bytes. A value that
would come back as another one, such as a tuple (as a list), a dict with int keys in JSON (as str), or an instance of a
subclass, is refused: `Unsupported` names its type. Loading plain values runs no code that their writer chose.

Thread safety: thread-safe; no state. A user's own object must be thread-safe itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import ModuleType, NoneType
from typing import Any, NamedTuple, Protocol

import msgpack

from pyrocache.late_imports import at_first_use

__all__ = [
    "JSON_HEAD",
    "JSON_TITLE",
    "MSGPACK",
    "Serializer",
    "Unsupported",
    "UserCodec",
    "json_serializer",
    "user_serializer",
]

JSON_HEAD, JSON_TITLE = b"j", 'serializer="json"'


class UserCodec(Protocol):
    """A serializer of the user's own, for ``PyroCacheClient(codec=...)``.

    It is called from several threads. It is pickled with the client, so its class must be importable where the client
    is unpickled. Its name in stored values is its attribute ``name``, if it is a str; else the name of its class, or of
    the module that it is.
    """

    def dumps(self, obj: Any, /) -> bytes:
        """Return a value as bytes."""

    def loads(self, data: bytes, /) -> Any:
        """Return the value in the bytes that `dumps` made."""


class Unsupported(TypeError):
    """A serializer does not carry a value; the message names the type and never the content."""


class Serializer(NamedTuple):
    """A way to serialize values.

    Attributes:
        title: how errors name it.
        head: the beginning of its frames: the kind, and what identifies a user's codec.
        dumps: value to bytes.
        loads: bytes to value.
    """

    title: str
    head: bytes
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


def user_serializer(codec: UserCodec) -> Serializer:
    """Return the serializer of a user's codec. Its frames begin with the length and the UTF-8 text of its name."""
    title = getattr(codec, "name", None)
    if not isinstance(title, str):
        title = codec.__name__ if isinstance(codec, ModuleType) else type(codec).__qualname__
    name = title.encode("utf-8", "replace")[:255]
    return Serializer(f"the codec {title!r}", b"u" + bytes((len(name),)) + name, codec.dumps, codec.loads)


_SCALARS: frozenset[type] = frozenset((NoneType, bool, int, float, str))


def _check(value: Any, scalars: frozenset[type], keys: frozenset[type]) -> None:
    """Raise `Unsupported` unless a value consists of lists and dicts with these types of scalars and keys."""
    cls = type(value)
    if cls is list:
        items = value
    elif cls is dict:
        for other in set(map(type, value)) - keys:
            raise Unsupported(f"a dict with keys of type {other.__qualname__}")
        items = value.values()
    elif cls in scalars:
        return
    else:
        raise Unsupported(f"a value of type {cls.__qualname__}")
    if not scalars.issuperset(map(type, items)):  # most containers have scalars only: this runs in C
        for item in items:
            _check(item, scalars, keys)


def _dump_msgpack(value: Any) -> bytes:
    _check(value, _SCALARS | {bytes}, _SCALARS | {bytes})
    try:
        return _pack(value)  # type: ignore[no-any-return]
    except OverflowError:
        raise Unsupported("an int of more than 64 bits") from None


_pack = partial(msgpack.packb, use_bin_type=True, unicode_errors="surrogatepass")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise Unsupported("an extension type")


_unpack = partial(
    msgpack.unpackb,
    raw=False,
    strict_map_key=False,
    unicode_errors="surrogatepass",
    ext_hook=_refuse_extension,
)

MSGPACK = Serializer('serializer="msgpack"', b"k", _dump_msgpack, _unpack)


@cache
def json_serializer() -> Serializer:
    """Return the serializer that writes JSON. Its module is imported here, because few clients use it."""
    with at_first_use:
        import json
    to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

    def dump(value: Any) -> bytes:
        _check(value, _SCALARS, frozenset((str,)))
        # Lone surrogates pass. With ASCII, two of them would come back as one character.
        return to_json(value).encode("utf-8", "surrogatepass")

    def load(data: bytes) -> Any:
        return json.loads(data.decode("utf-8", "surrogatepass"))

    return Serializer(JSON_TITLE, JSON_HEAD, dump, load)
