"""What the retry policy says to each kind of problem. Pure: no node, no socket, no time."""

from __future__ import annotations

from typing import Any

import pytest

from pyrocache.client.routing.retry import (
    Action,
    Attempts,
    LookUp,
    Lost,
    Repeat,
    Retry,
    decide,
    decide_repeat,
)
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import (
    KeyTooLarge,
    MayHaveBeenDone,
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
VIEW = ClusterView([NODE], 5)
OTHER_VIEW = ClusterView([NODE, Member("cache.node.2", "127.0.0.1", 2)], 6)
RESTARTED = ClusterView([Member("cache.node.1", "127.0.0.1", 1, incarnation="second")])
CHANGES = {name: command for name, command in COMMANDS.items() if command.once}
READS = {name: command for name, command in COMMANDS.items() if not command.once}


def refused(code: str, detail: Any = None) -> Refused:
    return Refused(Refusal(code, "no", detail))


def unreachable(
    *,
    sent: bool = False,
    timed_out: bool = False,
    kind: type[NodeUnavailable] = NodeUnavailable,
    number: int = 0,
) -> Unavailable:
    error = kind("timed out" if timed_out else "gone")
    return Unavailable(error, maybe_executed=sent, timed_out=timed_out, number=number)


def after(
    problem: Refused | Unavailable,
    command: Command = commands.GET,
    *,
    attempts: Attempts | None = None,
    member: Member = NODE,
    now: float = 0.0,
    remaining: float = 5.0,
    looked_up_at: float = NEVER,
    view: ClusterView = VIEW,
    elapsed: float = 0.0,
) -> Action:
    """Return what the policy says after a problem with a command."""
    request = Request(member, command, (VIEW.number, b"key"))
    return decide(attempts or Attempts(), request, problem, now, remaining, looked_up_at, view, elapsed)


def after_repeat(
    problem: Refused | Unavailable,
    *,
    lost: Lost | None = None,
    attempts: Attempts | None = None,
    remaining: float = 5.0,
    view: ClusterView = VIEW,
    elapsed: float = 0.0,
) -> Action:
    """Return what the policy says after a repeat of a set."""
    request = Request(NODE, commands.SET, (VIEW.number, b"key"))
    lost = lost or Lost(unreachable(sent=True, number=7))
    return decide_repeat(lost, attempts or Attempts(), request, problem, remaining, view, elapsed)


def test_changes_are_what_another_client_may_have_overtaken() -> None:
    assert CHANGES.keys() == {
        *("set", "put", "setdefault", "incr", "touch", "delete", "pop", "fill", "release"),
        *("set_many", "delete_many", "touch_many", "delete_prefix", "clear", "invalidate_tag"),
    }


@pytest.mark.parametrize("command", READS.values(), ids=READS)
def test_a_read_whose_reply_was_lost_is_sent_again(command: Command) -> None:
    assert isinstance(after(unreachable(sent=True, number=7), command), LookUp)


@pytest.mark.parametrize("command", CHANGES.values(), ids=CHANGES)
def test_a_change_whose_reply_was_lost_is_repeated(command: Command) -> None:
    assert after(unreachable(sent=True, number=7), command) == Repeat(0.0, 7)


@pytest.mark.parametrize("command", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    ("problem", "options"),
    [
        (unreachable(sent=True), {}),  # the node does not identify requests
        (unreachable(sent=True, number=7, timed_out=True), {}),
        (unreachable(sent=True, number=7), {"view": RESTARTED}),
        (unreachable(sent=True, number=7), {"view": ClusterView([])}),
        (unreachable(sent=True, number=7), {"elapsed": 50.0}),
    ],
    ids=["no number", "timeout", "other incarnation", "gone", "too late"],
)
def test_where_it_cannot_be_repeated_it_may_have_been_done(
    command: Command, problem: Unavailable, options: dict[str, Any]
) -> None:
    action = after(problem, command, **options)
    assert isinstance(action, MayHaveBeenDone)
    assert f"may have done the {command.name}" in str(action)


def test_what_was_routed_by_another_view_is_not_repeated() -> None:
    lost = unreachable(sent=True, number=7)
    assert isinstance(after(lost, commands.SET, view=OTHER_VIEW), MayHaveBeenDone)
    assert after(lost, commands.CLEAR, view=OTHER_VIEW) == Repeat(0.0, 7)  # every node is asked
    assert isinstance(after_repeat(unreachable(), view=OTHER_VIEW), MayHaveBeenDone)


def test_a_change_that_was_not_done_is_sent_as_a_new_one() -> None:
    assert after_repeat(refused(refusals.NOT_DONE)) == Retry(0.005)
    error = after_repeat(refused(refusals.NOT_DONE), remaining=0.0)
    assert type(error) is NodeUnavailable
    attempts = Attempts()
    attempts.losses = 4
    error = after_repeat(refused(refusals.NOT_DONE), attempts=attempts)
    assert type(error) is NodeUnavailable


@pytest.mark.parametrize("code", [refusals.TRY_AGAIN, refusals.OVERLOADED])
def test_a_repeat_that_gets_no_outcome_yet_is_made_again(code: str) -> None:
    assert after_repeat(refused(code)) == Repeat(0.005, 7)
    assert isinstance(after_repeat(refused(code), remaining=0.005), MayHaveBeenDone)
    assert isinstance(after_repeat(refused(code), elapsed=50.0), MayHaveBeenDone)


def test_an_outcome_may_be_a_refusal() -> None:
    assert type(after_repeat(refused(refusals.NOT_AN_INT))) is NotAnInt


def test_a_forgotten_change_may_have_been_done() -> None:
    assert isinstance(after_repeat(refused(refusals.FORGOTTEN)), MayHaveBeenDone)


def test_repeats_that_fail_are_given_up_after_a_few() -> None:
    lost = Lost(unreachable(sent=True, number=7))
    for _ in range(3):
        assert after_repeat(unreachable(), lost=lost) == Repeat(0.005, 7)
    assert isinstance(after_repeat(unreachable(), lost=lost), MayHaveBeenDone)
    assert isinstance(after_repeat(unreachable(timed_out=True)), MayHaveBeenDone)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_request_that_was_not_sent_is_made_again(command: Command) -> None:
    assert after(unreachable(), command) == LookUp(0.005, unless_moved=NODE)


@pytest.mark.parametrize("command", [commands.DELETE, commands.PUT_IF, commands.CLEAR])
def test_what_was_not_sent_has_not_been_done(command: Command) -> None:
    for harmless in (
        after(unreachable(), command, remaining=0.0),
        after(unreachable(sent=True), remaining=0.0),
    ):
        assert type(harmless) is NodeUnavailable


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


@pytest.mark.parametrize("code", [refusals.OVERLOADED, refusals.NOT_SERVING, refusals.TRY_AGAIN])
def test_a_node_that_does_not_execute_a_request_now_is_asked_again_after_a_pause(code: str) -> None:
    assert after(refused(code), commands.DELETE) == Retry(0.005)
    assert isinstance(after(refused(code), commands.DELETE, remaining=0.0), NodeUnavailable)
    assert not isinstance(after(refused(code), commands.DELETE, remaining=0.0), MayHaveBeenDone)


def test_a_node_at_its_limit_of_connections_is_asked_again_after_a_pause() -> None:
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
