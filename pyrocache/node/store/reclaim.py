"""`Reclaimer`: finds entries that are dead but still in memory.

An entry is dead if its namespace was cleared, one of its tags was invalidated, or its TTL and its stale period have
ended. Dead entries are invisible to reads at once and are reclaimed one by one, so that no call takes long. The caller
removes them and keeps the accounts. No I/O and no threads; the clock is injected.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

from pyrocache.node.store.entry import Stored
from pyrocache.node.store.expiry import ExpiryBuckets
from pyrocache.node.store.namespaces import Namespace, Namespaces
from pyrocache.node.store.tags import Tags

Dead: TypeAlias = tuple[Namespace, bytes, Stored]
"""An entry to remove: its namespace, its key, what is stored there."""


class Reclaimer:
    """Finds dead entries.

    Attributes:
        cleared: cleared namespaces that still have entries, each with the keys that are to be removed.
    """

    __slots__ = ("_clock", "_expiry", "_namespaces", "_tags", "cleared")

    def __init__(
        self, namespaces: Namespaces, tags: Tags, expiry: ExpiryBuckets, clock: Callable[[], float]
    ) -> None:
        self._namespaces = namespaces
        self._tags = tags
        self._expiry = expiry
        self._clock = clock
        self.cleared: deque[tuple[Namespace, Iterator[bytes]]] = deque()

    @property
    def idle(self) -> bool:
        """Whether there is no cleared namespace, no invalid tag, and no tick in which an entry may expire."""
        return not (self.cleared or self._tags.invalid or self._expiry.ticks)

    def clear(self, space: Namespace) -> None:
        """Put an empty namespace in the place of this one; its entries are dead."""
        self._namespaces.clear(space)
        self.cleared.append((space, iter(space)))

    def next(self) -> tuple[Dead | None, bool]:
        """Return a dead entry, which the caller must remove, or None when there is none; and whether it has expired."""
        dead = self._next_cleared() or self._next_invalid()
        return (dead, False) if dead is not None else (self._next_expired(), True)

    def _next_cleared(self) -> Dead | None:
        while self.cleared:
            space, keys = self.cleared[0]
            for key in keys:
                stored = space.get(key)  # None if it was set again meanwhile
                if stored is not None:
                    return space, key, stored
            self.cleared.popleft()  # all keys were yielded, so it is empty
            self._namespaces.reclaimed(space)
        return None

    def _next_invalid(self) -> Dead | None:
        invalid = self._tags.invalid
        while invalid:
            if invalid[0].keys:
                return self._namespaces.find(invalid[0].keys.pop())
            invalid.popleft()
        return None

    def _next_expired(self) -> Dead | None:
        bucket = self._expiry.due(self._clock())
        return None if bucket is None else self._namespaces.find(bucket.pop())
