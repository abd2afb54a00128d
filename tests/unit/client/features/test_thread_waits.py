"""Reading the frames of other threads. What they wait for is tested in `test_load_deadlock.py`."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyrocache.client.features import thread_waits


@contextmanager
def collecting_always() -> Iterator[list[str]]:
    """Collect garbage at each occasion. Yield the lines that were interrupted by it."""
    interrupted: list[str] = []

    def note(phase: str, _: Any) -> None:
        frame = sys._getframe(1)
        lines, first = inspect.getsourcelines(frame.f_code)
        interrupted.append(lines[frame.f_lineno - first].strip())

    before = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1, 1, 1)
    try:
        yield interrupted
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(note)


def test_no_garbage_is_collected_while_the_frames_of_threads_are_read() -> None:
    """It could run code that lets another thread wait for the lock which is held then, and so stop the program."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    try:
        with collecting_always() as interrupted:
            assert not thread_waits.waits_for_me(threads[0].ident or 0)
        assert interrupted, "nothing was collected, so this test shows nothing"
        assert not [line for line in interrupted if "sys._current_frames" in line]
        assert gc.isenabled()
    finally:
        end.set()
        for thread in threads:
            thread.join()
    gc.disable()
    try:
        thread_waits.waits_for_me(threading.get_ident())
        assert not gc.isenabled()
    finally:
        gc.enable()
