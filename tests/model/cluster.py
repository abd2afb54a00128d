"""A model of the protocol of views and leases: nodes, name server, joiners, leavers, and faults.

The nodes decide by the package's own `Fencing`. The model adds what is around it: a name server with compare-and-set by
name, questions that are processed late or whose answers arrive late, time in ticks, and faults: suspended, killed and
isolated nodes, a name server that hangs, is killed or has lost its entries, and cuts. It checks in each state that

- at most one node serves a partition,
- a node that begins to serve a partition has none of the entries that it had before another node served it,
- the number of the view, from which fencing tokens are made, is larger than that of the server before,
- no two views have the same number, which is all that a request says of the view that it was routed with.

A node serves whatever it is allowed to serve, at each moment: a partition is written in every state in which a node
serves it.

What is modelled more coarsely than it is:

- A clock: all nodes have the same one. In exhaustive runs everything between two ticks happens in one moment, and what
  happens in the same moment does not count as "after". `Rules.units` above 1 gives each event a time of its own.
- A node asks all others at once; a fault makes one question, or all answers, late. A node that runs asks at least once
  in half a lease; one that does not has been suspended.
- Entries of views are registered and read; the second newest is removed in the same moment.
- The routing: there are two partitions, owned by rank of the names (`RANKS`).

Not modelled: how a cluster begins, other clusters, addresses, clients (they are refused by a node that does not serve).

Nodes are numbered by their state, so that each reaction of a node is computed once (`Model._memory`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from pyrocache.cluster.fencing import Fencing, Heard

_NEVER = float("-inf")
_NAMESERVER = -1
FIRST = 10
"""The number of the first view."""

Identity: TypeAlias = tuple[str, str]


class Member(NamedTuple):
    """One start of one node."""

    name: str
    incarnation: str

    @property
    def identity(self) -> Identity:
        return self.name, self.incarnation

    def __str__(self) -> str:
        return self.name + self.incarnation


class View:
    """What `Fencing` knows of a `ClusterView`. Made by `view`, so that equal ones are the same object."""

    __slots__ = ("members", "number", "previous")

    def __init__(self, number: int, members: tuple[Member, ...], previous: int) -> None:
        self.number = number
        self.members = members
        self.previous = previous

    @property
    def dead(self) -> tuple[Identity, ...]:
        return ()

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"{self.number}:{','.join(map(str, self.members))}"

    def member(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)


@cache
def _view(number: int, members: tuple[Member, ...], previous: int) -> View:
    return View(number, members, previous)


def view(number: int, members: tuple[Member, ...], previous: int | None = None) -> View:
    return _view(number, members, number - 1 if previous is None else previous)


NOTHING: Any = view(0, ())
RANKS = ("kjabc", "jcbak")
"""For each partition, the names of nodes, best owner first."""
_PARTITIONS = range(len(RANKS))


@cache
def owner(of: View, partition: int) -> Member | None:
    return next((member for name in RANKS[partition] if (member := of.member(name)) is not None), None)


EVERY_FAULT = frozenset(["late", "slow", "suspend", "kill", "isolate", "deaf", "cut", "hang", "down", "wipe"])


@dataclass(frozen=True)
class Rules:
    """How the nodes are placed, which faults happen, and what is done wrongly on purpose.

    Attributes:
        kinds: "late" (answers), "slow" (one question is processed late), "suspend", "kill", "isolate" (one node can
            neither ask nor be asked), "deaf" (one node cannot ask another one), "cut" (in both directions), and for the
            name server "hang", "down" (it is killed, and comes back with nothing), "wipe".
        plan: if not empty, the faults that happen, in this order, as `Model.describe` names them.
        heals: whether cuts end.
        one_host: a node that has ended is seen to be gone.
        lease: in ticks.
        units: per tick; each event takes one unit if there is more than one.
        fencing: a class with one rule broken.
        refused_means_gone: also from another host.
        by_name: whoever starts under the name of a member is that member.
        unprepared: a listing is acknowledged at once.
        propose_unsettled: a change may begin before the last one has ended.
        reconnects: what a node knew of the name server outlives a restart of it.
        trusting: a name server that does not answer is as good as one that lists nothing.
        lease_from_receipt: the lease is counted from the answer.
        reuses_numbers: a view that was put back is followed by the next number.
    """

    kinds: frozenset[str] = frozenset()
    plan: tuple[str, ...] = ()
    heals: bool = True
    one_host: bool = True
    lease: int = 2
    units: int = 1
    fencing: Callable[..., Any] = field(default=Fencing)
    refused_means_gone: bool = False
    by_name: bool = False
    unprepared: bool = False
    propose_unsettled: bool = False
    reconnects: bool = False
    trusting: bool = False
    lease_from_receipt: bool = False
    reuses_numbers: bool = False


Listing: TypeAlias = "tuple[View, ...] | str"
"""The two newest views, newest first; "silent" or "gone"."""


class Round(NamedTuple):
    """The questions of one node to the name server and the others, and the answers.

    Attributes:
        age: how long ago they were sent.
        prepared: whether the node did not confirm its view any more when it sent them.
        view: which view was asked for.
        listing: the answer of the name server; None: not part of this round.
        heard: the answers of members.
        reserved: the smallest number that the name server has for a new view.
    """

    age: int
    prepared: bool
    view: View | None
    listing: Listing | None
    heard: tuple[tuple[Identity, Heard], ...]
    reserved: int = 0


class Node(NamedTuple):
    """One start of a node.

    Attributes:
        place: its index in `World.nodes`.
        me: the node.
        role: "member", "joiner", "leaver", "remover" (the command that strikes a member out), "left" or "ended".
        strikes: the name that a remover strikes out.
        fencing: what it knows; None before its first listing.
        paused: suspended.
        gap: time since it sent its last round.
        late: the answers that it has not received yet.
        slow: a question that its target, the number before, has not processed yet.
        served: by partition, whether it may serve it while it has a lease.
        data: by partition, whether it has entries.
        blank: time since it saw that the name server lists nothing as new as its view; None: not.
        puts: views that it is about to put back.
        ready: whether it is about to propose.
    """

    place: int
    me: Member
    role: str = "member"
    strikes: str = ""
    fencing: Any = None
    paused: bool = False
    gap: int = 0
    late: Round | None = None
    slow: tuple[int, Round] | None = None
    served: tuple[bool, ...] = (False,) * len(RANKS)
    data: tuple[bool, ...] = (False,) * len(RANKS)
    blank: int | None = None
    puts: tuple[View, ...] = ()
    ready: bool = False


class World(NamedTuple):
    """One state.

    Attributes:
        nodes: the number of the state of each start of a node.
        nameserver: "up", "silent" or "gone".
        listed: the views at the name server, newest first.
        cuts: pairs of nodes of which the first cannot ask the second.
        last: by partition, the last node that served it, and the number of its view.
        faults: how many more may happen.
        steps: how many more ticks there are; -1: no limit.
        reserved: the smallest number for a new view; 0 once the name server has forgotten everything.
        known: the views that nodes have had, one for each number.
    """

    nodes: tuple[int, ...]
    nameserver: str
    listed: tuple[View, ...]
    cuts: frozenset[tuple[int, int]]
    last: tuple[tuple[int, int] | None, ...]
    faults: int
    steps: int
    reserved: int = FIRST
    known: tuple[View, ...] = ()


Label: TypeAlias = tuple[object, ...]
Step: TypeAlias = tuple[Label, World]


class Violation(AssertionError):
    """An invariant does not hold."""


_KINDS = {
    "ask, answers are late": "late",
    "ask, late at": "slow",
    "ask, then suspended": "suspend",
    "suspend": "suspend",
    "kill": "kill",
    "isolate": "isolate",
    "cut from": "deaf",
    "cut between": "cut",
    "hang": "hang",
    "kill name server": "down",
    "wipe": "wipe",
}
"""For each fault, as `Model.describe` begins to name it, its kind."""


class Model:
    """The steps that are possible in a world.

    Args:
        rules: see `Rules`.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.lease = rules.lease * rules.units
        self._oldest = -self.lease - 1  # what is longer ago makes no difference
        self._nodes: list[Node] = []
        self._member_views: list[View | None] = []  # by state of a node, the view of which it is a member
        self._serving: list[int] = []  # by state of a node, the partitions that it serves, as bits
        self._numbers: dict[Node, int] = {}
        self._memory: dict[tuple[Any, ...], Any] = {}
        self._indices: dict[Member, int] = {}
        self._kinds = [
            frozenset(kind for verb, kind in _KINDS.items() if step.startswith(verb)) for step in rules.plan
        ]

    def start(self, members: str, others: tuple[tuple[str, str], ...], faults: int, steps: int) -> World:
        """Return a world in which ``members`` serve, and each of ``others``, a name and a role, begins.

        A joiner with the name of a member is its restart: the member has ended, as a "dead" one has. One that is
        "asleep" is suspended. A "rival" takes the name of a member that runs. A remover strikes out the member with its
        name.
        """
        starts = [Member(name, "1") for name in members]
        newest, replaced = (
            view(FIRST, tuple(starts)),
            {name for name, role in others if role in ("joiner", "dead")},
        )
        nodes: list[Node] = []
        for member in starts:
            role = next((role for name, role in others if name == member.name and role == "leaver"), "member")
            fencing = self._aged(self._fencing(member).adopt(newest, NOTHING, -1).listed(0, 0), 0)
            node = self._served(Node(len(nodes), member, role, fencing=fencing))
            node = node._replace(paused=(member.name, "asleep") in others)
            nodes.append(self._on_ended(node) if member.name in replaced else node)
        for name, role in others:
            if role in ("joiner", "rival"):
                nodes.append(Node(len(nodes), Member(name, "2"), "joiner"))
            elif role == "remover":
                nodes.append(Node(len(nodes), Member("remover of " + name, ""), role, name))
        self._indices = {node.me: node.place for node in nodes}
        states = tuple(self._number(node) for node in nodes)
        return self.check(World(states, "up", (newest,), frozenset(), (None,) * len(RANKS), faults, steps))

    def check(self, world: World) -> World:
        """Return the world after each serving node has written. Raises `Violation`."""
        nodes, last = world.nodes, world.last
        known = self._known(world)
        for partition in _PARTITIONS:
            bit = 1 << partition
            serving = [state for state in nodes if self._serving[state] & bit]
            if len(serving) > 1:
                names = " and ".join(str(self._nodes[state].me) for state in serving)
                raise Violation(f"partition {partition} is served by {names}")
            for state in serving:
                node = self._nodes[state]
                writer = node.place, node.fencing.view.number
                before = last[partition]
                if before == writer and node.data[partition]:
                    continue
                if before is not None and before[0] != node.place:
                    if node.data[partition]:
                        raise Violation(f"{node.me} serves partition {partition} with outdated entries")
                    if writer[1] <= before[1]:
                        raise Violation(f"the tokens of partition {partition} fall at {node.me}")
                last = _put(last, partition, writer)
                nodes = _put(nodes, node.place, self._react("written", state, partition))
        if nodes is world.nodes and last is world.last and known is world.known:
            return world
        return world._replace(nodes=nodes, last=last, known=known)

    def _known(self, world: World) -> tuple[View, ...]:
        """Return the views that nodes have had. Raises `Violation` if two of them have the same number."""
        known = world.known
        for state in world.nodes:
            one = self._member_views[state]
            if one is not None and one not in known:
                if any(other.number == one.number for other in known):
                    raise Violation(f"two views have the number {one.number}")
                known = tuple(sorted((*known, one), key=lambda other: other.number))
        return known

    def steps(self, world: World) -> Iterator[Step]:
        """Yield each step that is possible, with its name. Raises `Violation`."""
        planned = self.rules.plan[-world.faults] if self.rules.plan and world.faults else None
        for label, after in self._steps(world):
            if planned is not None and after.faults < world.faults and self.describe(label) != planned:
                continue
            if self.rules.units > 1 and label[0] != "time":
                after = self._older(after, 1)
            try:
                checked = self.check(after)
            except Violation as violation:
                raise Violation(f"{violation} (after: {self.describe(label)})") from None
            yield label, checked

    def describe(self, label: Label) -> str:
        """Return a step in words."""
        return " ".join(str(self._me(part)) if isinstance(part, int) else str(part) for part in label)

    def show(self, world: World) -> str:
        """Return a world in words, for debugging."""
        return "\n".join([str(world._replace(nodes=())), *(str(self._nodes[state]) for state in world.nodes)])

    def _me(self, index: int) -> object:
        return next((me for me, at in self._indices.items() if at == index), "name server")

    def _steps(self, world: World) -> Iterator[Step]:
        waiting = False
        for index, state in enumerate(world.nodes):
            node = self._nodes[state]
            if node.role == "ended":
                continue
            if node.slow is not None:
                yield from self._processed(world, node, state)
            if node.paused:
                yield ("continue", index), self._with(world, index, self._react("continued", state))
                continue
            yield from self._acts(world, index, state, node)
            overdue = (
                node.gap + self.rules.units > self.lease / 2 and node.late is None and node.role != "left"
            )
            waiting = waiting or overdue
        if world.faults:
            yield from self._faults(world)
        if world.nameserver != "up":
            yield ("back", _NAMESERVER), world._replace(nameserver="up")
        if world.cuts and self.rules.heals:
            yield ("healed",), world._replace(cuts=frozenset())
        if world.steps and not waiting:
            yield ("time",), self._later(world)

    def _acts(self, world: World, index: int, state: int, node: Node) -> Iterator[Step]:
        """Yield what one node that runs can do."""
        kinds = self._possible(world)
        if node.late is not None:
            yield ("receive", index), self._with(world, index, self._react("received", state, node.late))
            yield ("give up", index), self._with(world, index, self._react("gave_up", state))
        else:
            asked, asking, answers = self._ask(world, index, state)
            yield ("ask", index), self._with(asked, index, self._react("received", asking, answers))
            if world.faults:
                less = asked._replace(faults=world.faults - 1)
                if "late" in kinds:
                    held = self._react("held", asking, answers, False)
                    yield ("ask, answers are late", index), self._with(less, index, held)
                if "suspend" in kinds:
                    held = self._react("held", asking, answers, True)
                    yield ("ask, then suspended", index), self._with(less, index, held)
                if "slow" in kinds and node.slow is None:
                    yield from self._ask_slowly(world, index, state)
        if node.puts and self._listing(world, index) == world.listed:
            after = self._with(world, index, self._react("put_back", state))
            reserved = world.reserved or node.puts[0].number + (1 if self.rules.reuses_numbers else 2)
            listed = _registered(world.listed, node.puts[0])
            yield ("put back", index), after._replace(listed=listed, reserved=reserved)
        if node.ready and self._listing(world, index) == world.listed:
            after = self._with(world, index, self._react("proposed", state))
            proposal = self._proposal(node, world.reserved)
            yield ("propose", index), after._replace(listed=_registered(world.listed, proposal))
        if node.role == "left":
            yield ("end", index), self._with(world, index, self._react("ended", state))

    def _faults(self, world: World) -> Iterator[Step]:
        kinds = self._possible(world)
        less = world._replace(faults=world.faults - 1)
        alive = []
        for index, state in enumerate(world.nodes):
            node = self._nodes[state]
            if node.role == "ended":
                continue
            alive.append(index)
            if "suspend" in kinds and not node.paused:
                yield ("suspend", index), self._with(less, index, self._react("suspended", state))
            if "kill" in kinds:
                yield ("kill", index), self._with(less, index, self._react("ended", state))
            if "isolate" in kinds:
                others = [*range(len(world.nodes)), _NAMESERVER]
                cut = {pair for other in others for pair in ((index, other), (other, index))}
                yield ("isolate", index), less._replace(cuts=world.cuts | cut)
        if world.nameserver == "up":
            if "hang" in kinds:
                yield ("hang", _NAMESERVER), less._replace(nameserver="silent")
            if "down" in kinds:
                yield ("kill", _NAMESERVER), self._wiped(less)._replace(nameserver="gone")
            if "wipe" in kinds:
                yield ("wipe", _NAMESERVER), self._wiped(less)
        for one in alive:
            for other in (*range(len(world.nodes)), _NAMESERVER):
                if other != one and (one, other) not in world.cuts:
                    if "deaf" in kinds:
                        yield ("cut from", one, other), less._replace(cuts=world.cuts | {(one, other)})
                    if "cut" in kinds and (other > one or other == _NAMESERVER):
                        both = {(one, other), (other, one)}
                        yield ("cut between", one, other), less._replace(cuts=world.cuts | both)

    def _possible(self, world: World) -> frozenset[str]:
        """Return the kinds of faults that may happen next."""
        return self._kinds[-world.faults] if self._kinds and world.faults else self.rules.kinds

    def _with(self, world: World, index: int, state: int) -> World:
        nodes = _put(world.nodes, index, state)
        return World(
            nodes,
            world.nameserver,
            world.listed,
            world.cuts,
            world.last,
            world.faults,
            world.steps,
            world.reserved,
            world.known,
        )

    def _wiped(self, world: World) -> World:
        nodes = tuple(self._react("disconnected", state) for state in world.nodes)
        return world._replace(listed=(), nodes=nodes, reserved=0)

    def _later(self, world: World) -> World:
        return self._older(world, self.rules.units)._replace(steps=max(world.steps - 1, -1))

    def _older(self, world: World, units: int) -> World:
        return world._replace(nodes=tuple(self._react("aged", state, units) for state in world.nodes))

    def _listing(self, world: World, index: int) -> Listing:
        if (index, _NAMESERVER) in world.cuts or world.nameserver == "silent":
            return "silent"
        if world.nameserver == "gone":
            return "gone" if self.rules.one_host or self.rules.refused_means_gone else "silent"
        return world.listed

    def _ask(self, world: World, index: int, state: int, slow: int | None = None) -> tuple[World, int, Round]:
        """Return the world after all but the target ``slow`` have processed their questions, and the answers."""
        asking = self._react("asks", state)
        fencing = self._nodes[asking].fencing
        listing = self._listing(world, index)
        if slow == _NAMESERVER:
            listing = "silent"
        if fencing is None:
            return world, asking, Round(0, False, None, listing, ())
        nodes = world.nodes
        heard = []
        # As a node does: the members need not be asked while the name server confirms a view that is settled.
        if not (isinstance(listing, tuple) and listing[:1] == (fencing.view,) and fencing.settled(0)):
            for member in self._react("others", asking):
                target = self._indices[member]
                nodes, answer = self._question(world, nodes, index, target, fencing.view)
                heard.append((member.identity, Heard.SILENT if target == slow else answer))
                if target == slow:
                    nodes = _put(nodes, target, world.nodes[target])
        if nodes is not world.nodes:
            world = world._replace(nodes=nodes)
        return (
            world,
            asking,
            Round(0, fencing.preparing, fencing.view, listing, tuple(heard), world.reserved),
        )

    def _question(
        self, world: World, nodes: tuple[int, ...], index: int, target: int, asked: View
    ) -> tuple[tuple[int, ...], Heard]:
        state = nodes[target]
        node = self._nodes[state]
        linked = (index, target) not in world.cuts
        if node.role == "ended":
            gone = (self.rules.one_host and linked) or self.rules.refused_means_gone
            return nodes, Heard.GONE if gone else Heard.SILENT
        if not linked:
            return nodes, Heard.GONE if self.rules.refused_means_gone else Heard.SILENT
        if node.paused or node.fencing is None:
            return nodes, Heard.SILENT
        after, answer = self._react("questioned", state, asked)
        return (nodes if after == state else _put(nodes, target, after)), answer

    def _ask_slowly(self, world: World, index: int, state: int) -> Iterator[Step]:
        less = world._replace(faults=world.faults - 1)
        targets = [self._indices[member] for member in self._react("others", state)]
        for slow in (*targets, _NAMESERVER):
            asked, asking, answers = self._ask(less, index, state, slow)
            after = self._react("waits", self._react("received", asking, answers), slow, answers)
            yield ("ask, late at", index, slow), self._with(asked, index, after)

    def _processed(self, world: World, node: Node, state: int) -> Iterator[Step]:
        """Yield the step in which a question that is late reaches its target."""
        assert node.slow is not None
        target, asked = node.slow
        nodes = world.nodes
        if target == _NAMESERVER:
            if (listing := self._listing(world, node.place)) == "silent":
                return
            answers = asked._replace(listing=listing, reserved=world.reserved)
        else:
            assert asked.view is not None
            nodes, answer = self._question(world, nodes, node.place, target, asked.view)
            if answer is Heard.SILENT:
                return
            identity = self._nodes[nodes[target]].me.identity
            answers = asked._replace(heard=((identity, answer),))
        after = self._react("answered", state, answers)
        yield (
            ("late at", target, "from", node.place),
            self._with(world._replace(nodes=nodes), node.place, after),
        )

    # From here on: the reactions of one node. Each is computed once for each state of a node.

    def _react(self, reaction: str, state: int, *arguments: Any) -> Any:
        key = (reaction, state, *arguments)
        result = self._memory.get(key)
        if result is None:
            result = getattr(self, "_on_" + reaction)(self._nodes[state], *arguments)
            if isinstance(result, Node):
                result = self._number(result)
            self._memory[key] = result
        return result

    def _number(self, node: Node) -> int:
        number = self._numbers.setdefault(node, len(self._nodes))
        if number == len(self._nodes):
            self._nodes.append(node)
            self._serving.append(self._partitions(node))
            fencing = node.fencing
            self._member_views.append(
                fencing.view if fencing is not None and node.me in fencing.view.members else None
            )
        return number

    def _partitions(self, node: Node) -> int:
        if node.role not in ("member", "leaver") or node.paused or node.fencing is None:
            return 0
        if node.fencing.serves_until(all_here=self._all_here) <= 0:
            return 0
        mine = (node.served[at] and owner(node.fencing.view, at) == node.me for at in _PARTITIONS)
        return sum(1 << at for at, serves in enumerate(mine) if serves)

    @property
    def _all_here(self) -> bool:
        return self.rules.one_host or self.rules.refused_means_gone

    def _fencing(self, me: Member) -> Any:
        return self.rules.fencing(me.identity, self.lease, NOTHING, NOTHING)

    def _on_written(self, node: Node, partition: int) -> Node:
        return node._replace(data=_put(node.data, partition, True))

    def _on_continued(self, node: Node) -> Node:
        return node._replace(paused=False)

    def _on_suspended(self, node: Node) -> Node:
        return node._replace(paused=True)

    def _on_ended(self, node: Node) -> Node:
        return Node(node.place, node.me, "ended")

    def _on_others(self, node: Node) -> tuple[Member, ...]:
        if node.fencing is None:
            return ()
        return tuple(sorted({*node.fencing.view.members, *node.fencing.before.members} - {node.me}))

    def _on_asks(self, node: Node) -> Node:
        fencing = node.fencing
        if fencing is not None and node.gap > self.lease / 2:
            fencing = fencing.standstill(0)
        return node._replace(gap=0, fencing=fencing)

    def _on_held(self, node: Node, answers: Round, paused: bool) -> Node:
        return node._replace(late=answers, paused=paused)

    def _on_gave_up(self, node: Node) -> Node:
        return node._replace(late=None)

    def _on_waits(self, node: Node, target: int, answers: Round) -> Node:
        question = answers._replace(listing=None, heard=())
        return node._replace(slow=(target, question))

    def _on_answered(self, node: Node, answers: Round) -> Node:
        """Receive the answer to a question that was processed late."""
        node = node._replace(slow=None)
        if node.role == "left":
            return node
        return node._replace(late=node.late or answers) if node.paused else self._on_received(node, answers)

    def _on_put_back(self, node: Node) -> Node:
        return node._replace(puts=node.puts[1:])

    def _on_proposed(self, node: Node) -> Node:
        return node._replace(ready=False)

    def _on_disconnected(self, node: Node) -> Node:
        """The name server has ended: nothing that was sent to it reaches the next one."""
        if self.rules.reconnects:
            return node
        if node.slow is not None and node.slow[0] == _NAMESERVER:
            node = node._replace(slow=None)
        if node.late is not None and node.late.listing == ():
            node = node._replace(late=node.late._replace(listing="silent"))
        return node._replace(blank=None, puts=(), ready=False)

    def _on_questioned(self, node: Node, asked: View) -> tuple[int, Heard]:
        answer = node.fencing.answer(asked)
        if asked.number > node.fencing.view.number:
            node = node._replace(fencing=node.fencing.rumour(0))
        return self._number(node), answer

    def _on_aged(self, node: Node, units: int) -> Node:
        late, slow = node.late, node.slow
        if late is not None:
            late = late._replace(age=late.age + units) if late.age < self.lease else None
        if slow is not None:
            question = slow[1]._replace(age=slow[1].age + units)
            slow = (slow[0], question) if question.age <= self.lease else None
        aged = node._replace(
            fencing=None if node.fencing is None else self._aged(node.fencing, units),
            gap=0 if node.role == "ended" else min(node.gap + units, self.lease + 1),
            late=late,
            slow=slow,
            blank=None if node.blank is None else min(node.blank + units, self.lease + 1),
        )
        return aged if node.paused else self._served(aged)

    def _aged(self, fencing: Any, units: int) -> Any:
        def older(time: float) -> float:
            return time if time in (_NEVER, -_NEVER) else max(time - units, self._oldest)

        settled = fencing.settled(0)
        everyone = frozenset(member.identity for member in fencing.before.members)
        recent = units - self.lease  # an older confirmation makes no difference
        return replace(
            fencing,
            acknowledged=everyone if settled else fencing.acknowledged,
            enough_at=_NEVER if fencing.valid_at <= 0 else older(fencing.enough_at),
            valid_at=self._oldest if settled else older(fencing.valid_at),
            nameserver_at=older(fencing.nameserver_at),
            unlisted_at=older(fencing.unlisted_at) if fencing.unlisted_at > recent else _NEVER,
            doubted_at=older(fencing.doubted_at) if fencing.doubts else _NEVER,
            live=tuple((who, at - units) for who, at in fencing.live if at > recent),
            gone=tuple((who, at - units) for who, at in fencing.gone if at > recent),
        )

    def _served(self, node: Node) -> Node:
        """Note what the node may serve from now on."""
        fencing = node.fencing
        if fencing is None or node.role not in ("member", "leaver"):
            return node
        served = tuple(self._may_serve(fencing, node, at) for at in _PARTITIONS)
        return node if served == node.served else node._replace(served=served)

    def _may_serve(self, fencing: Any, node: Node, partition: int) -> bool:
        if owner(fencing.view, partition) != node.me:
            return False
        if node.served[partition]:
            return True
        if fencing.view.number == FIRST:
            return bool(fencing.valid_at <= 0)
        before = owner(fencing.before, partition)
        return before in (None, node.me) or bool(fencing.is_free(before))

    def _on_received(self, node: Node, answers: Round) -> Node:
        node = node._replace(late=None)
        if node.role == "left":
            return node
        sent_at = 0 if self.rules.lease_from_receipt else -answers.age
        if node.fencing is None:
            return self._first(node, answers.listing)
        fencing = node.fencing
        if answers.view is fencing.view:
            for member, heard in answers.heard:
                fencing = fencing.heard(member, heard, sent_at, 0)
        node = node._replace(fencing=fencing)
        if answers.listing is not None:
            node = self._read(node, answers, answers.listing, sent_at)
        return self._served(node)

    def _first(self, node: Node, listing: Listing | None) -> Node:
        if not isinstance(listing, tuple) or not listing:
            return node
        newest = listing[0]
        before = listing[1] if len(listing) > 1 else NOTHING
        if newest.number > FIRST and before.number != newest.previous:
            return node  # a part of the record is missing; a member will put it back
        adopted = self._fencing(node.me).adopt(newest, before, 0)
        if self.rules.by_name and newest.member(node.me.name) is not None:
            mine = newest.member(node.me.name)
            newest = view(newest.number, tuple(node.me if one == mine else one for one in newest.members))
            adopted = self._fencing(node.me).adopt(newest, before, 0)
            return self._served(node._replace(fencing=adopted, role="member"))
        return node._replace(fencing=adopted)

    def _read(self, node: Node, answers: Round, listing: Listing, sent_at: float) -> Node:
        """Note the answer of the name server."""
        fencing = node.fencing
        node = node._replace(ready=False)
        if listing == "silent" and not self.rules.trusting:
            return node._replace(fencing=fencing.rumour(0))
        if isinstance(listing, str):
            return node._replace(fencing=fencing.unlisted(sent_at), blank=None, puts=())
        newest = listing[0] if listing else NOTHING
        if newest is fencing.view or (self.rules.by_name and newest.number == fencing.view.number):
            node = node._replace(fencing=fencing.listed(sent_at, 0), blank=None, puts=())
            return node._replace(ready=self._is_ready(node, answers.reserved))
        if newest.number < fencing.view.number:
            return self._unlisted(node, sent_at)
        if newest.number == fencing.view.number:  # this node's view was lost, and its number used again
            return node._replace(fencing=fencing.rumour(0), blank=None, puts=())
        return self._newer(node, answers, listing)

    def _unlisted(self, node: Node, sent_at: float) -> Node:
        fencing = node.fencing.unlisted(sent_at)
        node = node._replace(fencing=fencing)
        if node.me not in fencing.view.members:
            return node
        if node.blank is None:
            return node._replace(blank=0)
        if fencing.may_put_back(-node.blank, all_here=self._all_here):
            views = (fencing.view, fencing.before)
            return node._replace(puts=tuple(one for one in views if one.number))
        return node

    def _newer(self, node: Node, answers: Round, listing: tuple[View, ...]) -> Node:
        fencing, newest = node.fencing, listing[0]
        node = node._replace(blank=None, puts=())
        before = listing[1] if len(listing) > 1 else NOTHING
        if before.number != newest.previous:
            before = fencing.view
        known = before.number == newest.previous  # else a part of the record is missing
        joins = node.me not in fencing.view.members
        if known and (joins or self.rules.unprepared or (fencing.preparing and answers.prepared)):
            return self._adopted(node, newest, before)
        if joins or fencing.preparing:
            return node
        return node._replace(fencing=fencing.prepare(0))

    def _adopted(self, node: Node, newest: View, before: View) -> Node:
        old = node.fencing
        role = node.role
        if node.me in newest.members:
            role = "member" if role == "joiner" else role
        elif node.me in old.view.members:
            role = "left" if role == "leaver" else "ended"
        elif role == "remover" and newest.member(node.strikes) is None:
            role = "ended"
        if role == "ended":
            return self._on_ended(node)
        kept = tuple(
            old.view.number >= before.previous
            and owner(old.view, at) == owner(before, at) == owner(newest, at) == node.me
            for at in _PARTITIONS
        )
        return node._replace(
            role=role,
            fencing=old.adopt(newest, before, 0),
            served=tuple(a and b for a, b in zip(kept, node.served, strict=True)),
            data=tuple(a and b for a, b in zip(kept, node.data, strict=True)),
        )

    def _is_ready(self, node: Node, reserved: int) -> bool:
        """Return whether the node may propose the next view."""
        fencing = node.fencing
        if not fencing.settled(0) and not self.rules.propose_unsettled:
            return False
        if node.role == "member":  # its view was put back, and needs a number that nobody knows
            return bool(FIRST <= fencing.view.number < reserved and not self.rules.reuses_numbers)
        if node.role not in ("joiner", "leaver", "remover"):
            return False
        replaced = fencing.view.member(node.strikes or node.me.name)
        if replaced is None:
            return node.role == "joiner"
        # A node asks the member that it replaces, and goes on only if it is silent or gone. Nothing may depend on that.
        return replaced != node.me or len(fencing.view) > 1

    def _proposal(self, node: Node, reserved: int) -> View:
        of = node.fencing.view
        name = node.strikes or node.me.name
        members = tuple(member for member in of.members if member.name != name)
        if node.role in ("joiner", "member"):
            members = tuple(sorted((*members, node.me)))
        return view(max(of.number + 1, reserved), members, of.number)


def _registered(listed: tuple[View, ...], one: View) -> tuple[View, ...]:
    """Create an entry if there is none of its number. The newest two stay."""
    if any(other.number == one.number for other in listed):
        return listed
    return tuple(sorted((one, *listed), key=lambda other: -other.number)[:2])


def _put(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])
