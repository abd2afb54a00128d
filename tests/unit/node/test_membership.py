"""A node's place in the cluster: it joins, keeps its lease, follows changes of the view, and leaves.

The name server is one in memory, the other members are scripted, and time is a fake clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from Pyro5.errors import PyroError

from pyrocache.cluster.fencing import Heard
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.config import NodeConfig
from pyrocache.errors import ConfigurationError, NameServerUnavailable, NameTaken, PyroCacheError
from pyrocache.node.membership import MOST_NODES, NodeMembership
from pyrocache.node.peers import Peers
from pyrocache.node.service.cache_node import CacheNode
from pyrocache.node.service.guard import RequestGuard
from pyrocache.node.store.store import Store
from pyrocache.testing import FakeClock
from tests.support.memory_directory import MemoryDirectory

LEASE = 2.0
HEARTBEAT = 1.0
UNNAMED = Member("cache.node.1", "127.0.0.1", 4000, 1.0, "new")


class PassingTime(FakeClock):
    """A clock on which every look takes a moment, so that no two things happen at once."""

    def __call__(self) -> float:
        self.now += 0.0005
        return self.now


class ScriptedPeers(Peers):
    """What each peer answers. It does not exist, unless a test says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Heard] = {}
        self.asked: list[list[int]] = []
        self.introduced: list[Member] = []

    def introduce(self, member: Member) -> None:
        self.introduced.append(member)

    def ask(self, members: Sequence[Member], view: ClusterView, own: Member) -> list[Heard]:
        assert own.identity not in [member.identity for member in members]
        self.asked.append([member.number for member in members])
        return [self.answers.get(member.name, Heard.GONE) for member in members]


def peer(number: int, incarnation: str = "old") -> Member:
    return Member(f"cache.node.{number}", "127.0.0.1", 4000 + number, 1.0, incarnation, "", "c1")


def view(number: int, *members: int | Member) -> ClusterView:
    return ClusterView([peer(one) if isinstance(one, int) else one for one in members], number, "c1")


class Node:
    """A `NodeMembership` and what is around it."""

    def __init__(self, directory: MemoryDirectory, **settings: Any) -> None:
        self.directory = directory
        self.clock = PassingTime(1000.0)
        self.peers = ScriptedPeers()
        self.pauses: list[Callable[[], object]] = []  # what happens during the next pauses
        config = NodeConfig(**{"lease_seconds": LEASE, "heartbeat_seconds": HEARTBEAT, **settings})
        self.membership = NodeMembership(config, directory, self.peers, self.clock, self.sleep)
        self.cache_node = CacheNode(Store(2**20))

    def sleep(self, seconds: float) -> None:
        self.clock.tick(seconds)
        if self.pauses:
            self.pauses.pop(0)()

    def join(self) -> Member:
        member = self.membership.join(UNNAMED)
        self.guard = RequestGuard(member.name, member.incarnation)
        self.cache_node = CacheNode(Store(2**20), self.guard)
        self.membership.attach(self.cache_node.ownership)
        return member

    def start(self) -> Member:
        """Join, and tick until it serves. All the others that the name server has are well."""
        for member in self.directory.listing().view.members:
            self.peers.answers[member.name] = Heard.SAME
        member = self.join()
        for _ in range(100):
            if self.serves:
                return member
            self.tick()
        raise AssertionError("it does not get to serve")

    @property
    def serves(self) -> bool:
        return self.membership.settled and self.membership.has_lease

    @property
    def refusal(self) -> str:
        """The code with which it refuses a request for one of its keys."""
        view = self.guard.view
        assert view is not None
        keys = (b"\0%d" % number for number in range(200))
        key = next(key for key in keys if view.owner(key).name == self.guard.name)
        try:
            self.cache_node.get(view.number, key)
        except PyroError as error:
            return str(error.code)  # type: ignore[attr-defined]
        return ""

    def tick(self, seconds: float = LEASE / 4) -> None:
        self.clock.tick(seconds)
        self.membership.tick()

    def ticks(self, seconds: float) -> None:
        for _ in range(round(seconds / (LEASE / 4))):
            self.tick()


def numbers(view: ClusterView) -> list[int]:
    return [member.number for member in view.members]


# Joining -----------------------------------------------------------------------------------------------------


