"""Cards as plain text: aligned lines that fit a width, for terminals, logs and ``repr``.

A table that is too wide is shown without its bars, then without its optional columns; then its widest cells are cut,
those with numbers last.
Only characters that the encoding of the output has are used. Pure: no I/O, no threads, no clock.

Thread safety: thread-safe; the functions depend on their arguments only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from unicodedata import combining, east_asian_width

from pyrocache.display.card import Bar, Card, Cell, State, Table, printable

_GAP = "  "
_INDENT = "  "
_BAR = 8  # columns that a bar takes
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_TRACK = "░"
_NARROWEST = 4  # columns that are left of a cell that is cut
_LEAST_WIDTH = 20


def render(card: Card, width: int = 100, encoding: str = "utf-8") -> str:
    """Return a card as lines of at most ``width`` columns, without a line end after the last one.

    Args:
        width: columns, at least 20: for less, lines are as long as for 20.
        encoding: of the output that the text is for.
    """
    style = _Style(encoding)
    width = max(width, _LEAST_WIDTH)
    title = style.plain(card.title)
    if card.state is not None:
        title = f"{title}: {style.plain(card.state.text)}"
    blocks = [_wrapped(title, width)]
    if card.facts:
        blocks[0] += [_INDENT + line for line in _facts(card.facts, width - len(_INDENT), style)]
    for table in card.tables:
        blocks.append([_INDENT + line for line in table_lines(table, width - len(_INDENT), encoding)])
    if card.remarks:
        remarks = [_wrapped(style.plain(remark), width - len(_INDENT)) for remark in card.remarks]
        blocks.append([_INDENT + line for lines in remarks for line in lines])
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def table_lines(table: Table, width: int, encoding: str = "utf-8") -> list[str]:
    """Return a table as lines of at most ``width`` columns, with its title and its note."""
    style = _Style(encoding)
    lines = _wrapped(style.plain(table.title), width) if table.title else []
    shown = list(range(len(table.columns)))
    optional = sorted(
        (index for index in shown if table.columns[index].optional),
        key=lambda index: -table.columns[index].optional,
    )
    cells = _cells(table, shown, style)
    if _width(cells) > width:
        style = style.without_bars()
        cells = _cells(table, shown, style)
    while _width(cells) > width and optional:
        shown.remove(optional.pop(0))
        cells = _cells(table, shown, style)
    if _width(cells) > width:
        cells = _cut(cells, [table.columns[index].right for index in shown], width, style)
    lines += [_GAP.join(row).rstrip() for row in zip(*cells, strict=True)]
    return lines + (_wrapped(style.plain(table.note), width) if table.note else [])


def bar(share: float, encoding: str = "utf-8", columns: int = _BAR) -> str:
    """Return a bar of ``columns`` characters, of blocks or, if the encoding lacks them, of ``#``; empty for NaN."""
    return _Style(encoding).bar(share, columns)


class _Style:
    """How texts and bars are written in one encoding."""

    def __init__(self, encoding: str, bars: bool = True) -> None:
        self._encoding = encoding
        self._bars = bars

    def without_bars(self) -> _Style:
        return _Style(self._encoding, bars=False)

    def plain(self, text: str) -> str:
        """Return a text in one line that can be encoded."""
        text = printable(text)
        return text if self._has(text) else "".join(map(self._encodable, text))

    @property
    def ellipsis(self) -> str:
        return self.plain("…")

    def cell(self, cell: Cell) -> tuple[str, str]:
        """Return the bar of a cell, which may be empty, and its text."""
        if isinstance(cell, Bar):
            drawn = self.bar(cell.share) if self._bars else ""
            return drawn, self.plain(cell.text)
        return "", self.plain(cell.text if isinstance(cell, State) else cell)

    def bar(self, share: float, columns: int = _BAR) -> str:
        if math.isnan(share):
            return ""
        share = min(max(share, 0.0), 1.0)
        if not self._has(_EIGHTHS + _TRACK):
            full = min(columns, math.ceil(share * columns))
            return "#" * full + "." * (columns - full)
        # Rounded up, so that little is not shown as nothing.
        full, part = divmod(math.ceil(share * columns * 8), 8)
        drawn = "█" * full + (_EIGHTHS[part] if part else "")
        return drawn + _TRACK * (columns - len(drawn))

    def _has(self, text: str) -> bool:
        try:
            text.encode(self._encoding)
        except (UnicodeError, LookupError):
            return False
        return True

    def _encodable(self, character: str) -> str:
        if self._has(character):
            return character
        return _ASCII.get(character) or character.encode("ascii", "backslashreplace").decode()


