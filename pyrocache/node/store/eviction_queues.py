"""`TwoQueues`: two queues of keys with coarse recency, the mechanism of both eviction policies.

Time is counted in *epochs*. An epoch ends when a 32nd of the keys, at least 8 and at most 1,024, have been added, or
used for the first time in the epoch. A queue is a row of chunks, one for each epoch in which keys were queued; a key is
in one chunk of one queue. For each key, a `UseTable` notes the epoch of its last use, and in how many epochs it was
used, up to three. For a key that was evicted, the same note has the epoch of the eviction and no uses. So

- a second use in one epoch is one read of that table and changes nothing;
- a key does not move when it is used. It moves when it reaches the end of its queue, according to its uses until then;
- a key takes 8 to 12 bytes in a queue and 16 to 32 in the table.

There are two modes. LRU uses the small queue alone (no ``share``): the least recently used key is evicted, to the
precision of an epoch. S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023) uses both: a
new key enters the small queue. At its end, it goes to the main queue if it was used often enough, and is evicted
otherwise. An evicted key that comes back while it is remembered enters the main queue at once. The main queue is a
clock: a key that was used goes around again.

While no key was ever evicted and no new key is added, the order of the keys does not matter yet. In this state
(``_rests``), an epoch lasts longer, and most uses are not noted.

Pure: no I/O, no threads, no clock.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from pyrocache.node.store.use_table import (
    FINGERPRINT_MASK,
    FINGERPRINT_SHIFT,
    SEGMENT_BITS,
    SEGMENT_MASK,
    STATES,
    UseTable,
)

_EPOCHS = 32
"""How many epochs pass while all keys are used once: the precision of recency. Above 32,768 keys, there are more."""

_SMALLEST_EPOCH = 8
_LARGEST_EPOCH = 1024

_STAMPS = (1 << 14) - 1
"""Epochs that the use table can tell apart. A key that was not used for longer may seem to be more recent."""

_REMEMBERED = 2
"""An evicted key is remembered for the time in which so many times the number of keys are added or used."""

_MOST_MOVES = 128
"""The most keys that one eviction moves, so that none takes long. The rest is left to the next ones."""

_LOOKS_PER_REMOVAL = 4
"""For each key that is removed, this many queued ones are examined, and dropped if they were removed."""


class TwoQueues:
    """The keys that are present, in order of eviction. Implements `EvictionPolicy`.

    Args:
        name: the name of the policy.
        share: the small queue's part of the keys; None evicts by recency, and the small queue has all keys.
        promote: in how many epochs a key must have been used to move from the small queue to the main one.
    """

    def __init__(self, name: str, share: float | None = None, promote: int = 1) -> None:
        self.name = name
        self._share = share
        self._promote = promote
        self._small = _Queue()
        self._main = _Queue()
        self._uses = UseTable()  # the stamp of the epoch << 2 | number of epochs with a use
        self._removed: set[bytes] = set()  # removed keys that are still queued
        self._until_purge = 0  # removals until the next chunk is purged of removed keys
        self._to_purge: list[tuple[_Queue, int]] = []
        self._epoch = 0
        self._added = False  # in this epoch
        self._evicts = False
        self._rests = False
        self._next_epoch()

    def __len__(self) -> int:
        """Return how many keys are present."""
        return self._small.size + self._main.size - len(self._removed)

    # Keys are added, used and removed ---------------------------------------------------------------------

    def added(self, key: bytes, /) -> None:
        """See `EvictionPolicy.added`."""
        self._added = True
        if self._rests:
            self._next_epoch()
        if key in self._removed:
            # It is still queued: appending it would queue it twice. It keeps its position and counts as used.
            self._removed.remove(key)
            self._uses.put(key, self._bump[0])
        elif self._evicts and self._is_remembered(key):
            self._main.append(key, self._epoch)
        else:
            self._small.append(key, self._epoch)
        self._left -= 1
        if self._left <= 0:
            self._next_epoch()

    def added_many(self, keys: Sequence[bytes], /) -> None:
        """See `EvictionPolicy.added_many`."""
        if self._removed or self._evicts or not keys:
            for key in keys:
                self.added(key)
            return
        self._added = True
        if self._rests:
            self._next_epoch()
        self._small.extend(keys, self._epoch)
        self._left -= len(keys)
        if self._left <= 0:
            self._next_epoch()

    def used(self, key: bytes, /) -> None:
        """See `EvictionPolicy.used`."""
        if self._rests:
            self._to_note -= 1
            if self._to_note < 0:
                return
        # `UseTable.get` and `put`, written out: this runs for every read.
        number = hash(key)
        uses = self._uses
        segment = uses.segments[number >> SEGMENT_BITS & uses.mask]
        fingerprint = number >> FINGERPRINT_SHIFT & FINGERPRINT_MASK
        state = segment[number & SEGMENT_MASK] ^ fingerprint
        if state >> 2 != self._stamp:
            segment[number & SEGMENT_MASK] = fingerprint | self._bump[state & 3 if state < STATES else 0]
            self._left -= 1
            if self._left <= 0:
                self._next_epoch()

    def used_many(self, keys: Sequence[bytes], /) -> None:
        """See `EvictionPolicy.used_many`."""
        if self._rests:
            self._to_note -= len(keys)
            if self._to_note < 0:
                return
        # Read all slots first: `used` may begin an epoch, which may change the segments. Most keys were used before in
        # this epoch, so this loop, without a call for each key, is all that happens.
        segments, mask, stamp = self._uses.segments, self._uses.mask, self._stamp
        first_uses = []
        for number, key in zip(map(hash, keys), keys, strict=True):
            slot = segments[number >> SEGMENT_BITS & mask][number & SEGMENT_MASK]
            if (slot ^ number >> FINGERPRINT_SHIFT & FINGERPRINT_MASK) >> 2 != stamp:
                first_uses.append(key)
        for key in first_uses:
            self.used(key)

    def removed(self, key: bytes, /) -> None:
        """See `EvictionPolicy.removed`."""
        self._uses.forget(key)
        self._removed.add(key)
        # Removing it from its chunk would take time linear in the chunk's length; chunks are purged now and then.
        self._until_purge -= 1
        if self._until_purge <= 0:
            self._purge_chunk()

    def _next_epoch(self) -> None:
        keys = len(self)
        self._rests = self._epoch > 0 and not self._added and not self._evicts
        self._epoch += 1
        self._left = max(_SMALLEST_EPOCH, min(_LARGEST_EPOCH, keys // _EPOCHS))
        if self._rests:
            self._left = max(_LARGEST_EPOCH, 2 * keys)
        self._remembered = _REMEMBERED * keys / self._left  # in epochs
        self._added = False
        # At rest; by then most keys have been noted, and noting them again changes nothing.
        self._to_note = 3 * keys
        self._uses.step(keys)
        # The state of a key after one more use, by the number of uses before it.
        self._stamp = stamp = self._epoch % _STAMPS + 1  # never 0, the stamp of a key that was not used
        once = 2 if self._rests else 1  # several uses in a long epoch count once, so count it double
        self._bump = tuple(stamp << 2 | min(uses + once, 3) for uses in range(4))

    def _is_remembered(self, key: bytes) -> bool:
        """Return whether ``key``, which is not present, was evicted from the small queue recently, and forget that."""
        state = self._uses.get(key)
        if state:
            self._uses.forget(key)
        return state > 0 and self._epoch - self._last_use(state) <= self._remembered

    def _last_use(self, state: int) -> int:
        """Return the epoch that is noted in ``state``, 0 for none."""
        return self._epoch - (self._stamp - (state >> 2)) % _STAMPS if state else 0

    def _purge_chunk(self) -> None:
        """Drop the removed keys of one chunk. Chunks take turns, so about half of the queued keys are present."""
        if not self._to_purge:
            for queue in (self._main, self._small):
                queue.first = min(queue.chunks, default=self._epoch)
                self._to_purge += [(queue, epoch) for epoch in queue.chunks]
        queue, epoch = self._to_purge.pop()
        chunk = queue.chunks.get(epoch, ())
        self._until_purge = len(chunk) // _LOOKS_PER_REMOVAL
        kept = [key for key in chunk if key not in self._removed]
        if len(kept) < len(chunk):
            self._removed.difference_update(chunk)
            queue.size -= len(chunk) - len(kept)
            queue.chunks[epoch] = deque(kept)
        if not kept:
            queue.chunks.pop(epoch, None)

    # Keys are evicted -------------------------------------------------------------------------------------

    def victim(self) -> bytes:
        """See `EvictionPolicy.victim`."""
        self._evicts = True
        small, main, uses, removed, share = self._small, self._main, self._uses, self._removed, self._share
        moved: list[tuple[int, bytes, _Queue]] = []
        # A key that goes around in the main queue has one use less, and may be used again in this epoch.
        before = (self._epoch - 1) % _STAMPS + 1 << 2
        while len(moved) < _MOST_MOVES:
            queue = main
            if share is None or not main.size or small.size >= share * (small.size + main.size):
                queue = small
            key = queue.pop()
            if key in removed:
                removed.remove(key)
                continue
            state = uses.get(key)
            if share is None:
                target, epoch = small, self._last_use(state)
                if epoch <= small.first:
                    break
            else:
                if state & 3 < (self._promote if queue is small else 1):
                    break
                target, epoch = main, self._epoch
                uses.put(key, before | state - 1 & 3 if queue is main and state & 3 > 1 else 0)
            moved.append((state, key, target))
            target.append(key, epoch)
        else:  # evict the least recently used of them: to look for a better one would take too long
            _, key, queue = min(moved, key=lambda each: self._last_use(each[0]))
            removed.add(key)  # it is queued
        # S3-FIFO remembers what it evicted from the small queue.
        uses.forget(key, self._stamp << 2 if queue is small and share is not None else 0)
        return key


class _Queue:
    """Keys in chunks, the oldest chunk first.

    Attributes:
        chunks: by epoch.
        first: no chunk is older than this epoch; `oldest` moves it forward.
        size: how many keys are queued, removed ones included.
    """

    __slots__ = ("chunks", "first", "size")

    def __init__(self) -> None:
        self.chunks: defaultdict[int, deque[bytes]] = defaultdict(deque)
        self.first = 1
        self.size = 0

    def append(self, key: bytes, epoch: int) -> None:
        """Add ``key`` to the chunk of ``epoch``, which is not before `first`."""
        self.chunks[epoch].append(key)
        self.size += 1

    def extend(self, keys: Sequence[bytes], epoch: int) -> None:
        """Add all of ``keys`` to the chunk of ``epoch``."""
        self.chunks[epoch].extend(keys)
        self.size += len(keys)

    def oldest(self) -> int:
        """Return the epoch of the oldest chunk with a key. Raises LookupError when there is none."""
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
        """Remove and return the first key of the oldest chunk. Raises LookupError when there is none."""
        chunk = self.chunks.get(self.first) or self.chunks[self.oldest()]
        self.size -= 1
        return chunk.popleft()
