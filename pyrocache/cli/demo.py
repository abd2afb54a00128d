"""What ``pyrocache demo`` does: start a cluster, and show from a client process of its own that it does what it should.

Run as a module it is that client process, with its settings as JSON in its first argument. It ignores Ctrl-C, which a
terminal sends to both: `run` takes it and ends the client by SIGTERM, and so does the client's watch on its parent.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from pyrocache.cli.workers import Crew, interrupts_put_off
from pyrocache.client.client import PyroCacheClient
from pyrocache.errors import PyroCacheError
from pyrocache.local import LocalCluster
from pyrocache.runtime.child_process import environment

_NODES = 3
_PROCESSES = 4
_REPORT_EVERY = 100
_BAR_WIDTH = 40
_TICK_SECONDS = 0.05
_LEAVE_SECONDS = 5.0
_INTERRUPTED = 130


def run(*, ttl: float = 2.0, keys: int = 10_000) -> int:
    """Play the demo and return the exit status: 1 when a check failed, 130 after Ctrl-C.

    Args:
        ttl: of the entry that expires, in seconds.
        keys: how many unique keys the four processes write.
    """
    try:
        with LocalCluster(_NODES) as cluster:
            return _run_client({"nameserver": cluster.nameserver, "ttl": ttl, "keys": keys})
    except KeyboardInterrupt:
        return _INTERRUPTED


def _run_client(settings: dict[str, Any]) -> int:
    command = [sys.executable, "-P", "-m", "pyrocache.cli.demo", json.dumps(settings)]
    client = None
    try:
        with interrupts_put_off():
            client = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment())
        status = client.wait()
    finally:
        if client is not None:
            _end(client)
    if status < 0:
        raise PyroCacheError(f"The client process was killed by signal {-status}.")
    return status


def _end(client: subprocess.Popen[bytes]) -> None:
    client.terminate()  # does nothing to one that has ended
    try:
        client.wait(_LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        client.kill()
        client.wait()
    if client.stdin is not None:
        client.stdin.close()


# The client process ----------------------------------------------------------------------------------------


class _Stage:
    """Where the steps are shown and counted."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.passed = 0
        self.failed = 0
        fancy = _can_write("✓✗→█", console.encoding)
        self._good, self._bad, self._arrow = ("✓", "✗", " → ") if fancy else ("ok", "FAILED", ": ")
        self._block = "█" if fancy else "#"

    def step(self, node: str, call: str, answer: str, *, good: bool, expected: str) -> None:
        """Show one step and what came back."""
        line = Text()
        line.append(f"{self._good if good else self._bad} ", style="bold green" if good else "bold red")
        line.append(f"{node:<12} ", style="cyan")
        line.append(call)
        line.append(self._arrow, style="dim")
        line.append(answer, style="bold")
        if not good:
            line.append(f" instead of {expected}", style="red")
        self.passed += good
        self.failed += not good
        self.say(line)

    def say(self, text: str | Text = "") -> None:
        """Show a line."""
        self.console.print(text, soft_wrap=True)

    def bar(self, node: str, entries: int, share: float, largest: int) -> None:
        """Show how much one node holds beside the one that holds most."""
        line = Text(f"  {node:<12}  ")
        line.append(f"{self._block * round(_BAR_WIDTH * entries / largest):<{_BAR_WIDTH}}", style="cyan")
        line.append(f"{entries:>9,} {share:>7.1%}")
        self.say(line)

    @contextlib.contextmanager
    def progress(self, what: str, total: float) -> Iterator[Callable[[float], None]]:
        """A bar for as long as the block lasts, on a terminal; what comes from it makes the bar longer."""
        columns = (TextColumn("{task.description}"), BarColumn(_BAR_WIDTH))
        terminal = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not terminal) as progress:
            task = progress.add_task(f"  {what}", total=total)
            yield lambda amount: progress.advance(task, amount)

    def end(self) -> int:
        """Say how it went, and return the exit status."""
        checks = self.passed + self.failed
        if self.failed:
            self.say(Text(f"{self.failed} of {checks} checks failed.", style="bold red"))
            return 1
        self.say(Text(f"All {checks} checks passed.", style="bold green"))
        return 0


def _play(cache: PyroCacheClient, ttl: float, keys: int) -> int:
    stage = _Stage(Console(highlight=False, markup=False, emoji=False))
    names = ", ".join(member.name for member in cache.nodes())
    stage.say(f"Nodes: {names}. Client: process {os.getpid()}.")
    stage.say()
    _play_single_keys(stage, cache, ttl)
    stage.say()
    _play_many_keys(stage, cache, keys)
    stage.say()
    return stage.end()


def _play_single_keys(stage: _Stage, cache: PyroCacheClient, ttl: float) -> None:
    alice, laptop, bob = {"name": "Alice", "age": 30}, {"name": "Laptop", "price": 1200}, {"name": "Bob"}

    def step(call: str, key: str, answer: object, expected: object) -> None:
        node = cache.node_for(key).name
        stage.step(node, call, repr(answer), good=answer == expected, expected=repr(expected))

    step(f"set user:123 {alice}", "user:123", cache.set("user:123", alice), True)
    answer = cache.set("product:abc", laptop, ttl_seconds=ttl)
    expired_at = time.monotonic() + ttl
    step(f"set product:abc {laptop} ttl={ttl:g}s", "product:abc", answer, True)
    step("get user:123", "user:123", cache.get("user:123"), alice)
    step("get product:abc", "product:abc", cache.get("product:abc"), laptop)
    step(f"set user:456 {bob}", "user:456", cache.set("user:456", bob), True)
    step("delete user:123", "user:123", cache.delete("user:123"), True)
    step("get user:123", "user:123", cache.get("user:123"), None)
    _wait(stage, expired_at - time.monotonic())
    step("get product:abc", "product:abc", cache.get("product:abc"), None)


