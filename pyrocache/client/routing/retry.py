"""The retry policy of the client: `decide` and `decide_repeat` return what to do after a request has failed.

The router performs it.

- A refusal is final, with these exceptions. After the refusal of a node whose cluster view differs (`STALE_VIEW`), the
  client uses that view if it is newer, or else queries the name server, and asks again. A node that is at a limit
  (`OVERLOADED`), may not answer at this moment (`NOT_SERVING`), or did not execute the request for another reason
  (`TRY_AGAIN`), is asked again after a pause.
- A node that cannot be reached, or whose reply was lost, is asked a second time, after the client has queried the name
  server for its address. It is asked again after that only if its address has changed.
- A change whose reply was lost is not sent again as a new request: the node may have executed it, and another client
  may have changed the entry since. Nor is a request that is not idempotent. It is *repeated*: the node tells its
  outcome, or that it was not executed and never will be (`NOT_DONE`), and then it is sent again as a new request. It is
  repeated only while the view lists the same start of the node, and is the one that the request was routed with, and
  for `REPEAT_SECONDS`. If the outcome cannot be found out, the error is `MayHaveBeenDone`.
- A timeout is final, because it used up the deadline. So is the failure of a request that was not sent, because the
  node seems to hang (`net.suspicion`).
- No attempt begins if the pause before it would last beyond the deadline. The error is then that of the last attempt.
  If the last attempt timed out, and an earlier attempt at the same node failed for another reason, the error has that
  reason.

Failed requests arrive as `Refused` or `Unavailable` of ``net/failures.py``. ``protocol/commands.py`` lists which
commands must be executed once only. Pure: no I/O, no threads, no clock of its own.

Thread safety: not thread-safe; each call has its own `Attempts`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from pyrocache import errors
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import Overloaded, PyroCacheError
from pyrocache.net.calls import Request
from pyrocache.net.failures import Refused, Unavailable, may_have_been_done
from pyrocache.protocol import refusals
from pyrocache.protocol.commands import Scope
from pyrocache.protocol.limits import NO_VIEW
from pyrocache.protocol.request_id import REPEAT_SECONDS

_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.1


Problem: TypeAlias = Refused | Unavailable
"""The failure of a request."""

_REFUSED: dict[str, type[PyroCacheError]] = {
    refusals.VALUE_TOO_LARGE: errors.ValueTooLarge,
    refusals.KEY_TOO_LARGE: errors.KeyTooLarge,
    refusals.NOT_AN_INT: errors.NotAnInt,
    refusals.OVERLOADED: Overloaded,
    refusals.STALE_VIEW: errors.NodeUnavailable,
    refusals.NOT_SERVING: errors.NodeUnavailable,
    refusals.TRY_AGAIN: errors.NodeUnavailable,
}
_PAUSED_FOR = (refusals.OVERLOADED, refusals.NOT_SERVING, refusals.TRY_AGAIN)
_STILL_OPEN = (
    refusals.OVERLOADED,
    refusals.TRY_AGAIN,
)  # refusals of a repeat that say nothing of its original
_MOST_REPEATS = 3  # that fail by themselves


class Retry(NamedTuple):
    """Pause for up to ``after`` seconds, then send the request again."""

    after: float


class LookUp(NamedTuple):
    """Query the name server, pause, then send the request again, to the node that owns the key by then.

    Attributes:
        after: seconds to pause, at most.
        unless_moved: pause only if this node is still at its address.
        members: the nodes as listed by the node that refused, used if the name server does not answer.
    """

    after: float
    unless_moved: Member | None = None
    members: Any = None


class Moved(NamedTuple):
    """Send the request again at once, routed by the newer view that its refusal has told."""


class Repeat(NamedTuple):
    """Pause for up to ``after`` seconds, then ask the same node for the outcome of request ``number``."""

    after: float
    number: int


Action: TypeAlias = Retry | LookUp | Repeat | PyroCacheError
"""What to do after a failure: the error is to be raised."""


class Attempts:
    """The failures of one call so far.

    Attributes:
        rounds: the number of times that requests were sent again.
        losses: the number of changes whose reply was lost.
        unreachable_since: by node, when it was first found unreachable.
        errors: by name of the node, the last error that was not final.
    """

    __slots__ = ("errors", "losses", "rounds", "unreachable_since")

    def __init__(self) -> None:
        self.rounds = self.losses = 0
        self.unreachable_since: dict[Member, float] = {}
        self.errors: dict[str, PyroCacheError] = {}


class Lost:
    """A change whose reply was lost, while it is found out whether it was executed.

    Attributes:
        problem: the loss.
        failed: how many repeats have failed, too.
    """

    __slots__ = ("failed", "problem")

    def __init__(self, problem: Unavailable) -> None:
        self.problem = problem
        self.failed = 0


def decide(
    attempts: Attempts,
    request: Request,
    problem: Problem,
    now: float,
    remaining: float,
    looked_up_at: float,
    view: ClusterView,
    elapsed: float = 0.0,
) -> Action:
    """Return the action after a failure, or the error to raise. Records the failure in ``attempts``.

    Args:
        now: seconds of the same clock as ``looked_up_at``.
        remaining: seconds until the deadline.
        looked_up_at: when the last query of the name server began.
        view: the latest view.
        elapsed: seconds since the call has begun.
    """
    error = error_of(request, problem)
    after = _pause(attempts)
    action: Retry | LookUp | None = None
    if isinstance(problem, Unavailable) and problem.maybe_executed and request.command.once:
        attempts.losses += 1
        if problem.timed_out or not problem.number or not _may_repeat(request, view, elapsed):
            if problem.timed_out:
                error = attempts.errors.get(request.member.name, error)
            return may_have_been_done(error, request.command.title)
        return Repeat(0.0, problem.number)
    if isinstance(problem, Unavailable):
        action = _after_silence(attempts, request, problem, after, now, looked_up_at)
    elif problem.refusal.code == refusals.STALE_VIEW:
        # The node's view may be older than ours, for example when a node has just joined.
        action = LookUp(after, members=problem.refusal.detail)
    elif problem.refusal.code in _PAUSED_FOR:
        action = Retry(after)
    if action is not None and remaining > after:
        attempts.errors[request.member.name] = error
        return action
    if isinstance(problem, Unavailable) and problem.timed_out:
        error = attempts.errors.get(request.member.name, error)
    return error


def decide_repeat(
    lost: Lost,
    attempts: Attempts,
    request: Request,
    problem: Problem,
    remaining: float,
    view: ClusterView,
    elapsed: float,
) -> Action:
    """Return the action after a repeat was refused or has failed, or the error to raise.

    `Retry` is to send the request as a new one, because it was not executed. Arguments are as for `decide`.
    """
    number, after = lost.problem.number, _pause(attempts)
    if isinstance(problem, Refused) and problem.refusal.code not in (*_STILL_OPEN, refusals.FORGOTTEN):
        if problem.refusal.code == refusals.NOT_DONE:
            again = remaining > after and attempts.losses <= _MOST_REPEATS
            return Retry(after) if again else lost.problem.error
        return error_of(request, problem)  # the outcome itself
    if isinstance(problem, Unavailable):
        lost.failed += 1
    final = (
        lost.failed > _MOST_REPEATS
        or (isinstance(problem, Unavailable) and (problem.timed_out or problem.suspected))
        or (isinstance(problem, Refused) and problem.refusal.code == refusals.FORGOTTEN)
    )
    if final or remaining <= after or not _may_repeat(request, view, elapsed):
        return may_have_been_done(lost.problem.error, request.command.title)
    return Repeat(after, number)


def _pause(attempts: Attempts) -> float:
    # The exponent is bounded, because 2.0 ** 1024 raises OverflowError.
    return min(_FIRST_PAUSE_SECONDS * 2.0 ** min(attempts.rounds, 10), _LONGEST_PAUSE_SECONDS)


def _may_repeat(request: Request, view: ClusterView, elapsed: float) -> bool:
    """Return whether a request would be routed as before, to a start of a node that can still know its outcome."""
    routed = request.command.scope in (Scope.KEY, Scope.KEYS)
    same_view = not routed or request.arguments[0] in (view.number, NO_VIEW)
    return same_view and view.member(request.member.name) == request.member and elapsed < REPEAT_SECONDS


def error_of(request: Request, problem: Problem) -> PyroCacheError:
    """Return the exception to raise for a failed request."""
    if isinstance(problem, Unavailable):
        return problem.error
    refusal = problem.refusal
    text = f"{request.member.name} refused {request.command.title}: {refusal.message}"
    if refusal.code == refusals.STALE_VIEW:
        text += " It did not agree within the deadline on which nodes there are; try again."
    error = _REFUSED.get(refusal.code, errors.RemoteError)(text)
    if isinstance(error, errors.CacheUnavailable):
        error.source = request.member.name
    return error


def _after_silence(
    attempts: Attempts, request: Request, problem: Unavailable, after: float, now: float, looked_up_at: float
) -> Retry | LookUp | None:
    if isinstance(problem.error, Overloaded):
        return Retry(after)
    if problem.timed_out or problem.suspected:
        return None
    since = attempts.unreachable_since.get(request.member)
    if since is None:
        attempts.unreachable_since[request.member] = now
    elif looked_up_at >= since:
        return None  # the name server was queried after the first failure, and the address is still the same
    return LookUp(after, unless_moved=request.member)
