"""How a node speaks to another node: rarely, briefly, and only to learn whether it is there.

Uses Pyro5's own proxy, one connection a question. Any thread may call.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterable
from typing import Any

from Pyro5.client import Proxy
from Pyro5.errors import CommunicationError, PyroError, TimeoutError

from pyrocache.cluster.routing import ClusterView, Member

PROBE_SECONDS = 0.5


class PeerState(enum.Enum):
    """What a probe of another node found."""

    SERVING = "serving"
    SILENT = "silent"
    """Something listens and does not answer: it may be stopped, or cut off, and come back."""
    GONE = "gone"
    """Nobody of that name is there, or it is on its way out."""


def probe(member: Member, *, view_id: int = 0, timeout: float = PROBE_SECONDS) -> PeerState:
    """Ask whether ``member`` is there.

    Args:
        member: whom to ask, at its address.
        view_id: the asker's view: a peer that holds another looks into the name server soon.
        timeout: seconds that it may take.
    """
    try:
        answer = _ping(member, view_id, timeout)
    except CommunicationError as error:
        return _state_from(error)
    except PyroError:
        return PeerState.GONE
    except OSError:
        return PeerState.SILENT
    return PeerState.SERVING if answer.get("serving") is True else PeerState.GONE


def _state_from(error: CommunicationError) -> PeerState:
    if isinstance(error, TimeoutError):
        return PeerState.SILENT
    if "overloaded" in str(error):  # it turns connections away, so it is there
        return PeerState.SERVING
    cause = error.__cause__
    answered = cause is None or isinstance(cause, ConnectionError)  # by a reset, or by not knowing the name
    return PeerState.GONE if answered else PeerState.SILENT


def knows(peer: Member, member: Member, *, view_id: int = 0, timeout: float = PROBE_SECONDS) -> bool | None:
    """Whether ``peer`` has this incarnation of ``member`` in its view; None when it does not answer.

    Args:
        view_id: the asker's view: a peer that holds another looks into the name server soon.
    """
    try:
        with _proxy(peer, timeout) as proxy:
            proxy.ping(view_id)
            members = proxy.members()
        return any(name == member.name and tag == member.incarnation for name, _, _, _, tag, *_ in members)
    except (PyroError, OSError, TypeError, ValueError):
        return None


def tell_view(members: Iterable[Member], view: ClusterView) -> None:
    """Have ``members`` look into the name server soon if they do not hold ``view``. Best effort."""
    for member in members:
        with contextlib.suppress(Exception):
            probe(member, view_id=view.id)


def _ping(member: Member, view_id: int, timeout: float) -> dict[str, Any]:
    with _proxy(member, timeout) as proxy:
        answer = proxy.ping(view_id)
        return answer if isinstance(answer, dict) else {}


def _proxy(member: Member, timeout: float) -> Any:
    proxy = Proxy(f"PYRO:{member.name}@{member.address}")
    proxy._pyroTimeout = timeout
    proxy._pyroSerializer = "msgpack"
    return proxy
