"""A mapping from bytes that grows, is walked and is emptied a little at a time. Pure.

Extendible hashing (Fagin, Nievergelt, Pippenger and Strong, "Extendible Hashing", TODS 1979): the keys lie by the
first bits of their hash in shards, which are small dicts, and a directory says which. A shard that has become too
large is split, in eight, so that few keys are moved more than once; no insertion takes longer than that, and none
costs more as the table grows. Since a shard holds an interval of hashes, a walk in the order of hashes needs nothing
remembered but how far it has come: a key that is there throughout comes exactly once, however often shards are split
meanwhile.

Not thread-safe. Hashes are those of this process: a position means nothing to another one.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, TypeVar

_Held = TypeVar("_Held")

_BITS = sys.hash_info.width
_POSITIONS = 1 << _BITS

_SPLIT_BITS = 3
_PARTS = 1 << _SPLIT_BITS

SHARD_KEYS = 1364
"""The most that a shard holds; with one more, its dict would be about to double."""

_EMPTY_BYTES = 1024
_MOST_BYTES_PER_KEY = 72
"""Of a shard before it shrinks. One that only grew takes 27 to 54, one that did shrink as well, so neither comes soon
to where it shrinks again."""


class Table(Generic[_Held]):
    """The mapping.

    Attributes:
        shards: the directory. The shard of ``key`` is ``shards[hash(key) >> shift]``: a hash is signed, and a negative
            index counts from the end, which is where the upper half of the unsigned hashes belongs.
        shift: see there.
        count: how many keys there are. Whoever changes a shard keeps it true.
    """

    __slots__ = ("count", "shards", "shift")

    def __init__(self) -> None:
        self.shards: list[dict[bytes, _Held]] = [{}]
        self.shift = _BITS
        self.count = 0

    def get(self, key: bytes) -> _Held | None:
        """What is held under ``key``, or None."""
        return self.shards[hash(key) >> self.shift].get(key)

    def same(self, key: bytes) -> bytes:
        """The object that is held for ``key``, or ``key`` if none is: whoever keeps it keeps no second one."""
        seeker = _Seeker(key)
        self.shards[hash(key) >> self.shift].get(seeker)  # type: ignore[call-overload]
        return seeker.found

    def put(self, key: bytes, held: _Held) -> None:
        """Hold ``held``, which is not None, under ``key``."""
        shard = self.shards[hash(key) >> self.shift]
        if key not in shard:
            self.count += 1
        shard[key] = held
        if len(shard) > SHARD_KEYS:
            self.split(key)

    def get_many(self, keys: Sequence[bytes]) -> list[_Held | None]:
        """`get` of each of ``keys``."""
        if len(self.shards) == 1:
            return list(map(self.shards[0].get, keys))
        shards, shift = self.shards, self.shift
        return [shards[hash(key) >> shift].get(key) for key in keys]

    def places(self, keys: Sequence[bytes]) -> list[dict[bytes, _Held]]:
        """The shard of each of ``keys``, until the next `split` or `shrink`."""
        shards, shift = self.shards, self.shift
        if len(shards) == 1:
            return shards * len(keys)
        return [shards[number >> shift] for number in map(hash, keys)]

    def put_many(
        self,
        places: Sequence[dict[bytes, _Held]],
        keys: Sequence[bytes],
        held: Sequence[_Held],
        new: Sequence[bytes],
    ) -> None:
        """`put` each of ``held`` under its key, in its place; ``new`` are those of the keys that are not there yet."""
        for place, key, one in zip(places, keys, held, strict=True):
            place[key] = one
        self.count += len(new)
        for key in new:
            if len(self.shards[hash(key) >> self.shift]) > SHARD_KEYS:
                self.split(key)

    def remove(self, key: bytes) -> _Held | None:
        """Hold nothing under ``key`` any more; what was held."""
        held = self.shards[hash(key) >> self.shift].pop(key, None)
        if held is not None:
            self.count -= 1
        return held

    def split(self, key: bytes) -> None:
        """Spread the keys of ``key``'s shard over eight."""
        first, last = self._run((hash(key) >> self.shift) % len(self.shards))
        if first == last:
            self.shards = [shard for shard in self.shards for _ in range(_PARTS)]
            self.shift -= _SPLIT_BITS
            first, last = first * _PARTS, first * _PARTS + _PARTS - 1
        places = (last - first + 1) // _PARTS  # in the directory, for each part
        shift = self.shift + places.bit_length() - 1
        parts: list[dict[bytes, _Held]] = [{} for _ in range(_PARTS)]
        for each, held in self.shards[first].items():
            parts[hash(each) >> shift & _PARTS - 1][each] = held
        self.shards[first : last + 1] = [part for part in parts for _ in range(places)]

    def page(self, position: int, limit: int, room: int = _POSITIONS) -> tuple[list[bytes], int]:
        """Some keys, from ``position`` on, and the position of what comes after them.

        0 is the first position, and what comes after the end.

        Args:
            position: where to begin.
            limit: the most keys.
            room: the most bytes of keys, but for the first one.
        """
        first, last = self._run(position >> self.shift)
        keys = list(self.shards[first])
        end = (last + 1) << self.shift
        if position > first << self.shift:
            keys = [key for key in keys if hash(key) % _POSITIONS >= position]
        if len(keys) > limit or sum(map(len, keys)) > room:
            keys.sort(key=_position)
            limit = min(limit, _fitting(keys, room))
            if limit < len(keys):
                end = hash(keys[limit]) % _POSITIONS
                del keys[limit:]
        return keys, end % _POSITIONS

    def part(self, position: int) -> tuple[Collection[_Held], int]:
        """What is held from ``position`` to the end of its shard, and the position of that end, 0 after the last."""
        first, last = self._run(position >> self.shift)
        shard, end = self.shards[first], (last + 1) << self.shift
        if position > first << self.shift:
            return [held for key, held in shard.items() if _position(key) >= position], end % _POSITIONS
        return shard.values(), end % _POSITIONS

    def remaining(self) -> Iterator[bytes]:
        """A key that is held, and another one, until none is; whoever is told one removes it before the next."""
        at = 0
        while at < _POSITIONS:
            first, last = self._run(at >> self.shift)
            while shard := self.shards[first]:
                yield next(reversed(shard))
            at = (last + 1) << self.shift

    def shrink(self, key: bytes) -> None:
        """Give back memory if much is unused of what ``key``'s shard takes, as keys that came and went leave it.

        The shard is another object then.
        """
        index = hash(key) >> self.shift
        shard = self.shards[index]
        if sys.getsizeof(shard) > _EMPTY_BYTES + _MOST_BYTES_PER_KEY * len(shard):
            first, last = self._run(index % len(self.shards))
            self.shards[first : last + 1] = [dict(shard)] * (last - first + 1)

    def _run(self, index: int) -> tuple[int, int]:
        """The first and the last place in the directory of the shard that has this one."""
        shards = self.shards
        shard, first, last = shards[index], index, index
        while first and shards[first - 1] is shard:
            first -= 1
        while last + 1 < len(shards) and shards[last + 1] is shard:
            last += 1
        return first, last


class _Seeker:
    """Equal to a key, and remembers which object it was equal to."""

    __slots__ = ("found",)

    def __init__(self, key: bytes) -> None:
        self.found = key

    def __hash__(self) -> int:
        return hash(self.found)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, bytes) or other != self.found:
            return False
        self.found = other
        return True


def _position(key: bytes) -> int:
    return hash(key) % _POSITIONS


def _fitting(keys: list[bytes], room: int) -> int:
    """How many of ``keys``, from the first on, have at most ``room`` bytes; at least one."""
    for count, key in enumerate(keys):
        room -= len(key)
        if room < 0 and count:
            return count
    return len(keys)
