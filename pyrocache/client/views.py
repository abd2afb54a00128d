"""What notebooks and terminals show of clients, statistics, nodes and entries: the `Card` of each.

Imported when one of these is shown. `features.overview` asks the nodes for what a client's card has. Pure: no I/O, no
threads, no clock.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pyrocache.client.keys.format import path_text
from pyrocache.config import format_size
from pyrocache.display.card import Bar, Card, Cell, Column, State, Table, printable
from pyrocache.tracebacks import came_from_outside

if TYPE_CHECKING:
    from pyrocache.client.features.entries import Entry
    from pyrocache.client.stats import ClientStats, LatencyHistogram, NamespaceStats, NodeStats, Stats, Totals
    from pyrocache.cluster.routing import Member

AWAY = State("away", "bad")
UP = State("up", "good")
_NO_LEASE = State("no lease", "doubtful")
_MOST_SHOWN = 10  # namespaces, methods
_MOST_REPORTED = 500  # namespaces, by a node, which reports those with the most reads
_VALUE_CHARACTERS = 200
_UNKNOWN = "-"


def of_client(
    title: str,
    nameserver: str,
    path: tuple[str, ...],
    members: Sequence[Member],
    stats: Stats,
    problem: str = "",
) -> Card:
    """Return the card of a client: the cluster and its nodes.

    Args:
        path: of the client's namespace, of which the entries and hit ratios are, unless it is the root.
        problem: what is wrong beside nodes that are away, in a sentence; empty if nothing is.
    """
    remarks = _away(stats.away) + ((problem,) if problem else ())
    if path:
        remarks += (
            "Entries and hit ratios are those of this namespace, without the namespaces in it; memory is that of all.",
        )
    facts = (
        ("name server", nameserver),
        ("nodes", f"{len(members)}"),
        *cluster_facts(stats, path),
    )
    return Card(title, _state_of(stats), facts, (_nodes(stats, members, path),), remarks)


def of_problem(title: str, nameserver: str, problem: str, *, closed: bool = False) -> Card:
    """Return the card of a client whose cluster cannot be asked. ``problem`` says why, in a sentence."""
    state = State("closed", "bad") if closed else State("no answer", "bad")
    return Card(title, state, (("name server", nameserver),), (), (problem,))


def of_async_client(title: str, nameserver: str, connections: int, closed: bool) -> Card:
    """Return the card of an asyncio client, which cannot ask while it is shown."""
    remark = (
        "`await cache.stats()` returns the figures of the nodes, and `await cache.nodes()` their addresses."
    )
    if closed:
        remark = "This client is closed; make a new one."
    facts = (("name server", nameserver), ("open connections", f"{connections:,}"))
    return Card(title, State("closed", "bad") if closed else None, facts, (), (remark,))


class Process(NamedTuple):
    """A process of a `LocalCluster`; the name server is the first.

    Attributes:
        name, pid, address: what it is.
        alive: whether it exists; None if that is not known here.
    """

    name: str
    pid: int
    address: str
    alive: bool | None


def of_local_cluster(
    processes: Sequence[Process], stats: Stats | None, problem: str = "", *, stopped: bool = False
) -> Card:
    """Return the card of a `LocalCluster`.

    Args:
        processes: the name server and the nodes.
        stats: None if the nodes could not be asked.
        problem: why not, or what else is wrong, in a sentence; empty if nothing is.
    """
    state: State | None = State("stopped", "bad") if stopped else State("no answer", "bad")
    facts: tuple[tuple[str, Cell], ...] = (
        ("name server", processes[0].address),
        ("nodes", f"{len(processes) - 1}"),
    )
    remarks: tuple[str, ...] = (problem,)
    if stats is not None:
        state, remarks = _state_of(stats), _away(stats.away) + ((problem,) if problem else ())
        facts += cluster_facts(stats, ())
    rows = [
        (
            one.name,
            str(one.pid),
            _process_state(one, stats, is_node=index > 0),
            one.address,
            *(node_row(stats.nodes.get(one.name), ()) if stats is not None else ()),
        )
        for index, one in enumerate(processes)
    ]
    columns = (Column("process"), Column("pid", right=True), Column("state"), Column("address"))
    return Card(
        "LocalCluster", state, facts, (Table(columns + FIGURES * (stats is not None), tuple(rows)),), remarks
    )


def _process_state(process: Process, stats: Stats | None, *, is_node: bool) -> State:
    if stats is not None and process.name in stats.nodes:
        return state_of(stats.nodes[process.name])
    if process.alive is False:
        return State("ended", "bad")
    if is_node and stats is not None:
        return AWAY
    return State("alive") if process.alive else State("not known", "doubtful")


def client_title(kind: str, path: tuple[str, ...]) -> str:
    """Return the title of the card of a client with this namespace."""
    return f"{kind}, namespace {path_text(path)}" if path else kind


def of_stats(stats: Stats) -> Card:
    """Return the card of the statistics of a cluster."""
    count = len(stats.nodes)
    title = f"Statistics of {count} node{'s' * (count != 1)}"
    facts = (*cluster_facts(stats, ()), *_counters(stats.total), ("this client", _client_line(stats.client)))
    tables = (_nodes(stats, None, ()), *_details(stats.total))
    return Card(title, _state_of(stats), facts, tables, _away(stats.away))


def of_totals(totals: Totals) -> Card:
    """Return the card of the statistics of all nodes."""
    facts = (*_figures(totals, ()), *_counters(totals), *_gauges(totals))
    return Card("Totals", None, facts, _details(totals))


def of_node_stats(node: NodeStats) -> Card:
    """Return the card of the statistics of one node."""
    refused = {
        "without the secret": node.handshakes_refused,
        "malformed": node.handshakes_malformed,
        "late": node.handshakes_late,
        "displaced": node.handshakes_displaced,
    }
    facts: list[tuple[str, Cell]] = [
        *_figures(node, ()),
        *_counters(node),
        *_gauges(node),
        ("process", f"pid {node.pid}" if node.pid else _UNKNOWN),
        ("eviction", node.policy or _UNKNOWN),
    ]
    if node.version:
        facts.append(("version", node.version))
    if node.silent:
        facts.append(("gets no answer from", node.silent))
    if any(refused.values()):
        facts.append(("refused handshakes", _listed(refused)))
    return Card("Statistics of a node", _state(node), tuple(facts), _details(node))


def of_histogram(histogram: LatencyHistogram) -> Card:
    """Return the card of the durations of calls: a bar for each power of two."""
    count, counts = histogram.count, histogram.counts
    if not count:
        return Card("Latencies", None, (("calls measured", "0"),))
    facts = [("calls measured", f"{count:,}")]
    facts += [(f"p{p:g}", duration(histogram.percentile(p))) for p in (50, 90, 99, 99.9)]
    first = next(index for index, one in enumerate(counts) if one)
    last = max(index for index, one in enumerate(counts) if one)
    most = max(counts)
    rows = [
        (f"below {duration(2**index / 1e6)}", Bar(counts[index] / most, f"{counts[index]:,}"))
        for index in range(first, last + 1)
    ]
    columns = (Column("duration", right=True), Column("calls"))
    return Card("Latencies", None, tuple(facts), (Table(columns, tuple(rows)),))


def of_client_stats(figures: ClientStats) -> Card:
    """Return the card of the statistics of a client."""
    facts = tuple((name.replace("_", " "), f"{figure:,}") for name, figure in figures.as_dict().items())
    return Card("Statistics of this client", None, facts)


def of_nodes(members: Sequence[Member]) -> Card:
    """Return the card of a list of nodes."""
    zoned = any(member.zone for member in members)
    weighted = any(member.weight != 1 for member in members)
    columns = [Column("node"), Column("address")]
    columns += [Column("zone", optional=1)] * zoned + [Column("weight", right=True, optional=2)] * weighted
    rows = [
        (member.name, member.address)
        + (member.zone or _UNKNOWN,) * zoned
        + (f"{member.weight:g}",) * weighted
        for member in members
    ]
    title = f"{len(members)} node{'s' * (len(members) != 1)}"
    return Card(title, None, (), (Table(tuple(columns), tuple(rows)),) if rows else ())


def of_entry(entry: Entry) -> Card:
    """Return the card of an entry."""
    ttl = "does not expire" if math.isinf(entry.ttl_seconds) else long_duration(entry.ttl_seconds)
    facts: list[tuple[str, Cell]] = [
        ("value", short_repr(entry.value)),
        ("type", _type_name(entry.value)),
        ("version", str(entry.version)),
        ("time to live", ttl),
        ("tags", ", ".join(map(repr, entry.tags)) or "none"),
        ("age", _since(entry.age_seconds)),
        ("idle", _since(entry.idle_seconds)),
        ("size", format_size(entry.size_bytes)),
    ]
    return Card("Entry", None, tuple(facts))


def cluster_facts(stats: Stats, path: tuple[str, ...]) -> tuple[tuple[str, Cell], ...]:
    """Return entries, memory and hit ratio of all answering nodes; of one namespace if ``path`` is not the root's."""
    complete = all(_is_reported(node, path) for node in stats.nodes.values())
    return _figures(stats.total, path, complete=complete) if stats.nodes else ()


