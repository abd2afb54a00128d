"""`GrantWait`: wait at a node for something that it grants later, a lease or a lock.

As ``client/features/pinned_wait.py``, which has the rules and the times: a `Waiter` is in place of the connection, and
pauses let the event loop go on.

Thread safety: not thread-safe; each `GrantWait` is used by one task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from pyrocache.client.features.pinned_wait import POLL_SECONDS, WaitTimes
from pyrocache.net.deadline import Deadline

if TYPE_CHECKING:
    from pyrocache.aio.backend import AsyncBackend
    from pyrocache.aio.waiter import Waiter
    from pyrocache.client.context import ClientContext

_T = TypeVar("_T")

Ask: TypeAlias = "Callable[[float, Deadline, Waiter | None], Awaitable[Waiter | None]]"
"""Sends one request; takes the seconds to wait, the deadline and the waiter of the previous request."""


class GrantWait:
    """The wait of one task. Leaving its context ends the waiter; after an exception, also what was granted to it.

    Args:
        context: the client's.
        ask: sends a request, as `AsyncBackend.lease` and `AsyncBackend.acquire` do.
        wait_seconds: how long to wait; None for no limit.

    Attributes:
        waiter: of the last request; None if that was not sent.
    """

    __slots__ = ("_ask", "_context", "_times", "waiter")

    def __init__(self, context: ClientContext[AsyncBackend], ask: Ask, wait_seconds: float | None) -> None:
        self.waiter: Waiter | None = None
        self._context = context
        self._ask = ask
        self._times = WaitTimes(wait_seconds)

    async def ask(self, most_seconds: float = POLL_SECONDS) -> Any:
        """Send a request and return the node's answer; None if the node grants nothing within the poll interval.

        Args:
            most_seconds: bounds the poll interval of this request.
        """
        timeout = self._context.timeout
        seconds = self._times.ask(min(most_seconds, timeout))
        # The time that the node delays its answer does not count towards the timeout.
        deadline = self._context.deadline(timeout + seconds)
        self.waiter = await self._ask(seconds, deadline, None if self.crowded else self.waiter)
        return None if self.waiter is None else self.waiter.answer

    @property
    def crowded(self) -> bool:
        """Whether the last request was not sent, because too many calls of this client wait, or its waiter ended."""
        return self.waiter is None or self.waiter.closed

    def is_over(self) -> bool:
        """Return whether the time to wait is over."""
        return self._times.is_over()

    async def pause(self) -> None:
        """Pause before the next request, unless the last one has waited at the node."""
        if seconds := self._times.pause(self.crowded):
            await asyncio.sleep(seconds)

    def give(self, owner: _T) -> _T:
        """Return ``owner``, which has the waiter and is responsible for it from now on."""
        self.waiter = None
        return owner

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.waiter is None:
            return
        if kind is None and self.waiter.answer is not None:
            self.waiter.release()
        else:
            self.waiter.drop()  # also after an answer without a grant: the node still has the waiter in its queue
