"""Every verb on a real cluster: what it does, what it refuses, and that it is exact when many call at once."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyrocache import (
    DEFAULT_TTL,
    ClientClosed,
    Entry,
    EntryInfo,
    InvalidKey,
    LocalCluster,
    NodeUnavailable,
    NotAnInt,
    PartialFailure,
    PyroCacheClient,
    SerializationError,
    Stats,
    ValueTooLarge,
)
from pyrocache.client.codec import Codec
from pyrocache.client.features.scan import Page
from tests.support.waiting import eventually

HUGE = 10**400


def lives(cache: PyroCacheClient, key: object, seconds: float) -> bool:
    """Whether the entry has about so long to live."""
    left = cache.ttl(key)
    return left is not None and (left == seconds or seconds - 5 < left <= seconds)


# Conditional writes ------------------------------------------------------------------------------------------


def test_add_stores_only_where_nothing_is(cache: PyroCacheClient) -> None:
    assert cache.add("key", None) is True
    assert cache.add("key", 2) is False
    assert cache.get("key", "no value") is None
    cache.delete("key")
    assert cache.add("key", 3, ttl_seconds=60) is True
    assert lives(cache, "key", 60)
    assert cache.add("key", 4, timedelta(hours=1)) is False
    assert lives(cache, "key", 60)
    cache.set("brief", 1, ttl_seconds=0.1)
    eventually(lambda: cache.add("brief", 2))
    assert (cache.get("brief"), cache.ttl("brief")) == (2, math.inf)


def test_replace_stores_only_where_something_is(cache: PyroCacheClient) -> None:
    assert cache.replace("key", 1) is False
    assert "key" not in cache
    cache.set("key", 1, ttl_seconds=100)
    assert cache.replace("key", 2, ...) is True
    assert (cache.get("key"), lives(cache, "key", 100)) == (2, True)
    assert cache.replace("key", 3) is True
    assert (cache.get("key"), cache.ttl("key")) == (3, math.inf)
    assert cache.replace("key", 4, 50) is True
    assert lives(cache, "key", 50)


def test_a_version_is_good_until_the_entry_changes(cache: PyroCacheClient) -> None:
    assert cache.get_with_version("key") is None
    cache.set("key", [1], ttl_seconds=100)
    value, version = cache.get_with_version("key") or (None, 0)
    assert value == [1]
    assert cache.get_with_version("key") == ([1], version)
    assert cache.compare_and_set("key", [2], version) is True
    assert lives(cache, "key", 100)
    assert cache.compare_and_set("key", [3], version) is False
    assert cache.set("key", [3], if_version=version) is False
    assert cache.get("key") == [2]


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.set("key", 1),
        lambda cache: cache.set_many({"key": 1}),
        lambda cache: cache.replace("key", 1),
        lambda cache: cache.compute("key", lambda value: value),
        lambda cache: cache.incr("key", 0),
        lambda cache: cache.delete("key") and cache.set("key", 1),
        lambda cache: cache.pop("key") and cache.add("key", 1),
        lambda cache: cache.clear() and cache.setdefault("key", 1),
        lambda cache: cache.delete("key"),
        lambda cache: cache.clear(),
    ],
    ids=["set", "set_many", "replace", "update", "incr", "delete", "pop", "clear", "gone", "cleared"],
)
def test_whatever_stores_the_same_again_makes_another_version(
    cache: PyroCacheClient, change: Callable[[PyroCacheClient], Any]
) -> None:
    cache.set("key", 1)
    _, version = cache.get_with_version("key") or (None, 0)
    change(cache)
    assert cache.compare_and_set("key", 2, version) is False
    assert cache.get("key", 1) == 1


def test_set_if_version_takes_all_that_set_takes(cache: PyroCacheClient) -> None:
    cache.set("key", 1)
    _, version = cache.get_with_version("key") or (None, 0)
    assert cache.set("key", 2, 50, tags=["a"], if_version=version) is True
    assert lives(cache, "key", 50)
    assert cache.invalidate_tag("a") == 1
    assert "key" not in cache


@pytest.mark.parametrize(("version", "error"), [("1", TypeError), (True, TypeError), (1.0, TypeError)])
def test_a_version_is_what_get_with_version_gave(
    cache: PyroCacheClient, version: Any, error: type[Exception]
) -> None:
    cache.set("key", 1)
    with pytest.raises(error, match="version"):
        cache.compare_and_set("key", 2, version)
    with pytest.raises(error, match="version"):
        cache.set("key", 2, if_version=version)
    for number in (0, -1):
        with pytest.raises(ValueError, match="version"):
            cache.compare_and_set("key", 2, number)
    with pytest.raises(TypeError):
        cache.compare_and_set("key", 2, None)  # type: ignore[arg-type]
    assert cache.get("key") == 1


def test_a_conditional_write_refuses_what_set_refuses(cache: PyroCacheClient) -> None:
    for verb in (cache.add, cache.replace, cache.setdefault):
        with pytest.raises(SerializationError):
            verb("key", threading.Lock())
        with pytest.raises(InvalidKey):
            verb(math.nan, 1)
        with pytest.raises(ValueError, match="ttl_seconds"):
            verb("key", 1, 0)
        with pytest.raises(TypeError, match="ttl_seconds"):
            verb("key", 1, "60")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ttl_seconds"):
        cache.setdefault("key", 1, ...)  # type: ignore[call-overload]
    for call in (
        lambda: cache.add("key", bytes(65 * 2**20)),
        lambda: cache.setdefault("key", bytes(65 * 2**20)),
        lambda: cache.compute("key", lambda _: bytes(65 * 2**20), default=0),
    ):
        with pytest.raises(ValueTooLarge):
            call()
    assert len(cache) == 0


# Counting ----------------------------------------------------------------------------------------------------


class Level(IntEnum):
    ONE = 1


def test_incr_adds_ints_of_any_size(cache: PyroCacheClient) -> None:
    assert cache.incr("key") == 1
    assert cache.incr("key") == 2
    assert cache.decr("key", 5) == -3
    assert cache.incr("key", HUGE) == HUGE - 3
    assert cache.get("key") == HUGE - 3
    assert cache.decr("key", HUGE) == -3
    assert cache.incr("key", True) == -2
    assert cache.incr("key", np.int64(4)) == 2
    assert cache.incr("key", Level.ONE) == 3
    assert type(cache.get("key")) is int
    assert cache.incr("other", 5, default=10) == 15
    assert cache.decr("third", 5, default=HUGE) == HUGE - 5
    assert cache.incr("fourth", 0) == 0
    for number in (-129, -128, -1, 0, 127, 128, 255, 256, -HUGE):
        cache.set("edge", number)
        assert cache.incr("edge", 0) == number
        assert cache.incr("edge", 1) == number + 1 == cache.get("edge")


def test_incr_keeps_the_time_that_an_entry_has_and_gives_it_to_a_new_one(cache: PyroCacheClient) -> None:
    cache.incr("key", ttl_seconds=100)
    assert lives(cache, "key", 100)
    cache.incr("key", ttl_seconds=10)
    assert lives(cache, "key", 100)
    cache.set("for good", 1)
    cache.decr("for good", ttl_seconds=10)
    assert cache.ttl("for good") == math.inf


@pytest.mark.parametrize("value", ["1", 1.0, None, True, b"1", [1], Level.ONE, HUGE / 10**300], ids=repr)
def test_what_is_no_int_cannot_be_counted_up_and_stays(cache: PyroCacheClient, value: Any) -> None:
    cache.set("key", value, ttl_seconds=100)
    _, version = cache.get_with_version("key") or (None, 0)
    for call in (cache.incr, cache.decr):
        with pytest.raises(TypeError) as caught:
            call("key")
        assert isinstance(caught.value, NotAnInt)
        assert "cache.node." in str(caught.value)
    assert cache.get_with_version("key") == (value, version)
    assert lives(cache, "key", 100)


@pytest.mark.parametrize("delta", [1.0, "1", None, b"1"], ids=repr)
def test_only_an_int_can_be_added(cache: PyroCacheClient, delta: Any) -> None:
    cache.set("key", 1)
    for call in (
        lambda: cache.incr("key", delta),
        lambda: cache.decr("key", delta),
        lambda: cache.incr("new", 1, default=delta),
    ):
        with pytest.raises((TypeError, KeyError) if delta is None else TypeError):
            call()
    assert dict(cache) == {"key": 1}


# Compute -----------------------------------------------------------------------------------------------------


def test_compute_applies_a_function(cache: PyroCacheClient) -> None:
    cache.set("key", [1], ttl_seconds=100)
    assert cache.compute("key", lambda value: [*value, 2]) == [1, 2]
    assert cache.get("key") == [1, 2]
    assert lives(cache, "key", 100)
    cache.compute("key", function=lambda value: value, ttl_seconds=None)
    assert cache.ttl("key") == math.inf
    cache.compute("key", lambda value: value, ttl_seconds=50)
    assert lives(cache, "key", 50)


def test_compute_without_an_entry_is_given_the_default_or_fails(cache: PyroCacheClient) -> None:
    with pytest.raises(KeyError, match="'key'"):
        cache.compute("key", lambda value: value)
    assert cache.compute("key", lambda value: (value, "new"), None) == (None, "new")
    assert cache.ttl("key") == math.inf
    assert cache.compute("other", lambda value: value + 1, default=1, ttl_seconds=60) == 2
    assert lives(cache, "other", 60)


def test_compute_begins_again_when_somebody_was_faster(cache: PyroCacheClient) -> None:
    cache.set("key", 0)
    seen: list[Any] = []

    def disturbed(value: Any) -> Any:
        seen.append(value)
        if len(seen) == 1:
            cache.set("key", 10)
        elif len(seen) == 2:
            cache.delete("key")
        elif len(seen) == 3:
            cache.add("key", 20)
        return value + 1

    assert cache.compute("key", disturbed, default=100) == 21
    assert seen == [0, 10, 100, 20]
    assert cache.get("key") == 21
    assert cache.stats().client.conflicts == 3


def test_an_exception_of_the_function_reaches_the_caller_and_changes_nothing(cache: PyroCacheClient) -> None:
    cache.set("key", 0)
    with pytest.raises(ZeroDivisionError):
        cache.compute("key", lambda value: 1 // value)
    with pytest.raises(SerializationError):
        cache.compute("key", lambda value: threading.Lock())
    assert cache.get("key") == 0


@pytest.mark.asyncio_full
def test_a_function_may_take_longer_than_a_call(shared_cluster: LocalCluster, cache: PyroCacheClient) -> None:
    cache.set("key", 1)

    def slow(value: int) -> int:
        time.sleep(0.7)
        return value + 1

    with shared_cluster.client(timeout=0.5) as hurried:
        assert hurried.compute("key", slow) == 2


def test_update_takes_entries_like_that_of_a_dict(cache: PyroCacheClient) -> None:
    model: dict[Any, Any] = {}
    for taken in ({"a": 1}, [("b", 2), ("a", 3)], {"c": 4}.items(), {}, (), cache.namespace("empty")):
        cache.update(taken)
        model.update(taken)
    cache.update(iter([("i", 1)]))
    model.update(i=1)
    cache.update({"a": 5}, d=6, self=7, key=8, entries=9)
    model.update({"a": 5}, d=6, self=7, key=8, entries=9)
    cache.update()
    cache.update(x=1)
    model.update(x=1)
    assert cache == model
    with pytest.raises(TypeError, match="set_many"):
        cache.update({"a": 1}, ttl_seconds=60)
    with pytest.raises(TypeError, match="compute"):
        cache.update("a", lambda value: value)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="sequence"):
        cache.update("no pairs")  # type: ignore[call-overload]
    assert cache == model


# Taking, touching --------------------------------------------------------------------------------------------


def test_pop_takes_the_value_away(cache: PyroCacheClient) -> None:
    cache["key"] = None
    assert cache.pop("key", "no value") is None
    assert cache.pop("key", "no value") == "no value"
    assert cache.pop("key", None) is None
    with pytest.raises(KeyError, match="'key'"):
        cache.pop("key")


def test_setdefault_gives_what_is_there(cache: PyroCacheClient) -> None:
    assert cache.setdefault("key", [1], ttl_seconds=60) == [1]
    assert lives(cache, "key", 60)
    assert cache.setdefault("key", [2], 10) == [1]
    assert lives(cache, "key", 60)
    assert cache.setdefault("none") is None
    assert "none" in cache
    assert cache.setdefault("none", 1) is None


def test_touch_gives_an_entry_time(cache: PyroCacheClient) -> None:
    assert cache.touch("key", 60) is False
    cache.set("key", 1)
    assert cache.touch("key", 60) is True
    assert lives(cache, "key", 60)
    assert cache.touch("key", timedelta(hours=1)) is True
    assert lives(cache, "key", 3600)
    assert cache.touch("key", None) is True
    assert cache.ttl("key") == math.inf
    for wrong in (0, -1, math.nan):
        with pytest.raises(ValueError, match="ttl_seconds"):
            cache.touch("key", wrong)
    cache.touch("key", 0.1)
    eventually(lambda: "key" not in cache)


def test_touch_many_counts_those_that_are_there(cache: PyroCacheClient) -> None:
    cache.set_many({number: number for number in range(3000)})
    assert cache.touch_many([*range(3000), "no such key"], 60) == 3000
    assert all(lives(cache, number, 60) for number in range(0, 3000, 500))
    assert cache.touch_many([0, [1]], None) == 1
    assert cache.ttl(0) == math.inf
    assert cache.touch_many([], 60) == 0


def test_a_get_can_prolong_a_life(cache: PyroCacheClient) -> None:
    assert cache.get("key", touch_seconds=60) is None
    cache.set("key", 1, ttl_seconds=10)
    assert cache.get("key") == 1
    assert lives(cache, "key", 10)
    assert cache.get("key", touch_seconds=60) == 1
    assert lives(cache, "key", 60)
    cache.set("for good", 1)
    assert cache.get("for good", 0, touch_seconds=timedelta(minutes=1)) == 1
    assert lives(cache, "for good", 60)
    for wrong, error in ((0, ValueError), (-1, ValueError), (math.inf, ValueError), ("60", TypeError)):
        with pytest.raises(error):
            cache.get("key", touch_seconds=wrong)


@pytest.mark.asyncio_full
def test_an_entry_that_is_read_often_enough_lives_on(cache: PyroCacheClient) -> None:
    cache.set("key", 1, ttl_seconds=0.5)
    for _ in range(7):
        time.sleep(0.1)
        assert cache.get("key", touch_seconds=0.5) == 1
    eventually(lambda: "key" not in cache)


def test_keys_that_are_asked_for_twice_count_once(cache: PyroCacheClient) -> None:
    cache["key"] = 1
    assert cache.touch_many(["key", "key", "nobody"], 60) == 1
    assert cache.delete_many(["key", "key", "nobody"]) == 1


def test_many_entries_with_a_ttl_are_counted_exactly(cache: PyroCacheClient) -> None:
    cache.set_many(dict.fromkeys(range(5000), b""), 60, tags=["page"])
    cache.set_many({-number: b"" for number in range(1, 3001)}, 600)
    cache.set_many({("short", number): b"" for number in range(100)}, 0.001)
    time.sleep(0.01)
    assert len(cache) == 8000
    cache.invalidate_tag("page")
    assert len(cache) == 3000
    assert sum(1 for _ in cache.scan()) == 3000


# Exact under concurrency -------------------------------------------------------------------------------------

KEYS = 10


def add_up(
    number: int,
    client_class: type[PyroCacheClient],
    nameserver: str,
    start: Any,
    threads: int,
    rounds: int,
    how: str,
) -> None:
    """Count up in several threads of this process, the one of that number, each going round the keys."""
    with client_class(nameserver, timeout=60.0) as cache:

        def one(thread: int) -> None:
            start.wait()
            for turn in range(rounds):
                key = ("counter", (turn + number * threads + thread) % KEYS)
                if how == "incr":
                    cache.incr(key)
                elif how == "update":
                    cache.compute(key, lambda value: value + 1, default=0)
                else:
                    compare_and_add(cache, key)

        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(one, thread) for thread in range(threads)]:
                done.result()


def compare_and_add(cache: PyroCacheClient, key: object) -> None:
    """Count up by compare-and-set."""
    for attempt in count():
        found = cache.get_with_version(key)
        if found is None:
            if cache.add(key, 1):
                return
        elif cache.compare_and_set(key, found[0] + 1, found[1]):
            return
        time.sleep(0.002 * 2 ** min(attempt, 5) * random.random())


def in_processes(count: int, target: Callable[..., None], *arguments: Any) -> None:
    """Run ``target`` in so many processes, each given its number, which must all end well."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(number, *arguments)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


