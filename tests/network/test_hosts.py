"""A name server, nodes and clients on three hosts: what a command prints works when it is copied to another one."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

import pytest

from tests.support.deployment import READY, Deployment, Protection, calling, copied
from tests.support.network import network

STORE = "cache.set('planet', 'saturn'); print(cache.get('planet'), len(cache.nodes()))"
NAMES, STORES, USER = "names", "store", "user"

BY_DEFAULT = [("ipv6", True)]
CASES = [
    pytest.param(
        (address, tls),
        id=f"{address}-{'tls' if tls else 'plain'}",
        marks=[] if (address, tls) in BY_DEFAULT else pytest.mark.full,
    )
    for address in ("ipv4", "ipv6", "name")
    for tls in (False, True)
]
"""By which of its addresses a host is known, and whether by TLS."""


@pytest.fixture(params=CASES, scope="module")
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """Give a cluster of two nodes, which were started as the name server has said."""
    address, tls = request.param
    protection = Protection(tls)
    with network(NAMES, STORES, USER) as hosts:
        protection.prepare(hosts)
        deployment = Deployment(hosts, protection, attrgetter(address))
        nodes = deployment.start_copied(STORES, deployment.start_nameserver(NAMES), "--nodes", "2")
        nodes.wait_for(READY)
        yield deployment


def test_what_is_printed_on_one_host_works_on_another(deployment: Deployment) -> None:
    nodes, hosts = deployment.commands[STORES], deployment.network
    uses = nodes.wait_for("in Python").partition(" with: ")[2]
    status = deployment.start_copied(USER, copied(nodes.wait_for("Show them with")))
    python = hosts[USER].start("-c", f"import pyrocache; cache = {uses}; {STORE}")

    assert python.communicate(timeout=20.0)[0] == "saturn 2\n"
    shown = status.wait_for("cache.node.2")
    assert status.process.wait(20.0) == 0
    assert any(address in shown for address in (hosts[STORES].ipv4, hosts[STORES].ipv6))


ASYNC_STORE = """
import asyncio, pyrocache

async def main():
    async with {uses} as cache:
        await asyncio.gather(*(cache.set(n, n) for n in range(50)))
        found = await asyncio.gather(*(cache.get(n) for n in range(50)))
        async with cache.lock("lock"):
            print(found == list(range(50)), len(await cache.nodes()))

asyncio.run(main())
"""


def test_the_asyncio_client_works_from_another_host(deployment: Deployment) -> None:
    uses = deployment.commands[STORES].wait_for("in Python").partition(" with: ")[2].strip()
    uses = uses.replace("PyroCacheClient", "AsyncPyroCacheClient")
    user = deployment.network[USER]
    outcome = user.run("-c", ASYNC_STORE.format(uses=uses))
    assert (outcome.status, outcome.out) == (0, "True 2\n"), outcome.err


def test_a_client_without_the_secret_is_refused(deployment: Deployment) -> None:
    user = deployment.network[USER]
    user.call(user.secret_file.unlink)  # so the command makes another one
    try:
        options = ["--nameserver", deployment.nameserver, *deployment.protection.of_client(user)]
        outcome = user.run("-m", "pyrocache", "set", "moon", "titan", *options)
    finally:
        user.give_secret()

    assert outcome.status == 1
    assert "secret" in outcome.sentence
    with calling(user, deployment.client(USER)) as call:
        assert call("get", "moon") is None
