"""`compute` of the asyncio client; ``client/features/compute.py`` describes it.

Thread safety: thread-safe; a call has no shared state.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from pyrocache.aio.backend import AsyncBackend
from pyrocache.client.context import ClientContext, KeptTtl, Missing
from pyrocache.client.features.compute import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Attempt
from pyrocache.net.backoff import Backoff


async def compute(
    context: ClientContext[AsyncBackend],
    key: object,
    function: Callable[[Any], Any],
    default: Any | Missing,
    ttl_seconds: KeptTtl,
) -> Any:
    """Return what `AsyncPyroCacheClient.compute` returns."""
    attempt = Attempt(context, key, default, ttl_seconds)
    backend, backoff = context.backend, Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
    while True:
        old = attempt.old(await backend.get_with_version(attempt.key, attempt.deadline))
        value = function(old)
        if inspect.isawaitable(value):
            value = await value
        frame = attempt.made(value)
        if await backend.put(attempt.key, frame, attempt.ttl, attempt.condition, None, attempt.deadline):
            return value
        attempt.conflict(backoff.longest_next)
        await asyncio.sleep(backoff.next_pause())
