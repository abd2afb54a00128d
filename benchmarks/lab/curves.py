"""Curves of hit ratio over capacity: as text for a terminal, or by matplotlib as a PNG or SVG.

Capacity is on a logarithmic axis. Pure but for the file that is written; matplotlib is imported for that only.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pyrocache.errors import ConfigurationError, PyroCacheError

_SYMBOLS = "o+x*#@%&"
_BEST = "."
_ROWS = 16
_MARGIN = 7  # columns to the left of the curves

Curves = Mapping[str, Sequence[float]]
"""Hit ratios by name, at the same capacities. Where curves meet, the one that is named first is seen."""


def symbols(curves: Curves, best: str) -> dict[str, str]:
    """What stands for each curve in `draw`."""
    others = iter(_SYMBOLS)
    return {name: _BEST if name == best else next(others) for name in curves}


def draw(
    capacities: Sequence[int], curves: Curves, best: str, label: Callable[[int], str], width: int
) -> list[str]:
    """The curves as lines of text, at most ``width`` columns wide.

    Args:
        best: the curve that is a bound for the others.
        label: a capacity as a short text.
    """
    columns = max(width - _MARGIN - 1, 20)
    low, high, step = _scale([ratio for ratios in curves.values() for ratio in ratios])
    grid = [[" "] * columns for _ in range(_ROWS + 1)]
    places = _places(capacities, columns)
    for name, symbol in reversed(symbols(curves, best).items()):
        for column in range(places[0], places[-1] + 1):
            ratio = _at(column, places, curves[name])
            row = round((high - ratio) / (high - low) * _ROWS)
            grid[row][column] = symbol
    lines = []
    ticks = {
        round((high - low - tick * step) / (high - low) * _ROWS): low + tick * step for tick in range(100)
    }
    for row, cells in enumerate(grid):
        tick = f"{ticks[row]:>5.0%} ┤" if row in ticks else "      │"
        lines.append((tick + "".join(cells)).rstrip())
    return [*lines, *_axis(capacities, places, label, columns)]


def _scale(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The lower and upper end of the vertical axis, and the distance of its marks."""
    spread = max(max(ratios) - min(ratios), 0.02)
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2) if spread / step <= 6 or step == 0.2)
    low = math.floor(min(ratios) / step + 1e-9) * step
    high = max(math.ceil(max(ratios) / step - 1e-9) * step, low + step)
    return low, high, step


def _places(capacities: Sequence[int], columns: int) -> list[int]:
    """The column of each capacity."""
    if len(capacities) == 1:
        return [columns // 2]
    first, last = math.log(capacities[0]), math.log(capacities[-1])
    return [round((math.log(each) - first) / (last - first) * (columns - 5)) + 2 for each in capacities]


def _at(column: int, places: Sequence[int], ratios: Sequence[float]) -> float:
    """The curve between the capacities it is known at: straight."""
    for number in range(1, len(places)):
        if column <= places[number]:
            left, right = places[number - 1], places[number]
            part = (column - left) / (right - left) if right > left else 1.0
            return ratios[number - 1] + part * (ratios[number] - ratios[number - 1])
    return ratios[-1]


def _axis(
    capacities: Sequence[int], places: Sequence[int], label: Callable[[int], str], columns: int
) -> list[str]:
    line, labels = ["─"] * columns, [" "] * columns
    free = 0
    for capacity, place in zip(capacities, places, strict=True):
        line[place] = "┬"
        text = label(capacity)
        start = min(max(place - len(text) // 2, 0), columns - len(text))
        if start >= free:
            labels[start : start + len(text)] = text
            free = start + len(text) + 1
    return ["      └" + "".join(line), (" " * _MARGIN + "".join(labels)).rstrip()]


# Into a file -----------------------------------------------------------------------------------------------


def check_plot(path: Path) -> None:
    """Raise `ConfigurationError` unless `plot` can write to ``path``, as far as is known beforehand."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise ConfigurationError(f"A plot is written as .png or .svg, and {path.name!r} ends in neither.")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"There is no directory {path.parent} to write the plot to.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigurationError("A plot needs matplotlib; get it with: pip install '.[bench]'")


def plot(
    path: Path,
    title: str,
    capacities: Sequence[int],
    curves: Curves,
    best: str,
    label: Callable[[int], str],
    unit: str,
) -> None:
    """Write the curves to ``path``; the arguments are as for `draw`.

    Raises:
        PyroCacheError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for name, ratios in curves.items():
        style = {"color": "0.5", "linestyle": "--"} if name == best else {"marker": "o", "markersize": 4}
        axes.plot(capacities, [100 * ratio for ratio in ratios], label=name, **style)
    axes.set_xscale("log")
    axes.set_xticks(capacities, [label(capacity) for capacity in capacities])
    axes.minorticks_off()
    axes.set_xlabel(f"Capacity ({unit})")
    axes.set_ylabel("Hit ratio (%)")
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise PyroCacheError(f"The plot {path} cannot be written: {error.strerror or error}.") from error
