"""Entries: what a store keeps under a key, and how many bytes each is accounted for.

An entry has one of two shapes. A value that has no expiry, version, tags or load time is stored as its bytes alone: an
object for each would take about 60 % more memory. Every other entry is an `Entry`. Pure: no I/O, no threads, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

ENTRY_OVERHEAD = 224
"""Bytes that an entry takes beyond its key and value: objects, table slots, the policy's notes, malloc's slack."""

EXPIRY_OVERHEAD = 160
"""Bytes that it takes in addition when it expires."""

DETAILS_OVERHEAD = 176
"""Bytes that its `Details` take in addition."""

TAG_OVERHEAD = 128
"""Bytes that each of its tags takes."""

SHORT_KEY = 64
"""The length of a longer key is counted once more if the entry has a TTL, and once more if it has tags. When an entry
is overwritten, the table keeps the old key object, but the expiry bucket and the tags refer to the new one, so up to
three copies exist."""

Value: TypeAlias = bytes | memoryview
"""The encoded value. A large value is a `memoryview` of the request in which it arrived."""

Bucket: TypeAlias = set[bytes]
"""The keys that expire in one tick."""


@dataclass(slots=True, eq=False)
class Tag:
    """A name that entries share, by which all of them can be invalidated at once.

    Attributes:
        name: the encoded tag, as it is on the wire: the prefix of its namespace and its name.
        keys: of the entries that have the tag.
        invalid: its entries are gone, though some may not be reclaimed yet.
    """

    name: bytes
    keys: set[bytes] = field(default_factory=set)
    invalid: bool = False


@dataclass(slots=True, eq=False)
class Details:
    """The attributes that only few entries have.

    Attributes:
        stale_until: until when an expired entry is kept for callers that take a stale value meanwhile; or 0.
        load_seconds: how long its value took to make; None if that is unknown.
        tags: those it has.
        version: differs from that of every other value of the key; 0 until a client asks for it.
    """

    stale_until: float = 0.0
    load_seconds: float | None = None
    tags: tuple[Tag, ...] = ()
    version: int = 0


@dataclass(slots=True, eq=False)
class Entry:
    """A value with an expiry time or with `Details`.

    Attributes:
        value: the bytes.
        expires_at: seconds of the store's clock; infinite if it never expires.
        bucket: the keys that leave the store in the same tick; None if it never expires.
        details: the `Details` of the entry; None if it has none.
        written_at: when the value was stored (see `Contents.moment`); None if that is unknown, because the entry was
            bytes alone then.
        used_at: when it was read last; None if it was not read since.
    """

    value: Value
    expires_at: float = math.inf
    bucket: Bucket | None = None
    details: Details | None = None
    written_at: float | None = None
    used_at: float | None = None

    @property
    def leaves_at(self) -> float:
        """When it is dead: neither live nor stale (seconds of the store's clock)."""
        return max(self.expires_at, self.details.stale_until) if self.details else self.expires_at

    @property
    def invalid(self) -> bool:
        """Whether one of its tags was invalidated."""
        return self.details is not None and any(tag.invalid for tag in self.details.tags)


Stored: TypeAlias = bytes | memoryview | Entry


def value_of(stored: Stored) -> Value:
    """Return the value alone."""
    return stored.value if isinstance(stored, Entry) else stored


def entry_cost(key: bytes, value: Value, *, expires: bool, tags: Collection[object] | None = None) -> int:
    """Return the bytes that an entry is accounted for; ``tags`` are None if it has no details."""
    cost = len(key) + len(value) + ENTRY_OVERHEAD
    again = len(key) if len(key) > SHORT_KEY else 0
    if expires:
        cost += EXPIRY_OVERHEAD + again
    if tags is not None:
        cost += DETAILS_OVERHEAD + TAG_OVERHEAD * len(tags) + (again if tags else 0)
    return cost


def cost_of(key: bytes, stored: Stored) -> int:
    """Return the bytes that what is stored under ``key`` is accounted for."""
    if not isinstance(stored, Entry):
        return len(key) + len(stored) + ENTRY_OVERHEAD
    tags = None if stored.details is None else stored.details.tags
    return entry_cost(key, stored.value, expires=stored.bucket is not None, tags=tags)


def plain_costs(keys: Collection[bytes], values: Sequence[Value], *, expire: bool = False) -> int:
    """Return the bytes that many entries without details are accounted for."""
    cost = sum(map(len, keys)) + sum(map(len, values)) + ENTRY_OVERHEAD * len(keys)
    if expire:
        cost += EXPIRY_OVERHEAD * len(keys) + sum(len(key) for key in keys if len(key) > SHORT_KEY)
    return cost
