"""What the guide shows is what happens, and what its tables name is there."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrocache import LocalCluster, PyroCacheClient
from tests.support.commands import shell_environment

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="the tests run without the project around them")

_ROW = re.compile(r"^\| (?P<theirs>.+) \| (?P<ours>.+) \|$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


def test_the_sessions_in_the_guide() -> None:
    failed, attempted = doctest.testfile(str(GUIDE), module_relative=False)
    assert attempted > 100
    assert failed == 0


def test_the_modules_in_the_guide() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", _text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), {"PyroCacheClient": PyroCacheClient})


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.full
def test_the_commands_in_the_guide(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    """Each prints what is shown, errors included; … stands for any text."""
    blocks = re.findall(r"^```console\n(.*?)^```", _text(), re.MULTILINE | re.DOTALL)
    shown = [command.partition("\n") for block in blocks for command in block.split("$ ") if command]
    assert len(shown) > 10
    shell = shell_environment(tmp_path, shared_cluster.nameserver)
    for command, _, expected in shown:
        told = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=shell,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
        )
        assert re.fullmatch(re.escape(expected).replace("…", ".*"), told.stdout.decode()), command


def test_each_of_our_calls_in_the_tables_can_be_made() -> None:
    calls = [call for row in _rows() for call in _calls(row["ours"])]
    assert len(calls) > 70
    for name, call in calls:
        signature = inspect.signature(getattr(PyroCacheClient, name))
        named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
        signature.bind(None, *call.args, **named)


def test_each_row_of_the_tables_names_a_call_of_ours_or_says_that_there_is_none() -> None:
    for row in _rows():
        assert "cache" in row["ours"] or row["ours"] in ("none", "the same"), row["theirs"]


def _text() -> str:
    return GUIDE.read_text(encoding="utf-8")


def _rows() -> Iterator[re.Match[str]]:
    """The rows of the tables for those who know another cache."""
    _, _, tables = _text().partition("## If you know another cache")
    for row in _ROW.finditer(tables):
        if row["ours"] != "pyrocache":
            yield row


def _calls(cell: str) -> Iterator[tuple[str, ast.Call]]:
    """The calls of the client's methods in a cell, all of whose code is Python."""
    for code in _CODE.findall(cell):
        if "cache" in code:
            for node in ast.walk(ast.parse(code, mode="eval")):
                if isinstance(node, ast.Call) and _is_of_a_client(node.func):
                    yield node.func.attr, node


def _is_of_a_client(function: Any) -> bool:
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name | ast.Call)
