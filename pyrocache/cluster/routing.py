"""Which node owns a key. Pure: the same answer in every process that holds the same view.

A key's bytes hash to one of `PARTITIONS` virtual partitions (xxh3_64 modulo their number). A partition's
nodes are ranked by weighted rendezvous hashing, highest random weight first (Thaler and Ravishankar,
"Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 1998; the weighted score after Schindelhauer
and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005). Only a node's *name* and weight count, so one
that restarts elsewhere under its name keeps its keys, and the n-th node takes 1/n of them, from everybody.

A `ClusterView` is immutable; its memo of owners is filled by racing threads with equal values, so it needs no lock.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from pyrocache.config import check_node_name, check_weight, format_address
from pyrocache.protocol.partition import PARTITIONS, partition_of

__all__ = ["PARTITIONS", "ClusterView", "Member", "is_socket_path", "partition_of"]

_UNKNOWN = -1
_MOST_MEMBERS = 2**15 - 1


_SOCKET_PATH = re.compile(r"/[^\0]*/pyrocache-\d+/([0-9a-f]{16})\.sock")


def is_socket_path(path: str, incarnation: str) -> bool:
    """Whether a node of that incarnation may have its Unix socket there; no other socket of a host is spoken to."""
    match = _SOCKET_PATH.fullmatch(path)
    return match is not None and match[1] == incarnation


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """One node as the name server lists it.

    Attributes:
        name: ``cache.node.N``.
        host, port: where it listens.
        weight: its share of the keys, relative to the others'.
        incarnation: differs from one start of the node to the next.
        socket_path: its Unix socket, for clients on its host; empty when it has none.
    """

    name: str
    host: str
    port: int
    weight: float = 1.0
    incarnation: str = ""
    socket_path: str = ""

    def __post_init__(self) -> None:
        check_node_name(self.name)
        check_weight(self.weight)

    @property
    def address(self) -> str:
        """``host:port``."""
        return format_address(self.host, self.port)

    @property
    def number(self) -> int:
        """N of ``cache.node.N``."""
        return int(self.name.rpartition(".")[2])


class ClusterView:
    """The nodes that share the keys at one moment, and who owns which.

    Attributes:
        members: sorted by number.
        id: the same for two views iff they route alike; 0 is never an id.
    """

    __slots__ = ("_by_name", "_owners", "_weighted", "id", "members")

    def __init__(self, members: Iterable[Member]) -> None:
        self.members: tuple[Member, ...] = tuple(sorted(members, key=lambda member: member.number))
        self._by_name = {member.name: member for member in self.members}
        if len(self.members) > _MOST_MEMBERS:
            raise ValueError(f"A view has at most {_MOST_MEMBERS} members.")
        if len(self._by_name) != len(self.members):
            raise ValueError("Two members of one view have the same name.")
        routed = "\n".join(f"{member.name} {float(member.weight)!r}" for member in self.members)
        self.id: int = xxh3_64_intdigest(routed.encode()) or 1
        self._weighted = [(member.name.encode(), float(member.weight)) for member in self.members]
        self._owners = array("h", [_UNKNOWN]) * PARTITIONS  # indices in members; small, to stay in caches

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __eq__(self, other: object) -> bool:
        """Equal members, addresses included (``id`` ignores addresses)."""
        return isinstance(other, ClusterView) and self.members == other.members

    def __hash__(self) -> int:
        return hash(self.members)

    def __repr__(self) -> str:
        return f"<ClusterView {self.id:016x}: {', '.join(member.name for member in self.members) or 'empty'}>"

    def member(self, name: str) -> Member | None:
        """The member of that name, or None."""
        return self._by_name.get(name)

    def owner(self, key: bytes) -> Member:
        """The node that ``key`` belongs to.

        Raises:
            LookupError: the view is empty.
        """
        partition = xxh3_64_intdigest(key) % PARTITIONS
        owner = self._owners[partition]
        return self.members[owner if owner >= 0 else self._first(partition)]

    def owner_of_partition(self, partition: int) -> Member:
        """The node that ``partition`` belongs to; `LookupError` when the view is empty."""
        owner = self._owners[partition]
        return self.members[owner if owner >= 0 else self._first(partition)]

    def split(self, keys: Sequence[bytes], indices: Sequence[int]) -> list[list[int]]:
        """For each member, in the order of ``members``, those of ``indices`` whose key belongs to it.

        Raises:
            LookupError: the view is empty.
        """
        if len(self.members) == 1:
            return [list(indices)]
        owned: list[list[int]] = [[] for _ in range(len(self.members) + 1)]
        add, owners = [own.append for own in owned], self._owners
        for index, hashed in zip(
            indices, map(xxh3_64_intdigest, map(keys.__getitem__, indices)), strict=True
        ):
            add[owners[hashed % PARTITIONS]](index)
        for index in owned.pop():  # the last list is that of _UNKNOWN
            owned[self._first(partition_of(keys[index]))].append(index)
        return owned

    def ranked(self, partition: int) -> Sequence[Member]:
        """All nodes in the order in which they would own ``partition``."""
        scores = self._scores(partition)
        order = sorted(range(len(scores)), key=lambda index: scores[index], reverse=True)
        return [self.members[index] for index in order]

    def _first(self, partition: int) -> int:
        scores = self._scores(partition)
        if not scores:
            raise LookupError("The view has no nodes.")
        owner = self._owners[partition] = scores.index(max(scores))
        return owner

    def _scores(self, partition: int) -> list[float]:
        salt = partition.to_bytes(2, "little")
        # The hash becomes a number strictly between 0 and 1, of which -1/log is larger for luckier nodes.
        return [
            -weight / math.log((xxh3_64_intdigest(salt + name) // 4096 + 0.5) / 2**52)
            for name, weight in self._weighted
        ]
