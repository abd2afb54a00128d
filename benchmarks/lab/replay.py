"""What ``python -m benchmarks replay`` does: use a cluster beside a real trace, as a look-aside cache.

The parent reads the trace and deals it out in blocks, in order, to whichever client process has room for one more;
so the order is nearly kept, and exactly with one client. Each access is a `get` and, on a miss, a `set`. Values
follow from their keys and lengths, so that every hit is compared with what it must be. A run has a namespace of its
own, and leaves nothing behind in a cluster that is not its own.

Each client process has a pipe to itself rather than an end of a shared queue: whichever side dies, the other one
reads the end of the file, and no lock stays held. The parent's code runs in one thread.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.lab.traces import Access, read_trace, trace_format
from benchmarks.lab.workers import WorkerPool
from pyrocache.client.client import PyroCacheClient
from pyrocache.config import (
    DEFAULT_EVICTION,
    DEFAULT_MAX_VALUE_BYTES,
    DEFAULT_NAMESERVER,
    format_size,
    parse_size,
)
from pyrocache.errors import NameServerUnavailable, NodeUnavailable, NoNodes, PyroCacheError, ValueTooLarge
from pyrocache.local import LocalCluster
from pyrocache.settings import in_force

_BLOCK_ACCESSES = 200
_BLOCKS_AHEAD = 2  # one to work on, one to go on with
_DEFAULT_MEMORY = "256MiB"
_ERRORS_IN_A_ROW = 50  # so many are no accident when one of two nodes is away
_SECONDS_OF_ERRORS = 30.0  # nor is this, when each takes until its deadline
_REPORT_SECONDS = 10.0
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}


def run(
    trace: Path,
    *,
    limit: int | None,
    clients: int,
    nameserver: str | None,
    nodes: int,
    max_memory: str | None,
    eviction: str | None,
    value_size: int,
    as_json: bool,
) -> int:
    """Replay ``trace``, print the figures, and return the exit status: 1 when a value was wrong or a call failed.

    Args:
        limit: how many accesses at most.
        clients: how many client processes.
        nameserver: that of the cluster to use; by default the client's own default, if nodes answer there.
        nodes: how many to start when a cluster is started.
        max_memory: of each node; a cluster is started even if one answers.
        eviction: the policy of the nodes; likewise.
        value_size: bytes of a value where the trace does not tell.
        as_json: one JSON object on standard output, and the rest on standard error.

    Raises:
        TraceError: the trace cannot be read; with its first access, nothing has been started yet.
        PyroCacheError: a client process died, or could do nothing but fail.
    """
    console = Console(stderr=as_json, highlight=False, markup=False)
    accesses = itertools.islice(read_trace(trace), limit)
    written = trace_format(trace)
    blocks = itertools.chain([next(_blocks(accesses), [])], _blocks(accesses))
    with _cluster(nameserver, nodes, max_memory, eviction) as cluster:
        who = _count(clients, "client process", "client processes")
        name = trace.name.encode(console.encoding, "backslashreplace").decode(console.encoding)
        console.print(f"Replaying {name} ({written}) from {who}\non {cluster.what}.", soft_wrap=True)
        with WorkerPool(clients, _work, cluster.cache, value_size) as pool:
            figures, seconds = _replay(pool, blocks, _Meter(console, limit))
        results = _results(figures, seconds, cluster)
    if as_json:
        print(json.dumps({"trace": str(trace), "format": written, "clients": clients, **results}), flush=True)
    else:
        _print_results(console, results)
    return 1 if figures.mismatches or figures.errors else 0


# The cluster -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cluster:
    """The cluster to replay against.

    Attributes:
        cache: a client that sees the run's namespace.
        address: the name server's.
        what: how to call it.
        evictions: how many there had been before the run.
    """

    cache: PyroCacheClient
    address: str
    what: str
    evictions: int


@contextlib.contextmanager
def _cluster(
    nameserver: str | None, nodes: int, max_memory: str | None, eviction: str | None
) -> Iterator[_Cluster]:
    namespace = f"replay-{secrets.token_hex(6)}"
    own = max_memory is not None or eviction is not None
    running = None if own else _running(nameserver, namespace)
    if running is not None:
        with running.cache:
            try:
                yield running
            finally:
                with contextlib.suppress(PyroCacheError):  # a node that went away took its entries with it
                    running.cache.clear()
        return
    memory = max_memory or _DEFAULT_MEMORY
    with LocalCluster(nodes, max_memory=memory, eviction=eviction or DEFAULT_EVICTION) as local:
        what = f"a cluster of its own ({_count(nodes, 'node', 'nodes')} of {format_size(parse_size(memory))})"
        yield _Cluster(local.client(namespace=namespace), local.nameserver, what, evictions=0)


def _running(nameserver: str | None, namespace: str) -> _Cluster | None:
    """The cluster that runs already; None when there is none, and none was asked for by name."""
    address = nameserver or in_force().get("nameserver", DEFAULT_NAMESERVER)
    cache = PyroCacheClient(address, namespace=namespace)
    try:
        stats = cache.stats()
        if not stats.nodes:
            raise NodeUnavailable(
                f"No node registered at {address} answers; look at them with: pyrocache status"
            )
    except (NameServerUnavailable, NoNodes, NodeUnavailable):
        cache.close()
        if nameserver is not None:
            raise
        return None
    what = f"the cluster at {address} ({_count(len(stats.nodes), 'node', 'nodes')})"
    return _Cluster(cache, address, what, stats.total.evictions)


# One client process ----------------------------------------------------------------------------------------


class Latencies:
    """Durations in nanoseconds, kept to ten binary digits, so that any number of them takes bounded memory."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, nanoseconds: int) -> None:
        """Count one."""
        shift = max(nanoseconds.bit_length() - 10, 0)
        self.counts[nanoseconds >> shift << shift] += 1

    def percentiles(self) -> dict[str, float | None]:
        """The percentiles by name, in microseconds, each a duration that was there; None when there was none."""
        total, seen = self.counts.total(), 0
        left = list(_PERCENTILES.items())
        found: dict[str, float | None] = dict.fromkeys(_PERCENTILES)
        for nanoseconds, count in sorted(self.counts.items()):
            seen += count
            while left and seen >= left[0][1] * total:
                found[left.pop(0)[0]] = nanoseconds / 1000
        return found