def test_the_first_node_makes_the_cluster(caplog: pytest.LogCaptureFixture) -> None:
    node = Node(MemoryDirectory(), new_cluster=True)
    member = node.join()
    directory = node.directory
    assert (member.name, member.cluster, len(directory.cluster)) == ("cache.node.1", directory.cluster, 16)
    assert (
        node.membership.view
        == directory.listing().view
        == ClusterView([member], directory.first, member.cluster)
    )
    assert abs(directory.first - time.time()) < 60, "so that tokens grow even if everything was forgotten"
    assert directory.entries == {member.name: member}
    assert node.peers.introduced == [member]
    assert node.refusal == "not-serving", "before the view is known to be the first one"
    assert not node.serves
    node.tick()
    assert node.serves
    assert node.refusal == ""
    assert node.clock() < 1000 + LEASE
    assert not caplog.records, "it did not wait"


def test_the_first_node_does_not_serve_before_the_name_server_has_confirmed_its_view() -> None:
    node = Node(MemoryDirectory(), new_cluster=True)
    node.join()
    node.directory.away = True
    node.ticks(LEASE)
    assert (node.refusal, node.membership.has_lease) == ("not-serving", False)
    node.directory.away = False
    node.tick()
    assert node.serves


def test_without_being_told_it_waits_for_a_live_node_to_put_the_view_back_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = MemoryDirectory()
    directory.seconds_there = 0.5
    node = Node(directory)
    node.join()
    (record,) = caplog.records
    left = LEASE + HEARTBEAT - 0.5
    assert record.getMessage() == (
        f"The name server lists no nodes: waiting {left:.1f} s for nodes of an older cluster."
    )
    assert LEASE + HEARTBEAT <= node.clock() - 1000.0 < LEASE + HEARTBEAT + 0.5
    node.tick()
    assert node.serves


def test_a_name_server_that_has_been_there_for_long_has_forgotten_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = MemoryDirectory()
    directory.seconds_there = LEASE + HEARTBEAT
    node = Node(directory)
    node.join()
    assert node.clock() - 1000.0 < 0.5
    assert not caplog.records


def test_what_a_live_node_puts_back_is_joined() -> None:
    node = Node(MemoryDirectory())
    node.peers.answers["cache.node.1"] = Heard.SAME

    def put_back() -> None:
        node.directory.create_cluster("c1", 7)
        node.directory.store_view(view(7, 1))

    node.pauses = [lambda: None, put_back]
    assert node.join().name == "cache.node.2"
    assert node.membership.view == view(8, 1, Member(*_fields(node, 2)))


def _fields(node: Node, number: int) -> tuple[Any, ...]:
    me = UNNAMED
    return (
        f"cache.node.{number}",
        me.host,
        me.port,
        me.weight,
        me.incarnation,
        me.socket_path,
        node.directory.cluster,
    )


def test_a_cluster_without_a_view_is_waited_for_as_well() -> None:
    """Another node has made it, and may be about to store its view."""
    node = Node(MemoryDirectory(), new_cluster=True)
    node.directory.create_cluster("c1", 77)
    member = node.join()
    assert node.clock() - 1000.0 >= LEASE + HEARTBEAT
    assert node.membership.view == view(77, member)


def test_of_two_first_nodes_one_makes_the_view_and_the_other_joins() -> None:
    node = Node(MemoryDirectory(), new_cluster=True)
    node.peers.answers["cache.node.1"] = Heard.SAME
    node.directory.create_cluster("c1", 7)
    node.pauses = [lambda: node.directory.store_view(view(7, 1))]
    assert node.join().number == 2
    assert numbers(node.membership.view) == [1, 2]


def test_the_next_view_has_the_node_too_and_the_newest_two_stay() -> None:
    node = Node(MemoryDirectory(view(5), view(6, 1), view(7, 1, 2)))
    node.peers.answers = {"cache.node.1": Heard.SAME, "cache.node.2": Heard.SAME}
    member = node.join()
    assert member.number == 3
    assert node.directory.views == {8: view(8, 1, 2, member), 7: view(7, 1, 2)}
    assert node.peers.asked[0] == [1, 2], "all at once, and nobody twice"


