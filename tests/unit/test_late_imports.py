"""Modules that are imported at first use."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from pathlib import Path

import pytest

from pyrocache.late_imports import at_first_use, quoted

MODULE = "imported_at_first_use"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_forked_during_an_import_can_import_the_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Without the lock, the fork is in the middle of the import, and the child would wait for its other half.
    text = "import threading; threading.begun.set(); threading.forked.wait(0.2)"
    (tmp_path / f"{MODULE}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(threading, "begun", threading.Event(), raising=False)
    forked = threading.Event()
    monkeypatch.setattr(threading, "forked", forked, raising=False)

    def use() -> None:
        with at_first_use:
            importlib.import_module(MODULE)

    thread = threading.Thread(target=use)
    thread.start()
    assert threading.begun.wait(10)  # type: ignore[attr-defined]
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        use()
        os._exit(7)
    forked.set()
    _, status = os.waitpid(pid, 0)
    thread.join(10)
    assert os.waitstatus_to_exitcode(status) == 7


def test_a_word_is_quoted_as_a_shell_takes_it() -> None:
    assert quoted("a b") == "'a b'"