@pytest.mark.asyncio_full
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("how", "processes", "rounds"),
    [
        ("incr", 2, 1000),
        pytest.param("update", 2, 250, marks=pytest.mark.full),
        ("compare and set", 2, 250),
        pytest.param("incr", 8, 10_000, marks=pytest.mark.full),
        pytest.param("update", 8, 2000, marks=pytest.mark.full),
        pytest.param("compare and set", 8, 2000, marks=pytest.mark.full),
    ],
)
def test_the_sum_is_exact_when_threads_of_several_processes_count_up_ten_keys(
    client_class: type[PyroCacheClient],
    shared_cluster: LocalCluster,
    cache: PyroCacheClient,
    how: str,
    processes: int,
    rounds: int,
) -> None:
    if client_class is not PyroCacheClient:
        rounds = min(rounds, 1000)  # most of the time would go into handing calls over to the loop's thread
    threads = 4 * processes
    start = multiprocessing.get_context("spawn").Barrier(threads)
    begun = time.monotonic()
    in_processes(processes, add_up, client_class, shared_cluster.nameserver, start, 4, rounds, how)
    print(f"{how}: {threads * rounds:,} in {time.monotonic() - begun:.1f} s")
    found = cache.get_many([("counter", number) for number in range(KEYS)])
    assert found == {("counter", number): threads * rounds // KEYS for number in range(KEYS)}


def race_to_add(
    _: int, client_class: type[PyroCacheClient], nameserver: str, start: Any, keys: int, won: Any
) -> None:
    with client_class(nameserver) as cache:

        def one(_: int) -> list[int]:
            successes = []
            for number in range(keys):
                start.wait()
                if cache.add(("race", number), 1):
                    successes.append(number)
            return successes

        with ThreadPoolExecutor(16) as pool:
            for successes in pool.map(one, range(16)):
                won.put(successes)


@pytest.mark.asyncio_full
def test_of_32_that_add_one_key_at_once_exactly_one_does(
    client_class: type[PyroCacheClient], shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    keys = 50
    context = multiprocessing.get_context("spawn")
    start, won = context.Barrier(32), context.Queue()
    in_processes(2, race_to_add, client_class, shared_cluster.nameserver, start, keys, won)
    wins = Counter(number for _ in range(32) for number in won.get(timeout=5.0))
    assert wins == dict.fromkeys(range(keys), 1)


@pytest.mark.parametrize(
    "take",
    [
        lambda cache: cache.pop("prize", None),
        lambda cache: cache.delete("prize") or None,
        lambda cache: cache.popitem()[1] if len(cache) else None,
    ],
    ids=["pop", "delete", "popitem"],
)
def test_of_16_that_take_one_entry_at_once_exactly_one_does(
    cache: PyroCacheClient, take: Callable[[PyroCacheClient], Any]
) -> None:
    start = threading.Barrier(16)

    def one(_: int) -> Any:
        start.wait()
        try:
            return take(cache)
        except KeyError:
            return None

    with ThreadPoolExecutor(16) as threads:
        for _ in range(20):
            cache.set("prize", True)
            assert list(threads.map(one, range(16))).count(True) == 1


def test_of_16_that_set_a_default_at_once_all_have_the_same(cache: PyroCacheClient) -> None:
    start = threading.Barrier(16)

    def one(thread: int) -> Any:
        start.wait()
        return cache.setdefault("key", thread)

    with ThreadPoolExecutor(16) as threads:
        for _ in range(20):
            cache.clear()
            assert set(threads.map(one, range(16))) == {cache.get("key")}


# Many keys, some of which fail -------------------------------------------------------------------------------


class Broken:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_get_many_brings_what_unpickles_and_says_what_does_not(cache: PyroCacheClient) -> None:
    cache.set_many({number: number for number in range(100)})
    cache.set_many({"broken": Broken(), "too": Broken()})
    asked = ["broken", *range(100), "too", "no such key"]
    for _ in range(2):
        with pytest.raises(PartialFailure, match="get_many failed for 2 of 103 keys") as caught:
            cache.get_many(asked)
        assert caught.value.results == {number: number for number in range(100)}
        assert list(caught.value.results) == list(range(100))
        assert set(caught.value.errors) == {"broken", "too"}
        assert {type(error) for error in caught.value.errors.values()} == {SerializationError}
        cache.set_many({f"text {number}": "text" for number in range(3)})
    with pytest.raises(SerializationError):
        cache.get("broken")


def test_a_corrupt_value_among_many_counts(cache: PyroCacheClient) -> None:
    cache.set_many({"fine": 1, "corrupt": 2})
    put_bytes(cache, "corrupt", b"?")
    before = cache.stats().client.corrupt_values
    with pytest.raises(PartialFailure) as caught:
        cache.get_many(["fine", "corrupt"])
    assert (caught.value.results, set(caught.value.errors)) == ({"fine": 1}, {"corrupt"})
    assert cache.stats().client.corrupt_values == before + 1


def put_bytes(cache: PyroCacheClient, key: object, frame: bytes) -> None:
    context = cache._context
    context.backend.set(context.encode_key(key), frame, None, context.deadline())


@pytest.mark.asyncio_full
def test_calls_about_many_keys_say_which_failed_when_a_node_is_away(cluster: LocalCluster) -> None:
    with cluster.client(timeout=2.0) as cache, cluster.client(timeout=2.0, on_error="miss") as lenient:
        entries = {number: str(number) for number in range(3000)}
        cache.set_many(entries)
        lost = {number for number in entries if cache.node_for(number).name == "cache.node.2"}
        kept = {number: value for number, value in entries.items() if number not in lost}
        cluster.kill(1)

        calls: list[tuple[Callable[[PyroCacheClient], Any], Any]] = [
            (lambda client: client.get_many(entries), kept),
            (lambda client: client.set_many(entries), len(kept)),
            (lambda client: client.touch_many(entries, 60), len(kept)),
            (lambda client: client.delete_many(entries), len(kept)),
        ]
        for call, expected in calls:
            with pytest.raises(PartialFailure, match=r"for \d+ of 3000 keys.*cache\.node\.2") as caught:
                call(cache)
            assert caught.value.results == expected
            assert set(caught.value.errors) == lost
            assert {type(error) for error in caught.value.errors.values()} == {NodeUnavailable}
        cache.get_many(kept)
        with pytest.raises(NodeUnavailable):
            cache.delete_many([[number] for number in lost] + [[number] for number in kept])

        assert lenient.get_many(entries) == {}
        assert lenient.set_many(entries) == len(kept)
        assert lenient.get_many(entries) == kept
        assert lenient.touch_many(entries, 60) == len(kept)
        assert lenient.delete_many(entries) == len(kept)
        assert lenient.stats().client.misses_on_error == 5
        some_kept = next(iter(kept))
        lenient.set(some_kept, Broken())
        with pytest.raises(PartialFailure) as caught:
            lenient.get_many(entries)
        assert set(caught.value.errors) == {some_kept}


@pytest.mark.full
@pytest.mark.asyncio_full
def test_every_verb_takes_a_node_that_is_away_as_on_error_says(cluster: LocalCluster) -> None:
    calls: list[tuple[Callable[[PyroCacheClient, Any], Any], Any]] = [
        (lambda client, key: client.set(key, 1, tags=["a"]), False),
        (lambda client, key: client.add(key, 1), False),
        (lambda client, key: client.replace(key, 1), False),
        (lambda client, key: client.get(key, "default", touch_seconds=60), "default"),
        (lambda client, key: client.get_with_version(key), None),
        (lambda client, key: client.get_entry(key), None),
        (lambda client, key: client.touch(key, 60), False),
        (lambda client, key: client.pop(key, "default"), "default"),
        (lambda client, key: client.setdefault(key, "default"), "default"),
        (lambda client, key: client.invalidate_tag("a"), 0),
        (lambda client, key: client.clear(), 0),
        (lambda client, key: len(client), 0),
        (lambda client, key: list(client.scan()), []),
        (lambda client, key: list(client.scan(tag="a", details=True)), []),
        (lambda client, key: client.delete_prefix("a"), 0),
        (lambda client, key: list(client.items()), []),
        (lambda client, key: client.reset_stats(), None),
    ]
    with cluster.client(timeout=2.0) as cache, cluster.client(timeout=2.0, on_error="miss") as lenient:
        key = next(number for number in range(100) if cache.node_for(number).name == "cache.node.2")
        cluster.kill(1)
        for number, (call, expected) in enumerate(calls):
            with pytest.raises(NodeUnavailable, match=r"cache\.node\.2.*pyrocache status"):
                call(cache, key)
            begun = time.monotonic()
            assert call(lenient, key) == expected, number
            assert time.monotonic() - begun < 1.0
        for fails in (
            lambda: lenient.pop(key),
            lambda: lenient[key],
            lambda: lenient.popitem(),
        ):
            with pytest.raises(KeyError):
                fails()
        assert lenient.stats().away == cache.stats().away == ["cache.node.2"]


# Times to live -----------------------------------------------------------------------------------------------


def test_a_client_may_have_a_default_ttl(shared_cluster: LocalCluster, cache: PyroCacheClient) -> None:
    with shared_cluster.client(ttl_seconds=timedelta(minutes=1)) as minute:
        minute["a"] = 1
        minute.update(b=2)
        assert minute.setdefault("c", 3) == 3
        assert minute.incr("d", 4) == 4
        assert minute.get_or_set("e", lambda: 5) == 5
        assert minute.memoize()(abs)(-6) == 6
        assert minute.compute("f", lambda value: value + 1, default=6) == 7
        assert minute.set("g", 8, ...) is True
        assert minute.set_many({"h": 9}, ..., tags=["t"]) == 1
        assert minute.add("i", 10, ...) is True
        assert {lives(cache, key, 60) for key in minute} == {True}
        assert minute.set("a", 1, DEFAULT_TTL, tags=[]) is True
        assert lives(cache, "a", 60)
        assert minute.set("a", 1, None) is True
        assert cache.ttl("a") == math.inf
        assert minute.set("b", 2, 100) is True
        assert minute.set("b", 3, ...) is True
        assert lives(cache, "b", 100)
        assert (minute.touch("a"), lives(cache, "a", 60)) == (True, True)
        assert minute.touch_many(["b", "c"]) == 2
        assert lives(cache, "b", 60)
        copy = pickle.loads(pickle.dumps(minute.namespace("shop", ttl_seconds=5)))
        with copy:
            copy["a"] = 1
            assert lives(cache.namespace("shop"), "a", 5)
    cache["a"] = 1
    assert cache.ttl("a") == math.inf


def test_an_entry_may_expire_at_a_point_in_time(cache: PyroCacheClient) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert cache.set("a", 1, expires_at=soon) is True
    assert cache.set("b", 1, expires_at=soon.timestamp(), tags=["t"]) is True
    assert cache.add("c", 1, expires_at=np.float64(soon.timestamp())) is True
    assert cache.add("c", 2, expires_at=soon) is False
    assert cache.replace("c", 3, expires_at=soon.astimezone(timezone(timedelta(hours=-7)))) is True
    assert cache.set_many({"d": 1, "e": 2}, expires_at=soon, ttl_jitter=0.001) == 2
    cache["f"] = cache["g"] = 1
    assert cache.touch("f", expires_at=soon) is True
    assert cache.touch_many(["g", "nobody"], expires_at=soon) == 1
    assert {lives(cache, key, 3600) for key in "abcdefg"} == {True}


def test_what_has_expired_already_removes_what_it_would_replace(cache: PyroCacheClient) -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC)
    cache.set_many(dict.fromkeys("abcdefgh", 1))
    assert cache.set("a", 2, expires_at=past) is True
    assert cache.set("nobody", 2, expires_at=past) is True
    assert cache.add("b", 2, expires_at=past) is False  # it is there
    assert cache.add("nobody", 2, expires_at=past) is True
    assert cache.replace("c", 2, expires_at=past) is True
    assert cache.replace("nobody", 2, expires_at=past) is False
    _, version = cache.get_with_version("d") or (None, 0)
    assert cache.set("d", 2, expires_at=past, if_version=version + 1) is False
    assert cache.set("e", 2, expires_at=past, if_version=version) is False
    assert cache.set("d", 2, expires_at=past, if_version=version) is True
    assert cache.set_many({"f": 2, "nobody": 2}, expires_at=past) == 2
    assert (cache.touch("g", expires_at=past), cache.touch("nobody", expires_at=past)) == (True, False)
    assert cache.touch_many(["h", "nobody"], expires_at=past) == 1
    assert set(cache) == {"b", "e"}


def test_many_entries_may_keep_their_ttl(cache: PyroCacheClient) -> None:
    cache.set("a", 1, 100, tags=["t"])
    cache.set("b", 1)
    assert cache.set_many({"a": 2, "b": 2, "c": 2}, ...) == 3
    assert cache.get_many(["a", "b", "c"]) == {"a": 2, "b": 2, "c": 2}
    assert (lives(cache, "a", 100), cache.ttl("b"), cache.ttl("c")) == (True, math.inf, math.inf)
    assert cache.invalidate_tag("t") == 1


def test_jitter_spreads_expiries(cache: PyroCacheClient) -> None:
    keys = list(range(3000))
    assert cache.set_many(dict.fromkeys(keys, 1), 100, ttl_jitter=0.5) == 3000
    ttls = [entry.ttl_seconds for entry in cache.get_entries(keys).values()]
    assert (len(ttls), len(set(ttls)) > 2900) == (3000, True)
    assert 40 < min(ttls) < 55 < 90 < max(ttls) <= 100
    seen = set()
    for number in range(20):
        key = ("loaded", number)
        assert cache.get_or_set(key, lambda: 1, 100, ttl_jitter=0.5) == 1
        seen.add(round(cache.ttl(key) or 0))

    @cache.memoize(100, ttl_jitter=0.5)
    def double(number: int) -> int:
        return 2 * number

    for number in range(20):
        double(number)
        seen.add(round(cache.ttl(double.key(number)) or 0))
    assert len(seen) > 15
    assert 40 < min(seen) < max(seen) <= 100


# Entries and what is known of them -----------------------------------------------------------------------------


def test_an_entry_is_told_whole(cache: PyroCacheClient) -> None:
    shop = cache.namespace("shop")
    shop.set(("a", 1), [1, 2], 100, tags=["t", "é\ud800"])
    entry = shop.get_entry(("a", 1))
    assert isinstance(entry, Entry)
    assert (entry.value, entry.tags) == ([1, 2], ("t", "é\ud800"))
    assert 95 < entry.ttl_seconds <= 100
    assert entry.age_seconds is not None
    assert entry.idle_seconds is not None
    assert 0 <= entry.idle_seconds <= entry.age_seconds < 5
    assert 300 < entry.size_bytes < 1500
    assert shop.compare_and_set(("a", 1), 3, entry.version) is True
    assert shop.get_entry("nobody") is None
    cache["plain"] = None
    plain = cache.get_entry("plain")
    assert plain is not None
    assert (plain.value, plain.ttl_seconds, plain.tags, plain.age_seconds) == (None, math.inf, (), None)
    with pytest.raises(AttributeError):
        plain.value = 1  # type: ignore[misc]


@pytest.mark.asyncio_full
def test_entries_are_told_of_many_keys_and_not_used(cluster: LocalCluster) -> None:
    with cluster.client() as cache:
        cache.set_many({number: str(number) for number in range(1500)}, 60)
        cache.set("large", np.zeros(2**19))
        found = cache.get_entries([*range(1499, -1, -1), "large", "nobody"])
        assert list(found) == [*range(1499, -1, -1), "large"]
        assert {found[number].value == str(number) for number in range(1500)} == {True}
        assert found["large"].size_bytes > 2**22
        assert len({found[number].version for number in range(1500)}) > 400  # each node has its numbers
        total = cache.stats().total
        assert (total.hits, total.misses) == (0, 0)
        assert cache.delete(5, if_version=found[5].version) is True
        assert cache.delete(6, if_version=found[6].version + 1) is False
        cache[7] = "7"  # as before, but it is another version
        assert cache.delete(7, if_version=found[7].version) is False
        assert (5 in cache, 6 in cache, 7 in cache) == (False, True, True)
        with pytest.raises(TypeError):
            cache.get_entries([[1]])
        cluster.kill(0)
        with pytest.raises(PartialFailure) as caught:
            cache.get_entries(range(100))
        assert 0 < len(caught.value.results) < 100
        assert {caught.value.results[number].value == str(number) for number in caught.value.results} == {
            True
        }


def test_a_value_that_does_not_unpickle_is_reported_among_the_entries(cache: PyroCacheClient) -> None:
    cache["a"], cache["broken"] = 1, Broken()
    with pytest.raises(SerializationError):
        cache.get_entry("broken")
    with pytest.raises(PartialFailure) as caught:
        cache.get_entries(["a", "broken"])
    assert caught.value.results["a"].value == 1
    assert list(caught.value.errors) == ["broken"]


def test_incr_without_a_default_needs_an_entry(cache: PyroCacheClient) -> None:
    for verb in (cache.incr, cache.decr):
        with pytest.raises(KeyError, match="nobody"):
            verb("nobody", default=None)
    assert "nobody" not in cache
    cache["visits"] = 5
    assert (cache.incr("visits", default=None), cache.decr("visits", 2, None)) == (6, 4)


# Scans -------------------------------------------------------------------------------------------------------


@pytest.fixture
def kinds(cache: PyroCacheClient) -> set[Any]:
    """Keys of several kinds that are there."""
    keys: set[Any] = {f"user:{number}" for number in range(500)} | {f"page:{number}" for number in range(500)}
    keys |= {("user", number, "name") for number in range(500)} | {("user", number) for number in range(100)}
    keys |= set(range(300)) | {b"user:1", None, "user:", "user", "é", "éa", "\ud800", "\ud800x", ()}
    cache.set_many(dict.fromkeys(keys, 0))
    return keys


def test_a_scan_may_be_of_a_tag(cache: PyroCacheClient, kinds: set[Any]) -> None:
    few, many = {("user", 1), "user:1", 7}, {key for key in kinds if isinstance(key, str)}
    cache.set_many(dict.fromkeys(many, 0), tags=["many"])
    cache.set_many(dict.fromkeys(few, 0), tags=["few", "many"])
    for batch in (2, 1000):
        assert Counter(cache.scan(tag="few", batch=batch)) == Counter(few)
        assert Counter(cache.scan("user", batch, tag="few")) == Counter({"user:1": 1})
        assert Counter(cache.scan(tag="many", batch=batch)) == Counter(few | many)
    assert list(cache.scan(tag="none")) == []
    assert list(cache.namespace("shop").scan(tag="few")) == []
    cache.invalidate_tag("few")
    assert set(cache.scan(tag="many")) == many - few


def test_a_scan_may_tell_details(cache: PyroCacheClient, kinds: set[Any]) -> None:
    cache.set_many({"user:1": "x" * 1000, ("user", 1): 1}, 60, tags=["t"])
    infos = {info.key: info for info in cache.scan(details=True)}
    assert infos.keys() == kinds
    assert (infos[7].ttl_seconds, infos[7].tags, infos[7].age_seconds) == (math.inf, (), None)
    [first, second] = cache.scan(tag="t", details=True, batch=1)
    assert isinstance(first, EntryInfo)
    assert {first.key, second.key} == {"user:1", ("user", 1)}
    assert {first.tags, second.tags} == {("t",)}
    assert 55 < first.ttl_seconds <= 60
    assert infos["user:1"].size_bytes > infos[("user", 1)].size_bytes + 900


@pytest.mark.asyncio_full
@pytest.mark.parametrize("prefix", ["user:", "", "nobody", ("user",), ("user", 7.0), ()])
def test_a_prefix_may_be_deleted(cache: PyroCacheClient, kinds: set[Any], prefix: Any) -> None:
    cache.namespace("prefixes")["user:1"] = 1
    gone = set(cache.scan(prefix))
    assert cache.delete_prefix(prefix) == len(gone)
    assert set(cache) == kinds - gone
    assert cache.delete_prefix(prefix) == 0
    assert cache.namespace("prefixes").clear() == 1


@pytest.mark.asyncio_full
def test_a_prefix_is_deleted_from_the_nodes_that_answer(cluster: LocalCluster) -> None:
    with cluster.client(timeout=2.0) as cache, cluster.client(timeout=2.0, on_error="miss") as lenient:
        cache.set_many({f"a{number}": 0 for number in range(3000)})
        cache["b"] = 1
        here = [key for key in cache.scan("a") if cache.node_for(key).name != "cache.node.2"]
        cluster.kill(1)
        with pytest.raises(NodeUnavailable):
            cache.delete_prefix("a")
        left = sum(key in cache for key in here)
        assert lenient.delete_prefix("a") == left
        assert list(lenient.scan("a")) == []


@pytest.mark.asyncio_full
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.full), 7, 1000])
@pytest.mark.parametrize(
    "prefix",
    ["user:", "user:1", "", "u", "nobody", "é", "\ud800", ("user",), ("user", 7), ("user", 7.0, "name"), ()],
    ids=ascii,
)
def test_a_scan_finds_what_begins_so_and_nothing_else(
    cache: PyroCacheClient, kinds: set[Any], prefix: Any, batch: int
) -> None:
    kind = type(prefix)
    found = list(cache.scan(prefix, batch=batch))
    assert sorted(found, key=repr) == sorted(
        (key for key in kinds if type(key) is kind and key[: len(prefix)] == prefix), key=repr
    )


