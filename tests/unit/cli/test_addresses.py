"""Where the nodes of one command listen. The kernel says how it reaches addresses; nothing is sent."""

from __future__ import annotations

import pytest

from pyrocache.cli.addresses import check_ports, host_of_nodes, of_node
from pyrocache.config import NodeConfig
from pyrocache.errors import ConfigurationError, NameServerUnavailable
from pyrocache.runtime.own_address import towards

NOWHERE = "nowhere.invalid"


def own_address() -> str:
    try:
        return towards("192.0.2.1", 9)
    except OSError:
        pytest.skip("this host has no route to others")


@pytest.mark.parametrize("nameserver", ["127.0.0.1:9", "127.8.9.10", "localhost", "[::1]:9"])
def test_beside_a_name_server_on_loopback_nodes_are_there_too(nameserver: str) -> None:
    assert host_of_nodes(nameserver, None, None) == "127.0.0.1"
    assert host_of_nodes(nameserver, "::1", None) == "::1"
    assert host_of_nodes(nameserver, "10.0.0.1", None) == "10.0.0.1"
    assert host_of_nodes(nameserver, None, "127.0.0.1:9") == "127.0.0.1"


def test_otherwise_they_are_where_this_host_reaches_the_name_server() -> None:
    own = own_address()
    assert host_of_nodes("192.0.2.1:9", None, None) == own
    assert host_of_nodes(own, None, None) == own
    assert host_of_nodes("192.0.2.1", "10.0.0.1", None) == "10.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_nodes_that_other_hosts_cannot_reach_are_refused(host: str) -> None:
    for advertise in (None, "127.0.0.1", "localhost:9"):
        with pytest.raises(ConfigurationError, match="No other host reaches nodes at"):
            host_of_nodes("192.0.2.1:9", host, advertise)
    assert host_of_nodes("192.0.2.1:9", host, "192.0.2.7") == host, "something else leads there"
    with pytest.raises(ConfigurationError, match="No other host"):
        host_of_nodes("192.0.2.1:9", "0.0.0.0", "127.0.0.1")


def test_a_name_server_that_cannot_be_found() -> None:
    with pytest.raises(NameServerUnavailable, match=f"{NOWHERE} cannot be reached from this host"):
        host_of_nodes(NOWHERE, None, None)
    assert host_of_nodes(NOWHERE, "10.0.0.1", None) == "10.0.0.1", "it may be known later"


def test_ports_follow_each_other() -> None:
    config = NodeConfig(port=7001, advertise="[::1]:8001")
    assert of_node(config, 0) == config
    assert [of_node(config, 2).port, of_node(config, 2).advertise] == [7003, "[::1]:8003"]
    config = NodeConfig(port=7001, advertise="127.0.0.1")
    assert [of_node(config, 1).port, of_node(config, 1).advertise] == [7002, "127.0.0.1"]
    assert of_node(NodeConfig(), 3) == NodeConfig()


@pytest.mark.parametrize(
    ("port", "advertise", "problem"),
    [
        (0, "127.0.0.1:8001", "--advertise 127.0.0.1:8001 names a port: say with --port"),
        (65534, None, "3 nodes from port 65534 on need ports above 65535"),
        (7001, "127.0.0.1:65535", "3 nodes from port 65535 on"),
    ],
)
def test_ports_that_cannot_be(port: int, advertise: str | None, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        check_ports(NodeConfig(port=port, advertise=advertise), 3)


@pytest.mark.parametrize(("port", "advertise"), [(0, None), (0, "localhost"), (65533, "127.0.0.1:65533")])
def test_ports_that_can_be(port: int, advertise: str | None) -> None:
    check_ports(NodeConfig(port=port, advertise=advertise), 3)
