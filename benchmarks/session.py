"""One run of the benchmarks, as its cases see it: how thorough to be, and where to say what is going on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(slots=True)
class Session:
    """What the command line hands to each case.

    Attributes:
        quick: a run to see whether all works; its figures are rough.
        progress: told what is being measured.
        notes: what the reader of the results must know, each once.
    """

    quick: bool = False
    progress: Callable[[str], None] = lambda doing: None
    notes: list[str] = field(default_factory=list)

    def choose(self, full: _T, quick: _T) -> _T:
        """``full``, or ``quick`` in a quick run."""
        return quick if self.quick else full

    @property
    def slice_seconds(self) -> float:
        """How long a contender's turn takes, where it is limited by time."""
        return self.choose(0.4, 0.05)

    def note(self, text: str) -> None:
        """Something was left out, or must be known."""
        if text not in self.notes:
            self.notes.append(text)
