"""The owner of a key, by a view that was used before: `ClusterView.owner` for views of 3, 16, 100 and 1000 nodes.

One process calls it for 20,000 distinct keys in a loop; the time of the same loop with an empty body is subtracted. The
table has the medians of rounds in which the views alternate. No server takes part.
"""

from __future__ import annotations

import time
from collections import defaultdict

import numpy as np

from benchmarks.field import OURS
from benchmarks.results import Row
from benchmarks.rounds import rotated
from benchmarks.session import Session
from benchmarks.workloads import key
from pyrocache.cluster.routing import ClusterView, Member

TITLE = "Routing"

TABLE = "Owner of a key"

_NODES = (3, 16, 100, 1000)
_KEYS = 20_000


def measure(session: Session) -> list[Row]:
    """Run the case."""
    session.progress("routing")
    keys = [key("k", number).encode() for number in range(_KEYS)]
    views = {count: _warm_view(count, keys) for count in _NODES}
    loops: list[float] = []
    with_lookup: dict[int, list[float]] = defaultdict(list)
    for number in range(session.choose(60, 10)):
        loops.append(_empty_loop_us(keys))
        for count in rotated(_NODES, number):
            with_lookup[count].append(_lookups_us(views[count], keys))
    loop = float(np.median(loops))
    lookups = {count: float(np.median(taken)) - loop for count, taken in with_lookup.items()}
    return [
        Row(
            "routing",
            TABLE,
            f"{count} nodes",
            OURS,
            {
                "lookup_us": lookups[count],
                "with_loop_us": lookups[count] + loop,
                "loop_us": loop,
                "to_3_nodes": lookups[count] / lookups[3],
            },
        )
        for count in _NODES
    ]


def _warm_view(nodes: int, keys: list[bytes]) -> ClusterView:
    view = ClusterView(
        Member(f"cache.node.{number + 1}", "127.0.0.1", 10_000 + number) for number in range(nodes)
    )
    for one in keys:
        view.owner(one)
    return view


def _empty_loop_us(keys: list[bytes]) -> float:
    begin = time.perf_counter()
    for _one in keys:
        pass
    return (time.perf_counter() - begin) / len(keys) * 1e6


def _lookups_us(view: ClusterView, keys: list[bytes]) -> float:
    owner = view.owner
    begin = time.perf_counter()
    for one in keys:
        owner(one)
    return (time.perf_counter() - begin) / len(keys) * 1e6
