"""The argument that was meant: errors for names that other caches use."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from pyrocache import PyroCacheClient

cache: Any = PyroCacheClient("127.0.0.1:1")
TTL = "did you mean ttl_seconds?"

STORES: list[Callable[..., object]] = [
    lambda **more: cache.set("key", 1, **more),
    lambda **more: cache.add("key", 1, **more),
    lambda **more: cache.replace("key", 1, **more),
    lambda **more: cache.setdefault("key", 1, **more),
    lambda **more: cache.compare_and_set("key", 1, 1, **more),
    lambda **more: cache.compute("key", len, **more),
    lambda **more: cache.incr("key", **more),
    lambda **more: cache.decr("key", **more),
    lambda **more: cache.touch("key", **more),
    lambda **more: cache.get_or_set("key", list, **more),
    lambda **more: cache.memoize(**more),
    lambda **more: cache.set_many({}, **more),
    lambda **more: cache.touch_many([], **more),
    lambda **more: cache.namespace("name", **more),
]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("name", ["ttl", "timeout", "expire", "ex", "EXPIRY", "ttl_second"])
def test_a_time_to_live_by_another_name(store: Callable[..., object], name: str) -> None:
    with pytest.raises(TypeError) as caught:
        store(**{name: 5})
    assert str(caught.value).endswith(f"unexpected keyword argument '{name}': {TTL}")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: cache.lock("name", timeout=5),
            "PyroCacheClient.lock() got an unexpected keyword argument 'timeout'",
        ),
        (lambda: cache.lock("name", timeout=5), "did you mean ttl_seconds or wait_seconds?"),
        (lambda: cache.semaphore("name", 2, blocking_timeout=5), "did you mean wait_seconds?"),
        (lambda: cache.set("key", 1, expire_at=5), "did you mean expires_at?"),
        (lambda: cache.set("key", 1, tag="a"), "did you mean tags?"),
        (lambda: PyroCacheClient(timeout_seconds=5), "PyroCacheClient() got an unexpected"),  # type: ignore[arg-type]
        (lambda: PyroCacheClient(timeout_seconds=5), "did you mean timeout?"),  # type: ignore[arg-type]
        (lambda: PyroCacheClient(host="a"), "did you mean nameserver?"),  # type: ignore[arg-type]
        (lambda: cache.set("key", 1, nonsense=5), "unexpected keyword argument 'nonsense'."),
    ],
)
def test_other_names(call: Callable[[], object], said: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert said in str(caught.value)


def test_signatures_do_not_show_how() -> None:
    for name, method in vars(PyroCacheClient).items():
        if inspect.isfunction(method):
            assert "unknown" not in inspect.signature(method).parameters, name
    assert "unknown" not in inspect.signature(PyroCacheClient).parameters
