"""A lock as a node makes it of `Deferred` and `Session`, for tests of what these promise."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from functools import partial

import pytest

from pyrocache.server.deferred import Deferred, Session


class Turns:
    """One holder at a time, each with a token of its own, the next one as soon as that is gone."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tokens = itertools.count(1)
        self.holder: int | None = None
        self.queue: deque[Deferred] = deque()

    def begin(self, session: Session, deadline: float) -> Deferred:
        """Wait for a token."""
        deferred = Deferred(session, deadline)
        with self.lock:
            self.queue.append(deferred)
        self._pass_on()
        return deferred

    def end(self, token: int) -> bool:
        """Whether that was the holder's, which it is no more."""
        with self.lock:
            if self.holder != token:
                return False
            self.holder = None
        self._pass_on()
        return True

    def _pass_on(self) -> None:
        while True:
            with self.lock:
                if self.holder is not None or not self.queue:
                    return
                deferred, token = self.queue.popleft(), next(self.tokens)
                if not deferred.give(token):
                    continue
                self.holder = token
            deferred.session.on_close(partial(self.end, token))
            return


@pytest.fixture
def turns() -> Turns:
    """A lock that is free."""
    return Turns()
