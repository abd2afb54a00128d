"""The script that each child process runs, here with a module of the test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pyrocache.runtime import start

MODULE = """
import gc
import pyrocache

while_imported = gc.isenabled()

def main(argv):
    print(while_imported, gc.isenabled(), argv, pyrocache.__file__)
"""


def test_the_module_is_imported_without_garbage_collection_and_runs_with_it(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(MODULE)
    place = Path(start.__file__).parents[2]
    command = [sys.executable, "-P", start.__file__, "child", "{}", "7", str(place), str(tmp_path), *sys.path]
    printed = subprocess.check_output(command, text=True)
    assert printed.split() == ["False", "True", "['{}',", "'7']", str(place / "pyrocache" / "__init__.py")]
