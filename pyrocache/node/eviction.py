"""Which entry goes when memory is full: the policies. Pure: a policy knows keys, and looks into no value.

A policy counts entries; how many bytes there may be is the store's business, which asks for victims until they fit.
`queues` has the mechanism; the default, `Adaptive`, follows the rule that would have had the most hits lately.

Not thread-safe; the store's owner serialises the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from pyrocache.node.queues import RECENCY, Queues, Rule

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

    def used_many(self, keys: Iterable[bytes], /) -> None:
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

_MEMORY = 8
"""In touches of as many keys as the cache holds: how far a rule is ahead fades by two thirds in the time."""

_LOOKS = 8
"""How often a rule is chosen while as many keys are touched as the cache holds."""

_ADVANTAGE = 0.05
_REST = 0.02
"""Hits, relative to the cache's size, that a rule must be ahead by to be chosen before recency, and to stay it."""

_BEHIND = 0.1
"""So far behind, S3-FIFO is not followed through a scan either."""


class Adaptive:
    """By recency or as S3-FIFO with one of two thresholds, whichever would have had the most hits lately.

    A miniature of the cache runs for each rule, on a sample of the keys, chosen by their hash, that makes it about a
    thousand keys large (Waldspurger et al., "Cache Modeling and Optimization using Miniature Simulations", ATC 2017).
    How far one is ahead fades: by two thirds while so many keys are touched as make up eight caches. In doubt it goes
    by recency; but while nearly all keys are new, which is a scan, as S3-FIFO.
    """

    name = "adaptive"

    def __init__(self) -> None:
        self._queues = queues = Queues(self.name, RECENCY, remembers=True)
        self.added = queues.added
        self.added_many = queues.added_many
        self.used = queues.used
        self.used_many = queues.used_many
        self.know_keys = queues.know_keys
        self._begin()

    def _begin(self) -> None:
        self._chosen = 0
        # Until something has to go, there is nothing to tell the rules apart, and nothing to pay.
        self._queues.on_touch = None
        self._mask = 0  # a key is in the sample when these bits of its hash are 0
        self._miniatures = [_Miniature(rule) for rule in RULES]
        self._ahead = [0.0] * len(RULES)  # hits more than by recency, fading
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
        if self._queues.on_touch is None:
            self._queues.on_touch = self._touched
        return self._queues.victim()

    # What the miniatures tell -------------------------------------------------------------------------------

    def _sampled(self) -> int:
        """How many keys a miniature of the present size holds."""
        return max(len(self._queues) // (self._mask + 1), 1)

    def _touched(self, key: bytes) -> None:
        if hash(key) & self._mask:
            return
        key = self._queues.same(key)
        capacity = self._sampled()
        by_recency = self._miniatures[0].touch(key, capacity)
        for number in range(1, len(RULES)):
            if self._miniatures[number].touch(key, capacity) is not by_recency:
                self._ahead[number] += -1 if by_recency else 1
        self._until_look -= 1
        if self._until_look <= 0:
            self._look(capacity)

    def _look(self, capacity: int) -> None:
        """Choose the rule to follow until the next look."""
        self._until_look = capacity // _LOOKS
        self._ahead = ahead = [hits * (1 - 1 / (_LOOKS * _MEMORY)) for hits in self._ahead]
        best = max(range(len(RULES)), key=ahead.__getitem__)
        if ahead[best] > ahead[self._chosen] + capacity * (_REST if self._chosen else _ADVANTAGE):
            self._chosen = best
        elif ahead[self._chosen] < capacity * _REST:
            self._chosen = 0
        scan = not self._chosen and self._queues.scanned and max(ahead[1:]) > -_BEHIND * capacity
        self._queues.rule = S3FIFO_RULE if scan else RULES[self._chosen]
        if capacity > 2 * _SAMPLE:
            self._thin_out()
        elif capacity < _SAMPLE // 4 and self._mask:
            self._mask >>= 1

    def _thin_out(self) -> None:
        """Halve the sample."""
        self._mask = self._mask * 2 + 1
        for miniature in self._miniatures:
            for key in [key for key in miniature.held if hash(key) & self._mask]:
                miniature.remove(key)


class _Miniature:
    """A cache of keys without values, evicting by one rule."""

    def __init__(self, rule: Rule) -> None:
        self.held: set[bytes] = set()
        self._queues = Queues("", rule)

    def touch(self, key: bytes, capacity: int) -> bool:
        """Whether ``key`` was held. It is now, and ``capacity`` keys at most."""
        if key in self.held:
            self._queues.used(key)
            return True
        while len(self.held) >= capacity:
            self.held.remove(self._queues.victim())
        self._queues.added(key)
        self.held.add(key)
        return False

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
