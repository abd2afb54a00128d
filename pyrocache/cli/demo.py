"""The command ``pyrocache demo``: start a cluster, use it as a client, and check every answer.

The process of the command is the first client; four more client processes write and read many keys. Ctrl-C ends the
demo with status 130: the nodes are in process groups of their own, and the client processes block the signal, so none
of them prints a traceback.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from pyrocache.client.client import PyroCacheClient
from pyrocache.errors import PyroCacheError
from pyrocache.local import LocalCluster

_T = TypeVar("_T")

_NODES = 3
_PROCESSES = 4
_CHUNK_KEYS = 100
_BAR_WIDTH = 40
_TICK_SECONDS = 0.05
_START_SECONDS = 30.0
_INTERRUPTED = 130


def run(*, ttl: float = 2.0, keys: int = 10_000) -> int:
    """Play the demo and return the exit status: 1 when a check failed, 130 after Ctrl-C.

    Args:
        ttl: of the entry that expires, in seconds.
        keys: how many unique keys the four processes write.
    """
    try:
        with LocalCluster(_NODES) as cluster:
            return play(cluster.client(), ttl, keys)
    except KeyboardInterrupt:
        return _INTERRUPTED


def play(cache: PyroCacheClient, ttl: float, keys: int) -> int:
    """Play the demo with ``cache`` and return the exit status."""
    stage = Stage(Console(highlight=False, markup=False, emoji=False))
    names = ", ".join(member.name for member in cache.nodes())
    stage.print(f"Nodes: {names}. Client: process {os.getpid()}.")
    stage.print()
    _play_single_keys(stage, cache, ttl)
    stage.print()
    _play_many_keys(stage, cache, keys)
    stage.print()
    return stage.end()


class Stage:
    """Shows the steps and counts the checks."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.passed = 0
        self.failed = 0
        fancy = not console.options.ascii_only
        self._good, self._bad, self._arrow = ("✓", "✗", " → ") if fancy else ("ok", "FAILED", ": ")
        self._block = "█" if fancy else "#"

    def step(self, node: str, call: str, answer: str, *, good: bool, expected: str) -> None:
        """Show one step and its answer."""
        mark = (f"{self._good} ", "bold green") if good else (f"{self._bad} ", "bold red")
        line = Text.assemble(mark, (f"{node:<12} ", "cyan"), call, (self._arrow, "dim"), (answer, "bold"))
        if not good:
            line.append(f" instead of {expected}", style="red")
        self.passed += good
        self.failed += not good
        self.print(line)

    def print(self, text: str | Text = "") -> None:
        """Show a line."""
        self.console.print(text, soft_wrap=True)  # or rich breaks lines at column 80 of a pipe

    def bar(self, node: str, entries: int, share: float, largest: int) -> None:
        """Show a node's entries as a bar, relative to the ``largest`` number of entries of a node."""
        blocks = f"{self._block * round(_BAR_WIDTH * entries / largest):<{_BAR_WIDTH}}"
        self.print(Text.assemble(f"  {node:<12}  ", (blocks, "cyan"), f"{entries:>9,} {share:>7.1%}"))

    def track(self, what: str, items: Iterable[_T], total: int) -> Iterator[_T]:
        """Yield the items. On a terminal, show a progress bar meanwhile.

        Raises:
            KeyboardInterrupt: also if Ctrl-C was pressed while it is blocked, see `_client_processes`.
        """
        columns = (TextColumn("{task.description}"), BarColumn(_BAR_WIDTH))
        terminal = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not terminal) as progress:
            for item in progress.track(items, total=total, description=f"  {what}"):
                if signal.SIGINT in signal.sigpending():
                    raise KeyboardInterrupt
                yield item

    def end(self) -> int:
        """Show the result and return the exit status."""
        checks = self.passed + self.failed
        if self.failed:
            self.print(Text(f"{self.failed} of {checks} checks failed.", style="bold red"))
            return 1
        self.print(Text(f"All {checks} checks passed.", style="bold green"))
        return 0


# Single keys -----------------------------------------------------------------------------------------------


def _play_single_keys(stage: Stage, cache: PyroCacheClient, ttl: float) -> None:
    alice, laptop, bob = {"name": "Alice", "age": 30}, {"name": "Laptop", "price": 1200}, {"name": "Bob"}

    def step(call: str, key: str, answer: object, expected: object) -> None:
        node = cache.node_for(key).name
        stage.step(node, call, repr(answer), good=answer == expected, expected=repr(expected))

    step(f"set user:123 {alice}", "user:123", cache.set("user:123", alice), True)
    answer = cache.set("product:abc", laptop, ttl_seconds=ttl)
    expired_at = time.monotonic() + ttl  # at the latest: the node began to count earlier
    step(f"set product:abc {laptop} ttl={ttl:g}s", "product:abc", answer, True)
    step("get user:123", "user:123", cache.get("user:123"), alice)
    step("get product:abc", "product:abc", cache.get("product:abc"), laptop)
    step(f"set user:456 {bob}", "user:456", cache.set("user:456", bob), True)
    step("delete user:123", "user:123", cache.delete("user:123"), True)
    step("get user:123", "user:123", cache.get("user:123"), None)
    _wait(stage, max(expired_at - time.monotonic(), 0.0))
    step("get product:abc", "product:abc", cache.get("product:abc"), None)


