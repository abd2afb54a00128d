"""The statistics that `PyroCacheClient.stats` returns: of each node, summed over all nodes, and of the client itself.

A node collects its statistics in ``node/service/metrics.py``; `NodeStats.from_wire` reads them. ``cli/tables.py``
prints them for the command line, ``views.py`` shows them in notebooks, and ``plots.py`` draws them. Pure: no I/O, no
threads, no clock.

Thread safety: thread-safe, because nothing changes an object after it was made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Self

from pyrocache.client.keys.format import split_namespace
from pyrocache.config import format_size
from pyrocache.display.shown import Shown, as_text
from pyrocache.errors import InvalidKey, NodeUnavailable
from pyrocache.late_imports import at_first_use, not_installed

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

    from pyrocache.display.card import Card

_MOST_BUCKETS = 64  # of a histogram; nodes have 32


@dataclass(frozen=True, slots=True)
class LatencyHistogram(Shown):
    """The durations of calls at a node, from the complete request to the reply, in powers of two of a microsecond.

    Of the calls that a node answers immediately, only a constant share is measured.

    Attributes:
        counts: how many calls took less than 1 µs, less than 2, 4, 8 … µs; the last one includes all longer calls.
    """

    counts: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """Number of calls that were measured."""
        return sum(self.counts)

    def percentile(self, percent: float) -> float:
        """Return the seconds within which ``percent`` of the calls finished; NaN if there were no calls.

        Exact to the power of two; interpolated linearly within it.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"A percentile is of 0 to 100 percent, not {percent!r}.")
        wanted = self.count * percent / 100
        before = 0
        for bucket, count in enumerate(self.counts):
            if count and before + count >= wanted:
                low, high = (2 ** (bucket - 1) if bucket else 0), 2**bucket
                return float(low + (high - low) * (wanted - before) / count) / 1e6
            before += count
        return math.nan

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        return LatencyHistogram(tuple(map(sum, zip_longest(self.counts, other.counts, fillvalue=0))))

    def as_dict(self) -> dict[str, Any]:
        """Return the counts, and the usual percentiles in milliseconds."""
        percentiles = {
            f"p{p:g}_ms": self.percentile(p) * 1e3 if self.count else None for p in (50, 90, 99, 99.9)
        }
        return {"count": self.count, **percentiles, "counts": list(self.counts)}

    def __repr__(self) -> str:
        if not self.count:
            return "<LatencyHistogram: no calls>"
        with at_first_use:
            from pyrocache.client.views import duration
        half, most = (duration(self.percentile(percent)) for percent in (50, 99))
        return f"<LatencyHistogram: {self.count:,} measured, p50 {half}, p99 {most}>"

    def _card(self) -> Card:
        with at_first_use:
            from pyrocache.client.views import of_histogram
        return of_histogram(self)


