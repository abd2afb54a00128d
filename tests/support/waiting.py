"""Wait for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS = 15.0
"""How long a test waits for what should come at once."""

_T = TypeVar("_T")


def eventually(condition: Callable[[], _T], seconds: float = 5.0, pause: float = 0.01) -> _T:
    """Return the result of ``condition`` once that is true; fail after ``seconds``."""
    give_up_at = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < give_up_at, f"still not so after {seconds:g} s"
        time.sleep(pause)
    return result


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> bool:
    """Return whether ``condition`` came true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
