"""`Call`: one request of one coroutine, from when it is made to its outcome. `CallFailed`: why there is none.

Thread safety: used by the thread of its event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Refused
from pyrocache.protocol.commands import GET_MANY

Get: TypeAlias = tuple[bytes, asyncio.Future[Any]]
"""A key, and the future of its value frame."""

_NO_FRAME = object()  # the backend takes it for what it is: no reply to a get


class CallFailed(Exception):
    """There is no reply.

    Attributes:
        cause: one of `failures.BROKEN`, or what the user is to see.
        sent: whether the whole request was sent, so that the node may have executed it.
        number: the number by which it can be repeated; 0 if it cannot.
    """

    def __init__(self, cause: BaseException, sent: bool, number: int) -> None:
        super().__init__(cause)
        self.cause = cause
        self.sent = sent
        self.number = number


async def result_of(future: asyncio.Future[Any]) -> Any:
    """Return the result of a call, after the other tasks of the loop had their turn."""
    if future.done():
        future.exception()  # to be raised below, unless this task is cancelled
        await asyncio.sleep(0)
    return await future


class Call:
    """A request.

    Args:
        method, arguments: what to call.
        deadline: of the call.
        future: what the coroutine waits for; None if nobody waits.
        largest: bytes of the largest value among the arguments.
        repeats: the number of the request that this one repeats; 0 for a new one.

    Attributes:
        number: of the request in its session, once it is sent.
        ends_at_byte: where its message ends among all bytes of its connection; 0 before it is sent.
        expired: its deadline has passed.
        long: its message is a long one.
    """

    __slots__ = (
        *("arguments", "deadline", "ends_at_byte", "expired", "future", "largest", "long", "method"),
        *("number", "repeats"),
    )

    def __init__(
        self,
        method: str,
        arguments: tuple[Any, ...],
        deadline: Deadline,
        future: asyncio.Future[Any] | None,
        largest: int = 0,
        repeats: int = 0,
    ) -> None:
        self.method = method
        self.arguments = arguments
        self.deadline = deadline
        self.future = future
        self.largest = largest
        self.repeats = repeats
        self.number = self.ends_at_byte = 0
        self.expired = self.long = False

    @property
    def wanted(self) -> bool:
        """Return False once the coroutine has ended; True if there is none."""
        return self.future is None or not self.future.done()

    def finish(self, outcome: Any) -> None:
        """Give the coroutine the result or the `Refused`, unless it was cancelled."""
        future = self.future
        if future is None or future.done():
            return
        if isinstance(outcome, Refused):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def fail(self, cause: BaseException, *, sent: bool = False) -> None:
        """Tell the coroutine that there is no reply, unless it was cancelled."""
        future = self.future
        if future is not None and not future.done():
            future.set_exception(CallFailed(cause, sent, self.number))


class OpenConnection(Call):
    """Not a request: it waits for an open connection, which is its result."""

    __slots__ = ()

    def __init__(self, deadline: Deadline, future: asyncio.Future[Any]) -> None:
        super().__init__("", (), deadline, future)


class Gets(Call):
    """Reads of one turn of the event loop that travel as one `get_many`.

    Args:
        view: the number of the view that they were routed with.
        gets: the keys, each with the future of its coroutine.
        again: takes reads that the reply does not cover, to be sent one by one.
    """

    __slots__ = ("_again", "_gets")

    def __init__(
        self,
        view: int,
        gets: Sequence[Get],
        deadline: Deadline,
        again: Callable[[int, Sequence[Get]], object],
    ) -> None:
        super().__init__(GET_MANY.name, (view, [key for key, _ in gets]), deadline, None)
        self._gets = gets
        self._again = again

    @property
    def wanted(self) -> bool:
        """Return whether any coroutine still waits for its value."""
        return not all(future.done() for _, future in self._gets)

    def finish(self, outcome: Any) -> None:
        """Give each coroutine its frame, or the refusal."""
        if isinstance(outcome, Refused):
            for _, future in self._gets:
                if not future.done():
                    future.set_exception(Refused(outcome.refusal))
            return
        if type(outcome) is not list or not 0 < len(outcome) <= len(self._gets):
            outcome = [_NO_FRAME] * len(self._gets)
        for (_, future), frame in zip(self._gets, outcome, strict=False):
            if not future.done():
                future.set_result(frame)
        if len(outcome) < len(self._gets):
            self._again(self.arguments[0], self._gets[len(outcome) :])

    def fail(self, cause: BaseException, *, sent: bool = False) -> None:
        """Tell each coroutine that there is no reply."""
        for _, future in self._gets:
            if not future.done():
                future.set_exception(CallFailed(cause, sent, 0))
