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
from pyrocache.errors import InvalidKey, KeyTooLarge

_MOST = 16 * LARGE  # bytes of the arguments of one call


class _Plain(Encoding):
    """The encoders of arguments that need no digest. All others raise `InvalidKey`."""

    def encode_other(self, key: Any) -> bytes:
        raise InvalidKey("this argument is compared by its content")

    def find_encoder(self, cls: Any) -> Callable[[Any], bytes]:
        # Or a digest as an argument would equal the argument that it was made of.
        return self.encode_other if cls is Content else super().find_encoder(cls)


NOT_PLAIN = (InvalidKey, RecursionError)
"""What `encode_plain` raises for arguments that are not plain."""


class Arguments:
    """The encodings of the arguments of one client's calls.

    Args:
        sign: as for `Encoding`.
    """

    def __init__(self, sign: Callable[[bytes], bytes] | None = None) -> None:
        self._plain, self._short = _Plain(LARGE, sign), _Short(sign)

    def encode_plain(self, parts: tuple[object, ...]) -> bytes:
        """Return the canonical bytes of the parts of a key, as in a tuple. Raises one of `NOT_PLAIN` otherwise."""
        return b"".join(self._plain.nest_all(parts))

    def is_plain(self, parts: tuple[object, ...]) -> bool:
        """Return whether the parts of a key need no digest."""
        try:
            self.encode_plain(parts)
        except NOT_PLAIN:
            return False
        return True

    def by_content(self, parts: tuple[tuple[object, ...], ...]) -> tuple[tuple[object, ...], bytes]:
        """Return what stands in a key for tuples of arguments, and its canonical bytes, as in a tuple.

        Raises:
            InvalidKey: an argument does not pickle.
        """
        is_plain = self.is_plain
        found: tuple[object, ...] = tuple(
            tuple([value if is_plain((value,)) else content_of(value) for value in values])
            for values in parts
        )
        try:
            return found, b"".join(self._short.nest_all(found))
        except KeyTooLarge:  # there are many arguments
            found = (content_of(parts),)
            return found, b"".join(self._short.nest_all(found))


class _Short(Encoding):
    """The encoders of keys, which know that the digests of content are frequent."""

    def __init__(self, sign: Callable[[bytes], bytes] | None) -> None:
        super().__init__(_MOST, sign)
        blank = bytes(32)
        self._before = Encoding().encode(Content(blank)).removesuffix(blank)
        self._encoders[Content] = self.signing(self._encode_content)

    def _encode_content(self, key: Content) -> bytes:
        return self._before + key.digest


UNSIGNED = Arguments()
"""For all clients without a signing key."""