def node_row(figures: NodeStats | None, path: tuple[str, ...]) -> tuple[Cell, ...]:
    """Return the cells of `FIGURES` for a node; without figures if it does not answer."""
    if figures is None:
        return (_UNKNOWN,) * len(FIGURES)
    used: NamespaceStats | Totals | None = figures.namespaces.get(path) if path else figures
    entries = ("0" if _is_reported(figures, path) else _UNKNOWN) if used is None else f"{used.entries:,}"
    return (
        entries,
        _memory(figures),
        _UNKNOWN if used is None else _percent(used.hit_ratio),
        f"{figures.connections:,}",
        long_duration(figures.uptime_seconds),
    )


FIGURES = (
    Column("entries", right=True),
    Column("memory", right=True),
    Column("hit ratio", right=True),
    Column("connections", right=True, optional=2),
    Column("up for", right=True, optional=1),
)
"""The columns of `node_row`."""


def state_of(figures: NodeStats | None) -> State:
    """Return whether a node is up, by its statistics; None if it did not answer."""
    return AWAY if figures is None else _state(figures)


def short_repr(value: object, most: int = _VALUE_CHARACTERS) -> str:
    """Return the `repr` of a value in one line, cut to about ``most`` characters. Whatever the value is, it is short.

    Of a large value of a builtin type, only the beginning is formatted. If the ``__repr__`` of the value raises, the
    text says so.
    """
    try:
        text = _Repr(most).repr(value)
    except Exception as error:
        if came_from_outside(error):
            raise
        text = f"<{_type_name(value)}, whose repr raises {type(error).__name__}>"
    # Cut first: what follows takes a step for each character.
    text = " ".join(text[: 4 * most].split())
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


