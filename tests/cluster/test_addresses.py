"""Where name servers and nodes listen, what they advertise, and who is admitted: real processes on loopback."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyrocache import AuthenticationError, PyroCacheClient
from pyrocache.cluster.routing import Member
from pyrocache.config import parse_address
from pyrocache.net.call_protocol import knowing
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.directory import NameServerDirectory
from pyrocache.protocol.handshake import OTHER_ADDRESS, HandshakeRefused
from pyrocache.runtime.child_process import start_nameserver, start_node
from pyrocache.runtime.secret import find_secret, locate
from tests.support.background import background
from tests.support.commands import call
from tests.support.cutting_proxy import CuttingProxy
from tests.support.nodes import running_nameserver
from tests.support.processes import free_address, free_port
from tests.support.secrets import directory_of
from tests.support.waiting import PATIENCE_SECONDS, eventually

SMALL = {"max_memory": 16 * 2**20, "drain_seconds": 0.0}


@pytest.fixture(scope="module")
def nameserver() -> Iterator[str]:
    with running_nameserver() as address:
        yield address


@contextmanager
def a_node(nameserver: str, **settings: Any) -> Iterator[dict[str, Any]]:
    """Run a node; give what it has reported. It leaves in the end, so that the next one need not wait."""
    process = start_node({"nameserver": nameserver, "new_cluster": True, **SMALL, **settings}, quiet=True)
    try:
        yield process.wait_until_ready()
    finally:
        process.terminate()
        process.wait()


def ping(address: tuple[str, int]) -> Any:
    """Call a node at an address."""
    connection = Connection(Member("cache.node.1", *address), "tcp", knowing(find_secret()))
    try:
        connection.finish_opening(Deadline(PATIENCE_SECONDS))
        return connection.call("ping", (), Deadline(PATIENCE_SECONDS))
    finally:
        connection.close()


def free_ports() -> int:
    """Return a loopback port where nobody listens, nor at the one after it."""
    while True:
        with ExitStack() as stack:
            try:
                port: int = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
                stack.enter_context(socket.create_server(("127.0.0.1", port + 1)))
            except (OSError, OverflowError):
                continue
        return port


def ports(nameserver: str) -> dict[str, int]:
    return {member.name: member.port for member in directory_of(nameserver).members()}


def pids(nameserver: str) -> dict[str, int]:
    with PyroCacheClient(nameserver, timeout=1.0) as cache:
        return {name: figures.pid for name, figures in cache.stats().nodes.items() if figures.serving}


@pytest.mark.full
def test_nodes_have_the_ports_that_were_asked_for_and_keep_them(tmp_path: Path) -> None:
    address, port = free_address(), free_ports()
    command = f"run_nodes.py --with-nameserver --nameserver {address} --nodes 2 --port {port} -m 16MiB"
    with background(tmp_path, *command.split(), ready="ready\n") as nodes:
        # Which of them has which name is their race.
        given, before = ports(address), eventually(lambda: pids(address))
        assert sorted(given.values()) == [port, port + 1]
        os.kill(before["cache.node.2"], signal.SIGKILL)
        after = eventually(lambda: (now := pids(address)) != before and len(now) == 2 and now, 10.0)
        assert after["cache.node.1"] == before["cache.node.1"]
        assert ports(address) == given
        nodes.process.send_signal(signal.SIGTERM)
        assert nodes.process.wait(PATIENCE_SECONDS) == 0


def test_a_port_that_is_taken_is_named(nameserver: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = start_node({"nameserver": nameserver, "port": port, **SMALL}, quiet=True)
        with pytest.raises(
            Exception, match=rf"Cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)"
        ):
            process.wait_until_ready()
        assert process.exit_status == 1, "a supervisor tries again"


def test_a_mapped_port_that_is_advertised_is_the_address_of_the_node(nameserver: str) -> None:
    port = free_port()
    with CuttingProxy(("127.0.0.1", port)) as proxy:
        mapped = ("127.0.0.1", proxy.port)
        with a_node(nameserver, port=port, advertise=f"127.0.0.1:{proxy.port}") as node:
            assert (node["host"], node["port"]) == mapped
            assert ports(nameserver) == {"cache.node.1": proxy.port}
            with PyroCacheClient(nameserver, transport="tcp") as cache:
                assert [(member.host, member.port) for member in cache.nodes()] == [mapped]
                assert cache.set("key", "value")
                assert cache.get("key") == "value"
            assert ping(("127.0.0.1", port))["serving"], "where it listens, it serves, too"
        with a_node(nameserver, port=port):
            assert ping(("127.0.0.1", port))["serving"]
            with pytest.raises(
                HandshakeRefused, match=f"does not listen on '127.0.0.1 {proxy.port}'"
            ) as refused:
                ping(mapped)
            assert refused.value.code == OTHER_ADDRESS


def test_a_name_server_with_a_mapped_port_is_known_by_it(tmp_path: Path) -> None:
    port = free_port()
    with CuttingProxy(("127.0.0.1", port)) as proxy:
        address = f"127.0.0.1:{proxy.port}"
        command = ("run_nameserver.py", "--port", str(port), "--advertise", address)
        with background(tmp_path, *command, ready="ready at") as server:
            assert server.out == (
                f"Name server ready at {address}. Start nodes with: pyrocache nodes --nameserver {address}\n"
            )
            with a_node(address), PyroCacheClient(address) as cache:
                assert cache.set("key", "value")


def test_a_name_server_to_which_something_leads_from_other_hosts_admits_no_strangers() -> None:
    for advertise, admitted in (("127.0.0.2", True), ("192.0.2.200", False)):
        process = start_nameserver(quiet=True, advertise=advertise, tls=False)
        try:
            _, port = parse_address(process.wait_until_ready()["address"])
            stranger = NameServerDirectory(f"127.0.0.1:{port}")
            if admitted:
                assert stranger.members() == []
            else:
                with pytest.raises(AuthenticationError, match="no-secret"):
                    stranger.members()
            assert directory_of(f"127.0.0.1:{port}").members() == []
        finally:
            process.kill()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this host has no IPv6")
def test_one_node_at_all_addresses_is_reached_over_ipv6_and_ipv4() -> None:
    process = start_nameserver(quiet=True, host="::", advertise="::1", tls=False)
    try:
        address = process.wait_until_ready()["address"]
        assert re.fullmatch(r"\[::1\]:\d+", address)
        with a_node(address, host="::", advertise="::1", tls=False) as node:
            assert node["host"] == "::1"
            for host in ("::1", "127.0.0.1"):
                assert ping((host, node["port"]))["serving"]
            with PyroCacheClient(address, transport="tcp") as cache:
                assert cache.set("key", "value")
                assert cache.nodes()[0].address == f"[::1]:{node['port']}"
        with a_node(address, host="::1") as node:
            assert ping(("::1", node["port"]))["serving"]
    finally:
        process.kill()


def test_what_a_name_server_prints_can_be_copied_to_another_host(tmp_path: Path) -> None:
    command = "run_nameserver.py --host 0.0.0.0 --port 0 --advertise nowhere.invalid --no-tls"
    with background(tmp_path, *command.split(), ready="secret file") as server:
        address = server.out.partition("ready at ")[2].partition(". ")[0]
        assert address.startswith("nowhere.invalid:")
        assert server.out == (
            f"Name server ready at {address}. "
            f"Start nodes with: pyrocache nodes --nameserver {address} --no-tls\n"
            f"Other hosts need a copy of the secret file {locate()}, at the same place.\n"
        )
        assert f"{address} cannot be resolved" in server.err


@pytest.mark.parametrize(
    ("command", "about"),
    [
        ("nameserver --host 0.0.0.0", "give --advertise"),
        ("nameserver --host :: --no-tls", "give --advertise"),
        ("nameserver --host 10.0.0.1", "Other hosts can reach 10.0.0.1"),
        ("nameserver --advertise 10.0.0.1", "Other hosts can reach 10.0.0.1"),
        ("nameserver --advertise a:b:c", "'a:b:c'"),
        ("nodes --host 0.0.0.0", "give --advertise"),
        ("nodes --advertise 0.0.0.0:7 --port 7", "0.0.0.0 is not an address that others can connect to"),
        ("nodes --advertise 127.0.0.1:7", "say with --port"),
        ("nodes --port 65535", "3 nodes from port 65535 on"),
        ("nodes --port -1", "from 0 to 65535, not -1"),
        (
            "nodes --nameserver 192.0.2.200 --host localhost --no-tls",
            "No other host reaches nodes at localhost",
        ),
        ("nodes --nameserver 192.0.2.200 --host ::1 --no-tls", "No other host reaches nodes at ::1"),
        ("nodes --nameserver 192.0.2.200 --host 10.0.0.1", "Other hosts can reach 10.0.0.1"),
        ("nodes --nameserver nowhere.invalid", "cannot be reached from this host"),
    ],
)
def test_addresses_that_make_no_sense_are_refused_in_one_sentence(command: str, about: str) -> None:
    refused = call("pyrocache", *command.split(), PYROCACHE_NAMESERVER="127.0.0.1:1")
    assert refused.status in (1, 2)
    assert about in refused.sentence
