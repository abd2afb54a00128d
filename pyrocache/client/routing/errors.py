"""Turns what went wrong with a request into the exception for the user. Pure."""

from __future__ import annotations

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
from pyrocache.protocol import refusals

_REFUSED: dict[str, type[PyroCacheError]] = {
    refusals.VALUE_TOO_LARGE: ValueTooLarge,
    refusals.KEY_TOO_LARGE: KeyTooLarge,
    refusals.NOT_AN_INT: NotAnInt,
    refusals.OVERLOADED: Overloaded,
    refusals.STALE_VIEW: NodeUnavailable,
}


class NodeLeft(NodeUnavailable):
    """The node is no longer a member, and what it held is lost."""


def error_of(request: Request, problem: Refused | Unavailable) -> PyroCacheError:
    """Return the exception that says why a request failed."""
    if isinstance(problem, Unavailable):
        return problem.error
    refusal = problem.refusal
    text = f"{request.member.name} refused {request.command.name}: {refusal.message}"
    if refusal.code == refusals.STALE_VIEW:
        text += " It did not agree within the deadline on which nodes there are; try again."
    return _REFUSED.get(refusal.code, RemoteError)(text)