@dataclass(frozen=True, slots=True)
class NamespaceStats:
    """Statistics of one namespace.

    Attributes:
        hits, misses: reads, as in `NodeStats`.
        entries: the current number.
    """

    hits: int = 0
    misses: int = 0
    entries: int = 0

    @property
    def hit_ratio(self) -> float:
        """Share of the reads that were hits, 0 to 1; NaN if there were no reads."""
        return _ratio(self.hits, self.misses)

    def __add__(self, other: NamespaceStats) -> NamespaceStats:
        return NamespaceStats(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Totals(Shown):
    """Statistics of one node, or sums over several. Counters start with the node, or, except `loads`, at `reset_stats`.

    Attributes:
        hits, misses: reads that found an entry, and that found none.
        sets, deletes: entries stored, and removed by a client.
        evictions, expirations: entries removed to free memory, and because they expired.
        entries: the current number.
        bytes, max_bytes: memory that the entries take, by the node's accounting, and its limit.
        uptime_seconds: since the start of the node; of several nodes, since the first start.
        connections: the current number of open connections.
        rss_bytes: resident memory of the process.
        leases, locks: the current numbers of values being loaded, and of locks held.
        waiting: the current number of callers that wait for a lease or a lock.
        loads: leases granted since the start of the node.
        namespaces: the most used namespaces, by their path of names; ``()`` is the root.
        latencies: the durations of calls, by the node's method.
    """

    hits: int = 0
    misses: int = 0
    sets: int = 0
    deletes: int = 0
    evictions: int = 0
    expirations: int = 0
    entries: int = 0
    bytes: int = 0
    max_bytes: int = 0
    uptime_seconds: float = 0.0
    connections: int = 0
    rss_bytes: int = 0
    leases: int = 0
    locks: int = 0
    waiting: int = 0
    loads: int = 0
    namespaces: dict[tuple[str, ...], NamespaceStats] = field(default_factory=dict)
    latencies: dict[str, LatencyHistogram] = field(default_factory=dict)

    @property
    def hit_ratio(self) -> float:
        """Share of the reads that were hits, 0 to 1; NaN if there were no reads."""
        return _ratio(self.hits, self.misses)

    def as_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers."""
        namespaces = [{"path": list(path), **asdict(one)} for path, one in self.namespaces.items()]
        latencies = {method: histogram.as_dict() for method, histogram in self.latencies.items()}
        return {**asdict(self), "namespaces": namespaces, "latencies": latencies}

    def __repr__(self) -> str:
        reads = self.hits + self.misses
        hits = f"{self.hit_ratio:.1%} hits of {reads:,} reads" if reads else "no reads"
        return (
            f"<{type(self).__name__}: "
            f"{self.entries:,} entries in {format_size(self.bytes)} of {format_size(self.max_bytes)}; "
            f"{hits}; {self.sets:,} sets, {self.deletes:,} deletes; "
            f"{self.evictions:,} evicted, {self.expirations:,} expired; {self.connections:,} connections>"
        )

    def _card(self) -> Card:
        with at_first_use:
            from pyrocache.client.views import of_totals
        return of_totals(self)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class NodeStats(Totals):
    """Statistics of one node.

    Attributes:
        pid: process id of the node.
        policy: its eviction policy.
        version: that of its pyrocache; empty if it does not tell it, as in the first versions.
        view: the number of its view; 0 if it has none, as under a stock Pyro5 daemon.
        lease_seconds: for how long it may serve unless its view is confirmed again; 0 if it may not.
        silent: the names of the members that do not answer it, separated by spaces. It asks them only while the name
            server does not confirm its view, or after a change.
        clientless_seconds: for how long no client has been connected to it; 0 while one is. Other nodes and the name
            server are no clients.
        handshakes_refused: connections that were refused since the start of the node, because they did not prove the
            secret, for example.
        handshakes_malformed, handshakes_late, handshakes_displaced: connections that sent something else than a
            handshake, took too long for it, and were closed for newer ones of their address.
    """

    pid: int = 0
    policy: str = ""
    version: str = ""
    view: int = 0
    lease_seconds: float = 0.0
    silent: str = ""
    clientless_seconds: float = 0.0
    handshakes_refused: int = 0
    handshakes_malformed: int = 0
    handshakes_late: int = 0
    handshakes_displaced: int = 0

    @property
    def serving(self) -> bool:
        """Whether the node could serve when it was asked."""
        return self.lease_seconds > 0.0 or not self.view

    def _card(self) -> Card:
        with at_first_use:
            from pyrocache.client.views import of_node_stats
        return of_node_stats(self)

    @classmethod
    def from_wire(cls, answer: Mapping[str, Any]) -> Self:
        """Return the statistics in a node's answer. Names that are not known here are ignored."""
        # A node of another version may send fewer or more statistics.
        known = {one.name: answer[one.name] for one in fields(cls) if one.name in answer}
        namespaces: dict[tuple[str, ...], NamespaceStats] = {}
        for prefix, *figures in known.pop("namespaces", ()):
            with suppress(InvalidKey):  # another kind of client may use other prefixes
                namespaces[split_namespace(prefix)[0]] = NamespaceStats(*figures)
        latencies = {method: LatencyHistogram(tuple(counts)) for method, counts in known.pop("latencies", ())}
        return cls(**known, namespaces=namespaces, latencies=latencies)


def is_stats(answer: Any) -> bool:
    """Return whether a node's answer has statistics as `NodeStats.from_wire` reads them. Any may be missing."""
    if type(answer) is not dict:
        return False
    for one in fields(NodeStats):
        sent = answer.get(one.name, one.default)
        if one.name == "namespaces":
            valid = sent is MISSING or _are_rows(sent, bytes, 3)
        elif one.name == "latencies":
            valid = sent is MISSING or (
                _are_rows(sent, str, 1)
                and all(type(counts) is list and len(counts) <= _MOST_BUCKETS for _, counts in sent)
                and all(_is_figure(count, int) for _, counts in sent for count in counts)
            )
        else:
            valid = type(sent) is str if one.default == "" else _is_figure(sent, int, type(one.default))
        if not valid:
            return False
    return True


def _are_rows(sent: Any, first: type, others: int) -> bool:
    """Return whether these are lists that begin with one of that type; three others are numbers."""
    rows = type(sent) is list and all(
        type(row) is list and len(row) == 1 + others and type(row[0]) is first for row in sent
    )
    return rows and (others == 1 or all(_is_figure(figure, int) for row in sent for figure in row[1:]))


def _is_figure(number: Any, *types: type) -> bool:
    return type(number) in types and 0 <= number < math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStats(Shown):
    """Statistics of one client object.

    Attributes:
        misses_on_error: calls that counted as misses because of a `CacheUnavailable`.
        corrupt_values: values read that were not valid value frames.
        tampered_values: values and keys read that this client's signing key did not sign, or not for their place.
        undecodable: keys and values read that do not decode here and were treated as missing; corrupt and tampered
            values are among them.
        loads_not_stored: loaded values that were returned but could not be stored.
        retries: requests that were sent again after a failure.
        not_serving: refusals by nodes that were not sure to be the owner, see ``docs/failure-modes.md``.
        try_again: refusals of requests that came too late, or waited while the node stood still.
        repeats: changes whose reply was lost, so that the node was asked for their outcome; each time counts.
        unsettled: changes that ended in `MayHaveBeenDone`.
        conflicts: attempts of `PyroCacheClient.compute` that failed because another caller changed the entry.
    """

    misses_on_error: int = 0
    corrupt_values: int = 0
    undecodable: int = 0
    loads_not_stored: int = 0
    conflicts: int = 0
    retries: int = 0
    not_serving: int = 0
    try_again: int = 0
    repeats: int = 0
    unsettled: int = 0
    tampered_values: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return a plain dict."""
        return asdict(self)

    def _card(self) -> Card:
        with at_first_use:
            from pyrocache.client.views import of_client_stats
        return of_client_stats(self)


@dataclass(frozen=True, slots=True, repr=False)
class Stats(Shown):
    """Statistics of the cluster, from `PyroCacheClient.stats`.

    Attributes:
        nodes: the statistics of each answering node, by its name.
        total: their sums.
        client: the statistics of this client object.
        away: names of the nodes that did not answer.
        errors: why each of them did not.
    """

    nodes: dict[str, NodeStats]
    total: Totals
    client: ClientStats
    away: list[str]
    errors: dict[str, NodeUnavailable] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        nodes: dict[str, NodeStats],
        client: ClientStats,
        away: list[str],
        errors: dict[str, NodeUnavailable] | None = None,
    ) -> Self:
        """Return the statistics of these nodes with their sums."""
        total: dict[str, Any] = {}
        for one in fields(Totals):
            figures = [getattr(node, one.name) for node in nodes.values()]
            # Only the dicts have no plain default: they have a default_factory.
            total[one.name] = _merged(figures) if one.default is MISSING else sum(figures)
        total["uptime_seconds"] = max((node.uptime_seconds for node in nodes.values()), default=0.0)
        return cls(nodes, Totals(**total), client, away, errors or {})

    def as_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, suitable for JSON."""
        return {
            "nodes": {name: node.as_dict() for name, node in self.nodes.items()},
            "total": self.total.as_dict(),
            "client": self.client.as_dict(),
            "away": list(self.away),
        }

    def to_frame(self) -> pandas.DataFrame:
        """Return a pandas DataFrame: a row for each node, by its name, and a column for each number of `NodeStats`.

        There are also ``hit_ratio``, and ``memory_share``, which is ``bytes / max_bytes``.
        All numbers of a node that is away are NaN.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise not_installed(error, "pandas", "Stats.to_frame", "jupyter") from None
        numbers = [one.name for one in fields(NodeStats) if one.default is not MISSING and one.default != ""]
        rows: list[dict[str, float]] = [
            {
                **{name: getattr(node, name) for name in numbers},
                "hit_ratio": node.hit_ratio,
                "memory_share": node.bytes / node.max_bytes if node.max_bytes else math.nan,
            }
            for node in self.nodes.values()
        ]
        index = pandas.Index([*self.nodes, *self.away], dtype="object", name="node")
        columns = [*numbers, "hit_ratio", "memory_share"]
        frame = pandas.DataFrame([*rows, *({} for _ in self.away)], index=index, columns=columns)
        return frame if rows else frame.astype(float)

    def plot(self) -> matplotlib.figure.Figure:
        """Return a matplotlib Figure: hit ratios, memory and balance of the nodes, and the durations of calls.

        A notebook displays it once. Elsewhere, call its ``savefig``. No graphical display is needed.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from pyrocache.client.plots import plot_of  # imports matplotlib

        return plot_of(self)

    def __repr__(self) -> str:
        return as_text(self._card())

    def _card(self) -> Card:
        with at_first_use:
            from pyrocache.client.views import of_stats
        return of_stats(self)


def _merged(figures: Iterable[dict[Any, Any]]) -> dict[Any, Any]:
    """Return the sums of named statistics, by name."""
    sums: dict[Any, Any] = {}
    for named in figures:
        for name, figure in named.items():
            sums[name] = sums[name] + figure if name in sums else figure
    return sums


def _ratio(hits: int, misses: int) -> float:
    return hits / (hits + misses) if hits + misses else math.nan