_ASCII = {"…": "...", "µ": "u", "·": "-", "–": "-"}


def _facts(facts: Sequence[tuple[str, Cell]], width: int, style: _Style) -> list[str]:
    labels = [style.plain(label) for label, _ in facts]
    indent = min(max(map(columns_of, labels)), width // 2)
    lines = []
    for label, (_, cell) in zip(labels, facts, strict=True):
        drawn, text = style.cell(cell)
        value = f"{drawn} {text}".strip()
        wrapped = _wrapped(value, width - indent - len(_GAP)) or [""]
        begin = _padded(_shortened(label, indent, style), indent, False)
        lines += [f"{begin}{_GAP}{wrapped[0]}"]
        lines += [" " * (indent + len(_GAP)) + line for line in wrapped[1:]]
    return lines


def _cells(table: Table, shown: Iterable[int], style: _Style) -> list[list[str]]:
    """Return the cells by column, each column with its heading and padded to one width."""
    columns = []
    for index in shown:
        column = table.columns[index]
        cells = [style.cell(row[index]) for row in table.rows]
        if any(drawn for drawn, _ in cells):
            # The texts beside bars are numbers, whatever the column is.
            widest = max(columns_of(text) for _, text in cells)
            blank = " " * max(columns_of(drawn) for drawn, _ in cells)
            texts = [f"{drawn or blank} {_padded(text, widest, True)}".rstrip() for drawn, text in cells]
        else:
            texts = [text for _, text in cells]
        texts = [style.plain(column.name), *texts]
        widest = max(map(columns_of, texts))
        columns.append([_padded(text, widest, column.right) for text in texts])
    return columns


def _width(cells: Sequence[Sequence[str]]) -> int:
    return sum(columns_of(column[0]) for column in cells) + len(_GAP) * (len(cells) - 1)


def _cut(cells: list[list[str]], right: Sequence[bool], width: int, style: _Style) -> list[list[str]]:
    """Cut the cells of the widest columns until the lines fit, or no column can be narrower. Numbers are cut last."""
    widths = [columns_of(column[0]) for column in cells]
    excess = _width(cells) - width
    for candidates in ([index for index, number in enumerate(right) if not number], range(len(widths))):
        while excess > 0 and any(widths[index] > _NARROWEST for index in candidates):
            widths[max(candidates, key=widths.__getitem__)] -= 1
            excess -= 1
    return [
        [_padded(_shortened(text.strip(), most, style), most, number) for text in column]
        for column, number, most in zip(cells, right, widths, strict=True)
    ]


def _shortened(text: str, most: int, style: _Style) -> str:
    """Return a text of at most ``most`` columns, with an ellipsis if it was cut."""
    if columns_of(text) <= most:
        return text
    mark = style.ellipsis if most > len(style.ellipsis) else ""
    while text and columns_of(text) + len(mark) > most:
        text = text[:-1]
    return text + mark


def _padded(text: str, width: int, right: bool) -> str:
    blank = " " * (width - columns_of(text))
    return blank + text if right else text + blank


def _wrapped(text: str, width: int) -> list[str]:
    """Return a text as lines of at most ``width`` columns, broken at spaces where possible."""
    if columns_of(text) <= width:
        return [text] if text else []
    lines, line = [], ""
    for word in text.split(" "):
        while columns_of(line) + bool(line) + columns_of(word) > width:
            if line and (columns_of(word) <= width or columns_of(line) + 1 >= width):
                lines.append(line)
                line = ""
                continue
            # A word that is longer than a line begins on the present one.
            room = width - columns_of(line) - bool(line)
            taken = _prefix(word, room)
            lines.append(f"{line} {taken}".strip())
            line, word = "", word[len(taken) :]
        line = f"{line} {word}" if line else word
    return [*lines, line] if line else lines


def _prefix(text: str, width: int) -> str:
    """Return the beginning of a text that takes at most ``width`` columns, and at least one character."""
    taken = 0
    for index, character in enumerate(text):
        taken += columns_of(character)
        if taken > width:
            return text[: max(index, 1)]
    return text


def columns_of(text: str) -> int:
    """Return the number of columns that a terminal needs for a printable text."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)
