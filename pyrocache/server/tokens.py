"""`Tokens`: what admits a caller that cannot prove the secret, such as a stock Pyro5 proxy.

A caller that has proved the secret gets a token and hands it on. Whoever has it may use it, once and within
`LIFE_SECONDS`, at the process that issued it.

Thread safety: not thread-safe; used by the event loop's thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from pyrocache.runtime.clock import now

LIFE_SECONDS = 30.0
_MOST = 1000
_TOKEN_BYTES = 32


class Tokens:
    """The tokens of one server that are not used yet.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = now) -> None:
        self._clock = clock
        self._ends: dict[str, float] = {}  # the oldest first

    def issue(self) -> str:
        """Return a new token. If there are 1,000 unused ones, the oldest becomes invalid."""
        self._expire()
        if len(self._ends) >= _MOST:
            del self._ends[next(iter(self._ends))]
        token = secrets.token_hex(_TOKEN_BYTES)
        self._ends[token] = self._clock() + LIFE_SECONDS
        return token

    def accept(self, token: str) -> bool:
        """Return whether a token is valid, and make it invalid."""
        self._expire()
        return self._ends.pop(token, None) is not None

    def _expire(self) -> None:
        now = self._clock()
        for token in [token for token, end in self._ends.items() if now >= end]:
            del self._ends[token]
