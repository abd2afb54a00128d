"""Notes about keys that keep no key: what they say, and that they grow in small steps."""

from __future__ import annotations

import pytest

from pyrocache.node.store.use_table import UseTable


def keys(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def test_the_state_of_a_key_is_what_was_put_until_it_is_forgotten() -> None:
    table = UseTable()
    assert table.get(b"key") == 0
    table.put(b"key", 65_535)
    table.put(b"key", 7)
    assert table.get(b"key") == 7
    table.forget(b"other")
    assert table.get(b"key") == 7
    table.forget(b"key")
    assert table.get(b"key") == 0


def test_two_keys_in_one_slot_are_told_apart_and_the_later_one_counts() -> None:
    table = UseTable()
    one, other = 1 << 40, 2 << 40  # numbers hash to themselves
    table.put(one, 5)  # type: ignore[arg-type]
    assert table.get(other) == 0  # type: ignore[arg-type]
    table.put(other, 6)  # type: ignore[arg-type]
    table.forget(one)  # type: ignore[arg-type]
    assert (table.get(one), table.get(other)) == (0, 6)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_nothing_is_lost_while_the_table_grows(steps: int) -> None:
    table = UseTable()
    for key in keys(2000):
        table.put(key, 9)
    noted = [key for key in keys(2000) if table.get(key)]
    assert len(noted) > 1800, "few share a slot"
    for _ in range(steps):
        table.step(500_000)
    assert [key for key in keys(2000) if table.get(key)] == noted


def test_it_becomes_as_large_as_it_must_be_and_small_again() -> None:
    table = UseTable()
    for _ in range(200):
        table.step(1_000_000)
    assert len({id(segment) for segment in table.segments}) == len(table.segments) == 16
    for _ in range(200):
        table.step(10)
    assert len(table.segments) == 1
    assert table.mask == 0


def test_a_key_that_was_evicted_does_not_overwrite_the_uses_of_another_one() -> None:
    table = UseTable()
    one, other = 1 << 40, 2 << 40  # numbers hash to themselves
    table.forget(one, 4)  # type: ignore[arg-type]
    assert table.get(one) == 4  # type: ignore[arg-type]
    table.put(other, 5)  # type: ignore[arg-type]
    table.forget(one, 4)  # type: ignore[arg-type]
    assert (table.get(one), table.get(other)) == (0, 5)  # type: ignore[arg-type]
