"""The spin-wait: when it is tried, and when it is not."""

from __future__ import annotations

from typing import Any

from pyrocache.runtime.spin import SpinWait
from pyrocache.testing import FakeClock

FOUND = ["an event"]


class World:
    """A clock that goes on by ``turn`` seconds whenever one yields, and something that comes after a while."""

    def __init__(self, turn: float = 0.00001) -> None:
        self.clock = FakeClock(10.0)
        self.turn = turn
        self.looks = 0
        self.comes_after = 0
        self.spin_wait = SpinWait(self.clock, lambda: self.clock.tick(self.turn))

    def look(self, seconds: int) -> list[Any]:
        assert seconds == 0
        self.looks += 1
        return FOUND if self.looks > self.comes_after else []

    def wait(self, *, comes_after: int) -> bool:
        """Whether spinning was tried for what comes after so many looks."""
        self.looks, self.comes_after = 0, comes_after
        found = self.spin_wait.wait(self.look)
        assert bool(found) == (self.looks > comes_after)
        return self.looks > 0


def waits_until_tried(world: World, *, comes_after: int) -> int:
    count = 1
    while not world.wait(comes_after=comes_after):
        count += 1
    return count


def test_what_comes_soon_is_waited_for_each_time() -> None:
    world = World()
    assert all(world.wait(comes_after=5) for _ in range(100))


def test_what_does_not_come_is_soon_not_waited_for_any_more() -> None:
    world = World()
    tried = sum(world.wait(comes_after=10**6) for _ in range(10_000))
    assert 5 < tried < 20
    assert world.spin_wait.wait(world.look) == []


def test_looking_ends_by_itself() -> None:
    world = World()
    world.wait(comes_after=10**6)
    assert 10 < world.looks < 1000


def test_others_that_keep_the_processor_make_it_not_worth_while() -> None:
    """Even if what was waited for is there then."""
    world = World(turn=0.003)
    tried = sum(world.wait(comes_after=1) for _ in range(10_000))
    assert tried < 20


def test_it_is_tried_again_when_things_have_changed() -> None:
    world = World()
    for _ in range(10_000):
        world.wait(comes_after=10**6)
    for _ in range(10_000):
        world.wait(comes_after=5)
    assert all(world.wait(comes_after=5) for _ in range(100))


def test_one_failure_among_many_good_ones_costs_little() -> None:
    world = World()
    tried = sum(world.wait(comes_after=10**6 if number % 20 == 0 else 5) for number in range(2000))
    assert tried > 1200


def test_after_each_failure_more_waits_go_by() -> None:
    world = World()
    gaps = [waits_until_tried(world, comes_after=10**6) for _ in range(5)]
    assert gaps == sorted(set(gaps))


def test_one_contended_wait_costs_little() -> None:
    world = World(turn=0.0007)
    assert world.wait(comes_after=1)
    world.turn = 0.00001
    blocked = sum(not world.wait(comes_after=5) for _ in range(10_000))
    assert blocked < 600


def test_yielding_to_the_clients_of_a_busy_node_is_not_contended() -> None:
    world = World(turn=0.0001)
    assert all(world.wait(comes_after=1) for _ in range(100))
