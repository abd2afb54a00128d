"""`get_many` and `set_many` of 10, 100 and 1000 keys with values of 100 bytes, one client process.

pyrocache runs as a cluster of three nodes and, for comparison, of one node. The ratios compare three nodes with the
single server of each other contender. The commands of Redis are MGET and MSET.
"""

from __future__ import annotations

from functools import partial

from benchmarks.contest import Contest, Task
from benchmarks.crew import Limit
from benchmarks.field import OURS, field
from benchmarks.results import Row
from benchmarks.session import Session
from benchmarks.workloads import batches

TITLE = "Many keys at once"

ONE_NODE = f"{OURS}, 1 node"

_CALLS = {10: 100, 100: 30, 1000: 10}
_SIZE = 100


def measure(session: Session) -> list[Row]:
    """Run the case."""
    tasks = [
        Task(
            f"{length} keys",
            verb,
            partial(batches, verb, "k", length, _SIZE),
            Limit(calls=session.choose(calls, calls // 10)),
        )
        for length, calls in _CALLS.items()
        for verb in ("get_many", "set_many")
    ]
    with field(session, clusters={OURS: 3, ONE_NODE: 1}, with_manager=False) as contenders:
        return Contest(
            case="batches",
            contenders=contenders,
            tasks=tasks,
            rounds=session.choose(10, 2),
            crews=session.choose(3, 1),
            fillings=[partial(batches, "set_many", "k", max(_CALLS), _SIZE)],
        ).rows(session)
