"""A model of nodes, name server, joiner and leaver, whose every interleaving within bounds is explored.

The nodes decide by the package's own `Fencing`. The model adds what is around it: a name server with compare-and-set
by name, questions whose answers arrive late, time in steps of half a lease, and faults: suspended and killed nodes, a
name server that is away or wiped, cut links. It checks in each state that

- at most one node serves a partition,
- a node that begins to serve a partition has none of the entries that it had before another node served it,
- the number of the view, from which fencing tokens are made, is larger than that of the server before.

A question is asked and processed in one moment, and its answer is received later. A partition of the model is written
in every state in which a node serves it. `Rules` holds the choices that are wrong on purpose in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from pyrocache.cluster.fencing import Fencing, Heard

LEASE = 2
_OLD = -LEASE - 1  # a time that is so long ago makes no difference to any earlier one
_NEVER = float("-inf")

Identity = tuple[str, str]


class Member(NamedTuple):
    name: str
    incarnation: str

    @property
    def identity(self) -> Identity:
        return self.name, self.incarnation


class View(NamedTuple):
    """A `ClusterView`, as far as `Fencing` knows it."""

    number: int
    members: tuple[Member, ...]

    @property
    def dead(self) -> tuple[Identity, ...]:
        return ()

    def __len__(self) -> int:
        return len(self.members)

    def __bool__(self) -> bool:
        return True

    def member(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other)  # type: ignore[arg-type]

    def __hash__(self) -> int:
        return hash((self.number, self.members))


NOTHING = View(0, ())
RANKS = ("jbac", "bjca")
"""For each partition, the names of nodes, best owner first."""


@cache
def owner(view: View, partition: int) -> Member | None:
    for name in RANKS[partition]:
        member = view.member(name)
        if member is not None:
            return member
    return None


@dataclass(frozen=True)
class Rules:
    """What the model can be told to do wrongly, and where its nodes are.

    Attributes:
        one_host: nothing is cut off; a node that has ended is seen to be gone.
        kinds: which faults happen: "late", "suspend", "kill", "away", "wipe", "cut".
        fencing: a class with one rule broken.
    """

    one_host: bool = True
    kinds: frozenset[str] = frozenset({"late", "suspend", "kill", "away", "wipe"})
    refused_means_gone: bool = False
    lease_from_receipt: bool = False
    confirm_while_preparing: bool = False
    same_identity: bool = False
    put_back_alone: bool = False
    propose_unsettled: bool = False
    fencing: Callable[..., Fencing] = field(default=Fencing)


class Round(NamedTuple):
    """The questions of one node to all others, and their answers.

    Attributes:
        age: steps since they were sent.
        listing: the two newest views at the name server, newest first; None: no answer.
        heard: the answers of the members.
    """

    age: int
    listing: tuple[View, ...] | None
    heard: tuple[tuple[Identity, Heard], ...]
    prepared: bool


class Node(NamedTuple):
    """One start of a node.

    Attributes:
        fencing: what it knows; None before its first listing.
        until: when its lease ends, relative to now.
        role: "member", "joiner", "leaver" or "ended".
        paused: suspended.
        asked: whether it sent its round in this step.
        gap: steps since it sent its last round.
        round: the answers that it has not received yet.
        served: by partition, whether it serves it.
        data: by partition, whether it has entries.
        blank: steps since it saw that the name server lists nothing; None: not.
    """

    me: Member
    fencing: Fencing | None = None
    until: float = _NEVER
    role: str = "member"
    paused: bool = False
    asked: bool = False
    gap: int = 0
    round: Round | None = None
    served: tuple[bool, ...] = (False,) * len(RANKS)
    data: tuple[bool, ...] = (False,) * len(RANKS)
    blank: int | None = None


class World(NamedTuple):
    """One state.

    Attributes:
        nodes: every start of a node.
        listed: the views at the name server, newest first.
        up: whether it answers.
        cuts: pairs of names that cannot reach each other; "n" is the name server.
        last: by partition, the last node that served it, and the number of its view.
        faults: how many more may happen.
        steps: how much more time there is.
    """

    nodes: tuple[Node, ...]
    listed: tuple[View, ...]
    up: bool = True
    cuts: frozenset[str] = frozenset()
    last: tuple[tuple[Identity, int] | None, ...] = (None,) * len(RANKS)
    faults: int = 2
    steps: int = 6


class Violation(AssertionError):
    """Two nodes serve one partition, or one serves what is outdated."""


def serves(node: Node, partition: int) -> bool:
    if node.role == "ended" or node.paused or node.fencing is None or not node.served[partition]:
        return False
    return owner(node.fencing.view, partition) == node.me and node.until > 0


def check(world: World) -> World:
    """Return the world after each serving node has written. Raises `Violation`."""
    for partition in range(len(RANKS)):
        serving = [node for node in world.nodes if serves(node, partition)]
        if len(serving) > 1:
            raise Violation(f"partition {partition} is served by {[node.me for node in serving]}")
        for node in serving:
            assert node.fencing is not None
            last = world.last[partition]
            number = node.fencing.view.number
            if last is not None and last[0] != node.me.identity:
                if node.data[partition]:
                    raise Violation(f"{node.me} serves partition {partition} with entries that are outdated")
                if number <= last[1]:
                    raise Violation(f"the tokens of partition {partition} fall at {node.me}")
            world = world._replace(last=_put(world.last, partition, (node.me.identity, number)))
            if not node.data[partition]:
                world = _with(world, node, data=_put(node.data, partition, True))
    return world


def _put(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _with(world: World, node: Node, **changes: Any) -> World:
    index = next(index for index, other in enumerate(world.nodes) if other.me == node.me)
    return world._replace(nodes=_put(world.nodes, index, node._replace(**changes)))


class Model:
    """The steps that are possible in a world.

    Args:
        rules: see `Rules`.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def start(self, members: str, *others: tuple[str, str], faults: int, steps: int) -> World:
        """Return a world in which ``members`` serve, and each of ``others``, a name and a role, begins."""
        view = View(10, tuple(Member(name, "1") for name in members))
        nodes = []
        roles = dict(others)
        for member in view.members:
            fencing = self._fencing(member).adopt(view, NOTHING, 0).listed(0, 0)
            role = "leaver" if roles.get(member.name) == "leaver" else "member"
            node = Node(member, fencing, role=role)
            nodes.append(self._updated(node))
        nodes += [Node(Member(name, "2"), role=role) for name, role in others if role == "joiner"]
        return check(World(tuple(nodes), (view,), faults=faults, steps=steps))

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """Yield each step that is possible, with its name."""
        for node in world.nodes:
            if node.role == "ended":
                continue
            if node.paused:
                yield f"{node.me.name} continues", _with(world, node, paused=False)
                continue
            if node.round is not None:
                yield f"{node.me.name} is answered late", self._answered(world, node)
            else:
                asked = self._ask(world, node)
                asking = next(one for one in asked.nodes if one.me == node.me)
                yield f"{node.me.name} asks", self._answered(asked, asking)
                if world.faults and "late" in self.rules.kinds:
                    less = asked._replace(faults=world.faults - 1)
                    yield f"{node.me.name} asks and is not answered yet", less
                if world.faults and "suspend" in self.rules.kinds:
                    less = asked._replace(faults=world.faults - 1)
                    yield f"{node.me.name} asks and is suspended", _with(less, asking, paused=True)
            if (proposed := self._proposed(world, node)) is not None:
                yield f"{node.me.name} proposes", proposed
            if node.role == "left":
                yield f"{node.me.name} ends", _with(world, node, role="ended")
        yield from self._faults(world)
        if world.steps and all(
            node.asked or node.paused or node.round or node.role in ("ended", "left") for node in world.nodes
        ):
            yield "time", self._later(world)

    def _faults(self, world: World) -> Iterator[tuple[str, World]]:
        if not world.up:
            yield "name server back", world._replace(up=True)
        for cut in world.cuts:
            yield f"{cut} healed", world._replace(cuts=world.cuts - {cut})
        if not world.faults:
            return
        less = world._replace(faults=world.faults - 1)
        for node in world.nodes:
            if node.role != "ended" and not node.paused and "suspend" in self.rules.kinds:
                yield f"{node.me.name} suspended", _with(less, node, paused=True)
            if node.role in ("member", "leaver", "joiner") and "kill" in self.rules.kinds:
                yield f"{node.me.name} killed", _with(less, node, role="ended", paused=False, round=None)
        if world.up and "away" in self.rules.kinds:
            yield "name server away", less._replace(up=False)
        if world.up and world.listed and "wipe" in self.rules.kinds:
            yield "name server wiped", less._replace(listed=())
        if "cut" in self.rules.kinds:
            names = sorted({node.me.name for node in world.nodes} | {"n"})
            for one in names:
                for other in names:
                    if one < other and one + other not in world.cuts:
                        yield f"{one}{other} cut", less._replace(cuts=world.cuts | {one + other})

    def _fencing(self, me: Member) -> Fencing:
        return self.rules.fencing(self._identity(me), LEASE, NOTHING, NOTHING)

    def _identity(self, member: Member) -> Identity:
        return member.identity

    def _linked(self, world: World, one: str, other: str) -> bool:
        return one == other or min(one, other) + max(one, other) not in world.cuts

    def _listing(self, world: World, node: Node) -> tuple[View, ...] | None:
        return world.listed if world.up and self._linked(world, node.me.name, "n") else None

    def _ask(self, world: World, node: Node) -> World:
        fencing = node.fencing
        heard: list[tuple[Identity, Heard]] = []
        listing = self._listing(world, node)
        if fencing is not None and node.gap > 1:
            fencing = fencing.standstill(0)
        # As a node does: the members need not be asked while the name server confirms a view that is settled.
        confirmed = fencing is not None and listing is not None and listing[:1] == (fencing.view,)
        if fencing is not None and not (confirmed and fencing.settled(0)):
            others = {*fencing.view.members, *fencing.before.members} - {node.me}
            for member in sorted(others):
                world, answer = self._question(world, node, fencing.view, member)
                heard.append((member.identity, answer))
        asked = Round(0, listing, tuple(heard), fencing is not None and fencing.preparing)
        return _with(world, node, fencing=fencing, asked=True, gap=0, round=asked)

    def _question(self, world: World, node: Node, view: View, member: Member) -> tuple[World, Heard]:
        other = next((one for one in world.nodes if one.me == member), None)
        linked = self._linked(world, node.me.name, member.name)
        if other is None or other.role == "ended" or not linked:
            gone = (self.rules.one_host and linked) or self.rules.refused_means_gone
            return world, Heard.GONE if gone else Heard.SILENT
        if other.paused or other.fencing is None:
            return world, Heard.SILENT
        fencing = other.fencing
        if self.rules.confirm_while_preparing:
            from dataclasses import replace

            fencing = replace(fencing, preparing=False)
        answer = fencing.answer(view)  # type: ignore[arg-type]
        if view.number > other.fencing.view.number:
            world = _with(world, other, fencing=other.fencing.rumour(0))
        return world, answer

    def _answered(self, world: World, node: Node) -> World:
        asked, fencing = node.round, node.fencing
        assert asked is not None
        sent_at = 0 if self.rules.lease_from_receipt else -asked.age
        changes: dict[str, Any] = {"round": None}
        if fencing is not None:
            for member, heard in asked.heard:
                fencing = fencing.heard(member, heard, sent_at, 0)
        if asked.listing is not None:
            newest = asked.listing[0] if asked.listing else NOTHING
            before = asked.listing[1] if len(asked.listing) > 1 else NOTHING
            if fencing is None:
                if newest.members:
                    fencing = self._fencing(node.me).adopt(newest, before, 0)
            elif newest.number > fencing.view.number:
                if asked.prepared or node.role == "joiner" or self.rules.confirm_while_preparing:
                    return self._adopt(world, node._replace(fencing=fencing), newest, before)
                fencing = fencing.prepare()
                changes["asked"] = False  # and ask again at once
            elif newest == fencing.view:
                fencing = fencing.listed(sent_at, 0)
                changes["blank"] = None
            elif newest.number < fencing.view.number and node.role == "member":
                blank = 0 if node.blank is None else node.blank
                changes["blank"] = blank
                majority = self.rules.put_back_alone or fencing.majority_at() > -blank
                if node.blank is not None and majority and self._listing(world, node) is not None:
                    put = {view.number: view for view in (fencing.before, fencing.view) if view.number}
                    put.update((view.number, view) for view in world.listed)
                    listed = tuple(put[number] for number in sorted(put, reverse=True)[:2])
                    world = world._replace(listed=listed)
        return check(_with(world, self._updated(node._replace(fencing=fencing, **changes))))

    def _adopt(self, world: World, node: Node, view: View, before: View) -> World:
        old = node.fencing
        assert old is not None
        if node.role != "joiner" and node.me not in view.members and node.role != "leaver":
            return _with(world, node, role="ended", round=None)
        kept = tuple(
            old.view.number >= before.number - 1
            and owner(old.view, partition) == owner(before, partition) == owner(view, partition) == node.me
            for partition in range(len(RANKS))
        )
        adopted = node._replace(
            fencing=old.adopt(view, before, 0),  # type: ignore[arg-type]
            round=None,
            served=tuple(a and b for a, b in zip(kept, node.served, strict=True)),
            data=tuple(a and b for a, b in zip(kept, node.data, strict=True)),
        )
        if node.role == "joiner" and node.me in view.members:
            adopted = adopted._replace(role="member")
        if node.role == "leaver" and node.me not in view.members:
            adopted = adopted._replace(role="left")
        return check(_with(world, self._updated(adopted)))

    def _proposed(self, world: World, node: Node) -> World | None:
        """Return the world after a joiner or leaver has stored a new view; None if it must not or cannot."""
        fencing, listing = node.fencing, self._listing(world, node)
        if node.role not in ("joiner", "leaver") or fencing is None or listing is None:
            return None
        if not fencing.settled(0) and not self.rules.propose_unsettled:
            return None
        view = fencing.view
        others = tuple(member for member in view.members if member.name != node.me.name)
        joins = node.role == "joiner"
        replaced = view.member(node.me.name)
        if joins and replaced is not None and dict(fencing.gone).get(replaced.identity, _NEVER) == _NEVER:
            return None  # its name is that of a node which may be alive
        proposal = View(view.number + 1, tuple(sorted((*others, node.me))) if joins else others)
        if any(other.number == proposal.number for other in world.listed):
            return None
        listed = tuple(sorted((proposal, *world.listed), key=lambda one: -one.number)[:2])
        world = world._replace(listed=listed)
        if listed[0] != proposal:
            return world
        return self._adopt(world, node, proposal, view)

    def _updated(self, node: Node) -> Node:
        fencing = node.fencing
        if fencing is None or node.role == "joiner":
            return node
        served = list(node.served)
        for partition in range(len(RANKS)):
            before = owner(fencing.before, partition)
            if owner(fencing.view, partition) != node.me:
                served[partition] = False
            elif before is None:
                served[partition] = served[partition] or fencing.valid_at <= 0
            elif before == node.me or fencing.is_free(before, 0):
                served[partition] = True
        until = fencing.serves_until(all_here=self.rules.one_host)
        return node._replace(served=tuple(served), until=until)

    def _later(self, world: World) -> World:
        nodes = []
        for node in world.nodes:
            asked = node.round
            if asked is not None:
                asked = asked._replace(age=min(asked.age + 1, LEASE + 1))
            node = node._replace(
                fencing=_aged(node.fencing),
                until=_aged_time(node.until),
                asked=False,
                gap=min(node.gap + 1, 3),
                round=asked,
                blank=None if node.blank is None else min(node.blank + 1, LEASE + 2),
            )
            nodes.append(node if node.paused or node.role == "joiner" else self._updated(node))
        return check(world._replace(nodes=tuple(nodes), steps=world.steps - 1))


