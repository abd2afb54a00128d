"""Cards as text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.display.card import Bar, Card, Cell, Column, State, Table
from pyrocache.display.text import bar, columns_of, render, table_lines
from tests.support.hostile import HOSTILE, is_plain

COLUMNS = (
    Column("node"),
    Column("state"),
    Column("entries", right=True),
    Column("memory"),
    Column("connections", right=True, optional=2),
    Column("up", right=True, optional=1),
)


def row(name: str, state: Cell, entries: str, share: float) -> tuple[Cell, ...]:
    return (name, state, entries, Bar(share, f"{share:.0%} of 1 GiB"), "7", "3 s")


NODES = Table(
    COLUMNS, (row("cache.node.1", State("up"), "1,234", 0.05), row("n", State("away", "bad"), "7", 1.0))
)


def test_a_card_has_a_title_facts_tables_and_remarks() -> None:
    table = Table(
        (Column("a"), Column("b", right=True)), (("x", "1"), ("yy", "22")), "Letters", "… and 3 more"
    )
    facts = (("name", "value"), ("longer name", Bar(0.5, "half")))
    card = Card("Title", State("1 away", "bad"), facts, (table,), ("Something is wrong.",))
    assert render(card).splitlines() == [
        "Title: 1 away",
        "  name         value",
        "  longer name  ████░░░░ half",
        "",
        "  Letters",
        "  a    b",
        "  x    1",
        "  yy  22",
        "  … and 3 more",
        "",
        "  Something is wrong.",
    ]


def test_a_table_that_is_too_wide_loses_its_bars_then_its_optional_columns_then_parts_of_cells() -> None:
    assert table_lines(NODES, 100) == [
        "node          state  entries  memory                  connections   up",
        "cache.node.1  up       1,234  ▌░░░░░░░   5% of 1 GiB            7  3 s",
        "n             away         7  ████████ 100% of 1 GiB            7  3 s",
    ]
    assert table_lines(NODES, 65) == [
        "node          state  entries  memory         connections   up",
        "cache.node.1  up       1,234  5% of 1 GiB              7  3 s",
        "n             away         7  100% of 1 GiB            7  3 s",
    ]
    assert table_lines(NODES, 52)[0].split() == ["node", "state", "entries", "memory", "up"]
    assert table_lines(NODES, 46)[0].split() == ["node", "state", "entries", "memory"]
    assert table_lines(NODES, 34) == [
        "node      state  entries  memory",
        "cache.n…  up       1,234  5% of 1…",
        "n         away         7  100% of…",
    ]
    assert table_lines(NODES, 25) == [
        "node  sta…  entries  mem…",
        "cac…  up      1,234  5% …",
        "n     away        7  100…",
    ]


def test_numbers_are_aligned_to_the_right() -> None:
    lines = table_lines(NODES, 100)
    assert {line.index("GiB") for line in lines[1:]} == {lines[1].index("GiB")}
    end = lines[0].index("entries") + len("entries")
    assert [line[end - 5 : end] for line in lines[1:]] == ["1,234", "    7"]


@pytest.mark.parametrize(
    ("share", "drawn"),
    [
        (0.0, "░░░░"),
        (0.001, "▏░░░"),
        (0.5, "██░░"),
        (0.55, "██▎░"),
        (1.0, "████"),
        (7.0, "████"),
        (-1.0, "░░░░"),
        (math.inf, "████"),
        (math.nan, ""),
    ],
)
def test_a_bar_of_blocks(share: float, drawn: str) -> None:
    assert bar(share, columns=4) == drawn


def test_an_encoding_without_blocks_has_bars_of_ascii() -> None:
    assert bar(0.3, "ascii", 4) == "##.."
    card = Card("µ", None, (("…", Bar(0.5, "5 µs")), ("ä", "漢")), (NODES,))
    text = render(card, encoding="ascii")
    assert text.encode("ascii")
    assert "####.... 5 us" in text
    assert "\\xe4" in text
    assert render(card, encoding="no such encoding") == text
    assert "5 µs" in render(card, encoding="latin-1")
    assert "####" in render(card, encoding="latin-1")


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_what_is_shown_controls_nothing(hostile: str, encoding: str) -> None:
    column = Column(hostile)
    table = Table((column,), ((hostile,), (State(hostile),), (Bar(0.5, hostile),)), hostile, hostile)
    text = render(Card(hostile, State(hostile), ((hostile, hostile),), (table,), (hostile,)), 80, encoding)
    assert is_plain(text)
    text.encode(encoding)


def test_long_texts_are_wrapped_under_their_beginning() -> None:
    card = Card("Entry", None, (("value", "word " * 12 + "x" * 50),), (), ("A sentence that is long.",))
    lines = render(card, 30).splitlines()
    assert max(map(len, lines)) <= 30
    assert lines[1].startswith("  value  word")
    assert lines[2].startswith(" " * 9 + "word")
    assert "".join(lines).count("x") == 50


texts = st.text(st.characters(codec=None), max_size=60)


@given(st.integers(20, 120), st.lists(st.tuples(texts, texts, st.floats()), max_size=4), texts)
def test_every_line_fits_the_width(width: int, rows: list[tuple[str, str, float]], text: str) -> None:
    columns = (Column("a" * 9), Column(text, optional=1), Column("c", right=True))
    table = Table(columns, tuple((one, other, Bar(share, one)) for one, other, share in rows), text, text)
    facts = tuple((one, other) for one, other, _ in rows)
    lines = render(Card(text, State(text), facts, (table,), (text,)), width).splitlines()
    assert all(columns_of(line) <= width for line in lines)
    assert all(map(str.isprintable, lines))
