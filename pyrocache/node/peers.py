"""`Peers`: asks other nodes which view they have.

All peers are asked in parallel and share one deadline. Connections are kept.

Thread safety: used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyrocache.cluster.fencing import Heard
from pyrocache.cluster.routing import ClusterView, Member
from pyrocache.errors import ProtocolMismatch
from pyrocache.net.call_protocol import ANONYMOUS, Caller
from pyrocache.net.calls import Connections, Request
from pyrocache.net.connection import Connection
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import Unavailable
from pyrocache.protocol.commands import PING
from pyrocache.protocol.handshake import NAMELESS
from pyrocache.runtime.own_address import is_own

PROBE_SECONDS = 0.25


class Peers:
    """The connections of a node to others.

    Args:
        timeout: seconds that each question may take, for all peers together.
        connect: opens a connection, as `Connection` does.
        caller: what this node knows and demands; its greeting is completed here.

    Attributes:
        mismatch: says of one of the nodes asked last that it runs a version of pyrocache that is too old or too new;
            empty if there is none.
    """

    mismatch = ""

    def __init__(
        self,
        timeout: float = PROBE_SECONDS,
        connect: Callable[..., Connection] = Connection,
        caller: Caller = ANONYMOUS,
    ) -> None:
        self._caller = caller
        self._timeout = timeout
        self._opens = connect
        self._connections = self._connect(NAMELESS)

    def introduce(self, member: Member) -> None:
        """Say from now on which node asks."""
        self._connections.close()
        self._connections = self._connect(f"{member.name} {member.incarnation}")

    def ask(self, members: Sequence[Member], view: ClusterView, own: Member) -> list[Heard]:
        """Ask each of ``members`` whether it has ``view``. A peer that has an older one queries the name server.

        Args:
            own: the asking node, at the address where it listens.
        """
        outcomes: list[Any] = [None] * len(members)
        requests = [Request(member, PING, (view.number,)) for member in members]
        for index, outcome in self._connections.exchange(requests, Deadline(self._timeout)):
            outcomes[index] = outcome
        errors = [outcome.error for outcome in outcomes if isinstance(outcome, Unavailable)]
        self.mismatch = next((str(error) for error in errors if isinstance(error, ProtocolMismatch)), "")
        return [_heard(member, answer, view, own) for member, answer in zip(members, outcomes, strict=True)]

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def _connect(self, name: str) -> Connections:
        # Over TCP, as most callers reach a node.
        greeting = self._caller.greeting._replace(caller=name)
        caller = self._caller._replace(greeting=greeting)
        return Connections(max_per_node=1, transport="tcp", caller=caller, connect=self._opens)


def is_here(host: str, own: str) -> bool:
    """Return whether ``host`` is this host, for certain: no connection to it leads elsewhere.

    Args:
        own: where this node listens. It is not what the node advertises: behind one such address may be many hosts.
    """
    return host in (own, "localhost") or is_own(host)


def _has_port_of(own: Member, member: Member) -> bool:
    """Return whether this node listens where ``member`` did, so that no process can listen there but this one."""
    if own.port != member.port:
        return False
    everywhere = own.host == "::" or (own.host == "0.0.0.0" and ":" not in member.host)
    return own.host == member.host or (everywhere and is_here(member.host, own.host))


def _heard(member: Member, answer: Any, view: ClusterView, own: Member) -> Heard:
    if _has_port_of(own, member):
        return Heard.GONE
    if isinstance(answer, Unavailable):
        return Heard.GONE if answer.refused and is_here(member.host, own.host) else Heard.SILENT
    if not isinstance(answer, dict):
        return Heard.OTHER
    number, id_ = answer.get("view"), answer.get("id")
    if type(number) is int and number > view.number:
        return Heard.NEWER
    return Heard.SAME if (number, id_) == (view.number, view.id) else Heard.OTHER
