"""docs/deployment.md as an operator follows it: what it says to type is typed, on hosts of their own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any, Self

import pytest

from pyrocache import PyroCacheClient
from pyrocache.config import TLS
from tests.support.network import Host, network
from tests.support.operators import Operator, lines_of
from tests.support.waiting import eventually

SHORT_SLEEP = "sleep 3"
"""Longer than it takes until a file is read again. The document says 10 seconds, to be sure."""


@pytest.fixture(scope="module")
def by_hand() -> Iterator[Operator]:
    """Two hosts, set up as the document says."""
    pytest.importorskip("cryptography")
    with network("cache1", "cache2") as hosts:
        operator = Operator(hosts)
        for name, line in lines_of("Two hosts by hand"):
            shown = operator.type(name, line)
            if line == "pyrocache ping --wait 30":
                assert shown == "4 nodes answer.\n"
        assert shown == "'hello'\n"
        yield operator


class Load:
    """A program on a host that sets and reads, with a new client now and then, as long as the block runs.

    Attributes:
        done: how often it has done both.
        failures: what went wrong.
    """

    def __init__(self, host: Host) -> None:
        settings = host.directory / ".config" / "pyrocache"
        self._tls = TLS(ca=str(settings / "ca.pem"))
        self._secret = str(settings / "secret")
        self._host = host
        self._ending = threading.Event()
        self.done = 0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(0.02):
            try:
                with self._client() as cache:
                    for number in range(20):
                        key = f"load {number}"
                        self._host.call(cache.set, key, number)
                        assert self._host.call(cache.get, key, number) == number  # None: it has moved since
                        self.done += 1
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")

    def _client(self) -> PyroCacheClient:
        return self._host.call(
            PyroCacheClient, "192.0.2.1:9090", secret_file=self._secret, tls=self._tls, timeout=10.0
        )


def _nodes(operator: Operator, name: str = "cache1") -> dict[str, str]:
    """Return the addresses of the nodes that are up."""
    shown: list[dict[str, Any]] = json.loads(operator.type(name, "pyrocache status --json || true"))["nodes"]
    return {node["name"]: node["address"] for node in shown if node["state"] == "up"}


@pytest.mark.full
def test_nodes_are_where_the_settings_say(by_hand: Operator) -> None:
    assert _nodes(by_hand, "cache2") == {
        "cache.node.1": "192.0.2.1:7001",
        "cache.node.2": "192.0.2.1:7002",
        "cache.node.3": "192.0.2.2:7001",
        "cache.node.4": "192.0.2.2:7002",
    }


@pytest.mark.full
@pytest.mark.parametrize("sleep", [SHORT_SLEEP, "sleep 10"])
def test_the_secret_is_replaced_under_load(by_hand: Operator, sleep: str) -> None:
    before = by_hand.type("cache1", "cat ~/.config/pyrocache/secret")
    with Load(by_hand.network["cache2"]) as load:
        for name, line in lines_of("Replacing the secret"):
            by_hand.type(name, sleep if line == "sleep 10" else line)
    assert load.failures == []
    assert load.done > 100
    after = by_hand.type("cache2", "cat ~/.config/pyrocache/secret")
    assert after != before
    assert after == by_hand.type("cache1", "cat ~/.config/pyrocache/secret")
    assert by_hand.type("cache1", "pyrocache ping") == "4 nodes answer.\n"


@pytest.mark.full
def test_certificates_are_renewed_without_a_restart(by_hand: Operator) -> None:
    look = "openssl s_client -connect 192.0.2.2:7001 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    before = by_hand.type("cache1", look)
    for name, line in lines_of("Renewing certificates"):
        by_hand.type(name, line)
    by_hand.reload("cache1")
    by_hand.reload("cache2")
    eventually(lambda: by_hand.type("cache1", look) != before, 10.0, 0.3)
    assert by_hand.type("cache2", "pyrocache ping") == "4 nodes answer.\n"


@pytest.mark.full
def test_the_nodes_of_a_host_are_drained_under_load(by_hand: Operator) -> None:
    with Load(by_hand.network["cache1"]) as load:
        by_hand.stop("cache2")
        assert list(_nodes(by_hand)) == ["cache.node.1", "cache.node.2"]
        by_hand.type("cache2", "pyrocache nodes --nodes 2")
        assert by_hand.type("cache1", "pyrocache ping --wait 30") == "4 nodes answer.\n"
    assert load.failures == []
    assert load.done > 20


@pytest.mark.full
def test_a_host_that_was_lost_takes_its_names_again(by_hand: Operator) -> None:
    before = _nodes(by_hand)
    by_hand.lose("cache2")
    by_hand.type("cache2", "pyrocache nodes --nodes 2")
    assert by_hand.type("cache1", "pyrocache ping --wait 30") == "4 nodes answer.\n"
    assert _nodes(by_hand) == before


@pytest.mark.full
def test_a_name_server_is_restarted_under_load(by_hand: Operator) -> None:
    with Load(by_hand.network["cache2"]) as load:
        nameserver = by_hand.running["cache1"].pop(0).process
        nameserver.terminate()
        assert nameserver.wait(15) == 0
        by_hand.type("cache1", "pyrocache nameserver")
        # Until the nodes have put their view back, a new client knows those that have registered again.
        eventually(
            lambda: by_hand.type("cache1", "pyrocache ping --wait 30") == "4 nodes answer.\n", 15.0, 0.3
        )
        assert _nodes(by_hand).keys() == {f"cache.node.{number}" for number in (1, 2, 3, 4)}
    needed = ("NameServerUnavailable", "NoNodes")  # by new clients; the nodes register again after a moment
    assert [failure for failure in load.failures if not any(name in failure for name in needed)] == []


@pytest.mark.full
def test_a_tunnel_leads_to_nodes_on_loopback() -> None:
    with network("cache1", "laptop") as hosts:
        operator = Operator(hosts)
        try:
            for name, line in lines_of("An SSH tunnel"):
                operator.type(name, line)
            eventually(lambda: "cache.node.2" in operator.type("laptop", "pyrocache status"), 15.0, 0.3)
            operator.type("laptop", "pyrocache set greeting hello")
            assert operator.type("cache1", "pyrocache get greeting") == "'hello'\n"
            assert operator.type("laptop", "pyrocache ping") == "2 nodes answer.\n"
        finally:
            operator.close()
