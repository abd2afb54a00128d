"""A lock as a node makes it of `Later` and `Peer`, for tests of what these promise."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from functools import partial

import pytest

from pyrocache.server.deferred import Later, Peer


class Turns:
    """One holder at a time, each with a token of its own, the next one as soon as that is gone."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tokens = itertools.count(1)
        self.holder: int | None = None
        self.queue: deque[Later] = deque()

    def begin(self, peer: Peer, deadline: float) -> Later:
        """Wait for a token."""
        later = Later(peer, deadline)
        with self.lock:
            self.queue.append(later)
        self._pass_on()
        return later

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
                later, token = self.queue.popleft(), next(self.tokens)
                if not later.give(token):
                    continue
                self.holder = token
            later.peer.on_close(partial(self.end, token))
            return


@pytest.fixture
def turns() -> Turns:
    """A lock that is free."""
    return Turns()
