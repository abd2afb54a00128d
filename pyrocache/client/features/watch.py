"""`LiveView`, which `PyroCacheClient.watch` returns: operations per second, hit ratio and memory in a notebook, live.

A thread asks the nodes for their statistics twice a second and draws the result as HTML. It does not use entries, and
ends with `LiveView.stop`, with the client, and when the client is watched anew. `draw` is pure.

The axes do not move: time is the last minute, hit ratio and memory are 0 to 100 %, and the axis of the operations only
grows, in steps of 1, 2 and 5. Rates are averaged over some seconds (``rates.py``).

Thread safety: `LiveView` is thread-safe; `draw` depends on its arguments only.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pyrocache.client.options import stats_of
from pyrocache.client.rates import Rates
from pyrocache.client.stats import NodeStats, Stats
from pyrocache.config import format_size
from pyrocache.display.card import Bar, Cell, Column, State, Table
from pyrocache.display.html import escape, frame, table
from pyrocache.errors import ClientClosed, ConfigurationError, PyroCacheError
from pyrocache.net.deadline import Deadline

if TYPE_CHECKING:
    from pyrocache.client.client import PyroCacheClient

LEAST_SECONDS = 0.5
"""The shortest time between two pictures."""

HISTORY_SECONDS = 60.0
_QUERY_SECONDS = 1.0  # for one reading, whatever the client's timeout is
_MOST_NODES = 12
_WIDTH, _HEIGHT = 220, 56  # of a chart, in pixels
_LINE = "#3b82c4"  # readable on white and on black


class Reading(NamedTuple):
    """What one picture needs of one reading of the statistics.

    Attributes:
        at: when it was read, in seconds of a monotonic clock.
        operations: per second.
        hit_ratio: 0 to 1; NaN without reads.
    """

    at: float
    operations: float
    hit_ratio: float


class LiveView:
    """A live view of a cluster, in a notebook.

    Args:
        client: whose cluster is shown.
        interval: seconds between two pictures, at least 0.5.
        show: shows the first picture; returns what replaces it by another one.
        clock: a monotonic clock, in seconds.

    Raises:
        ConfigurationError: ``interval`` is below 0.5, or not a number.
    """

    def __init__(
        self,
        client: PyroCacheClient,
        interval: float,
        show: Callable[[str], Callable[[str], None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not isinstance(interval, (int, float)) or not LEAST_SECONDS <= interval < math.inf:
            raise ConfigurationError(
                f"watch redraws at most twice a second: interval is at least {LEAST_SECONDS:g}, not {interval!r}."
            )
        self._context = client._context
        self._interval = interval
        self._clock = clock
        self._stopping = threading.Event()
        self._rates = Rates()
        self._history: deque[Reading] = deque()
        self._top = 10.0
        self._last: Stats | None = None
        self._replace = show(self._picture())
        self._thread = threading.Thread(target=self._run, name="pyrocache live view", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the view is still redrawn."""
        return self._thread.is_alive() and not self._stopping.is_set()

    def stop(self) -> None:
        """Stop redrawing; the last picture stays. A second call does nothing."""
        self._stopping.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(LEAST_SECONDS)

    def __repr__(self) -> str:
        return (
            f"<LiveView of {self._context.config.nameserver!r}, {'running' if self.running else 'stopped'}>"
        )

    def _run(self) -> None:
        remark = "Stopped."
        # When the kernel ends, a picture cannot be sent any more.
        with suppress(Exception):
            while not self._stopping.is_set():
                since = self._clock()
                try:
                    picture = self._picture()
                except ClientClosed:
                    remark = "Stopped, as the client was closed."
                    break
                self._replace(picture)
                self._stopping.wait(max(self._interval - (self._clock() - since), self._interval / 2))
            self._replace(self._drawn(self._last, remark))
        self._stopping.set()

    def _title(self) -> str:
        return f"Cache at {self._context.config.nameserver}"

    def _picture(self) -> str:
        """Return the next picture. Raises `ClientClosed`."""
        try:
            stats = stats_of(self._context, self._context.backend.stats(Deadline(_QUERY_SECONDS)))
        except ClientClosed:
            raise
        except PyroCacheError as error:
            return self._drawn(None, str(error))
        now = self._clock()
        total = self._rates.take(stats, now).total
        self._history.append(Reading(now, total.operations, total.hit_ratio))
        while self._history[0].at < now - HISTORY_SECONDS:
            self._history.popleft()
        self._top = max(self._top, round_up(total.operations))
        self._last = stats
        return self._drawn(stats)

    def _drawn(self, stats: Stats | None, remark: str = "") -> str:
        return frame(self._title(), draw(list(self._history), stats, self._top, remark))


