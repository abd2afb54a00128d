"""A FastAPI application with a cache.

Start it, from this directory, with: pyrocache nodes --with-nameserver & uvicorn fastapi_app:app
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse

from pyrocache import AsyncPyroCacheClient, CacheUnavailable

# A client connects when it is used, so it can be made here, where the decorator below needs it. While a node is
# unreachable, its keys count as missing: requests are slower then, but they are answered.
cache = AsyncPyroCacheClient(namespace="shop", timeout=1.0, on_error="miss")

PRODUCTS = {1: "apple", 2: "pear", 3: "pineapple"}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with cache:  # closes it when the application ends
        yield


app = FastAPI(lifespan=lifespan)


async def find_product(number: int) -> dict[str, Any]:
    await asyncio.sleep(0.05)  # a query of a database
    if number not in PRODUCTS:
        raise HTTPException(404, f"There is no product {number}.")  # nothing is stored
    return {"number": number, "name": PRODUCTS[number]}


@app.get("/products/{number}")
async def product(number: int) -> dict[str, Any]:
    # Of all requests, in all processes, that miss the value at the same time, one queries the database.
    return await cache.get_or_set(
        ("product", number), lambda: find_product(number), ttl_seconds=60, tags=["products"]
    )


@cache.memoize(ttl_seconds=60, tags=["products"])
async def search(word: str) -> list[int]:
    await asyncio.sleep(0.05)  # a query of a database
    return [number for number, name in PRODUCTS.items() if word in name]


@app.get("/search")
async def found(word: str) -> list[int]:
    return await search(word)


@app.put("/products/{number}")
async def rename_product(number: int, name: str) -> dict[str, Any]:
    PRODUCTS[number] = name
    removed = await cache.invalidate_tag("products")  # what was loaded before, by `product` and by `search`
    return {"number": number, "name": name, "removed": removed}


@app.put("/baskets/{user}")
async def fill_basket(user: str, numbers: list[int]) -> dict[str, bool]:
    return {"stored": await cache.set(("basket", user), numbers, ttl_seconds=1800)}


@app.get("/baskets/{user}")
async def basket(user: str) -> list[int]:
    return await cache.get(("basket", user), default=[], touch_seconds=1800)


@app.delete("/baskets/{user}")
async def empty_basket(user: str) -> dict[str, bool]:
    return {"removed": await cache.delete(("basket", user))}


@app.post("/orders/{user}")
async def order(user: str) -> dict[str, int]:
    orders = await cache.incr(("orders", user), ttl_seconds=60)  # in the minute that began with the first one
    if orders > 3:
        raise HTTPException(429, "At most 3 orders a minute.")
    return {"orders": orders}


@app.exception_handler(CacheUnavailable)
async def unavailable(request: Request, error: CacheUnavailable) -> JSONResponse:
    """Answer where a failure cannot count as a miss: a counter whose node is away, for example."""
    return JSONResponse({"detail": "Please try again."}, status_code=503, headers={"Retry-After": "2"})
