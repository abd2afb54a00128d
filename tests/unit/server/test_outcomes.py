"""What is remembered of changes, for how long, and in how much memory. Pure: the time is an argument."""

from __future__ import annotations

import pytest

from pyrocache.protocol.request_id import HIGHEST_NUMBER
from pyrocache.server.deferred import Session
from pyrocache.server.outcomes import KEEP_SECONDS, LONGEST_REPLY_BYTES, SHORT_REPLY_BYTES, Fate, Outcomes

CLIENT, OTHER = b"client..", b"other..."
SHORT, LONG = b"short", b"l" * (SHORT_REPLY_BYTES + 1)


def joined(outcomes: Outcomes, client: bytes = CLIENT) -> Session:
    """Return the session of a new connection."""
    session = Session()
    session.client = client
    outcomes.join(session)
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