def draw(history: Sequence[Reading], stats: Stats | None, top: float, remark: str = "") -> str:
    """Return the picture as HTML.

    Args:
        history: the readings of the last minute, the newest last.
        stats: the newest statistics; None if nobody answered.
        top: operations per second at the upper end of the axis.
        remark: a sentence to add.
    """
    newest = history[-1] if history else Reading(0.0, 0.0, math.nan)
    ratio = "no reads" if math.isnan(newest.hit_ratio) else f"{newest.hit_ratio:.1%}"
    parts = [
        _chart("operations per second", f"{newest.operations:,.0f}", top, f"{top:,.0f}", _points(history, 1)),
        _chart("hit ratio", ratio, 1.0, "100 %", _points(history, 2)),
    ]
    if stats is not None:
        parts.append(f"<div>{table(_memory(stats))}</div>")
    line = f'<div style="opacity:0.7;margin:6px 0 0">{escape(remark)}</div>' if remark else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px 28px">{"".join(parts)}</div>{line}'


def round_up(number: float) -> float:
    """Return the least of 10, 20, 50, 100, 200 … that is not below the number: the upper end of an axis."""
    power = 10.0
    while True:
        for factor in (1, 2, 5):
            if number <= factor * power:
                return factor * power
        power *= 10


def _points(history: Sequence[Reading], field: int) -> list[list[tuple[float, float]]]:
    """Return the lines of a chart: pairs of seconds ago and a value. A reading without a value ends a line."""
    lines: list[list[tuple[float, float]]] = [[]]
    for reading in history:
        if math.isnan(reading[field]):
            lines.append([])
        else:
            lines[-1].append((history[-1].at - reading.at, reading[field]))
    return [line for line in lines if line]


def _chart(title: str, figure: str, top: float, limit: str, lines: list[list[tuple[float, float]]]) -> str:
    def place(ago: float, value: float) -> str:
        return f"{_WIDTH * (1 - ago / HISTORY_SECONDS):.1f},{_HEIGHT * (1 - min(value / top, 1.0)):.1f}"

    drawn = "".join(
        # A single reading is a line without length, which is drawn as a dot.
        f'<polyline points="{" ".join(place(*point) for point in (line if len(line) > 1 else line * 2))}"/>'
        for line in lines
    )
    style = f'fill="none" stroke="{_LINE}" stroke-width="2" stroke-linejoin="round" stroke-linecap="round"'
    axes = f'<path stroke="currentColor" stroke-opacity="0.25" d="M0 0H{_WIDTH}M0 {_HEIGHT}H{_WIDTH}"/>'
    below = f"display:flex;justify-content:space-between;opacity:0.6;font-size:0.85em;width:{_WIDTH}px"
    return (
        f'<div><div><span style="font-size:1.4em;font-weight:600">{escape(figure)}</span> '
        f'<span style="opacity:0.7">{escape(title)}</span></div>'
        f'<svg width="{_WIDTH}" height="{_HEIGHT + 4}" viewBox="0 -2 {_WIDTH} {_HEIGHT + 4}" style="display:block">'
        f"{axes}<g {style}>{drawn}</g></svg>"
        f'<div style="{below}"><span>last minute</span><span>0 to {escape(limit)}</span></div></div>'
    )


def _memory(stats: Stats) -> Table:
    """Return a table with a bar of the memory of each node."""
    rows: list[tuple[Cell, ...]] = [
        (name, Bar(node.bytes / node.max_bytes if node.max_bytes else math.nan, _of_most(node)))
        for name, node in stats.nodes.items()
    ]
    rows += [(name, State("away", "bad")) for name in stats.away]
    rows.sort(key=lambda row: _by_number(str(row[0])))
    more = len(rows) - _MOST_NODES
    note = f"… and {more:,} more" if more > 0 else ""
    return Table((Column("node"), Column("memory")), tuple(rows[:_MOST_NODES]), note=note)


def _of_most(node: NodeStats) -> str:
    return f"{format_size(node.bytes)} of {format_size(node.max_bytes)}"


def _by_number(name: str) -> tuple[str, int]:
    """Return the order of the names of nodes: 9 before 10."""
    head, _, number = name.rpartition(".")
    return head, int(number) if number.isdecimal() else 0


# How a picture is shown --------------------------------------------------------------------------------------


def watch(client: PyroCacheClient, interval: float) -> LiveView:
    """Show a live view in the notebook of this process. See `PyroCacheClient.watch`."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        raise ConfigurationError("watch shows a live view in a notebook; in a terminal, run: pyrocache top")
    before = _views.get(id(client._context))
    if before is not None:
        before.stop()
    view = _views[id(client._context)] = LiveView(
        client, interval, _in_widget if _has_widgets() else _in_output
    )
    return view


_views: weakref.WeakValueDictionary[int, LiveView] = weakref.WeakValueDictionary()
"""The view of each client, by the id of its context, which the view refers to."""


def _has_widgets() -> bool:
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return False
    return True


def _in_widget(picture: str) -> Callable[[str], None]:
    """Show it as a widget, whose value is replaced: the notebook file keeps one picture."""
    import ipywidgets
    from IPython.display import display

    widget = ipywidgets.HTML(picture)
    display(widget)

    def replace(picture: str) -> None:
        widget.value = picture

    return replace


def _in_output(picture: str) -> Callable[[str], None]:
    """Show it as output of the cell, which is updated."""
    from IPython.display import HTML, display

    handle = display(HTML(picture), display_id=True)

    def replace(picture: str) -> None:
        handle.update(HTML(picture))

    return replace