@dataclass(slots=True)
class Figures:
    """What came of some accesses; a get that failed is neither a hit nor a miss."""

    accesses: int = 0
    hits: int = 0
    misses: int = 0
    sets: int = 0
    skipped: int = 0
    mismatches: int = 0
    errors: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    last_error: str = ""
    get_latencies: Latencies = field(default_factory=Latencies)
    set_latencies: Latencies = field(default_factory=Latencies)

    def add(self, other: Figures) -> None:
        """Count ``other`` in."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.last_error = other.last_error or self.last_error
        self.get_latencies.counts.update(other.get_latencies.counts)
        self.set_latencies.counts.update(other.set_latencies.counts)

    @property
    def hit_ratio(self) -> float:
        """Hits per get that was answered."""
        return self.hits / max(self.hits + self.misses, 1)


_COUNTERS = tuple(each.name for each in fields(Figures) if each.default == 0)


class _LookAside:
    """One process's use of the cache."""

    def __init__(self, cache: PyroCacheClient, value_size: int) -> None:
        self._cache = cache
        self._value_size = value_size
        self._failures = 0  # in a row
        self._good_until = 0.0

    def replay(self, block: Iterable[Access]) -> Figures:
        """Make these accesses."""
        figures = Figures()
        if not self._failures:  # however long this block was waited for
            self._good_until = time.monotonic()
        for key, size in block:
            figures.accesses += 1
            try:
                if not self._get(key, figures):
                    self._set(key, self._value_size if size is None else size, figures)
            except PyroCacheError as error:
                figures.errors += 1
                figures.last_error = str(error)
                self._failures += 1
                if self._hopeless():
                    raise
            else:
                self._failures = 0
                self._good_until = time.monotonic()
        return figures

    def _hopeless(self) -> bool:
        failing = time.monotonic() - self._good_until
        return self._failures >= _ERRORS_IN_A_ROW or failing >= _SECONDS_OF_ERRORS

    def _get(self, key: int | str, figures: Figures) -> bool:
        begin = time.perf_counter_ns()
        value = self._cache.get(key)
        figures.get_latencies.add(time.perf_counter_ns() - begin)
        if value is None:
            figures.misses += 1
            return False
        figures.hits += 1
        if type(value) is not bytes or value != value_of(key, len(value)):
            figures.mismatches += 1
        else:
            figures.bytes_read += len(value)
        return True

    def _set(self, key: int | str, size: int, figures: Figures) -> None:
        if size > DEFAULT_MAX_VALUE_BYTES:  # a trace may tell of more than there is memory to make it in
            figures.skipped += 1
            return
        value = value_of(key, size)
        begin = time.perf_counter_ns()
        try:
            self._cache.set(key, value)
        except ValueTooLarge:
            figures.skipped += 1
            return
        figures.set_latencies.add(time.perf_counter_ns() - begin)
        figures.sets += 1
        figures.bytes_written += size


