"""What the page about the asyncio client shows is what happens."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.async_sessions import run_sessions

PAGE = Path(__file__).resolve().parents[2] / "docs" / "asyncio.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the tests run without the project around them")


@pytest.mark.filterwarnings("error")
def test_the_sessions_of_the_page() -> None:
    failed, attempted = run_sessions(PAGE.read_text(encoding="utf-8"), PAGE.name)
    assert failed == []
    assert attempted > 50


def test_the_application_of_the_page() -> None:
    (block,) = (block for block in _modules() if "def test_" not in block)
    for package in _imported(block):
        pytest.importorskip(package)
    exec(compile(block, PAGE.name, "exec"), {"__name__": "application"})


@pytest.mark.full
def test_the_tests_of_the_page(tmp_path: Path) -> None:
    blocks = [block for block in _modules() if "def test_" in block]
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        for package in _imported(block):
            pytest.importorskip(package)
        (tmp_path / f"test_{number}.py").write_text(block)
    told = subprocess.run(
        # pytest-asyncio warns if no scope is configured
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-W",
            "error",
            "-W",
            "ignore::pytest.PytestDeprecationWarning",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "2 passed" in told.stdout


def _modules() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _imported(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.partition(".")[0])
    return found
