"""The names of nodes in a real name server: who may have one, and when it is free again."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pyrocache import LocalCluster, PyroCacheError
from pyrocache.cluster.routing import Member
from tests.support.nodes import RunningNode, private_cluster, running_nameserver, running_node
from tests.support.processes import environment
from tests.support.secrets import directory_of
from tests.support.stock import name_server_proxy
from tests.support.waiting import eventually


@pytest.fixture
def node() -> Iterator[RunningNode]:
    with running_nameserver() as nameserver, running_node(nameserver) as node:
        yield node


@pytest.mark.full
def test_six_hundred_nodes_keep_a_connection_to_the_name_server_and_clients_still_reach_it() -> None:
    with running_nameserver() as nameserver:
        nodes = [directory_of(nameserver, keep=True) for _ in range(600)]
        try:
            for node in nodes:
                node.age()
            assert directory_of(nameserver).members() == []
            assert {node.listing().connection for node in nodes} == {1}, "all have the one that they opened"
        finally:
            for node in nodes:
                node.close()


def entry(node: RunningNode) -> Member:
    (member,) = directory_of(node.nameserver).members()
    return member


def test_the_name_of_a_live_node_cannot_be_registered_by_another_one(node: RunningNode) -> None:
    directory = directory_of(node.nameserver)
    own = entry(node)
    thief = replace(own, port=1, incarnation="0" * 16)
    assert not directory.register(thief)
    assert entry(node) == own
    assert directory.register(replace(own, weight=2.0)), "it may register itself"
    node.process.pause()
    assert directory.register(thief), "it is silent: the view and the lease decide who serves"
    node.process.signal(signal.SIGCONT)
    eventually(lambda: entry(node) == own)


def test_a_name_of_a_killed_node_is_free_at_once(node: RunningNode) -> None:
    own = entry(node)
    node.process.kill()
    assert directory_of(node.nameserver).register(replace(own, port=1, incarnation="0" * 16))


@pytest.mark.full
def test_a_forged_view_is_named_with_the_command_that_removes_it() -> None:
    with private_cluster(nodes=1) as cluster, name_server_proxy(cluster.nameserver) as names:
        number = directory_of(cluster.nameserver).listing().view.number
        names.register(f"cache.view.{number + 1}", "PYRO:x@127.0.0.1:1")
        with pytest.raises(
            PyroCacheError, match=rf"an entry cache\.view\.{number + 1} that is no view"
        ) as refused:
            cluster.add_node()
        command = [sys.executable, "-m", "pyrocache", "status", "--nameserver", cluster.nameserver]
        status = subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=60, check=True
        )
        remedy = str(refused.value).partition("Remove it with: ")[2]
        assert remedy in status.stdout
        command[3:] = shlex.split(remedy)[1:]
        subprocess.run(command, env=environment(), capture_output=True, timeout=60, check=True)
        assert cluster.add_node().name == "cache.node.2"


@pytest.mark.full
def test_a_restart_under_the_name_of_a_killed_node_is_quick() -> None:
    with LocalCluster(nodes=2) as cluster, cluster.client() as cache:
        cluster.kill(0)
        began_at = time.monotonic()
        cluster.restart(0)
        assert time.monotonic() - began_at < 10.0
        nodes = directory_of(cluster.nameserver).members()
        assert sorted(member.incarnation for member in nodes) == sorted(
            member.incarnation for member in cache.nodes()
        )
