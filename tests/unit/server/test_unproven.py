"""How many connections may be unproven, which one is closed for another, and what is counted and logged."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pyrocache.server.unproven import Unproven, origin
from pyrocache.testing import FakeClock


class FromPeer:
    """All of a connection that is looked at."""

    def __init__(self, peer: str) -> None:
        self.peer = peer


def connection(peer: str = "a") -> Any:
    return FromPeer(peer)


def test_up_to_the_limit_nothing_is_displaced() -> None:
    unproven = Unproven(3, 100)
    assert [unproven.add(connection()) for _ in range(3)] == [None] * 3
    assert unproven.counts["displaced"] == 0


def test_one_too_many_displaces_the_oldest_of_its_address() -> None:
    unproven = Unproven(2, 100)
    other, first, second, third, fourth = connection("b"), *(connection("a") for _ in range(4))
    for one in (other, first, second):
        assert unproven.add(one) is None
    assert unproven.add(third) is first
    unproven.remove(first)
    assert unproven.add(fourth) is second
    unproven.remove(second)
    assert len(unproven) == 3
    assert unproven.counts["displaced"] == 2


def test_proven_and_closed_ones_make_room() -> None:
    unproven = Unproven(2, 100)
    kept, gone = connection(), connection()
    unproven.add(kept)
    unproven.add(gone)
    unproven.remove(gone)
    assert unproven.add(connection()) is None
    assert unproven.add(connection()) is kept


def test_no_address_can_use_up_what_all_have_together() -> None:
    unproven = Unproven(10, 6)
    crowd = [connection("crowd") for _ in range(4)]
    for one in (connection("b"), *crowd, connection("c")):
        assert unproven.add(one) is None
    assert unproven.add(connection("d")) is crowd[0]
    unproven.remove(crowd[0])
    assert unproven.add(connection("e")) is crowd[1]


def test_nothing_remains_of_those_that_are_removed_more_than_once_or_were_never_added() -> None:
    unproven = Unproven(2, 100)
    there = connection()
    unproven.add(there)
    for _ in range(3):
        unproven.remove(connection())
        unproven.remove(connection("b"))
    assert len(unproven) == 1
    unproven.remove(there)
    unproven.remove(there)
    assert (len(unproven), unproven._of) == (0, {})


def test_refusals_are_logged_once_per_address_and_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    unproven = Unproven(2, 100, clock)
    with caplog.at_level(logging.WARNING, "pyrocache.node"):
        for kind in ("refused", "malformed", "late", "refused"):
            unproven.note(connection("a"), kind, f"the reason is {kind}")
        unproven.note(connection("b"), "late", "it is late")
        unproven.note(connection(""), "refused", "no secret")
        assert caplog.messages == [
            "A connection from a was closed: the reason is refused",
            "A connection from b was closed: it is late",
            "A connection from a process of this user was closed: no secret",
        ]
        clock.tick(61.0)
        unproven.note(connection("a"), "late", "it is late")
    assert caplog.messages[-1].endswith("it is late (4 of them since the last such line)")
    assert unproven.counts == {"refused": 3, "malformed": 1, "late": 3, "displaced": 0}


def test_displaced_connections_are_logged_as_well(caplog: pytest.LogCaptureFixture) -> None:
    unproven = Unproven(1, 100)
    for _ in range(5):
        displaced = unproven.add(connection())
        if displaced is not None:
            unproven.remove(displaced)
    assert [message.partition(":")[0] for message in caplog.messages] == ["A connection from a was closed"]


@pytest.mark.parametrize(
    ("address", "counts_as"),
    [
        *(("127.0.0.1", "this host"), ("127.200.3.4", "this host"), ("::1", "this host")),
        *(("::ffff:127.0.0.9", "this host"), ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7")),
        *(("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("fe80::1%eth0", "fe80::/64")),
    ],
)
def test_addresses_that_one_peer_can_have_at_will_count_as_one(address: str, counts_as: str) -> None:
    assert origin(address) == counts_as
