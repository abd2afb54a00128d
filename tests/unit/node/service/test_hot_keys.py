"""The most used keys are found, in bounded memory, and nothing is counted while nobody asks."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from Pyro5.errors import PyroError

from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.service.hot_keys import (
    COUNTED_SECONDS,
    COUNTER_BYTES,
    HALVED_SECONDS,
    MAX_BYTES,
    HotKeys,
    Wrap,
)
from pyrocache.node.store.store import Store
from pyrocache.protocol.commands import COMMANDS, Runs, Scope
from pyrocache.protocol.int_frame import pack_int
from pyrocache.protocol.limits import MAX_KEY_BYTES
from pyrocache.server.deferred import Session
from pyrocache.server.dispatcher import Dispatcher
from pyrocache.testing import FakeClock

NAME = "cache.node.1"
NO_VIEW = 0
ROOT, SHOP = b"\0", b"\x04shop"


class Counting:
    """A `HotKeys` that counts from the beginning."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.wrap: Wrap | None = None
        self.hot = HotKeys(self._observe, self.clock)
        self.hot.ask(ROOT, 1)

    def _observe(self, wrap: Wrap | None) -> None:
        self.wrap = wrap

    def top(self, count: int = 10, namespace: bytes = ROOT) -> dict[bytes, float]:
        """The most used keys with their calls."""
        return dict(self.hot.ask(namespace, count)[1])

    def used(self) -> int:
        """Bytes of the counters."""
        keys = self.hot._calls
        return sum(map(len, keys)) + COUNTER_BYTES * len(keys)


def test_few_keys_are_counted_exactly() -> None:
    counting = Counting()
    for number in range(1, 6):
        for _ in range(number):
            counting.hot.use(b"\0key %d" % number)
    counting.hot.use_all([b"\0key 1", b"\0key 5", b"\0key 1"])
    counting.clock.tick(2.0)
    seconds, rows = counting.hot.ask(ROOT, 3)
    assert seconds == 2.0
    assert rows == [[b"\0key 5", 6.0], [b"\0key 4", 4.0], [b"\0key 3", 3.0]]
    assert all(type(calls) is float for _, calls in rows)


def test_a_caller_gets_the_keys_of_one_namespace_only() -> None:
    counting = Counting()
    for key in (b"\0a", b"\x04shopa", b"\x05shopa"):
        counting.hot.use(key)
    assert list(counting.top(namespace=ROOT)) == [b"\0a"]
    assert list(counting.top(namespace=SHOP)) == [b"\x04shopa"]
    assert list(counting.top(namespace=b"\x03sho")) == []


def test_hot_keys_stand_out_of_a_stream_of_a_million_others() -> None:
    """The ten hot ones are found with rates that are nearly right. The others have low rates."""
    counting, draw = Counting(), random.Random(5)
    real = dict.fromkeys(range(10), 0)
    for _ in range(100_000):
        if draw.random() < 0.1:
            hot = draw.randrange(10)
            real[hot] += 1
            counting.hot.use(b"\0hot %d" % hot)
        else:
            counting.hot.use(b"\0%d" % draw.randrange(10**6))
    top = counting.top(20)
    assert set(list(top)[:10]) == {b"\0hot %d" % number for number in range(10)}
    for number, calls in real.items():
        assert 0.85 * calls <= top[b"\0hot %d" % number] <= calls
    assert max(list(top.values())[10:]) <= 3


def test_a_key_that_becomes_hot_later_is_found() -> None:
    counting, draw = Counting(), random.Random(6)
    for number in range(50_000):
        counting.hot.use(b"\0%d" % draw.randrange(10**6))
        if number > 40_000 and number % 50 == 0:
            counting.hot.use(b"\0late")
    [(key, calls)] = counting.top(1).items()
    assert key == b"\0late"
    assert 150 <= calls <= 200


def test_a_new_key_displaces_keys_that_were_used_more_often_but_are_no_more() -> None:
    """A new key may be dropped a few times. Then it counts as used as often as those that were dropped with it."""
    counting = Counting()
    for number in range(1100):  # as many as are kept, so there is no room beside them
        for _ in range(20):
            counting.hot.use(b"\0warm %d" % number)
    for number in range(12_000):
        counting.hot.use(b"\0%d" % number)
        if number % 60 == 0:
            counting.hot.use(b"\0late")
    assert 150 <= counting.top(1).get(b"\0late", 0) <= 200