def test_a_node_that_joins_serves_what_each_of_the_others_has_given_up() -> None:
    node = Node(MemoryDirectory(view(7, 1, 2)))
    node.peers.answers = {"cache.node.1": Heard.SAME, "cache.node.2": Heard.SAME}
    node.join()
    node.peers.answers = {"cache.node.1": Heard.OTHER, "cache.node.2": Heard.OTHER}
    node.tick()
    assert not node.serves
    assert node.refusal == "not-serving"
    node.peers.answers["cache.node.1"] = Heard.SAME
    node.tick()
    node.tick()
    assert not node.membership.settled, "what the second had"
    node.peers.answers["cache.node.2"] = Heard.SAME
    node.tick()
    assert node.serves
    assert node.refusal == ""


def test_a_member_that_is_silent_has_no_lease_some_time_after_the_change() -> None:
    node = Node(MemoryDirectory(view(7, 1, 2)))
    node.peers.answers = {"cache.node.1": Heard.SAME, "cache.node.2": Heard.SAME}
    node.join()
    node.peers.answers["cache.node.2"] = Heard.SILENT
    began_at = node.clock()
    while not node.serves:
        node.tick()
        assert node.serves or node.membership.silent == ("cache.node.2",)
    assert LEASE < node.clock() - began_at < 2 * LEASE


def test_names_of_nodes_that_are_gone_are_taken_first() -> None:
    node = Node(MemoryDirectory(view(7, 1, 2, 3, 5)))
    node.peers.answers = {"cache.node.1": Heard.SAME, "cache.node.5": Heard.SAME}
    member = node.join()
    assert member.name == "cache.node.2"
    assert numbers(node.membership.view) == [1, 2, 3, 5]
    assert node.membership.view.members[1] == member


def test_a_free_name_is_the_smallest() -> None:
    node = Node(MemoryDirectory(view(7, 1, 3)))
    node.peers.answers = {"cache.node.1": Heard.SAME, "cache.node.3": Heard.SAME}
    assert node.join().name == "cache.node.2"


@pytest.mark.parametrize("heard", [Heard.SAME, Heard.OTHER, Heard.NEWER])
def test_a_name_of_a_live_node_is_refused(heard: Heard) -> None:
    node = Node(MemoryDirectory(view(7, 1, 4)), name="cache.node.4")
    node.peers.answers = {"cache.node.1": Heard.SAME, "cache.node.4": heard}
    with pytest.raises(NameTaken, match=r"cache\.node\.4 is held by a live node"):
        node.join()
    assert list(node.directory.views) == [7]


def test_the_name_of_a_node_that_is_gone_is_taken_at_once() -> None:
    node = Node(MemoryDirectory(view(7, 1, 4)), name="cache.node.4")
    node.peers.answers = {"cache.node.1": Heard.SAME}
    assert node.join().name == "cache.node.4"
    assert node.clock() - 1000.0 < 0.5


def test_the_name_of_a_silent_node_is_taken_after_the_lease() -> None:
    node = Node(MemoryDirectory(view(7, 1, 4)), name="cache.node.4")
    node.peers.answers = {"cache.node.1": Heard.SAME, "cache.node.4": Heard.SILENT}
    assert node.join().name == "cache.node.4"
    assert LEASE <= node.clock() - 1000.0 < LEASE + 0.5
    assert not node.membership.settled, "the silent one may still serve by the view before"


def test_a_name_that_nobody_has_is_taken() -> None:
    node = Node(MemoryDirectory(view(7, 1)), name="cache.node.9")
    node.peers.answers = {"cache.node.1": Heard.SAME}
    assert node.join().name == "cache.node.9"


def test_a_new_cluster_may_begin_with_any_name() -> None:
    assert Node(MemoryDirectory(), new_cluster=True, name="cache.node.9").join().number == 9


def test_a_cluster_has_no_more_nodes_than_the_name_server_can_list() -> None:
    full = MemoryDirectory(view(3, *range(1, MOST_NODES + 1)))
    node = Node(full)
    with pytest.raises(ConfigurationError, match="are the most that the name server can list"):
        node.start()
    assert list(full.views) == [3], "nothing was stored"
    again = Node(full, name="cache.node.7")
    again.peers.answers = {f"cache.node.{number}": Heard.SAME for number in range(1, MOST_NODES + 1)}
    again.peers.answers["cache.node.7"] = Heard.GONE
    assert again.join().name == "cache.node.7", "it takes the place of one that is gone"


