"""The types of the public API, as mypy and pyright see them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def mypy(file: Path) -> set[int]:
    """The lines at which mypy finds something wrong."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    assert done.returncode in (0, 1), done.stderr
    print(done.stdout)
    found = re.findall(rf"^{re.escape(file.name)}:(\d+): error:", done.stdout, re.MULTILINE)
    assert bool(found) == (done.returncode == 1), "it finds something wrong elsewhere"
    return set(map(int, found))


def pyright(file: Path) -> set[int]:
    """The lines at which pyright finds something wrong."""
    pytest.importorskip("pyright")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    found = [
        (line["range"]["start"]["line"] + 1, line["message"])
        for line in json.loads(done.stdout)["generalDiagnostics"]
        if line["severity"] == "error"
    ]
    print(*found, sep="\n")
    return {line for line, _ in found}


@pytest.mark.full
@pytest.mark.parametrize("checker", [mypy, pyright])
class TestTypes:
    def test_what_is_right_is_inferred(self, checker: object) -> None:
        assert callable(checker)
        assert checker(HERE / "right_uses.py") == set()

    def test_what_is_wrong_is_refused_where_it_is_wrong(self, checker: object) -> None:
        assert callable(checker)
        file = HERE / "wrong_uses.py"
        lines = file.read_text().splitlines()
        wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
        assert checker(file) == wrong
