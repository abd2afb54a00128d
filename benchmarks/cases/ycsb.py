"""YCSB's core workloads: A (50 % reads, 50 % updates), B (95/5), C (reads only), F (50 % reads, 50 % read then write).

8 client processes on one server; records of 1 KB, written as a whole; popularity zipfian with the constant 0.99,
scattered over the keys. Read then write counts as one call. After Cooper et al., "Benchmarking Cloud Serving
Systems with YCSB", SoCC 2010.
"""

from __future__ import annotations

from functools import partial

from benchmarks.contest import Contest, Task
from benchmarks.crew import Limit
from benchmarks.field import field
from benchmarks.results import Row
from benchmarks.session import Session
from benchmarks.workloads import YCSB_READS, filling, ycsb

TITLE = "YCSB"

_PROCESSES = 8
_SIZE = 1000


def measure(session: Session) -> list[Row]:
    """Run the case."""
    records = session.choose(10_000, 1000)
    draws = session.choose(20_000, 2000)
    tasks = [
        Task(
            f"Workload {workload}",
            "call",
            partial(ycsb, workload, records, _SIZE, draws),
            Limit(seconds=session.slice_seconds),
        )
        for workload in YCSB_READS
    ]
    with field(session, session.choose(("TCP", "Unix"), ("TCP",))) as contenders:
        return Contest(
            case="ycsb",
            contenders=contenders,
            tasks=tasks,
            rounds=session.choose(8, 2),
            processes=_PROCESSES,
            fillings=[partial(filling, "ycsb", records, _SIZE)],
        ).rows(session)
