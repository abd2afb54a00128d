"""Hooks for forked children."""

from __future__ import annotations

import gc
import os
import signal

from pyrocache.runtime import at_fork


class Owner:
    """Notes when its hook is called."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls
        at_fork.in_child(self.note)

    def note(self) -> None:
        self.calls.append(self.name)
        if self.name == "fails":
            raise RuntimeError


def test_hooks_run_in_a_child_in_the_order_of_registration_and_one_that_fails_stops_no_other() -> None:
    calls: list[str] = []
    owners = [Owner(name, calls) for name in ("first", "fails", "last")]
    pid = os.fork()
    if pid == 0:
        os._exit(0 if calls == ["first", "fails", "last"] else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert calls == []
    assert len(owners) == 3


def test_an_owner_is_not_kept_alive_by_its_hook() -> None:
    calls: list[str] = []
    gc.collect()
    owner = Owner("gone", calls)
    number = max(at_fork._hooks)
    assert at_fork._hooks[number][1] is Owner.note
    del owner
    gc.collect()
    assert number not in at_fork._hooks


def test_a_signal_during_the_hooks_is_handled_after_them() -> None:
    """An interrupted hook would leave a child with its parent's streams."""
    done: list[str] = []

    def interrupt(*_: object) -> None:
        done.append("handler")

    def hook() -> None:
        signal.raise_signal(signal.SIGALRM)
        done.append("hook")

    before = signal.signal(signal.SIGALRM, interrupt)
    hooks = dict(at_fork._hooks)
    at_fork._hooks.clear()
    try:
        at_fork.in_child(hook)
        at_fork._run_hooks()
    finally:
        at_fork._hooks.clear()
        at_fork._hooks.update(hooks)
        signal.signal(signal.SIGALRM, before)
    assert done == ["hook", "handler"]
    assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
