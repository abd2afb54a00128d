"""Partitions: the units by which keys are routed and stored.

Clients route by partition, and nodes keep their tables in the order of partitions. So a single partition can be
counted, handed over or dropped. Pure: no I/O, no threads, no clock.
"""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

PARTITION_BITS = 14

PARTITIONS = 1 << PARTITION_BITS

PARTITION_MASK = PARTITIONS - 1


def partition_of(key: bytes) -> int:
    """Return the partition of ``key``, from 0 to `PARTITIONS` - 1: the lowest bits of its xxh3 hash."""
    return xxh3_64_intdigest(key) & PARTITION_MASK
