"""A name server, nodes and clients on three hosts: what a command prints works when it is copied to another one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from operator import attrgetter

import pytest

from tests.support.deployment import Deployment, Protection, calling, copied
from tests.support.network import Network, network

TLS = pytest.param(True, id="tls", marks=pytest.mark.skip(reason="there is no TLS yet"))
PROTECTIONS = [pytest.param(False, id="plain"), TLS]
STORE = "cache.set('planet', 'saturn'); print(cache.get('planet'), len(cache.nodes()))"


@pytest.fixture(params=["ipv4", "ipv6", pytest.param("name", marks=pytest.mark.full)])
def address(request: pytest.FixtureRequest) -> str:
    """Say which address of a host is used."""
    return str(request.param)


@pytest.fixture(params=PROTECTIONS)
def deployment(request: pytest.FixtureRequest, address: str, hosts: Network) -> Deployment:
    """Give a cluster that is to be started."""
    protection = Protection(tls=request.param)
    protection.prepare(hosts)
    return Deployment(hosts, protection, attrgetter(address))


@pytest.fixture
def hosts() -> Iterator[Network]:
    """Three hosts."""
    with network("names", "store", "user") as hosts:
        yield hosts


def test_what_is_printed_on_one_host_works_on_another(deployment: Deployment, hosts: Network) -> None:
    starts_nodes = deployment.start_nameserver("names")
    deployment.start_nodes(["store"], "--nodes", "2", copy=starts_nodes)
    nodes, user = deployment.commands["store"], hosts["user"]

    uses = copied_expression(nodes.wait_for("in Python"))
    python = user.start("-c", f"import pyrocache; cache = {uses}; {STORE}")
    status = user.start("-m", *shlex.split(copied(nodes.wait_for("Show them with"))))

    assert python.communicate(timeout=20.0)[0] == "saturn 2\n"
    shown = status.communicate(timeout=20.0)[0]
    assert status.returncode == 0, shown
    assert shown.count(deployment.address_of(hosts["store"])) == 2


def test_a_client_without_the_secret_is_refused(deployment: Deployment, hosts: Network) -> None:
    deployment.start_nameserver("names")
    deployment.start_nodes(["store"])
    user = hosts["user"]
    user.call(user.secret_file.unlink)  # so it makes one of its own

    outcome = user.run("-m", "pyrocache", "set", "planet", "pluto", "--nameserver", deployment.nameserver)

    assert outcome.status == 1
    assert "secret" in outcome.sentence
    with calling(hosts["store"], deployment.client("store")) as call:
        assert call("get", "planet") is None


def copied_expression(line: str) -> str:
    """Return the Python expression that a printed line ends with."""
    return line.partition(" with: ")[2]
