"""The pictures of the README: they are drawn from a running cluster, and load nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.processes import environment

DOCS = Path(__file__).resolve().parents[2] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the tests run without the project around them")


def check(picture: Path) -> str:
    """Check that a picture is well formed and loads nothing. Return its text."""
    content = picture.read_text(encoding="utf-8")
    assert not re.findall(r"(?:href|src)\s*=|url\((?!#)|@import", content)
    return " ".join(" ".join(ElementTree.fromstring(content).itertext()).split())


@pytest.mark.parametrize("name", ["notebook", "top"])
def test_the_pictures_that_the_readme_shows(name: str) -> None:
    assert f"docs/images/{name}.svg" in (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert "cache.node.3" in check(DOCS / "images" / f"{name}.svg")


@pytest.mark.full
def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    command = [sys.executable, str(DOCS / "pictures.py"), str(tmp_path)]
    subprocess.run(command, env=environment(), check=True, timeout=80)
    assert "pyrocache.connect(" in check(tmp_path / "notebook.svg")
    top = check(tmp_path / "top.svg").replace("\xa0", " ")
    assert "Hottest keys" in top
    assert "('page', 1)" in top
