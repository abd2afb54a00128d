"""`LookUps`: asks the name server for an event loop. It is asked rarely: before the first call, and after failures.

So the blocking code of `client.routing.views` does it, in a thread that lives for one look-up. Coroutines that need the
same share one. A thread that still waits when the loop or the process ends is left behind; it is a daemon, and ends
with its timeout.

Thread safety: used by the thread of its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pyrocache.runtime.shortage import explained

_T = TypeVar("_T")


class LookUps:
    """The look-ups of one event loop that are under way."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._under_way: dict[str, asyncio.Future[Any]] = {}

    async def run(self, kind: str, function: Callable[[], _T]) -> _T:
        """Return what ``function`` returns, which runs in a thread. Callers of one kind share a call that is under way.

        Raises:
            Exception: what the function raises; `OutOfResources` if no thread can be started.
        """
        future = self._under_way.get(kind)
        if future is None:
            future = self._loop.create_future()
            with explained("The name server was not asked"):
                threading.Thread(
                    target=self._look_up, args=(kind, future, function), name="pyrocache-look-up", daemon=True
                ).start()
            self._under_way[kind] = future
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise copy.copy(error) from None  # each caller has a traceback of its own

    def _look_up(self, kind: str, future: asyncio.Future[Any], function: Callable[[], Any]) -> None:
        result, problem = None, None
        try:
            result = function()
        except BaseException as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._finish, kind, future, result, problem)

    def _finish(
        self, kind: str, future: asyncio.Future[Any], result: Any, problem: BaseException | None
    ) -> None:
        self._under_way.pop(kind, None)
        if future.done():
            return
        if problem is None:
            future.set_result(result)
        else:
            future.set_exception(problem)
            future.exception()  # everybody who waited may have been cancelled
