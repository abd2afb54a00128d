"""Forged, replaced and removed entries, in Pyro5's name server, where anybody can register, and in ours.

What a forged entry leads to keeps all that it is sent: it must never get a command, a key or a value.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
from Pyro5.errors import PyroError

from pyrocache import AuthenticationError, PartialFailure, PyroCacheClient
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import view_to_metadata
from pyrocache.errors import NameServerUnavailable, PyroCacheError
from pyrocache.nameserver.names import MOST_NAMES
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import NAMESERVER, NameServerDirectory
from pyrocache.protocol.refusals import Refusal
from pyrocache.runtime import secret_file
from pyrocache.runtime.child_process import ChildProcess, start_node
from pyrocache.runtime.secret import Secret, read_secret
from tests.support.attackers import (
    MIB,
    Impostor,
    claiming,
    member_of,
    proxy_of,
    register,
    saying,
    stock_nameserver,
)
from tests.support.nodes import private_cluster
from tests.support.waiting import eventually
from tests.support.wire import NAME, Peer, handshake, pack_call, result_of

KEYS = [f"key:{number}" for number in range(60)]
INCARNATION = "0" * 16


@pytest.fixture(scope="module")
def other_secret(tmp_path_factory: pytest.TempPathFactory) -> Secret:
    path = str(tmp_path_factory.mktemp("other") / "secret")
    secret_file.make(path)
    return read_secret(path)


@contextmanager
def nodes_at(nameserver: str, count: int, **more: float) -> Iterator[list[ChildProcess]]:
    """Run nodes of one cluster at any name server."""
    settings = {"nameserver": nameserver, "new_cluster": True, "max_memory": 64 * MIB, **more}
    processes = [start_node(settings, quiet=True) for _ in range(count)]
    try:
        for process in processes:
            process.wait_until_ready()
        yield processes
    finally:
        for process in processes:
            process.kill()


@contextmanager
def impostor_of(member: Member) -> Iterator[Impostor]:
    """A node that says that it is another one, and gives a proof that does not hold. It never gets a request."""
    with Impostor(saying(claiming(member, nonce=b"n" * 32, proof=b"p" * 32))) as fake:
        yield fake
    assert fake.calls == []
    assert all("proof" not in greeting["handshake"] for greeting in fake.greetings)


class Scene:
    """A stock name server with three nodes, a client that has used them, and whoever wants to."""

    def __init__(self, stack: ExitStack) -> None:
        self.nameserver = stack.enter_context(stock_nameserver())
        self.processes = stack.enter_context(nodes_at(self.nameserver, 3))
        self.names = stack.enter_context(proxy_of(self.nameserver))
        self.cache = stack.enter_context(PyroCacheClient(self.nameserver, timeout=10))
        self.cache.set_many(dict.fromkeys(KEYS, "value"))
        self.view = NameServerDirectory(self.nameserver).listing().view

    def forge(self, members: list[Member]) -> ClusterView:
        """Store a view after that of the nodes."""
        view = ClusterView(members, self.view.number + 1, self.view.cluster)
        self.names.register(
            f"cache.view.{view.number}", "PYRO:x@127.0.0.1:1", metadata=set(view_to_metadata(view))
        )
        return view


@pytest.fixture
def scene() -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(stack)


def only_theirs_fail(cache: PyroCacheClient, impostor: str) -> None:
    """The keys of the impostor fail with an error that names it, and the others are served."""
    theirs = [key for key in KEYS if cache.node_for(key).name == impostor]
    others = [key for key in KEYS if key not in theirs]
    assert theirs
    assert others
    for key in theirs[:3]:
        for attempt in (lambda: cache.get(key), lambda: cache.set(key, "v"), lambda: cache.delete(key)):  # noqa: B023
            with pytest.raises(AuthenticationError, match=impostor):
                attempt()
    for key in others:
        cache[key] = "again"
        assert cache.get(key) == "again"
    with pytest.raises(PartialFailure) as raised:
        cache.get_many(KEYS)
    assert raised.value.results == dict.fromkeys(others, "again")
    assert {type(error) for error in raised.value.errors.values()} == {AuthenticationError}
    assert set(raised.value.errors) == set(theirs)


@pytest.mark.full
def test_a_forged_node_without_a_view_gets_nothing(scene: Scene) -> None:
    forged = Member("cache.node.4", "127.0.0.1", 1, incarnation=INCARNATION, cluster=scene.view.cluster)
    with impostor_of(forged) as fake:
        register(scene.names, forged, port=fake.port)
        with PyroCacheClient(scene.nameserver) as newcomer:
            for cache in (scene.cache, newcomer):
                assert cache.get_many(KEYS) == dict.fromkeys(KEYS, "value")
                assert len(list(cache)) == len(KEYS)
        assert fake.greetings == []


def test_a_view_with_a_forged_node_gives_it_no_traffic(scene: Scene) -> None:
    forged = Member("cache.node.4", "127.0.0.1", 1, incarnation=INCARNATION)
    with impostor_of(forged) as fake:
        scene.forge([*scene.view.members, replace(forged, port=fake.port)])
        with PyroCacheClient(scene.nameserver, timeout=10, on_error="miss") as newcomer:
            only_theirs_fail(newcomer, forged.name)
        eventually(lambda: len(scene.cache.nodes()) == 4)
        only_theirs_fail(scene.cache, forged.name)
        assert fake.greetings


@pytest.mark.full
def test_a_view_with_another_address_of_a_node_gives_that_no_traffic(scene: Scene) -> None:
    """Over the Unix socket as well: its path is that of no node, or of one that proves that it is the node."""
    victim = scene.view.members[1]
    with impostor_of(victim) as fake:
        others = [member for member in scene.view.members if member is not victim]
        scene.forge([*others, replace(victim, port=fake.port, socket_path="")])
        with PyroCacheClient(scene.nameserver, timeout=10, on_error="miss") as newcomer:
            only_theirs_fail(newcomer, victim.name)
        assert fake.greetings


def test_a_forged_cluster_gets_no_traffic(scene: Scene) -> None:
    """All entries are replaced: whoever comes is told, and whoever has used the nodes still does."""
    forged = Member(NAME, "127.0.0.1", 1, incarnation=INCARNATION, cluster="forged")
    with impostor_of(forged) as fake:
        scene.names.remove(prefix="cache.")
        scene.names.register("cache.cluster", "PYRO:x@127.0.0.1:1", metadata={"cluster=forged", "first=1"})
        view = view_to_metadata(ClusterView([replace(forged, port=fake.port)], 1, "forged"))
        scene.names.register("cache.view.1", "PYRO:x@127.0.0.1:1", metadata=set(view))
        with PyroCacheClient(scene.nameserver, on_error="miss") as newcomer:
            for attempt in (lambda: newcomer.get("key:1"), lambda: newcomer.set("key:1", "v")):
                with pytest.raises(AuthenticationError, match=NAME):
                    attempt()
        scene.cache.disconnect()
        assert scene.cache.get_many(KEYS) == dict.fromkeys(KEYS, "value")
        assert fake.greetings


@pytest.mark.parametrize(
    "removed",
    [
        "cache.",
        *(
            pytest.param(part, marks=pytest.mark.full)
            for part in ("cache.node.", "cache.view.", "cache.cluster")
        ),
    ],
)
def test_the_nodes_put_back_what_is_removed(scene: Scene, removed: str) -> None:
    def entries() -> set[str]:
        return {name for name in scene.names.list() if not name.startswith("cache.view.")}

    before = entries()
    assert scene.names.remove(prefix=removed)
    eventually(lambda: entries() == before, seconds=10)
    listing = eventually(
        lambda: (found := NameServerDirectory(scene.nameserver).listing()).view.number and found, seconds=10
    )
    assert listing.cluster == scene.view.cluster
    assert {member.identity for member in listing.view.members} == {m.identity for m in scene.view.members}
    with PyroCacheClient(scene.nameserver) as newcomer:
        assert newcomer.get_many(KEYS) == dict.fromkeys(KEYS, "value")


def test_a_replaced_entry_of_a_node_is_put_back(scene: Scene) -> None:
    victim = scene.view.members[0]
    with impostor_of(victim) as fake:
        register(scene.names, replace(victim, incarnation=INCARNATION), port=fake.port)
        eventually(lambda: member_of(scene.nameserver, victim.name) == victim)
        assert scene.cache.get_many(KEYS) == dict.fromkeys(KEYS, "value")


# Ours ------------------------------------------------------------------------------------------------------------


class At:
    """An address to connect to."""

    def __init__(self, text: str) -> None:
        host, _, port = text.rpartition(":")
        self.address = host, int(port)


def test_strangers_cannot_change_our_name_server(other_secret: Secret) -> None:
    with private_cluster(nodes=2) as cluster, cluster.client() as cache:
        cache.set_many(dict.fromkeys(KEYS, "value"))
        directory = NameServerDirectory(cluster.nameserver)
        before, victim = directory.listing(), member_of(cluster.nameserver)
        forged = replace(victim, incarnation=INCARNATION, port=1)
        view = view_to_metadata(ClusterView([forged], before.view.number + 1, before.cluster))
        with proxy_of(cluster.nameserver) as names:
            for attempt in (
                lambda: register(names, forged),
                lambda: register(names, replace(forged, name="cache.node.3")),
                lambda: names.register(
                    f"cache.view.{before.view.number + 1}", "PYRO:x@h:1", metadata=set(view)
                ),
                lambda: names.register("anything", "PYRO:x@h:1"),
                lambda: names.set_metadata(NAME, {"incarnation=0"}),
                lambda: names.remove(NAME),
                lambda: names.remove(prefix="cache."),
                lambda: names.remove(regex=".*"),
            ):
                with pytest.raises(PyroError, match="stock_handshake"):
                    attempt()
            began_at = time.monotonic()
            for pattern in ("(a+)+$", "(cache.*)*x"):
                with pytest.raises(PyroError, match="Regular expressions"):
                    names.list(regex=pattern)
            assert time.monotonic() - began_at < 5
        strange = NameServerDirectory(cluster.nameserver, caller=knowing(other_secret, trusting=True))
        for other in (lambda: strange.register(forged), lambda: strange.remove(victim), strange.listing):
            with pytest.raises(AuthenticationError, match="name server"):
                other()
        assert directory.listing()._replace(connection=0) == before
        assert cache.get_many(KEYS) == dict.fromkeys(KEYS, "value")


@pytest.mark.full
def test_a_flood_of_names_is_refused() -> None:
    with private_cluster(nodes=1) as cluster, cluster.client() as cache:
        cache["key"] = "value"
        at = At(cluster.nameserver)
        with Peer(at, greet=False) as peer:
            peer.send(handshake(NAMESERVER))
            peer.receive()
            count = peer.call("count", target=NAMESERVER)
            flood = [
                pack_call(NAMESERVER, "register", (f"flood.{number}", "PYRO:x@127.0.0.1:1"), 1)
                for number in range(MOST_NAMES + 1)
            ]
            for begin in range(0, len(flood), 500):
                part = flood[begin : begin + 500]
                peer.send(b"".join(part))
                assert all(isinstance(result_of(peer.receive()), Refusal) for _ in part)
            assert peer.call("count", target=NAMESERVER) == count
        assert cache["key"] == "value"
        assert cluster.add_node().name == "cache.node.2"


# A node with another secret -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", [True, False], ids=["our name server", "Pyro5's"])
def test_a_node_with_another_secret_takes_no_name(other_secret: Secret, ours: bool) -> None:
    """It cannot know whether a node that refuses it is gone, so it does not take that one for gone."""
    with ExitStack() as stack:
        if ours:
            cluster = stack.enter_context(private_cluster(nodes=1))
            nameserver = cluster.nameserver
        else:
            nameserver = stack.enter_context(stock_nameserver())
            stack.enter_context(nodes_at(nameserver, 1, lease_seconds=0.6))
        cache = stack.enter_context(PyroCacheClient(nameserver))
        cache["key"] = "value"
        before = NameServerDirectory(nameserver).listing()
        settings = {"nameserver": nameserver, "name": NAME, "new_cluster": True, "lease_seconds": 0.6}
        other = start_node(settings, quiet=True, secret=other_secret)
        try:
            if ours:
                with pytest.raises((NameServerUnavailable, PyroCacheError), match="another secret"):
                    other.wait_until_ready()
            else:
                time.sleep(1.5)  # more than a lease, after which the name of a silent node can be free
            assert NameServerDirectory(nameserver).listing() == before
            assert cache["key"] == "value"
        finally:
            other.kill()
