"""What a traceback tells: an exception that a signal handler or another thread raised, and the user's frames."""

from __future__ import annotations

import ctypes
import pickle
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from pyrocache.client.codec import Codec
from pyrocache.errors import SerializationError
from pyrocache.tracebacks import came_from_outside, cause_of, users_frames


class Limit(Exception):
    pass


class Watch:
    """A time limit."""

    def method(self, signum: int, frame: object) -> None:
        raise Limit

    def __call__(self, *args: object) -> None:
        self.calls_a_function(*args)

    def calls_a_function(self, *_: object) -> None:
        raise Limit("with arguments")


def function(signum: int, frame: object) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # what `signal.getsignal` returns does not tell
    raise Limit


def with_more(more: str, signum: int, frame: object) -> None:
    raise TimeoutError(more)


def captures(signum: int, frame: object) -> None:
    def fail() -> None:
        raise OSError(signum, str(frame))

    fail()


HANDLERS: list[Any] = [function, Watch().method, Watch(), partial(with_more, "late"), captures]


@pytest.fixture
def alarm() -> Iterator[Callable[[Any], None]]:
    """Installs a handler of SIGALRM."""
    before = signal.getsignal(signal.SIGALRM)
    yield lambda handler: signal.signal(signal.SIGALRM, handler) and None
    signal.signal(signal.SIGALRM, before)


def raised_by(fails: Callable[[], object]) -> Exception:
    try:
        fails()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def struck() -> None:
    signal.raise_signal(signal.SIGALRM)


class Struck:
    """A value, or a key, in whose pickling a signal arrives."""

    def __reduce__(self) -> Any:
        struck()
        return Struck, ()


@pytest.mark.parametrize("handler", HANDLERS)
def test_what_a_signal_handler_raises_comes_from_outside(handler: Any, alarm: Callable[[Any], None]) -> None:
    alarm(handler)
    error = raised_by(struck)
    assert came_from_outside(error)
    alarm(handler)
    with pytest.raises(type(error)):
        Codec().encode(b"", [Struck()])


def test_what_another_thread_sets_comes_from_outside() -> None:
    seen: list[BaseException] = []
    ready = threading.Event()

    def loop() -> None:
        try:
            ready.set()
            while True:
                len("")
        except Limit as error:
            seen.append(error)

    for _ in range(20):
        ready.clear()
        thread = threading.Thread(target=loop)
        thread.start()
        assert ready.wait(10)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Limit))
        thread.join(10)
    assert len(seen) == 20
    assert all(map(came_from_outside, seen))


def raises() -> None:
    raise Limit


def takes_a_frame(frame: object) -> None:
    calls()


def calls() -> None:
    raises()


@pytest.mark.parametrize(
    "fails",
    [
        raises,
        calls,
        lambda: takes_a_frame(None),
        lambda: takes_a_frame(sys._getframe(1)),
        lambda: int("x"),
        lambda: pickle.dumps(raises.__code__),
        queue.SimpleQueue().get_nowait,
        lambda: next(iter(())),
        lambda: pickle.loads(b""),
    ],
)
def test_other_exceptions_do_not(fails: Callable[[], object]) -> None:
    assert not came_from_outside(raised_by(fails))


def test_an_exception_of_compiled_code_does_not() -> None:
    import msgpack

    for fails in (msgpack.Unpacker().unpack, lambda: msgpack.unpackb(b"\xc1"), lambda: msgpack.unpackb(b"")):
        assert not came_from_outside(raised_by(fails))


class Refuses:
    def __getstate__(self) -> object:
        return self.helper()

    def helper(self) -> object:
        return 1 / 0


def test_a_cause_has_the_frames_of_the_user_only() -> None:
    with pytest.raises(SerializationError) as caught:
        Codec().encode(b"", Refuses())
    cause = caught.value.__cause__
    assert cause is not None
    names = [frame.name for frame in traceback.extract_tb(cause.__traceback__)]
    assert names == ["__getstate__", "helper"]


def test_a_cause_without_frames_of_the_user_is_left_out() -> None:
    with pytest.raises(SerializationError) as caught:
        Codec().encode(b"", threading.Lock())
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert cause_of(ValueError()) is None
    assert users_frames(None) is None
