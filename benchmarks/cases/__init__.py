"""What is measured: a module for each case, whose docstring says what and how, and whose ``measure`` does it."""

from __future__ import annotations

from types import ModuleType

from benchmarks.cases import (
    aio,
    arrays,
    batches,
    connect,
    connections,
    encryption,
    eviction,
    kvcache,
    memory,
    processes,
    routing,
    signing,
    single,
    start,
    store,
    threads,
    ycsb,
)

_ORDER = (
    single,
    processes,
    threads,
    aio,
    batches,
    arrays,
    signing,
    ycsb,
    kvcache,
    routing,
    memory,
    start,
    connect,
    encryption,
    connections,
    store,
    eviction,
)

CASES: dict[str, ModuleType] = {module.__name__.rpartition(".")[2]: module for module in _ORDER}
"""By the name for ``--only``, in the order of a run."""
