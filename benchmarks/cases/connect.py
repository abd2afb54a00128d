"""A new connection: connect, prove the secret, one `get` of 100 bytes, close. One client process and one server.

Beside ours with the proof (the default) are ours without it (``authenticate=False`` to the same node, which was started
with ``--open``), and redis-py with and without a password.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from functools import partial

from benchmarks import servers
from benchmarks.clients import new_pyrocache_connections, new_redis_connections
from benchmarks.contest import Contest, Task
from benchmarks.crew import Limit
from benchmarks.field import OURS, REDIS, TRANSPORTS, Contender
from benchmarks.results import Row
from benchmarks.servers import NotInstalled
from benchmarks.session import Session
from benchmarks.workloads import filling, single_calls

TITLE = "New connections"

UNPROVEN = f"{OURS}, no proof"
PASSWORD = f"{REDIS}, password"

_KEYS = 100
_SIZE = 100


def measure(session: Session) -> list[Row]:
    """Run the case."""
    contenders: list[Contender] = []
    with ExitStack() as stack:
        ours = stack.enter_context(servers.one_node(open=True))
        for transport in TRANSPORTS:
            for name, authenticate in ((OURS, True), (UNPROVEN, False)):
                connect = partial(
                    new_pyrocache_connections, ours.address, transport, authenticate=authenticate
                )
                contenders.append(Contender(name, transport, ours.pids, connect))
        try:
            for name, password in ((REDIS, ""), (PASSWORD, secrets.token_hex(16))):
                redis = stack.enter_context(servers.redis_server(password))
                contenders += [
                    Contender(
                        name,
                        transport,
                        redis.pids,
                        partial(new_redis_connections, **redis.address[transport]),
                    )
                    for transport in TRANSPORTS
                ]
        except NotInstalled as missing:
            session.note(str(missing))
        return Contest(
            case="connect",
            contenders=contenders,
            tasks=[
                Task(
                    "new connection",
                    "connect, get",
                    partial(single_calls, "get", "k", _KEYS, _SIZE),
                    Limit(calls=session.choose(100, 25)),
                )
            ],
            rounds=session.choose(15, 3),
            crews=session.choose(3, 1),
            fillings=[partial(filling, "k", _KEYS, _SIZE)],
        ).rows(session)
