"""Prints what ``pyrocache doctor`` has found, for people or as JSON.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from pyrocache.cli.doctor.findings import Finding, Level, findings
from pyrocache.cli.doctor.gather import Settings, observe
from pyrocache.cli.output import write

_WIDTH = max(len(level.value) for level in Level) + 2


def run(settings: Settings, *, as_json: bool) -> int:
    """Print the findings. Return the exit status: 1 if there is a problem, else 0.

    Raises:
        ConfigurationError: the address of the name server is not valid.
    """
    logging.getLogger("pyrocache").addHandler(logging.NullHandler())  # the findings say what warnings would
    found = findings(observe(settings))
    write(_as_json(found) if as_json else _as_text(found))
    return int(any(finding.level is Level.PROBLEM for finding in found))


def _as_json(found: Sequence[Finding]) -> str:
    return json.dumps([{**finding._asdict(), "level": finding.level.value} for finding in found], indent=2)


def _as_text(found: Sequence[Finding]) -> str:
    lines = []
    for finding in found:
        lines.append(f"{finding.level.value.ljust(_WIDTH)}{finding.subject}: {finding.what}")
        if finding.advice:
            lines.append(f"{' ' * _WIDTH}{finding.advice}")
    problems, notes = (sum(one.level is level for one in found) for level in (Level.PROBLEM, Level.NOTE))
    return "\n".join([*lines, "", f"{_count(problems, 'problem')}, {_count(notes, 'note')}"])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
