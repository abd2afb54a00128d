"""The web applications in `examples` do what they show: requests by httpx, answers from a cluster."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pyrocache import LocalCluster, PyroCacheClient
from pyrocache.runtime.child_process import start_nameserver

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "web"

pytestmark = [
    pytest.mark.skipif(not EXAMPLES.exists(), reason="the tests run without the project around them"),
    pytest.mark.filterwarnings("error"),
]


@pytest.fixture
def nameserver(
    shared_cluster: LocalCluster, cache: PyroCacheClient, monkeypatch: pytest.MonkeyPatch
) -> LocalCluster:
    """The shared cluster, empty, which the applications find by a variable."""
    for name in ("shop", "site"):
        cache.namespace(name).clear()
    monkeypatch.setenv("PYROCACHE_NAMESERVER", shared_cluster.nameserver)
    return shared_cluster


def example(name: str) -> Any:
    """Load the module of an example anew: its client reads the variable then."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@asynccontextmanager
async def browser(app: Any) -> AsyncIterator[Any]:
    """A client of an application that has been started, as a server starts it."""
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://example") as client,
    ):
        yield client


def test_fastapi_loads_a_product_once_and_again_after_a_change(nameserver: LocalCluster) -> None:
    module = example("fastapi_app")
    queries = []
    find = module.find_product

    async def counted(number: int) -> Any:
        queries.append(number)
        return await find(number)

    module.find_product = counted

    async def requests() -> None:
        async with browser(module.app) as client:
            answers = await asyncio.gather(*(client.get("/products/1") for _ in range(20)))
            assert {answer.text for answer in answers} == {'{"number":1,"name":"apple"}'}
            assert queries == [1]
            assert (await client.get("/search", params={"word": "apple"})).json() == [1, 3]
            changed = await client.put("/products/3", params={"name": "melon"})
            assert changed.json()["removed"] == 2  # a product and a result of the search
            assert (await client.get("/search", params={"word": "apple"})).json() == [1]
            assert [(await client.get("/products/9")).status_code for _ in range(2)] == [404, 404]
            assert queries == [1, 9, 9]

    asyncio.run(requests())


def test_fastapi_keeps_baskets_and_counts_orders(nameserver: LocalCluster) -> None:
    async def requests() -> None:
        async with browser(example("fastapi_app").app) as client:
            assert (await client.get("/baskets/alice")).json() == []
            assert (await client.put("/baskets/alice", json=[1, 2])).json() == {"stored": True}
            assert (await client.get("/baskets/alice")).json() == [1, 2]
            removed = [(await client.delete("/baskets/alice")).json()["removed"] for _ in range(2)]
            assert removed == [True, False]
            orders = await asyncio.gather(*(client.post("/orders/alice") for _ in range(5)))
            assert sorted(answer.status_code for answer in orders) == [200, 200, 200, 429, 429]

    asyncio.run(requests())


def test_starlette(nameserver: LocalCluster) -> None:
    async def requests() -> None:
        async with browser(example("starlette_app").app) as client:
            pages = await asyncio.gather(*(client.get("/pages/7") for _ in range(10)))
            assert {answer.text for answer in pages} == {"<h1>Page 7</h1>"}
            assert (await client.get("/weather/Oslo")).json() == {"town": "Oslo", "forecast": "rain"}
            assert (await client.get("/notes/todo")).status_code == 404
            assert (await client.put("/notes/todo", content="milk")).json() == {"stored": True}
            assert (await client.get("/notes/todo")).text == "milk"
            assert (await client.delete("/notes/todo")).json() == {"removed": True}
            reports = await asyncio.gather(*(client.post("/report") for _ in range(3)))
            assert sorted(answer.status_code for answer in reports) == [201, 409, 409]
            assert (await client.post("/report")).status_code == 201

    asyncio.run(requests())


def test_without_a_cluster_pages_are_made_anew_and_counters_are_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_no_nodes = start_nameserver(quiet=True)
    try:
        monkeypatch.setenv("PYROCACHE_NAMESERVER", with_no_nodes.wait_until_ready()["address"])

        async def requests() -> None:
            async with browser(example("fastapi_app").app) as client:
                assert (await client.get("/products/1")).json()["name"] == "apple"
                refused = await client.post("/orders/alice")
                assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
            async with browser(example("starlette_app").app) as client:
                assert (await client.get("/pages/7")).text == "<h1>Page 7</h1>"
                assert (await client.post("/report")).status_code == 503

        asyncio.run(requests())
    finally:
        with_no_nodes.kill()
