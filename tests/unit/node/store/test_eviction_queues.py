"""What the eviction policies remember, and forget."""

from __future__ import annotations

import tracemalloc

import pytest

from pyrocache.node.store.eviction import POLICIES


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("held", [1, 100, 2000])
def test_keys_that_come_and_go_leave_nothing_behind_though_nothing_is_ever_evicted(
    policy: str, held: int
) -> None:
    order = POLICIES[policy]()
    for number in range(4 * held):
        order.added(b"%d" % number)
        if number >= held:
            order.removed(b"%d" % (number - held))
    tracemalloc.start()
    try:
        for number in range(4 * held, 4 * held + 8_000):
            order.added(b"%d" % number)
            order.removed(b"%d" % (number - held))
        assert tracemalloc.get_traced_memory()[0] < 100_000 + 600 * held
    finally:
        tracemalloc.stop()
    victims = [order.victim() for _ in range(held)]
    assert sorted(victims) == sorted(b"%d" % number for number in range(3 * held + 8_000, 4 * held + 8_000))
    with pytest.raises(LookupError):
        order.victim()
