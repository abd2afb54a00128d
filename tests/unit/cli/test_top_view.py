"""What ``pyrocache top`` shows: on screens of any size, sorted, with nodes that are away, and with hostile names."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest

from pyrocache.cli import top, top_view
from pyrocache.cli.top_view import COLUMNS, Order, Reading, as_json, key_text, plain, screen
from pyrocache.client.rates import ClusterRates, Rate
from pyrocache.client.stats import ClientStats, NodeStats, Stats

GIB = 2**30


@dataclass
class Hot:
    key: object
    node: str = "cache.node.1"
    calls_per_second: float = 12.5


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def reading(nodes: int = 3, away: tuple[str, ...] = (), **more: object) -> Reading:
    figures = {
        f"cache.node.{number}": NodeStats(
            pid=number, entries=100 * number, bytes=number * GIB // 10, max_bytes=GIB, connections=3
        )
        for number in range(1, nodes + 1)
    }
    rates = {
        name: Rate(seconds=5.0, hits=1000.0 / number, misses=100.0, sets=50.0 * number)
        for number, name in enumerate(figures, 1)
    }
    total = Rate(seconds=5.0, hits=1833.3, misses=300.0, sets=300.0)
    stats = Stats.of(figures, ClientStats(), list(away))
    return Reading("127.0.0.1:9090", stats, ClusterRates(rates, total), **more)  # type: ignore[arg-type]


def names(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.startswith("cache.node.")]


def test_the_option_names_the_columns_there_are() -> None:
    assert top.SORTS == top_view.NAMES
    assert len({column.letter for column in COLUMNS}) == len(COLUMNS)
    assert not {column.letter for column in COLUMNS} & {"q", "r", "?", "<", ">"}


def test_plain_text_has_the_cluster_and_a_row_for_each_node() -> None:
    text = plain(reading(away=("cache.node.9",)), Order("name"))
    assert text.startswith("pyrocache 127.0.0.1:9090, 4 nodes, 1 away\n2,433 ops/s  86% hits  600 entries")
    assert names(text) == ["cache.node.1", "cache.node.2", "cache.node.3", "cache.node.9"]
    row = next(line for line in text.splitlines() if line.startswith("cache.node.2"))
    assert row.split()[:9] == ["cache.node.2", "up", "700", "600", "100", "83%", "200", "204.8", "MiB"]
    assert text.isascii()
    assert "\x1b" not in text


def test_rows_are_sorted_by_each_column_and_unknown_ones_are_last() -> None:
    shown = reading(away=("cache.node.10",))
    by_sets = ["cache.node.3", "cache.node.2", "cache.node.1", "cache.node.10"]
    assert names(plain(shown, Order("sets"))) == by_sets
    assert names(plain(shown, Order("sets", reverse=True))) == [*by_sets[2::-1], "cache.node.10"]
    by_name = [f"cache.node.{number}" for number in (1, 2, 3, 10)]  # not 1, 10, 2
    assert names(plain(shown, Order("name"))) == by_name
    assert names(plain(shown, Order("name", reverse=True))) == by_name[::-1]
    for column in COLUMNS:
        assert sorted(names(plain(shown, Order(column.name)))) == sorted(by_name)


def test_keys_change_the_order() -> None:
    order = Order("name")
    assert order.press("<")
    assert order.sort == "p99"
    assert order.press("right")
    assert order.sort == "name"
    for column in COLUMNS:
        assert order.press(column.letter)
        assert order.sort == column.name
    order.press("r")
    assert order.reverse
    order.press("o")
    assert (order.sort, order.reverse) == ("ops", False)
    order.press("?")
    assert order.help
    assert order.press("x")
    assert not order.press("q")


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("lines", [8, 12, 24, 60])
@pytest.mark.parametrize("help_", [False, True])
@pytest.mark.parametrize("hot", [None, [], [Hot(number) for number in range(40)]])
def test_what_is_shown_fits_the_screen(columns: int, lines: int, help_: bool, hot: list[Hot] | None) -> None:
    for sort in ("name", "connections"):
        order = Order(sort, help=help_)
        shown = screen(reading(30, keys=hot), order, columns, lines)
        assert len(shown) <= lines
        table = [line.plain for line in shown if line.plain.startswith(("node", "cache.node."))]
        assert table
        assert max(map(len, table)) <= columns
        assert any(
            line.plain.startswith("node") and COLUMNS[top_view.NAMES.index(sort)].title in line.plain
            for line in shown
        )
        if not help_:
            assert any(line.plain.startswith("cache.node.") for line in shown)
        assert not hot or lines < 12 or any("Hottest keys" in line.plain for line in shown)


def test_rows_that_do_not_fit_are_scrolled_to() -> None:
    order = Order("name")
    shown = "\n".join(line.plain for line in screen(reading(30), order, 80, 12))
    assert names(shown)[0] == "cache.node.1"
    assert "more nodes" in shown
    for _ in range(100):
        order.press("down")
    shown = "\n".join(line.plain for line in screen(reading(30), order, 80, 12))
    assert names(shown)[-1] == "cache.node.30"
    for _ in range(100):
        order.press("up")
    assert order.first == 0


def test_a_bar_shows_the_memory_where_there_is_room() -> None:
    wide = [line.plain for line in screen(reading(), Order("name"), 140, 24)]
    assert any("20%  ##......" in line for line in wide)
    narrow = [line.plain for line in screen(reading(), Order("name"), 60, 24)]
    assert not any("#" in line for line in narrow)
    assert any("20%" in line for line in narrow)


def test_nothing_is_known_at_first() -> None:
    first = Reading(
        "127.0.0.1:9090", Stats.of({"n": NodeStats(pid=1)}, ClientStats(), []), ClusterRates({}, Rate())
    )
    assert "\n- ops/s  - hits  0 entries  0 B of 0 B\n" in plain(first, Order())
    total = as_json(first, Order())["total"]
    assert (total["operations_per_second"], total["hit_ratio"], total["p99_get_seconds"]) == (
        None,
        None,
        None,
    )
    json.dumps(as_json(first, Order()), allow_nan=False)


def test_json_has_figures_for_each_node() -> None:
    shown = as_json(reading(away=("cache.node.9",), keys=[Hot("a\x1b")]), Order("name"))
    text = json.dumps(shown, allow_nan=False)
    assert json.loads(text) == shown
    assert [node["state"] for node in shown["nodes"]] == ["up", "up", "up", "away"]
    assert shown["nodes"][1]["operations_per_second"] == 700.0
    assert shown["nodes"][3]["entries"] is None
    assert shown["keys"] == [{"key": r"'a\x1b'", "node": "cache.node.1", "calls_per_second": 12.5}]


def test_names_and_keys_cannot_control_the_terminal() -> None:
    hostile = "cache\x1b[2J\u202e\n"
    shown = Reading(
        "127.0.0.1:9090",
        Stats.of({hostile: NodeStats(pid=1)}, ClientStats(), [hostile + "2"]),
        ClusterRates({hostile: Rate()}, Rate()),
        keys=[Hot(hostile, node=hostile), Hot(Rude())],
        remark=f"no answer\n{hostile}",
    )
    for lines in (
        [line.plain for line in screen(shown, Order(), 80, 24)],
        plain(shown, Order()).splitlines(),
    ):
        assert all(line.isprintable() for line in lines), lines
        assert any("<Rude>" in line for line in lines)


def test_long_keys_are_cut() -> None:
    assert len(key_text("x" * 10_000)) == 200
    assert key_text("x" * 10_000).endswith("...")
    assert key_text(("user", 1)) == "('user', 1)"


def test_small_and_large_figures() -> None:
    figures = [0.0, 0.04, 9.94, 9.96, 1234.4, math.nan]
    assert list(map(top_view._number, figures)) == ["0", "0.0", "9.9", "10", "1,234", "-"]
    seconds = [15e-6, 1.24e-3, 0.0501, 2.0, math.nan]
    assert list(map(top_view._latency, seconds)) == ["0.015 ms", "1.2 ms", "50 ms", "2,000 ms", "-"]
