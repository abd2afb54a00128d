"""Fork hooks: a registry of functions that run in a forked child before anything else.

A child has only the thread that forked. Locks may stay locked forever, the other threads are missing, and sockets are
shared with the parent. Each module that holds such things registers a hook here. Hooks run in the order of
registration, and a failing hook does not keep the others from running.

A hook is a bound method, of which only a weak reference is kept, or a function of a module.

Thread safety: any thread may register a hook.
"""

from __future__ import annotations

import itertools
import os
import signal
import weakref
from collections.abc import Callable
from functools import partial
from types import MethodType

from pyrocache.runtime.log import logger

_hooks: dict[int, tuple[weakref.ref[object] | None, Callable[..., object]]] = {}  # by order of registration
_numbers = itertools.count()


def in_child(hook: Callable[[], object]) -> None:
    """Call ``hook`` in every forked child. A bound method is removed when its object is collected."""
    number = next(_numbers)
    if isinstance(hook, MethodType):
        # The weak reference's callback is all in C: it may run anywhere, even while the interpreter shuts down.
        _hooks[number] = weakref.ref(hook.__self__, partial(_hooks.pop, number)), hook.__func__
    else:
        _hooks[number] = None, hook


def _run_hooks() -> None:
    # CPython would only print what a signal handler raises here, and a hook that is interrupted would leave the child
    # with its parent's streams. The handlers run at the end.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        _run_all()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _run_all() -> None:
    for reference, function in list(_hooks.values()):  # a copy: collecting an object removes its hook
        arguments = [] if reference is None else [reference()]
        if None not in arguments:
            try:
                function(*arguments)
            except Exception:
                logger("pyrocache.runtime").exception("A hook failed in a forked process.")


if hasattr(os, "register_at_fork"):  # missing on Windows
    os.register_at_fork(after_in_child=_run_hooks)
