"""What the retry policy says to each kind of problem. Pure: no node, no socket, no time."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache.client.routing.retry import Attempts, LookUp, Retry, decide
from pyrocache.cluster.routing import Member
from pyrocache.errors import (
    KeyTooLarge,
    NodeUnavailable,
    NotAnInt,
    Overloaded,
    PyroCacheError,
    RemoteError,
    ValueTooLarge,
)
from pyrocache.net.calls import Request
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.protocol import commands, refusals
from pyrocache.protocol.commands import COMMANDS, Command
from pyrocache.protocol.refusals import Refusal

NODE = Member("cache.node.1", "127.0.0.1", 1)
NEVER = float("-inf")


def refused(code: str, detail: Any = None) -> Refused:
    return Refused(Refusal(code, "no", detail))


def unreachable(
    *, sent: bool = False, timed_out: bool = False, kind: type[NodeUnavailable] = NodeUnavailable
) -> Unavailable:
    return Unavailable(kind("timed out" if timed_out else "gone"), maybe_executed=sent, timed_out=timed_out)


def after(
    problem: Refused | Unavailable,
    command: Command = commands.GET,
    *,
    attempts: Attempts | None = None,
    member: Member = NODE,
    now: float = 0.0,
    remaining: float = 5.0,
    looked_up_at: float = NEVER,
) -> Retry | LookUp | PyroCacheError:
    """Return what the policy says after a problem with a command."""
    request = Request(member, command, ())
    return decide(attempts or Attempts(), request, problem, now, remaining, looked_up_at)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_lost_reply_is_asked_for_again_iff_the_command_is_idempotent(command: Command) -> None:
    action = after(unreachable(sent=True), command)
    assert isinstance(action, LookUp if command.idempotent else PyroCacheError)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_request_that_was_not_sent_is_made_again(command: Command) -> None:
    assert after(unreachable(), command) == LookUp(0.005, unless_moved=NODE)


@pytest.mark.parametrize("command", [commands.DELETE, commands.PUT_IF, commands.CLEAR])
def test_the_error_says_whether_it_may_have_been_done(command: Command) -> None:
    action = after(unreachable(sent=True), command)
    assert isinstance(action, PyroCacheError)
    assert command.name in action.__notes__[0]
    for harmless in (
        after(unreachable(), command, remaining=0.0),
        after(unreachable(sent=True), remaining=0.0),
    ):
        assert isinstance(harmless, PyroCacheError)
        assert not hasattr(harmless, "__notes__")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (refusals.VALUE_TOO_LARGE, ValueTooLarge),
        (refusals.KEY_TOO_LARGE, KeyTooLarge),
        (refusals.NOT_AN_INT, NotAnInt),
        (refusals.BAD_REQUEST, RemoteError),
        (refusals.INTERNAL, RemoteError),
        ("", RemoteError),
    ],
)
def test_a_refusal_is_final(code: str, error: type[Exception]) -> None:
    action = after(refused(code))
    assert isinstance(action, PyroCacheError)
    assert type(action) is error
    assert str(action) == "cache.node.1 refused get: no"


def test_a_node_at_its_limit_is_asked_again_after_a_pause() -> None:
    assert after(refused(refusals.OVERLOADED), commands.DELETE) == Retry(0.005)
    assert after(unreachable(kind=Overloaded), commands.DELETE) == Retry(0.005)


def test_a_node_with_another_view_has_the_name_server_asked() -> None:
    assert after(refused(refusals.STALE_VIEW, ["its view"]), commands.DELETE) == LookUp(
        0.005, None, ["its view"]
    )


def test_a_timeout_is_final() -> None:
    action = after(unreachable(timed_out=True))
    assert isinstance(action, PyroCacheError)
    assert str(action) == "timed out"


@pytest.mark.parametrize("command", [commands.GET, commands.DELETE])
def test_a_request_that_was_not_sent_to_a_node_that_seems_to_hang_is_not_repeated(command: Command) -> None:
    error = NodeUnavailable("hangs")
    problem = Unavailable(error, maybe_executed=False, timed_out=False, suspected=True)
    assert after(problem, command) is error


def test_a_node_is_given_up_when_it_is_unreachable_again_after_the_name_server_was_asked() -> None:
    attempts = Attempts()
    assert isinstance(after(unreachable(), attempts=attempts, now=10.0), LookUp)
    assert isinstance(after(unreachable(), attempts=attempts, now=10.1, looked_up_at=9.9), LookUp)
    moved = Member("cache.node.1", "127.0.0.1", 2)
    assert isinstance(
        after(unreachable(), attempts=attempts, member=moved, now=10.2, looked_up_at=10.15), LookUp
    )
    assert isinstance(after(unreachable(), attempts=attempts, now=10.2, looked_up_at=10.15), PyroCacheError)


def test_pauses_double_up_to_a_tenth_of_a_second() -> None:
    attempts = Attempts()
    pauses = []
    for _ in range(20):
        action = after(refused(refusals.OVERLOADED), attempts=attempts)
        assert isinstance(action, Retry)
        pauses.append(action.after)
        attempts.rounds += 1
    assert pauses[:4] == [0.005, 0.01, 0.02, 0.04]
    assert pauses[-1] == 0.1


def test_no_attempt_begins_that_has_no_time() -> None:
    busy = refused(refusals.OVERLOADED)
    assert isinstance(after(busy, remaining=0.006), Retry)
    action = after(busy, remaining=0.005)
    assert isinstance(action, PyroCacheError)
    assert type(action) is Overloaded


@pytest.mark.parametrize(
    "earlier", [refused(refusals.OVERLOADED), refused(refusals.STALE_VIEW), unreachable(sent=True)]
)
def test_instead_of_a_timeout_the_problem_before_it_is_reported(earlier: Refused | Unavailable) -> None:
    attempts = Attempts()
    after(earlier, attempts=attempts)
    other = Member("cache.node.2", "127.0.0.1", 2)
    action = after(unreachable(timed_out=True), attempts=attempts, member=other)
    assert isinstance(action, PyroCacheError)
    assert str(action) == "timed out"
    action = after(unreachable(timed_out=True), attempts=attempts)
    assert isinstance(action, PyroCacheError)
    assert action is attempts.errors[NODE.name]
    assert str(action) != "timed out"