def test_silent_members_hold_a_join_up_and_the_error_says_what_to_do() -> None:
    node = Node(MemoryDirectory(view(7, 1, 2, 3)))
    node.peers.answers = {
        "cache.node.1": Heard.SILENT,
        "cache.node.2": Heard.SILENT,
        "cache.node.3": Heard.SAME,
    }
    expected = (
        r"cannot join: cache\.node\.1 and cache\.node\.2 do not answer, .* for each that does not exist any more, "
        r"run: pyrocache nodes remove NAME --force --nameserver 127\.0\.0\.1:9090"
    )
    with pytest.raises(PyroCacheError, match=expected):
        node.join()
    assert list(node.directory.views) == [7], "nothing was changed"
    assert 8 < node.clock() - 1000.0 < 15


@pytest.mark.parametrize("what", ["join", "strike out"])
def test_an_entry_in_the_place_of_the_next_view_is_named_soon_but_not_at_once(what: str) -> None:
    node = operator(Heard.SAME, Heard.GONE, Heard.SAME)
    node.directory.obstacle = 8
    with pytest.raises(
        PyroCacheError,
        match=r"Remove it with: pyrocache nodes remove cache\.view\.8 --nameserver 127\.0\.0\.1:9090$",
    ):
        node.membership.strike_out("cache.node.2") if what == "strike out" else node.join()
    assert 2 < node.clock() - 1000.0 < 3
    assert list(node.directory.views) == [7]


def test_an_entry_that_is_in_the_way_for_a_moment_does_no_harm() -> None:
    node = Node(MemoryDirectory(view(7, 1)))
    node.peers.answers["cache.node.1"] = Heard.SAME
    node.directory.obstacle = 8
    node.pauses = [lambda: None] * 70 + [lambda: vars(node.directory).update(obstacle=0)]
    assert node.join().name == "cache.node.2"
    assert node.pauses == []


def test_a_change_that_is_under_way_is_waited_for() -> None:
    node = Node(MemoryDirectory(view(6, 1), view(7, 1, 2)))
    node.peers.answers = {"cache.node.1": Heard.OTHER, "cache.node.2": Heard.SAME}
    node.pauses = [lambda: None] * 5 + [lambda: node.peers.answers.update({"cache.node.1": Heard.SAME})]
    node.join()
    assert node.pauses == [], "until the only member of the view before had acknowledged"
    assert numbers(node.membership.view) == [1, 2, 3]


def test_a_faster_node_makes_another_view() -> None:
    node = Node(MemoryDirectory(view(7, 1)))
    node.peers.answers = {"cache.node.1": Heard.SAME, "cache.node.2": Heard.SAME}

    def interfere() -> None:
        node.directory.before_storing = lambda: None
        node.directory.store_view(view(8, 1, 2))

    node.directory.before_storing = interfere
    member = node.join()
    assert node.membership.view == view(9, 1, 2, member)
    assert member.number == 3


def test_two_clusters_in_one_name_server_end_whoever_starts() -> None:
    directory = MemoryDirectory(view(7, 1))
    directory.entries["cache.node.3"] = Member("cache.node.3", "127.0.0.1", 1, cluster="c2")
    with pytest.raises(ConfigurationError, match="two clusters"):
        Node(directory).join()


# The lease ---------------------------------------------------------------------------------------------------


def three(**settings: Any) -> Node:
    """The first of three nodes, which serves."""
    node = Node(MemoryDirectory(view(7, 2, 3)), **settings)
    node.start()
    assert numbers(node.membership.view) == [1, 2, 3]
    return node


def two(**settings: Any) -> Node:
    """The first of two nodes, which serves."""
    node = Node(MemoryDirectory(view(7, 2)), **settings)
    node.start()
    assert numbers(node.membership.view) == [1, 2]
    return node


def test_the_name_server_renews_the_lease_from_when_it_was_asked() -> None:
    node = three()
    node.peers.answers = {"cache.node.2": Heard.SILENT, "cache.node.3": Heard.SILENT}
    node.directory.before_listing = lambda: node.clock.tick(0.2)
    asked_at = node.clock() + LEASE / 4
    node.tick()
    assert node.membership.serving_until == pytest.approx(asked_at + LEASE, abs=0.05)
    node.directory.before_listing = lambda: None
    node.ticks(3 * LEASE)
    assert node.serves


def test_a_majority_renews_the_lease_while_the_name_server_is_away(caplog: pytest.LogCaptureFixture) -> None:
    node = three()
    node.peers.answers["cache.node.3"] = Heard.SILENT
    node.directory.away = True
    node.ticks(3 * LEASE)
    assert node.serves
    assert node.refusal == ""
    node.directory.away = False
    node.tick()
    logged = [record.getMessage() for record in caplog.records]
    assert [("without" in line, "is back" in line) for line in logged] == [(True, False), (False, True)]


