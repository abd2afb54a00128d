"""`Table`: a mapping from keys that grows, is walked and is emptied in small steps.

Extendible hashing (Fagin, Nievergelt, Pippenger and Strong, "Extendible Hashing", TODS 1979) by the bits of the
partition number. A table begins as one dict. A dict that has become too large is split into eight, each with the keys
of an interval of partitions; a directory says which dict has which interval. So

- no insertion takes longer than such a split, however many keys there are: a dict of a million keys blocks the node for
  50 ms when it grows;
- a walk in the order of partitions only needs to remember its position: a key that is present throughout comes exactly
  once, however often dicts are split meanwhile, and a position means the same to every node;
- a partition can be walked without reading more than one dict.

A table with one dict, as most namespaces have, does not hash keys with xxh3. A single partition that is too large for a
dict is not split. Pure: no I/O, no threads, no clock.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from xxhash import xxh3_64_intdigest

from pyrocache.protocol.partition import PARTITION_BITS, PARTITION_MASK

_Stored = TypeVar("_Stored")

_POSITIONS = 1 << 64
_WITHIN_BITS = 64 - PARTITION_BITS  # of a position: where in its partition a key is

_SPLIT_BITS = 3

SHARD_KEYS = 1364
"""The most keys of a dict that can be split; with one more, it would be about to double."""

FEW_KEYS = 853
"""A dict with more keys may be `too_large`."""

_SPREAD = SHARD_KEYS - FEW_KEYS

_EMPTY_BYTES = 1024
_MOST_BYTES_PER_KEY = 72
"""If a dict takes more bytes per key than this, it is copied, which makes it smaller. A dict that has only grown, or
that is a copy, takes 27 to 54 bytes per key."""


class Table(Generic[_Stored]):
    """The mapping.

    Attributes:
        shards: the directory. A key of partition ``p`` is in ``shards[p >> shift]``.
        shift: how many bits of a partition number do not select a dict: 14 at first, fewer as the directory grows.
        count: how many keys there are. Code that changes a shard must update it.
    """

    __slots__ = ("count", "shards", "shift")

    def __init__(self) -> None:
        self.shards: list[dict[bytes, _Stored]] = [{}]
        self.shift = PARTITION_BITS
        self.count = 0

    def shard(self, key: bytes) -> dict[bytes, _Stored]:
        """Return the dict that ``key`` belongs to, until the next `split` or `pop`."""
        shards = self.shards
        if len(shards) == 1:
            return shards[0]
        return shards[(xxh3_64_intdigest(key) & PARTITION_MASK) >> self.shift]

    def get(self, key: bytes) -> _Stored | None:
        """Return what is stored under ``key``, or None."""
        return self.shard(key).get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[_Stored | None]:
        """Return `get` of each of ``keys``."""
        shards, shift, mask = self.shards, self.shift, PARTITION_MASK
        if len(shards) == 1:
            return list(map(shards[0].get, keys))
        numbers = map(xxh3_64_intdigest, keys)
        return [shards[(number & mask) >> shift].get(key) for number, key in zip(numbers, keys, strict=True)]

    def put_many(
        self,
        keys: Sequence[bytes],
        partitions: Sequence[int],
        stored: Sequence[_Stored],
        new: Sequence[bytes],
    ) -> None:
        """Store ``stored`` under ``keys``, which are in these partitions; ``new`` are those not present yet."""
        shards, shift = self.shards, self.shift
        if len(shards) == 1:
            shards[0].update(zip(keys, stored, strict=True))
        else:
            for key, partition, one in zip(keys, partitions, stored, strict=True):
                shards[partition >> shift][key] = one
        self.count += len(new)
        for key in new:
            shard = self.shard(key)
            if len(shard) > FEW_KEYS and too_large(shard):
                self.split(key)

    def pop(self, key: bytes) -> _Stored | None:
        """Remove ``key``. Return what was stored, or None."""
        shard = self.shard(key)
        stored = shard.pop(key, None)
        if stored is not None:
            self.count -= 1
            if sys.getsizeof(shard) > _EMPTY_BYTES + _MOST_BYTES_PER_KEY * len(shard):
                self._shrink(key)
        return stored

    def split(self, key: bytes) -> None:
        """Divide the dict of ``key`` by the next bits of the partition, if it has more than one partition."""
        first, last = self._run((xxh3_64_intdigest(key) & PARTITION_MASK) >> self.shift)
        if first == last:  # the dict has one place in the directory: double the directory first
            bits = min(_SPLIT_BITS, self.shift)
            if not bits:  # a single partition
                return
            self.shards = [shard for shard in self.shards for _ in range(1 << bits)]
            self.shift -= bits
            first, last = first << bits, (first + 1 << bits) - 1
        bits = min(_SPLIT_BITS, (last - first).bit_length())
        width = last - first + 1 >> bits  # of each part, in the directory
        shift = self.shift + width.bit_length() - 1
        parts: list[dict[bytes, _Stored]] = [{} for _ in range(1 << bits)]
        for each, stored in self.shards[first].items():
            parts[xxh3_64_intdigest(each) >> shift & (1 << bits) - 1][each] = stored
        self.shards[first : last + 1] = [part for part in parts for _ in range(width)]

    # Walking ----------------------------------------------------------------------------------------------

    def page(
        self,
        position: int,
        limit: int = _POSITIONS,
        room: int = _POSITIONS,
        size: Callable[[bytes], int] = len,
    ) -> tuple[list[bytes], int]:
        """Return some keys from ``position`` on, and the position after them.

        Args:
            position: where to begin; 0 is the beginning, and is returned at the end.
            limit: the most keys.
            room: the most bytes, except for the first key.
            size: the bytes that a key counts for.
        """
        first, last = self._run(position >> _WITHIN_BITS >> self.shift)
        end = last + 1 << self.shift + _WITHIN_BITS
        keys = list(self.shards[first])
        if position > first << self.shift + _WITHIN_BITS:
            keys = [key for key in keys if _position(key) >= position]
        return _first(keys, end, limit, room, size)

    def partition(self, partition: int) -> list[bytes]:
        """Return the keys of one partition; looks at no more than one dict."""
        shard = self.shards[partition >> self.shift]
        if not self.shift:
            return list(shard)
        return [key for key in shard if xxh3_64_intdigest(key) & PARTITION_MASK == partition]

    def __iter__(self) -> Iterator[bytes]:
        """Yield each key. Keys may be removed meanwhile, and may be yielded nevertheless; none may be added."""
        for shard in {id(shard): shard for shard in self.shards}.values():
            yield from list(shard)

    def _shrink(self, key: bytes) -> None:
        """Give back the memory that the dict of ``key`` does not use, as keys that come and go leave it."""
        index = (xxh3_64_intdigest(key) & PARTITION_MASK) >> self.shift
        first, last = self._run(index)
        self.shards[first : last + 1] = [dict(self.shards[index])] * (last - first + 1)

    def _run(self, index: int) -> tuple[int, int]:
        """Return the first and the last index in the directory of the dict at ``index``."""
        shards = self.shards
        shard, first, last = shards[index], index, index
        while first and shards[first - 1] is shard:
            first -= 1
        while last + 1 < len(shards) and shards[last + 1] is shard:
            last += 1
        return first, last


def page_of(
    keys: Iterable[bytes], position: int, limit: int, room: int, size: Callable[[bytes], int] = len
) -> tuple[list[bytes], int]:
    """Return what `Table.page` returns for a table with only these keys. Takes time proportional to their number."""
    return _first([key for key in keys if _position(key) >= position], _POSITIONS, limit, room, size)


def too_large(shard: dict[bytes, _Stored]) -> bool:
    """Return whether a dict is to be split.

    The limit differs from dict to dict. With one limit, all dicts would be split at about the same time, because the
    keys are distributed evenly, and the garbage collector would examine all new dicts in one pause: 8 ms with a million
    entries.
    """
    return len(shard) > FEW_KEYS + (id(shard) >> 6) % _SPREAD


def _first(
    keys: list[bytes], end: int, limit: int, room: int, size: Callable[[bytes], int]
) -> tuple[list[bytes], int]:
    """Return the first of ``keys`` that fit, and the position of the next one, or ``end`` if all do."""
    if len(keys) > limit or sum(map(size, keys)) > room:
        keys.sort(key=_position)  # the next position must lie between two keys
        limit = min(limit, max(1, bisect_right(list(accumulate(map(size, keys[:limit]))), room)))
        if limit < len(keys):
            end = _position(keys[limit])
            del keys[limit:]
    return keys, end % _POSITIONS


def _position(key: bytes) -> int:
    """Return the place of a key in the order of walks: its hash, the bits of the partition first."""
    number = xxh3_64_intdigest(key)
    return (number & PARTITION_MASK) << _WITHIN_BITS | number >> PARTITION_BITS
