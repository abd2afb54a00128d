"""The figures that `PyroCacheClient.stats` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of the cluster, from `PyroCacheClient.stats`.

    Attributes:
        nodes: each answering node's figures, by its name.
        total: their sums, counters and sizes.
        client: this client object's own figures.
        away: names of the nodes that did not answer.
    """

    nodes: dict[str, dict[str, Any]]
    total: dict[str, int]
    client: dict[str, int]
    away: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dicts."""
        return {"nodes": self.nodes, "total": self.total, "client": self.client, "away": self.away}
