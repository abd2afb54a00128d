"""`Acceptor`: accepts connections on listening sockets, and pauses while the system has no descriptors for them.

Without free descriptors, it accepts with those that the node holds in reserve. Such a connection is *lent* a
descriptor: whoever made the acceptor keeps it only if it is of another node, and says when it is closed.

Holds the listening sockets. Whoever made it holds the connections.

Thread safety: not thread-safe; used by the event loop's thread.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
from collections.abc import Callable, Sequence
from functools import partial

from pyrocache.runtime.descriptors import DescriptorReserve
from pyrocache.runtime.shortage import explain
from pyrocache.server.poller import READ, Poller

log = logging.getLogger("pyrocache.node")

_AT_ONCE = 64  # then open connections have their turn
_PAUSE_SECONDS = 1.0
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Watches listening sockets with a poller.

    Args:
        listeners: sockets that are bound and listening.
        accept: takes each new connection, a socket that does not block, and whether it is lent its descriptor.
        clock: seconds.
        reserve: the descriptors to lend.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        poller: Poller,
        accept: Callable[[socket.socket, bool], object],
        clock: Callable[[], float],
        reserve: DescriptorReserve,
    ) -> None:
        self._listeners = tuple(listeners)
        self._poller = poller
        self._take = accept
        self._clock = clock
        self._reserve = reserve
        self._again_at: float | None = None
        self._full = False  # the system had no more descriptors or memory for connections
        self._listen()

    def tick(self, now: float) -> None:
        """Accept again, after a pause. Call this four times a second."""
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self._listen()

    def returned(self) -> None:
        """Take back the descriptor of a lent connection, which is closed now. Accept the next one."""
        self._reserve.refill()
        self.tick(math.inf)

    def close(self) -> None:
        """Close the listening sockets. The poller must be closed already."""
        for listener in self._listeners:
            listener.close()

    def _listen(self) -> None:
        for listener in self._listeners:
            listener.setblocking(False)
            self._poller.register(listener, READ, partial(self._accept, listener))

    def _accept(self, listener: socket.socket) -> None:
        shortage: OSError | None = None
        for _ in range(_AT_ONCE):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EMFILE and self._reserve.give_up():
                    shortage = error
                elif error.errno in _OUT_OF_DESCRIPTORS:
                    self._say_full(error)
                    self._pause()
                    break
                continue  # the peer is gone already, or there is a descriptor now
            if shortage is not None:
                self._say_full(shortage)
            elif self._full:
                self._full = False
                log.error("Connections are accepted again.")
            sock.setblocking(False)
            self._take(sock, shortage is not None)
            shortage = None
        if shortage is not None:  # nobody was waiting
            self._reserve.refill()

    def _say_full(self, error: OSError) -> None:
        if not self._full:  # once: it is tried again and again
            log.error("No more connections are accepted for now: %s.", explain(error))
        self._full = True

    def _pause(self) -> None:
        """Pause accepting. Without file descriptors, a listening socket stays readable and the loop would spin."""
        if self._again_at is None:
            for listener in self._listeners:
                self._poller.unregister(listener)
        self._again_at = self._clock() + _PAUSE_SECONDS
