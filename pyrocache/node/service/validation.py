"""Checks of the arguments of `CacheNode`'s methods, and the exception that refuses a call. Pure, thread-safe.

A peer can send anything that msgpack can carry. Each check raises a refusal if the argument is not as it must be.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from Pyro5.errors import PyroError

from pyrocache.node.store.entry import Value, entry_cost
from pyrocache.node.store.namespaces import NAMESPACE_OVERHEAD
from pyrocache.protocol.int_frame import unpack_int
from pyrocache.protocol.limits import (
    KEEP_TTL,
    MAX_BATCH,
    MAX_KEY_BYTES,
    MAX_TAG_BYTES,
    MAX_TAGS,
    MOST_SECONDS,
)
from pyrocache.protocol.refusals import BAD_REQUEST, KEY_TOO_LARGE, VALUE_TOO_LARGE

_TAGS_SLACK = 64 * 1024  # more than all tags of an entry take beside their names
_KEPT_IN_MESSAGE = 2**20  # smaller values are copied: a message of their own would take more memory pages
_OVERHEADS = 2048  # more than an entry without tags takes beyond its key and value


def refusal(code: str, message: str, detail: Any = None) -> PyroError:
    """Return the exception that refuses a call. Every Pyro5 peer can receive it; see `pyrocache.protocol.refusals`."""
    error = PyroError(message)
    error.code = code
    error.detail = detail
    return error


def check_key(key: Any) -> None:
    """Check a key: bytes, of a bounded length."""
    if type(key) is not bytes or not key:
        raise refusal(BAD_REQUEST, "A key is bytes, and not empty.")
    if len(key) > MAX_KEY_BYTES:
        raise refusal(KEY_TOO_LARGE, f"A key is at most {MAX_KEY_BYTES} bytes long.")


def check_keys(keys: Any) -> None:
    """Check a batch of keys."""
    check_batch(keys)
    if not {bytes}.issuperset(map(type, keys)) or b"" in keys or len(b"".join(keys)) > MAX_KEY_BYTES:
        for key in keys:
            check_key(key)  # says what is wrong with it, if anything is


def check_batch(items: Any) -> None:
    """Check a batch: an array of a bounded length."""
    if type(items) not in (list, tuple) or len(items) > MAX_BATCH:
        raise refusal(BAD_REQUEST, f"A batch is a list of at most {MAX_BATCH}.")


def check_ttl(ttl_seconds: Any) -> None:
    """Check a TTL: None or seconds."""
    if ttl_seconds is None:
        return
    number = type(ttl_seconds) in (int, float)
    if not number or not 0 < ttl_seconds < math.inf:
        raise refusal(BAD_REQUEST, "A TTL is None or a finite number of seconds above 0.")


def check_ttl_or_keep(ttl_seconds: Any) -> None:
    """Check a TTL, or `KEEP_TTL`."""
    if type(ttl_seconds) is not int or ttl_seconds != KEEP_TTL:
        check_ttl(ttl_seconds)


def check_seconds(seconds: Any) -> None:
    """Check a duration, which may be 0."""
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise refusal(BAD_REQUEST, "A duration is a finite number of seconds from 0 up.")


def check_span(seconds: Any, *, above: float | None = None) -> float:
    """Return a time to wait or to hold something, cut to `MOST_SECONDS`. With ``above`` 0 it must not be 0."""
    check_seconds(seconds)
    if seconds == above:
        raise refusal(BAD_REQUEST, "The time of a lease or a lock is above 0.")
    return float(min(seconds, MOST_SECONDS))


def check_token(token: Any) -> None:
    """Check the number of a lease or of a lock's holder."""
    if type(token) is not int:
        raise refusal(BAD_REQUEST, "A token is an int.")


def check_limit(limit: Any, largest: int) -> None:
    """Check how many keys of a page, or holders of a semaphore, there may be."""
    if type(limit) is not int or not 1 <= limit <= largest:
        raise refusal(BAD_REQUEST, f"A limit is an int from 1 to {largest}.")


def check_cursor(cursor: Any) -> None:
    """Check the position that a scan goes on from."""
    if type(cursor) is not int or not 0 <= cursor < 2**64:
        raise refusal(BAD_REQUEST, "A cursor is the one that came with the last page, or 0.")


