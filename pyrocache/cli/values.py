"""A value or a key of the cache as the text or the bytes that a command prints.

Thread safety: thread-safe; functions without state.
"""

from __future__ import annotations

from pyrocache.errors import PyroCacheError


def as_text(value: object) -> str:
    """Return the repr of a value.

    Raises:
        PyroCacheError: its repr raises an exception.
    """
    try:
        return repr(value)
    except Exception as error:  # the user's own code, or an int with too many digits
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PyroCacheError(
            f"The repr of this object of type {type(value).__name__} fails ({reason})."
        ) from None


def as_bytes(value: object) -> bytes:
    """Return bytes as they are, and a str in UTF-8.

    Raises:
        PyroCacheError: the value is neither, or UTF-8 has no form of it.
    """
    if isinstance(value, str):
        try:
            return value.encode("utf-8", "surrogateescape")  # as arguments of a command line are decoded
        except UnicodeEncodeError:
            raise PyroCacheError(
                "This str has a surrogate, which UTF-8 cannot encode: leave --raw out."
            ) from None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    kind = type(value).__name__
    raise PyroCacheError(f"--raw writes str and bytes, and this value is of type {kind}: leave --raw out.")
