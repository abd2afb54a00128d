"""Places come back, and waiting for one ends."""

from __future__ import annotations

import threading

from pyrocache.runtime.places import Place, Places
from pyrocache.testing import FakeClock


def test_a_place_comes_back_when_nobody_refers_to_it() -> None:
    places = Places(2)
    one, two = places.take(0.0), places.take(0.0)
    assert one is not None
    assert two is not None
    assert places.take(0.0) is None
    del one
    assert places.free == 1
    assert places.take(0.0) is not None


def test_waiting_ends_in_time() -> None:
    clock = FakeClock()
    places = Places(1, clock=clock, sleep=clock.tick)
    taken = places.take(0.0)
    assert places.take(1.5) is None
    assert clock.now == 1.5
    del taken


def test_many_who_wait_for_few_all_get_one_in_turn() -> None:
    places = Places(2)
    most: list[int] = []
    held: list[Place] = []

    def work() -> None:
        for _ in range(50):
            place = places.take(10.0)
            assert place is not None
            held.append(place)
            most.append(len(held))
            held.remove(place)
            del place

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(most) == 400
    assert max(most) <= 2
    assert places.free == 2


def test_places_outlive_no_owner() -> None:
    places = Places(3)
    place = places.take(0.0)
    del places
    del place  # has nowhere to go, and that is fine
