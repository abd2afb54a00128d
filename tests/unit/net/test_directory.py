"""The name server, Pyro5's own and everything else that may listen at its address."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from Pyro5.core import URI
from Pyro5.nameserver import NameServerDaemon

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import EMPTY
from pyrocache.errors import NameServerUnavailable
from pyrocache.net.connection import OPENING_SECONDS
from pyrocache.net.directory import Listing, NameServerDirectory
from pyrocache.protocol import framing, messages
from pyrocache.protocol.handshake import PROTOCOL
from pyrocache.protocol.refusals import Refusal
from tests.support.scripted_peer import Line, ScriptedPeer, connect_ok
from tests.support.waiting import eventually
from tests.support.wire import pack_refusal


@pytest.fixture
def name_server() -> Iterator[NameServerDaemon]:
    """Pyro5's own."""
    daemon = NameServerDaemon(host="127.0.0.1", port=0)
    thread = threading.Thread(target=daemon.requestLoop, daemon=True)
    thread.start()
    yield daemon
    daemon.shutdown()
    thread.join(10.0)
    daemon.close()


def directory_of(daemon: NameServerDaemon) -> NameServerDirectory:
    return NameServerDirectory(daemon.locationStr)


CLUSTER = "c1"
ONE = Member("cache.node.1", "127.0.0.1", 4001, 2.5, "0" * 16, "", CLUSTER)
TWO = Member("cache.node.2", "::1", 4002, 1.0, "1" * 16, f"/run/pyrocache-0/{'1' * 16}.sock", CLUSTER)


def view(number: int, *members: Member) -> ClusterView:
    return ClusterView(members, number, CLUSTER)


def listed(directory: NameServerDirectory) -> Listing:
    """What the name server lists, over whichever connection."""
    return directory.listing()._replace(connection=0)


def test_a_listing_that_has_not_changed_is_read_once(name_server: NameServerDaemon) -> None:
    """Each node asks twice a second, and reading the views of a large cluster takes longer than all else."""
    directory = NameServerDirectory(name_server.locationStr, keep=True)
    directory.create_cluster(CLUSTER, 7)
    directory.store_view(view(7, ONE))
    first = directory.listing()
    again = directory.listing()
    assert again == first
    assert again.view is first.view
    directory.register(ONE)
    assert directory.listing().members == (ONE,)
    directory.close()
    assert directory.listing().connection == first.connection + 1
    directory.store_view(view(8, ONE, TWO))
    assert directory.listing().view == view(8, ONE, TWO)
    directory.close()


def test_nodes_are_registered_listed_and_removed(name_server: NameServerDaemon) -> None:
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 7)
    assert directory.members() == []
    directory.register(ONE)
    directory.register(TWO)
    assert sorted(directory.members()) == [ONE, TWO]
    assert directory.remove(ONE)
    assert directory.members() == [TWO]
    assert not directory.remove(ONE)


def test_a_name_server_answers_a_ping(name_server: NameServerDaemon) -> None:
    directory_of(name_server).ping(timeout=5.0)


def test_a_name_server_that_does_not_answer_a_ping_in_time_is_told_from_one_that_refuses_it() -> None:
    for script, timed_out in ((silent, True), (garbage, False)):
        with answering(script) as directory, pytest.raises(NameServerUnavailable) as caught:
            directory.ping(timeout=0.3)
        assert caught.value.timed_out is timed_out


def test_an_empty_name_server_lists_nothing(name_server: NameServerDaemon) -> None:
    listing = listed(directory_of(name_server))
    assert listing == Listing() == ("", 0, (), (), False, 0, 0, 0)
    assert (listing.view, listing.before) == (EMPTY, EMPTY)


def test_the_first_gives_the_cluster_its_id(name_server: NameServerDaemon) -> None:
    directory = directory_of(name_server)
    assert directory.create_cluster(CLUSTER, 7)
    assert not directory.create_cluster("c2", 8)
    assert listed(directory) == Listing(CLUSTER, 7)


