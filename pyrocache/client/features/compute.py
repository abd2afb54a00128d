"""Read, apply a function, store if nothing has changed since, else begin again: optimistic concurrency control.

The function runs in the caller's thread, perhaps several times, and its time does not count to the call's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pyrocache.client.backend import MISSING, Core, KeptTtl, Missing, ttl_on_the_wire
from pyrocache.client.codec import encode_value
from pyrocache.errors import Conflict, NodeUnavailable
from pyrocache.net.deadline import Deadline

_T = TypeVar("_T")

_FIRST_BACKOFF_SECONDS = 0.002
_LONGEST_BACKOFF_SECONDS = 0.064


def update(
    core: Core, key: object, function: Callable[[Any], _T], default: Any | Missing, ttl_seconds: KeptTtl
) -> _T:
    """What `PyroCacheClient.update` returns when it is given a function."""
    encoded, ttl = core.encode_key(key), ttl_on_the_wire(ttl_seconds)
    deadline = core.deadline()
    attempts = 0
    while True:
        old, condition = _read(core, encoded, default, deadline)
        if old is MISSING:
            raise KeyError(key)
        value, frame = _apply(function, old, deadline)
        attempts += 1
        try:
            stored = core.call_owner(
                "put",
                encoded,
                frame,
                ttl,
                condition,
                None,
                deadline=deadline,
                idempotent=False,
                largest_value=len(frame),
            )
        except NodeUnavailable as error:
            return core.missed(error, value)
        if stored:
            return value
        core.count("conflicts")
        pause = min(_FIRST_BACKOFF_SECONDS * 2 ** min(attempts, 10), _LONGEST_BACKOFF_SECONDS)
        if deadline.remaining() <= pause:
            raise Conflict(
                f"update failed: others changed the entry each of the {attempts} times that this tried to, for "
                f"{deadline.seconds:g} s. Try again, or spread what is changed this often over several keys."
            )
        core.router.back_off(pause)


def _read(core: Core, encoded: bytes, default: Any | Missing, deadline: Deadline) -> tuple[Any, str | int]:
    """The value that there is and its version, or ``default`` and that there must be none."""
    try:
        found = core.call_owner("get_with_version", encoded, deadline=deadline)
    except NodeUnavailable as error:
        found = core.missed(error, None)
    if found is None:
        return default, "absent"
    frame, version = found
    return core.decode(frame), version


def _apply(function: Callable[[Any], _T], old: Any, deadline: Deadline) -> tuple[_T, Any]:
    """The new value and its frame, the deadline put off by the time that this takes."""
    deadline.remaining()
    begun = deadline.seen_at
    value = function(old)
    frame = encode_value(value)
    deadline.remaining()
    deadline.at += deadline.seen_at - begun
    return value, frame
