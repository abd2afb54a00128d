"""The arguments of memoized calls, in keys: they are compared and never read back.

An argument that is small and of a kind with canonical bytes is part of the key as it is. Any other argument is replaced
by the digest of its content (`pyrocache.client.keys.content`): an object of another class, NaN, an array, a table, and
whatever takes more than `LARGE` bytes.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyrocache.client.keys.content import Content, content_of
from pyrocache.client.keys.digests import LARGE
from pyrocache.client.keys.encoding import Encoding
from pyrocache.errors import InvalidKey

_MOST = 16 * LARGE  # bytes of the arguments of one call


class _Plain(Encoding):
    """The encoders of arguments that need no digest. All others raise `InvalidKey`."""

    def encode_other(self, key: Any) -> bytes:
        raise InvalidKey("this argument is compared by its content")

    def find_encoder(self, cls: Any) -> Callable[[Any], bytes]:
        # Or a digest as an argument would equal the argument that it was made of.
        return self.encode_other if cls is Content else super().find_encoder(cls)


_plain = _Plain(LARGE)
NOT_PLAIN = (InvalidKey, RecursionError)
"""What `encode_plain` raises for arguments that are not plain."""


def encode_plain(parts: tuple[object, ...]) -> bytes:
    """Return the canonical bytes of the parts of a key, as in a tuple. Raises one of `NOT_PLAIN` otherwise."""
    return b"".join(_plain.nest_all(parts))


def comparable(parts: tuple[tuple[object, ...], ...]) -> tuple[object, ...]:
    """Return what stands in a key for tuples of arguments. Raises `InvalidKey` for an argument that does not pickle."""
    if _is_plain(parts):
        return parts
    found = tuple(
        tuple(value if _is_plain((value,)) else content_of(value) for value in values) for values in parts
    )
    try:
        short = len(b"".join(_whole.nest_all(found))) <= _MOST
    except InvalidKey:
        short = False
    return found if short else (content_of(parts),)


_whole = Encoding(_MOST)


def _is_plain(parts: tuple[object, ...]) -> bool:
    try:
        encode_plain(parts)
    except NOT_PLAIN:
        return False
    return True
