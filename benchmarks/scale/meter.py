"""`Meter`: the messages, bytes and CPU seconds of a simulation, by kind and by part. Not thread-safe."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self


@dataclass
class Meter:
    """What was counted.

    Attributes:
        requests: by kind. Each has one reply.
        bytes: of requests and replies together, by the same kinds.
        seconds: CPU time of this process, by part; a part within another one counts for itself alone.
    """

    requests: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _parts: list[str] = field(default_factory=list)
    _since: float = 0.0

    def count(self, kind: str, size: int, times: int = 1) -> None:
        """Count ``times`` requests which have ``size`` bytes together with their replies."""
        self.requests[kind] += times
        self.bytes[kind] += size

    def charge(self, part: str, seconds: float) -> None:
        """Count CPU time that was measured once and is spent again."""
        self.seconds[part] += seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the CPU time that is spent within."""
        self._note()
        self._parts.append(name)
        try:
            yield
        finally:
            self._note()
            self._parts.pop()

    def _note(self) -> None:
        now = time.process_time()
        if self._parts:
            self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def taken(self) -> Self:
        """Return what was counted so far, and begin anew."""
        taken = type(self)(self.requests, self.bytes, self.seconds)
        self.requests, self.bytes, self.seconds = Counter(), Counter(), defaultdict(float)
        return taken