def test_views_are_stored_once_and_listed_newest_first(name_server: NameServerDaemon) -> None:
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 9)
    views = {number: view(number, ONE, TWO) for number in (9, 10, 11)}
    assert all(map(directory.store_view, views.values()))
    assert not directory.store_view(view(10, ONE)), "another node was faster"
    listing = directory.listing()
    assert listing.views == (views[11], views[10], views[9])
    assert (listing.view, listing.before) == (views[11], views[10])
    assert listing.view.members[1] == TWO
    directory.forget_views([9, 8])
    assert directory.listing().views == (views[11], views[10])


def test_the_view_of_nobody_is_a_view(name_server: NameServerDaemon) -> None:
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 7)
    directory.store_view(view(8))
    assert directory.listing().view == view(8)


def test_views_and_nodes_of_other_clusters_are_left_out(name_server: NameServerDaemon) -> None:
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 7)
    directory.store_view(view(7, ONE))
    directory.store_view(ClusterView([TWO], 8, "c2"))
    directory.register(ONE)
    assert not directory.listing().strangers
    directory.register(replace(TWO, cluster="c2"))
    assert listed(directory) == Listing(CLUSTER, 7, (view(7, ONE),), (ONE,), True, 8)


def test_without_an_id_there_is_no_view(name_server: NameServerDaemon) -> None:
    directory = directory_of(name_server)
    directory.store_view(view(7, ONE))
    assert listed(directory) == Listing()


@pytest.mark.parametrize(
    ("name", "metadata"),
    [
        ("cache.view.0", {"pyrocache", f"cluster={CLUSTER}"}),
        ("cache.view.08", {"pyrocache", f"cluster={CLUSTER}"}),
        ("cache.view.-9", {"pyrocache", f"cluster={CLUSTER}"}),
        ("cache.view.9x", {"pyrocache", f"cluster={CLUSTER}"}),
        ("cache.view.", {"pyrocache", f"cluster={CLUSTER}"}),
        ("cache.view.2147483648", {"pyrocache", f"cluster={CLUSTER}"}),
        ("cache.view.99999999999", {"pyrocache", f"cluster={CLUSTER}"}),
        ("cache.view.9", {"pyrocache"}),
        ("cache.view.9", None),
        ("cache.view.9", {"pyrocache", "cluster=c2"}),
        ("cache.view.9", {"pyrocache", f"cluster={CLUSTER}", "member=nonsense"}),
        ("cache.viewer", {"pyrocache", f"cluster={CLUSTER}"}),
        ("cache.else", {"pyrocache"}),
    ],
)
def test_entries_that_are_no_views_are_left_out(
    name_server: NameServerDaemon, name: str, metadata: Any
) -> None:
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 7)
    directory.store_view(view(7, ONE))
    name_server.nameserver.register(name, "PYRO:x@127.0.0.1:1", metadata=metadata)
    assert listed(directory) == Listing(CLUSTER, 7, (view(7, ONE),))


@pytest.mark.parametrize(
    ("newest", "name", "metadata", "obstacle"),
    [
        (7, "cache.view.8", {"pyrocache"}, 8),
        (7, "cache.view.8", {"pyrocache", "cluster=c2"}, 8),
        (7, "cache.view.8", {"pyrocache", f"cluster={CLUSTER}", "member=nonsense"}, 8),
        (7, "cache.view.9", {"pyrocache"}, 0),
        (7, "cache.view.6", {"pyrocache"}, 0),
        (0, "cache.view.7", {"pyrocache"}, 7),
        (0, "cache.view.8", {"pyrocache"}, 0),
    ],
)
def test_an_entry_in_the_place_of_the_next_view_is_an_obstacle(
    name_server: NameServerDaemon, newest: int, name: str, metadata: Any, obstacle: int
) -> None:
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 7)
    if newest:
        directory.store_view(view(newest, ONE))
    name_server.nameserver.register(name, "PYRO:x@127.0.0.1:1", metadata=metadata)
    assert listed(directory).obstacle == obstacle


@pytest.mark.parametrize("first", ["", "0", "-1", "x", "1.5", "99999999999", "٣"])
def test_a_first_number_that_makes_no_sense_is_0(name_server: NameServerDaemon, first: str) -> None:
    metadata = {"pyrocache", f"cluster={CLUSTER}", f"first={first}"}
    name_server.nameserver.register("cache.cluster", "PYRO:x@127.0.0.1:1", metadata=metadata)
    assert listed(directory_of(name_server)) == Listing(CLUSTER, 0)


