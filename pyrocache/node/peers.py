"""`Peers`: probes of other nodes: whether they serve, and whether they know a node.

Each probe opens its own connections and closes them afterwards, so that no connection stays open between nodes. All
peers are asked in parallel and share one deadline. Probes are rare.

Thread safety: thread-safe; a `Peers` is stateless apart from its timeout.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from pyrocache.cluster.routing import Member
from pyrocache.errors import Overloaded
from pyrocache.net.calls import Connections, Request
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Refused, Unavailable
from pyrocache.protocol.commands import MEMBERS, PING
from pyrocache.protocol.refusals import OVERLOADED

PROBE_SECONDS = 0.5


class PeerState(enum.Enum):
    """The result of a probe of another node."""

    SERVING = "serving"
    SILENT = "silent"
    """The node does not answer in time. It may be suspended or disconnected, and may come back."""
    GONE = "gone"
    """No node of that name listens at the address, or it is leaving."""


class Peers:
    """Probes other nodes.

    Args:
        timeout: seconds that each probe may take, for all peers together.
    """

    def __init__(self, timeout: float = PROBE_SECONDS) -> None:
        self._timeout = timeout

    def states(self, members: Sequence[Member], view_id: int = 0) -> list[PeerState]:
        """Return the state of each of ``members``.

        Args:
            view_id: id of the caller's view. A peer that has another view queries the name server soon.
        """
        requests = [Request(member, PING, (view_id,)) for member in members]
        return [_state(answer) for answer in self._ask(requests)]

    def know(self, peers: Sequence[Member], member: Member, view_id: int = 0) -> list[bool | None]:
        """Return whether each of ``peers`` has this incarnation of ``member`` in its view; None if it does not answer.

        Args:
            view_id: as in `states`.
        """
        requests = [
            Request(peer, command, arguments)
            for command, arguments in ((PING, (view_id,)), (MEMBERS, ()))
            for peer in peers
        ]
        return [_lists(answer, member) for answer in self._ask(requests)[len(peers) :]]

    def _ask(self, requests: Sequence[Request]) -> list[Any]:
        """Return the outcome of each request, in order."""
        outcomes: list[Any] = [None] * len(requests)
        # Over TCP, as most callers reach a node.
        with closing(Connections(max_per_node=2, transport="tcp")) as connections:
            for index, outcome in connections.exchange(requests, Deadline(self._timeout)):
                outcomes[index] = outcome
        return outcomes


def _state(answer: Any) -> PeerState:
    if isinstance(answer, Unavailable):
        if isinstance(answer.error, Overloaded):  # it refuses connections, so it is alive
            return PeerState.SERVING
        return PeerState.GONE if answer.gone else PeerState.SILENT
    if isinstance(answer, Refused):
        return PeerState.SERVING if answer.refusal.code == OVERLOADED else PeerState.GONE
    serving = isinstance(answer, dict) and answer.get("serving") is True
    return PeerState.SERVING if serving else PeerState.GONE


def _lists(answer: Any, member: Member) -> bool | None:
    try:
        return any(name == member.name and tag == member.incarnation for name, _, _, _, tag, *_ in answer)
    except (TypeError, ValueError):  # the answer is a failure, or not a list of members
        return None