@pytest.mark.parametrize("length", [10, 1000, MAX_KEY_BYTES])
@pytest.mark.parametrize("batch", [1, 50])
def test_memory_is_bounded_whatever_the_traffic(length: int, batch: int) -> None:
    counting = Counting()
    largest = 0
    for number in range(0, 5000 if length < MAX_KEY_BYTES else 300, batch):
        keys = [b"\0%d" % (number + one) + b"x" * (length - 10) for one in range(batch)]
        if batch > 1:
            counting.hot.use_all(keys)
        else:
            counting.hot.use(keys[0])
        largest = max(largest, counting.used())
    assert largest <= MAX_BYTES
    assert largest > 1.5 * MAX_KEY_BYTES
    assert len(counting.hot._missed) <= len(counting.hot._calls) < MAX_BYTES / COUNTER_BYTES


def test_repeated_uses_of_few_keys_drop_none() -> None:
    counting = Counting()
    for number in range(10_000):
        counting.hot.use(b"\0%d" % (number % 100))
    assert set(counting.top(1000).values()) == {100.0}


def test_rates_are_those_of_the_last_seconds() -> None:
    counting = Counting()
    for second in range(60):
        for _ in range(100):
            counting.hot.use(b"\0early" if second < 30 else b"\0late")
        counting.clock.tick(1.0)
        seconds, rows = counting.hot.ask(ROOT, 2)
        assert seconds <= 2 * HALVED_SECONDS
        if second > 0 and second < 30:
            assert rows[0] == [b"\0early", pytest.approx(100 * seconds)]
    assert rows[0][0] == b"\0late"
    assert rows[0][1] / seconds == pytest.approx(100, rel=0.1)
    assert len(rows) == 1 or rows[1][1] / seconds < 5


def test_counting_ends_some_seconds_after_the_last_question() -> None:
    counting = Counting()
    assert counting.wrap is not None
    counting.hot.use(b"\0key")
    for _ in range(5):
        counting.clock.tick(COUNTED_SECONDS - 1)
        counting.hot.ask(ROOT, 1)
    counting.clock.tick(COUNTED_SECONDS - 1)
    counting.hot.tick()
    assert counting.wrap is not None
    counting.clock.tick(1.0)
    counting.hot.tick()
    assert counting.wrap is None
    assert counting.used() == 0
    counting.clock.tick(100)
    assert counting.hot.ask(ROOT, 1) == [0.0, []]
    assert counting.wrap is not None


# With a node ------------------------------------------------------------------------------------------------


