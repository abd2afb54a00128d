"""16 threads of one client process on one server: `get` and `set` of 100 bytes.

The threads share one client of pyrocache and of redis-py, and pymemcache's `PooledClient`. With stock Pyro5 and the
manager, each thread has a proxy or a connection of its own.
"""

from __future__ import annotations

from functools import partial

from benchmarks.contest import Contest, Task
from benchmarks.crew import Limit
from benchmarks.field import field
from benchmarks.results import Row
from benchmarks.session import Session
from benchmarks.workloads import filling, single_calls

TITLE = "Many threads of one process"

_THREADS = 16
_KEYS = 1000
_SIZE = 100


def measure(session: Session) -> list[Row]:
    """Run the case."""
    limit = Limit(seconds=session.slice_seconds)
    tasks = [
        Task(f"{_THREADS} threads", verb, partial(single_calls, verb, "k", _KEYS, _SIZE), limit)
        for verb in ("get", "set")
    ]
    with field(session, session.choose(("TCP", "Unix"), ("TCP",))) as contenders:
        return Contest(
            case="threads",
            contenders=contenders,
            tasks=tasks,
            rounds=session.choose(9, 2),
            threads=_THREADS,
            fillings=[partial(filling, "k", _KEYS, _SIZE)],
        ).rows(session)
