"""The field of a case: which servers run, and how a client of each is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks import servers
from benchmarks.clients import (
    ManagerClient,
    MemcachedClient,
    RedisClient,
    StockPyroClient,
    Transport,
    pyrocache_client,
)
from benchmarks.servers import NotInstalled, Server
from benchmarks.session import Session

OURS = "pyrocache"
REDIS = "redis-py"
MEMCACHED = "pymemcache"
STOCK_PYRO = "stock Pyro5"
MANAGER = "Manager"
SIGNED = f"{OURS}, signed"

TRANSPORTS: tuple[Transport, ...] = ("TCP", "Unix")


@dataclass(frozen=True, slots=True)
class Contender:
    """One server as clients reach it over one transport. Can be sent to another process.

    Attributes:
        name: as in the tables.
        transport: how it is reached; only contenders of one transport are compared.
        pids: its server processes.
        connect: makes a `clients.Client`; takes ``threads``, the number of threads that will use it.
    """

    name: str
    transport: Transport
    pids: tuple[int, ...]
    connect: Callable[..., Any]


@contextmanager
def field(
    session: Session,
    transports: Sequence[Transport] = TRANSPORTS,
    *,
    clusters: dict[str, int] | None = None,
    with_manager: bool = True,
    max_memory: str = "2GiB",
    largest_item: str = "1m",
) -> Iterator[list[Contender]]:
    """Start the servers of a case, and stop them.

    Args:
        transports: over which to reach them.
        clusters: how many nodes each cluster of ours has, by the name of the contender.
        with_manager: whether a `multiprocessing.Manager` takes part (over Unix sockets, its default).
        max_memory: of each node of ours.
        largest_item: memcached's ``-I``.
    """
    contenders: list[Contender] = []
    with ExitStack() as stack:

        def add(name: str, transport: Transport, server: Server, client: Callable[..., Any]) -> None:
            contenders.append(Contender(name, transport, server.pids, client))

        for name, nodes in (clusters or {OURS: 1}).items():
            ours = stack.enter_context(servers.pyrocache_cluster(nodes, max_memory))
            for transport in transports:
                add(name, transport, ours, partial(pyrocache_client, ours.address, transport))
        try:
            redis = stack.enter_context(servers.redis_server())
            for transport in transports:
                add(REDIS, transport, redis, partial(RedisClient, **redis.address[transport]))
        except NotInstalled as missing:
            session.note(str(missing))
        try:
            for transport in transports:
                memcached = stack.enter_context(
                    servers.memcached_server(transport, megabytes=2048, largest_item=largest_item)
                )
                add(MEMCACHED, transport, memcached, partial(MemcachedClient, memcached.address))
        except NotInstalled as missing:
            session.note(str(missing))
        for transport in transports:
            daemon = stack.enter_context(servers.stock_pyro_daemon(transport))
            add(STOCK_PYRO, transport, daemon, partial(StockPyroClient, daemon.address))
        if with_manager and "Unix" in transports:
            manager = stack.enter_context(servers.manager_dict())
            add(MANAGER, "Unix", manager, partial(ManagerClient, manager.address))
        yield contenders