class Served:
    """A node under a dispatcher, without sockets; calls go through the methods that the dispatcher would call."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.node = CacheNode(
            Store(2**24, clock=self.clock),
            RequestGuard(NAME),
            observe=lambda wrap: self.dispatcher.observe(wrap),
            clock=self.clock,
        )
        self.dispatcher = Dispatcher(NAME, self.node, COMMANDS, greeting=dict, max_frame_bytes=2**20)
        self.methods = {method.name: method for method, _ in self.dispatcher._plain}

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        if COMMANDS[name].runs is Runs.DEFERRED:
            arguments = (Session(), *arguments)
        return self.methods[name].call(*arguments, **options)

    def counted(self, namespace: bytes = ROOT) -> dict[bytes, float]:
        return dict(self.call("hot_keys", namespace, 1000)[1])


KEY = b"\0key"
USES: dict[str, Callable[[Served], Any]] = {
    "get": lambda node: node.call("get", NO_VIEW, KEY),
    "get_with_version": lambda node: node.call("get_with_version", NO_VIEW, KEY),
    "get_with_times": lambda node: node.call("get_with_times", NO_VIEW, KEY),
    "contains": lambda node: node.call("contains", NO_VIEW, KEY),
    "ttl": lambda node: node.call("ttl", NO_VIEW, KEY),
    "set": lambda node: node.call("set", NO_VIEW, KEY, b"1"),
    "put": lambda node: node.call("put", NO_VIEW, KEY, b"1", None, "absent"),
    "setdefault": lambda node: node.call("setdefault", NO_VIEW, key=KEY, value=b"1"),
    "incr": lambda node: node.call("incr", NO_VIEW, KEY, pack_int(1), pack_int(0)),
    "touch": lambda node: node.call("touch", NO_VIEW, KEY, 5.0),
    "delete": lambda node: node.call("delete", NO_VIEW, KEY),
    "pop": lambda node: node.call("pop", view=NO_VIEW, key=KEY),
    "get_many": lambda node: node.call("get_many", NO_VIEW, [KEY]),
    "set_many": lambda node: node.call("set_many", NO_VIEW, [KEY], [b"1"]),
    "delete_many": lambda node: node.call("delete_many", NO_VIEW, [KEY]),
    "touch_many": lambda node: node.call("touch_many", NO_VIEW, keys=[KEY], ttl_seconds=None),
    "fill": lambda node: node.call("fill", NO_VIEW, KEY, 5, b"1"),
}
NO_USES = {
    *("lease", "abandon", "acquire", "renew", "release", "holders"),
    *("get_entry", "get_entries"),
}


def test_each_command_about_keys_is_a_use_or_is_known_not_to_be_one() -> None:
    about_keys = {name for name, command in COMMANDS.items() if command.scope in (Scope.KEY, Scope.KEYS)}
    assert about_keys == USES.keys() | NO_USES


@pytest.mark.parametrize("name", USES)
def test_a_use_counts_once(name: str) -> None:
    node = Served()
    plain = node.methods[name].call
    USES[name](node)
    assert node.counted() == {}
    USES[name](node)
    assert node.counted() == {KEY: 1.0}
    node.clock.tick(COUNTED_SECONDS)
    node.node.sweep()
    assert node.methods[name].call == plain, "a call costs again what it did"


def test_what_is_no_use_does_not_count() -> None:
    node = Served()
    node.counted()
    _, token, _ = node.call("lease", NO_VIEW, KEY, 10, 0)
    node.call("abandon", NO_VIEW, KEY, token)
    token = node.call("acquire", NO_VIEW, KEY, 1, 10, 0)
    for call in ("renew", "holders", "release"):
        node.call(call, NO_VIEW, KEY, *{"renew": (token, 10), "holders": (), "release": (token,)}[call])
    node.call("get_entry", NO_VIEW, KEY)
    node.call("get_entries", NO_VIEW, [KEY])
    node.call("scan", NO_VIEW, ROOT, ROOT)
    assert node.counted() == {}


def test_a_refused_call_does_not_count() -> None:
    node = Served()
    node.counted()
    for arguments in (("get", NO_VIEW, "text"), ("get", NO_VIEW, b"k" * 70_000), ("get_many", NO_VIEW, [5])):
        with pytest.raises(PyroError):
            node.call(*arguments)
    with pytest.raises(TypeError):
        node.call("get")
    node.node._guard.lapse(True)
    for arguments in (("get", NO_VIEW, KEY), ("set_many", NO_VIEW, [KEY], [b"1"])):
        with pytest.raises(PyroError, match="cannot be sure"):
            node.call(*arguments)
    assert node.counted() == {}


def test_only_the_keys_that_a_short_reply_covers_count() -> None:
    """The caller asks for the others again."""
    node = Served()
    keys = [b"\0%d" % number for number in range(6)]
    for key in keys:
        node.call("set", NO_VIEW, key, bytes(2**20))
    node.counted()
    values = node.call("get_many", NO_VIEW, keys)
    assert 0 < len(values) < len(keys)
    assert node.counted() == dict.fromkeys(keys[: len(values)], 1.0)


def test_a_node_checks_what_it_is_asked() -> None:
    node = Served()
    for arguments in (("text", 1), (ROOT, 0), (ROOT, 1001), (ROOT, True), (None, 1)):
        with pytest.raises(PyroError):
            node.call("hot_keys", *arguments)


def test_who_may_not_scan_may_not_ask() -> None:
    assert not COMMANDS["hot_keys"].open
    assert not COMMANDS["scan"].open
    assert not COMMANDS["hot_keys"].mutates
