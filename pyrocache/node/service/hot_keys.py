"""`HotKeys`: counts how often each key is used, in bounded memory, while somebody asks for it.

The counting is Space-Saving (Metwally, Agrawal, El Abbadi: "Efficient Computation of Frequent and Top-k Elements in
Data Streams", 2005), with one difference: counters are not replaced one at a time, but the smaller half of them at
once, when they have used up their memory. So a use of a key costs one look-up, and the keys of a batch are counted in
C. A counter knows by how much it may be too low, as the key may have been forgotten before. What is reported is the
part that was counted for certain. A stream of keys that are all used equally often therefore reports low rates, and not
chance as heat.

Every use counts, none is left out. A use is a call about a key that the node has executed: reads, also of keys without
an entry, writes, removals, `touch`, and each key of a batch. Not counted are calls about locks; `lease`, before which
its caller has read the key, and `abandon`; `get_entry` and `get_entries`, with which people look at entries. All counts
are halved every `HALVED_SECONDS`, together with the time that they were counted in, so the rates are those of the last
seconds.

It does not decide who may ask. A caller gets the keys of the namespace that it names, as with `scan`.

While nobody asks, nothing is between the dispatcher and the methods, so it costs nothing. Pure: no I/O, no threads.

Thread safety: not thread-safe. All its methods run on the I/O thread, as do all calls that it counts.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pyrocache.node.store.namespaces import prefix_of
from pyrocache.protocol import commands
from pyrocache.protocol.commands import COMMANDS, Runs, Scope

COUNTED_SECONDS = 10.0
"""How long the node counts after it was last asked."""

HALVED_SECONDS = 5.0

MAX_BYTES = 2**20
"""The memory of the counters, in the moment before the smaller half is dropped. A counter takes the bytes of its key,
and `COUNTER_BYTES`, so that there are fewer than 2,048. One batch of keys may come on top."""

COUNTER_BYTES = 512

_KEPT_BYTES = MAX_BYTES // 2

Call: TypeAlias = Callable[..., Any]

Wrap: TypeAlias = Callable[[str, Call], Call]
"""Returns what is called in place of a method, given its name and the method."""

_NO_USES = {
    *(commands.ABANDON.name, commands.RENEW.name, commands.RELEASE.name, commands.HOLDERS.name),
    *(commands.GET_ENTRY.name, commands.GET_ENTRIES.name),
}


class HotKeys:
    """The counters of one node.

    Args:
        observe: makes every later call go through what a `Wrap` returns; with None, through nothing any more.
        clock: seconds.
    """

    def __init__(self, observe: Callable[[Wrap | None], object], clock: Callable[[], float]) -> None:
        self._observe = observe
        self._clock = clock
        self._counting_until: float | None = None
        self._since = self._halve_at = 0.0
        self._calls: Counter[bytes] = Counter()  # halved values are not ints
        self._missed: dict[bytes, float] = {}  # by how much a counter may be too low; `_floor` for the others
        self._floor = 0.0  # no key without a counter has been used more often
        self._room = MAX_BYTES

    def ask(self, namespace: bytes, count: int) -> list[Any]:
        """Return ``[seconds, [[key, calls], ...]]``: the most used keys of a namespace, at most ``count``.

        They were counted in the last ``seconds``; 0 the first time. Go on counting for `COUNTED_SECONDS`. ``calls`` is
        a lower bound. Both numbers may have a fraction, because both are halved now and then.
        """
        now = self._clock()
        self.tick()
        if self._counting_until is None:
            self._forget(now)
            self._observe(self._counted)
        self._counting_until = now + COUNTED_SECONDS
        own = ((calls, key) for key, calls in self._calls.items() if prefix_of(key) == namespace)
        top = heapq.nlargest(count, own)
        return [now - self._since, [[key, float(calls)] for calls, key in top]]

    def tick(self) -> None:
        """Halve what was counted, or end counting, when it is time for that. Call it from time to time."""
        if self._counting_until is None:
            return
        now = self._clock()
        if now >= self._counting_until:
            self._counting_until = None
            self._observe(None)
            self._forget(now)
        elif now >= self._halve_at:
            self._halve_at = now + HALVED_SECONDS
            self._since = now - (now - self._since) / 2
            self._floor /= 2
            self._missed = {key: missed / 2 for key, missed in self._missed.items()}
            halved = {key: calls / 2 for key, calls in self._calls.items() if calls >= 1}
            self._calls.clear()
            self._calls.update(halved)

    def use(self, key: bytes) -> None:
        """Count one use of a key."""
        calls = self._calls
        calls[key] = calls.get(key, 0) + 1
        self._room -= len(key) + COUNTER_BYTES
        if self._room < 0:
            self._drop_some()

    def use_all(self, keys: Sequence[bytes]) -> None:
        """Count one use of each of ``keys``."""
        self._calls.update(keys)  # in C
        self._room -= sum(map(len, keys)) + COUNTER_BYTES * len(keys)
        if self._room < 0:
            self._drop_some()

    def _forget(self, now: float) -> None:
        self._since = now
        self._halve_at = now + HALVED_SECONDS
        self._calls.clear()
        self._missed.clear()
        self._floor = 0.0
        self._room = MAX_BYTES

    def _drop_some(self) -> None:
        """Drop the counters with the least calls, if there are too many, so that there is room for as many new ones."""
        calls, missed, floor = self._calls, self._missed, self._floor
        used = sum(map(len, calls)) + COUNTER_BYTES * len(calls)
        if used > _KEPT_BYTES:
            at_most = {key: count + missed.get(key, floor) for key, count in calls.items()}
            for key in sorted(at_most, key=at_most.__getitem__):
                if used <= _KEPT_BYTES:
                    break
                used -= len(key) + COUNTER_BYTES
                self._floor = at_most[key]  # they are sorted, so the last is the largest
                del calls[key]
            self._missed = {key: error for key in calls if (error := missed.get(key, floor))}
        self._room = MAX_BYTES - used

    def _counted(self, name: str, call: Call) -> Call:
        """Return ``call`` with its uses counted, or as it is if it uses no key."""
        command = COMMANDS[name]
        if name in _NO_USES or command.runs is not Runs.INLINE:  # the others wait for leases and locks
            return call
        if command.scope is Scope.KEY:

            def one(*arguments: Any, **options: Any) -> Any:
                result = call(
                    *arguments, **options
                )  # first: then the key is valid, and the node has executed it
                self.use(arguments[1] if len(arguments) > 1 else options["key"])
                return result

            return one
        if command.scope is Scope.KEYS:

            def many(*arguments: Any, **options: Any) -> Any:
                result = call(*arguments, **options)
                keys = arguments[1] if len(arguments) > 1 else options["keys"]
                # A list covers the first keys only; the caller asks for the others again.
                self.use_all(keys[: len(result)] if type(result) is list else keys)
                return result

            return many
        return call
