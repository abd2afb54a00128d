"""The client processes of a case. They stay for all of it, and each holds a client of every contender.

A crew makes the streams of operations beforehand (`Crew.prepare`) and then, at a signal, runs a slice of one against
one contender (`Crew.run`): each process, and each thread in it, makes calls one after the other and notes how long
each takes. The next slice goes on in the stream where the last one of that contender ended, and starts again at its
end. What is timed is the call and nothing else; streams are kept from the garbage collector's sight.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
import traceback
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from benchmarks.clients import Client
from benchmarks.field import Contender
from benchmarks.procfs import cpu_ns
from benchmarks.servers import FORKSERVER
from benchmarks.workloads import Operation, StreamFactory, key, value

# Imported once, in the process that all of ours are forked from; numpy's pool of threads would only be in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
FORKSERVER.set_forkserver_preload(
    [
        "benchmarks.command",
        "benchmarks.crew",
        "pyrocache.client.client",
        "redis",
        "pymemcache.client.base",
        "Pyro5.api",
    ]
)

_START_SECONDS = 30.0
_ANSWER_SECONDS = 120.0
_STOP_SECONDS = 5.0
_HEAD_START_NS = 20_000_000


class Limit(NamedTuple):
    """Where a slice ends, for each thread of each process: after so many calls, or so many seconds."""

    calls: int | None = None
    seconds: float | None = None


class CrewFailed(Exception):
    """A client process raised, ended or did not answer; the text says what was the matter."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What a crew measured in one turn of one contender.

    Attributes:
        latencies_ns: of each call.
        calls_per_second: of all processes and threads together.
        client_cpu_ns, server_cpu_ns: CPU time that the processes took.
    """

    latencies_ns: npt.NDArray[np.int64]
    calls_per_second: float
    client_cpu_ns: int
    server_cpu_ns: int


class Crew:
    """``processes`` client processes of ``threads`` threads each; a context manager."""

    def __init__(self, contenders: Sequence[Contender], *, processes: int = 1, threads: int = 1) -> None:
        self._contenders = contenders
        self._children: list[tuple[BaseProcess, Connection]] = []
        self._size = processes * threads
        try:
            for number in range(processes):
                ours, theirs = FORKSERVER.Pipe()
                arguments = (theirs, contenders, number * threads, self._size, threads)
                child = FORKSERVER.Process(
                    target=_serve, args=arguments, name=f"client {number}", daemon=True
                )
                child.start()
                theirs.close()
                self._children.append((child, ours))
            self._answers(_START_SECONDS)
        except BaseException:
            self.close()
            raise

    def prepare(self, name: str, factory: StreamFactory) -> None:
        """Have every thread make its stream."""
        self._ask("prepare", name, factory)

    def fill(self, factory: StreamFactory) -> None:
        """Make a stream, run it once against each contender, untimed, and forget it."""
        self.prepare("fill", factory)
        for contender in self._contenders:
            self._ask("fill", self._contenders.index(contender), "fill")
        self._ask("forget", "fill")

    def run_untimed(self, contender: Contender, stream: str) -> None:
        """Run a whole stream once."""
        self._ask("run_once", self._contenders.index(contender), stream)

    def run(self, contender: Contender, stream: str, limit: Limit) -> Slice:
        """Run one slice; all threads start at the same moment."""
        index = self._contenders.index(contender)
        server_before = cpu_ns(contender.pids)
        begin_ns = time.monotonic_ns() + _HEAD_START_NS if self._size > 1 else None
        answers = self._ask("run", index, stream, limit, begin_ns)
        server_cpu = cpu_ns(contender.pids) - server_before
        latencies = np.concatenate([np.frombuffer(data, dtype=np.int64) for data, _, _ in answers])
        return Slice(
            latencies_ns=latencies,
            calls_per_second=sum(rate for _, rate, _ in answers),
            client_cpu_ns=sum(cpu for _, _, cpu in answers),
            server_cpu_ns=server_cpu,
        )

    def _ask(self, command: str, *arguments: Any) -> list[Any]:
        for _, connection in self._children:
            connection.send((command, arguments))
        return self._answers(_ANSWER_SECONDS)

    def _answers(self, seconds: float) -> list[Any]:
        give_up_at = time.monotonic() + seconds
        answers = []
        for child, connection in self._children:
            if not connection.poll(max(0.0, give_up_at - time.monotonic())):
                raise CrewFailed(f"{child.name} did not answer within {seconds:g} s.")
            try:
                failure, answer = connection.recv()
            except EOFError:
                raise CrewFailed(f"{child.name} ended.") from None
            if failure is not None:
                raise CrewFailed(f"{child.name} failed:\n{failure}")
            answers.append(answer)
        return answers

    def close(self) -> None:
        """End the processes."""
        for _, connection in self._children:
            connection.close()
        for child, _ in self._children:
            child.join(_STOP_SECONDS)
            child.kill()
            child.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# In the client process ----------------------------------------------------------------------------------

_BoundOperation = tuple[Callable[..., Any], tuple[Any, ...]]


def _serve(
    parent: Connection, contenders: Sequence[Contender], first: int, workers: int, threads: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        worker = _Worker(contenders, first, workers, threads)
    except Exception:
        parent.send((traceback.format_exc(), None))
        return
    parent.send((None, None))
    with worker.pool, contextlib.suppress(EOFError, OSError):  # the parent has gone
        while True:
            command, arguments = parent.recv()
            try:
                answer = getattr(worker, command)(*arguments)
            except Exception:
                parent.send((traceback.format_exc(), None))
            else:
                parent.send((None, answer))


class _Worker:
    """The clients and streams of one process; its methods are the commands."""

    def __init__(self, contenders: Sequence[Contender], first: int, workers: int, threads: int) -> None:
        self._first = first
        self._workers = workers
        self._threads = threads
        self._clients: list[Client] = [contender.connect(threads=threads) for contender in contenders]
        self._streams: dict[str, list[list[Operation]]] = {}
        self._cursors: dict[tuple[int, str, int], Iterator[_BoundOperation]] = {}
        self.pool = ThreadPoolExecutor(threads)
        for client, contender in zip(self._clients, contenders, strict=True):
            _check(client, contender.name, key("check", first))

    def prepare(self, name: str, factory: StreamFactory) -> None:
        numbers = range(self._first, self._first + self._threads)
        self._streams[name] = [factory(number, self._workers) for number in numbers]
        gc.collect()
        gc.freeze()

    def forget(self, name: str) -> None:
        del self._streams[name]

    def fill(self, index: int, name: str) -> None:
        self.run_once(index, name)
        for stream in self._streams[name]:
            _, (last, *_) = stream[-1]
            if self._clients[index].get(next(iter(last)) if isinstance(last, dict) else last) is None:
                raise CrewFailed("What was put in for reading is not there.")

    def run_once(self, index: int, name: str) -> None:
        for stream in self._streams[name]:
            for function, arguments in _bind(self._clients[index], stream):
                function(*arguments)

    def run(self, index: int, name: str, limit: Limit, begin_ns: int | None) -> tuple[bytes, float, int]:
        cursors = [self._cursor(index, name, thread) for thread in range(self._threads)]
        timed = partial(_timed, limit=limit, begin_ns=begin_ns)
        cpu_before = time.process_time_ns()
        results = list(self.pool.map(timed, cursors)) if self._threads > 1 else [timed(cursors[0])]
        cpu = time.process_time_ns() - cpu_before
        return (
            b"".join(latencies.tobytes() for latencies, _ in results),
            sum(len(latencies) / elapsed_ns * 1e9 for latencies, elapsed_ns in results),
            cpu,
        )

    def _cursor(self, index: int, name: str, thread: int) -> Iterator[_BoundOperation]:
        cursor = self._cursors.get((index, name, thread))
        if cursor is None:
            cursor = cycle(_bind(self._clients[index], self._streams[name][thread]))
            self._cursors[index, name, thread] = cursor
        return cursor


def _bind(client: Client, stream: Sequence[Operation]) -> list[_BoundOperation]:
    functions = {verb: getattr(client, verb) for verb, _ in stream if verb != "update"}
    functions["update"] = partial(_read_then_write, client)
    return [(functions[verb], arguments) for verb, arguments in stream]


def _read_then_write(client: Client, key: str, value: Any) -> None:
    client.get(key)
    client.set(key, value)


def _timed(
    operations: Iterator[_BoundOperation], limit: Limit, begin_ns: int | None
) -> tuple[array[int], int]:
    """Latencies of the calls, and nanoseconds from ``begin_ns``, if not now, to the last reply."""
    clock = time.monotonic_ns
    latencies = array("q")
    if begin_ns is not None:
        time.sleep(max(0, begin_ns - clock()) / 1e9)
    after = begin = begin_ns or clock()
    until = begin + int((limit.seconds or 3600) * 1e9)
    for function, arguments in islice(operations, limit.calls):
        before = clock()
        function(*arguments)
        after = clock()
        latencies.append(after - before)
        if after >= until:
            break
    return latencies, max(1, after - begin)


def _check(client: Client, name: str, key: str) -> None:
    """Fail now if a contender does not do what its verbs say: its figures would mean nothing."""
    thing = value(1000, 1)
    before = client.get(key)
    client.set(key, thing)
    found, deleted, after = client.get(key), client.delete(key), client.get(key)
    if before is not None or found != thing or not deleted or after is not None:
        raise CrewFailed(f"{name} does not give back what it was given.")