@pytest.mark.parametrize("heard", [Heard.SILENT, Heard.OTHER, Heard.NEWER])
def test_without_either_the_lease_ends_and_the_entries_stay(heard: Heard) -> None:
    node = three()
    keys = (b"\0%d" % number for number in range(99))
    key = next(key for key in keys if node.membership.view.owner(key).number == 1)
    node.cache_node.set(8, key, b"value")
    node.peers.answers = {"cache.node.2": heard, "cache.node.3": Heard.SILENT}
    node.directory.away = True
    node.tick()
    assert node.serves, "the lease is not over yet"
    node.ticks(LEASE)
    assert not node.membership.has_lease
    assert node.refusal == "not-serving"
    node.directory.away = False
    node.tick()
    assert node.serves
    assert node.cache_node.get(8, key) == b"value"


def test_a_node_that_is_alone_needs_nobody() -> None:
    node = Node(MemoryDirectory(), new_cluster=True)
    node.start()
    node.directory.away = True
    node.ticks(5 * LEASE)
    node.clock.tick(5 * LEASE)
    node.tick()
    assert node.serves


def test_members_that_are_gone_count_while_the_name_server_is_gone_too() -> None:
    """The last node of a host goes on."""
    node = two()
    node.peers.answers["cache.node.2"] = Heard.GONE
    node.directory.gone = True
    node.ticks(3 * LEASE)
    assert node.serves


def test_they_do_not_count_while_the_name_server_is_silent() -> None:
    """It may list a newer view, which the one that is gone had acknowledged."""
    node = two()
    node.peers.answers["cache.node.2"] = Heard.GONE
    node.directory.away = True
    node.ticks(LEASE + 0.5)
    assert node.refusal == "not-serving"


def test_they_do_not_count_while_another_one_is_silent() -> None:
    node = three()
    node.peers.answers = {"cache.node.2": Heard.GONE, "cache.node.3": Heard.SILENT}
    node.directory.gone = True
    node.ticks(LEASE + 0.5)
    assert node.refusal == "not-serving"


def test_they_do_not_count_if_the_name_server_is_elsewhere() -> None:
    node = two(nameserver="192.0.2.1:9090")
    node.peers.answers["cache.node.2"] = Heard.GONE
    node.directory.gone = True
    node.ticks(LEASE + 0.5)
    assert not node.membership.has_lease


@pytest.mark.parametrize("what", ["standstill", "rumour"])
def test_they_do_not_count_when_a_change_may_have_been_missed(what: str) -> None:
    node = two()
    node.peers.answers["cache.node.2"] = Heard.GONE
    node.directory.gone = True
    node.ticks(2 * LEASE)
    assert node.serves
    if what == "standstill":
        node.tick(LEASE)
    else:
        node.membership.rumour(9)
        node.ticks(LEASE + 0.5)
    node.ticks(LEASE)
    assert not node.membership.has_lease
    node.directory.gone = False
    node.tick()
    assert node.serves


def test_another_cluster_in_the_name_server_is_no_confirmation_and_no_reason_to_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = three()
    node.directory.cluster = "c2"
    node.ticks(2 * LEASE)
    assert node.serves, "the others confirm"
    assert len([r for r in caplog.records if "another cluster" in r.getMessage()]) == 1
    node.peers.answers = {"cache.node.2": Heard.SILENT, "cache.node.3": Heard.SILENT}
    node.ticks(2 * LEASE)
    assert node.refusal == "not-serving"
    node.directory.cluster = "c1"
    node.tick()
    assert node.serves


# Changes of the view -----------------------------------------------------------------------------------------


def test_a_newer_view_is_adopted_in_two_steps() -> None:
    """Stop to confirm the present one; look again; acknowledge."""
    node = two()
    newer = view(9, *node.membership.view.members, 3)
    node.directory.store_view(newer)
    node.peers.answers["cache.node.3"] = Heard.SAME
    seen: list[tuple[int, bool]] = []
    node.directory.before_listing = lambda: seen.append(
        (node.guard.ping()["view"], node.guard.ping()["id"] != 0)
    )
    node.tick()
    assert seen == [(8, True), (8, False)]
    assert node.membership.view == newer
    assert (node.guard.ping()["view"], node.guard.ping()["id"]) == (9, newer.id)


