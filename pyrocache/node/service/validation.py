"""What a caller may say: checks of the arguments of `CacheNode`'s methods, and the form of a refusal. Pure.

A peer can send anything that msgpack can carry. Each check returns when an argument is as it must be and raises a
refusal, which every Pyro5 peer can receive, when it is not.
"""

from __future__ import annotations

import math
from typing import Any

from Pyro5.errors import PyroError

from pyrocache.protocol.int_frame import unpack_int
from pyrocache.protocol.limits import (
    KEEP_TTL,
    MAX_BATCH,
    MAX_KEY_BYTES,
    MAX_TAG_BYTES,
    MAX_TAGS,
    MOST_SECONDS,
)
from pyrocache.protocol.refusals import BAD_REQUEST, KEY_TOO_LARGE


def refusal(code: str, message: str, detail: Any = None) -> PyroError:
    """The exception that every Pyro5 peer can receive; see ``cluster/wire.py``."""
    error = PyroError(message)
    error.code = code
    error.detail = detail
    return error


def check_key(key: Any) -> None:
    """A key is bytes, of a bounded length."""
    if type(key) is not bytes or not key:
        raise refusal(BAD_REQUEST, "A key is bytes, and not empty.")
    if len(key) > MAX_KEY_BYTES:
        raise refusal(KEY_TOO_LARGE, f"A key is at most {MAX_KEY_BYTES} bytes long.")


def check_keys(keys: Any) -> None:
    """A batch of keys."""
    check_batch(keys)
    if not {bytes}.issuperset(map(type, keys)) or b"" in keys or len(b"".join(keys)) > MAX_KEY_BYTES:
        for key in keys:
            check_key(key)  # says what is wrong with it, if anything is


def check_batch(items: Any) -> None:
    """A batch is an array of a bounded length."""
    if type(items) not in (list, tuple) or len(items) > MAX_BATCH:
        raise refusal(BAD_REQUEST, f"A batch is a list of at most {MAX_BATCH}.")


def check_ttl(ttl_seconds: Any) -> None:
    """A TTL is None or seconds."""
    if ttl_seconds is None:
        return
    number = type(ttl_seconds) in (int, float)
    if not number or not 0 < ttl_seconds < math.inf:
        raise refusal(BAD_REQUEST, "A TTL is None or a finite number of seconds above 0.")


def check_ttl_or_keep(ttl_seconds: Any) -> None:
    """The same, or what stands for the TTL that there is."""
    if type(ttl_seconds) is not int or ttl_seconds != KEEP_TTL:
        check_ttl(ttl_seconds)


def check_seconds(seconds: Any) -> None:
    """A duration, which may be 0."""
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise refusal(BAD_REQUEST, "A duration is a finite number of seconds from 0 up.")


def check_span(seconds: Any, *, above: float | None = None) -> float:
    """A time to wait or to hold something, cut to `MOST_SECONDS`; ``above`` 0 if it may not be 0."""
    check_seconds(seconds)
    if seconds == above:
        raise refusal(BAD_REQUEST, "The time of a lease or a lock is above 0.")
    return float(min(seconds, MOST_SECONDS))


def check_condition(condition: Any) -> None:
    """What an entry must be for a value to be stored."""
    if condition not in (None, "absent", "present") and (type(condition) is not int or condition < 1):
        raise refusal(BAD_REQUEST, "A condition is None, 'absent', 'present' or a version.")


def check_tags(tags: Any) -> None:
    """None, or a few names."""
    if tags is None:
        return
    if type(tags) not in (list, tuple) or len(tags) > MAX_TAGS:
        raise refusal(BAD_REQUEST, f"Tags are a list of at most {MAX_TAGS}.")
    for tag in tags:
        check_tag(tag)


def check_tag(tag: Any) -> None:
    """A tag is bytes, of a bounded length."""
    if type(tag) is not bytes or not 0 < len(tag) <= MAX_TAG_BYTES:
        raise refusal(BAD_REQUEST, f"A tag is bytes, 1 to {MAX_TAG_BYTES} of them.")


def check_namespace(namespace: Any) -> None:
    """A namespace is given by what its keys begin with."""
    if type(namespace) is not bytes or len(namespace) > MAX_KEY_BYTES:
        raise refusal(BAD_REQUEST, "A namespace is bytes: what its keys begin with.")


def check_int(frame: Any) -> int:
    """The number in the frame of an int."""
    number = unpack_int(frame) if type(frame) in (bytes, memoryview) else None
    if number is None:
        raise refusal(BAD_REQUEST, "A number is the frame of an int.")
    return number
