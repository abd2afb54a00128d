"""8 and 32 client processes at once on one server: `get` and `set` of 100 bytes.

All clients start at the same moment and make calls for a fixed time; then the next contender runs.
"""

from __future__ import annotations

from functools import partial

from benchmarks.contest import Contest, Task
from benchmarks.crew import Limit
from benchmarks.field import TRANSPORTS, field
from benchmarks.results import Row
from benchmarks.session import Session
from benchmarks.workloads import filling, single_calls

TITLE = "Many client processes"

_KEYS = 1000
_SIZE = 100


def measure(session: Session) -> list[Row]:
    """Run the case."""
    rows = []
    for processes in (8, 32):
        limit = Limit(seconds=session.slice_seconds)
        tasks = [
            Task(f"{processes} processes", verb, partial(single_calls, verb, "k", _KEYS, _SIZE), limit)
            for verb in ("get", "set")
        ]
        transports = TRANSPORTS if processes == 8 else session.choose(TRANSPORTS, ("TCP",))
        with field(session, transports) as contenders:
            rows += Contest(
                case="processes",
                contenders=contenders,
                tasks=tasks,
                rounds=session.choose(9, 2),
                processes=processes,
                fillings=[partial(filling, "k", _KEYS, _SIZE)],
            ).rows(session)
    return rows
