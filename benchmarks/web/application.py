"""The application that is measured: FastAPI, one uvicorn process, one route whose values are cached.

A value that is missing is queried from what stands for a database and answers after 20 ms. `Store` says where values
are kept. With redis.asyncio, keys are divided over two servers, as they are over two nodes of ours; an error of either
cache counts as a miss, and a request that waits for it waits for the same time.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

QUERY_SECONDS = 0.02
TIMEOUT_SECONDS = 0.5

Item = dict[str, Any]


async def query(number: int) -> Item:
    """Ask the database."""
    await asyncio.sleep(QUERY_SECONDS)
    return {"number": number, "name": f"item {number}", "text": "x" * 200}


class OurStore:
    """pyrocache; the address is the name server's."""

    def __init__(self, address: str) -> None:
        from pyrocache.aio.client import AsyncPyroCacheClient

        self._cache = AsyncPyroCacheClient(
            address, timeout=TIMEOUT_SECONDS, on_error="miss", transport="tcp", serializer="json"
        )
        self.close = self._cache.close

    async def item(self, number: int) -> Item:
        """Return an item, from the cache if it is there."""
        item: Item = await self._cache.get_or_set(("item", number), lambda: query(number), ttl_seconds=60)
        return item


class RedisStore:
    """redis.asyncio; the address is the ports of the servers."""

    def __init__(self, ports: Sequence[int]) -> None:
        from redis import asyncio as aioredis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._servers = [
            aioredis.Redis.from_pool(
                aioredis.BlockingConnectionPool(
                    host="127.0.0.1",
                    port=port,
                    max_connections=100,
                    timeout=TIMEOUT_SECONDS,
                    socket_timeout=TIMEOUT_SECONDS,
                    socket_connect_timeout=TIMEOUT_SECONDS,
                    retry=Retry(NoBackoff(), 1),  # a connection that was closed meanwhile is opened again
                )
            )
            for port in ports
        ]

    async def item(self, number: int) -> Item:
        """Return an item, from the cache if it is there."""
        from redis.exceptions import RedisError

        key = f"item:{number}"
        server = self._servers[zlib.crc32(key.encode()) % len(self._servers)]
        try:
            found = await server.get(key)
        except (RedisError, OSError):
            return await query(number)
        if found is not None:
            item: Item = json.loads(found)
            return item
        item = await query(number)
        try:
            await server.set(key, json.dumps(item), ex=60)
        except (RedisError, OSError):
            pass
        return item

    async def close(self) -> None:
        """Close the connections."""
        for server in self._servers:
            await server.aclose()


def serve(kind: Literal["ours", "redis"], address: Any, listener: socket.socket, loop: str) -> None:
    """Serve the application on a listening socket until SIGTERM. The main function of its process."""
    import uvicorn
    from fastapi import FastAPI

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    store = OurStore(address) if kind == "ours" else RedisStore(address)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await store.close()

    app = FastAPI(lifespan=lifespan)

    @app.get("/items/{number}")
    async def item(number: int) -> Item:
        return await store.item(number)

    config = uvicorn.Config(app, log_level="warning", access_log=False, loop=loop)
    uvicorn.Server(config).run(sockets=[listener])
