"""``python -m benchmarks scale``: what a large cluster costs, by simulation (`measure`). Prints tables, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from pyrocache.errors import ConfigurationError

_SIZES = (3, 10, 30, 100, 300)
_QUICK = (3, 10)
_RATES = (1.0, 10.0)
_PARTS = ("steady", "join", "leave", "strike_out", "routing")

Nodes = Annotated[int, typer.Option(help="Nodes of the largest cluster.", min=2, max=1000)]
Clients = Annotated[int, typer.Option(help="Clients of it.", min=1, max=100_000)]
Quick = Annotated[bool, typer.Option("--quick", help="Small numbers, to see whether all works.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def scale_command(
    nodes: Nodes = 1000, clients: Clients = 10_000, quick: Quick = False, as_json: AsJson = False
) -> None:
    """Simulate large clusters: what the name server, a join and a change of the view cost."""
    try:
        from benchmarks.scale import measure
        from benchmarks.scale.cluster import handshake_cost
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"The simulation needs the package {missing.name}; get it with: pip install '.[bench]'"
        ) from None

    if quick:
        nodes, clients = min(nodes, 20), min(clients, 100)
    sizes = [*(size for size in (_QUICK if quick else _SIZES) if size < nodes), nodes]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for part in _PARTS:
        work: Callable[[int], dict[str, float]] = getattr(measure, part)
        found[part] = {str(size): _told(part, size, work, size) for size in sizes}
    found["clients learn a view"] = {
        f"{rate:g} requests/s": _told("clients", clients, measure.learn, nodes, clients, rate)
        for rate in _RATES
    }
    found["clients start"] = {
        f"within {within:g} s": _told("start", clients, measure.start, nodes, clients, within)
        for within in (0.0, 10.0)
    }
    size, here, there = handshake_cost()
    found["handshake"] = {"2 requests": {"bytes": size, "caller_us": here * 1e6, "node_us": there * 1e6}}
    if not quick:
        found["limit"] = {"messages": {"most_nodes": measure.most_nodes()}}
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _show(found.items())


def _told(what: str, size: int, work: Callable[..., dict[str, float]], *arguments: float) -> dict[str, float]:
    print(f"{what}: {size}", file=sys.stderr)
    return work(*arguments)


def _show(found: Iterable[tuple[str, dict[str, dict[str, float]]]]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for title, lines in found:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        for name in next(iter(lines.values())):
            table.add_column(name.replace("_", " "), justify="right")
        for name, figures in lines.items():
            table.add_row(name, *(f"{figure:,.4g}" for figure in figures.values()))
        console.print(table)
