"""How `pyrocache doctor` bounds what the system may block in."""

from __future__ import annotations

import threading

import pytest

from pyrocache.cli.doctor.gather import _bounded


def test_a_task_that_blocks_has_no_answer() -> None:
    released = threading.Event()
    try:
        assert _bounded([lambda: 1, lambda: int(released.wait(60)), lambda: 3], 0.05) == [1, None, 3]
    finally:
        released.set()


def test_an_error_of_a_task_is_raised() -> None:
    def fail() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _bounded([fail], 5)
