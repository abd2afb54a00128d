"""Cards as HTML that any notebook shows: JupyterLab, the classic notebook, VS Code, nbconvert.

Self-contained: inline styles only, no script, no style sheet, nothing that is loaded. Colours are those of the text
around, in several transparencies, so light and dark themes are both right; the colours of states have a similar
contrast on black and on white, and stand beside a text that says the same. Each element says what the style sheets of
notebooks would else say of it. Without styles, as where HTML is sanitized, the texts still make sense.

All texts are escaped here. `card`, `table` and `bar` return HTML; only `frame` takes HTML, from them.

Pure: no I/O, no threads, no clock.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from pyrocache.display.card import Bar, Card, Cell, State, Table, Tone, printable

_LINE = "1px solid rgba(128,128,128,0.35)"
_FAINT = "1px solid rgba(128,128,128,0.18)"
_TONES: dict[Tone, str] = {"good": "#26953b", "doubtful": "#c07a00", "bad": "#e0463c"}
_DIM = "opacity:0.7"
_CELL = (
    "padding:3px 14px 3px 0;border:0;background:transparent;color:inherit;vertical-align:middle;"
    "white-space:nowrap;max-width:none;font-weight:normal;line-height:1.4"
)
_TABLE = "border-collapse:collapse;border:0;margin:0;background:transparent;color:inherit;font-size:inherit"
_ROW = "background:transparent;color:inherit"


def escape(text: str) -> str:
    """Return a text as HTML in one line, also for an attribute in quotes. Control characters are shown as escapes."""
    return html.escape(printable(text))


def bar(share: float, text: str = "", width: str = "6em") -> str:
    """Return a bar and its text.

    Args:
        share: 0 to 1; values beyond are drawn as the nearest of these, and NaN without a bar.
        text: shown beside it.
        width: of the bar, as CSS has it.
    """
    beside = f"<span>{escape(text)}</span>" if text else ""
    if math.isnan(share):
        return beside
    percent = 100 * min(max(share, 0.0), 1.0)
    drawn = (
        f'<span style="display:inline-block;width:{escape(width)};height:0.6em;margin-right:0.6em;overflow:hidden;'
        'background:rgba(128,128,128,0.25);border-radius:2px">'
        f'<span style="display:block;width:{percent:.1f}%;height:100%;background:currentColor;opacity:0.6"></span>'
        "</span>"
    )
    return drawn + beside


def state(state: State) -> str:
    """Return a dot in the colour of a state, and its text."""
    return f'<span style="color:{_TONES[state.tone]}">●</span>&#160;{escape(state.text)}'


def table(table: Table) -> str:
    """Return a table with its title and its note. It scrolls if it is wider than the page."""
    head = "".join(
        f'<th style="{_CELL};border-bottom:{_LINE};text-align:{_side(column.right)}">'
        f'<span style="{_DIM}">{escape(column.name)}</span></th>'
        for column in table.columns
    )
    body = "".join(
        f'<tr style="{_ROW}">'
        + "".join(
            f'<td style="{_CELL};border-bottom:{_FAINT};text-align:{_side(column.right)}">{_table_cell(cell)}</td>'
            for column, cell in zip(table.columns, row, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    title = f'<div style="margin:0 0 2px;font-weight:600">{escape(table.title)}</div>' if table.title else ""
    note = f'<div style="margin:3px 0 0;{_DIM}">{escape(table.note)}</div>' if table.note else ""
    return (
        f'<div style="margin:8px 0 0;overflow-x:auto">{title}<table style="{_TABLE}">'
        f'<thead style="border:0"><tr style="{_ROW}">{head}</tr></thead><tbody>{body}</tbody></table>{note}</div>'
    )


def facts(pairs: Sequence[tuple[str, Cell]]) -> str:
    """Return labels and what is so, a line each."""
    rows = "".join(
        f'<tr style="{_ROW}"><th style="{_CELL};text-align:left;vertical-align:top">'
        f'<span style="{_DIM}">{escape(label)}</span></th>'
        f'<td style="{_CELL};text-align:left;white-space:normal;overflow-wrap:anywhere">{_cell(cell)}</td></tr>'
        for label, cell in pairs
    )
    return f'<table style="{_TABLE}"><tbody>{rows}</tbody></table>' if pairs else ""


def frame(title: str, body: str, shown: State | None = None) -> str:
    """Return the frame of a card with its title.

    Args:
        title: a text.
        body: HTML, such as `table` returns.
        shown: a state beside the title.
    """
    beside = f'<span style="margin-left:1em;font-weight:normal">{state(shown)}</span>' if shown else ""
    return (
        f'<div style="display:inline-block;box-sizing:border-box;max-width:100%;padding:8px 14px 10px;border:{_LINE};'
        "border-radius:4px;color:inherit;font-size:13px;line-height:1.4;text-align:left;"
        'font-variant-numeric:tabular-nums">'
        f'<div style="margin:0 0 4px;font-weight:600">{escape(title)}{beside}</div>{body}</div>'
    )


def card(card: Card) -> str:
    """Return a card."""
    remarks = "".join(
        f'<div style="margin:8px 0 0;max-width:60em;white-space:normal">{escape(remark)}</div>'
        for remark in card.remarks
    )
    return frame(card.title, facts(card.facts) + "".join(map(table, card.tables)) + remarks, card.state)


def _cell(cell: Cell) -> str:
    if isinstance(cell, Bar):
        return bar(cell.share, cell.text)
    return state(cell) if isinstance(cell, State) else escape(cell)


def _table_cell(cell: Cell) -> str:
    """Return a cell of a table. In a column, bars begin at one place, and the texts beside them end at one."""
    if isinstance(cell, Bar) and not math.isnan(cell.share):
        between = "display:flex;justify-content:space-between;align-items:center"
        return f'<div style="{between}">{bar(cell.share, cell.text, "4em")}</div>'
    return _cell(cell)


def _side(right: bool) -> str:
    return "right" if right else "left"
