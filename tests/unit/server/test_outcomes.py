"""What is remembered of changes, for how long, and in how much memory. Pure: the time is an argument."""

from __future__ import annotations

import pytest

from pyrocache.protocol.limits import PIPELINED_CALLS
from pyrocache.protocol.request_id import HIGHEST_NUMBER
from pyrocache.server.deferred import Session
from pyrocache.server.outcomes import (
    KEEP_SECONDS,
    LONGEST_REPLY_BYTES,
    SHORT_PIPELINED_BYTES,
    SHORT_REPLY_BYTES,
    Fate,
    Outcomes,
)

CLIENT, OTHER = b"client..", b"other..."
SHORT, LONG = b"short", b"l" * (SHORT_REPLY_BYTES + 1)


def joined(outcomes: Outcomes, client: bytes = CLIENT, *, pipelined: bool = False) -> Session:
    """Return the session of a new connection."""
    session = Session()
    session.client = client
    outcomes.join(session, pipelined)
    return session


def ended(outcomes: Outcomes, session: Session, now: float = 0.0) -> None:
    """Close a connection, as the event loop does."""
    outcomes.leave(session, now)
    session.close()


@pytest.mark.parametrize("reply", [SHORT, LONG])
def test_the_last_reply_of_a_connection_is_remembered(reply: bytes) -> None:
    outcomes = Outcomes()
    session = joined(outcomes)
    outcomes.finish(session, 1, b"first", 0.0)
    outcomes.finish(session, 2, reply, 0.0)
    assert outcomes.repeat(CLIENT, 2, 1.0, 5.0) == reply
    assert outcomes.repeat(OTHER, 2, 1.0, 5.0) is Fate.NOT_DONE


@pytest.mark.parametrize("reply", [SHORT, LONG])
def test_it_is_remembered_for_a_while_after_the_connection(reply: bytes) -> None:
    outcomes = Outcomes()
    session = joined(outcomes)
    outcomes.finish(session, 2, reply, 10.0)
    ended(outcomes, session, 10.0)
    outcomes.expire(10.0 + KEEP_SECONDS - 1)
    assert outcomes.repeat(CLIENT, 2, 1.0, 5.0) == reply
    outcomes.expire(10.0 + KEEP_SECONDS)
    assert (outcomes._kept, outcomes._kept_of, outcomes._bytes, outcomes._sessions) == ({}, {}, 0, {})


def test_a_reply_that_is_too_long_is_forgotten() -> None:
    outcomes = Outcomes()
    session = joined(outcomes)
    outcomes.finish(session, 1, b"r" * LONGEST_REPLY_BYTES, 0.0)
    assert outcomes.repeat(CLIENT, 1, 0.0, 5.0) == b"r" * LONGEST_REPLY_BYTES
    for reply in (b"r" * (LONGEST_REPLY_BYTES + 1), [b"in", b"pieces"], None):
        outcomes.finish(session, 2, reply, 0.0)
        assert outcomes.repeat(CLIENT, 2, 0.0, 5.0) is Fate.FORGOTTEN


def test_a_change_that_is_being_executed_is_neither_done_nor_refused() -> None:
    outcomes = Outcomes()
    session = joined(outcomes)
    outcomes.begin(session, 3)
    assert outcomes.repeat(CLIENT, 3, 0.0, 5.0) is Fate.RUNNING
    ended(outcomes, session)
    assert outcomes.repeat(CLIENT, 3, 0.0, 5.0) is Fate.RUNNING
    outcomes.finish(session, 3, SHORT, 0.0)
    assert outcomes.repeat(CLIENT, 3, 0.0, 5.0) == SHORT
    assert outcomes.refused == {}


def test_what_is_not_recognized_is_refused_until_well_after_its_deadline() -> None:
    outcomes = Outcomes()
    assert outcomes.repeat(CLIENT, 3, 100.0, 30.0) is Fate.NOT_DONE
    assert outcomes.repeat(CLIENT, 3, 100.0, -1.0) is Fate.NOT_DONE
    assert outcomes.repeat(CLIENT, 3, 100.0, 30.0) is Fate.NOT_DONE
    outcomes.expire(100.0 + 30.0 + KEEP_SECONDS - 1)
    assert (CLIENT, 3) in outcomes.refused
    assert (OTHER, 3) not in outcomes.refused
    outcomes.expire(100.0 + 30.0 + KEEP_SECONDS)
    assert outcomes.refused == {}
    assert not outcomes._refused_of


