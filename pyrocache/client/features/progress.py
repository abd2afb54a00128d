"""`Progress`: a progress bar, made by tqdm, of calls about many keys, where a person is looking.

``progress=None``, the default, shows one if the call takes longer than `SHOWN_AFTER_SECONDS`, in a Python prompt at a
terminal, in IPython or in a notebook, in the main thread. So scripts and pipes show none, and tqdm is imported only
when a bar is shown. A call that shows none does one comparison, or a few look-ups if it is about many keys. Used by
both clients.

Thread safety: thread-safe; each call has a `Progress` of its own.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, Self

from pyrocache.late_imports import at_first_use
from pyrocache.tracebacks import brief

SHOWN_AFTER_SECONDS = 1.0

FEW_KEYS = 500
"""A call about fewer keys never shows a bar unless it is asked to."""


class Progress:
    """The progress of a call that shows none."""

    def add(self, keys: int) -> None:
        """Count so many more keys as done."""

    def close(self) -> None:
        """End the bar, if there is one. It shows no more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


NO_PROGRESS = Progress()


class Bar(Progress):
    """The progress of a call that shows a bar once it is time for that.

    Args:
        name: of the method; the title of the bar.
        total: how many keys there are, if it is known.
        seconds: after how many seconds to show the bar, from the first `add` on; 0: at once.
        clock: monotonic seconds.
    """

    def __init__(
        self, name: str, total: int | None, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._total = total
        self._clock = clock
        self._seconds = seconds
        self._shown_at: float | None = None  # known at the first `add`: an iterator may be made long before
        self._keys = 0
        self._bar: Any = None

    def __enter__(self) -> Self:
        self.add(0)
        return self

    def add(self, keys: int) -> None:
        """Count so many more keys as done. Shows the bar if it is time for that."""
        self._keys += keys
        if self._shown_at is None:
            self._shown_at = self._clock() + self._seconds
        if self._bar is not None:
            self._bar.update(keys)
        elif self._clock() >= self._shown_at:
            try:
                tqdm = _tqdm()
            except ImportError:
                self._shown_at = math.inf
                return
            self._bar = tqdm(desc=self._name, total=self._total, initial=self._keys, unit=" keys", miniters=1)

    def close(self) -> None:
        self._shown_at = math.inf
        if self._bar is not None:
            self._bar.close()


def progress_of(name: str, progress: bool | None, total: int | None = None) -> Progress:
    """Return the progress of a call.

    Args:
        name: the method that was called.
        progress: what it was called with.
        total: how many keys it is about, if that is known.

    Raises:
        ImportError: a bar was asked for, and tqdm is not installed.
        TypeError: ``progress`` is neither a bool nor None.
    """
    if progress is None:
        if (total is not None and total < FEW_KEYS) or not somebody_looks() or _shows_another_bar():
            return NO_PROGRESS
        return Bar(name, total, SHOWN_AFTER_SECONDS)
    if not isinstance(progress, bool):
        raise brief(TypeError(f"progress is True, False or None, not {type(progress).__name__}."))
    if not progress:
        return NO_PROGRESS
    try:
        _tqdm()
    except ImportError:
        text = "progress=True shows a bar of tqdm, which is not installed: pip install 'pyrocache[jupyter]'"
        raise brief(ImportError(text)) from None
    return Bar(name, total, 0.0)


def somebody_looks() -> bool:
    """Return whether a person probably sees what this thread shows at once."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None and not hasattr(sys, "ps1"):
        return False
    if threading.current_thread() is not threading.main_thread():
        return False
    if hasattr(shell, "kernel"):  # of a notebook, which has no terminal
        return True
    return sys.stderr is not None and sys.stderr.isatty()


def _shows_another_bar() -> bool:
    """Return whether there is a bar already, as of ``for key in tqdm(cache.scan())``."""
    return bool(getattr(getattr(sys.modules.get("tqdm.std"), "tqdm", None), "_instances", ()))


def _tqdm() -> Callable[..., Any]:
    """Return the class of bars for this kind of session. Raises `ImportError`."""
    with at_first_use, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns in a notebook without ipywidgets
        tqdm: type[Any] = import_module("tqdm.auto").tqdm
    # Without tqdm's thread, which would make updates more frequent again: they are never less frequent here.
    return type(tqdm.__name__, (tqdm,), {"monitor_interval": 0})
