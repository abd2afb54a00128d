"""Where the search looks: who is there at the beginning, and what may happen."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.model.cluster import EVERY_FAULT, Model, Rules, World
from tests.model.explore import Search


class Scenario(NamedTuple):
    """A beginning, and what may happen then.

    Attributes:
        rules: with the kinds of faults.
        members, others, faults: as for `Model.start`.
    """

    rules: Rules
    members: str
    others: tuple[tuple[str, str], ...]
    faults: int

    def search(self, faults: int | None = None, steps: int = -1) -> tuple[Model, Search[World]]:
        """Return a model, and a search that begins there. Without a number of steps, time has no end."""
        model = Model(self.rules)
        faults = self.faults if faults is None else faults
        return model, Search(model.steps, model.start(self.members, self.others, faults, steps))


def scenario(members: str, others: str, *plan: str, faults: int = 0, **rules: Any) -> Scenario:
    """Return a scenario.

    Args:
        members: their names, a letter each.
        others: names and roles, with commas between them.
        plan: the faults, if only those happen.
        faults: how many happen, of any kind, if there is no plan.
        rules: for `Rules`.
    """
    pairs = tuple((name, role) for name, role in (other.split() for other in others.split(", ")))
    kinds = rules.pop("kinds", EVERY_FAULT)
    return Scenario(Rules(kinds, plan, **rules), members, pairs, len(plan) or faults)


def _kinds(kinds: str) -> frozenset[str]:
    return frozenset(kinds.split())


SCENARIOS = {
    "join": scenario("a", "j joiner", faults=1),
    "restart": scenario("ab", "b joiner", faults=1),
    "leave": scenario("ab", "b leaver", faults=1),
    "join of two, a node is killed": scenario("ab", "j joiner", faults=1, kinds=_kinds("kill")),
    "join of two, answers are late": scenario("ab", "j joiner", faults=1, kinds=_kinds("late")),
    "two joiners": scenario("a", "j joiner, k joiner", faults=0),
    "a silent member is replaced, the others end": scenario(
        "ab", "a rival", "isolate a1", "kill b1", "wipe name server"
    ),
    "several hosts": scenario("ab", "b joiner", faults=1, one_host=False),
}
"""Searched in every run of the tests, in about twelve seconds of CPU."""

LARGER = {
    "remove": scenario("ab", "b remover", faults=1),
    "join of two, a node is suspended": scenario("ab", "j joiner", faults=1, kinds=_kinds("suspend")),
    "join of two, cuts": scenario("ab", "j joiner", faults=1, kinds=_kinds("cut"), one_host=False),
    "join of two, a node is isolated": scenario("ab", "j joiner", faults=1, kinds=_kinds("isolate")),
    "leave and join": scenario("ab", "b leaver, j joiner", faults=0),
    "three members, one leaves": scenario("abc", "c leaver", faults=0),
    "three members, one restarts": scenario("abc", "c joiner", faults=1, kinds=_kinds("kill")),
}
"""Searched with ``--full``, in about forty seconds of CPU."""

HUGE = {
    "join of two, a question is late": scenario("ab", "j joiner", faults=1, kinds=_kinds("slow")),
    "finer time": scenario("ab", "b joiner", faults=1, lease=4),
    "a silent member is replaced, it wakes up": scenario("ab", "a asleep, a rival", faults=1),
    "join of two, the name server is wiped": scenario("ab", "j joiner", faults=1, kinds=_kinds("wipe")),
    "a member is taken over": scenario("ab", "b rival", faults=1),
    "two joiners, a fault": scenario("a", "j joiner, k joiner", faults=1),
    "the last two of a host, a joiner cannot ask": scenario(
        "ab", "b dead, j joiner", "cut from j2 a1", "wipe name server", lease=4
    ),
    "two faults": scenario("a", "j joiner", faults=2),
    "restart, two faults": scenario("ab", "b joiner", faults=2),
    "several hosts, two faults": scenario("ab", "b joiner", faults=2, one_host=False),
    "join of two": scenario("ab", "j joiner", faults=1),
    "join of two, two faults": scenario("ab", "j joiner", faults=2),
    "three members": scenario("abc", "c joiner", faults=1),
    "three members, a joiner, two faults": scenario("abc", "j joiner", faults=2),
    "everything": scenario("abc", "b leaver, c rival, j joiner", faults=4, units=8, lease=4),
}
"""For searches by hand; the larger ones by random walks."""
