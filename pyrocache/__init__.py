"""pyrocache: a distributed in-memory cache for Python objects, made of Pyro5 remote objects.

This module is the public API. All names are imported on first use, which keeps ``import pyrocache`` fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyrocache import errors

if TYPE_CHECKING:
    from pyrocache.aio.client import AsyncPyroCacheClient
    from pyrocache.aio.locks import AsyncLock
    from pyrocache.client.client import PyroCacheClient
    from pyrocache.client.context import DEFAULT_TTL
    from pyrocache.client.features.entries import Entry, EntryInfo
    from pyrocache.client.features.hot_keys import HotKey
    from pyrocache.client.features.locks import Lock
    from pyrocache.client.stats import ClientStats, LatencyHistogram, NamespaceStats, NodeStats, Stats, Totals
    from pyrocache.client.stock import stock_handshake
    from pyrocache.cluster.routing import Member
    from pyrocache.config import TLS
    from pyrocache.errors import *  # noqa: F403
    from pyrocache.local import LocalCluster

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_TTL",
    "TLS",
    "AsyncLock",
    "AsyncPyroCacheClient",
    "ClientStats",
    "Entry",
    "EntryInfo",
    "HotKey",
    "LatencyHistogram",
    "LocalCluster",
    "Lock",
    "Member",
    "NamespaceStats",
    "NodeStats",
    "PyroCacheClient",
    "Stats",
    "Totals",
    "stock_handshake",
]
_HOMES = {
    "AsyncLock": "pyrocache.aio.locks",
    "AsyncPyroCacheClient": "pyrocache.aio.client",
    "DEFAULT_TTL": "pyrocache.client.context",
    "Entry": "pyrocache.client.features.entries",
    "EntryInfo": "pyrocache.client.features.entries",
    "HotKey": "pyrocache.client.features.hot_keys",
    "LocalCluster": "pyrocache.local",
    "Lock": "pyrocache.client.features.locks",
    "Member": "pyrocache.cluster.routing",
    "PyroCacheClient": "pyrocache.client.client",
    "TLS": "pyrocache.config",
    "stock_handshake": "pyrocache.client.stock",
}  # the others: pyrocache.client.stats
__all__ += errors.__all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "pyrocache.errors" if name in errors.__all__ else _HOMES.get(name, "pyrocache.client.stats")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def memoize_for_asyncio() -> Any:
    """Return the module that runs memoized coroutine functions, for ``client/features/memoize.py``, a layer below."""
    return import_module("pyrocache.aio.memoize")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
