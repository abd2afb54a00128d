"""The history checker: which promises a history of calls breaks.

Works per key on intervals: a call takes effect at one moment between its start and its end, a change that raised at one
moment between its start and its `limit`, or never. Only what no choice of these moments explains is a violation.

**Registers.** Each value is written by one call. So for each value that was read, or whose write was acknowledged:

- it was stored at its *first* moment at the latest: the earliest end of its write (`limit`, if that raised) and its
  reads;
- it was still stored at its *last* moment at the earliest: the latest start of its write and its reads.

If the first is before the last, the value was stored all the time between. No other value may have been stored then,
and there may have been no moment without a value. This finds stale reads, writes that were applied again after a later
one (A, B, A), changes that took effect after their limit, and deleted values that came back, and nothing that one
register could do (Gibbons and Korach, "Testing Shared Memories", SIAM J. Computing 1997). A successful
`compare_and_set` reads the value that it replaces, and each value can be replaced once.

A miss needs a reason: between the start of the latest call that proves a value and ended before, and the end of the
miss, there must be a delete or a clear that may have taken effect, or a `Loss`. A loss explains misses, never an old
value.

**Counters.** A reading is the set of the `incr` calls that are in the sum. No digit is above 1; a call that was
acknowledged, or read, before is in the set, unless a `Loss` since then explains why not; what was once absent after its
`limit`, or lost, never comes back.

**Locks.** A grant has a larger token than all grants whose calls ended before its call began.

**All.** Only pyrocache's errors are raised, and no call takes `PATIENCE_SECONDS` more than its deadline.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from tests.chaos.history import (
    ACQUIRE,
    CAS,
    CLEAR,
    COUNT,
    DELETE,
    GET,
    INCR,
    MAYBE,
    OK,
    REFUSED,
    SET,
    Call,
    Loss,
)

PATIENCE_SECONDS = 5.0
DIGIT_BITS = 4
_NEVER = float("-inf")
_REMOVALS = (DELETE, CLEAR)


class Violation(NamedTuple):
    """A broken promise.

    Attributes:
        kind: a few words, to count by.
        key: the key or lock.
        calls: the calls that prove it, the last one first.
        more: how many further calls show the same.
    """

    kind: str
    key: str
    calls: tuple[Call, ...]
    more: int = 0

    @property
    def at(self) -> float:
        """Return when it showed."""
        return self.calls[0].end


def check(calls: Iterable[Call], losses: Sequence[Loss] = (), timeout: float = 1.0) -> list[Violation]:
    """Return what the history breaks, by time.

    Args:
        timeout: the deadline of the calls in seconds.
    """
    by_key: dict[str, list[Call]] = defaultdict(list)
    violations: list[Violation] = []
    for call in calls:
        by_key[call.key].append(call)
        if call.error.startswith("!"):
            violations.append(Violation("error outside the tree", call.key, (call,)))
        if call.end - call.start > timeout + PATIENCE_SECONDS:
            violations.append(Violation("past its deadline", call.key, (call,)))
    for key, history in by_key.items():
        kinds = {call.kind for call in history}
        mine = [loss for loss in losses if key in loss.keys]
        if kinds & {INCR, COUNT}:
            violations += _by_kind(_Counter(key, mine).check(history))
        elif ACQUIRE in kinds:
            violations += _tokens(key, history)
        else:
            violations += _register(key, history, mine)
    return sorted(violations, key=lambda violation: violation.at)


# Registers ---------------------------------------------------------------------------------------------------


class _Life:
    """The calls that prove one value: the write, and what has read it."""

    def __init__(self, written: Call) -> None:
        self.written = self.latest = written
        self.first = written.limit
        self.reads: list[Call] = []

    def read(self, call: Call) -> None:
        self.reads.append(call)
        self.first = min(self.first, call.end)
        self.latest = max(self.latest, call, key=lambda proof: proof.start)

    @property
    def last(self) -> float:
        return self.latest.start

    @property
    def proven(self) -> bool:
        return bool(self.reads) or self.written.outcome == OK


def _register(key: str, history: Sequence[Call], losses: Sequence[Loss]) -> Iterator[Violation]:
    lives = {call.value: _Life(call) for call in history if call.kind in (SET, CAS)}
    replaced_by: dict[str, Call] = {}
    for call in history:
        value = call.value if call.kind == GET else call.replaced
        if value is None or call.outcome != OK:
            continue
        if value in lives:
            lives[value].read(call)
        else:
            yield Violation("value that nobody wrote", key, (call,))
        if call.kind == CAS:
            first = replaced_by.setdefault(value, call)
            if first is not call:
                yield Violation("two compare_and_set of one version", key, (call, first))
    for life in lives.values():
        if life.reads and life.written.outcome == REFUSED:
            yield Violation("refused change took effect", key, (life.reads[0], life.written))
        if life.first < life.written.start:
            early = min(life.reads, key=lambda call: call.end)
            yield Violation("read before it was written", key, (early, life.written))
    yield from _disorder(key, [life for life in lives.values() if life.proven], history)
    yield from _lost(key, history, losses)


def _disorder(key: str, lives: Iterable[_Life], history: Sequence[Call]) -> Iterator[Violation]:
    """Find values between whose first and last moment something else was stored, or nothing."""
    zones = [
        (min(life.first, life.last), max(life.first, life.last), life, life.written, life.first < life.last)
        for life in lives
    ]
    absences = (call for call in history if call.miss or (call.kind in _REMOVALS and call.outcome == OK))
    zones += [(call.start, call.end, _Life(call), call, False) for call in absences]
    zones.sort(key=lambda zone: zone[:2])
    cover: _Life | None = None  # the latest value that was stored for some time
    reported: set[int] = set()
    for low, high, life, call, lasting in zones:
        until = low if lasting else high  # by then something else was stored, or nothing
        if cover is not None and cover.first < low and until < cover.last and id(cover) not in reported:
            reported.add(id(cover))
            stale = [read for read in cover.reads if read.start > until]
            latest = min(stale, default=cover.latest, key=lambda read: read.end)
            proof = (latest, *life.reads[:1], call, cover.written)
            yield Violation(_kind_of_disorder(cover, call), key, proof, max(0, len(stale) - 1))
        if lasting:  # it begins after `cover` ends, or that one has been reported
            cover = life


def _kind_of_disorder(old: _Life, between: Call) -> str:
    if old.written.outcome == MAYBE and old.first == old.written.limit:
        return "took effect after its limit"
    if between.miss:
        return "value came back after a miss"
    came_back = between.kind in _REMOVALS
    return f"value came back after a {between.kind}" if came_back else "old value after a newer one"


def _later(one: Call, other: Call) -> Call:
    return max(one, other, key=lambda call: call.start)


def _lost(key: str, history: Sequence[Call], losses: Sequence[Loss]) -> Iterator[Violation]:
    """Find misses without a reason."""
    proofs = sorted(
        (call for call in history if call.outcome == OK and call.kind not in _REMOVALS and not call.miss),
        key=lambda call: call.end,
    )
    latest = list(accumulate(proofs, _later))
    ends = [call.end for call in proofs]
    reasons = [(call.start, call.limit) for call in history if call.kind in _REMOVALS and not call.miss]
    reasons = sorted([*reasons, *((loss.start, loss.end) for loss in losses)])
    starts = [start for start, _ in reasons]
    limits = list(accumulate((limit for _, limit in reasons), max))
    found: dict[Call, list[Call]] = {}
    for miss in (call for call in history if call.miss):
        before = bisect_left(ends, miss.start)
        until = bisect_left(starts, miss.end)
        if before and (limits[until - 1] if until else _NEVER) <= latest[before - 1].start:
            found.setdefault(latest[before - 1], []).append(miss)
    for proof, misses in found.items():
        yield Violation("acknowledged value lost", key, (misses[0], proof), len(misses) - 1)


# Counters ----------------------------------------------------------------------------------------------------


class _Counter:
    """Replays the readings of one counter. Sets of calls are ints with a bit for each slot's digit."""

    def __init__(self, key: str, losses: Sequence[Loss]) -> None:
        self._key = key
        self._losses = losses
        self._expected = 0  # acknowledged or read
        self._gone = 0  # lost, or never done within the limit
        self._due = 0  # raised, and the limit has passed
        self._called = 0
        self._started: dict[int, Call] = {}
        self._readings: list[tuple[Call, int]] = []  # by their end
        self._snapshots: dict[Call, tuple[int, int, int]] = {}

    def check(self, history: Sequence[Call]) -> Iterator[Violation]:
        """Yield the violations."""
        moments = [(call.start, 0, call) for call in history]
        moments += [(call.limit, 1, call) for call in history]
        for _, ends, call in sorted(moments, key=lambda moment: moment[:2]):
            if not ends:
                self._snapshots[call] = self._expected, self._gone, self._due
                if call.kind == INCR:
                    self._called |= _bit(call.slot)
                    self._started[call.slot] = call
            elif call.outcome == MAYBE:
                self._due |= _bit(call.slot) if call.kind == INCR else 0
            else:
                yield from self._read(call)

    def _read(self, call: Call) -> Iterator[Violation]:
        number = int(call.value or "0", 16)
        expected, gone, due = self._snapshots.pop(call)
        expected |= _bit(call.slot) if call.kind == INCR else 0
        found = _present(number)
        if doubled := _repeated(number):
            yield from self._each("incr done twice", call, doubled)
        if unknown := found & ~self._called:
            yield Violation("incr that nobody called", self._key, (call,))
            found &= ~unknown
        if back := found & gone:
            yield from self._each("incr came back after it was absent", call, back)
        for slot in _slots(expected & ~found & ~gone & ~self._gone):
            proof = self._proof(slot, call)
            if not any(loss.start < call.end and loss.end > proof.start for loss in self._losses):
                yield Violation("acknowledged incr lost", self._key, (call, proof, self._started[slot]))
        self._gone |= (expected | due) & ~found
        self._expected |= found
        self._readings.append((call, found))

    def _each(self, kind: str, call: Call, slots: int) -> Iterator[Violation]:
        for slot in _slots(slots):
            proof = (self._started[slot],) if slot in self._started else ()
            yield Violation(kind, self._key, (call, *proof))

    def _proof(self, slot: int, before: Call) -> Call:
        """Return the latest reading with that call in it."""
        readings = (call for call, found in reversed(self._readings) if found & _bit(slot))
        return next((call for call in readings if call.end < before.start), self._started[slot])


