"""What ``pyrocache top`` shows of a reading of the statistics: lines for a screen of any size, plain text, and JSON.

`Order` has what the keys change: the column that the table is sorted by, and which rows are shown. Pure: no I/O, no
clock. Text is of ASCII characters; what nodes and keys are called is shown without control characters.

Thread safety: not thread-safe; used in the main thread.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any, NamedTuple

from rich.text import Text

from pyrocache.cli.values import as_text
from pyrocache.client.rates import ClusterRates, Rate
from pyrocache.client.stats import NodeStats, Stats
from pyrocache.config import format_size
from pyrocache.errors import PyroCacheError
from pyrocache.protocol.handshake import legible

UP, NO_LEASE, AWAY = "up", "no lease", "away"

HELP = "q quit  < > sort by another column, or its letter  r reverse  up down scroll  ? help"

_GAP = "  "
_BAR_CELLS = 8
_UNKNOWN = "-"
_KEY_CHARACTERS = 200  # of the repr of a key; the screen shows fewer
_REMARK_LINES = 3  # the most that a remark takes of the screen
_SEVERAL = 3  # rows that the hottest keys get on a small screen


@dataclass(frozen=True)
class Reading:
    """One reading of the statistics.

    Attributes:
        nameserver: the address of the cluster.
        stats: the statistics.
        rates: what happened in the last seconds.
        keys: the keys that are called most, None if they were not asked for; each has ``key``, ``calls_per_second`` and
            ``node``.
        remark: what is wrong, as a sentence; empty if all is well.
    """

    nameserver: str
    stats: Stats
    rates: ClusterRates
    keys: Sequence[Any] | None = None
    remark: str = ""


class _Node(NamedTuple):
    """What a row of the table shows."""

    name: str
    state: str
    figures: NodeStats | None
    rate: Rate


class _Column(NamedTuple):
    """A column of the table of nodes.

    Attributes:
        name: for ``--sort``.
        letter: the key that sorts by it.
        value: what the rows are sorted by; NaN is last.
        text: what is shown.
        narrowest: the least width, so that the columns move little while figures change.
    """

    name: str
    title: str
    letter: str
    value: Callable[[_Node], Any]
    text: Callable[[_Node], str]
    narrowest: int = 6


def _rated(value: Callable[[Rate], float], text: Callable[[float], str]) -> tuple[Any, Any]:
    def measured(node: _Node) -> float:
        return value(node.rate) if node.rate.seconds else math.nan

    return measured, lambda node: text(measured(node))


def _figured(value: Callable[[NodeStats], float], text: Callable[[float], str]) -> tuple[Any, Any]:
    def known(node: _Node) -> float:
        return math.nan if node.figures is None else value(node.figures)

    return known, lambda node: text(known(node))


def _number(number: float) -> str:
    if math.isnan(number):
        return _UNKNOWN
    return f"{number:.1f}" if 0 < number < 9.95 else f"{number:,.0f}"


def _count(number: float) -> str:
    return _UNKNOWN if math.isnan(number) else f"{number:,.0f}"


def _share(share: float) -> str:
    return _UNKNOWN if math.isnan(share) else f"{share:.0%}"


def _latency(seconds: float) -> str:
    if math.isnan(seconds):
        return _UNKNOWN
    digits = 3 if seconds < 1e-3 else 1 if seconds < 1e-2 else 0
    return f"{seconds * 1e3:,.{digits}f} ms"


def _used(figures: NodeStats) -> float:
    return figures.bytes / figures.max_bytes if figures.max_bytes else math.nan


def _size(size: float) -> str:
    return _UNKNOWN if math.isnan(size) else format_size(size)


def _natural(node: _Node) -> list[tuple[int, str]]:
    """Return what sorts ``cache.node.2`` before ``cache.node.10``."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", node.name)]


