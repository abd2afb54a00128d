"""The picture of a live view: its axes stand still, gaps are gaps, and every text is escaped."""

from __future__ import annotations

import math
import re

import pytest

from pyrocache.client.features.watch import HISTORY_SECONDS, Reading, draw, round_up
from pyrocache.client.stats import ClientStats, NodeStats, Stats
from pyrocache.config import format_size


def lines(picture: str) -> list[list[tuple[float, float]]]:
    """The lines of both charts, as pairs of pixels."""
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in points.split())]
        for points in re.findall(r'<polyline points="([^"]+)"', picture)
    ]


def stats(**nodes: NodeStats) -> Stats:
    return Stats.of(nodes, ClientStats(), ["cache.node.<9>"])


@pytest.mark.parametrize(
    ("number", "top"), [(0, 10), (10, 10), (10.5, 20), (49, 50), (51, 100), (150, 200), (12_345, 20_000)]
)
def test_an_axis_ends_at_a_round_number(number: float, top: float) -> None:
    assert round_up(number) == top


def test_a_reading_stands_where_its_time_and_its_value_are() -> None:
    now = 1000.0
    history = [
        Reading(now - HISTORY_SECONDS, 0.0, 0.0),
        Reading(now - HISTORY_SECONDS / 2, 50.0, 0.5),
        Reading(now, 100.0, 1.0),
    ]
    operations, ratio = lines(draw(history, None, 100.0))
    assert operations == ratio
    (left, bottom), (middle, half), (right, top) = operations
    assert (left, top) == (0.0, 0.0)
    assert (middle * 2, half * 2) == (right, bottom)


def test_the_axis_of_the_operations_is_what_it_is_given() -> None:
    (low, _), (high, _) = (lines(draw([Reading(0.0, 10.0, 1.0)], None, top)) for top in (10.0, 100.0))
    assert low[0][1] == 0.0
    assert high[0][1] > 40.0


def test_without_reads_the_line_of_the_hit_ratio_has_a_gap() -> None:
    ratios = [0.5, 0.5, math.nan, 0.7]
    history = [Reading(float(at), 1.0, ratio) for at, ratio in enumerate(ratios)]
    operations, before, after = lines(draw(history, None, 10.0))
    assert len(operations) == 4
    assert len(before) == 2
    assert len(after) == 2  # a single reading: a line without length, drawn as a dot
    assert "no reads" in draw(history[:3], None, 10.0)


def test_a_node_has_a_bar_and_one_that_is_away_says_so_and_texts_are_escaped() -> None:
    node = NodeStats(bytes=2**20, max_bytes=2**22)
    picture = draw([], stats(**{"cache.node.1": node}), 10.0, "a <remark>")
    assert "width:25.0%" in picture
    assert f"{format_size(2**20)} of {format_size(2**22)}" in picture
    assert "cache.node.&lt;9&gt;" in picture
    assert "a &lt;remark&gt;" in picture
    assert "<9>" not in picture


def test_a_large_cluster_is_cut() -> None:
    picture = draw([], stats(**{f"cache.node.{number}": NodeStats() for number in range(1, 31)}), 10.0)
    assert "cache.node.9<" in picture
    assert "cache.node.30<" not in picture
    assert "… and 19 more" in picture