def test_a_thousand_nodes_are_listed(name_server: NameServerDaemon) -> None:
    for number in range(1, 1001):
        name = f"cache.node.{number}"
        name_server.nameserver.register(name, f"PYRO:{name}@127.0.0.1:{number}", metadata={"pyrocache"})
    assert len(directory_of(name_server).members()) == 1000


def test_a_name_belongs_to_whom_the_view_says(name_server: NameServerDaemon) -> None:
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 7)
    other = replace(ONE, port=4003, incarnation="2" * 16)
    directory.register(ONE)
    assert not directory.remove(other), "another incarnation has the name"
    assert directory.register(other), "Pyro5's own name server asks nobody"
    assert directory.members() == [other]
    assert not directory.remove(ONE)


def test_a_name_that_is_refused_is_told_from_other_refusals() -> None:
    reasons = ["name already registered: cache.node.1, by a node that is alive", "disk is full"]

    def script(line: Line) -> None:
        line.request()
        body = pack_refusal(Refusal("bad-request", reasons.pop(0)))
        line.send(framing.pack_message(framing.RESULT, line.sequence, body, flags=framing.FLAG_EXCEPTION))

    with answering(script) as directory:
        assert not directory.register(ONE)
        with pytest.raises(NameServerUnavailable, match="disk is full"):
            directory.register(ONE)


def test_a_connection_may_be_kept() -> None:
    def script(line: Line) -> None:
        for _ in range(3):
            line.request()
            line.send(line.reply({}))

    peer = ScriptedPeer(script)
    directory = NameServerDirectory(peer.member.address, keep=True)
    try:
        for _ in range(7):  # the third and the sixth time, the name server closes it
            assert listed(directory) == Listing()
    finally:
        directory.close()
        directory.close()
        peer.close()
    assert (peer.opened, peer.most_open, peer.failures) == (3, 1, [])


def test_a_listing_is_asked_for_again_if_the_kept_connection_closes_meanwhile() -> None:
    def script(line: Line) -> None:
        line.request()
        line.send(line.reply({}))
        line.request()  # and no reply

    peer = ScriptedPeer(script)
    directory = NameServerDirectory(peer.member.address, keep=True)
    try:
        assert [listed(directory) for _ in range(3)] == [Listing()] * 3
    finally:
        directory.close()
        peer.close()
    assert peer.opened == 3


@pytest.mark.parametrize("late", [0.3, 0.15], ids=["opening", "open"])
def test_queries_with_little_time_open_a_kept_connection_together(late: float) -> None:
    """Over a long way, a handshake may take longer than such a query has, and leave too little for the request."""

    def script(line: Line) -> None:
        line.frame()
        time.sleep(late)
        line.send(connect_ok("hello"))
        while True:
            line.request()
            time.sleep(0.1)
            line.send(line.reply({}))

    peer = ScriptedPeer(script, greeting=False)
    directory = NameServerDirectory(peer.member.address, keep=True)
    try:
        with pytest.raises(NameServerUnavailable):
            directory.listing(0.2)
        assert eventually(lambda: answers(directory, 0.2))
    finally:
        directory.close()
        peer.close()
    assert peer.opened == 1


def test_a_handshake_that_takes_too_long_is_begun_again() -> None:
    def script(line: Line) -> None:
        if line.number == 1:
            line.frame()
            line.wait_until_closed()
        else:
            greet(line)

    peer = ScriptedPeer(script, greeting=False)
    directory = NameServerDirectory(peer.member.address, keep=True)
    try:
        assert not answers(directory, 0.1)
        assert directory._kept is not None
        directory._kept.begun_at -= OPENING_SECONDS
        assert eventually(lambda: answers(directory, 0.5))
    finally:
        directory.close()
        peer.close()
    assert peer.opened == 2


def greet(line: Line) -> None:
    """Serve one listing, with a handshake before it."""
    line.frame()
    line.send(connect_ok("hello"))
    line.request()
    line.send(line.reply({}))


