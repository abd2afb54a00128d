"""The registry of what must be done in a forked child before anything else.

A child has only the thread that forked. Locks may be held for ever, threads are missing, and sockets are shared with
the parent. Whoever owns such things registers a hook here. Hooks run in the order of registration, and one that
fails does not keep the others from running.

Hooks are bound methods, of which only weak references are kept, or functions of a module. Any thread may register.
"""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from collections.abc import Callable
from functools import partial
from types import MethodType

log = logging.getLogger("pyrocache.runtime")

_hooks: dict[int, tuple[weakref.ref[object] | None, Callable[..., object]]] = {}  # by order of registration
_numbers = itertools.count()


def in_child(hook: Callable[[], object]) -> None:
    """Call ``hook`` in every forked child, for as long as the object lives that it is a method of."""
    number = next(_numbers)
    if isinstance(hook, MethodType):
        # In C altogether: it may run anywhere, even while the interpreter ends.
        _hooks[number] = weakref.ref(hook.__self__, partial(_hooks.pop, number)), hook.__func__
    else:
        _hooks[number] = None, hook


def _run_hooks() -> None:
    for reference, function in list(_hooks.values()):
        arguments = [] if reference is None else [reference()]
        if None not in arguments:
            try:
                function(*arguments)
            except Exception:
                log.exception("A hook failed in a forked process.")


if hasattr(os, "register_at_fork"):  # Windows has none
    os.register_at_fork(after_in_child=_run_hooks)
