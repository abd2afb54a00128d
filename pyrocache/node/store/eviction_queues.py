"""Two queues of keys with coarse recency: what all eviction policies are made of. Pure.

Time is counted in *epochs*: one passes when about a thirtieth of the keys held has been touched, new keys and those
used for the first time in it. A queue is a row of chunks, one for each epoch, and a key is in one chunk of one queue.
As long as no key comes and none has ever been evicted, an epoch is as long as twice the cache: which key would be the
next to go is of no interest, and a use costs next to nothing.
Only of keys that have been used since they were queued more is known: the last epoch of use, and in how many epochs
they were used, up to three. That makes

- a look into a table of a use, as a second one in the same epoch tells nothing new;
- a key move not when it is used, but when its turn to be evicted has come, to where it belongs by then;
- some 12 bytes a key, 40 to 65 for one that was used.

By one `Rule` or another the same queues evict the least recently used, to the precision of an epoch, or as S3-FIFO does
(Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): a key waits in the small queue; whether it
was used there decides if it goes to the main queue or out. One that went out, and comes again while that is remembered,
goes to the main queue at once. That one is a clock: who was used gets another turn.

Not thread-safe.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeAlias

from pyrocache.node.store.table import Table

_Chunk: TypeAlias = deque[bytes]

_EPOCHS = 32
"""So many epochs pass while all keys are touched once: the precision of recency."""

_SMALLEST_EPOCH = 8
_LARGEST_EPOCH = 1024

_SCAN = 0.7
"""Where a larger part of the keys touched in an epoch is new, that is a scan."""

_WATCHED = 4

_MOST_MOVES = 128
"""Keys that one eviction may move to where they belong, so that none takes long. What is due is amortised."""

_LOOKS_PER_REMOVAL = 4
"""For each key that is removed, so many queued ones are looked at, and forgotten if they were removed."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Which key goes next.

    Attributes:
        share: the small queue's part of the keys; None evicts by recency, whichever queue a key is in.
        promote: in how many epochs a key must have been used to get from the small queue to the main one.
    """

    share: float | None
    promote: int = 1


RECENCY = Rule(share=None)


class Queues:
    """The keys that are held, in order of eviction; see `EvictionPolicy` for what the methods promise.

    Args:
        name: of the policy.
        rule: which key goes next; it may be exchanged at any time.
        remembers: whether it remembers keys that went; by default if its rule needs that.

    Attributes:
        rule: as above.
        on_touch: called with each key that is watched, when it is new or used for the first time in an epoch; but not
            of uses as long as no key comes and none has ever been evicted.
        watch_mask: keys are watched that have none of these bits in their hash when they are added.
        same: see `know_keys`.
        scanned: whether most keys touched in the last epoch were new, as in a scan.
    """

    def __init__(self, name: str, rule: Rule, *, remembers: bool | None = None) -> None:
        self.name = name
        self.rule = rule
        self.on_touch: Callable[[bytes], None] | None = None
        self.watch_mask = 0
        self._remembers = rule is not RECENCY if remembers is None else remembers
        self.same: Callable[[bytes], bytes] = _itself
        self._added = self._size = self._left = 0  # of this epoch: new keys, touches in all, those to come
        self.clear()

    def clear(self) -> None:
        """See `EvictionPolicy.clear`."""
        self.scanned = False
        self._small = _Queue()
        self._main = _Queue()
        self._uses = Table[int]()  # by key, as _bump has it; nothing of a key that was not used
        self._removed: set[bytes] = set()  # removed keys that are still queued
        self._cleared = 0  # removals until the next chunk is cleared
        self._to_clear: list[tuple[_Queue, int]] = []
        self._ghosts: _Ghosts | None = None
        self._epoch = 0
        self._rests = False
        self._evicts = False
        self._next_epoch()

    def __len__(self) -> int:
        """How many keys are held."""
        return self._small.size + self._main.size - len(self._removed)

    def know_keys(self, same: Callable[[bytes], bytes], /) -> None:
        """See `EvictionPolicy.know_keys`."""
        self.same = same

    # Keys come, are used, and are removed -------------------------------------------------------------------

    def added(self, key: bytes, /) -> None:
        """See `EvictionPolicy.added`."""
        self._added += 1
        if self._rests:
            self._next_epoch()
        if key in self._removed:
            self._removed.remove(key)  # it takes its old place again, as one that was used
            self._uses.put(key, self._bump[0])
        elif self._ghosts is not None and self._ghosts.take(key):
            self._main.append(key, self._epoch)
        else:
            self._small.append(key, self._epoch)
        self._left -= 1
        if self._left <= 0:
            self._next_epoch()
        if not hash(key) & self.watch_mask and self.on_touch is not None:
            self._uses.put(key, (self._uses.get(key) or 0) | _WATCHED)
            self.on_touch(key)

    def added_many(self, keys: Sequence[bytes], /) -> None:
        """See `EvictionPolicy.added_many`."""
        if self._removed or self._ghosts is not None:
            for key in keys:
                self.added(key)
            return
        self._added += len(keys)
        if self._rests:
            self._next_epoch()
        self._small.extend(keys, self._epoch)
        self._left -= len(keys)
        if self._left <= 0:
            self._next_epoch()
        if self.on_touch is not None:
            mask = self.watch_mask
            for key in [key for key in keys if not hash(key) & mask]:
                self._uses.put(key, _WATCHED)
                self.on_touch(key)

    def used(self, key: bytes, /) -> None:
        """See `EvictionPolicy.used`."""
        table = self._uses
        shard = table.shards[hash(key) >> table.shift]
        uses = shard.get(key, 0)
        if uses < self._now:
            if uses:
                shard[key] = self._bump[uses & 7]
            else:
                table.put(self.same(key), self._bump[0])
            self._left -= 1
            if self._left <= 0:
                self._next_epoch()
            if uses & _WATCHED and not self._rests and self.on_touch is not None:
                self.on_touch(key)

    def used_many(self, keys: Sequence[bytes], /) -> None:
        """See `EvictionPolicy.used_many`."""
        if self._rests and self._size - self._left >= len(self):
            return  # all that are held were used in this epoch
        now, used = self._now, self.used
        for key, uses in zip(keys, self._uses.get_many(keys), strict=True):
            if uses is None or uses < now:
                used(key)

    def removed(self, key: bytes, /) -> None:
        """See `EvictionPolicy.removed`."""
        self._forget(key)
        self._removed.add(key)
        self._cleared -= 1
        if self._cleared <= 0:
            self._clear_chunk()

    def _forget(self, key: bytes) -> None:
        """Know nothing of its uses any more."""
        if self._uses.remove(key) is not None:
            self._uses.shrink(key)

    def _next_epoch(self) -> None:
        if self._epoch:
            self.scanned = self._added > _SCAN * (self._size - self._left)
            self._rests = not self._added and not self._evicts
        self._epoch += 1
        held = len(self)
        self._size = self._left = max(_SMALLEST_EPOCH, min(_LARGEST_EPOCH, held // _EPOCHS))
        if self._rests:
            self._size = self._left = max(_LARGEST_EPOCH, 2 * held)
        if self._ghosts is not None and not self._ghosts.fits(held):
            self._ghosts = _Ghosts(held)
        self._added = 0
        # All uses in an epoch share these integers. The lowest two bits count, the third one says who is watched.
        self._now = now = self._epoch << 3
        once = 2 if self._rests else 1  # in a long epoch more uses than one do not show
        self._bump = (now + once, now + 2, now + 3, now + 3, now + 4 + once, now + 6, now + 7, now + 7)
        now -= 8  # once less, and not yet in this epoch
        self._less = (0, 0, now + 1, now + 2, 0, _WATCHED, now + 5, now + 6)

    def _clear_chunk(self) -> None:
        """Forget the removed keys in one chunk. All chunks have their turn, so about half the keys queued are held."""
        if not self._to_clear:
            for queue in (self._main, self._small):
                queue.first = min(queue.chunks, default=self._epoch)
                self._to_clear += [(queue, epoch) for epoch in queue.chunks]
        queue, epoch = self._to_clear.pop()
        chunk = queue.chunks.get(epoch, ())
        self._cleared = len(chunk) // _LOOKS_PER_REMOVAL
        kept = [key for key in chunk if key not in self._removed]
        if len(kept) < len(chunk):
            self._removed.difference_update(chunk)
            queue.size -= len(chunk) - len(kept)
            queue.chunks[epoch] = deque(kept)
        if not kept:
            queue.chunks.pop(epoch, None)

    # Keys are evicted ---------------------------------------------------------------------------------------

    def victim(self) -> bytes:
        """See `EvictionPolicy.victim`."""
        self._evicts = True
        rule = self.rule
        if rule.share is None:
            key, queue = self._least_recent()
        else:
            key, queue = self._unused(rule.share, rule.promote)
        self._forget(key)
        if queue is self._small and self._remembers:
            if self._ghosts is None:
                self._ghosts = _Ghosts(len(self))
            self._ghosts.add(key)
        return key

    def _least_recent(self) -> tuple[bytes, _Queue]:
        """The key used least recently."""
        small, main, uses, removed = self._small, self._main, self._uses, self._removed
        moved: list[tuple[int, bytes, _Queue]] = []
        while len(moved) < _MOST_MOVES:
            queue = small
            if main.size and (not small.size or main.oldest() <= small.oldest()):
                queue = main
            key = queue.pop()
            if key in removed:
                removed.remove(key)
                continue
            epoch = (uses.get(key) or 0) >> 3
            if epoch <= queue.first:
                return key, queue
            moved.append((epoch, key, queue))
            queue.append(key, epoch)
        return self._oldest(moved)

    def _unused(self, share: float, promote: int) -> tuple[bytes, _Queue]:
        """The next key that was not used enough to stay."""
        small, main, uses, removed = self._small, self._main, self._uses, self._removed
        moved: list[tuple[int, bytes, _Queue]] = []
        while len(moved) < _MOST_MOVES:
            queue = main
            if not main.size or small.size >= share * (small.size + main.size):
                queue = small
            key = queue.pop()
            if key in removed:
                removed.remove(key)
                continue
            seen = uses.get(key) or 0
            if seen & 3 < (promote if queue is small else 1):
                return key, queue
            moved.append((seen >> 3, key, main))
            main.append(key, self._epoch)
            left = seen & _WATCHED if queue is small else self._less[seen & 7]
            if left:
                uses.put(key, left)
            else:
                uses.remove(key)
        return self._oldest(moved)

    def _oldest(self, moved: list[tuple[int, bytes, _Queue]]) -> tuple[bytes, _Queue]:
        """Of keys that were moved, the one used least recently: to look for a better one would take too long."""
        _, key, queue = min(moved, key=itemgetter(0))
        self._removed.add(key)  # it is queued
        return key, queue


class _Queue:
    """Keys in chunks, the oldest first.

    Attributes:
        chunks: by their epoch; which of them is the oldest, ``first`` does not say before `oldest` has looked.
        first: there is no older chunk.
        size: how many keys there are, removed ones included.
    """

    __slots__ = ("chunks", "first", "size")

    def __init__(self) -> None:
        self.chunks: dict[int, _Chunk] = {}
        self.first = 1
        self.size = 0

    def append(self, key: bytes, epoch: int) -> None:
        """Put ``key`` into the chunk of ``epoch``, which is not before `first`."""
        chunk = self.chunks.get(epoch)
        if chunk is None:
            chunk = self.chunks[epoch] = deque()
        chunk.append(key)
        self.size += 1

    def extend(self, keys: Sequence[bytes], epoch: int) -> None:
        """`append` all ``keys``."""
        chunk = self.chunks.get(epoch)
        if chunk is None:
            chunk = self.chunks[epoch] = deque()
        chunk.extend(keys)
        self.size += len(keys)

    def oldest(self) -> int:
        """The epoch of the oldest chunk with a key. `LookupError` when there is none."""
        chunks, epoch = self.chunks, self.first
        if not chunks.get(epoch):
            if not self.size:
                raise LookupError("There is no entry to evict.")
            while not chunks.get(epoch):
                chunks.pop(epoch, None)
                epoch += 1
            self.first = epoch
        return epoch

    def pop(self) -> bytes:
        """Take out the first key of the oldest chunk. `LookupError` when there is none."""
        chunk = self.chunks.get(self.first) or self.chunks[self.oldest()]
        self.size -= 1
        return chunk.popleft()


class _Ghosts:
    """Keys that were evicted lately, by 16 bits of their hash, in a table that forgets by overwriting.

    A key is mistaken for another once in 65,536 times, which does no harm.
    """

    __slots__ = ("_mask", "_table")

    def __init__(self, keys: int) -> None:
        slots = 1 << max(keys, 15).bit_length()
        self._mask = slots - 1
        # Memory that the system gives as it is touched: however large, it costs no time at once.
        self._table = memoryview(bytearray(2 * slots)).cast("H")

    def fits(self, keys: int) -> bool:
        """Whether the table has the right size to remember ``keys``."""
        return keys <= self._mask < max(32, 16 * keys)

    def add(self, key: bytes) -> None:
        """Remember ``key``."""
        number = hash(key)
        self._table[number >> 16 & self._mask] = number >> 47 & 0xFFFF or 1

    def take(self, key: bytes) -> bool:
        """Whether ``key`` is remembered; it is not from now on."""
        number = hash(key)
        slot = number >> 16 & self._mask  # lower bits may be the same in all keys, as in a sample
        if self._table[slot] != (number >> 47 & 0xFFFF or 1):
            return False
        self._table[slot] = 0
        return True


def _itself(key: bytes) -> bytes:
    return key