def _aged_time(time: float) -> float:
    return max(time - 1, _OLD) if time not in (_NEVER, float("inf")) else time


def _aged(fencing: Fencing | None) -> Fencing | None:
    from dataclasses import replace

    if fencing is None:
        return None
    valid = fencing.valid_at <= 0
    acknowledged = fencing.acknowledged
    if fencing.settled(0):
        acknowledged = frozenset(member.identity for member in fencing.before.members)
    return replace(
        fencing,
        acknowledged=acknowledged,
        enough_at=_NEVER if valid else _aged_time(fencing.enough_at),
        valid_at=_OLD if fencing.settled(0) else _aged_time(fencing.valid_at),
        nameserver_at=_aged_time(fencing.nameserver_at),
        doubted_at=_aged_time(fencing.doubted_at) if fencing.doubts else _NEVER,
        live=tuple((who, at - 1) for who, at in fencing.live if at > 1 - LEASE),
        gone=tuple((who, at - 1) for who, at in fencing.gone if at > 1 - LEASE),
    )


def explore(model: Model, start: World, limit: int = 10_000_000) -> tuple[int, list[str] | None]:
    """Visit every world. Return their number, and the steps to a violation if there is one."""
    came: dict[World, tuple[World, str] | None] = {start: None}
    frontier = [start]
    while frontier:
        following = []
        for world in frontier:
            try:
                for name, after in model.steps(world):
                    if after not in came:
                        came[after] = world, name
                        following.append(after)
            except Violation as violation:
                trace = [str(violation)]
                at: World | None = world
                while at is not None and (step := came[at]) is not None:
                    at, name = step
                    trace.append(name)
                return len(came), trace[::-1]
            if len(came) > limit:
                return len(came), None
        frontier = following
    return len(came), None