@pytest.mark.asyncio_full
def test_a_scan_of_everything_finds_everything(cache: PyroCacheClient, kinds: set[Any]) -> None:
    assert Counter(cache.scan()) == Counter(iter(cache)) == Counter(iter(cache.keys())) == Counter(kinds)
    assert Counter(cache.items()) == Counter((key, 0) for key in kinds)
    assert list(cache.values()) == [0] * len(kinds)


@pytest.mark.parametrize(
    "prefix", [1, b"user", ["user"], {"user"}, 1.5, object()], ids=lambda prefix: type(prefix).__name__
)
def test_a_prefix_is_a_text_or_a_tuple(cache: PyroCacheClient, prefix: Any) -> None:
    with pytest.raises(TypeError, match="prefix"):
        cache.scan(prefix)


class Shouted(str):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shouted) and str(self) == str(other)

    __hash__ = str.__hash__


def test_a_text_with_an_equality_of_its_own_is_no_prefix(cache: PyroCacheClient) -> None:
    with pytest.raises(TypeError, match="Shouted"):
        cache.scan(Shouted("user"))


@pytest.mark.parametrize(
    ("batch", "error"),
    [(0, ValueError), (1001, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError)],
)
def test_a_batch_is_a_number_of_keys(cache: PyroCacheClient, batch: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="batch"):
        cache.scan(batch=batch)


