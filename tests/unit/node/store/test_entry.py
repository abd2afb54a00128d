"""What is held under a key, and what it is accounted for."""

from __future__ import annotations

import itertools

import pytest

from pyrocache.node.store.entry import (
    DETAILS_OVERHEAD,
    ENTRY_OVERHEAD,
    EXPIRY_OVERHEAD,
    TAG_OVERHEAD,
    Detailed,
    Expiring,
    Held,
    Tag,
    Value,
    cost_of,
    entry_cost,
    value_of,
)


@pytest.mark.parametrize("value", [b"", b"value", memoryview(b"value")])
def test_the_value_is_what_was_put_in(value: Value) -> None:
    for held in (value, Expiring(value, 5.0, set()), Detailed(value)):
        assert value_of(held) is value


def test_what_is_known_of_a_value_has_its_price() -> None:
    size = len(b"key" + b"value") + ENTRY_OVERHEAD
    held: dict[int, Held] = {
        size: b"value",
        size + EXPIRY_OVERHEAD: Expiring(b"value", 5.0, set()),
        size + DETAILS_OVERHEAD: Detailed(b"value", version=1),
        size + DETAILS_OVERHEAD + EXPIRY_OVERHEAD: Detailed(b"value", 5.0, set(), stale_until=9.0),
        size + DETAILS_OVERHEAD + 2 * TAG_OVERHEAD: Detailed(b"value", tags=(Tag(b"a"), Tag(b"b"))),
    }
    assert {cost_of(b"key", each) for each in held.values()} == held.keys()
    assert all(cost_of(b"key", each) == cost for cost, each in held.items())


@pytest.mark.parametrize(("expires", "tags"), list(itertools.product([False, True], [None, 0, 1, 3])))
def test_the_price_is_known_before_it_is_held(expires: bool, tags: int | None) -> None:
    names = tuple(Tag(b"%d" % number) for number in range(tags or 0))
    held: Held = memoryview(b"value")
    if tags is not None:
        held = Detailed(b"value", 5.0, set() if expires else None, tags=names)
    elif expires:
        held = Expiring(b"value", 5.0, set())
    expected = entry_cost(b"key", b"value", expires=expires, details=tags is not None, tags=len(names))
    assert cost_of(b"key", held) == expected


def test_a_new_tag_is_valid_and_has_no_entries() -> None:
    tag = Tag(b"name")
    assert (tag.name, tag.keys, tag.invalid) == (b"name", set(), False)