def _wait(stage: Stage, seconds: float) -> None:
    if not stage.console.is_terminal:
        stage.print(f"  Waiting {seconds:.1f} s until product:abc expires")
    ticks = math.ceil(seconds / _TICK_SECONDS)
    for _ in stage.track("Waiting until product:abc expires", range(ticks), ticks):
        time.sleep(_TICK_SECONDS)


# Many keys, from several processes -------------------------------------------------------------------------


def _play_many_keys(stage: Stage, cache: PyroCacheClient, keys: int) -> None:
    before = _entries(cache)
    with _client_processes(cache) as pool:
        for verb, work in (("set", _set_key), ("get", _get_key)):
            begin = time.monotonic()
            right = pool.map(work, range(keys), chunksize=_CHUNK_KEYS)
            good = sum(stage.track(f"Keys {verb}", right, keys))
            answer = f"{good:,} right in {time.monotonic() - begin:.1f} s"
            what = f"{_PROCESSES} processes {verb} {keys:,} keys"
            stage.step("all nodes", what, answer, good=good == keys, expected=f"{keys:,}")
    after = _entries(cache)
    _show_balance(stage, {node: after[node] - before.get(node, 0) for node in after}, keys)


@contextlib.contextmanager
def _client_processes(cache: PyroCacheClient) -> Iterator[ProcessPoolExecutor]:
    """Start the client processes and yield their pool once all are connected. Ctrl-C is blocked meanwhile.

    Raises:
        PyroCacheError: a client process ended early.
    """
    context = multiprocessing.get_context("spawn")
    arguments = (cache, context.Barrier(_PROCESSES))
    multiprocessing.resource_tracker.ensure_running()  # would unblock the signal if it started later
    # Processes inherit the signal mask: to ignore Ctrl-C in them would be too late, it could hit their imports. In this
    # one, a KeyboardInterrupt could leave a lock of the pool held, and its shutdown would wait for ever.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    pool = ProcessPoolExecutor(_PROCESSES, context, _connect, arguments)
    try:
        # As none is idle before all are connected, the pool starts one process for each of these calls.
        for each in [pool.submit(int) for _ in range(_PROCESSES)]:
            each.result()
        yield pool
    except BrokenProcessPool:
        raise PyroCacheError("A client process ended before its work was done.") from None
    finally:
        pool.shutdown(cancel_futures=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _show_balance(stage: Stage, entries: dict[str, int], keys: int) -> None:
    """Show how many entries each node got. Check that none is missing and that each node has its share."""
    total, largest = max(sum(entries.values()), 1), max(*entries.values(), 1)
    shares = [count / total for count in entries.values()]
    fair = 1 / len(entries)
    # Shares of the partitions differ by about one per cent; the rest is chance: allow four standard deviations.
    tolerance = 0.03 + 4 * math.sqrt(fair * (1 - fair) / keys)
    good = sum(entries.values()) == keys and all(abs(share - fair) <= tolerance for share in shares)
    answer = f"{min(shares):.1%} to {max(shares):.1%} each"
    expected = f"{keys:,} entries, {fair - tolerance:.1%} to {fair + tolerance:.1%} each"
    what = f"hold {sum(entries.values()):,} entries more"
    stage.step("all nodes", what, answer, good=good, expected=expected)
    stage.print()
    for (node, count), share in zip(entries.items(), shares, strict=True):
        stage.bar(node, count, share, largest)


def _entries(cache: PyroCacheClient) -> dict[str, int]:
    return {node: figures.entries for node, figures in cache.stats().nodes.items()}


# In the client processes -----------------------------------------------------------------------------------

# A global variable, because a pool's functions get only their arguments.
_client: PyroCacheClient


def _connect(cache: PyroCacheClient, others: Barrier) -> None:
    """Prepare a client process, and wait until all of them are ready."""
    global _client
    _client = cache
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cache.nodes()
    others.wait(_START_SECONDS)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # sys.exit would end this thread only


def _set_key(number: int) -> bool:
    return _client.set(f"item:{number}", _item(number))


def _get_key(number: int) -> bool:
    return bool(_client.get(f"item:{number}") == _item(number))


def _item(number: int) -> dict[str, Any]:
    return {"number": number, "name": f"Item {number}"}
