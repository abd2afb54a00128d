"""Cluster views on the wire and in the name server: reading what any peer can have written.

A node sends its view as a map of plain values. In the name server, view ``n`` is the entry ``cache.view.n``, and its
metadata are a few strings: the id of the cluster, one line for each member, and one for all zones. Pure: no I/O, no
threads, no clock.

Zones are kept apart from the members, where the version before does not look. So it reads a view with zones, and a zone
that is not valid is left out: all versions must agree on what is a view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyrocache.cluster.routing import ClusterView, Member, is_id, is_socket_path
from pyrocache.config import is_zone, parse_address
from pyrocache.tracebacks import came_from_outside

EMPTY = ClusterView(())

LARGEST_NUMBER = 2**31 - 1
"""The largest number of a view. A fencing token has it in its upper bits and is less than 2**63."""


def view_to_wire(view: ClusterView) -> dict[str, Any]:
    """Return a view as plain values."""
    members = [[m.name, m.host, m.port, m.weight, m.incarnation, m.socket_path] for m in view.members]
    sent = {
        "number": view.number,
        "cluster": view.cluster,
        "members": members,
    }  # clients need not know the dead
    zones = {member.name: member.zone for member in view.members if member.zone}
    return {**sent, "zones": zones} if zones else sent


def view_from_wire(data: Any) -> ClusterView | None:
    """Return the view that a node has sent, or None if it is malformed."""
    try:
        number, cluster, members = data["number"], data["cluster"], data["members"]
        zones = data.get("zones")
        read = [_sent_member(cluster, *fields) for fields in members]
        return _checked(number, cluster, _in_zones(read, zones if type(zones) is dict else {}))
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
    # One line: with two for each member, a view of 512 nodes would exceed the limit of items in a message.
    in_zones = [f"{member.name}={member.zone}" for member in view.members if member.zone]
    zones = [f"zones={' '.join(in_zones)}"] if in_zones else []
    dead = [f"dead={name} {incarnation}" for name, incarnation in view.dead]
    previous = [] if view.previous == view.number - 1 else [f"previous={view.previous}"]
    return ["pyrocache", f"cluster={view.cluster}", *previous, *lines, *zones, *dead]


def view_from_metadata(number: int, metadata: Iterable[str]) -> ClusterView | None:
    """Return the view of an entry in the name server, or None if it is malformed."""
    try:
        lines = [line.split("=", 1) for line in metadata if "=" in line]
        cluster = next(value for key, value in lines if key == "cluster")
        zones = next((dict(_pairs(value)) for key, value in sorted(lines) if key == "zones"), {})
        members = _in_zones([_member(value, cluster) for key, value in lines if key == "member"], zones)
        dead = [value.split(" ") for key, value in lines if key == "dead"]
        previous = next((int(value) for key, value in lines if key == "previous"), None)
        return _checked(
            number, cluster, members, [(name, incarnation) for name, incarnation in dead], previous
        )
    except (TypeError, ValueError, AttributeError, StopIteration) as error:
        if came_from_outside(error):
            raise
        return None


def with_zones(view: ClusterView, zones: Mapping[tuple[str, str], str]) -> ClusterView:
    """Return the view with the zones of those members of which it tells none, by identity."""
    if all(member.zone or member.identity not in zones for member in view.members):
        return view
    members = [replace(m, zone=m.zone or zones.get(m.identity, "")) for m in view.members]
    return ClusterView(members, view.number, view.cluster, view.dead, view.previous)


def _in_zones(members: Iterable[Member], zones: Mapping[Any, Any]) -> list[Member]:
    """Return the members with their zones, by name, as far as these are valid."""
    found = [(member, zones.get(member.name, "")) for member in members]
    return [replace(member, zone=zone) if zone and is_zone(zone) else member for member, zone in found]


def _pairs(line: str) -> Iterable[tuple[str, str]]:
    return ((name, zone) for name, _, zone in (pair.partition("=") for pair in line.split(" ")))


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
