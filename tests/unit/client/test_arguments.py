"""What a client refuses before it asks anybody: arguments that make no sense, each by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from pyrocache import PyroCacheClient


@pytest.fixture
def cache() -> PyroCacheClient:
    """One that would wait for a name server that is not there, if it asked."""
    return PyroCacheClient("127.0.0.1:1", timeout=60.0)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda c: c.incr("k", 1.5), TypeError, "delta is an int, not float"),
        (lambda c: c.decr("k", "1"), TypeError, "delta is an int, not str"),
        (lambda c: c.incr("k", default="1"), TypeError, "default is an int, not str"),
        (lambda c: c.incr("k", ttl_seconds=...), TypeError, "ttl_seconds must be an int"),
        (lambda c: c.touch("k", ...), TypeError, "ttl_seconds must be an int"),
        (lambda c: c.touch_many("k", ...), TypeError, "ttl_seconds must be an int"),
        (lambda c: c.get_or_set("k", int, ...), TypeError, "ttl_seconds must be an int"),
        (lambda c: c.delete("k", if_version=True), TypeError, "A version is an int"),
        (lambda c: c.delete("k", if_version=0), ValueError, "A version is an int above 0"),
        (lambda c: c.delete_prefix(None), TypeError, "delete_prefix takes a str or a tuple"),
        (lambda c: c.scan(None, tag=5), TypeError, "A tag is a str, not int"),
        (lambda c: c.set("k", 1, expires_at=datetime(2030, 1, 1)), ValueError, "needs a time zone"),
        (lambda c: c.set("k", 1, expires_at="2030"), TypeError, "expires_at must be an aware datetime"),
        (lambda c: c.set("k", 1, expires_at=True), TypeError, "expires_at must be an aware datetime"),
        (lambda c: c.set("k", 1, expires_at=timedelta(1)), TypeError, "expires_at must be an aware datetime"),
        (lambda c: c.set("k", 1, expires_at=math.nan), ValueError, "expires_at must not be NaN"),
        (lambda c: c.set("k", 1, 60, expires_at=1), TypeError, "ttl_seconds or expires_at, not both"),
        (lambda c: c.add("k", 1, ..., expires_at=1), TypeError, "ttl_seconds or expires_at, not both"),
        (lambda c: c.set_many({}, None, expires_at=1), TypeError, "ttl_seconds or expires_at, not both"),
        (lambda c: c.touch("k", 60, expires_at=1), TypeError, "ttl_seconds or expires_at, not both"),
        (lambda c: c.set_many({}, ttl_jitter=1.5), ValueError, "ttl_jitter is a fraction .* from 0 to 1"),
        (lambda c: c.set_many({}, ttl_jitter="0.1"), TypeError, "ttl_jitter must be an int or a float"),
        (lambda c: c.memoize(ttl_jitter=-0.1), ValueError, "ttl_jitter must be finite and not negative"),
        (lambda c: c.get_or_set("k", int, ttl_jitter=2), ValueError, "ttl_jitter is a fraction"),
        (lambda c: c.namespace("n", ttl_seconds=0), ValueError, "ttl_seconds must be above 0"),
        (lambda c: PyroCacheClient(ttl_seconds="5"), TypeError, "ttl_seconds must be an int"),
        (lambda c: c.set("k", 1, tags=5), TypeError, "tags is a list of str, not one int"),
        (lambda c: c.set("k", 1, tags="page"), TypeError, "tags is a list of str, not one str"),
        (lambda c: c.set("k", 1, tags=[5]), TypeError, "A tag is a str, not int"),
        (lambda c: c.set("k", 1, 0), ValueError, "ttl_seconds must be above 0"),
        (lambda c: c.get("k", touch_seconds=0), ValueError, "touch_seconds must be above 0"),
        (
            lambda c: c.get("k", touch_seconds="5"),
            TypeError,
            "touch_seconds must be an int, a float, a timedelta",
        ),
        (lambda c: c.get_many(5), TypeError, "keys is a list of keys, .* not one int"),
        (lambda c: c.get_many("user:1"), TypeError, "keys is a list of keys, .* not one str"),
        (lambda c: c.delete_many(b"user"), TypeError, "keys is a list of keys, .* not one bytes"),
        (lambda c: c.touch_many("user", 5), TypeError, "keys is a list of keys, .* not one str"),
        (lambda c: c.set_many([1, 2]), TypeError, "set_many takes a mapping"),
        (lambda c: c.memoize(key="x"), TypeError, "memoize's key is a function, not str"),
        (lambda c: c.memoize(cache_if=5), TypeError, "memoize's cache_if is a function, not int"),
        (lambda c: c.memoize(stale_seconds=-1), ValueError, "stale_seconds must be finite and not negative"),
        (
            lambda c: c.get_or_set("k", int, lease_seconds=0),
            ValueError,
            "lease_seconds must be finite and above 0",
        ),
        (lambda c: c.lock("l", ttl_seconds=0), ValueError, "ttl_seconds must be finite and above 0"),
        (lambda c: c.lock("l", math.inf), ValueError, "ttl_seconds must be finite"),
        (lambda c: c.lock("l", wait_seconds=-1), ValueError, "wait_seconds must be finite and not negative"),
        (lambda c: c.semaphore("s", 0), ValueError, "n is from 1"),
    ],
)
def test_it_is_named(
    cache: PyroCacheClient, call: Callable[[Any], object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        call(cache)


def test_durations_may_be_timedeltas(cache: PyroCacheClient) -> None:
    lock = cache.lock("report", timedelta(minutes=1), wait_seconds=timedelta(seconds=0))
    assert repr(lock) == "<pyrocache lock 'report'>"
    assert cache.memoize(timedelta(hours=1), stale_seconds=timedelta(minutes=1))
