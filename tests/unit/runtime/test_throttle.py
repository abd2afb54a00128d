"""One event per subject and interval is let through, with the number of those held back."""

from __future__ import annotations

import math

from pyrocache.runtime.throttle import Throttle
from pyrocache.testing import FakeClock


def test_the_first_event_is_let_through_and_later_ones_when_the_interval_is_over() -> None:
    clock = FakeClock()
    throttle = Throttle(60, clock)
    assert [throttle.admit("a") for _ in range(3)] == [1, 0, 0]
    assert throttle.admit("b") == 1, "another subject"
    clock.tick(59)
    assert throttle.admit("a") == 0
    clock.tick(1)
    assert throttle.admit("a") == 4, "itself and three that were held back"
    assert throttle.admit("a") == 0


def test_once_means_once() -> None:
    clock = FakeClock()
    throttle = Throttle(math.inf, clock)
    assert throttle.admit("a") == 1
    clock.tick(1e9)
    assert throttle.admit("a") == 0


def test_subjects_are_bounded_and_the_oldest_is_forgotten() -> None:
    throttle = Throttle(math.inf, FakeClock())
    assert all(throttle.admit(number) for number in range(1025))
    assert throttle.admit(0) == 1
    assert throttle.admit(1024) == 0


def test_a_child_has_a_lock_of_its_own() -> None:
    throttle = Throttle(60)
    with throttle._lock:
        throttle._reset_after_fork()
        assert throttle.admit("a") == 1
