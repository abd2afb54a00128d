"""`set` and `get` with and without a signing key, of 100 B, 10 KB and 1 MB, one client process and one server.

The ratios compare the client that signs with the one that does not.
"""

from __future__ import annotations

import os
import tempfile
from functools import partial
from typing import Any

from benchmarks import servers
from benchmarks.clients import pyrocache_client
from benchmarks.contest import Contest, Task
from benchmarks.crew import Limit
from benchmarks.field import OURS, SIGNED, TRANSPORTS, Contender
from benchmarks.results import Row
from benchmarks.session import Session
from benchmarks.workloads import filling, single_calls
from pyrocache.runtime import secret_file

TITLE = "Signed values"

_SIZES = {"100 B": ("small", 100), "10 KB": ("middle", 10_000), "1 MB": ("large", 1_000_000)}
_CALLS = {"100 B": 200, "10 KB": 200, "1 MB": 20}
_KEYS = 20


def measure(session: Session) -> list[Row]:
    """Run the case."""
    tasks = [
        Task(
            label,
            verb,
            partial(single_calls, verb, kind, _KEYS, size),
            Limit(calls=session.choose(_CALLS[label], _CALLS[label] // 4)),
        )
        for label, (kind, size) in _SIZES.items()
        for verb in ("get", "set")
    ]
    with tempfile.TemporaryDirectory() as directory, servers.pyrocache_cluster(1, "2GiB") as server:
        path = os.path.join(directory, "signing.key")
        secret_file.make(path)
        # In namespaces of their own, because neither reads the other's values.
        clients: dict[str, dict[str, Any]] = {
            OURS: {"namespace": "plain"},
            SIGNED: {"namespace": "signed", "signing_key_file": path},
        }
        contenders = [
            Contender(
                name, transport, server.pids, partial(pyrocache_client, server.address, transport, **options)
            )
            for transport in TRANSPORTS
            for name, options in clients.items()
        ]
        rows = Contest(
            case="signing",
            contenders=contenders,
            tasks=tasks,
            rounds=session.choose(15, 3),
            crews=session.choose(3, 1),
            fillings=[partial(filling, kind, _KEYS, size) for kind, size in _SIZES.values()],
        ).rows(session)
    return with_extra(rows)


def with_extra(rows: list[Row]) -> list[Row]:
    """Add to the rows of the client that signs how much longer its calls take than the other one's."""
    plain = {(row.table, row.operation): row.figures["median_us"] for row in rows if row.contender == OURS}
    for row in rows:
        if row.contender == SIGNED:
            row.figures["extra_us"] = row.figures["median_us"] - plain[row.table, row.operation]
    return rows