COLUMNS = (
    _Column("name", "node", "n", _natural, lambda node: node.name, 0),
    _Column("state", "state", "t", lambda node: node.state, lambda node: node.state, 0),
    _Column("ops", "ops/s", "o", *_rated(lambda rate: rate.operations, _number)),
    _Column("gets", "gets/s", "g", *_rated(lambda rate: rate.gets, _number)),
    _Column("sets", "sets/s", "s", *_rated(lambda rate: rate.sets, _number)),
    _Column("hits", "hits", "h", *_rated(lambda rate: rate.hit_ratio, _share), 4),
    _Column("entries", "entries", "e", *_figured(lambda figures: figures.entries, _count)),
    _Column("memory", "memory", "m", *_figured(lambda figures: figures.bytes, _size)),
    _Column("used", "used", "u", *_figured(_used, _share), 4),
    _Column("evictions", "evict/s", "v", *_rated(lambda rate: rate.evictions, _number)),
    _Column("connections", "conns", "c", *_figured(lambda figures: figures.connections, _count)),
    _Column("p99", "p99 get", "p", *_rated(lambda rate: rate.p99_seconds, _latency), 8),
)
NAMES = tuple(column.name for column in COLUMNS)
"""What ``--sort`` takes."""

_ASCENDING = ("name", "state")  # the others begin with the largest
_BAR = "bar"  # beside the column "used"
_DROPPED = (
    "connections",
    "memory",
    "evictions",
    "state",
    _BAR,
    "sets",
    "gets",
    "p99",
    "entries",
    "hits",
    "used",
)
"""What a narrow screen leaves out, the first one first. The column that sorts stays."""


@dataclass
class Order:
    """What the keys change.

    Attributes:
        sort: the name of the column that the rows are sorted by.
        reverse: whether the order of the column is turned round.
        help: whether the line of help is shown.
        first: the first row that is shown, if not all fit.
    """

    sort: str = "ops"
    reverse: bool = False
    help: bool = False
    first: int = 0
    _letters: dict[str, str] = field(
        default_factory=lambda: {column.letter: column.name for column in COLUMNS}, repr=False
    )

    def press(self, key: str) -> bool:
        """Do what a key says. Return False for the key that quits."""
        if key in ("q", "Q"):
            return False
        if key in ("<", "left", ">", "right"):
            step = 1 if key in (">", "right") else -1
            self.sort, self.reverse = NAMES[(NAMES.index(self.sort) + step) % len(NAMES)], False
        elif key == "r":
            self.reverse = not self.reverse
        elif key == "?":
            self.help = not self.help
        elif key in ("up", "down"):
            self.first = max(0, self.first + (1 if key == "down" else -1))
        elif key in self._letters:
            self.sort, self.reverse = self._letters[key], False
        return True

    def sorted(self, nodes: list[_Node]) -> list[_Node]:
        """Return the rows in this order. What is not known is last, whatever the order."""
        column = COLUMNS[NAMES.index(self.sort)]
        nodes = sorted(nodes, key=_natural)  # of equal rows
        if self.sort in _ASCENDING:
            return sorted(nodes, key=column.value, reverse=self.reverse)
        known = [node for node in nodes if not math.isnan(column.value(node))]
        unknown = [node for node in nodes if math.isnan(column.value(node))]
        sign = 1 if self.reverse else -1
        return [*sorted(known, key=lambda node: sign * column.value(node)), *unknown]


