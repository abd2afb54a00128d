"""`Contents`: the entries of a store with their accounting; the code that changes entries.

`Contents` has a function for each kind of mutation. Expiry, eviction and reclaiming remove entries as well; they are
local to a node and are not mutations. Entries that are removed or overwritten go through `detach`, which takes them
out of the accounts, the expiry buckets and their tags. `batches.set_many` does the same for many entries at once.

No I/O and no threads; clock and policy are injected.

Thread safety: not thread-safe; the caller holds the node's lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from xxhash import xxh3_64_intdigest

from pyrocache.errors import ValueTooLarge
from pyrocache.node.store.entry import ENTRY_OVERHEAD, Details, Entry, Stored, cost_of, entry_cost, value_of
from pyrocache.node.store.eviction import EvictionPolicy
from pyrocache.node.store.expiry import ExpiryBuckets
from pyrocache.node.store.mutation import Clear, Delete, Discard, Extras, InvalidateTag, Set, Touch
from pyrocache.node.store.namespaces import Namespace, Namespaces
from pyrocache.node.store.reclaim import Reclaimer
from pyrocache.node.store.table import FEW_KEYS, too_large
from pyrocache.node.store.tags import TAG_BYTES, Tags
from pyrocache.protocol.partition import PARTITION_MASK, PARTITIONS

_NEVER = math.inf

_MOMENT_SECONDS = 0.5


@dataclass(slots=True)
class Counters:
    """What has happened in a store since it was made, or reset."""

    sets: int = 0
    deletes: int = 0
    evictions: int = 0
    expirations: int = 0


class Contents:
    """Everything that a `Store` has.

    Attributes:
        max_bytes: how much the entries may take, overhead included.
        bytes: how much they take; more than ``max_bytes`` only if the last entry has grown by its bookkeeping.
        counters: see `Counters`.
        namespaces, tags, expiry, policy, reclaimer: where the entries are, by what they can be found, which are dead.
        mutations: for each partition, the number of mutations that changed one of its keys; `Discard` is not counted.
            Mutations of all partitions at once are counted in ``mutations_of_all``.
        executors: the function for each kind of mutation.
        moment: the time of the last call of `now`, or up to half a second before. Entries refer to this one object, so
            a time that they note takes no memory of its own.
    """

    def __init__(
        self,
        max_bytes: int,
        policy: EvictionPolicy,
        clock: Callable[[], float],
        tick_seconds: float,
        reclaimed_by_clear: int,
    ) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.counters = Counters()
        self.policy = policy
        self._added, self._used = policy.added, policy.used
        self.namespaces = Namespaces()
        self.tags = Tags()
        self.expiry = ExpiryBuckets(tick_seconds)
        self.reclaimer = Reclaimer(self.namespaces, self.tags, self.expiry, clock)
        self.mutations = [0] * PARTITIONS  # a list, in which counting is faster than in an array
        self.mutations_of_all = 0
        self.moment = -_NEVER
        self._clock = clock
        self._reclaimed_by_clear = reclaimed_by_clear
        self.executors: dict[type[Any], Callable[[Any], Any]] = {
            Set: self._set,
            Touch: self._touch,
            Delete: self._delete,
            Discard: self._delete,
            Clear: self._clear,
            InvalidateTag: self._invalidate,
        }

    # Reading ----------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the time, and update `moment`."""
        now = self._clock()
        if now - self.moment > _MOMENT_SECONDS:
            self.moment = now
        return now

    def live(self, space: Namespace, key: bytes, stored: Stored | None) -> Stored | None:
        """Return ``stored``, unless it is dead or stale. A dead entry is removed."""
        if not isinstance(stored, Entry):
            return stored
        if self.tags.invalid and stored.invalid:
            self.remove(space, key, stored)
            return None
        if (now := self.now()) < stored.expires_at:
            return stored
        if now >= stored.leaves_at:
            self.remove(space, key, stored)
            self.counters.expirations += 1
        return None

    # Executing mutations ----------------------------------------------------------------------------------

    def _set(self, change: Set) -> None:
        # The path of every single write: what `detach` and `make_room` do for plain values is written out here.
        key, value, expires_at, extras = change.key, change.value, change.expires_at, change.extras
        spaces = self.namespaces
        space = spaces.of(key) if key[0] else spaces.root
        plain = expires_at == _NEVER and extras is None
        cost = len(key) + len(value) + ENTRY_OVERHEAD if plain else self._cost(space, change)
        if cost + space.overhead > self.max_bytes:
            raise value_too_large(self.max_bytes)
        partition = xxh3_64_intdigest(key) & PARTITION_MASK
        self.mutations[partition] += 1
        self.counters.sets += 1
        shard = space.shards[partition >> space.shift]
        before = shard.get(key)
        if before is None:
            # Most new keys need none of these: nothing is being reclaimed, and the entry fits.
            full = self.bytes + cost + space.overhead > self.max_bytes
            if full or not space.count or self.reclaimer.cleared:
                self._prepare(space, key, cost)
                shard = space.shards[partition >> space.shift]  # it may have been copied meanwhile
        elif type(before) is bytes:
            self.bytes -= len(key) + len(before) + ENTRY_OVERHEAD
        else:
            self.detach(space, key, before)
        shard[key] = value if plain else self._entry(space, key, Entry(value, expires_at), extras)
        self.bytes += cost
        if before is None:
            space.count += 1
            self._added(key)
            if len(shard) > FEW_KEYS and too_large(shard):
                space.split(key)
        else:
            self._used(key)
        if self.bytes > self.max_bytes:  # tags that did not exist before are accounted for only now
            self.make_room(key)

    def _touch(self, change: Touch) -> bool:
        key = change.key
        space = self.namespaces.of(key)
        live = self.live(space, key, space.get(key))
        if live is None:
            return False
        self._count(key)
        self._used(key)
        details = live.details if isinstance(live, Entry) else None
        if details is not None and isinstance(live, Entry):
            # The stale period keeps its length; an entry that never expires has none.
            stale_seconds = details.stale_until - live.expires_at
            lasts = stale_seconds > 0 and change.expires_at < _NEVER
            details.stale_until = change.expires_at + stale_seconds if lasts else 0.0
        after = Entry(value_of(live), change.expires_at, None, details)
        self.replace(space, key, live, after)
        after.used_at = self.moment
        return True

    def _delete(self, change: Delete | Discard) -> None:
        space = self.namespaces.of(change.key)
        stored = space.get(change.key)
        if stored is not None:
            self.remove(space, change.key, stored)
            if type(change) is Delete:
                self._count(change.key)
        self.counters.deletes += type(change) is Delete

    def _clear(self, change: Clear) -> int:
        space = self.namespaces.get(change.namespace)
        if space is None or not space.count:
            return 0
        self.mutations_of_all += 1  # to count it in each of the 16,384 partitions would take a millisecond
        count = space.count
        self.reclaimer.clear(space)
        # Few entries are reclaimed at once: a client that clears small namespaces often leaves no work behind.
        self.reclaim(self._reclaimed_by_clear)
        return count

    def _invalidate(self, change: InvalidateTag) -> int:
        self.mutations_of_all += 1
        return self.tags.invalidate(change.tag)

    def _count(self, key: bytes) -> None:
        self.mutations[xxh3_64_intdigest(key) & PARTITION_MASK] += 1

    # Inserting and removing -------------------------------------------------------------------------------

    def _cost(self, space: Namespace, change: Set) -> int:
        names = None if change.extras is None else change.extras.tags
        cost = entry_cost(change.key, change.value, expires=change.expires_at < _NEVER, tags=names)
        if names and cost + sum(len(name) + TAG_BYTES for name in names) + space.overhead > self.max_bytes:
            raise value_too_large(self.max_bytes)
        return cost

    def _entry(self, space: Namespace, key: bytes, entry: Entry, extras: Extras | None) -> Entry:
        """Return a new entry with its tags and its expiry."""
        if extras is not None:
            tags, cost = self.tags.attach(key, extras.tags)
            self.bytes += cost
            entry.details = Details(extras.stale_until, extras.load_seconds, tags)
        self.schedule(space, key, entry)
        entry.written_at = self.moment
        return entry

    def schedule(self, space: Namespace, key: bytes, entry: Entry) -> None:
        """Put ``key`` into the bucket of the time when the entry leaves. Updates `moment`."""
        now = self.now()
        if entry.expires_at < _NEVER:
            leaves_at = entry.expires_at if entry.details is None else entry.leaves_at
            entry.bucket = self.expiry.bucket(leaves_at, leaves_at - now)
            entry.bucket.add(key)
            space.expiring += 1

    def replace(self, space: Namespace, key: bytes, before: Stored, after: Entry) -> None:
        """Store ``after``, which has the same value and details, in the place of ``before``. It gets the same times."""
        self.bytes -= cost_of(key, before)
        if isinstance(before, Entry):
            after.written_at, after.used_at = before.written_at, before.used_at
            if before.bucket is not None:
                space.expiring -= 1
                before.bucket.discard(key)
        self.schedule(space, key, after)
        stored: Stored = after if after.bucket is not None or after.details is not None else after.value
        space.shard(key)[key] = stored
        self.bytes += cost_of(key, stored)
        self.make_room(key)

    def remove(self, space: Namespace, key: bytes, stored: Stored) -> None:
        """Remove an entry, and tell the policy."""
        space.pop(key)
        self.detach(space, key, stored)
        if not space.count:  # an empty namespace is not accounted for
            self.bytes -= space.overhead
        self.policy.removed(key)

    def detach(self, space: Namespace, key: bytes, stored: Stored) -> None:
        """Take an entry, which leaves its table or is about to be overwritten, out of everything else."""
        if type(stored) is bytes:
            self.bytes -= len(key) + len(stored) + ENTRY_OVERHEAD
            return
        self.bytes -= cost_of(key, stored)
        if isinstance(stored, Entry):
            if stored.bucket is not None:
                space.expiring -= 1
                stored.bucket.discard(key)
            if stored.details is not None and stored.details.tags:
                self.bytes -= self.tags.detach(key, stored.details.tags)

    # Making room ------------------------------------------------------------------------------------------

    def _prepare(self, space: Namespace, key: bytes, cost: int) -> None:
        """Make room for a new key. An entry that it had before its namespace was cleared is reclaimed."""
        for old in self.namespaces.cleared.get(space.prefix, ()):
            stored = old.get(key)
            if stored is not None:  # else the policy would know the key twice
                self.remove(old, key, stored)
        cost += space.overhead
        if self.bytes + cost > self.max_bytes:
            self.reclaim_for(cost)
            self.evict_for(cost)
        if not space.count:
            self.bytes += space.overhead

    def make_room(self, keep: bytes) -> None:
        """Reclaim, then evict entries other than ``keep``, until the bytes are within the limit."""
        if self.bytes > self.max_bytes:
            self.reclaim_for(0)
            self.evict_for(0, keep=(keep,))

    def reclaim_for(self, cost: int) -> None:
        """Remove dead entries until ``cost`` more bytes fit."""
        while self.bytes + cost > self.max_bytes and not self.reclaimer.idle and self.reclaim(1):
            pass

    def evict_for(self, cost: int, *, keep: Collection[bytes] = ()) -> None:
        """Evict entries other than ``keep`` until ``cost`` more bytes fit.

        The caller has reclaimed the dead entries that can be found; an entry whose tick has not ended may still be
        dead.
        """
        kept = []
        spaces, next_victim = self.namespaces, self.policy.victim
        while self.bytes + cost > self.max_bytes:
            try:
                victim = next_victim()
            except LookupError:
                break  # only what is kept is left, and it has just become a little larger than the limit
            if victim in keep:
                kept.append(victim)
                continue
            space = spaces.of(victim) if victim[0] else spaces.root
            stored = space.pop(victim)
            assert stored is not None  # the policy knows exactly the keys that are stored
            self.detach(space, victim, stored)
            if not space.count:
                self.bytes -= space.overhead
            self.counters.evictions += 1
        for key in kept:  # `victim` has removed them from the policy
            self.policy.added(key)

    def reclaim(self, limit: int) -> bool:
        """Remove up to ``limit`` dead entries. Return whether there may be more."""
        for _ in range(limit):
            dead, expired = self.reclaimer.next()
            if dead is None:
                return False
            self.remove(*dead)
            self.counters.expirations += expired
        return True


def value_too_large(max_bytes: int) -> ValueTooLarge:
    """Return the error for a value that does not fit at all."""
    return ValueTooLarge(f"The value does not fit into the node's {max_bytes} bytes of memory.")
