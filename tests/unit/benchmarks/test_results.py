"""What is kept of a run, and what is written from it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("benchmarks")

from benchmarks.cases import CASES
from benchmarks.report import markdown
from benchmarks.results import Results, Row, newest
from benchmarks.tables import for_markdown, tables
from benchmarks.targets import TARGETS, Target, summary

ROWS = [
    Row("single", "100 B, TCP", "get hit", "pyrocache", {"median_us": 40.0, "calls_per_second": 20_000.0}),
    Row("single", "100 B, TCP", "get hit", "redis-py", {"median_us": 80.0, "ratio": 2.0}),
    Row("single", "100 B, TCP", "get hit", "pymemcache", {"median_us": 20.0, "ratio": 0.5}),
]


def some_results() -> Results:
    return Results(
        "2026-02-03T04:05:06+00:00",
        machine={"cpu": "Some CPU", "cpus": "2", "memory": "4 GiB", "kernel": "Linux 6"},
        versions={"Python": "3.11.0"},
        rows=list(ROWS),
        notes=["memcached was left out."],
    )


def test_results_survive_json(tmp_path: Path) -> None:
    path = some_results().save(tmp_path)
    assert path.name == "2026-02-03T0405.json"
    assert Results.from_json(path.read_text()) == some_results()
    assert newest(tmp_path) == path


def test_there_may_be_no_results(tmp_path: Path) -> None:
    assert newest(tmp_path) is None


def test_a_table_has_the_columns_that_it_needs() -> None:
    (shown,) = tables(ROWS)
    assert shown.title == "100 B, TCP"
    assert shown.head == ["", "", "median µs", "calls/s", "ours/theirs"]
    assert shown.lines == [
        ["get hit", "pyrocache", "40", "20,000", ""],
        ["", "redis-py", "80", "", "2.00"],
        ["", "pymemcache", "20", "", "0.50"],
    ]
    assert for_markdown(shown).splitlines()[1:3] == [
        "| --- | --- | ---: | ---: | ---: |",
        "| get hit | pyrocache | 40 | 20,000 |  |",
    ]


def test_targets_are_met_missed_or_not_measured() -> None:
    verdicts = {line[0]: line[-1] for line in summary(some_results(), CASES).lines}
    assert verdicts["get, 100 B, TCP: calls/s, to redis-py"] == "met"
    assert verdicts["get, 100 B, TCP: calls/s, to pymemcache"] == "MISSED"
    assert verdicts["import pyrocache"] == "not measured"


def test_targets_of_other_cases_are_not_mentioned() -> None:
    assert len(summary(some_results(), ["routing"]).lines) == 3


def test_a_target_may_have_two_bounds() -> None:
    target = Target("", "", "", "", "", at_least=0.8, at_most=1.2)
    assert target.wanted() == "at least 0.8 × and at most 1.2 ×"
    assert [target.met(measured) for measured in (0.79, 0.8, 1.2, 1.21)] == [False, True, True, False]


def test_every_target_is_about_a_case() -> None:
    assert {target.case for target in TARGETS} <= set(CASES)


def test_the_report_says_where_what_and_how_it_went() -> None:
    page = markdown(some_results())
    for said in (
        "2026-02-03",
        "Some CPU",
        "Python 3.11.0",
        "memcached was left out.",
        "## One client",
        "MISSED",
    ):
        assert said in page
    assert "## YCSB" not in page  # it was not measured
    assert page.endswith("|\n")
