"""What the README shows is what happens."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from pyrocache import LocalCluster

README = Path(__file__).resolve().parents[2] / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the tests run without the project around them")


def test_the_sessions_in_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(nodes=3) as cluster:
        monkeypatch.setenv("PYROCACHE_NAMESERVER", cluster.nameserver)
        failed, attempted = doctest.testfile(str(README), module_relative=False)
    assert attempted > 15
    assert failed == 0
