"""Batch reads and writes: the keys of one namespace, column by column instead of key by key.

That is three to five times as fast as a call for each key, since C code loops over the columns. Both functions have the
effect of one call for each key, except for the order of evictions. If they cannot, they change no live entry and return
None or False; the caller then makes those calls. No I/O and no threads; the caller passes the time.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any

from xxhash import xxh3_64_intdigest

from pyrocache.node.store.contents import Contents
from pyrocache.node.store.entry import Entry, Stored, Value, plain_costs
from pyrocache.node.store.mutation import SetMany
from pyrocache.node.store.namespaces import Namespace
from pyrocache.protocol.partition import PARTITION_MASK

_PLAIN_OR_NONE = frozenset({bytes, NoneType})


def get_many(contents: Contents, keys: Sequence[bytes], room: int, now: float) -> list[Any] | None:
    """Return the values of ``keys``, None for a miss, and count hits and misses.

    Returns:
        None if the keys are of several namespaces, have over ``room`` bytes, or some entry may be dead or has details.
    """
    space = contents.namespaces.of(keys[0])
    found: list[Any] = space.get_many(keys)
    if not _PLAIN_OR_NONE.issuperset(map(type, found)):
        values_alone = _values(found, now, contents.moment)
        if values_alone is None:
            return None
        found = values_alone
    hits, values = keys, found
    if None in found:
        hits, values = _present(keys, found)
        # Only keys that are found here are known to belong here.
        if _common(contents, _absent(keys, found)) is not space:
            return None
    if sum(map(len, values)) > room:  # before anything is counted: the caller reads key by key instead
        return None
    space.hits += len(hits)
    space.misses += len(found) - len(hits)
    contents.policy.used_many(hits)
    return found


def set_many(contents: Contents, change: SetMany, now: float) -> bool:
    """Store a batch.

    Return False, without storing anything, unless the keys are distinct, are in one namespace, and fit into the memory
    limit together.
    """
    keys = change.keys
    space = contents.namespaces.of(keys[0])
    batch = set(keys)
    cost = plain_costs(keys, change.values, expire=change.expires_at != math.inf) + space.overhead
    # Malformed keys have no prefix; each is stored by itself.
    if not space.prefix or len(batch) < len(keys) or cost > contents.max_bytes:
        return False
    contents.reclaim_for(cost)
    known, before, new = keys, list[Any](space.get_many(keys)), list[bytes]()
    types = set(map(type, before))
    if NoneType in types:
        new = _absent(keys, before)
        known, before = _present(keys, before)
        if space.prefix in contents.namespaces.cleared or _common(contents, new) is not space:
            return False
    # From here on everything succeeds.
    if types <= _PLAIN_OR_NONE:
        contents.bytes -= plain_costs(known, before)
    else:
        for key, stored in zip(known, before, strict=True):
            contents.detach(space, key, stored)
    contents.evict_for(cost, keep=batch)  # may replace dicts, so `put_many` looks them up afterwards
    contents.bytes += cost - (space.overhead if space.count else 0)
    contents.counters.sets += len(keys)
    partitions = [number & PARTITION_MASK for number in map(xxh3_64_intdigest, keys)]
    counts = contents.mutations
    for partition in partitions:
        counts[partition] += 1
    space.put_many(keys, partitions, _entries(contents, space, change, now), new)
    contents.policy.used_many(known)
    contents.policy.added_many(new)
    return True


def _entries(contents: Contents, space: Namespace, change: SetMany, now: float) -> Sequence[Stored]:
    """Return what is to be stored; entries that expire are in their bucket."""
    expires_at, moment = change.expires_at, contents.moment
    if expires_at == math.inf:
        return change.values
    space.expiring += len(change.keys)
    if not isinstance(expires_at, list):
        bucket = contents.expiry.bucket(expires_at, expires_at - now)
        bucket.update(change.keys)
        return [Entry(value, expires_at, bucket, None, moment) for value in change.values]
    buckets = [contents.expiry.bucket(each, each - now) for each in expires_at]
    for key, bucket in zip(change.keys, buckets, strict=True):
        bucket.add(key)
    columns = zip(change.values, expires_at, buckets, strict=True)
    return [Entry(value, each, bucket, None, moment) for value, each, bucket in columns]


def _values(stored: Iterable[Stored | None], now: float, moment: float) -> list[Value | None] | None:
    """Return the values alone, or None if one is dead or has details, which may say that it is dead.

    Note ``moment`` as the time of their last use.
    """
    values: list[Value | None] = []
    for one in stored:
        if not isinstance(one, Entry):
            values.append(one)
        elif now >= one.expires_at or one.details is not None:
            return None
        else:
            one.used_at = moment
            values.append(one.value)
    return values


def _common(contents: Contents, keys: Sequence[bytes]) -> Namespace | None:
    """Return the one namespace of all of ``keys``; None if there are several."""
    low, high = min(keys), max(keys)
    space = contents.namespaces.of(low)
    prefix = space.prefix
    # What lies between two keys that begin with the prefix begins with it as well.
    return space if prefix and low != prefix and high.startswith(prefix) else None


def _present(keys: Sequence[bytes], stored: Sequence[Any]) -> tuple[list[bytes], list[Any]]:
    """Return those of ``keys`` for which something is stored, and that."""
    found = [key for key, one in zip(keys, stored, strict=True) if one is not None]
    return found, [one for one in stored if one is not None]


def _absent(keys: Sequence[bytes], stored: Sequence[Any]) -> list[bytes]:
    """Return those of ``keys`` for which nothing is stored."""
    return [key for key, one in zip(keys, stored, strict=True) if one is None]
