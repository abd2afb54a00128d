"""pyrocache: a distributed in-memory cache for Python objects, made of Pyro5 remote objects.

The public API. Names are imported when first used, so that ``import pyrocache`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrocache.client.client import PyroCacheClient
    from pyrocache.client.features.locks import Lock
    from pyrocache.client.stats import (
        ClientStats,
        LatencyHistogram,
        NamespaceStats,
        NodeStats,
        Stats,
        Totals,
    )
    from pyrocache.cluster.routing import Member
    from pyrocache.errors import (
        ClientClosed,
        ConfigurationError,
        Conflict,
        CorruptValue,
        InsecureAddress,
        InvalidKey,
        KeyTooLarge,
        LockLost,
        LockTimeout,
        NameServerUnavailable,
        NameTaken,
        NodeUnavailable,
        NoNodes,
        NotAnInt,
        Overloaded,
        PartialFailure,
        ProtocolError,
        PyroCacheError,
        RemoteError,
        SerializationError,
        ValueTooLarge,
        WaitTimeout,
    )
    from pyrocache.local import LocalCluster

__version__ = "0.1.0"

__all__ = [
    "ClientClosed",
    "ClientStats",
    "ConfigurationError",
    "Conflict",
    "CorruptValue",
    "InsecureAddress",
    "InvalidKey",
    "KeyTooLarge",
    "LatencyHistogram",
    "LocalCluster",
    "Lock",
    "LockLost",
    "LockTimeout",
    "Member",
    "NameServerUnavailable",
    "NameTaken",
    "NamespaceStats",
    "NoNodes",
    "NodeStats",
    "NodeUnavailable",
    "NotAnInt",
    "Overloaded",
    "PartialFailure",
    "ProtocolError",
    "PyroCacheClient",
    "PyroCacheError",
    "RemoteError",
    "SerializationError",
    "Stats",
    "Totals",
    "ValueTooLarge",
    "WaitTimeout",
]

_HOMES = {
    **dict.fromkeys(
        ("ClientStats", "LatencyHistogram", "NamespaceStats", "NodeStats", "Stats", "Totals"),
        "pyrocache.client.stats",
    ),
    "LocalCluster": "pyrocache.local",
    "Lock": "pyrocache.client.features.locks",
    "Member": "pyrocache.cluster.routing",
    "PyroCacheClient": "pyrocache.client.client",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "pyrocache.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