def _by_kind(violations: Iterable[Violation]) -> Iterator[Violation]:
    """Yield the first violation of each kind, which counts the others: what is wrong once stays so in a counter."""
    found: dict[str, list[Violation]] = {}
    for violation in violations:
        found.setdefault(violation.kind, []).append(violation)
    return (same[0]._replace(more=len(same) - 1) for same in found.values())


def _bit(slot: int) -> int:
    return 1 << (slot * DIGIT_BITS)


def _ones(number: int) -> int:
    """Return a number with a 1 in each digit."""
    return int("1" * (len(f"{number:x}") + 1), 16)


def _present(number: int) -> int:
    """Return the digits that are not 0, each as 1."""
    return (number | number >> 1 | number >> 2 | number >> 3) & _ones(number)


def _repeated(number: int) -> int:
    """Return the digits above 1, each as 1."""
    return (number >> 1 | number >> 2 | number >> 3) & _ones(number)


def _slots(digits: int) -> Iterator[int]:
    text = f"{digits:x}"[::-1]
    return (slot for slot, digit in enumerate(text) if digit != "0")


# Locks -------------------------------------------------------------------------------------------------------


def _tokens(key: str, history: Sequence[Call]) -> Iterator[Violation]:
    grants = [call for call in history if call.outcome == OK and call.value is not None]
    ended = sorted(grants, key=lambda call: call.end)
    largest: Call | None = None
    index = 0
    for grant in sorted(grants, key=lambda call: call.start):
        while ended[index].end < grant.start:
            largest = max(largest or ended[index], ended[index], key=lambda call: call.value)
            index += 1
        if largest is not None and grant.value <= largest.value:
            yield Violation("fencing token did not grow", key, (grant, largest))
