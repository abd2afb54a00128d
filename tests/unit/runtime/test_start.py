"""The script that each child process runs, here with a module of the test."""

from __future__ import annotations

import socket
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
    parent, child = socket.socketpair()
    with parent, child:
        number = str(child.fileno())
        command = [
            sys.executable,
            "-P",
            start.__file__,
            "child",
            number,
            str(place),
            str(tmp_path),
            *sys.path,
        ]
        parent.sendall(b"{}\n")
        printed = subprocess.check_output(command, text=True, pass_fds=[child.fileno()])
    assert printed.split() == [
        "False",
        "True",
        "['{}\\n',",
        f"'{number}']",
        str(place / "pyrocache/__init__.py"),
    ]
