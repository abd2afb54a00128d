"""Checks of the arguments of `CacheNode`'s methods, and the exception that refuses a call.

A peer can send anything that msgpack can carry. `check` has a rule for each kind of argument, and refuses arguments
that break it. Pure: no I/O, no threads, no clock.

Thread safety: thread-safe.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from Pyro5.errors import PyroError

from pyrocache.node.store.entry import Value, entry_cost
from pyrocache.node.store.namespaces import NAMESPACE_OVERHEAD
from pyrocache.protocol.int_frame import INT_TOO_LARGE, MAX_INT_BYTES, unpack_int
from pyrocache.protocol.limits import BATCH_BYTES, KEEP_TTL, MAX_BATCH, MAX_KEY_BYTES, MAX_TAG_BYTES, MAX_TAGS
from pyrocache.protocol.refusals import BAD_REQUEST, KEY_TOO_LARGE, VALUE_TOO_LARGE

_MAX_HOLDERS = 2**20
_ABOVE_0, _FINITE = math.ulp(0.0), sys.float_info.max
_TAGS_SLACK = 64 * 1024  # more than all tags of an entry take in addition to their names
_KEPT_IN_MESSAGE = 2**20  # smaller values are copied: a message of their own would take more memory pages
_MOST_TAGGED = 16_000  # tags of the entries of one batch, as each takes a microsecond on the I/O thread
_OVERHEADS = 2048  # more than an entry without tags takes beyond its key and value


def refusal(code: str, message: str, detail: Any = None) -> PyroError:
    """Return the exception that refuses a call. Every Pyro5 peer can receive it; see `pyrocache.protocol.refusals`."""
    error = PyroError(message)
    error.code = code
    error.detail = detail
    return error


def check(**arguments: Any) -> None:
    """Check each argument by the rule of its name, see `_RULES`.

    Raises:
        PyroError: an argument is not valid.
    """
    for rule, argument in arguments.items():
        _RULES[rule](argument)


def check_key(key: Any) -> None:
    """Check that a key is bytes of a valid length. Raises `PyroError`."""
    if type(key) is not bytes or not key:
        raise refusal(BAD_REQUEST, "A key is bytes, and not empty.")
    if len(key) > MAX_KEY_BYTES:
        raise refusal(KEY_TOO_LARGE, f"A key is at most {MAX_KEY_BYTES} bytes long.")


def _check_keys(keys: Any) -> None:
    _RULES["batch"](keys)
    total = len(b"".join(keys)) if {bytes}.issuperset(map(type, keys)) and all(keys) else math.inf
    if total > MAX_KEY_BYTES:
        for key in keys:
            check_key(key)  # raises the error of the first bad key, if there is one
        if total > BATCH_BYTES:
            raise refusal(
                VALUE_TOO_LARGE, f"A batch has at most {BATCH_BYTES} bytes of keys; send it in parts."
            )


def _check_ttl_or_keep(ttl_seconds: Any) -> None:
    if type(ttl_seconds) not in (int, float) or not (-_FINITE <= ttl_seconds < 0 or ttl_seconds == KEEP_TTL):
        _RULES["ttl"](ttl_seconds)


def _check_ttls(ttl_seconds: Any) -> None:
    if type(ttl_seconds) not in (list, tuple):
        _check_ttl_or_keep(ttl_seconds)
        return
    if None in ttl_seconds:
        raise refusal(BAD_REQUEST, "Each TTL of a list is a number.")
    for each in ttl_seconds:
        _check_ttl_or_keep(each)


def keeps_any(ttl_seconds: float | Sequence[float] | None) -> bool:
    """Return whether a TTL, or one of several, keeps that of an entry."""
    if ttl_seconds is None or isinstance(ttl_seconds, (int, float)):
        return ttl_seconds is not None and ttl_seconds < 0
    return min(ttl_seconds, default=0.0) < 0


def _check_condition(condition: Any) -> None:
    if condition not in (None, "absent", "present") and (type(condition) is not int or condition < 1):
        raise refusal(BAD_REQUEST, "A condition is None, 'absent', 'present' or a version.")


def _check_tags(tags: Any) -> None:
    _RULES["tag_list"](tags)
    for tag in tags or ():
        _RULES["tag"](tag)


@dataclass(frozen=True, slots=True)
class _Rule:
    """The types that an argument may have, and the bounds of its value or length. ``text`` is the error message."""

    text: str
    types: tuple[type, ...]
    least: float = -math.inf
    most: float = math.inf

    def __call__(self, argument: Any) -> None:
        valid = type(argument) in self.types  # not `isinstance`, which accepts a bool as an int
        if valid and argument is not None:
            size = argument if isinstance(argument, (int, float)) else len(argument)
            valid = self.least <= size <= self.most
        if not valid:
            raise refusal(BAD_REQUEST, self.text)


_RULES: dict[str, Callable[[Any], None]] = {
    "batch": _Rule(f"A batch is a list of at most {MAX_BATCH}.", (list, tuple), 0, MAX_BATCH),
    "condition": _check_condition,
    "cursor": _Rule("A cursor is the one that came with the last page, or 0.", (int,), 0, 2**64 - 1),
    "duration": _Rule("A duration is a finite number of seconds from 0 up.", (int, float), 0, _FINITE),
    "details": _Rule("Whether to send details is a bool.", (bool,)),
    "enough": _Rule("What is enough is None or an int above 0.", (int, NoneType), 1),
    "holders": _Rule(f"A limit is an int from 1 to {_MAX_HOLDERS}.", (int,), 1, _MAX_HOLDERS),
    "key": check_key,
    "keys": _check_keys,
    "limit": _Rule(f"A limit is an int from 1 to {MAX_BATCH}.", (int,), 1, MAX_BATCH),
    "namespace": _Rule("A namespace is bytes: the prefix of its keys.", (bytes,), 0, MAX_KEY_BYTES),
    "refresh": _Rule("What to refresh is 0, 1, 2 or 3.", (int,), 0, 3),
    "span": _Rule("The time of a lease or a lock is above 0.", (int, float), _ABOVE_0, _FINITE),
    "tag": _Rule(f"A tag is bytes, 1 to {MAX_TAG_BYTES} of them.", (bytes,), 1, MAX_TAG_BYTES),
    "tag_or_none": _Rule(
        f"A tag is None or bytes, 1 to {MAX_TAG_BYTES} of them.", (bytes, NoneType), 1, MAX_TAG_BYTES
    ),
    "tag_list": _Rule(f"Tags are a list of at most {MAX_TAGS}.", (list, tuple, NoneType), 0, MAX_TAGS),
    "tags": _check_tags,
    "token": _Rule("A token is an int.", (int,)),
    "ttl": _Rule(
        "A TTL is None or a finite number of seconds above 0.", (int, float, NoneType), _ABOVE_0, _FINITE
    ),
    "ttl_or_keep": _check_ttl_or_keep,
    "ttls": _check_ttls,
    "waiter": _Rule("A waiter is an int from 0 up.", (int,), 0, 2**64 - 1),
    "version": _Rule("A version is None or an int above 0.", (int, NoneType), 1),
}


def int_in(frame: Any, code: str = BAD_REQUEST, message: str = "A number is the frame of an int.") -> int:
    """Return the number in the frame of an int.

    Raises:
        PyroError: it is not one, with this code and message, or it has more than `MAX_INT_BYTES`.
    """
    number = None
    if type(frame) is bytes or type(frame) is memoryview:
        number = unpack_int(frame if len(frame) <= MAX_INT_BYTES else frame[:2])
    if number is None:
        raise refusal(code, message)
    if len(frame) > MAX_INT_BYTES:
        raise refusal(VALUE_TOO_LARGE, INT_TOO_LARGE)
    return number


class ValueLimits:
    """Decides which values a node accepts.

    Args:
        max_value_bytes: length of the largest value frame.
        max_bytes: the memory of the whole store.

    Attributes:
        surely_fits: a value frame of at most this length fits with any key.
    """

    __slots__ = ("_max_bytes", "_max_value_bytes", "surely_fits")

    def __init__(self, max_value_bytes: int, max_bytes: int) -> None:
        self._max_value_bytes = max_value_bytes
        self._max_bytes = max_bytes
        self.surely_fits = min(max_value_bytes, max_bytes - 2 * MAX_KEY_BYTES - _OVERHEADS)

    def accept(self, key: bytes, value: Value, ttl_seconds: float | None) -> Value:
        """Return ``value`` in the form to store. Raises `PyroError` if it is refused."""
        if type(value) is not bytes and type(value) is not memoryview:
            raise refusal(BAD_REQUEST, "A value is bytes.")
        if len(value) > self._max_value_bytes:
            raise refusal(VALUE_TOO_LARGE, f"The node accepts values of up to {self._max_value_bytes} bytes.")
        if entry_cost(key, value, expires=ttl_seconds is not None) + NAMESPACE_OVERHEAD > self._max_bytes:
            raise self.no_room()
        if type(value) is memoryview and len(value) < max(_KEPT_IN_MESSAGE, len(value.obj) / 2):  # type: ignore[arg-type]
            return bytes(value)  # the view would keep the rest of its message in memory
        return value

    def accept_all(
        self, keys: Sequence[bytes], values: Sequence[Any], expires: bool, tags: Collection[bytes]
    ) -> Sequence[Value]:
        """Return the values of a batch whose entries get these tags, in the form to store. Raises `PyroError`."""
        if len(keys) * len(tags) > _MOST_TAGGED:
            text = f"A batch has at most {_MOST_TAGGED} tags, over all its entries; send it in parts."
            raise refusal(VALUE_TOO_LARGE, text)
        if not set(map(type, values)) <= {bytes} or max(map(len, values), default=0) > self.surely_fits:
            seconds = 1.0 if expires else None
            values = [self.accept(key, value, seconds) for key, value in zip(keys, values, strict=True)]
        if tags and values:
            largest = 3 * max(map(len, keys)) + max(map(len, values)) + sum(map(len, tags)) + _TAGS_SLACK
            if largest > self._max_bytes:
                raise self.no_room()
        return values

    def no_room(self) -> PyroError:
        """Return the refusal of a value that the store cannot hold."""
        text = f"The value does not fit into the node's {self._max_bytes} bytes of memory; start nodes with more."
        return refusal(VALUE_TOO_LARGE, text)
