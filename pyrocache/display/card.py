"""The description of what a notebook or a terminal shows of an object: a `Card` of facts and tables.

``text.py`` and ``html.py`` render it. Both escape all texts, so any string is good here. Pure: no I/O, no threads, no
clock.

Thread safety: thread-safe; all objects are immutable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Tone: TypeAlias = Literal["good", "doubtful", "bad"]
"""How a state is to be taken, which HTML shows as a colour."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A share of a whole, drawn as a bar beside its text.

    Attributes:
        share: 0 to 1; values beyond are drawn as the nearest of these, and NaN without a bar.
        text: what the share is of, such as ``"3 MiB of 1 GiB"``.
    """

    share: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """A state, such as ``"up"``, and how it is to be taken."""

    text: str
    tone: Tone = "good"


Cell: TypeAlias = str | Bar | State


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading.
        right: whether its cells are aligned to the right, as numbers are.
        optional: 0 if text always shows it. If a table is too wide, text leaves out those with the highest number.
    """

    name: str
    right: bool = False
    optional: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """A table. Each row has a cell for each column.

    Attributes:
        columns, rows: what it consists of.
        title: a heading; empty for none.
        note: a line below it, such as ``"… and 10 more"``; empty for none.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """What is shown of one object.

    Attributes:
        title: what it is.
        state: its state; None for none.
        facts: pairs of a label and what is so.
        tables: tables below the facts.
        remarks: sentences at the end, such as what is wrong.
    """

    title: str
    state: State | None = None
    facts: tuple[tuple[str, Cell], ...] = ()
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()


def printable(text: str) -> str:
    """Return a text in one line without characters that control a terminal or the direction of what follows.

    They are shown as `repr` shows them. So are lone surrogates, which no output can encode.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
