"""How many Python functions a warm call of the client runs through, as drawn in docs/architecture.md."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from pyrocache import PyroCacheClient
from pyrocache.local import LocalCluster


def functions_called(call: Callable[..., Any], *arguments: Any) -> list[str]:
    """Return the Python functions that a call runs through, in order, without the called one itself."""
    called: list[str] = []

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            called.append(f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        call(*arguments)
    finally:
        sys.setprofile(before)
    return called[1:]


@pytest.mark.parametrize(
    ("call", "most"),
    [(lambda cache: cache.get("key"), 14), (lambda cache: cache.set("key", b"value"), 15)],
    ids=["get", "set"],
)
def test_a_warm_call_runs_through_few_python_functions(
    shared_cluster: LocalCluster, call: Callable[[PyroCacheClient], Any], most: int
) -> None:
    with shared_cluster.client() as cache:
        cache.set("key", b"value")
        for _ in range(20):
            call(cache)
        called = functions_called(call, cache)
        assert called[0].startswith("pyrocache.client.client.")
        assert len(called) <= most, called
        cache.delete("key")
