"""Expiry buckets: what is due is found, nothing else is, and nothing piles up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.node.store.expiry import ExpiryBuckets

NOW = 1000.0


def due(buckets: ExpiryBuckets, now: float) -> list[bytes]:
    """All that is due, which is taken out."""
    found = []
    while (bucket := buckets.due(now)) is not None:
        found.append(bucket.pop())
    return sorted(found)


def plan(buckets: ExpiryBuckets, key: bytes, seconds: float, now: float = NOW) -> set[bytes]:
    bucket = buckets.bucket(now + seconds, seconds)
    bucket.add(key)
    return bucket


def test_what_leaves_in_one_tick_is_found_together_and_when_it_is_over() -> None:
    buckets = ExpiryBuckets(0.5)
    assert plan(buckets, b"a", 1.0) is plan(buckets, b"b", 0.75)
    plan(buckets, b"c", 1.25)
    assert due(buckets, NOW + 0.99) == []
    assert due(buckets, NOW + 1.0) == [b"a", b"b"]
    assert due(buckets, NOW + 1.5) == [b"c"]
    assert due(buckets, NOW + 1e9) == []


def test_nothing_is_due_in_an_empty_one() -> None:
    assert ExpiryBuckets(0.5).due(1e300) is None


@pytest.mark.parametrize("ttl", [0.1, 1.0, 31.9, 32.0, 60.0, 3600.0, 86400.0, 1e9])
def test_no_key_is_found_before_its_time_and_all_are_within_a_thirtieth(ttl: float) -> None:
    buckets = ExpiryBuckets(0.5)
    plan(buckets, b"key", ttl)
    assert due(buckets, NOW + ttl * 0.999) == []
    assert due(buckets, NOW + ttl + max(0.5, ttl / 30)) == [b"key"]


@given(st.lists(st.floats(0.001, 1e7), max_size=50), st.lists(st.floats(0, 2e7), max_size=10))
def test_what_is_found_is_due_and_the_rest_is_not(ttls: list[float], times: list[float]) -> None:
    buckets = ExpiryBuckets(0.25)
    planned = {b"%d" % number: ttl for number, ttl in enumerate(ttls)}
    for key, ttl in planned.items():
        plan(buckets, key, ttl)
    for time in sorted(times):
        for key in due(buckets, NOW + time):
            assert NOW + planned.pop(key) <= NOW + time
        assert all(time < ttl + max(0.26, ttl / 30) for ttl in planned.values())


def test_times_beyond_all_bounds_never_come() -> None:
    buckets = ExpiryBuckets(0.5)
    for seconds in (1e12, 1e18, 1e300, 1.7e308, float("inf")):
        plan(buckets, b"%g" % seconds, seconds)
    assert due(buckets, 1e11) == []


def test_few_ticks_are_in_use_however_many_times_there_are() -> None:
    buckets = ExpiryBuckets(0.5)
    ticks = {id(plan(buckets, b"%d" % number, 3600 + number / 100)) for number in range(100_000)}
    assert len(ticks) < 300


def test_sets_that_became_empty_are_forgotten_in_their_time_and_not_made_twice() -> None:
    buckets = ExpiryBuckets(0.5)
    for number in range(10_000):
        plan(buckets, b"key", 60.0, NOW + number / 1000).discard(b"key")
    assert len(buckets.ticks) == len(buckets._buckets) < 20
    assert due(buckets, NOW + 100) == []
    assert len(buckets.ticks) == len(buckets._buckets) == 0


def test_a_bucket_stays_small_and_those_that_were_emptied_are_used_again() -> None:
    buckets = ExpiryBuckets(0.5)
    place: dict[int, set[bytes]] = {}
    for number in range(100_000):
        key = b"%d" % (number % 10_000)  # each of which is planned ten times
        if (before := place.get(number % 10_000)) is not None:
            before.discard(key)
        place[number % 10_000] = plan(buckets, key, 3600.0)
    (row,) = buckets._buckets.values()
    assert sum(map(len, row)) == 10_000
    assert len(row) <= 6
    assert max(map(len, row)) <= 3900
    assert len(due(buckets, NOW + 4000)) == 10_000