def _wait(stage: _Stage, seconds: float) -> None:
    if not stage.console.is_terminal:
        stage.say(f"  Waiting {max(seconds, 0.0):.1f} s until product:abc expires")
    begin = now = time.monotonic()
    with stage.progress("Waiting until product:abc expires", seconds) as advance:
        while (left := begin + seconds - now) > 0:
            time.sleep(min(_TICK_SECONDS, left))
            before, now = now, time.monotonic()
            advance(now - before)


def _play_many_keys(stage: _Stage, cache: PyroCacheClient, keys: int) -> None:
    before = _entries(cache)
    with Crew(_PROCESSES, _work, cache, keys) as crew:
        for link in crew.links:
            crew.receive(link)
        for verb, shift, what in (
            ("set", 0, f"{_PROCESSES} processes set {keys:,} keys"),
            ("get", 1, f"{_PROCESSES} processes get what another one set"),
        ):
            begin = time.monotonic()
            good = _do(stage, crew, verb, shift, keys)
            seconds = time.monotonic() - begin
            answer = f"{good:,} right in {seconds:.1f} s"
            stage.step("all nodes", what, answer, good=good == keys, expected=f"{keys:,}")
    after = _entries(cache)
    _show_balance(stage, {node: after[node] - before.get(node, 0) for node in after}, keys)


def _do(stage: _Stage, crew: Crew, verb: str, shift: int, keys: int) -> int:
    """Have each process ``set`` or ``get`` one part of the keys; how many of them came out right."""
    for part, link in enumerate(crew.links):
        crew.send(link, (verb, (part + shift) % _PROCESSES))
    done = right = 0
    with stage.progress(f"Keys {verb}", keys) as advance:
        while done < keys:
            for link in crew.ready():
                more, more_right = crew.receive(link)
                done, right = done + more, right + more_right
                advance(more)
    return right


def _show_balance(stage: _Stage, entries: dict[str, int], keys: int) -> None:
    """Show how many entries each node got; for good, they are all there, and each node has its share of them."""
    total, largest = max(sum(entries.values()), 1), max(*entries.values(), 1)
    shares = [count / total for count in entries.values()]
    fair = 1 / len(entries)
    # Shares of the partitions differ by a per cent or so; the rest is chance, four standard deviations of it.
    tolerance = 0.03 + 4 * math.sqrt(fair * (1 - fair) / keys)
    good = sum(entries.values()) == keys and all(abs(share - fair) <= tolerance for share in shares)
    answer = f"{min(shares):.1%} to {max(shares):.1%} each"
    expected = f"{keys:,} entries, {fair - tolerance:.1%} to {fair + tolerance:.1%} each"
    stage.step(
        "all nodes", f"hold {sum(entries.values()):,} entries more", answer, good=good, expected=expected
    )
    stage.say()
    for (node, count), share in zip(entries.items(), shares, strict=True):
        stage.bar(node, count, share, largest)


def _entries(cache: PyroCacheClient) -> dict[str, int]:
    return {node: figures.entries for node, figures in cache.stats().nodes.items()}


def _can_write(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


# Its four processes ----------------------------------------------------------------------------------------


def _work(link: Connection, cache: PyroCacheClient, keys: int) -> None:
    """Use the verb it is told on the part of the keys it is told; say how many are done, and how many right."""
    verbs = {"set": _set, "get": _get}
    with cache:
        cache.nodes()
        link.send(None)
        while True:
            verb, part = link.recv()
            numbers = iter(range(part, keys, _PROCESSES))
            while some := list(itertools.islice(numbers, _REPORT_EVERY)):
                link.send((len(some), sum(verbs[verb](cache, number) for number in some)))


def _set(cache: PyroCacheClient, number: int) -> bool:
    return cache.set(f"item:{number}", _item(number)) is True


def _get(cache: PyroCacheClient, number: int) -> bool:
    return bool(cache.get(f"item:{number}") == _item(number))


def _item(number: int) -> dict[str, Any]:
    return {"number": number, "name": f"Item {number}"}


# Its life --------------------------------------------------------------------------------------------------


def _stop_with_parent() -> None:
    """Have this process end when its standard input does: the parent holds its other end."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="pyrocache-parent-watch", daemon=True).start()


def main(argv: list[str]) -> NoReturn:
    """Be the client process; ``argv[0]`` is a JSON object with ``nameserver``, ``ttl`` and ``keys``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = _INTERRUPTED
    with contextlib.suppress(KeyboardInterrupt):
        try:
            _stop_with_parent()
            settings = json.loads(argv[0])
            with PyroCacheClient(settings["nameserver"]) as cache:
                status = _play(cache, settings["ttl"], settings["keys"])
        except PyroCacheError as error:
            print(error, file=sys.stderr)
            status = 1
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # it may come once more, and there is nothing left to interrupt
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
