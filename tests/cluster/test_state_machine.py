"""The whole public interface of a client, on three real nodes, against a model in memory.

Each example has namespaces of its own, one within another, and works on them through two clients in turn, one over Unix
sockets and one over TCP. The model has no clock of its own: it knows between which two moments an entry expires, from
what the clock said before and after the call that stored it. Only what must hold by that is asserted; where both
outcomes are right the model takes the one that it sees, and where it cannot see which it was, the entry is deleted.

``CI`` in the environment makes it 500 examples of 50 steps, ``HYPOTHESIS_PROFILE=thorough`` ten times as many.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import reprlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from enum import Enum
from fractions import Fraction
from itertools import count
from types import EllipsisType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from pyrocache import LocalCluster, LockTimeout, PyroCacheClient, SerializationError, WaitTimeout
from pyrocache.client.features.locks import Lock
from pyrocache.client.stats import NamespaceStats
from tests.support.nodes import private_cluster

STEPS = 50
EXAMPLES = 250 if os.environ.get("CI") else 30
if os.environ.get("HYPOTHESIS_PROFILE") == "thorough":
    EXAMPLES = 5000

SHORT, LONG = 0.01, 1000.0
"""Seconds that entries live: some are gone within a few steps, the others never."""

Ttl: TypeAlias = float | timedelta | None

# What is drawn -----------------------------------------------------------------------------------------------

SPELLINGS: list[list[Any]] = [
    [1, 1.0, True, Fraction(1), np.int64(1)],
    [0, False, -0.0],
    [2**80, float(2**80)],
    [""],
    ["a"],
    ["ab"],
    ["abc"],
    [b"a"],
    [None],
    [()],
    [(1,), (1.0,), (True,)],
    [(1, "a"), (Fraction(1), "a")],
    [("a", (None, 1)), ("a", (None, True))],
    [frozenset({1, "a"}), frozenset({"a", 1.0}), {True, "a"}],
    [[1, "a"], [True, "a"]],
    [{"a": 1, "b": 2}, {"b": 2.0, "a": True}],
    [date(2024, 2, 29)],
]
"""Keys, those that are equal together."""

PREFIXES: list[Any] = [None, "", "a", "ab", (), (1,), (True,), ("a",), ("a", (None, 1.0)), "b"]

SHAPES: dict[str, Callable[[int], Any]] = {
    "int": lambda n: n,
    "negative": lambda n: -n,
    "large int": lambda n: n - 2**200,
    "none": lambda n: None,
    "true": lambda n: True,
    "float": lambda n: n / 2,
    "text": lambda n: f"value {n} ü",
    "bytes": lambda n: b"%d" % n,
    "nested": lambda n: {"number": n, "more": [n, (None, {n}), {"": 2**n}]},
    "array": lambda n: np.full(7, n),
    "many bytes": lambda n: n.to_bytes(4, "big") * 20_000,
    "large array": lambda n: np.full(10_000, n),
}
"""Values by name, made of a number that no other value has."""

TAGS = ("user:1", "page")


class At(NamedTuple):
    """By which client a call is made, and in which namespace."""

    space: str
    client: int


SPACES = {"outer": (), "inner": ("shop",), "innermost": ("shop", "eu/\0 ü"), "other": ("",)}

KEYS = Bundle("keys")
LOCKS = Bundle("locks")
ATS = st.sampled_from([At(space, client) for space in (*["outer"] * 6, *SPACES) for client in (0, 1)])
VALUES = st.sampled_from(sorted(SHAPES)) | st.sampled_from(["int", "none", "text"])
TTLS = st.sampled_from([None, None, LONG, LONG, timedelta(seconds=LONG), SHORT])
KEPT_TTLS = TTLS | st.just(...)
SETS_OF_TAGS = st.sampled_from([None, [], ["user:1"], ["page", "user:1"], ["page"]])
INTS = st.sampled_from([1, -1, 0, 7, 2**64, -(2**300)])
FLAGS = st.booleans()
MANY_KEYS = st.lists(KEYS, max_size=5)


# The model ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One entry, and what is known of when it expires.

    Attributes:
        earliest, latest: it expires within these (monotonic seconds).
        stale_seconds: how long it is kept then for those who take it.
        version: None until it was asked for.
        invalid: one of its tags was invalidated.
        loaded: how long that took is known to the node, so it can be refreshed early.
    """

    value: Any
    earliest: float = math.inf
    latest: float = math.inf
    stale_seconds: float = 0.0
    tags: frozenset[str] = frozenset()
    version: int | None = None
    invalid: bool = False
    loaded: bool = False


@dataclass
class Space:
    """One namespace.

    Attributes:
        path: its names.
        clients: of it.
        entries: what is there, or expired, or invalid, by `name_of` its key.
        keys: any of the keys that are called so.
        versions: that the key of that name ever had.
        remains: what was cleared, and may not be swept yet.
        hits, misses, unsure: reads that found something, that did not, and that the model cannot tell.
    """

    path: tuple[str, ...]
    clients: list[PyroCacheClient]
    entries: dict[Hashable, Entry] = field(default_factory=dict)
    keys: dict[Hashable, Any] = field(default_factory=dict)
    versions: dict[Hashable, list[int]] = field(default_factory=dict)
    remains: list[Entry] = field(default_factory=list)
    hits: int = 0
    misses: int = 0
    unsure: int = 0

    def counted(self, live: bool | None, reads: int = 1) -> None:
        """So many reads of an entry were made."""
        if live is None:
            self.unsure += reads
        elif live:
            self.hits += reads
        else:
            self.misses += reads

    def saw(self, name: Hashable, live: bool, before: float, after: float) -> None:
        """A call between these two moments has found the entry, or has found it gone."""
        entry = self.entries.get(name)
        if entry is not None and live:
            self.entries[name] = replace(entry, earliest=max(entry.earliest, before))
        elif entry is not None:
            self.entries[name] = replace(entry, latest=min(entry.latest, after))

    def clear(self) -> None:
        self.remains += self.entries.values()
        self.entries.clear()


