"""What a run leaves behind: the calls of all clients, and the moments at which entries may have been lost.

Each client writes its calls to a file of its own, one JSON list a line. Times are of ``CLOCK_MONOTONIC``, which all
processes of a machine share. Pure, apart from `Recorder` and `read_history`.

Thread safety: a `Recorder` is used by one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pyrocache import PyroCacheError

OK, REFUSED, MAYBE = "ok", "refused", "maybe"
"""Outcomes: as the call promises; not done, says the reply (a condition was not met); the call raised."""

GET, SET, CAS, DELETE = "get", "set", "cas", "delete"
"""Calls about registers: keys whose values are each written by one call only."""
CLEAR = "clear"
"""A call that removes a group of registers from all nodes. Recorded for each: at one moment of it, there was none."""
INCR, COUNT = "incr", "count"
"""Calls about counters. Each `INCR` adds another power of 16, so that the sum shows which were done, and how often."""
ACQUIRE = "acquire"
"""Calls about locks."""

GRACE_SECONDS = 1.0
"""A change that raised may still take effect until so long after its deadline or its end, whichever is later."""


class Call(NamedTuple):
    """One call of one client about one key.

    Attributes:
        client: who called.
        kind, key: what.
        start, end: monotonic seconds, taken around the call.
        outcome: `OK`, `REFUSED` or `MAYBE`.
        value: the value written or read (None: there was none); of a counter, its digits; of a lock, the fencing token.
        replaced: of a `CAS`, the value that it replaces.
        slot: of an `INCR`, the place of its digit.
        limit: the latest moment at which it may have taken effect.
        error: the class of the exception, with ``!`` before it if it is none of pyrocache's.
    """

    client: str
    kind: str
    key: str
    start: float
    end: float
    outcome: str = OK
    value: Any = None
    replaced: str | None = None
    slot: int = 0
    limit: float = 0.0
    error: str = ""

    @property
    def miss(self) -> bool:
        """Return whether the call says that there was no entry."""
        return (self.kind == GET and self.outcome == OK and self.value is None) or (
            self.kind == DELETE and self.outcome == REFUSED
        )


class Loss(NamedTuple):
    """A time in which entries of these keys may vanish, as one copy and a dead node, or a move, explain."""

    start: float
    end: float
    keys: frozenset[str]


class Recorder:
    """Makes calls and records them in a file.

    Args:
        path: the file.
        client: the client's name.
        timeout: the deadline of its calls in seconds.
    """

    def __init__(self, path: Path, client: str, timeout: float) -> None:
        self.client = client
        self.failed = False
        self._timeout = timeout
        self._file = path.open("w")

    def call(
        self,
        kind: str,
        keys: Iterable[str],
        function: Callable[[], Any],
        read: Callable[[Any, str], tuple[str, Any]],
        **details: Any,
    ) -> Any:
        """Call ``function`` and record it for each key. Return its result, None if it raised.

        Args:
            read: returns the outcome and the value for a key from the result.
            details: further fields; ``value`` is what a change writes, or a dict of that by key.
        """
        start = time.monotonic()
        result, error = None, ""
        try:
            result = function()
        except Exception as raised:
            error = ("" if isinstance(raised, PyroCacheError) else "!") + type(raised).__name__
        end = time.monotonic()
        self.failed = bool(error)
        limit = max(end, start + self._timeout) + GRACE_SECONDS if error else end
        written = details.pop("value", None)
        for key in keys:
            value = written[key] if isinstance(written, dict) else written
            outcome, value = (MAYBE, value) if error else read(result, key)
            call = Call(
                self.client, kind, key, start, end, outcome, value, limit=limit, error=error, **details
            )
            self._file.write(json.dumps(call) + "\n")
        return result

    def close(self) -> None:
        """Write everything that is buffered."""
        self._file.close()


def read_history(directory: Path) -> list[Call]:
    """Return the calls of all clients, by their start."""
    lines = (line for path in directory.glob("*.jsonl") for line in path.open())
    return sorted((Call(*json.loads(line)) for line in lines), key=lambda call: call.start)
