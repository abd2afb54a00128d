"""``ttl_jitter``: times to live that differ at random, so that entries stored together do not expire together.

Thread safety: thread-safe; the functions have no shared state but the given source of randomness.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from pyrocache.client.backend import Seconds
from pyrocache.config import check_number
from pyrocache.tracebacks import brief


def check_jitter(ttl_jitter: float) -> float:
    """Return ``ttl_jitter`` as a float. Raises `TypeError` or `ValueError` unless it is a number from 0 to 1."""
    fraction = check_number(ttl_jitter, "ttl_jitter")
    if fraction > 1:
        raise brief(
            ValueError(f"ttl_jitter is a fraction of the time to live, from 0 to 1, not {fraction!r}.")
        )
    return float(fraction)


def shortened(ttl: float, fraction: float, dice: Callable[[], float] = random.random) -> float:
    """Return ``ttl`` reduced by a random part of itself, at most ``fraction``. A negative TTL keeps its sign."""
    return ttl * (1.0 - fraction * dice())


def jittered(ttl: Seconds, fraction: float) -> Seconds:
    """Return a TTL for one entry: `shortened`, unless it is None or there is no jitter."""
    return ttl if ttl is None or not fraction else shortened(ttl, fraction)
