"""Stored keys and values whose class this process does not have, or has no more."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pyrocache import InvalidKey, LocalCluster, PartialFailure, PyroCacheClient, SerializationError
from tests.support.async_client import at_the_node
from tests.support.waiting import eventually


@pytest.fixture
def shop() -> Iterator[types.ModuleType]:
    """A module with a class, which a deployment may rename."""
    module: Any = types.ModuleType("shop_of_a_test")
    exec("class Basket:\n    def __init__(self, n): self.n = n", vars(module))
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


Deploy = Callable[[], None]


@pytest.fixture
def rename(shop: Any) -> Deploy:
    def rename() -> None:
        shop.Bag = shop.Basket
        shop.Bag.__qualname__ = shop.Bag.__name__ = "Bag"
        del shop.Basket

    return rename


@pytest.fixture
def lenient(shared_cluster: LocalCluster, cache: PyroCacheClient) -> Iterator[PyroCacheClient]:
    with shared_cluster.client(on_undecodable="miss") as client:
        yield client


def test_memoize_and_get_or_set_load_it_anew_and_overwrite(
    cache: PyroCacheClient, shop: Any, rename: Deploy
) -> None:
    calls = []

    @cache.memoize(key=lambda x: x)
    def basket(x: int) -> Any:
        calls.append(x)
        return (getattr(shop, "Bag", None) and shop.Bag(x)) or shop.Basket(x)

    assert basket(7).n == 7
    cache.get_or_set("key", lambda: shop.Basket(8))
    rename()
    with pytest.raises(SerializationError, match=r"there is no class shop_of_a_test\.Basket"):
        cache.get("key")
    assert type(basket(7)) is shop.Bag
    assert type(basket(7)) is shop.Bag
    assert calls == [7, 7]
    assert cache.get_or_set("key", lambda: shop.Bag(9)).n == 9
    assert cache["key"].n == 9
    assert cache.stats().client.undecodable == 2


def test_the_same_for_async_functions_and_early_refresh(
    cache: PyroCacheClient, shop: Any, rename: Deploy
) -> None:
    @cache.memoize(ttl_seconds=60, early=1.0, key=lambda x: x)
    async def basket(x: int) -> Any:
        return shop.Basket(x) if hasattr(shop, "Basket") else shop.Bag(x)

    assert asyncio.run(basket(7)).n == 7  # type: ignore[arg-type]
    rename()
    assert type(asyncio.run(basket(7))) is shop.Bag  # type: ignore[arg-type]
    assert type(cache[basket.key(7)]) is shop.Bag


def test_one_of_many_readers_loads_it_and_the_others_wait_for_its_value(
    cache: PyroCacheClient, shop: Any, rename: Deploy
) -> None:
    calls = []
    end = threading.Event()

    def load() -> Any:
        calls.append(1)
        assert end.wait(30)
        return shop.Bag(len(calls))

    cache["key"] = shop.Basket(0)
    rename()
    with ThreadPoolExecutor(20) as threads:
        readers = [threads.submit(cache.get_or_set, "key", load) for _ in range(20)]
        eventually(lambda: cache.stats().total.waiting == at_the_node(cache, 19))
        end.set()
        assert {reader.result(10).n for reader in readers} == {1}
    assert calls == [1]


def test_a_reader_that_can_still_read_it_is_not_kept_waiting(
    shared_cluster: LocalCluster, cache: PyroCacheClient, shop: Any, rename: Deploy
) -> None:
    loading, end = threading.Event(), threading.Event()

    def load() -> Any:
        loading.set()
        assert end.wait(30)
        return shop.Bag(1)

    cache["key"] = shop.Basket(0)
    basket = shop.Basket
    rename()
    with ThreadPoolExecutor(1) as threads:
        loader = threads.submit(cache.get_or_set, "key", load)
        assert loading.wait(30)
        shop.Basket = basket  # the old deployment
        assert cache.get_or_set("key", pytest.fail).n == 0
        end.set()
        assert loader.result(10).n == 1


def test_reads_raise_or_miss(
    cache: PyroCacheClient, lenient: PyroCacheClient, shop: Any, rename: Deploy
) -> None:
    cache.set_many({"bad": shop.Basket(1), "good": "value"})
    rename()
    reads: list[tuple[Callable[[PyroCacheClient], Any], Any]] = [
        (lambda c: c.get("bad", "default"), "default"),
        (lambda c: c.get_with_version("bad"), None),
        (lambda c: dict(c.items()), {"good": "value"}),
        (lambda c: list(c.values()), ["value"]),
        (lambda c: c == {"good": "value"}, True),
        (lambda c: c.namespace("inner").get("bad"), None),
        (lambda c: c.compute("bad", lambda value: 1), None),
    ]
    inner = cache.namespace("inner")
    context = inner._context
    frame = cache._context.backend.get(cache._context.encode_key("bad"), cache._context.deadline())
    context.backend.set(context.encode_key("bad"), frame, None, context.deadline())  # type: ignore[arg-type]
    for call, expected in reads[:-1]:
        with pytest.raises(SerializationError, match=r"shop_of_a_test\.Basket"):
            call(cache)
        assert call(lenient) == expected
    with pytest.raises(PartialFailure) as caught:
        cache.get_many(["bad", "good"])
    assert caught.value.results == {"good": "value"}
    assert lenient.get_many(["bad", "good"]) == lenient.get_many(["good", "bad"]) == {"good": "value"}
    assert lenient.get_many(["bad"]) == {}
    with pytest.raises(KeyError):
        lenient["bad"]
    for client in (cache, lenient):
        with pytest.raises(SerializationError):
            client.compute("bad", lambda value: 1, default=2)
        with pytest.raises(SerializationError):  # the default would not be stored
            client.setdefault("bad", "default")
    assert "bad" in lenient
    assert lenient._context.figures.undecodable >= 8
    assert lenient.pop("bad", "default") == "default"
    cache["bad"] = "new"


def test_popitem_goes_on_to_an_entry_that_decodes_and_leaves_the_others(
    cache: PyroCacheClient, lenient: PyroCacheClient, shop: Any, rename: Deploy
) -> None:
    cache.set_many({number: shop.Basket(1) for number in range(20)})
    rename()
    with pytest.raises(SerializationError):
        cache.popitem()
    cache["good"] = "value"
    assert lenient.popitem() == ("good", "value")
    with pytest.raises(KeyError):
        lenient.popitem()
    assert len(cache) == 20


def test_a_corrupt_value_is_one_too(cache: PyroCacheClient, lenient: PyroCacheClient) -> None:
    context = cache._context
    context.backend.set(context.encode_key("key"), b"?", None, context.deadline())
    assert lenient.get("key", "default") == "default"
    assert lenient.stats().client.corrupt_values == 1
    assert cache.get_or_set("key", lambda: "new") == "new"
    assert cache["key"] == "new"


def test_a_key_that_does_not_decode_is_named_or_left_out(
    cache: PyroCacheClient, lenient: PyroCacheClient, shop: Any, rename: Deploy
) -> None:
    cache[shop.Basket(1)] = "bad"
    cache["good"] = "value"
    rename()
    for call in (list, lambda c: list(c.items()), lambda c: list(c.values()), lambda c: list(c.scan())):
        with pytest.raises(InvalidKey, match=r"there is no class shop_of_a_test\.Basket"):
            call(cache)
    assert list(lenient) == list(lenient.scan()) == ["good"]
    assert dict(lenient.items()) == {"good": "value"}
    assert lenient == {"good": "value"}
    assert len(lenient) == 2, "it is there all the same"
