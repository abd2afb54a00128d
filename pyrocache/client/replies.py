"""The form of a valid reply to each command.

Any peer may answer at a node's address, and msgpack carries more than a command can return. `Backend` checks each reply
before any other part of the client sees it, so that a reply of a wrong type becomes a `RemoteError` and nothing else.
The content of value frames, keys and tags is not checked here: their decoders do that. Pure: no I/O, no threads, no
clock.

Thread safety: thread-safe; functions of their arguments.
"""

from __future__ import annotations

from types import NoneType
from typing import Any

from pyrocache.errors import RemoteError
from pyrocache.protocol.commands import Command
from pyrocache.protocol.int_frame import INT_KIND
from pyrocache.protocol.limits import MAX_KEY_BYTES

_FRAMES = frozenset({bytes, memoryview})
_FRAMES_OR_NONE = frozenset({bytes, memoryview, NoneType})
_BYTES = frozenset({bytes})


def wrong(command: Command, node: str) -> RemoteError:
    """Return the error for a reply that is not valid."""
    return RemoteError(
        f"{node or 'A node'} answered {command.title} with a reply of the wrong kind or length: make sure that a node "
        "of this version of pyrocache runs there."
    )


def is_bool(reply: Any) -> bool:
    """Return whether a reply is a bool."""
    return type(reply) is bool


def is_count(reply: Any) -> bool:
    """Return whether a reply is the number of some entries or callers."""
    return type(reply) is int and 0 <= reply < 2**63


def is_answer(reply: Any) -> bool:
    """Return whether a reply is a map, as of ``ping``."""
    return type(reply) is dict


def is_frame_or_none(reply: Any) -> bool:
    """Return whether a reply is a value frame or None."""
    return type(reply) in _FRAMES_OR_NONE


def is_int_frame_or_none(reply: Any) -> bool:
    """Return whether a reply is the frame of an int, or None."""
    return reply is None or (type(reply) in _FRAMES and len(reply) > 1 and reply[0] == INT_KIND[0])


def is_seconds_or_none(reply: Any) -> bool:
    """Return whether a reply is a number or None. NaN is neither; infinity is a number."""
    return reply is None or (type(reply) in (int, float) and reply == reply)


def is_token_or_none(reply: Any) -> bool:
    """Return whether a reply is the number of a grant, or None."""
    return reply is None or (type(reply) is int and 0 < reply < 2**63)


def is_versioned_or_none(reply: Any) -> bool:
    """Return whether a reply is a frame and its version, or None."""
    return reply is None or (
        type(reply) is list and len(reply) == 2 and type(reply[0]) in _FRAMES and _is_version(reply[1])
    )


def is_timed_or_none(reply: Any) -> bool:
    """Return whether a reply is a frame, the remaining seconds and the load seconds, or None."""
    return reply is None or (type(reply) is list and len(reply) == 3 and _is_timed(reply))


def is_entry_or_none(reply: Any) -> bool:
    """Return whether a reply is a frame, a version and the description of an entry, or None."""
    return reply is None or (
        type(reply) is list
        and len(reply) == 7
        and type(reply[0]) in _FRAMES
        and _is_version(reply[1])
        and _is_description(reply[2:])
    )


def is_lease_answer(reply: Any) -> bool:
    """Return whether a reply is one to ``lease``: a value, a stale value, a lease, or None."""
    if type(reply) is not list or not reply:
        return reply is None
    kind, rest = reply[0], reply[1:]
    if kind == "value":
        return len(rest) == 3 and _is_timed(rest)
    if kind == "stale":
        return len(rest) == 1 and type(rest[0]) in _FRAMES
    return kind == "load" and len(rest) == 2 and _is_version(rest[0]) and type(rest[1]) in _FRAMES_OR_NONE


def are_frames(reply: list[Any]) -> bool:
    """Return whether the items of a reply are frames or None."""
    return _FRAMES_OR_NONE.issuperset(map(type, reply))


def are_entries(reply: list[Any]) -> bool:
    """Return whether the items of a reply are replies to ``get_entry``."""
    return all(map(is_entry_or_none, reply))


def is_page(reply: Any, cursor: int, batch: int, details: bool) -> bool:
    """Return whether a reply is a page of a scan that is behind ``cursor``, or the last one, of ``batch`` keys at most.

    A cursor that does not grow would make a scan endless.
    """
    if not (type(reply) is list and len(reply) == 2 and _advances(reply[0], cursor)):
        return False
    page = reply[1]
    if type(page) is not list or len(page) > batch:
        return False
    if details:
        if not all(type(each) is list and len(each) == 6 and _is_description(each[1:]) for each in page):
            return False
        page = [each[0] for each in page]
    return _BYTES.issuperset(map(type, page)) and max(map(len, page), default=0) <= MAX_KEY_BYTES


def is_removal(reply: Any, cursor: int) -> bool:
    """Return whether a reply is one to ``delete_prefix``: a cursor behind this one, or 0, and a number of entries."""
    return type(reply) is list and len(reply) == 2 and _advances(reply[0], cursor) and is_count(reply[1])


def is_hot_keys(reply: Any, limit: int) -> bool:
    """Return whether a reply is one to ``hot_keys``: seconds, and at most ``limit`` keys, each with its calls."""
    if not (type(reply) is list and len(reply) == 2 and _is_amount(reply[0]) and type(reply[1]) is list):
        return False
    return len(reply[1]) <= limit and all(
        type(row) is list
        and len(row) == 2
        and type(row[0]) is bytes
        and 0 < len(row[0]) <= MAX_KEY_BYTES
        and _is_amount(row[1])
        for row in reply[1]
    )


def _is_amount(number: Any) -> bool:
    return type(number) in (int, float) and 0 <= number < 2**63


def _advances(reply: Any, cursor: int) -> bool:
    return type(reply) is int and (reply == 0 or cursor < reply < 2**64)


def _is_version(number: Any) -> bool:
    return type(number) is int and 0 < number < 2**63


def _is_timed(reply: list[Any]) -> bool:
    return type(reply[0]) in _FRAMES and all(map(is_seconds_or_none, reply[1:]))


def _is_description(reply: list[Any]) -> bool:
    remaining, tags, age, idle, size = reply
    return (
        remaining is not None
        and all(map(is_seconds_or_none, (remaining, age, idle)))
        and type(tags) is list
        and _BYTES.issuperset(map(type, tags))
        and is_count(size)
    )