def test_a_view_that_is_newer_only_at_the_first_look_is_not_adopted() -> None:
    node = two()
    newer = view(9, *node.membership.view.members, 3)
    listings = [newer, None]

    def change() -> None:
        node.directory.views.pop(9, None)
        if listings and (one := listings.pop(0)) is not None:
            node.directory.views[9] = one

    node.directory.before_listing = change
    node.tick()
    assert node.membership.view.number == 8
    assert node.guard.confirms
    assert node.guard.ping()["id"] == node.membership.view.id
    node.tick()
    assert node.serves


def test_without_a_second_look_the_node_does_not_confirm_and_keeps_its_lease_to_its_end() -> None:
    node = two()
    node.directory.store_view(view(9, *node.membership.view.members, 3))
    looks: list[bool] = []

    def go_away() -> None:
        looks.append(True)
        node.directory.away = len(looks) >= 2

    node.directory.before_listing = go_away
    node.tick()
    assert (node.membership.view.number, node.guard.ping()["id"]) == (8, 0)
    assert node.serves
    node.ticks(LEASE)
    assert node.refusal in ("", "not-serving")
    node.directory.before_listing = lambda: None
    node.directory.away = False
    node.tick()
    assert node.membership.view.number == 9


def test_what_moves_away_is_dropped() -> None:
    node = Node(MemoryDirectory(), new_cluster=True)
    node.start()
    number, me = node.membership.view.number, node.membership.view.members[0]
    keys = [b"\0%d" % one for one in range(300)]
    for key in keys:
        node.cache_node.set(number, key, b"value")
    newer = ClusterView([me, peer(2)], number + 1, me.cluster)
    node.directory.store_view(newer)
    node.peers.answers["cache.node.2"] = Heard.SAME
    node.tick()
    assert node.cache_node.ownership.drop_outdated()
    assert node.cache_node.stats()["entries"] == sum(newer.owner(key) == me for key in keys)


@pytest.mark.parametrize("left", [[2], [2, Member("cache.node.1", "127.0.0.1", 9, 1.0, "another")]])
def test_a_node_that_was_struck_out_or_replaced_ends(left: list[int | Member]) -> None:
    node = two()
    node.directory.store_view(view(9, *left))
    with pytest.raises(NameTaken, match=r"cache\.node\.1 was removed from the cluster, or replaced"):
        node.tick()


def test_an_entry_that_was_lost_is_registered_again() -> None:
    node = two()
    del node.directory.entries["cache.node.1"]
    node.tick()
    assert node.directory.entries["cache.node.1"] == node.membership.view.members[0]


def test_a_member_whose_name_the_name_server_does_not_give_to_it_serves_on_and_asks_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = two()
    (me,) = (member for member in node.membership.view.members if member.number == 1)
    node.directory.entries[me.name] = Member(me.name, "127.0.0.1", 9, incarnation="another", cluster="c1")
    node.directory.held = {me.name}
    node.ticks(2 * LEASE)
    assert node.serves
    assert node.directory.entries[me.name] != me
    assert len([r for r in caplog.records if "another live node by this name" in r.getMessage()]) == 1
    node.directory.held = set()
    node.tick()
    assert node.directory.entries[me.name] == me


# A name server that has forgotten ----------------------------------------------------------------------------


def test_a_view_that_the_name_server_has_forgotten_is_put_back_once_a_majority_has_it() -> None:
    node = three()
    before = dict(node.directory.views)
    node.directory.wipe()
    node.peers.answers = {"cache.node.2": Heard.SILENT, "cache.node.3": Heard.SILENT}
    node.tick()
    node.tick()
    assert node.directory.views == {}, "it may be the only one that has not heard of a newer one"
    node.peers.answers["cache.node.2"] = Heard.SAME
    node.tick()
    node.tick()
    assert (node.directory.cluster, node.directory.first, node.directory.views) == ("c1", 7, before)
    assert list(node.directory.entries) == ["cache.node.1"]
    assert node.serves
    node.tick()
    node.peers.answers = {"cache.node.2": Heard.SILENT}
    node.ticks(2 * LEASE)
    assert node.serves, "the name server confirms again"


