"""The mix, sizes and popularity of a production key-value cache of Meta, after CacheLib's cachebench.

8 client processes on one server. 98.45 % of the calls are `get`, of which 13.5 % look up keys that do not exist; the
others are `set`. The sizes of the pickled values are drawn by the weights in the data. The popularity of keys is that
of the data; its large buckets of equally popular keys are reduced so that 100,000 keys remain.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks import meta
from benchmarks.contest import Contest, Task
from benchmarks.crew import Limit
from benchmarks.field import field
from benchmarks.results import Row
from benchmarks.session import Session

TITLE = "Meta's key-value cache"

_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
_PROCESSES = 8


def measure(session: Session) -> list[Row]:
    """Run the case."""
    if not meta.is_there(_DATA):
        session.note("kvcache is left out: the data of CacheLib's cachebench is not in ../shared/data.")
        return []
    mix = meta.Mix(_DATA, keys=session.choose(100_000, 10_000))
    limit = Limit(seconds=session.slice_seconds)
    task = Task("Mix", "call", partial(meta.stream, mix, session.choose(20_000, 2000)), limit)
    with field(session, session.choose(("TCP", "Unix"), ("TCP",))) as contenders:
        return Contest(
            case="kvcache",
            contenders=contenders,
            tasks=[task],
            rounds=session.choose(15, 3),
            processes=_PROCESSES,
            fillings=[partial(meta.filling, mix)],
        ).rows(session)
