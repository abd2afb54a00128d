"""TLS on and off: `get` and `set` of 100 B, 10 KB and an array of 16 MB, and new connections, over TCP.

One client process and one server. Compares ours without TLS (the default on one host) and with TLS, and redis-py
without TLS and with TLS. All certificates are of the kind that ``pyrocache certificates`` makes. Clients
have none.
"""

from __future__ import annotations

import importlib.util
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import servers
from benchmarks.clients import (
    RedisClient,
    new_pyrocache_connections,
    new_redis_connections,
    pyrocache_client,
)
from benchmarks.contest import Contest, Task
from benchmarks.crew import Limit
from benchmarks.field import OURS, REDIS, Contender
from benchmarks.results import Row
from benchmarks.servers import NotInstalled
from benchmarks.session import Session
from benchmarks.workloads import arrays, filling, single_calls
from pyrocache.config import TLS

TITLE = "TLS"

_SIZES = {"100 B": ("small", 100), "10 KB": ("middle", 10_000)}
_KEYS = 20
_MEGABYTES = 16


def measure(session: Session) -> list[Row]:
    """Run the case."""
    if importlib.util.find_spec("cryptography") is None:
        session.note("Nothing was measured with TLS: pip install cryptography")
        return []
    with ExitStack() as stack:
        tls = _certificate(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        known, new = _ours(stack, tls)
        try:
            known_redis, new_redis = _redis(stack, tls)
        except NotInstalled as missing:
            session.note(str(missing))
        else:
            known, new = known + known_redis, new + new_redis
        return _calls(session, known) + _connections(session, new)


def _calls(session: Session, contenders: list[Contender]) -> list[Row]:
    tasks = [
        Task(
            label,
            verb,
            partial(single_calls, verb, kind, _KEYS, size),
            Limit(calls=session.choose(200, 50)),
        )
        for label, (kind, size) in _SIZES.items()
        for verb in ("get", "set")
    ]
    tasks += [
        Task(
            f"{_MEGABYTES} MB",
            verb,
            partial(arrays, verb, _MEGABYTES),
            Limit(calls=session.choose(3, 1)),
        )
        for verb in ("get", "set")
    ]
    return Contest(
        case="encryption",
        contenders=contenders,
        tasks=tasks,
        rounds=session.choose(15, 3),
        crews=session.choose(3, 1),
        fillings=[
            *(partial(filling, kind, _KEYS, size) for kind, size in _SIZES.values()),
            partial(arrays, "set", _MEGABYTES),
        ],
    ).rows(session)


def _connections(session: Session, contenders: list[Contender]) -> list[Row]:
    return Contest(
        case="encryption",
        contenders=contenders,
        tasks=[
            Task(
                "new connection",
                "connect, get",
                partial(single_calls, "get", "k", _KEYS, 100),
                Limit(calls=session.choose(100, 25)),
            )
        ],
        rounds=session.choose(15, 3),
        crews=session.choose(3, 1),
        fillings=[partial(filling, "k", _KEYS, 100)],
    ).rows(session)


def _ours(stack: ExitStack, tls: TLS) -> tuple[list[Contender], list[Contender]]:
    """Start nodes. Return the contenders with open connections, and those with new ones."""
    known: list[Contender] = []
    new: list[Contender] = []
    for name, encryption in ((OURS, None), (f"{OURS}, TLS", tls)):
        server = stack.enter_context(servers.one_node(encryption))
        options: dict[str, Any] = {"tls": None if encryption is None else TLS(ca=tls.ca)}
        for contenders, connect in ((known, pyrocache_client), (new, new_pyrocache_connections)):
            client = partial(connect, server.address, "TCP", **options)
            contenders.append(Contender(name, "TCP", server.pids, client))
    return known, new


def _redis(stack: ExitStack, tls: TLS) -> tuple[list[Contender], list[Contender]]:
    known: list[Contender] = []
    new: list[Contender] = []
    for name, encryption in ((REDIS, None), (f"{REDIS}, TLS", tls)):
        server = stack.enter_context(servers.redis_server(tls=encryption))
        for contenders, connect in ((known, RedisClient), (new, new_redis_connections)):
            client = partial(connect, **server.address["TCP"])
            contenders.append(Contender(name, "TCP", server.pids, client))
    return known, new


def _certificate(directory: Path) -> TLS:
    from pyrocache.cli import certificates

    certificates.make(directory, [certificates.host("localhost")])
    place = directory / "localhost"
    return TLS(ca=str(place / "ca.pem"), cert=str(place / "cert.pem"), key=str(place / "key.pem"))