def answers(directory: NameServerDirectory, seconds: float) -> bool:
    """Return whether the name server answers within so many seconds."""
    try:
        return directory.listing(seconds).members == ()
    except NameServerUnavailable:
        return False


def test_an_entry_may_be_made_over_the_connection_of_a_listing_only() -> None:
    """A name server that was started anew has another one."""

    def script(line: Line) -> None:
        for _ in range(2):
            line.request()
            line.send(line.reply({}))

    peer = ScriptedPeer(script)
    directory = NameServerDirectory(peer.member.address, keep=True)
    try:
        over = directory.listing().connection
        assert directory.store_view(view(7, ONE), over=over)
        with pytest.raises(NameServerUnavailable):
            directory.store_view(view(8, ONE), over=over)
        assert directory.listing().connection != over
        with pytest.raises(NameServerUnavailable):
            directory.create_cluster(CLUSTER, 7, over=over)
        assert directory.create_cluster(CLUSTER, 7)
    finally:
        directory.close()
        peer.close()
    assert peer.failures == []


def test_without_that_each_query_has_its_own() -> None:
    def script(line: Line) -> None:
        line.request()
        line.send(line.reply({}))
        line.wait_until_closed()

    peer = ScriptedPeer(script)
    try:
        for _ in range(3):
            NameServerDirectory(peer.member.address).listing()
    finally:
        peer.close()
    assert (peer.opened, peer.open) == (3, 0)


@pytest.mark.parametrize(
    ("name", "uri", "metadata"),
    [
        ("cache.node.3", "PYRO:cache.node.4@127.0.0.1:1", {"pyrocache"}),
        ("cache.node.x", "PYRO:cache.node.x@127.0.0.1:1", {"pyrocache"}),
        ("cache.node.3", "PYRO:cache.node.3@./u:/tmp/s", {"pyrocache"}),
        ("cache.node.3", "PYRO:cache.node.3@127.0.0.1:1", {"weight=much"}),
        ("cache.node.3", "PYRO:cache.node.3@127.0.0.1:1", {"weight=0"}),
        ("cache.node.3", "PYRO:cache.node.3@./u:/tmp/s", None),
    ],
)
def test_entries_that_make_no_sense_are_left_out(
    name_server: NameServerDaemon, name: str, uri: str, metadata: Any
) -> None:
    name_server.nameserver.register(name, uri, metadata=metadata)
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 7)
    directory.register(ONE)
    assert directory.members() == [ONE]


def test_an_entry_without_metadata_is_a_node_and_hides_no_other(name_server: NameServerDaemon) -> None:
    name_server.nameserver.register("cache.node.3", "PYRO:cache.node.3@127.0.0.1:1")
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 7)
    directory.store_view(view(7, ONE))
    directory.register(ONE)
    listing = directory.listing()
    assert sorted(listing.members) == [ONE, Member("cache.node.3", "127.0.0.1", 1)]
    assert (listing.cluster, listing.view) == (CLUSTER, view(7, ONE))


def test_a_socket_path_of_another_incarnation_is_not_believed(name_server: NameServerDaemon) -> None:
    metadata = {"incarnation=" + "3" * 16, f"unix=/run/pyrocache-0/{'4' * 16}.sock"}
    name_server.nameserver.register("cache.node.3", "PYRO:cache.node.3@127.0.0.1:1", metadata=metadata)
    assert [member.socket_path for member in directory_of(name_server).members()] == [""]


def test_an_address_may_be_a_uri_object_as_pyro5_writes_it() -> None:
    uri = URI("PYRO:cache.node.1@[::1]:4001")
    as_sent = {"__class__": "Pyro5.core.URI", "state": list(uri.__getstate__())}

    def script(line: Line) -> None:
        assert line.request() == ("list", ["cache.", None, True])
        line.send(line.reply({"cache.node.1": [as_sent, ["pyrocache"]]}))

    with answering(script) as directory:
        assert directory.members() == [Member("cache.node.1", "::1", 4001)]


@contextmanager
def answering(script: Callable[[Line], None], **options: Any) -> Iterator[NameServerDirectory]:
    peer = ScriptedPeer(script, **options)
    try:
        yield NameServerDirectory(peer.member.address)
    finally:
        peer.close()
    assert peer.failures == []