def test_a_view_is_put_back_without_members_that_are_gone_once_all_leases_are_over() -> None:
    node = two()
    before = dict(node.directory.views)
    node.directory.wipe()
    node.peers.answers["cache.node.2"] = Heard.GONE
    node.ticks(LEASE)
    assert node.directory.views == {}
    node.ticks(1.5)
    assert node.directory.views == before
    assert node.serves


def test_a_name_server_that_was_started_anew_is_observed_anew() -> None:
    """One that came and went in between may have known of a newer view."""
    node = two()
    node.directory.wipe()
    node.peers.answers["cache.node.2"] = Heard.GONE
    node.ticks(LEASE)
    node.directory.connection = 2
    node.ticks(LEASE)
    assert node.directory.views == {}
    node.ticks(1.5)
    assert sorted(node.directory.views) == [7, 8]


def test_a_view_is_put_back_over_the_connection_that_was_observed() -> None:
    node = two()
    node.directory.wipe()

    def restart() -> None:
        node.directory.connection += 1

    create = node.directory.create_cluster

    def create_cluster(*arguments: Any, **options: Any) -> bool:
        restart()
        return create(*arguments, **options)

    node.directory.create_cluster = create_cluster  # type: ignore[method-assign]
    node.ticks(3 * LEASE)
    assert (node.directory.cluster, node.directory.views) == ("", {})


def test_a_node_that_is_alone_puts_the_view_back() -> None:
    node = Node(MemoryDirectory(), new_cluster=True)
    member = node.start()
    node.directory.wipe()
    node.ticks(1.0)
    assert node.directory.cluster == member.cluster
    assert node.directory.listing().view == node.membership.view
    assert node.serves


def test_an_older_view_in_the_name_server_is_followed_by_the_newer_one() -> None:
    node = two()
    del node.directory.views[8]
    node.ticks(1.0)
    assert sorted(node.directory.views) == [7, 8]
    assert node.serves


def test_a_new_cluster_in_a_wiped_name_server_is_left_alone() -> None:
    node = three()
    node.directory.wipe()
    node.directory.create_cluster("c2", 99)
    node.ticks(2 * LEASE)
    assert (node.directory.cluster, node.directory.views, node.directory.entries) == ("c2", {}, {})


# Striking out ------------------------------------------------------------------------------------------------


def operator(*answers: Heard) -> Node:
    """Whoever runs the command, with the answers of the nodes 1, 2 and 3."""
    node = Node(MemoryDirectory(view(7, 1, 2, 3)))
    node.peers.answers = {f"cache.node.{number}": heard for number, heard in enumerate(answers, 1)}
    node.directory.entries = {member.name: member for member in view(7, 1, 2, 3).members}
    return node


def test_a_node_that_is_gone_is_struck_out() -> None:
    node = operator(Heard.SAME, Heard.GONE, Heard.SAME)
    assert node.membership.strike_out("cache.node.2")
    stored = node.directory.listing().view
    assert stored == view(8, 1, 3)
    assert stored.dead == (("cache.node.2", "old"),)
    assert sorted(node.directory.entries) == ["cache.node.1", "cache.node.3"]
    assert node.peers.asked[-1] == [1, 3], "the others are told"


def test_a_live_node_is_not_struck_out() -> None:
    for heard in (Heard.SAME, Heard.OTHER, Heard.NEWER):
        node = operator(Heard.SAME, heard, Heard.SAME)
        for force in (False, True):
            with pytest.raises(PyroCacheError, match=r"cache\.node\.2 is alive"):
                node.membership.strike_out("cache.node.2", force=force)
        assert list(node.directory.views) == [7]


def test_a_silent_node_is_struck_out_if_the_operator_says_that_it_is_dead() -> None:
    node = operator(Heard.SAME, Heard.SILENT, Heard.SAME)
    with pytest.raises(PyroCacheError, match=r"may still serve.* --force"):
        node.membership.strike_out("cache.node.2")
    assert node.membership.strike_out("cache.node.2", force=True)
    assert node.directory.listing().view.dead == (("cache.node.2", "old"),)


def test_who_is_no_member_is_not_struck_out() -> None:
    assert not operator().membership.strike_out("cache.node.4", force=True)


def test_members_do_not_wait_for_one_that_was_struck_out() -> None:
    node = two()
    node.peers.answers["cache.node.2"] = Heard.SILENT
    me = node.membership.view.members[0]
    node.directory.store_view(ClusterView([me], 9, "c1", [("cache.node.2", "old")]))
    node.tick()
    node.tick()
    assert node.serves


