"""The tables that the command line prints: started nodes, and the statistics of ``pyrocache status``.

The statistics are the `Stats` object of ``client/stats.py``, which is made from the replies of
``node/service/metrics.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pyrocache.client.stats import Stats
from pyrocache.cluster.routing import Member
from pyrocache.config import format_address, format_size


def print_nodes(answers: Sequence[dict[str, Any]], max_memory: int) -> None:
    """Print the nodes that ``pyrocache nodes`` has started."""
    table = _table("node", "pid", "address", "memory")
    for answer in answers:
        address = format_address(answer["host"], answer["port"])
        table.add_row(answer["name"], str(answer["pid"]), address, format_size(max_memory))
    _console().print(table)


def print_status(nameserver: str, members: Sequence[Member], stats: Stats) -> None:
    """Print the members and their statistics, as ``pyrocache status`` does."""
    table = _table("node", "address", "entries", "memory", "eviction", "hits", "peers", "up")
    for member in members:
        figures = stats.nodes.get(member.name)
        if figures is None:
            table.add_row(member.name, member.address, "away", style="red")
            continue
        table.add_row(
            member.name,
            member.address,
            f"{figures.entries:,}",
            f"{format_size(figures.bytes)} / {format_size(figures.max_bytes)}",
            figures.policy,
            "-" if math.isnan(figures.hit_ratio) else f"{figures.hit_ratio:.0%}",
            str(figures.connections),
            _duration(figures.uptime_seconds),
        )
    console = _console()
    console.print(f"Name server {nameserver}, {len(members)} nodes")
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        text = column in ("node", "address", "eviction")
        table.add_column(column, no_wrap=True, justify="left" if text else "right")
    return table


def _console() -> Console:
    """Return a console that breaks lines on a terminal only."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)  # 80 is assumed otherwise


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
