"""`Namespaces`: the namespaces of a store, each with its own table and counters.

A key begins with its namespace (see ``docs/wire-format.md``): a length and that many bytes. So a namespace is counted,
walked and cleared without reading the others. Pure: no I/O, no threads, no clock.

Thread safety: not thread-safe; the caller holds the node's lock. `NodeMetrics` reads the counters without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from pyrocache.node.store.entry import Stored
from pyrocache.node.store.table import Table

ROOT = b"\0"
"""The prefix of keys that are in no namespace."""

NAMESPACE_OVERHEAD = 1024
"""Bytes that a namespace with entries is accounted for."""

_MOST_EMPTY = 1000
_LOOKED_AT = 8


class Namespace(Table[Stored]):
    """The entries of one namespace.

    Attributes:
        prefix: what its keys begin with.
        overhead: the bytes that it is accounted for while it has entries; 0 for the root, which is always there.
        expiring: how many of the entries have a TTL.
        hits, misses: the number of reads that found a value, and of those that did not.
    """

    __slots__ = ("expiring", "hits", "misses", "overhead", "prefix")

    def __init__(self, prefix: bytes) -> None:
        super().__init__()
        self.prefix = prefix
        self.overhead = 0 if prefix == ROOT else NAMESPACE_OVERHEAD
        self.expiring = 0
        self.hits = 0
        self.misses = 0


class Namespaces:
    """All namespaces of a store. A key is in one namespace object at most, cleared ones included.

    Attributes:
        root: the namespace of the keys without one.
        cleared: by prefix, those that were cleared and still have entries to reclaim.
        hits, misses: of namespaces that were empty and are forgotten.
    """

    def __init__(self) -> None:
        self.root = Namespace(ROOT)
        # Not an OrderedDict, whose values take five times as long to copy, in one call that keeps all threads waiting.
        self._by_prefix = {ROOT: self.root}
        self._examined = deque([ROOT])  # all prefixes, the one examined longest ago first
        self.cleared: dict[bytes, deque[Namespace]] = {}
        self.hits = 0
        self.misses = 0

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self._by_prefix.values())

    def of(self, key: bytes) -> Namespace:
        """Return the namespace of ``key``, which is made if it is unknown."""
        prefix = prefix_of(key)
        return self._by_prefix.get(prefix) or self._new(prefix)  # a Namespace has no length, so it is true

    def get(self, prefix: bytes) -> Namespace | None:
        """Return the namespace with that prefix, if it is known."""
        return self._by_prefix.get(prefix)

    def find(self, key: bytes) -> tuple[Namespace, bytes, Stored]:
        """Return the namespace of a key that is stored somewhere, the key, and what is stored."""
        prefix = prefix_of(key)
        for space in (self._by_prefix.get(prefix), *self.cleared.get(prefix, ())):
            if space is not None and (stored := space.get(key)) is not None:
                return space, key, stored
        raise LookupError("No namespace has the key.")

    def clear(self, namespace: Namespace) -> None:
        """Replace a namespace by an empty one; its entries are to be reclaimed."""
        fresh = Namespace(namespace.prefix)
        fresh.hits, fresh.misses = namespace.hits, namespace.misses
        self._by_prefix[fresh.prefix] = fresh
        if namespace is self.root:
            self.root = fresh
        self.cleared.setdefault(fresh.prefix, deque()).append(namespace)

    def reclaimed(self, namespace: Namespace) -> None:
        """Forget a cleared namespace, which is empty now."""
        waiting = self.cleared[namespace.prefix]
        waiting.remove(namespace)
        if not waiting:
            del self.cleared[namespace.prefix]

    def _new(self, prefix: bytes) -> Namespace:
        if len(self._by_prefix) > _MOST_EMPTY:  # else reads of made-up namespaces would fill the memory
            self._forget_some()
        self._examined.append(prefix)
        return self._by_prefix.setdefault(prefix, Namespace(prefix))

    def _forget_some(self) -> None:
        """Forget the empty ones among the few that were examined longest ago."""
        for _ in range(_LOOKED_AT):
            prefix = self._examined.popleft()
            namespace = self._by_prefix[prefix]
            if namespace.count or namespace is self.root:
                self._examined.append(prefix)
            else:
                del self._by_prefix[prefix]
                self.hits += namespace.hits
                self.misses += namespace.misses


def prefix_of(key: bytes) -> bytes:
    """Return the namespace with which ``key`` begins, or b"" for a key shorter than the length that it begins with."""
    size = key[0]
    if not size:
        return ROOT
    end = size + 1 if size < 0x80 else _long_end(key)
    return key[:end] if end < len(key) else b""


def _long_end(key: bytes) -> int:
    """Return where the namespace ends; its length takes two bytes or three."""
    size = 0
    for at, byte in enumerate(key[:3]):
        size |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return size + at + 1
    return len(key)