@pytest.mark.asyncio_full
def test_a_scan_asks_as_it_is_walked_over_and_each_page_has_its_own_time(
    shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    cache.set_many(dict.fromkeys(range(2000), 0))
    with shared_cluster.client(timeout=0.5) as hurried:
        begun = time.monotonic()
        found = []
        for position, key in enumerate(hurried.scan(batch=100)):
            found.append(key)
            if position % 200 == 0:
                time.sleep(0.1)
        assert time.monotonic() - begun > 1.0
    assert sorted(found) == list(range(2000))
    scanning = cache.scan(batch=10)
    next(scanning)
    cache.clear()
    assert len(list(scanning)) < 40


@pytest.mark.full
@pytest.mark.timeout(300)
def test_what_is_there_throughout_comes_once_while_others_come_and_go(
    client_class: type[PyroCacheClient], shared_cluster: LocalCluster, cache: PyroCacheClient
) -> None:
    scans = 5 if client_class is PyroCacheClient else 2
    cache.set_many({("stays", number): number for number in range(5000)})
    stop = threading.Event()

    def disturb(thread: int) -> None:
        rounds = 0
        while not stop.is_set():
            rounds += 1
            keys = [("comes", thread, rounds % 5, number) for number in range(500)]
            cache.set_many(dict.fromkeys(keys, 0), ttl_seconds=0.05 if rounds % 2 else None)
            cache.delete_many(keys[::3])
            cache.set_many({("stays", number): number for number in range(thread, 5000, 50)})

    with ThreadPoolExecutor(3) as threads:
        busy = [threads.submit(disturb, thread) for thread in range(3)]
        try:
            for _ in range(scans):
                found = list(cache.scan(batch=100))
                assert len(set(found)) == len(found)
                assert sorted(key[1] for key in found if key[0] == "stays") == list(range(5000))
                items = list(cache.items())
                assert dict(items).keys() >= {("stays", number) for number in range(5000)}
                assert len(dict(items)) == len(items)
                assert all(value == key[1] for key, value in items if key[0] == "stays")
        finally:
            stop.set()
        for done in busy:
            done.result()


@pytest.mark.asyncio_full
def test_a_node_that_joins_during_a_scan_makes_no_key_come_twice_or_be_missed(cluster: LocalCluster) -> None:
    with cluster.client() as cache:
        before = dict.fromkeys(range(9000), 0)
        cache.set_many(before)
        owners = {key: cache.node_for(key).name for key in before}
        found = []
        for position, key in enumerate(cache.scan(batch=200)):
            found.append(key)
            if position == 3000:
                cluster.add_node()
                eventually(lambda: len(cache.nodes()) == 4)
                cache.set_many(before)  # what has moved is there again, with its new owner
        stayed = {key for key in before if cache.node_for(key).name == owners[key]}
        assert 4000 < len(stayed) < 9000
        assert max(Counter(found).values()) == 1
        assert set(found) >= stayed
        assert Counter(cache.scan()) == Counter(list(before))


def keys_of_items(cache: PyroCacheClient) -> Iterator[Any]:
    return (key for key, _ in cache.items())


@pytest.mark.asyncio_full
@pytest.mark.parametrize(
    "read", [lambda cache: cache.scan(), pytest.param(keys_of_items, marks=pytest.mark.full)]
)
@pytest.mark.parametrize(
    ("leaves", "position"),
    [pytest.param(0, 4500, marks=pytest.mark.full), (2, 100)],
    ids=["walked over", "still to come"],
)
def test_a_node_that_leaves_during_a_scan_makes_no_key_come_twice_or_be_missed(
    cluster: LocalCluster, read: Callable[[PyroCacheClient], Iterator[Any]], leaves: int, position: int
) -> None:
    with cluster.client(timeout=3.0) as cache:
        before = dict.fromkeys(range(9000), 0)
        cache.set_many(before)
        owners = {key: cache.node_for(key).name for key in before}
        found = []
        for place, key in enumerate(read(cache)):
            found.append(key)
            if place == position:
                cluster.remove_node(leaves)
                cache.set_many(before)  # what it held is there again, on the others
        there = {node.name for node in cluster.nodes}
        assert max(Counter(found).values()) == 1
        assert set(found) >= {key for key in before if owners[key] in there}
        assert Counter(cache.scan()) == Counter(list(before))


@pytest.mark.full
@pytest.mark.asyncio_full
def test_a_scan_begun_while_a_node_joins_finds_what_can_be_got(cluster: LocalCluster) -> None:
    with cluster.client() as cache:
        cache.set_many(dict.fromkeys(range(3000), 0))
        with ThreadPoolExecutor(1) as thread:
            joining = thread.submit(cluster.add_node)
            while not joining.done():
                gettable = set(cache.get_many(range(3000)))
                found = Counter(cache.scan())
                still = set(cache.get_many(range(3000)))
                assert set(found) >= gettable & still
                assert max(found.values()) == 1


def test_the_values_of_a_scan_come_a_few_mebibytes_at_a_time(
    cache: PyroCacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.set_many({number: number.to_bytes(1) * 2**20 for number in range(60)})
    received: Counter[Page] = Counter()
    take = Page.take

    def watched(page: Page, indices: Any, frames: Any) -> None:
        received[page] += sum(len(frame) for frame in frames if frame is not None)
        take(page, indices, frames)

    monkeypatch.setattr(Page, "take", watched)
    seen = {key: value[0] for key, value in cache.items()}
    assert seen == {number: number for number in range(60)}
    assert 2**20 < max(received.values()) <= 6 * 2**20


def test_a_value_that_does_not_unpickle_ends_a_walk_over_values_but_not_over_keys(
    cache: PyroCacheClient,
) -> None:
    cache.set("broken", Broken())
    assert list(cache.keys()) == ["broken"]
    with pytest.raises(SerializationError):
        list(cache.values())


def test_popitem_takes_every_entry_once(cache: PyroCacheClient) -> None:
    entries = {number: str(number) for number in range(300)}
    cache.set_many(entries)
    with ThreadPoolExecutor(8) as threads:

        def take(_: int) -> list[tuple[Any, Any]]:
            taken = []
            while True:
                try:
                    taken.append(cache.popitem())
                except KeyError:
                    return taken

        taken = [item for items in threads.map(take, range(8)) for item in items]
    assert sorted(taken) == sorted(entries.items())
    assert not cache


# Namespaces --------------------------------------------------------------------------------------------------

NAMES = ["", "shop", "\0", "shop\0", "a/b", "é", "\ud800", "x" * 255, " ", "shop:1"]


def test_any_name_is_a_namespace_of_its_own(cache: PyroCacheClient, shared_cluster: LocalCluster) -> None:
    spaces = [cache, *map(cache.namespace, NAMES)]
    spaces += [cache.namespace("shop").namespace(name) for name in NAMES]
    spaces += [cache.namespace("shop").namespace("a").namespace("b"), cache.namespace("").namespace("")]
    for number, space in enumerate(spaces):
        space.clear()
        space["key"] = number
        space["only here", number] = number
    for number, space in enumerate(spaces):
        assert dict(space) == {"key": number, ("only here", number): number}
        assert len(space) == 2
    cache.clear()
    spaces[2].clear()
    assert [len(space) for space in spaces] == [0, 2, 0] + [2] * (len(spaces) - 3)
    with shared_cluster.client(namespace="shop") as same:
        assert len(same) == 0
        same["key"] = "from there"
        assert cache.namespace("shop")["key"] == "from there"
    with shared_cluster.client(namespace=("shop", "a", "b")) as same:
        assert same["key"] == len(spaces) - 2
    with shared_cluster.client(namespace="") as same:
        assert same["key"] == 1
    for space in spaces:
        space.clear()


@pytest.mark.parametrize("name", [None, 1, b"shop", ("a",)], ids=repr)
def test_a_name_is_a_text(cache: PyroCacheClient, name: Any) -> None:
    with pytest.raises(ValueError, match="str"):
        cache.namespace(name)


def test_a_name_may_be_255_bytes_long_and_nesting_512(cache: PyroCacheClient) -> None:
    with pytest.raises(ValueError, match="256 bytes in UTF-8; the limit is 255"):
        cache.namespace("é" * 128)
    longest = cache.namespace("x" * 255).namespace("y" * 255)
    longest["key"] = 1
    assert longest["key"] == 1
    assert longest.clear() == 1
    with pytest.raises(ValueError, match="nested too deeply"):
        longest.namespace("")


def test_a_namespace_shares_the_connections(cache: PyroCacheClient) -> None:
    cache.stats()
    before = cache.stats().total.connections
    for number in range(20):
        space = cache.namespace(f"space {number}").namespace("inner")
        space["key"] = number
        assert space.popitem() == ("key", number)
    assert cache.stats().total.connections == before


def test_closing_goes_inwards_and_not_outwards(shared_cluster: LocalCluster) -> None:
    outer = shared_cluster.client()
    with outer.namespace("a") as inner:
        innermost, other = inner.namespace("b"), outer.namespace("c")
        inner["key"] = 1
        inner.clear()
    for closed in (inner, innermost):
        assert "closed" in repr(closed)
        for call in (
            lambda closed=closed: closed.get("key"),
            lambda closed=closed: closed.set("key", 1),
            lambda closed=closed: closed.get_many(["key"]),
            lambda closed=closed: closed.incr("key"),
            lambda closed=closed: list(closed.scan()),
            lambda closed=closed: closed.stats(),
            lambda closed=closed: closed.namespace("d"),
        ):
            with pytest.raises(ClientClosed, match="closed"):
                call()
    assert other.get("key") is None
    assert outer.get("key") is None
    outer.close()
    with pytest.raises(ClientClosed):
        other.get("key")


@pytest.mark.asyncio_full
def test_a_namespace_goes_to_another_process_by_pickle_and_by_fork(cache: PyroCacheClient) -> None:
    space = cache.namespace("a").namespace("b")
    space["key"] = "value"
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(use_namespace, [space] * 4, chunksize=1) == ["value"] * 4
    process = multiprocessing.get_context("fork").Process(target=use_both, args=(cache, space))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert space["from the child"] == cache["from the child"] == 1
    space.clear()


def use_namespace(space: PyroCacheClient) -> Any:
    return space["key"]


def use_both(cache: PyroCacheClient, space: PyroCacheClient) -> None:
    space["from the child"] = 1
    cache["from the child"] = 1


def test_a_namespace_outlives_the_variable_of_its_parent(
    client_class: type[PyroCacheClient], shared_cluster: LocalCluster
) -> None:
    space = client_class(shared_cluster.nameserver).namespace("alone")
    space["key"] = 1
    process = multiprocessing.get_context("fork").Process(target=use_namespace, args=(space,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert space.clear() == 1
    space.close()


# Tags --------------------------------------------------------------------------------------------------------


def test_a_tag_invalidates_its_entries_on_every_node(cache: PyroCacheClient) -> None:
    cache.set_many({("page", number): number for number in range(3000)}, tags=["page", "all"])
    cache.set_many({("user", number): number for number in range(100)}, 60, tags=["user"])
    cache.set("both", 1, tags=["page", "user"])
    cache.add("added", 1, tags=["user"])
    cache.set("replaced", 0)
    cache.replace("replaced", 1, tags=["user"])
    cache.set("plain", 1)
    assert cache.invalidate_tag("page") == 3001
    assert cache.invalidate_tag("page") == 0
    assert len(cache) == 103
    assert cache.get_many([("page", 0), ("user", 0), "both", "plain"]) == {("user", 0): 0, "plain": 1}
    assert cache.invalidate_tag("user") == 102
    assert dict(cache) == {"plain": 1}
    cache.set("both", 2, tags=["page"])
    assert cache.get("both") == 2
    assert cache.invalidate_tag("no such tag") == 0


def test_an_entry_has_the_tags_of_what_stored_it_last(cache: PyroCacheClient) -> None:
    changes: list[Callable[[str], Any]] = [
        lambda key: cache.set(key, 2),
        lambda key: cache.set_many({key: 2}),
        lambda key: cache.replace(key, 2),
        lambda key: cache.set(key, 2, tags=[]),
        lambda key: cache.set(key, 2, tags=["b"]),
        lambda key: cache.set(key, 2, ..., tags=["b"]),
        lambda key: cache.compute(key, lambda value: value, ttl_seconds=60),
        lambda key: cache.pop(key) and cache.setdefault(key, 2),
    ]
    for number, change in enumerate(changes):
        cache.set(f"changed {number}", 1, tags=["a"])
        change(f"changed {number}")
    cache.invalidate_tag("a")
    assert set(cache) == {f"changed {number}" for number in range(len(changes))}


def test_an_entry_that_lives_on_keeps_its_tags(cache: PyroCacheClient) -> None:
    changes: list[Callable[[str], Any]] = [
        lambda key: cache.touch(key, 60),
        lambda key: cache.touch_many([key], 60),
        lambda key: cache.get(key, touch_seconds=60),
        lambda key: cache.incr(key),
        lambda key: cache.set(key, 2, ...),
        lambda key: cache.replace(key, 2, ...),
        lambda key: cache.compute(key, lambda value: value),
        lambda key: cache.compare_and_set(key, 2, (cache.get_with_version(key) or (0, 0))[1]),
        lambda key: cache.setdefault(key, 2),
        lambda key: cache.add(key, 2),
    ]
    for number, change in enumerate(changes):
        cache.set(f"changed {number}", 1, tags=["a"])
        change(f"changed {number}")
    assert cache.invalidate_tag("a") == len(changes)
    assert list(cache) == []


def test_a_tag_is_of_its_namespace(cache: PyroCacheClient) -> None:
    one, other = cache.namespace("one"), cache.namespace("other")
    for space in (cache, one, other):
        space.set("key", 1, tags=["tag"])
    assert one.invalidate_tag("tag") == 1
    assert ["key" in space for space in (cache, one, other)] == [True, False, True]
    other.clear()


@pytest.mark.parametrize(
    ("tags", "error"),
    [
        ("page", TypeError),
        ([1], TypeError),
        ([b"page"], TypeError),
        (5, TypeError),
        (["x" * 3000], ValueError),
        ([str(number) for number in range(65)], ValueError),
    ],
    ids=lambda tags: str(tags)[:20],
)
def test_tags_that_make_no_sense_are_refused(
    cache: PyroCacheClient, tags: Any, error: type[Exception]
) -> None:
    for call in (
        lambda: cache.set("key", 1, tags=tags),
        lambda: cache.add("key", 1, tags=tags),
        lambda: cache.set_many({"key": 1}, tags=tags),
    ):
        with pytest.raises(error):
            call()
    assert "key" not in cache


def test_tags_may_be_any_texts(cache: PyroCacheClient) -> None:
    tags = ["", "\0", "é", "\ud800", "x" * 2000, *(str(number) for number in range(59))]
    for tag in tags:
        cache.set("key", 1, tags=iter([*tags, *tags]))
        assert cache.invalidate_tag(tag) == 1
        assert "key" not in cache


# Figures -----------------------------------------------------------------------------------------------------


def test_figures_follow_what_is_done(cluster: LocalCluster) -> None:
    with cluster.client() as cache:
        shop = cache.namespace("shop")
        cache.set_many({number: number for number in range(100)})
        shop.set("key", 1)
        cache.get_many(range(150))
        shop.get("key")
        shop.get("no such key")
        cache.delete(1)
        for _ in range(200):
            cache.get(2)
        stats = cache.stats()
        assert isinstance(stats, Stats)
        total = stats.total
        assert (total.hits, total.misses) == (301, 51)
        assert (total.sets, total.deletes, total.entries) == (101, 1, 100)
        assert total.hit_ratio == pytest.approx(301 / 352)
        assert (total.evictions, total.expirations) == (0, 0)
        assert total.bytes > 0
        assert total.max_bytes == 3 * 256 * 2**20
        root, mine = total.namespaces[()], total.namespaces["shop",]
        assert (root.hits, root.misses, root.entries) == (300, 50, 99)
        assert (mine.hits, mine.misses, mine.entries) == (1, 1, 1)
        assert {node.pid for node in stats.nodes.values()} == {node.pid for node in cluster.nodes}
        assert all(node.uptime_seconds > 0 and node.policy for node in stats.nodes.values())
        assert 0 < total.latencies["get"].percentile(50) < total.latencies["get"].percentile(99) < 1
        text = repr(stats)
        assert re.search(r"entries +100 in 2 namespaces", text)
        assert "'shop'" in text
        assert "85.5% of 352 reads" in text
        plain = stats.as_dict()
        assert plain["total"]["hits"] == 301
        assert {"path": ["shop"], "hits": 1, "misses": 1, "entries": 1} in plain["total"]["namespaces"]

        assert cache.reset_stats() is None
        again = cache.stats()
        assert (again.total.hits, again.total.misses, again.total.sets) == (0, 0, 0)
        assert again.total.entries == 100
        assert again.total.namespaces["shop",].hits == 0
        assert "get" not in again.total.latencies
        assert again.client.as_dict().keys() >= {"misses_on_error", "corrupt_values", "conflicts"}


# The wire ----------------------------------------------------------------------------------------------------


@pytest.mark.blocking_only("reads of the asyncio client travel together")
def test_get_and_set_ask_for_no_more_than_they_need(cache: PyroCacheClient) -> None:
    """The two calls that must be fast send what they always have."""
    sent: list[tuple[Any, ...]] = []
    backend: Any = cache._context.backend
    call = backend._call

    def watched(command: Any, key: bytes, arguments: Any, *rest: Any) -> Any:
        sent.append((command.name, key, *arguments))
        return call(command, key, arguments, *rest)

    backend._call = watched
    cache.set("key", 1)
    cache.get("key")
    cache.set("key", 1, 60)
    key = cache._context.encode_key("key")
    frame = Codec().encode(b"", 1)
    assert sent == [("set", key, frame, None), ("get", key), ("set", key, frame, 60.0)]


@pytest.fixture(scope="module", autouse=True)
def _no_leftovers(shared_cluster: LocalCluster) -> Iterator[None]:
    yield
    with shared_cluster.client() as cache:
        cache.clear()
        cache.namespace("shop").clear()


def test_this_file_is_about_every_public_verb() -> None:
    here = Path(__file__).read_text()
    verbs = {name for name in vars(PyroCacheClient) if not name.startswith("_")}
    elsewhere = {
        *("get_or_set", "memoize", "lock", "semaphore"),
        *("nodes", "contains", "ping", "disconnect", "hot_keys", "watch"),
    }
    assert [verb for verb in verbs - elsewhere if f".{verb}" not in here] == []
