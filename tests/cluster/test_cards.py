"""What notebooks and terminals show of clients and clusters, with real processes: also while these hang or are gone."""

from __future__ import annotations

import os
import re

import pytest

from pyrocache import AsyncPyroCacheClient, LocalCluster, PyroCacheClient
from tests.support.forked import forked
from tests.support.hostile import HOSTILE, is_plain, outline
from tests.support.loops import run_cleanly
from tests.support.nodes import private_cluster


def card(shown: object) -> str:
    """The text of a card, of which the HTML is checked too."""
    bundle = shown._repr_mimebundle_()  # type: ignore[attr-defined]
    assert bundle.keys() == {"text/plain", "text/html"}
    outline(bundle["text/html"])
    text: str = bundle["text/plain"]
    assert is_plain(text)
    assert not text.endswith("\n")
    return text


def test_a_client_shows_the_cluster_and_uses_no_entry(cache: PyroCacheClient) -> None:
    cache.set_many({number: number for number in range(30)})
    before = cache.stats().total
    text = card(cache)
    assert re.search(r"^PyroCacheClient\n  name server +127.0.0.1:\d+\n  nodes +3\n", text)
    for node in cache.nodes():
        assert re.search(rf"^  {node.name} +up +{node.address} +[\d,]+ ", text, re.MULTILINE)
    after = cache.stats().total
    assert (after.hits, after.misses, after.entries) == (before.hits, before.misses, before.entries)


def test_a_client_of_a_namespace_shows_its_entries(cache: PyroCacheClient) -> None:
    cache.set_many({number: number for number in range(30)})
    for name in HOSTILE:
        inner = cache.namespace("outer").namespace(name)
        inner.set_many({1: 1, 2: 2})
        text = card(inner)
        assert re.search(r"^  entries +2$", text, re.MULTILINE)
        assert text.startswith("PyroCacheClient, namespace ('outer', ")


def test_nodes_entries_and_statistics_are_shown(cache: PyroCacheClient) -> None:
    cache.set("a", {"x": 1}, ttl_seconds=60, tags=HOSTILE)
    entry = cache.get_entry("a")
    assert "{'x': 1}" in card(entry)
    stats = cache.stats()
    for shown in (stats, stats.total, stats.client, *stats.nodes.values(), *stats.total.latencies.values()):
        card(shown)
    assert card(stats) == repr(stats)
    assert cache.nodes() == list(cache.nodes())
    assert re.search(r"cache.node.1 +127.0.0.1:\d+", card(cache.nodes()))


def test_a_cluster_with_processes_that_hang_or_are_gone(cluster: LocalCluster) -> None:
    assert re.search(r"^  name server +\d+ +alive +127", card(cluster), re.MULTILINE)
    with cluster.client(timeout=60) as cache:
        assert re.search(r"^  cache.node.1 +up ", card(cache), re.MULTILINE)
        cluster.pause(0)
        cluster.kill(1)
        for shown in (card(cache), card(cluster)):
            assert ": 2 away" in shown.splitlines()[0]
            assert "cache.node.1, cache.node.2 do not answer" in shown
            assert re.search(r"^  cache.node.3 +(\d+ +)?up ", shown, re.MULTILINE)
        assert re.search(rf"^  cache.node.1 +{cluster.nodes[0].pid} +away ", card(cluster), re.MULTILINE)
        assert re.search(rf"^  cache.node.2 +{cluster.nodes[1].pid} +ended ", card(cluster), re.MULTILINE)
        cluster.kill_nameserver()
        shown = card(cache)
        assert re.search(r"^  cache.node.3 +up ", shown, re.MULTILINE)
        assert "pyrocache nameserver" in shown.replace("\n  ", " ")
        shown = card(cluster)  # by its client, which knows the nodes
        assert re.search(r"^  name server +\d+ +ended ", shown, re.MULTILINE)
        assert re.search(r"^  cache.node.3 +\d+ +up ", shown, re.MULTILINE)
    with cluster.client(timeout=60) as stranger:
        shown = card(stranger)
        assert shown.splitlines()[0] == "PyroCacheClient: no answer"
        assert "pyrocache nameserver" in shown.replace("\n  ", " ")
    assert card(stranger).splitlines()[0] == "PyroCacheClient: closed"


def test_a_cluster_that_was_stopped_and_a_client_of_it() -> None:
    with private_cluster(nodes=1) as cluster:
        cache = cluster.client()
        cache["a"] = 1
    assert card(cluster).splitlines()[0] == "LocalCluster: stopped"
    assert "start a new LocalCluster" in card(cluster)
    assert card(cache).splitlines()[0] == "PyroCacheClient: closed"
    assert "The cluster of this client was stopped" in card(cache)


def test_a_cluster_without_nodes_or_clients() -> None:
    with private_cluster(nodes=0) as cluster:
        assert "knows no node" in card(cluster)
        cluster.add_node()
        assert re.search(r"^  cache.node.1 +\d+ +up ", card(cluster), re.MULTILINE)
        with cluster.client() as cache:
            before = cache.stats().total.connections
        card(cluster)
        assert len(cluster._clients) <= 1
        with cluster.client() as cache:
            assert cache.stats().total.connections <= before  # no card has left a connection


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_in_a_forked_child(cluster: LocalCluster) -> None:
    cache = cluster.client()
    own = card(cache)
    child = forked(lambda: (card(cache), card(cluster)))
    assert [line[:15] for line in child[0].splitlines()] == [line[:15] for line in own.splitlines()]
    assert re.search(r"^  cache.node.1 +\d+ +up ", child[1], re.MULTILINE)
    assert re.search(r"^  name server +\d+ +not known ", child[1], re.MULTILINE)
    cluster.pause(0)
    child = forked(lambda: (card(cache), card(cluster)))
    assert "1 away" in child[0]
    assert re.search(r"^  cache.node.1 +\d+ +away ", child[1], re.MULTILINE)
    assert "ended" not in child[1]


def test_an_asyncio_client_shows_what_it_knows(cache: PyroCacheClient) -> None:
    nameserver = cache._context.config.nameserver
    other = AsyncPyroCacheClient(nameserver, namespace="mine")
    assert re.search(r"^  open connections +0$", card(other), re.MULTILINE)

    async def use() -> None:
        await other.set("a", 1)
        shown = card(other)
        assert shown.startswith("AsyncPyroCacheClient, namespace 'mine'\n")
        assert nameserver in shown
        assert re.search(r"^  open connections +[1-9]\d*$", shown, re.MULTILINE)
        assert "await cache.stats()" in shown
        assert "cache.node.1" in card(await other.nodes())
        assert await other.nodes() == cache.nodes()
        await other.close()
        assert card(other).startswith("AsyncPyroCacheClient, namespace 'mine': closed\n")

    run_cleanly(use)
