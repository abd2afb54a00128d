"""The name server on our event loop, as stock Pyro5 clients and raw connections see it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import Pyro5.api
import pytest
import serpent
from Pyro5 import nsc
from Pyro5.core import NAMESERVER_NAME
from Pyro5.errors import NamingError, PyroError
from Pyro5.nameserver import MemoryStorage

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import NameServerConfig
from pyrocache.errors import ConfigurationError, ProtocolError
from pyrocache.nameserver.names import Names
from pyrocache.nameserver.process import serve
from pyrocache.nameserver.serpent import SERPENT
from pyrocache.net.call_protocol import knowing
from pyrocache.net.directory import Listing, NameServerDirectory
from pyrocache.protocol import framing
from pyrocache.protocol.handshake import Greeting
from pyrocache.runtime.stop_request import StopRequest
from tests.support.secrets import SECRET


def start(storage: str = "memory", **settings: Any) -> tuple[str, StopRequest, threading.Thread]:
    stop, ready = StopRequest(), threading.Event()
    told: list[str] = []

    def is_ready(address: str) -> None:
        told.append(address)
        ready.set()

    thread = threading.Thread(
        target=serve,
        args=(NameServerConfig(port=0, storage=storage),),
        kwargs={"secret": SECRET, "stop": stop, "ready": is_ready, **settings},
        daemon=True,
    )
    thread.start()
    assert ready.wait(10)
    return told[0], stop, thread


@pytest.fixture(params=["memory", "sql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    storage = "memory" if request.param == "memory" else f"sql:{tmp_path / 'names'}"
    address, stop, thread = start(storage)
    yield address
    stop.request()
    thread.join(10)
    assert not thread.is_alive()


def our_directory(address: str, *, keep: bool = False) -> NameServerDirectory:
    return NameServerDirectory(address, keep=keep, caller=knowing(SECRET))


def admit(proxy: Any, address: str) -> None:
    """Have the next connection of a stock proxy admitted."""
    proxy._pyroHandshake = Greeting(token=our_directory(address).issue_token()).to_wire()


@pytest.fixture(params=["serpent", "msgpack"])
def names(request: pytest.FixtureRequest, address: str) -> Iterator[Any]:
    """A stock proxy."""
    with Pyro5.api.Proxy(f"PYRO:{NAMESERVER_NAME}@{address}") as proxy:
        proxy._pyroSerializer = request.param
        proxy._pyroTimeout = 10
        admit(proxy, address)
        yield proxy


def test_stock_clients_find_it(address: str) -> None:
    host, _, port = address.rpartition(":")
    with Pyro5.api.locate_ns(host, int(port)) as names:
        assert names.ping() is None
        assert names.lookup(NAMESERVER_NAME) == Pyro5.api.URI(f"PYRO:{NAMESERVER_NAME}@{address}")


def test_entries_are_registered_listed_and_removed(names: Any) -> None:
    uri = Pyro5.api.URI("PYRO:object@127.0.0.1:9")
    names.register("a.b", uri, metadata={"one", "two"})
    names.register("a.c", "PYRO:other@[::1]:9", safe=True)
    with pytest.raises(NamingError, match="already registered"):
        names.register("a.b", uri, safe=True)
    assert names.count() == 3
    assert names.lookup("a.b") == uri
    found, metadata = names.lookup("a.b", return_metadata=True)
    assert (found, set(metadata)) == (uri, {"one", "two"})
    assert names.list(prefix="a.") == {"a.b": str(uri), "a.c": "PYRO:other@[::1]:9"}
    text, metadata = names.list(prefix="a.b", return_metadata=True)["a.b"]
    assert (text, set(metadata)) == (str(uri), {"one", "two"})
    assert set(names.yplookup(meta_all=["one"])) == {"a.b"}
    assert set(names.yplookup(meta_any={"two", "three"})) == {"a.b"}
    names.set_metadata("a.b", {"three"})
    assert set(names.yplookup(meta_any=["one"])) == set()
    assert names.remove("a.b") == 1
    assert names.remove("a.b") == 0
    assert names.remove(prefix="a.") == 1
    assert set(names.list()) == {NAMESERVER_NAME}
    with pytest.raises(NamingError, match="unknown name"):
        names.lookup("a.b")


def test_what_makes_no_sense_is_refused(names: Any) -> None:
    for method, arguments in (
        ("list", {"regex": "(a+)+$"}),
        ("remove", {"regex": "a"}),
        ("register", {"name": 7, "uri": "PYRO:a@b:1"}),
        ("register", {"name": "a", "uri": "no URI"}),
        ("register", {"name": "a", "uri": 7}),
        ("register", {"name": "a", "uri": {"__class__": "x"}}),
        ("register", {"name": "a", "uri": "PYRO:a@b:1", "metadata": "text"}),
        ("yplookup", {"meta_all": ["a"], "meta_any": ["b"]}),
        ("lookup", {"name": "unknown"}),
        ("lookup", {"no_such_argument": 1}),
    ):
        with pytest.raises(PyroError):
            getattr(names, method)(**arguments)
    assert names.count() == 1


def test_the_name_server_control_tool_works(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    host, _, port = address.rpartition(":")
    our_directory(address).register(Member("cache.node.3", "127.0.0.1", 9))
    nsc.main(["-n", host, "-p", port, "list"])
    nsc.main(["-n", host, "-p", port, "lookup", "cache.node.3"])
    assert "cache.node.3 --> PYRO:cache.node.3@127.0.0.1:9" in capsys.readouterr().out
    with pytest.raises(PyroError, match=r"register is for callers that prove the secret; .*stock_handshake"):
        nsc.main(["-n", host, "-p", port, "register", "a.b", "PYRO:object@127.0.0.1:9"])


def listed(directory: NameServerDirectory) -> Listing:
    """What the name server lists, over whichever connection."""
    return directory.listing()._replace(connection=0)


def test_our_directory_works(address: str) -> None:
    directory = our_directory(address, keep=True)
    member = Member("cache.node.3", "127.0.0.1", 9, 2.0, "abc", "", "c1")
    other = replace(member, incarnation="def")
    views = [ClusterView([member], number, "c1") for number in (7, 8)]
    try:
        assert listed(directory) == Listing()
        assert directory.create_cluster("c1", 7) is True
        assert directory.create_cluster("c2", 9) is False
        assert [directory.store_view(view) for view in (*views, *views)] == [True, True, False, False]
        directory.register(member)
        assert listed(directory) == Listing("c1", 7, (views[1], views[0]), (member,))
        directory.forget_views([7])
        directory.register(other)
        assert listed(directory) == Listing("c1", 7, (views[1],), (other,))
        assert directory.remove(member) is False, "it is another one by now"
        assert directory.remove(other) is True
        assert directory.members() == []
    finally:
        directory.close()


@pytest.mark.parametrize("serializer", ["json", "marshal"])
def test_other_serializers_get_a_sentence(address: str, serializer: str) -> None:
    with Pyro5.api.Proxy(f"PYRO:{NAMESERVER_NAME}@{address}") as proxy:
        proxy._pyroSerializer = serializer
        with pytest.raises(PyroError, match="serpent and msgpack"):
            proxy.ping()


def test_silent_and_hostile_peers_disturb_nobody(address: str) -> None:
    host, _, port = address.rpartition(":")
    greeting = serpent.dumps({"handshake": "hello", "object": NAMESERVER_NAME})
    bodies = (
        b"[" * 16_000,
        b"-" * 16_000 + b"1",
        b"[1," * 4000,
        b"\xff" * 100,
        b"(1,2)",
        b"{}" * 8000,
        b"9" * 15_000,
    )
    sockets = [socket.create_connection((host, int(port)), timeout=10) for _ in range(300)]
    try:
        for number, sock in enumerate(sockets[:100]):
            with suppress(ConnectionError):  # the oldest ones are closed
                sock.sendall(framing.pack_message(framing.CONNECT, 0, greeting, serializer=1))
                sock.sendall(
                    framing.pack_message(framing.INVOKE, 1, bodies[number % len(bodies)], serializer=1)
                )
        for sock in sockets[100:150]:
            sock.sendall(framing.pack_message(framing.CONNECT, 0, bodies[0], serializer=1)[:50])
        with Pyro5.api.Proxy(f"PYRO:{NAMESERVER_NAME}@{address}") as proxy:
            proxy._pyroTimeout = 10
            begun = time.monotonic()
            assert proxy.ping() is None
            assert time.monotonic() - begun < 5
            assert proxy.count() == 1
    finally:
        for sock in sockets:
            sock.close()


def test_long_requests_are_refused(names: Any, address: str) -> None:
    with pytest.raises(PyroError):
        names.lookup("n" * 20_000)
    names._pyroRelease()
    admit(names, address)
    assert names.count() == 1


@pytest.mark.parametrize("address", ["memory"], indirect=True)
def test_long_listings_are_not(names: Any) -> None:
    for number in range(600):
        names.register(f"a.{number}", "PYRO:object@127.0.0.1:9", metadata=["text" * 20])
    assert len(names.list(prefix="a.", return_metadata=True)) == 600


def test_entries_in_a_file_outlive_it(tmp_path: Path) -> None:
    storage = f"sql:{tmp_path / 'names'}"
    for count in 1, 2:
        address, stop, thread = start(storage)
        with Pyro5.api.Proxy(f"PYRO:{NAMESERVER_NAME}@{address}") as proxy:
            admit(proxy, address)
            assert proxy.count() == count
            proxy.register("a", "PYRO:object@127.0.0.1:9")
        stop.request()
        thread.join(10)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"storage": "sql:/nowhere/names"}, "Cannot keep the entries in 'sql:/nowhere/names'"),
        ({"storage": "sql::memory:"}, "Cannot keep the entries"),
        ({"storage": "redis"}, "'redis' is no storage"),
        ({"port": 99_999}, "A port must be a number"),
        ({"host": "no.such.host.invalid", "tls": False}, "Cannot listen on no.such.host.invalid"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        serve(
            NameServerConfig(**{"port": 0, **settings}),
            secret=SECRET,
            stop=StopRequest(),
            ready=lambda address: None,
        )


@pytest.mark.parametrize(
    "body", [b"", b"(", b"-" * 50_000 + b"1", b"[" * 50_000, b"__import__('os')", b"\0", b"a" * 9]
)
def test_a_body_that_is_not_serpent_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        SERPENT.loads(body)


@pytest.mark.parametrize("call", [1, (1, 2), ("a", "b", {}, {}), ("a", 7, [], {}), ("a", "b", [], [])])
def test_a_call_in_serpent_has_four_parts(call: Any) -> None:
    with pytest.raises(ProtocolError):
        SERPENT.loads_call(serpent.dumps(call))


def test_there_are_only_so_many_names_and_those_that_are_there_may_be_written_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyrocache.nameserver.names.MOST_NAMES", 2)
    names = Names(MemoryStorage(), lambda member: False)
    for number in (1, 2):
        names.register(f"name {number}", "PYRO:x@127.0.0.1:1")
    names.register("name 2", "PYRO:y@127.0.0.1:1")
    with pytest.raises(NamingError, match="2 names here already"):
        names.register("name 3", "PYRO:x@127.0.0.1:1")
    names.remove("name 1")
    names.register("name 3", "PYRO:x@127.0.0.1:1")


# Names of nodes ----------------------------------------------------------------------------------------------

NODE = "cache.node.1"


class Held:
    """A name server with one node, whose life is in the hands of the test."""

    def __init__(self) -> None:
        self.alive = True
        self.asked: list[Member] = []
        self.meanwhile: Any = lambda: None
        self.names = Names(MemoryStorage(), self._is_alive)
        self.names.register(NODE, f"PYRO:{NODE}@127.0.0.1:1", metadata=["pyrocache", "incarnation=a"])

    def _is_alive(self, member: Member) -> bool:
        self.asked.append(member)
        self.meanwhile()
        return self.alive

    def register(self, port: int, incarnation: str, **options: Any) -> None:
        metadata = ["pyrocache", f"incarnation={incarnation}"]
        self.names.register(NODE, f"PYRO:{NODE}@127.0.0.1:{port}", metadata=metadata, **options)

    @property
    def entry(self) -> tuple[str, str]:
        uri, metadata = self.names.storage[NODE]
        return uri.rpartition(":")[2], next(one[12:] for one in metadata if one.startswith("incarnation="))


@pytest.mark.parametrize(("port", "incarnation"), [(1, "b"), (2, "a"), (2, "b")])
def test_the_name_of_a_live_node_is_not_given_away(port: int, incarnation: str) -> None:
    held = Held()
    with pytest.raises(
        NamingError, match=r"^name already registered: cache\.node\.1, by a node that is alive$"
    ):
        held.register(port, incarnation)
    assert held.entry == ("1", "a")
    assert held.asked == [Member(NODE, "127.0.0.1", 1, incarnation="a")]
    held.alive = False
    held.register(port, incarnation)
    assert held.entry == (str(port), incarnation)


def test_a_node_registers_itself_again_without_being_asked() -> None:
    held = Held()
    held.register(1, "a")
    assert held.asked == []


def test_neither_its_incarnation_nor_its_uri_can_be_changed_by_other_means() -> None:
    held = Held()
    with pytest.raises(NamingError, match="already registered"):
        held.names.set_metadata(NODE, ["incarnation=b"])
    with pytest.raises(NamingError, match="already registered"):
        held.names.register(NODE, "PYRO:something@127.0.0.1:1", metadata=["incarnation=a"])
    held.names.set_metadata(NODE, ["incarnation=a", "weight=2"])
    assert held.entry == ("1", "a")
    assert len(held.asked) == 2


def test_a_removed_entry_is_free_and_is_removed_without_a_question() -> None:
    """A node that leaves removes its entry while it is alive, and one that is a member registers again."""
    held = Held()
    assert held.names.remove(NODE) == 1
    held.register(2, "b")
    assert held.names.remove(prefix="cache.") == 1
    held.register(1, "a")
    assert held.asked == []


def test_an_entry_of_no_node_may_be_replaced() -> None:
    held = Held()
    for name, uri in ((NODE, "PYRO:x@127.0.0.1:1"), ("other", "PYRO:other@127.0.0.1:1")):
        held.names.remove(NODE)
        held.names.register(name, uri)
        held.names.register(name, f"PYRO:{name}@127.0.0.1:2")
    assert held.asked == []


def test_of_two_that_take_the_name_of_a_dead_node_at_once_one_gets_it() -> None:
    held = Held()
    held.alive = False

    def remove_and_register() -> None:
        held.meanwhile = lambda: None
        held.names.remove(NODE)
        held.register(3, "c")

    held.meanwhile = remove_and_register
    with pytest.raises(NamingError, match="already registered"):
        held.register(2, "b")
    assert held.entry == ("3", "c")


def test_one_node_is_asked_at_a_time_so_that_a_worker_stays_free() -> None:
    held = Held()
    held.alive = False

    def register() -> None:
        held.meanwhile = lambda: None
        with pytest.raises(NamingError, match="already registered"):
            held.register(3, "c")
        assert held.names.ping() is None

    held.meanwhile = register
    held.register(2, "b")
    assert held.entry == ("2", "b")
    held.register(3, "c")
    assert len(held.asked) == 2
