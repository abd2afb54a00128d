"""`loading.get_or_set` for coroutines: the factory is awaited in its caller's loop, which never waits for a node.

Calls to nodes are made in threads: short ones in a few that are always there, and those that wait for another loader
in one of their own each. When as many wait as may, the others ask again every few milliseconds; so the calls that end
the waiting, which store what was loaded, never wait for a thread that waits.

Whoever is cancelled while it loads, or while it is being told to, gives the lease back at once.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any, TypeVar

from pyrocache.client.context import MISSING, ClientContext
from pyrocache.client.features.load_once import IF_MISSING, Found, Terms, find
from pyrocache.errors import WaitTimeout
from pyrocache.runtime.places import Places

_T = TypeVar("_T")

_THREADS = 8
_WAITING_THREADS = 64
_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.1


async def get_or_set(
    core: ClientContext,
    key: bytes,
    factory: Callable[[], Awaitable[_T]],
    terms: Terms,
    tags: Callable[[], list[bytes] | None],
    *,
    keep: Callable[[_T], object] | None = None,
    refresh: int = IF_MISSING,
) -> _T:
    """The value under a canonical key, loaded if need be. Arguments as for `loading.get_or_set`."""
    found, load = await _find(core, key, terms, refresh)
    result: _T = found
    if load is None:
        return result
    mark = load.begin()
    try:
        told = tags()
        result = await factory()
        kept = keep is None or bool(keep(result))
    except Exception as error:
        await in_thread(load.abandon)
        if load.live is MISSING:
            raise
        result = load.instead_of(error)
        return result
    except BaseException:
        load.drop()
        raise
    finally:
        load.end(mark)
    if kept:
        await in_thread(lambda: load.store(result, told))
    else:
        await in_thread(load.abandon)
    return result


async def in_thread(function: Callable[[], _T]) -> _T:
    """What ``function``, which does not take long, returns on another thread."""
    return await _outcome_of(_submit(function))


async def _find(core: ClientContext, key: bytes, terms: Terms, refresh: int) -> Found:
    """`loading.find`, without blocking the loop."""
    give_up_at = None if terms.wait_seconds is None else time.monotonic() + terms.wait_seconds
    at_once = replace(terms, wait_seconds=0)
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await in_thread(lambda: find(core, key, at_once, refresh=refresh))
        except WaitTimeout:
            left = None if give_up_at is None else max(0.0, give_up_at - time.monotonic())
            place = _threads.waiting.take(0.0)
            if left == 0 or place is not None:
                break
            await asyncio.sleep(pause if left is None else min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    future: Future[Found] = Future()
    cancelled = Event()
    rest = replace(terms, wait_seconds=left)
    search = partial(find, core, key, rest, refresh=refresh, given_up=cancelled.is_set)
    _thread.start_new_thread(_run, (future, place, partial(copy_context().run, search)))
    del place  # or it would be taken as long as an exception refers to this frame
    try:
        return await _outcome_of(future)
    except asyncio.CancelledError:
        cancelled.set()
        raise


async def _outcome_of(future: Future[_T]) -> _T:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(_give_back)  # a lease that nobody is there to take
        raise
    finally:
        del future  # its exception refers to this frame


def _give_back(future: Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        result = future.result()
        if isinstance(result, Found) and result.load is not None:
            result.load.drop()


def _run(future: Future[_T], place: object, function: Callable[[], _T]) -> None:
    """Make ``function``'s outcome that of ``future``; ``place`` is taken as long as this lasts."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)
    del future, place  # the exception refers to this frame


class _Threads:
    """The threads of this process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew: a forked child has none."""
        self.waiting = Places(_WAITING_THREADS)
        self.short: ThreadPoolExecutor | None = None


_threads = _Threads()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.reset)


def _submit(function: Callable[[], _T]) -> Future[_T]:
    if _threads.short is None:
        _threads.short = ThreadPoolExecutor(_THREADS, thread_name_prefix="pyrocache-call")
    context = copy_context()
    return _threads.short.submit(lambda: context.run(function))
