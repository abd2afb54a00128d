"""When a bar is shown, to whom, and that it ends."""

from __future__ import annotations

import io
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from pyrocache.client.features import progress
from pyrocache.client.features.progress import (
    FEW_KEYS,
    NO_PROGRESS,
    SHOWN_AFTER_SECONDS,
    Bar,
    progress_of,
    somebody_looks,
)
from pyrocache.testing import FakeClock

tqdm = pytest.importorskip("tqdm")

PACKAGE = r"pip install 'pyrocache\[jupyter\]'"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """No person looks, whatever else this process has imported."""
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.delattr(sys, "ps1", raising=False)


def prompt(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let a Python prompt at a terminal run. Return what standard error shows."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    return terminal


def shell(monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    """Let IPython run."""
    running = SimpleNamespace(**attributes)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: running))  # type: ignore[arg-type]


def bars() -> int:
    return len(tqdm.std.tqdm._instances)


# When a bar is shown -----------------------------------------------------------------------------------------


def test_nobody_looks_at_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert not somebody_looks()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))  # type: ignore[arg-type]
    assert not somebody_looks(), "a script may import IPython"


def test_a_person_looks_at_a_prompt_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt(monkeypatch)
    assert somebody_looks()
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert not somebody_looks()


def test_a_person_looks_at_a_notebook_and_at_ipython_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shell(monkeypatch)
    assert not somebody_looks()
    shell(monkeypatch, kernel=object())
    assert somebody_looks()
    monkeypatch.setattr(sys, "stderr", Terminal())
    shell(monkeypatch)
    assert somebody_looks()


def test_nobody_looks_at_what_other_threads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt(monkeypatch)
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(somebody_looks()))
    thread.start()
    thread.join()
    assert seen == [False]


# Which calls show a bar -----------------------------------------------------------------------------------------


def test_by_default_only_calls_about_many_keys_show_one_and_only_where_a_person_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt(monkeypatch)
    assert type(progress_of("get_many", None, FEW_KEYS)) is Bar
    assert type(progress_of("scan", None)) is Bar
    assert progress_of("get_many", None, FEW_KEYS - 1) is NO_PROGRESS
    assert progress_of("get_many", False, 10**6) is NO_PROGRESS
    monkeypatch.delattr(sys, "ps1")
    assert progress_of("get_many", None, 10**6) is NO_PROGRESS
    assert progress_of("scan", None) is NO_PROGRESS
    assert type(progress_of("get_many", True, 1)) is Bar


def test_a_bar_of_the_user_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt(monkeypatch)
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # no thread, which would last
    for _ in tqdm.tqdm(range(1)):
        assert progress_of("scan", None) is NO_PROGRESS
    assert type(progress_of("scan", None)) is Bar


def test_a_wrong_argument_is_named() -> None:
    for wrong in (1, "yes", 0, []):
        with pytest.raises(TypeError, match="progress is True, False or None"):
            progress_of("scan", wrong)  # type: ignore[arg-type]


def test_without_tqdm_nothing_is_shown_or_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = prompt(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)  # type: ignore[arg-type]
    monkeypatch.setattr(progress, "SHOWN_AFTER_SECONDS", 0.0)
    with progress_of("get_many", None, 1000) as bar:
        bar.add(1000)
    assert terminal.getvalue() == ""
    with pytest.raises(ImportError, match=PACKAGE) as caught:
        progress_of("get_many", True, 1000)
    assert "\n" not in str(caught.value)


# What is shown --------------------------------------------------------------------------------------------------


def test_a_bar_appears_after_a_second_with_what_is_done_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = prompt(monkeypatch)
    clock = FakeClock()
    clock.tick(100)
    with Bar("get_many", 4000, SHOWN_AFTER_SECONDS, clock) as bar:
        bar.add(1000)
        clock.tick(SHOWN_AFTER_SECONDS - 0.01)
        bar.add(1000)
        assert terminal.getvalue() == ""
        clock.tick(0.01)
        bar.add(1000)
        assert "get_many:  75%|" in terminal.getvalue()
        assert "3000/4000" in terminal.getvalue()
        assert bars() == 1
        bar.add(1000)
    assert "4000/4000" in terminal.getvalue()
    assert bars() == 0


def test_the_time_before_an_iteration_begins_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = prompt(monkeypatch)
    clock = FakeClock()
    bar = Bar("scan", None, SHOWN_AFTER_SECONDS, clock)
    clock.tick(100)
    with bar:
        bar.add(1000)
    assert terminal.getvalue() == ""


def test_a_bar_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt(monkeypatch)
    before = set(threading.enumerate())
    with Bar("scan", None, 0.0) as bar:
        bar.add(7)
        assert set(threading.enumerate()) <= before


def test_a_bar_that_was_asked_for_is_there_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = prompt(monkeypatch)
    with Bar("scan", None, 0.0) as bar:
        assert "scan: 0 keys" in terminal.getvalue()
        bar.add(7)
    assert "scan: 7 keys" in terminal.getvalue()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whatever_ends_a_call_ends_the_bar(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    terminal = prompt(monkeypatch)
    bar = Bar("get_many", 10, 0.0)

    def fail() -> None:
        with bar:
            assert bars() == 1
            raise error

    with pytest.raises(error):
        fail()
    assert bars() == 0
    shown = terminal.getvalue()
    bar.add(1)
    assert terminal.getvalue() == shown