def drips(line: Line) -> None:
    line.request()
    for byte in line.reply({"cache.node.1": ["PYRO:cache.node.1@127.0.0.1:1", ["pyrocache"]]}):
        line.send(bytes([byte]))
        time.sleep(0.05)


def silent(line: Line) -> None:
    line.request()
    line.wait_until_closed()


def garbage(line: Line) -> None:
    line.request()
    line.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def nonsense(line: Line) -> None:
    line.request()
    line.send(line.reply([1, 2]))


def refuses(line: Line) -> None:
    line.frame()
    body = messages.pack_plain("unknown object")
    line.send(framing.pack_message(framing.CONNECT_FAIL, 0, body))


@pytest.mark.parametrize("script", [drips, silent, garbage, nonsense, refuses])
def test_what_is_not_a_name_server_is_told_within_the_deadline(script: Callable[[Line], None]) -> None:
    options = {"greeting": False} if script is refuses else {}
    told = "did not answer in time" if script in (drips, silent) else "did not answer as a Pyro5 name server"
    with answering(script, **options) as directory:
        began = time.monotonic()
        with pytest.raises(NameServerUnavailable, match=told):
            directory.members(timeout=0.3)
        assert time.monotonic() - began < 2


def test_who_finds_nobody_there_is_told_how_to_start_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(NameServerUnavailable, match=f"start one with: pyrocache nameserver .* --port {port}"):
        NameServerDirectory(f"127.0.0.1:{port}").members(timeout=1.0)


def test_a_host_name_that_cannot_be_resolved_is_named() -> None:
    with pytest.raises(NameServerUnavailable, match="cannot be resolved"):
        NameServerDirectory("no-such-host.invalid:9090").members(timeout=1.0)


def test_a_name_server_that_refuses_says_why_unless_the_name_is_taken() -> None:
    reasons = ["name already registered: cache.node.1", "sqlite error in setitem: database or disk is full"]

    def script(line: Line) -> None:
        while True:
            line.request()
            body = pack_refusal(Refusal("", reasons[0]))
            line.send(framing.pack_message(framing.RESULT, line.sequence, body, flags=framing.FLAG_EXCEPTION))

    peer = ScriptedPeer(script, greeting="hello")
    try:
        directory = NameServerDirectory(peer.member.address)
        assert not directory.store_view(view(7, ONE))
        assert not directory.create_cluster(CLUSTER, 7)
        reasons.pop(0)
        for store in (lambda: directory.store_view(view(7, ONE)), lambda: directory.register(ONE)):
            with pytest.raises(NameServerUnavailable, match=r"refused to register a node: .*disk is full"):
                store()
    finally:
        peer.close()


ODD = [
    None, True, -1, 2**63, 1.5, float("nan"), "", "text", b"", [], {}, [[]], {"a": {}}, [None] * 1000,
    ["", ""], [5, []], [b"PYRO:cache.node.1@127.0.0.1:1", []], ["PYRO:cache.node.1@127.0.0.1:1"],
    ["PYRO:cache.node.1@127.0.0.1:1", None], ["PYRO:cache.node.1@127.0.0.1:1", 5],
    ["PYRO:cache.node.1@127.0.0.1:1", [5, None]], ["PYRO:cache.node.1@127.0.0.1:1", [["="], {"=": 1}, b"="]],
    ["PYRO:cache.node.1@127.0.0.1:99999", []], ["PYRO:cache.node.1@127.0.0.1:-1", []],
    ["PYRO:cache.node.1@h\0st:1", []], ["PYRO:cache.node.1@:1", []], ["PYRO:cache.node.1@", []],
    ["PYRO:cache.node.1@127.0.0.1:1", ["weight=1e999"]], ["PYRO:cache.node.1@127.0.0.1:1", ["weight=nan"]],
    [{}, []], [{"state": 5}, []], [{"state": [1, 2]}, []],
    [{"state": ["PYRO", "cache.node.1", None, None, None]}, []],
    [{"state": ["PYRO", "cache.node.1", None, "h", 2**63]}, []],
    [{"state": ["PYRO", "cache.node.1", None, "h", -1]}, []],
]  # fmt: skip


