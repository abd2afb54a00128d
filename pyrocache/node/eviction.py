"""Which entry goes when memory is full. Pure policy: it knows keys and their order, not values or bytes.

A policy is told of every insertion, hit and removal, and names a victim when asked. Not thread-safe; the
store's owner serialises the calls.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class EvictionPolicy(Protocol):
    """What the store asks of a policy. Every call is O(1)."""

    def inserted(self, key: bytes) -> None:
        """``key`` is new in the store."""

    def used(self, key: bytes) -> None:
        """``key``, which is in the store, was read or overwritten."""

    def removed(self, key: bytes) -> None:
        """``key`` has left the store, for whatever reason."""

    def victim(self) -> bytes:
        """The key to evict next; it stays until `removed`. `LookupError` when there is none."""


class LRU:
    """Least recently used first."""

    __slots__ = ("_order", "used")

    def __init__(self) -> None:
        self._order: OrderedDict[bytes, None] = OrderedDict()
        self.used = self._order.move_to_end

    def inserted(self, key: bytes) -> None:
        """See `EvictionPolicy.inserted`."""
        self._order[key] = None

    def removed(self, key: bytes) -> None:
        """See `EvictionPolicy.removed`."""
        del self._order[key]

    def victim(self) -> bytes:
        """See `EvictionPolicy.victim`."""
        try:
            return next(iter(self._order))
        except StopIteration:
            raise LookupError("There is no entry to evict.") from None
