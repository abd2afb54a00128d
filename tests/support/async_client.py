"""`BlockingClient`: the asyncio client with the interface of the blocking one, for tests that run over both.

One event loop runs in a thread of its own, for all clients of this process. Each thread that calls has a task in that
loop, which runs its calls one after the other and ends with the thread: what the blocking client promises to threads,
the asyncio client promises to tasks. Calls of several threads are concurrent coroutines of one loop.

Functions of the test (factories, and the function of `compute`) run in threads, as they may call a client themselves.

Thread safety: thread-safe, and usable in a child process after a fork.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextvars import copy_context
from types import MethodType
from typing import Any, Self

from pyrocache.aio import AsyncLock, AsyncPyroCacheClient
from pyrocache.aio.backend import AsyncBackend
from pyrocache.aio.memoize import AsyncMemoizer
from pyrocache.client.context import ClientContext
from pyrocache.client.features.memoize import AsyncMemoized

_MISSING = object()


class _Loop:
    """An event loop in a thread.

    Attributes:
        problems: what the loop had to report: exceptions that nobody retrieved, tasks that were destroyed.
    """

    def __init__(self) -> None:
        self.problems: list[dict[str, Any]] = []
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda _, problem: self.problems.append(problem))
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop of tests", daemon=True)
        self._thread.start()
        self._of_thread = threading.local()

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Return the result of a call, which is awaited in the task of this thread."""
        assert threading.current_thread() is not self._thread, "a function of the test blocks the event loop"
        if not hasattr(self._of_thread, "task"):
            self._of_thread.task = _TaskOfThread(self.loop)
        return self._of_thread.task.run(awaitable)


class _TaskOfThread:
    """The task that awaits what one thread calls. It ends when this object is garbage-collected, with its thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: asyncio.Queue[_Call | None] = asyncio.Queue()
        # The task has the context of this thread, such as which factories run in it.
        loop.call_soon_threadsafe(_start, loop, self._calls)
        end = weakref.finalize(self, loop.call_soon_threadsafe, self._calls.put_nowait, None)
        end.atexit = False

    def run(self, awaitable: Awaitable[Any]) -> Any:
        call = _Call(awaitable)
        self._loop.call_soon_threadsafe(self._calls.put_nowait, call)
        try:
            return call.result.result()
        except BaseException:
            if not call.result.done():  # an exception in this thread, such as that of a handler of a signal
                self._loop.call_soon_threadsafe(call.cancel)
            raise
        finally:
            del self, call  # an exception refers to this frame, and the end of this object ends the task


class _Call:
    """One call of a thread."""

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self.result: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._awaitable: Awaitable[Any] | None = awaitable
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    async def run(self) -> None:
        """Await it, in the current task, and set its result."""
        awaitable, self._awaitable = self._awaitable, None
        assert awaitable is not None
        self._task = task = asyncio.current_task()
        assert task is not None
        try:
            if self._cancelled:
                task.cancel()
            result = await awaitable
        except BaseException as error:
            self.result.set_exception(error)
        else:
            self.result.set_result(result)
        finally:
            self._task = None
            while task.cancelling():
                task.uncancel()

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()


_running: set[asyncio.Task[None]] = set()


def _start(loop: asyncio.AbstractEventLoop, calls: asyncio.Queue[_Call | None]) -> None:
    task = loop.create_task(_serve(calls))
    _running.add(task)
    task.add_done_callback(_running.discard)


async def _serve(calls: asyncio.Queue[_Call | None]) -> None:
    while (call := await calls.get()) is not None:
        await call.run()
        del call


_lock = threading.Lock()  # guards: _the_loop
_the_loop: _Loop | None = None


def _after_fork() -> None:
    global _lock, _the_loop
    _lock, _the_loop = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)


def _loop() -> _Loop:
    global _the_loop
    with _lock:
        if _the_loop is None:
            _the_loop = _Loop()
        return _the_loop


def run(awaitable: Awaitable[Any]) -> Any:
    """Return the result of a coroutine, which runs in the event loop of these clients."""
    return _loop().run(awaitable)


def at_the_node(cache: object, callers: int) -> int:
    """Return how many calls wait at a node when so many callers of one client wait for one value.

    The tasks of one event loop wait together.
    """
    return min(1, callers) if isinstance(cache, BlockingClient) else callers


def take_problems() -> list[dict[str, Any]]:
    """Return what the event loop had to report since the last call."""
    running = _loop()
    problems, running.problems = running.problems, []
    return problems


def _in_a_thread(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine function that calls ``function`` in a thread, with the context of the coroutine."""

    @functools.wraps(function)
    async def called(*args: Any, **kwargs: Any) -> Any:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def call() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(result)

        threading.Thread(target=copy_context().run, args=(call,), daemon=True).start()
        return await asyncio.wrap_future(done)

    return called


def _coroutine_function(function: Any) -> Any:
    """Return the same as a coroutine function, if it is a function."""
    return _in_a_thread(function) if callable(function) else function


