"""`compute`: change an entry by a function, with optimistic concurrency control.

Reads the entry, applies the function, and stores the result if nothing has changed the entry since; otherwise it
repeats this. The function runs in the caller's thread, perhaps several times. Its run time does not count towards the
call's timeout. Neither ``on_error`` nor ``on_undecodable`` applies: a made-up result, or one that overwrites what this
process cannot read, would look like a change.

Thread safety: thread-safe; a call has no shared state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pyrocache.client.context import MISSING, ClientContext, KeptTtl, Missing
from pyrocache.errors import Conflict
from pyrocache.net.backoff import Backoff
from pyrocache.tracebacks import brief

_T = TypeVar("_T")

FIRST_PAUSE_SECONDS = 0.004
LONGEST_PAUSE_SECONDS = 0.064


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
    attempt = Attempt(context, key, default, ttl_seconds)
    backend, backoff = context.backend, Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, sleep=sleep)
    while True:
        old = attempt.old(backend.get_with_version(attempt.key, attempt.deadline))
        value = function(old)
        frame = attempt.made(value)
        if backend.put(attempt.key, frame, attempt.ttl, attempt.condition, None, attempt.deadline):
            return value
        attempt.conflict(backoff.longest_next)
        backoff.pause()


class Attempt:
    """The attempts of one `compute` call. Without I/O, for both clients.

    Attributes:
        key: canonical bytes.
        ttl: as commands encode it.
        deadline: of the call; the function's run time does not count.
        condition: what the entry must be for the result to be stored.
    """

    def __init__(
        self, context: ClientContext[Any], key: object, default: Any | Missing, ttl_seconds: KeptTtl
    ) -> None:
        self._context = context
        self._named = key
        self._default = default
        self.key, self.ttl = context.encode_key(key), context.ttl(ttl_seconds)
        self.deadline = context.deadline()
        self.condition: str | int = "absent"
        self._begun = 0.0
        self._count = 0

    def old(self, found: Sequence[Any] | None) -> Any:
        """Return what to give to the function, now. Raises `KeyError` if there is nothing."""
        old, self.condition = self._default, "absent"
        if found is not None:
            old, self.condition = self._context.decode(self.key, found[0]), found[1]
        if old is MISSING:
            raise brief(KeyError(self._named))
        self.deadline.remaining()
        self._begun = self.deadline.seen_at  # the clock reading of the line above
        return old

    def made(self, value: Any) -> Any:
        """Return the frame of what the function has made."""
        frame = self._context.codec.encode(self.key, value)
        self.deadline.remaining()
        self.deadline.at += self.deadline.seen_at - self._begun
        return frame

    def conflict(self, pause_seconds: float) -> None:
        """Note that the entry has changed. Raises `Conflict` if there is no time for a pause and another attempt."""
        self._count += 1
        self._context.count("conflicts")
        # Report the conflict, which says more than a timeout of the next attempt would.
        if self.deadline.remaining() <= pause_seconds:
            raise Conflict(
                f"compute failed: other callers changed the entry each of the {self._count} times that this tried to, "
                f"for {self.deadline.seconds:g} s. Try again, or spread what is changed this often over several keys."
            )