def test_what_was_discarded_for_lack_of_memory_is_forgotten_not_undone() -> None:
    outcomes = Outcomes(max_bytes=20_000)
    for number in range(1, 9):
        session = joined(outcomes, b"%d......." % number)
        outcomes.finish(session, number, LONG * 3, 0.0)
    fates = [outcomes.repeat(b"%d......." % number, number, 1.0, 5.0) for number in range(1, 9)]
    assert fates == [Fate.FORGOTTEN] * 3 + [LONG * 3] * 5
    assert outcomes._bytes <= 20_000
    assert outcomes.repeat(b"1.......", 2, 1.0, 5.0) is Fate.NOT_DONE  # later than what was discarded
    assert (
        outcomes.repeat(b"1.......", HIGHEST_NUMBER, 1.0, 5.0) is Fate.FORGOTTEN
    )  # before the numbers began again
    outcomes.expire(KEEP_SECONDS)
    assert outcomes._discarded == {}
    assert outcomes.repeat(b"2.......", 2, KEEP_SECONDS, 5.0) is Fate.NOT_DONE


def test_one_client_may_use_a_quarter_of_the_memory() -> None:
    outcomes = Outcomes(max_bytes=40_000)
    quiet = joined(outcomes, OTHER)
    outcomes.finish(quiet, 1, LONG, 0.0)
    session = joined(outcomes)
    for number in range(1, 100):
        outcomes.finish(session, number, LONG, 0.0)
    assert outcomes._bytes_of[CLIENT] <= 10_000
    assert outcomes.repeat(OTHER, 1, 0.0, 5.0) == LONG
    assert outcomes.repeat(CLIENT, 99, 0.0, 5.0) == LONG
    assert outcomes.repeat(CLIENT, 1, 0.0, 5.0) is Fate.FORGOTTEN


def test_the_requests_that_are_refused_for_ever_are_bounded() -> None:
    outcomes = Outcomes()
    fates = [outcomes.repeat(CLIENT, number, 0.0, 5.0) for number in range(1, 2502)]
    assert fates == [Fate.NOT_DONE] * 2500 + [Fate.FORGOTTEN]
    assert outcomes.repeat(OTHER, 1, 0.0, 5.0) is Fate.NOT_DONE


def test_notes_about_what_was_discarded_are_bounded() -> None:
    outcomes = Outcomes(max_bytes=4 * 300 + 4)
    for number in range(10_010):
        session = joined(outcomes, b"%8d" % number)
        outcomes.finish(session, 1, b"", 0.0)
        ended(outcomes, session)
    assert len(outcomes._discarded) <= 10_000
    assert outcomes.repeat(b"%8d" % 0, 1, 1.0, 5.0) is Fate.FORGOTTEN
    assert outcomes.repeat(b"unknown.", 1, 1.0, 5.0) is Fate.FORGOTTEN
    assert outcomes.repeat(b"unknown.", 1, KEEP_SECONDS, 5.0) is Fate.NOT_DONE


def test_connections_without_a_session_are_ignored() -> None:
    outcomes = Outcomes()
    session = Session()
    outcomes.join(session)
    outcomes.begin(session, 1)
    outcomes.finish(session, 1, SHORT, 0.0)
    ended(outcomes, session)
    assert (session.last, outcomes._sessions, outcomes._kept) == (None, {}, {})


