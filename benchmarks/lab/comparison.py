"""What ``python -m benchmarks replay --policy`` does: compare eviction policies on a trace, simulated in this process.

Reads the trace into memory, runs it through a cache of each capacity under each policy, and shows the hit ratios
beside the best possible ones: as a table, as a curve, into a file, or as JSON. How a cache is simulated, and what the
bound is, `simulation` says.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from benchmarks.lab.curves import check_plot, draw, plot, symbols
from benchmarks.lab.simulation import Workload, spread
from benchmarks.lab.traces import read_trace, trace_format
from pyrocache.config import format_size, parse_size
from pyrocache.errors import ConfigurationError
from pyrocache.node.store.eviction import POLICIES

EXACT = "best possible"
BOUND = "upper bound"

_COUNT = re.compile(r"(\d{1,12})([kKM]?)")
_REPORT_SECONDS = 10.0
_WIDEST = 100
_ASCII = str.maketrans("┤│└─┬", "||+-+")
_COLOURS = ("green", "yellow", "cyan", "magenta", "blue", "red")


def run(
    trace: Path,
    *,
    policies: Sequence[str],
    capacities: Sequence[str] | None,
    limit: int | None,
    plot_file: Path | None,
    as_json: bool,
) -> int:
    """Simulate ``trace``, print the hit ratios, and return the exit status.

    Args:
        policies: their names, also several with commas between them, or ``"all"``.
        capacities: numbers of entries, or sizes where the trace tells of sizes; by default what suits the trace.
        limit: how many accesses at most.
        plot_file: where to draw the curves, if anywhere.
        as_json: one JSON object on standard output, and the rest on standard error, where progress always is.

    Raises:
        TraceError: the trace cannot be read.
        ConfigurationError: there is no such policy, or a capacity or ``plot_file`` makes no sense.
    """
    names = _policies(policies)
    if plot_file is not None:
        check_plot(plot_file)
    written = trace_format(trace)
    sized = written == "time id size"
    wanted = None if not capacities else _capacities(capacities, sized=sized)
    console = Console(stderr=as_json, highlight=False, markup=False)
    progress = Console(stderr=True, highlight=False, markup=False)
    workload = _read(trace, limit, progress)
    chosen = wanted or spread(workload)
    ratios = _ratios(workload, names, chosen, progress)
    best = BOUND if sized else EXACT
    if plot_file is not None:  # first: whoever reads what is printed may stop at the first line
        label = _short_size if sized else _short_count
        plot(plot_file, trace.name, chosen, ratios, best, label, "bytes" if sized else "entries")
    if as_json:
        results = {
            "trace": str(trace),
            "format": written,
            "accesses": len(workload),
            "keys": workload.distinct,
            "unit": "bytes" if sized else "entries",
            "footprint": workload.footprint,
            "capacities": chosen,
            "hit_ratios": {name: ratios[name] for name in names},
            "best": {"hit_ratios": ratios[best], "exact": not sized},
        }
        print(json.dumps(results), flush=True)
    else:
        _print(console, trace, workload, chosen, ratios, best)
    if plot_file is not None:
        console.print(f"The curves are in {plot_file}.", soft_wrap=True)
    return 0


# What was asked for ----------------------------------------------------------------------------------------


def _policies(texts: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(name.strip() for text in texts for name in text.split(",")))
    for name in names:
        if name not in POLICIES and name != "all":
            raise ConfigurationError(
                f"There is no policy {name!r}; there are {', '.join(POLICIES)}, and all."
            )
    return list(POLICIES) if "all" in names else names


def _capacities(texts: Sequence[str], *, sized: bool) -> list[int]:
    each = [part.strip() for text in texts for part in text.split(",")]
    return sorted({parse_size(part) if sized else _parse_count(part) for part in each})


def _parse_count(text: str) -> int:
    match = _COUNT.fullmatch(text)
    count = int(match[1]) * {"": 1, "k": 1000, "K": 1000, "M": 10**6}[match[2]] if match else 0
    if count < 1:
        raise ConfigurationError(
            f"{text!r} is no capacity for a trace that tells no sizes; write a number of entries, like 5000 or 20k."
        )
    return count


# The work --------------------------------------------------------------------------------------------------


def _read(trace: Path, limit: int | None, console: Console) -> Workload:
    with _Meter(console, limit) as meter:
        meter.begin("reading")
        return Workload(itertools.islice(read_trace(trace), limit), meter.advance)


def _ratios(
    workload: Workload, names: Sequence[str], capacities: Sequence[int], console: Console
) -> dict[str, list[float]]:
    """Hit ratios by policy, and those of the bound last."""
    sized = workload.costs is not None
    runs = len(names) + (0 if sized else 1)
    hits: dict[str, list[int]] = {}
    with _Meter(console, runs * len(capacities) * len(workload)) as meter:
        for name in names:
            hits[name] = []
            for capacity in capacities:
                meter.begin(name)
                hits[name].append(workload.hits(POLICIES[name](), capacity, meter.advance))
        if sized:
            hits[BOUND] = workload.at_most_by_bytes(capacities)
        else:
            hits[EXACT] = []
            for capacity in capacities:
                meter.begin(EXACT)
                hits[EXACT].append(workload.best_by_count(capacity, meter.advance))
    return {name: [each / len(workload) for each in counts] for name, counts in hits.items()}


class _Meter:
    """Shows on standard error how far the work is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, total: int | None) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._what = ""
        self._said = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description:>13}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, what: str) -> None:
        """Say what is done now."""
        self._what = what
        self._progress.update(self._task, description=what)

    def advance(self, accesses: int) -> None:
        """So many more are done."""
        self._done += accesses
        self._progress.update(self._task, completed=self._done)
        now = time.monotonic()
        if self._progress.disable and now - self._said >= _REPORT_SECONDS:
            self._said = now
            part = f"{self._done / self._total:.0%}" if self._total else f"{self._done:,} accesses"
            self._console.print(f"{self._what}: {part}")


