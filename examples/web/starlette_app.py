"""A Starlette application with a cache, whose client is made when the application starts.

Start it, from this directory, with: pyrocache nodes --with-nameserver & uvicorn starlette_app:app
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pyrocache import AsyncPyroCacheClient, CacheUnavailable


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with AsyncPyroCacheClient(namespace="site", timeout=1.0, on_error="miss") as cache:
        app.state.cache = cache
        app.state.forecast = cache.memoize(ttl_seconds=600, stale_seconds=60)(forecast)
        yield


async def forecast(town: str) -> dict[str, object]:
    await asyncio.sleep(0.05)  # a request to another service
    return {"town": town, "forecast": "rain"}


async def weather(request: Request) -> Response:
    return JSONResponse(await request.app.state.forecast(request.path_params["town"]))


def render(number: int) -> str:
    """Render a page; a function that blocks."""
    time.sleep(0.05)
    return f"<h1>Page {number}</h1>"


async def page(request: Request) -> Response:
    number = request.path_params["number"]
    html = await request.app.state.cache.get_or_set(
        ("page", number),
        lambda: asyncio.to_thread(render, number),  # in the event loop, it would delay all other requests
        ttl_seconds=60,
    )
    return Response(html, media_type="text/html")


async def note(request: Request) -> Response:
    cache, key = request.app.state.cache, ("note", request.path_params["name"])
    if request.method == "PUT":
        return JSONResponse({"stored": await cache.set(key, (await request.body()).decode())})
    if request.method == "DELETE":
        return JSONResponse({"removed": await cache.delete(key)})
    text = await cache.get(key)
    return Response(status_code=404) if text is None else Response(text, media_type="text/plain")


async def report(request: Request) -> Response:
    """Do what must not run twice at a time, in none of the processes."""
    lock = request.app.state.cache.lock("report", wait_seconds=0)
    if not await lock.acquire():
        return JSONResponse({"detail": "The report is being made."}, status_code=409)
    try:
        await asyncio.sleep(0.2)
    finally:
        await lock.release()
    return JSONResponse({"token": lock.token}, status_code=201)


async def unavailable(request: Request, error: Exception) -> Response:
    """Answer where a failure cannot count as a miss: a lock whose node is away, for example."""
    return JSONResponse({"detail": "Please try again."}, status_code=503, headers={"Retry-After": "2"})


app = Starlette(
    routes=[
        Route("/weather/{town}", weather),
        Route("/pages/{number:int}", page),
        Route("/notes/{name}", note, methods=["GET", "PUT", "DELETE"]),
        Route("/report", report, methods=["POST"]),
    ],
    exception_handlers={CacheUnavailable: unavailable},
    lifespan=lifespan,
)
