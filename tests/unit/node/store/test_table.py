"""The table that grows a little at a time: a mapping, walked while it changes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.node.store.table import SHARD_KEYS, Table
from pyrocache.protocol.partition import PARTITIONS, partition_of


def put(table: Table[int], key: bytes, stored: int) -> None:
    table.put_many([key], [partition_of(key)], [stored], [key] if table.get(key) is None else [])


def filled(count: int) -> Table[int]:
    table: Table[int] = Table()
    for number in range(count):
        put(table, b"%d" % number, number)
    return table


def walked(table: Table[int], limit: int, between: Callable[[int], None] = lambda pages: None) -> list[bytes]:
    """All keys, by pages."""
    found: list[bytes] = []
    position, pages = 0, 0
    while True:
        page, position = table.page(position, limit)
        assert len(page) <= limit
        found += page
        pages += 1
        if not position:
            return found
        between(pages)


def parts(table: Table[int]) -> list[dict[bytes, int]]:
    """Every shard once."""
    return list({id(shard): shard for shard in table.shards}.values())


def check(table: Table[int]) -> None:
    """What must be true of the shards and the directory."""
    shards = list(parts(table))
    assert len(set(map(id, shards))) == len(shards), "each comes once"
    assert {id(shard) for shard in table.shards} == set(map(id, shards))
    assert sum(map(len, shards)) == table.count
    if table.shift:
        assert max(map(len, shards)) <= SHARD_KEYS
    assert len(table.shards) == 1 << 14 - table.shift
    for place, shard in enumerate(table.shards):
        if table.shards.index(shard) == place:
            assert all(table.shards[partition_of(key) >> table.shift] is shard for key in shard)


class TestMapping:
    def test_what_was_put_is_there_until_it_is_removed(self) -> None:
        table: Table[int] = Table()
        put(table, b"key", 1)
        put(table, b"key", 2)
        assert (table.get(b"key"), table.get(b"other"), table.count) == (2, None, 1)
        assert (table.pop(b"key"), table.pop(b"key"), table.count) == (2, None, 0)
        assert table.get(b"key") is None

    @pytest.mark.parametrize("count", [0, 1, SHARD_KEYS, SHARD_KEYS + 1, 40_000])
    def test_it_holds_any_number(self, count: int) -> None:
        table = filled(count)
        check(table)
        assert all(table.get(b"%d" % number) == number for number in range(count))
        assert table.get(b"%d" % count) is None
        for number in range(count):
            assert table.pop(b"%d" % number) == number
        check(table)
        assert table.count == 0

    @given(st.lists(st.tuples(st.sampled_from(["put", "remove"]), st.integers(0, 50)), max_size=100))
    def test_it_is_what_a_dict_is(self, steps: list[tuple[str, int]]) -> None:
        table = filled(3 * SHARD_KEYS)
        model = {b"%d" % number: number for number in range(3 * SHARD_KEYS)}
        for step, number in steps:
            key = b"%d" % (number * 100)
            if step == "put":
                put(table, key, -number - 1)
                model[key] = -number - 1
            else:
                assert table.pop(key) == model.pop(key, None)
        check(table)
        assert {key: held for shard in parts(table) for key, held in shard.items()} == model

    def test_a_split_moves_no_more_than_one_shard(self) -> None:
        table = filled(20_000)
        largest = max(parts(table), key=len)
        others = [shard for shard in parts(table) if shard is not largest]
        table.split(next(iter(largest)))
        check(table)
        after = list(map(id, parts(table)))
        assert all(id(shard) in after for shard in others)
        assert len(after) > len(others) + 1

    def test_a_shard_may_be_split_again_and_again_without_the_others(self) -> None:
        table = filled(100)
        for key in (b"7", b"7", b"7", b"7", *(b"%d" % number for number in range(0, 100, 9))):
            table.split(key)
            check(table)
            assert sorted(walked(table, 3)) == sorted(b"%d" % number for number in range(100))
        assert all(table.get(b"%d" % number) == number for number in range(100))


def in_partition(partition: int, count: int) -> list[bytes]:
    """Keys of one partition."""
    found: list[bytes] = []
    number = 0
    while len(found) < count:
        key = b"%d" % number
        if partition_of(key) == partition:
            found.append(key)
        number += 1
    return found


def test_a_partition_has_its_own_keys_and_all_of_them() -> None:
    table = filled(50_000)
    by_partition: dict[int, set[bytes]] = {}
    for number in range(50_000):
        by_partition.setdefault(partition_of(b"%d" % number), set()).add(b"%d" % number)
    for partition in (0, 1, 77, PARTITIONS - 1):
        keys = table.partition(partition)
        assert len(set(keys)) == len(keys)
        assert set(keys) == by_partition.get(partition, set())


def test_a_dict_is_an_interval_of_partitions() -> None:
    table = filled(50_000)
    intervals = sorted(
        (min(map(partition_of, shard)), max(map(partition_of, shard))) for shard in parts(table) if shard
    )
    assert len(intervals) > 30
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(intervals))


def test_a_walk_has_the_partitions_in_order() -> None:
    found = [partition_of(key) for key in walked(filled(5000), 300)]
    pages = [sorted(found[at : at + 300]) for at in range(0, 5000, 300)]
    assert all(max(one) <= min(other) for one, other in itertools.pairwise(pages[:1] + pages[-1:]))


def test_a_partition_too_large_for_a_dict_is_not_split() -> None:
    table: Table[int] = Table()
    keys = in_partition(5, 12)
    for key in keys:
        put(table, key, 1)
    for _ in range(10):
        table.split(keys[0])
    check(table)
    assert table.shift == 0
    assert sorted(walked(table, 5)) == sorted(table.partition(5)) == sorted(keys)


def test_a_table_is_emptied_one_by_one_whatever_else_goes() -> None:
    table = filled(5000)
    told = 0
    for key in table:
        table.pop(key)
        table.pop(b"%d" % told)
        told += 1
    check(table)
    assert table.count == 0
    assert 2500 <= told <= 5000


def test_what_keys_leave_behind_that_come_and_go_is_given_back() -> None:
    table = filled(20_000)
    for number in range(100_000):
        key = b"%d" % number
        table.pop(key)
        put(table, b"%d" % (number + 20_000), number + 20_000)
        if number % 10_000 == 0:
            check(table)
    check(table)
    assert sorted(walked(table, 100)) == sorted(b"%d" % number for number in range(100_000, 120_000))
    assert sum(map(sys.getsizeof, parts(table))) < 72 * 20_000


class TestWalks:
    @pytest.mark.parametrize("limit", [1, 7, 100, 10_000])
    @pytest.mark.parametrize("count", [0, 1, 2, 500, 5000])
    def test_each_key_comes_once(self, count: int, limit: int) -> None:
        if count / limit > 1000:
            count = 1000 * limit
        found = walked(filled(count), limit)
        assert sorted(found) == sorted(b"%d" % number for number in range(count))

    @pytest.mark.parametrize("limit", [20, 70])
    def test_keys_that_stay_come_once_while_shards_are_split_and_others_go(self, limit: int) -> None:
        table = filled(SHARD_KEYS)
        staying = [b"%d" % number for number in range(0, SHARD_KEYS, 2)]

        def disturb(pages: int) -> None:
            for number in range(1000 if pages <= 20 else 0):
                put(table, b"new %d %d" % (pages, number), 0)
            for number in range(1, 2 * pages, 2):
                table.pop(b"%d" % number)

        found = walked(table, limit, disturb)
        check(table)
        assert len(list(parts(table))) > 8, "shards were split"
        assert len(set(found)) == len(found)
        assert set(staying) <= set(found)

    def test_a_walk_that_began_in_a_large_table_goes_on_in_a_small_one(self) -> None:
        table = filled(20_000)
        before, position = table.page(0, 700)
        small: Table[int] = Table()
        for number in range(100):
            put(small, b"%d" % number, number)
        found = before + walked_from(small, position)
        assert len(set(found)) == len(found)
        assert {b"%d" % number for number in range(100)} <= set(found)

    def test_a_page_has_room_for_so_many_bytes_but_always_for_one_key(self) -> None:
        table: Table[int] = Table()
        for number in range(50):
            put(table, b"%02d" % number * 50, number)
        page, position = table.page(0, 1000, 450)
        assert len(page) == 4
        assert position
        page, after = table.page(position, 1000, 10)
        assert len(page) == 1
        assert after > position

    def test_any_position_is_one(self) -> None:
        table = filled(5000)
        found = set()
        for position in (0, 1, 2**63 - 1, 2**63, 2**64 - 1):
            page, _ = table.page(position, 10)
            found.update(page)
            assert all(partition_of(key) >= position >> 50 for key in page)
        assert found


def walked_from(table: Table[int], position: int) -> list[bytes]:
    """The rest of a walk."""
    found: list[bytes] = []
    while position:
        page, position = table.page(position, 100)
        found += page
    return found
