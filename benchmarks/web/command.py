"""``python -m benchmarks web``: a web application of one process and 200 visitors, when one of two nodes is away.

The same application with pyrocache and with redis.asyncio (`application`), one after the other in one run: with both
nodes, while one of them is paused (SIGSTOP), and after it was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import servers
from benchmarks.servers import FORKSERVER, NotInstalled
from benchmarks.web import application
from benchmarks.web.load import Phase, Visitors
from pyrocache.errors import ConfigurationError

_START_SECONDS = 15.0
_STOP_SECONDS = 5.0

_VISITORS = 200
_ITEMS = 2000

Quick = Annotated[bool, typer.Option("--quick", help="Short phases, to see whether all works.")]
Uvloop = Annotated[bool, typer.Option("--uvloop", help="Run the application under uvloop.")]


def web_command(quick: Quick = False, uvloop: Uvloop = False) -> None:
    """Measure a web application while one of two nodes is paused, and after it was killed."""
    try:
        for package in ("fastapi", "uvicorn", *(["uvloop"] if uvloop else [])):
            __import__(package)
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"The application needs the package {missing.name}; get it with: pip install {missing.name}"
        ) from None
    seconds = 0.5 if quick else 3.0
    loop = "uvloop" if uvloop else "asyncio"
    found = {}
    with servers.own_secret():
        print("pyrocache", file=sys.stderr)
        with servers.pyrocache_cluster(2, "256MiB") as cluster:
            found["pyrocache"] = _measured("ours", cluster.address, cluster.pids[0], loop, seconds)
    print("redis.asyncio", file=sys.stderr)
    try:
        with ExitStack() as stack:
            redis = [stack.enter_context(servers.redis_server()) for _ in range(2)]
            ports = [server.address["TCP"]["port"] for server in redis]
            found["redis.asyncio"] = _measured("redis", ports, redis[0].pids[0], loop, seconds)
    except NotInstalled as missing:
        print(missing, file=sys.stderr)
    _show(found)


def _measured(
    kind: Literal["ours", "redis"], address: Any, pid: int, loop: str, seconds: float
) -> dict[str, Phase]:
    """Run the application and its visitors, and take a server away. Return what was seen, by phase."""
    with _serving(kind, address, loop) as port:
        return asyncio.run(_phases(Visitors(port, _VISITORS, _ITEMS), pid, seconds))


async def _phases(visitors: Visitors, pid: int, seconds: float) -> dict[str, Phase]:
    visitors.start()
    await asyncio.sleep(seconds)  # the cache fills
    phases = {"both nodes": await visitors.during(seconds)}
    os.kill(pid, signal.SIGSTOP)
    phases["one paused"] = await visitors.during(seconds)
    os.kill(pid, signal.SIGKILL)
    phases["killed"] = await visitors.during(seconds)
    await visitors.stop()
    return phases


@contextmanager
def _serving(kind: Literal["ours", "redis"], address: Any, loop: str) -> Iterator[int]:
    """Run the application in a process of its own; yield its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port: int = listener.getsockname()[1]
        process = FORKSERVER.Process(
            target=application.serve, args=(kind, address, listener, loop), daemon=True
        )
        process.start()
    try:
        _wait_until_answered(port)
        yield port
    finally:
        process.terminate()
        process.join(_STOP_SECONDS)
        process.kill()
        process.join()


def _wait_until_answered(port: int) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up_at:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as probe:
            probe.settimeout(_START_SECONDS)
            probe.sendall(b"GET /items/0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if probe.recv(12) == b"HTTP/1.1 200":
                return
        time.sleep(0.05)
    raise RuntimeError("the application did not start")


def _show(found: dict[str, dict[str, Phase]]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    title = f"{_VISITORS} visitors, one process, one of two nodes paused and then killed"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("")
    for head in Phase(1.0).figures():
        table.add_column(head, justify="right")
    for phase in next(iter(found.values())):
        for name, phases in found.items():
            figures = (f"{figure:,.4g}" for figure in phases[phase].figures().values())
            table.add_row(phase if name == next(iter(found)) else "", name, *figures)
    console.print(table)
