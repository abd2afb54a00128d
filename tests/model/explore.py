"""Search for a violation: breadth-first through all states, or at random along long paths."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

State = TypeVar("State")
Label = tuple[object, ...]
Steps = Callable[[State], Iterator[tuple[Label, State]]]


class Found(NamedTuple):
    """What a search has found.

    Attributes:
        states: how many were visited.
        complete: whether nothing is left.
        violation: what does not hold; None if everything holds.
        trace: the steps that lead to it. ``violation`` names the last one.
    """

    states: int
    complete: bool
    violation: str | None = None
    trace: tuple[Label, ...] = ()


class Search(Generic[State]):
    """A search of the states that can be reached.

    Args:
        steps: yields the steps from a state; raises `AssertionError` for a violation.
        start: the first state.
    """

    def __init__(self, steps: Steps[State], start: State) -> None:
        self._steps = steps
        self._start = start

    def everything(self, limit: int = 100_000_000) -> Found:
        """Visit every state, the nearest first."""
        came: dict[State, tuple[State, Label] | None] = {self._start: None}
        frontier = [self._start]
        while frontier:
            following: list[State] = []
            for state in frontier:
                try:
                    for label, after in self._steps(state):
                        if after not in came:
                            came[after] = state, label
                            following.append(after)
                except AssertionError as violation:
                    return Found(len(came), False, str(violation), self._trace(came, state))
                if len(came) > limit:
                    return Found(len(came), False)
            frontier = following
        return Found(len(came), True)

    def walks(self, number: int, length: int, seed: int, is_fault: Callable[[State, State], bool]) -> Found:
        """Take paths of ``length`` steps at random. A fault is taken in one of five steps where one is possible."""
        visited = 0
        for walk in range(number):
            chance = random.Random(f"{seed} {walk}")
            state, trace = self._start, list[Label]()
            for _ in range(length):
                try:
                    steps = list(self._steps(state))
                except AssertionError as violation:
                    return Found(visited, False, str(violation), tuple(trace))
                faults = [step for step in steps if is_fault(state, step[1])]
                usual = [step for step in steps if not is_fault(state, step[1])]
                if not steps:
                    break
                visited += 1
                chosen = faults if faults and (not usual or chance.random() < 0.2) else usual
                label, state = chance.choice(chosen)
                trace.append(label)
        return Found(visited, False)

    @staticmethod
    def _trace(came: dict[State, tuple[State, Label] | None], state: State) -> tuple[Label, ...]:
        trace = []
        while (step := came[state]) is not None:
            state, label = step
            trace.append(label)
        return tuple(reversed(trace))
