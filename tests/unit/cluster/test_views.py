"""Views as plain values and as metadata: what is written is read back, and what is malformed is not believed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.cluster.views import (
    EMPTY,
    LARGEST_NUMBER,
    view_from_metadata,
    view_from_wire,
    view_to_metadata,
    view_to_wire,
    with_zones,
)

CLUSTER = "0123456789abcdef"
ONE, TWO = "1" * 16, "2" * 16
PATH = f"/run/user/1000/pyrocache-0/{TWO}.sock"


def view(number: int = 7) -> ClusterView:
    members = [
        Member("cache.node.1", "127.0.0.1", 4001, 2.5, ONE, "", CLUSTER),
        Member("cache.node.2", "::1", 4002, 1.0, TWO, PATH, CLUSTER),
    ]
    return ClusterView(members, number, CLUSTER)


SENT: dict[str, Any] = {
    "number": 7,
    "cluster": CLUSTER,
    "members": [
        ["cache.node.1", "127.0.0.1", 4001, 2.5, ONE, ""],
        ["cache.node.2", "::1", 4002, 1.0, TWO, PATH],
    ],
}
STORED = [
    "pyrocache",
    f"cluster={CLUSTER}",
    f"member=cache.node.1 {ONE} 127.0.0.1:4001 2.5 ",
    f"member=cache.node.2 {TWO} [::1]:4002 1.0 {PATH}",
]


def test_a_view_on_the_wire() -> None:
    assert view_to_wire(view()) == SENT
    assert view_from_wire(SENT) == view()
    assert view_from_wire({**SENT, "members": tuple(map(tuple, SENT["members"])), "more": 1}) == view()


def test_a_view_in_the_name_server() -> None:
    assert view_to_metadata(view()) == STORED
    assert view_from_metadata(7, STORED) == view()
    assert view_from_metadata(7, set(STORED)) == view(), "it keeps a set"
    assert view_from_metadata(7, [*STORED, "later=more", "word"]) == view()


def test_an_empty_view() -> None:
    """That of a cluster whose last node has left."""
    nobody = ClusterView((), 9, CLUSTER)
    assert view_from_wire(view_to_wire(nobody)) == nobody
    assert view_from_metadata(9, view_to_metadata(nobody)) == nobody
    assert (EMPTY.number, EMPTY.cluster, len(EMPTY)) == (0, "", 0)
    assert view_from_wire(view_to_wire(EMPTY)) == EMPTY


hosts = st.sampled_from(["127.0.0.1", "::1", "fe80::1%eth0", "node-1.example", "localhost"])
incarnations = st.text("0123456789abcdef", min_size=16, max_size=16)


@st.composite
def views(draw: st.DrawFn) -> ClusterView:
    members = []
    for number in draw(st.sets(st.integers(1, 10**6), max_size=6)):
        incarnation = draw(incarnations)
        path = draw(st.sampled_from(["", f"/tmp/with space/pyrocache-1/{incarnation}.sock"]))
        port, weight = draw(st.integers(1, 65535)), draw(st.floats(0.01, 100.0))
        zone = draw(st.sampled_from(["", "rack-1", "eu_west.b"]))
        name = f"cache.node.{number}"
        members.append(Member(name, draw(hosts), port, weight, incarnation, path, CLUSTER, zone))
    return ClusterView(members, draw(st.integers(0, LARGEST_NUMBER)), CLUSTER)


@given(views())
def test_round_trips(view: ClusterView) -> None:
    for back in (view_from_wire(view_to_wire(view)), view_from_metadata(view.number, view_to_metadata(view))):
        assert back is not None
        assert back == view
        assert back.id == view.id
        assert [member.zone for member in back.members] == [member.zone for member in view.members]


def changed(**fields: Any) -> dict[str, Any]:
    """A view in which one member has another field."""
    names = ("name", "host", "port", "weight", "incarnation", "path")
    first = dict(zip(names, SENT["members"][0], strict=True))
    return {**SENT, "members": [list({**first, **fields}.values()), SENT["members"][1]]}


MALFORMED: list[Any] = [
    *(None, [], {}, 7, "view", b"view", math.nan, [SENT], SENT["members"]),
    *({key: value for key, value in SENT.items() if key != missing} for missing in SENT),
    *({**SENT, "number": number} for number in (-1, LARGEST_NUMBER + 1, 2**200, "7", 7.0, True, None, math.nan)),
    *({**SENT, "cluster": cluster} for cluster in (None, 7, b"id", ["id"], {})),
    *({**SENT, "members": members} for members in (None, 7, "members", [[]], [None], [7], [["cache.node.1"]])),
    {**SENT, "members": {"cache.node.1": 1}},
    {**SENT, "members": [[*SENT["members"][0], "more"]]},
    {**SENT, "members": [SENT["members"][0]] * 2},
    *(changed(name=name) for name in ("", "node", "cache.node.0", "cache.node.x", "cache.node.01")),
    *(changed(name=name) for name in (7, None, b"cache.node.1", [])),
    *(changed(host=host) for host in (None, 7, b"h", ["h"], {}, "", "h\0", "h h", "h/x", "./u:/tmp/x", "[::1]")),
    *(changed(port=port) for port in (None, "4001", 1.0, True, [], 0, -1, 65536, 2**40)),
    *(changed(weight=weight) for weight in (None, "1", 0, -1, math.nan, math.inf, True, [], 2**2000)),
    *(changed(incarnation=incarnation) for incarnation in (None, 7, b"x", [], {})),
    *(changed(path=path) for path in (7, "/var/run/docker.sock", PATH, b"/x", ["/x"], {"a": 1})),
]  # fmt: skip


@pytest.mark.parametrize("sent", MALFORMED, ids=lambda sent: repr(sent)[:70])
def test_what_is_no_view_is_none(sent: Any) -> None:
    assert view_from_wire(sent) is None


def test_a_host_may_be_an_address_of_one_interface() -> None:
    member = Member("cache.node.1", "fe80::1%eth0", 4001, 1.0, ONE, "", CLUSTER)
    view = ClusterView([member], 7, CLUSTER)
    assert view_from_metadata(7, view_to_metadata(view)) == view_from_wire(view_to_wire(view)) == view


def test_the_malformed_ones_differ_from_a_view_in_what_they_say() -> None:
    assert view_from_wire(changed()) == view()
    assert view_from_wire(changed(path=f"/run/pyrocache-0/{ONE}.sock")) is not None


@pytest.mark.parametrize("number", [-1, LARGEST_NUMBER + 1, True, None, "7"])
def test_a_number_out_of_range_is_not_believed(number: Any) -> None:
    assert view_from_metadata(number, STORED) is None


@pytest.mark.parametrize(
    "line",
    [
        "member=",
        "member=cache.node.3",
        f"member=cache.node.3 {ONE} 127.0.0.1:4003",
        f"member=cache.node.3 {ONE} 127.0.0.1:4003 1.0",
        f"member=cache.node.3 {ONE} 127.0.0.1:port 1.0 ",
        f"member=cache.node.3 {ONE} 127.0.0.1:99999 1.0 ",
        f"member=cache.node.3 {ONE} 127.0.0.1:4003 much ",
        f"member=cache.node.3 {ONE} 127.0.0.1:4003 nan ",
        f"member=cache.node.3 {ONE} 127.0.0.1:4003 0 ",
        "dead=",
        "dead=cache.node.3",
        "dead=cache.node.3 x y",
        f"member=cache.node.x {ONE} 127.0.0.1:4003 1.0 ",
        f"member=cache.node.1 {TWO} 127.0.0.1:4003 1.0 ",
        f"member=cache.node.{'9' * 30} {ONE} 127.0.0.1:4003 1.0 ",
    ],
)
def test_a_view_with_a_malformed_member_is_none(line: str) -> None:
    """Without it, the others would own its keys."""
    assert view_from_metadata(7, [*STORED, line]) is None


@pytest.mark.parametrize("path", ["/var/run/docker.sock", PATH])
def test_a_path_of_something_else_is_not_believed(path: str) -> None:
    found = view_from_metadata(7, [*STORED, f"member=cache.node.3 {ONE} 127.0.0.1:4003 1.0 {path}"])
    assert found is not None
    assert [member.socket_path for member in found.members] == ["", PATH, ""]


def test_members_that_were_declared_dead_are_stored_for_the_nodes() -> None:
    dead = [("cache.node.3", ONE), ("cache.node.2", TWO)]
    stored = ClusterView(view().members, 7, CLUSTER, dead)
    assert view_to_metadata(stored) == [*STORED, f"dead=cache.node.2 {TWO}", f"dead=cache.node.3 {ONE}"]
    found = view_from_metadata(7, set(view_to_metadata(stored)))
    assert found is not None
    assert found.dead == stored.dead == (("cache.node.2", TWO), ("cache.node.3", ONE))
    assert view_to_wire(stored) == SENT, "clients need not know"


@pytest.mark.parametrize("metadata", [[], ["pyrocache"], STORED[2:], [7], [None], 7, None, [b"cluster=x"]])
def test_metadata_without_a_cluster_are_no_view(metadata: Any) -> None:
    assert view_from_metadata(7, metadata) is None


def test_a_view_from_elsewhere_takes_no_more_members_than_there_can_be() -> None:
    fields = [[f"cache.node.{number}", "h", 1, 1.0, ONE, ""] for number in range(1, 2**15 + 1)]
    assert view_from_wire({**SENT, "members": fields}) is None


def in_zones(first: str, second: str) -> ClusterView:
    """The view with zones."""
    members = [
        replace(member, zone=zone) for member, zone in zip(view().members, (first, second), strict=True)
    ]
    return ClusterView(members, 7, CLUSTER)


def zones_of(found: ClusterView | None) -> list[str]:
    assert found == view(), "zones do not count"
    assert found.id == view().id, "routing does not use them"
    return [member.zone for member in found.members]


def test_zones_are_where_the_version_before_does_not_look() -> None:
    zoned = in_zones("a", "rack-1.b_2")
    sent, stored = view_to_wire(zoned), view_to_metadata(zoned)
    assert sent == {**SENT, "zones": {"cache.node.1": "a", "cache.node.2": "rack-1.b_2"}}
    assert stored == [*STORED, "zones=cache.node.1=a cache.node.2=rack-1.b_2"]
    for found in (view_from_wire(sent), view_from_metadata(7, set(stored))):
        assert zones_of(found) == ["a", "rack-1.b_2"]
    assert view_to_wire(in_zones("", "b"))["zones"] == {"cache.node.2": "b"}
    assert view_to_metadata(in_zones("", "b"))[-1] == "zones=cache.node.2=b"


@pytest.mark.parametrize("zone", ["a b", "a/b", "ä", "z" * 65, "a\n", 7, None, b"a", ["a"], {}])
def test_a_zone_that_is_not_valid_is_left_out(zone: Any) -> None:
    """The version before believes such a view, too."""
    zones = {"cache.node.1": zone, "cache.node.2": "b", "cache.node.3": "c", "": "d"}
    assert zones_of(view_from_wire({**SENT, "zones": zones})) == ["", "b"]
    stored = view_from_metadata(7, [*STORED, f"zones=cache.node.1={zone} cache.node.2=b cache.node.3=c = x"])
    assert zones_of(stored) in (["", "b"], [str(zone).partition(" ")[0], "b"])


@pytest.mark.parametrize("zones", [None, 7, "a", ["cache.node.1", "a"], [["cache.node.1", "a"]], b""])
def test_zones_that_are_no_map_are_left_out(zones: Any) -> None:
    assert zones_of(view_from_wire({**SENT, "zones": zones})) == ["", ""]
    assert zones_of(view_from_metadata(7, [*STORED, f"zones={zones}"])) == ["", ""]


def test_of_two_lines_of_zones_one_counts_in_every_process() -> None:
    lines = ["zones=cache.node.1=a", "zones=cache.node.1=b"]
    for order in (lines, lines[::-1]):
        assert zones_of(view_from_metadata(7, [*STORED, *order])) == ["a", ""]


def test_zones_that_a_view_does_not_tell_are_added() -> None:
    known = {
        ("cache.node.1", ONE): "a",
        ("cache.node.2", ONE): "of an earlier start",
        ("cache.node.3", ONE): "c",
    }
    assert zones_of(with_zones(view(), known)) == ["a", ""]
    assert zones_of(with_zones(in_zones("", "b"), known)) == ["a", "b"]
    full = in_zones("x", "")
    assert with_zones(full, known) is full
    changed = ClusterView(view().members, 7, CLUSTER, [("cache.node.3", ONE)], 4)
    assert with_zones(changed, known).dead == changed.dead
    assert with_zones(changed, known).previous == 4
