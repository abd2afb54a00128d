"""What is shown of statistics, nodes and entries."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from pyrocache import (
    ClientStats,
    Entry,
    LatencyHistogram,
    Member,
    NamespaceStats,
    Nodes,
    NodeStats,
    Stats,
    Totals,
)
from pyrocache.client import views
from pyrocache.display import html, text
from pyrocache.display.card import Bar, Card, State
from tests.support.hostile import HOSTILE, is_plain, outline


def node(**figures: Any) -> NodeStats:
    return NodeStats(**{"max_bytes": 1000, "uptime_seconds": 7.0, **figures})


def cell(card: Card, row: int, column: str) -> Any:
    (index,) = [at for at, one in enumerate(card.tables[0].columns) if one.name == column]
    return card.tables[0].rows[row][index]


def client_card(nodes: dict[str, NodeStats], path: tuple[str, ...] = (), away: tuple[str, ...] = ()) -> Card:
    members = [Member(f"cache.node.{number}", "h", number) for number in range(1, len(nodes) + len(away) + 1)]
    stats = Stats.of(nodes, ClientStats(), list(away))
    return views.of_client("title", "ns:1", path, members, stats)


def test_the_card_of_a_client_has_the_cluster_and_a_row_for_each_node() -> None:
    nodes = {
        "cache.node.1": node(entries=1000, bytes=250, hits=3, misses=1, connections=5),
        "cache.node.2": node(entries=500, view=1, lease_seconds=0.0),
    }
    card = client_card(nodes, away=("cache.node.3",))
    facts = dict(card.facts)
    assert (facts["name server"], facts["nodes"], facts["entries"]) == ("ns:1", "3", "1,500")
    assert facts["memory"] == Bar(0.125, "250 B / 2.0 KiB")
    assert facts["hit ratio"] == Bar(0.75, "75.0% of 4 reads")
    assert card.state == State("1 away", "bad")
    assert [cell(card, row, "state").text for row in range(3)] == ["up", "no lease", "away"]
    assert [cell(card, row, "entries") for row in range(3)] == ["1,000", "500", "-"]
    assert [cell(card, row, "address") for row in range(3)] == ["h:1", "h:2", "h:3"]
    assert [cell(card, row, "hit ratio") for row in range(3)] == ["75.0%", "-", "-"]
    assert cell(card, 0, "memory") == Bar(0.25, "250 B / 1000 B")
    assert cell(card, 0, "up for") == "7 s"
    assert card.remarks == ("cache.node.3 does not answer, so its figures are missing here.",)


def test_the_card_of_a_namespace_has_its_entries_and_hits() -> None:
    shop = {("shop",): NamespaceStats(1, 3, 20), (): NamespaceStats(100, 0, 80)}
    nodes = {
        "cache.node.1": node(entries=100, hits=101, misses=3, namespaces=shop),
        "cache.node.2": node(entries=7),
    }
    card = client_card(nodes, ("shop",))
    assert dict(card.facts)["entries"] == "20"
    assert dict(card.facts)["hit ratio"] == Bar(0.25, "25.0% of 4 reads")
    assert [cell(card, row, "entries") for row in range(2)] == ["20", "0"]
    assert [cell(card, row, "hit ratio") for row in range(2)] == ["25.0%", "-"]
    assert "those of this namespace" in card.remarks[0]
    assert dict(client_card(nodes, ("unknown",)).facts)["entries"] == "0"


def test_a_namespace_that_a_node_may_not_report_has_at_least_so_many_entries() -> None:
    most = {(str(number),): NamespaceStats(1, 1, 1) for number in range(500)}
    nodes = {
        "cache.node.1": node(namespaces=most),
        "cache.node.2": node(namespaces={("mine",): NamespaceStats(1, 0, 5)}),
    }
    card = client_card(nodes, ("mine",))
    assert dict(card.facts)["entries"] == "at least 5"
    assert [cell(card, row, "entries") for row in range(2)] == ["-", "5"]


def test_nodes_are_a_list_that_is_shown_as_a_table() -> None:
    members = [Member("cache.node.1", "h", 1), Member("cache.node.2", "::1", 2, weight=2.0, zone="a")]
    nodes = Nodes(members)
    assert nodes == members
    assert isinstance(nodes, list)
    assert repr(nodes) == repr(members)
    copy = pickle.loads(pickle.dumps(nodes))
    assert (type(copy), copy) == (Nodes, members)
    shown = nodes._repr_mimebundle_()
    assert shown["text/html"] == nodes._repr_html_()
    lines = shown["text/plain"].splitlines()
    assert lines[2:] == [
        "  node          address  zone  weight",
        "  cache.node.1  h:1      -          1",
        "  cache.node.2  [::1]:2  a          2",
    ]
    assert Nodes()._repr_mimebundle_()["text/plain"] == "0 nodes"


class Broken:
    def __repr__(self) -> str:
        raise ZeroDivisionError("<script>")


class Long:
    def __repr__(self) -> str:
        return "line\n" * 1000


class Deep:
    def __repr__(self) -> str:
        return repr(self)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"b": 1, "a": {}}, "{'b': 1, 'a': {}}"),
        ([set(), {1}, frozenset(), frozenset([2])], "[set(), {1}, frozenset(), frozenset({2})]"),
        ([[[[[[7]]]]]], "[[[[[...]]]]]"),
        ([[[[{1}]]]], "[[[[{...}]]]]"),
        ("x\n\x1b", r"'x\n\x1b'"),
        (Broken(), "Broken, whose repr raises ZeroDivisionError>"),
        ([1, Broken()], "<list, whose repr raises ZeroDivisionError>"),
        (Deep(), "Deep, whose repr raises RecursionError>"),
        (Long(), "line line line"),
        (10**5000, "<int, whose repr raises ValueError>"),
        (bytes(10**6), r"b'\x00"),
        (bytearray(b"ab"), "bytearray(b'ab')"),
        ("\u202e\ud800", r"'\u202e\ud800'"),
    ],
    ids=range(13),
)
def test_a_value_is_shown_in_a_short_line_whatever_it_is(value: object, shown: str) -> None:
    text = views.short_repr(value)
    assert shown in text
    assert len(text) <= 200
    assert text.isprintable()


def test_of_a_large_value_only_the_beginning_is_formatted() -> None:
    used = []

    class Item:
        def __repr__(self) -> str:
            used.append(1)
            return "item"

        def __lt__(self, other: object) -> bool:
            used.append(1)
            return True

    items = [Item() for _ in range(10_000)]
    for large in (items, dict.fromkeys(items), set(items), frozenset(items), tuple(items), {1: items}):
        used.clear()
        assert "item" in views.short_repr(large)
        assert len(used) < 100
    for kind in (bytes, bytearray):
        assert len(views._Repr(200).repr(kind(10**6))) < 1000
        assert views.short_repr(kind(300)).endswith("…")
        assert views.short_repr(kind(2)).endswith(r"b'\x00\x00'" + ")" * (kind is bytearray))


def test_an_interrupt_while_a_value_is_formatted_is_not_hidden() -> None:
    class Interrupting:
        def __repr__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        views.short_repr([Interrupting()])


def entry(value: Any = 1, **attributes: Any) -> Entry:
    known = {"version": 7, "ttl_seconds": math.inf, "tags": (), "age_seconds": None, "idle_seconds": None}
    return Entry(value, **{**known, "size_bytes": 2048, **attributes})


def test_the_card_of_an_entry() -> None:
    card = entry([1], ttl_seconds=70.0, tags=("a", "b"), age_seconds=0.5, idle_seconds=3700.0)._card()
    assert dict(card.facts) == {
        "value": "[1]",
        "type": "list",
        "version": "7",
        "time to live": "1 min 10 s",
        "tags": "'a', 'b'",
        "age": "0.5 s",
        "idle": "1 h 1 min",
        "size": "2.0 KiB",
    }
    bare = dict(entry(Broken())._card().facts)
    assert (bare["time to live"], bare["tags"], bare["age"]) == ("does not expire", "none", "not recorded")
    assert bare["type"].endswith(".Broken")
    assert pickle.loads(pickle.dumps(entry([1]))) == entry([1])


def test_a_histogram_has_a_bar_for_each_power_of_two_within_its_range() -> None:
    card = LatencyHistogram((0, 0, 8, 0, 2, 0, 0))._card()
    assert [row[0] for row in card.tables[0].rows] == ["below 4 µs", "below 8 µs", "below 16 µs"]
    assert [row[1] for row in card.tables[0].rows] == [Bar(1.0, "8"), Bar(0.0, "0"), Bar(0.25, "2")]
    assert dict(card.facts)["calls measured"] == "10"
    assert LatencyHistogram((0, 0))._card().tables == ()


def test_figures_of_a_node_and_of_a_client() -> None:
    card = node(pid=5, policy="lru", silent="cache.node.2", handshakes_late=3)._card()
    facts = dict(card.facts)
    assert (facts["process"], facts["eviction"], facts["gets no answer from"]) == (
        "pid 5",
        "lru",
        "cache.node.2",
    )
    assert "3 late" in str(facts["refused handshakes"])
    assert Totals()._card().title == "Totals"
    assert dict(ClientStats(misses_on_error=1234)._card().facts)["misses on error"] == "1,234"


def all_of(text: str) -> list[Any]:
    """Everything that is shown, with a text wherever there may be one."""
    path = (text, text)
    figures = {"policy": text, "version": text, "silent": text, "namespaces": {path: NamespaceStats(1, 1, 1)}}
    one = node(**figures, latencies={text: LatencyHistogram((1,))})
    stats = Stats.of({text: one}, ClientStats(), [text])
    member = Member("cache.node.1", "h", 1)
    return [
        one._card(),
        stats._card(),
        stats.total._card(),
        entry(text, tags=(text,))._card(),
        entry({text: [text]})._card(),
        views.of_client(views.client_title(text, path), text, path, [member], stats, text),
        views.of_problem(text, text, text),
        views.of_async_client(text, text, 1, False),
        views.of_local_cluster([views.Process(text, 1, text, True)] * 2, stats, text),
        views.of_local_cluster([views.Process(text, 1, text, None)], None, text, stopped=True),
    ]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_keys_and_values_do_no_harm(hostile: str) -> None:
    for card, harmless in zip(all_of(hostile), all_of("harmless"), strict=True):
        assert outline(html.card(card))[0] == outline(html.card(harmless))[0]
        assert is_plain(text.render(card))
        text.render(card).encode()


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (0.96, "1.0 s"),
        (59.9, "59 s"),
        (61.0, "1 min 1 s"),
        (3600.0, "1 h 0 min"),
        (90_000.0, "1 d 1 h"),
        (math.inf, "-"),
        (math.nan, "-"),
    ],
)
def test_long_durations(seconds: float, shown: str) -> None:
    assert views.long_duration(seconds) == shown


SHOWN: list[Callable[[], Any]] = [
    lambda: Stats.of({"a": node()}, ClientStats(), []),
    lambda: node(),
    lambda: Totals(),
    lambda: LatencyHistogram((1, 2)),
    lambda: ClientStats(),
    lambda: entry(),
]


@pytest.mark.parametrize("make", SHOWN)
def test_ipython_is_given_text_and_html_of_one_card(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]
) -> None:
    shown = make()
    cards = []
    card_of = type(shown)._card
    monkeypatch.setattr(type(shown), "_card", lambda self: cards.append(1) or card_of(self))
    bundle = shown._repr_mimebundle_(include=None, exclude=None)
    assert bundle.keys() == {"text/plain", "text/html"}
    assert len(cards) == 1
    assert shown._repr_html_() == bundle["text/html"]


def test_terminal_ipython_shows_the_text() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    formatter = formatters.DisplayFormatter()
    formatter.active_types = ["text/plain"]
    stats = Stats.of({"a": node()}, ClientStats(), [])
    shown = {"entry": entry(), "nodes": Nodes([Member("cache.node.1", "h", 1)]), "stats": stats}
    for one in shown.values():
        data, _ = formatter.format(one)
        assert data["text/plain"] == text.render(one._card())
    # Within another object there is room for a line.
    data, _ = formatter.format([shown["entry"]])
    assert data["text/plain"].startswith("[Entry(value=1, ")
    data, _ = formatter.format((shown["nodes"],))
    assert data["text/plain"].startswith("([Member(name=")
