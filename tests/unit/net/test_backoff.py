"""Pauses that grow."""

from __future__ import annotations

import itertools

import pytest

from pyrocache.net.backoff import Backoff
from pyrocache.net.deadline import Deadline
from pyrocache.testing import FakeClock


def test_pauses_double_up_to_the_longest_and_jitter_takes_up_to_a_half() -> None:
    slept: list[float] = []
    jitter = itertools.cycle([1.0, 0.0]).__next__
    backoff = Backoff(0.1, 0.5, sleep=slept.append, jitter=jitter)
    assert backoff.longest_next == 0.1
    for _ in range(5):
        backoff.pause()
    assert slept == pytest.approx([0.1, 0.1, 0.4, 0.25, 0.5])
    assert backoff.longest_next == 0.5


def test_a_pause_ends_with_the_time_there_is() -> None:
    slept: list[float] = []
    backoff = Backoff(1.0, 8.0, sleep=slept.append)
    backoff.pause(0.2)
    backoff.pause(-1.0)
    assert slept == [0.2, 0.0]


def test_whoever_sleeps_otherwise_takes_the_seconds() -> None:
    backoff = Backoff(0.1, 0.3, jitter=lambda: 1.0)
    assert [backoff.next_pause() for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_a_deadline_counts_down_to_zero() -> None:
    clock = FakeClock(10.0)
    deadline = Deadline(2.0, clock)
    clock.tick(1.5)
    assert deadline.check() == deadline.remaining() == 0.5
    assert deadline.seen_at == 11.5
    clock.tick(1.5)
    assert deadline.remaining() == 0.0
    with pytest.raises(TimeoutError):
        deadline.check()