class Unchanged(Enum):
    """That a call leaves an entry as it was."""

    SAME = "SAME"


SAME = Unchanged.SAME
Effect: TypeAlias = tuple[Any, Entry | Unchanged | None]
"""The outcome of a call on an entry, and the entry that there is then; None if there is none."""


class Within(NamedTuple):
    """Any number from one to another."""

    low: float
    high: float


@dataclass(frozen=True)
class Raised:
    """What a call raises."""

    kind: type[BaseException]


class Boom(Exception):
    """Of a factory."""


def is_live(entry: Entry | None, before: float, after: float) -> bool | None:
    """Whether a call between these two moments finds the entry; None if that cannot be known."""
    if entry is None or entry.invalid or before >= entry.latest:
        return False
    return True if after < entry.earliest else None


def name_of(key: Any) -> Hashable:
    """What equal keys have in common, as something that is hashable."""
    if isinstance(key, list):
        return ("a list", *key)
    if isinstance(key, dict):
        return ("a dict", frozenset(key.items()))
    return frozenset(key) if isinstance(key, set) else key


def same(one: Any, other: Any) -> bool:
    """Whether an outcome is the one that is wanted."""
    if isinstance(other, Within):
        return isinstance(one, float) and other.low - 1e-6 <= one <= other.high + 1e-6
    if isinstance(other, Raised):
        return isinstance(one, Raised) and issubclass(one.kind, other.kind)
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def attempt(call: Callable[[], Any]) -> Any:
    """What a call returns or raises."""
    try:
        return call()
    except (KeyError, TypeError, Boom, LockTimeout, WaitTimeout) as error:
        return Raised(type(error))


def fits(key: Any, prefix: Any) -> bool:
    """Whether a key begins with a prefix."""
    if prefix is None:
        return True
    if isinstance(prefix, str):
        return isinstance(key, str) and key.startswith(prefix)
    return isinstance(key, tuple) and key[: len(prefix)] == prefix


def hashable(keys: Iterable[Any]) -> bool:
    return not any(isinstance(key, list | dict | set) for key in keys)


def seconds(ttl: Ttl) -> float:
    if isinstance(ttl, timedelta):
        return ttl.total_seconds()
    return math.inf if ttl is None else ttl


def digest(value: Any) -> str:
    """Something short that tells values apart."""
    return reprlib.repr(value) + str(type(value))


