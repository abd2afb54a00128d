"""The visitors of the application: many coroutines, each with a connection, that make one request after the other.

A client of few lines, as httpx needs more CPU time for a request than the application.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

GIVE_UP_SECONDS = 10.0


@dataclass(slots=True)
class Phase:
    """What was seen in one phase.

    Attributes:
        seconds: how long it took.
        latencies: of the requests that ended in it, in seconds.
        errors: how many of them had another status than 200, or no answer.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: int = 0

    def figures(self) -> dict[str, float]:
        """The figures of a row: rates per second, times in milliseconds."""
        ordered = sorted(self.latencies) or [0.0]

        def at(part: float) -> float:
            return ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1e3

        return {
            "requests/s": len(self.latencies) / self.seconds,
            "p50 ms": at(0.5),
            "p99 ms": at(0.99),
            "longest ms": ordered[-1] * 1e3,
            "errors": self.errors,
        }


class Visitors:
    """Coroutines that make requests from `start` until `stop`.

    Attributes:
        phase: that in which requests that end now are counted; can be replaced.
    """

    def __init__(self, port: int, count: int, items: int) -> None:
        self.phase = Phase()
        self._port, self._count, self._items = port, count, items
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Let all of them begin."""
        self._tasks = [asyncio.ensure_future(self._visit(random.Random(n))) for n in range(self._count)]

    async def stop(self) -> None:
        """Wait until each has its last answer."""
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def during(self, seconds: float) -> Phase:
        """Count the requests that end in the next seconds."""
        self.phase = phase = Phase()
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        phase.seconds = time.perf_counter() - began
        self.phase = Phase()
        return phase

    async def _visit(self, numbers: random.Random) -> None:
        while not self._stopped:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            try:
                while not self._stopped:
                    began = time.perf_counter()
                    status = await asyncio.wait_for(
                        _get(reader, writer, f"/items/{numbers.randrange(self._items)}"), GIVE_UP_SECONDS
                    )
                    self._count_one(began, status == 200)
            except (OSError, EOFError, TimeoutError):
                self._count_one(began, False)
            finally:
                writer.close()

    def _count_one(self, began: float, right: bool) -> None:
        self.phase.latencies.append(time.perf_counter() - began)
        self.phase.errors += not right


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> int:
    """Make a request over a connection that stays open. Return the status."""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, rest = head.partition(b"content-length: ")
    await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    return int(head.split(b" ", 2)[1])
