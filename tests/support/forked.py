"""Run a function in a forked process, perhaps as another user."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any

import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

A_USER = 54321
"""The id of a user that is nobody here."""


class Forked:
    """A process that calls a function. What that returns, or the text of what it raises, is its `result`.

    Args:
        user: the user and group that it becomes first.
    """

    def __init__(self, function: Callable[[], Any], *, user: int | None = None) -> None:
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                signal.alarm(30)  # no test waits for longer
                _become(user)
                os.write(answer, pickle.dumps(_outcome(function)))
            finally:
                os._exit(0)
        os.close(answer)

    def result(self) -> Any:
        """Wait until it has ended. Return what the function returned, or the text of what it raised."""
        with os.fdopen(self._answer, "rb") as answer:
            content = answer.read()
        os.waitpid(self._pid, 0)
        assert content, "it ended without an answer"
        return pickle.loads(content)


def forked(function: Callable[[], Any], *, user: int | None = None) -> Any:
    """Return the result of a function in a forked process."""
    return Forked(function, user=user).result()


def _become(user: int | None) -> None:
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


def _outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