class _Repr(reprlib.Repr):
    """`reprlib.Repr` with room for ``most`` characters. It also cuts bytes, sorts nothing, and lets errors through."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxset = self.maxfrozenset = self.maxlist = self.maxtuple = self.maxdeque = 20
        self.maxarray = 20
        self.maxstring = self.maxlong = self.maxother = most

    def repr_bytes(self, value: bytes, level: int) -> str:
        shown = repr(value[: self.maxstring])
        return shown if len(value) <= self.maxstring else f"{shown[:-1]}…{shown[-1]}"

    def repr_bytearray(self, value: bytearray, level: int) -> str:
        return f"bytearray({self.repr_bytes(bytes(value[: self.maxstring + 1]), level)})"

    # The base class sorts all keys and items, of which there may be millions.

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        shown = [
            f"{self.repr1(key, level - 1)}: {self.repr1(one, level - 1)}"
            for key, one in islice(value.items(), self.maxdict)
        ]
        return f"{{{', '.join(shown + ['...'] * (len(value) > len(shown)))}}}"

    def repr_set(self, value: set[Any], level: int) -> str:
        if level <= 0 or not value:
            return "{...}" if value else "set()"
        shown = [self.repr1(one, level - 1) for one in islice(value, self.maxset)]
        return f"{{{', '.join(shown + ['...'] * (len(value) > len(shown)))}}}"

    def repr_frozenset(self, value: frozenset[Any], level: int) -> str:
        return f"frozenset({self.repr_set(set(islice(value, self.maxset + 1)), level) if value else ''})"

    def repr_instance(self, value: Any, level: int) -> str:
        return repr(value)  # the base class hides what it raises


def duration(seconds: float) -> str:
    """Return a short duration with a unit: ``"3.2 ms"``."""
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("µs", 1e-6)
    return f"{seconds / size:.3g} {unit}"


def long_duration(seconds: float) -> str:
    """Return a duration in the two largest units that it has: ``"2 h 5 min"``."""
    if math.isinf(seconds) or math.isnan(seconds):
        return _UNKNOWN
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole} s" if minutes else f"{seconds:.1f} s" if seconds < 1 else f"{whole} s"


def _since(seconds: float | None) -> str:
    return "not recorded" if seconds is None else long_duration(seconds)


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _state(node: NodeStats) -> State:
    return UP if node.serving else _NO_LEASE


def _state_of(stats: Stats) -> State | None:
    """Return the state of a cluster, which is no news if all nodes serve."""
    if stats.away:
        return State(f"{len(stats.away)} away", "bad")
    waiting = sum(not node.serving for node in stats.nodes.values())
    return State(f"{waiting} without a lease", "doubtful") if waiting else None


def _away(names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    one = len(names) == 1
    return (
        f"{shown} {'does' if one else 'do'} not answer, so {'its' if one else 'their'} figures are missing here.",
    )


def _nodes(stats: Stats, members: Sequence[Member] | None, path: tuple[str, ...]) -> Table:
    """Return the table of the nodes, with their addresses if ``members`` are given."""
    columns = (
        Column("node"),
        Column("state"),
        *((Column("address"),) if members is not None else ()),
        *FIGURES,
    )
    names = [*stats.nodes, *stats.away] if members is None else [member.name for member in members]
    addresses = [()] * len(names) if members is None else [(member.address,) for member in members]
    rows = [
        (name, state_of(figures := stats.nodes.get(name)), *address, *node_row(figures, path))
        for name, address in zip(names, addresses, strict=True)
    ]
    return Table(columns, tuple(rows))


def _is_reported(node: NodeStats, path: tuple[str, ...]) -> bool:
    """Return whether a node reports the namespace if it has entries."""
    return not path or path in node.namespaces or len(node.namespaces) < _MOST_REPORTED


def _figures(totals: Totals, path: tuple[str, ...], *, complete: bool = True) -> tuple[tuple[str, Cell], ...]:
    used: NamespaceStats | Totals | None = totals.namespaces.get(path) if path else totals
    entries = "0" if used is None else f"{used.entries:,}"
    if not complete:
        entries = f"at least {entries}"
    elif not path and len(totals.namespaces) > 1:
        more = "at least " if len(totals.namespaces) >= _MOST_REPORTED else ""
        entries = f"{entries} in {more}{len(totals.namespaces):,} namespaces"
    hits, misses = (0, 0) if used is None else (used.hits, used.misses)
    return (("entries", entries), ("memory", _memory(totals)), ("hit ratio", _hits(hits, misses)))


def _counters(totals: Totals) -> tuple[tuple[str, Cell], ...]:
    changes = {"sets": totals.sets, "deletes": totals.deletes}
    removed = {"evicted": totals.evictions, "expired": totals.expirations}
    return (
        ("changes", _listed(changes)),
        ("removed", _listed(removed)),
        ("connections", f"{totals.connections:,}"),
    )


def _gauges(totals: Totals) -> tuple[tuple[str, Cell], ...]:
    return (
        ("resident memory", format_size(totals.rss_bytes)),
        ("loading", _listed({"leases": totals.leases, "since the start": totals.loads})),
        ("locks", _listed({"held": totals.locks, "callers waiting": totals.waiting})),
        ("up for", long_duration(totals.uptime_seconds)),
    )


def _details(totals: Totals) -> tuple[Table, ...]:
    """Return the tables of the namespaces and of the methods."""
    tables = []
    if totals.namespaces:
        spaces = sorted(totals.namespaces.items(), key=lambda item: -(item[1].hits + item[1].misses))
        rows = [
            (path_text(path), f"{one.entries:,}", _percent(one.hit_ratio), f"{one.hits + one.misses:,}")
            for path, one in spaces
        ]
        columns = (Column("namespace"), *_right("entries", "hit ratio", "reads"))
        tables.append(_most(columns, rows))
    if totals.latencies:
        methods = sorted(totals.latencies.items(), key=lambda item: -item[1].count)
        lines = [
            (method, f"{one.count:,}", *(_percentile(one, p) for p in (50, 90, 99)))
            for method, one in methods
        ]
        columns = (Column("method"), *_right("measured", "p50", "p90", "p99"))
        tables.append(_most(columns, lines))
    return tuple(tables)


def _right(*names: str) -> Iterable[Column]:
    return [Column(name, right=True) for name in names]


def _most(columns: tuple[Column, ...], rows: Sequence[tuple[Cell, ...]]) -> Table:
    more = len(rows) - _MOST_SHOWN
    return Table(columns, tuple(rows[:_MOST_SHOWN]), note=f"… and {more:,} more" if more > 0 else "")


def _percentile(histogram: LatencyHistogram, percent: float) -> str:
    return duration(histogram.percentile(percent)) if histogram.count else _UNKNOWN


def _client_line(figures: ClientStats) -> str:
    """Return what went wrong at a client; most figures are 0 for ever."""
    counts = {name: figure for name, figure in figures.as_dict().items() if figure}
    return ", ".join(f"{name} {figure:,}" for name, figure in counts.items()) or "no failures, no retries"


def _listed(figures: Mapping[str, int]) -> str:
    return ", ".join(f"{figure:,} {name}" for name, figure in figures.items())


def _memory(totals: Totals) -> Bar:
    share = totals.bytes / totals.max_bytes if totals.max_bytes else math.nan
    return Bar(share, f"{format_size(totals.bytes)} / {format_size(totals.max_bytes)}")


def _percent(ratio: float) -> str:
    return _UNKNOWN if math.isnan(ratio) else f"{ratio:.1%}"


def _hits(hits: int, misses: int) -> Cell:
    reads = hits + misses
    return Bar(hits / reads, f"{hits / reads:.1%} of {reads:,} reads") if reads else "no reads"
