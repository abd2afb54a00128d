"""The retry policy of the client: what to do after a request has failed. `decide` returns it, the router performs it.

- A refusal is final, with these exceptions. After the refusal of a node whose cluster view differs (`STALE_VIEW`), the
  client uses that view if it is newer, or else queries the name server, and asks again. A node that is at a limit
  (`OVERLOADED`) or may not answer at this moment (`NOT_SERVING`, `TRY_AGAIN`) is asked again after a pause.
- A node that cannot be reached, or whose reply was lost, is asked a second time, after the client has queried the name
  server for its address. It is asked again after that only if its address has changed.
- A timeout is final, because it used up the deadline. So is the failure of a request that was not sent, because the
  node seems to hang (`net.suspicion`).
- A command that is not idempotent is never sent again once it was sent completely.
- No attempt begins if the pause before it would last beyond the deadline. The error is then that of the last attempt.
  If the last attempt timed out, and an earlier attempt at the same node failed for another reason, the error has that
  reason.

Failed requests arrive as `Refused` or `Unavailable` of ``net/failures.py``. ``protocol/commands.py`` lists which
commands are idempotent. Pure: no I/O, no threads, no clock of its own.

Thread safety: not thread-safe; each call has its own `Attempts`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from pyrocache import errors
from pyrocache.cluster.routing import Member
from pyrocache.errors import Overloaded, PyroCacheError
from pyrocache.net.calls import Request
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.protocol import refusals

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


class Attempts:
    """The failures of one call so far.

    Attributes:
        rounds: the number of times that requests were repeated.
        unreachable_since: by node, when it was first found unreachable.
        errors: by name of the node, the last error that was not final.
    """

    __slots__ = ("errors", "rounds", "unreachable_since")

    def __init__(self) -> None:
        self.rounds = 0
        self.unreachable_since: dict[Member, float] = {}
        self.errors: dict[str, PyroCacheError] = {}


def decide(
    attempts: Attempts, request: Request, problem: Problem, now: float, remaining: float, looked_up_at: float
) -> Retry | LookUp | PyroCacheError:
    """Return the action after a failure, or the error to raise. Records the failure in ``attempts``.

    Args:
        now: seconds of the same clock as ``looked_up_at``.
        remaining: seconds until the deadline.
        looked_up_at: when the last query of the name server began.
    """
    error = error_of(request, problem)
    # The exponent is bounded, because 2.0 ** 1024 raises OverflowError.
    after = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(attempts.rounds, 10), _LONGEST_PAUSE_SECONDS)
    action: Retry | LookUp | None = None
    if isinstance(problem, Unavailable):
        action = _after_silence(attempts, request, problem, after, now, looked_up_at)
    elif problem.refusal.code == refusals.STALE_VIEW:
        # The node's view may be older than ours, for example when a node has just joined.
        action = LookUp(after, members=problem.refusal.detail)
    elif problem.refusal.code in (refusals.OVERLOADED, refusals.NOT_SERVING, refusals.TRY_AGAIN):
        action = Retry(after)
    if action is not None and remaining > after:
        attempts.errors[request.member.name] = error
        return action
    if isinstance(problem, Unavailable):
        if problem.timed_out:
            error = attempts.errors.get(request.member.name, error)
        if problem.maybe_executed and not request.command.idempotent:
            error.add_note(f"The node may have done the {request.command.name} all the same: it was sent.")
    return error


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
    if problem.timed_out or problem.suspected or (problem.maybe_executed and not request.command.idempotent):
        return None
    since = attempts.unreachable_since.get(request.member)
    if since is None:
        attempts.unreachable_since[request.member] = now
    elif looked_up_at >= since:
        return None  # the name server was queried after the first failure, and the address is still the same
    return LookUp(after, unless_moved=request.member)
