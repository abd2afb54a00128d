"""Cards as HTML."""

from __future__ import annotations

import math
import re

import pytest

from pyrocache.display import html
from pyrocache.display.card import Bar, Card, Column, State, Table, printable
from tests.support.hostile import HOSTILE, outline


def card_of(text: str) -> Card:
    cells = ((text, Bar(0.5, text)), (State(text, "bad"), text))
    table = Table((Column(text), Column(text, right=True)), cells, text, text)
    return Card(text, State(text, "doubtful"), ((text, text), (text, Bar(2.0, text))), (table,), (text,))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_is_shown_is_text_and_nothing_else(hostile: str) -> None:
    tags, texts = outline(html.card(card_of(hostile)))
    assert tags == outline(html.card(card_of("harmless")))[0]
    assert "".join(texts).count(printable(hostile)) == 15
    assert all(map(str.isprintable, "".join(texts).replace("\xa0", "")))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_the_parts_escape_what_they_show(hostile: str) -> None:
    assert outline(html.bar(0.5, hostile))[0] == ["span"] * 3
    assert outline(html.frame(hostile, "<div></div>", State(hostile)))[1].count(printable(hostile)) == 1
    assert outline(f"<div style='{html.escape(hostile)}'></div>")[0] == ["div"]


def test_nothing_is_loaded_and_no_theme_is_assumed() -> None:
    shown = html.card(card_of("text"))
    assert not re.search(
        r"<(script|style|link|img|iframe|svg)|url\(|https?:|prefers-color|@import|var\(", shown
    )
    # Elements have the colour of the text around; only the dots beside states have one of their own.
    colours = set(re.findall(r"(?<!-)color:([^;\"]+)", shown))
    assert colours <= {"inherit", "#c07a00", "#e0463c"}
    backgrounds = set(re.findall(r"background:([^;\"]+)", shown))
    assert backgrounds == {"transparent", "currentColor", "rgba(128,128,128,0.25)"}


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("tone", ["good", "doubtful", "bad"])
@pytest.mark.parametrize("page", ["#ffffff", "#111111", "#1e1e1e"])
def test_the_colours_of_states_are_seen_on_black_and_on_white(tone: html.Tone, page: str) -> None:
    found = re.search(r"color:(#\w{6})", html.state(State("x", tone)))
    assert found
    dark, light = sorted((luminance(found[1]), luminance(page)))
    assert (light + 0.05) / (
        dark + 0.05
    ) >= 3.0  # of WCAG, for graphics; the text beside has that of the page


@pytest.mark.parametrize(
    ("share", "percent"), [(0.0, "0.0%"), (0.256, "25.6%"), (1.0, "100.0%"), (9.0, "100.0%"), (-1.0, "0.0%")]
)
def test_a_bar_is_as_long_as_its_share(share: float, percent: str) -> None:
    assert f"width:{percent}" in html.bar(share)


def test_a_share_that_is_not_known_has_no_bar() -> None:
    assert html.bar(math.nan, "a") == "<span>a</span>"
    assert html.bar(math.nan) == ""


def test_a_wide_table_scrolls() -> None:
    assert html.table(Table((Column("a"),), (("b",),))).startswith(
        '<div style="margin:8px 0 0;overflow-x:auto">'
    )
