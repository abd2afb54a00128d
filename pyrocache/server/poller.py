"""`Poller`: waits for events on many sockets with the platform's ``epoll`` or ``poll``.

Spins for a short time before it blocks (`runtime.spin`). Maps descriptors to handlers, but does not call the handlers.

Thread safety: used by one thread, except `Poller.wake`, which any thread may call.
"""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any

from pyrocache.runtime.channel import Channel
from pyrocache.runtime.spin import SpinWait

READ, WRITE = select.POLLIN, select.POLLOUT  # epoll has the same numbers
HANG_UP = getattr(select, "POLLRDHUP", select.POLLHUP)
"""Event: the peer has closed the stream or its sending side."""


class Poller:
    """Watches descriptors.

    Attributes:
        handlers: the handler of the events of each descriptor.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}
        self._spin_wait = SpinWait()
        epoll = hasattr(select, "epoll")
        self._poll: Any = select.epoll() if epoll else select.poll()
        self._units_per_second = 1 if epoll else 1000  # poll counts in milliseconds
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self.register(self._wake_receiver, READ, self._woken)

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        """Wait up to ``seconds`` for events. Return descriptors and their events."""
        look = self._poll.poll
        # Under load there are events already, and neither the spin-wait nor a blocking call is needed.
        return look(0) or self._spin_wait.wait(look) or look(seconds * self._units_per_second)

    def wake(self) -> None:
        """Make `poll` return, now or the next time. The event's handler takes no arguments."""
        with contextlib.suppress(OSError):  # full: it will return; closed: nobody polls any more
            self._wake_sender.send(b"\0")

    def register(self, channel: Channel, events: int, handler: Any) -> None:
        """Watch ``channel`` for ``events``."""
        self._poll.register(channel, events)
        self.handlers[channel.fileno()] = handler

    def unregister(self, channel: Channel) -> None:
        """Stop watching ``channel``. Call this before closing it."""
        self._poll.unregister(channel)
        del self.handlers[channel.fileno()]

    def change(self, channel: Channel, before: int, events: int, handler: Any) -> None:
        """Watch ``channel`` for ``events`` instead of those ``before``; 0: it is not watched."""
        if before and events:
            self._poll.modify(channel, events)
        elif events:
            self.register(channel, events, handler)
        elif before:
            self.unregister(channel)

    def close(self) -> None:
        """Forget all handlers and close the poller."""
        self.handlers.clear()
        if hasattr(self._poll, "close"):
            self._poll.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_receiver.recv(4096)
