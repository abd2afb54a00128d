"""Which entry goes when memory is full: the policies. Pure: a policy knows keys, and looks into no value.

A policy counts entries; how many bytes there may be is the store's business, which asks for victims until they fit.
`queues` has the mechanism; the default, `Adaptive`, follows the rule that would have had the most hits lately.

Not thread-safe; the store's owner serialises the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pyrocache.node.store.eviction_queues import RECENCY, Queues, Rule

__all__ = ["DEFAULT_POLICY", "LRU", "POLICIES", "S3FIFO", "Adaptive", "EvictionPolicy"]


class EvictionPolicy(Protocol):
    """The keys that are held, in an order of its own. Every call is O(1) a key, amortised, and none pauses for long."""

    name: str

    def know_keys(self, same: Callable[[bytes], bytes], /) -> None:
        """``same`` tells the object that the store has for an equal key: keeping that one takes no memory."""

    def added(self, key: bytes, /) -> None:
        """``key`` is new; it is not held yet."""

    def added_many(self, keys: Sequence[bytes], /) -> None:
        """`added` for each of ``keys``, which are distinct."""

    def used(self, key: bytes, /) -> None:
        """``key``, which is held, was read or overwritten."""

    def used_many(self, keys: Sequence[bytes], /) -> None:
        """`used` for each of ``keys``."""

    def removed(self, key: bytes, /) -> None:
        """``key``, which was held, is deleted or expired."""

    def victim(self) -> bytes:
        """Take out the key to evict next; it is held no more. `LookupError` when there is none."""

    def clear(self) -> None:
        """Nothing is held any more, and nothing is remembered."""


S3FIFO_RULE = Rule(share=0.25, promote=2)
"""The paper has a tenth of the keys in the small queue; see `docs/eviction.md` for what is gained by a quarter."""

RULES = (RECENCY, S3FIFO_RULE, Rule(share=0.25, promote=1))
"""Those of which `Adaptive` follows one; the first is that in doubt."""

_SAMPLE = 1024
"""Keys in a miniature, to within a factor of two."""

_DENSEST = 3
"""The mask of a sample of one key in four: more are never taken, so that a use costs little."""

_DENSEST_FILLING = 7
"""The same until something has to go."""

_UNTIL_FULL = 0.6
"""The miniatures' part of the size of a cache that is not full yet: so there is something to tell from the start."""

_MEMORY = 16
"""In touches of as many keys as the cache holds: how far a rule is ahead fades by two thirds in the time."""

_LOOKS = 8
"""How often a rule is chosen while as many keys are touched as the cache holds."""

_ADVANTAGE = 0.05
_REST = 0.02
"""Hits, relative to the cache's size, that a rule must be ahead by to be chosen before recency, and to stay it."""

_BEHIND = 0.5
_LATELY = 8
"""So far behind, S3-FIFO is not followed through what looks like a scan either; that fades in so many touches of the
whole cache, so a scan is withstood soon after recency was best."""


