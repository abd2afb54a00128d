"""Registration of a node: its name and its entry in the name server, which at most one live node has.

Responsible for the rules by which a node takes over the name of a dead one.

Thread safety: not thread-safe; the main thread calls it before the node serves.
"""

from __future__ import annotations

import itertools
import secrets
import time
from dataclasses import replace

from pyrocache.cluster.routing import Member
from pyrocache.config import NodeConfig
from pyrocache.errors import NameTaken
from pyrocache.net.directory import PREFIX, Directory
from pyrocache.node.peers import Peers, PeerState

_SETTLE_SECONDS = 0.1


def register(config: NodeConfig, directory: Directory, peers: Peers, member: Member) -> Member:
    """Register ``member`` under the name of ``config``, or under the first free name. Return its entry.

    Raises:
        NameTaken: a live node has the name.
    """
    listed = {other.name: other for other in directory.members() if config.name in (None, other.name)}
    states = dict(zip(listed, peers.states(list(listed.values())), strict=True))
    names = (f"{PREFIX}{number}" for number in itertools.count(1)) if config.name is None else (config.name,)
    for name in names:
        member = replace(member, name=name)
        if states.get(name, PeerState.GONE) is PeerState.GONE and _take(directory, member, listed.get(name)):
            return member
    raise NameTaken(
        f"{config.name} is held by a live node at the name server {config.nameserver}: "
        "stop that one first, or start this one under another name."
    )


def _take(directory: Directory, member: Member, dead: Member | None) -> bool:
    """Register ``member``, in place of ``dead`` if that is an entry. Return False if another node was faster."""
    if dead is None:
        return directory.add(member)
    directory.remove(dead)
    if not directory.add(member):
        return False
    # Two nodes may have found the same dead entry; the slower one may then have removed the new entry of the faster.
    time.sleep(secrets.randbelow(1000) / 1000 * _SETTLE_SECONDS + _SETTLE_SECONDS)
    return any(other.incarnation == member.incarnation for other in directory.members())