QUERIES: dict[str, tuple[type, Callable[[NameServerDirectory], Any]]] = {
    "listing": (Listing, lambda directory: directory.listing()),
    "members": (list, lambda directory: directory.members()),
    "register": (bool, lambda directory: directory.register(ONE)),
    "create_cluster": (bool, lambda directory: directory.create_cluster(CLUSTER, 7)),
    "store_view": (bool, lambda directory: directory.store_view(view(7, ONE))),
    "forget_views": (type(None), lambda directory: directory.forget_views([7])),
    "age": (float, lambda directory: directory.age()),
    "remove": (bool, lambda directory: directory.remove(ONE)),
}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("named", [False, True], ids=["as an answer", "as an entry"])
def test_whatever_a_name_server_answers_only_our_errors_reach_the_user(query: str, named: bool) -> None:
    kind, call = QUERIES[query]
    answers: list[Any] = []

    def script(line: Line) -> None:
        line.request()
        line.send(line.reply(answers[0]))

    entries: list[Any] = [
        {name: odd, "cache.node.2": [f"PYRO:{TWO.name}@::1:4002", []]}
        for name in ("cache.node.1", "cache.cluster", "cache.view.7")
        for odd in ODD
    ]
    odd_names = [
        {name: [f"PYRO:{name}@127.0.0.1:1", []]}
        for name in ("", "text", "cache.node.", "cache.node.1\n", "cache.view.", "cache.view.\u0661")
    ]
    with answering(script) as directory:
        for answer in entries + odd_names if named else ODD:
            answers[:] = [answer]
            try:
                found = call(directory)
            except NameServerUnavailable:
                assert not named
            else:
                assert isinstance(found, kind)


def test_the_zones_of_a_view_that_tells_none_are_those_that_the_nodes_have_registered(
    name_server: NameServerDaemon,
) -> None:
    """The version before makes such views."""
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 7)
    directory.store_view(view(7, ONE, TWO))
    directory.register(replace(ONE, zone="rack-a"))
    directory.register(replace(TWO, zone="rack-b", incarnation="2" * 16, socket_path=""))
    assert [(m.name, m.zone) for m in directory.listing().view.members] == [
        ("cache.node.1", "rack-a"),
        ("cache.node.2", ""),
    ]
    assert [member.zone for member in sorted(directory.members())] == ["rack-a", "rack-b"]
    directory.store_view(view(8, replace(ONE, zone="rack-c"), TWO))
    assert [member.zone for member in directory.listing().view.members] == ["rack-c", ""]


@pytest.mark.parametrize("zone", ["a b", "z" * 65, "ä"])
def test_a_registered_zone_that_is_not_valid_is_left_out(name_server: NameServerDaemon, zone: str) -> None:
    uri = "PYRO:cache.node.1@127.0.0.1:1"
    name_server.nameserver.register("cache.node.1", uri, metadata={"pyrocache", f"zone={zone}"})
    assert [member.zone for member in directory_of(name_server).members()] == [""]


def test_a_name_server_of_a_version_too_far_away_is_told_from_one_that_is_none() -> None:
    server = PROTOCOL + 2
    with (
        answering(lambda line: None, greeting={"protocol": server}) as directory,
        pytest.raises(NameServerUnavailable) as refused,
    ):
        directory.members(timeout=5.0)
    assert re.fullmatch(
        rf"The name server at \S+ cannot be asked to list the nodes, as the server speaks protocol {server} and the "
        rf"caller protocol {PROTOCOL}: upgrade pyrocache at the caller\.",
        str(refused.value),
    )


def test_a_view_of_a_thousand_nodes_in_zones_fits(name_server: NameServerDaemon) -> None:
    directory = directory_of(name_server)
    directory.create_cluster(CLUSTER, 7)
    members = [replace(ONE, name=f"cache.node.{number}", zone=f"{number:064}") for number in range(1, 1001)]
    assert directory.store_view(view(7, *members))
    assert {member.zone for member in directory.listing().view.members} == {m.zone for m in members}
