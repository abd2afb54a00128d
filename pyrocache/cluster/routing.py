"""`ClusterView`: the nodes of a cluster, and the routing of keys to them.

A key's bytes hash to one of `PARTITIONS` partitions: xxh3_64 modulo their number. The nodes of a partition are ranked
by weighted rendezvous hashing, highest random weight first (Thaler and Ravishankar, "Using Name-Based Mappings to
Increase Hit Rates", IEEE/ACM ToN 1998; the weighted score after Schindelhauer and Schomaker, "Weighted Distributed Hash
Tables", SPAA 2005). Only the *names* and weights of the nodes count. So a node that restarts at another address under
its name keeps its keys, and the n-th node to join takes 1/n of the keys, evenly from all others.

Pure: no I/O, no threads, no clock. Every process with the same view routes alike.

Thread safety: thread-safe. A `ClusterView` is immutable, except for its cache of owners; racing threads store equal
values there, so it needs no lock.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from xxhash import xxh3_64_intdigest

from pyrocache.config import check_node_name, check_weight, check_zone, format_address
from pyrocache.protocol.partition import PARTITIONS, partition_of

__all__ = ["PARTITIONS", "ClusterView", "Member", "is_socket_path", "partition_of"]

_UNKNOWN = -1
_MOST_MEMBERS = 2**15 - 1  # the cache of owners has 16-bit signed indices

_ID = re.compile(r"[\w.-]{0,64}", re.ASCII)
_SOCKET_PATH = re.compile(r"/[^\0]*/pyrocache-\d+/([0-9a-f]{16})\.sock")


def is_id(text: str) -> bool:
    """Return whether ``text`` may be an incarnation, or the id of a cluster. Both are sent to whoever is listed."""
    return _ID.fullmatch(text) is not None


def is_socket_path(path: str, incarnation: str) -> bool:
    """Return whether ``path`` is a Unix socket path of that incarnation. Clients connect to no other Unix socket."""
    match = _SOCKET_PATH.fullmatch(path)
    return match is not None and match[1] == incarnation


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """One node, as the name server lists it.

    Attributes:
        name: ``cache.node.N``.
        host, port: where others reach it: where it listens, or what it advertises.
        weight: its share of the keys, relative to the weights of the other nodes.
        incarnation: changes with each start of the node.
        socket_path: its Unix socket, for clients on its host; empty if it has none.
        cluster: the id of its cluster; empty if it is not known.
        zone: the name of its zone; empty if it has none, or none is known. It does not count when members are compared:
            nodes of the version before do not write it into a view.
    """

    name: str
    host: str
    port: int
    weight: float = 1.0
    incarnation: str = ""
    socket_path: str = ""
    cluster: str = ""
    zone: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_node_name(self.name)
        check_weight(self.weight)
        check_zone(self.zone)
        # Any peer may have sent these fields. What the system's calls do not take must not reach them.
        if not all(type(field) is str for field in (self.host, self.incarnation, self.socket_path)):
            raise ValueError("A host, an incarnation and a path are strings.")
        if type(self.port) is not int or not 0 <= self.port < 2**16 or "\0" in self.host + self.socket_path:
            raise ValueError("This is not the address of a node.")

    @property
    def identity(self) -> tuple[str, str]:
        """Return name and incarnation: one start of one node."""
        return self.name, self.incarnation

    @property
    def address(self) -> str:
        """Return ``host:port``."""
        return format_address(self.host, self.port)

    @property
    def number(self) -> int:
        """Return N of ``cache.node.N``."""
        return int(self.name.rpartition(".")[2])


class ClusterView:
    """The nodes of a cluster at one moment, and which of them owns which key.

    Attributes:
        number: 1 or more, larger than that of any view before; 0 if it is unknown.
        cluster: the id of the cluster; empty if it is unknown.
        members: the nodes, sorted by number.
        dead: identities of members of the view before that an operator has declared to be dead.
        previous: the number of the view before.
        id: equal for two views if they have the same members, incarnations included; never 0.
        owners: by partition, the index of its owner in ``members``; -1 until `owner` computes it.
    """

    __slots__ = (
        *("_by_name", "_weighted", "cluster", "dead", "id", "members", "number", "owners"),
        "previous",
    )

    def __init__(
        self,
        members: Iterable[Member],
        number: int = 0,
        cluster: str = "",
        dead: Iterable[tuple[str, str]] = (),
        previous: int | None = None,
    ) -> None:
        self.number = number
        self.previous = number - 1 if previous is None else previous
        self.cluster = cluster
        self.dead = tuple(sorted(dead))
        self.members: tuple[Member, ...] = tuple(sorted(members, key=lambda member: member.number))
        self._by_name = {member.name: member for member in self.members}
        if len(self.members) > _MOST_MEMBERS:
            raise ValueError(f"A view has at most {_MOST_MEMBERS} members.")
        if len(self._by_name) != len(self.members):
            raise ValueError("Two members of one view have the same name.")
        text = "\n".join(f"{m.name} {m.incarnation} {float(m.weight)!r}" for m in self.members)
        self.id: int = xxh3_64_intdigest(text.encode()) or 1
        self._weighted = [(member.name.encode(), float(member.weight)) for member in self.members]
        self.owners = array("h", [_UNKNOWN]) * PARTITIONS  # indices in members; small, to stay in caches

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __eq__(self, other: object) -> bool:
        """Compare number, cluster and members, addresses included (``id`` ignores addresses)."""
        if not isinstance(other, ClusterView) or self.number != other.number:
            return False
        return self.cluster == other.cluster and self.members == other.members

    def __hash__(self) -> int:
        return hash((self.number, self.members))

    def __repr__(self) -> str:
        names = ", ".join(member.name for member in self.members)
        return f"<ClusterView {self.number}: {names or 'empty'}>"

    @property
    def zones(self) -> list[str]:
        """Return the zones of the members, in their order."""
        return [member.zone for member in self.members]

    def member(self, name: str) -> Member | None:
        """Return the member with that name, or None."""
        return self._by_name.get(name)

    def owner(self, key: bytes) -> Member:
        """Return the node that owns a key.

        Raises:
            LookupError: the view is empty.
        """
        return self.owner_of_partition(xxh3_64_intdigest(key) % PARTITIONS)

    def owner_of_partition(self, partition: int) -> Member:
        """Return the node that owns a partition. Raises `LookupError` if the view is empty."""
        owner = self.owners[partition]
        return self.members[owner if owner >= 0 else self._first(partition)]

    def split(self, keys: Sequence[bytes], indices: Sequence[int]) -> list[list[int]]:
        """Return, for each member in the order of ``members``, those of ``indices`` whose keys it owns.

        Raises:
            LookupError: the view is empty.
        """
        if len(self.members) == 1:
            return [list(indices)]
        owned: list[list[int]] = [[] for _ in range(len(self.members) + 1)]
        add, owners = [own.append for own in owned], self.owners
        numbers = map(xxh3_64_intdigest, map(keys.__getitem__, indices))
        for index, hashed in zip(indices, numbers, strict=True):
            add[owners[hashed % PARTITIONS]](index)
        for index in owned.pop():  # the last list is that of index -1, _UNKNOWN
            owned[self._first(partition_of(keys[index]))].append(index)
        return owned

    def _first(self, partition: int) -> int:
        if not self.members:
            raise LookupError("The view has no nodes.")
        salt = partition.to_bytes(2, "little")
        # The hash becomes a number strictly between 0 and 1; -1/log grows with it.
        scores = [
            -weight / math.log((xxh3_64_intdigest(salt + name) // 4096 + 0.5) / 2**52)
            for name, weight in self._weighted
        ]
        owner = self.owners[partition] = scores.index(max(scores))
        return owner
