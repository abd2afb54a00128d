"""The failures of a call to a node, and their error messages.

::

    Refused        the node answered, with a refusal; the connection is still usable
    Unavailable    the node could not be reached, or did not answer
    ValueTooLarge  nothing was sent: the node said in its greeting that it does not accept a value of this size

Thread safety: everything here is a value or a function without state.
"""

from __future__ import annotations

from typing import TypeAlias

from pyrocache.cluster.routing import Member
from pyrocache.errors import (
    AuthenticationError,
    ClientClosed,
    ClusterMismatch,
    MayHaveBeenDone,
    NodeUnavailable,
    Overloaded,
    ProtocolError,
    ProtocolMismatch,
    PyroCacheError,
    ValueTooLarge,
)
from pyrocache.late_imports import quoted
from pyrocache.net.deadline import Deadline
from pyrocache.net.suspicion import Suspicion
from pyrocache.protocol.handshake import (
    OTHER_CLUSTER,
    OTHER_PROTOCOL,
    OVERLOADED,
    UNPROVEN,
    HandshakeRefused,
)
from pyrocache.protocol.refusals import Refusal
from pyrocache.runtime.shortage import explain
from pyrocache.tracebacks import came_from_outside


class Refused(Exception):
    """The node answered with ``refusal``."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Unavailable(Exception):
    """The node could not be reached, or did not answer.

    Attributes:
        error: what to raise to the user.
        maybe_executed: the whole request was sent, so the node may have executed it.
        timed_out: the node did not answer in time.
        refused: the system refused the connection: nothing listens at the address.
        suspected: nothing was sent, because the node has not answered earlier calls.
        number: the number by which the request can be repeated; 0 if it cannot.
    """

    def __init__(
        self,
        error: NodeUnavailable | ClusterMismatch | AuthenticationError,
        maybe_executed: bool,
        timed_out: bool,
        suspected: bool = False,
        refused: bool = False,
        number: int = 0,
    ) -> None:
        self.error, self.maybe_executed, self.timed_out = error, maybe_executed, timed_out
        self.suspected, self.refused, self.number = suspected, refused, number


_Kind: TypeAlias = type[NodeUnavailable | ClusterMismatch | AuthenticationError]


class PoolExhausted(Exception):
    """Other callers kept all connections to the node until the deadline."""


BROKEN = (OSError, UnicodeError, ProtocolError, HandshakeRefused, PoolExhausted)
"""Exceptions that end a connection or prevent its opening. They become `Unavailable`."""


def broken(error: BaseException) -> bool:
    """Return whether an exception is one of `BROKEN`, and not one that a signal handler raised: its own is raised."""
    return isinstance(error, BROKEN) and not came_from_outside(error)


_HINT = "See which nodes answer with: pyrocache status"


def name_in_hint(error: BaseException, nameserver: str, advice: str = "") -> None:
    """Complete the command in an error's message, to be copied, with the name server in use.

    Args:
        advice: a sentence to put before the command; empty for none.
    """
    text = str(error)
    if nameserver and text.endswith(_HINT):
        begin = text.removesuffix(_HINT) + (f"{advice} " if advice else "")
        error.args = (f"{begin}{_HINT} --nameserver {quoted(nameserver)}", *error.args[1:])


def unavailable(
    member: Member, operation: str, deadline: Deadline, cause: BaseException, *, sent: bool, number: int = 0
) -> Unavailable:
    """Return the outcome of a request that failed with ``cause``, one of `BROKEN`.

    Args:
        sent: whether the whole request was sent before.
        number: as in `Unavailable`.
    """
    where = f"{member.name} at {member.address}"
    timed_out = isinstance(cause, (TimeoutError, PoolExhausted))
    kind: _Kind = NodeUnavailable
    remedy = f" {_HINT}"
    if isinstance(cause, PoolExhausted):
        text = f"all connections to {where} were in use for {deadline.seconds:g} s"
    elif timed_out:
        text = f"{where} did not answer within {deadline.seconds:g} s"
    elif isinstance(cause, HandshakeRefused):
        kind, text, remedy = _of_refusal(cause, where)
    elif isinstance(cause, ProtocolError):
        text = f"{where} sent what is not a reply ({cause})"
    elif shortage := explain(cause):
        text, remedy = f"{where} cannot be reached, because {shortage}", ""
    else:
        text = f"{where} cannot be reached ({type(cause).__name__})"
    error = kind(f"{operation} failed: {text}.{remedy}")
    error.source = member.name
    return Unavailable(
        error,
        maybe_executed=sent,
        timed_out=timed_out,
        number=number,
        refused=isinstance(cause, ConnectionRefusedError),
    )


def _of_refusal(cause: HandshakeRefused, where: str) -> tuple[_Kind, str, str]:
    """Return the class of the error about a refused handshake, what has happened, and what to do."""
    if cause.code in UNPROVEN:
        text = f"no connection to {where} was made ({cause})"
        return AuthenticationError, text, f" {cause.advice}".rstrip()
    if cause.code == OTHER_PROTOCOL:
        return ProtocolMismatch, f"no connection to {where} was made, as {cause.reason}", ""
    kinds: dict[str, _Kind] = {OVERLOADED: Overloaded, OTHER_CLUSTER: ClusterMismatch}
    return kinds.get(cause.code, NodeUnavailable), f"{where} refused the connection ({cause})", f" {_HINT}"


def may_have_been_done(error: PyroCacheError, operation: str) -> MayHaveBeenDone:
    """Return the error for a change whose reply was lost, and whose outcome cannot be found out."""
    text, _, hint = str(error).partition(_HINT)
    advice = f"The node may have done the {operation}, or do it until the timeout of this call has passed."
    changed = MayHaveBeenDone(
        f"{text.rstrip()} {advice}" + (f" {_HINT}{hint}" if _HINT in str(error) else "")
    )
    changed.source = getattr(error, "source", "")
    return changed


def suspected(member: Member, operation: str, suspicion: Suspicion) -> Unavailable:
    """Return the outcome of a request that is not sent to a node that seems to hang."""
    error = NodeUnavailable(
        f"{operation} failed: {member.name} at {member.address} {suspicion.describe()}. {_HINT}"
    )
    error.source = member.name
    return Unavailable(error, maybe_executed=False, timed_out=False, suspected=True)


def too_large(member: Member, value_bytes: int, max_value_bytes: int) -> ValueTooLarge:
    """Return the error for a value that its node would refuse."""
    return ValueTooLarge(
        f"The value is {value_bytes} bytes long once encoded, and {member.name} takes "
        f"up to {max_value_bytes}: store it in parts, or start the nodes with a larger --max-memory or --max-value."
    )


CLOSED = "This client was closed; make a new one."


def client_closed() -> ClientClosed:
    """Return the error for calls after `close`."""
    return ClientClosed(CLOSED)