def _blocking(value: Any) -> Any:
    """Return what the blocking client has in place of a value of the asyncio client."""
    if inspect.isawaitable(value):
        return _blocking(run(value))
    if isinstance(value, AsyncIterator):
        return _iterator(value)
    for kind, wrapper in _WRAPPERS.items():
        if isinstance(value, kind):
            return wrapper._of(value)
    if inspect.ismethod(value):
        return _blocking_method(value)
    return value


def _iterator(iterator: AsyncIterator[Any]) -> Iterator[Any]:
    while (item := run(anext(iterator, _MISSING))) is not _MISSING:  # type: ignore[arg-type]
        yield item


def _blocking_method(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return _blocking(method(*map(_asynchronous, args), **kwargs))

    return called


def _asynchronous(argument: Any) -> Any:
    """Return an argument as the event loop can use it: a client that is a mapping here has coroutines there."""
    return dict(argument) if isinstance(argument, BlockingClient) else argument


class _Wrapper:
    """An object of the asyncio client, whose coroutines have become plain methods."""

    _inner: Any

    @classmethod
    def _of(cls, inner: Any) -> Self:
        wrapper = object.__new__(cls)
        wrapper._inner = inner
        return wrapper

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # while it is unpickled
            raise AttributeError(name)
        return _blocking(getattr(self._inner, name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_inner":
            object.__setattr__(self, name, value)
        else:
            setattr(self._inner, name, value)

    def __reduce__(self) -> Any:
        return type(self)._of, (self._inner,)

    def __repr__(self) -> str:
        return repr(self._inner)


class BlockingClient(_Wrapper):
    """An `AsyncPyroCacheClient` that is used as a `PyroCacheClient`. The arguments are those of both."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._inner = AsyncPyroCacheClient(*args, **kwargs)

    def get_or_set(self, key: object, factory: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self._inner.get_or_set(key, _coroutine_function(factory), *args, **kwargs))

    def compute(self, key: object, function: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self._inner.compute(key, _coroutine_function(function), *args, **kwargs))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a mapping has, in terms of coroutines ----------------------------------------------------------

    def __getitem__(self, key: object) -> Any:
        value = self.get(key, _MISSING)
        if value is _MISSING:
            raise KeyError(key)
        return value

    def __setitem__(self, key: object, value: object) -> None:
        self.set(key, value)

    def __delitem__(self, key: object) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return bool(self.contains(key))

    def __iter__(self) -> Iterator[Any]:
        return _iterator(aiter(self._inner))

    def __len__(self) -> int:
        return int(self.size())

    def __eq__(self, other: object) -> bool:
        try:
            return dict(self.items()) == (dict(other.items()) if isinstance(other, BlockingClient) else other)
        except TypeError:  # an unhashable key
            return False

    __hash__ = None  # type: ignore[assignment]


MutableMapping.register(BlockingClient)


class BlockingLock(_Wrapper):
    """An `AsyncLock` that is used as a `Lock`. What it is for a task, it is for the calling thread."""

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":
            raise AttributeError(name)
        return _blocking(run(_attribute(self._inner, name)))

    def __enter__(self) -> Self:
        run(self._inner.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        run(self._inner.__aexit__(*error))

    def __repr__(self) -> str:
        return str(run(_text(self._inner)))


async def _attribute(thing: Any, name: str) -> Any:
    return getattr(thing, name)


async def _text(thing: Any) -> str:
    return repr(thing)


class BlockingMemoizer(_Wrapper):
    """The decorator of a `BlockingClient`. A plain function becomes a coroutine function, and back."""

    def __call__(self, function: Any) -> Any:
        if isinstance(function, staticmethod | classmethod):
            return BlockingMemoized._of(self._inner(type(function)(_in_a_thread(function.__func__))))
        if not inspect.isroutine(function) or _generates(function) or inspect.iscoroutinefunction(function):
            return self._inner(function)
        return BlockingMemoized._of(self._inner(_in_a_thread(function)))


def _generates(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


class BlockingMemoized(_Wrapper):
    __doc__ = property(lambda self: self._inner.__doc__)  # type: ignore[assignment]

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return run(self._inner(*args, **kwargs))

    def __get__(self, instance: Any, owner: type | None = None) -> BlockingMemoized:
        return self._of(self._inner.__get__(instance, owner))

    @property
    def original(self) -> Callable[..., Any]:
        original = self._inner.original
        plain: Callable[..., Any] = original.__wrapped__
        return MethodType(plain, original.__self__) if inspect.ismethod(original) else plain


_WRAPPERS: dict[type, type[_Wrapper]] = {
    AsyncPyroCacheClient: BlockingClient,
    AsyncLock: BlockingLock,
    AsyncMemoizer: BlockingMemoizer,
    AsyncMemoized: BlockingMemoized,
    ClientContext: _Wrapper,
    AsyncBackend: _Wrapper,
}