def check_refresh(refresh: Any) -> None:
    """Check when a caller wants to load a value."""
    if refresh not in (0, 1, 2):
        raise refusal(BAD_REQUEST, "What to refresh is 0, 1 or 2.")


def check_condition(condition: Any) -> None:
    """Check the condition for a value to be stored."""
    if condition not in (None, "absent", "present") and (type(condition) is not int or condition < 1):
        raise refusal(BAD_REQUEST, "A condition is None, 'absent', 'present' or a version.")


def check_tags(tags: Any) -> None:
    """Check tags: None, or a few names."""
    if tags is None:
        return
    if type(tags) not in (list, tuple) or len(tags) > MAX_TAGS:
        raise refusal(BAD_REQUEST, f"Tags are a list of at most {MAX_TAGS}.")
    for tag in tags:
        check_tag(tag)


def check_tag(tag: Any) -> None:
    """Check a tag: bytes, of a bounded length."""
    if type(tag) is not bytes or not 0 < len(tag) <= MAX_TAG_BYTES:
        raise refusal(BAD_REQUEST, f"A tag is bytes, 1 to {MAX_TAG_BYTES} of them.")


def check_namespace(namespace: Any) -> None:
    """Check a namespace, given by the prefix of its keys."""
    if type(namespace) is not bytes or len(namespace) > MAX_KEY_BYTES:
        raise refusal(BAD_REQUEST, "A namespace is bytes: the prefix of its keys.")


def check_int(frame: Any) -> int:
    """Return the number in the frame of an int."""
    number = unpack_int(frame) if type(frame) in (bytes, memoryview) else None
    if number is None:
        raise refusal(BAD_REQUEST, "A number is the frame of an int.")
    return number


class ValueLimits:
    """Which values a node accepts.

    Args:
        max_value_bytes: the largest value frame.
        max_bytes: the memory of the whole store.

    Attributes:
        surely_fits: a value of at most so many bytes fits, whatever its key.
    """

    __slots__ = ("_max_bytes", "_max_value_bytes", "surely_fits")

    def __init__(self, max_value_bytes: int, max_bytes: int) -> None:
        self._max_value_bytes = max_value_bytes
        self._max_bytes = max_bytes
        self.surely_fits = min(max_value_bytes, max_bytes - 2 * MAX_KEY_BYTES - _OVERHEADS)

    def accept(self, key: bytes, value: Any, *, expires: bool) -> Value:
        """Return ``value`` as it is to be stored, or refuse it."""
        if type(value) is not bytes and type(value) is not memoryview:
            raise refusal(BAD_REQUEST, "A value is bytes.")
        if len(value) > self._max_value_bytes:
            raise refusal(VALUE_TOO_LARGE, f"The node accepts values of up to {self._max_value_bytes} bytes.")
        if entry_cost(key, value, expires=expires) + NAMESPACE_OVERHEAD > self._max_bytes:
            raise self.no_room()
        if type(value) is memoryview and not _is_most_of_its_message(value):
            return bytes(value)
        kept: Value = value
        return kept

    def check_all(
        self, keys: Sequence[bytes], values: Sequence[Any], tags: Collection[bytes], *, expires: bool
    ) -> None:
        """Check the values of a batch, which have these tags."""
        if not set(map(type, values)) <= {bytes} or max(map(len, values), default=0) > self.surely_fits:
            for key, value in zip(keys, values, strict=True):
                self.accept(key, value, expires=expires)
        if tags and values:
            largest = 3 * max(map(len, keys)) + max(map(len, values)) + sum(map(len, tags)) + _TAGS_SLACK
            if largest > self._max_bytes:
                raise self.no_room()

    def no_room(self) -> PyroError:
        """Return the refusal of a value that the store cannot hold."""
        text = f"The value does not fit into the node's {self._max_bytes} bytes of memory; start nodes with more."
        return refusal(VALUE_TOO_LARGE, text)


def _is_most_of_its_message(value: memoryview) -> bool:
    return len(value) >= _KEPT_IN_MESSAGE and 2 * len(value) >= len(value.obj)  # type: ignore[arg-type]
