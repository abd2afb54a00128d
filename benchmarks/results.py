"""What is kept of a run: rows of figures, and the machine, the versions and the date they go with. Also as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one contender in one thing.

    Attributes:
        case: name of the case, as for ``--only``.
        table: where it is shown.
        operation: what was done.
        contender: by whom.
        figures: by name; `tables.COLUMNS` has their units.
    """

    case: str
    table: str
    operation: str
    contender: str
    figures: dict[str, float]


@dataclass(slots=True)
class Results:
    """One run.

    Attributes:
        date: when it began, ISO 8601 with the zone.
        quick: its figures are rough.
        machine, versions: see `machine`.
        rows: what was measured.
        notes: what was left out, and why.
    """

    date: str
    quick: bool = False
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def figure(self, case: str, table: str, operation: str, contender: str, figure: str) -> float | None:
        """One figure, None when it was not measured."""
        for row in self.rows:
            if (row.case, row.table, row.operation, row.contender) == (case, table, operation, contender):
                return row.figures.get(figure)
        return None

    def to_json(self) -> str:
        """For people, too: figures have four digits."""
        data = asdict(self)
        for row in data["rows"]:
            row["figures"] = {name: float(f"{figure:.4g}") for name, figure in row["figures"].items()}
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The opposite of `to_json`."""
        data: dict[str, Any] = json.loads(text)
        return cls(**{**data, "rows": [Row(**row) for row in data["rows"]]})

    def save(self, directory: Path = RESULTS) -> Path:
        """Write it to a file that is named after the date; returns that."""
        directory.mkdir(exist_ok=True)
        path = directory / f"{self.date[:16].replace(':', '')}.json"
        path.write_text(self.to_json())
        return path


def newest(directory: Path = RESULTS) -> Path | None:
    """The file that was saved last, by its date."""
    return max(directory.glob("*.json"), default=None)
