"""`Requests`: whether a request is executed: once at most, in time, and not if it waited while the server stood still.

A request of a client of pyrocache says which one it is and until when it may be executed (``protocol/request_id.py``).
Other requests say neither; they are refused only after a standstill of the server. A client that has lost the reply to
a change repeats it, and is answered from `Outcomes`.

The event loop has shortcuts to the same answers for small requests, see `EventLoop._serve_idle`.

Pure: no I/O, no threads; the caller reads the clock.

Thread safety: `Requests` is not thread-safe, it is used by the event loop's thread; the functions are stateless.
"""

from __future__ import annotations

from pyrocache.protocol import framing, refusals
from pyrocache.protocol.refusals import Refusal
from pyrocache.protocol.request_id import REPEAT, RequestId, seconds_left
from pyrocache.server.deferred import Session
from pyrocache.server.outcomes import Fate, Outcomes

LATE = Refusal(
    refusals.TRY_AGAIN,
    "The deadline of the request has passed. Ask for less at once, or give the client a longer timeout.",
)
_WAITED = Refusal(refusals.TRY_AGAIN, "The node stood still while the request waited.")
_GIVEN_UP = Refusal(refusals.TRY_AGAIN, "The request was given up before.")
_FATES = {
    Fate.RUNNING: Refusal(refusals.TRY_AGAIN, "The node has not finished the request yet."),
    Fate.NOT_DONE: Refusal(refusals.NOT_DONE, "The node has not executed the request, and will not."),
    Fate.FORGOTTEN: Refusal(
        refusals.FORGOTTEN, "The node does not remember whether it has executed the request."
    ),
}


def identity_of(session: Session, client: bytes, number: int, deadline: int) -> RequestId | None:
    """Return what the header of a request says; None if its client is not one that gives an identity."""
    return RequestId(client, number, deadline) if client == session.client else None


def is_late(identity: RequestId, now: float) -> bool:
    """Return whether the deadline of a request has passed."""
    return seconds_left(identity.deadline, now) < 0.0


class Requests:
    """Decides about the requests of all clients of one server.

    Args:
        outcomes: the remembered replies.
    """

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes

    def answer(
        self, identity: RequestId | None, now: float, *, once: bool, waited: bool
    ) -> bytes | Refusal | None:
        """Return the answer to a request that is not to be executed, or None.

        Bytes are the remembered reply, with the sequence number of the request that it replied to.

        Args:
            now: a reading of the server's clock after the request was received, in seconds.
            once: whether it must not be executed again, as in `Command`.
            waited: whether it was not read because the server stood still.
        """
        if identity is not None and is_late(identity, now):
            return LATE
        if waited and once:
            return _WAITED
        if identity is None:
            return None
        if identity.sequence & REPEAT:
            return self._outcome(identity, now)
        return _GIVEN_UP if identity[:2] in self._outcomes.refused else None

    def _outcome(self, identity: RequestId, now: float) -> bytes | Refusal:
        """Return the outcome of a request that is repeated."""
        number, left = identity.sequence & ~REPEAT, seconds_left(identity.deadline, now)
        outcome = self._outcomes.repeat(identity.session, number, now, left)
        if isinstance(outcome, bytes) and not _was_executed(outcome):
            outcome = self._outcomes.refuse((identity.session, number), now, left)
        return outcome if isinstance(outcome, bytes) else _FATES[outcome]


def _was_executed(reply: bytes) -> bool:
    """Return whether a reply is not a refusal that says that the request was not executed."""
    if not framing.parse_header(reply).flags & framing.FLAG_EXCEPTION:
        return True
    return refusals.unpack_refusal(reply[framing.HEADER_BYTES :]).code not in refusals.NOT_EXECUTED
