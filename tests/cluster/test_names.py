"""The names of nodes in a real name server: who may have one, and when it is free again."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pyrocache import LocalCluster
from pyrocache.cluster.routing import Member
from pyrocache.net.directory import NameServerDirectory
from tests.support.nodes import RunningNode, running_nameserver, running_node
from tests.support.waiting import eventually


@pytest.fixture
def node() -> Iterator[RunningNode]:
    with running_nameserver() as nameserver, running_node(nameserver) as node:
        yield node


def entry(node: RunningNode) -> Member:
    (member,) = NameServerDirectory(node.nameserver).members()
    return member


def test_the_name_of_a_live_node_cannot_be_registered_by_another_one(node: RunningNode) -> None:
    directory = NameServerDirectory(node.nameserver)
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
    assert NameServerDirectory(node.nameserver).register(replace(own, port=1, incarnation="0" * 16))


def test_a_restart_under_the_name_of_a_killed_node_is_quick() -> None:
    """README: within a second."""
    with LocalCluster(nodes=2) as cluster, cluster.client() as cache:
        cluster.kill(0)
        began_at = time.monotonic()
        cluster.restart(0)
        assert time.monotonic() - began_at < 5.0
        nodes = NameServerDirectory(cluster.nameserver).members()
        assert sorted(member.incarnation for member in nodes) == sorted(
            member.incarnation for member in cache.nodes()
        )
