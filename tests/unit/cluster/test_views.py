"""Views as plain values and as metadata: what is written is read back, and what is malformed is not believed."""

from __future__ import annotations

import math
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
        members.append(Member(f"cache.node.{number}", draw(hosts), port, weight, incarnation, path, CLUSTER))
    return ClusterView(members, draw(st.integers(0, LARGEST_NUMBER)), CLUSTER)


@given(views())
def test_round_trips(view: ClusterView) -> None:
    for back in (view_from_wire(view_to_wire(view)), view_from_metadata(view.number, view_to_metadata(view))):
        assert back is not None
        assert back == view
        assert back.id == view.id


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
        f"member=cache.node.x {ONE} 127.0.0.1:4003 1.0 ",
        f"member=cache.node.1 {TWO} 127.0.0.1:4003 1.0 ",
        f"member=cache.node.{'9' * 30} {ONE} 127.0.0.1:4003 1.0 ",
    ],
)
def test_a_view_with_a_malformed_member_is_none(line: str) -> None:
    """Without it, the others would own its keys."""
    assert view_from_metadata(7, [*STORED, line]) is None


@pytest.mark.parametrize("path", ["/var/run/docker.sock", PATH])
def test_a_socket_that_is_not_the_members_is_left_out(path: str) -> None:
    view = view_from_metadata(7, [*STORED, f"member=cache.node.3 {ONE} 127.0.0.1:4003 1.0 {path}"])
    assert view is not None
    assert view.members[-1].socket_path == ""


@pytest.mark.parametrize("metadata", [[], ["pyrocache"], STORED[2:], [7], [None], 7, None, [b"cluster=x"]])
def test_metadata_without_a_cluster_are_no_view(metadata: Any) -> None:
    assert view_from_metadata(7, metadata) is None


def test_a_view_from_elsewhere_takes_no_more_members_than_there_can_be() -> None:
    fields = [[f"cache.node.{number}", "h", 1, 1.0, ONE, ""] for number in range(1, 2**15 + 1)]
    assert view_from_wire({**SENT, "members": fields}) is None
