"""`PyroCacheClient.watch`: a live view of real nodes, in a kernel with and without widgets."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyrocache import LocalCluster, PyroCacheClient
from pyrocache.client.features.watch import LEAST_SECONDS, LiveView
from pyrocache.errors import ConfigurationError
from tests.support.processes import environment
from tests.support.waiting import eventually


class Shown:
    """Pictures in the place of a notebook."""

    def __init__(self) -> None:
        self.pictures: list[str] = []

    def __call__(self, picture: str) -> Callable[[str], None]:
        self.pictures.append(picture)
        return self.pictures.append


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def view(cache: PyroCacheClient, shown: Shown) -> Iterator[LiveView]:
    view = LiveView(cache, LEAST_SECONDS, shown)
    yield view
    view.stop()


def test_it_shows_what_happens(cache: PyroCacheClient, view: LiveView, shown: Shown) -> None:
    assert "cache.node.3" in shown.pictures[0]
    assert view.running
    cache["key"] = 1

    def seen() -> bool:
        cache.get("key")
        return bool(re.search(r">[1-9][\d,]*</span> <span[^>]*>operations", shown.pictures[-1]))

    eventually(seen)
    assert "100.0%" in shown.pictures[-1]


def test_it_stops_when_it_is_told_to(view: LiveView, shown: Shown) -> None:
    view.stop()
    view.stop()
    assert not view.running
    eventually(lambda: "Stopped." in shown.pictures[-1])
    assert not view._thread.is_alive()


def test_it_stops_with_its_client(cache: PyroCacheClient, view: LiveView, shown: Shown) -> None:
    cache.close()
    eventually(lambda: "the client was closed" in shown.pictures[-1])
    assert not view.running


def test_it_goes_on_while_a_node_is_away_and_while_none_answers(cluster: LocalCluster, shown: Shown) -> None:
    view = LiveView(cluster.client(timeout=5.0), LEAST_SECONDS, shown)
    try:
        cluster.pause(1)
        eventually(lambda: "away" in shown.pictures[-1])
        cluster.resume(1)
        eventually(lambda: "away" not in shown.pictures[-1])
    finally:
        view.stop()


def test_it_goes_on_if_it_cannot_be_shown(cache: PyroCacheClient) -> None:
    def show(_: str) -> Callable[[str], None]:
        def fail(_: str) -> None:
            raise OSError("the kernel ends")

        return fail

    view = LiveView(cache, LEAST_SECONDS, show)
    eventually(lambda: not view.running)


@pytest.mark.parametrize("interval", [0.1, 0, -1, float("nan"), float("inf"), "1", None])
def test_it_redraws_at_most_twice_a_second(cache: PyroCacheClient, shown: Shown, interval: Any) -> None:
    with pytest.raises(ConfigurationError, match="at most twice a second"):
        LiveView(cache, interval, shown)


def test_outside_of_a_notebook_it_names_the_command(cache: PyroCacheClient) -> None:
    with pytest.raises(ConfigurationError, match="pyrocache top"):
        cache.watch()


@pytest.mark.parametrize("widgets", [True, pytest.param(False, marks=pytest.mark.full)])
def test_in_a_kernel(shared_cluster: LocalCluster, widgets: bool) -> None:
    jupyter_client = pytest.importorskip("jupyter_client")
    pytest.importorskip("ipykernel")
    if widgets:
        pytest.importorskip("ipywidgets")
    manager, kernel = jupyter_client.manager.start_new_kernel(env=environment())
    messages: list[Any] = []
    try:
        without = "" if widgets else "import sys; sys.modules['ipywidgets'] = None\n"
        code = (
            f"{without}from pyrocache import PyroCacheClient\n"
            f"cache = PyroCacheClient({shared_cluster.nameserver!r})\n"
            "first = cache.watch()\nview = cache.watch()\nassert not first.running and view.running"
        )
        reply = kernel.execute_interactive(code, output_hook=messages.append, timeout=60)
        assert reply["content"]["status"] == "ok", messages
        kind = "application/vnd.jupyter.widget-view+json" if widgets else "text/html"
        assert sum(kind in message["content"].get("data", {}) for message in messages) >= 2
        if not widgets:  # the pictures come to the output while nothing runs
            give_up_at = time.monotonic() + 30
            while not any(one["msg_type"] == "update_display_data" for one in messages[-1:]):
                assert time.monotonic() < give_up_at
                messages.append(kernel.get_iopub_msg(timeout=30))
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
