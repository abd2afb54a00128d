"""What a store holds under a key, and how many bytes that is accounted for. Pure.

An entry that never expires and of which nothing else is known is its value and nothing else: an object for each would
be half as much again. `Expiring` is one with a TTL, `Detailed` one with whatever else there can be.
"""

from __future__ import annotations

import math
from typing import TypeAlias

ENTRY_OVERHEAD = 224
"""Bytes that an entry takes beyond its key and value: objects, table slots, the policy's notes, malloc's slack."""

EXPIRY_OVERHEAD = 144
"""Bytes that it takes besides when it expires."""

DETAILS_OVERHEAD = 96
"""Bytes that it takes besides when it is `Detailed`."""

TAG_OVERHEAD = 128
"""Bytes that each of its tags takes."""

Value: TypeAlias = bytes | memoryview
"""A large value is the part of the message that brought it."""

Peers: TypeAlias = set[bytes]
"""The keys that leave in one tick."""


class Tag:
    """A name that entries share, by which all of them go at once.

    Attributes:
        name: as the client writes it.
        keys: of the entries that have it.
        invalid: whether its entries are gone, though perhaps not swept yet.
    """

    __slots__ = ("invalid", "keys", "name")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.keys: set[bytes] = set()
        self.invalid = False


class Expiring:
    """A value that expires.

    Attributes:
        value: the bytes.
        expires_at: monotonic seconds; infinite for one that does not, which is `Detailed` then.
        peers: the keys that leave in the same tick; None for one that never does.
    """

    __slots__ = ("expires_at", "peers", "value")

    def __init__(self, value: Value, expires_at: float, peers: Peers | None) -> None:
        self.value = value
        self.expires_at = expires_at
        self.peers = peers


class Detailed(Expiring):
    """A value of which more is known.

    Attributes:
        stale_until: until when it is kept for those who take an expired value while a new one is made.
        load_seconds: how long it took to make, None when nobody said.
        tags: those it has.
        version: what tells this state of the entry from all others; 0 until somebody asks.
    """

    __slots__ = ("load_seconds", "stale_until", "tags", "version")

    def __init__(
        self,
        value: Value,
        expires_at: float = math.inf,
        peers: Peers | None = None,
        *,
        stale_until: float = 0.0,
        load_seconds: float | None = None,
        tags: tuple[Tag, ...] = (),
        version: int = 0,
    ) -> None:
        super().__init__(value, expires_at, peers)
        self.stale_until = stale_until
        self.load_seconds = load_seconds
        self.tags = tags
        self.version = version


Held: TypeAlias = bytes | memoryview | Expiring


def value_of(held: Held) -> Value:
    """The value alone."""
    return held.value if isinstance(held, Expiring) else held


def entry_cost(key: bytes, value: Value, *, expires: bool, details: bool = False, tags: int = 0) -> int:
    """The bytes that an entry is accounted for."""
    cost = len(key) + len(value) + ENTRY_OVERHEAD
    if expires:
        cost += EXPIRY_OVERHEAD
    if details:
        cost += DETAILS_OVERHEAD + TAG_OVERHEAD * tags
    return cost


def cost_of(key: bytes, held: Held) -> int:
    """The bytes that what is held under ``key`` is accounted for."""
    if not isinstance(held, Expiring):
        return len(key) + len(held) + ENTRY_OVERHEAD
    cost = len(key) + len(held.value) + ENTRY_OVERHEAD
    if held.peers is not None:
        cost += EXPIRY_OVERHEAD
    if isinstance(held, Detailed):
        cost += DETAILS_OVERHEAD + TAG_OVERHEAD * len(held.tags)
    return cost