def screen(reading: Reading, order: Order, columns: int, lines: int) -> list[Text]:
    """Return the lines that fill a screen: the cluster, the nodes, and the hottest keys if they were asked for."""
    head = [Text(line) for line in _cluster(reading, columns)]
    head[0].stylize("bold")
    if reading.remark:
        text = legible_line(reading.remark)
        head += [
            Text(line, style="red")
            for line in wrap(text, columns, max_lines=_REMARK_LINES, placeholder=" ...")
        ]
    if order.help:
        head += [Text(line, style="cyan") for line in _wrapped(HELP, columns)]
    room = max(lines - len(head), 1)
    keys = _keys(reading, columns)
    for_keys = min(len(keys), max(room // 2, min(_SEVERAL, room - 2), 0)) if keys else 0
    nodes = _rows(reading)
    fitting = max(room - for_keys - 1, 0)
    order.first = max(0, min(order.first, len(nodes) - fitting))
    heading, *rows = _table(nodes, order, columns)
    shown = rows[order.first : order.first + fitting]
    below = len(rows) - order.first - len(shown)
    if below and len(shown) > 1:
        shown[-1] = Text(f"... {below + 1} more nodes: up and down scroll", style="dim")
    return [*head, heading, *shown, *keys[:for_keys]][:lines]


def plain(reading: Reading, order: Order) -> str:
    """Return the same as text of any width, without colours."""
    table = [line.plain for line in _table(_rows(reading), order, None)]
    keys = [line.plain for line in _keys(reading, None)]
    remark = [legible_line(reading.remark)] if reading.remark else []
    lines = [*_cluster(reading, None), *remark, "", *table, *([""] if keys else []), *keys]
    return "\n".join(line.rstrip() for line in lines)


def as_json(reading: Reading, order: Order) -> dict[str, Any]:
    """Return the same as plain dicts, lists and numbers; None for what is not known."""
    stats, total = reading.stats, reading.rates.total
    shown: dict[str, Any] = {
        "nameserver": reading.nameserver,
        "seconds": round(total.seconds, 3),
        "total": _figures(stats.total if stats.nodes else None, total),
        "nodes": [
            {"name": node.name, "state": node.state, **_figures(node.figures, node.rate)}
            for node in order.sorted(_rows(reading))
        ],
    }
    if reading.keys is not None:
        shown["keys"] = [
            {"key": key_text(hot.key), "node": hot.node, "calls_per_second": round(hot.calls_per_second, 3)}
            for hot in reading.keys
        ]
    if reading.remark:
        shown["remark"] = reading.remark
    return shown


def key_text(key: object) -> str:
    """Return the repr of a key, cut if it is long, without control characters and line ends."""
    try:
        text = as_text(key)
    except PyroCacheError:  # its class is not ours
        text = f"<{type(key).__name__}>"
    text = text if len(text) <= _KEY_CHARACTERS else f"{text[: _KEY_CHARACTERS - 3]}..."
    return legible_line(text)


def legible_line(text: str) -> str:
    """Return a text in one line, without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _figures(figures: Any, rate: Rate) -> dict[str, Any]:
    known = bool(rate.seconds)
    p99, hits = rate.p99_seconds, rate.hit_ratio
    return {
        "operations_per_second": round(rate.operations, 3) if known else None,
        "gets_per_second": round(rate.gets, 3) if known else None,
        "sets_per_second": round(rate.sets, 3) if known else None,
        "deletes_per_second": round(rate.deletes, 3) if known else None,
        "evictions_per_second": round(rate.evictions, 3) if known else None,
        "hit_ratio": None if math.isnan(hits) else round(hits, 4),
        "p99_get_seconds": None if math.isnan(p99) else p99,
        **{name: getattr(figures, name, None) for name in ("entries", "bytes", "max_bytes", "connections")},
    }


def _rows(reading: Reading) -> list[_Node]:
    stats, rates = reading.stats, reading.rates
    rows = [
        _Node(legible(name), UP if figures.serving else NO_LEASE, figures, rates.nodes.get(name, Rate()))
        for name, figures in stats.nodes.items()
    ]
    return rows + [_Node(legible(name), AWAY, None, Rate()) for name in stats.away]


def _cluster(reading: Reading, columns: int | None) -> list[str]:
    stats, rate = reading.stats, reading.rates.total
    known = bool(rate.seconds)
    nodes = len(stats.nodes) + len(stats.away)
    count = "1 node" if nodes == 1 else f"{nodes} nodes"
    away = f", {len(stats.away)} away" if stats.away else ""
    figures = [
        f"{_number(rate.operations) if known else _UNKNOWN} ops/s",
        f"{_share(rate.hit_ratio)} hits",
        f"{stats.total.entries:,} entries",
        f"{format_size(stats.total.bytes)} of {format_size(stats.total.max_bytes)}",
    ]
    lines = [f"pyrocache {reading.nameserver}, {count}{away}"]
    for figure in figures:
        joined = f"{lines[-1]}{_GAP if len(lines) > 1 else ''}{figure}"
        if len(lines) == 1 or (columns is not None and len(joined) > columns):
            lines.append(figure)
        else:
            lines[-1] = joined
    return lines


def _table(nodes: list[_Node], order: Order, width: int | None) -> list[Text]:
    """Return the heading and the rows, without the columns for which a screen is too narrow. None: any width."""
    nodes = order.sorted(nodes)
    shown, bar = list(COLUMNS), _BAR_CELLS
    cells = _cells(nodes, shown)
    dropped = [name for name in _DROPPED if name != order.sort]
    while width is not None and dropped and _width(cells) + (len(_GAP) + bar if bar else 0) > width:
        gone = dropped.pop(0)
        if gone in (_BAR, "used"):
            bar = 0
        shown = [column for column in shown if column.name != gone]
        cells = _cells(nodes, shown)
    return [
        _line([column[number] for column in cells], shown, order, node, bar)
        for number, node in enumerate([None, *nodes])
    ]


def _cells(nodes: list[_Node], columns: Sequence[_Column]) -> list[list[str]]:
    """Return the texts of each column, its title first, of equal length."""
    cells = []
    for column in columns:
        texts = [column.title, *map(column.text, nodes)]
        wide = max(column.narrowest, *map(len, texts))
        left = column.name in _ASCENDING
        cells.append([text.ljust(wide) if left else text.rjust(wide) for text in texts])
    return cells


def _width(cells: Sequence[Sequence[str]]) -> int:
    return sum(len(column[0]) for column in cells) + len(_GAP) * (len(cells) - 1)


def _line(
    texts: Sequence[str], columns: Sequence[_Column], order: Order, node: _Node | None, bar: int
) -> Text:
    line = Text(style="bold" if node is None else "red" if node.state != UP else "")
    for text, column in zip(texts, columns, strict=True):
        line.append("" if column is columns[0] else _GAP)
        sorts = node is None and column.name == order.sort
        line.append(text, style="reverse" if sorts else "")
        if column.name == "used" and bar:
            line.append(_GAP)
            used = math.nan if node is None or node.figures is None else _used(node.figures)
            full = 0 if math.isnan(used) else round(min(used, 1.0) * bar)
            style = "green" if full < bar * 0.9 else "yellow"
            line.append("#" * full, style=style)
            line.append(("." if node is not None and node.figures is not None else " ") * (bar - full))
    return line


def _keys(reading: Reading, width: int | None) -> list[Text]:
    """Return the heading and the rows of the hottest keys."""
    if reading.keys is None:
        return []
    title = "Hottest keys (at least)"
    if not reading.keys:
        return [Text(f"{title}: none yet", style="bold")]
    rows = [(_number(hot.calls_per_second), legible(hot.node), key_text(hot.key)) for hot in reading.keys]
    calls = max(len("calls/s"), *(len(row[0]) for row in rows))
    names = max(len("node"), *(len(row[1]) for row in rows))
    heading = f"{'calls/s'.rjust(calls)}{_GAP}{'node'.ljust(names)}{_GAP}key"
    lines = [Text(f"{rate.rjust(calls)}{_GAP}{name.ljust(names)}{_GAP}{key}") for rate, name, key in rows]
    return [Text(title, style="bold"), Text(heading, style="bold"), *lines]


def _wrapped(text: str, columns: int) -> list[str]:
    """Return the parts of a text, which are separated by two spaces, in lines that are not longer than the screen."""
    lines: list[str] = []
    for part in text.split(_GAP):
        if lines and len(lines[-1]) + len(_GAP) + len(part) <= columns:
            lines[-1] += _GAP + part
        else:
            lines.append(part)
    return lines
