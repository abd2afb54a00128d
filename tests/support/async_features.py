"""Loads and locks of the asyncio client, without its facade.

Thread safety: as the asyncio client.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pyrocache import PyroCacheClient
from pyrocache.aio import load_once
from pyrocache.aio.backend import AsyncBackend
from pyrocache.aio.locks import AsyncLock
from pyrocache.client.context import ClientContext
from pyrocache.client.features.load_once import Load, load_options


class AsyncFeatures:
    """An asyncio client with the settings of a blocking one."""

    def __init__(self, cache: PyroCacheClient) -> None:
        self.backend: Any = AsyncBackend.of(cache._context.config)
        self.context = ClientContext(cache._context.config, self.backend)
        self.close = self.context.close

    def get_or_set(self, key: object, factory: Callable[[], Any], **options: Any) -> Awaitable[Any]:
        """As `AsyncPyroCacheClient.get_or_set`."""
        usual = {
            "ttl_seconds": None,
            "stale_seconds": 0,
            "early": 0.0,
            "wait_seconds": None,
            "lease_seconds": 60,
        }
        made = load_options(**{**usual, **options})
        return load_once.get_or_set(
            Load(self.context, self.context.encode_key(key), factory, made, lambda: None)
        )

    def lock(self, name: object, ttl_seconds: float = 30, **options: Any) -> AsyncLock:
        """As `AsyncPyroCacheClient.lock`."""
        return AsyncLock(self.context, name, 1, ttl_seconds, **{"wait_seconds": None, **options})

    def semaphore(self, name: object, n: int, ttl_seconds: float = 30, **options: Any) -> AsyncLock:
        """As `AsyncPyroCacheClient.semaphore`."""
        return AsyncLock(self.context, name, n, ttl_seconds, **{"wait_seconds": None, **options})
