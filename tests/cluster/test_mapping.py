"""A client is a mapping: CPython's own tests of the protocol, and zict's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, MutableMapping
from typing import Any, ClassVar

import pytest
from zict.tests import utils_test as zict_tests

from pyrocache import LocalCluster, PyroCacheClient

mapping_tests = pytest.importorskip("test.mapping_tests", reason="this Python comes without its tests")

numbers = itertools.count()


class TestTheProtocol(mapping_tests.BasicTestMappingProtocol):  # type: ignore[misc, name-defined]
    """Each mapping that a test makes is a namespace of its own."""

    cache: ClassVar[PyroCacheClient]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _with_a_cache(cls, shared_cluster: LocalCluster) -> Iterator[None]:
        with shared_cluster.client() as cls.cache:
            yield

    @classmethod
    def type2test(cls) -> PyroCacheClient:
        return cls.cache.namespace(f"mapping {next(numbers)}")


@pytest.fixture
def space(cache: PyroCacheClient) -> PyroCacheClient:
    return cache.namespace(f"mapping {next(numbers)}")


@pytest.mark.parametrize(
    "check",
    [
        zict_tests.check_mapping,
        zict_tests.check_empty_mapping,
        zict_tests.stress_test_mapping_updates,
        zict_tests.check_different_keys_threadsafe,
        zict_tests.check_same_key_threadsafe,
        zict_tests.check_closing,
    ],
)
def test_zicts_checks(space: PyroCacheClient, check: Any) -> None:
    check(space)


def test_it_equals_what_has_the_same_entries(cache: PyroCacheClient, space: PyroCacheClient) -> None:
    space.update(a=1, b=[2])
    assert space == {"a": 1, "b": [2]} == space
    assert space != {"a": 1}
    assert space != cache
    other = cache.namespace("other")
    other.clear()
    assert space != other
    other.update(space)
    assert space == other
    assert space != [("a", 1), ("b", [2])]
    other.clear()


def test_it_has_no_hash(cache: PyroCacheClient) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(cache)


def test_its_views_are_those_of_a_mapping(space: PyroCacheClient) -> None:
    assert isinstance(space, MutableMapping)
    keys, items, values = space.keys(), space.items(), space.values()
    assert (len(keys), len(items), len(values)) == (0, 0, 0)
    space.update(a=1, b=2)
    assert (len(keys), len(items), len(values)) == (2, 2, 2)
    assert keys & {"a", "c"} == {"a"}
    assert keys | {"c"} == {"a", "b", "c"}
    assert items - {("a", 1)} == {("b", 2)}
    assert keys == {"a", "b"}
    assert sorted(values) == [1, 2]
    assert "PyroCacheClient" in repr(keys)
    assert {**space} == {"a": 1, "b": 2}
    match space:
        case {"a": 1, **rest}:
            assert rest == {"b": 2}
        case _:
            pytest.fail("it does not match")


def test_keys_that_are_not_hashable_are_keys_all_the_same(space: PyroCacheClient) -> None:
    space[[1, 2]] = "a list"
    space[{"a": 1}] = "a dict"
    assert sorted(map(str, space)) == ["[1, 2]", "{'a': 1}"]
    assert sorted(value for _, value in space.items()) == ["a dict", "a list"]
    assert space.pop([1, 2]) == "a list"
    assert space.popitem() == ({"a": 1}, "a dict")
    space[[1]] = 1
    assert space.delete_many(list(space)) == 1


def test_a_key_that_no_dict_can_have_makes_two_mappings_unequal(cache: PyroCacheClient) -> None:
    cache[["a", "list"]] = 1
    assert cache != {}
    assert cache != {("a", "list"): 1}
