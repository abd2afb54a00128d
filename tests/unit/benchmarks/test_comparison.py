"""``python -m benchmarks replay --policy``: what it prints, draws and refuses."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from benchmarks.command import app
from benchmarks.lab import comparison, curves
from benchmarks.lab.traces import TraceError
from pyrocache.errors import ConfigurationError
from pyrocache.node.store.eviction import POLICIES

Trace = Callable[[Iterable[object]], Path]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """Writes a trace of those lines."""

    def write(lines: Iterable[object]) -> Path:
        path = tmp_path / "trace"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may start or ask one."""
    monkeypatch.setattr("pyrocache.local.LocalCluster.__init__", None)
    monkeypatch.setattr("pyrocache.client.client.PyroCacheClient.__init__", None)


def replay(path: Path, *options: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["replay", str(path), *options])


def printed(path: Path, *options: str) -> str:
    result = replay(path, *options)
    assert result.exit_code == 0, result.exception
    assert result.stderr == ""
    return result.stdout


def figures(path: Path, *options: str) -> dict[str, Any]:
    result = replay(path, *options, "--json")
    assert result.exit_code == 0, result.exception
    assert result.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refusal(path: Path, *options: str) -> str:
    result = replay(path, *options)
    assert isinstance(result.exception, ConfigurationError)
    assert result.output == ""
    sentence = str(result.exception)
    assert "\n" not in sentence
    return sentence


def keys(count: int = 3000, distinct: int = 400) -> list[str]:
    weights = [1 / (rank + 5) for rank in range(distinct)]
    return [f"key-{key}" for key in random.Random(3).choices(range(distinct), weights, k=count)]


def sized() -> list[str]:
    return [f"{time} {key} {100 + 37 * len(key) ** 2}" for time, key in enumerate(keys())]


# What it finds ---------------------------------------------------------------------------------------------


def test_json(trace: Trace) -> None:
    path = trace(keys())
    found = figures(path, "--policy", "all", "--capacity", "50", "--capacity", "10,20,10")
    assert {name: found[name] for name in ("trace", "format", "accesses", "unit", "capacities")} == {
        "trace": str(path),
        "format": "a key a line",
        "accesses": 3000,
        "unit": "entries",
        "capacities": [10, 20, 50],
    }
    assert found["keys"] == found["footprint"] == len(set(keys()))
    assert list(found["hit_ratios"]) == list(POLICIES)
    assert found["best"]["exact"] is True
    for ratios in found["hit_ratios"].values():
        assert 0 < ratios[0] < ratios[1] < ratios[2]
        assert all(ratio <= best for ratio, best in zip(ratios, found["best"]["hit_ratios"], strict=True))


def test_json_with_sizes(trace: Trace) -> None:
    found = figures(trace(sized()), "--policy", "s3fifo", "--policy", "lru", "--capacity", "32KiB,64KiB")
    assert (found["unit"], found["capacities"]) == ("bytes", [32768, 65536])
    assert list(found["hit_ratios"]) == ["s3fifo", "lru"]
    assert found["best"]["exact"] is False
    for ratios in found["hit_ratios"].values():
        assert 0 < ratios[0] < ratios[1] <= found["best"]["hit_ratios"][1]


def test_a_limit(trace: Trace) -> None:
    found = figures(trace(keys()), "--policy", "lru", "--limit", "700")
    assert (found["accesses"], found["keys"]) == (700, len(set(keys()[:700])))


def test_counts_with_a_unit(trace: Trace) -> None:
    found = figures(trace(range(10)), "--policy", "lru", "--capacity", "2k,1M,7")
    assert found["capacities"] == [7, 2000, 1_000_000]


@pytest.mark.parametrize("lines", [keys(), sized(), ["only"], ["1 only 5"], range(40), ["same"] * 40])
@pytest.mark.parametrize("options", [[], ["--capacity", "9999"]])
def test_the_text(trace: Trace, lines: Iterable[object], options: list[str]) -> None:
    out = printed(trace(lines), "--policy", "all", *options)
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    header = next(line for line in out.splitlines() if "capacity" in line)
    assert header.split()[1:3] == list(POLICIES)
    assert header.endswith(("best possible  ", "upper bound  "))
    assert "o s3fifo" in out


