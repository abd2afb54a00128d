"""Cluster views on the wire and in the name server: reading what any peer can have written.

A node sends its view as a map of plain values. In the name server, view ``n`` is the entry ``cache.view.n``, and its
metadata are a few strings: the id of the cluster, and one line for each member. Pure: no I/O, no threads, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pyrocache.cluster.routing import ClusterView, Member, is_id, is_socket_path
from pyrocache.config import parse_address
from pyrocache.tracebacks import came_from_outside

EMPTY = ClusterView(())

LARGEST_NUMBER = 2**31 - 1
"""The largest number of a view. A fencing token has it in its upper bits and is less than 2**63."""


def view_to_wire(view: ClusterView) -> dict[str, Any]:
    """Return a view as plain values."""
    members = [[m.name, m.host, m.port, m.weight, m.incarnation, m.socket_path] for m in view.members]
    return {
        "number": view.number,
        "cluster": view.cluster,
        "members": members,
    }  # clients need not know the dead


def view_from_wire(data: Any) -> ClusterView | None:
    """Return the view that a node has sent, or None if it is malformed."""
    try:
        number, cluster, members = data["number"], data["cluster"], data["members"]
        return _checked(number, cluster, [_sent_member(cluster, *fields) for fields in members])
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if came_from_outside(error):
            raise
        return None


def view_to_metadata(view: ClusterView) -> list[str]:
    """Return the metadata of the view's entry in the name server."""
    lines = [
        f"member={m.name} {m.incarnation} {m.address} {float(m.weight)!r} {m.socket_path}"
        for m in view.members
    ]
    dead = [f"dead={name} {incarnation}" for name, incarnation in view.dead]
    previous = [] if view.previous == view.number - 1 else [f"previous={view.previous}"]
    return ["pyrocache", f"cluster={view.cluster}", *previous, *lines, *dead]


def view_from_metadata(number: int, metadata: Iterable[str]) -> ClusterView | None:
    """Return the view of an entry in the name server, or None if it is malformed."""
    try:
        lines = [line.split("=", 1) for line in metadata if "=" in line]
        cluster = next(value for key, value in lines if key == "cluster")
        members = [_member(value, cluster) for key, value in lines if key == "member"]
        dead = [value.split(" ") for key, value in lines if key == "dead"]
        previous = next((int(value) for key, value in lines if key == "previous"), None)
        return _checked(
            number, cluster, members, [(name, incarnation) for name, incarnation in dead], previous
        )
    except (TypeError, ValueError, AttributeError, StopIteration) as error:
        if came_from_outside(error):
            raise
        return None


def _sent_member(
    cluster: str, name: str, host: str, port: int, weight: float, incarnation: str, path: str
) -> Member:
    return Member(name, host, port, weight, incarnation, path, cluster)


def _member(line: str, cluster: str) -> Member:
    name, incarnation, address, weight, path = line.split(" ", 4)
    host, port = parse_address(address, default_port=0)
    path = path if is_socket_path(path, incarnation) else ""  # of a forged entry
    return Member(name, host, port, float(weight), incarnation, path, cluster)


def _checked(
    number: Any,
    cluster: Any,
    members: Sequence[Member],
    dead: Sequence[tuple[str, str]] = (),
    previous: int | None = None,
) -> ClusterView:
    """Return the view. Raises `TypeError` or `ValueError` unless all of it is valid."""
    if type(number) is not int or not 0 <= number <= LARGEST_NUMBER or not is_id(cluster):
        raise ValueError("not a view")
    for member in members:
        if not (type(member.host) is str and is_id(member.incarnation) and type(member.port) is int):
            raise TypeError("not a member")
        if parse_address(member.address, default_port=0) != (member.host, member.port):
            raise ValueError("not an address")
        # A forged view must not make clients connect to an arbitrary Unix socket.
        if member.socket_path and not is_socket_path(member.socket_path, member.incarnation):
            raise ValueError("not a socket of a node")
    return ClusterView(members, number, cluster, dead, previous)
