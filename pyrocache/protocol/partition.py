"""The partitions that keys are routed and stored by. Pure.

Clients route by partition, and nodes keep their tables in the order of partitions. So a partition is what can be
counted, handed over or dropped on its own.
"""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

PARTITION_BITS = 14

PARTITIONS = 1 << PARTITION_BITS

PARTITION_MASK = PARTITIONS - 1


def partition_of(key: bytes) -> int:
    """Return the partition of ``key``, from 0 to `PARTITIONS` - 1: the lowest bits of its xxh3 hash."""
    return xxh3_64_intdigest(key) & PARTITION_MASK
