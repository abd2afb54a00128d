"""A `LocalCluster` in a notebook, in a real Jupyter kernel."""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.processes import ROOT, is_gone, state
from tests.support.waiting import eventually

jupyter_client = pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

CELL = """
from pyrocache import LocalCluster
cluster = LocalCluster(nodes=1)
cache = cluster.client()
cache.set("key", 1)
cache.get("key")
"""
PIDS = "[cluster._nameserver_process.pid, *(node.pid for node in cluster.nodes)]"


class Kernel:
    """A kernel, and the results of the cells that it has run."""

    def __init__(self) -> None:
        self.manager = jupyter_client.KernelManager()
        self.manager.start_kernel(env={**os.environ, "PYTHONPATH": str(ROOT)})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60.0)

    def run(self, cell: str) -> Any:
        """Run a cell. Return the value of its last line; raise what it raised."""
        shown: list[str] = []

        def note(message: dict[str, Any]) -> None:
            if message["msg_type"] == "execute_result":
                shown.append(message["content"]["data"]["text/plain"])

        reply = self.client.execute_interactive(cell, timeout=60.0, output_hook=note)["content"]
        if reply["status"] != "ok":
            raise RuntimeError(reply["ename"])
        return shown[-1] if shown else None

    def pids(self) -> list[int]:
        """Return the process ids of the cluster that the kernel has now."""
        return list(ast.literal_eval(self.run(PIDS)))

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


def test_a_cell_that_is_run_again_leaves_no_processes(kernel: Kernel) -> None:
    kernel.run(CELL)
    first = kernel.pids()
    assert all(map(state, first))

    kernel.run(CELL)
    second = kernel.pids()

    assert not set(first) & set(second)
    eventually(lambda: all(map(is_gone, first)), 10.0)
    assert all(map(state, second))
    kernel.close()
    eventually(lambda: all(map(is_gone, second)), 10.0)


def test_an_interrupted_cell_leaves_the_cluster_alone(kernel: Kernel) -> None:
    kernel.run(CELL)
    pids = kernel.pids()
    timer = threading.Timer(0.5, kernel.manager.interrupt_kernel)
    timer.start()
    with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
        kernel.run("while True: cache.set('key', 2)")
    timer.join()
    assert kernel.run("cache.get('key')") == "2"
    assert all(map(state, pids))