# The machine -------------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Every verb of a client is a rule.

    Attributes:
        before, after: between which moments the last call was made.
        sure: that call must have found the entry that it was about, or must not have.
    """

    def __init__(self, roots: Sequence[PyroCacheClient], number: int) -> None:
        super().__init__()
        example = f"example {number}"
        if number % 50 == 0:
            roots[0].reset_stats()  # for nodes do not tell the figures of more than 500 namespaces
        self.before = self.after = 0.0
        self.sure = True
        self.numbers = count(1)
        self.spaces = {}
        for label, names in SPACES.items():
            clients = [root.namespace(example) for root in roots]
            for name in names:
                clients = [client.namespace(name) for client in clients]
            self.spaces[label] = Space((example, *names), clients)
        self.holders: dict[Hashable, list[Lock]] = {}
        self.tokens: dict[Hashable, int] = {}

    @initialize(
        target=KEYS, groups=st.lists(st.sampled_from(SPELLINGS), min_size=1, max_size=3, unique_by=repr)
    )
    def begin(self, groups: list[list[Any]]) -> Any:
        """Few keys, so that they meet again."""
        return multiple(*(key for group in groups for key in group))

    # How one entry is checked

    def one(
        self,
        at: At,
        key: Any,
        call: Callable[[PyroCacheClient], Any],
        effect: Callable[[Entry | None], Effect],
        *,
        reads: int = 0,
    ) -> None:
        """Make a call about one entry, which must do what ``effect`` says of the live entry, or of None.

        What one client has stored the other one must see. The call counts as so many ``reads``.
        """
        space, name = self.spaces[at.space], name_of(key)
        entry = space.entries.get(name)
        self.before = time.monotonic()
        outcome = attempt(lambda: call(space.clients[at.client]))
        self.after = time.monotonic()
        live = is_live(entry, self.before, self.after)
        sure = live is not None
        wanted = {may: effect(entry if may else None) for may in ((True, False) if live is None else (live,))}
        fitting = {may: new for may, (result, new) in wanted.items() if same(outcome, result)}
        assert fitting, (reprlib.repr(outcome), reprlib.repr(wanted))
        if len(fitting) == 1:
            [live] = fitting
            space.saw(name, live, self.before, self.after)
        space.counted(live, reads)
        news = list(fitting.values())
        if len(news) == 1 and news[0] is not SAME:
            self.put(space, key, news[0])
            if news[0] is not None:
                self.look(At(at.space, 1 - at.client), key)
        elif news != [SAME] * len(news):
            self.start_over(space, [key])
        self.sure = sure

    def put(self, space: Space, key: Any, entry: Entry | Unchanged | None) -> None:
        name = name_of(key)
        space.keys[name] = key
        if isinstance(entry, Entry):
            space.entries[name] = entry
        else:
            space.entries.pop(name, None)

    def start_over(self, space: Space, keys: Iterable[Any]) -> None:
        """Delete entries of which it is not known any more what they are."""
        for key in keys:
            space.clients[0].delete(key)
            self.put(space, key, None)

    def value(self, shape: str) -> Any:
        return SHAPES[shape](next(self.numbers))

    def stored(
        self,
        value: Any,
        ttl: Ttl | EllipsisType = None,
        tags: Iterable[str] | None = None,
        old: Entry | None = None,
        stale_seconds: float = 0.0,
        loaded: bool = False,
    ) -> Entry:
        """The entry that the last call has stored, in place of that one."""
        if isinstance(ttl, EllipsisType):
            kept = Entry(None) if old is None else old
            labels = kept.tags if tags is None else frozenset(tags)
            return replace(kept, value=value, tags=labels, version=None, loaded=False)
        fresh = Entry(value, tags=frozenset(tags or ()), loaded=loaded, stale_seconds=stale_seconds)
        return self.living(fresh, ttl)

    def living(self, entry: Entry, ttl: Ttl) -> Entry:
        """The entry, given a TTL by the last call."""
        span = seconds(ttl)
        stale_seconds = entry.stale_seconds if span < math.inf else 0.0
        return replace(
            entry, earliest=self.before + span, latest=self.after + span, stale_seconds=stale_seconds
        )

    def live_in(self, space: Space) -> Iterator[tuple[Hashable, Entry, bool]]:
        """The entries that the last call can have found, and whether it must have."""
        for name, entry in space.entries.items():
            live = is_live(entry, self.before, self.after)
            if live is not False:
                yield name, entry, live is True

    def timed(self, call: Callable[[], Any]) -> Any:
        self.before = time.monotonic()
        result = call()
        self.after = time.monotonic()
        return result

    # Writing

    @rule(at=ATS, key=KEYS, shape=VALUES, ttl=KEPT_TTLS, tags=SETS_OF_TAGS, before=SETS_OF_TAGS)
    def set(
        self, at: At, key: Any, shape: str, ttl: Any, tags: list[str] | None, before: list[str] | None = None
    ) -> None:
        """If there are any tags ``before``, in place of an entry that has these."""
        if before:
            self.set(at, key, "int", LONG, before)
        value = self.value(shape)
        self.one(
            at,
            key,
            lambda cache: cache.set(key, value, ttl, tags=tags),
            lambda live: (True, self.stored(value, ttl, tags, live)),
        )

    @rule(at=ATS, key=KEYS, shape=VALUES, ttl=TTLS | st.just(...))
    def set_plainly(self, at: At, key: Any, shape: str, ttl: Any) -> None:
        value = self.value(shape)
        if ttl is ...:
            self.one(
                at, key, lambda cache: cache.__setitem__(key, value), lambda live: (None, self.stored(value))
            )
        else:
            self.one(
                at,
                key,
                lambda cache: cache.set(key, value, ttl),
                lambda live: (True, self.stored(value, ttl)),
            )

    @rule(at=ATS, key=KEYS, shape=VALUES, ttl=KEPT_TTLS, tags=SETS_OF_TAGS)
    def add(self, at: At, key: Any, shape: str, ttl: Any, tags: list[str] | None) -> None:
        value = self.value(shape)
        self.one(
            at,
            key,
            lambda cache: cache.add(key, value, ttl, tags=tags),
            lambda live: (False, SAME) if live else (True, self.stored(value, ttl, tags)),
        )

    @rule(at=ATS, key=KEYS, shape=VALUES, ttl=KEPT_TTLS, tags=SETS_OF_TAGS)
    def replace(self, at: At, key: Any, shape: str, ttl: Any, tags: list[str] | None) -> None:
        value = self.value(shape)
        self.one(
            at,
            key,
            lambda cache: cache.replace(key, value, ttl, tags=tags),
            lambda live: (True, self.stored(value, ttl, tags, live)) if live else (False, SAME),
        )

    @rule(at=ATS, key=KEYS, shape=VALUES, ttl=TTLS)
    def setdefault(self, at: At, key: Any, shape: str, ttl: Ttl) -> None:
        value = self.value(shape)
        self.one(
            at,
            key,
            lambda cache: cache.setdefault(key, value, ttl),
            lambda live: (live.value, SAME) if live else (value, self.stored(value, ttl)),
            reads=1,
        )

    @rule(at=ATS, key=KEYS, shape=VALUES, ttl=KEPT_TTLS, which=st.sampled_from(["now", "now", "old", "none"]))
    def compare_and_set(self, at: At, key: Any, shape: str, ttl: Any, which: str) -> None:
        value, version = self.value(shape), self.version(at, key, which)
        self.one(
            at,
            key,
            lambda cache: cache.compare_and_set(key, value, version, ttl),
            lambda live: self.if_version(live, version, lambda: self.stored(value, ttl, None, live)),
        )

    @rule(
        at=ATS,
        key=KEYS,
        shape=VALUES,
        ttl=KEPT_TTLS,
        tags=SETS_OF_TAGS,
        which=st.sampled_from(["now", "old"]),
    )
    def set_if_version(self, at: At, key: Any, shape: str, ttl: Any, tags: Any, which: str) -> None:
        value, version = self.value(shape), self.version(at, key, which)
        self.one(
            at,
            key,
            lambda cache: cache.set(key, value, ttl, tags=tags, if_version=version),
            lambda live: self.if_version(live, version, lambda: self.stored(value, ttl, tags, live)),
        )

    def version(self, at: At, key: Any, which: str) -> int:
        """The version that the entry has, one that it had, or one that there is not."""
        if which == "now":
            self.get_with_version(at, key)
        space, name = self.spaces[at.space], name_of(key)
        entry, known = space.entries.get(name), space.versions.get(name, [])
        if which == "now" and entry is not None and entry.version is not None:
            return entry.version
        return known[0] if which == "old" and known else 1

    @staticmethod
    def if_version(live: Entry | None, version: int, new: Callable[[], Entry]) -> Effect:
        return (True, new()) if live is not None and live.version == version else (False, SAME)

    @rule(at=ATS, key=KEYS, default=FLAGS, ttl=KEPT_TTLS)
    def compute(self, at: At, key: Any, default: bool, ttl: Any) -> None:
        number = next(self.numbers)

        def changed(value: Any) -> Any:
            return [number, digest(value)]

        def effect(live: Entry | None) -> Effect:
            if live is None and not default:
                return Raised(KeyError), SAME
            value = changed("the default" if live is None else live.value)
            return value, self.stored(value, ttl, None, live)

        def call(cache: PyroCacheClient) -> Any:
            if default:
                return cache.compute(key, changed, "the default", ttl)
            return cache.compute(key, function=changed, ttl_seconds=ttl)

        self.one(at, key, call, effect, reads=1)
        if not self.sure:  # it may have expired in the middle, and been read again
            self.spaces[at.space].unsure += 1

    @rule(at=ATS, key=KEYS, by=INTS, default=INTS | st.none(), ttl=TTLS, down=FLAGS)
    def incr(self, at: At, key: Any, by: int, default: int | None, ttl: Ttl, down: bool) -> None:
        def effect(live: Entry | None) -> Effect:
            delta = -by if down else by
            if live is None:
                if default is None:
                    return Raised(KeyError), SAME
                return default + delta, self.stored(default + delta, ttl)
            if type(live.value) is not int:
                return Raised(TypeError), SAME
            return live.value + delta, self.stored(live.value + delta, ..., None, live)

        def call(cache: PyroCacheClient) -> int:
            return cache.decr(key, by, default, ttl) if down else cache.incr(key, by, default, ttl)

        self.one(at, key, call, effect)

    @rule(at=ATS, key=KEYS, ttl=TTLS)
    def touch(self, at: At, key: Any, ttl: Ttl) -> None:
        self.one(
            at,
            key,
            lambda cache: cache.touch(key, ttl),
            lambda live: (True, self.living(live, ttl)) if live else (False, SAME),
        )

    @rule(
        at=ATS,
        key=KEYS,
        shape=VALUES,
        verb=st.sampled_from(["set", "add", "replace", "touch"]),
        which=st.sampled_from([None, "now", "old"]),
    )
    def expired(self, at: At, key: Any, shape: str, verb: str, which: str | None) -> None:
        """Store what has expired already, or touch an entry so; with a version in the case of set."""
        value, past = self.value(shape), time.time() - 1
        if verb == "set" and which is not None:
            version = self.version(at, key, which)

            def if_version(live: Entry | None) -> Effect:
                fits = live is not None and live.version == version
                return (True, None) if fits else (False, SAME)

            self.one(
                at,
                key,
                lambda cache: cache.set(key, value, expires_at=past, if_version=version),
                if_version,
            )
            return
        calls: dict[str, tuple[Callable[[PyroCacheClient], Any], Callable[[Entry | None], Effect]]] = {
            "set": (lambda cache: cache.set(key, value, expires_at=past), lambda live: (True, None)),
            "add": (lambda cache: cache.add(key, value, expires_at=past), lambda live: (live is None, SAME)),
            "replace": (
                lambda cache: cache.replace(key, value, expires_at=past),
                lambda live: (live is not None, None),
            ),
            "touch": (lambda cache: cache.touch(key, expires_at=past), lambda live: (live is not None, None)),
        }
        self.one(at, key, *calls[verb])

    @rule(at=ATS, key=KEYS, ttl=st.sampled_from([0, -1.0, math.nan, "1"]))
    def refused(self, at: At, key: Any, ttl: Any) -> None:
        """Calls that make no sense, and change nothing."""
        cache = self.spaces[at.space].clients[at.client]
        calls: list[Callable[[], object]] = [
            lambda: cache.set(key, 1, ttl),
            lambda: cache.incr(key, ttl_seconds=ttl),
            lambda: cache.touch(key, ttl),
            lambda: cache.set(key, 1, tags="one text"),
        ]
        for call in calls:
            with pytest.raises((ValueError, TypeError)):
                call()
        with pytest.raises(SerializationError):
            cache.set(key, lambda: None)

    # Reading

    @rule(at=ATS, key=KEYS, default=st.sampled_from([None, "a default", KeyError]))
    def get(self, at: At, key: Any, default: Any) -> None:
        missing = Raised(KeyError) if default is KeyError else default
        self.one(
            at,
            key,
            lambda cache: cache[key] if default is KeyError else cache.get(key, default),
            lambda live: (live.value if live else missing, SAME),
            reads=1,
        )

    @rule(at=ATS, key=KEYS, ttl=st.sampled_from([LONG, SHORT, timedelta(seconds=LONG)]))
    def get_and_touch(self, at: At, key: Any, ttl: Ttl) -> None:
        self.one(
            at,
            key,
            lambda cache: cache.get(key, "none", touch_seconds=ttl),
            lambda live: (live.value, self.living(live, ttl)) if live else ("none", SAME),
            reads=1,
        )

    @rule(at=ATS, key=KEYS)
    def get_with_version(self, at: At, key: Any) -> None:
        version = None

        def call(cache: PyroCacheClient) -> Any:
            nonlocal version
            found = cache.get_with_version(key)
            if found is None:
                return None
            value, version = found
            return (value,)

        self.one(at, key, call, lambda live: ((live.value,) if live else None, SAME), reads=1)
        self.check_version(at, key, version)

    @rule(at=ATS, key=KEYS, several=FLAGS)
    def get_entry(self, at: At, key: Any, several: bool) -> None:
        version = None

        def call(cache: PyroCacheClient) -> Any:
            nonlocal version
            if several and hashable([key]):
                found = cache.get_entries([key, "none of these"]).get(key)
            else:
                found = cache.get_entry(key)
            if found is None:
                return None
            version = found.version
            return (found.value, set(found.tags), found.ttl_seconds)

        def effect(live: Entry | None) -> Effect:
            if live is None:
                return None, SAME
            left = Within(live.earliest - self.after, live.latest - self.before)
            return (live.value, set(live.tags), left), SAME

        self.one(at, key, call, effect)
        self.check_version(at, key, version)

    def check_version(self, at: At, key: Any, version: int | None) -> None:
        if version is None:
            return
        space, name = self.spaces[at.space], name_of(key)
        entry, known = space.entries[name], space.versions.setdefault(name, [])
        if entry.version is None:
            assert version > 0
            assert version not in known
            known.append(version)
            space.entries[name] = replace(entry, version=version)
        else:
            assert version == entry.version

    @rule(at=ATS, key=KEYS)
    def look(self, at: At, key: Any) -> None:
        """What tells something of an entry, and is no read of it."""

        def ttl(live: Entry | None) -> Effect:
            if live is None:
                return None, SAME
            return Within(live.earliest - self.after, live.latest - self.before), SAME

        self.one(at, key, lambda cache: cache.ttl(key), ttl)
        self.one(at, key, lambda cache: cache.contains(key), lambda live: (live is not None, SAME))
        self.one(at, key, lambda cache: key in cache, lambda live: (live is not None, SAME))
        assert len({cache.node_for(key) for cache in self.spaces[at.space].clients}) == 1

    # Removing

    @rule(at=ATS, key=KEYS, which=st.sampled_from(["now", "now", "old", "none"]))
    def delete_if_version(self, at: At, key: Any, which: str) -> None:
        version = self.version(at, key, which)

        def effect(live: Entry | None) -> Effect:
            return (True, None) if live is not None and live.version == version else (False, SAME)

        self.one(at, key, lambda cache: cache.delete(key, if_version=version), effect)

    @rule(at=ATS, prefix=st.sampled_from(PREFIXES[1:]))
    def delete_prefix(self, at: At, prefix: Any) -> None:
        space = self.spaces[at.space]
        gone = self.timed(lambda: space.clients[at.client].delete_prefix(prefix))
        live = {name: sure for name, _, sure in self.live_in(space) if fits(space.keys[name], prefix)}
        assert sum(live.values()) <= gone <= len(live)
        for name in [name for name in space.entries if fits(space.keys[name], prefix)]:
            self.put(space, space.keys[name], None)

    @rule(at=ATS, key=KEYS, how=st.sampled_from(["delete", "del", "pop", "pop or default"]))
    def remove(self, at: At, key: Any, how: str) -> None:
        match how:
            case "delete":
                self.one(at, key, lambda cache: cache.delete(key), lambda live: (live is not None, None))
            case "del":
                self.one(
                    at,
                    key,
                    lambda cache: cache.__delitem__(key),
                    lambda live: (None if live else Raised(KeyError), None),
                )
            case "pop":
                self.one(
                    at,
                    key,
                    lambda cache: cache.pop(key),
                    lambda live: (live.value if live else Raised(KeyError), None),
                    reads=1,
                )
            case _:
                self.one(
                    at,
                    key,
                    lambda cache: cache.pop(key, None),
                    lambda live: (live.value if live else None, None),
                    reads=1,
                )

    @rule(at=ATS, how=st.sampled_from([*["popitem"] * 3, "clear"]))
    def remove_some(self, at: At, how: str) -> None:
        if how == "clear":
            self.clear(at)
        else:
            self.popitem(at)

    def popitem(self, at: At) -> None:
        space = self.spaces[at.space]
        found = self.timed(lambda: attempt(space.clients[at.client].popitem))
        live = {name: sure for name, _, sure in self.live_in(space)}
        space.unsure += sum(not sure for sure in live.values())  # some may have been tried in vain
        if isinstance(found, Raised):
            assert found.kind is KeyError
            assert not any(live.values())
            return
        key, value = found
        assert name_of(key) in live
        assert same(value, space.entries[name_of(key)].value)
        space.counted(True)
        self.put(space, key, None)

    def clear(self, at: At) -> None:
        space = self.spaces[at.space]
        gone = self.timed(space.clients[at.client].clear)
        sure = sum(sure for _, _, sure in self.live_in(space))
        assert sure <= gone <= len(space.entries)
        space.clear()

    @rule(at=ATS, tag=st.sampled_from(TAGS))
    def invalidate_tag(self, at: At, tag: str) -> None:
        space = self.spaces[at.space]
        gone = self.timed(lambda: space.clients[at.client].invalidate_tag(tag))
        sure = sum(sure for _, entry, sure in self.live_in(space) if tag in entry.tags)
        most = sum(tag in entry.tags for entry in (*space.entries.values(), *space.remains))
        assert sure <= gone <= most
        for name, entry in space.entries.items():
            if tag in entry.tags:
                space.entries[name] = replace(entry, invalid=True)

    # Many keys

    @rule(at=ATS, keys=MANY_KEYS)
    def get_many(self, at: At, keys: list[Any]) -> None:
        space = self.spaces[at.space]
        cache = space.clients[at.client]
        if not hashable(keys):
            with pytest.raises(TypeError):
                cache.get_many(keys)
            return
        found = self.timed(lambda: cache.get_many(keys))
        assert set(found) <= set(keys)
        for key in keys:
            entry = space.entries.get(key)
            live = is_live(entry, self.before, self.after)
            assert live is None or live == (key in found)
            space.saw(key, key in found, self.before, self.after)
            space.counted(key in found)
            if key in found:
                assert entry is not None
                assert same(found[key], entry.value)

    @rule(at=ATS, keys=MANY_KEYS, shape=VALUES, ttl=KEPT_TTLS, tags=SETS_OF_TAGS, updates=FLAGS)
    def set_many(
        self, at: At, keys: list[Any], shape: str, ttl: Any, tags: list[str] | None, updates: bool
    ) -> None:
        space = self.spaces[at.space]
        cache = space.clients[at.client]
        entries = {key: self.value(shape) for key in keys if hashable([key])}
        if updates:
            ttl, tags = None, None
            more = {name: self.value("int") for name in ("ab", "abc")}
            assert self.timed(lambda: cache.update(entries.items(), **more)) is None
            entries |= more
        else:
            assert self.timed(lambda: cache.set_many(entries, ttl, tags=tags)) == len(entries)
        for key, value in entries.items():
            old = space.entries.get(name_of(key))
            live = is_live(old, self.before, self.after)
            if ttl is ... and live is None:
                self.start_over(space, [key])
            else:
                self.put(space, key, self.stored(value, ttl, tags, old if live else None))

    @rule(at=ATS, keys=MANY_KEYS)
    def delete_many(self, at: At, keys: list[Any]) -> None:
        space = self.spaces[at.space]
        gone = self.timed(lambda: space.clients[at.client].delete_many(keys))
        names = set(map(name_of, keys))
        found = {name: sure for name, _, sure in self.live_in(space) if name in names}
        assert sum(found.values()) <= gone <= len(found)
        for key in keys:
            self.put(space, key, None)

    @rule(at=ATS, keys=MANY_KEYS, ttl=TTLS)
    def touch_many(self, at: At, keys: list[Any], ttl: Ttl) -> None:
        space = self.spaces[at.space]
        distinct = {name_of(key): key for key in keys}
        touched = self.timed(lambda: space.clients[at.client].touch_many(distinct.values(), ttl))
        found = {name: sure for name, _, sure in self.live_in(space) if name in distinct}
        assert sum(found.values()) <= touched <= len(found)
        for name in [name for name, sure in found.items() if sure]:
            self.put(space, distinct[name], self.living(space.entries[name], ttl))
        self.start_over(space, [distinct[name] for name, sure in found.items() if not sure])

    # All of them

    @rule(
        at=ATS,
        prefix=st.sampled_from(PREFIXES),
        batch=st.sampled_from([1, 2, 1000]),
        tag=st.sampled_from([None, None, *TAGS]),
        details=FLAGS,
    )
    def scan(self, at: At, prefix: Any, batch: int, tag: str | None, details: bool) -> None:
        space = self.spaces[at.space]
        cache = space.clients[at.client]
        found = self.timed(lambda: list(cache.scan(prefix, batch, tag=tag, details=details)))
        for info in found if details else ():
            entry = space.entries[name_of(info.key)]
            assert set(info.tags) == entry.tags
            assert entry.earliest - self.after <= info.ttl_seconds <= entry.latest - self.before
        self.check_keys(space, [info.key for info in found] if details else found, prefix, tag)

    @rule(at=ATS, how=st.sampled_from(["iter", "keys", "items", "values", "==", "len", "bool"]))
    def walk(self, at: At, how: str) -> None:
        space = self.spaces[at.space]
        cache = space.clients[at.client]
        match how:
            case "iter":
                self.check_keys(space, self.timed(lambda: list(cache)), None)
            case "keys":
                self.check_keys(space, self.timed(lambda: list(cache.keys())), None)
            case "items":
                self.check_items(space, cache)
            case "values":
                self.check_values(space, self.timed(lambda: list(cache.values())))
            case "==":
                self.check_equal(space, cache)
            case "len":
                length = self.timed(lambda: len(cache))
                live = [sure for _, _, sure in self.live_in(space)]
                assert sum(live) <= length <= len(live)
            case "bool":
                filled = self.timed(lambda: bool(cache))
                live = [sure for _, _, sure in self.live_in(space)]
                assert any(live) <= filled <= bool(live)

    def check_keys(self, space: Space, keys: list[Any], prefix: Any, tag: str | None = None) -> None:
        """Each key comes once that must, none that must not, and none twice."""
        names = list(map(name_of, keys))
        assert len(set(names)) == len(names)
        may = {
            name: sure
            for name, entry, sure in self.live_in(space)
            if fits(space.keys[name], prefix) and (tag is None or tag in entry.tags)
        }
        assert {name for name, sure in may.items() if sure} <= set(names) <= may.keys()

    def check_items(self, space: Space, cache: PyroCacheClient) -> None:
        entries = self.timed(
            lambda: list(iter(cache.items()))
        )  # without iter, list asks for the length first
        self.check_keys(space, [key for key, _ in entries], None)
        for key, value in entries:
            assert same(value, space.entries[name_of(key)].value)
        self.count_walk(space, len(entries))

    def check_values(self, space: Space, values: list[Any]) -> None:
        live = list(self.live_in(space))
        assert sum(sure for _, _, sure in live) <= len(values) <= len(live)
        for _, entry, sure in live:
            assert not sure or any(same(value, entry.value) for value in values)
        self.count_walk(space, len(values))

    def check_equal(self, space: Space, cache: PyroCacheClient) -> None:
        """A client is equal to a dict of the same entries, where these can be compared at all."""
        soon = time.monotonic() + 10 * SHORT
        live = {name: entry for name, entry in space.entries.items() if is_live(entry, soon, soon)}
        arrays = any(isinstance(entry.value, np.ndarray) for entry in live.values())
        if arrays or not hashable(space.keys[name] for name in space.entries):
            return
        equal = self.timed(lambda: cache == {name: entry.value for name, entry in live.items()})
        found = dict.fromkeys(name for name, _, _ in self.live_in(space))
        if found.keys() == live.keys():  # else some that live short may have been there
            assert equal
        self.count_walk(space, len(live))
        space.unsure += len(found) - len(live)

    def count_walk(self, space: Space, found: int) -> None:
        space.hits += found
        space.unsure += sum(not sure for _, _, sure in self.live_in(space))  # gone before they were fetched

    # Loading once

    @rule(
        at=ATS,
        key=KEYS,
        shape=VALUES,
        ttl=st.sampled_from([None, LONG, SHORT, SHORT]),
        stale=st.sampled_from([0.0, LONG, LONG]),
        early=st.sampled_from([0.0, 1e12]),
        tags=SETS_OF_TAGS,
        meanwhile=st.sampled_from(["nothing", "nothing", *("raise", "set", "add", "delete", "clear")]),
        by=st.integers(0, 1),
        over=FLAGS,
        twice=FLAGS,
    )
    def get_or_set(
        self,
        at: At,
        key: Any,
        shape: str,
        ttl: Ttl,
        stale: float,
        early: float,
        tags: list[str] | None,
        meanwhile: str,
        by: int,
        over: bool,
        twice: bool,
    ) -> None:
        """With ``over``, wait afterwards; with ``twice``, begin with a call during which nothing else is done."""

        def call(cache: PyroCacheClient, factory: Callable[[], Any]) -> Any:
            return cache.get_or_set(key, factory, ttl, stale_seconds=stale, early=early, tags=tags)

        for what in ("nothing", meanwhile) if twice else (meanwhile,):
            loading = Loading(self, at, key, self.value(shape), early=early > 0)
            loading.run(call, what, by, ttl, tags, stale)
            if over:
                self.wait(False)

    @rule(
        at=ATS,
        argument=st.sampled_from([1, True, 2]),
        shape=VALUES,
        ttl=TTLS,
        how=st.sampled_from(["call", "call", "refresh", "invalidate"]),
        meanwhile=st.sampled_from(["nothing", "nothing", *("raise", "set", "delete", "invalidate")]),
        by=st.integers(0, 1),
    )
    def memoized(
        self, at: At, argument: Any, shape: str, ttl: Ttl, how: str, meanwhile: str, by: int
    ) -> None:
        def call(cache: PyroCacheClient, factory: Callable[[], Any]) -> Any:
            function = self.function(cache, factory, ttl)
            return function.refresh(argument) if how == "refresh" else function(argument)

        key = self.function(self.spaces[at.space].clients[at.client], None, ttl).key(argument)
        if how == "invalidate":
            self.one(
                at,
                key,
                lambda cache: self.function(cache, None, None).invalidate(argument),
                lambda live: (live is not None, None),
            )
        else:
            loading = Loading(self, at, key, self.value(shape), refresh=how == "refresh")
            loading.run(call, meanwhile, by, ttl, ["page"], 0.0)

    @staticmethod
    def function(cache: PyroCacheClient, factory: Any, ttl: Ttl) -> Any:
        """The same function each time, as far as `memoize` is concerned."""

        @cache.memoize(ttl, tags=["page"], name="measured")
        def measured(argument: int, scale: int = 1) -> Any:
            return factory()

        return measured

    # Locks

    @rule(target=LOCKS, at=ATS, name=KEYS, limit=st.sampled_from([1, 2]), times=st.integers(1, 3))
    def acquire(self, at: At, name: Any, limit: int, times: int) -> Any:
        locks = [self.acquire_one(at, name, limit) for _ in range(times)]
        return multiple(*((place, lock) for place, lock in locks if lock is not None))

    def acquire_one(self, at: At, name: Any, limit: int) -> tuple[Hashable, Lock | None]:
        """The name of a lock or semaphore to the model, and the lock, unless it is not to be had."""
        place = (at.space, limit, name_of(name))
        cache = self.spaces[at.space].clients[at.client]
        lock = cache.lock(name) if limit == 1 else cache.semaphore(name, limit)
        holders = self.holders.setdefault(place, [])
        if len(holders) == limit:
            assert lock.locked()
            assert not lock.acquire(blocking=False)
            assert not lock.held
            return place, None
        assert not lock.locked()
        assert lock.acquire(blocking=False)
        token = lock.token or 0
        assert token > self.tokens.get(place, 0)
        assert lock.held
        self.tokens[place] = token
        holders.append(lock)
        return place, lock

    @rule(held=consumes(LOCKS))
    def release(self, held: tuple[Hashable, Lock]) -> None:
        place, lock = held
        with pytest.raises(RuntimeError):
            lock.acquire()
        lock.release()
        assert lock.token is None
        self.holders[place].remove(lock)
        with pytest.raises(RuntimeError):
            lock.release()

    # The cluster

    @rule(client=st.integers(0, 1), reset=FLAGS)
    def stats(self, client: int, reset: bool) -> None:
        cache = self.spaces["outer"].clients[client]
        stats = cache.stats()
        self.before = self.after = time.monotonic()
        assert not stats.away
        assert len(stats.nodes) == 3
        assert json.dumps(stats.as_dict())
        assert repr(stats)
        for space in self.spaces.values():
            told = stats.total.namespaces.get(space.path, NamespaceStats())
            assert space.hits <= told.hits <= space.hits + space.unsure
            assert space.misses <= told.misses <= space.misses + space.unsure
            assert sum(sure for _, _, sure in self.live_in(space)) <= told.entries <= len(space.entries)
        if reset:
            cache.reset_stats()
            for space in self.spaces.values():
                space.hits = space.misses = space.unsure = 0

    @rule(look=FLAGS)
    def wait(self, look: bool) -> None:
        """Until every entry that lives short is surely over."""
        soon = time.monotonic() + 1
        brief = [
            (label, space.keys[name], entry.latest)
            for label, space in self.spaces.items()
            for name, entry in space.entries.items()
            if entry.latest < soon
        ]
        time.sleep(max(0.0, max((latest for _, _, latest in brief), default=0.0) - time.monotonic()))
        for label, key, _ in brief if look else ():
            self.look(At(label, 0), key)

    def teardown(self) -> None:
        try:
            for holders in self.holders.values():
                for lock in holders:
                    lock.release()
            for label, space in self.spaces.items():
                if space.entries:
                    self.check_items(space, space.clients[1])
                    for tag in TAGS:
                        self.invalidate_tag(At(label, 0), tag)
        finally:
            for space in self.spaces.values():
                if space.entries:
                    space.clients[0].clear()


class Loading:
    """One call that loads a value if there is none.

    Args:
        machine, at, key: where.
        value: what the factory returns.
        early: the value may be loaded though there is one that was loaded and has a TTL.
        refresh: it is loaded in any case.
    """

    def __init__(
        self, machine: Machine, at: At, key: Any, value: Any, *, early: bool = False, refresh: bool = False
    ) -> None:
        self.machine = machine
        self.at = at
        self.key = key
        self.value = value
        self.early = early
        self.refresh = refresh
        self.space = machine.spaces[at.space]
        self.name = name_of(key)
        self.old = self.space.entries.get(self.name)
        self.calls = 0
        self.was_live: bool | None = None  # when the factory was called
        self.void = False

    def run(
        self,
        call: Callable[[PyroCacheClient, Callable[[], Any]], Any],
        meanwhile: str,
        by: int,
        ttl: Ttl,
        tags: list[str] | None,
        stale: float,
    ) -> None:
        """Make the call, have something done while the factory runs, and check the outcome."""
        machine, space = self.machine, self.space
        before, loaded = time.monotonic(), 0.0

        def factory() -> Any:
            nonlocal loaded
            self.was_live = self.look(before)
            self.load_again(by)
            self.meanwhile(meanwhile, by, tags or [])
            loaded = time.monotonic()
            if meanwhile == "raise":
                raise Boom
            return self.value

        outcome = attempt(lambda: call(space.clients[self.at.client], factory))
        machine.before, machine.after = before, time.monotonic()
        if not self.calls:
            assert not self.refresh
            assert self.old is not None
            assert is_live(self.old, machine.before, machine.after) is not False
            assert same(outcome, self.old.value)
            space.saw(self.name, True, machine.before, machine.after)
            space.counted(True)
            return
        assert self.calls == 1
        if meanwhile == "raise":
            self.check_raised(outcome)
            return
        assert same(outcome, self.value)
        if not self.void:
            machine.before = loaded
            machine.put(
                space,
                self.key,
                machine.stored(self.value, ttl, tags, stale_seconds=stale, loaded=True),
            )

    def look(self, before: float) -> bool | None:
        """What the call had found by the time that the factory was called."""
        self.calls += 1
        live = is_live(self.old, before, time.monotonic())
        if live:
            assert self.old is not None
            assert self.refresh or (self.early and self.old.loaded and self.old.latest < math.inf)
        self.space.counted(live, 0 if self.refresh else 1)
        return live

    def check_raised(self, outcome: Any) -> None:
        """The factory's exception reaches the caller, unless there is a value still that was to be refreshed early."""
        kept = self.old is not None and not self.refresh and same(outcome, self.old.value)
        if self.was_live is None:
            assert kept or outcome == Raised(Boom)
        else:
            assert kept if self.was_live and not self.refresh else outcome == Raised(Boom)

    def meanwhile(self, what: str, by: int, tags: list[str]) -> None:
        """Do something with the same key while its value is being loaded, by one client or the other."""
        machine, at = self.machine, At(self.at.space, by)
        before = None if self.name not in self.space.entries else self.space.entries[self.name].value
        if what == "set":
            machine.set(at, self.key, "int", None, None)
            self.void = True
        elif what == "add":
            machine.add(at, self.key, "int", None, None)
            self.void = self.space.entries[self.name].value is not before
        elif what == "delete":
            machine.remove(at, self.key, "delete")
            self.void = True
        elif what == "clear":
            machine.clear(at)
            self.void = True
        elif what == "invalidate":
            machine.invalidate_tag(at, "page")
            self.void = "page" in tags

    def load_again(self, by: int) -> None:
        """Ask for the value that is being loaded by this thread: there is a stale one, or it is loaded by itself."""
        entry, before = self.space.entries.get(self.name), time.monotonic()
        outcome = attempt(
            lambda: self.space.clients[by].get_or_set(self.key, lambda: "another one", wait_seconds=0)
        )
        live = is_live(entry, before, time.monotonic())
        self.space.counted(live)
        there = entry is not None and same(outcome, entry.value)
        alone = outcome == "another one"  # also through another client of the cluster
        if live or (live is False and entry is not None and entry.stale_seconds and not entry.invalid):
            assert there
        elif live is False:
            assert alone
        else:
            assert there or alone


# The tests ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[LocalCluster]:
    """Three nodes that nobody else uses, so that their figures are known."""
    with private_cluster(nodes=3) as cluster:
        yield cluster


@pytest.mark.timeout(400 + EXAMPLES)  # 300 of them to shrink what fails
def test_clients_of_a_cluster_do_what_a_model_does(own_cluster: LocalCluster) -> None:
    examples = count()
    with own_cluster.client() as first, own_cluster.client(transport="tcp") as other:
        roots = [first, pickle.loads(pickle.dumps(other))]
        with roots[1]:
            run_state_machine_as_test(
                lambda: Machine(roots, next(examples)),  # type: ignore[arg-type]  # a factory will do
                settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS),
            )
            give_up_at = time.monotonic() + 10
            while (total := first.stats().total).entries or total.bytes:
                assert time.monotonic() < give_up_at, total
                time.sleep(0.05)
