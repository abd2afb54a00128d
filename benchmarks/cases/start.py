"""From nothing to the first `get`, each in a fresh process: a cluster of three nodes and, for scale, a redis-server.

Also the time of ``import pyrocache`` in a fresh interpreter, without the start of the interpreter, and of the import of
the client module, which happens at the first use of the client.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks import servers
from benchmarks.field import OURS, REDIS
from benchmarks.results import Row
from benchmarks.rounds import rotated
from benchmarks.servers import NotInstalled
from benchmarks.session import Session

TITLE = "Start"

TABLE = "Start"
CLUSTER = "LocalCluster(3) to the first get"
SERVER = "redis-server to the first get"

_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 60.0
_CLUSTER_CODE = """
import time
from pyrocache import LocalCluster
begin = time.perf_counter()
cluster = LocalCluster(3)
cluster.client().get("nobody")
print(time.perf_counter() - begin)
cluster.stop()
"""
_IMPORT_CODE = """
import time
begin = time.perf_counter()
{statement}
print(time.perf_counter() - begin)
"""
_IMPORTS = ("import pyrocache", "from pyrocache import PyroCacheClient")


def measure(session: Session) -> list[Row]:
    """Run the case."""
    codes = {CLUSTER: _CLUSTER_CODE} | {one: _IMPORT_CODE.format(statement=one) for one in _IMPORTS}
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    repeats = session.choose(15, 3)
    for number in range(repeats):
        session.progress(f"start: round {number + 1} of {repeats}")
        for what in rotated([*codes, SERVER], number):
            if what != SERVER:
                seconds[what, OURS].append(_seconds_of(codes[what]))
                continue
            try:
                taken = _redis_seconds()
            except NotInstalled as missing:
                session.note(str(missing))
            else:
                seconds[what, REDIS].append(taken)
    order = {CLUSTER: 0, SERVER: 1}
    rows = []
    for (what, name), measured in sorted(seconds.items(), key=lambda item: order.get(item[0][0], 2)):
        milliseconds = np.array(measured) * 1e3
        figures = {
            "median_ms": float(np.median(milliseconds)),
            "fastest_ms": float(milliseconds.min()),
            "slowest_ms": float(milliseconds.max()),
        }
        rows.append(Row("start", TABLE, what, name, figures))
    return rows


def _seconds_of(code: str) -> float:
    # With compiled modules, as an installed package has them.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_SECONDS,
        check=True,
    )
    return float(done.stdout)


def _redis_seconds() -> float:
    servers.check_library("redis")
    import redis

    begin = time.perf_counter()
    with servers.redis_server() as server, redis.Redis(**server.address["TCP"]) as client:
        client.get("nobody")
        return time.perf_counter() - begin
