"""What ``pyrocache nodes`` and ``pyrocache status`` print: tables that fit the terminal, and JSON for scripts.

The statistics are the `Stats` object of ``client/stats.py``, which is made from the replies of
``node/service/metrics.py``. Tables are of ASCII characters, so that every terminal can show them.

Thread safety: for the main thread.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from pyrocache.cli.output import client_to_copy, to_copy, write
from pyrocache.client.stats import NodeStats, Stats
from pyrocache.client.views import long_duration
from pyrocache.cluster.routing import Member
from pyrocache.config import format_address, format_size
from pyrocache.errors import ProtocolMismatch
from pyrocache.net.directory import explain_obstacle
from pyrocache.protocol.handshake import legible

_GAP = "  "
_LEFT = ("node", "address", "zone", "version", "eviction")  # the other columns are aligned to the right
_AWAY = "away"
_NO_LEASE = "no lease"
_UNLIMITED = 10_000  # columns, when the output is not a terminal and $COLUMNS is not set
_FIGURES = (
    *("entries", "bytes", "max_bytes", "hits", "misses", "evictions", "connections", "uptime_seconds"),
    *("view", "version"),
)

Row = dict[str, str]


def print_nodes(answers: Sequence[dict[str, Any]], max_memory: int, nameserver: str) -> None:
    """Print the nodes that ``pyrocache nodes`` has started, and how to use them."""
    memory = format_size(max_memory)
    rows = [
        {
            "node": answer["name"],
            "pid": str(answer["pid"]),
            "address": format_address(answer["host"], answer["port"]),
            "memory": memory,
        }
        for answer in answers
    ]
    lines = _table(rows, optional=("memory",))
    lines += [f"Show them with: {to_copy('status', nameserver)}"]
    lines += [f"Use them in Python with: {client_to_copy(nameserver)}"]
    write("\n".join(lines))


def status_lines(
    nameserver: str,
    members: Sequence[Member],
    stats: Stats,
    obstacle: int = 0,
    *,
    width: int | None = None,
) -> list[str]:
    """Return the lines about the members and their statistics that ``pyrocache status`` prints.

    Args:
        obstacle: as in `Listing`.
        width: the columns of the terminal; None to find them.
    """
    count = f"{len(members)} node" if len(members) == 1 else f"{len(members)} nodes"
    rows = _status_rows(members, stats)
    lines = _table(
        rows, optional=("eviction", "lease", "peers", "up", "zone", "weight", "version"), width=width
    )
    views = sorted({figures.view for figures in stats.nodes.values() if figures.view})
    view = f", view {' and '.join(map(str, views))}" if views else ""
    remarks = [
        f"{name} gets no answer from {' and '.join(figures.silent.split())}."
        for name, figures in stats.nodes.items()
        if figures.silent
    ]
    remarks += [f"Warning: {error}" for error in stats.errors.values() if isinstance(error, ProtocolMismatch)]
    if obstacle:
        remarks.append(f"Warning: {explain_obstacle(nameserver, obstacle)}")
    return [f"Name server {nameserver}, {count}{view}", "", *lines, *remarks]


def nodes_as_json(members: Sequence[Member], stats: Stats) -> list[dict[str, Any]]:
    """Return the nodes as ``pyrocache status --json`` prints them; the figures of a node that is away are None."""
    nodes: list[dict[str, Any]] = []
    for member in members:
        figures = stats.nodes.get(member.name)
        state = _AWAY if figures is None else "up" if figures.serving else _NO_LEASE
        node = {"name": member.name, "address": member.address, "zone": member.zone, "weight": member.weight}
        figures_of = {name: getattr(figures, name, None) for name in _FIGURES}
        nodes.append({**node, "state": state, **figures_of, **_standing(figures)})
    return nodes


def _standing(figures: NodeStats | None) -> dict[str, Any]:
    """Return for how long a node may serve, None for ever, and who does not answer it."""
    if figures is None:
        return {"lease_seconds": None, "silent": None}
    lease = round(figures.lease_seconds, 3) if _may_end(figures) else None
    return {"lease_seconds": lease, "silent": figures.silent.split()}


def _may_end(figures: NodeStats) -> bool:
    """Return whether a node may have to stop serving: it has a view, and is not the only node."""
    return bool(figures.view) and not math.isinf(figures.lease_seconds)


def _status_rows(members: Sequence[Member], stats: Stats) -> list[Row]:
    """Return the rows. They have zones if a node is in one, weights if one is not 1, and versions if these differ."""
    zoned = any(member.zone for member in members)
    weighted = any(member.weight != 1 for member in members)
    versions = {name: legible(figures.version) or "-" for name, figures in stats.nodes.items()}
    mixed = len(set(versions.values())) > 1
    rows = []
    for member in members:
        row = {"node": member.name, "address": member.address}
        if zoned:
            row["zone"] = member.zone or "-"
        if weighted:
            row["weight"] = f"{member.weight:g}"
        if mixed:
            row["version"] = versions.get(member.name, "")
        rows.append({**row, **_figures_row(stats.nodes.get(member.name))})
    return rows


def _figures_row(figures: NodeStats | None) -> Row:
    if figures is None:
        return {"entries": _AWAY}
    return {
        "entries": f"{figures.entries:,}" if figures.serving else _NO_LEASE,
        "memory": f"{format_size(figures.bytes)} / {format_size(figures.max_bytes)}",
        "eviction": figures.policy,
        "hits": "-" if math.isnan(figures.hit_ratio) else f"{figures.hit_ratio:.0%}",
        "peers": str(figures.connections),
        "up": long_duration(figures.uptime_seconds),
        "lease": f"{figures.lease_seconds:.1f} s" if _may_end(figures) else "-",
    }


def _table(rows: Sequence[Row], optional: Sequence[str], width: int | None = None) -> list[str]:
    """Return the lines of a table that fits the terminal.

    When it is too wide, it is without the first of the ``optional`` columns, then the second, and so on. If this is
    not enough, the addresses, which may be long, are in lines below the table.
    """
    if width is None:
        width = shutil.get_terminal_size((_UNLIMITED, 24)).columns  # $COLUMNS counts more than the terminal
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = _aligned(rows, columns)
    for name in (*optional, "address"):
        if len(lines[0]) <= width:
            break
        if name in columns:
            columns.remove(name)
            lines = _aligned(rows, columns)
    header, *body = [line.rstrip() for line in lines]
    body = [_red(line) if row.get("entries") == _AWAY else line for line, row in zip(body, rows, strict=True)]
    return [header, *body] if "address" in columns else [header, *body, "", *_addresses(rows, width)]


def _aligned(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Return the header and the rows as lines of the same length."""
    table = [{name: name for name in columns}, *rows]
    cells = {name: [row.get(name, "") for row in table] for name in columns}
    for name, texts in cells.items():
        width = max(map(len, texts))
        cells[name] = [text.ljust(width) if name in _LEFT else text.rjust(width) for text in texts]
    return [_GAP.join(line) for line in zip(*cells.values(), strict=True)]


def _addresses(rows: Sequence[Row], width: int) -> list[str]:
    lines = _aligned(rows, ["node", "address"])[1:]
    if max(map(len, lines)) <= width:
        return [line.rstrip() for line in lines]
    return [line for row in rows for line in (row["node"], _GAP + row["address"])]


def _red(line: str) -> str:
    """Return the line in red, if the output is a terminal that has colours and its user wants them."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return line if plain or sys.stdout is None or not sys.stdout.isatty() else f"\x1b[31m{line}\x1b[0m"
