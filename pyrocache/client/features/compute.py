"""`compute`: change an entry by a function, with optimistic concurrency control.

Reads the entry, applies the function, and stores the result if nothing has changed the entry since; otherwise it
repeats this. The function runs in the caller's thread, perhaps several times. Its run time does not count towards the
call's timeout. Neither ``on_error`` nor ``on_undecodable`` applies: a made-up result, or one that overwrites what this
process cannot read, would look like a change.

Thread safety: thread-safe; a call has no shared state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pyrocache.client.context import MISSING, ClientContext, KeptTtl, Missing
from pyrocache.errors import Conflict
from pyrocache.net.backoff import Backoff
from pyrocache.tracebacks import brief

_T = TypeVar("_T")

_FIRST_PAUSE_SECONDS = 0.004
_LONGEST_PAUSE_SECONDS = 0.064


def compute(
    context: ClientContext,
    key: object,
    function: Callable[[Any], _T],
    default: Any | Missing,
    ttl_seconds: KeptTtl,
    *,
    sleep: Callable[[float], None] | None = None,
) -> _T:
    """Return what `PyroCacheClient.compute` returns. ``sleep`` waits between two attempts."""
    encoded, ttl = context.encode_key(key), context.ttl(ttl_seconds)
    deadline = context.deadline()
    backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, sleep=sleep)
    attempts = 0
    while True:
        found = context.backend.get_with_version(encoded, deadline)
        old, condition = default, "absent"
        if found is not None:
            old, condition = context.decode(encoded, found[0]), found[1]
        if old is MISSING:
            raise brief(KeyError(key))
        deadline.remaining()
        begun = deadline.seen_at  # the clock reading of the line above
        value = function(old)
        frame = context.codec.encode(encoded, value)
        deadline.remaining()
        deadline.at += deadline.seen_at - begun  # the function's run time does not count
        attempts += 1
        if context.backend.put(encoded, frame, ttl, condition, None, deadline):
            return value
        context.count("conflicts")
        # Report the conflict, which says more than a timeout of the next attempt would.
        if deadline.remaining() <= backoff.longest_next:
            raise Conflict(
                f"compute failed: other callers changed the entry each of the {attempts} times that this tried to, "
                f"for {deadline.seconds:g} s. Try again, or spread what is changed this often over several keys."
            )
        backoff.pause()
