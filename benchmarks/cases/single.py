"""One client process and one server: `get` of a key that exists and of one that does not, `set`, `delete`.

The contenders run in turn, in blocks of calls. Three client processes, one after the other, make a third of the rounds
each.
"""

from __future__ import annotations

from functools import partial

from benchmarks.contest import Contest, Task
from benchmarks.crew import Limit
from benchmarks.field import field
from benchmarks.results import Row
from benchmarks.session import Session
from benchmarks.workloads import filling, single_calls

TITLE = "One client"

_SIZES = {"100 B": 100, "1 KB": 1000, "10 KB": 10_000}


def measure(session: Session) -> list[Row]:
    """Run the case."""
    calls = session.choose(200, 50)
    keys = session.choose(1000, 200)
    limit = Limit(calls=calls)
    tasks = []
    for label, size in _SIZES.items():
        there, missing, gone = f"k{size}", f"m{size}", f"d{size}"
        tasks += [
            Task(label, "get hit", partial(single_calls, "get", there, keys, size), limit),
            Task(label, "get miss", partial(single_calls, "get", missing, keys, size), limit),
            Task(label, "set", partial(single_calls, "set", there, keys, size), limit),
            Task(
                label,
                "delete",
                partial(single_calls, "delete", gone, calls, size),
                limit,
                before=partial(filling, gone, calls, size),
            ),
        ]
    with field(session) as contenders:
        return Contest(
            case="single",
            contenders=contenders,
            tasks=tasks,
            rounds=session.choose(15, 3),
            crews=session.choose(3, 1),
            fillings=[partial(filling, f"k{size}", keys, size) for size in _SIZES.values()],
        ).rows(session)
