"""Stock Pyro5 on either side: proxies with a token at our servers, and our client at nodes that prove nothing."""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import Pyro5.api
import Pyro5.nameserver
import pytest
from Pyro5.errors import CommunicationError, NamingError, PyroError

import pyrocache
from pyrocache import (
    AuthenticationError,
    ConfigurationError,
    LocalCluster,
    NameServerUnavailable,
    NodeUnavailable,
    PyroCacheClient,
)
from pyrocache.config import NodeConfig
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.runtime import secret_file
from pyrocache.runtime.secret_file import FILE_VARIABLE
from pyrocache.settings import NAMESERVER_VARIABLE
from tests.support.commands import call
from tests.support.nodes import private_cluster, running_node
from tests.support.processes import free_address

NODE, OTHER_NODE = "cache.node.1", "cache.node.2"
NAMESERVER = "Pyro.NameServer"
SPENT = "this token is not valid: it was used, is older than 30 seconds, or is of another server; "


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two nodes that refuse strangers."""
    with private_cluster(nodes=2) as cluster:
        yield cluster


@contextmanager
def stock_proxy(uri: str, handshake: Any = None, serializer: str = "msgpack") -> Iterator[Any]:
    with Pyro5.api.Proxy(uri) as proxy:
        proxy._pyroSerializer = serializer
        proxy._pyroTimeout = 20
        if handshake is not None:
            proxy._pyroHandshake = handshake
        yield proxy


def node_uri(cluster: LocalCluster, name: str = NODE) -> str:
    return f"PYRONAME:{name}@{cluster.nameserver}"


def refusal(uri: str, handshake: Any = None) -> str:
    """Return why a proxy is not admitted."""
    with stock_proxy(uri, handshake) as proxy, pytest.raises(CommunicationError) as raised:
        proxy.ping()
    return str(raised.value)


def advised(text: str, nameserver: str) -> Any:
    """Do what a refused proxy is told, literally."""
    advice = re.search(r"proxy\._pyroHandshake = pyrocache\.stock_handshake\('([\w.]+)'\)", text)
    assert advice is not None, text
    return pyrocache.stock_handshake(advice[1], nameserver)


# A stock proxy at our nodes ----------------------------------------------------------------------------------


def test_a_proxy_without_a_token_is_told_how_to_get_one(cluster: LocalCluster) -> None:
    text = refusal(node_uri(cluster))
    assert "no-secret: this server serves callers that prove its secret" in text
    with stock_proxy(node_uri(cluster), advised(text, cluster.nameserver)) as proxy:
        assert proxy.ping()["name"] == NODE
        assert len(proxy.members()) == 2


def test_a_token_is_accepted_once(cluster: LocalCluster) -> None:
    handshake = pyrocache.stock_handshake(NODE, cluster.nameserver)
    assert sorted(handshake) == ["incarnation", "node", "token"]
    assert SPENT in refusal(node_uri(cluster), {**handshake, "token": "0" * 64})
    with stock_proxy(node_uri(cluster), handshake) as proxy:
        proxy.ping()
        assert SPENT in refusal(node_uri(cluster), handshake)
        proxy.ping()
        proxy._pyroRelease()
        with pytest.raises(CommunicationError, match=SPENT):
            proxy.ping()  # which connects again
        proxy._pyroHandshake = pyrocache.stock_handshake(NODE, cluster.nameserver)
        assert proxy.ping()["name"] == NODE


def test_a_token_is_for_one_start_of_one_server() -> None:
    with private_cluster(nodes=2) as cluster:
        handshake = pyrocache.stock_handshake(NODE, cluster.nameserver)
        token = {"token": handshake["token"]}
        for given in (handshake, token):
            assert SPENT in refusal(node_uri(cluster, OTHER_NODE), given)
            assert SPENT in refusal(f"PYRO:{NAMESERVER}@{cluster.nameserver}", given)
        cluster.kill(0)
        cluster.restart(0)
        for given in (handshake, token):
            assert SPENT in refusal(node_uri(cluster), given)


def test_a_token_changes_nothing_about_the_serializer(cluster: LocalCluster) -> None:
    handshake = pyrocache.stock_handshake(NODE, cluster.nameserver)
    with (
        stock_proxy(node_uri(cluster), handshake, "serpent") as proxy,
        pytest.raises(CommunicationError, match="speaks msgpack only"),
    ):
        proxy.ping()
    with stock_proxy(node_uri(cluster), handshake) as proxy:  # it was not used up
        assert proxy.ping()["name"] == NODE


def test_the_variable_names_the_name_server(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMESERVER_VARIABLE, cluster.nameserver)
    with stock_proxy(node_uri(cluster), pyrocache.stock_handshake(NODE)) as proxy:
        assert proxy.ping()["name"] == NODE


# A stock proxy at our name server ----------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", ["serpent", "msgpack"])
def test_a_proxy_with_a_token_can_register(cluster: LocalCluster, serializer: str) -> None:
    uri, entry = f"PYRO:{NAMESERVER}@{cluster.nameserver}", "PYRO:it@127.0.0.1:1"
    with stock_proxy(uri, serializer=serializer) as proxy:
        with pytest.raises(NamingError):
            proxy.lookup("mine")  # reading is open
        for change in (
            lambda: proxy.register("mine", entry),
            lambda: proxy.remove("mine"),
            lambda: proxy.set_metadata(NODE, ["tag"]),
        ):
            with pytest.raises(PyroError, match="is for callers that prove the secret") as raised:
                change()
        handshake = advised(str(raised.value), cluster.nameserver)
    with stock_proxy(uri, handshake, serializer) as proxy:
        proxy.register("mine", entry, metadata={"tag"})
        assert str(proxy.lookup("mine")) == entry
        assert proxy.remove("mine") == 1
    assert SPENT in refusal(uri, handshake)


def test_pyro5s_own_tool_can_read(cluster: LocalCluster) -> None:
    def nsc(*command: str) -> subprocess.CompletedProcess[str]:
        host, _, port = cluster.nameserver.rpartition(":")
        arguments = [sys.executable, "-m", "Pyro5.nsc", "-n", host, "-p", port, *command]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=30)

    listed = nsc("list")
    assert listed.returncode == 0, listed.stderr
    assert f"{NODE} --> PYRO:{NODE}@{cluster.nodes[0].address}" in listed.stdout
    assert nsc("lookup", NODE).stdout.startswith(f"PYRO:{NODE}@{cluster.nodes[0].address}")
    removal = nsc("remove", NODE)
    assert removal.returncode == 1
    assert "pyrocache.stock_handshake('Pyro.NameServer')" in removal.stdout
    with cluster.client() as cache:
        assert cache.ping() == 2


# What `stock_handshake` raises -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NODE, NAMESERVER])
def test_the_errors_of_stock_handshake(cluster: LocalCluster, tmp_path: Path, name: str) -> None:
    nobody = free_address()
    with pytest.raises(NameServerUnavailable, match=nobody):
        pyrocache.stock_handshake(name, nobody)
    other = tmp_path / "other"
    secret_file.make(str(other))
    with pytest.raises(AuthenticationError, match=str(other)):
        pyrocache.stock_handshake(name, cluster.nameserver, secret_file=other)
    with pytest.raises(ConfigurationError, match="timeout"):
        pyrocache.stock_handshake(name, cluster.nameserver, timeout=0)


def test_a_node_that_is_not_there_or_does_not_answer() -> None:
    with private_cluster(nodes=1) as cluster:
        with pytest.raises(NodeUnavailable, match=r"knows no node 'cache\.node\.9'"):
            pyrocache.stock_handshake("cache.node.9", cluster.nameserver)
        cluster.pause(0)
        with pytest.raises(NodeUnavailable, match=r"did not answer within 0\.3 s"):
            pyrocache.stock_handshake(NODE, cluster.nameserver, timeout=0.3)
        cluster.kill(0)
        with pytest.raises(NodeUnavailable, match="cannot be reached"):
            pyrocache.stock_handshake(NODE, cluster.nameserver)


# Nodes that serve everybody ----------------------------------------------------------------------------------


def test_open_nodes_take_any_caller() -> None:
    with running_node(open=True) as node:
        with stock_proxy(f"PYRONAME:{NODE}@{node.nameserver}") as proxy:
            assert proxy.ping()["name"] == NODE
        for options in ({}, {"authenticate": False}):
            with PyroCacheClient(node.nameserver, **options) as cache:  # type: ignore[arg-type]
                assert cache.set("key", options)
                assert cache.get("key") == options


def test_open_nodes_listen_on_loopback_only_and_warn() -> None:
    with pytest.raises(ConfigurationError, match="loopback"):
        NodeConfig(host="192.0.2.7", tls=False, open=True)
    command = ("pyrocache", "nodes", "--open", "--nameserver", free_address())
    outcome = call(*command, "--host", "192.0.2.7", "--no-tls")
    assert outcome.status == 1
    assert "must listen on a loopback address" in outcome.sentence
    warning, error = call(*command).err.splitlines()
    assert warning.startswith("Warning: --open: every user of this machine")
    assert "No name server" in error


# Our client at nodes that cannot prove the secret ------------------------------------------------------------


@contextmanager
def stock_cluster(host: str = "127.0.0.1") -> Iterator[str]:
    """A `CacheNode` behind a stock daemon, registered at a stock name server. Yields the address of that."""
    node = CacheNode(Store(2**20), RequestGuard(NODE, "the first"))
    daemon = Pyro5.api.Daemon(host=host)
    uri = daemon.register(node, NODE)
    server_uri, server, _ = Pyro5.nameserver.start_ns("127.0.0.1", 0, enableBroadcast=False)
    loops = [threading.Thread(target=one.requestLoop, daemon=True) for one in (daemon, server)]
    for loop in loops:
        loop.start()
    try:
        with Pyro5.api.Proxy(server_uri) as names:
            names.register(NODE, uri, metadata={"pyrocache"})
        yield server.locationStr
    finally:
        for one in (daemon, server):
            one.shutdown()
        for loop in loops:
            loop.join(5)


@pytest.fixture(scope="module")
def stock() -> Iterator[str]:
    with stock_cluster() as address:
        yield address


def test_a_client_that_does_not_authenticate_uses_a_stock_daemon(
    stock: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pyrocache")
    for transport in ("auto", "tcp"):
        with PyroCacheClient(stock, authenticate=False, transport=transport) as cache:  # type: ignore[arg-type]
            assert cache.set("key", [1, 2])
            assert pickle.loads(pickle.dumps(cache)).get("key") == [1, 2]
            assert cache.get_many(["key", "missing"]) == {"key": [1, 2]}
            assert cache.ping() == 1
    (warning,) = [
        record.getMessage() for record in caplog.records if "do not authenticate" in record.getMessage()
    ]
    assert stock in warning


def test_the_default_client_does_not_use_a_stock_daemon(stock: str) -> None:
    for on_error in ("raise", "miss"):
        with (
            PyroCacheClient(stock, on_error=on_error) as cache,  # type: ignore[arg-type]
            pytest.raises(AuthenticationError) as raised,
        ):
            cache.get("key")
        assert "this server does not prove that it knows the secret" in str(raised.value)
        assert os.environ["XDG_CONFIG_HOME"] in str(raised.value)
        assert (
            "If it is a stock Pyro5 daemon of yours on this host, use PyroCacheClient(authenticate=False)"
            in str(raised.value)
        )
        assert "\n" not in str(raised.value)
    outcome = call("pyrocache", "get", "key", "--nameserver", stock)
    assert outcome.status == 1
    assert "authenticate=False" in outcome.sentence
    with pytest.raises(AuthenticationError, match="authenticate=False"):
        pyrocache.stock_handshake(NODE, stock)


def test_a_client_that_does_not_authenticate_needs_no_secret(
    stock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "missing"))
    with PyroCacheClient(stock, authenticate=False) as cache:
        assert cache.set("key", 1)


def test_it_is_refused_by_nodes_that_want_the_secret(cluster: LocalCluster) -> None:
    with (
        PyroCacheClient(cluster.nameserver, authenticate=False) as cache,
        pytest.raises(AuthenticationError, match=r"Use a PyroCacheClient without authenticate=False\.$"),
    ):
        cache.get("key")


def test_it_is_for_this_host_only() -> None:
    for address in ("192.0.2.7:9090", "example.org:9090", "[2001:db8::1]:9090", "0.0.0.0:9090"):
        with pytest.raises(ConfigurationError, match="no loopback address"):
            PyroCacheClient(address, authenticate=False)
    with pytest.raises(ConfigurationError, match="either secret_file or authenticate"):
        PyroCacheClient("127.0.0.1:1", authenticate=False, secret_file="file")
    with pytest.raises(ConfigurationError, match="authenticate must be True or False"):
        PyroCacheClient("127.0.0.1:1", authenticate=0)  # type: ignore[arg-type]


def test_it_does_not_trust_a_node_at_an_address_that_others_reach() -> None:
    """Whatever the name server of this host lists."""
    with (
        stock_cluster(host=reachable_address()) as address,
        PyroCacheClient(address, authenticate=False, tls=False) as cache,
        pytest.raises(AuthenticationError, match="does not prove"),
    ):
        cache.get("key")


def reachable_address() -> str:
    """Return an address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return str(sock.getsockname()[0])