# Leaving -----------------------------------------------------------------------------------------------------


def test_a_node_that_leaves_stores_a_view_without_itself() -> None:
    node = two()
    left = node.membership.leave()
    assert left == view(9, 2)
    assert node.directory.listing().view == left
    assert "cache.node.1" not in node.directory.entries
    assert node.guard.ping()["serving"] is False
    with pytest.raises(PyroError) as caught:
        node.cache_node.get(8, b"\0key")
    assert caught.value.detail["number"] == 9  # type: ignore[attr-defined]
    node.peers.asked.clear()
    assert left is not None
    node.membership.tell(left)
    assert node.peers.asked == [[2]]


def test_the_last_node_leaves_an_empty_view() -> None:
    node = Node(MemoryDirectory(), new_cluster=True)
    node.start()
    number = node.membership.view.number
    left = node.membership.leave()
    assert left is not None
    assert (left.number, len(left)) == (number + 1, 0)
    again = Node(node.directory)
    member = again.join()
    assert (member.number, again.membership.view.number) == (1, number + 2)
    again.tick()
    assert again.serves


def test_after_the_last_node_has_left_one_of_another_host_can_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, that it is gone is not seen. So it must not serve any more once the change is stored."""
    node = Node(MemoryDirectory(), new_cluster=True)
    node.start()
    store, serving = node.directory.store_view, []

    def store_view(*arguments: Any, **options: Any) -> bool:
        serving.append(node.guard.ping()["serving"])
        return store(*arguments, **options)

    monkeypatch.setattr(node.directory, "store_view", store_view)
    assert node.membership.leave() is not None
    assert serving == [False]
    elsewhere = Node(node.directory)
    elsewhere.peers.answers["cache.node.1"] = Heard.SILENT
    elsewhere.join()
    elsewhere.tick()
    assert elsewhere.serves


def test_a_last_node_that_cannot_leave_serves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(MemoryDirectory(), new_cluster=True)
    node.start()
    monkeypatch.setattr(node.directory, "store_view", lambda *arguments, **options: False)
    assert node.membership.leave() is None
    node.tick()
    assert node.guard.ping()["serving"]


def test_without_the_name_server_a_node_leaves_without_a_word() -> None:
    node = two()
    node.directory.away = True
    assert node.membership.leave() is None
    assert node.clock() - 1000.0 < 10


def test_a_node_does_not_leave_while_another_change_is_under_way() -> None:
    node = Node(MemoryDirectory(view(7, 2)))
    node.peers.answers["cache.node.2"] = Heard.SAME
    node.join()
    node.peers.answers["cache.node.2"] = Heard.OTHER
    assert node.membership.leave() is None
    assert sorted(node.directory.views) == [7, 8]


def test_a_node_that_was_struck_out_leaves_without_a_word() -> None:
    node = two()
    node.directory.store_view(view(9, 2))
    assert node.membership.leave() is None
    assert node.directory.listing().view == view(9, 2)


def test_a_name_server_that_ends_before_the_node_is_registered_again_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(MemoryDirectory(), new_cluster=True)
    node.start()
    node.directory.entries.clear()

    def away(member: Member, timeout: float) -> bool:
        raise NameServerUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(node.directory, "register", away)
        node.tick()
    assert node.serves
    node.tick()
    assert list(node.directory.entries) == ["cache.node.1"]


def test_what_holds_the_removal_of_a_node_up_is_said_of_the_removal() -> None:
    node = operator(Heard.SILENT, Heard.GONE, Heard.SILENT)
    node.directory.store_view(view(8, 1, 2, 3))  # a change that does not become valid
    expected = r"^cache\.node\.2 cannot be removed now: cache\.node\.1 and cache\.node\.3 do not answer"
    with pytest.raises(PyroCacheError, match=expected):
        node.membership.strike_out("cache.node.2")


def test_a_node_that_others_cannot_speak_with_does_not_start() -> None:
    directory = MemoryDirectory(view(7, 1))
    late = Node(directory)
    late.peers.answers["cache.node.1"] = Heard.SILENT
    late.peers.mismatch = "upgrade pyrocache at the caller."
    with pytest.raises(PyroCacheError, match=r"^This node cannot join: upgrade pyrocache at the caller\.$"):
        late.join()
    assert late.clock() - 1000.0 < LEASE
    assert numbers(directory.listing().view) == [1]
