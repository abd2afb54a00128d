"""Fixtures of the contract suite of clients: each test runs with the blocking client and with the asyncio client.

The asyncio client is used through `tests.support.async_client`. A test that is about how the blocking client is made
carries ``@pytest.mark.blocking_only(reason)``. One that takes long carries ``@pytest.mark.asyncio_full``: only with
``--full`` does it run with the asyncio client, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyrocache import LocalCluster, PyroCacheClient
from tests.support.async_client import BlockingClient, take_problems

ClientClass = Callable[..., PyroCacheClient]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    test = metafunc.definition
    marks = [pytest.mark.full] if test.get_closest_marker("asyncio_full") else []
    clients = [
        pytest.param(PyroCacheClient, id="blocking"),
        pytest.param(BlockingClient, id="asyncio", marks=marks),
    ]
    if test.get_closest_marker("blocking_only"):
        del clients[1]
    metafunc.parametrize("client_class", clients, indirect=True)


@pytest.fixture(autouse=True)
def client_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClientClass]:
    """The class of the clients that this test uses. `LocalCluster.client` makes one of it, too."""
    kind: Any = request.param

    def client(cluster: LocalCluster, **options: Any) -> PyroCacheClient:
        return cluster._made(kind, options)

    monkeypatch.setattr(LocalCluster, "client", client)
    yield kind
    if kind is BlockingClient:
        assert take_problems() == []


@pytest.fixture
def cache(client_class: ClientClass, shared_cluster: LocalCluster) -> Iterator[PyroCacheClient]:
    """A client of the shared cluster, which is empty."""
    with client_class(shared_cluster.nameserver) as client:
        client.clear()
        yield client
