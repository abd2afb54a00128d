"""The two shapes of an entry, and what it is accounted for."""

from __future__ import annotations

import itertools

import pytest

from pyrocache.node.store.entry import (
    DETAILS_OVERHEAD,
    ENTRY_OVERHEAD,
    EXPIRY_OVERHEAD,
    TAG_OVERHEAD,
    Details,
    Entry,
    Stored,
    Tag,
    Value,
    cost_of,
    entry_cost,
    plain_costs,
    value_of,
)


@pytest.mark.parametrize("value", [b"", b"value", memoryview(b"value")])
def test_the_value_is_what_was_put_in(value: Value) -> None:
    for stored in (value, Entry(value, 5.0, set()), Entry(value, details=Details())):
        assert value_of(stored) is value


def test_what_is_known_of_a_value_has_its_price() -> None:
    size = len(b"key" + b"value") + ENTRY_OVERHEAD
    tags = (Tag(b"a"), Tag(b"b"))
    stored: dict[int, Stored] = {
        size: b"value",
        size + EXPIRY_OVERHEAD: Entry(b"value", 5.0, set()),
        size + DETAILS_OVERHEAD: Entry(b"value", details=Details(version=1)),
        size + DETAILS_OVERHEAD + EXPIRY_OVERHEAD: Entry(b"value", 5.0, set(), Details(stale_until=9.0)),
        size + DETAILS_OVERHEAD + 2 * TAG_OVERHEAD: Entry(b"value", details=Details(tags=tags)),
    }
    assert {cost_of(b"key", each) for each in stored.values()} == stored.keys()
    assert all(cost_of(b"key", each) == cost for cost, each in stored.items())


@pytest.mark.parametrize("key", [b"key", bytes(1000)])
@pytest.mark.parametrize(("expires", "tags"), list(itertools.product([False, True], [None, 0, 1, 3])))
def test_the_price_is_known_before_it_is_stored(key: bytes, expires: bool, tags: int | None) -> None:
    names = tuple(Tag(b"%d" % number) for number in range(tags or 0))
    stored: Stored = memoryview(b"value")
    if tags is not None or expires:
        details = Details(tags=names) if tags is not None else None
        stored = Entry(b"value", 5.0, set() if expires else None, details)
    expected = entry_cost(key, b"value", expires=expires, tags=None if tags is None else names)
    assert cost_of(key, stored) == expected
    if tags is None:
        assert plain_costs([key], [b"value"], expire=expires) == expected


def test_a_new_tag_is_valid_and_has_no_entries() -> None:
    tag = Tag(b"name")
    assert (tag.name, tag.keys, tag.invalid) == (b"name", set(), False)


def test_an_entry_leaves_when_it_is_not_even_stale_any_more() -> None:
    assert Entry(b"v", 5.0).leaves_at == 5.0
    assert Entry(b"v", 5.0, details=Details(stale_until=9.0)).leaves_at == 9.0
