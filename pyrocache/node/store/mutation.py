"""Mutations: the changes that a client can request of a store. `Store.apply` executes them.

A mutation is the effect of a command, not the command: the condition of a `put` has been decided, and the sum of an
`incr` has been computed. Every change that a client requests is a mutation. Expiry, eviction and reclaiming also remove
entries; they are local to a node and are not mutations.

Applied in the same order, the mutations of a partition have the same effect on another store. To send them to a
replica, start at `Store.apply`, which executes all of them. Times are those of the store's clock; they must be
converted for another host. Pure: no I/O, no threads, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pyrocache.node.store.entry import Value


@dataclass(slots=True)
class Extras:
    """The attributes of a value that only few values have.

    Attributes:
        stale_until: until when the entry is kept, once it has expired, for callers that take a stale value; or 0.
        load_seconds: how long the value took to make, if that is known.
        tags: names by which it can be invalidated, each once.
    """

    stale_until: float = 0.0
    load_seconds: float | None = None
    tags: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Set:
    """Store a value. The result is None.

    Attributes:
        key, value: the entry.
        expires_at: seconds of the store's clock; infinite if it never expires.
        extras: its further attributes; None if it has none.
    """

    key: bytes
    value: Value
    expires_at: float = math.inf
    extras: Extras | None = None


@dataclass(slots=True)
class SetMany:
    """Store each of ``values``, all of which fit, under its key. The result is None.

    Attributes:
        expires_at: of all of them, or a list with the time of each.
    """

    keys: Sequence[bytes]
    values: Sequence[Value]
    expires_at: float | list[float] = math.inf


@dataclass(slots=True)
class Touch:
    """Set the expiry of an entry. The result says whether there is one. A stale period moves along."""

    key: bytes
    expires_at: float = math.inf


@dataclass(slots=True)
class Delete:
    """Remove an entry, and count it as deleted. The result is None."""

    key: bytes


@dataclass(slots=True)
class Discard:
    """Remove what is stored under a key, uncounted: it is stale, or another node owns it. The result is None."""

    key: bytes


@dataclass(slots=True)
class Clear:
    """Remove all entries of a namespace in constant time. The result is their number.

    Expired entries that were not reclaimed yet are included.
    """

    namespace: bytes


@dataclass(slots=True)
class InvalidateTag:
    """Remove all entries with a tag in constant time. The result is their number.

    Entries that had expired, or whose namespace was cleared, and that were not reclaimed yet are included.
    """

    tag: bytes


Mutation: TypeAlias = Set | SetMany | Touch | Delete | Discard | Clear | InvalidateTag