class Adaptive:
    """By recency or as S3-FIFO with one of two thresholds, whichever would have had the most hits lately.

    A miniature of the cache runs for each rule, on a sample of the keys, chosen by their hash, that makes it about a
    thousand keys large (Waldspurger et al., "Cache Modeling and Optimization using Miniature Simulations", ATC 2017).
    How far one is ahead fades: by two thirds while so many keys are touched as make up sixteen caches. In doubt it goes
    by recency; but while nearly all keys are new for longer than by chance, which is a scan, as S3-FIFO.
    """

    name = "adaptive"

    def __init__(self) -> None:
        self._queues = queues = Queues(self.name, RECENCY, remembers=True)
        queues.on_touch = self._touched
        self.added = queues.added
        self.added_many = queues.added_many
        self.used = queues.used
        self.used_many = queues.used_many
        self.know_keys = queues.know_keys
        self._begin()

    def _begin(self) -> None:
        self._chosen = 0
        self._scanned = False  # at the last look
        self._full = False
        self._queues.watch_mask = _DENSEST
        self._mask = _DENSEST_FILLING  # a key is in the sample when these bits of its hash are 0
        self._miniatures = [_Miniature(rule) for rule in RULES]
        self._capacity = 1  # of each of them
        self._ahead = [0.0] * len(RULES)  # hits more than by recency, fading
        self._ahead_lately = [0.0] * len(RULES)  # the same, fading sooner
        self._until_look = 0

    def clear(self) -> None:
        """See `EvictionPolicy.clear`."""
        self._queues.clear()
        self._begin()

    def removed(self, key: bytes, /) -> None:
        """See `EvictionPolicy.removed`."""
        self._queues.removed(key)
        if not hash(key) & self._mask:
            for miniature in self._miniatures:
                miniature.remove(key)

    def victim(self) -> bytes:
        """See `EvictionPolicy.victim`."""
        if not self._full:
            self._full = True
            self._look()
        return self._queues.victim()

    # What the miniatures tell -------------------------------------------------------------------------------

    def _touched(self, key: bytes) -> None:
        if hash(key) & self._mask:
            return
        by_recency, *others = [miniature.touch(key) for miniature in self._miniatures]
        if not (by_recency and all(others)):
            key = self._queues.same(key)
            for miniature in self._miniatures:
                miniature.add(key, self._capacity)
            for number, hit in enumerate(others, 1):
                self._ahead[number] += hit - by_recency
                self._ahead_lately[number] += hit - by_recency
        self._until_look -= 1
        if self._until_look <= 0:
            self._look()

    def _look(self) -> None:
        """Choose the rule to follow until the next look."""
        self._ahead = ahead = [hits * (1 - 1 / (_LOOKS * _MEMORY)) for hits in self._ahead]
        self._ahead_lately = lately = [hits * (1 - 1 / (_LOOKS * _LATELY)) for hits in self._ahead_lately]
        capacity = self._capacity
        best = max(range(len(RULES)), key=ahead.__getitem__)
        if ahead[best] > ahead[self._chosen] + capacity * (_REST if self._chosen else _ADVANTAGE):
            self._chosen = best
        elif ahead[self._chosen] < capacity * _REST:
            self._chosen = 0
        scanned, self._scanned = self._scanned, self._queues.scanned
        scan = scanned and self._scanned and not self._chosen and max(lately[1:]) > -_BEHIND * capacity
        self._queues.rule = S3FIFO_RULE if scan else RULES[self._chosen]
        self._fit()
        self._until_look = self._capacity // _LOOKS

    def _fit(self) -> None:
        """Give the miniatures the size that belongs to the cache's."""
        mask, held = self._mask, len(self._queues)
        while held // (mask + 1) > 2 * _SAMPLE:
            mask = mask * 2 + 1
        densest = max(_DENSEST if self._full else _DENSEST_FILLING, self._queues.watch_mask)
        while held // (mask + 1) < _SAMPLE // 4 and mask > densest:
            mask >>= 1
        if mask > self._mask:
            for miniature in self._miniatures:
                miniature.keep_only(mask)
            self._queues.watch_mask = max(_DENSEST, mask >> 3)  # as far as the sample may become denser again
        self._mask = mask
        capacity = max(int(held / (mask + 1) * (1 if self._full else _UNTIL_FULL)), 1)
        for hits in (self._ahead, self._ahead_lately):
            hits[:] = [each * capacity / self._capacity for each in hits]
        self._capacity = capacity


class _Miniature:
    """A cache of keys without values, evicting by one rule."""

    def __init__(self, rule: Rule) -> None:
        self.held: set[bytes] = set()
        self._queues = Queues("", rule)

    def touch(self, key: bytes) -> bool:
        """Whether ``key`` is held; if so, it is used."""
        if key in self.held:
            self._queues.used(key)
            return True
        return False

    def add(self, key: bytes, capacity: int) -> None:
        """Hold ``key``, and ``capacity`` keys at most."""
        if key not in self.held:
            while len(self.held) >= capacity:
                self.held.remove(self._queues.victim())
            self._queues.added(key)
            self.held.add(key)

    def keep_only(self, mask: int) -> None:
        """Forget all keys that have one of the bits of ``mask`` in their hash."""
        for key in [key for key in self.held if hash(key) & mask]:
            self.remove(key)

    def remove(self, key: bytes) -> None:
        """Forget ``key``."""
        if key in self.held:
            self.held.remove(key)
            self._queues.removed(key)


class LRU(Queues):
    """Least recently used first, to the precision of an epoch."""

    def __init__(self) -> None:
        super().__init__("lru", RECENCY)


class S3FIFO(Queues):
    """A small and a main queue."""

    def __init__(self) -> None:
        super().__init__("s3fifo", S3FIFO_RULE)


POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    "adaptive": Adaptive,
    "lru": LRU,
    "s3fifo": S3FIFO,
}
"""By the name for ``--eviction``."""

DEFAULT_POLICY = "adaptive"
