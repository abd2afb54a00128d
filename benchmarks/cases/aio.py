"""One process with an event loop and one server: calls awaited one by one, 1,000 at once, and beside another task.

Compares the asyncio client with redis.asyncio, each also under uvloop where that is installed, and with itself when
reads of one turn of the loop do not travel together. `gather` makes 1,000 calls, each in a task of its own; a row
counts such rounds. For many calls at once, redis.asyncio has a `BlockingConnectionPool` of 50 connections, as its
default pool refuses more than 100.

*Heartbeat*: 100 tasks make calls, one after the other, three `get`s for each `set`. Another task sleeps for 1 ms, again
and again. *median* and *p99* are the times between two of its wakes, *calls/s* those of the 100 tasks.

Values have 100 bytes. The contenders run in turn. For each table, three processes, one after the other, make a third of
the rounds each.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import pickle
import signal
import time
import traceback
from array import array
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe
from typing import Any, NamedTuple

import numpy as np

from benchmarks import servers
from benchmarks.clients import Transport
from benchmarks.crew import CrewFailed, Slice
from benchmarks.field import OURS, TRANSPORTS
from benchmarks.procfs import cpu_ns
from benchmarks.results import Row
from benchmarks.rounds import comparison, ratios, rotated
from benchmarks.servers import FORKSERVER, NotInstalled
from benchmarks.session import Session
from benchmarks.workloads import key, value

TITLE = "The asyncio client"

REDIS_ASYNCIO = "redis.asyncio"
SEPARATE = f"{OURS}, reads apart"
_UVLOOP = ", uvloop"

AWAITED, GATHERED, HEARTBEAT = "awaited one by one", "gather of 1,000", "beside 100 tasks"
_OPERATIONS = {AWAITED: ("get", "set"), GATHERED: ("get", "set"), HEARTBEAT: ("get and set",)}

_KEYS = 1000
_SIZE = 100
_POOL = 50
_BUSY_TASKS = 100
_BEAT_SECONDS = 0.001
_PATIENCE_SECONDS = 60.0

_Call = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Contender:
    """One client in one kind of event loop. Can be sent to another process.

    Attributes:
        name, transport, pids: as for `field.Contender`.
        connect: makes an object with the coroutines ``get`` and ``set``; takes ``many``, whether 1,000 calls may be
            under way.
        uvloop: whether the loop is uvloop's.
        together: whether reads of one turn of the loop travel together; only ours has the choice.
    """

    name: str
    transport: Transport
    pids: tuple[int, ...]
    connect: Callable[..., Any]
    uvloop: bool = False
    together: bool = True


class Plan(NamedTuple):
    """How much a process does."""

    rounds: int
    calls: int
    gathers: int
    seconds: float


class Turn(NamedTuple):
    """What one contender did in one turn."""

    operation: str
    transport: Transport
    contender: str
    slice: Slice


_Turns = dict[tuple[str, str, str], dict[str, list[Slice]]]
"""By group, transport and operation; then by contender."""


def measure(session: Session) -> list[Row]:
    """Run the case."""
    plan = Plan(session.choose(6, 2), session.choose(400, 50), session.choose(10, 2), session.slice_seconds)
    crews = session.choose(3, 1)
    turns: _Turns = defaultdict(lambda: defaultdict(list))
    with _field(session) as contenders:
        for group in _OPERATIONS:
            for number in range(crews):
                session.progress(f"aio: {group}, process {number + 1} of {crews}")
                for turn in _turns(contenders, group, plan):
                    turns[group, turn.transport, turn.operation][turn.contender].append(turn.slice)
    return list(_rows(turns))


def _rows(turns: _Turns) -> Iterator[Row]:
    for (group, transport, operation), slices in turns.items():
        ordered = {OURS: slices[OURS], **slices}
        compared = _heartbeats(ordered) if group == HEARTBEAT else comparison(OURS, ordered)
        for name, figures in compared.items():
            yield Row("aio", f"{group}, {transport}", operation, name, figures)


def _heartbeats(slices: dict[str, list[Slice]]) -> dict[str, dict[str, float]]:
    """As `rounds.comparison`, for slices whose latencies are not those of the calls."""
    result = {}
    for name, of_it in slices.items():
        gaps = np.concatenate([one.latencies_ns for one in of_it]) / 1e3
        median, p99 = np.percentile(gaps, [50, 99])
        rates = [one.calls_per_second for one in of_it]
        result[name] = {
            "median_us": float(median),
            "p99_us": float(p99),
            "calls_per_second": float(np.median(rates)),
        }
        if name != OURS:
            result[name] |= ratios([one.calls_per_second for one in slices[OURS]], rates)
            result[name]["p99_ratio"] = result[OURS]["p99_us"] / result[name]["p99_us"]
    return result


@contextmanager
def _field(session: Session) -> Iterator[list[Contender]]:
    uvloop = importlib.util.find_spec("uvloop") is not None
    if not uvloop:
        session.note("Nothing was measured with uvloop: pip install uvloop")
    with ExitStack() as stack:
        ours = stack.enter_context(servers.pyrocache_cluster(1, "1GiB"))
        contenders = []
        for transport in session.choose(TRANSPORTS, ("TCP",)):
            connect = partial(_pyrocache, ours.address, transport)
            contenders.append(Contender(OURS, transport, ours.pids, connect))
            contenders.append(Contender(SEPARATE, transport, ours.pids, connect, together=False))
            if uvloop:
                contenders.append(Contender(OURS + _UVLOOP, transport, ours.pids, connect, uvloop=True))
        try:
            redis = stack.enter_context(servers.redis_server())
        except NotInstalled as missing:
            session.note(str(missing))
        else:
            for transport in session.choose(TRANSPORTS, ("TCP",)):
                connect = partial(_Redis, **redis.address[transport])
                contenders.append(Contender(REDIS_ASYNCIO, transport, redis.pids, connect))
                if uvloop:
                    contenders.append(
                        Contender(REDIS_ASYNCIO + _UVLOOP, transport, redis.pids, connect, uvloop=True)
                    )
        yield contenders


def _turns(contenders: Sequence[Contender], group: str, plan: Plan) -> Iterator[Turn]:
    """Run one process to its end; yield what it measures."""
    ours, theirs = FORKSERVER.Pipe()
    process = FORKSERVER.Process(target=_serve, args=(theirs, contenders, group, plan), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            if not ours.poll(_PATIENCE_SECONDS):
                raise CrewFailed(f"The process did not answer within {_PATIENCE_SECONDS:g} s.")
            told = ours.recv()
            if told is None:
                return
            if isinstance(told, str):
                raise CrewFailed(f"The process failed:\n{told}")
            yield told
    finally:
        ours.close()
        process.kill()
        process.join()


# In the process -----------------------------------------------------------------------------------------


class _Redis:
    """redis.asyncio, pickling as ours does."""

    def __init__(self, *, many: bool, **address: Any) -> None:
        from redis import asyncio as aioredis

        if many and "unix_socket_path" in address:
            address = {
                "path": address["unix_socket_path"],
                "connection_class": aioredis.UnixDomainSocketConnection,
            }
        if many:
            pool: Any = aioredis.BlockingConnectionPool(max_connections=_POOL, **address)
            self._redis = aioredis.Redis.from_pool(pool)
        else:
            self._redis = aioredis.Redis(**address)
        self.close = self._redis.aclose

    async def get(self, key: str) -> Any:
        data = await self._redis.get(key)
        return None if data is None else pickle.loads(data)

    async def set(self, key: str, value: Any) -> Any:
        return await self._redis.set(key, pickle.dumps(value, 5))


def _pyrocache(nameserver: str, transport: Transport, *, many: bool) -> Any:
    from pyrocache.aio.client import AsyncPyroCacheClient

    return AsyncPyroCacheClient(nameserver, transport="auto" if transport == "Unix" else "tcp")


def _serve(parent: Pipe, contenders: Sequence[Contender], group: str, plan: Plan) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        with ExitStack() as stack:
            players = [_Player(contender, stack) for contender in contenders]
            gc.collect()
            gc.freeze()
            for number in range(-1, plan.rounds):  # the first round is not counted
                for operation in _OPERATIONS[group]:
                    for player in rotated(players, max(0, number)):
                        done = player.run(group, operation, plan)
                        if number >= 0:
                            one = player.contender
                            parent.send(Turn(operation, one.transport, one.name, done))
        parent.send(None)
    except Exception:
        parent.send(traceback.format_exc())


class _Player:
    """A contender with an event loop and two clients: one for calls one by one, one for many at once."""

    def __init__(self, contender: Contender, stack: ExitStack) -> None:
        self.contender = contender
        self._values = [value(_SIZE, number) for number in range(_KEYS)]
        factory: Any = asyncio.new_event_loop
        if contender.uvloop:
            import uvloop

            factory = uvloop.new_event_loop
        self._runner = stack.enter_context(asyncio.Runner(loop_factory=factory))
        self._clients = {many: contender.connect(many=many) for many in (False, True)}
        for client in self._clients.values():
            self._runner.run(self._check(client))
            stack.callback(self._runner.run, client.close())

    async def _check(self, client: Any) -> None:
        """Put in what is read. Fail now if a contender does not do what it says."""
        for number in range(_KEYS):
            await client.set(key("k", number), self._values[number])
        if await client.get(key("k", 1)) != self._values[1] or await client.get(key("none", 1)) is not None:
            raise CrewFailed(f"{self.contender.name} does not give back what it was given.")

    def run(self, group: str, operation: str, plan: Plan) -> Slice:
        """Do something once. Return the figures."""
        with _reads_together(self.contender.together):
            client = self._clients[group != AWAITED]
            if group == HEARTBEAT:
                done = self._beside(client, plan.seconds)
            elif group == GATHERED:
                done = self._gathered(getattr(client, operation), self._arguments(operation), plan.gathers)
            else:
                done = self._awaited(getattr(client, operation), self._arguments(operation), plan.calls)
            server, cpu = cpu_ns(self.contender.pids), time.process_time_ns()
            latencies, rate = self._runner.run(done)
            cpu = time.process_time_ns() - cpu
            return Slice(
                np.frombuffer(latencies, dtype=np.int64), rate, cpu, cpu_ns(self.contender.pids) - server
            )

    def _arguments(self, operation: str) -> list[tuple[Any, ...]]:
        keys = [key("k", number) for number in range(_KEYS)]
        return [(one,) for one in keys] if operation == "get" else list(zip(keys, self._values, strict=True))

    async def _awaited(
        self, call: _Call, arguments: Sequence[tuple[Any, ...]], count: int
    ) -> tuple[array[int], float]:
        clock, latencies = time.monotonic_ns, array("q")
        begin = after = clock()
        for number in range(count):
            before = clock()
            await call(*arguments[number % _KEYS])
            after = clock()
            latencies.append(after - before)
        return latencies, count / (after - begin) * 1e9

    async def _gathered(
        self, call: _Call, arguments: Sequence[tuple[Any, ...]], count: int
    ) -> tuple[array[int], float]:
        clock, latencies = time.monotonic_ns, array("q")
        begin = after = clock()
        for _ in range(count):
            before = clock()
            await asyncio.gather(*(call(*one) for one in arguments))
            after = clock()
            latencies.append(after - before)
        return latencies, count / (after - begin) * 1e9

    async def _beside(self, client: Any, seconds: float) -> tuple[array[int], float]:
        clock, gaps = time.monotonic_ns, array("q")
        until = clock() + int(seconds * 1e9)
        calls = [0] * _BUSY_TASKS

        async def work(task: int) -> None:
            number = task * 7
            while clock() < until:
                number = (number + 1) % _KEYS
                if number % 4:
                    await client.get(key("k", number))
                else:
                    await client.set(key("k", number), self._values[number])
                calls[task] += 1

        begin = clock()
        tasks = [asyncio.ensure_future(work(task)) for task in range(_BUSY_TASKS)]
        last = clock()
        while last < until:
            await asyncio.sleep(_BEAT_SECONDS)
            now = clock()
            gaps.append(now - last)
            last = now
        await asyncio.gather(*tasks)
        return gaps, sum(calls) / (clock() - begin) * 1e9


@contextmanager
def _reads_together(together: bool) -> Iterator[None]:
    """Have each read travel alone meanwhile, unless they are to travel together as usual."""
    from pyrocache.aio.call import Call
    from pyrocache.aio.lane import Lane
    from pyrocache.net.deadline import Deadline
    from pyrocache.protocol.commands import GET

    usual = Lane.get

    def alone(self: Lane, view: int, key: bytes, deadline: Deadline) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(Call(GET.name, (view, key), deadline, future))
        return future

    if not together:
        Lane.get = alone  # type: ignore[method-assign]
    try:
        yield
    finally:
        Lane.get = usual  # type: ignore[method-assign]
