"""`set` and `get` of numpy float64 arrays of 1 MB and 16 MB, one client process.

All pickle with protocol 5. The other contenders use ``pickle.dumps`` and ``pickle.loads``, which copy the array.
memcached runs with ``-I 64m``, because its default limit is 1 MB.
"""

from __future__ import annotations

from functools import partial

from benchmarks.contest import Contest, Task
from benchmarks.crew import Limit
from benchmarks.field import field
from benchmarks.results import Row
from benchmarks.session import Session
from benchmarks.workloads import arrays

TITLE = "Large arrays"

_CALLS = {1: 10, 16: 3}


def measure(session: Session) -> list[Row]:
    """Run the case."""
    tasks = [
        Task(f"{megabytes} MB", verb, partial(arrays, verb, megabytes), Limit(calls=session.choose(calls, 1)))
        for megabytes, calls in _CALLS.items()
        for verb in ("set", "get")
    ]
    with field(session, with_manager=False, largest_item="64m") as contenders:
        return Contest(
            case="arrays",
            contenders=contenders,
            tasks=tasks,
            rounds=session.choose(10, 2),
            crews=session.choose(3, 1),
            fillings=[partial(arrays, "set", megabytes) for megabytes in _CALLS],
        ).rows(session)
