"""Waits for events of many sockets: the platform's ``epoll`` or ``poll``, with a spin-wait before it blocks.

Owns which handler belongs to which descriptor. Does not call handlers. For one thread.
"""

from __future__ import annotations

import select
from typing import Any

from pyrocache.runtime.channel import Channel
from pyrocache.runtime.spin import SpinWait

READ, WRITE = select.POLLIN, select.POLLOUT
HANG_UP = getattr(select, "POLLRDHUP", select.POLLHUP)
"""The peer sends nothing any more."""


class Poller:
    """Watches descriptors.

    Attributes:
        handlers: what is to handle the events of each descriptor.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}
        self._spin_wait = SpinWait()
        epoll = hasattr(select, "epoll")
        self._poll: Any = select.epoll() if epoll else select.poll()
        self._units_per_second = 1 if epoll else 1000

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        """Return descriptors and their events, after waiting up to ``seconds`` for some."""
        look = self._poll.poll
        return look(0) or self._spin_wait.wait(look) or look(seconds * self._units_per_second)

    def register(self, channel: Channel, events: int, handler: Any) -> None:
        """Watch ``channel`` for ``events``."""
        self._poll.register(channel, events)
        self.handlers[channel.fileno()] = handler

    def modify(self, channel: Channel, events: int) -> None:
        """Watch it for other events."""
        self._poll.modify(channel, events)

    def unregister(self, channel: Channel) -> None:
        """Stop watching it. Call this before it is closed."""
        self._poll.unregister(channel)
        del self.handlers[channel.fileno()]

    def close(self) -> None:
        """Let go of everything."""
        self.handlers.clear()
        if hasattr(self._poll, "close"):
            self._poll.close()
