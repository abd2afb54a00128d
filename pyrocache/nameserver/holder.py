"""Asks whether the node that a name is registered for is alive.

One short call over TCP. The handshake and the answer must be those of the registered incarnation. A refused connection,
silence, and a process that is none of ours or names another node or incarnation count as "not alive". A process of ours
with another secret, certificate or protocol counts as alive: it may be the node.

Thread safety: a function without state. It blocks for `PING_SECONDS` at most, and while a host name is resolved.
"""

from __future__ import annotations

from pyrocache.cluster.routing import Member
from pyrocache.net.call_protocol import Caller
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import BROKEN, Refused
from pyrocache.protocol.commands import PING
from pyrocache.protocol.handshake import NO_SECRET, OTHER_PROTOCOL, UNPROVEN, HandshakeRefused

PING_SECONDS = 0.5


def is_alive(caller: Caller, holder: Member) -> bool:
    """Return whether ``holder`` answers a ping at its address, as the incarnation that is registered.

    Args:
        caller: describes this name server, and what it knows.
    """
    deadline = Deadline(PING_SECONDS)
    try:
        connection = Connection(holder, "tcp", caller)
        try:
            connection.finish_opening(deadline)
            answer = connection.call(PING.name, (), deadline)
        finally:
            connection.close()
    except HandshakeRefused as refused:
        return refused.code in (*UNPROVEN, OTHER_PROTOCOL) and refused.code != NO_SECRET
    except (Refused, *BROKEN):
        return False
    return isinstance(answer, dict) and answer.get("incarnation") == holder.incarnation