# Callers that pipeline ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("size", [1, SHORT_PIPELINED_BYTES, SHORT_PIPELINED_BYTES + 1])
def test_each_of_the_changes_that_may_be_under_way_is_remembered(size: int, is_open: bool) -> None:
    outcomes = Outcomes()
    session = joined(outcomes, pipelined=True)
    for number in range(1, 2 * PIPELINED_CALLS + 1):
        outcomes.finish(session, number, b"%08d" % number * size, 0.0)
    if not is_open:
        ended(outcomes, session)
    for number in range(PIPELINED_CALLS + 1, 2 * PIPELINED_CALLS + 1):
        assert outcomes.repeat(CLIENT, number, 1.0, 5.0) == b"%08d" % number * size
    assert outcomes.repeat(CLIENT, 2 * PIPELINED_CALLS + 1, 1.0, 5.0) is Fate.NOT_DONE
    assert outcomes.repeat(OTHER, 2 * PIPELINED_CALLS, 1.0, 5.0) is Fate.NOT_DONE
    if not is_open:
        outcomes.expire(KEEP_SECONDS)
        assert (outcomes._kept, outcomes._kept_of, outcomes._bytes, outcomes._sessions) == ({}, {}, 0, {})
        assert not outcomes._discarded


@pytest.mark.parametrize("is_open", [True, False])
def test_what_is_remembered_no_more_is_forgotten_not_undone(is_open: bool) -> None:
    """Even if the caller has more requests under way than it may."""
    outcomes = Outcomes()
    session, other = joined(outcomes, pipelined=True), joined(outcomes, pipelined=True)
    for number in range(1, 4 * PIPELINED_CALLS, 2):
        outcomes.finish(session, number, SHORT, 0.0)
    if not is_open:
        ended(outcomes, session)
    dropped, lost = range(1, 2 * PIPELINED_CALLS, 2), range(2, 4 * PIPELINED_CALLS, 2)
    assert {outcomes.repeat(CLIENT, number, 1.0, 5.0) for number in dropped} == {Fate.FORGOTTEN}
    assert {outcomes.repeat(CLIENT, number, 1.0, 5.0) for number in lost} == {Fate.NOT_DONE}
    ended(outcomes, session)
    ended(outcomes, other, 1.0)  # the last one of the client
    assert {outcomes.repeat(CLIENT, number, 2.0, 5.0) for number in dropped} == {Fate.FORGOTTEN}
    assert not outcomes._dropped
    assert outcomes.repeat(CLIENT, 4 * PIPELINED_CALLS, 2.0, 5.0) is Fate.NOT_DONE
    outcomes.expire(1.0 + KEEP_SECONDS)
    assert not outcomes._discarded


def test_what_was_dropped_long_ago_is_forgotten_not_undone() -> None:
    outcomes = Outcomes()
    session = joined(outcomes, pipelined=True)
    start = HIGHEST_NUMBER - 10_000
    for count in range(20_000):
        outcomes.finish(session, (start + count) & HIGHEST_NUMBER, SHORT, 0.0)
    for count in range(20_000 - PIPELINED_CALLS):
        assert outcomes.repeat(CLIENT, (start + count) & HIGHEST_NUMBER, 0.0, 5.0) is Fate.FORGOTTEN
    assert outcomes.repeat(CLIENT, (start + 20_000) & HIGHEST_NUMBER, 0.0, 5.0) is Fate.NOT_DONE


def test_long_and_short_replies_of_a_pipeline_are_both_remembered() -> None:
    outcomes = Outcomes()
    session = joined(outcomes, pipelined=True)
    replies: list[bytes | None] = [SHORT, LONG, None] * 20
    for number, reply in enumerate(replies):
        outcomes.finish(session, number, reply, 0.0)
    found = [outcomes.repeat(CLIENT, number, 0.0, 5.0) for number in range(len(replies))]
    assert found == [SHORT, LONG, Fate.FORGOTTEN] * 20


def test_a_pipelined_change_on_a_worker_is_remembered_when_it_is_done() -> None:
    outcomes = Outcomes()
    session = joined(outcomes, pipelined=True)
    outcomes.begin(session, 1)
    for number in range(2, PIPELINED_CALLS + 1):
        outcomes.finish(session, number, SHORT, 0.0)
    assert outcomes.repeat(CLIENT, 1, 0.0, 5.0) is Fate.RUNNING
    outcomes.finish(session, 1, b"done", 0.0)
    assert outcomes.repeat(CLIENT, 1, 0.0, 5.0) == b"done"
    assert outcomes.repeat(CLIENT, 2, 0.0, 5.0) == SHORT
