"""Rows as tables, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table

from benchmarks.results import Row


class Column(NamedTuple):
    """How a figure is shown."""

    head: str
    show: Callable[[float], str]


def _significant(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _part(value: float) -> str:
    return f"{value:.3f}"


COLUMNS = {
    "median_us": Column("median µs", _significant),
    "p99_us": Column("p99 µs", _significant),
    "calls_per_second": Column("calls/s", _significant),
    "server_us": Column("server CPU µs", _significant),
    "client_us": Column("client CPU µs", _significant),
    "extra_us": Column("longer µs", _significant),
    "lookup_us": Column("lookup µs", _significant),
    "with_loop_us": Column("with the loop µs", _significant),
    "loop_us": Column("empty loop µs", _significant),
    "to_3_nodes": Column("to 3 nodes", _ratio),
    "bytes_per_entry": Column("bytes beyond key and value", _significant),
    "rss_mib": Column("RSS MiB", _significant),
    "median_ms": Column("median ms", _significant),
    "fastest_ms": Column("fastest ms", _significant),
    "slowest_ms": Column("slowest ms", _significant),
    "hit_ratio": Column("hit ratio", _part),
    "hits_left": Column("hits left", _part),
    "ratio": Column("ours/theirs", _ratio),
    "ratio_low": Column("quartile", _ratio),
    "ratio_high": Column("quartile", _ratio),
    "ratio_of_medians": Column("of medians", _ratio),
}
"""Figures that are shown, in this order; ``calls`` and ratios of other things than throughput are kept only."""


class Shown(NamedTuple):
    """A table as texts."""

    title: str
    head: list[str]
    lines: list[list[str]]


def tables(rows: Sequence[Row]) -> list[Shown]:
    """A table for each that the rows name, in their order."""
    return [
        _shown(name, [row for row in rows if row.table == name])
        for name in dict.fromkeys(row.table for row in rows)
    ]


def _shown(title: str, rows: Sequence[Row]) -> Shown:
    figures = [name for name in COLUMNS if any(name in row.figures for row in rows)]
    lines = []
    previous = None
    for row in rows:
        cells = [COLUMNS[name].show(row.figures[name]) if name in row.figures else "" for name in figures]
        lines.append([row.operation if row.operation != previous else "", row.contender, *cells])
        previous = row.operation
    return Shown(title, ["", "", *(COLUMNS[name].head for name in figures)], lines)


def for_terminal(shown: Shown, texts: int = 2) -> Table:
    """A table for rich; the first ``texts`` columns are texts, the others figures."""
    table = Table(
        title=shown.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, head in enumerate(shown.head):
        table.add_column(head, justify="left" if number < texts else "right", no_wrap=number < texts)
    for line in shown.lines:
        table.add_row(*line)
    return table


def for_markdown(shown: Shown, texts: int = 2) -> str:
    """A table in Markdown, without its title."""
    rule = ["---" if number < texts else "---:" for number in range(len(shown.head))]
    return "\n".join(_markdown_line(cells) for cells in (shown.head, rule, *shown.lines))


def _markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