# The results -----------------------------------------------------------------------------------------------


def _print(
    console: Console,
    trace: Path,
    workload: Workload,
    capacities: Sequence[int],
    ratios: dict[str, list[float]],
    best: str,
) -> None:
    sized = workload.costs is not None
    footprint = format_size(workload.footprint) if sized else f"{workload.footprint:,} entries"
    name = trace.name.encode(console.encoding, "backslashreplace").decode(console.encoding)
    console.print(
        f"{name}: {len(workload):,} accesses to {workload.distinct:,} keys; all of them would take {footprint}.",
        soft_wrap=True,
    )
    label = _short_size if sized else _short_count
    console.print(_table(capacities, ratios, best, sized=sized))
    legend = symbols(ratios, best)
    for line in draw(capacities, ratios, best, label, min(console.width, _WIDEST)):
        shown = line.translate(_ASCII) if console.options.ascii_only else _coloured(line, legend)
        console.print(shown, no_wrap=True, crop=False)
    names = Text("   ").join(Text(f"{each} {name}", _style(each, legend)) for name, each in legend.items())
    console.print(Text("       ") + names)
    if sized:
        console.print("No cache can have more hits than the upper bound; the best may have fewer.")


def _table(capacities: Sequence[int], ratios: dict[str, list[float]], best: str, *, sized: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("capacity", justify="right")
    for column in ratios:
        table.add_column(column, justify="right", style="dim" if column == best else "")
    for number, capacity in enumerate(capacities):
        row = {column: round(ratios[column][number], 4) for column in ratios}
        most = max(ratio for column, ratio in row.items() if column != best)
        cells = [
            Text(f"*{ratio:.2%}", "bold") if ratio == most and column != best else Text(f"{ratio:.2%}")
            for column, ratio in row.items()
        ]
        table.add_row(format_size(capacity) if sized else f"{capacity:,}", *cells)
    return table


def _coloured(line: str, legend: dict[str, str]) -> Text:
    """A line of curves, each in a colour of its own."""
    axis = max(line.find("┤"), line.find("│")) + 1
    text = Text(line[:axis])
    for symbol in line[axis:]:
        text.append(symbol, _style(symbol, legend) if axis else "")
    return text


def _style(symbol: str, legend: dict[str, str]) -> str:
    """The colour of the curve that ``symbol`` stands for."""
    symbols = list(legend.values())
    return _COLOURS[symbols.index(symbol) % len(_COLOURS)] if symbol in symbols else ""


def _short_count(count: int) -> str:
    for unit, digits in (("M", 6), ("k", 3)):
        if count >= 10**digits:
            return f"{count / 10**digits:.3g}{unit}"
    return str(count)


def _short_size(size: int) -> str:
    for unit, bits in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if size >= 1 << bits:
            return f"{size / (1 << bits):.3g}{unit}"
    return str(size)