def test_the_best_is_marked(trace: Trace) -> None:
    scan = [*range(100)] * 20
    out = printed(trace(scan), "--policy", "lru,s3fifo", "--capacity", "50")
    row, *_ = [line.split() for line in out.splitlines() if line.split()[:1] == ["50"]]
    capacity, lru, s3fifo, best = row
    assert (capacity, lru[0].isdigit(), s3fifo[0]) == ("50", True, "*")
    assert float(lru[:-1]) < float(s3fifo[1:-1]) <= float(best[:-1])


def test_progress_is_not_in_the_results(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_REPORT_SECONDS", 0.0)
    result = replay(trace(keys()), "--policy", "lru", "--capacity", "50")
    assert "lru: 50%" in result.stderr
    assert "lru: 50%" not in result.stdout


# Curves ----------------------------------------------------------------------------------------------------


def test_curves_are_where_they_belong() -> None:
    drawn = curves.draw([10, 1000], {"lru": [0.0, 1.0], "best": [1.0, 1.0]}, "best", str, width=60)
    *rows, axis, labels = drawn
    assert max(map(len, drawn)) <= 60
    assert rows[0].startswith(" 100% ┤")
    assert rows[-1].startswith("   0% ┤")
    assert rows[-1].strip().endswith("o")
    assert rows[0].count("o") >= 1
    assert rows[0].count(".") > 30
    assert axis.count("┬") == 2
    assert labels.split() == ["10", "1000"]


@pytest.mark.parametrize(
    "suffix", ["svg", *(pytest.param(each, marks=pytest.mark.full) for each in ("png", "SVG"))]
)
def test_a_plot(trace: Trace, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / f"curves.{suffix}"
    out = printed(trace(keys()), "--policy", "all", "--plot", str(file))
    assert out.endswith(f"The curves are in {file}.\n")
    if suffix == "png":
        assert file.read_bytes().startswith(b"\x89PNG")
    else:
        assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_a_plot_is_there_whoever_stops_reading(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")

    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(comparison, "_print", closed)
    file = tmp_path / "curves.svg"
    assert isinstance(replay(trace(keys()), "--policy", "lru", "--plot", str(file)).exception, OSError)
    assert file.exists()


def test_a_plot_that_cannot_be(trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "Workload", None)  # it is refused before the work
    path = trace(keys())
    assert "'x.pdf'" in refusal(path, "--policy", "all", "--plot", "x.pdf")
    assert "directory" in refusal(path, "--policy", "all", "--plot", str(tmp_path / "no" / "x.png"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert ".[bench]" in refusal(path, "--policy", "all", "--plot", str(tmp_path / "x.png"))


@pytest.mark.full
def test_matplotlib_is_imported_for_a_plot_only(trace: Trace) -> None:
    code = (
        "import sys\n"
        "from benchmarks.command import app\n"
        f"app(['replay', {str(trace(keys()))!r}, '--policy', 'lru'], standalone_mode=False)\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# What it refuses -------------------------------------------------------------------------------------------


def test_policies_that_are_none(trace: Trace) -> None:
    path = trace(keys())
    for name in ("nope", "", "lru,", "all,nope", "LRU"):
        assert refusal(path, "--policy", name).startswith("There is no policy ")


def test_capacities_that_are_none(trace: Trace) -> None:
    path = trace(keys())
    for capacity in ("0", "-3", "x", "5MiB", "1.5", ""):
        assert f"{capacity!r}" in refusal(path, "--policy", "lru", "--capacity", capacity)
    path = trace(sized())
    for capacity in ("0", "x", ""):
        refusal(path, "--policy", "lru", "--capacity", capacity)


@pytest.mark.parametrize(
    "option",
    ["--clients=2", "--nodes=2", "--max-memory=1MiB", "--eviction=lru", "--value-size=5", "--nameserver=a:1"],
)
def test_options_of_clusters(trace: Trace, option: str) -> None:
    sentence = refusal(trace(keys()), "--policy", "lru", option)
    assert sentence == f"{option.partition('=')[0]} makes sense only without --policy."


@pytest.mark.parametrize("option", ["--capacity=5", "--plot=x.png"])
def test_options_of_simulations(trace: Trace, option: str) -> None:
    sentence = refusal(trace(keys()), option)
    assert sentence == f"{option.partition('=')[0]} makes sense only with --policy; add --policy all."


def test_traces_that_cannot_be_read(trace: Trace, tmp_path: Path) -> None:
    for path in (tmp_path / "none", trace([])):
        result = replay(path, "--policy", "lru")
        assert isinstance(result.exception, TraceError)
        assert result.output == ""
