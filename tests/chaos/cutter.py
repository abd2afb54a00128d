"""A TCP proxy before the nodes that cuts connections at chosen parts of a frame.

It listens on `PROXY_HOST` at the port of each node, and runs in a thread of its own.

Thread safety: `listen` and `stop` may be called by any thread; ``parts`` is replaced as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from tests.chaos.load import PROXY_HOST

HEADER_BYTES = 40
REQUEST_PARTS = ("request header", "request body", "request")
REPLY_PARTS = ("reply", "reply header", "reply body")
"""What of a frame is passed on before the cut: a part of the header; the header and a part of the body; all of a
request, none of a reply."""

_PROBABILITY = 0.02
_HOLD_SECONDS = 0.3  # at most: a reply that will be lost is held back, so that others act before the retry


class Cutter:
    """The proxy.

    Args:
        rng: decides when to cut.

    Attributes:
        parts: where it may cut; none at first.
    """

    def __init__(self, rng: random.Random) -> None:
        self.parts: tuple[str, ...] = ()
        self._random = rng
        self._ports: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def listen(self, port: int) -> None:
        """Stand before the node at that port."""
        if port not in self._ports:
            self._ports.add(port)
            self._run(asyncio.start_server(lambda *streams: self._serve(port, *streams), PROXY_HOST, port))

    def stop(self) -> None:
        """Close everything."""
        self._run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5.0)

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            node_reader, node_writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(node_writer)
            pumps = [
                asyncio.ensure_future(self._pump(reader, node_writer, REQUEST_PARTS)),
                asyncio.ensure_future(self._pump(node_reader, writer, REPLY_PARTS)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:  # the node is gone
            pass
        finally:
            for stream in writers:
                stream.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parts: tuple[str, ...]
    ) -> None:
        """Pass frames on until one end closes, or a cut."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                header = await reader.readexactly(HEADER_BYTES)
                data_bytes, annotation_bytes = struct.unpack_from("!II", header, 12)
                frame = header + await reader.readexactly(data_bytes + annotation_bytes)
                part = self._choose(parts)
                if part in REPLY_PARTS:
                    await asyncio.sleep(self._random.uniform(0.0, _HOLD_SECONDS))
                writer.write(frame[: _kept(part, len(frame))] if part else frame)
                await writer.drain()
                if part:
                    return

    def _choose(self, parts: tuple[str, ...]) -> str:
        possible = [part for part in parts if part in self.parts]
        return self._random.choice(possible) if possible and self._random.random() < _PROBABILITY else ""


_KEPT: dict[str, Callable[[int], int]] = {
    "request": lambda size: size,
    "reply": lambda size: 0,
    "request header": lambda size: HEADER_BYTES // 2,
    "reply header": lambda size: HEADER_BYTES // 2,
    "request body": lambda size: (HEADER_BYTES + size) // 2,
    "reply body": lambda size: (HEADER_BYTES + size) // 2,
}


def _kept(part: str, size: int) -> int:
    """Return how many bytes of a frame are passed on."""
    return _KEPT[part](size)
