"""Eviction policies by name, and `EvictionPolicy`, the interface that the store expects of one.

A policy knows keys, not values or bytes: the store asks it for victims until an entry fits. The mechanism of both
policies is in `eviction_queues`; ``docs/eviction.md`` compares their hit ratios.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from pyrocache.config import DEFAULT_EVICTION
from pyrocache.node.store.eviction_queues import TwoQueues


class EvictionPolicy(Protocol):
    """The keys of a store in the order in which they are evicted. Each call takes amortised constant time per key."""

    name: str

    def added(self, key: bytes, /) -> None:
        """Note a new key, which must not be present yet."""

    def added_many(self, keys: Sequence[bytes], /) -> None:
        """Note several new keys, which are distinct."""

    def used(self, key: bytes, /) -> None:
        """Note that a key that is present was read or overwritten."""

    def used_many(self, keys: Sequence[bytes], /) -> None:
        """Note that several keys that are present were read or overwritten."""

    def removed(self, key: bytes, /) -> None:
        """Note that a key that was present is deleted or expired."""

    def victim(self) -> bytes:
        """Remove the key to evict next and return it.

        Raises:
            LookupError: no key is present.
        """


LRU = partial(TwoQueues, "lru")
"""Evict the least recently used key, to the precision of an epoch."""

S3FIFO = partial(TwoQueues, "s3fifo", share=0.25, promote=2)
"""Evict by S3-FIFO. The paper has a tenth of the keys in the small queue; ``docs/eviction.md`` says why this is a
quarter, and why one use is not enough to leave it."""

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"s3fifo": S3FIFO, "lru": LRU}
"""By the name for ``--eviction``."""

DEFAULT_POLICY = DEFAULT_EVICTION