def value_of(key: int | str, size: int) -> bytes:
    """The value of ``size`` bytes under ``key``; it tells its own length, so that a part of one is no other one."""
    pattern = f"{size} {key} ".encode()
    return (pattern * (size // len(pattern) + 1))[:size]


def _work(link: Connection, cache: PyroCacheClient, value_size: int) -> None:
    """A client process: says when it is ready, then answers each block with its `Figures`."""
    with cache:
        cache.nodes()
        link.send(None)
        user = _LookAside(cache, value_size)
        while True:
            link.send(user.replay(link.recv()))


# The parent ------------------------------------------------------------------------------------------------


def _blocks(accesses: Iterator[Access]) -> Iterator[list[Access]]:
    while block := list(itertools.islice(accesses, _BLOCK_ACCESSES)):
        yield block


def _replay(pool: WorkerPool, blocks: Iterator[list[Access]], meter: _Meter) -> tuple[Figures, float]:
    """The figures of the whole trace, and the seconds that it took once all clients were ready."""
    figures = Figures()
    for link in pool.links:
        pool.receive(link)
    with meter:
        begin = time.monotonic()
        for report in _deal(pool, blocks):
            figures.add(report)
            meter.show(figures)
        return figures, time.monotonic() - begin


def _deal(pool: WorkerPool, blocks: Iterator[list[Access]]) -> Iterator[Figures]:
    """Hand out the blocks, never more than `_BLOCKS_AHEAD` to a process, and yield what comes back."""
    given = 0
    for link, block in zip(pool.links * _BLOCKS_AHEAD, blocks):  # noqa: B905 - either may be the shorter one
        pool.send(link, block)
        given += 1
    while given:
        for link in pool.ready():
            report: Figures = pool.receive(link)
            given -= 1
            if more := next(blocks, []):
                pool.send(link, more)
                given += 1
            yield report


class _Meter:
    """Shows how far the replay is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, total: int | None) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.fields[ratio]:>16}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn() if total is not None else TextColumn("{task.completed:,}"),
            TextColumn("{task.fields[rate]:>10}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total, ratio="", rate="")

    def __enter__(self) -> Self:
        self._began = self._said = time.monotonic()
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, figures: Figures) -> None:
        """Show how far it is now."""
        now = time.monotonic()
        rate = f"{figures.accesses / max(now - self._began, 0.001):,.0f}/s"
        ratio = f"hit ratio {figures.hit_ratio:.1%}"
        self._progress.update(self._task, completed=figures.accesses, ratio=ratio, rate=rate)
        if self._progress.disable and now - self._said >= _REPORT_SECONDS:
            self._said = now
            self._console.print(f"{figures.accesses:,} accesses, {rate}, {ratio}")


# The results -----------------------------------------------------------------------------------------------


def _results(figures: Figures, seconds: float, cluster: _Cluster) -> dict[str, Any]:
    stats = cluster.cache.stats()
    operations = figures.get_latencies.counts.total() + figures.sets
    return {
        "cluster": cluster.address,
        "nodes": len(stats.nodes),
        "max_bytes": stats.total.max_bytes,
        **{name: getattr(figures, name) for name in _COUNTERS},
        "last_error": figures.last_error or None,
        "hit_ratio": figures.hit_ratio,
        "seconds": seconds,
        "operations": operations,
        "operations_per_second": operations / max(seconds, 1e-9),
        "get_latency_us": figures.get_latencies.percentiles(),
        "set_latency_us": figures.set_latencies.percentiles(),
        "evictions": stats.total.evictions - cluster.evictions,
        "entries": stats.total.entries,
    }


def _print_results(console: Console, results: dict[str, Any]) -> None:
    seconds, rate = results["seconds"], results["operations_per_second"]
    for what, figure in (
        ("Accesses", f"{results['accesses']:,}"),
        ("Hit ratio", f"{results['hit_ratio']:.2%} ({results['hits']:,} hits)"),
        ("Operations", f"{rate:,.0f} per second ({results['operations']:,} in {seconds:.1f} s)"),
        ("Read", format_size(results["bytes_read"])),
        ("Written", format_size(results["bytes_written"])),
        ("Entries", f"{results['entries']:,} in the cluster, after {results['evictions']:,} evictions"),
        ("Skipped", f"{results['skipped']:,} values too large for a node"),
        ("Mismatches", f"{results['mismatches']:,}"),
        ("Errors", f"{results['errors']:,}"),
    ):
        console.print(f"  {what:<12}{figure}")
    console.print(_latency_table(results))
    if results["last_error"]:
        console.print(f"The last error: {results['last_error']}", soft_wrap=True)


def _latency_table(results: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("Microseconds")
    for name in _PERCENTILES:
        table.add_column(name.replace("_", "."), justify="right")
    for verb in ("get", "set"):
        latencies = results[f"{verb}_latency_us"].values()
        table.add_row(verb, *("-" if each is None else f"{each:,.0f}" for each in latencies))
    return table


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
