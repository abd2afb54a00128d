"""`plot_of`: statistics as a matplotlib Figure. Imports matplotlib, so it is imported when one is made.

The Figure is made without pyplot, which would keep it, show it a second time at the end of a notebook's cell, and may
need a display.

Thread safety: thread-safe; each call makes a Figure of its own.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from pyrocache.config import format_size
from pyrocache.display.card import printable
from pyrocache.late_imports import not_installed

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, PercentFormatter
except ModuleNotFoundError as error:
    raise not_installed(error, "matplotlib", "Stats.plot", "jupyter") from None

if TYPE_CHECKING:
    from pyrocache.client.stats import Stats

_MOST_METHODS = 6
_MOST_LABELS = 24  # nodes with a label each
_USED, _FREE = "#e07b39", "#d9d9d9"


class _Shown(Figure):
    """A Figure that a notebook shows without pyplot, which else tells IPython how."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", bbox_inches="tight")
        return drawn.getvalue()


def plot_of(stats: Stats) -> Figure:
    """Return a Figure with four axes: hit ratio, memory, balance of entries, durations of calls."""
    figure = _Shown(figsize=(10, 6.4), layout="constrained")
    (ratio, memory), (balance, latency) = figure.subplots(2, 2)
    names = [*map(_plain, stats.nodes), *(f"{_plain(name)}\naway" for name in stats.away)]
    nodes = [*stats.nodes.values(), *(None for _ in stats.away)]
    at = range(len(nodes))

    ratio.bar(
        at,
        [0.0 if node is None or math.isnan(node.hit_ratio) else node.hit_ratio for node in nodes],
        color=_USED,
    )
    ratio.set(title="Hit ratio", ylim=(0, 1))
    ratio.yaxis.set_major_formatter(PercentFormatter(1.0))
    if not math.isnan(stats.total.hit_ratio):
        ratio.axhline(
            stats.total.hit_ratio, color="black", linestyle=":", label=f"all: {stats.total.hit_ratio:.1%}"
        )
        ratio.legend(loc="lower right")

    memory.bar(at, [0 if node is None else node.max_bytes for node in nodes], color=_FREE, label="limit")
    memory.bar(at, [0 if node is None else node.bytes for node in nodes], color=_USED, label="used")
    memory.set(title="Memory")
    largest = max((node.max_bytes for node in stats.nodes.values()), default=0)
    memory.set_yticks([largest * quarter / 4 for quarter in range(5)] if largest else [0])
    memory.yaxis.set_major_formatter(FuncFormatter(lambda size, _: format_size(size)))
    memory.set_ylim(0, 1.2 * largest or 1)  # with room for the legend
    memory.legend(loc="upper right", ncols=2)

    balance.bar(at, [0 if node is None else node.entries for node in nodes], color=_USED)
    balance.set(title="Balance of entries")
    if stats.nodes:
        equal = stats.total.entries / len(stats.nodes)
        balance.axhline(equal, color="black", linestyle=":", label=f"equal share: {equal:,.0f}")
        balance.margins(y=0.2)
        balance.legend(loc="upper right")

    for axes in (ratio, memory, balance):
        _name(axes, names, at)
    _plot_latencies(latency, stats)
    return figure


def _name(axes: Any, names: list[str], at: range) -> None:
    """Label the nodes, or only their number if there are many."""
    if len(names) > _MOST_LABELS:
        axes.set_xlabel(f"{len(names)} nodes")
        axes.set_xticks([])
    else:
        axes.set_xticks(
            at, names, rotation=30 if len(names) > 3 else 0, ha="right" if len(names) > 3 else "center"
        )


def _plot_latencies(axes: Any, stats: Stats) -> None:
    """Draw the histograms of the methods with the most calls, as steps over a logarithmic axis."""
    axes.set(title="Duration of calls at the nodes", xlabel="seconds", ylabel="share of the calls")
    axes.set_xscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    found = [item for item in stats.total.latencies.items() if item[1].count]
    found.sort(key=lambda item: -item[1].count)
    for method, histogram in found[:_MOST_METHODS]:
        edges = [2.0**bucket / 2 * 1e-6 for bucket in range(len(histogram.counts) + 1)]
        shares = [count / histogram.count for count in histogram.counts]
        # Without the empty buckets at the ends.
        used = [index for index, count in enumerate(histogram.counts) if count]
        first, last = used[0], used[-1] + 1
        axes.stairs(shares[first:last], edges[first : last + 1], label=_plain(method), linewidth=1.5)
    if found:
        axes.legend()


def _plain(text: str) -> str:
    """Return a text that matplotlib draws as it is: it takes dollar signs for formulas."""
    return printable(text).replace("$", r"\$")
